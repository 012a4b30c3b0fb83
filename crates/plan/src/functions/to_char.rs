//! `to_char(timestamp, pattern)` with Postgres' template patterns; DataFusion's takes the ones of `strftime`.

use std::fmt::Write;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use chrono::{Datelike, NaiveDateTime, Timelike};
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use flow::{Error, SqlState};

use super::{cast, type_name, zone::Zone};

/// Dates and timestamps as text. A timestamp with time zone is written in UTC.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct ToChar {
    signature: Signature,
}

impl ToChar {
    pub fn new() -> ToChar {
        ToChar { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl Default for ToChar {
    fn default() -> ToChar {
        ToChar::new()
    }
}

impl ScalarUDFImpl for ToChar {
    fn name(&self) -> &str {
        "to_char"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let [value, _] = arguments else { return plan_err!("function to_char takes a value and a pattern") };
        let wanted = match value {
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
            DataType::Date32 | DataType::Date64 | DataType::Null => DataType::Timestamp(TimeUnit::Microsecond, None),
            other => {
                let message = format!("function to_char({}, text) does not exist", type_name(other));
                let error = Error::new(SqlState::UndefinedFunction, message)
                    .with_hint("to_char takes dates and timestamps; use round() and ::text for numbers.");
                return Err(DataFusionError::External(Box::new(error)));
            }
        };
        Ok(vec![wanted, DataType::Utf8View])
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value, pattern] = args.args.as_slice() else {
            return plan_err!("function to_char takes a value and a pattern");
        };
        let scalar = matches!((value, pattern), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { args.number_rows };
        let local = DataType::Timestamp(TimeUnit::Microsecond, None);
        let values: ArrayRef = cast::convert(&value.to_array(rows)?, &local, &Zone::UTC)?;
        let values = values.as_primitive::<TimestampMicrosecondType>();
        let patterns = pattern.to_array(rows)?;
        let patterns = patterns.as_string_view();
        let mut out = StringViewBuilder::with_capacity(rows);
        let mut buffer = String::new();
        // One pattern for all rows is parsed once.
        let mut parsed: Option<(&str, Vec<Part<'_>>)> = None;
        for i in 0..rows {
            let at = values.is_valid(i).then(|| chrono::DateTime::from_timestamp_micros(values.value(i))).flatten();
            let (Some(at), true) = (at, patterns.is_valid(i)) else {
                out.append_null();
                continue;
            };
            let pattern = patterns.value(i);
            if parsed.as_ref().is_none_or(|(p, _)| *p != pattern) {
                parsed = Some((pattern, parse(pattern)));
            }
            buffer.clear();
            for part in parsed.iter().flat_map(|(_, parts)| parts) {
                write_part(&mut buffer, part, at.naive_utc());
            }
            out.append_value(&buffer);
        }
        let out = out.finish();
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&out, 0)?)
        } else {
            ColumnarValue::Array(std::sync::Arc::new(out))
        })
    }
}

/// A piece of a pattern.
#[derive(Debug, PartialEq)]
enum Part<'a> {
    Text(&'a str),
    /// A template pattern and whether `FM` suppresses its padding.
    Field {
        name: &'static str,
        fill: bool,
        letters: Letters,
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
const FIELDS: [&str; 31] = [
    "MONTH", "HH24", "HH12", "YYYY", "IYYY", "Y,YYY", "A.M.", "P.M.", "SSSS", "DAY", "DDD", "MON", "YYY", "CC", "AM",
    "PM", "DD", "DY", "HH", "ID", "IW", "MI", "MM", "MS", "SS", "US", "WW", "YY", "D", "J", "Q",
];

fn parse(pattern: &str) -> Vec<Part<'_>> {
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
        if rest.get(..2).is_some_and(|p| p.eq_ignore_ascii_case("FM")) {
            fill = false;
            rest = &rest[2..];
            continue;
        }
        let field = FIELDS.iter().find(|f| rest.get(..f.len()).is_some_and(|p| p.eq_ignore_ascii_case(f)));
        match field {
            Some(name) => {
                let written = &rest[..name.len()];
                let mut letters = written.chars().filter(|c| c.is_alphabetic());
                let letters = match (letters.next(), letters.next()) {
                    (Some(first), _) if first.is_lowercase() => Letters::Lower,
                    (_, Some(second)) if second.is_lowercase() => Letters::Capitalised,
                    _ => Letters::Upper,
                };
                parts.push(Part::Field { name, fill, letters });
                fill = true;
                rest = &rest[name.len()..];
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

fn write_part(out: &mut String, part: &Part<'_>, t: NaiveDateTime) {
    let (name, fill, letters) = match part {
        Part::Text(text) => return out.push_str(text),
        Part::Field { name, fill, letters } => (*name, *fill, *letters),
    };
    // Writing to a String cannot fail.
    let mut number = |value: i64, width: usize| {
        let _ = if fill { write!(out, "{value:0width$}") } else { write!(out, "{value}") };
    };
    let half = i64::from(t.hour() % 12);
    let hour12 = if half == 0 { 12 } else { half };
    let year = i64::from(t.year());
    match name {
        "YYYY" => number(year, 4),
        "IYYY" => number(i64::from(t.iso_week().year()), 4),
        "YYY" => number(year.rem_euclid(1_000), 3),
        "YY" => number(year.rem_euclid(100), 2),
        "CC" => number((year - 1).div_euclid(100) + 1, 2),
        "MM" => number(i64::from(t.month()), 2),
        "DD" => number(i64::from(t.day()), 2),
        "DDD" => number(i64::from(t.ordinal()), 3),
        "D" => number(i64::from(t.weekday().num_days_from_sunday()) + 1, 1),
        "ID" => number(i64::from(t.weekday().number_from_monday()), 1),
        "Q" => number(i64::from((t.month() - 1) / 3 + 1), 1),
        "WW" => number(i64::from((t.ordinal() - 1) / 7 + 1), 2),
        "IW" => number(i64::from(t.iso_week().week()), 2),
        "J" => number(i64::from(t.num_days_from_ce()) + 1_721_425, 1),
        "HH24" => number(i64::from(t.hour()), 2),
        "HH12" | "HH" => number(hour12, 2),
        "MI" => number(i64::from(t.minute()), 2),
        "SS" => number(i64::from(t.second()), 2),
        "SSSS" => number(i64::from(t.num_seconds_from_midnight()), 1),
        "MS" => number(i64::from(t.and_utc().timestamp_subsec_millis()), 3),
        "US" => number(i64::from(t.and_utc().timestamp_subsec_micros()), 6),
        "Y,YYY" => {
            let _ = write!(out, "{},{:03}", year / 1_000, year.rem_euclid(1_000));
        }
        "MONTH" => word(out, MONTHS[t.month0() as usize], letters, fill.then_some(9)),
        "MON" => word(out, &MONTHS[t.month0() as usize][..3], letters, None),
        "DAY" => word(out, DAYS[t.weekday().num_days_from_monday() as usize], letters, fill.then_some(9)),
        "DY" => word(out, &DAYS[t.weekday().num_days_from_monday() as usize][..3], letters, None),
        "A.M." | "P.M." => word(out, if t.hour() < 12 { "A.M." } else { "P.M." }, letters, None),
        _ => word(out, if t.hour() < 12 { "AM" } else { "PM" }, letters, None),
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
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_read_as_in_postgres() {
        let t = chrono::NaiveDate::from_ymd_opt(2024, 2, 5).unwrap().and_hms_micro_opt(15, 4, 9, 70_800).unwrap();
        for (pattern, expected) in [
            ("YYYY-MM-DD HH24:MI:SS.MS", "2024-02-05 15:04:09.070"),
            ("DD Mon YYYY", "05 Feb 2024"),
            ("FMMonth FMDD, YYYY", "February 5, 2024"),
            ("DAY|Dy|dy", "MONDAY   |Mon|mon"),
            ("HH12:MI AM", "03:04 PM"),
            ("HH:MI am", "03:04 pm"),
            ("\"Q\"Q IYYY-IW D DDD US", "Q1 2024-06 2 036 070800"),
            ("yyyy/mm", "2024/02"),
        ] {
            let mut out = String::new();
            for part in parse(pattern) {
                write_part(&mut out, &part, t);
            }
            assert_eq!(out, expected, "{pattern}");
        }
    }
}
