//! Parts of timestamps and durations.

use jiff::civil::{DateTime, Weekday};

use super::text;
use crate::error::Error;
use crate::function::Row;
use crate::time::civil;
use crate::value::Value;

/// The rows of one part of a timestamp, in UTC and in a named zone.
macro_rules! part {
    ($name:literal, $id:literal, $id_tz:literal, $of:expr) => {
        [
            ($name, $id, ".(timestamp) int", |_, args| part(args, None, $of)),
            ($name, $id_tz, ".(timestamp, string) int", |_, args| part(args, Some(text(args, 1)?), $of)),
        ]
    };
}

const PARTS: [[Row; 2]; 10] = [
    part!("getFullYear", "timestamp_to_year", "timestamp_to_year_with_tz", |t| t.year().into()),
    part!("getMonth", "timestamp_to_month", "timestamp_to_month_with_tz", |t| i64::from(t.month()) - 1),
    part!("getDayOfYear", "timestamp_to_day_of_year", "timestamp_to_day_of_year_with_tz", |t| {
        i64::from(t.day_of_year()) - 1
    }),
    part!("getDayOfMonth", "timestamp_to_day_of_month", "timestamp_to_day_of_month_with_tz", |t| {
        i64::from(t.day()) - 1
    }),
    part!("getDate", "timestamp_to_day_of_month_1_based", "timestamp_to_day_of_month_1_based_with_tz", |t| t
        .day()
        .into()),
    part!("getDayOfWeek", "timestamp_to_day_of_week", "timestamp_to_day_of_week_with_tz", |t| {
        Weekday::to_sunday_zero_offset(t.weekday()).into()
    }),
    part!("getHours", "timestamp_to_hours", "timestamp_to_hours_with_tz", |t| t.hour().into()),
    part!("getMinutes", "timestamp_to_minutes", "timestamp_to_minutes_with_tz", |t| t.minute().into()),
    part!("getSeconds", "timestamp_to_seconds", "timestamp_to_seconds_tz", |t| t.second().into()),
    part!("getMilliseconds", "timestamp_to_milliseconds", "timestamp_to_milliseconds_with_tz", |t| {
        i64::from(t.subsec_nanosecond()) / 1_000_000
    }),
];

const DURATIONS: &[Row] = &[
    ("getHours", "duration_to_hours", ".(duration) int", |_, args| duration(args, 3_600_000_000_000)),
    ("getMinutes", "duration_to_minutes", ".(duration) int", |_, args| duration(args, 60_000_000_000)),
    ("getSeconds", "duration_to_seconds", ".(duration) int", |_, args| duration(args, 1_000_000_000)),
    ("getMilliseconds", "duration_to_milliseconds", ".(duration) int", |_, args| duration(args, 1_000_000)),
];

pub(crate) const ROWS: &[Row] = {
    // The two tables in one.
    const COUNT: usize = PARTS.len() * 2 + DURATIONS.len();
    const ALL: [Row; COUNT] = {
        let mut all = [DURATIONS[0]; COUNT];
        let mut at = 0;
        while at < COUNT {
            all[at] =
                if at < PARTS.len() * 2 { PARTS[at / 2][at % 2] } else { DURATIONS[at - PARTS.len() * 2] };
            at += 1;
        }
        all
    };
    &ALL
};

fn part<'a>(args: &[Value<'a>], zone: Option<&str>, of: fn(DateTime) -> i64) -> Result<Value<'a>, Error> {
    match &args[0] {
        Value::Timestamp(time) => Ok(Value::Int(of(civil(*time, zone)?))),
        _ => Err(Error::no_such_overload()),
    }
}

fn duration<'a>(args: &[Value<'a>], unit: i64) -> Result<Value<'a>, Error> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / unit)),
        _ => Err(Error::no_such_overload()),
    }
}
