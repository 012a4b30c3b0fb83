//! Column types guessed from sample values: bigint, double precision, boolean, date, timestamp, timestamptz, or text.
//!
//! A guess never loses anything of the sample: whatever does not fit one type is text, as are numbers with leading zeros
//! or a plus sign (postal codes, telephone numbers) and integers that no bigint holds.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::spans::Kind;
use super::{input, temporal};

/// What the values of a column seen so far have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guess {
    /// Only NULLs.
    #[default]
    Unknown,
    Boolean,
    Bigint,
    Double,
    Date,
    Timestamp,
    Timestamptz,
    Text,
}

impl Guess {
    /// The narrowest guess that holds the values of both.
    pub fn merge(self, other: Guess) -> Guess {
        use Guess::*;
        match (self, other) {
            (a, b) if a == b => a,
            (Unknown, a) | (a, Unknown) => a,
            (Bigint, Double) | (Double, Bigint) => Double,
            (Date, Timestamp) | (Timestamp, Date) => Timestamp,
            _ => Text,
        }
    }

    /// The canonical type; text when nothing is known.
    pub fn data_type(self) -> DataType {
        match self {
            Guess::Boolean => DataType::Boolean,
            Guess::Bigint => DataType::Int64,
            Guess::Double => DataType::Float64,
            Guess::Date => DataType::Date32,
            Guess::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Guess::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Guess::Unknown | Guess::Text => DataType::Utf8View,
        }
    }

    /// The guess from one value.
    pub fn of(text: &str, kind: Kind) -> Guess {
        match kind {
            Kind::Null => Guess::Unknown,
            Kind::JsonBoolean => Guess::Boolean,
            Kind::JsonNumber => match input::integer::<i64>(text.as_bytes()) {
                Ok(_) => Guess::Bigint,
                Err(input::BadValue::OutOfRange) => Guess::Text,
                Err(_) => Guess::Double,
            },
            Kind::JsonNested => Guess::Text,
            Kind::JsonEscaped => Guess::Text,
            Kind::Plain | Kind::CsvEscaped => Guess::of_text(text),
        }
    }

    /// The guess from the text of a CSV field.
    pub fn of_field(text: &str) -> Guess {
        if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") {
            return Guess::Boolean;
        }
        if matches!(text, "NaN" | "Infinity" | "-Infinity") {
            return Guess::Double;
        }
        let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
        let leading_zero = matches!(digits, [b'0', b'0'..=b'9', ..]);
        if digits.first().is_some_and(u8::is_ascii_digit) && !leading_zero && !text.ends_with(char::is_whitespace) {
            match input::integer::<i64>(text.as_bytes()) {
                Ok(_) => return Guess::Bigint,
                Err(input::BadValue::OutOfRange) => return Guess::Text,
                Err(_) => {}
            }
            if input::float::<f64>(text.as_bytes()).is_ok() {
                return Guess::Double;
            }
        }
        Guess::of_text(text)
    }

    fn of_text(text: &str) -> Guess {
        match temporal::moment(text.as_bytes()) {
            Ok(m) if m.zone_s.is_some() => Guess::Timestamptz,
            Ok(m) if m.has_time => Guess::Timestamp,
            Ok(_) => Guess::Date,
            Err(_) => Guess::Text,
        }
    }
}

/// The schema of named guesses: nullable columns, names in lower case unless that makes two of them equal.
pub fn schema(columns: &[(String, Guess)]) -> SchemaRef {
    let lower: Vec<String> = columns.iter().map(|(name, _)| name.to_lowercase()).collect();
    let fields = columns.iter().zip(&lower).map(|((name, guess), low)| {
        let unique = lower.iter().filter(|l| *l == low).count() == 1;
        Field::new(if unique { low } else { name }, guess.data_type(), true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_guessed_without_loss() {
        use Guess::*;
        for (text, guess) in [
            ("1", Bigint),
            ("-12", Bigint),
            ("0", Bigint),
            ("007", Text),
            ("+49123", Text),
            ("1.5", Double),
            ("1e3", Double),
            ("NaN", Double),
            ("9223372036854775808", Text),
            ("true", Boolean),
            ("FALSE", Boolean),
            ("t", Text),
            ("2024-01-02", Date),
            ("2024-01-02 03:04", Timestamp),
            ("2024-01-02T03:04:05Z", Timestamptz),
            ("2024-13-02", Text),
            ("", Text),
            ("12 ", Text),
            ("inf", Text),
            ("-", Text),
        ] {
            assert_eq!(Guess::of_field(text), guess, "{text}");
        }
        assert_eq!(Guess::of("12", Kind::Plain), Text);
        assert_eq!(Guess::of("2024-01-02", Kind::Plain), Date);
        assert_eq!(Guess::of("1.0", Kind::JsonNumber), Double);
    }

    #[test]
    fn guesses_widen_to_what_holds_both() {
        use Guess::*;
        assert_eq!(Bigint.merge(Double), Double);
        assert_eq!(Date.merge(Timestamp), Timestamp);
        assert_eq!(Timestamp.merge(Timestamptz), Text);
        assert_eq!(Unknown.merge(Boolean), Boolean);
        assert_eq!(Boolean.merge(Bigint), Text);
        let s = schema(&[("Id".into(), Bigint), ("x".into(), Text), ("X".into(), Unknown)]);
        assert_eq!(s.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["id", "x", "X"]);
    }
}
