//! Operators and conversions of the language itself.

use std::cmp::Ordering;
use std::sync::Arc;

use super::text;
use crate::context::Context;
use crate::equality;
use crate::error::Error;
use crate::function::Row;
use crate::number::{compare, double_to_int, double_to_uint, show_double};
use crate::time;
use crate::types::Type;
use crate::value::{Text, Value};

type Outcome<'a> = Result<Value<'a>, Error>;

pub(crate) const ROWS: &[Row] = &[
    // These five are evaluated by the evaluator, which need not evaluate all arguments.
    ("_?_:_", "conditional", "(bool, A, A) A", |_, _| Err(Error::no_such_overload())),
    ("_&&_", "logical_and", "(bool, bool) bool", |_, _| Err(Error::no_such_overload())),
    ("_||_", "logical_or", "(bool, bool) bool", |_, _| Err(Error::no_such_overload())),
    ("@not_strictly_false", "not_strictly_false", "(bool) bool", |_, _| Err(Error::no_such_overload())),
    ("!_", "logical_not", "(bool) bool", |_, args| match args {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => Err(Error::no_such_overload()),
    }),
    ("_==_", "equals", "(A, A) bool", |cx, args| Ok(Value::Bool(equality::equal(cx, &args[0], &args[1])?))),
    ("_!=_", "not_equals", "(A, A) bool", |cx, args| {
        Ok(Value::Bool(!equality::equal(cx, &args[0], &args[1])?))
    }),
    // Sums.
    ("_+_", "add_bytes", "(bytes, bytes) bytes", add_bytes),
    ("_+_", "add_double", "(double, double) double", |_, args| doubles(args, |a, b| a + b)),
    ("_+_", "add_duration_duration", "(duration, duration) duration", |_, args| {
        durations(args, i64::checked_add)
    }),
    ("_+_", "add_duration_timestamp", "(duration, timestamp) timestamp", |_, args| {
        shift(&args[1], &args[0], 1)
    }),
    ("_+_", "add_timestamp_duration", "(timestamp, duration) timestamp", |_, args| {
        shift(&args[0], &args[1], 1)
    }),
    ("_+_", "add_int64", "(int, int) int", |_, args| ints(args, i64::checked_add)),
    ("_+_", "add_list", "(list(A), list(A)) list(A)", super::collections::add),
    ("_+_", "add_string", "(string, string) string", add_strings),
    ("_+_", "add_uint64", "(uint, uint) uint", |_, args| uints(args, u64::checked_add)),
    ("_-_", "subtract_double", "(double, double) double", |_, args| doubles(args, |a, b| a - b)),
    ("_-_", "subtract_duration_duration", "(duration, duration) duration", |_, args| {
        durations(args, i64::checked_sub)
    }),
    ("_-_", "subtract_int64", "(int, int) int", |_, args| ints(args, i64::checked_sub)),
    ("_-_", "subtract_timestamp_duration", "(timestamp, duration) timestamp", |_, args| {
        shift(&args[0], &args[1], -1)
    }),
    ("_-_", "subtract_timestamp_timestamp", "(timestamp, timestamp) duration", |_, args| match args {
        [Value::Timestamp(a), Value::Timestamp(b)] => i64::try_from(a.as_nanos() - b.as_nanos())
            .map(Value::Duration)
            .map_err(|_| Error::new("duration overflow")),
        _ => Err(Error::no_such_overload()),
    }),
    ("_-_", "subtract_uint64", "(uint, uint) uint", |_, args| uints(args, u64::checked_sub)),
    // Products.
    ("_*_", "multiply_double", "(double, double) double", |_, args| doubles(args, |a, b| a * b)),
    ("_*_", "multiply_int64", "(int, int) int", |_, args| ints(args, i64::checked_mul)),
    ("_*_", "multiply_uint64", "(uint, uint) uint", |_, args| uints(args, u64::checked_mul)),
    ("_/_", "divide_double", "(double, double) double", |_, args| doubles(args, |a, b| a / b)),
    ("_/_", "divide_int64", "(int, int) int", |_, args| {
        not_zero(args, "division by zero")?;
        ints(args, i64::checked_div)
    }),
    ("_/_", "divide_uint64", "(uint, uint) uint", |_, args| {
        not_zero(args, "division by zero")?;
        uints(args, u64::checked_div)
    }),
    ("_%_", "modulo_int64", "(int, int) int", |_, args| {
        not_zero(args, "modulus by zero")?;
        ints(args, i64::checked_rem)
    }),
    ("_%_", "modulo_uint64", "(uint, uint) uint", |_, args| {
        not_zero(args, "modulus by zero")?;
        uints(args, u64::checked_rem)
    }),
    ("-_", "negate_double", "(double) double", |_, args| match args {
        [Value::Double(d)] => Ok(Value::Double(-d)),
        _ => Err(Error::no_such_overload()),
    }),
    ("-_", "negate_int64", "(int) int", |_, args| match args {
        [Value::Int(n)] => n.checked_neg().map(Value::Int).ok_or_else(|| Error::new("integer overflow")),
        _ => Err(Error::no_such_overload()),
    }),
    // Text.
    ("contains", "contains_string", ".(string, string) bool", |_, args| {
        Ok(Value::Bool(text(args, 0)?.contains(text(args, 1)?)))
    }),
    ("endsWith", "ends_with_string", ".(string, string) bool", |_, args| {
        Ok(Value::Bool(text(args, 0)?.ends_with(text(args, 1)?)))
    }),
    ("startsWith", "starts_with_string", ".(string, string) bool", |_, args| {
        Ok(Value::Bool(text(args, 0)?.starts_with(text(args, 1)?)))
    }),
    // Conversions.
    ("type", "type", "(A) type(A)", |_, args| Ok(Value::Type(args[0].type_of()))),
    ("dyn", "to_dyn", "(A) dyn", same),
    ("bool", "bool_to_bool", "(bool) bool", same),
    ("bool", "string_to_bool", "(string) bool", |_, args| match text(args, 0)? {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
        _ => conversion(args, Type::Bool),
    }),
    ("bytes", "bytes_to_bytes", "(bytes) bytes", same),
    ("bytes", "string_to_bytes", "(string) bytes", |cx, args| {
        cx.take(text(args, 0)?.len())?;
        Ok(Value::Bytes(text(args, 0)?.as_bytes().into()))
    }),
    ("double", "double_to_double", "(double) double", same),
    ("double", "int64_to_double", "(int) double", to_double),
    ("double", "string_to_double", "(string) double", to_double),
    ("double", "uint64_to_double", "(uint) double", to_double),
    ("duration", "duration_to_duration", "(duration) duration", same),
    ("duration", "int64_to_duration", "(int) duration", |_, args| match args {
        [Value::Int(n)] => Ok(Value::Duration(*n)),
        _ => Err(Error::no_such_overload()),
    }),
    ("duration", "string_to_duration", "(string) duration", |_, args| {
        time::parse_duration(text(args, 0)?)
            .map_or_else(|| conversion(args, Type::Duration), |d| Ok(Value::Duration(d)))
    }),
    ("int", "int64_to_int64", "(int) int", same),
    ("int", "double_to_int64", "(double) int", to_int),
    ("int", "duration_to_int64", "(duration) int", to_int),
    ("int", "string_to_int64", "(string) int", to_int),
    ("int", "timestamp_to_int64", "(timestamp) int", to_int),
    ("int", "uint64_to_int64", "(uint) int", to_int),
    ("string", "string_to_string", "(string) string", same),
    ("string", "bool_to_string", "(bool) string", to_string),
    ("string", "bytes_to_string", "(bytes) string", to_string),
    ("string", "double_to_string", "(double) string", to_string),
    ("string", "duration_to_string", "(duration) string", to_string),
    ("string", "int64_to_string", "(int) string", to_string),
    ("string", "timestamp_to_string", "(timestamp) string", to_string),
    ("string", "uint64_to_string", "(uint) string", to_string),
    ("timestamp", "timestamp_to_timestamp", "(timestamp) timestamp", same),
    ("timestamp", "int64_to_timestamp", "(int) timestamp", |_, args| match args {
        [Value::Int(n)] => time::Timestamp::from_nanos(i128::from(*n) * 1_000_000_000).map(Value::Timestamp),
        _ => Err(Error::no_such_overload()),
    }),
    ("timestamp", "string_to_timestamp", "(string) timestamp", |_, args| {
        let time = time::parse_timestamp(text(args, 0)?);
        time.map_or_else(|| conversion(args, Type::Timestamp), |time| Ok(Value::Timestamp(time)))
    }),
    ("uint", "uint64_to_uint64", "(uint) uint", same),
    ("uint", "double_to_uint64", "(double) uint", to_uint),
    ("uint", "int64_to_uint64", "(int) uint", to_uint),
    ("uint", "string_to_uint64", "(string) uint", to_uint),
    // Order. Of the ids, those of strings and bytes have a cost of their own.
    ("_<_", "less_bool", "(bool, bool) bool", less),
    ("_<_", "less_int64", "(int, int) bool", less),
    ("_<_", "less_int64_double", "(int, double) bool", less),
    ("_<_", "less_int64_uint64", "(int, uint) bool", less),
    ("_<_", "less_uint64", "(uint, uint) bool", less),
    ("_<_", "less_uint64_double", "(uint, double) bool", less),
    ("_<_", "less_uint64_int64", "(uint, int) bool", less),
    ("_<_", "less_double", "(double, double) bool", less),
    ("_<_", "less_double_int64", "(double, int) bool", less),
    ("_<_", "less_double_uint64", "(double, uint) bool", less),
    ("_<_", "less_string", "(string, string) bool", less),
    ("_<_", "less_bytes", "(bytes, bytes) bool", less),
    ("_<_", "less_timestamp", "(timestamp, timestamp) bool", less),
    ("_<_", "less_duration", "(duration, duration) bool", less),
    ("_<=_", "less_equals_bool", "(bool, bool) bool", less_equals),
    ("_<=_", "less_equals_int64", "(int, int) bool", less_equals),
    ("_<=_", "less_equals_int64_double", "(int, double) bool", less_equals),
    ("_<=_", "less_equals_int64_uint64", "(int, uint) bool", less_equals),
    ("_<=_", "less_equals_uint64", "(uint, uint) bool", less_equals),
    ("_<=_", "less_equals_uint64_double", "(uint, double) bool", less_equals),
    ("_<=_", "less_equals_uint64_int64", "(uint, int) bool", less_equals),
    ("_<=_", "less_equals_double", "(double, double) bool", less_equals),
    ("_<=_", "less_equals_double_int64", "(double, int) bool", less_equals),
    ("_<=_", "less_equals_double_uint64", "(double, uint) bool", less_equals),
    ("_<=_", "less_equals_string", "(string, string) bool", less_equals),
    ("_<=_", "less_equals_bytes", "(bytes, bytes) bool", less_equals),
    ("_<=_", "less_equals_timestamp", "(timestamp, timestamp) bool", less_equals),
    ("_<=_", "less_equals_duration", "(duration, duration) bool", less_equals),
    ("_>_", "greater_bool", "(bool, bool) bool", greater),
    ("_>_", "greater_int64", "(int, int) bool", greater),
    ("_>_", "greater_int64_double", "(int, double) bool", greater),
    ("_>_", "greater_int64_uint64", "(int, uint) bool", greater),
    ("_>_", "greater_uint64", "(uint, uint) bool", greater),
    ("_>_", "greater_uint64_double", "(uint, double) bool", greater),
    ("_>_", "greater_uint64_int64", "(uint, int) bool", greater),
    ("_>_", "greater_double", "(double, double) bool", greater),
    ("_>_", "greater_double_int64", "(double, int) bool", greater),
    ("_>_", "greater_double_uint64", "(double, uint) bool", greater),
    ("_>_", "greater_string", "(string, string) bool", greater),
    ("_>_", "greater_bytes", "(bytes, bytes) bool", greater),
    ("_>_", "greater_timestamp", "(timestamp, timestamp) bool", greater),
    ("_>_", "greater_duration", "(duration, duration) bool", greater),
    ("_>=_", "greater_equals_bool", "(bool, bool) bool", greater_equals),
    ("_>=_", "greater_equals_int64", "(int, int) bool", greater_equals),
    ("_>=_", "greater_equals_int64_double", "(int, double) bool", greater_equals),
    ("_>=_", "greater_equals_int64_uint64", "(int, uint) bool", greater_equals),
    ("_>=_", "greater_equals_uint64", "(uint, uint) bool", greater_equals),
    ("_>=_", "greater_equals_uint64_double", "(uint, double) bool", greater_equals),
    ("_>=_", "greater_equals_uint64_int64", "(uint, int) bool", greater_equals),
    ("_>=_", "greater_equals_double", "(double, double) bool", greater_equals),
    ("_>=_", "greater_equals_double_int64", "(double, int) bool", greater_equals),
    ("_>=_", "greater_equals_double_uint64", "(double, uint) bool", greater_equals),
    ("_>=_", "greater_equals_string", "(string, string) bool", greater_equals),
    ("_>=_", "greater_equals_bytes", "(bytes, bytes) bool", greater_equals),
    ("_>=_", "greater_equals_timestamp", "(timestamp, timestamp) bool", greater_equals),
    ("_>=_", "greater_equals_duration", "(duration, duration) bool", greater_equals),
];

fn less<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Bool(order(&args[0], &args[1])?.is_some_and(Ordering::is_lt)))
}

fn less_equals<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Bool(order(&args[0], &args[1])?.is_some_and(Ordering::is_le)))
}

fn greater<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Bool(order(&args[0], &args[1])?.is_some_and(Ordering::is_gt)))
}

fn greater_equals<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Bool(order(&args[0], &args[1])?.is_some_and(Ordering::is_ge)))
}

/// The order of two values; none where one is NaN.
///
/// # Errors
/// Values of types that have no order.
pub(crate) fn order(a: &Value<'_>, b: &Value<'_>) -> Result<Option<Ordering>, Error> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::String(a), Value::String(b)) => Some((**a).cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.as_nanos().cmp(&b.as_nanos())),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
        ) => compare(a, b),
        _ => return Err(Error::no_such_overload()),
    })
}

fn same<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(args[0].clone())
}

fn doubles<'a>(args: &[Value<'a>], f: fn(f64, f64) -> f64) -> Outcome<'a> {
    match args {
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(f(*a, *b))),
        _ => Err(Error::no_such_overload()),
    }
}

fn ints<'a>(args: &[Value<'a>], f: fn(i64, i64) -> Option<i64>) -> Outcome<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => {
            f(*a, *b).map(Value::Int).ok_or_else(|| Error::new("integer overflow"))
        }
        _ => Err(Error::no_such_overload()),
    }
}

fn uints<'a>(args: &[Value<'a>], f: fn(u64, u64) -> Option<u64>) -> Outcome<'a> {
    match args {
        [Value::Uint(a), Value::Uint(b)] => {
            f(*a, *b).map(Value::Uint).ok_or_else(|| Error::new("unsigned integer overflow"))
        }
        _ => Err(Error::no_such_overload()),
    }
}

fn durations<'a>(args: &[Value<'a>], f: fn(i64, i64) -> Option<i64>) -> Outcome<'a> {
    match args {
        [Value::Duration(a), Value::Duration(b)] => {
            f(*a, *b).map(Value::Duration).ok_or_else(|| Error::new("duration overflow"))
        }
        _ => Err(Error::no_such_overload()),
    }
}

fn shift<'a>(time: &Value<'a>, by: &Value<'a>, sign: i128) -> Outcome<'a> {
    match (time, by) {
        (Value::Timestamp(time), Value::Duration(by)) => {
            time.plus(sign * i128::from(*by)).map(Value::Timestamp)
        }
        _ => Err(Error::no_such_overload()),
    }
}

fn not_zero(args: &[Value<'_>], message: &str) -> Result<(), Error> {
    match args.get(1) {
        Some(Value::Int(0) | Value::Uint(0)) => Err(Error::new(message)),
        _ => Ok(()),
    }
}

fn add_strings<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let (a, b) = (text(args, 0)?, text(args, 1)?);
    cx.take(a.len() + b.len())?;
    Ok(Value::String(Text::Shared(Arc::from([a, b].concat()))))
}

fn add_bytes<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Bytes(a), Value::Bytes(b)] => {
            cx.take(a.len() + b.len())?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        _ => Err(Error::no_such_overload()),
    }
}

fn conversion<'a>(args: &[Value<'a>], to: Type) -> Outcome<'a> {
    let from = args[0].type_of().runtime_name();
    Err(Error::new(format!("type conversion error from '{from}' to '{}'", to.runtime_name())))
}

fn to_double<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Double(match &args[0] {
        Value::Int(n) => *n as f64,
        Value::Uint(n) => *n as f64,
        Value::String(text) => match text.parse() {
            Ok(value) if !text.is_empty() => value,
            _ => return conversion(args, Type::Double),
        },
        _ => return conversion(args, Type::Double),
    }))
}

fn to_int<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let value = match &args[0] {
        Value::Double(d) => double_to_int(*d),
        Value::Uint(n) => i64::try_from(*n).ok(),
        Value::Duration(nanos) => Some(*nanos),
        Value::Timestamp(time) => i64::try_from(time.as_nanos().div_euclid(1_000_000_000)).ok(),
        Value::String(text) => {
            return text.parse().map_or_else(|_| conversion(args, Type::Int), |n| Ok(Value::Int(n)));
        }
        _ => return conversion(args, Type::Int),
    };
    value.map(Value::Int).ok_or_else(|| Error::new("integer overflow"))
}

fn to_uint<'a>(_: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    let value = match &args[0] {
        Value::Double(d) => double_to_uint(*d),
        Value::Int(n) => u64::try_from(*n).ok(),
        Value::String(text) => {
            let value = text.parse().ok().filter(|_| !text.starts_with('+'));
            return value.map_or_else(|| conversion(args, Type::Uint), |n| Ok(Value::Uint(n)));
        }
        _ => return conversion(args, Type::Uint),
    };
    value.map(Value::Uint).ok_or_else(|| Error::new("unsigned integer overflow"))
}

fn to_string<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    Ok(match &args[0] {
        Value::Double(d) => show_double(*d).into(),
        Value::Bytes(bytes) => {
            cx.take(bytes.len())?;
            match std::str::from_utf8(bytes) {
                Ok(text) => text.to_owned().into(),
                Err(_) => return Err(Error::new("invalid UTF-8 in bytes, cannot convert to string")),
            }
        }
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Timestamp(_) | Value::Duration(_) => {
            args[0].to_string().into()
        }
        _ => return conversion(args, Type::String),
    })
}
