//! The demo as a process.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

fn free_addr() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_demo_that_nobody_looks_at_any_more_ends() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["demo", "--pg-addr", &free_addr(), "--http-addr", &free_addr(), "--seconds", "120"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let total = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("TOTAL is always")));
    assert!(total.is_some(), "the demo shows a table");
    drop(lines);
    for _ in 0..600 {
        if let Some(status) = demo.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    demo.kill().unwrap();
    panic!("the demo goes on for nobody");
}
