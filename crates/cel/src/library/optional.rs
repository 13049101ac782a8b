//! Optional values.

use crate::error::Error;
use crate::function::Row;
use crate::value::{List, Map, Value};

pub(crate) const ROWS: &[Row] = &[
    ("optional.of", "optional_of", "(A) optional_type(A)", |_, args| Ok(Value::some(args[0].clone()))),
    ("optional.ofNonZeroValue", "optional_ofNonZeroValue", "(A) optional_type(A)", |_, args| {
        Ok(if is_zero(&args[0]) { Value::Optional(None) } else { Value::some(args[0].clone()) })
    }),
    ("optional.none", "optional_none", "() optional_type(A)", |_, _| Ok(Value::Optional(None))),
    ("hasValue", "optional_hasValue", ".(optional_type(A)) bool", |_, args| match &args[0] {
        Value::Optional(value) => Ok(Value::Bool(value.is_some())),
        _ => Err(Error::no_such_overload()),
    }),
    ("value", "optional_value", ".(optional_type(A)) A", |_, args| match &args[0] {
        Value::Optional(Some(value)) => Ok((**value).clone()),
        Value::Optional(None) => Err(Error::new("optional.none() dereference")),
        _ => Err(Error::no_such_overload()),
    }),
    // The evaluator takes the other branch only where it is needed.
    ("or", "optional_or_optional", ".(optional_type(A), optional_type(A)) optional_type(A)", |_, _| {
        Err(Error::no_such_overload())
    }),
    ("orValue", "optional_orValue_value", ".(optional_type(A), A) A", |_, _| Err(Error::no_such_overload())),
    (
        "_?._",
        "select_optional_field",
        "(dyn, string) optional_type(A)",
        |_, _| Err(Error::no_such_overload()),
    ),
    ("_[?_]", "list_optindex_optional_int", "(list(A), int) optional_type(A)", |_, _| {
        Err(Error::no_such_overload())
    }),
    (
        "_[?_]",
        "optional_list_optindex_optional_int",
        "(optional_type(list(A)), int) optional_type(A)",
        |_, _| Err(Error::no_such_overload()),
    ),
    ("_[?_]", "map_optindex_optional_value", "(map(A, B), A) optional_type(B)", |_, _| {
        Err(Error::no_such_overload())
    }),
    (
        "_[?_]",
        "optional_map_optindex_optional_value",
        "(optional_type(map(A, B)), A) optional_type(B)",
        |_, _| Err(Error::no_such_overload()),
    ),
    ("_[_]", "optional_list_index_int", "(optional_type(list(A)), int) optional_type(A)", |_, _| {
        Err(Error::no_such_overload())
    }),
    ("_[_]", "optional_map_index_value", "(optional_type(map(A, B)), A) optional_type(B)", |_, _| {
        Err(Error::no_such_overload())
    }),
];

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) | Value::Duration(0) => true,
        Value::Double(d) => *d == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(List::Json(items, _)) => items.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(Map::Json(fields, _)) => fields.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Optional(None) => true,
        Value::Struct(made) => made.fields.is_empty(),
        _ => false,
    }
}
