//! `cargo xtask failures` as a test: some faults of a cluster in network namespaces.
//!
//! It needs root and the program `ip`. Where they are missing it fails rather than pass without having tested anything; who knows that
//! and wants the other tests sets `MILLSTREAM_WITHOUT_NAMESPACES=1`, which says so in the output.

use std::path::Path;
use std::process::Command;

/// A few of each kind: processes that die, a worker that the jobs go on without, a link cut whole and one way.
const FAULTS: &str = "kill/worker,kill/leader,left/worker,link/worker-worker,link-one-way/leader-worker";

#[test]
fn a_cluster_that_is_broken_in_several_ways_loses_nothing_and_goes_on() {
    if std::env::var("MILLSTREAM_WITHOUT_NAMESPACES").is_ok_and(|value| value == "1") {
        println!("left out, as MILLSTREAM_WITHOUT_NAMESPACES says: the failures of a cluster are not tested here");
        return;
    }
    let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
    let binary = xtask.parent().unwrap().join("millstream");
    assert!(binary.is_file(), "{} is not there: test with --workspace", binary.display());
    let done = Command::new(xtask)
        .args(["failures", "--rounds", "5", "--only", FAULTS, "--binary"])
        .arg(&binary)
        .output()
        .unwrap();
    let (table, told) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(
        done.status.success(),
        "{table}{told}\nWithout root, or without the program ip, set MILLSTREAM_WITHOUT_NAMESPACES=1 to leave this test out."
    );
    println!("{told}{table}");
    assert!(table.contains("5 of ") && table.contains("nothing was lost"), "{table}");
}
