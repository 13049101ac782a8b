//! Values: borrowed from JSON where they can be, owned where an expression made them.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::error::Error;
use crate::opaque::Opaque;
use crate::schema::{ListType, Schema};
use crate::time::Timestamp;
use crate::types::{OPTIONAL, Type};

/// What an expression evaluates to. Cheap to clone; objects of the caller are borrowed for `'a`.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    List(List<'a>),
    Map(Map<'a>),
    Type(Type),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    Optional(Option<Arc<Value<'a>>>),
    /// `Name{field: value}`.
    Struct(Arc<Struct<'a>>),
    /// What only functions see into.
    Opaque(Opaque),
}

/// A string.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// A list.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// Items of an object, and the schema that says what they are.
    Json(&'a [Json], Option<&'a Schema>),
    /// Items, and the schema of the list that they joined, which says what is equal in it.
    Made(Arc<Vec<Value<'a>>>, Option<&'a Schema>),
}

/// A map, or an object whose fields are selected.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    Json(&'a serde_json::Map<String, Json>, Option<&'a Schema>),
    Made(Arc<BTreeMap<Key<'a>, Value<'a>>>),
}

/// A key of a map that an expression made. Numbers are equal by value, whatever their type.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'a>),
}

/// An object that an expression made.
#[derive(Clone, Debug)]
pub struct Struct<'a> {
    pub name: Arc<str>,
    /// By escaped names.
    pub fields: BTreeMap<Arc<str>, Value<'a>>,
}

impl Struct<'_> {
    /// Whether each part of an object has the type that its place says: `Object.spec` under `spec`.
    ///
    /// # Errors
    /// The first that has another.
    pub fn check_paths(&self) -> Result<(), Error> {
        for (field, value) in &self.fields {
            check_path(value, &format!("{}.{field}", self.name))?;
        }
        Ok(())
    }
}

fn check_path(value: &Value<'_>, expected: &str) -> Result<(), Error> {
    match value {
        Value::Struct(made) if *made.name != *expected => Err(Error::new(format!(
            "unexpected type name {:?}, expected {expected:?}, which matches field name path from root Object type",
            &*made.name
        ))),
        Value::Struct(made) => made.check_paths(),
        Value::List(List::Made(items, _)) => items.iter().try_for_each(|item| check_path(item, expected)),
        Value::Map(Map::Made(entries)) => entries.values().try_for_each(|item| check_path(item, expected)),
        _ => Ok(()),
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        fn number(key: &Key<'_>) -> Result<i128, u8> {
            match key {
                Key::Bool(_) => Err(0),
                Key::Int(n) => Ok((*n).into()),
                Key::Uint(n) => Ok((*n).into()),
                Key::String(_) => Err(2),
            }
        }
        match (self, other) {
            (Key::Bool(a), Key::Bool(b)) => a.cmp(b),
            (Key::String(a), Key::String(b)) => (**a).cmp(b),
            _ => match (number(self), number(other)) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                (a, b) => a.err().unwrap_or(1).cmp(&b.err().unwrap_or(1)),
            },
        }
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key<'_> {}

impl<'a> Key<'a> {
    /// The key that a value is, if it can be one. A whole double is the number it equals.
    pub(crate) fn of(value: &Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Bool(b) => Self::Bool(*b),
            Value::Int(n) => Self::Int(*n),
            Value::Uint(n) => Self::Uint(*n),
            Value::Double(d) if d.fract() == 0.0 && (-9.3e18..9.2e18).contains(d) => Self::Int(*d as i64),
            Value::String(text) => Self::String(text.clone()),
            _ => return None,
        })
    }

    pub(crate) fn value(&self) -> Value<'a> {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(n) => Value::Int(*n),
            Self::Uint(n) => Value::Uint(*n),
            Self::String(text) => Value::String(text.clone()),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(Text::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::String(Text::Shared(text.into()))
    }
}

impl<'a> Value<'a> {
    /// A value of JSON without a schema: whole numbers are `int` where they fit, else `double`.
    pub fn of(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match n.as_i64() {
                Some(n) => Self::Int(n),
                None => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => text.as_str().into(),
            Json::Array(items) => Self::List(List::Json(items, None)),
            Json::Object(fields) => Self::Map(Map::Json(fields, None)),
        }
    }

    /// A value of JSON that a schema describes.
    ///
    /// # Errors
    /// What does not fit its schema has no value.
    pub fn typed(json: &'a Json, schema: &'a Schema) -> Result<Self, Error> {
        schema.value(json)
    }

    pub(crate) fn list(items: Vec<Value<'a>>) -> Self {
        Self::List(List::Made(Arc::new(items), None))
    }

    pub(crate) fn some(value: Value<'a>) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// The type that `type(value)` gives.
    pub fn type_of(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Self::Type(_) => Type::Type(None),
            Self::Timestamp(_) => Type::Timestamp,
            Self::Duration(_) => Type::Duration,
            Self::Optional(_) => Type::opaque(OPTIONAL),
            Self::Struct(made) => Type::opaque(&made.name),
            Self::Opaque(opaque) => Type::opaque(opaque.type_name()),
        }
    }

    /// Whether a function that takes `wanted` takes this.
    pub(crate) fn fits(&self, wanted: &Type) -> bool {
        match (wanted, self) {
            (Type::Dyn | Type::Param(_) | Type::Var(_), _)
            | (Type::Null, Self::Null)
            | (Type::Bool, Self::Bool(_))
            | (Type::Int, Self::Int(_))
            | (Type::Uint, Self::Uint(_))
            | (Type::Double, Self::Double(_))
            | (Type::String, Self::String(_))
            | (Type::Bytes, Self::Bytes(_))
            | (Type::List(_), Self::List(_))
            | (Type::Map(_), Self::Map(_))
            | (Type::Type(_), Self::Type(_))
            | (Type::Timestamp, Self::Timestamp(_))
            | (Type::Duration, Self::Duration(_))
            | (Type::Object(_), Self::Map(_)) => true,
            (Type::Opaque(name, _), Self::Optional(_)) => &**name == OPTIONAL,
            (Type::Opaque(name, _), Self::Opaque(opaque)) => &**name == opaque.type_name(),
            (Type::Opaque(name, _), Self::Struct(made)) => *name == made.name,
            (Type::Object(object), Self::Struct(made)) => object.name == *made.name,
            _ => false,
        }
    }

    /// The size that costs are counted by: of what has no size it is 1.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.chars().count() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            Self::Opaque(opaque) => opaque.size(),
            _ => 1,
        }
    }

    /// JSON that says the same: what an expression's result is to a patch or an annotation.
    ///
    /// # Errors
    /// A value that JSON has no word for, such as a type or an optional.
    pub fn to_json(&self) -> Result<Json, Error> {
        Ok(match self {
            Self::Null => Json::Null,
            Self::Bool(b) => Json::Bool(*b),
            Self::Int(n) => Json::from(*n),
            Self::Uint(n) => Json::from(*n),
            Self::Double(d) => serde_json::Number::from_f64(*d)
                .map(Json::Number)
                .ok_or_else(|| Error::new("JSON has no NaN and no infinity"))?,
            Self::String(text) => Json::from(&**text),
            Self::Bytes(bytes) => {
                use base64::Engine as _;
                Json::from(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            Self::Timestamp(time) => Json::from(time.to_string()),
            Self::Duration(nanos) => Json::from(crate::time::show_duration(*nanos)),
            Self::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Self::List(List::Made(items, _)) => {
                Json::Array(items.iter().map(Value::to_json).collect::<Result<_, _>>()?)
            }
            Self::Map(Map::Json(fields, _)) => Json::Object((*fields).clone()),
            Self::Map(Map::Made(entries)) => {
                let mut out = serde_json::Map::new();
                for (key, value) in &**entries {
                    let Key::String(key) = key else {
                        return Err(Error::new("JSON has no keys but strings"));
                    };
                    out.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(out)
            }
            Self::Struct(made) => {
                let mut out = serde_json::Map::new();
                for (name, value) in &made.fields {
                    let name = crate::types::unescape(name).unwrap_or_else(|| name.to_string());
                    out.insert(name, value.to_json()?);
                }
                Json::Object(out)
            }
            Self::Optional(Some(value)) => value.to_json()?,
            Self::Optional(None) | Self::Type(_) | Self::Opaque(_) => {
                return Err(Error::new(format!("JSON has no '{}'", self.type_of().runtime_name())));
            }
        })
    }
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Made(items, _) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item at `index`, which is below `len`.
    pub(crate) fn get(&self, index: usize) -> Result<Value<'a>, Error> {
        match self {
            Self::Json(items, Some(schema)) => match &schema.items {
                Some(item) => item.value(&items[index]),
                None => Ok(Value::of(&items[index])),
            },
            Self::Json(items, None) => Ok(Value::of(&items[index])),
            Self::Made(items, _) => Ok(items[index].clone()),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Value<'a>, Error>> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The schema of the list, which says whether it is a set or a map.
    pub(crate) fn schema(&self) -> Option<&'a Schema> {
        match self {
            Self::Json(_, schema) | Self::Made(_, schema) => *schema,
        }
    }

    pub(crate) fn list_type(&self) -> &'a ListType {
        self.schema().map_or(&ListType::Atomic, |schema| &schema.list_type)
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(fields, _) => fields.len(),
            Self::Made(entries) => entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value under `key`, if there is one.
    pub(crate) fn find(&self, key: &Value<'a>) -> Result<Option<Value<'a>>, Error> {
        match self {
            Self::Json(fields, schema) => {
                let Value::String(key) = key else {
                    return if schema.is_some() { Err(Error::no_such_overload()) } else { Ok(None) };
                };
                let Some(schema) = schema else { return Ok(fields.get(&**key).map(Value::of)) };
                schema.field(fields, key)
            }
            Self::Made(entries) => Ok(Key::of(key).and_then(|key| entries.get(&key).cloned())),
        }
    }

    /// The keys that an expression can name.
    pub(crate) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Self::Json(fields, None) => fields.keys().map(|key| key.as_str().into()).collect(),
            Self::Json(fields, Some(schema)) => fields
                .keys()
                .filter(|key| schema.property(key).is_some())
                .map(|key| match schema.shown_name(key) {
                    Cow::Borrowed(name) => name.into(),
                    Cow::Owned(name) => name.into(),
                })
                .collect(),
            Self::Made(entries) => entries.keys().map(Key::value).collect(),
        }
    }
}

/// Prints a value as cel-go's `%v` of it would in messages such as `no such key: x`.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Uint(n) => write!(f, "{n}"),
            Self::Double(d) => f.write_str(&crate::number::show_double(*d)),
            Self::String(text) => f.write_str(text),
            Self::Bytes(bytes) => f.write_str(&String::from_utf8_lossy(bytes)),
            Self::Type(of) => f.write_str(&of.runtime_name()),
            Self::Timestamp(time) => write!(f, "{time}"),
            Self::Duration(nanos) => f.write_str(&crate::time::show_duration(*nanos)),
            Self::List(list) => {
                f.write_str("[")?;
                for (index, item) in list.iter().enumerate() {
                    f.write_str(if index > 0 { ", " } else { "" })?;
                    item.map_err(|_| fmt::Error)?.fmt(f)?;
                }
                f.write_str("]")
            }
            Self::Map(map) => {
                f.write_str("{")?;
                for (index, key) in map.keys().iter().enumerate() {
                    f.write_str(if index > 0 { ", " } else { "" })?;
                    write!(f, "{key}: ")?;
                    match map.find(key) {
                        Ok(Some(value)) => value.fmt(f)?,
                        _ => f.write_str("null")?,
                    }
                }
                f.write_str("}")
            }
            other => f.write_str(&other.type_of().runtime_name()),
        }
    }
}
