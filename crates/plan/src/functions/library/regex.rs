//! Regular expressions: PostgreSQL's advanced ones, translated to those of the `regex` crate, and SIMILAR TO.
//!
//! Back-references and look-around do not exist there and are refused; where alternatives match at one place the first is
//! taken, not the longest.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;

use ::regex::{Captures, Regex, RegexBuilder};
use arrow::array::ArrayRef;
use flow::{Error, Result, SqlState};

use super::Type::*;
use super::cells::{Call, Column, build, map1, map2, map3};
use super::{Declared, Gives, bad_argument};

/// Compiled expressions that a thread keeps.
const KEPT_MAX: usize = 64;

thread_local! {
    // Most batches of a standing query are small; compiling the pattern anew would cost more than matching it.
    static COMPILED: RefCell<HashMap<(String, String), Regex>> = RefCell::new(HashMap::new());
}

/// The flags that a flags argument gives.
#[derive(Clone, Copy, Default)]
struct Flags {
    global: bool,
    case_insensitive: bool,
    /// `.` and negated classes do not match a line break.
    dot_stops: bool,
    /// `^` and `$` match at line breaks.
    lines: bool,
    expanded: bool,
    literal: bool,
}

impl Flags {
    fn read(flags: &str) -> Result<Flags> {
        let mut out = Flags::default();
        for flag in flags.chars() {
            match flag {
                'g' => out.global = true,
                'i' => out.case_insensitive = true,
                'c' => out.case_insensitive = false,
                'n' | 'm' => (out.dot_stops, out.lines) = (true, true),
                'p' => (out.dot_stops, out.lines) = (true, false),
                'w' => (out.dot_stops, out.lines) = (false, true),
                's' => (out.dot_stops, out.lines) = (false, false),
                'x' => out.expanded = true,
                't' => out.expanded = false,
                'q' => out.literal = true,
                'e' | 'a' | 'b' => {}
                _ => return Err(bad_argument(format!("invalid regular expression option: \"{flag}\""))),
            }
        }
        Ok(out)
    }
}

/// Calls `f` with the compiled expression.
fn with_regex<T>(pattern: &str, flags: &str, f: impl FnOnce(&Regex, Flags) -> Result<T>) -> Result<T> {
    let read = Flags::read(flags)?;
    COMPILED.with_borrow_mut(|compiled| {
        let key = (pattern.to_string(), flags.to_string());
        if !compiled.contains_key(&key) {
            if compiled.len() >= KEPT_MAX {
                compiled.clear();
            }
            compiled.insert(key.clone(), compile(pattern, read)?);
        }
        match compiled.get(&key) {
            Some(regex) => f(regex, read),
            None => Err(Error::internal("a regular expression that is not kept")),
        }
    })
}

fn compile(pattern: &str, flags: Flags) -> Result<Regex> {
    let translated = if flags.literal { ::regex::escape(pattern) } else { translate(pattern, flags.dot_stops)? };
    RegexBuilder::new(&translated)
        .case_insensitive(flags.case_insensitive)
        .dot_matches_new_line(!flags.dot_stops)
        .multi_line(flags.lines)
        .ignore_whitespace(flags.expanded)
        .build()
        .map_err(|e| {
            let text = e.to_string();
            if text.contains("look-around") || text.contains("backreferences") {
                return Error::unsupported("look-around and back-references in regular expressions are not supported")
                    .with_hint("Match the parts with several expressions.");
            }
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
            invalid(&reason)
        })
}

fn invalid(reason: &str) -> Error {
    Error::new(SqlState::InvalidRegularExpression, format!("invalid regular expression: {reason}"))
}

/// The expression in the crate's syntax.
fn translate(pattern: &str, dot_stops: bool) -> Result<String> {
    let pattern = pattern.strip_prefix("***:").unwrap_or(pattern);
    if let Some(literal) = pattern.strip_prefix("***=") {
        return Ok(::regex::escape(literal));
    }
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern.chars().peekable();
    let mut at_start = true;
    while let Some(ch) = rest.next() {
        let was_start = std::mem::replace(&mut at_start, false);
        match ch {
            '\\' => match rest.next() {
                None => return Err(invalid("invalid escape \\ sequence")),
                Some('y') => out.push_str(r"\b"),
                Some('Y') => out.push_str(r"\B"),
                Some('m') => out.push_str(r"\b{start}"),
                Some('M') => out.push_str(r"\b{end}"),
                Some('Z') => out.push_str(r"\z"),
                Some('e') => out.push_str(r"\x1b"),
                Some(other) if other.is_alphanumeric() || other.is_ascii_punctuation() => {
                    out.push('\\');
                    out.push(other);
                }
                Some(other) => out.push(other),
            },
            '[' => bracket(&mut rest, &mut out, dot_stops)?,
            '*' | '+' | '?' if was_start => return Err(invalid("quantifier operand invalid")),
            '(' | '|' => {
                out.push(ch);
                // `(?` is a group's kind, not a quantifier.
                at_start = rest.peek() != Some(&'?') || ch == '|';
            }
            // A brace that begins no bound is itself.
            '{' if !rest.peek().is_some_and(char::is_ascii_digit) => out.push_str(r"\{"),
            other => out.push(other),
        }
    }
    Ok(out)
}

/// A bracket expression after its `[`.
fn bracket(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String, dot_stops: bool) -> Result<()> {
    let unbalanced = || invalid("brackets [] not balanced");
    let negated = rest.next_if_eq(&'^').is_some();
    let mut body = String::new();
    let mut first = true;
    loop {
        let ch = rest.next().ok_or_else(unbalanced)?;
        match ch {
            ']' if !first => break,
            '[' if matches!(rest.peek(), Some(':' | '.' | '=')) => {
                let kind = rest.next().ok_or_else(unbalanced)?;
                let mut name = String::new();
                while !name.ends_with(kind) || rest.peek() != Some(&']') {
                    name.push(rest.next().ok_or_else(unbalanced)?);
                }
                rest.next();
                name.pop();
                match (kind, name.as_str()) {
                    (':', "<") => return word_edge(rest, out, r"\b{start}"),
                    (':', ">") => return word_edge(rest, out, r"\b{end}"),
                    (':', class) => {
                        let _ = write!(body, "[:{class}:]");
                    }
                    (_, element) => element.chars().for_each(|c| literal(c, &mut body)),
                }
            }
            '\\' => match rest.next().ok_or_else(unbalanced)? {
                escaped if escaped.is_alphanumeric() => {
                    body.push('\\');
                    body.push(escaped);
                }
                other => literal(other, &mut body),
            },
            '-' if first || rest.peek() == Some(&']') => body.push_str(r"\-"),
            '-' => body.push('-'),
            other => literal(other, &mut body),
        }
        first = false;
    }
    let _ =
        if negated { write!(out, "[^{body}{}]", if dot_stops { r"\n" } else { "" }) } else { write!(out, "[{body}]") };
    Ok(())
}

/// `[[:<:]]` and `[[:>:]]` stand alone.
fn word_edge(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String, edge: &str) -> Result<()> {
    match rest.next() {
        Some(']') => {
            out.push_str(edge);
            Ok(())
        }
        _ => Err(invalid("invalid character class")),
    }
}

/// A character of a class, which the crate might read as an operator.
fn literal(ch: char, out: &mut String) {
    if matches!(ch, '[' | ']' | '&' | '~' | '^' | '\\' | '-' | '#' | ' ') {
        out.push('\\');
    }
    out.push(ch);
}

pub(super) fn declare(d: &mut Declared) {
    d.of("~", &[Text, Text], Gives::Is(Bool), |c| matches(c, "", true));
    d.of("~*", &[Text, Text], Gives::Is(Bool), |c| matches(c, "i", true));
    d.of("!~", &[Text, Text], Gives::Is(Bool), |c| matches(c, "", false));
    d.of("!~*", &[Text, Text], Gives::Is(Bool), |c| matches(c, "i", false));
    d.of("regexp_like", &[Text, Text], Gives::Is(Bool), |c| matches(c, "", true));
    d.of("regexp_like", &[Text, Text, Text], Gives::Is(Bool), |c| {
        map3(c, |s: &str, pattern: &str, flags: &str| {
            not_global(flags, "regexp_like")?;
            with_regex(pattern, flags, |regex, _| Ok(regex.is_match(s)))
        })
    });
    replace(d);
    find(d);
    similar(d);
}

fn matches(call: &Call<'_>, flags: &str, wanted: bool) -> Result<ArrayRef> {
    map2(call, |s: &str, pattern: &str| with_regex(pattern, flags, |regex, _| Ok(regex.is_match(s) == wanted)))
}

fn not_global(flags: &str, function: &str) -> Result<()> {
    if flags.contains('g') {
        return Err(bad_argument(format!("{function}() does not support the \"global\" option")));
    }
    Ok(())
}

/// The replacement with `\1`, `\&` and `\\` filled in.
fn expand(replacement: &str, found: &Captures<'_>, out: &mut String) {
    let mut rest = replacement.chars();
    while let Some(ch) = rest.next() {
        if ch != '\\' {
            out.push(ch);
            continue;
        }
        match rest.next() {
            Some('&') => out.push_str(&found[0]),
            Some(digit) if digit.is_ascii_digit() => {
                let group = digit as usize - '0' as usize;
                out.push_str(found.get(group).map_or("", |m| m.as_str()));
            }
            Some('\\') | None => out.push('\\'),
            Some(other) => {
                out.push('\\');
                out.push(other);
            }
        }
    }
}

/// Replaces the `n`-th match at or after character `start`; all of them if `n` is 0.
fn replaced(s: &str, regex: &Regex, replacement: &str, start: i32, n: i32) -> Result<String> {
    let from = start_byte(s, start)?;
    if n < 0 {
        return Err(bad_argument(format!("invalid value for parameter \"n\": {n}")));
    }
    let mut out = String::with_capacity(s.len());
    let mut copied = 0;
    for (i, found) in (1..).zip(regex.captures_iter(&s[from..])) {
        let whole = found.get(0).map_or(0..0, |m| m.range());
        if n == 0 || i == n {
            out.push_str(&s[copied..from + whole.start]);
            expand(replacement, &found, &mut out);
            copied = from + whole.end;
        }
        if i == n {
            break;
        }
    }
    out.push_str(&s[copied..]);
    Ok(out)
}

fn start_byte(s: &str, start: i32) -> Result<usize> {
    if start < 1 {
        return Err(bad_argument(format!("invalid value for parameter \"start\": {start}")));
    }
    Ok(s.char_indices().nth(start as usize - 1).map_or(s.len(), |(i, _)| i))
}

fn replace(d: &mut Declared) {
    d.of("regexp_replace", &[Text, Text, Text], Gives::Is(Text), |c| {
        map3(c, |s: &str, pattern: &str, new: &str| with_regex(pattern, "", |regex, _| replaced(s, regex, new, 1, 1)))
    });
    d.of("regexp_replace", &[Text, Text, Text, Text], Gives::Is(Text), |c| {
        super::cells::map4(c, |s: &str, pattern: &str, new: &str, flags: &str| {
            if flags.starts_with(|f: char| f.is_ascii_digit()) {
                return Err(bad_argument(format!("invalid regular expression option: \"{}\"", &flags[..1]))
                    .with_hint("If you meant to use regexp_replace() with a start parameter, cast the fourth argument to integer explicitly."));
            }
            with_regex(pattern, flags, |regex, read| replaced(s, regex, new, 1, i32::from(!read.global)))
        })
    });
    d.of("regexp_replace", &[Text, Text, Text, Int4], Gives::Is(Text), |c| replace_from(c, None, false));
    d.of("regexp_replace", &[Text, Text, Text, Int4, Int4], Gives::Is(Text), |c| replace_from(c, Some(4), false));
    d.of("regexp_replace", &[Text, Text, Text, Int4, Int4, Text], Gives::Is(Text), |c| replace_from(c, Some(4), true));
}

fn replace_from(call: &Call<'_>, n: Option<usize>, with_flags: bool) -> Result<ArrayRef> {
    let arguments = Arguments::of(call, Some(3), n, None, with_flags.then_some(5), None);
    let new = call.column::<&str>(2);
    build(call, |row| {
        let (Some(a), Some(new)) = (arguments.at(row), new.get(row)) else { return Ok(None) };
        with_regex(a.pattern, a.flags, |regex, read| {
            let n = a.n.unwrap_or(i32::from(!read.global));
            replaced(a.text, regex, new, a.start, n).map(Some)
        })
    })
}

/// The arguments that the regexp functions share, by their places.
struct Arguments<'a> {
    text: Column<'a, &'a str>,
    pattern: Column<'a, &'a str>,
    start: Option<Column<'a, i32>>,
    n: Option<Column<'a, i32>>,
    end: Option<Column<'a, i32>>,
    flags: Option<Column<'a, &'a str>>,
    group: Option<Column<'a, i32>>,
}

struct Row<'a> {
    text: &'a str,
    pattern: &'a str,
    start: i32,
    n: Option<i32>,
    end: i32,
    flags: &'a str,
    group: i32,
}

impl<'a> Arguments<'a> {
    fn of(
        call: &'a Call<'_>,
        start: Option<usize>,
        n: Option<usize>,
        end: Option<usize>,
        flags: Option<usize>,
        group: Option<usize>,
    ) -> Arguments<'a> {
        Arguments {
            text: call.column(0),
            pattern: call.column(1),
            start: start.map(|i| call.column(i)),
            n: n.map(|i| call.column(i)),
            end: end.map(|i| call.column(i)),
            flags: flags.map(|i| call.column(i)),
            group: group.map(|i| call.column(i)),
        }
    }

    /// The arguments of a row; `None` where one is NULL.
    fn at(&self, row: usize) -> Option<Row<'a>> {
        let number = |column: &Option<Column<'a, i32>>, missing: i32| match column {
            Some(column) => column.get(row),
            None => Some(missing),
        };
        Some(Row {
            text: self.text.get(row)?,
            pattern: self.pattern.get(row)?,
            start: number(&self.start, 1)?,
            n: match &self.n {
                Some(n) => Some(n.get(row)?),
                None => None,
            },
            end: number(&self.end, 0)?,
            flags: match &self.flags {
                Some(flags) => flags.get(row)?,
                None => "",
            },
            group: number(&self.group, 0)?,
        })
    }
}

fn captured(regex: &Regex, s: &str) -> Option<Vec<Option<String>>> {
    let found = regex.captures(s)?;
    Some(if found.len() == 1 {
        vec![Some(found[0].to_string())]
    } else {
        found.iter().skip(1).map(|m| m.map(|m| m.as_str().to_string())).collect()
    })
}

/// The byte range of the n-th match, or of one of its groups.
fn nth(a: &Row<'_>, function: &str) -> Result<Option<std::ops::Range<usize>>> {
    not_global(a.flags, function)?;
    let from = start_byte(a.text, a.start)?;
    let n = a.n.unwrap_or(1);
    if n < 1 {
        return Err(bad_argument(format!("invalid value for parameter \"n\": {n}")));
    }
    if a.group < 0 {
        return Err(bad_argument(format!("invalid value for parameter \"subexpr\": {}", a.group)));
    }
    with_regex(a.pattern, a.flags, |regex, _| {
        let found = regex.captures_iter(&a.text[from..]).nth(n as usize - 1);
        Ok(found.and_then(|f| f.get(a.group as usize)).map(|m| from + m.start()..from + m.end()))
    })
}

fn count(call: &Call<'_>, start: Option<usize>, flags: Option<usize>) -> Result<ArrayRef> {
    let arguments = Arguments::of(call, start, None, None, flags, None);
    build(call, |row| {
        let Some(a) = arguments.at(row) else { return Ok(None) };
        not_global(a.flags, "regexp_count")?;
        let from = start_byte(a.text, a.start)?;
        with_regex(a.pattern, a.flags, |regex, _| Ok(Some(regex.find_iter(&a.text[from..]).count() as i32)))
    })
}

fn position(call: &Call<'_>, places: [Option<usize>; 5]) -> Result<ArrayRef> {
    let [start, n, end, flags, group] = places;
    let arguments = Arguments::of(call, start, n, end, flags, group);
    build(call, |row| {
        let Some(a) = arguments.at(row) else { return Ok(None) };
        if !matches!(a.end, 0 | 1) {
            return Err(bad_argument(format!("invalid value for parameter \"endoption\": {}", a.end)));
        }
        Ok(Some(nth(&a, "regexp_instr")?.map_or(0, |range| {
            let byte = if a.end == 1 { range.end } else { range.start };
            a.text[..byte].chars().count() as i32 + 1
        })))
    })
}

fn extracted(call: &Call<'_>, places: [Option<usize>; 4]) -> Result<ArrayRef> {
    let [start, n, flags, group] = places;
    let arguments = Arguments::of(call, start, n, None, flags, group);
    build(call, |row| {
        let Some(a) = arguments.at(row) else { return Ok(None) };
        Ok(nth(&a, "regexp_substr")?.map(|range| &a.text[range]))
    })
}

fn find(d: &mut Declared) {
    d.of("regexp_match", &[Text, Text], Gives::Is(Texts), |c| {
        map2(c, |s: &str, pattern: &str| with_regex(pattern, "", |regex, _| Ok(captured(regex, s))))
    });
    d.of("regexp_match", &[Text, Text, Text], Gives::Is(Texts), |c| {
        map3(c, |s: &str, pattern: &str, flags: &str| {
            not_global(flags, "regexp_match")?;
            with_regex(pattern, flags, |regex, _| Ok(captured(regex, s)))
        })
    });
    d.of("regexp_split_to_array", &[Text, Text], Gives::Is(Texts), |c| {
        map2(c, |s: &str, pattern: &str| with_regex(pattern, "", |regex, _| Ok(pieces(regex, s))))
    });
    d.of("regexp_split_to_array", &[Text, Text, Text], Gives::Is(Texts), |c| {
        map3(c, |s: &str, pattern: &str, flags: &str| {
            not_global(flags, "regexp_split_to_array")?;
            with_regex(pattern, flags, |regex, _| Ok(pieces(regex, s)))
        })
    });
    d.of("regexp_count", &[Text, Text], Gives::Is(Int4), |c| count(c, None, None));
    d.of("regexp_count", &[Text, Text, Int4], Gives::Is(Int4), |c| count(c, Some(2), None));
    d.of("regexp_count", &[Text, Text, Int4, Text], Gives::Is(Int4), |c| count(c, Some(2), Some(3)));
    let instr: [(&'static [super::Type], super::Kernel); 6] = [
        (&[Text, Text], |c| position(c, [None; 5])),
        (&[Text, Text, Int4], |c| position(c, [Some(2), None, None, None, None])),
        (&[Text, Text, Int4, Int4], |c| position(c, [Some(2), Some(3), None, None, None])),
        (&[Text, Text, Int4, Int4, Int4], |c| position(c, [Some(2), Some(3), Some(4), None, None])),
        (&[Text, Text, Int4, Int4, Int4, Text], |c| position(c, [Some(2), Some(3), Some(4), Some(5), None])),
        (&[Text, Text, Int4, Int4, Int4, Text, Int4], |c| position(c, [Some(2), Some(3), Some(4), Some(5), Some(6)])),
    ];
    for (types, kernel) in instr {
        d.of("regexp_instr", types, Gives::Is(Int4), kernel);
    }
    let substr: [(&'static [super::Type], super::Kernel); 5] = [
        (&[Text, Text], |c| extracted(c, [None; 4])),
        (&[Text, Text, Int4], |c| extracted(c, [Some(2), None, None, None])),
        (&[Text, Text, Int4, Int4], |c| extracted(c, [Some(2), Some(3), None, None])),
        (&[Text, Text, Int4, Int4, Text], |c| extracted(c, [Some(2), Some(3), Some(4), None])),
        (&[Text, Text, Int4, Int4, Text, Int4], |c| extracted(c, [Some(2), Some(3), Some(4), Some(5)])),
    ];
    for (types, kernel) in substr {
        d.of("regexp_substr", types, Gives::Is(Text), kernel);
    }
    for name in ["substring", "substr"] {
        d.of(name, &[Text, Text], Gives::Is(Text), |c| {
            map2(c, |s: &str, pattern: &str| {
                with_regex(pattern, "", |regex, _| {
                    let found = regex.captures(s);
                    Ok(found.and_then(|f| f.get(usize::from(f.len() > 1)).map(|m| m.as_str().to_string())))
                })
            })
        });
    }
}

fn pieces(regex: &Regex, s: &str) -> Vec<Option<String>> {
    let mut out = Vec::new();
    let mut copied = 0;
    for found in regex.find_iter(s) {
        // An empty match splits between characters, not at the ends and not right after a match.
        if found.is_empty() && (found.start() == copied || found.start() == s.len()) {
            continue;
        }
        out.push(Some(s[copied..found.start()].to_string()));
        copied = found.end();
    }
    out.push(Some(s[copied..].to_string()));
    out
}

/// The pattern of SIMILAR TO as a regular expression for the whole text.
fn of_similar(pattern: &str, escape: Option<char>) -> String {
    let mut out = String::from("^(?:");
    let mut rest = pattern.chars();
    let (mut in_class, mut parts) = (false, 0);
    while let Some(ch) = rest.next() {
        if Some(ch) == escape {
            match rest.next() {
                // `#"` parts what is before, what is wanted and what is after.
                Some('"') if !in_class => {
                    out.push_str(if parts == 0 { "){1,1}?(" } else { "){1,1}(?:" });
                    parts += 1;
                }
                Some(next) => {
                    if !next.is_alphanumeric() && next.is_ascii() {
                        out.push('\\');
                    }
                    out.push(next);
                }
                None => {}
            }
            continue;
        }
        match ch {
            ']' if in_class => {
                in_class = false;
                out.push(ch);
            }
            '\\' => out.push_str(r"\\"),
            _ if in_class => out.push(ch),
            '[' => {
                in_class = true;
                out.push(ch);
            }
            '%' => out.push_str(".*"),
            '_' => out.push('.'),
            '(' => out.push_str("(?:"),
            '.' | '^' | '$' => {
                out.push('\\');
                out.push(ch);
            }
            other => out.push(other),
        }
    }
    out.push_str(")$");
    out
}

fn escape_character(escape: &str) -> Result<Option<char>> {
    let mut characters = escape.chars();
    match (characters.next(), characters.next()) {
        (first, None) => Ok(first),
        _ => Err(Error::new(SqlState::InvalidEscapeSequence, "invalid escape string")
            .with_hint("Escape string must be empty or one character.")),
    }
}

fn similar(d: &mut Declared) {
    d.of("similar_to", &[Text, Text], Gives::Is(Bool), |c| {
        map2(c, |s: &str, pattern: &str| {
            with_regex(&of_similar(pattern, Some('\\')), "", |regex, _| Ok(regex.is_match(s)))
        })
    });
    d.of("similar_to", &[Text, Text, Text], Gives::Is(Bool), |c| {
        map3(c, |s: &str, pattern: &str, escape: &str| {
            with_regex(&of_similar(pattern, escape_character(escape)?), "", |regex, _| Ok(regex.is_match(s)))
        })
    });
    d.of("similar_to_escape", &[Text], Gives::Is(Text), |c| {
        map1(c, |pattern: &str| Ok(of_similar(pattern, Some('\\'))))
    });
    d.of("similar_to_escape", &[Text, Text], Gives::Is(Text), |c| {
        map2(c, |pattern: &str, escape: &str| Ok(of_similar(pattern, escape_character(escape)?)))
    });
    // substring(text SIMILAR pattern ESCAPE escape)
    d.of("substring", &[Text, Text, Text], Gives::Is(Text), |c| {
        map3(c, |s: &str, pattern: &str, escape: &str| {
            with_regex(&of_similar(pattern, escape_character(escape)?), "", |regex, _| {
                let found = regex.captures(s);
                Ok(found.and_then(|f| f.get(usize::from(f.len() > 1)).map(|m| m.as_str().to_string())))
            })
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_match(pattern: &str, s: &str) -> bool {
        with_regex(pattern, "", |regex, _| Ok(regex.is_match(s))).unwrap()
    }

    #[test]
    fn expressions_mean_what_they_mean_in_postgres() {
        assert!(is_match("a.b", "a\nb"));
        assert!(is_match(r"\mfoo\M", "a foo b") && !is_match(r"\mfoo\M", "afoo"));
        assert!(is_match("[[:<:]]foo", "a foo"));
        assert!(is_match("[a[]", "[") && is_match("[]a]", "]") && is_match("[a&&b]", "&"));
        assert!(is_match("^a{$", "a{"));
        assert!(!is_match("^b$", "a\nb"));
        let state = |p: &str| with_regex(p, "", |_, _| Ok(())).unwrap_err().state();
        assert_eq!(state("("), SqlState::InvalidRegularExpression);
        assert_eq!(state("*a"), SqlState::InvalidRegularExpression);
        assert_eq!(state("[a"), SqlState::InvalidRegularExpression);
        assert_eq!(state(r"(a)\1"), SqlState::FeatureNotSupported);
        assert_eq!(state("a(?=b)"), SqlState::FeatureNotSupported);
    }

    #[test]
    fn similar_patterns_match_the_whole_text() {
        let similar = |s: &str, p: &str| is_match(&of_similar(p, Some('\\')), s);
        assert!(similar("abc", "a%") && similar("abc", "_b_") && similar("abc", "%(b|d)%"));
        assert!(!similar("abc", "b") && !similar("abc", "a.c") && similar("a%", r"a\%"));
    }

    #[test]
    fn texts_are_split_between_matches() {
        let split = |p: &str, s: &str| -> Vec<String> {
            with_regex(p, "", |regex, _| Ok(pieces(regex, s))).unwrap().into_iter().flatten().collect()
        };
        assert_eq!(split(r"\s+", "a b  c"), ["a", "b", "c"]);
        assert_eq!(split("", "abc"), ["a", "b", "c"]);
        assert_eq!(split(",", ",a,"), ["", "a", ""]);
    }
}
