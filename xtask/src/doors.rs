//! The door test: who may use whom, compared with `cargo metadata`.
//!
//! A crate may use what stands in its row and whatever those crates may use. Crates below the line of DataFusion must not
//! reach it by any path.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// crate, what it may use directly (and, through it, what that may use).
const TABLE: &[(&str, &[&str])] = &[
    ("flow", &[]),
    ("checkpoint", &["flow"]),
    ("state", &["checkpoint"]),
    ("catalog", &["checkpoint"]),
    ("plan", &["flow"]),
    ("sql", &["plan", "catalog"]),
    ("runtime", &["plan", "state"]),
    ("connect", &["checkpoint"]),
    ("query", &["sql", "state"]),
    ("coord", &["query", "runtime", "connect"]),
    ("frontend", &["catalog"]),
    ("cluster", &["coord"]),
    ("server", &["cluster", "frontend"]),
    ("sim", &["cluster"]),
];

/// These build and test in seconds because they never link DataFusion.
const WITHOUT_DATAFUSION: &[&str] = &["flow", "checkpoint", "state", "catalog", "connect", "frontend"];

const PREFIX: &str = "millstream-";

/// Fails with one line per forbidden dependency.
pub fn check() -> Result<(), String> {
    eprintln!("== doors");
    let output = crate::cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    let broken = violations(&direct_dependencies(&metadata));
    if broken.is_empty() { Ok(()) } else { Err(format!("the crate table is broken:\n  {}", broken.join("\n  "))) }
}

/// Crate to the names of its normal (not test) dependencies, ours without the prefix.
fn direct_dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut crates = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let Some(name) = package["name"].as_str().and_then(|n| n.strip_prefix(PREFIX)) else { continue };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let normal = dependencies.filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str());
        crates.insert(name.to_string(), normal.map(|n| n.strip_prefix(PREFIX).unwrap_or(n).to_string()).collect());
    }
    crates
}

fn allowed(name: &str) -> BTreeSet<&'static str> {
    let mut reach = BTreeSet::new();
    let mut open: Vec<&str> = TABLE.iter().find(|(n, _)| *n == name).map(|(_, uses)| uses.to_vec()).unwrap_or_default();
    while let Some(next) = open.pop() {
        if let Some((name, uses)) = TABLE.iter().find(|(n, _)| *n == next)
            && reach.insert(*name)
        {
            open.extend(uses.iter());
        }
    }
    reach
}

fn violations(crates: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, dependencies) in crates {
        if !TABLE.iter().any(|(n, _)| n == name) {
            broken.push(format!("crate {name} is not in the table"));
            continue;
        }
        let allowed = allowed(name);
        for dependency in dependencies {
            if crates.contains_key(dependency) && !allowed.contains(dependency.as_str()) {
                broken.push(format!("{name} may not use {dependency}"));
            }
            if dependency.starts_with("datafusion") && WITHOUT_DATAFUSION.contains(&name.as_str()) {
                broken.push(format!("{name} may not link {dependency}"));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crates(edges: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        edges.iter().map(|(n, d)| (n.to_string(), d.iter().map(|d| d.to_string()).collect())).collect()
    }

    #[test]
    fn the_workspace_keeps_the_crate_table() {
        check().unwrap();
    }

    #[test]
    fn forbidden_doors_are_named() {
        assert!(violations(&crates(&[("flow", &[]), ("state", &["flow"])])).is_empty());
        assert_eq!(violations(&crates(&[("flow", &["state"]), ("state", &[])])), ["flow may not use state"]);
        assert_eq!(violations(&crates(&[("connect", &["datafusion"])])), ["connect may not link datafusion"]);
        assert_eq!(violations(&crates(&[("utils", &[])])), ["crate utils is not in the table"]);
    }
}
