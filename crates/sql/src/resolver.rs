//! What names mean: the planner's only view of the catalog.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::{ScalarUDF, TableSource};
use flow::RelationId;

use crate::statement::Name;

/// Looks names up, as of one catalog version and one session.
pub trait Resolver {
    /// The relation that `name` means; an unqualified name is looked up along the session's search path. A view that is
    /// defined by a stored text names its relations as `"#oid"` (see [`crate::definition`]), which never reaches this method.
    fn relation(&self, name: &Name) -> Option<Relation>;

    /// The relation with this id, for stored definitions.
    fn relation_by_id(&self, id: RelationId) -> Option<Relation>;

    /// Names that could have been meant, for suggestions. Need not be complete.
    fn relation_names(&self) -> Vec<String> {
        Vec::new()
    }

    /// A scalar function that only this session or server has (`current_schema`, `version`), by its lower case name
    /// without schema.
    fn function(&self, _name: &str) -> Option<Arc<ScalarUDF>> {
        None
    }
}

/// A relation as the planner needs it.
#[derive(Clone)]
pub struct Relation {
    pub id: RelationId,
    pub kind: RelationKind,
    pub database: String,
    pub schema: String,
    pub name: String,
    pub columns: Vec<Column>,
    /// Column numbers of the primary key; empty without one.
    pub primary_key: Vec<usize>,
    /// Name of the primary key's constraint.
    pub key_name: Option<String>,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    Table,
    Source,
    View,
    MaterializedView,
    /// A system table.
    System,
    /// A table of late rows or malformed records, which its source or table writes.
    Side,
}

impl fmt::Display for RelationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RelationKind::Table => "table",
            RelationKind::Source => "source",
            RelationKind::View => "view",
            RelationKind::MaterializedView => "materialized view",
            RelationKind::System => "system table",
            RelationKind::Side => "table",
        })
    }
}

/// Where the rows of a relation come from.
#[derive(Clone)]
pub enum Content {
    /// Scanned: a `plan::table::RelationSource`, or a table provider behind DataFusion's `provider_as_source`.
    Scan(Arc<dyn TableSource>),
    /// A plain view: its stored definition, planned wherever it is used.
    Definition(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: String,
    /// Canonical Arrow type.
    pub data_type: DataType,
    pub nullable: bool,
    /// Text of the DEFAULT expression.
    pub default: Option<String>,
    /// The most characters that `varchar(n)` or `char(n)` takes.
    pub characters_max: Option<u64>,
    /// OID and modifier of the PostgreSQL type, where the Arrow type alone would give another one.
    pub pg_type: Option<(u32, i32)>,
}

impl Column {
    pub fn new(name: impl Into<String>, data_type: DataType, nullable: bool) -> Column {
        Column { name: name.into(), data_type, nullable, default: None, characters_max: None, pg_type: None }
    }
}

impl Relation {
    /// The columns as an Arrow schema.
    pub fn arrow_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(
            self.columns.iter().map(|c| Field::new(&c.name, c.data_type.clone(), c.nullable)).collect::<Vec<_>>(),
        ))
    }

    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }
}

impl fmt::Debug for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}.{} ({})", self.kind, self.database, self.schema, self.name, self.id)
    }
}
