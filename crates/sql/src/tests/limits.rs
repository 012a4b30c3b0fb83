use std::time::{Duration, Instant};

use flow::SqlState;

use crate::{Limits, parse};

/// Everything here runs on a thread with the small stack of a server's worker: an overflow would kill the test.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
}

fn state_of(text: &str) -> Result<usize, SqlState> {
    parse(text, &Limits::default()).map(|all| all.len()).map_err(|e| e.state())
}

#[test]
fn ten_thousand_parentheses_are_refused_and_do_not_overflow() {
    on_a_small_stack(|| {
        let n = 10_000;
        let nested = format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n));
        assert_eq!(state_of(&nested), Err(SqlState::StatementTooComplex));
        assert_eq!(state_of(&format!("SELECT {}", "(".repeat(n))), Err(SqlState::StatementTooComplex));
        assert_eq!(state_of(&format!("SELECT {}1", "- ".repeat(n))), Err(SqlState::StatementTooComplex));
        assert_eq!(state_of(&format!("SELECT {}true", "NOT ".repeat(n))), Err(SqlState::StatementTooComplex));
        assert_eq!(
            state_of(&format!("SELECT {}1", "CASE WHEN true THEN ".repeat(n))),
            Err(SqlState::StatementTooComplex)
        );
        assert_eq!(state_of(&format!("SELECT {}1", "ARRAY[".repeat(n))), Err(SqlState::StatementTooComplex));
        assert_eq!(state_of(&format!("SELECT * FROM {}t", "(".repeat(n))), Err(SqlState::StatementTooComplex));
        assert_eq!(state_of(&format!("{}SELECT 1", "EXPLAIN ".repeat(n))), Err(SqlState::StatementTooComplex));
        assert_eq!(state_of(&format!("SELECT 1{}", "+1".repeat(100_000))), Err(SqlState::StatementTooComplex));
        let union = format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(100_000));
        assert_eq!(state_of(&union), Err(SqlState::StatementTooComplex));
        assert_eq!(state_of(&format!("SELECT 1 FROM t{}", ", t".repeat(100_000))), Err(SqlState::StatementTooComplex));
        let joins = format!("SELECT 1 FROM t{}", " JOIN t ON true".repeat(100_000));
        assert_eq!(state_of(&joins), Err(SqlState::StatementTooComplex));
    });
}

#[test]
fn nesting_up_to_the_limit_is_parsed() {
    on_a_small_stack(|| {
        let n = 190;
        for text in [
            format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n)),
            format!("SELECT {}1{}", "abs(".repeat(n), ")".repeat(n)),
            format!("SELECT {}1{}", "(SELECT ".repeat(n), ")".repeat(n)),
            format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(n), " END".repeat(n)),
            format!("SELECT 1{}", "+1".repeat(2_000)),
            format!("SELECT true{}", " AND a = 1".repeat(2_000)),
            format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(400)),
        ] {
            assert_eq!(state_of(&text), Ok(1), "{}…", &text[..40]);
        }
    });
}

#[test]
fn what_the_parser_tries_twice_does_not_take_exponential_time() {
    on_a_small_stack(|| {
        for (text, ok) in [
            (format!("SELECT * FROM {}a JOIN b ON true{}", "(".repeat(60), ")".repeat(60)), true),
            (format!("SELECT * FROM {}t{}", "(".repeat(60), ")".repeat(60)), false),
            (format!("SELECT {}1{}", "cast(".repeat(60), ")".repeat(60)), false),
            (format!("SELECT {}1{}", "position(".repeat(60), ")".repeat(60)), false),
            (format!("SELECT {}1{}", "abs(".repeat(60), ")".repeat(60)), true),
            (format!("SELECT {}1{}", "1 IN ((".repeat(60), "))".repeat(60)), true),
            (format!("SELECT {} * FROM t{}", "(SELECT ".repeat(60), ")".repeat(60)), true),
            (format!("SELECT * FROM {}", "(SELECT * FROM ".repeat(60)), false),
            (format!("WITH {}", "x AS (WITH ".repeat(60)), false),
        ] {
            // The test measures real time.
            #[allow(clippy::disallowed_methods)]
            let started = Instant::now();
            let result = state_of(&text);
            assert_eq!(result.is_ok(), ok, "{}…: {result:?}", &text[..60]);
            assert!(started.elapsed() < Duration::from_secs(10), "{}…: {:?}", &text[..60], started.elapsed());
        }
    });
}

#[test]
fn a_list_of_a_hundred_thousand_elements_is_parsed() {
    on_a_small_stack(|| {
        let list: Vec<String> = (0..100_000).map(|i| i.to_string()).collect();
        assert_eq!(state_of(&format!("SELECT * FROM t WHERE a IN ({})", list.join(","))), Ok(1));
    });
}

#[test]
fn a_text_that_is_too_long_is_refused_before_it_is_read() {
    let limits = Limits { text_bytes_max: 100, ..Limits::default() };
    let e = parse(&format!("SELECT '{}'", "x".repeat(200)), &limits).unwrap_err();
    assert_eq!(e.state(), SqlState::ProgramLimitExceeded);
    assert!(e.hint().is_some());
    let limits = Limits { tokens_max: 10, ..Limits::default() };
    assert_eq!(parse("SELECT 1,2,3,4,5,6,7,8", &limits).unwrap_err().state(), SqlState::ProgramLimitExceeded);
}

/// Plans and runs `text` on a small stack, as a session does.
fn run(text: String) -> Result<Vec<String>, SqlState> {
    let (send, receive) = std::sync::mpsc::channel();
    on_a_small_stack(move || {
        let world = super::queries::World::with(&[
            "CREATE TABLE t (a int, b bigint)",
            "INSERT INTO t VALUES (5, 1), (999999, 2)",
        ]);
        // The test measures real time.
        #[allow(clippy::disallowed_methods)]
        let started = Instant::now();
        let result = crate::with_large_stack(|| world.run(&text).map_err(|e| e.state()));
        eprintln!("{:?} for {}…", started.elapsed(), &text[..text.len().min(40)]);
        send.send(result).unwrap();
    });
    receive.recv().unwrap()
}

#[test]
fn long_chains_run_or_are_refused() {
    assert_eq!(run(format!("SELECT 1{}", " + 1".repeat(2_000))), Ok(vec!["?column?".into(), "2001".into()]));
    let columns = run(format!("SELECT count(*) FROM t WHERE a{} > 0", " + a".repeat(300)));
    assert_eq!(columns, Ok(vec!["count".into(), "2".into()]));
    let columns = run(format!("SELECT a{} AS s FROM t WHERE a = 5", " + 2 - a".repeat(1_000)));
    assert_eq!(columns, Ok(vec!["s".into(), "-2995".into()]));
    let text = run(format!("SELECT length(a{}) AS n FROM t WHERE a = 5", " || 'ab'".repeat(1_000)));
    assert_eq!(text, Ok(vec!["n".into(), "2001".into()]));
    assert_eq!(run(format!("SELECT a{} FROM t", " & a".repeat(2_000))), Err(SqlState::StatementTooComplex));
    let ors = run(format!("SELECT count(*) FROM t WHERE a = 0{}", " OR a = 5".repeat(2_000)));
    assert_eq!(ors, Ok(vec!["count".into(), "1".into()]));
}

#[test]
fn a_list_of_a_hundred_thousand_elements_runs() {
    let list: Vec<String> = (0..100_000).map(|i| i.to_string()).collect();
    let text = format!("SELECT count(*) FROM t WHERE a IN ({})", list.join(","));
    assert_eq!(run(text), Ok(vec!["count".into(), "1".into()]));
}
