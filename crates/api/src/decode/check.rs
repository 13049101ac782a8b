//! The walk of a value against its schema. One pass in place; a valid object costs no allocation.

use super::scalar;
use crate::field::{FieldError, Path};
use crate::go;
use crate::quantity::Quantity;
use crate::schema::{Format, Property, Schema, SchemaRef, Shape};
use serde_json::{Map, Number, Value};
use std::fmt::{self, Write as _};

/// The most unknown fields that one request reports.
const UNKNOWN_LEN_MAX: usize = 100;

/// Optional lists that say something while they are empty: managedFields are cleared by it, and an
/// autoscaler without policies is refused where one that names none gets upstream's.
const TELLING_EMPTY: [&str; 2] = ["managedFields", "policies"];

/// The type that takes any JSON; what it must be is for validation to say.
const RAW: &str = ".RawExtension";

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checked {
    /// One complaint per dropped field: `unknown field "spec.foo"`.
    pub unknown: Vec<String>,
}

/// A value of the wrong type, in the words of Go's decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(pub String);

/// Checks `value` against `schema` and brings it into the form that a round trip through typed
/// structs gives: unknown fields and nulls are gone, quantities and times are canonical.
/// Of custom resources only whole objects (themselves and those embedded) have typed parts: `apiVersion`,
/// `kind` and `metadata`. All else is judged by the rules of the schema.
///
/// # Errors
/// The first value of a wrong type. A custom resource was walked to its end all the same.
pub fn check(schema: &Schema, value: &mut Value) -> Result<Checked, TypeError> {
    let custom = schema.is_custom();
    if custom {
        go::whole_numbers(value);
    }
    let mut walk = Walk { checked: Checked::default(), custom, refused: None };
    let root = Place { outer: None, step: Step::Root, owner: schema.root() };
    walk.value(schema.root(), value, &root)?;
    match walk.refused {
        Some(error) => Err(error),
        None => Ok(walk.checked),
    }
}

/// One step of the path, on the stack.
struct Place<'a> {
    outer: Option<&'a Place<'a>>,
    step: Step<'a>,
    /// The struct that the place is in, for messages.
    owner: SchemaRef<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    /// A field whose value is decoded on its own.
    Apart(&'a str),
    Key(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    fn below(&'a self, step: Step<'a>) -> Place<'a> {
        Place { outer: Some(self), step, owner: self.owner }
    }

    /// `spec.containers[0].name`
    fn write(&self, out: &mut String) {
        if let Some(outer) = self.outer {
            outer.write(out);
        }
        match self.step {
            Step::Root => {}
            Step::Field(name) | Step::Apart(name) | Step::Key(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(index) => drop(write!(out, "[{index}]")),
        }
    }

    fn path(&self) -> String {
        let mut path = String::new();
        self.write(&mut path);
        path
    }

    /// `spec.containers.name`: Go's decoder names struct fields only.
    fn write_fields(&self, out: &mut String) {
        if let Step::Apart(_) = self.step {
            return;
        }
        if let Some(outer) = self.outer {
            outer.write_fields(out);
        }
        if let Step::Field(name) = self.step {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
    }
}

struct Walk {
    checked: Checked,
    /// Whether the walk is in a part of a custom resource that has no type.
    custom: bool,
    /// What was refused of a custom resource.
    refused: Option<TypeError>,
}

impl Walk {
    fn value(
        &mut self,
        schema: SchemaRef<'_>,
        value: &mut Value,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        match (schema.shape(), &mut *value) {
            (Shape::Any, Value::Object(map)) => match schema.object_form() {
                Some(form) => self.object(form, map, place),
                None => Ok(()),
            },
            (Shape::Any, _) => Ok(()),
            (_, Value::Null) if self.custom => Ok(()),
            (_, Value::Null) => {
                zero(schema, value);
                Ok(())
            }
            (Shape::Object, Value::Object(map)) => self.object(schema, map, place),
            (Shape::Object, _) if schema.type_name().is_some_and(|name| name.ends_with(RAW)) => Ok(()),
            (Shape::Map, Value::Object(map)) => self.map(schema, map, place),
            (Shape::Array, Value::Array(items)) => self.array(schema, items, place),
            (Shape::String, Value::String(text)) => self.string(schema, text),
            (Shape::Integer, Value::Number(number)) => self.integer(schema, number, place),
            (Shape::Number, Value::Number(_)) | (Shape::Boolean, Value::Bool(_)) => Ok(()),
            (Shape::IntOrString, Value::String(_)) => Ok(()),
            (Shape::IntOrString, Value::Number(number)) => self.int_or_string(number, schema, place),
            (Shape::Quantity, Value::String(_) | Value::Number(_)) => self.quantity(value),
            (_, _) => self.mismatch(schema, value, place),
        }
    }

    fn object(
        &mut self,
        schema: SchemaRef<'_>,
        map: &mut Map<String, Value>,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        let place = Place { outer: place.outer, step: place.step, owner: schema };
        let keep_unknown = schema.preserve_unknown();
        let is_whole = self.custom && (place.outer.is_none() || schema.embedded_resource());
        let mut has_droppable = false;
        for (key, value) in map.iter_mut() {
            match schema.lookup(key) {
                Some(property) if self.is_absent(property, value) => has_droppable = true,
                Some(property) if is_whole && matches!(property.name, "apiVersion" | "kind" | "metadata") => {
                    self.typed(property, value, &place);
                }
                Some(property) => {
                    self.value(property.schema, value, &place.below(Step::Field(key)))?;
                }
                None if keep_unknown => {}
                None => {
                    has_droppable = true;
                    self.note_unknown(&place.below(Step::Field(key)));
                }
            }
        }
        if has_droppable {
            map.retain(|key, value| match schema.lookup(key) {
                Some(property) => !self.is_absent(property, value),
                None => keep_unknown,
            });
        }
        Ok(())
    }

    /// The typed parts of a custom resource, or of an object that is embedded in one.
    fn typed(&mut self, property: Property<'_>, value: &mut Value, place: &Place<'_>) {
        let place = place.below(Step::Apart(property.name));
        let why = if property.name == "metadata" {
            self.custom = false;
            let checked = self.value(property.schema, value, &place);
            self.custom = true;
            checked.err().map(|error| error.0)
        } else {
            (!value.is_string()).then(|| "must be a string".to_owned())
        };
        if let Some(why) = why {
            let is_root = place.outer.is_some_and(|outer| outer.outer.is_none());
            let told = FieldError::invalid(Path::new(&place.path()), value.clone(), why.as_str());
            self.refused.get_or_insert(TypeError(if is_root { why } else { told.to_string() }));
        }
    }

    /// What typed structs do not write back: nulls, optional lists and maps that are empty, and
    /// zeroes where the struct cannot tell them from absence.
    /// Custom resources keep what they hold, but for nulls where the schema allows none.
    fn is_absent(&self, property: Property<'_>, value: &Value) -> bool {
        let shape = property.schema.shape();
        match value {
            Value::String(text) => property.omit_zero && shape == Shape::String && text.is_empty(),
            Value::Bool(is_set) => property.omit_zero && shape == Shape::Boolean && !is_set,
            Value::Number(number) => {
                property.omit_zero && shape == Shape::Integer && number.as_i64() == Some(0)
            }
            Value::Null if self.custom => !property.schema.nullable(),
            Value::Null => shape != Shape::Any,
            Value::Array(items) => {
                shape == Shape::Array
                    && items.is_empty()
                    && !property.required
                    && !self.custom
                    && !TELLING_EMPTY.contains(&property.name)
            }
            Value::Object(map) => shape == Shape::Map && map.is_empty() && !property.required && !self.custom,
        }
    }

    fn map(
        &mut self,
        schema: SchemaRef<'_>,
        map: &mut Map<String, Value>,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        let Some(values) = schema.items() else { return Ok(()) };
        if self.custom && !values.nullable() && values.shape() != Shape::Any {
            map.retain(|_, value| !value.is_null());
        }
        for (key, value) in map.iter_mut() {
            self.value(values, value, &place.below(Step::Key(key)))?;
        }
        Ok(())
    }

    fn array(
        &mut self,
        schema: SchemaRef<'_>,
        items: &mut [Value],
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        let Some(item) = schema.items() else { return Ok(()) };
        for (index, value) in items.iter_mut().enumerate() {
            self.value(item, value, &place.below(Step::Index(index)))?;
        }
        Ok(())
    }

    fn string(&mut self, schema: SchemaRef<'_>, text: &mut String) -> Result<(), TypeError> {
        let canonical = match schema.format() {
            Format::Byte => scalar::base64(text),
            Format::Time => scalar::time(text, false),
            Format::MicroTime => scalar::time(text, true),
            _ => return Ok(()),
        };
        match canonical {
            Ok(std::borrow::Cow::Borrowed(_)) => Ok(()),
            Ok(std::borrow::Cow::Owned(canonical)) => {
                *text = canonical;
                Ok(())
            }
            Err(why) => Err(TypeError(why)),
        }
    }

    fn integer(
        &mut self,
        schema: SchemaRef<'_>,
        number: &Number,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        let fits = match schema.format() {
            Format::Int32 => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            _ => number.as_i64().is_some(),
        };
        if fits { Ok(()) } else { self.mismatch(schema, &Value::Number(number.clone()), place) }
    }

    fn int_or_string(
        &mut self,
        number: &Number,
        schema: SchemaRef<'_>,
        place: &Place<'_>,
    ) -> Result<(), TypeError> {
        if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) {
            return Ok(());
        }
        if self.custom {
            return self.mismatch(schema, &Value::Number(number.clone()), place);
        }
        Err(TypeError(format!("json: cannot unmarshal number {number} into Go value of type int32")))
    }

    fn quantity(&mut self, value: &mut Value) -> Result<(), TypeError> {
        let parsed = match &*value {
            Value::String(text) => text.trim().parse(),
            number => Quantity::from_value(number),
        };
        match parsed {
            Err(error) => Err(TypeError(error.to_string())),
            Ok(quantity) => {
                if !value.as_str().is_some_and(|text| is_text_of(quantity, text)) {
                    *value = Value::String(quantity.to_string());
                }
                Ok(())
            }
        }
    }

    fn note_unknown(&mut self, place: &Place<'_>) {
        if self.checked.unknown.len() < UNKNOWN_LEN_MAX {
            self.checked.unknown.push(format!("unknown field \"{}\"", place.path()));
        }
    }

    fn mismatch(&mut self, schema: SchemaRef<'_>, value: &Value, place: &Place<'_>) -> Result<(), TypeError> {
        if self.custom {
            // That is for the rules of the schema.
            return Ok(());
        }
        let found = match value {
            Value::Number(number) if schema.shape() == Shape::Integer => format!("number {number}"),
            other => scalar::json_type(other).to_owned(),
        };
        let (wanted, own) = (go_type(schema), decodes_itself(schema));
        let mut fields = String::new();
        place.write_fields(&mut fields);
        // Types with a decoder of their own do not know where they are.
        let message = if own || fields.is_empty() {
            format!("json: cannot unmarshal {found} into Go value of type {wanted}")
        } else {
            let owner = place.owner.type_name().map_or("", short_name);
            format!("json: cannot unmarshal {found} into Go struct field {owner}.{fields} of type {wanted}")
        };
        Err(TypeError(if schema.shape() == Shape::Quantity {
            crate::quantity::ParseError::Format.to_string()
        } else {
            message
        }))
    }
}

/// Whether a text is already the canonical one.
fn is_text_of(quantity: Quantity, text: &str) -> bool {
    let mut same = Same { rest: text, is_same: true };
    write!(same, "{quantity}").is_ok() && same.is_same && same.rest.is_empty()
}

/// Compares what is written with a text, without keeping it.
struct Same<'a> {
    rest: &'a str,
    is_same: bool,
}

impl fmt::Write for Same<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        match self.rest.strip_prefix(part) {
            Some(rest) => self.rest = rest,
            None => self.is_same = false,
        }
        Ok(())
    }
}

/// What null is inside a list or map, where it cannot mean absent.
fn zero(schema: SchemaRef<'_>, value: &mut Value) {
    *value = match schema.shape() {
        Shape::String if schema.format() != Format::None => Value::Null,
        Shape::String => Value::String(String::new()),
        Shape::Object if !schema.preserve_unknown() => Value::Object(Map::new()),
        Shape::Integer | Shape::IntOrString | Shape::Number => Value::from(0),
        Shape::Boolean => Value::Bool(false),
        Shape::Quantity => Value::from("0"),
        Shape::Any | Shape::Object | Shape::Map | Shape::Array => Value::Null,
    };
}

fn short_name(type_name: &str) -> &str {
    type_name.rsplit('.').next().unwrap_or(type_name)
}

fn decodes_itself(schema: SchemaRef<'_>) -> bool {
    schema.shape() == Shape::IntOrString || matches!(schema.format(), Format::Time | Format::MicroTime)
}

/// The Go type of a place, as its errors show it.
fn go_type(schema: SchemaRef<'_>) -> String {
    match schema.shape() {
        Shape::Object => {
            let name = schema.type_name().unwrap_or("interface {}");
            let start = name.rsplit_once('.').and_then(|(head, _)| head.rfind('.')).map_or(0, |dot| dot + 1);
            name[start..].to_owned()
        }
        Shape::Array => format!("[]{}", schema.items().map_or("interface {}".into(), |item| go_type(item))),
        Shape::Map if schema.items().is_some_and(|item| item.shape() == Shape::Quantity) => {
            "v1.ResourceList".into()
        }
        Shape::Map => {
            format!("map[string]{}", schema.items().map_or("interface {}".into(), |item| go_type(item)))
        }
        Shape::String => match schema.format() {
            Format::Byte => "[]uint8".into(),
            // Times are read as strings first.
            _ => "string".into(),
        },
        Shape::Integer if schema.format() == Format::Int32 => "int32".into(),
        Shape::Integer => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Boolean => "bool".into(),
        Shape::IntOrString => "int32".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::Any => "interface {}".into(),
    }
}
