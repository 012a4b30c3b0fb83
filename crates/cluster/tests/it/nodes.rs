//! A coordinator's roster and workers, all in this process, over real sockets.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use cluster::connection::Pulse;
use cluster::{Identity, Node, NodeConfig, Roster, RosterConfig, Wanted};
use coord::Time;
use flow::Result;

pub const TOKEN: &str = "a secret of the test";
pub const CLUSTER: &str = "cluster-of-the-test";
/// Nobody is away for so long because the machine is busy.
pub const PULSE: Pulse = Pulse { heartbeat: Duration::from_millis(100), timeout: Duration::from_secs(20) };

pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

pub fn identity() -> Identity {
    Identity::new(Some(CLUSTER.into()), TOKEN.into())
}

/// What a roster needs that waits for all of its workers, for as long as a test may take.
pub fn config(identity: Identity, workers: usize, nonce: u64) -> RosterConfig {
    let wanted =
        Wanted { workers, least: workers, patience: Duration::from_secs(600), settle: Duration::from_secs(600) };
    RosterConfig { identity, wanted, pulse: PULSE, time: Time::system(), steady: Time::steady(), nonce }
}

pub fn roster(workers: usize) -> Arc<Roster> {
    Roster::listen(listener(), config(identity(), workers, 77)).unwrap()
}

/// A worker that runs until it is closed.
pub struct Running {
    pub node: Arc<Node>,
    thread: JoinHandle<Result<()>>,
}

impl Running {
    pub fn start(coordinator: &str, slots: usize, token: &str, nonce: u64) -> Running {
        let config = NodeConfig {
            coordinator: coordinator.into(),
            slots,
            token: token.into(),
            memory_limit: 1 << 30,
            time: Time::system(),
            nonce,
        };
        let node = Node::listen(listener(), config).unwrap();
        let runs = Arc::clone(&node);
        Running { node, thread: std::thread::spawn(move || runs.run()) }
    }

    /// What it ends with by itself.
    pub fn ends(self) -> Result<()> {
        self.thread.join().unwrap()
    }

    pub fn close(self) -> Result<()> {
        self.node.close();
        self.thread.join().unwrap()
    }
}
