//! The defaults of a schema: values that follow it, and in `metadata`, `kind` and `apiVersion` of whole
//! objects, such as make one.
//! Upstream counterpart: `apiextensions-apiserver/pkg/apiserver/schema/defaulting/validation.go`.

use super::{Check, EMBEDDED, Later, META, properties};
use crate::crd::{self, Rules};
use crate::field::FieldError;
use crate::schema::Schema;
use crate::validate::at::At;
use serde_json::{Value, json};

impl Check<'_> {
    /// Defaults must be what the schema allows, with nothing that pruning would take away. `whole` is the
    /// schema of the object around them, and `within` the place in its `metadata`, `kind` or `apiVersion`.
    pub(super) fn defaults(
        &mut self,
        schema: &At<'_>,
        is_root: bool,
        whole: &At<'_>,
        within: Option<&Inner<'_>>,
    ) {
        let is_whole = is_root || schema.bool(EMBEDDED);
        let (whole, within) = if is_whole { (schema, None) } else { (whole, within) };
        if let Some(default) = schema.get("default") {
            match within {
                Some(place) => self.default_in_meta(schema, &default, whole, place),
                None => self.default(schema, &default),
            }
        }
        // Upstream does not follow additionalProperties.
        if let Some(items) = schema.get("items") {
            let inner = within.map(|outer| Inner { outer: Some(outer), name: None });
            self.defaults(&items, false, whole, inner.as_ref());
        }
        for (name, below) in properties(schema) {
            let is_inner = within.is_some() || is_whole && META.contains(&name);
            let inner = is_inner.then_some(Inner { outer: within, name: Some(name) });
            self.defaults(&below, false, whole, inner.as_ref());
        }
    }

    fn default(&mut self, schema: &At<'_>, default: &At<'_>) {
        let wrapped = json!({"type": "object", "properties": {"default": schema.value}});
        let Ok(table) = Schema::from_openapi("", &wrapped) else { return };
        let mut pruned = json!({"default": default.value});
        match crate::decode::check(&table, &mut pruned) {
            Err(error) => {
                return self.errors.invalid(default.path.clone(), default.value.clone(), error.to_string());
            }
            Ok(checked) if !checked.unknown.is_empty() => {
                let error = FieldError::invalid(
                    default.path.clone(),
                    default.value.clone(),
                    "must not have unknown fields",
                );
                self.later(Later::PrunedDefaults, error);
            }
            Ok(_) => {}
        }
        let wrong = Rules::of(schema.value.clone()).check(default.value, None, default.path.as_str());
        self.errors.extend(wrong);
    }

    fn default_in_meta(&mut self, schema: &At<'_>, default: &At<'_>, whole: &At<'_>, place: &Inner<'_>) {
        let mut object = place.object(default.value.clone());
        for (field, value) in [("apiVersion", "validation/v1"), ("kind", "Validation")] {
            if object.get(field).is_none() {
                object[field] = value.into();
            }
        }
        let Ok(table) = Schema::from_openapi("", whole.value) else { return };
        let mut faults = Vec::new();
        match crate::decode::check(&table, &mut object) {
            Err(error) => faults.push(error.to_string()),
            Ok(_) => faults.extend(crd::embedded_faults(&object, "").iter().map(ToString::to_string)),
        }
        let why = match faults.as_slice() {
            [] => {
                let wrong = Rules::of(schema.value.clone()).check(default.value, None, default.path.as_str());
                return self.errors.extend(wrong);
            }
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let why = format!("must result in valid metadata: {why}");
        self.errors.invalid(default.path.clone(), default.value.clone(), why);
    }
}

/// Where a default stands in a whole object, on the stack: names of fields, or an item of a list.
pub(super) struct Inner<'a> {
    outer: Option<&'a Inner<'a>>,
    name: Option<&'a str>,
}

impl Inner<'_> {
    /// The object with nothing but a value in this place.
    fn object(&self, value: Value) -> Value {
        let value = match self.name {
            Some(name) => json!({ name: value }),
            None => json!([value]),
        };
        match self.outer {
            Some(outer) => outer.object(value),
            None => value,
        }
    }
}
