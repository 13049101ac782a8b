//! OpenAPI schemas: which values JSON stands for, which types they have, how large they get.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value as Json;

use crate::error::Error;
use crate::time;
use crate::types::{Type, escape, unescape};
use crate::value::{List, Map, Value};

/// A schema as expressions see it. Made once per definition, kept as long as its programs.
#[derive(Debug, Default)]
pub struct Schema {
    kind: Kind,
    format: Format,
    nullable: bool,
    int_or_string: bool,
    preserve_unknown: bool,
    properties: Option<BTreeMap<String, Schema>>,
    additional: Option<Box<Schema>>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) list_type: ListType,
    required: Vec<String>,
    has_default: bool,
    /// Bytes of the longest string of an enumeration.
    enum_length: Option<u64>,
    max_length: Option<u64>,
    max_items: Option<u64>,
    max_properties: Option<u64>,
}

/// Where `$ref` leads, and which references are being followed.
struct References<'a, 'l> {
    lookup: &'l dyn Fn(&str) -> Option<&'a Json>,
    open: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    #[default]
    None,
    Object,
    Array,
    String,
    Number,
    Integer,
    Boolean,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Format {
    #[default]
    None,
    Byte,
    Date,
    DateTime,
    Duration,
}

/// `x-kubernetes-list-type`: what makes two lists equal, and what adding them gives.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    /// By the values of these properties.
    Map(Vec<String>),
}

/// A declared type with the sizes that costs are estimated by.
#[derive(Clone, Debug)]
pub struct Declared {
    pub of: Type,
    /// The most elements, characters or bytes; 0 for what has no size.
    pub(crate) max_elements: u64,
    /// The fewest bytes that it takes in JSON.
    min_size: u64,
    pub(crate) parts: Parts,
}

/// What a declared type is made of.
#[derive(Clone, Debug)]
pub(crate) enum Parts {
    None,
    Items(Arc<Declared>),
    Values(Arc<Declared>),
    /// Values by names of at most so many bytes, of which expressions may speak as of fields.
    Named(Arc<Declared>, u64),
    Fields(Arc<BTreeMap<String, Declared>>),
}

/// The largest request: nothing that an object holds is larger.
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;

impl Schema {
    /// The schema of an OpenAPI v3 object, such as a property of a CustomResourceDefinition's.
    pub fn new(openapi: &Json) -> Self {
        Self::build(openapi, &mut References { lookup: &|_| None, open: Vec::new() })
    }

    /// The same where schemas refer to others, as those of built-in kinds do: `lookup` has the definition
    /// that `$ref` names. What refers to itself is not looked into again.
    pub fn with_references<'a>(openapi: &'a Json, lookup: &dyn Fn(&str) -> Option<&'a Json>) -> Self {
        Self::build(openapi, &mut References { lookup, open: Vec::new() })
    }

    fn build<'a>(openapi: &'a Json, references: &mut References<'a, '_>) -> Self {
        let inner =
            openapi.get("allOf").and_then(Json::as_array).filter(|all| all.len() == 1).map(|all| &all[0]);
        if let Some(name) = openapi.get("$ref").or_else(|| inner?.get("$ref")).and_then(Json::as_str) {
            let target = (references.lookup)(name).filter(|_| !references.open.contains(&name.to_owned()));
            let Some(target) = target else {
                return Self { kind: Kind::Object, preserve_unknown: true, ..Self::default() };
            };
            references.open.push(name.to_owned());
            let mut schema = Self::build(target, references);
            references.open.pop();
            schema.has_default |= openapi.get("default").is_some();
            return schema;
        }
        let text = |name: &str| openapi.get(name).and_then(Json::as_str).unwrap_or_default();
        let flag = |name: &str| openapi.get(name).and_then(Json::as_bool).unwrap_or_default();
        let number = |name: &str| openapi.get(name).and_then(Json::as_i64).map(|n| n.max(0) as u64);
        let strings = |name: &str| -> Vec<String> {
            let items = openapi.get(name).and_then(Json::as_array).into_iter().flatten();
            items.filter_map(|item| Some(item.as_str()?.to_owned())).collect()
        };
        let mut child = |name: &str| {
            openapi.get(name).filter(|of| of.is_object()).map(|of| Box::new(Schema::build(of, references)))
        };
        let (additional, items) = (child("additionalProperties"), child("items"));
        let properties = openapi.get("properties").and_then(Json::as_object);
        let schema = Self {
            kind: match text("type") {
                "object" => Kind::Object,
                "array" => Kind::Array,
                "string" => Kind::String,
                "number" => Kind::Number,
                "integer" => Kind::Integer,
                "boolean" => Kind::Boolean,
                _ => Kind::None,
            },
            format: match text("format") {
                "byte" => Format::Byte,
                "date" => Format::Date,
                "date-time" => Format::DateTime,
                "duration" => Format::Duration,
                _ => Format::None,
            },
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string") || text("format") == "int-or-string",
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            properties: properties.filter(|properties| !properties.is_empty()).map(|all| {
                all.iter().map(|(name, of)| (name.clone(), Schema::build(of, references))).collect()
            }),
            additional,
            items,
            list_type: match text("x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map(strings("x-kubernetes-list-map-keys")),
                _ => ListType::Atomic,
            },
            required: strings("required"),
            has_default: openapi.get("default").is_some(),
            enum_length: openapi.get("enum").and_then(Json::as_array).filter(|all| !all.is_empty()).map(
                |all| {
                    all.iter()
                        .filter_map(Json::as_str)
                        .map(|value| value.len() as u64)
                        .max()
                        .unwrap_or_default()
                },
            ),
            max_length: number("maxLength"),
            max_items: number("maxItems"),
            max_properties: number("maxProperties"),
        };
        if flag("x-kubernetes-embedded-resource") { schema.with_object_meta() } else { schema }
    }

    /// The schema of a whole object: `apiVersion`, `kind`, `metadata.name` and
    /// `metadata.generateName` are always known.
    pub fn resource(openapi: &Json) -> Self {
        Self::new(openapi).with_object_meta()
    }

    fn with_object_meta(mut self) -> Self {
        static META: LazyLock<Json> = LazyLock::new(|| {
            let text = serde_json::json!({"type": "string"});
            serde_json::json!({"type": "object", "properties": {"name": text, "generateName": text}})
        });
        let properties = self.properties.get_or_insert_default();
        for name in ["apiVersion", "kind"] {
            properties.insert(name.into(), Schema { kind: Kind::String, ..Schema::default() });
        }
        let known = properties.get("metadata").is_some_and(|metadata| {
            ["name", "generateName"].iter().all(|name| metadata.property(name).is_some())
        });
        if !known {
            properties.insert("metadata".into(), Schema::new(&META));
        }
        self
    }

    /// The schema of a property, if it is known.
    pub(crate) fn property(&self, name: &str) -> Option<&Schema> {
        match &self.properties {
            Some(properties) => properties.get(name),
            None => self.additional.as_deref(),
        }
    }

    /// The name that an expression has for a property.
    pub(crate) fn shown_name<'n>(&self, name: &'n str) -> Cow<'n, str> {
        match escape(name).filter(|escaped| self.properties.is_some() && escaped != name) {
            Some(escaped) => Cow::Owned(escaped),
            None => Cow::Borrowed(name),
        }
    }

    /// The field of an object that an expression calls `shown`.
    pub(crate) fn field<'a>(
        &'a self,
        fields: &'a serde_json::Map<String, Json>,
        shown: &str,
    ) -> Result<Option<Value<'a>>, Error> {
        let is_object = self.properties.is_some();
        let unescaped =
            if is_object && shown.contains("__") { unescape(shown) } else { Some(shown.to_owned()) };
        let Some(name) = unescaped else { return Ok(None) };
        let (Some(value), Some(schema)) = (fields.get(&name), self.property(&name)) else { return Ok(None) };
        if is_object && value.is_null() {
            return Ok(None);
        }
        schema.value(value).map(Some)
    }

    /// The value that JSON stands for.
    pub(crate) fn value<'a>(&'a self, json: &'a Json) -> Result<Value<'a>, Error> {
        let invalid =
            |wanted: &str| Error::new(format!("invalid data, expected {wanted}, got {}", go_type(json)));
        if json.is_null() {
            return if self.nullable {
                Ok(Value::Null)
            } else {
                Err(Error::new("invalid data, got null for schema with nullable=false"))
            };
        }
        if self.int_or_string {
            return match json {
                Json::String(_) => Ok(Value::of(json)),
                Json::Number(n) if n.is_i64() => Ok(Value::of(json)),
                _ => Err(Error::new(
                    "invalid data, expected XIntOrString value to be either a string or integer",
                )),
            };
        }
        match self.kind {
            Kind::Object => match json {
                Json::Object(fields)
                    if self.properties.is_some() || self.additional.is_some() || self.preserve_unknown =>
                {
                    Ok(Value::Map(Map::Json(fields, Some(self))))
                }
                Json::Object(_) => Err(Error::new(
                    "invalid object type, expected either Properties or AdditionalProperties with Allows=true \
                     and non-empty Schema",
                )),
                _ => Err(Error::new("invalid data, expected a map for the provided schema with type=object")),
            },
            Kind::Array => match json {
                Json::Array(items) if self.items.is_some() => Ok(Value::List(List::Json(items, Some(self)))),
                Json::Array(_) => {
                    Err(Error::new("invalid array type, expected Items with a non-empty Schema"))
                }
                _ => {
                    Err(Error::new("invalid data, expected an array for the provided schema with type=array"))
                }
            },
            Kind::String => self.text(json.as_str().ok_or_else(|| invalid("string"))?),
            Kind::Number => json.as_f64().map(Value::Double).ok_or_else(|| invalid("float")),
            Kind::Integer => json.as_i64().map(Value::Int).ok_or_else(|| invalid("int")),
            Kind::Boolean => json.as_bool().map(Value::Bool).ok_or_else(|| invalid("bool")),
            Kind::None if self.preserve_unknown => Ok(Value::of(json)),
            Kind::None => Err(Error::new(
                "invalid type, expected object, array, number, integer, boolean or string, or no type with \
                 x-kubernetes-int-or-string or x-kubernetes-preserve-unknown-fields is true, got ",
            )),
        }
    }

    fn text<'a>(&self, text: &'a str) -> Result<Value<'a>, Error> {
        use base64::Engine as _;
        let (value, what) = match self.format {
            Format::None => return Ok(text.into()),
            Format::Duration => (time::parse_schema_duration(text).map(Value::Duration), "duration"),
            Format::Date => (time::parse_date(text).map(Value::Timestamp), "date formatted string"),
            Format::DateTime => {
                let value = time::parse_timestamp(text);
                (value.map(Value::Timestamp), "date-time formatted string")
            }
            Format::Byte => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
                (bytes.map(|bytes| Value::Bytes(bytes.into())), "byte formatted string")
            }
        };
        value.ok_or_else(|| Error::new(format!("Invalid {what} {text}")))
    }

    /// The type of what the schema describes, under `name` where it is an object; none if
    /// expressions may not see it, as is so of untyped values.
    pub fn declare(&self, name: &str) -> Option<Declared> {
        let simple = |of: Type, min_size: u64, max_elements: u64| {
            Some(Declared { of, max_elements, min_size, parts: Parts::None })
        };
        let text_max = REQUEST_BYTES_MAX - 2;
        if self.int_or_string {
            return simple(Type::Dyn, 1, self.max_length.map_or(text_max, |n| n.saturating_mul(4)));
        }
        match (self.kind, self.format) {
            (Kind::Array, _) => {
                let item = self.items.as_ref()?.declare(&format!("{name}.@idx"))?;
                let max = self.max_items.unwrap_or(text_max / (item.min_size + 1));
                Some(Declared {
                    of: Type::list(item.of.clone()),
                    max_elements: max,
                    min_size: 2,
                    parts: Parts::Items(item.into()),
                })
            }
            (Kind::Object, _) if self.properties.is_none() && self.additional.is_some() => {
                let value = self.additional.as_ref()?.declare(&format!("{name}.@elem"))?;
                let max = self.max_properties.unwrap_or(text_max / (value.min_size + 6));
                Some(Declared {
                    of: Type::map(Type::String, value.of.clone()),
                    max_elements: max,
                    min_size: 2,
                    parts: Parts::Values(value.into()),
                })
            }
            (Kind::Object, _) => Some(self.declare_object(name)),
            (Kind::String, Format::Byte) => simple(Type::Bytes, 2, self.max_length.unwrap_or(text_max)),
            // The sizes of the shortest and longest texts that mean one of these.
            (Kind::String, Format::Duration) => simple(Type::Duration, 3, 32),
            (Kind::String, Format::Date) => simple(Type::Timestamp, 12, 12),
            (Kind::String, Format::DateTime) => simple(Type::Timestamp, 21, 32),
            (Kind::String, Format::None) => {
                let max = self.max_length.map(|n| n.saturating_mul(4)).or(self.enum_length);
                simple(Type::String, 2, max.unwrap_or(text_max))
            }
            (Kind::Boolean, _) => simple(Type::Bool, 4, 0),
            (Kind::Number, _) => simple(Type::Double, 1, 0),
            (Kind::Integer, _) => simple(Type::Int, 1, 0),
            (Kind::None, _) => None,
        }
    }

    fn declare_object(&self, name: &str) -> Declared {
        let mut min_size = 2;
        let mut fields = BTreeMap::new();
        for (property, schema) in self.properties.iter().flatten() {
            let Some(declared) = schema.declare(&format!("{name}.{property}")) else { continue };
            if self.required.contains(property) && !schema.has_default {
                min_size += property.len() as u64 + declared.min_size + 4;
            }
            if let Some(escaped) = escape(property) {
                fields.insert(escaped, declared);
            }
        }
        Declared { min_size, ..Declared::object(name, fields) }
    }
}

impl Declared {
    /// A type whose values have at most so many elements, characters or bytes.
    pub fn new(of: Type, max_elements: u64) -> Self {
        Declared { of, max_elements, min_size: 0, parts: Parts::None }
    }

    /// A map of at most so many values by names of at most so many bytes.
    pub fn named(value: Declared, name_max: u64, max_elements: u64) -> Self {
        let of = Type::map(Type::String, value.of.clone());
        Declared { of, max_elements, min_size: 0, parts: Parts::Named(value.into(), name_max) }
    }

    /// An object of these fields, whose names are escaped already.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (String, Declared)>) -> Self {
        let fields: BTreeMap<_, _> = fields.into_iter().collect();
        let types = fields.iter().map(|(field, declared)| (field.clone(), declared.of.clone()));
        let of = Type::object(name, types);
        Declared { of, max_elements: 0, min_size: 0, parts: Parts::Fields(fields.into()) }
    }

    /// How many values of this type one request holds at most: the number of calls to assume of a
    /// rule below lists or maps without a bound.
    pub fn cardinality_max(&self) -> u64 {
        REQUEST_BYTES_MAX / (self.min_size + 1)
    }
}

fn go_type(json: &Json) -> &'static str {
    match json {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(n) if n.is_i64() => "int64",
        Json::Number(_) => "float64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}
