//! The files of `sql-tests` and what they demand. Also read by the tests of the server.

use std::path::{Path, PathBuf};

use sqllogictest::{Condition, DefaultColumnType, QueryExpect, Record};

/// Who runs the files, as `onlyif` and `skipif` say it.
pub const LABEL: &str = "millstream";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sql-tests")
}

/// Files under `sql-tests`, sorted; only those whose path contains `MILLSTREAM_SLT`, if that is set.
pub fn files() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "slt") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&folder(), &mut found);
    let only = std::env::var("MILLSTREAM_SLT").unwrap_or_default();
    found.retain(|f| f.to_string_lossy().contains(&only));
    found.sort();
    found
}

/// A file's folder and name, as `known_differences.txt` writes them.
pub fn name_of(path: &Path) -> String {
    let parts = path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned());
    parts.collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("/")
}

/// Files that do not pass yet, from `sql-tests/known_differences.txt`: one a line, `#` starts a comment.
pub fn known_differences() -> Vec<String> {
    let text = std::fs::read_to_string(folder().join("known_differences.txt")).unwrap_or_default();
    let lines = text.lines().map(|l| l.split('#').next().unwrap_or_default().trim());
    lines.filter(|l| !l.is_empty()).map(str::to_string).collect()
}

/// A query that must also hold as a view: its text and sorted rows.
pub struct Standing {
    pub sql: String,
    pub expected: Vec<String>,
    pub line: u32,
}

/// The standing queries of a file, which are those not marked `# batch only`.
pub fn standing_queries(path: &Path) -> Vec<Standing> {
    let records: Vec<Record<DefaultColumnType>> = sqllogictest::parse_file(path).unwrap();
    let mut found = Vec::new();
    let mut batch_only = false;
    for record in records {
        match record {
            Record::Comment(lines) => batch_only |= lines.iter().any(|l| l.trim() == "batch only"),
            Record::Connection(_) | Record::Newline | Record::Condition(_) => {}
            Record::Query { sql, expected: QueryExpect::Results { results, .. }, loc, conditions, .. } => {
                if !batch_only && runs(&conditions) {
                    let mut expected = results;
                    expected.sort();
                    found.push(Standing { sql, expected, line: loc.line() });
                }
                batch_only = false;
            }
            _ => batch_only = false,
        }
    }
    found
}

/// Whether a record under these conditions is for us.
pub fn runs(conditions: &[Condition]) -> bool {
    conditions.iter().all(|c| match c {
        Condition::OnlyIf { label } => label == LABEL,
        Condition::SkipIf { label } => label != LABEL,
    })
}

/// Rendered rows as they are compared: white space does not count, nor does the order.
pub fn normal(rows: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut rows: Vec<String> =
        rows.into_iter().map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    rows.sort();
    rows
}
