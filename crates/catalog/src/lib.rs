//! The catalog: which databases, schemas, relations and settings exist, and how that changes.
//!
//! Law: a [`Catalog`] is an immutable value that is cheap to clone, so a reader works on one consistent version while DDL
//! makes the next. The only mutation is [`Catalog::apply`] of a [`CatalogChange`]; it is pure and deterministic, so the
//! log of changes, replayed, gives the same catalog with the same OIDs. The `plan_…` methods turn a request into a change
//! (or into PostgreSQL's error) without touching anything.
//!
//! Reading order: [`relation`] says what an object is, [`change`] what may happen to it, [`snapshot`] holds the state and
//! applies changes, [`resolve`] finds objects by name, [`create`], [`drop`] and [`alter`] check requests, [`types`] and
//! [`names`] are PostgreSQL's type numbers and identifier rules, [`settings`] the session settings.

pub mod alter;
pub mod change;
pub mod create;
pub mod drop;
pub mod names;
pub mod relation;
pub mod resolve;
pub mod settings;
pub mod snapshot;
pub mod types;

pub use alter::ObjectRef;
pub use change::{CatalogChange, ColumnSource, Commented, Database, Role, Schema};
pub use create::{IfExists, NewRelation};
pub use relation::{
    Column, Connector, Definition, Format, OnConflict, PrimaryKey, Query, Relation, RelationKind, Side, SideKind, Sink,
    SinkInput, Source, Table, Watermark, shown_options,
};
pub use resolve::Scope;
pub use settings::Settings;
pub use snapshot::{Catalog, Notice, Planned};

#[cfg(test)]
mod tests;
