use std::sync::atomic::AtomicUsize;

use super::*;
use crate::disk::SystemDisk;
use crate::log::Log;

/// A segment as version 1 had it.
const MAGIC_1: &[u8; 8] = b"MSLOG\x00\x00\x01";

fn records(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let mut seen = Vec::new();
    Log::open(folder, |r| {
        seen.push(r.to_vec());
        Ok(())
    })?;
    Ok(seen)
}

fn segment(folder: &Path) -> PathBuf {
    let mut all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let found = all.find(|p| p.extension().is_some_and(|e| e == "log")).unwrap();
    assert!(all.next().is_none(), "one segment is left");
    found
}

/// A folder with a log that has these records, of which `synced` were synced in one go. Returns the whole file, without what was
/// taken in advance, and where each record begins.
fn written(all: &[&[u8]], synced: usize) -> (tempfile::TempDir, Vec<u8>, Vec<u64>) {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), |_| Ok(())).unwrap();
    let mut starts = Vec::new();
    for (n, record) in all.iter().enumerate() {
        starts.push(log.len());
        log.append(&[record]).unwrap();
        if n + 1 == synced {
            log.sync().unwrap();
        }
    }
    let end = log.len() as usize + HEADER_BYTES;
    drop(log);
    let mut bytes = fs::read(segment(folder.path())).unwrap();
    bytes.truncate(end);
    (folder, bytes, starts)
}

#[test]
fn what_was_synced_is_read_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), |_| panic!("empty")).unwrap();
    for i in 0..1000u32 {
        log.append(&[b"record ", &i.to_le_bytes()]).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    let seen = records(folder.path()).unwrap();
    assert_eq!(seen.len(), 1000);
    assert_eq!(seen[999], [b"record ".as_slice(), &999u32.to_le_bytes()].concat());
    assert_eq!(records(folder.path()).unwrap(), seen);
}

#[test]
fn torn_tail_is_dropped_at_every_byte() {
    let (folder, whole, starts) = written(&[b"first", b"second record"], 1);
    let (path, end) = (segment(folder.path()), whole.len() - HEADER_BYTES);
    for cut in starts[1] as usize..end {
        fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(records(folder.path()).unwrap(), vec![b"first".to_vec()], "cut at {cut}");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(records(folder.path()).unwrap().len(), 2);
}

/// Also in the last record, and in what says how long a record is: nothing that was acknowledged is dropped.
#[test]
fn a_flipped_bit_in_what_was_synced_refuses_to_open_wherever_it_is() {
    for synced in 1..=3 {
        let (folder, whole, starts) = written(&[b"first", b"the second", b"and a third one"], synced);
        let path = segment(folder.path());
        let end = starts.get(synced).map_or(whole.len() - HEADER_BYTES, |start| *start as usize);
        for byte in MAGIC.len()..end {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << (byte % 8);
            fs::write(&path, &bytes).unwrap();
            let refused = records(folder.path()).expect_err(&format!("byte {byte} of {end}"));
            assert_eq!(refused.state(), SqlState::DataCorrupted);
            assert_eq!(fs::read(&path).unwrap(), bytes, "nothing is changed");
        }
    }
}

/// A sector of zeros in the middle is no end of the log.
#[test]
fn a_hole_in_what_was_synced_refuses_to_open() {
    let (folder, whole, starts) = written(&[b"first", b"the second", b"and a third one"], 3);
    let mut bytes = whole.clone();
    bytes[starts[1] as usize..starts[2] as usize].fill(0);
    fs::write(segment(folder.path()), &bytes).unwrap();
    assert_eq!(records(folder.path()).unwrap_err().state(), SqlState::DataCorrupted);
}

/// Nobody was told of them, and a disk writes in any order.
#[test]
fn unsynced_records_that_came_to_the_disk_without_one_before_them_are_dropped() {
    let (folder, whole, starts) = written(&[b"first", b"the second", b"and a third one"], 1);
    let path = segment(folder.path());
    for (from, to) in [(starts[1], starts[2]), (starts[1], starts[1] + 3), (starts[2] - 4, starts[2])] {
        let mut bytes = whole.clone();
        bytes[from as usize..to as usize].fill(0);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(records(folder.path()).unwrap(), vec![b"first".to_vec()], "without {from}..{to}");
    }
}

/// The power went before the mark reached the disk: a damaged record of the last sync passes for a torn one, no other does.
#[test]
fn without_the_mark_only_the_last_sync_can_be_taken_for_a_torn_tail() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), |_| Ok(())).unwrap();
    let mut starts = Vec::new();
    for record in [&b"first"[..], b"the second", b"and a third one"] {
        starts.push(log.len() as usize);
        log.append(&[record]).unwrap();
        log.sync().unwrap();
    }
    let end = log.len() as usize;
    drop(log);
    let path = segment(folder.path());
    let whole = fs::read(&path).unwrap()[..end].to_vec();
    for (n, start) in starts.iter().enumerate() {
        let mut bytes = whole.clone();
        bytes[start + HEADER_BYTES] ^= 1;
        fs::write(&path, &bytes).unwrap();
        match n {
            2 => assert_eq!(records(folder.path()).unwrap().len(), 2),
            _ => assert_eq!(records(folder.path()).unwrap_err().state(), SqlState::DataCorrupted, "record {n}"),
        }
    }
}

#[test]
fn a_segment_of_version_1_is_read_by_its_rules_and_written_anew() {
    let record = |payload: &[u8]| {
        let head = [(payload.len() as u32).to_le_bytes(), crc32fast::hash(payload).to_le_bytes()].concat();
        [head, payload.to_vec()].concat()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0000000007.log");
    let whole = [MAGIC_1.to_vec(), record(b"first"), record(b"second"), vec![0; 100]].concat();
    fs::write(&path, &whole).unwrap();
    let mut seen = 0;
    let (looked, _) = Log::look(folder.path(), |_| {
        seen += 1;
        Ok(())
    })
    .unwrap()
    .unwrap();
    assert_eq!((looked, seen, fs::read(&path).unwrap()), (path.clone(), 2, whole.clone()));
    // Damage before a whole record.
    let mut bytes = whole.clone();
    bytes[MAGIC_1.len() + 8] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(records(folder.path()).unwrap_err().state(), SqlState::DataCorrupted);
    fs::write(&path, &whole).unwrap();
    let log = Log::open(folder.path(), |_| Ok(())).unwrap();
    log.append(&[b"third"]).unwrap();
    log.sync().unwrap();
    drop(log);
    assert_eq!(segment(folder.path()), folder.path().join("0000000008.log"));
    assert_eq!(records(folder.path()).unwrap(), [b"first".to_vec(), b"second".to_vec(), b"third".to_vec()]);
    assert_eq!(fs::read(segment(folder.path())).unwrap()[..8], MAGIC[..]);
}

#[test]
fn a_segment_of_a_newer_version_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("0000000001.log"), b"MSLOG\x00\x00\x09").unwrap();
    let refused = records(folder.path()).unwrap_err();
    assert_eq!(refused.state(), SqlState::DataCorrupted);
    assert!(refused.message().contains("format version 9") && refused.hint().unwrap().contains("newer program"));
}

#[test]
fn a_rewritten_log_holds_what_it_was_given_and_what_came_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), |_| Ok(())).unwrap();
    for _ in 0..10 {
        log.append(&[b"old"]).unwrap();
    }
    let until = log.end();
    log.append(&[b"meanwhile"]).unwrap();
    let mut rewrite = log.begin_rewrite().unwrap();
    assert_eq!(log.records(until).unwrap().map(|r| r.unwrap()).collect::<Vec<_>>(), vec![b"old".to_vec(); 10]);
    rewrite.append(b"new").unwrap();
    let from = rewrite.copy(&log, until, 1).unwrap();
    assert_eq!(log.bytes_after(from), 0);
    log.append(&[b"later"]).unwrap();
    rewrite.sync().unwrap();
    rewrite.take_place(&log, from).unwrap();
    assert!(log.records(until).is_err());
    log.append(&[b"newer"]).unwrap();
    log.sync().unwrap();
    drop(log);
    let expected = [&b"new"[..], b"meanwhile", b"later", b"newer"].map(|r| r.to_vec());
    assert_eq!(records(folder.path()).unwrap(), expected);
    segment(folder.path());
}

#[test]
fn a_rewrite_that_is_given_up_leaves_the_log_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), |_| Ok(())).unwrap();
    log.append(&[b"old"]).unwrap();
    let mut rewrite = log.begin_rewrite().unwrap();
    rewrite.append(b"new").unwrap();
    drop(rewrite);
    log.sync().unwrap();
    drop(log);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(records(folder.path()).unwrap(), [b"old".to_vec()]);
}

/// A sync of the old segment that ends after the change says nothing of the new one.
#[test]
fn records_that_are_appended_while_the_log_is_replaced_are_synced_by_their_own_sync() {
    /// Counts syncs.
    #[derive(Default)]
    struct Counted(AtomicUsize);
    impl Disk for Counted {
        fn allocate(&self, file: &File, from: u64, bytes: u64) -> std::io::Result<()> {
            SystemDisk.allocate(file, from, bytes)
        }
        fn write(&self, file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
            SystemDisk.write(file, bytes, at)
        }
        fn sync(&self, file: &File) -> std::io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            SystemDisk.sync(file)
        }
    }
    let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::new(Counted::default()));
    let log = Log::open_on(disk.clone(), folder.path(), |_| Ok(())).unwrap();
    for _ in 0..1000 {
        log.append(&[b"overwritten by what comes later"]).unwrap();
    }
    log.sync().unwrap();
    let rewrite = log.begin_rewrite().unwrap();
    rewrite.take_place(&log, log.end()).unwrap();
    // The new segment is much shorter than what the old one was durable to.
    log.append(&[b"new"]).unwrap();
    let before = disk.0.load(Ordering::SeqCst);
    log.sync().unwrap();
    assert_eq!(disk.0.load(Ordering::SeqCst), before + 1);
}

#[test]
fn who_asked_is_told_once_that_the_log_has_failed() {
    use crate::faulty::disk::FaultyDisk;

    let (folder, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::new());
    let log = Log::open_on(disk.clone(), folder.path(), |_| Ok(())).unwrap();
    let told: Arc<Mutex<Vec<Error>>> = Arc::default();
    let tell = Arc::clone(&told);
    log.on_failure(Box::new(move |error| tell.lock().unwrap().push(error.clone())));
    log.append(&[b"first"]).unwrap();
    disk.fail_next_sync();
    assert_eq!(log.sync().unwrap_err().state(), SqlState::IoError);
    assert!(log.sync().is_err() && log.append(&[b"second"]).is_err() && log.begin_rewrite().is_err());
    assert_eq!(told.lock().unwrap().len(), 1);
}

/// Whatever moment it dies at, the next start finds what was acknowledged, and one segment.
#[cfg(debug_assertions)]
#[test]
fn a_crash_at_any_point_of_a_rewrite_leaves_the_old_log_or_the_new_one() {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use crate::crash;

    for point in ["L1", "L2", "L3"] {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), |_| Ok(())).unwrap();
        log.append(&[b"old"]).unwrap();
        let until = log.end();
        log.append(&[b"acknowledged"]).unwrap();
        log.sync().unwrap();
        let mut rewrite = log.begin_rewrite().unwrap();
        rewrite.append(b"new").unwrap();
        crash::simulate(Some(Box::new(move |name| {
            if name == point {
                resume_unwind(Box::new(()));
            }
        })));
        let died = catch_unwind(AssertUnwindSafe(|| rewrite.take_place(&log, until)));
        crash::simulate(None);
        assert!(died.is_err(), "{point} is not reached");
        drop(log);
        let first = if point == "L1" { &b"old"[..] } else { b"new" };
        assert_eq!(records(folder.path()).unwrap(), [first.to_vec(), b"acknowledged".to_vec()], "{point}");
        segment(folder.path());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{point}");
    }
}
