//! `to_char`, `to_date` and `to_timestamp` over PostgreSQL's template patterns for dates and times.

use std::fmt::Write;

use flow::{Error, Result, SqlState};

use super::super::temporal::US_PER_DAY;
use super::super::zone::Zone;
use super::Type::*;
use super::calendar::{self, days_from_civil};
use super::cells::{Call, Cell, Day, Moment, build};
use super::{Declared, Gives};

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
enum Part<'a> {
    Text(&'a str),
    Field {
        name: &'static str,
        /// Whether numbers are padded with zeros and names with blanks; `FM` says no.
        fill: bool,
        letters: Letters,
        /// `TH` or `th` after a number.
        ordinal: Option<Letters>,
    },
}

/// How the words of a field are written: as the pattern is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Letters {
    Upper,
    Capitalised,
    Lower,
}

/// Longest first, so that `MONTH` is not read as `MON` and `TH`.
const FIELDS: [&str; 53] = [
    "SSSSS", "MONTH", "Y,YYY", "A.M.", "P.M.", "A.D.", "B.C.", "HH24", "HH12", "YYYY", "IYYY", "IDDD", "SSSS", "DAY",
    "DDD", "MON", "YYY", "IYY", "FF1", "FF2", "FF3", "FF4", "FF5", "FF6", "TZH", "TZM", "AM", "PM", "AD", "BC", "CC",
    "DD", "DY", "HH", "ID", "IW", "IY", "MI", "MM", "MS", "OF", "RM", "SS", "TZ", "US", "WW", "YY", "D", "I", "J", "Q",
    "W", "Y",
];

fn parse(pattern: &str) -> Vec<Part<'_>> {
    let starts = |text: &str, word: &str| text.get(..word.len()).is_some_and(|p| p.eq_ignore_ascii_case(word));
    let mut parts = Vec::new();
    let mut rest = pattern;
    let mut fill = true;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').unwrap_or(quoted.len());
            parts.push(Part::Text(&quoted[..end]));
            rest = quoted.get(end + 1..).unwrap_or("");
            continue;
        }
        if let Some(escaped) = rest.strip_prefix('\\')
            && escaped.starts_with('"')
        {
            parts.push(Part::Text(&escaped[..1]));
            rest = &escaped[1..];
            continue;
        }
        if starts(rest, "FM") || starts(rest, "FX") || starts(rest, "TM") {
            fill &= !starts(rest, "FM");
            rest = &rest[2..];
            continue;
        }
        match FIELDS.iter().find(|f| starts(rest, f)) {
            Some(name) => {
                let written = &rest[..name.len()];
                let mut letters = written.chars().filter(|c| c.is_alphabetic());
                let letters = match (letters.next(), letters.next()) {
                    (Some(first), _) if first.is_lowercase() => Letters::Lower,
                    (_, Some(second)) if second.is_lowercase() => Letters::Capitalised,
                    _ => Letters::Upper,
                };
                rest = &rest[name.len()..];
                let ordinal = starts(rest, "TH").then(|| {
                    let upper = rest.starts_with('T');
                    rest = &rest[2..];
                    if upper { Letters::Upper } else { Letters::Lower }
                });
                parts.push(Part::Field { name, fill, letters, ordinal });
                fill = true;
            }
            None => {
                let end = rest.chars().next().map_or(rest.len(), char::len_utf8);
                parts.push(Part::Text(&rest[..end]));
                rest = &rest[end..];
            }
        }
    }
    parts
}

/// What a template writes: a moment, or an interval.
struct Fields {
    /// Astronomical for a moment.
    year: i64,
    month: i64,
    day: i64,
    /// More than 24 in an interval.
    hour: i64,
    minute: i64,
    second: i64,
    us: i64,
    /// Days since 1970; `None` for an interval.
    days: Option<i64>,
    /// Seconds east of UTC and the zone's abbreviation.
    zone: Option<(i64, String)>,
}

impl Fields {
    fn of_moment(us: i64) -> Fields {
        let (days, clock) = calendar::split(us);
        let date = calendar::date_of(days);
        Fields {
            year: date.year,
            month: date.month,
            day: date.day,
            hour: clock / 3_600_000_000,
            minute: clock / 60_000_000 % 60,
            second: clock / 1_000_000 % 60,
            us: clock % 1_000_000,
            days: Some(days),
            zone: None,
        }
    }

    fn of_interval(i: arrow::datatypes::IntervalMonthDayNano) -> Fields {
        let us = i.nanoseconds / 1_000;
        Fields {
            year: (i.months / 12).into(),
            month: (i.months % 12).into(),
            day: i.days.into(),
            hour: us / 3_600_000_000,
            minute: us / 60_000_000 % 60,
            second: us / 1_000_000 % 60,
            us: us % 1_000_000,
            days: None,
            zone: None,
        }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From Sunday on.
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const ROMAN: [&str; 12] = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"];

fn write_part(out: &mut String, part: &Part<'_>, t: &Fields) -> Result<()> {
    let (name, fill, letters, ordinal) = match part {
        Part::Text(text) => {
            out.push_str(text);
            return Ok(());
        }
        Part::Field { name, fill, letters, ordinal } => (*name, *fill, *letters, *ordinal),
    };
    let is_interval = t.days.is_none();
    let days = t.days.unwrap_or_default();
    let half = t.hour.rem_euclid(12);
    let year = if is_interval || t.year > 0 { t.year } else { 1 - t.year };
    let needs_date = |what: Option<(i64, usize)>| match what {
        Some(_) if is_interval => {
            Err(Error::new(SqlState::InvalidDatetimeFormat, "invalid format specification for an interval value")
                .with_hint("Intervals are not tied to specific calendar dates."))
        }
        what => Ok(what),
    };
    let iso = || calendar::iso_week(days);
    let number: Option<(i64, usize)> = match name {
        "YYYY" => Some((year, 4)),
        "YYY" => Some((year.rem_euclid(1_000), 3)),
        "YY" => Some((year.rem_euclid(100), 2)),
        "Y" => Some((year.rem_euclid(10), 1)),
        "IYYY" => needs_date(Some((iso().0, 4)))?,
        "IYY" => needs_date(Some((iso().0.rem_euclid(1_000), 3)))?,
        "IY" => needs_date(Some((iso().0.rem_euclid(100), 2)))?,
        "I" => needs_date(Some((iso().0.rem_euclid(10), 1)))?,
        "CC" if is_interval => Some((t.year / 100, 2)),
        "CC" => Some((calendar::century(t.year), 2)),
        "MM" => Some((t.month, 2)),
        "DD" => Some((t.day, 2)),
        "DDD" => needs_date(Some((calendar::day_of_year(days), 3)))?,
        "IDDD" => needs_date(Some((days - calendar::iso_year_start(iso().0) + 1, 3)))?,
        "D" => needs_date(Some((calendar::weekday(days) + 1, 1)))?,
        "ID" => needs_date(Some(((calendar::weekday(days) + 6) % 7 + 1, 1)))?,
        "Q" => Some(((t.month - 1) / 3 + 1, 1)),
        "W" => Some(((t.day - 1) / 7 + 1, 1)),
        "WW" => needs_date(Some(((calendar::day_of_year(days) - 1) / 7 + 1, 2)))?,
        "IW" => needs_date(Some((iso().1, 2)))?,
        "J" => needs_date(Some((days + 2_440_588, 1)))?,
        "HH24" => Some((t.hour, 2)),
        "HH12" | "HH" => Some((if half == 0 { 12 } else { half }, 2)),
        "MI" => Some((t.minute, 2)),
        "SS" => Some((t.second, 2)),
        "SSSS" | "SSSSS" => Some((t.hour * 3_600 + t.minute * 60 + t.second, 1)),
        "MS" | "FF3" => Some((t.us / 1_000, 3)),
        "US" | "FF6" => Some((t.us, 6)),
        "FF1" => Some((t.us / 100_000, 1)),
        "FF2" => Some((t.us / 10_000, 2)),
        "FF4" => Some((t.us / 100, 4)),
        "FF5" => Some((t.us / 10, 5)),
        _ => None,
    };
    // Writing to a String cannot fail.
    if let Some((value, width)) = number {
        let width = if value < 0 { width + 1 } else { width };
        let _ = if fill { write!(out, "{value:0width$}") } else { write!(out, "{value}") };
        if let Some(letters) = ordinal {
            word(out, suffix(value), letters, None);
        }
        return Ok(());
    }
    match name {
        "Y,YYY" => {
            let _ = write!(out, "{},{:03}", year / 1_000, year.rem_euclid(1_000));
        }
        "MONTH" | "MON" | "RM" if t.month == 0 => {}
        "MONTH" => word(out, MONTHS[(t.month - 1).rem_euclid(12) as usize], letters, fill.then_some(9)),
        "MON" => word(out, &MONTHS[(t.month - 1).rem_euclid(12) as usize][..3], letters, None),
        "RM" => {
            let letters = if letters == Letters::Lower { Letters::Lower } else { Letters::Upper };
            word(out, ROMAN[(t.month - 1).rem_euclid(12) as usize], letters, fill.then_some(4));
        }
        "DAY" | "DY" => {
            needs_date(Some((0, 0)))?;
            let name = DAYS[calendar::weekday(days) as usize];
            match name_is_full(part) {
                true => word(out, name, letters, fill.then_some(9)),
                false => word(out, &name[..3], letters, None),
            }
        }
        "A.M." | "P.M." => word(out, if t.hour.rem_euclid(24) < 12 { "A.M." } else { "P.M." }, both(letters), None),
        "AM" | "PM" => word(out, if t.hour.rem_euclid(24) < 12 { "AM" } else { "PM" }, both(letters), None),
        "A.D." | "B.C." => word(out, if t.year > 0 { "A.D." } else { "B.C." }, both(letters), None),
        "AD" | "BC" => word(out, if t.year > 0 { "AD" } else { "BC" }, both(letters), None),
        "TZ" => {
            if let Some((_, name)) = &t.zone {
                word(out, name, both(letters), None);
            }
        }
        "TZH" | "OF" => {
            let offset = t.zone.as_ref().map_or(0, |(offset, _)| *offset);
            let _ = write!(out, "{}{:02}", if offset < 0 { '-' } else { '+' }, offset.abs() / 3_600);
            if name == "OF" && offset % 3_600 != 0 {
                let _ = write!(out, ":{:02}", offset.abs() % 3_600 / 60);
            }
        }
        _ => {
            let offset = t.zone.as_ref().map_or(0, |(offset, _)| *offset);
            let _ = write!(out, "{:02}", offset.abs() % 3_600 / 60);
        }
    }
    Ok(())
}

fn name_is_full(part: &Part<'_>) -> bool {
    matches!(part, Part::Field { name: "DAY", .. })
}

/// Words that are upper case or lower case, but not capitalised.
fn both(letters: Letters) -> Letters {
    if letters == Letters::Capitalised { Letters::Upper } else { letters }
}

fn suffix(value: i64) -> &'static str {
    match (value.abs() % 100, value.abs() % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    }
}

fn word(out: &mut String, word: &str, letters: Letters, width: Option<usize>) {
    let word = match letters {
        Letters::Upper => word.to_uppercase(),
        Letters::Capitalised => word.to_string(),
        Letters::Lower => word.to_lowercase(),
    };
    match width {
        Some(width) => {
            let _ = write!(out, "{word:width$}");
        }
        None => out.push_str(&word),
    }
}

/// Writes values by a template; one template for all rows is parsed once.
fn formatted<'a, V: Cell<'a>>(
    call: &'a Call<'_>,
    fields: impl Fn(V) -> Result<Fields>,
) -> Result<arrow::array::ArrayRef> {
    let (values, patterns) = (call.column::<V>(0), call.column::<&str>(1));
    let mut parsed: Option<(&str, Vec<Part<'_>>)> = None;
    build(call, |row| {
        let (Some(value), Some(pattern)) = (values.get(row), patterns.get(row)) else { return Ok(None) };
        if pattern.is_empty() {
            return Ok(None);
        }
        if parsed.as_ref().is_none_or(|(known, _)| *known != pattern) {
            parsed = Some((pattern, parse(pattern)));
        }
        let fields = fields(value)?;
        let mut out = String::new();
        for part in parsed.iter().flat_map(|(_, parts)| parts) {
            write_part(&mut out, part, &fields)?;
        }
        Ok(Some(out))
    })
}

/// Reads texts by a template.
fn read_all(call: &Call<'_>, value: impl Fn(i64) -> Result<Moment>) -> Result<arrow::array::ArrayRef> {
    let (texts, patterns) = (call.column::<&str>(0), call.column::<&str>(1));
    let mut parsed: Option<(&str, Vec<Part<'_>>)> = None;
    build(call, |row| {
        let (Some(text), Some(pattern)) = (texts.get(row), patterns.get(row)) else { return Ok(None) };
        if parsed.as_ref().is_none_or(|(known, _)| *known != pattern) {
            parsed = Some((pattern, parse(pattern)));
        }
        match &parsed {
            Some((_, parts)) => value(read(text, parts, &call.zone)?).map(Some),
            None => Ok(None),
        }
    })
}

/// What reading a text has found so far.
#[derive(Default)]
struct Found {
    year: Option<i64>,
    month: Option<i64>,
    day: Option<i64>,
    day_of_year: Option<i64>,
    iso_year: Option<i64>,
    iso_week: Option<i64>,
    iso_day: Option<i64>,
    week: Option<i64>,
    week_of_month: Option<i64>,
    century: Option<i64>,
    julian: Option<i64>,
    hour: Option<i64>,
    half: bool,
    pm: Option<bool>,
    bc: bool,
    minute: i64,
    second: i64,
    us: i64,
    of_day: Option<i64>,
    offset_hours: Option<i64>,
    offset_minutes: i64,
}

fn is_digit_field(part: Option<&Part<'_>>) -> bool {
    match part {
        Some(Part::Field { name, .. }) => !matches!(
            *name,
            "MONTH"
                | "MON"
                | "DAY"
                | "DY"
                | "AM"
                | "PM"
                | "A.M."
                | "P.M."
                | "AD"
                | "BC"
                | "A.D."
                | "B.C."
                | "RM"
                | "TZ"
        ),
        Some(Part::Text(text)) => text.starts_with(|c: char| c.is_ascii_digit()),
        None => false,
    }
}

/// A year of fewer digits is the nearest to 2020.
fn near_2020(year: i64, digits: usize) -> i64 {
    match digits {
        1..=3 if year < 70 => year + 2_000,
        1..=3 if year < 100 => year + 1_900,
        1..=3 if year < 520 => year + 2_000,
        1..=3 => year + 1_000,
        _ => year,
    }
}

/// The local moment that `text` gives in the template, in microseconds since 1970.
fn read(text: &str, parts: &[Part<'_>], session: &Zone) -> Result<i64> {
    let bad = |message: String| Error::new(SqlState::InvalidDatetimeFormat, message);
    let overflow =
        || Error::new(SqlState::DatetimeFieldOverflow, format!("date/time field value out of range: \"{text}\""));
    let mut found = Found::default();
    let mut rest = text.trim_start();
    for (i, part) in parts.iter().enumerate() {
        if rest.is_empty() {
            break;
        }
        let name = match part {
            Part::Text(literal) => {
                for ch in literal.chars() {
                    if ch.is_alphanumeric() {
                        let mut characters = rest.chars();
                        characters.next();
                        rest = characters.as_str();
                    } else {
                        // A separator stands for any, and may be missing.
                        let mut characters = rest.chars();
                        if characters.next().is_some_and(|c| !c.is_alphanumeric() && c != '+') {
                            rest = characters.as_str();
                        }
                    }
                }
                continue;
            }
            Part::Field { name, .. } => *name,
        };
        rest = rest.trim_start();
        let mut words = |list: &[&str], short: bool| -> Result<i64> {
            let matching = |word: &&str| {
                let word = if short { &word[..3] } else { word };
                rest.get(..word.len()).is_some_and(|r| r.eq_ignore_ascii_case(word))
            };
            let at = list.iter().position(matching).ok_or_else(|| {
                bad(format!("invalid value \"{}\" for \"{name}\"", rest.chars().take(name.len()).collect::<String>()))
                    .with_detail("The given value did not match any of the allowed values for this field.")
            })?;
            rest = &rest[if short { 3 } else { list[at].len() }..];
            Ok(at as i64)
        };
        match name {
            "MONTH" => found.month = Some(words(&MONTHS, false).or_else(|_| words(&MONTHS, true))? + 1),
            "MON" => found.month = Some(words(&MONTHS, true)? + 1),
            "RM" => {
                let longest = (0..12).rev().max_by_key(|i: &usize| {
                    let word = ROMAN[*i];
                    if rest.get(..word.len()).is_some_and(|r| r.eq_ignore_ascii_case(word)) { word.len() } else { 0 }
                });
                let at = longest.unwrap_or_default();
                rest = rest.get(ROMAN[at].len()..).unwrap_or("");
                found.month = Some(at as i64 + 1);
            }
            "DAY" => {
                words(&DAYS, false).or_else(|_| words(&DAYS, true))?;
            }
            "DY" => {
                words(&DAYS, true)?;
            }
            "AM" | "PM" | "A.M." | "P.M." => {
                let at = words(&["A.M.", "P.M.", "AM", "PM"], false)?;
                found.pm = Some(at % 2 == 1);
                found.half = true;
            }
            "AD" | "BC" | "A.D." | "B.C." => found.bc = words(&["A.D.", "B.C.", "AD", "BC"], false)? % 2 == 1,
            "TZ" | "OF" => {
                return Err(Error::unsupported(format!("formatting field \"{name}\" is only supported in to_char")));
            }
            _ => {
                let width = match name {
                    "YYYY" | "IYYY" => 4,
                    "YYY" | "IYY" | "DDD" | "IDDD" | "MS" | "FF3" => 3,
                    "US" | "FF6" => 6,
                    "FF5" | "SSSS" | "SSSSS" => 5,
                    "FF4" => 4,
                    "Y" | "I" | "D" | "ID" | "Q" | "W" | "FF1" => 1,
                    "J" => 7,
                    "Y,YYY" => 5,
                    _ => 2,
                };
                let signed = rest.starts_with(['-', '+']) && matches!(name, "YYYY" | "TZH");
                let body = if signed { &rest[1..] } else { rest };
                let is_part = |c: char| c.is_ascii_digit() || c == ',' && name == "Y,YYY";
                let available = body.chars().take_while(|c| is_part(*c)).count();
                let take = if is_digit_field(parts.get(i + 1)) { available.min(width) } else { available };
                if take == 0 {
                    let shown: String = rest.chars().take(width).collect();
                    return Err(bad(format!("invalid value \"{shown}\" for \"{name}\""))
                        .with_detail("Value must be an integer."));
                }
                let digits: String = body[..take].chars().filter(char::is_ascii_digit).collect();
                let mut value: i64 = digits.parse().map_err(|_| overflow())?;
                if signed && rest.starts_with('-') {
                    value = -value;
                }
                rest = &body[take..];
                // A fraction counts by its digits.
                let fraction = |digits: &str| {
                    let padded: String = digits.chars().chain(std::iter::repeat('0')).take(6).collect();
                    padded.parse::<i64>().unwrap_or_default()
                };
                match name {
                    "YYYY" | "Y,YYY" => found.year = Some(value),
                    "YYY" | "YY" | "Y" => found.year = Some(near_2020(value, take)),
                    "IYYY" => found.iso_year = Some(value),
                    "IYY" | "IY" | "I" => found.iso_year = Some(near_2020(value, take)),
                    "CC" => found.century = Some(value),
                    "MM" => found.month = Some(value),
                    "DD" => found.day = Some(value),
                    "DDD" => found.day_of_year = Some(value),
                    "ID" => found.iso_day = Some(value),
                    "IW" => found.iso_week = Some(value),
                    "WW" => found.week = Some(value),
                    "W" => found.week_of_month = Some(value),
                    "J" => found.julian = Some(value),
                    "HH24" => found.hour = Some(value),
                    "HH" | "HH12" => (found.hour, found.half) = (Some(value), true),
                    "MI" => found.minute = value,
                    "SS" => found.second = value,
                    "SSSS" | "SSSSS" => found.of_day = Some(value),
                    "MS" | "US" | "FF1" | "FF2" | "FF3" | "FF4" | "FF5" | "FF6" => found.us += fraction(&digits),
                    "TZH" => found.offset_hours = Some(value),
                    "TZM" => found.offset_minutes = value,
                    _ => {}
                }
            }
        }
    }
    let days = found.days(text)?;
    let mut hour = found.hour.unwrap_or_default();
    if found.half {
        if !(1..=12).contains(&hour) {
            return Err(bad(format!("hour \"{hour}\" is invalid for the 12-hour clock"))
                .with_hint("Use the 24-hour clock, or give an hour between 1 and 12."));
        }
        hour = match found.pm {
            Some(true) if hour < 12 => hour + 12,
            Some(false) | None if hour == 12 => 0,
            _ => hour,
        };
    }
    if let Some(seconds) = found.of_day {
        (hour, found.minute, found.second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    }
    if !(0..=24).contains(&hour) || !(0..60).contains(&found.minute) || !(0..=60).contains(&found.second) {
        return Err(overflow());
    }
    let local = days * US_PER_DAY + ((hour * 60 + found.minute) * 60 + found.second) * 1_000_000 + found.us;
    Ok(match found.offset_hours {
        Some(hours) => {
            let offset = hours * 3_600 + hours.signum().min(1) * found.offset_minutes * 60;
            let utc = local - offset * 1_000_000;
            session.to_local(utc).ok_or_else(overflow)?
        }
        None => local,
    })
}

impl Found {
    fn days(&self, text: &str) -> Result<i64> {
        let overflow =
            || Error::new(SqlState::DatetimeFieldOverflow, format!("date/time field value out of range: \"{text}\""));
        if let Some(julian) = self.julian {
            return Ok(julian - 2_440_588);
        }
        if let (Some(year), Some(week)) = (self.iso_year, self.iso_week) {
            let day = self.iso_day.unwrap_or(1);
            if !(1..=53).contains(&week) || !(1..=7).contains(&day) {
                return Err(overflow());
            }
            return Ok(calendar::iso_year_start(year) + (week - 1) * 7 + day - 1);
        }
        let year = match (self.year.or(self.iso_year), self.century) {
            (Some(year), _) if self.bc => 1 - year,
            // There is no year zero.
            (Some(0), None) => 0,
            (Some(year), _) if year < 0 => year + 1,
            (Some(year), _) => year,
            (None, Some(century)) => (century - 1) * 100 + 1,
            (None, None) => 0,
        };
        if let Some(day) = self.day_of_year {
            if !(1..=if calendar::is_leap(year) { 366 } else { 365 }).contains(&day) {
                return Err(overflow());
            }
            return Ok(days_from_civil(year, 1, 1) + day - 1);
        }
        if let Some(week) = self.week {
            return Ok(days_from_civil(year, 1, 1) + (week - 1) * 7);
        }
        let month = self.month.unwrap_or(1);
        let day = self.day.or(self.week_of_month.map(|w| (w - 1) * 7 + 1)).unwrap_or(1);
        if !(1..=12).contains(&month) || !(1..=calendar::days_in_month(year, month)).contains(&day) {
            return Err(overflow());
        }
        if !(-4_713..=294_276).contains(&year) {
            return Err(overflow());
        }
        Ok(days_from_civil(year, month, day))
    }
}

pub(super) fn declare(d: &mut Declared) {
    d.of("to_char", &[Timestamp, Text], Gives::Is(Text), |c| formatted(c, |v: Moment| Ok(Fields::of_moment(v.0))));
    d.zoned("to_char", &[Timestamptz, Text], Gives::Is(Text), |c| {
        formatted(c, |v: Moment| {
            let overflow = || Error::new(SqlState::DatetimeFieldOverflow, "timestamp out of range");
            let here = c.zone.to_local(v.0).ok_or_else(overflow)?;
            let offset = (here - v.0) / 1_000_000;
            Ok(Fields { zone: Some((offset, c.zone.abbreviation(v.0))), ..Fields::of_moment(here) })
        })
    });
    d.of("to_char", &[Interval, Text], Gives::Is(Text), |c| formatted(c, |v| Ok(Fields::of_interval(v))));
    d.of("to_date", &[Text, Text], Gives::Is(Date), |c| {
        let (texts, patterns) = (c.column::<&str>(0), c.column::<&str>(1));
        build(c, |row| {
            let (Some(text), Some(pattern)) = (texts.get(row), patterns.get(row)) else { return Ok(None) };
            let days = read(text, &parse(pattern), &Zone::UTC)?.div_euclid(US_PER_DAY);
            i32::try_from(days)
                .map(|days| Some(Day(days)))
                .map_err(|_| Error::new(SqlState::DatetimeFieldOverflow, format!("date out of range: \"{text}\"")))
        })
    });
    d.zoned("to_timestamp", &[Text, Text], Gives::Is(Timestamptz), |c| {
        read_all(c, |local| {
            let overflow = || Error::new(SqlState::DatetimeFieldOverflow, "timestamp out of range");
            let at = chrono::DateTime::from_timestamp_micros(local).ok_or_else(overflow)?;
            c.zone.to_utc(at.naive_utc()).map(Moment).ok_or_else(overflow)
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_written_as_in_postgres() {
        let us = days_from_civil(2024, 2, 5) * US_PER_DAY + ((15 * 60 + 4) * 60 + 9) * 1_000_000 + 70_800;
        for (pattern, expected) in [
            ("YYYY-MM-DD HH24:MI:SS.MS", "2024-02-05 15:04:09.070"),
            ("DD Mon YYYY", "05 Feb 2024"),
            ("FMMonth FMDD, YYYY", "February 5, 2024"),
            ("DAY|Dy|dy", "MONDAY   |Mon|mon"),
            ("HH12:MI AM", "03:04 PM"),
            ("HH:MI am", "03:04 pm"),
            ("\"Q\"Q IYYY-IW D DDD US", "Q1 2024-06 2 036 070800"),
            ("yyyy/mm", "2024/02"),
            ("FMDDth FMMonth", "5th February"),
            ("Y,YYY CC W WW J", "2,024 21 1 06 2460346"),
        ] {
            let mut out = String::new();
            for part in parse(pattern) {
                write_part(&mut out, &part, &Fields::of_moment(us)).unwrap();
            }
            assert_eq!(out, expected, "{pattern}");
        }
    }

    #[test]
    fn texts_are_read_by_their_template() {
        let at = |text: &str, pattern: &str| read(text, &parse(pattern), &Zone::UTC);
        let day = |y, m, d| days_from_civil(y, m, d) * US_PER_DAY;
        assert_eq!(at("2024-02-29", "YYYY-MM-DD").unwrap(), day(2024, 2, 29));
        assert_eq!(at("20240229", "YYYYMMDD").unwrap(), day(2024, 2, 29));
        assert_eq!(at("05 Dec 2000", "DD Mon YYYY").unwrap(), day(2000, 12, 5));
        assert_eq!(at("3/7/99", "MM/DD/YY").unwrap(), day(1999, 3, 7));
        assert_eq!(at("2024-06-1", "IYYY-IW-ID").unwrap(), day(2024, 2, 5));
        assert_eq!(at("01:30 PM", "HH12:MI AM").unwrap() - day(0, 1, 1), 13 * 3_600_000_000 + 30 * 60_000_000);
        assert_eq!(at("2024-13-01", "YYYY-MM-DD").unwrap_err().state(), SqlState::DatetimeFieldOverflow);
        assert_eq!(at("abc", "YYYY").unwrap_err().state(), SqlState::InvalidDatetimeFormat);
    }
}
