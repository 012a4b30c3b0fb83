use flow::SqlState;

use crate::statement::*;
use crate::{Limits, parse};

fn one(text: &str) -> Statement {
    let mut all = parse(text, &Limits::default()).unwrap_or_else(|e| panic!("{text}: {e:?}"));
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0).statement
}

fn error(text: &str) -> flow::Error {
    match parse(text, &Limits::default()) {
        Ok(all) => panic!("{text} parsed as {all:?}"),
        Err(e) => e,
    }
}

#[test]
fn every_statement_is_read_and_carries_its_tag() {
    let mut wrong = Vec::new();
    for (text, tag) in [
        ("SELECT 1", "SELECT"),
        ("select a, b from t where a > 1 order by b desc limit 3 offset 1", "SELECT"),
        ("(SELECT 1) UNION ALL SELECT 2", "SELECT"),
        ("VALUES (1, 'a'), (2, 'b')", "SELECT"),
        ("TABLE t", "SELECT"),
        ("WITH x AS (SELECT 1 AS a) SELECT * FROM x", "SELECT"),
        ("INSERT INTO t VALUES (1, 2)", "INSERT"),
        ("INSERT INTO s.t (a, b) SELECT 1, 2 ON CONFLICT DO NOTHING RETURNING a", "INSERT"),
        ("INSERT INTO t DEFAULT VALUES", "INSERT"),
        ("UPDATE t SET a = a + 1, (b, c) = (1, 2) WHERE a = 3 RETURNING *", "UPDATE"),
        ("DELETE FROM t AS x WHERE x.a = 1 RETURNING x.a", "DELETE"),
        ("TRUNCATE TABLE t, u", "TRUNCATE TABLE"),
        ("COPY t (a, b) FROM STDIN", "COPY"),
        ("CREATE TABLE t (a int PRIMARY KEY, b text NOT NULL DEFAULT 'x') APPEND ONLY", "CREATE TABLE"),
        ("CREATE SOURCE s (a int) WITH (connector = 'file', path = 'a.csv') FORMAT PLAIN ENCODE CSV", "CREATE SOURCE"),
        ("CREATE SINK k FROM v WITH (connector = 'file', path = 'o.csv')", "CREATE SINK"),
        ("CREATE SINK k INTO t FROM v", "CREATE SINK"),
        ("CREATE VIEW v AS SELECT 1", "CREATE VIEW"),
        ("CREATE OR REPLACE VIEW v (a) AS SELECT 1", "CREATE VIEW"),
        ("CREATE MATERIALIZED VIEW IF NOT EXISTS v AS SELECT 1 WITH DATA", "CREATE MATERIALIZED VIEW"),
        ("CREATE SCHEMA IF NOT EXISTS s", "CREATE SCHEMA"),
        ("CREATE DATABASE d", "CREATE DATABASE"),
        ("DROP TABLE IF EXISTS a, b.c CASCADE", "DROP TABLE"),
        ("DROP MATERIALIZED VIEW v RESTRICT", "DROP MATERIALIZED VIEW"),
        ("DROP SOURCE s", "DROP SOURCE"),
        ("DROP SINK s", "DROP SINK"),
        ("DROP SCHEMA s", "DROP SCHEMA"),
        ("DROP DATABASE d", "DROP DATABASE"),
        ("ALTER TABLE t RENAME TO u", "ALTER TABLE"),
        ("ALTER TABLE t RENAME COLUMN a TO b", "ALTER TABLE"),
        ("ALTER TABLE t RENAME a TO b", "ALTER TABLE"),
        ("ALTER MATERIALIZED VIEW v RENAME TO w", "ALTER MATERIALIZED VIEW"),
        ("COMMENT ON TABLE t IS 'words'", "COMMENT"),
        ("COMMENT ON COLUMN t.a IS NULL", "COMMENT"),
        ("SHOW TABLES", "SHOW"),
        ("SHOW MATERIALIZED VIEWS FROM public", "SHOW"),
        ("SHOW COLUMNS FROM t", "SHOW"),
        ("SHOW CREATE MATERIALIZED VIEW v", "SHOW"),
        ("SHOW JOBS", "SHOW"),
        ("SHOW server_version", "SHOW"),
        ("SHOW TRANSACTION ISOLATION LEVEL", "SHOW"),
        ("SHOW ALL", "SHOW"),
        ("SET search_path TO public, other", "SET"),
        ("SET extra_float_digits = 3", "SET"),
        ("SET TIME ZONE 'Europe/Berlin'", "SET"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET"),
        ("SET LOCAL x.y = 'z'", "SET"),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY", "SET"),
        ("SET client_encoding TO 'UTF8'", "SET"),
        ("SET NAMES 'UTF8'", "SET"),
        ("RESET ALL", "RESET"),
        ("RESET timezone", "RESET"),
        ("FLUSH", "FLUSH"),
        ("CHECKPOINT", "CHECKPOINT"),
        ("SHOW CHECKPOINTS", "SHOW"),
        ("CREATE SAVEPOINT before_upgrade", "CREATE SAVEPOINT"),
        ("DROP SAVEPOINT IF EXISTS \"before-upgrade\"", "DROP SAVEPOINT"),
        ("SHOW SAVEPOINTS", "SHOW"),
        ("EXPLAIN SELECT 1", "EXPLAIN"),
        ("EXPLAIN (SELECT 1)", "EXPLAIN"),
        ("EXPLAIN ANALYZE SELECT 1", "EXPLAIN"),
        ("EXPLAIN (LAYER process, FORMAT json) CREATE MATERIALIZED VIEW v AS SELECT 1", "EXPLAIN"),
        ("BEGIN", "BEGIN"),
        ("BEGIN TRANSACTION READ ONLY", "BEGIN"),
        ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE", "BEGIN"),
        ("COMMIT", "COMMIT"),
        ("END TRANSACTION", "COMMIT"),
        ("COMMIT AND CHAIN", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ABORT WORK", "ROLLBACK"),
        ("PREPARE p (int, text) AS SELECT $1, $2", "PREPARE"),
        ("EXECUTE p (1, 'a')", "EXECUTE"),
        ("EXECUTE p", "EXECUTE"),
        ("DEALLOCATE p", "DEALLOCATE"),
        ("DEALLOCATE PREPARE ALL", "DEALLOCATE ALL"),
        ("DISCARD ALL", "DISCARD ALL"),
        ("DECLARE c BINARY NO SCROLL CURSOR WITH HOLD FOR SELECT 1", "DECLARE CURSOR"),
        ("FETCH NEXT FROM c", "FETCH"),
        ("FETCH 10 c", "FETCH"),
        ("FETCH ALL IN c", "FETCH"),
        ("FETCH FORWARD 5 FROM c", "FETCH"),
        ("MOVE BACKWARD 2 FROM c", "MOVE"),
        ("CLOSE c", "CLOSE CURSOR"),
        ("CLOSE ALL", "CLOSE CURSOR"),
    ] {
        match parse(text, &Limits::default()) {
            Ok(all) if all.len() == 1 && all[0].statement.tag() == tag => {}
            other => wrong.push(format!("{text}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn several_statements_keep_their_texts_and_positions() {
    let text = " SELECT 1 ; -- first; not here\n;;SELECT 'a;b'; ";
    let all = parse(text, &Limits::default()).unwrap();
    let seen: Vec<(&str, usize)> = all.iter().map(|p| (p.text.as_str(), p.position)).collect();
    assert_eq!(seen, [("SELECT 1", 1), ("SELECT 'a;b'", 33)]);
    assert!(parse("  ; -- nothing\n", &Limits::default()).unwrap().is_empty());
}

#[test]
fn a_table_is_read_with_keys_defaults_and_conduct() {
    let Statement::CreateTable(t) = one(
        "CREATE TABLE IF NOT EXISTS shop.\"Orders\" (Id bigint, Line int, Price numeric(10,2) DEFAULT 1 + 0.5 NOT NULL, \
         note varchar(20) NULL, PRIMARY KEY (id, line)) ON CONFLICT OVERWRITE",
    ) else {
        panic!()
    };
    assert_eq!(t.name.to_string(), "shop.\"Orders\"");
    assert!(t.if_not_exists && !t.or_replace && !t.append_only);
    assert_eq!(t.primary_key, ["id", "line"]);
    assert_eq!(t.on_conflict, OnConflict::Overwrite);
    let columns: Vec<(&str, bool)> = t.columns.iter().map(|c| (c.name.as_str(), c.not_null)).collect();
    assert_eq!(columns, [("id", true), ("line", true), ("price", true), ("note", false)]);
    assert_eq!(t.columns[2].default.as_ref().unwrap().text, "1 + 0.5");
}

#[test]
fn a_default_keeps_its_own_null_tests() {
    let Statement::CreateTable(t) =
        one("CREATE TABLE t (a boolean DEFAULT 1 IS NOT NULL, b int DEFAULT 0 NOT NULL, c int DEFAULT NULL)")
    else {
        panic!()
    };
    assert_eq!(t.columns[0].default.as_ref().unwrap().text, "1 IS NOT NULL");
    assert!(!t.columns[0].not_null && t.columns[1].not_null && !t.columns[2].not_null);
    assert_eq!(t.columns[1].default.as_ref().unwrap().text, "0");
}

#[test]
fn a_sink_over_a_query_ends_before_its_options() {
    let Statement::CreateSink(k) =
        one("CREATE SINK k AS WITH x AS (SELECT a FROM t) SELECT a, count(*) AS n FROM x WITH (connector = 'file', \
         path = 'o.json', rows.max = 5, fresh) FORMAT PLAIN ENCODE JSON (timestamps = 'iso')")
    else {
        panic!()
    };
    let SinkFrom::Query { text, .. } = &k.from else { panic!() };
    assert_eq!(text, "WITH x AS (SELECT a FROM t) SELECT a, count(*) AS n FROM x");
    let options: Vec<(&str, &str)> = k.options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(options, [("connector", "file"), ("path", "o.json"), ("rows.max", "5"), ("fresh", "true")]);
    let format = k.format.unwrap();
    assert_eq!((format.format.as_str(), format.encode.as_str()), ("PLAIN", "JSON"));
    assert_eq!(format.options, [("timestamps".to_string(), "iso".to_string())]);
}

#[test]
fn a_view_keeps_the_text_of_its_query() {
    let Statement::CreateView(v) = one("create materialized view v (a, \"B\") as\n select  1 , 2 -- end\n;") else {
        panic!()
    };
    assert!(v.materialized);
    assert_eq!(v.columns, ["a", "B"]);
    assert_eq!(v.query_text, "select  1 , 2");
}

#[test]
fn copy_takes_every_spelling_of_its_options() {
    let options = |text: &str| match one(text) {
        Statement::Copy(c) => c.options,
        other => panic!("{other:?}"),
    };
    let plain = options("COPY t FROM STDIN");
    assert_eq!((plain.format, plain.delimiter, plain.null.as_str()), (CopyFormat::Text, b'\t', "\\N"));
    for text in [
        "COPY t FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';', NULL 'nil', QUOTE '''', ESCAPE '\\')",
        "COPY t FROM STDIN (format 'csv', header true, delimiter ';', null 'nil', quote '''', escape '\\')",
        "COPY t FROM STDIN CSV HEADER DELIMITER AS ';' NULL AS 'nil' QUOTE AS '''' ESCAPE AS '\\'",
        "COPY t FROM STDIN WITH CSV HEADER DELIMITER ';' NULL 'nil' QUOTE '''' ESCAPE '\\'",
    ] {
        let o = options(text);
        assert_eq!(
            (o.format, o.header, o.delimiter, o.null.as_str(), o.quote, o.escape),
            (CopyFormat::Csv, CopyHeader::Present, b';', "nil", b'\'', b'\\'),
            "{text}"
        );
    }
    let Statement::Copy(c) = one("COPY (SELECT a FROM t) TO STDOUT WITH (FORMAT csv, FORCE_QUOTE *)") else { panic!() };
    assert!(c.options.force_quote_all && c.direction == CopyDirection::ToStdout);
    assert_eq!(c.options.escape, b'"');
    for (text, state) in [
        ("COPY t FROM '/etc/passwd'", SqlState::FeatureNotSupported),
        ("COPY t TO PROGRAM 'cat'", SqlState::FeatureNotSupported),
        ("COPY t FROM STDIN (FORMAT xml)", SqlState::InvalidParameterValue),
        ("COPY t FROM STDIN (FORMAT binary, HEADER)", SqlState::SyntaxError),
        ("COPY t FROM STDIN (DELIMITER 'ab')", SqlState::FeatureNotSupported),
        ("COPY t FROM STDIN (nonsense)", SqlState::SyntaxError),
        ("COPY t FROM STDIN (QUOTE '|')", SqlState::FeatureNotSupported),
        ("COPY t FROM STDIN CSV DELIMITER '\"'", SqlState::InvalidParameterValue),
    ] {
        assert_eq!(error(text).state(), state, "{text}");
    }
}

#[test]
fn settings_are_folded_and_listed() {
    let set = |text: &str| match one(text) {
        Statement::Set(s) => s,
        other => panic!("{other:?}"),
    };
    assert_eq!(set("SET TIME ZONE DEFAULT").value, SetValue::Default);
    let s = set("SET LOCAL Search_Path = \"My\", public");
    assert_eq!((s.name.as_str(), s.local), ("search_path", true));
    assert_eq!(s.value, SetValue::Values(vec!["My".into(), "public".into()]));
    assert_eq!(set("SET x = -1.5").value, SetValue::Values(vec!["-1.5".into()]));
    assert_eq!(set("SET statement_timeout TO '5s'").name, "statement_timeout");
    assert_eq!(set("SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE").name, "timezone");
    assert_eq!(one("SHOW TIME ZONE"), Statement::Show(Show::Setting("timezone".into())));
    assert_eq!(one("SHOW TimeZone"), Statement::Show(Show::Setting("timezone".into())));
}

#[test]
fn cursors_move_as_they_are_told() {
    let fetch = |text: &str| match one(text) {
        Statement::Fetch(f) => f.direction,
        other => panic!("{other:?}"),
    };
    assert_eq!(fetch("FETCH c"), FetchDirection::Forward(1));
    assert_eq!(fetch("FETCH FROM c"), FetchDirection::Forward(1));
    assert_eq!(fetch("FETCH 100 IN c"), FetchDirection::Forward(100));
    assert_eq!(fetch("FETCH BACKWARD 3 FROM c"), FetchDirection::Forward(-3));
    assert_eq!(fetch("FETCH BACKWARD ALL FROM c"), FetchDirection::BackwardAll);
    assert_eq!(fetch("FETCH ABSOLUTE -1 FROM c"), FetchDirection::Absolute(-1));
}

#[test]
fn syntax_errors_say_where_in_the_words_of_postgres() {
    let mut wrong = Vec::new();
    for (text, message, position) in [
        ("SELEC 1", "syntax error at or near \"SELEC\"", 1),
        ("SELECT 1 FROM", "syntax error at end of input", 14),
        ("SELECT 1;\nSELECT * FORM t", "syntax error at or near \"FORM\"", 20),
        ("SELECT é, FROM t WHERE", "syntax error at or near \"FROM\"", 11),
        ("SELECT é FROM t WHERE", "syntax error at end of input", 22),
        ("SELECT (1", "syntax error at end of input", 10),
        ("SELECT 1)", "syntax error at or near \")\"", 9),
        ("CREATE TABEL t (a int)", "syntax error at or near \"TABEL\"", 8),
        ("CREATE TABLE t (a int,)", "syntax error at or near \")\"", 23),
        ("CREATE TABLE t (a int b)", "syntax error at or near \"b\"", 23),
        ("INSERT INTO t VALUES (1,", "syntax error at end of input", 25),
        ("DROP TABLE", "syntax error at end of input", 11),
        ("SELECT 'abc", "unterminated quoted string at or near \"'abc\"", 8),
        ("SELECT /* abc", "unterminated /* comment", 14),
        ("CREATE MATERIALIZED VIEW v AS SELECT FROM WHERE", "syntax error at or near \"WHERE\"", 43),
        ("CREATE SINK k AS SELECT FROM FROM x WITH (a = 1)", "syntax error at or near \"FROM\"", 30),
        ("BEGIN NOW", "syntax error at or near \"NOW\"", 7),
    ] {
        let e = error(text);
        if e.state() != SqlState::SyntaxError || (e.message(), e.position()) != (message, Some(position)) {
            wrong.push(format!("{text}: {e:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn subscriptions_are_read_in_every_place_where_they_may_stand() {
    let subscribe = |text: &str| match one(text) {
        Statement::Subscribe(s) => *s,
        Statement::DeclareCursor(d) => match d.query {
            CursorQuery::Subscribe(s) => *s,
            other => panic!("{text}: {other:?}"),
        },
        Statement::Copy(c) => match c.target {
            CopyTarget::Subscribe(s) => *s,
            other => panic!("{text}: {other:?}"),
        },
        other => panic!("{text}: {other:?}"),
    };
    for (text, as_of, snapshot, progress) in [
        ("SUBSCRIBE v", None, true, false),
        ("subscribe to s.v", None, true, false),
        ("SUBSCRIBE v WITH (progress)", None, true, true),
        ("SUBSCRIBE v WITH (snapshot = false, progress = true)", None, false, true),
        ("SUBSCRIBE v WITH (snapshot false, progress off)", None, false, false),
        ("SUBSCRIBE TO v AS OF EPOCH 17", Some(17), false, false),
        (
            "SUBSCRIBE v AS OF EPOCH 9223372036854775807 WITH (snapshot = off, progress)",
            Some(i64::MAX as u64),
            false,
            true,
        ),
        ("SUBSCRIBE (SELECT a FROM v WHERE b > 1) WITH (progress)", None, true, true),
        ("DECLARE c CURSOR FOR SUBSCRIBE v AS OF EPOCH 3", Some(3), false, false),
        ("DECLARE c NO SCROLL CURSOR WITH HOLD FOR SUBSCRIBE TO (SELECT 1 FROM v)", None, true, false),
        ("COPY (SUBSCRIBE v WITH (progress)) TO STDOUT WITH (FORMAT csv)", None, true, true),
    ] {
        let s = subscribe(text);
        assert_eq!((s.as_of, s.snapshot, s.progress), (as_of, snapshot, progress), "{text}");
    }
    // The word is not reserved.
    assert!(matches!(one("SELECT subscribe FROM subscribe"), Statement::Query(_)));
    for (text, timeout) in [
        ("FETCH ALL c", None),
        ("FETCH 10 FROM c WITH (timeout = '1s')", Some(1_000)),
        ("FETCH ALL c WITH (timeout '250 ms')", Some(250)),
        ("FETCH c WITH (timeout = 0)", Some(0)),
        ("MOVE ALL IN c WITH (timeout = '2 minutes')", Some(120_000)),
    ] {
        let Statement::Fetch(fetch) = one(text) else { panic!("{text}") };
        assert_eq!(fetch.timeout.map(|t| t.as_millis()), timeout, "{text}");
    }
}

#[test]
fn what_is_wrong_in_a_subscription_is_pointed_at() {
    for (text, state, position) in [
        ("SUBSCRIBE", SqlState::SyntaxError, 10),
        ("SUBSCRIBE TO", SqlState::SyntaxError, 13),
        ("SUBSCRIBE v AS OF 5", SqlState::SyntaxError, 19),
        ("SUBSCRIBE v AS OF EPOCH", SqlState::SyntaxError, 24),
        ("SUBSCRIBE v AS OF EPOCH -1", SqlState::SyntaxError, 25),
        ("SUBSCRIBE v AS OF EPOCH 'x'", SqlState::SyntaxError, 25),
        ("SUBSCRIBE v AS OF EPOCH 1.5", SqlState::InvalidParameterValue, 25),
        ("SUBSCRIBE v AS OF EPOCH 9223372036854775808", SqlState::InvalidParameterValue, 25),
        ("SUBSCRIBE v WITH (snapshots)", SqlState::InvalidParameterValue, 19),
        ("SUBSCRIBE v WITH (progress = maybe)", SqlState::InvalidParameterValue, 30),
        ("SUBSCRIBE v WITH (progress, progress)", SqlState::SyntaxError, 29),
        ("SUBSCRIBE v WITH ()", SqlState::SyntaxError, 19),
        ("SUBSCRIBE v AS OF EPOCH 5 WITH (snapshot)", SqlState::FeatureNotSupported, 33),
        ("SUBSCRIBE v UP TO 7", SqlState::FeatureNotSupported, 13),
        ("SUBSCRIBE (SELECT 1", SqlState::SyntaxError, 20),
        ("SUBSCRIBE (INSERT INTO t VALUES (1))", SqlState::FeatureNotSupported, 12),
        ("COPY (SUBSCRIBE v) FROM STDIN", SqlState::SyntaxError, 20),
        ("DECLARE c CURSOR FOR SUBSCRIBE v, w", SqlState::SyntaxError, 33),
        ("FETCH ALL c WITH (timeout = 'soon')", SqlState::InvalidParameterValue, 29),
        ("FETCH ALL c WITH (timeout = '25h')", SqlState::InvalidParameterValue, 29),
        ("FETCH ALL c WITH (timeouts = '1s')", SqlState::InvalidParameterValue, 19),
    ] {
        let e = error(text);
        assert_eq!((e.state(), e.position()), (state, Some(position)), "{text}: {e:?}");
    }
}

#[test]
fn what_is_not_supported_is_said_with_a_hint() {
    for text in [
        "CREATE MATERIALIZED VIEW v AS SELECT 1 WITH NO DATA",
        "CREATE INDEX i ON t (a)",
        "CREATE UNIQUE INDEX i ON t (a)",
        "CREATE TEMP TABLE t (a int)",
        "CREATE TABLE t (a int UNIQUE)",
        "CREATE TABLE t (a int, CHECK (a > 0))",
        "CREATE TABLE t (a serial)",
        "CREATE TABLE t (a int PRIMARY KEY) ON CONFLICT DO UPDATE",
        "GRANT SELECT ON t TO u",
        "LISTEN c",
        "EXPLAIN ANALYZE CREATE MATERIALIZED VIEW v AS SELECT 1",
        "REFRESH MATERIALIZED VIEW v",
    ] {
        let e = error(text);
        assert_eq!(e.state(), SqlState::FeatureNotSupported, "{text}: {e:?}");
        assert!(e.hint().is_some() && e.position().is_some(), "{text}: {e:?}");
    }
}

#[test]
fn a_table_that_contradicts_itself_is_refused() {
    for (text, state) in [
        ("CREATE TABLE t (a int, a text)", SqlState::DuplicateColumn),
        ("CREATE TABLE t (a int PRIMARY KEY, b int PRIMARY KEY)", SqlState::InvalidTableDefinition),
        ("CREATE TABLE t (a int, PRIMARY KEY (b))", SqlState::UndefinedColumn),
        ("CREATE TABLE t (a int, PRIMARY KEY (a, a))", SqlState::DuplicateColumn),
        ("CREATE TABLE t (a nosuch)", SqlState::UndefinedObject),
        ("CREATE TABLE t (a int) ON CONFLICT DO NOTHING", SqlState::InvalidTableDefinition),
    ] {
        let e = error(text);
        assert_eq!(e.state(), state, "{text}");
        assert!(e.position().is_some(), "{text}");
    }
}
