//! Lists as sets.

use super::list;
use crate::context::Context;
use crate::equality::equal;
use crate::error::Error;
use crate::function::Row;
use crate::value::{List, Value};

pub(crate) const ROWS: &[Row] = &[
    ("sets.contains", "list_sets_contains_list", "(list(A), list(A)) bool", |cx, args| {
        Ok(Value::Bool(contains_all(cx, list(args, 0)?, list(args, 1)?)?))
    }),
    ("sets.equivalent", "list_sets_equivalent_list", "(list(A), list(A)) bool", |cx, args| {
        let (a, b) = (list(args, 0)?, list(args, 1)?);
        Ok(Value::Bool(contains_all(cx, a, b)? && contains_all(cx, b, a)?))
    }),
    ("sets.intersects", "list_sets_intersects_list", "(list(A), list(A)) bool", |cx, args| {
        for item in list(args, 1)?.iter() {
            if contains(cx, list(args, 0)?, &item?)? {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }),
];

fn contains_all<'a>(cx: &mut Context<'_>, a: &List<'a>, b: &List<'a>) -> Result<bool, Error> {
    for item in b.iter() {
        if !contains(cx, a, &item?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn contains<'a>(cx: &mut Context<'_>, list: &List<'a>, wanted: &Value<'a>) -> Result<bool, Error> {
    for item in list.iter() {
        if equal(cx, &item?, wanted)? {
            return Ok(true);
        }
    }
    Ok(false)
}
