//! The proleptic Gregorian calendar over days since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms"), and
//! the fields of moments.

use flow::{Error, SqlState};

use super::super::temporal::US_PER_DAY;

/// A date. Year 0 is 1 BC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Date {
    pub year: i64,
    pub month: i64,
    pub day: i64,
}

/// Days since 1970-01-01.
pub(super) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

pub(super) fn date_of(days: i64) -> Date {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    Date { year: year_of_era + era * 400 + i64::from(month <= 2), month, day: day_of_year - (153 * m + 2) / 5 + 1 }
}

pub(super) fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

pub(super) fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// 0 is Sunday.
pub(super) fn weekday(days: i64) -> i64 {
    (days + 4).rem_euclid(7)
}

/// The ISO year and week.
pub(super) fn iso_week(days: i64) -> (i64, i64) {
    // The week belongs to the year of its Thursday.
    let thursday = days - (weekday(days) + 6) % 7 + 3;
    let year = date_of(thursday).year;
    (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
}

/// The Monday on which an ISO year begins.
pub(super) fn iso_year_start(year: i64) -> i64 {
    let fourth = days_from_civil(year, 1, 4);
    fourth - (weekday(fourth) + 6) % 7
}

pub(super) fn day_of_year(days: i64) -> i64 {
    days - days_from_civil(date_of(days).year, 1, 1) + 1
}

/// Day and microsecond of it.
pub(super) fn split(us: i64) -> (i64, i64) {
    (us.div_euclid(US_PER_DAY), us.rem_euclid(US_PER_DAY))
}

/// A year as it is written: there is none between 1 BC, which is -1, and 1.
pub(super) fn shown_year(year: i64) -> i64 {
    if year > 0 { year } else { year - 1 }
}

pub(super) fn century(year: i64) -> i64 {
    if year > 0 { (year + 99) / 100 } else { -((99 - (year - 1)) / 100) }
}

pub(super) fn millennium(year: i64) -> i64 {
    if year > 0 { (year + 999) / 1_000 } else { -((999 - (year - 1)) / 1_000) }
}

/// A field of a date, time or interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    Microseconds,
    Milliseconds,
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
    Decade,
    Century,
    Millennium,
    Dow,
    Isodow,
    Doy,
    Isoyear,
    Julian,
    Epoch,
    Timezone,
    TimezoneHour,
    TimezoneMinute,
}

impl Unit {
    pub fn read(text: &str) -> Option<Unit> {
        use Unit::*;
        Some(match text.to_ascii_lowercase().as_str() {
            "us" | "usec" | "usecs" | "usecond" | "useconds" | "microsecond" | "microseconds" | "microsecon" => {
                Microseconds
            }
            "ms" | "msec" | "msecs" | "msecond" | "mseconds" | "millisecond" | "milliseconds" | "millisecon" => {
                Milliseconds
            }
            "s" | "sec" | "secs" | "second" | "seconds" => Second,
            "m" | "min" | "mins" | "minute" | "minutes" => Minute,
            "h" | "hr" | "hrs" | "hour" | "hours" => Hour,
            "d" | "day" | "days" => Day,
            "w" | "week" | "weeks" => Week,
            "mon" | "mons" | "month" | "months" => Month,
            "qtr" | "quarter" => Quarter,
            "y" | "yr" | "yrs" | "year" | "years" => Year,
            "dec" | "decs" | "decade" | "decades" => Decade,
            "c" | "cent" | "century" | "centuries" => Century,
            "mil" | "mils" | "millennium" | "millennia" => Millennium,
            "dow" => Dow,
            "isodow" => Isodow,
            "doy" => Doy,
            "isoyear" => Isoyear,
            "julian" | "j" | "jd" => Julian,
            "epoch" => Epoch,
            "timezone" => Timezone,
            "timezone_hour" | "timezone_h" => TimezoneHour,
            "timezone_minute" | "timezone_m" => TimezoneMinute,
            _ => return None,
        })
    }
}

/// `22023` for a word that names no field, `0A000` for a field that the type has not.
pub(super) fn no_unit(text: &str, type_name: &str) -> Error {
    let text = text.to_ascii_lowercase();
    match Unit::read(&text) {
        None => {
            Error::new(SqlState::InvalidParameterValue, format!("unit \"{text}\" not recognized for type {type_name}"))
        }
        Some(_) => Error::unsupported(format!("unit \"{text}\" not supported for type {type_name}")),
    }
}

/// Fields as they are read come in units of 10^-18.
pub(super) const ONE: i128 = 1_000_000_000_000_000_000;
const MICRO: i128 = ONE / 1_000_000;

/// A field of a time of day.
pub(super) fn clock_field(unit: Unit, us: i64) -> Option<i128> {
    let us = i128::from(us);
    Some(match unit {
        Unit::Microseconds => us % 60_000_000 * ONE,
        Unit::Milliseconds => us % 60_000_000 * MICRO * 1_000,
        Unit::Second => us % 60_000_000 * MICRO,
        Unit::Minute => us / 60_000_000 % 60 * ONE,
        Unit::Hour => us / 3_600_000_000 * ONE,
        Unit::Epoch => us * MICRO,
        _ => return None,
    })
}

/// A field of a date.
pub(super) fn date_field(unit: Unit, days: i64) -> Option<i128> {
    let date = date_of(days);
    let whole = match unit {
        Unit::Day => date.day,
        Unit::Week => iso_week(days).1,
        Unit::Month => date.month,
        Unit::Quarter => (date.month - 1) / 3 + 1,
        Unit::Year => shown_year(date.year),
        Unit::Decade => date.year.div_euclid(10),
        Unit::Century => century(date.year),
        Unit::Millennium => millennium(date.year),
        Unit::Dow => weekday(days),
        Unit::Isodow => (weekday(days) + 6) % 7 + 1,
        Unit::Doy => day_of_year(days),
        Unit::Isoyear => shown_year(iso_week(days).0),
        Unit::Julian => days + 2_440_588,
        Unit::Epoch => days * 86_400,
        _ => return None,
    };
    Some(i128::from(whole) * ONE)
}

/// A field of a local moment.
pub(super) fn moment_field(unit: Unit, us: i64) -> Option<i128> {
    let (days, clock) = split(us);
    match unit {
        Unit::Epoch => Some(i128::from(us) * MICRO),
        Unit::Julian => Some(date_field(unit, days)? + i128::from(clock) * ONE / i128::from(US_PER_DAY)),
        _ => clock_field(unit, clock).or_else(|| date_field(unit, days)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_days_agree_over_the_whole_range() {
        for days in (-1_000_000..1_000_000).step_by(37) {
            let date = date_of(days);
            assert_eq!(days_from_civil(date.year, date.month, date.day), days);
        }
        assert_eq!(date_of(0), Date { year: 1970, month: 1, day: 1 });
        assert_eq!(date_of(19_782), Date { year: 2024, month: 2, day: 29 });
    }

    #[test]
    fn weeks_belong_to_the_year_of_their_thursday() {
        assert_eq!(iso_week(days_from_civil(2021, 1, 3)), (2020, 53));
        assert_eq!(iso_week(days_from_civil(2024, 12, 30)), (2025, 1));
        assert_eq!(iso_year_start(2025), days_from_civil(2024, 12, 30));
    }

    #[test]
    fn centuries_begin_with_the_year_one() {
        assert_eq!((century(2000), century(2001), century(0), century(-99), century(-100)), (20, 21, -1, -1, -2));
        assert_eq!((millennium(2000), millennium(2001)), (2, 3));
    }
}
