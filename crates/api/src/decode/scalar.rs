//! Scalars as decoding into Go types treats them: base64, times, and the words of its errors.

use serde_json::Value;
use std::borrow::Cow;

/// How Go's JSON decoder names what it found.
pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Checks standard base64. Line breaks are allowed and taken out.
pub(super) fn base64(text: &str) -> Result<Cow<'_, str>, String> {
    let has_breaks = text.bytes().any(|byte| matches!(byte, b'\r' | b'\n'));
    let mut len = 0;
    let mut padding = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\r' | b'\n' => continue,
            b'=' if padding < 2 && len % 4 >= 2 => padding += 1,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' if padding == 0 => {}
            _ => return Err(format!("illegal base64 data at input byte {at}")),
        }
        len += 1;
    }
    if len % 4 != 0 {
        return Err(format!("illegal base64 data at input byte {}", text.len() - len % 4));
    }
    Ok(if has_breaks {
        Cow::Owned(text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect())
    } else {
        text.into()
    })
}

const LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const MICRO_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Checks an RFC 3339 time and gives it in UTC: in whole seconds, or (`micro`) microseconds.
pub(super) fn time(text: &str, micro: bool) -> Result<Cow<'_, str>, String> {
    let layout = if micro { MICRO_LAYOUT } else { LAYOUT };
    let refused = |why: &str| format!("parsing time {text:?} as {layout:?}: cannot parse {why}");
    let bytes = text.as_bytes();
    let mut rest = 0;
    for element in ["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05"] {
        let found = bytes.get(rest..rest + element.len());
        let fits = match (element, found) {
            (_, None) => false,
            ("-" | "T" | ":", Some(found)) => found == element.as_bytes(),
            (_, Some(found)) => found.iter().all(u8::is_ascii_digit),
        };
        if !fits {
            return Err(refused(&format!("{:?} as {element:?}", text.get(rest..).unwrap_or(""))));
        }
        rest += element.len();
    }
    let digits = match bytes.get(rest) {
        Some(b'.' | b',') => bytes[rest + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count(),
        _ => 0,
    };
    if micro && digits < 6 {
        return Err(refused(&format!("{:?} as \".000000\"", &text[rest..])));
    }
    let zone = rest + if digits > 0 { digits + 1 } else { 0 };
    let zone_fits = match &bytes[zone..] {
        b"Z" => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    if !zone_fits {
        return Err(refused(&format!("{:?} as \"Z07:00\"", &text[zone..])));
    }
    let canonical_digits = if micro { 6 } else { 0 };
    let parsed: Option<jiff::Timestamp> = text.parse().ok();
    let Some(parsed) = parsed else {
        return Err(format!("parsing time {text:?}: {} out of range", out_of_range(text)));
    };
    if digits == canonical_digits && bytes[zone..] == *b"Z" {
        return Ok(text.into());
    }
    Ok(Cow::Owned(if micro {
        crate::meta::format_micro_time(parsed)
    } else {
        crate::meta::format_time(parsed)
    }))
}

/// The first element of a well-formed time that is too large.
fn out_of_range(text: &str) -> &'static str {
    let number = |at: usize| text[at..at + 2].parse::<u8>().unwrap_or(0);
    match () {
        () if !(1..=12).contains(&number(5)) => "month",
        () if number(11) > 23 => "hour",
        () if number(14) > 59 => "minute",
        () if number(17) > 59 => "second",
        () => "day",
    }
}
