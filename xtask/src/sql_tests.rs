//! `cargo xtask sql-tests --cluster`: every file of `sql-tests` against a coordinator and workers, as processes, and every standing query as a
//! view at each of several parallelisms. The tests of the server take a sample.

pub const USAGE: &str = "cargo xtask sql-tests --cluster [--workers N] [--slots N] [--parallelism N[,N]] [--file TEXT] [--part K/N] \
                         [--binary FILE]";

/// What the test takes for all files.
const ALL: &str = "1000000";

pub fn run(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut over_cluster, mut workers, mut slots) = (false, "3".to_string(), "2".to_string());
    let (mut parallelism, mut file) = ("1,2,6".to_string(), String::new());
    let (mut part, mut binary) = ("1/1".to_string(), None);
    while let Some(arg) = args.next() {
        if arg == "--cluster" {
            over_cluster = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a value; usage: {USAGE}"))?;
        match arg.as_str() {
            "--workers" => workers = value,
            "--slots" => slots = value,
            "--parallelism" => parallelism = value,
            "--file" => file = value,
            "--part" => part = value,
            "--binary" => binary = Some(std::fs::canonicalize(&value).map_err(|e| format!("{value}: {e}"))?),
            _ => return Err(format!("there is no option \"{arg}\"; usage: {USAGE}")),
        }
    }
    if !over_cluster {
        return Err(format!("without a cluster all files run with cargo test; usage: {USAGE}"));
    }
    let (part, parts) = part.split_once('/').ok_or_else(|| format!("--part takes K/N, as 1/3; usage: {USAGE}"))?;
    let test = "cluster::sql_tests_give_the_same_rows_over_processes";
    let status = crate::cargo()
        .args(["test", "--workspace", "--test", "server", test, "--", "--exact", "--nocapture"])
        .env("MILLSTREAM_SAMPLE", ALL)
        .env("MILLSTREAM_TEST_WORKERS", workers)
        .env("MILLSTREAM_TEST_SLOTS", slots)
        .env("MILLSTREAM_TEST_PARALLELISM", parallelism)
        .env("MILLSTREAM_SLT", file)
        .env("MILLSTREAM_TEST_PART", part)
        .env("MILLSTREAM_TEST_PARTS", parts)
        .envs(binary.map(|binary| ("MILLSTREAM_TEST_BINARY", binary)))
        .status()
        .map_err(|e| format!("cargo test: {e}"))?;
    if status.success() { Ok(()) } else { Err("the rows differ".into()) }
}
