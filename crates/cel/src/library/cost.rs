//! What calls cost when they are made. Upstream's counterparts are cel-go's cost tracker and the
//! cost estimator of the API server's library; the numbers are theirs.

use crate::context::Context;
use crate::error::Error;
use crate::value::Value;

/// The cost of a character that is looked at.
pub(crate) const STRING_FACTOR: f64 = 0.1;
/// The cost of a character of a pattern, for each that it is matched against.
pub(crate) const REGEX_FACTOR: f64 = 0.25;
/// An authorization check: two fit into one evaluation.
pub(crate) const CHECK_COST: u64 = 350_000;

fn traversal(size: u64) -> u64 {
    scaled(size, STRING_FACTOR)
}

pub(crate) fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

/// What a call costs by its arguments, before it is made.
pub(crate) fn of_call(
    cx: &mut Context<'_>,
    function: &str,
    overload: &str,
    args: &[Value<'_>],
) -> Result<u64, Error> {
    let mut sizes = [1; 2];
    for (size, arg) in sizes.iter_mut().zip(args) {
        if let Value::String(text) = arg {
            cx.work(text.len() as u64 / 64)?;
        }
        *size = arg.size();
    }
    let size = |index: usize| -> u64 { sizes[index] };
    Ok(match function {
        "check" => CHECK_COST,
        "fieldSelector" | "labelSelector" => 10 + traversal(size(1)) + scaled(scaled(size(1), 0.5), 50.0),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => walk(cx, &args[0])?,
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver"
        | "image"
        | "isImage" => traversal(size(0)),
        "ip" if overload != "cidr_ip" => traversal(size(0)),
        "replace" | "split" | "ip.isCanonical" => scaled(size(0), 2.0 * STRING_FACTOR),
        // Known once there is a result.
        "join" => 0,
        "find" | "findAll" | "matches" => {
            scaled(size(0).saturating_add(1), STRING_FACTOR).saturating_mul(scaled(size(1), REGEX_FACTOR))
        }
        "containsIP" => {
            scaled(2 * size(0), STRING_FACTOR)
                + if overload == "cidr_contains_ip_string" { traversal(size(1)) } else { 0 }
        }
        "containsCIDR" => {
            let other = if overload == "cidr_contains_cidr_string" { traversal(size(1)) } else { 0 };
            scaled(2 * size(0), STRING_FACTOR) + traversal(size(0)) + 1 + other
        }
        "validate" => match args.first() {
            Some(Value::Opaque(crate::opaque::Opaque::Format(format))) => {
                scaled(size(1).saturating_add(1), STRING_FACTOR) * scaled(format.pattern_size, REGEX_FACTOR)
            }
            _ => 1,
        },
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        _ => match overload {
            "starts_with_string"
            | "ends_with_string"
            | "string_to_bytes"
            | "bytes_to_string"
            | "strings_quote"
            | "string_format_list_string" => traversal(size(0)),
            "in_list" => size(1),
            "equals" | "not_equals" if matches!(args[0], Value::Opaque(_)) => 1,
            "less_string"
            | "greater_string"
            | "less_equals_string"
            | "greater_equals_string"
            | "less_bytes"
            | "greater_bytes"
            | "less_equals_bytes"
            | "greater_equals_bytes"
            | "equals"
            | "not_equals" => traversal(size(0).min(size(1))),
            "add_string" | "add_bytes" => traversal(size(0) + size(1)),
            "contains_string" => traversal(size(0)).saturating_mul(traversal(size(1))),
            _ => 1,
        },
    })
}

/// What a call costs by its result.
pub(crate) fn of_result(function: &str, result: &Value<'_>) -> u64 {
    if function == "join" { scaled(result.size(), 2.0 * STRING_FACTOR) } else { 0 }
}

/// The cost of looking at every part of a value.
fn walk(cx: &mut Context<'_>, value: &Value<'_>) -> Result<u64, Error> {
    cx.work(1)?;
    Ok(match value {
        Value::String(text) => (text.len() as f64 * STRING_FACTOR) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * STRING_FACTOR) as u64,
        Value::List(list) => {
            let mut cost: u64 = 0;
            for item in list.iter() {
                cost = cost.saturating_add(walk(cx, &item?)?);
            }
            cost
        }
        Value::Map(map) => {
            let mut cost: u64 = 0;
            for key in map.keys() {
                let of = map.find(&key)?.map_or(Ok(0), |value| walk(cx, &value))?;
                cost = cost.saturating_add(walk(cx, &key)?).saturating_add(of);
            }
            cost
        }
        _ => 1,
    })
}
