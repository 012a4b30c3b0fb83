//! Bad input: each is counted and shown with its place and its reason, or stops the source by name.

use std::io::Write;

use connect::{BadRecord, Offset, ReadState};

use super::*;

/// Counts what each thread has allocated, so that a test can say how much memory its reader takes.
pub struct Counting;

thread_local! {
    static LIVE: std::cell::Cell<(isize, isize)> = const { std::cell::Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends allocates after its cells are gone.
    let _ = LIVE.try_with(|live| {
        let (now, peak) = live.get();
        live.set((now + bytes, peak.max(now + bytes)));
    });
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl std::alloc::GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { std::alloc::System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: std::alloc::Layout) {
        count(-(layout.size() as isize));
        unsafe { std::alloc::System.dealloc(at, layout) }
    }
}

/// The most bytes that `work` held at a time in this thread.
fn peak(work: impl FnOnce()) -> usize {
    let before = LIVE.with(|live| {
        live.set((live.get().0, live.get().0));
        live.get().0
    });
    work();
    LIVE.with(|live| (live.get().1 - before) as usize)
}

fn errors(path: &Path, format: &str, s: &SchemaRef) -> (usize, Vec<BadRecord>) {
    let (rows, bad) = read_all(&mut *reader(path, &[("format", format)], s));
    (rows.num_rows(), bad)
}

/// Line, start, column and reason of each.
fn places(bad: &[BadRecord]) -> Vec<(u64, u64, &str, &str)> {
    bad.iter().map(|b| (b.line, b.offset.0, b.column.as_deref().unwrap_or(""), b.reason.as_str())).collect()
}

#[test]
fn a_line_of_a_hundred_megabytes_is_one_error_and_little_memory() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8"), ("t", "text")]);
    for (format, before, start, end, after) in [
        ("json", "{\"id\":1,\"t\":\"a\"}\n", "{\"id\":2,\"t\":\"", "\"}\n", "{\"id\":3,\"t\":\"c\"}\n"),
        ("csv", "1,a\n", "2,", "\n", "3,c\n"),
    ] {
        let path = folder.path("long");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
        file.write_all(before.as_bytes()).unwrap();
        file.write_all(start.as_bytes()).unwrap();
        for _ in 0..100 {
            file.write_all(&[b'x'; 1 << 20]).unwrap();
        }
        file.write_all(end.as_bytes()).unwrap();
        file.write_all(after.as_bytes()).unwrap();
        drop(file);
        for follow in ["false", "true"] {
            let held = peak(|| {
                let mut r = reader(&path, &[("format", format), ("follow", follow)], &s);
                let (rows, bad) = read_all(&mut *r);
                assert_eq!(rows.num_rows(), 2);
                let reason = "the record is longer than 16777216 bytes";
                assert_eq!(places(&bad), [(2, before.len() as u64, "", reason)]);
                assert_eq!(bad[0].bytes.len(), connect::source::BAD_RECORD_BYTES_MAX);
            });
            assert!(held < 56 << 20, "{format}, follow = {follow}: {held} bytes");
        }
    }
}

#[test]
fn broken_text_is_shown_with_its_place() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8"), ("t", "text")]);
    let path = folder.write("a.csv", b"1,a\n2,\xc3\x28\n3,b\0b\n4,\xed\xa0\x80\n5,\xf4\x90\x80\x80\n6,c\n");
    let (rows, bad) = errors(&path, "csv", &s);
    assert_eq!(rows, 2);
    assert_eq!(
        places(&bad),
        [
            (2, 4, "", "invalid UTF-8 at byte 3 of the record"),
            (3, 9, "", "a NUL character at byte 4 of the record"),
            (4, 15, "", "invalid UTF-8 at byte 3 of the record"),
            (5, 21, "", "invalid UTF-8 at byte 3 of the record"),
        ]
    );
    assert_eq!(bad[1].bytes, b"3,b\0b\n");
    let path = folder
        .write("a.json", b"{\"id\":1,\"t\":\"\xff\"}\n{\"id\":2,\"t\":\"\0\"}\n{\"id\":3,\"\xff\":1}\n{\"id\":4}\n");
    let (rows, bad) = errors(&path, "json", &s);
    assert_eq!((rows, bad.iter().map(|b| b.line).collect::<Vec<_>>()), (1, vec![1, 2, 3]));
}

#[test]
fn numbers_beyond_their_type_are_shown_with_their_column() {
    let folder = Folder::new();
    let columns =
        [("a", "int2"), ("b", "int4"), ("c", "int8"), ("d", "float4"), ("e", "float8"), ("f", "numeric(10,2)")];
    let s = schema(&columns);
    let values = ["32768", "-2147483649", "9223372036854775808", "1e39", "1e309", "100000000"];
    for format in ["csv", "json"] {
        let mut text = String::new();
        for bad in 0..=columns.len() {
            let row = |n: usize| if n == bad { values[n] } else { "1" };
            let fields: Vec<String> = match format {
                "csv" => (0..columns.len()).map(|n| row(n).to_string()).collect(),
                _ => columns.iter().enumerate().map(|(n, (name, _))| format!("\"{name}\":{}", row(n))).collect(),
            };
            let (open, close) = if format == "csv" { ("", "") } else { ("{", "}") };
            text.push_str(&format!("{open}{}{close}\n", fields.join(",")));
        }
        let (rows, bad) = errors(&folder.write("a", &text), format, &s);
        assert_eq!(rows, 1);
        let want: Vec<(u64, String, String)> = (0..columns.len())
            .map(|n| {
                let name = connect::format::sql_type_name(s.field(n).data_type());
                let reason = format!("value \"{}\" is out of range for type {name}", values[n]);
                (n as u64 + 1, columns[n].0.to_string(), reason)
            })
            .collect();
        let got: Vec<_> = bad.iter().map(|b| (b.line, b.column.clone().unwrap(), b.reason.clone())).collect();
        assert_eq!(got, want, "{format}");
    }
}

#[test]
fn dates_beyond_their_type_are_shown_with_their_column() {
    let folder = Folder::new();
    let s = schema(&[("d", "date"), ("ts", "timestamp"), ("tz", "timestamptz")]);
    // The year 99999 is a date as any other, and so is its timestamp.
    let good = "99999-12-31,99999-12-31 23:59:59,99999-12-31 23:59:59+00\n";
    let (rows, bad) = errors(&folder.write("a", good), "csv", &s);
    assert_eq!((rows, places(&bad)), (1, vec![]));
    for (column, value) in [
        ("d", "294248-01-01,,"),
        ("d", "99999999999-01-01,,"),
        ("d", "2024-02-30,,"),
        ("d", "0000-01-01,,"),
        ("ts", ",294277-01-01 00:00:00,"),
        ("ts", ",2024-01-01 25:00:00,"),
        ("tz", ",,294277-01-01 00:00:00+00"),
        ("tz", ",,2024-01-01 00:00:00+99"),
    ] {
        let (rows, bad) = errors(&folder.write("a", format!("{value}\n")), "csv", &s);
        assert_eq!((rows, bad.len()), (0, 1), "{value}");
        assert_eq!((bad[0].line, bad[0].column.as_deref()), (1, Some(column)), "{value}: {}", bad[0].reason);
    }
}

#[test]
fn a_file_that_is_truncated_while_followed_stops_by_name_and_gives_no_row_twice() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    let path = folder.write("a.csv", "1\n2\n3\n");
    let mut r = reader(&path, &[("format", "csv"), ("follow", "true")], &s);
    let first = r.read(Offset::START, 2, 100, None).unwrap();
    assert_eq!(first.batch.num_rows(), 2);
    std::fs::write(&path, "1\n").unwrap();
    // What was read ahead may still come; then it is noticed.
    let mut next = first.next;
    let error = loop {
        match r.read(next, 100, 100, None) {
            Ok(outcome) => {
                assert!(outcome.next > next, "no progress and no error");
                next = outcome.next;
            }
            Err(e) => break e,
        }
    };
    assert_eq!(error.state().code(), "XX001");
    assert!(error.message().contains("a.csv") && error.message().contains("truncated from 6 to 2 bytes"), "{error}");
    // It stays so.
    assert_eq!(r.read(next, 100, 100, None).unwrap_err(), error);
}

#[test]
fn a_followed_file_that_grows_again_after_a_rest_is_still_checked() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    let path = folder.write("a.csv", "1\n2\n");
    let mut r = reader(&path, &[("format", "csv"), ("follow", "true")], &s);
    let at = r.read(Offset::START, 10, 100, None).unwrap().next;
    let rest = r.read(at, 10, 100, None).unwrap();
    assert_eq!((rest.batch.num_rows(), rest.state), (0, ReadState::CaughtUp));
    // The same file with other bytes: its tail betrays it, though it was closed meanwhile.
    std::fs::write(&path, "7\n8\n9\n").unwrap();
    let e = r.read(at, 10, 100, None).unwrap_err();
    assert!(e.message().contains("bytes that were already read are different"), "{e}");
    // Another file of the same name, made after the first was gone.
    let path = folder.write("b.csv", "1\n2\n");
    let mut r = reader(&path, &[("format", "csv"), ("follow", "true")], &s);
    let at = r.read(Offset::START, 10, 100, None).unwrap().next;
    r.read(at, 10, 100, None).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&path, "1\n2\n3\n").unwrap();
    let e = r.read(at, 10, 100, None).unwrap_err();
    assert_eq!(e.state().code(), "XX001", "{e}");
}

#[test]
fn wrong_options_and_missing_files_are_refused_with_a_way_out() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    let path = folder.write("a.csv", "1\n");
    let refused = |path: &Path, pairs: &[(&str, &str)]| open(path, pairs, &s).err().unwrap();
    let e = refused(&path, &[("format", "csv"), ("foloww", "true")]);
    assert_eq!((e.state().code(), e.hint()), ("42704", Some("Perhaps you meant \"follow\".")));
    let e = refused(&path, &[("format", "csv"), ("s3.acces_key_id", "x")]);
    assert_eq!((e.state().code(), e.hint()), ("42704", Some("Perhaps you meant \"s3.access_key_id\".")));
    let e = refused(&path, &[("format", "parqet")]);
    assert_eq!((e.state().code(), e.hint()), ("22023", Some("Perhaps you meant 'parquet'.")));
    let e = refused(&path, &[("format", "csv"), ("s3.region", "x")]);
    assert_eq!((e.state().code(), e.detail().is_some()), ("22023", true));
    for format in ["csv", "json", "parquet"] {
        let e = refused(&folder.path("none"), &[("format", format)]);
        assert_eq!(e.state().code(), "58P01");
        assert!(e.message().contains("none"), "{e}");
        let e = refused(Path::new("none/of/these.csv"), &[("format", format)]);
        assert_eq!(e.hint(), Some("A relative path starts at the server's working directory."));
    }
}
