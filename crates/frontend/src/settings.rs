//! The session settings that decide how values look as text.

use chrono::{NaiveDateTime, Offset, TimeZone as _};
use chrono_tz::OffsetName;
use flow::{Error, Result, SqlState};

/// Settings under which values are written and read as text. Cheap to copy: taken once per execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TextSettings {
    pub time_zone: TimeZone,
    pub date_style: DateStyle,
    pub date_order: DateOrder,
    pub interval_style: IntervalStyle,
    pub bytea_output: ByteaOutput,
    /// Above 0: the shortest form that reads back as the same number. Otherwise 15 (float8) or 6 (float4) digits plus this.
    pub extra_float_digits: FloatDigits,
    /// What `now` and `today` mean in input: the start of the transaction, in microseconds since the Unix epoch. Without
    /// it these words are refused.
    pub now_us: Option<i64>,
}

/// `extra_float_digits`, -15 to 3; 1 unless set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatDigits(pub i8);

impl Default for FloatDigits {
    fn default() -> FloatDigits {
        FloatDigits(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DateStyle {
    #[default]
    Iso,
    Sql,
    Postgres,
    German,
}

/// Which of day and month comes first in dates that do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DateOrder {
    #[default]
    Mdy,
    Dmy,
    Ymd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IntervalStyle {
    #[default]
    Postgres,
    PostgresVerbose,
    SqlStandard,
    Iso8601,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ByteaOutput {
    #[default]
    Hex,
    Escape,
}

fn invalid(name: &str, value: &str) -> Error {
    Error::new(SqlState::InvalidParameterValue, format!("invalid value for parameter \"{name}\": \"{value}\""))
}

/// The new style and order that `SET datestyle = value` asks for, given the present ones; words not named stay.
pub fn parse_date_style(value: &str, mut style: DateStyle, mut order: DateOrder) -> Result<(DateStyle, DateOrder)> {
    for word in value.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty()) {
        match word.to_ascii_lowercase().as_str() {
            "iso" => style = DateStyle::Iso,
            "sql" => style = DateStyle::Sql,
            "postgres" => style = DateStyle::Postgres,
            "german" => (style, order) = (DateStyle::German, DateOrder::Dmy),
            "ymd" => order = DateOrder::Ymd,
            "dmy" | "euro" | "european" => order = DateOrder::Dmy,
            "mdy" | "us" | "noneuro" | "noneuropean" => order = DateOrder::Mdy,
            "default" => (style, order) = (DateStyle::Iso, DateOrder::Mdy),
            _ => return Err(invalid("DateStyle", value)),
        }
    }
    Ok((style, order))
}

/// The value of `SHOW datestyle`.
pub fn show_date_style(style: DateStyle, order: DateOrder) -> String {
    let style = match style {
        DateStyle::Iso => "ISO",
        DateStyle::Sql => "SQL",
        DateStyle::Postgres => "Postgres",
        DateStyle::German => "German",
    };
    let order = match order {
        DateOrder::Mdy => "MDY",
        DateOrder::Dmy => "DMY",
        DateOrder::Ymd => "YMD",
    };
    format!("{style}, {order}")
}

impl IntervalStyle {
    pub fn parse(value: &str) -> Result<IntervalStyle> {
        match value.to_ascii_lowercase().as_str() {
            "postgres" => Ok(IntervalStyle::Postgres),
            "postgres_verbose" => Ok(IntervalStyle::PostgresVerbose),
            "sql_standard" => Ok(IntervalStyle::SqlStandard),
            "iso_8601" => Ok(IntervalStyle::Iso8601),
            _ => Err(invalid("IntervalStyle", value)),
        }
    }

    pub fn show(self) -> &'static str {
        match self {
            IntervalStyle::Postgres => "postgres",
            IntervalStyle::PostgresVerbose => "postgres_verbose",
            IntervalStyle::SqlStandard => "sql_standard",
            IntervalStyle::Iso8601 => "iso_8601",
        }
    }
}

impl ByteaOutput {
    pub fn parse(value: &str) -> Result<ByteaOutput> {
        match value.to_ascii_lowercase().as_str() {
            "hex" => Ok(ByteaOutput::Hex),
            "escape" => Ok(ByteaOutput::Escape),
            _ => Err(invalid("bytea_output", value)),
        }
    }

    pub fn show(self) -> &'static str {
        match self {
            ByteaOutput::Hex => "hex",
            ByteaOutput::Escape => "escape",
        }
    }
}

impl FloatDigits {
    pub fn parse(value: &str) -> Result<FloatDigits> {
        match value.trim().parse::<i8>() {
            Ok(digits) if (-15..=3).contains(&digits) => Ok(FloatDigits(digits)),
            _ => Err(invalid("extra_float_digits", value)),
        }
    }
}

/// A time zone by name, or a fixed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TimeZone {
    #[default]
    Utc,
    /// Seconds east of Greenwich.
    Fixed(i32),
    Named(chrono_tz::Tz),
}

/// Microseconds beyond which chrono has no calendar; there the zone counts as UTC.
const CALENDAR_US_MAX: i64 = 8_000_000_000_000_000_000;

impl TimeZone {
    /// Reads the value of `SET timezone`: a name of the IANA database in any case, `UTC`, `+02`, `-05:30`, or the hours
    /// east as a plain number.
    pub fn parse(text: &str) -> Result<TimeZone> {
        let name = text.trim();
        match name.to_ascii_lowercase().as_str() {
            "utc" | "etc/utc" | "z" | "zulu" | "gmt" | "default" | "localtime" => return Ok(TimeZone::Utc),
            _ => {}
        }
        if let Some(seconds) = parse_offset(name) {
            return Ok(if seconds == 0 { TimeZone::Utc } else { TimeZone::Fixed(seconds) });
        }
        if let Ok(zone) = name.parse::<chrono_tz::Tz>() {
            return Ok(TimeZone::Named(zone));
        }
        let known = chrono_tz::TZ_VARIANTS.iter().find(|zone| zone.name().eq_ignore_ascii_case(name));
        known.map(|zone| TimeZone::Named(*zone)).ok_or_else(|| invalid("TimeZone", text))
    }

    /// The value of `SHOW timezone`.
    pub fn show(self) -> String {
        match self {
            TimeZone::Utc => "UTC".to_string(),
            TimeZone::Fixed(seconds) => {
                let mut text = vec![b'<'];
                crate::encode::datetime::write_offset(&mut text, seconds);
                text.push(b'>');
                crate::encode::datetime::write_offset(&mut text, -seconds);
                String::from_utf8(text).unwrap_or_default()
            }
            TimeZone::Named(zone) => zone.name().to_string(),
        }
    }

    /// Seconds east of Greenwich at the instant `us` (microseconds since the Unix epoch, UTC).
    pub fn offset_at(self, us: i64) -> i32 {
        match self {
            TimeZone::Utc => 0,
            TimeZone::Fixed(seconds) => seconds,
            TimeZone::Named(zone) => match calendar(us) {
                Some(at) => zone.offset_from_utc_datetime(&at).fix().local_minus_utc(),
                None => 0,
            },
        }
    }

    /// The zone's abbreviation at the instant `us`, where it has one.
    pub(crate) fn abbreviation_at(self, us: i64) -> Option<String> {
        match self {
            TimeZone::Utc => Some("UTC".to_string()),
            TimeZone::Fixed(_) => None,
            TimeZone::Named(zone) => {
                calendar(us).and_then(|at| zone.offset_from_utc_datetime(&at).abbreviation().map(str::to_string))
            }
        }
    }

    /// The instant at which clocks in the zone show `local_us` (microseconds since 1970 by the wall clock). A time that is
    /// shown twice is the one in standard time; one that is skipped is read with the offset before the gap, as in Postgres.
    pub fn to_utc(self, local_us: i64) -> Option<i64> {
        let seconds = match self {
            TimeZone::Utc => 0,
            TimeZone::Fixed(seconds) => seconds,
            TimeZone::Named(zone) => match calendar(local_us) {
                None => 0,
                Some(at) => match zone.offset_from_local_datetime(&at) {
                    chrono::MappedLocalTime::Single(offset) => offset.fix().local_minus_utc(),
                    // The later instant has the smaller offset: standard time.
                    chrono::MappedLocalTime::Ambiguous(a, b) => {
                        a.fix().local_minus_utc().min(b.fix().local_minus_utc())
                    }
                    chrono::MappedLocalTime::None => {
                        let before = at - chrono::TimeDelta::hours(3);
                        zone.offset_from_utc_datetime(&before).fix().local_minus_utc()
                    }
                },
            },
        };
        local_us.checked_sub(i64::from(seconds) * 1_000_000)
    }
}

fn calendar(us: i64) -> Option<NaiveDateTime> {
    if us.checked_abs()? > CALENDAR_US_MAX {
        return None;
    }
    chrono::DateTime::from_timestamp_micros(us).map(|at| at.naive_utc())
}

/// `+hh`, `-hh:mm`, `+hhmm`, `+hh:mm:ss` or a bare number of hours, as seconds east.
pub(crate) fn parse_offset(text: &str) -> Option<i32> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        b'0'..=b'9' => (1, text),
        _ => return None,
    };
    let part = |s: &str| -> Option<i32> {
        if s.is_empty() || s.len() > 2 || !s.bytes().all(|b| b.is_ascii_digit()) { None } else { s.parse().ok() }
    };
    let (hours, minutes, seconds) = if digits.contains(':') {
        let mut parts = digits.split(':');
        let (h, m, s) = (part(parts.next()?)?, part(parts.next()?)?, parts.next().map_or(Some(0), part)?);
        if parts.next().is_some() {
            return None;
        }
        (h, m, s)
    } else if digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()) {
        (part(&digits[..2])?, part(&digits[2..])?, 0)
    } else {
        (part(digits)?, 0, 0)
    };
    if hours > 15 || minutes > 59 || seconds > 59 {
        return None;
    }
    Some(sign * (hours * 3600 + minutes * 60 + seconds))
}

/// Accepts the encodings in which bytes mean what they mean in UTF-8; `SET client_encoding` must refuse the others too.
pub fn check_client_encoding(value: &str) -> Result<()> {
    let plain: String = value.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    match plain.as_str() {
        "utf8" | "unicode" | "sqlascii" => Ok(()),
        _ => Err(Error::unsupported(format!("conversion between {value} and UTF8 is not supported"))
            .with_hint("Set client_encoding to UTF8.")),
    }
}
