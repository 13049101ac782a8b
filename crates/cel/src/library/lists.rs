//! Sums, extremes and places of items of lists.

use std::cmp::Ordering;

use super::list;
use super::standard::order;
use crate::context::Context;
use crate::equality::equal;
use crate::error::Error;
use crate::function::Row;
use crate::value::Value;

pub(crate) const ROWS: &[Row] = &[
    ("isSorted", "list_int_is_sorted_bool", ".(list(int)) bool", is_sorted),
    ("isSorted", "list_uint_is_sorted_bool", ".(list(uint)) bool", is_sorted),
    ("isSorted", "list_double_is_sorted_bool", ".(list(double)) bool", is_sorted),
    ("isSorted", "list_bool_is_sorted_bool", ".(list(bool)) bool", is_sorted),
    ("isSorted", "list_duration_is_sorted_bool", ".(list(duration)) bool", is_sorted),
    ("isSorted", "list_timestamp_is_sorted_bool", ".(list(timestamp)) bool", is_sorted),
    ("isSorted", "list_string_is_sorted_bool", ".(list(string)) bool", is_sorted),
    ("isSorted", "list_bytes_is_sorted_bool", ".(list(bytes)) bool", is_sorted),
    ("sum", "list_int_sum_int", ".(list(int)) int", |cx, args| sum(cx, args, Value::Int(0))),
    ("sum", "list_uint_sum_uint", ".(list(uint)) uint", |cx, args| sum(cx, args, Value::Uint(0))),
    ("sum", "list_double_sum_double", ".(list(double)) double", |cx, args| sum(cx, args, Value::Double(0.0))),
    ("sum", "list_duration_sum_duration", ".(list(duration)) duration", |cx, args| {
        sum(cx, args, Value::Duration(0))
    }),
    ("max", "list_int_max_int", ".(list(int)) int", max),
    ("max", "list_uint_max_uint", ".(list(uint)) uint", max),
    ("max", "list_double_max_double", ".(list(double)) double", max),
    ("max", "list_bool_max_bool", ".(list(bool)) bool", max),
    ("max", "list_duration_max_duration", ".(list(duration)) duration", max),
    ("max", "list_timestamp_max_timestamp", ".(list(timestamp)) timestamp", max),
    ("max", "list_string_max_string", ".(list(string)) string", max),
    ("max", "list_bytes_max_bytes", ".(list(bytes)) bytes", max),
    ("min", "list_int_min_int", ".(list(int)) int", min),
    ("min", "list_uint_min_uint", ".(list(uint)) uint", min),
    ("min", "list_double_min_double", ".(list(double)) double", min),
    ("min", "list_bool_min_bool", ".(list(bool)) bool", min),
    ("min", "list_duration_min_duration", ".(list(duration)) duration", min),
    ("min", "list_timestamp_min_timestamp", ".(list(timestamp)) timestamp", min),
    ("min", "list_string_min_string", ".(list(string)) string", min),
    ("min", "list_bytes_min_bytes", ".(list(bytes)) bytes", min),
    ("indexOf", "list_a_index_of_int", ".(list(A), A) int", |cx, args| {
        for (index, item) in list(args, 0)?.iter().enumerate() {
            if equal(cx, &item?, &args[1])? {
                return Ok(Value::Int(index as i64));
            }
        }
        Ok(Value::Int(-1))
    }),
    ("lastIndexOf", "list_a_last_index_of_int", ".(list(A), A) int", |cx, args| {
        let list = list(args, 0)?;
        for index in (0..list.len()).rev() {
            if equal(cx, &list.get(index)?, &args[1])? {
                return Ok(Value::Int(index as i64));
            }
        }
        Ok(Value::Int(-1))
    }),
];

fn is_sorted<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let mut before: Option<Value<'a>> = None;
    for item in list(args, 0)?.iter() {
        cx.work(1)?;
        let item = item?;
        if let Some(before) = &before
            && order(before, &item)? == Some(Ordering::Greater)
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(cx: &mut Context<'_>, args: &[Value<'a>], zero: Value<'a>) -> Result<Value<'a>, Error> {
    // The overloads of an empty list all fit; the evaluator takes the first.
    let mut total = zero;
    for item in list(args, 0)?.iter() {
        cx.work(1)?;
        total = match (total, item?) {
            (Value::Int(a), Value::Int(b)) => {
                Value::Int(a.checked_add(b).ok_or_else(|| Error::new("integer overflow"))?)
            }
            (Value::Uint(a), Value::Uint(b)) => {
                Value::Uint(a.checked_add(b).ok_or_else(|| Error::new("unsigned integer overflow"))?)
            }
            (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
            (Value::Duration(a), Value::Duration(b)) => {
                Value::Duration(a.checked_add(b).ok_or_else(|| Error::new("duration overflow"))?)
            }
            // Of a list of dyn the items say what is added.
            (Value::Int(0), first @ (Value::Uint(_) | Value::Double(_) | Value::Duration(_))) => first,
            _ => return Err(Error::no_such_overload()),
        };
    }
    Ok(total)
}

fn max<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    extreme(cx, args, "max", Ordering::Greater)
}

fn min<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    extreme(cx, args, "min", Ordering::Less)
}

fn extreme<'a>(
    cx: &mut Context<'_>,
    args: &[Value<'a>],
    name: &str,
    wanted: Ordering,
) -> Result<Value<'a>, Error> {
    let mut found: Option<Value<'a>> = None;
    for item in list(args, 0)?.iter() {
        cx.work(1)?;
        let item = item?;
        match &found {
            Some(best) if order(&item, best)? != Some(wanted) => {}
            _ => found = Some(item),
        }
    }
    found.ok_or_else(|| Error::new(format!("{name} called on empty list")))
}
