//! When two values are equal.

use crate::context::Context;
use crate::error::Error;
use crate::number::compare;
use crate::schema::ListType;
use crate::value::{List, Map, Value};

/// Whether two values are equal. Numbers are so by value, whatever their types; values of other
/// unlike types are not.
pub(crate) fn equal<'a>(cx: &mut Context<'_>, a: &Value<'a>, b: &Value<'a>) -> Result<bool, Error> {
    cx.work(1)?;
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
        ) => compare(a, b).is_some_and(std::cmp::Ordering::is_eq),
        (Value::String(a), Value::String(b)) => {
            cx.work(a.len().min(b.len()) as u64 / 16)?;
            **a == **b
        }
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => a.runtime_name() == b.runtime_name(),
        (Value::Opaque(a), Value::Opaque(b)) => a.equals(b),
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => equal(cx, a, b)?,
            (None, None) => true,
            _ => false,
        },
        (Value::Struct(a), Value::Struct(b)) => {
            if a.name != b.name || a.fields.len() != b.fields.len() {
                return Ok(false);
            }
            for (name, value) in &a.fields {
                match b.fields.get(name) {
                    Some(other) if equal(cx, value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::List(a), Value::List(b)) => lists(cx, a, b)?,
        (Value::Map(a), Value::Map(b)) => maps(cx, a, b)?,
        _ => false,
    })
}

fn lists<'a>(cx: &mut Context<'_>, a: &List<'a>, b: &List<'a>) -> Result<bool, Error> {
    if a.len() != b.len() {
        return Ok(false);
    }
    match a.list_type() {
        ListType::Atomic => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(cx, &a?, &b?)? {
                    return Ok(false);
                }
            }
        }
        // The order of sets and of maps says nothing.
        keyed => {
            let items = index(cx, a, keyed)?;
            for item in b.iter() {
                let item = item?;
                let Some(other) = items.get(&key_of(&item, keyed)?) else { return Ok(false) };
                if !equal(cx, other, &item)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// The items of a set or a map by their keys.
pub(crate) fn index<'a>(
    cx: &mut Context<'_>,
    list: &List<'a>,
    list_type: &ListType,
) -> Result<std::collections::BTreeMap<String, Value<'a>>, Error> {
    let mut items = std::collections::BTreeMap::new();
    for item in list.iter() {
        let item = item?;
        cx.work(10)?;
        items.insert(key_of(&item, list_type)?, item);
    }
    Ok(items)
}

/// What tells an item of a set or a map from the others.
pub(crate) fn key_of(item: &Value<'_>, list_type: &ListType) -> Result<String, Error> {
    let ListType::Map(keys) = list_type else {
        return Ok(format!("{}:{item}", item.type_of().runtime_name()));
    };
    let Value::Map(map) = item else {
        return Err(Error::new(
            "unexpected data format for element of array with x-kubernetes-list-type=map",
        ));
    };
    let mut out = String::new();
    for key in keys {
        let name = crate::types::escape(key).unwrap_or_else(|| key.clone());
        let value = map.find(&Value::from(name.as_str()))?.unwrap_or(Value::Null);
        out.push_str(&format!("{}:{value}\u{0}", value.type_of().runtime_name()));
    }
    Ok(out)
}

fn maps<'a>(cx: &mut Context<'_>, a: &Map<'a>, b: &Map<'a>) -> Result<bool, Error> {
    if a.len() != b.len() {
        return Ok(false);
    }
    if let (Map::Json(raw_a, Some(schema)), Map::Json(raw_b, _)) = (a, b) {
        // Fields that the schema does not know are compared as what they are.
        for (name, value) in *raw_a {
            if schema.property(name).is_none() {
                cx.work(10)?;
                if raw_b.get(name) != Some(value) {
                    return Ok(false);
                }
            }
        }
        for (name, value) in *raw_a {
            let Some(property) = schema.property(name) else { continue };
            let Some(other) = raw_b.get(name) else { return Ok(false) };
            let other = match b {
                Map::Json(_, Some(schema)) => match schema.property(name) {
                    Some(property) => property.value(other)?,
                    None => return Ok(false),
                },
                _ => Value::of(other),
            };
            if !equal(cx, &property.value(value)?, &other)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    for key in a.keys() {
        let value = a.find(&key)?;
        let other = b.find(&key)?;
        match (value, other) {
            (Some(value), Some(other)) if equal(cx, &value, &other)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
