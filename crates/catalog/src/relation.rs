//! What a relation is: its columns and, per kind, what it was declared with.
//!
//! These types are stored in the catalog's log, so a change of shape must stay readable: new fields take
//! `#[serde(default)]`, and no field changes meaning.

use std::collections::BTreeMap;

use arrow_schema::{DataType, Field, Schema};
use flow::RelationId;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::types;

/// The five kinds of relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RelationKind {
    Table,
    Source,
    View,
    MaterializedView,
    Sink,
}

impl RelationKind {
    pub const ALL: [RelationKind; 5] = [
        RelationKind::Table,
        RelationKind::Source,
        RelationKind::View,
        RelationKind::MaterializedView,
        RelationKind::Sink,
    ];

    /// As in a sentence: `materialized view`.
    pub fn noun(self) -> &'static str {
        match self {
            RelationKind::Table => "table",
            RelationKind::Source => "source",
            RelationKind::View => "view",
            RelationKind::MaterializedView => "materialized view",
            RelationKind::Sink => "sink",
        }
    }

    /// As in a statement: `MATERIALIZED VIEW`.
    pub fn keyword(self) -> &'static str {
        match self {
            RelationKind::Table => "TABLE",
            RelationKind::Source => "SOURCE",
            RelationKind::View => "VIEW",
            RelationKind::MaterializedView => "MATERIALIZED VIEW",
            RelationKind::Sink => "SINK",
        }
    }
}

/// One column. Its position in [`Relation::columns`] is its number less one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// The canonical Arrow type.
    pub data_type: DataType,
    /// As PostgreSQL writes the declared type: `character varying(10)`.
    pub sql_type: String,
    /// `pg_attribute.atttypid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`: length, precision and scale in PostgreSQL's encoding; -1 for none.
    pub typmod: i32,
    pub nullable: bool,
    /// SQL text of the DEFAULT expression.
    #[serde(default)]
    pub default: Option<String>,
}

impl Column {
    /// A nullable column without a default. `declared` is the type in SQL as the user wrote it, or empty to take the
    /// usual one for `data_type`.
    pub fn new(name: impl Into<String>, data_type: DataType, declared: &str) -> Column {
        let (type_oid, typmod) = types::oid_and_typmod(&data_type, declared);
        let sql_type = types::format_type(type_oid, typmod);
        Column { name: name.into(), data_type, sql_type, type_oid, typmod, nullable: true, default: None }
    }

    pub fn not_null(mut self) -> Column {
        self.nullable = false;
        self
    }

    /// `expression` is SQL text.
    pub fn with_default(mut self, expression: impl Into<String>) -> Column {
        self.default = Some(expression.into());
        self
    }

    pub fn field(&self) -> Field {
        Field::new(&self.name, self.data_type.clone(), self.nullable)
    }
}

/// A query that is kept as text, with what its names meant when it was written.
///
/// The text alone is not enough: a table made later in an earlier schema of the search path must not change what a view
/// reads, and a view must survive the renaming of its inputs. So `references` pins every name that the text uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Query {
    pub sql: String,
    /// The schemas in which unqualified names were looked up.
    #[serde(default)]
    pub search_path: Vec<String>,
    /// Relation names as the text writes them, folded and joined by dots (`orders`, `sales.orders`), to what they meant.
    #[serde(default)]
    pub references: BTreeMap<String, RelationId>,
    /// `EMIT ON WINDOW CLOSE`: only final rows, each once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emit_on_close: bool,
    /// Of a materialized view: for how many microseconds its changes are kept for `SUBSCRIBE … AS OF EPOCH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_retention_us: Option<i64>,
    /// Of a materialized view: over how many slots it is computed; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
}

/// What an INSERT does with a key that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnConflict {
    #[default]
    Error,
    Overwrite,
    DoNothing,
}

/// Where rows come from or go to outside of Millstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connector {
    /// The `WITH (…)` options in the order written, with lower-case names; `connector` is one of them.
    #[serde(with = "ordered")]
    pub options: IndexMap<String, String>,
    /// `FORMAT … ENCODE …`, if given.
    #[serde(default)]
    pub format: Option<Format>,
}

impl Connector {
    /// The value of option `connector`: `file`.
    pub fn name(&self) -> Option<&str> {
        self.options.get("connector").map(String::as_str)
    }
}

/// Options in the order written, as they may be shown: `********` for the value of each whose name says that it is a secret.
pub fn shown_options<'a>(
    options: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    const SECRET_WORDS: [&str; 6] = ["password", "secret", "token", "credential", "private", "access_key"];
    options.into_iter().map(|(name, value)| {
        let lower = name.to_ascii_lowercase();
        let secret = SECRET_WORDS.iter().any(|word| lower.contains(word));
        (name.as_str(), if secret { "********" } else { value.as_str() })
    })
}

/// `FORMAT PLAIN ENCODE CSV (…)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// Upper case: `PLAIN`.
    pub format: String,
    /// Upper case: `CSV`, `JSON`.
    pub encode: String,
    #[serde(default, with = "ordered")]
    pub options: IndexMap<String, String>,
}

/// Options are stored as pairs, because the order written is part of what `SHOW CREATE` gives back.
mod ordered {
    use indexmap::IndexMap;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(options: &IndexMap<String, String>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(options.iter())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<IndexMap<String, String>, D::Error> {
        Ok(Vec::<(String, String)>::deserialize(from)?.into_iter().collect())
    }
}

/// What a sink writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SinkInput {
    /// `FROM relation`.
    Relation(RelationId),
    /// `AS SELECT …`.
    Query(Query),
}

/// What makes a column of a relation its event time: `WATERMARK FOR column AS column - delay`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// Position of the column, a timestamp.
    pub column: usize,
    /// SQL text behind AS, for `SHOW CREATE`.
    pub expression: String,
    /// How far the watermark stays behind the newest event time of a split, in microseconds.
    pub delay_us: i64,
    /// After so long without rows a split does not hold the watermark back any more; `None`: it always does.
    #[serde(default)]
    pub idle_timeout_us: Option<i64>,
    /// Rows that are so little behind the watermark are not late yet.
    #[serde(default)]
    pub allowed_lateness_us: i64,
}

/// A source's own properties.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    #[serde(flatten)]
    pub connector: Connector,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<Watermark>,
    /// What the last columns tell of where a row comes from: the words after INCLUDE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Rows a second that are read at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<u64>,
    /// The source is paused: nothing behind these offsets of its splits is read, and nothing of other splits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<BTreeMap<String, u64>>,
}

/// What a side table keeps of its relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SideKind {
    /// Rows that came behind the watermark.
    Late,
    /// Records that could not be turned into rows.
    Errors,
}

impl SideKind {
    pub const ALL: [SideKind; 2] = [SideKind::Late, SideKind::Errors];

    /// The name of the side table of a relation of this name.
    pub fn table_name(self, relation: &str) -> String {
        match self {
            SideKind::Late => format!("{relation}$late"),
            SideKind::Errors => format!("{relation}$errors"),
        }
    }
}

/// Whose side table a table is. It is made, renamed and dropped with that relation, and written by nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    pub of: RelationId,
    pub kind: SideKind,
}

/// A table's primary key: a constraint with an index of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryKey {
    /// OID of the constraint and of its index in `pg_class`.
    pub oid: u32,
    pub name: String,
}

/// A table's own properties.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Positions of the key columns, in key order; empty for a table without a key.
    pub primary_key: Vec<usize>,
    /// Name and OID of the key; set by [`Catalog::plan_create`](crate::Catalog::plan_create) whenever there is a key.
    #[serde(default)]
    pub key: Option<PrimaryKey>,
    pub append_only: bool,
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// A table fed by a connector.
    #[serde(default)]
    pub connector: Option<Connector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<Watermark>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
}

/// A sink's own properties.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sink {
    pub input: SinkInput,
    /// `SINK INTO table`.
    #[serde(default)]
    pub into: Option<RelationId>,
    #[serde(default)]
    pub connector: Connector,
    /// Over how many slots it is computed; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
}

/// What a relation was declared as. Its variant is the relation's kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Definition {
    Table(Table),
    Source(Source),
    View(Query),
    MaterializedView(Query),
    Sink(Sink),
}

impl Definition {
    pub fn kind(&self) -> RelationKind {
        match self {
            Definition::Table(_) => RelationKind::Table,
            Definition::Source(_) => RelationKind::Source,
            Definition::View(_) => RelationKind::View,
            Definition::MaterializedView(_) => RelationKind::MaterializedView,
            Definition::Sink(_) => RelationKind::Sink,
        }
    }

    /// The query of a view, a materialized view or a sink `AS SELECT`.
    pub fn query(&self) -> Option<&Query> {
        match self {
            Definition::View(q) | Definition::MaterializedView(q) => Some(q),
            Definition::Sink(Sink { input: SinkInput::Query(q), .. }) => Some(q),
            _ => None,
        }
    }

    pub(crate) fn query_mut(&mut self) -> Option<&mut Query> {
        match self {
            Definition::View(q) | Definition::MaterializedView(q) => Some(q),
            Definition::Sink(Sink { input: SinkInput::Query(q), .. }) => Some(q),
            _ => None,
        }
    }

    /// The connector of a source, a sink or a table that has one.
    pub fn connector(&self) -> Option<&Connector> {
        match self {
            Definition::Source(s) => Some(&s.connector),
            Definition::Sink(s) if s.into.is_none() => Some(&s.connector),
            Definition::Table(t) => t.connector.as_ref(),
            _ => None,
        }
    }
}

/// A table, source, view, materialized view or sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Relation {
    pub oid: RelationId,
    pub database: String,
    pub schema: String,
    pub name: String,
    /// Name of the role that owns it.
    pub owner: String,
    pub columns: Vec<Column>,
    pub definition: Definition,
    /// What it reads (and, for `SINK INTO`, writes), each once.
    #[serde(default)]
    pub depends_on: Vec<RelationId>,
    /// The catalog version in which it was created; set by [`Catalog::apply`](crate::Catalog::apply).
    #[serde(default)]
    pub created_seq: u64,
}

impl Relation {
    pub fn kind(&self) -> RelationKind {
        self.definition.kind()
    }

    /// `schema.name`, quoted where SQL needs it.
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", flow::identifier::quote(&self.schema), flow::identifier::quote(&self.name))
    }

    pub fn arrow_schema(&self) -> Schema {
        Schema::new(self.columns.iter().map(Column::field).collect::<Vec<_>>())
    }

    /// The 0-based position of the column with this (already folded) name.
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }

    /// Positions of the primary-key columns; empty when there is no key.
    pub fn primary_key(&self) -> &[usize] {
        match &self.definition {
            Definition::Table(t) => &t.primary_key,
            _ => &[],
        }
    }

    /// The table's own properties, if it is a table.
    pub fn table(&self) -> Option<&Table> {
        match &self.definition {
            Definition::Table(t) => Some(t),
            _ => None,
        }
    }

    /// The event time of a source or an append-only table that declares one.
    pub fn watermark(&self) -> Option<&Watermark> {
        match &self.definition {
            Definition::Source(s) => s.watermark.as_ref(),
            Definition::Table(t) => t.watermark.as_ref(),
            _ => None,
        }
    }

    /// For how long (in microseconds) the changes of this materialized view are kept for those who come back.
    pub fn change_retention_us(&self) -> Option<i64> {
        match &self.definition {
            Definition::MaterializedView(query) => query.change_retention_us,
            _ => None,
        }
    }

    /// Over how many slots this materialized view or sink is to be computed; `None`: over all of them.
    pub fn parallelism(&self) -> Option<u32> {
        match &self.definition {
            Definition::MaterializedView(query) => query.parallelism,
            Definition::Sink(sink) => sink.parallelism,
            _ => None,
        }
    }

    /// Whose side table this is, if it is one.
    pub fn side(&self) -> Option<Side> {
        self.table().and_then(|t| t.side)
    }

    /// What a relation name in this object's query text means, if the text was pinned. `name` is folded and dotted.
    pub fn pinned_reference(&self, name: &str) -> Option<RelationId> {
        self.definition.query().and_then(|q| q.references.get(name).copied())
    }
}
