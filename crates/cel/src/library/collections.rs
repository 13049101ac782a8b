//! `size`, `in`, indices, sums of lists.

use std::sync::Arc;

use super::list;
use crate::context::Context;
use crate::equality::{equal, key_of};
use crate::error::Error;
use crate::function::Row;
use crate::schema::ListType;
use crate::value::{List, Map, Value};

pub(crate) const ROWS: &[Row] = &[
    ("size", "size_bytes", "(bytes) int", size),
    ("size", "bytes_size", ".(bytes) int", size),
    ("size", "size_list", "(list(A)) int", size),
    ("size", "list_size", ".(list(A)) int", size),
    ("size", "size_map", "(map(A, B)) int", size),
    ("size", "map_size", ".(map(A, B)) int", size),
    ("size", "size_string", "(string) int", size),
    ("size", "string_size", ".(string) int", size),
    ("@in", "in_list", "(A, list(A)) bool", in_list),
    ("@in", "in_map", "(A, map(A, B)) bool", |_, args| match &args[1] {
        Value::Map(map) => Ok(Value::Bool(map.find(&args[0])?.is_some())),
        _ => Err(Error::no_such_overload()),
    }),
    ("_[_]", "index_list", "(list(A), int) A", |_, args| index(&args[0], &args[1])),
    ("_[_]", "index_map", "(map(A, B), A) B", |_, args| index(&args[0], &args[1])),
    // What transformMap and transformMapEntry fold with; no text can call them.
    ("cel.@mapInsert", "@mapInsert_map_key_value", "(map(A, B), A, B) map(A, B)", |_, _| {
        Err(Error::no_such_overload())
    }),
    ("cel.@mapInsert", "@mapInsert_map_map", "(map(A, B), map(A, B)) map(A, B)", |_, _| {
        Err(Error::no_such_overload())
    }),
];

fn size<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    if let Value::String(text) = &args[0] {
        cx.work(text.len() as u64 / 16)?;
    }
    Ok(Value::Int(args[0].size() as i64))
}

fn in_list<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    for item in list(args, 1)?.iter() {
        if equal(cx, &args[0], &item?)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

/// `of[at]`.
pub(crate) fn index<'a>(of: &Value<'a>, at: &Value<'a>) -> Result<Value<'a>, Error> {
    match of {
        Value::Map(map) => map.find(at)?.ok_or_else(|| Error::new(format!("no such key: {at}"))),
        Value::List(list) => {
            let at = position(at)?;
            let found = usize::try_from(at).ok().filter(|at| *at < list.len());
            list.get(found.ok_or_else(|| Error::new(format!("index out of bounds: {at}")))?)
        }
        Value::Struct(_) => field(of, at)?.ok_or_else(|| Error::new(format!("no such key: {at}"))),
        _ => Err(Error::no_such_overload()),
    }
}

/// `of[?at]`: none where `of` has no such item.
pub(crate) fn find<'a>(of: &Value<'a>, at: &Value<'a>) -> Result<Option<Value<'a>>, Error> {
    match of {
        Value::Map(map) => map.find(at),
        Value::List(list) => {
            let at = usize::try_from(position(at)?).ok().filter(|at| *at < list.len());
            at.map(|at| list.get(at)).transpose()
        }
        Value::Struct(_) => field(of, at),
        _ => Err(Error::no_such_overload()),
    }
}

fn field<'a>(of: &Value<'a>, name: &Value<'a>) -> Result<Option<Value<'a>>, Error> {
    match (of, name) {
        (Value::Struct(made), Value::String(name)) => Ok(made.fields.get(&**name).cloned()),
        _ => Err(Error::no_such_overload()),
    }
}

fn position(at: &Value<'_>) -> Result<i64, Error> {
    match at {
        Value::Int(n) => Ok(*n),
        Value::Uint(n) => i64::try_from(*n).map_err(|_| Error::new(format!("index out of bounds: {n}"))),
        Value::Double(d) if d.fract() == 0.0 => crate::number::double_to_int(*d)
            .ok_or_else(|| Error::new(format!("unsupported index value: {at}"))),
        _ => Err(Error::new(format!("unsupported index type '{}' in list", at.type_of().runtime_name()))),
    }
}

/// The sum of two lists: one after the other, or what sets and maps of objects make of it.
pub(crate) fn add<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let (a, b) = (list(args, 0)?, list(args, 1)?);
    cx.take((a.len() + b.len()) * size_of::<Value<'_>>())?;
    let mut items = a.iter().collect::<Result<Vec<_>, _>>()?;
    let keyed = a.list_type();
    if *keyed == ListType::Atomic {
        for item in b.iter() {
            items.push(item?);
        }
        return Ok(Value::List(List::Made(Arc::new(items), a.schema())));
    }
    let mut places = std::collections::BTreeMap::new();
    for (place, item) in items.iter().enumerate() {
        cx.work(10)?;
        places.insert(key_of(item, keyed)?, place);
    }
    for item in b.iter() {
        let item = item?;
        cx.work(10)?;
        match places.entry(key_of(&item, keyed)?) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(items.len());
                items.push(item);
            }
            // Of a map, the item that is added wins, at the place of the one that was there.
            std::collections::btree_map::Entry::Occupied(entry) if *keyed != ListType::Set => {
                items[*entry.get()] = item;
            }
            std::collections::btree_map::Entry::Occupied(_) => {}
        }
    }
    Ok(Value::List(List::Made(Arc::new(items), a.schema())))
}

/// Adds an item to a list that nobody else holds, without copying the others.
pub(crate) fn append<'a>(cx: &mut Context<'_>, to: Value<'a>, more: Value<'a>) -> Result<Value<'a>, Error> {
    match (to, more) {
        (Value::List(List::Made(mut items, None)), Value::List(more)) => {
            let copied = if Arc::get_mut(&mut items).is_none() { items.len() } else { 0 };
            cx.take((more.len() + copied) * size_of::<Value<'_>>())?;
            let out = Arc::make_mut(&mut items);
            for item in more.iter() {
                out.push(item?);
            }
            Ok(Value::List(List::Made(items, None)))
        }
        (to, more) => add(cx, &[to, more]),
    }
}

/// Adds entries to a map that nobody else holds: a key and its value, or a map.
pub(crate) fn insert<'a>(
    cx: &mut Context<'_>,
    to: Value<'a>,
    args: &[Value<'a>],
) -> Result<Value<'a>, Error> {
    let Value::Map(Map::Made(mut entries)) = to else { return Err(Error::no_such_overload()) };
    let more = match args {
        [key, value] => vec![(key.clone(), value.clone())],
        [Value::Map(map)] => {
            let mut more = Vec::new();
            for key in map.keys() {
                let value = map.find(&key)?;
                more.extend(value.map(|value| (key, value)));
            }
            more
        }
        _ => return Err(Error::no_such_overload()),
    };
    cx.take(more.len() * 2 * size_of::<Value<'_>>())?;
    for (key, value) in more {
        let made = crate::value::Key::of(&key).ok_or_else(|| Error::new("unsupported key type"))?;
        if Arc::make_mut(&mut entries).insert(made, value).is_some() {
            return Err(Error::new(format!("insert failed: key {key} already exists")));
        }
    }
    Ok(Value::Map(Map::Made(entries)))
}
