//! Network namespaces as machines: each has one address on a bridge, and the way from each to each other can be cut.
//!
//! The bridge has a namespace of its own, so nothing of the machine's own network is touched. Who is where on it is told to each
//! namespace by hand. A way is cut by telling its sender a link address that nobody has: what it sends is lost without a word, and what
//! comes to it is not. So a way is cut in one direction, for one pair, for connections that stand as for new ones, and
//! no module of the kernel for queues or filters is needed.

use std::collections::BTreeSet;
use std::process::Command;

use crate::bench::Result;

/// One of the machines, by its place in [`NAMES`].
pub type Seat = usize;

pub const CLIENT: Seat = 0;
pub const COORDINATORS: [Seat; 2] = [1, 2];
/// Three of them are used at a time.
pub const WORKERS: [Seat; 4] = [3, 4, 5, 6];

pub const NAMES: [&str; 7] =
    ["client", "coordinator-a", "coordinator-b", "worker-1", "worker-2", "worker-3", "worker-4"];
/// The last part of each address.
const HOSTS: [u8; 7] = [2, 11, 12, 21, 22, 23, 24];

/// What the names of all namespaces of this program begin with; the process id of the run follows.
const PREFIX: &str = "millstream-";
const BRIDGE: &str = "switch";
/// A link address that nobody has.
const NOBODY: &str = "02:4d:53:ff:ff:ff";

pub fn address(seat: Seat) -> String {
    format!("10.77.0.{}", HOSTS[seat])
}

fn link_address(seat: Seat) -> String {
    format!("02:4d:53:00:00:{:02x}", HOSTS[seat])
}

fn ip(arguments: &[&str]) -> Result<String> {
    let done = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|e| format!("cannot run the program ip, which makes the namespaces (package iproute2): {e}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim()).into())
}

/// Errors: this process may not make namespaces, and what to do.
pub fn check_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    match effective {
        Some("0") => Ok(()),
        user => Err(format!(
            "network namespaces need root, and this is user {}: run the command as root",
            user.unwrap_or("unknown")
        )
        .into()),
    }
}

/// The namespaces of one run.
pub struct Net {
    prefix: String,
    /// Ways that are cut: who sends, and to whom.
    cuts: BTreeSet<(Seat, Seat)>,
}

impl Net {
    /// Those that another process has built.
    pub fn of(prefix: String) -> Net {
        Net { prefix, cuts: BTreeSet::new() }
    }

    pub fn namespace(&self, seat: Seat) -> String {
        format!("{}-{}", self.prefix, NAMES[seat])
    }

    /// What the namespace `of` believes where `who` is.
    fn tell(&self, of: Seat, who: Seat, link: &str) -> Result<()> {
        let (namespace, address) = (self.namespace(of), address(who));
        ip(&["-n", &namespace, "neigh", "replace", &address, "lladdr", link, "nud", "permanent", "dev", "eth0"])?;
        Ok(())
    }

    /// Loses what `from` sends to `to`.
    pub fn cut(&mut self, from: Seat, to: Seat) -> Result<()> {
        self.tell(from, to, NOBODY)?;
        self.cuts.insert((from, to));
        Ok(())
    }

    /// Brings every way back.
    pub fn heal(&mut self) -> Result<()> {
        for (from, to) in std::mem::take(&mut self.cuts) {
            self.tell(from, to, &link_address(to))?;
        }
        Ok(())
    }
}

/// Namespaces that are removed when this is dropped, with whatever runs in them.
pub struct Built {
    pub net: Net,
}

impl Built {
    /// Builds them, and removes those of runs that have died.
    pub fn new() -> Result<Built> {
        remove_abandoned()?;
        let id = std::process::id();
        let built = Built { net: Net::of(format!("{PREFIX}{id}")) };
        let switch = format!("{}-{BRIDGE}", built.net.prefix);
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for (seat, name) in NAMES.iter().enumerate() {
            let (namespace, link, port) = (built.net.namespace(seat), link_address(seat), format!("port{seat}"));
            ip(&["netns", "add", &namespace]).map_err(|e| format!("the machine {name}: {e}"))?;
            ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &link, "netns",
                &namespace,
            ])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
            ip(&["-n", &namespace, "addr", "add", &format!("{}/24", address(seat)), "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        }
        for of in 0..NAMES.len() {
            for who in (0..NAMES.len()).filter(|who| *who != of) {
                built.net.tell(of, who, &link_address(who))?;
            }
        }
        Ok(built)
    }

    pub fn prefix(&self) -> &str {
        &self.net.prefix
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        let names = ip(&["netns", "list"]).unwrap_or_default();
        let mine = format!("{}-", self.net.prefix);
        for name in names.lines().filter_map(|line| line.split_whitespace().next()) {
            if name.starts_with(&mine)
                && let Err(error) = remove(name)
            {
                eprintln!("   a network namespace is left: {error}");
            }
        }
    }
}

/// Ends what runs in a namespace, and removes it.
fn remove(namespace: &str) -> Result<()> {
    for process in ip(&["netns", "pids", namespace])?.split_whitespace() {
        // It may have ended meanwhile.
        let _ = Command::new("kill").args(["-9", process]).status();
    }
    ip(&["netns", "del", namespace]).map(drop)
}

/// Removes the namespaces of runs whose process is gone: it was killed before it could.
fn remove_abandoned() -> Result<()> {
    for line in ip(&["netns", "list"])?.lines() {
        let Some(name) = line.split_whitespace().next() else { continue };
        let run = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if run.is_some_and(|run| !std::path::Path::new(&format!("/proc/{run}")).exists()) {
            remove(name)?;
        }
    }
    Ok(())
}
