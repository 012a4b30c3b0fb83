//! Who is let in, and what each side is told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use cluster::handshake::{Caller, PROTOCOL_VERSION, Welcome, call};
use cluster::roster::HANDSHAKES_MAX;
use cluster::{Identity, Roster};
use flow::{Error, Result, SqlState};

use crate::nodes::{CLUSTER, PULSE, Running, TOKEN, config, identity, listener, roster};

fn come(roster: &Roster, mine: &Identity, caller: Caller) -> Result<Welcome> {
    call(&roster.addr().to_string(), mine, |_| caller).map(|(_, welcome)| welcome)
}

fn worker(address: &str, slots: usize) -> Caller {
    Caller::Worker { address: address.into(), slots }
}

/// The refusal says what is expected, what came and what to do.
#[track_caller]
fn refused(outcome: Result<Welcome>, words: [&str; 3]) {
    let error = outcome.unwrap_err();
    assert_eq!(error.state().code(), "28000", "{error}");
    let told = [error.message(), error.detail().unwrap_or_default(), error.hint().unwrap_or_default()];
    for (told, word) in told.into_iter().zip(words) {
        assert!(told.contains(word), "\"{told}\" does not say \"{word}\"");
    }
}

#[test]
fn nodes_that_do_not_belong_are_refused_and_told_why() {
    let roster = roster(1);
    let wrong = Identity { token: "another".into(), ..identity() };
    refused(come(&roster, &wrong, worker("a:1", 2)), ["token", "Another one is expected", "cluster_token"]);
    let none = Identity { token: String::new(), ..identity() };
    refused(come(&roster, &none, worker("a:1", 2)), ["token", "none came", "cluster_token"]);
    let older = Identity { build: "0.0.1".into(), ..identity() };
    refused(come(&roster, &older, worker("a:1", 2)), ["version 0.0.1", "0.0.1 came", "same program"]);
    let other = Identity { cluster: Some("other".into()), ..identity() };
    refused(come(&roster, &other, worker("a:1", 2)), ["another cluster", CLUSTER, "own coordinator"]);
    refused(come(&roster, &identity(), worker("a:1", 0)), ["slots", "0 came", "--slots"]);
    refused(come(&roster, &identity(), worker("a:1", 100_000)), ["slots", "100000 came", "--slots"]);
    let peer = Caller::Peer { session: 1, worker: 1 };
    refused(come(&roster, &identity(), peer), ["no slots", "another worker", "worker_addr"]);
    assert!(roster.workers().is_empty());
    // Nothing of that keeps those out who belong; a number is kept by who comes again.
    let new = Identity { cluster: None, ..identity() };
    let first = come(&roster, &new, worker("a:1", 2)).unwrap();
    assert_eq!((first.worker, first.cluster.as_str(), first.timeout), (1, CLUSTER, PULSE.timeout));
    let known = |n: usize| {
        while roster.workers().len() < n {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    known(1);
    assert_eq!(come(&roster, &identity(), worker("b:1", 2)).unwrap().worker, 2);
    known(2);
    assert_eq!(come(&roster, &identity(), worker("a:1", 3)).unwrap().worker, 1);
    roster.close();
}

#[test]
fn another_protocol_is_refused_in_words_that_every_version_reads() {
    let roster = roster(1);
    let mut stream = TcpStream::connect(roster.addr()).unwrap();
    let mut bytes = b"MILLSTRM".to_vec();
    bytes.extend((PROTOCOL_VERSION + 98).to_le_bytes());
    stream.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        answer.contains(&format!("protocol version {}", PROTOCOL_VERSION + 98)) && answer.contains("same program"),
        "{answer}"
    );
    roster.close();
}

#[test]
fn bytes_of_strangers_are_dropped_and_cost_little() {
    let roster = roster(1);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let prefix = |length: u32, head: u32| {
        let mut bytes = b"MILLSTRM".to_vec();
        bytes.extend(PROTOCOL_VERSION.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(head.to_le_bytes());
        bytes.extend([0; 8]);
        bytes
    };
    let mut attempts: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"MILLSTRM".to_vec(),
        prefix(u32::MAX, 0),
        prefix(100, 101),
        [prefix(4, 4), b"\"x\"".to_vec()].concat(),
        [prefix(2, 2), b"{}".to_vec()].concat(),
    ];
    attempts.extend((0..50).map(|_| (0..random() % 4000).map(|_| random() as u8).collect()));
    for bytes in attempts {
        let mut stream = TcpStream::connect(roster.addr()).unwrap();
        // It may be cut off in the middle.
        let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 1000, "{}", String::from_utf8_lossy(&answer));
    }
    // Those who say nothing take places only for a while.
    let silent: Vec<TcpStream> = (0..HANDSHAKES_MAX + 20).map(|_| TcpStream::connect(roster.addr()).unwrap()).collect();
    let mut came: Result<Welcome> = Err(Error::internal("never tried"));
    for _ in 0..100 {
        came = come(&roster, &identity(), worker("a:1", 1));
        if came.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(came.unwrap().worker, 1);
    drop(silent);
    roster.close();
}

#[test]
fn addresses_that_are_open_to_others_need_a_token() {
    let open = || TcpListener::bind("0.0.0.0:0").unwrap();
    let config = |token: &str| config(Identity::new(None, token.into()), 1, 1);
    let error = Roster::listen(open(), config("")).err().unwrap();
    assert_eq!(error.state().code(), "42501");
    assert!(error.hint().unwrap().contains("cluster_token"));
    Roster::listen(open(), config("x")).unwrap().close();
    Roster::listen(listener(), config("")).unwrap().close();
}

#[test]
fn a_worker_that_knows_several_coordinators_comes_to_the_one_that_leads() {
    let [first, second] = [roster(1), roster(1)];
    let standby =
        || Error::new(SqlState::CannotConnectNow, "this coordinator is a standby").with_detail("Another leads.");
    first.stand_by(Some(standby()));
    let both = format!("{}, {}", first.addr(), second.addr());
    let mover = Running::start(&both, 1, TOKEN, 3);
    assert_eq!(second.choose(Duration::from_secs(20)).unwrap().len(), 1);
    assert!(first.workers().is_empty());
    // They take turns.
    first.stand_by(None);
    second.stand_by(Some(standby()));
    assert_eq!(first.choose(Duration::from_secs(20)).unwrap().len(), 1);
    let sent_on = come(&second, &identity(), worker("a:1", 1)).unwrap_err();
    assert_eq!(sent_on, standby());
    // Those that stand by are known to belong, or not.
    let caller = || Caller::Standby { address: "c:1".into() };
    assert_eq!(come(&first, &identity(), caller()).unwrap().cluster, CLUSTER);
    let wrong = Identity { token: "another".into(), ..identity() };
    refused(come(&first, &wrong, caller()), ["token", "Another one is expected", "cluster_token"]);
    assert_eq!(first.workers().len(), 1);
    mover.close().unwrap();
    // Nobody to come to.
    let nowhere = Running::start(" , ", 1, TOKEN, 4).ends().unwrap_err();
    assert!(nowhere.message().contains("address of a coordinator"), "{nowhere}");
    first.close();
    second.close();
}

#[test]
fn a_worker_that_is_refused_ends_with_the_reason_and_one_that_finds_nobody_calls_again() {
    let roster = roster(1);
    let wrong = Running::start(&roster.addr().to_string(), 1, "wrong", 1);
    let error = wrong.ends().unwrap_err();
    assert!(error.message().contains("token"), "{error}");
    // Nobody is there yet.
    let addr = listener().local_addr().unwrap();
    let early = Running::start(&addr.to_string(), 2, TOKEN, 2);
    std::thread::sleep(Duration::from_millis(700));
    let late = Roster::listen(TcpListener::bind(addr).unwrap(), config(identity(), 1, 5)).unwrap();
    let missing = late.missing();
    let chosen = late.choose(Duration::from_secs(20)).unwrap();
    assert_eq!((chosen.len(), chosen[0].slots, chosen[0].id), (1, 2, 1));
    assert!(missing.is_none_or(|error| error.detail().unwrap().contains("1 workers are needed, 0 are here")));
    assert_eq!(late.missing(), None);
    early.close().unwrap();
    let gone = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        late.missing().is_some_and(|error| error.detail().unwrap().contains("Away: worker 1"))
    });
    assert!(gone, "{:?}", late.workers());
    late.close();
    roster.close();
}

#[test]
fn workers_end_when_their_cluster_is_over_and_who_comes_later_is_told_so() {
    let roster = roster(2);
    let addr = roster.addr().to_string();
    let workers = [Running::start(&addr, 1, TOKEN, 1), Running::start(&addr, 2, TOKEN, 2)];
    assert_eq!(roster.choose(Duration::from_secs(20)).unwrap().len(), 2);
    roster.dismiss(Error::new(SqlState::InvalidAuthorization, "the cluster is over").with_hint("Go elsewhere."));
    for worker in workers {
        worker.ends().unwrap();
    }
    let late = Running::start(&addr, 1, TOKEN, 3).ends().unwrap_err();
    assert_eq!((late.state().code(), late.message()), ("28000", "the cluster is over"));
    roster.close();
}
