//! Whether a configuration fits its type well enough to be merged: no unknown fields, the right
//! kinds of values, list items that can be told apart. What values mean is decoding's business.

use super::set::{display_element, field_element, item_element, item_schema, merges};
use crate::go;
use crate::schema::{SchemaRef, Shape};
use serde_json::Value;
use std::collections::BTreeSet;

/// The most errors that one refusal tells.
const ERRORS_LEN_MAX: usize = 100;

/// Checks a configuration; the error is what upstream says of all that it finds.
pub(super) fn check(config: &Value, schema: SchemaRef<'_>) -> Result<(), String> {
    let mut walk = Walk { errors: Vec::new() };
    walk.value(config, schema, None);
    match walk.errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(many.iter().fold("errors:".to_owned(), |all, error| format!("{all}\n  {error}"))),
    }
}

/// One step of the path, on the stack.
struct Place<'a> {
    outer: Option<&'a Place<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Field(&'a str),
    Item(&'a str),
    Index(usize),
}

impl Place<'_> {
    fn write(&self, out: &mut String) {
        if let Some(outer) = self.outer {
            outer.write(out);
        }
        match self.step {
            Step::Field(name) => display_element(&field_element(name), out),
            Step::Item(element) => display_element(element, out),
            Step::Index(index) => display_element(&format!("i:{index}"), out),
        }
    }
}

struct Walk {
    errors: Vec<String>,
}

impl Walk {
    fn note(&mut self, at: Option<&Place<'_>>, why: String) {
        if self.errors.len() == ERRORS_LEN_MAX {
            return;
        }
        let mut path = String::new();
        if let Some(place) = at {
            place.write(&mut path);
            path.push_str(": ");
        }
        self.errors.push(path + &why);
    }

    fn value(&mut self, value: &Value, schema: SchemaRef<'_>, at: Option<&Place<'_>>) {
        let why = match (schema.shape(), value) {
            (Shape::Any, _) | (_, Value::Null) => return,
            (Shape::Object | Shape::Map, Value::Object(map)) => {
                for (name, child) in map {
                    let place = Place { outer: at, step: Step::Field(name) };
                    match schema.child(name) {
                        Some(below) => self.value(child, below, Some(&place)),
                        None if schema.preserve_unknown() || schema.shape() == Shape::Map => {}
                        None => return self.note(Some(&place), "field not declared in schema".into()),
                    }
                }
                return;
            }
            (Shape::Array, Value::Array(items)) => return self.items(items, schema, at),
            (Shape::String, Value::String(_))
            | (Shape::Integer | Shape::Number, Value::Number(_))
            | (Shape::Boolean, Value::Bool(_))
            | (Shape::IntOrString | Shape::Quantity, Value::String(_) | Value::Number(_) | Value::Bool(_)) => {
                return;
            }
            (Shape::Object | Shape::Map, other) => format!("expected map, got &{{{}}}", go::value(other)),
            (Shape::Array, other) => format!("expected list, got &{{{}}}", go::value(other)),
            (Shape::String, other) => {
                format!("expected string, got &value.valueUnstructured{{Value:{}}}", go::syntax(other))
            }
            (Shape::Integer | Shape::Number, other) => {
                format!("expected numeric (int or float), got {}", go::type_of(other))
            }
            (Shape::Boolean, other) => format!("expected boolean, got &{{{}}}", go::value(other)),
            (Shape::IntOrString | Shape::Quantity, other) => {
                format!("expected any scalar, got &{{{}}}", go::value(other))
            }
        };
        self.note(at, why);
    }

    fn items(&mut self, items: &[Value], schema: SchemaRef<'_>, at: Option<&Place<'_>>) {
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            if !merges(schema) {
                let place = Place { outer: at, step: Step::Index(index) };
                self.value(item, item_schema(schema), Some(&place));
                continue;
            }
            let element = match item_element(item, schema) {
                Ok(element) => element,
                // Without an element there is no path to what is wrong below.
                Err(why) => return self.note(at, format!("element {index}: {why}")),
            };
            if seen.contains(&element) {
                let mut shown = String::new();
                display_element(&element, &mut shown);
                self.note(at, format!("duplicate entries for key {shown}"));
            }
            let place = Place { outer: at, step: Step::Item(&element) };
            self.value(item, item_schema(schema), Some(&place));
            seen.insert(element);
        }
    }
}
