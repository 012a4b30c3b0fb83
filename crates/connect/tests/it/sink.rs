//! The file sink's modes.

use std::collections::BTreeMap;

use arrow::array::{Int64Array, StringViewArray};
use connect::{SinkRequest, SinkWriter};
use flow::{ChangeBatch, Diff, Epoch};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

fn columns() -> SchemaRef {
    schema(&[("id", "int8"), ("t", "text")])
}

fn changes(rows: &[(i64, &str, i64)]) -> ChangeBatch {
    let ids = Int64Array::from_iter_values(rows.iter().map(|r| r.0));
    let texts = StringViewArray::from_iter_values(rows.iter().map(|r| r.1));
    let batch = RecordBatch::try_new(columns(), vec![Arc::new(ids), Arc::new(texts)]).unwrap();
    ChangeBatch::new(batch, Diff::from_weights(rows.iter().map(|r| r.2).collect()))
}

fn sink(path: &Path, pairs: &[(&str, &str)], append_only: bool) -> flow::Result<Box<dyn SinkWriter>> {
    let options = options(path, pairs);
    let request = SinkRequest {
        options: &options,
        schema: columns(),
        append_only,
        keys: &[],
        relation: "r",
        identity: "",
        attempt: 0,
    };
    let connector = connect::sink("file").unwrap();
    connector.validate(&request)?;
    connector.open(&request)
}

fn content(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn append_adds_rows_epoch_by_epoch_and_starts_anew() {
    let folder = Folder::new();
    let path = folder.write("out.csv", "something old\n");
    let mut writer = sink(&path, &[("format", "csv")], true).unwrap();
    assert_eq!(content(&path), "id,t\n");
    writer.write(Epoch(1), &changes(&[(1, "a", 1), (2, "b,c", 2)])).unwrap();
    assert_eq!(content(&path), "id,t\n");
    writer.finish_epoch(Epoch(1), 0).unwrap();
    assert_eq!(content(&path), "id,t\n1,a\n2,\"b,c\"\n2,\"b,c\"\n");
    writer.write(Epoch(2), &changes(&[(3, "", 1)])).unwrap();
    writer.close().unwrap();
    assert_eq!(content(&path), "id,t\n1,a\n2,\"b,c\"\n2,\"b,c\"\n", "an unfinished epoch is not published");
    let mut writer = sink(&path, &[("format", "csv"), ("header", "false")], true).unwrap();
    writer.write(Epoch(3), &changes(&[(3, "", 1)])).unwrap();
    writer.finish_epoch(Epoch(3), 0).unwrap();
    assert_eq!(content(&path), "3,\"\"\n");
    assert_eq!(writer.write(Epoch(4), &changes(&[(3, "", -1)])).unwrap_err().state().code(), "0A000");
}

#[test]
fn changes_carry_their_direction_and_epoch() {
    let folder = Folder::new();
    let path = folder.path("out.json");
    let mut writer = sink(&path, &[("format", "json"), ("mode", "changes")], false).unwrap();
    writer.write(Epoch(5), &changes(&[(1, "a", 1)])).unwrap();
    writer.finish_epoch(Epoch(5), 0).unwrap();
    writer.write(Epoch(6), &changes(&[(1, "a", -1), (1, "b", 1)])).unwrap();
    writer.finish_epoch(Epoch(6), 0).unwrap();
    assert_eq!(
        content(&path),
        "{\"op\":\"insert\",\"epoch\":5,\"id\":1,\"t\":\"a\"}\n{\"op\":\"delete\",\"epoch\":6,\"id\":1,\"t\":\"a\"}\n{\"op\":\"insert\",\"epoch\":6,\"id\":1,\"t\":\"b\"}\n"
    );
}

#[test]
fn a_snapshot_file_is_the_whole_result_of_one_epoch() {
    let mut rng = SmallRng::seed_from_u64(31);
    let folder = Folder::new();
    let path = folder.path("out.csv");
    let pairs = [("format", "csv"), ("mode", "snapshot"), ("flush_interval", "10ms")];
    let mut writer = sink(&path, &pairs, false).unwrap();
    assert_eq!(content(&path), "id,t\n");
    let show = |rows: &BTreeMap<(i64, String), i64>| {
        let lines = rows.iter().flat_map(|((id, t), n)| std::iter::repeat_n(format!("{id},{t}\n"), *n as usize));
        std::iter::once("id,t\n".to_string()).chain(lines).collect::<String>()
    };
    let mut rows: BTreeMap<(i64, String), i64> = BTreeMap::new();
    let mut shown = BTreeMap::from([(0, show(&rows))]);
    let mut replaced = 0;
    let mut now_us = 0;
    let mut last_flush = i64::MIN;
    for epoch in 1..300u64 {
        now_us += rng.random_range(0..4_000);
        let mut batch = Vec::new();
        for _ in 0..rng.random_range(0..6) {
            let key = (rng.random_range(-5..5), format!("t{}", rng.random_range(0..3)));
            let have = rows.get(&key).copied().unwrap_or(0);
            let weight = rng.random_range(-have..3);
            if weight != 0 {
                *rows.entry(key.clone()).or_insert(0) += weight;
                batch.push((key.0, key.1, weight));
            }
        }
        rows.retain(|_, n| *n != 0);
        shown.insert(epoch, show(&rows));
        // Deletions may come before the insertions that they need.
        batch.sort_by_key(|c| c.2);
        let batch: Vec<(i64, &str, i64)> = batch.iter().map(|(i, t, w)| (*i, t.as_str(), *w)).collect();
        if !batch.is_empty() {
            writer.write(Epoch(epoch), &changes(&batch)).unwrap();
        }
        if rng.random_range(0..20) == 0 {
            // A flush in the middle of an epoch shows the one before.
            if writer.next_flush_us().is_some() {
                last_flush = now_us;
            }
            writer.flush(now_us).unwrap();
            assert_eq!(content(&path), shown[&(epoch - 1)]);
        }
        let before = content(&path);
        writer.finish_epoch(Epoch(epoch), now_us).unwrap();
        let after = content(&path);
        assert_eq!(after, shown[&writer.published().0], "the file is the result of the epoch it claims");
        if after != before && writer.published().0 == epoch {
            assert!(last_flush == i64::MIN || now_us - last_flush >= 10_000);
            last_flush = now_us;
            replaced += 1;
        }
        assert_eq!(writer.next_flush_us().is_none(), writer.published().0 == epoch);
    }
    assert!((20..200).contains(&replaced), "{replaced} replacements");
    writer.close().unwrap();
    assert_eq!(content(&path), show(&rows));
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn taking_away_what_is_not_there_stops_a_snapshot_sink() {
    let folder = Folder::new();
    let path = folder.path("out.csv");
    let mut writer = sink(&path, &[("format", "csv")], false).unwrap();
    writer.write(Epoch(1), &changes(&[(1, "a", -1)])).unwrap();
    writer.write(Epoch(1), &changes(&[(1, "a", 1)])).unwrap();
    writer.finish_epoch(Epoch(1), 0).unwrap();
    writer.write(Epoch(2), &changes(&[(1, "a", -1)])).unwrap();
    assert_eq!(writer.finish_epoch(Epoch(2), 0).unwrap_err().state().code(), "XX000");
    assert_eq!(content(&path), "id,t\n");
}

#[test]
fn the_mode_follows_the_input_and_a_wrong_one_is_refused() {
    let folder = Folder::new();
    let path = folder.path("out.csv");
    let read = |pairs: &[(&str, &str)]| connect::file::FileSinkOptions::read(&options(&path, pairs)).unwrap();
    use connect::file::SinkMode::*;
    assert_eq!(read(&[("format", "csv")]).mode_for(true), Ok(Append));
    assert_eq!(read(&[("format", "csv")]).mode_for(false), Ok(Snapshot));
    assert_eq!(read(&[("format", "csv"), ("mode", "changes")]).mode_for(true), Ok(Changes));
    let e = sink(&path, &[("format", "csv"), ("mode", "append")], false).err().unwrap();
    assert_eq!(e.state().code(), "0A000");
    assert!(e.hint().unwrap().contains("snapshot"));
    assert_eq!(
        sink(&folder.path("no/such/out.csv"), &[("format", "csv")], true).err().unwrap().state().code(),
        "58P01"
    );
    assert_eq!(sink(folder.0.path(), &[("format", "csv")], true).err().unwrap().state().code(), "42809");
    let taken = schema(&[("op", "text")]);
    let options = options(&path, &[("format", "csv"), ("mode", "changes")]);
    let request = SinkRequest {
        options: &options,
        schema: taken,
        append_only: true,
        keys: &[],
        relation: "r",
        identity: "",
        attempt: 0,
    };
    assert_eq!(connect::sink("file").unwrap().validate(&request).unwrap_err().state().code(), "42701");
    assert!(!path.exists(), "a refused sink leaves no file");
    // A device must never be replaced by a file.
    let e = sink(Path::new("/dev/null"), &[("format", "csv"), ("mode", "snapshot")], false).err().unwrap();
    assert_eq!(e.state().code(), "42809");
}

#[test]
fn what_was_spilled_of_an_unfinished_epoch_is_taken_back_at_the_end() {
    let folder = Folder::new();
    let path = folder.path("out.csv");
    let mut writer = sink(&path, &[("format", "csv")], true).unwrap();
    writer.write(Epoch(1), &changes(&[(1, "a", 1)])).unwrap();
    writer.finish_epoch(Epoch(1), 0).unwrap();
    let long = "x".repeat(3 << 20);
    writer.write(Epoch(2), &changes(&[(2, &long, 1)])).unwrap();
    assert!(content(&path).len() > long.len());
    writer.close().unwrap();
    assert_eq!(content(&path), "id,t\n1,a\n");
}

#[test]
fn a_symbolic_link_stays_when_its_file_is_replaced() {
    let folder = Folder::new();
    let (path, link) = (folder.write("real.csv", ""), folder.path("link.csv"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut writer = sink(&link, &[("format", "csv")], false).unwrap();
    writer.write(Epoch(1), &changes(&[(1, "a", 1)])).unwrap();
    writer.finish_epoch(Epoch(1), 0).unwrap();
    assert_eq!(content(&path), "id,t\n1,a\n");
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn a_full_disk_is_53100_and_leaves_whole_lines() {
    let full = Path::new("/dev/full");
    if full.exists() {
        let e = sink(full, &[("format", "csv")], true).err().unwrap();
        assert_eq!(e.state().code(), "53100");
    }
}

#[test]
fn a_blackhole_takes_everything() {
    let options = Options::new([("connector", "blackhole")]).unwrap();
    let request = SinkRequest {
        options: &options,
        schema: columns(),
        append_only: false,
        keys: &[],
        relation: "r",
        identity: "",
        attempt: 0,
    };
    let mut writer = connect::sink("blackhole").unwrap().open(&request).unwrap();
    writer.write(Epoch(1), &changes(&[(1, "a", -1), (2, "b", 3)])).unwrap();
    writer.finish_epoch(Epoch(1), 0).unwrap();
    assert_eq!((writer.rows_written(), writer.published()), (2, Epoch(1)));
    let odd = Options::new([("connector", "blackhole"), ("path", "x")]).unwrap();
    let request = SinkRequest {
        options: &odd,
        schema: columns(),
        append_only: false,
        keys: &[],
        relation: "r",
        identity: "",
        attempt: 0,
    };
    assert_eq!(connect::sink("blackhole").unwrap().validate(&request).unwrap_err().state().code(), "42704");
}
