//! Timestamps and durations: Go's forms, CEL's ranges.

use std::fmt;

use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use crate::error::Error;

/// A point in time, in nanoseconds from 1970; within the years 1 to 9999. It is shown with the offset
/// that it was written with, which says nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp {
    nanos: i128,
    offset_seconds: i32,
}

impl PartialEq for Timestamp {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

const SECOND: i64 = 1_000_000_000;
/// 0001-01-01T00:00:00Z.
const FIRST_SECOND: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z.
const LAST_SECOND: i64 = 253_402_300_799;

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

impl Timestamp {
    /// The point so many nanoseconds from 1970.
    ///
    /// # Errors
    /// One that CEL does not have.
    pub fn from_nanos(nanos: i128) -> Result<Self, Error> {
        let seconds = nanos.div_euclid(SECOND.into());
        if !(i128::from(FIRST_SECOND)..=i128::from(LAST_SECOND)).contains(&seconds) {
            return Err(Error::new("timestamp overflow"));
        }
        Ok(Self { nanos, offset_seconds: 0 })
    }

    /// Nanoseconds from 1970.
    pub fn as_nanos(self) -> i128 {
        self.nanos
    }

    /// The point so many nanoseconds later, shown with the same offset.
    pub(crate) fn plus(self, nanos: i128) -> Result<Self, Error> {
        Ok(Self { offset_seconds: self.offset_seconds, ..Self::from_nanos(self.nanos + nanos)? })
    }

    fn utc(self) -> DateTime {
        EPOCH.saturating_add(SignedDuration::from_nanos_i128(self.nanos))
    }
}

/// RFC 3339, with as many digits of a second as there are.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.utc().saturating_add(SignedDuration::from_secs(self.offset_seconds.into()));
        if self.offset_seconds == 0 {
            return write!(f, "{local}Z");
        }
        let (sign, minutes) =
            if self.offset_seconds < 0 { ('-', -self.offset_seconds) } else { ('+', self.offset_seconds) };
        write!(f, "{local}{sign}{:02}:{:02}", minutes / 3_600, minutes / 60 % 60)
    }
}

/// Seconds, with as many digits as there are: `1.5s`.
pub(crate) fn show_duration(nanos: i64) -> String {
    let (seconds, rest) = (nanos.unsigned_abs() / SECOND as u64, nanos.unsigned_abs() % SECOND as u64);
    let sign = if nanos < 0 { "-" } else { "" };
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let digits = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", digits.trim_end_matches('0'))
}

/// RFC 3339, and nothing else.
pub(crate) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let b = text.as_bytes();
    let digits = |from: usize, to: usize| b.get(from..to).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
    let sign = |at: usize, c: &[u8]| b.get(at).is_some_and(|found| c.contains(found));
    let shape = digits(0, 4)
        && sign(4, b"-")
        && digits(5, 7)
        && sign(7, b"-")
        && digits(8, 10)
        && sign(10, b"T")
        && digits(11, 13)
        && sign(13, b":")
        && digits(14, 16)
        && sign(16, b":")
        && digits(17, 19);
    if !shape || &b[17..19] == b"60" {
        return None;
    }
    let mut at = 19;
    if sign(at, b".,") {
        at += 1;
        let fraction = b[at..].iter().take_while(|c| c.is_ascii_digit()).count();
        if fraction == 0 {
            return None;
        }
        at += fraction;
    }
    let civil: DateTime = text[..at].replacen(',', ".", 1).parse().ok()?;
    let zone = &text[at..];
    let offset = if zone == "Z" {
        0
    } else if zone.len() == 6
        && sign(at, b"+-")
        && digits(at + 1, at + 3)
        && sign(at + 3, b":")
        && digits(at + 4, at + 6)
    {
        let (hours, minutes) = (zone[1..3].parse::<i32>().ok()?, zone[4..].parse::<i32>().ok()?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        (hours * 3_600 + minutes * 60) * if zone.starts_with('-') { -1 } else { 1 }
    } else {
        return None;
    };
    let nanos = civil.duration_since(EPOCH).as_nanos() - i128::from(offset) * i128::from(SECOND);
    Some(Timestamp { offset_seconds: offset, ..Timestamp::from_nanos(nanos).ok()? })
}

/// A date, as midnight of UTC.
pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    (text.len() == 10).then(|| parse_timestamp(&format!("{text}T00:00:00Z")))?
}

/// Go's `time.ParseDuration`: numbers with units, added up.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole = rest.bytes().take_while(u8::is_ascii_digit).count();
        let mut end = whole;
        let mut fraction = "";
        if rest[end..].starts_with('.') {
            let digits = rest[end + 1..].bytes().take_while(u8::is_ascii_digit).count();
            fraction = &rest[end + 1..end + 1 + digits];
            end += 1 + digits;
        }
        if whole == 0 && fraction.is_empty() {
            return None;
        }
        let unit_end =
            rest[end..].find(|c: char| c == '.' || c.is_ascii_digit()).map_or(rest.len(), |n| end + n);
        let unit: i128 = match &rest[end..unit_end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND.into(),
            "m" => i128::from(SECOND) * 60,
            "h" => i128::from(SECOND) * 3_600,
            _ => return None,
        };
        let number: i128 = if whole == 0 { 0 } else { rest[..whole].parse::<u64>().ok()?.into() };
        total += number * unit;
        // Digits beyond what a nanosecond can show change nothing.
        let digits = &fraction[..fraction.len().min(18)];
        if !digits.is_empty() {
            total += digits.parse::<i128>().ok()? * unit / 10_i128.pow(digits.len() as u32);
        }
        if total > i128::from(i64::MAX) + 1 {
            return None;
        }
        rest = &rest[unit_end..];
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// A duration of an OpenAPI schema: Go's form, or one number and a word such as `2 days`.
pub(crate) fn parse_schema_duration(text: &str) -> Option<i64> {
    if let Some(duration) = parse_duration(text) {
        return Some(duration);
    }
    let mut total: i64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: i64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
        let unit = match rest[..letters].to_ascii_lowercase().trim_end_matches('s') {
            "n" | "nano" | "nanosecond" => 1,
            "u" | "µ" | "micro" | "microsecond" => 1_000,
            "m" if rest.starts_with("ms") => 1_000_000,
            "milli" | "milisecond" | "millisecond" => 1_000_000,
            "" | "sec" | "second" if letters > 0 => SECOND,
            "m" | "min" | "minute" => SECOND * 60,
            "h" | "hr" | "hour" => SECOND * 3_600,
            "d" | "day" => SECOND * 86_400,
            "w" | "wk" | "week" => SECOND * 604_800,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = rest[letters..].trim_start();
    }
    Some(total)
}

/// The civil time of a timestamp in a zone: a name of the time zone database, or `±HH:MM`.
pub(crate) fn civil(time: Timestamp, zone: Option<&str>) -> Result<DateTime, Error> {
    let Some(name) = zone.filter(|name| !name.is_empty()) else { return Ok(time.utc()) };
    let zone = match name.split_once(':') {
        Some((hours, minutes)) => fixed(hours, minutes).map(TimeZone::fixed),
        None => TimeZone::get(name).ok(),
    };
    let zone = zone.ok_or_else(|| Error::new(format!("unknown time zone {name}")))?;
    // The zone of the last day there is, is that of the day before it.
    let (first, last) = (jiff::Timestamp::MIN.as_nanosecond(), jiff::Timestamp::MAX.as_nanosecond());
    let known = jiff::Timestamp::from_nanosecond(time.nanos.clamp(first, last));
    let offset = zone.to_offset(known.map_err(|_| Error::new("timestamp overflow"))?);
    Ok(time.utc().saturating_add(SignedDuration::from_secs(offset.seconds().into())))
}

fn fixed(hours: &str, minutes: &str) -> Option<Offset> {
    let negative = hours.starts_with('-');
    let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
    let minutes: i32 = minutes.parse().ok().filter(|m| (0..60).contains(m))?;
    let seconds = hours.checked_mul(3_600)? + minutes * 60;
    Offset::from_seconds(if negative { -seconds } else { seconds }).ok()
}
