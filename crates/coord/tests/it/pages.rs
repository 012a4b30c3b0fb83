//! What the documentation shows is run: every block of SQL, over the files that the page shows, and what it says comes out.
//!
//! The word after the three backquotes says what a block is:
//! ` ```sql ` statements that succeed, ` ```sql error ` at least one of them fails, ` ```sql no-run ` not run; ` ```text in=NAME ` a
//! file that is there before the page begins, ` ```text out=NAME ` what a sink has written then, ` ```text result ` the rows
//! of the last query. Numbers of epochs and times of writing are not compared.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{Answer, Instance, ok, render, run, scratch};
use crate::page_blocks::blocks;

/// `text` with `N` in place of the numbers that differ from run to run.
fn without_moments(text: &str) -> String {
    let mut out = text.to_string();
    for before in ["\"epoch\":", "\"ts_ms\":", "upsert,", "delete,", "insert,"] {
        let mut parts = out.split(before);
        let mut next = parts.next().unwrap_or("").to_string();
        for part in parts {
            next.push_str(before);
            next.push('N');
            next.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
        }
        out = next;
    }
    out
}

/// What a page takes for granted.
fn fixture(name: &str) -> (&'static str, &'static [(&'static str, &'static str)]) {
    match name {
        "stdout.md" | "blackhole.md" => ("CREATE TABLE totals (customer text PRIMARY KEY, total numeric)", &[]),
        "README.md" => ("", &[("clicks.ndjson", "{\"usr\":\"a\",\"page\":\"/\",\"at\":\"2026-01-01 00:00:00\"}\n")]),
        _ => ("", &[]),
    }
}

/// Runs a page. Returns the blocks of SQL that ran, and the blocks of text that were compared.
async fn run_page(path: &Path) -> (usize, usize) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    let blocks = blocks(&page);
    let folder = scratch();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let (before, files) = fixture(name);
    for (name, text) in files {
        std::fs::write(file(name), text).unwrap();
    }
    for block in &blocks {
        if let Some(name) = block.word.strip_prefix("in=") {
            std::fs::write(file(name), &block.text).unwrap();
        }
    }
    let instance = Instance::open(&file("data"), 2, 8192);
    let mut s = instance.session();
    if !before.is_empty() {
        ok(&mut s, before).await;
    }
    let (mut ran, mut compared) = (0, 0);
    let mut last: Vec<String> = Vec::new();
    for block in &blocks {
        let place = format!("{name}, line {}", block.line);
        match (block.language.as_str(), block.word.as_str()) {
            ("sql", "no-run") => {}
            ("sql", word @ ("" | "error")) => {
                ran += 1;
                let text = block.text.replace("path = '", &format!("path = '{}/", folder.path().display()));
                let mut failures = Vec::new();
                // One at a time, and each in epochs of its own, as a person types.
                let statements: Vec<String> = s.parse(&text).unwrap().into_iter().map(|p| p.text.to_string()).collect();
                for statement in statements {
                    match run(&mut s, &statement).await {
                        Ok(Answer::Rows(_, batches)) => {
                            last = batches.iter().flat_map(render).map(|row| row.join(" | ")).collect();
                        }
                        Ok(Answer::Tag(_)) => {}
                        Err(e) => failures.push(format!("{statement}\n{e} {:?} {:?}", e.detail(), e.hint())),
                    }
                    if s.transaction_status() == coord::session::transaction::Status::Idle {
                        ok(&mut s, "FLUSH").await;
                    }
                }
                assert_eq!(failures.is_empty(), word.is_empty(), "{place}: {failures:#?}");
            }
            ("text", "result") => {
                compared += 1;
                assert_eq!(last.join("\n"), block.text.trim_end(), "{place}");
            }
            ("text", word) if word.starts_with("out=") => {
                compared += 1;
                let written = || std::fs::read_to_string(file(&word["out=".len()..])).unwrap_or_default();
                for _ in 0..500 {
                    if without_moments(&written()) == without_moments(&block.text) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                assert_eq!(without_moments(&written()), without_moments(&block.text), "{place}");
            }
            ("text", word) if word.is_empty() || word.starts_with("in=") => {}
            ("sh", "") => {}
            (language, word) => panic!("{place}: a block of {language} {word} is not known"),
        }
    }
    instance.close().await;
    (ran, compared)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pages_show_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let connectors = std::fs::read_dir(root.join("docs/connectors")).unwrap();
    let mut pages: Vec<PathBuf> = connectors.map(|entry| entry.unwrap().path()).collect();
    pages.extend([root.join("docs/sql.md"), root.join("README.md")]);
    pages.sort();
    let (mut ran, mut compared) = (0, 0);
    for page in &pages {
        let (some, more) = run_page(page).await;
        assert!(some > 0, "{} shows nothing that can be run", page.display());
        (ran, compared) = (ran + some, compared + more);
    }
    assert!(ran >= 14 && compared >= 8, "{ran} blocks were run and {compared} compared on {} pages", pages.len());
}

#[test]
fn blocks_are_found_and_moments_left_out() {
    let page = "a\n```sql\nSELECT 1;\n```\n```text out=f\nupsert,12,3\n{\"epoch\":7,\"x\":7}\n```\n";
    let blocks = blocks(page);
    let found: Vec<(usize, &str, &str)> = blocks.iter().map(|b| (b.line, &b.language[..], &b.word[..])).collect();
    assert_eq!(found, [(2, "sql", ""), (5, "text", "out=f")]);
    assert_eq!(without_moments(&blocks[1].text), "upsert,N,3\n{\"epoch\":N,\"x\":7}\n");
}
