//! Growing files.

use std::fs::OpenOptions;
use std::io::Write;

use connect::{Offset, ReadState};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn torn_lines_are_held_back_until_they_are_whole() {
    let mut rng = SmallRng::seed_from_u64(21);
    let folder = Folder::new();
    let s = schema(&[("id", "int8"), ("t", "text")]);
    for round in 0..40 {
        let json = round % 2 == 0;
        let mut text = String::new();
        if !json {
            text.push_str("\u{feff}id,t\n");
        }
        for i in 0..60 {
            match (json, i % 7) {
                (true, _) => text.push_str(&format!("{{\"id\":{i},\"t\":\"é😀{i}\"}}\r\n")),
                (false, 3) => text.push_str(&format!("{i},\"two\r\nlines, \"\"{i}\"\"\"\r\n")),
                (false, 5) => text.push_str("bad\n"),
                (false, _) => text.push_str(&format!("{i},é😀{i}\n")),
            }
        }
        let path = folder.write("grows", "");
        let mut pairs = vec![("format", if json { "json" } else { "csv" }), ("on_error", "skip")];
        if !json {
            pairs.push(("header", "true"));
        }
        let followed = [&pairs[..], &[("follow", "true")]].concat();
        let source = open(&path, &followed, &s).unwrap();
        assert!(!source.bounded());
        let mut reader = source.reader(&source.splits().unwrap()[0], None).unwrap();
        let (mut got, mut errors, mut at, mut written) = (Vec::new(), Vec::new(), Offset::START, 0);
        while written < text.len() {
            let end = (written + rng.random_range(1..90)).min(text.len());
            append(&path, &text.as_bytes()[written..end]);
            written = end;
            let (batch, bad, next, state) = drain(&mut *reader, at, || (rng.random_range(1..20), 64), None);
            assert_eq!(state, ReadState::CaughtUp);
            assert!(next.0 == 0 || text.as_bytes()[next.0 as usize - 1] == b'\n', "an offset is where a record starts");
            got.push(batch);
            errors.extend(bad);
            at = next;
        }
        assert_eq!(at.0, text.len() as u64);
        let got = arrow::compute::concat_batches(&s, &got).unwrap();
        let bounded = super::reader(&path, &pairs, &s);
        let (want, want_bad) = read_all(&mut *{ bounded });
        assert_eq!((got, errors), (want, want_bad), "round {round}");
    }
}

#[test]
fn a_following_reader_waits_where_a_bounded_one_takes_the_last_line() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "1\n2");
    let s = schema(&[("id", "int8")]);
    let mut follow = reader(&path, &[("format", "csv"), ("follow", "true")], &s);
    let outcome = follow.read(Offset::START, 10, 100, None).unwrap();
    assert_eq!((outcome.batch.num_rows(), outcome.next, outcome.state), (1, Offset(2), ReadState::CaughtUp));
    let mut bounded = reader(&path, &[("format", "csv")], &s);
    append(&path, b"2\n3\n");
    // The bounded source ends where it ended when it was opened.
    let (rows, _, end, state) = drain(&mut *bounded, Offset::START, || (10, 100), None);
    assert_eq!((table(&rows), end, state), (strings(&[&["1"], &["2"]]), Offset(3), ReadState::End));
    let (rows, _, _, _) = drain(&mut *follow, Offset(2), || (10, 100), None);
    assert_eq!(table(&rows), strings(&[&["22"], &["3"]]));
    // A limit ends the range of a following reader too.
    let (rows, _, _, state) = drain(&mut *follow, Offset::START, || (10, 100), Some(Offset(2)));
    assert_eq!((rows.num_rows(), state), (1, ReadState::End));
}

#[test]
fn a_file_that_does_not_just_grow_stops_the_source() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    let start = || {
        let path = folder.write("a.csv", "1\n2\n3\n");
        let mut r = reader(&path, &[("format", "csv"), ("follow", "true")], &s);
        let outcome = r.read(Offset::START, 10, 100, None).unwrap();
        assert_eq!(outcome.state, ReadState::CaughtUp);
        (path, r, outcome.next)
    };
    let check = |r: &mut dyn SourceReader, next: Offset, what: &str| {
        let e = r.read(next, 10, 100, None).unwrap_err();
        assert_eq!(e.state().code(), "XX001");
        assert!(e.message().contains(what), "{e}");
    };
    let (path, mut r, next) = start();
    std::fs::write(&path, "1\n").unwrap();
    check(&mut *r, next, "truncated from 6 to 2 bytes");

    let (path, mut r, next) = start();
    let other = folder.write("b.csv", "1\n2\n3\n4\n");
    std::fs::rename(&other, &path).unwrap();
    check(&mut *r, next, "replaced by another file");

    let (path, mut r, next) = start();
    std::fs::remove_file(&path).unwrap();
    check(&mut *r, next, "removed or renamed");

    let (path, mut r, next) = start();
    std::fs::write(&path, "7\n8\n9\n10\n").unwrap();
    check(&mut *r, next, "bytes that were already read are different");

    // An offset from before a restart that the file no longer has.
    let (path, _, next) = start();
    std::fs::write(&path, "1\n").unwrap();
    let mut r = reader(&path, &[("format", "csv"), ("follow", "true")], &s);
    check(&mut *r, next, "it has 2 bytes and had more");
}

#[test]
fn an_endless_line_is_refused_once_it_ends() {
    let folder = Folder::new();
    let path = folder.write("a.json", "{\"id\":1}\n{\"id\":2,\"t\":\"");
    let s = schema(&[("id", "int8")]);
    let mut r = reader(&path, &[("format", "json"), ("follow", "true"), ("on_error", "skip")], &s);
    let mut at = Offset::START;
    let mut rows = 0;
    for _ in 0..6 {
        append(&path, &vec![b'x'; 4 << 20]);
        let (batch, bad, next, state) = drain(&mut *r, at, || (100, 1 << 20), None);
        rows += batch.num_rows();
        assert_eq!((bad.len(), state), (0, ReadState::CaughtUp));
        at = next;
    }
    append(&path, b"\"}\n{\"id\":3}\n");
    let (batch, bad, _, _) = drain(&mut *r, at, || (100, 1 << 20), None);
    assert_eq!((rows + batch.num_rows(), bad.len(), bad[0].line), (2, 1, 2));
}
