//! Each rule by example.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::rewrite_statement;

fn rewritten(sql: &str) -> String {
    let mut statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0);
    rewrite_statement(&mut statement).unwrap();
    statement.to_string()
}

/// The WHERE clause that a condition over `pg_class c` becomes.
fn check_condition(condition: &str, expected: &str) {
    let text = rewritten(&format!("SELECT c.oid FROM pg_class c WHERE {condition}"));
    assert_eq!(text, format!("SELECT c.oid FROM pg_class c WHERE {expected}"));
}

#[test]
fn names_lose_their_system_schema() {
    check_condition("pg_catalog.pg_table_is_visible(c.oid)", "pg_table_is_visible(c.oid)");
    check_condition("c.relname OPERATOR(pg_catalog.~) '^t$' COLLATE pg_catalog.default", "c.relname ~ '^t$'");
    check_condition("c.relname = current_schema", "c.relname = current_schema()");
    check_condition("c.oid::pg_catalog.int8 = 1", "c.oid::BIGINT = 1");
    check_condition("c.relname COLLATE \"de_DE\" = 'x'", "c.relname COLLATE \"de_DE\" = 'x'");
}

#[test]
fn registered_types_are_numbers_that_show_as_names() {
    check_condition("c.oid = 't'::regclass", "c.oid = regclass_number('t')");
    check_condition("c.oid::regclass::text = 't'", "regclass_name(regclass_number(c.oid)) = 't'");
    check_condition("c.oid = 't'::pg_catalog.regclass::oid", "c.oid = regclass_number('t')::oid");
    check_condition("'a' || c.oid::regclass = 'at'", "'a' || regclass_name(regclass_number(c.oid)) = 'at'");
    assert_eq!(rewritten("SELECT 25::regtype"), "SELECT regtype_name(regtype_number(25)) AS \"regtype\"");
}

#[test]
fn constants_take_the_type_of_the_column_beside_them() {
    check_condition("c.relispartition = 't'", "c.relispartition = true");
    check_condition(
        "c.relkind = ANY ('{r,v}')",
        "c.relkind = ANY(CAST(ARRAY[CAST('r' AS TEXT), CAST('v' AS TEXT)] AS TEXT[]))",
    );
    check_condition("c.oid = ANY ($1)", "c.oid = ANY(CAST($1 AS BIGINT[]))");
    check_condition("c.relname LIKE 'a/_%' ESCAPE '/'", "c.relname LIKE like_pattern('a/_%', '/')");
    check_condition("c.tableoid = 1259", "1259 = 1259");
}

#[test]
fn vectors_count_from_zero_and_arrays_from_one() {
    let text = rewritten("SELECT i.indkey[0] AS a, k.conkey[1] AS b FROM pg_index i, pg_constraint k");
    assert_eq!(text, "SELECT i.indkey[0 + 1] AS a, k.conkey[1] AS b FROM pg_index i, pg_constraint k");
}

#[test]
fn a_correlated_scalar_subquery_becomes_an_aggregate_correlated_by_equalities() {
    check_condition(
        "(SELECT n.nspname FROM pg_namespace n WHERE n.oid = c.relnamespace AND c.relhasindex) = 'x'",
        "CASE WHEN c.relhasindex THEN (SELECT first_value(n.nspname) FROM pg_namespace n WHERE (n.oid = c.relnamespace)) END = 'x'",
    );
    check_condition(
        "(SELECT l.collname FROM pg_collation l, pg_type t WHERE l.oid = c.reltype AND t.oid = c.reloftype \
         AND c.reltype <> t.typcollation) IS NULL",
        "(SELECT first_value(l.collname) FROM pg_collation l, pg_type t WHERE (l.oid = c.reltype) AND (t.oid = c.reloftype) \
         AND (l.oid <> t.typcollation)) IS NULL",
    );
}

#[test]
fn a_subquery_over_what_is_always_empty_is_settled_at_once() {
    check_condition("(SELECT p.polname FROM pg_policy p WHERE p.polrelid = c.oid) IS NULL", "NULL IS NULL");
    check_condition("EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid)", "false");
    check_condition("(SELECT count(*) FROM pg_inherits i WHERE i.inhparent = c.oid) = 0", "0 = 0");
}

#[test]
fn set_returning_functions_are_unnested_lists() {
    let text = rewritten("SELECT generate_subscripts(i.indkey, 1) FROM pg_index i");
    assert!(text.contains("unnest(generate_series(0, CAST(array_length(i.indkey) AS BIGINT) + -1))"), "{text}");
    let text = rewritten("SELECT (information_schema._pg_expandarray(i.indkey)).x FROM pg_index i");
    assert!(text.contains("unnest(i.indkey)"), "{text}");
    let text = rewritten("SELECT k.n FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(a, n)");
    let derived = "INNER JOIN (SELECT i.indexrelid AS \"key of the list\", unnest(i.indkey) AS a, \
                   unnest(generate_series(1, CAST(array_length(i.indkey) AS BIGINT))) AS n FROM pg_index AS i) AS k \
                   ON i.indexrelid = k.\"key of the list\"";
    assert!(text.contains(derived), "{text}");
}

#[test]
fn queries_over_user_relations_keep_their_shape() {
    let sql = "SELECT (SELECT u.x FROM u WHERE u.id = t.id AND t.flag) AS x FROM t WHERE t.flag = 't'";
    assert_eq!(rewritten(sql), sql);
}
