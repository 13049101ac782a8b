//! Values that are a number or a percentage, such as `maxSurge`.
//! Upstream counterpart: `k8s.io/apimachinery/pkg/util/intstr`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Up,
    Down,
}

/// Neither a whole number nor `N%`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid value for IntOrString: {0}")]
pub struct NotScalable(pub String);

/// The number itself, or the percentage of `total`, rounded to a whole number.
pub fn scaled(value: &IntOrString, total: i32, round: Round) -> Result<i32, NotScalable> {
    match value {
        IntOrString::Int(n) => Ok(*n),
        IntOrString::String(s) => {
            let percent = percent(s)
                .ok_or_else(|| NotScalable(format!("invalid type: string is not a percentage: {s:?}")))?;
            Ok(scale(percent, total, round))
        }
    }
}

/// As [`scaled`], of a JSON value.
pub fn scaled_value(value: &Value, total: i32, round: Round) -> Result<i32, NotScalable> {
    match value {
        Value::String(s) => scaled(&IntOrString::String(s.clone()), total, round),
        other => other
            .as_i64()
            .and_then(|n| i32::try_from(n).ok())
            .ok_or_else(|| NotScalable("invalid type: neither int nor percentage".into())),
    }
}

fn scale(percent: i32, total: i32, round: Round) -> i32 {
    let product = i64::from(percent) * i64::from(total);
    let scaled = match round {
        Round::Up => product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0),
        Round::Down => product.div_euclid(100),
    };
    scaled.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

/// `25%` → 25. A percentage is digits and a percent sign; upstream accepts a sign before them.
pub fn percent(text: &str) -> Option<i32> {
    text.strip_suffix('%')?.parse().ok()
}

/// Whether text has the form that validation asks of a percentage: only digits and `%`.
pub fn is_valid_percent(text: &str) -> bool {
    text.strip_suffix('%')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The `(maxSurge, maxUnavailable)` of a rolling update: surge rounds up, unavailable rounds
/// down, and if both come to zero one Pod may be unavailable, or nothing could ever move.
pub fn resolve_fenceposts(
    surge: &IntOrString,
    unavailable: &IntOrString,
    replicas: i32,
) -> Result<(i32, i32), NotScalable> {
    let surge = scaled(surge, replicas, Round::Up)?;
    let unavailable = scaled(unavailable, replicas, Round::Down)?;
    Ok(if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> IntOrString {
        IntOrString::String(s.into())
    }

    #[test]
    fn percentages_round_as_asked() {
        for (value, total, up, down) in
            [("25%", 3, 1, 0), ("25%", 4, 1, 1), ("0%", 9, 0, 0), ("100%", 7, 7, 7), ("51%", 100, 51, 51)]
        {
            assert_eq!(scaled(&text(value), total, Round::Up), Ok(up), "{value} of {total} up");
            assert_eq!(scaled(&text(value), total, Round::Down), Ok(down), "{value} of {total} down");
        }
        assert_eq!(scaled(&IntOrString::Int(5), 1, Round::Up), Ok(5));
        assert!(scaled(&text("x"), 1, Round::Up).is_err());
        assert!(scaled(&text("5"), 1, Round::Up).is_err());
        assert!(is_valid_percent("5%") && !is_valid_percent("-5%") && !is_valid_percent("%"));
    }

    #[test]
    fn something_may_always_move() {
        assert_eq!(resolve_fenceposts(&text("0%"), &text("10%"), 3), Ok((0, 1)));
        assert_eq!(resolve_fenceposts(&text("25%"), &text("25%"), 3), Ok((1, 0)));
    }
}
