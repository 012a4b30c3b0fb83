//! The durable record of every catalog change, and its encoding.
//!
//! Law: a catalog is a function of the changes applied to it, in order. A change therefore carries everything that is not
//! derivable from the catalog before it: OIDs are in the change, never drawn while applying.

use std::collections::BTreeMap;

use flow::{Error, RelationId, Result, SqlState};
use serde::{Deserialize, Serialize};

use crate::relation::Relation;

/// The encoding that this build writes; it reads this one and all before it.
pub const CHANGE_VERSION: u32 = 4;

/// One database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub oid: u32,
    pub name: String,
    pub owner: String,
}

/// One schema that users may create objects in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    pub oid: u32,
    pub database: String,
    pub name: String,
    pub owner: String,
}

/// Something that owns objects and logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub oid: u32,
    pub name: String,
    pub superuser: bool,
    pub login: bool,
}

/// What a comment is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Commented {
    Relation(RelationId),
    /// The column's number, from 1.
    Column(RelationId, u32),
    Schema(u32),
    Database(u32),
}

/// One step from a catalog to the next. The planners of [`Catalog`](crate::Catalog) make them after checking; applying
/// one that does not fit is an internal error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CatalogChange {
    CreateRole(Role),
    /// The database comes with a schema `public` of OID `public_oid`.
    CreateDatabase {
        database: Database,
        public_oid: u32,
    },
    CreateSchema(Schema),
    CreateRelation(Box<Relation>),
    /// The relation with the same OID takes this shape and begins anew (`CREATE OR REPLACE`).
    Replace(Box<Relation>),
    /// The table with the same OID takes this shape and keeps its rows (`ALTER TABLE`): `columns` says where the values of
    /// each new column come from. `queries` holds the new query text of each reader whose text counts the columns.
    Reshape {
        relation: Box<Relation>,
        columns: Vec<ColumnSource>,
        queries: Vec<(RelationId, String)>,
    },
    /// Relations in drop order (dependants first), then schemas, then databases.
    Drop {
        relations: Vec<RelationId>,
        schemas: Vec<u32>,
        databases: Vec<u32>,
    },
    /// `queries` holds the new query text of each dependant whose text names the relation.
    Rename {
        relation: RelationId,
        name: String,
        queries: Vec<(RelationId, String)>,
    },
    /// `column` is the 0-based position; `queries` as in `Rename`.
    RenameColumn {
        relation: RelationId,
        column: usize,
        name: String,
        queries: Vec<(RelationId, String)>,
    },
    RenameSchema {
        schema: u32,
        name: String,
    },
    RenameDatabase {
        database: u32,
        name: String,
    },
    SetSchema {
        relation: RelationId,
        schema: String,
    },
    SetOwner {
        relation: RelationId,
        owner: String,
    },
    /// How fast and how far a source is read; the fields are those of [`Source`](crate::Source).
    SetReading {
        relation: RelationId,
        rate_limit: Option<u64>,
        paused: Option<BTreeMap<String, u64>>,
    },
    /// Over how many slots a materialized view or a sink is computed; `None`: over all of them.
    SetParallelism {
        relation: RelationId,
        parallelism: Option<u32>,
    },
    /// A setting of the whole server; `None` goes back to its configuration.
    SetSystem {
        name: String,
        value: Option<String>,
    },
    /// `None` takes the comment away.
    Comment {
        about: Commented,
        text: Option<String>,
    },
}

/// Where the values of a column of a reshaped table come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ColumnSource {
    /// The column that had this 0-based position.
    Kept(usize),
    /// One value for every row, as the caller encodes it.
    Value(Vec<u8>),
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    body: T,
}

/// JSON with a version in front. Also used for whole catalogs, so that both refuse a newer build's data alike.
pub(crate) fn encode<T: Serialize>(body: &T, what: &str) -> Result<Vec<u8>> {
    serde_json::to_vec(&Versioned { version: CHANGE_VERSION, body })
        .map_err(|e| Error::internal(format!("encode {what}: {e}")))
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8], what: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let corrupted = |e: serde_json::Error| Error::new(SqlState::DataCorrupted, format!("cannot read {what}: {e}"));
    let Version { version } = serde_json::from_slice(bytes).map_err(corrupted)?;
    if version > CHANGE_VERSION {
        return Err(Error::new(
            SqlState::DataCorrupted,
            format!("{what} has version {version}, but this server reads versions up to {CHANGE_VERSION}"),
        )
        .with_hint("Start the server version that wrote this data directory, or a newer one."));
    }
    let versioned: Versioned<T> = serde_json::from_slice(bytes).map_err(corrupted)?;
    Ok(versioned.body)
}

impl CatalogChange {
    /// The bytes for the log.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode(self, "catalog change")
    }

    /// The change back from its bytes; `XX001` when they are damaged or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<CatalogChange> {
        decode(bytes, "catalog change")
    }
}
