//! `millstream worker`: slots of a cluster.

use std::net::TcpListener;
use std::sync::Arc;

use cluster::{Node, NodeConfig};
use coord::Time;
use flow::{Error, Result, SqlState};
use tracing::info;

use crate::config::Config;
use crate::serve::Told;
use crate::{ServerArgs, WorkerArgs, logging};

/// Runs the worker until SIGTERM or SIGINT, or until its cluster is over. Errors: the coordinator refuses it.
pub fn run(args: &WorkerArgs) -> Result<()> {
    let flags = ServerArgs {
        config: args.config.clone(),
        slots: args.slots,
        memory_limit: args.memory_limit.clone(),
        log_format: args.log_format.clone(),
        log_level: args.log_level.clone(),
        coordinator_addr: args.coordinator_addr.clone(),
        worker_addr: args.worker_addr.clone(),
        ..ServerArgs::default()
    };
    let config = Config::load(&flags)?;
    logging::install(&config.log_format, &config.log_level);
    let listener = TcpListener::bind(config.worker_addr).map_err(|e| {
        let message = format!("cannot listen on {} for other workers: {e}", config.worker_addr);
        Error::new(SqlState::ConnectionFailure, message)
            .with_hint("Another worker may run there; choose another worker_addr, or port 0 for any.")
    })?;
    let nonce = getrandom::u64().map_err(|e| Error::internal(format!("the system gives no random number: {e}")))?;
    let node = Node::listen(
        listener,
        NodeConfig {
            coordinator: config.coordinator_addr.clone(),
            slots: config.slot_count(),
            token: config.cluster_token.clone(),
            memory_limit: config.memory_bytes()?,
            time: Time::system(),
            nonce,
        },
    )?;
    info!(addr = %node.addr(), slots = config.slot_count(), coordinator = config.coordinator_addr, "the worker listens");
    let runtime = crate::serve::runtime()?;
    let stops = Arc::clone(&node);
    let owned = args.until_input_ends;
    let input = owned.then(crate::serve::input_ends).transpose()?;
    runtime.block_on(async {
        let mut told = crate::serve::told(input)?;
        tokio::spawn(async move {
            // An error means that the sender is gone, which is a stop too.
            let _ = told.wait_for(|told| told.is_some()).await;
            if owned && *told.borrow() == Some(Told::Cancel) {
                // Whoever has started it is gone, and the jobs with him.
                stops.close();
                return;
            }
            // It ends with the program, if not before.
            let _ = tokio::task::spawn_blocking(move || stops.leave()).await;
        });
        tokio::task::spawn_blocking(move || node.run())
            .await
            .map_err(|e| Error::internal(format!("the worker has failed: {e}")))?
    })
}
