use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const LIMITS: ScanLimits =
    ScanLimits { records: usize::MAX, start_before: usize::MAX, at_end: true, record_bytes_max: 1 << 20 };

/// Good records as texts (`None` is NULL), then reasons of the bad ones.
fn split(text: &str, width: usize, limits: ScanLimits) -> (Vec<Vec<Option<String>>>, Vec<String>, usize, ScanStop) {
    let splitter = Splitter::new(b',', "", (0..width).map(Some).collect(), width);
    let mut spans = Spans::new(width);
    let stop = splitter.scan(text.as_bytes(), limits, &mut spans);
    let texts = spans.values.chunks(width).map(|row| {
        row.iter()
            .map(|s| match s.kind {
                Kind::Null => None,
                kind => {
                    let raw = &text[s.start as usize..s.end as usize];
                    Some(crate::format::input::unescape(raw, kind).unwrap().into_owned())
                }
            })
            .collect()
    });
    (texts.collect(), spans.malformed.iter().map(|m| m.reason.clone()).collect(), spans.consumed, stop)
}

fn check(text: &str, width: usize, want: &[&[Option<&str>]]) {
    let (rows, bad, consumed, stop) = split(text, width, LIMITS);
    let want: Vec<Vec<Option<String>>> = want.iter().map(|r| r.iter().map(|v| v.map(String::from)).collect()).collect();
    assert_eq!((rows, bad, consumed, stop), (want, vec![], text.len(), ScanStop::Limit), "{text:?}");
}

#[test]
fn fields_records_quotes_and_nulls() {
    check("1,2\n3,4\n", 2, &[&[Some("1"), Some("2")], &[Some("3"), Some("4")]]);
    check("1,2\r\n3,4", 2, &[&[Some("1"), Some("2")], &[Some("3"), Some("4")]]);
    check(",\n\n\r\n,x\r\n", 2, &[&[None, None], &[None, Some("x")]]);
    check("a\n\nb\n", 1, &[&[Some("a")], &[None], &[Some("b")]]);
    check("\"\",\"a,b\"\n", 2, &[&[Some(""), Some("a,b")]]);
    check("\"a\"\"b\",\"x\ny\"\r\n1,2", 2, &[&[Some("a\"b"), Some("x\ny")], &[Some("1"), Some("2")]]);
    check("a\"b,c\n\"d\",e", 2, &[&[Some("a\"b"), Some("c")], &[Some("d"), Some("e")]]);
    check("\"a\",", 2, &[&[Some("a"), None]]);
    check("\"a\",b\r", 2, &[&[Some("a"), Some("b")]]);
    check("", 2, &[]);
}

#[test]
fn a_malformed_record_costs_its_first_line_only() {
    for (text, reason, good) in [
        ("1,2,3\n4,5\n", "the record has 3 fields instead of 2", 1),
        ("1\n4,5\n", "the record has 1 fields instead of 2", 1),
        ("\"a,2\n3,4\n5,6", "a quoted field does not end", 2),
        ("\"a\"b,2\n3,4\n", "text follows a closing quote", 1),
        ("1,\"a\nb\"c\n3,4\n", "text follows a closing quote", 1),
    ] {
        let (rows, bad, consumed, _) = split(text, 2, LIMITS);
        assert_eq!(
            (rows.len(), bad.first().map(String::as_str), consumed),
            (good, Some(reason), text.len()),
            "{text:?}"
        );
    }
}

#[test]
fn an_unfinished_record_waits_and_an_overlong_one_does_not() {
    let growing = ScanLimits { at_end: false, ..LIMITS };
    for text in [
        "1,2\n3,",
        "1,2\n3,4",
        "1,2\n3,\"4",
        "1,2\n3,\"4\"",
        "1,2\n\"3\",4",
        "1,2\n3,\"4\n5",
        "1,2\n3,\"4\"\r",
        "1,2\n\"3\"x",
    ] {
        let (rows, bad, consumed, stop) = split(text, 2, growing);
        assert_eq!((rows.len(), bad.len(), consumed, stop), (1, 0, 4, ScanStop::Incomplete), "{text:?}");
    }
    let short = ScanLimits { record_bytes_max: 6, ..growing };
    let (rows, bad, _, stop) = split("1,2\n3,4444444\n5,6\n\"7,7777\n8,9\n\"long\n1234567", 2, short);
    assert_eq!((rows.len(), bad.len(), stop), (3, 3, ScanStop::TooLong));
}

#[test]
fn limits_stop_at_record_starts() {
    let text = "1,2\n3,4\n5,6\n";
    let (rows, _, consumed, _) = split(text, 2, ScanLimits { records: 2, ..LIMITS });
    assert_eq!((rows.len(), consumed), (2, 8));
    let (rows, _, consumed, _) = split(text, 2, ScanLimits { start_before: 5, ..LIMITS });
    assert_eq!((rows.len(), consumed), (2, 8));
}

#[test]
fn the_first_record_is_found_whatever_its_width() {
    let read = |text: &str, at_end| first_record(text.as_bytes(), b',', at_end, 1 << 20);
    assert_eq!(read("\n\na,\"b\n\"\"c\",d\nx", false), Ok(Some((vec!["a".into(), "b\n\"c".into(), "d".into()], 14))));
    assert_eq!(read("a,b", false), Ok(None));
    assert_eq!(read("a,b", true), Ok(Some((vec!["a".into(), "b".into()], 3))));
    assert_eq!(read("", true), Ok(None));
    assert!(read("\"a\"b\n", true).is_err());
}

/// The slow twin: one character at a time, same rules; `None` when a record is malformed (not compared).
fn slow(text: &str, width: usize) -> Option<Vec<Vec<Option<String>>>> {
    let mut rows = Vec::new();
    let mut chars = text.chars().peekable();
    while chars.peek().is_some() {
        let mut row = Vec::new();
        let mut blank = true;
        loop {
            let mut field = String::new();
            let mut quoted = false;
            if chars.next_if_eq(&'"').is_some() {
                quoted = true;
                loop {
                    match chars.next()? {
                        '"' if chars.next_if_eq(&'"').is_some() => field.push('"'),
                        '"' => break,
                        c => field.push(c),
                    }
                }
                if chars.peek() == Some(&'\r') {
                    chars.next();
                    if !matches!(chars.peek(), None | Some('\n')) {
                        return None;
                    }
                } else if !matches!(chars.peek(), None | Some('\n' | ',')) {
                    return None;
                }
            } else {
                while let Some(c) = chars.next_if(|c| !matches!(c, ',' | '\n')) {
                    field.push(c);
                }
                if chars.peek() != Some(&',') && field.ends_with('\r') {
                    field.pop();
                }
            }
            blank &= !quoted && field.is_empty();
            row.push(if !quoted && field.is_empty() { None } else { Some(field) });
            match chars.next() {
                Some(',') => blank = false,
                _ => break,
            }
        }
        if blank && width != 1 {
            continue;
        }
        if row.len() != width {
            return None;
        }
        rows.push(row);
    }
    Some(rows)
}

#[test]
fn random_texts_split_as_the_slow_twin_splits_them() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut compared = 0;
    for _ in 0..60_000 {
        let length = rng.random_range(0..14);
        let text: String = (0..length).map(|_| ['a', ',', '\n', '"', '\r', 'é', ','][rng.random_range(0..7)]).collect();
        let width = rng.random_range(1..4);
        let (rows, bad, consumed, _) = split(&text, width, LIMITS);
        assert_eq!(consumed, text.len(), "{text:?}");
        if let Some(want) = slow(&text, width) {
            assert_eq!((rows, bad), (want, vec![]), "{text:?} at width {width}");
            compared += 1;
        } else {
            assert!(!bad.is_empty(), "{text:?} at width {width}");
        }
    }
    assert!(compared > 5_000);
}

#[test]
fn a_text_in_pieces_gives_the_same_records() {
    let mut rng = SmallRng::seed_from_u64(2);
    for _ in 0..20_000 {
        let length = rng.random_range(0..24);
        let text: String = (0..length).map(|_| ['a', ',', '\n', '"', '\r'][rng.random_range(0..5)]).collect();
        let limits = ScanLimits { record_bytes_max: 8, ..LIMITS };
        let (want, want_bad, _, _) = split(&text, 2, limits);
        // Every prefix, as a follower would see it, must give a prefix of the same records.
        let cut = rng.random_range(0..=length);
        let (rows, bad, consumed, stop) = split(&text[..cut], 2, ScanLimits { at_end: false, ..limits });
        assert_eq!(rows[..], want[..rows.len()], "{text:?} cut at {cut}");
        assert!(bad.len() <= want_bad.len());
        assert!(consumed <= cut && (stop != ScanStop::Incomplete || cut - consumed <= 8), "{text:?} cut at {cut}");
    }
}
