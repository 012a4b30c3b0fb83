//! What the log holds: catalog changes, committed row changes, and reserved epochs.
//!
//! A record is `header length u32 · header JSON · row changes · epoch u64`, little endian; the header says how long each row
//! change is. The epoch, known last of all, is the one that a transaction has joined, else 0. One transaction is one record,
//! so it is durable as a whole or not at all.

use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SqlState};
use serde::{Deserialize, Serialize};

/// The encoding that this build writes.
const RECORD_VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    catalog: Vec<serde_json::Value>,
    /// A catalog as a whole, at the start of a rewritten log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    catalog_snapshot: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rows: Vec<RowsHeader>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reserved_epochs: Option<Epoch>,
    /// A sink into a table starts from nothing: what it derived before no longer counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sink_started: Option<RelationId>,
    /// A job starts from what its inputs hold; its state in earlier checkpoints no longer counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    job_started: Option<(RelationId, Epoch)>,
    /// In a rewritten log: up to which epoch the changes of a relation are not told apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    merged: Vec<(RelationId, Epoch)>,
    /// Where checkpoints are kept: there is one there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept_in: Option<String>,
    /// Sinks that may have published what no checkpoint that is gone on from knows of. They stay stopped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stuck: Vec<RelationId>,
}

#[derive(Serialize, Deserialize)]
struct RowsHeader {
    relation: RelationId,
    bytes: u64,
    /// The sink that wrote the rows; they are derived again from its input on restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<RelationId>,
}

/// A record read back.
#[derive(Debug, Default)]
pub struct Record {
    pub catalog: Vec<catalog::CatalogChange>,
    pub catalog_snapshot: Option<catalog::Catalog>,
    /// Whose rows it changes.
    pub touched: Vec<RelationId>,
    pub rows: Vec<LoggedRows>,
    pub reserved_epochs: Option<Epoch>,
    pub sink_started: Option<RelationId>,
    pub job_started: Option<(RelationId, Epoch)>,
    pub merged: Vec<(RelationId, Epoch)>,
    pub kept_in: Option<String>,
    pub stuck: Vec<RelationId>,
    /// That a transaction has joined.
    pub epoch: Epoch,
}

/// Row changes of one table in one transaction.
#[derive(Debug)]
pub struct LoggedRows {
    pub relation: RelationId,
    pub changes: ChangeBatch,
    pub origin: Option<RelationId>,
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(SqlState::DataCorrupted, format!("a log record cannot be read: {what}"))
}

fn assemble(header: &Header, bodies: &[Vec<u8>]) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(header).map_err(|e| Error::internal(format!("log record: {e}")))?;
    let mut bytes = Vec::with_capacity(4 + json.len() + bodies.iter().map(Vec::len).sum::<usize>());
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&json);
    bodies.iter().for_each(|b| bytes.extend_from_slice(b));
    Ok(bytes)
}

fn empty() -> Header {
    Header {
        version: RECORD_VERSION,
        catalog: Vec::new(),
        catalog_snapshot: None,
        rows: Vec::new(),
        reserved_epochs: None,
        sink_started: None,
        job_started: None,
        merged: Vec::new(),
        kept_in: None,
        stuck: Vec::new(),
    }
}

fn value(bytes: &[u8]) -> Result<serde_json::Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::internal(format!("log record: {e}")))
}

/// The first record of a rewritten log.
pub fn catalog_snapshot(catalog: &catalog::Catalog) -> Result<Vec<u8>> {
    outside(&Header { catalog_snapshot: Some(value(&catalog.encode()?)?), ..empty() })
}

/// A record that says: epochs below `bound` may have been used.
pub fn reserve_epochs(bound: Epoch) -> Result<Vec<u8>> {
    outside(&Header { reserved_epochs: Some(bound), ..empty() })
}

/// A record that says: rows that this sink derived before are derived anew from here on.
pub fn sink_started(sink: RelationId) -> Result<Vec<u8>> {
    outside(&Header { sink_started: Some(sink), ..empty() })
}

/// A record that says: this job starts from what its inputs hold, and shows its first epoch.
pub fn job_started(job: RelationId, first: Epoch) -> Result<Vec<u8>> {
    outside(&Header { job_started: Some((job, first)), ..empty() })
}

/// A record of a rewritten log that says: of these relations the changes up to these epochs are not told apart any more.
pub fn merged(mut relations: Vec<(RelationId, Epoch)>) -> Result<Vec<u8>> {
    relations.sort_unstable();
    outside(&Header { merged: relations, ..empty() })
}

/// A record that says: checkpoints are kept there, and there is one.
pub fn kept_in(place: &str) -> Result<Vec<u8>> {
    outside(&Header { kept_in: Some(place.to_string()), ..empty() })
}

/// A record that says: these sinks may have published what cannot be gone on from, and stay stopped until they are dropped.
pub fn stuck(sinks: Vec<RelationId>) -> Result<Vec<u8>> {
    outside(&Header { stuck: sinks, ..empty() })
}

/// A record of no epoch.
fn outside(header: &Header) -> Result<Vec<u8>> {
    let mut bytes = assemble(header, &[])?;
    bytes.extend_from_slice(&epoch_bytes(Epoch(0)));
    Ok(bytes)
}

/// What ends the record of a transaction.
pub fn epoch_bytes(epoch: Epoch) -> [u8; 8] {
    epoch.0.to_le_bytes()
}

/// A committed transaction: its catalog changes, which come first, and its row changes; [`epoch_bytes`] follow it.
pub fn transaction(
    catalog: &[catalog::CatalogChange],
    changes: &[(RelationId, ChangeBatch)],
    origin: Option<RelationId>,
) -> Result<Vec<u8>> {
    let bodies: Vec<Vec<u8>> = changes.iter().map(|(_, c)| flow::wire::encode(c)).collect::<Result<_>>()?;
    let rows = changes
        .iter()
        .zip(&bodies)
        .map(|((relation, _), body)| RowsHeader { relation: *relation, bytes: body.len() as u64, origin })
        .collect();
    let catalog = catalog.iter().map(|c| value(&c.encode()?)).collect::<Result<_>>()?;
    assemble(&Header { catalog, rows, ..empty() }, &bodies)
}

/// Changes of a table in a rewritten log, derived by this sink if there is one; of epoch 0 if it does not tell them apart.
pub fn rows(relation: RelationId, changes: ChangeBatch, epoch: Epoch, origin: Option<RelationId>) -> Result<Vec<u8>> {
    let mut bytes = transaction(&[], &[(relation, changes)], origin)?;
    bytes.extend_from_slice(&epoch_bytes(epoch));
    Ok(bytes)
}

/// Reads a record back without its rows.
pub fn decode_catalog(bytes: &[u8]) -> Result<Record> {
    decode_of(bytes, |_| false)
}

/// Reads a record back; `XX001` for anything that this module did not write.
pub fn decode(bytes: &[u8]) -> Result<Record> {
    decode_of(bytes, |_| true)
}

/// Reads a record back, with the rows of these relations.
pub fn decode_of(bytes: &[u8], with_rows: impl Fn(RelationId) -> bool) -> Result<Record> {
    let length =
        bytes.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize).ok_or_else(|| damaged("too short"))?;
    let json = bytes.get(4..4 + length).ok_or_else(|| damaged("header is cut off"))?;
    let header: Header = serde_json::from_slice(json).map_err(damaged)?;
    if header.version > RECORD_VERSION {
        return Err(damaged(format!("version {} is newer than this program", header.version)));
    }
    let encoded = |v: &serde_json::Value| serde_json::to_vec(v).map_err(damaged);
    if header.version < RECORD_VERSION {
        return Err(damaged(format!("version {} is older than this program reads", header.version)));
    }
    let epoch = bytes.last_chunk::<8>().filter(|_| bytes.len() >= 12 + length).ok_or_else(|| damaged("no epoch"))?;
    let mut record = Record {
        reserved_epochs: header.reserved_epochs,
        sink_started: header.sink_started,
        job_started: header.job_started,
        merged: header.merged,
        kept_in: header.kept_in,
        stuck: header.stuck,
        epoch: Epoch(u64::from_le_bytes(*epoch)),
        ..Record::default()
    };
    let bytes = &bytes[..bytes.len() - epoch.len()];
    for change in &header.catalog {
        record.catalog.push(catalog::CatalogChange::decode(&encoded(change)?)?);
    }
    if let Some(snapshot) = &header.catalog_snapshot {
        record.catalog_snapshot = Some(catalog::Catalog::decode(&encoded(snapshot)?)?);
    }
    let mut at = 4 + length;
    for rows in header.rows {
        let body = bytes.get(at..at.saturating_add(rows.bytes as usize)).ok_or_else(|| damaged("rows are cut off"))?;
        at += body.len();
        record.touched.push(rows.relation);
        if !with_rows(rows.relation) {
            continue;
        }
        let changes = flow::wire::decode(body)?;
        record.rows.push(LoggedRows { relation: rows.relation, changes, origin: rows.origin });
    }
    Ok(record)
}
