//! Many files: patterns and folders.

use connect::{Offset, ReadState};

use super::*;

/// Everything that a source gives now, split by split.
fn everything(source: &dyn Source) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for split in source.splits().unwrap() {
        rows.extend(table(&read_all(&mut *source.reader(&split, None).unwrap()).0));
    }
    rows
}

fn names(source: &dyn Source, folder: &Folder) -> Vec<String> {
    let root = format!("{}/", folder.path("").to_str().unwrap().trim_end_matches('/'));
    source.splits().unwrap().iter().map(|s| s.0.strip_prefix(&root).unwrap().to_string()).collect()
}

#[test]
fn a_pattern_reads_its_files_as_they_were_when_it_was_opened() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8"), ("t", "text")]);
    for (name, text) in [("b.csv", "t,id\nx,3\n"), ("a.csv", "id,t\n1,y\n2,z"), ("c.txt", "no")] {
        folder.write(name, text);
    }
    let source = open(&folder.path("*.csv"), &[("format", "csv"), ("header", "true")], &s).unwrap();
    assert!(source.bounded());
    assert_eq!(names(&*source, &folder), ["a.csv", "b.csv"]);
    // What comes later belongs to no bounded source, be it a file or a line.
    folder.write("aa.csv", "id,t\n9,late\n");
    std::fs::write(folder.path("a.csv"), "id,t\n1,y\n2,zz\n3,more\n").unwrap();
    assert_eq!(names(&*source, &folder), ["a.csv", "b.csv"]);
    assert_eq!(everything(&*source), strings(&[&["1", "y"], &["2", "z"], &["3", "x"]]));
    let size: u64 = source.splits().unwrap().iter().map(|s| source.size(s)).sum();
    assert_eq!(size, 21);
    // The same through a folder.
    let again = open(&folder.path(""), &[("format", "csv"), ("header", "true")], &s);
    assert!(again.err().unwrap().detail().unwrap().contains("c.txt"), "the header of each file is checked");
}

#[test]
fn a_pattern_that_finds_nothing_is_refused_unless_files_may_come() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    let e = open(&folder.path("*.json"), &[("format", "json")], &s).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("58P01", true));
    let infer = |pairs: &[(&str, &str)]| {
        connect::source("file").unwrap().infer_schema(&options(&folder.path("*.json"), pairs), 10)
    };
    assert_eq!(infer(&[("format", "json")]).unwrap_err().state().code(), "58P01");
    let e = infer(&[("format", "json"), ("follow", "true")]).unwrap_err();
    assert_eq!((e.state().code(), e.hint()), ("58P01", Some("Declare the columns to wait for files.")));
    let waiting = open(&folder.path("*.json"), &[("format", "json"), ("follow", "true")], &s).unwrap();
    assert_eq!(waiting.splits().unwrap(), []);
    folder.write("a.json", "{\"id\":1}\n");
    assert_eq!(names(&*waiting, &folder), ["a.json"]);
    assert_eq!(everything(&*waiting), strings(&[&["1"]]));
}

#[test]
fn columns_are_inferred_from_the_first_file_that_shows_some() {
    let folder = Folder::new();
    folder.write("a.json", "");
    folder.write("b.json", "{\"Id\":1}\n");
    folder.write("c.json", "{\"other\":true}\n");
    let options = options(&folder.path("*.json"), &[("format", "json")]);
    let s = connect::source("file").unwrap().infer_schema(&options, 10).unwrap();
    assert_eq!(s.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["id"]);
}

#[test]
fn new_files_are_found_while_following_and_old_ones_grow() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    folder.write("m.json", "{\"id\":1}\n");
    let source = open(&folder.path("*.json"), &[("format", "json"), ("follow", "true")], &s).unwrap();
    let mut reader = source.reader(&split(&folder.path("m.json")), None).unwrap();
    let mut next = |at: u64| {
        let outcome = reader.read(Offset(at), 10, 100, None).unwrap();
        assert_eq!(outcome.state, ReadState::CaughtUp);
        (table(&outcome.batch), outcome.next.0)
    };
    assert_eq!(next(0), (strings(&[&["1"]]), 9));
    folder.write("a.json", "{\"id\":2}\n{\"id\"");
    assert_eq!(names(&*source, &folder), ["a.json", "m.json"]);
    std::fs::OpenOptions::new()
        .append(true)
        .open(folder.path("m.json"))
        .and_then(|mut f| std::io::Write::write_all(&mut f, b"{\"id\":3}\n"))
        .unwrap();
    assert_eq!(next(9), (strings(&[&["3"]]), 18));
    assert_eq!(next(18), (strings(&[]), 18));
    assert_eq!(everything(&*source), strings(&[&["2"], &["1"], &["3"]]));
}

#[test]
fn a_followed_file_that_is_replaced_or_removed_stops_the_source_by_name() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    let start = || {
        folder.write("a.csv", "1\n");
        folder.write("b.csv", "2\n");
        let source = open(&folder.path("*.csv"), &[("format", "csv"), ("follow", "true")], &s).unwrap();
        assert_eq!(everything(&*source).len(), 2);
        source
    };
    let check = |e: flow::Error, what: &str| {
        assert_eq!(e.state().code(), "XX001");
        assert!(e.message().contains("b.csv") && e.message().contains(what), "{e}");
    };
    let source = start();
    std::fs::remove_file(folder.path("b.csv")).unwrap();
    check(source.splits().unwrap_err(), "removed");
    check(source.reader(&split(&folder.path("b.csv")), None).err().unwrap(), "removed");

    let source = start();
    std::fs::rename(folder.write("x", "2\n3\n"), folder.path("b.csv")).unwrap();
    check(source.splits().unwrap_err(), "replaced");
    check(source.reader(&split(&folder.path("b.csv")), None).err().unwrap(), "replaced");

    let source = start();
    std::fs::write(folder.path("b.csv"), "").unwrap();
    check(source.reader(&split(&folder.path("b.csv")), None).err().unwrap(), "truncated");

    // A bounded source pins its files too.
    folder.write("b.csv", "2\n");
    let source = open(&folder.path("*.csv"), &[("format", "csv")], &s).unwrap();
    std::fs::rename(folder.write("x", "2\n3\n"), folder.path("b.csv")).unwrap();
    check(source.reader(&split(&folder.path("b.csv")), None).err().unwrap(), "replaced");
}

#[test]
fn a_folder_without_a_slash_and_a_broken_pattern_are_refused_with_a_hint() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    std::fs::create_dir(folder.path("d")).unwrap();
    let e = open(&folder.path("d"), &[("format", "csv")], &s).err().unwrap();
    assert_eq!(e.state().code(), "42809");
    assert_eq!(e.hint().unwrap(), format!("Write '{}/' for all of its files.", folder.path("d").display()));
    let e = open(&folder.path("[.csv"), &[("format", "csv")], &s).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("22023", true));
}

#[test]
fn a_thousand_idle_files_hold_neither_handles_nor_buffers() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8"), ("t", "text")]);
    for n in 0..1000 {
        folder.write(&format!("{n:04}.csv"), format!("{n},x\n").repeat(100));
    }
    let source = open(&folder.path("*.csv"), &[("format", "csv"), ("follow", "true")], &s).unwrap();
    let handles = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = handles();
    let mut readers = Vec::new();
    for split in source.splits().unwrap() {
        let mut reader = source.reader(&split, None).unwrap();
        let outcome = reader.read(Offset::START, 8192, 1 << 20, None).unwrap();
        assert_eq!((outcome.batch.num_rows(), outcome.state), (100, ReadState::CaughtUp));
        readers.push(reader);
    }
    // Other tests of this process open files meanwhile.
    assert!(handles() < before + 500, "{} handles, {before} before", handles());
}
