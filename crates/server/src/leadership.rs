//! Which coordinator leads, where several of them have one store: `high_availability: store`.
//!
//! A coordinator that finds a live lease stands by. It takes the lease when its holder has let it go, or has given no sign of life
//! for `heartbeat_timeout`. What the lease decides is only who tries: an engine that is opened shuts out every other one by
//! what it creates in the store (see [`checkpoint::lease`]).

use std::net::SocketAddr;
use std::sync::Arc;

use checkpoint::DataDirectory;
use checkpoint::lease::{Holder, Leases, Renewed, Seen, Watch};
use cluster::connection::Pulse;
use cluster::handshake::{Caller, Identity, call};
use coord::Time;
use coord::engine::{SharedLog, cluster_id};
use flow::{Error, Result, SqlState};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::config::Config;

/// What a coordinator needs to lead and to stand by.
pub struct Leadership {
    leases: Leases,
    pulse: Pulse,
    token: String,
    /// What tells the cluster from every other one.
    cluster: String,
    directory: Arc<DataDirectory>,
    steady: Time,
}

/// An address as others reach it.
pub fn reachable(addr: SocketAddr) -> String {
    if !addr.ip().is_unspecified() {
        return addr.to_string();
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => addr.to_string(),
        name => format!("{name}:{}", addr.port()),
    }
}

/// What clients and workers are told by a standby.
pub fn standby(leader: &Holder) -> Error {
    let Holder { pg_addr, cluster_addr, .. } = leader;
    Error::new(SqlState::CannotConnectNow, "this coordinator is a standby")
        .with_detail(format!("The leader answers clients at {pg_addr}, and workers at {cluster_addr}."))
        .with_hint("Give clients and workers the addresses of all coordinators; they go on to the next by themselves.")
}

/// Why a coordinator leads no more.
fn deposed(seen: &Seen) -> Error {
    Error::new(SqlState::AdminShutdown, "another coordinator has taken over")
        .with_detail(format!("The leader answers clients at {}.", seen.sign.holder.pg_addr))
        .with_hint("Connect again, with the addresses of all coordinators.")
}

impl Leadership {
    /// Asks the store, on a thread that may block. `own`: what tells the data directory from every other one.
    ///
    /// Errors: `0A000` the store does not know conditional writes; `55000` it is of another cluster; `58030`, `42501`.
    pub async fn open(config: &Config, directory: Arc<DataDirectory>, holder: Holder) -> Result<Leadership> {
        let (config, pulse) =
            (config.clone(), Pulse { heartbeat: config.heartbeat_interval()?, timeout: config.heartbeat_timeout()? });
        let open = move || -> Result<Leadership> {
            let door = config.door(|_| Err(Error::internal("a shared log in a data directory")))?;
            door.probe()?;
            let cluster = cluster_id(&door, &holder.id)?;
            let leases = Leases::new(door, holder);
            Ok(Leadership { leases, pulse, token: config.cluster_token, cluster, directory, steady: Time::steady() })
        };
        spawn_blocking(open).await.map_err(joined)?
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What an engine is opened with.
    pub fn shared_log(&self) -> SharedLog {
        SharedLog {
            address: self.leases.holder().pg_addr.clone(),
            cluster: self.cluster.clone(),
            directory: Arc::clone(&self.directory),
        }
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&Leases) -> Result<T> + Send + 'static) -> Result<T> {
        let leases = self.leases.clone();
        spawn_blocking(move || ask(&leases)).await.map_err(joined)?
    }

    /// Waits until this coordinator has the lease, and returns its number; `None`: the server stops. `starts`: this process has not
    /// led yet, so a lease of its data directory is of one that has ended. `stand_by` is told who leads meanwhile.
    ///
    /// Errors: the leader does not know this one's token.
    pub async fn wait(
        &self,
        starts: bool,
        ended: &mut watch::Receiver<bool>,
        stand_by: impl Fn(&Holder),
    ) -> Result<Option<u64>> {
        let (mut silence, mut told, mut failed) = (Watch::default(), None, false);
        let timeout_us = self.pulse.timeout.as_micros() as i64;
        while !*ended.borrow() {
            let asked_us = self.steady.now_us();
            match self.ask(Leases::look).await {
                Ok(seen) => {
                    failed = false;
                    let number = seen.as_ref().map_or(0, |seen| seen.number);
                    let silent_us = silence.saw(number, asked_us, self.steady.now_us());
                    let held = seen.filter(|seen| {
                        let own = starts && seen.sign.holder.id == self.leases.holder().id;
                        !(seen.sign.released || seen.mine || own || silent_us >= timeout_us)
                    });
                    match held {
                        Some(Seen { sign, .. }) => {
                            if told.as_ref() != Some(&sign.holder) {
                                info!(leader = sign.holder.pg_addr, "this coordinator is a standby");
                                stand_by(&sign.holder);
                                self.greet(&sign.holder).await?;
                                told = Some(sign.holder);
                            }
                        }
                        None => match self.ask(move |leases| leases.take(number)).await {
                            Ok(true) => return Ok(Some(number + 1)),
                            Ok(false) => continue,
                            Err(error) => warn!(%error, "the lease cannot be taken"),
                        },
                    }
                }
                Err(error) => {
                    silence.forget();
                    if !failed {
                        warn!(%error, "the store does not say who leads; asking again");
                    }
                    failed = true;
                }
            }
            // In time or not.
            let _ = tokio::time::timeout(self.pulse.heartbeat, ended.wait_for(|ended| *ended)).await;
        }
        Ok(None)
    }

    /// Calls the leader as what stands by, to learn whether it is of the same cluster: later nobody may be there to ask. Errors: it
    /// does not know this one's token.
    async fn greet(&self, leader: &Holder) -> Result<()> {
        let identity = Identity::new(Some(self.cluster.clone()), self.token.clone());
        let (address, me) = (leader.cluster_addr.clone(), self.leases.holder().pg_addr.clone());
        let called = spawn_blocking(move || call(&address, &identity, |_| Caller::Standby { address: me }).map(drop));
        match called.await.map_err(joined)? {
            Err(error) if error.state() == SqlState::InvalidAuthorization => Err(error),
            // It may be dying; then there is nothing to ask.
            Err(error) => {
                info!(leader = leader.cluster_addr, %error, "the leader is not reached");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Gives signs of life until `over`; says why if another coordinator leads.
    pub async fn keep(
        self: Arc<Self>,
        number: u64,
        lost: watch::Sender<Option<Error>>,
        mut over: watch::Receiver<bool>,
    ) {
        let (mut held, mut failed) = (number, false);
        loop {
            // The sender is gone only with the server.
            if tokio::time::timeout(self.pulse.heartbeat, over.wait_for(|over| *over)).await.is_ok() {
                return;
            }
            match self.ask(move |leases| leases.renew(held)).await {
                Ok(Renewed::Holds(next)) => (held, failed) = (next, false),
                Ok(Renewed::Lost(seen)) => {
                    lost.send_replace(Some(deposed(&seen)));
                    return;
                }
                Err(error) => {
                    if !failed {
                        warn!(%error, "the lease cannot be renewed; trying again");
                    }
                    failed = true;
                }
            }
        }
    }

    /// Lets another coordinator lead at once. Best effort: without it, others wait until this one has been silent for long enough.
    pub async fn release(&self) {
        if let Err(error) = self.ask(Leases::release).await {
            warn!(%error, "the lease cannot be released");
        }
    }
}

fn joined(e: tokio::task::JoinError) -> Error {
    Error::internal(format!("a thread has failed: {e}"))
}
