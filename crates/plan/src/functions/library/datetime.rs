//! Dates, times and intervals.

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, IntervalMonthDayNano};
use datafusion::common::ScalarValue;
use flow::{Error, Result, SqlState};

use super::super::decimal::round_down;
use super::super::temporal::{self, US_PER_DAY};
use super::super::zone::Zone;
use super::Type::*;
use super::calendar::{self, ONE, Unit, days_from_civil, no_unit};
use super::cells::{Call, Clock, Day, Decimal, Moment, build, map1, map2, map3, map4};
use super::{Declared, Gives, zone_of};

pub(super) fn declare(d: &mut Declared) {
    fields(d);
    truncation(d);
    ages(d);
    making(d);
    zones(d);
    overlaps(d);
}

/// Whether two half-open spans, given by their ends in either order, have a moment in common.
fn overlap(a: (i64, i64), b: (i64, i64)) -> bool {
    let ordered = |(start, end): (i64, i64)| if start <= end { (start, end) } else { (end, start) };
    let ((s1, e1), (s2, e2)) = (ordered(a), ordered(b));
    match s1.cmp(&s2) {
        std::cmp::Ordering::Greater => s1 < e2,
        std::cmp::Ordering::Less => s2 < e1,
        std::cmp::Ordering::Equal => true,
    }
}

fn overlaps(d: &mut Declared) {
    d.of("overlaps", &[Timestamp, Timestamp, Timestamp, Timestamp], Gives::Is(Bool), |c| {
        map4(c, |a: Moment, b: Moment, x: Moment, y: Moment| Ok(overlap((a.0, b.0), (x.0, y.0))))
    });
    d.of("overlaps", &[Timestamptz, Timestamptz, Timestamptz, Timestamptz], Gives::Is(Bool), |c| {
        map4(c, |a: Moment, b: Moment, x: Moment, y: Moment| Ok(overlap((a.0, b.0), (x.0, y.0))))
    });
    d.of("overlaps", &[Time, Time, Time, Time], Gives::Is(Bool), |c| {
        map4(c, |a: Clock, b: Clock, x: Clock, y: Clock| Ok(overlap((a.0, b.0), (x.0, y.0))))
    });
}

fn field_overflow(message: &str) -> Error {
    Error::new(SqlState::DatetimeFieldOverflow, message)
}

fn interval_range() -> Error {
    field_overflow("interval out of range")
}

fn interval(months: i64, days: i64, us: i128) -> Result<IntervalMonthDayNano> {
    let fit = || -> Option<IntervalMonthDayNano> {
        let ns = us.checked_mul(1_000)?;
        Some(IntervalMonthDayNano::new(i32::try_from(months).ok()?, i32::try_from(days).ok()?, i64::try_from(ns).ok()?))
    };
    fit().ok_or_else(interval_range)
}

const TIMESTAMP: &str = "timestamp without time zone";
const TIMESTAMPTZ: &str = "timestamp with time zone";

fn date_unit(text: &str, day: Day) -> Result<i128> {
    let unit = Unit::read(text).ok_or_else(|| no_unit(text, "date"))?;
    calendar::date_field(unit, day.0.into()).ok_or_else(|| no_unit(text, "date"))
}

fn clock_unit(text: &str, clock: Clock) -> Result<i128> {
    const NAME: &str = "time without time zone";
    let unit = Unit::read(text).ok_or_else(|| no_unit(text, NAME))?;
    calendar::clock_field(unit, clock.0).ok_or_else(|| no_unit(text, NAME))
}

fn timestamp_unit(text: &str, at: Moment) -> Result<i128> {
    let unit = Unit::read(text).ok_or_else(|| no_unit(text, TIMESTAMP))?;
    calendar::moment_field(unit, at.0).ok_or_else(|| no_unit(text, TIMESTAMP))
}

fn local(zone: &Zone, at: i64) -> Result<i64> {
    zone.to_local(at).ok_or_else(|| field_overflow("timestamp out of range"))
}

fn instant(zone: &Zone, local: i64) -> Result<i64> {
    chrono::DateTime::from_timestamp_micros(local)
        .and_then(|at| zone.to_utc(at.naive_utc()))
        .ok_or_else(|| field_overflow("timestamp out of range"))
}

fn timestamptz_unit(text: &str, at: Moment, zone: &Zone) -> Result<i128> {
    let unit = Unit::read(text).ok_or_else(|| no_unit(text, TIMESTAMPTZ))?;
    let here = local(zone, at.0)?;
    let offset = i128::from((here - at.0) / 1_000_000);
    Ok(match unit {
        Unit::Epoch => i128::from(at.0) * (ONE / 1_000_000),
        Unit::Timezone => offset * ONE,
        Unit::TimezoneHour => offset / 3_600 * ONE,
        Unit::TimezoneMinute => offset % 3_600 / 60 * ONE,
        _ => calendar::moment_field(unit, here).ok_or_else(|| no_unit(text, TIMESTAMPTZ))?,
    })
}

fn interval_unit(text: &str, i: IntervalMonthDayNano) -> Result<i128> {
    let unit = Unit::read(text).ok_or_else(|| no_unit(text, "interval"))?;
    let us = i128::from(i.nanoseconds / 1_000);
    let (years, months) = (i.months / 12, i.months % 12);
    let micro = ONE / 1_000_000;
    Ok(match unit {
        Unit::Microseconds => us % 60_000_000 * ONE,
        Unit::Milliseconds => us % 60_000_000 * micro * 1_000,
        Unit::Second => us % 60_000_000 * micro,
        Unit::Minute => us / 60_000_000 % 60 * ONE,
        Unit::Hour => us / 3_600_000_000 * ONE,
        Unit::Day => i128::from(i.days) * ONE,
        Unit::Month => i128::from(months) * ONE,
        Unit::Quarter => i128::from(months / 3 + 1) * ONE,
        Unit::Year => i128::from(years) * ONE,
        Unit::Decade => i128::from(years / 10) * ONE,
        Unit::Century => i128::from(years / 100) * ONE,
        Unit::Millennium => i128::from(years / 1_000) * ONE,
        // Years have 365.25 days here, months of an incomplete year 30.
        Unit::Epoch => {
            let seconds_twice = i128::from(years) * 86_400 * 1_461 / 2 + i128::from(months) * 86_400 * 60;
            (seconds_twice / 2 + i128::from(i.days) * 86_400) * ONE + us * micro
        }
        _ => return Err(no_unit(text, "interval")),
    })
}

/// The type of what extract gives: as many digits as the field has.
fn extracted(types: &[DataType], constants: &[Option<ScalarValue>]) -> DataType {
    let unit = match constants.first() {
        Some(Some(text)) => text.try_as_str().flatten().and_then(Unit::read),
        _ => return DataType::Decimal128(38, 18),
    };
    let is_date = types.get(1) == Some(&DataType::Date32);
    match unit {
        Some(Unit::Second) => DataType::Decimal128(8, 6),
        Some(Unit::Epoch) if !is_date => DataType::Decimal128(22, 6),
        Some(Unit::Milliseconds) => DataType::Decimal128(8, 3),
        Some(Unit::Julian) if !is_date => DataType::Decimal128(38, 18),
        _ => DataType::Decimal128(20, 0),
    }
}

fn as_numeric(call: &Call<'_>) -> impl Fn(i128) -> Decimal + use<> {
    let (_, scale) = call.result_scale();
    move |v| Decimal(round_down(v, (18 - scale).max(0) as u8))
}

fn as_double(v: i128) -> f64 {
    // Exact for whole numbers and for microseconds.
    (v / (ONE / 1_000_000)) as f64 / 1e6
}

fn fields(d: &mut Declared) {
    d.of("extract", &[Text, Date], Gives::By(extracted), |c| {
        let out = as_numeric(c);
        map2(c, |text: &str, v: Day| date_unit(text, v).map(&out))
    });
    d.of("extract", &[Text, Time], Gives::By(extracted), |c| {
        let out = as_numeric(c);
        map2(c, |text: &str, v: Clock| clock_unit(text, v).map(&out))
    });
    d.of("extract", &[Text, Timestamp], Gives::By(extracted), |c| {
        let out = as_numeric(c);
        map2(c, |text: &str, v: Moment| timestamp_unit(text, v).map(&out))
    });
    d.zoned("extract", &[Text, Timestamptz], Gives::By(extracted), |c| {
        let out = as_numeric(c);
        map2(c, |text: &str, v: Moment| timestamptz_unit(text, v, &c.zone).map(&out))
    });
    d.of("extract", &[Text, Interval], Gives::By(extracted), |c| {
        let out = as_numeric(c);
        map2(c, |text: &str, v: IntervalMonthDayNano| interval_unit(text, v).map(&out))
    });
    d.of("date_part", &[Text, Date], Gives::Is(Float8), |c| {
        // PostgreSQL takes the date for a timestamp here.
        map2(c, |text: &str, v: Day| timestamp_unit(text, Moment(i64::from(v.0) * US_PER_DAY)).map(as_double))
    });
    d.of("date_part", &[Text, Time], Gives::Is(Float8), |c| {
        map2(c, |text: &str, v: Clock| clock_unit(text, v).map(as_double))
    });
    d.of("date_part", &[Text, Timestamp], Gives::Is(Float8), |c| {
        map2(c, |text: &str, v: Moment| timestamp_unit(text, v).map(as_double))
    });
    d.zoned("date_part", &[Text, Timestamptz], Gives::Is(Float8), |c| {
        map2(c, |text: &str, v: Moment| timestamptz_unit(text, v, &c.zone).map(as_double))
    });
    d.of("date_part", &[Text, Interval], Gives::Is(Float8), |c| {
        map2(c, |text: &str, v: IntervalMonthDayNano| interval_unit(text, v).map(as_double))
    });
    d.of("isfinite", &[Date], Gives::Is(Bool), |c| map1(c, |_: Day| Ok(true)));
    d.of("isfinite", &[Timestamp], Gives::Is(Bool), |c| map1(c, |_: Moment| Ok(true)));
    d.of("isfinite", &[Timestamptz], Gives::Is(Bool), |c| map1(c, |_: Moment| Ok(true)));
    d.of("isfinite", &[Interval], Gives::Is(Bool), |c| map1(c, |_: IntervalMonthDayNano| Ok(true)));
}

/// A local moment without the fields below `unit`.
fn truncated(text: &str, us: i64, type_name: &str) -> Result<i64> {
    let unit = Unit::read(text).ok_or_else(|| no_unit(text, type_name))?;
    let (days, clock) = calendar::split(us);
    let date = calendar::date_of(days);
    let to = |step: i64| days * US_PER_DAY + clock - clock % step;
    let from_year = |year: i64| days_from_civil(year, 1, 1) * US_PER_DAY;
    Ok(match unit {
        Unit::Microseconds => us,
        Unit::Milliseconds => to(1_000),
        Unit::Second => to(1_000_000),
        Unit::Minute => to(60_000_000),
        Unit::Hour => to(3_600_000_000),
        Unit::Day => days * US_PER_DAY,
        Unit::Week => (days - (calendar::weekday(days) + 6) % 7) * US_PER_DAY,
        Unit::Month => days_from_civil(date.year, date.month, 1) * US_PER_DAY,
        Unit::Quarter => days_from_civil(date.year, (date.month - 1) / 3 * 3 + 1, 1) * US_PER_DAY,
        Unit::Year => from_year(date.year),
        Unit::Decade => from_year(date.year.div_euclid(10) * 10),
        Unit::Century => from_year((date.year - 1).div_euclid(100) * 100 + 1),
        Unit::Millennium => from_year((date.year - 1).div_euclid(1_000) * 1_000 + 1),
        _ => return Err(no_unit(text, type_name)),
    })
}

fn truncated_interval(text: &str, i: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let unit = Unit::read(text).ok_or_else(|| no_unit(text, "interval"))?;
    let months = |step: i32| IntervalMonthDayNano::new(i.months / step * step, 0, 0);
    let time = |step: i64| IntervalMonthDayNano::new(i.months, i.days, i.nanoseconds / step * step);
    Ok(match unit {
        Unit::Microseconds => time(1_000),
        Unit::Milliseconds => time(1_000_000),
        Unit::Second => time(1_000_000_000),
        Unit::Minute => time(60_000_000_000),
        Unit::Hour => time(3_600_000_000_000),
        Unit::Day => IntervalMonthDayNano::new(i.months, i.days, 0),
        Unit::Month => months(1),
        Unit::Quarter => months(3),
        Unit::Year => months(12),
        Unit::Decade => months(120),
        Unit::Century => months(1_200),
        Unit::Millennium => months(12_000),
        Unit::Week => {
            return Err(no_unit(text, "interval").with_detail("Months usually have fractional weeks."));
        }
        _ => return Err(no_unit(text, "interval")),
    })
}

/// The start of the bin of `stride` microseconds from `origin` on that holds `at`.
fn binned(stride: IntervalMonthDayNano, at: i64, origin: i64) -> Result<i64> {
    if stride.months != 0 {
        return Err(Error::unsupported("timestamps cannot be binned into intervals containing months or years"));
    }
    let stride = i128::from(stride.days) * i128::from(US_PER_DAY) + i128::from(stride.nanoseconds / 1_000);
    if stride <= 0 {
        return Err(field_overflow("stride must be greater than zero"));
    }
    let since = i128::from(at) - i128::from(origin);
    i64::try_from(i128::from(origin) + since.div_euclid(stride) * stride)
        .map_err(|_| field_overflow("timestamp out of range"))
}

fn truncation(d: &mut Declared) {
    d.of("date_trunc", &[Text, Timestamp], Gives::Is(Timestamp), |c| {
        map2(c, |text: &str, v: Moment| truncated(text, v.0, TIMESTAMP).map(Moment))
    });
    d.zoned("date_trunc", &[Text, Timestamptz], Gives::Is(Timestamptz), |c| {
        map2(c, |text: &str, v: Moment| {
            let here = truncated(text, local(&c.zone, v.0)?, TIMESTAMPTZ)?;
            instant(&c.zone, here).map(Moment)
        })
    });
    d.of("date_trunc", &[Text, Interval], Gives::Is(Interval), |c| map2(c, truncated_interval));
    for (types, gives) in
        [(&[Interval, Timestamp, Timestamp] as &[_], Timestamp), (&[Interval, Timestamptz, Timestamptz], Timestamptz)]
    {
        d.of("date_bin", types, Gives::Is(gives), |c| {
            map3(c, |stride: IntervalMonthDayNano, at: Moment, origin: Moment| {
                binned(stride, at.0, origin.0).map(Moment)
            })
        });
    }
}

/// The difference in years, months, days and time, as a calendar counts.
fn age(one: i64, other: i64) -> Result<IntervalMonthDayNano> {
    let (later, earlier) = if one >= other { (one, other) } else { (other, one) };
    let ((d1, mut clock), (d2, t2)) = (calendar::split(later), calendar::split(earlier));
    let (a, b) = (calendar::date_of(d1), calendar::date_of(d2));
    let mut day = a.day - b.day;
    let mut months = (a.year - b.year) * 12 + a.month - b.month;
    clock -= t2;
    if clock < 0 {
        clock += US_PER_DAY;
        day -= 1;
    }
    while day < 0 {
        // The month from which the count starts lends its days.
        let lender = if one >= other { b } else { a };
        day += calendar::days_in_month(lender.year, lender.month);
        months -= 1;
    }
    let sign = if one >= other { 1 } else { -1 };
    interval(sign * months, sign * day, i128::from(sign * clock))
}

fn justified_hours(i: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let ns_per_day = US_PER_DAY * 1_000;
    let (mut days, mut ns) = (i64::from(i.days) + i.nanoseconds / ns_per_day, i.nanoseconds % ns_per_day);
    if days > 0 && ns < 0 {
        (days, ns) = (days - 1, ns + ns_per_day);
    } else if days < 0 && ns > 0 {
        (days, ns) = (days + 1, ns - ns_per_day);
    }
    interval(i.months.into(), days, i128::from(ns / 1_000))
}

fn justified_days(i: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let (mut months, mut days) = (i64::from(i.months) + i64::from(i.days / 30), i64::from(i.days % 30));
    if months > 0 && days < 0 {
        (months, days) = (months - 1, days + 30);
    } else if months < 0 && days > 0 {
        (months, days) = (months + 1, days - 30);
    }
    interval(months, days, i128::from(i.nanoseconds / 1_000))
}

fn justified(i: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    // All of one sign: the sum in the smallest field, split again.
    let total = temporal::span(i) / 1_000;
    let day = i128::from(US_PER_DAY);
    let same_sign =
        i.months >= 0 && i.days >= 0 && i.nanoseconds >= 0 || i.months <= 0 && i.days <= 0 && i.nanoseconds <= 0;
    if same_sign {
        return justified_days(justified_hours(i)?);
    }
    let days = total / day;
    let months = i64::try_from(days / 30).map_err(|_| interval_range())?;
    interval(months, (days % 30) as i64, total % day)
}

fn ages(d: &mut Declared) {
    d.of("age", &[Timestamp, Timestamp], Gives::Is(Interval), |c| map2(c, |a: Moment, b: Moment| age(a.0, b.0)));
    d.zoned("age", &[Timestamptz, Timestamptz], Gives::Is(Interval), |c| {
        map2(c, |a: Moment, b: Moment| age(local(&c.zone, a.0)?, local(&c.zone, b.0)?))
    });
    d.of("justify_hours", &[Interval], Gives::Is(Interval), |c| map1(c, justified_hours));
    d.of("justify_days", &[Interval], Gives::Is(Interval), |c| map1(c, justified_days));
    d.of("justify_interval", &[Interval], Gives::Is(Interval), |c| map1(c, justified));
}

fn made_date(year: i32, month: i32, day: i32) -> Result<i64> {
    let bad = || field_overflow(&format!("date field value out of range: {year}-{month:02}-{day:02}"));
    // A negative year is one before Christ; there is no year zero.
    let astronomical = match year {
        0 => return Err(bad()),
        y if y < 0 => i64::from(y) + 1,
        y => i64::from(y),
    };
    let (month, day) = (i64::from(month), i64::from(day));
    if !(1..=12).contains(&month)
        || day < 1
        || day > calendar::days_in_month(astronomical, month)
        || !(-4_713..=294_276).contains(&astronomical)
    {
        return Err(bad());
    }
    Ok(days_from_civil(astronomical, month, day))
}

fn made_time(hour: i32, minute: i32, second: f64) -> Result<i64> {
    let us = (second * 1e6).round_ties_even();
    let bad = || field_overflow(&format!("time field value out of range: {hour}:{minute:02}:{second:02}"));
    if !(0..=24).contains(&hour) || !(0..60).contains(&minute) || !(0.0..=6e7).contains(&us) {
        return Err(bad());
    }
    let total = i64::from(hour) * 3_600_000_000 + i64::from(minute) * 60_000_000 + us as i64;
    if total > US_PER_DAY { Err(bad()) } else { Ok(total) }
}

/// Reads the six arguments of make_timestamp, of which any may be NULL.
fn made_moment(call: &Call<'_>, at: impl Fn(i64, usize) -> Result<Option<i64>>) -> Result<ArrayRef> {
    let numbers: Vec<_> = (0..5).map(|i| call.column::<i32>(i)).collect();
    let seconds = call.column::<f64>(5);
    build(call, |row| {
        let mut fields = [0; 5];
        for (field, column) in fields.iter_mut().zip(&numbers) {
            match column.get(row) {
                Some(v) => *field = v,
                None => return Ok(None),
            }
        }
        let Some(second) = seconds.get(row) else { return Ok(None) };
        let [year, month, day, hour, minute] = fields;
        let local = made_date(year, month, day)? * US_PER_DAY + made_time(hour, minute, second)?;
        Ok(at(local, row)?.map(Moment))
    })
}

/// make_interval with its first arguments given, the others being 0.
fn made_interval(call: &Call<'_>) -> Result<ArrayRef> {
    let count = call.columns.len();
    let numbers: Vec<_> = (0..count.min(6)).map(|i| call.column::<i32>(i)).collect();
    let seconds = (count == 7).then(|| call.column::<f64>(6));
    build(call, |row| {
        let mut fields = [0i64; 6];
        for (field, column) in fields.iter_mut().zip(&numbers) {
            match column.get(row) {
                Some(v) => *field = v.into(),
                None => return Ok(None),
            }
        }
        let second = match &seconds {
            Some(column) => match column.get(row) {
                Some(v) if v.is_finite() => v,
                Some(_) => return Err(interval_range()),
                None => return Ok(None),
            },
            None => 0.0,
        };
        let [years, months, weeks, days, hours, minutes] = fields;
        let us = i128::from(hours) * 3_600_000_000 + i128::from(minutes) * 60_000_000 + (second * 1e6).round() as i128;
        interval(years * 12 + months, weeks * 7 + days, us).map(Some)
    })
}

fn making(d: &mut Declared) {
    d.of("make_date", &[Int4, Int4, Int4], Gives::Is(Date), |c| {
        map3(c, |year: i32, month: i32, day: i32| {
            let days = made_date(year, month, day)?;
            i32::try_from(days).map(Day).map_err(|_| field_overflow("date out of range"))
        })
    });
    d.of("make_time", &[Int4, Int4, Float8], Gives::Is(Time), |c| {
        map3(c, |hour: i32, minute: i32, second: f64| made_time(hour, minute, second).map(Clock))
    });
    d.of("make_timestamp", &[Int4, Int4, Int4, Int4, Int4, Float8], Gives::Is(Timestamp), |c| {
        made_moment(c, |local, _| Ok(Some(local)))
    });
    // The zone may be written; without one it is the session's.
    d.zoned("make_timestamptz", &[Int4, Int4, Int4, Int4, Int4, Float8], Gives::Is(Timestamptz), |c| {
        made_moment(c, |local, _| instant(&c.zone, local).map(Some))
    });
    const INTERVALS: [&[super::Type]; 8] = [
        &[],
        &[Int4],
        &[Int4, Int4],
        &[Int4, Int4, Int4],
        &[Int4, Int4, Int4, Int4],
        &[Int4, Int4, Int4, Int4, Int4],
        &[Int4, Int4, Int4, Int4, Int4, Int4],
        &[Int4, Int4, Int4, Int4, Int4, Int4, Float8],
    ];
    for types in INTERVALS {
        d.of("make_interval", types, Gives::Is(Interval), made_interval);
    }
    d.of("to_timestamp", &[Float8], Gives::Is(Timestamptz), |c| {
        map1(c, |seconds: f64| {
            let us = (seconds * 1e6).round();
            if us.is_nan() || us.abs() > 9e18 {
                return Err(field_overflow(&format!("timestamp out of range: \"{seconds}\"")));
            }
            Ok(Moment(us as i64))
        })
    });
}

/// A zone by its name or by its offset as an interval.
fn offset_zone(i: IntervalMonthDayNano) -> Result<Zone> {
    if i.months != 0 || i.days != 0 {
        return Err(Error::new(SqlState::InvalidParameterValue, "interval time zone must not include months or days"));
    }
    i32::try_from(i.nanoseconds / 1_000_000_000).map(Zone::Fixed).map_err(|_| interval_range())
}

/// The zone that a column names; most often the same for all rows.
fn last_zone() -> impl FnMut(&str) -> Result<Zone> {
    let mut last: Option<(String, Zone)> = None;
    move |name| match &last {
        Some((known, zone)) if known == name => Ok(*zone),
        _ => {
            // POSIX counts offsets west of Greenwich, and so does a bare offset here.
            let zone = match zone_of(name)? {
                Zone::Fixed(seconds) if name.trim().starts_with(['+', '-']) => Zone::Fixed(-seconds),
                zone => zone,
            };
            last = Some((name.to_string(), zone));
            Ok(zone)
        }
    }
}

fn zones(d: &mut Declared) {
    d.of("timezone", &[Text, Timestamp], Gives::Is(Timestamptz), |c| {
        let mut zone = last_zone();
        map2(c, |name: &str, at: Moment| instant(&zone(name)?, at.0).map(Moment))
    });
    d.of("timezone", &[Text, Timestamptz], Gives::Is(Timestamp), |c| {
        let mut zone = last_zone();
        map2(c, |name: &str, at: Moment| local(&zone(name)?, at.0).map(Moment))
    });
    d.of("timezone", &[Interval, Timestamp], Gives::Is(Timestamptz), |c| {
        map2(c, |offset: IntervalMonthDayNano, at: Moment| instant(&offset_zone(offset)?, at.0).map(Moment))
    });
    d.of("timezone", &[Interval, Timestamptz], Gives::Is(Timestamp), |c| {
        map2(c, |offset: IntervalMonthDayNano, at: Moment| local(&offset_zone(offset)?, at.0).map(Moment))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(year: i64, month: i64, day: i64) -> i64 {
        days_from_civil(year, month, day) * US_PER_DAY
    }

    #[test]
    fn ages_count_as_a_calendar_does() {
        let iv = IntervalMonthDayNano::new;
        assert_eq!(age(at(2001, 4, 10), at(1957, 6, 13)).unwrap(), iv(43 * 12 + 9, 27, 0));
        assert_eq!(age(at(1957, 6, 13), at(2001, 4, 10)).unwrap(), iv(-(43 * 12 + 9), -27, 0));
        assert_eq!(age(at(2024, 3, 1), at(2024, 2, 29)).unwrap(), iv(0, 1, 0));
    }

    #[test]
    fn moments_are_cut_off_and_binned() {
        let us = at(2024, 5, 15) + 3_723_456_789;
        assert_eq!(truncated("quarter", us, "").unwrap(), at(2024, 4, 1));
        assert_eq!(truncated("week", us, "").unwrap(), at(2024, 5, 13));
        assert_eq!(truncated("century", us, "").unwrap(), at(2001, 1, 1));
        assert_eq!(truncated("hour", us, "").unwrap(), at(2024, 5, 15) + 3_600_000_000);
        let quarter_hour = IntervalMonthDayNano::new(0, 0, 900_000_000_000);
        assert_eq!(binned(quarter_hour, us, at(2001, 1, 1)).unwrap(), at(2024, 5, 15) + 3_600_000_000);
        assert!(binned(IntervalMonthDayNano::new(1, 0, 0), us, 0).is_err());
    }
}
