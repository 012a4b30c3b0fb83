use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const LIMITS: ScanLimits =
    ScanLimits { records: usize::MAX, start_before: usize::MAX, at_end: true, record_bytes_max: 1 << 20 };

/// Values of columns a and b as JSON texts, line by line, and the reasons of malformed lines.
fn scan(text: &[u8]) -> (Vec<[String; 2]>, Vec<String>) {
    let mut scanner = Scanner::new(vec!["a".into(), "b".into()]);
    let mut spans = Spans::new(2);
    let stop = scanner.scan(text, LIMITS, &mut spans);
    assert_eq!((stop, spans.consumed), (ScanStop::Limit, text.len()));
    let show = |s: &Span| match s.kind {
        Kind::Null => "null".into(),
        Kind::Plain | Kind::JsonEscaped => {
            format!("\"{}\"", String::from_utf8_lossy(&text[s.start as usize..s.end as usize]))
        }
        _ => String::from_utf8_lossy(&text[s.start as usize..s.end as usize]).into_owned(),
    };
    let rows = spans.values.chunks(2).map(|r| [show(&r[0]), show(&r[1])]).collect();
    (rows, spans.malformed.iter().map(|m| m.reason.clone()).collect())
}

#[test]
fn values_are_found_under_their_keys() {
    let text = br#"{"a":1,"b":"x"}
{ "b" : [1, {"a": "]"}] , "zzz": null, "a" : -1.5e+3 }

{"b":true}
{}
{"a":1,"a":2}
{"A":1,"a":2,"b":3,"B":4}
{"\u0061":"q\"\\"}"#;
    let (rows, bad) = scan(text);
    let want = [
        ["1", "\"x\""],
        ["-1.5e+3", "[1, {\"a\": \"]\"}]"],
        ["null", "true"],
        ["null", "null"],
        ["2", "null"],
        ["2", "3"],
        ["\"q\\\"\\\\\"", "null"],
    ];
    assert_eq!((rows, bad), (want.map(|r| r.map(String::from)).to_vec(), vec![]));
}

#[test]
fn malformed_lines_say_why_and_do_not_disturb_others() {
    for (line, reason) in [
        ("[1]", "not an object"),
        ("{\"a\":01}", "number"),
        ("{\"a\":1.}", "number"),
        ("{\"a\":+1}", "value expected"),
        ("{\"a\":NaN}", "value expected"),
        ("{\"a\":tru}", "value expected"),
        ("{\"a\":truex}", "expected after a value"),
        ("{\"a\" 1}", "\":\" expected"),
        ("{\"a\":1,}", "key in quotes"),
        ("{\"a\":1", "expected after a value"),
        ("{\"a\":\"x", "string does not end"),
        ("{\"a\":\"x\\", "string does not end"),
        ("{\"a\":[1,}]}", "nested"),
        ("{\"a\":[1", "does not end"),
        ("{\"a\":1} x", "text follows"),
        ("{\"a\":\"x\ty\"}", "control character"),
        ("{\"a\u{0}\":1}", "control character"),
        ("{\"\\x\":1}", "invalid escape"),
    ] {
        let text = format!("{{\"a\":1}}\n{line}\n{{\"a\":2}}\n");
        let (rows, bad) = scan(text.as_bytes());
        assert_eq!((rows.len(), bad.len()), (2, 1), "{line}");
        assert!(bad[0].contains(reason), "{line}: {}", bad[0]);
    }
}

#[test]
fn deep_nesting_is_an_answer_not_a_crash() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let (rows, bad) = scan(deep.as_bytes());
    assert_eq!(rows.len() + bad.len(), 1);
    let (_, bad) = scan("{\"a\":".repeat(100_000).as_bytes());
    assert_eq!(bad.len(), 1);
}

#[test]
fn limits_and_unfinished_lines() {
    let mut scanner = Scanner::new(vec!["a".into()]);
    let text = b"{\"a\":1}\n{\"a\":2}\n{\"a\":3";
    let mut spans = Spans::new(1);
    assert_eq!(scanner.scan(text, ScanLimits { records: 1, ..LIMITS }, &mut spans), ScanStop::Limit);
    assert_eq!((spans.rows(), spans.consumed), (1, 8));
    assert_eq!(scanner.scan(text, ScanLimits { at_end: false, ..LIMITS }, &mut spans), ScanStop::Incomplete);
    assert_eq!((spans.rows(), spans.consumed), (2, 16));
    assert_eq!(
        scanner.scan(text, ScanLimits { at_end: false, record_bytes_max: 3, ..LIMITS }, &mut spans),
        ScanStop::TooLong
    );
    assert_eq!(elements(b"[1, \"x\", null,[2]]").unwrap().len(), 4);
    assert!(elements(b"{}").is_err() && elements(b"[1,]").is_err() && elements(b"[1").is_err());
    assert_eq!(members(b"{\"x\":1,\"y\":\"2\"}").unwrap().len(), 2);
}

fn random_value(rng: &mut SmallRng, depth: usize) -> Value {
    match rng.random_range(0..if depth == 0 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => Value::Bool(rng.random()),
        2 => Value::from(rng.random::<i64>()),
        3 => Value::from(rng.random::<f64>() * 1e10),
        4 => Value::String(
            (0..rng.random_range(0..20))
                .map(|_| ['a', '"', '\\', '\n', 'é', '😀', '\u{1}', '}', ' '][rng.random_range(0..9)])
                .collect(),
        ),
        5 => Value::Array((0..rng.random_range(0..4)).map(|_| random_value(rng, depth - 1)).collect()),
        _ => (0..rng.random_range(0..4)).map(|i| (i.to_string(), random_value(rng, depth - 1))).collect(),
    }
}

#[test]
fn random_objects_are_found_as_serde_json_finds_them() {
    let mut rng = SmallRng::seed_from_u64(3);
    let (mut text, mut want) = (String::new(), Vec::new());
    for _ in 0..4_000 {
        let keys = ["a", "b", "c", "a b", "\"", "long key with é"];
        let object: Value = (0..rng.random_range(0..6))
            .map(|_| (keys[rng.random_range(0..6)].to_string(), random_value(&mut rng, 3)))
            .collect();
        text.push_str(&if rng.random() {
            object.to_string()
        } else {
            format!(" {} ", object.to_string().replace("\":", "\" :  "))
        });
        text.push('\n');
        let object: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        want.push([object["a"].clone(), object["b"].clone()]);
    }
    let (rows, bad) = scan(text.as_bytes());
    assert_eq!(bad, Vec::<String>::new());
    let rows: Vec<[Value; 2]> =
        rows.iter().map(|r| [serde_json::from_str(&r[0]).unwrap(), serde_json::from_str(&r[1]).unwrap()]).collect();
    assert_eq!(rows, want);
}

#[test]
fn damaged_lines_are_accepted_exactly_when_serde_json_accepts_them() {
    let mut rng = SmallRng::seed_from_u64(4);
    for _ in 0..40_000 {
        let object: Value =
            [("a".to_string(), random_value(&mut rng, 2)), ("k".to_string(), random_value(&mut rng, 1))]
                .into_iter()
                .collect();
        let mut line = object.to_string().into_bytes();
        for _ in 0..rng.random_range(0..3) {
            let at = rng.random_range(0..line.len());
            match rng.random_range(0..3) {
                0 => line[at] = b"{}[],:\"\\0123e.-tn \t"[rng.random_range(0..19)],
                1 => drop(line.remove(at)),
                _ => line.insert(at, b"{}[],:\"\\0123e.-tn "[rng.random_range(0..18)]),
            }
            if line.is_empty() {
                line.push(b'x');
            }
        }
        let Ok(text) = std::str::from_utf8(&line) else { continue };
        if text.trim().is_empty() {
            continue;
        }
        let serde: Result<Value, _> = serde_json::from_str(text);
        let (rows, bad) = scan(&line);
        match serde {
            Ok(Value::Object(_)) => assert_eq!((rows.len(), bad), (1, vec![]), "{text}"),
            // Escapes inside strings are only checked when the value is decoded; numbers beyond f64 are not our error.
            Err(e) if rows.len() == 1 => assert!(
                e.to_string().contains("escape")
                    || e.to_string().contains("surrogate")
                    || e.to_string().contains("number out of range")
                    || e.to_string().contains("unicode code point"),
                "{text}: {e}"
            ),
            _ => assert_eq!((rows.len(), bad.len()), (0, 1), "{text}"),
        }
    }
}
