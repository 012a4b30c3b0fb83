//! Constants that PostgreSQL reads by the type of the column beside them, and the system columns.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use catalog::types::oid;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, DataType, Expr, Query, Select, SetExpr, TableFactor, TableWithJoins, Value, VisitorMut,
};
use sql::walk::Walk;

use super::{build, names, system_relation};
use crate::system::layout;

/// The type of each system column whose name has one type wherever it occurs.
static COLUMN_TYPES: LazyLock<BTreeMap<&'static str, Option<u32>>> = LazyLock::new(|| {
    let mut types: BTreeMap<&'static str, Option<u32>> = BTreeMap::new();
    for column in layout::relations().flat_map(|r| &r.columns) {
        let entry = types.entry(column.name).or_insert(Some(column.type_oid));
        if *entry != Some(column.type_oid) {
            *entry = None;
        }
    }
    types
});

/// `indisprimary = 't'` and `polroles = '{0}'`: string constants beside columns that are neither text nor numbers.
pub fn expression(expr: &mut Expr) {
    let Expr::BinaryOp { left, op, right } = expr else { return };
    if !matches!(op, BinaryOperator::Eq | BinaryOperator::NotEq) {
        return;
    }
    typed_constant(left, right);
    typed_constant(right, left);
}

fn typed_constant(column: &Expr, constant: &mut Expr) {
    let Some(Some(type_oid)) = build::column_name(column).and_then(|name| COLUMN_TYPES.get(name.as_str()).copied())
    else {
        return;
    };
    let Some(text) = build::string_value(constant) else { return };
    let replaced = if type_oid == oid::BOOL {
        catalog::settings::parse_bool(text).map(|b| build::value(Value::Boolean(b)))
    } else if let arrow::datatypes::DataType::List(element) = layout::arrow_type(type_oid) {
        let element = match element.data_type() {
            arrow::datatypes::DataType::Int16 => DataType::SmallInt(None),
            t if t.is_integer() => DataType::BigInt(None),
            _ => DataType::Text,
        };
        names::array_literal(text, &element)
    } else {
        None
    };
    if let Some(replaced) = replaced {
        *constant = replaced;
    }
}

/// In `WITH RECURSIVE r AS (SELECT …, 0 AS depth UNION ALL SELECT …, r.depth + 1 FROM r)` the first constant and the sum must
/// be of one type; the sum of integers is a bigint for DataFusion.
pub fn recursive_counters(query: &mut Query) {
    let Some(with) = query.with.as_mut().filter(|w| w.recursive) else { return };
    for table in &mut with.cte_tables {
        let SetExpr::SetOperation { left, .. } = &mut *table.query.body else { continue };
        let SetExpr::Select(first) = &mut **left else { continue };
        for expr in first.projection.iter_mut().filter_map(super::item_expr) {
            if matches!(expr, Expr::Value(v) if matches!(v.value, Value::Number(..))) {
                let number = std::mem::replace(expr, build::null());
                *expr = build::cast(number, DataType::BigInt(None));
            }
        }
    }
}

/// `c.tableoid` is the OID of the catalog that `c` stands for; the other system columns are constants.
pub fn table_oids(select: &mut Select) {
    let mut relations = BTreeMap::new();
    collect(&select.from, &mut relations);
    if relations.is_empty() {
        return;
    }
    struct Replace(BTreeMap<String, u32>);
    impl VisitorMut for Replace {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(parts) = expr
                && let [.., relation, column] = &parts[..]
                && let Some(oid) = self.0.get(&build::fold(relation))
            {
                match build::fold(column).as_str() {
                    "tableoid" => *expr = build::number(i64::from(*oid)),
                    // Catalog rows are made anew for each statement: they have no versions.
                    "xmin" => *expr = build::number(1),
                    "xmax" | "cmin" | "cmax" => *expr = build::number(0),
                    _ => {}
                }
            }
            ControlFlow::Continue(())
        }
    }
    select.walk_mut(&mut Replace(relations));
}

fn collect(from: &[TableWithJoins], relations: &mut BTreeMap<String, u32>) {
    let mut factor = |factor: &TableFactor| match factor {
        TableFactor::Table { name, alias, args: None, .. } => {
            if let Some(relation) = system_relation(name) {
                let name = alias.as_ref().map_or_else(|| relation.name.to_string(), |a| build::fold(&a.name));
                relations.insert(name, relation.oid);
            }
        }
        TableFactor::NestedJoin { table_with_joins, .. } => collect(std::slice::from_ref(table_with_joins), relations),
        _ => {}
    };
    for table in from {
        factor(&table.relation);
        table.joins.iter().for_each(|j| factor(&j.relation));
    }
}
