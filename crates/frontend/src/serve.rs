//! Accepting connections, and one task for each of them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flow::{Error, Result, SqlState};
use futures::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::cancel::{CancelHandle, Registry};
use crate::config::FrontendConfig;
use crate::failure::Failure;
use crate::startup::greet;
use crate::transport::Transport;

/// Connections that may be open without being logged in, beyond those that are. More are closed at once.
const CONNECTIONS_UNGREETED_MAX: usize = 16_384;

/// Pause after a failed accept: the usual cause, no free file descriptor, does not go away any faster.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What all connections of a listener share.
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) config: FrontendConfig,
    pub(crate) registry: Registry,
    sessions: AtomicUsize,
    closing: watch::Sender<bool>,
}

/// The right to be one of the `connections_max` sessions; given back when dropped.
pub(crate) struct Slot {
    shared: Arc<Shared>,
    pid: i32,
}

impl Shared {
    pub(crate) fn take_slot(self: &Arc<Self>) -> Result<Slot> {
        let taken = self.sessions.fetch_add(1, Ordering::AcqRel);
        // From here on dropping the slot gives it back, also when it is refused.
        let slot = Slot { shared: Arc::clone(self), pid: 0 };
        if *self.closing.borrow() {
            return Err(Error::new(SqlState::CannotConnectNow, "the database system is shutting down"));
        }
        if taken >= self.config.connections_max {
            return Err(Error::new(SqlState::TooManyConnections, "sorry, too many clients already"));
        }
        Ok(slot)
    }
}

impl Slot {
    /// Makes the session known to cancel requests and to the shutdown.
    pub(crate) fn register(mut self, key: i32, cancel: &Arc<CancelHandle>) -> Result<Slot> {
        self.pid = self.shared.registry.register(random_i32, key, cancel)?;
        // A shutdown that has already been through the registry has missed this session.
        if *self.shared.closing.borrow() {
            cancel.terminate();
        }
        Ok(self)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

/// A number that nobody can guess.
pub(crate) fn random_i32() -> Result<i32> {
    let mut bytes = [0u8; 4];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal(format!("the system gives no random numbers: {e}")))?;
    Ok(i32::from_be_bytes(bytes))
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.pid != 0 {
            self.shared.registry.remove(self.pid);
        }
        self.shared.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves the Postgres protocol on `listener` until `shutdown` is ready. Then no connection is accepted any more, running
/// statements are told to stop, and every session ends with `57P01`; returns when all have ended, or
/// [`FrontendConfig::shutdown_grace`] is over and the rest has been dropped.
pub async fn serve(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    config: FrontendConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        backend,
        config,
        registry: Registry::default(),
        sessions: AtomicUsize::new(0),
        closing: watch::Sender::new(false),
    });
    let connections_max = shared.config.connections_max.saturating_add(CONNECTIONS_UNGREETED_MAX);
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) if tasks.len() < connections_max => {
                    tasks.spawn(converse(stream, remote, Arc::clone(&shared)));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    shared.closing.send_replace(true);
    shared.registry.terminate_all();
    let all_ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(shared.config.shutdown_grace, all_ended).await.is_err() {
        tracing::warn!(sessions = tasks.len(), "drop sessions that did not end in time");
        tasks.shutdown().await;
    }
    Ok(())
}

/// One connection, from the first byte to the last. A panic ends it and nothing else.
async fn converse(stream: TcpStream, remote: SocketAddr, shared: Arc<Shared>) {
    // Answers are written whole, so there is nothing for Nagle's algorithm to join.
    let _ = stream.set_nodelay(true);
    // A peer that has vanished without a word is found out by the kernel, at no cost while it is there.
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let mut transport = Transport::new(stream);
    let outcome = AssertUnwindSafe(run(&mut transport, remote, &shared)).catch_unwind().await;
    let error = match outcome {
        Ok(Ok(())) | Ok(Err(Failure::Disconnected)) => None,
        Ok(Err(Failure::Fatal(error))) => Some(error),
        Ok(Err(Failure::Statement(failed))) => Some(failed.error),
        Err(panic) => {
            let cause = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown cause");
            tracing::error!(%remote, cause, "a session panicked");
            transport.drop_partial_message();
            Some(Error::internal("the session ended by an internal error").with_detail(cause))
        }
    };
    if let Some(error) = error {
        transport.put_fatal(&error);
    }
    transport.close().await;
}

async fn run(transport: &mut Transport, remote: SocketAddr, shared: &Arc<Shared>) -> std::result::Result<(), Failure> {
    let greeting = greet(transport, remote, shared);
    let mut closing = shared.closing.subscribe();
    let greeted = tokio::select! {
        biased;
        greeted = tokio::time::timeout(shared.config.login_timeout, greeting) => greeted,
        _ = closing.wait_for(|closing| *closing) => {
            let message = "the database system is shutting down";
            return Err(Failure::Fatal(Error::new(SqlState::CannotConnectNow, message)));
        }
    };
    let greeted = match greeted {
        Ok(greeted) => greeted?,
        Err(_) => {
            let message = "canceling authentication due to timeout";
            return Err(Failure::Fatal(Error::new(SqlState::QueryCanceled, message)));
        }
    };
    match greeted {
        Some((mut connection, slot)) => {
            let outcome = connection.run(transport).await;
            // The session ends before its slot is free for another.
            drop(connection);
            drop(slot);
            outcome
        }
        None => Ok(()),
    }
}
