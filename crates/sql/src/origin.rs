//! What a result's columns are to PostgreSQL beyond their Arrow types: `varchar(10)`, `oid`, and which column of which
//! relation they show.
//!
//! It is read off the plan as it was bound, before analysis, and given out beside the plan: nothing that runs a plan has
//! to carry it along.

use std::collections::{BTreeMap, HashMap};

use arrow::datatypes::{DataType, Field};
use catalog::types::{self, PG_COLUMN, PG_TYPE, oid};
use datafusion::common::TableReference;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Distinct, Expr, ExprSchemable, JoinType, LogicalPlan};
use flow::RelationId;

use crate::dml::AffectedRows;
use crate::resolver::{Relation, RelationKind};

/// OID and modifier of a type.
pub(crate) type PgType = (u32, i32);

/// One column of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Described {
    /// The type, where the Arrow type does not tell it.
    pg_type: Option<PgType>,
    /// The relation's column that it shows, counted from 0.
    column: Option<(RelationId, usize)>,
}

impl Described {
    fn typed(pg_type: Option<PgType>) -> Described {
        Described { pg_type, column: None }
    }

    /// As the metadata of the result's field, which has this type.
    pub fn metadata(&self, data_type: &DataType) -> HashMap<String, String> {
        let mut metadata = HashMap::new();
        if let Some(pg_type) = self.pg_type.filter(|t| held_as(*t, data_type)) {
            metadata.extend(type_metadata(pg_type));
        }
        if let Some((relation, column)) = self.column {
            metadata.insert(PG_COLUMN.to_string(), format!("{}.{}", relation.0, column + 1));
        }
        metadata
    }
}

/// A type as the metadata of a field.
pub(crate) fn type_metadata((oid, typmod): PgType) -> HashMap<String, String> {
    HashMap::from([(PG_TYPE.to_string(), types::format_type(oid, typmod))])
}

/// The type that a field's metadata names.
pub(crate) fn pg_type_of(field: &Field) -> Option<PgType> {
    field.metadata().get(PG_TYPE).and_then(|name| types::parse(name))
}

/// The type written as `declared`, if it is another one than its Arrow type stands for.
pub(crate) fn beyond_arrow(data_type: &DataType, declared: &str) -> Option<PgType> {
    types::parse(declared).filter(|found| *found != types::oid_and_typmod(data_type, ""))
}

/// Whether values of this Arrow type can be sent as values of the type. Coercion may have brought a column to another
/// type, and some types of the catalogs (`regproc`, `inet`) are held as text, which is not their binary form.
fn held_as((oid, typmod): PgType, data_type: &DataType) -> bool {
    match types::arrow_of(oid, typmod) {
        Some(DataType::List(_)) => matches!(data_type, DataType::List(_)),
        Some(held) => held == *data_type,
        None => match oid {
            oid::XID | oid::CID => *data_type == DataType::Int64,
            oid::INT2VECTOR | oid::OIDVECTOR => matches!(data_type, DataType::List(_)),
            oid::PG_NODE_TREE => *data_type == DataType::Utf8View,
            _ => false,
        },
    }
}

/// What the resolver told of the relations in a plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    types: BTreeMap<RelationId, Vec<Option<PgType>>>,
    /// Plain views, by the names under which they stand in the plan.
    views: Vec<(TableReference, RelationId)>,
    /// The types of columns to which parameters are assigned, by the parameter's number.
    assigned: BTreeMap<usize, u32>,
}

impl Known {
    pub fn add(&mut self, name: &TableReference, relation: &Relation) {
        if relation.kind == RelationKind::System {
            return;
        }
        if relation.kind == RelationKind::View {
            self.views.push((name.clone(), relation.id));
        }
        self.types.entry(relation.id).or_insert_with(|| relation.columns.iter().map(|c| c.pg_type).collect());
    }

    /// Parameter `$number` becomes a value of a column of this type.
    pub fn assign(&mut self, number: usize, pg_type: Option<PgType>) {
        if let Some((oid, _)) = pg_type {
            self.assigned.entry(number).or_insert(oid);
        }
    }

    /// Takes in what is known about the relations inside a view.
    pub fn extend(&mut self, inner: Known) {
        self.types.extend(inner.types);
        self.views.extend(inner.views);
        self.assigned.extend(inner.assigned);
    }

    fn column(&self, relation: RelationId, column: usize) -> Described {
        let pg_type = self.types.get(&relation).and_then(|types| types.get(column).copied().flatten());
        Described { pg_type, column: Some((relation, column)) }
    }
}

/// The type OIDs of `$1`, `$2`, …, where their Arrow types do not tell them: from a cast around them, or from the column
/// that takes them.
pub(crate) fn parameter_types(plan: &LogicalPlan, known: &Known, count: usize) -> Vec<Option<u32>> {
    let mut found = known.assigned.clone();
    let mut note = |id: &str, field: &Field| {
        let number = id.strip_prefix('$').and_then(|n| n.parse().ok());
        if let (Some(number), Some((oid, _))) = (number, pg_type_of(field)) {
            found.entry(number).or_insert(oid);
        }
    };
    if count > 0 {
        // The visitor does not fail.
        let _ = plan.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                expr.apply(|e| {
                    match e {
                        Expr::Placeholder(Placeholder { id, field: Some(field) }) => note(id, field),
                        Expr::Cast(cast) => {
                            if let Expr::Placeholder(parameter) = cast.expr.as_ref() {
                                note(&parameter.id, &cast.field);
                            }
                        }
                        _ => {}
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        });
    }
    (1..=count).map(|n| found.get(&n).copied()).collect()
}

/// Every column of the plan's result.
pub(crate) fn describe(plan: &LogicalPlan, known: &Known) -> Vec<Described> {
    (0..plan.schema().fields().len()).map(|column| of_column(plan, column, known)).collect()
}

fn of_column(plan: &LogicalPlan, column: usize, known: &Known) -> Described {
    match plan {
        LogicalPlan::Projection(p) => {
            p.expr.get(column).map_or_else(Described::default, |e| of_expr(e, &p.input, known))
        }
        LogicalPlan::Filter(f) => of_column(&f.input, column, known),
        LogicalPlan::Sort(s) => of_column(&s.input, column, known),
        LogicalPlan::Limit(l) => of_column(&l.input, column, known),
        LogicalPlan::Distinct(Distinct::All(input)) => of_column(input, column, known),
        LogicalPlan::Distinct(Distinct::On(on)) => {
            on.select_expr.get(column).map_or_else(Described::default, |e| of_expr(e, &on.input, known))
        }
        LogicalPlan::Subquery(s) => of_column(&s.subquery, column, known),
        LogicalPlan::SubqueryAlias(a) => match known.views.iter().find(|(name, _)| *name == a.alias) {
            Some((_, view)) => known.column(*view, column),
            None => of_column(&a.input, column, known),
        },
        LogicalPlan::Join(j) => {
            let left = j.left.schema().fields().len();
            match j.join_type {
                JoinType::RightSemi | JoinType::RightAnti => of_column(&j.right, column, known),
                _ if column < left => of_column(&j.left, column, known),
                _ => of_column(&j.right, column - left, known),
            }
        }
        LogicalPlan::Union(u) => {
            let mut inputs = u.inputs.iter().map(|input| of_column(input, column, known).pg_type);
            let first = inputs.next().flatten();
            // PostgreSQL keeps a modifier on which all branches agree.
            Described::typed(if inputs.all(|t| t == first) { first } else { None })
        }
        LogicalPlan::Aggregate(a) => match a.group_expr.get(column) {
            Some(Expr::GroupingSet(_)) | None => Described::default(),
            Some(expr) => of_expr(expr, &a.input, known),
        },
        LogicalPlan::Window(w) if column < w.input.schema().fields().len() => of_column(&w.input, column, known),
        LogicalPlan::RecursiveQuery(r) => Described::typed(of_column(&r.static_term, column, known).pg_type),
        LogicalPlan::TableScan(scan) => {
            let column = scan.projection.as_ref().map_or(Some(column), |p| p.get(column).copied());
            let affected = scan.source.downcast_ref::<AffectedRows>().and_then(|rows| rows.relation);
            let relation = affected.or_else(|| plan::table::relation_of(&scan.source).map(|r| r.relation));
            match (relation, column) {
                (Some(relation), Some(column)) => known.column(relation, column),
                (None, Some(column)) => {
                    Described::typed(scan.source.schema().fields().get(column).and_then(|f| pg_type_of(f)))
                }
                (_, None) => Described::default(),
            }
        }
        _ => Described::default(),
    }
}

fn of_expr(expr: &Expr, input: &LogicalPlan, known: &Known) -> Described {
    match expr {
        Expr::Column(column) => match input.schema().maybe_index_of_column(column) {
            Some(index) => of_column(input, index, known),
            None => Described::default(),
        },
        Expr::Alias(alias) => of_expr(&alias.expr, input, known),
        Expr::Cast(cast) => Described::typed(pg_type_of(&cast.field)),
        Expr::ScalarSubquery(subquery) => Described::typed(of_column(&subquery.subquery, 0, known).pg_type),
        // The system functions say what they give.
        Expr::ScalarFunction(_) => {
            let field = expr.to_field(input.schema().as_ref()).ok();
            Described::typed(field.and_then(|(_, field)| pg_type_of(&field)))
        }
        _ => Described::default(),
    }
}
