//! Numbers: comparison across types, checked conversion, and Go's way to print doubles.

use std::cmp::Ordering;

use crate::value::Value;

/// Go's `%g`: the shortest digits that read back the same.
pub(crate) fn show_double(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The order of two numbers of any types; none if either is not a number or NaN.
pub(crate) fn compare(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    if let (Some(a), Some(b)) = (whole(a), whole(b)) {
        return Some(a.cmp(&b));
    }
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), b) => compare_whole(*a, whole(b)?),
        (a, Value::Double(b)) => compare_whole(*b, whole(a)?).map(Ordering::reverse),
        _ => None,
    }
}

fn whole(value: &Value<'_>) -> Option<i128> {
    match value {
        Value::Int(n) => Some((*n).into()),
        Value::Uint(n) => Some((*n).into()),
        _ => None,
    }
}

/// The order of a double and a whole number, exactly.
fn compare_whole(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Every i64 and u64 is far inside ±1e30, and so is each double that may equal one.
    if a >= 1e30 {
        return Some(Ordering::Greater);
    }
    if a <= -1e30 {
        return Some(Ordering::Less);
    }
    let order = (a.trunc() as i128).cmp(&b);
    Some(order.then(a.fract().partial_cmp(&0.0)?))
}

/// A double cut to a whole number, if an int holds it.
pub(crate) fn double_to_int(value: f64) -> Option<i64> {
    (value > -9_223_372_036_854_775_808.0 && value < 9_223_372_036_854_775_808.0).then_some(value as i64)
}

/// A double cut to a whole number, if a uint holds it.
pub(crate) fn double_to_uint(value: f64) -> Option<u64> {
    (0.0..18_446_744_073_709_551_616.0).contains(&value).then_some(value as u64)
}
