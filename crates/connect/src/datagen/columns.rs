//! What a generated column holds, read from its `fields.<column>.…` options, and its values.

use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::NullBuffer;
use arrow::datatypes::*;
use flow::{Error, Result, SqlState};

use crate::format::input::{self, Parsed};
use crate::format::temporal::{self, US_PER_DAY};
use crate::options::nearest;
use crate::random::{Pool, Words, below_u64, word};

/// What may stand behind `fields.<column>.`.
pub(super) const WORDS: &[&str] = &["kind", "start", "end", "step", "min", "max", "length", "values", "null_rate"];

const LENGTH_DEFAULT: i64 = 10;
const LENGTH_MAX: u32 = 10_000;
/// Random numbers without `max` go up to this, if their type does.
const MAX_DEFAULT: i64 = 999_999;
/// Timestamps and dates without `start` begin in 2024.
const DAY_DEFAULT: i64 = 19_723;

/// How the values of a column come about. Whole numbers are days for a date, microseconds for times and timestamps, and
/// unscaled for numeric.
enum Make {
    /// `start`, `start + step`, …: `count` values, then from `start` again.
    Sequence {
        start: i64,
        step: i64,
        count: u64,
    },
    /// Every value from `min` on, `count` of them, equally likely; a `count` of 0 means all 2⁶⁴.
    Uniform {
        min: i64,
        count: u64,
    },
    FloatSequence {
        start: f64,
        step: f64,
    },
    FloatUniform {
        min: f64,
        max: f64,
    },
    Letters {
        pool: Arc<Pool>,
        length: u32,
    },
    Values(Words),
    Boolean,
}

/// One column, ready to be made.
pub(super) struct Column {
    data_type: DataType,
    make: Make,
    /// A value is NULL when its random word is below this.
    null_below: u64,
    /// Lane of the column's random words: its place in the declaration.
    lane: u64,
}

/// The options of one column, as written.
pub(super) struct Given<'a> {
    pub column: &'a str,
    pub pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Given<'a> {
    fn get(&self, word: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(w, _)| *w == word).map(|(_, v)| *v)
    }

    fn invalid(&self, word: &str, allowed: &str) -> Error {
        let (column, value) = (self.column, self.get(word).unwrap_or(""));
        Error::new(
            SqlState::InvalidParameterValue,
            format!("invalid value for option \"fields.{column}.{word}\" of source connector \"datagen\": '{value}'"),
        )
        .with_detail(format!("Allowed: {allowed}."))
    }

    /// The value of `word` by `parse`; `None` when it is not written.
    fn parsed<T>(&self, word: &str, allowed: &str, parse: impl Fn(&[u8]) -> Parsed<T>) -> Result<Option<T>> {
        match self.get(word) {
            Some(text) => parse(text.as_bytes()).map(Some).map_err(|_| self.invalid(word, allowed)),
            None => Ok(None),
        }
    }
}

/// Text to a whole number.
type Reads = Box<dyn Fn(&[u8]) -> Parsed<i64>>;

/// A type whose values are whole numbers of something.
struct Whole {
    least: i64,
    most: i64,
    min: i64,
    max: i64,
    step: i64,
    sequence: bool,
    allowed: &'static str,
    parse: Reads,
    parse_step: Reads,
}

fn whole(data_type: &DataType) -> Option<Whole> {
    let integer = |least: i64, most: i64| Whole {
        least,
        most,
        min: 0,
        max: MAX_DEFAULT.min(most),
        step: 1,
        sequence: false,
        allowed: "a whole number that the column can hold",
        parse: Box::new(input::integer::<i64>),
        parse_step: Box::new(input::integer::<i64>),
    };
    let moment = |unit_us: i64, parse: fn(&[u8]) -> Parsed<i64>| Whole {
        least: temporal::days_from_civil(1, 1, 1) * (US_PER_DAY / unit_us),
        most: temporal::days_from_civil(9999, 12, 31) * (US_PER_DAY / unit_us),
        min: DAY_DEFAULT * (US_PER_DAY / unit_us),
        max: (DAY_DEFAULT + 365) * (US_PER_DAY / unit_us),
        step: if unit_us == 1 { 1_000 } else { 1 },
        sequence: true,
        allowed: "a moment from year 1 to 9999 that the column can hold",
        parse: Box::new(parse),
        parse_step: Box::new(move |bytes| step_of(bytes, unit_us)),
    };
    Some(match data_type {
        DataType::Int16 => integer(i64::from(i16::MIN), i64::from(i16::MAX)),
        DataType::Int32 => integer(i64::from(i32::MIN), i64::from(i32::MAX)),
        DataType::Int64 => integer(i64::MIN, i64::MAX),
        DataType::Decimal128(precision, scale) => {
            let (precision, scale) = (*precision, *scale);
            let most =
                10i128.checked_pow(u32::from(precision)).map_or(i64::MAX, |p| i64::try_from(p - 1).unwrap_or(i64::MAX));
            let one = 10i64.checked_pow(scale.max(0) as u32).unwrap_or(i64::MAX);
            let parse = move |bytes: &[u8]| {
                let value = input::decimal(bytes, precision, scale)?;
                i64::try_from(value).map_err(|_| input::BadValue::OutOfRange)
            };
            Whole {
                max: one.saturating_mul(MAX_DEFAULT).min(most),
                step: one.min(most),
                allowed: "a number that the column can hold, of at most 18 digits",
                parse: Box::new(parse),
                parse_step: Box::new(parse),
                ..integer(-most, most)
            }
        }
        DataType::Date32 => moment(US_PER_DAY, |bytes| temporal::date(bytes).map(i64::from)),
        DataType::Timestamp(TimeUnit::Microsecond, None) => moment(1, temporal::timestamp),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => moment(1, temporal::timestamptz),
        DataType::Time64(TimeUnit::Microsecond) => Whole {
            least: 0,
            most: US_PER_DAY - 1,
            min: 0,
            max: US_PER_DAY - 1,
            allowed: "a time of day",
            ..moment(1, temporal::time)
        },
        _ => return None,
    })
}

/// An interval without months, in units of `unit_us`.
fn step_of(bytes: &[u8], unit_us: i64) -> Parsed<i64> {
    let interval = temporal::interval(bytes)?;
    let us = i128::from(interval.days) * i128::from(US_PER_DAY) + i128::from(interval.nanoseconds / 1_000);
    if interval.months != 0 || us % i128::from(unit_us) != 0 {
        return Err(input::BadValue::Syntax);
    }
    i64::try_from(us / i128::from(unit_us)).map_err(|_| input::BadValue::OutOfRange)
}

impl Column {
    /// Errors: `0A000` a type that is not made, `42704` an unknown word, `22023` a value that cannot be used.
    pub(super) fn new(field: &Field, given: &Given<'_>, lane: u64, pool: &Arc<Pool>) -> Result<Column> {
        for (word, _) in &given.pairs {
            if !WORDS.contains(word) {
                let error = Error::new(
                    SqlState::UndefinedObject,
                    format!("source connector \"datagen\" has no option \"fields.{}.{word}\"", given.column),
                )
                .with_detail(format!("Behind the column may stand: {}.", WORDS.join(", ")));
                return Err(match nearest(word, WORDS.iter().copied()) {
                    Some(near) => error.with_hint(format!("Perhaps you meant \"fields.{}.{near}\".", given.column)),
                    None => error,
                });
            }
        }
        let null_rate = given.parsed("null_rate", "a number from 0 to 1", input::float::<f64>)?.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&null_rate) {
            return Err(given.invalid("null_rate", "a number from 0 to 1"));
        }
        if null_rate > 0.0 && !field.is_nullable() {
            return Err(given.invalid("null_rate", "0, because the column is NOT NULL"));
        }
        let data_type = field.data_type().clone();
        let make = Self::make(&data_type, given, pool)?;
        let null_below = if null_rate >= 1.0 { u64::MAX } else { (null_rate * u64::MAX as f64) as u64 };
        Ok(Column { data_type, make, null_below, lane })
    }

    fn make(data_type: &DataType, given: &Given<'_>, pool: &Arc<Pool>) -> Result<Make> {
        if let Some(whole) = whole(data_type) {
            return Self::whole(&whole, given);
        }
        match data_type {
            DataType::Float32 | DataType::Float64 => Self::float(given),
            DataType::Boolean => {
                only(given, &["kind", "null_rate"], "a boolean column")?;
                kind(given, false, &["random"]).map(|_| Make::Boolean)
            }
            DataType::Utf8View => {
                only(given, &["kind", "length", "values", "null_rate"], "a text column")?;
                kind(given, false, &["random"])?;
                if let Some(values) = given.get("values") {
                    only(given, &["kind", "values", "null_rate"], "a column with values")?;
                    return Ok(Make::Values(Words::new(values.split(',').map(str::trim))));
                }
                const ALLOWED: &str = "a number from 0 to 10000";
                let length = given.parsed("length", ALLOWED, input::integer::<i64>)?.unwrap_or(LENGTH_DEFAULT);
                match u32::try_from(length) {
                    Ok(length) if length <= LENGTH_MAX => Ok(Make::Letters { pool: Arc::clone(pool), length }),
                    _ => Err(given.invalid("length", ALLOWED)),
                }
            }
            other => {
                let (column, type_name) = (given.column, crate::format::sql_type_name(other));
                Err(Error::unsupported(format!("column \"{column}\" of type {type_name} cannot be generated"))
                    .with_hint("Generate text or numbers and convert them in a view."))
            }
        }
    }

    fn whole(whole: &Whole, given: &Given<'_>) -> Result<Make> {
        let value = |word: &str, default: i64| -> Result<i64> {
            let value = given.parsed(word, whole.allowed, &whole.parse)?.unwrap_or(default);
            let holds = (whole.least..=whole.most).contains(&value);
            if holds { Ok(value) } else { Err(given.invalid(word, whole.allowed)) }
        };
        if kind(given, whole.sequence && given.get("min").or(given.get("max")).is_none(), &["sequence", "random"])? {
            only(given, &["kind", "start", "end", "step", "null_rate"], "a sequence")?;
            let start = value("start", if whole.sequence { whole.min } else { 0 })?;
            let end = value("end", whole.most)?;
            let allowed = "a step that is greater than zero";
            let step = given.parsed("step", allowed, &whole.parse_step)?.unwrap_or(whole.step);
            if step < 1 {
                return Err(given.invalid("step", allowed));
            }
            if end < start {
                return Err(given.invalid("end", "not less than the start"));
            }
            let count = (i128::from(end) - i128::from(start)) / i128::from(step) + 1;
            return Ok(Make::Sequence { start, step, count: u64::try_from(count).unwrap_or(u64::MAX) });
        }
        only(given, &["kind", "min", "max", "null_rate"], "a random column")?;
        let min = value("min", whole.min)?;
        let max = value("max", whole.max.max(min))?;
        if max < min {
            return Err(given.invalid("max", "not less than the least"));
        }
        // All 2⁶⁴ values wrap to 0.
        Ok(Make::Uniform { min, count: (max.wrapping_sub(min) as u64).wrapping_add(1) })
    }

    fn float(given: &Given<'_>) -> Result<Make> {
        const ALLOWED: &str = "a finite number";
        let value = |word: &str, default: f64| -> Result<f64> {
            let value = given.parsed(word, ALLOWED, input::float::<f64>)?.unwrap_or(default);
            if value.is_finite() { Ok(value) } else { Err(given.invalid(word, ALLOWED)) }
        };
        if kind(given, false, &["sequence", "random"])? {
            only(given, &["kind", "start", "step", "null_rate"], "a sequence of floating-point numbers")?;
            return Ok(Make::FloatSequence { start: value("start", 0.0)?, step: value("step", 1.0)? });
        }
        only(given, &["kind", "min", "max", "null_rate"], "a random column")?;
        let min = value("min", 0.0)?;
        let max = value("max", min.max(1.0))?;
        if max < min {
            return Err(given.invalid("max", "not less than the least"));
        }
        Ok(Make::FloatUniform { min, max })
    }

    /// The values of the rows `first .. first + rows` of the source.
    pub(super) fn values(&self, seed: u64, first: u64, rows: usize) -> ArrayRef {
        let numbers = move || (0..rows as u64).map(move |n| first + n);
        let random = |n: u64| word(seed, n, 2 * self.lane);
        let nulls = (self.null_below > 0)
            .then(|| NullBuffer::from_iter(numbers().map(|n| word(seed, n, 2 * self.lane + 1) >= self.null_below)));
        let whole = |n: u64| -> i64 {
            match &self.make {
                Make::Sequence { start, step, count } => start.wrapping_add(((n % count) as i64).wrapping_mul(*step)),
                Make::Uniform { min, count: 0 } => min.wrapping_add(random(n) as i64),
                Make::Uniform { min, count } => min.wrapping_add(below_u64(random(n), *count) as i64),
                _ => 0,
            }
        };
        let float = |n: u64| -> f64 {
            match &self.make {
                Make::FloatSequence { start, step } => start + n as f64 * step,
                // 53 bits fill the mantissa. Both terms are finite, also where max − min is not.
                Make::FloatUniform { min, max } => {
                    let share = (random(n) >> 11) as f64 / (1u64 << 53) as f64;
                    min * (1.0 - share) + max * share
                }
                _ => 0.0,
            }
        };
        macro_rules! primitive {
            ($type:ty, $value:expr) => {{
                let values: Vec<<$type as ArrowPrimitiveType>::Native> = numbers().map($value).collect();
                let array = PrimitiveArray::<$type>::new(values.into(), nulls);
                Arc::new(array.with_data_type(self.data_type.clone()))
            }};
        }
        match (&self.make, &self.data_type) {
            (Make::Boolean, _) => Arc::new(BooleanArray::new(numbers().map(|n| random(n) >> 63 == 1).collect(), nulls)),
            (Make::Letters { pool, length }, _) => Arc::new(pool.pick(numbers().map(|n| (random(n), *length)), nulls)),
            (Make::Values(words), _) => {
                let count = words.len() as u64;
                Arc::new(words.pick(numbers().map(|n| below_u64(random(n), count) as usize), nulls))
            }
            (_, DataType::Int16) => primitive!(Int16Type, |n| whole(n) as i16),
            (_, DataType::Int32) => primitive!(Int32Type, |n| whole(n) as i32),
            (_, DataType::Date32) => primitive!(Date32Type, |n| whole(n) as i32),
            (_, DataType::Decimal128(_, _)) => primitive!(Decimal128Type, |n| i128::from(whole(n))),
            (_, DataType::Float32) => primitive!(Float32Type, |n| float(n) as f32),
            (_, DataType::Float64) => primitive!(Float64Type, float),
            (_, DataType::Time64(_)) => primitive!(Time64MicrosecondType, whole),
            (_, DataType::Timestamp(_, _)) => primitive!(TimestampMicrosecondType, whole),
            (_, _) => primitive!(Int64Type, whole),
        }
    }
}

/// Whether the column is a sequence; `default` without `kind`.
fn kind(given: &Given<'_>, default: bool, kinds: &[&str]) -> Result<bool> {
    match given.get("kind") {
        None => Ok(default),
        Some(word) => match kinds.iter().find(|k| k.eq_ignore_ascii_case(word)) {
            Some(kind) => Ok(*kind == "sequence"),
            None => {
                let error = given.invalid("kind", &format!("{} for a column of its type", kinds.join(", ")));
                Err(match nearest(word, kinds.iter().copied()) {
                    Some(near) => error.with_hint(format!("Perhaps you meant '{near}'.")),
                    None => error,
                })
            }
        },
    }
}

/// Refuses the words that have no meaning for what the column is.
fn only(given: &Given<'_>, words: &[&str], what: &str) -> Result<()> {
    match given.pairs.iter().find(|(word, _)| !words.contains(word)) {
        Some((word, _)) => Err(Error::new(
            SqlState::InvalidParameterValue,
            format!("option \"fields.{}.{word}\" has no meaning for {what}", given.column),
        )
        .with_detail(format!("Its options are: {}.", words.join(", ")))),
        None => Ok(()),
    }
}
