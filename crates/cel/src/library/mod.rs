//! The functions that there are, one module a library.

pub mod authz;
pub(crate) mod collections;
pub(crate) mod cost;
pub(crate) mod format;
pub(crate) mod image;
pub(crate) mod ip;
mod json_patch;
mod lists;
mod optional;
pub(crate) mod quantity;
pub(crate) mod regex;
pub(crate) mod semver;
mod sets;
pub(crate) mod standard;
mod string_format;
mod strings;
mod timestamps;
pub(crate) mod url;

use std::sync::LazyLock;

use crate::error::Error;
use crate::function::Functions;
use crate::value::Value;

/// The standard functions and every library of upstream's base environment.
pub(crate) static BASE: LazyLock<Functions> = LazyLock::new(|| {
    Functions::new(&[
        standard::ROWS,
        timestamps::ROWS,
        collections::ROWS,
        optional::ROWS,
        strings::ROWS,
        lists::ROWS,
        sets::ROWS,
        regex::ROWS,
        url::ROWS,
        quantity::ROWS,
        ip::ROWS,
        format::ROWS,
        semver::ROWS,
        image::ROWS,
        authz::ROWS,
    ])
});

/// What only mutating policies have.
pub(crate) static MUTATION: LazyLock<Functions> = LazyLock::new(|| Functions::new(&[json_patch::ROWS]));

/// The argument as a string; the signature says that it is one.
pub(crate) fn text<'v>(args: &'v [Value<'_>], index: usize) -> Result<&'v str, Error> {
    match args.get(index) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Error::no_such_overload()),
    }
}

pub(crate) fn int(args: &[Value<'_>], index: usize) -> Result<i64, Error> {
    match args.get(index) {
        Some(Value::Int(n)) => Ok(*n),
        _ => Err(Error::no_such_overload()),
    }
}

pub(crate) fn list<'v, 'a>(args: &'v [Value<'a>], index: usize) -> Result<&'v crate::value::List<'a>, Error> {
    match args.get(index) {
        Some(Value::List(list)) => Ok(list),
        _ => Err(Error::no_such_overload()),
    }
}
