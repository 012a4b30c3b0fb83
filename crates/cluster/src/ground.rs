//! What a worker stands on: how its slots and services get to run, where it stores state, and how it comes to other workers. With
//! threads and sockets; or stepped by a test, in an order drawn from its seed.

use std::sync::Arc;

use checkpoint::door::{Door, ThreadRest};
use checkpoint::local::LocalStore;
use checkpoint::remote::RemoteStore;
use coord::execution::{Execution, Threads};
use flow::{Error, Result};
use runtime::slot::{Reports, Shared};
use runtime::worker::Links;
use runtime::{Join, Place, Service, Share, ThreadWorker};

use crate::connection::{Beat, Connection, Hears, Pulse};
use crate::handshake::{Caller, Identity, call};
use crate::message::StorePlace;

/// A way to another worker that is to be opened.
pub struct Way {
    /// Where it is reached.
    pub address: String,
    /// What the caller says that it is.
    pub me: Caller,
    pub identity: Identity,
    pub pulse: Pulse,
    pub beat: Beat,
    /// What comes back.
    pub hears: Box<dyn Hears>,
}

/// Lets a worker's parts work.
pub trait Ground: Send + Sync {
    /// Starts the slots of a session that are here; `links` lead to the others.
    fn start_slots(&self, place: Place, links: Links<'_>, shared: Shared, reports: &Reports) -> Result<Arc<dyn Share>>;

    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>>;

    /// The door to where the state of jobs is stored. `nonce`: no other process writes as it.
    fn door(&self, place: &StorePlace, nonce: u64) -> Result<Door>;

    /// Connects to another worker. Errors: `08006` it is not reached; `28000` it refuses; `08P01`.
    fn connect(&self, way: Way) -> Result<Arc<Connection>>;
}

/// Threads and sockets.
pub struct Machine;

impl Ground for Machine {
    fn start_slots(&self, place: Place, links: Links<'_>, shared: Shared, reports: &Reports) -> Result<Arc<dyn Share>> {
        Ok(Arc::new(ThreadWorker::start_at(place, Some(links), shared, reports, None)?))
    }

    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>> {
        Threads::default().start_service(service)
    }

    fn door(&self, place: &StorePlace, nonce: u64) -> Result<Door> {
        let store: Arc<dyn checkpoint::door::Store> = match place {
            // Made by the coordinator: one that is not there is on another machine.
            StorePlace::Folder(folder) => Arc::new(LocalStore::share(folder).map_err(|e| {
                e.with_detail(
                    "The coordinator keeps checkpoints in its data directory, which this worker does not see.",
                )
                .with_hint("Workers on other machines need checkpoint_url, or a folder that all of them share.")
            })?),
            StorePlace::S3 { bucket, prefix } => Arc::new(RemoteStore::s3(bucket, prefix, &[])?),
        };
        Ok(Door::new(store, Arc::new(ThreadRest::seeded(nonce)), nonce))
    }

    fn connect(&self, way: Way) -> Result<Arc<Connection>> {
        let Way { address, me, identity, pulse, beat, mut hears } = way;
        let (known, _) = call(&address, &identity, |_| me)?;
        let (connection, incoming) = Connection::start(known, "to-peer", pulse, false, beat)?;
        let thread = std::thread::Builder::new().name("from-peer".into()).spawn(move || incoming.hear(&mut *hears));
        thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
        Ok(connection)
    }
}
