//! Lists and maps that merge: their types, and what the items of sets and of maps must be.

use super::{Check, LIST_KEYS, LIST_TYPE, Later, MAP_TYPE, property};
use crate::field::FieldError;
use crate::validate::at::At;
use serde_json::Value;

impl Check<'_> {
    /// Lists and maps that merge.
    pub(super) fn merging(&mut self, schema: &At<'_>, kind: &str) {
        let errors = &mut self.errors;
        for (field, wanted, known) in [
            (MAP_TYPE, "object", &["atomic", "granular"][..]),
            (LIST_TYPE, "array", &["atomic", "set", "map"]),
        ] {
            if !schema.has(field) {
                continue;
            }
            let why = format!("must be {wanted} if {field} is specified");
            match kind {
                "" => errors.required(schema.at("type"), &why),
                kind if kind != wanted => errors.invalid(schema.at("type"), kind, why),
                _ => {}
            }
            errors.optional_one_of(schema, field, known);
        }
        let (list_type, keys) = (schema.str(LIST_TYPE), schema.list(LIST_KEYS));
        if list_type != "map" && !keys.is_empty() {
            let why = format!("must be map if {LIST_KEYS} is non-empty");
            match schema.has(LIST_TYPE) {
                false => errors.required(schema.at(LIST_TYPE), &why),
                true => errors.invalid(schema.at(LIST_TYPE), list_type, why),
            }
        }
        let items = schema.get("items").filter(|items| items.value.is_object());
        match (list_type, items) {
            ("map", items) => self.map_list(schema, items.as_ref(), keys),
            ("set", Some(items)) => self.set_list(kind, &items),
            _ => {}
        }
    }

    fn set_list(&mut self, kind: &str, items: &At<'_>) {
        let (field, is_atomic) = match items.str("type") {
            "array" => (LIST_TYPE, matches!(items.value[LIST_TYPE].as_str(), None | Some("atomic"))),
            "object" => (MAP_TYPE, items.str(MAP_TYPE) == "atomic"),
            _ => ("", true),
        };
        if kind == "array" && !is_atomic {
            // The value shown is that of the list type, as upstream shows it, for maps too.
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let error = FieldError::invalid(items.at(field), items.value[LIST_TYPE].clone(), why);
            self.later(Later::AtomicSets, error);
        }
        self.no_null_items(items, "set");
    }

    fn no_null_items(&mut self, items: &At<'_>, list_type: &str) {
        if items.bool("nullable") {
            let why = format!("cannot be nullable when {LIST_TYPE} is {list_type}");
            self.later(Later::KeysAndItems, FieldError::forbidden(items.at("nullable"), why));
        }
    }

    fn map_list(&mut self, schema: &At<'_>, items: Option<&At<'_>>, keys: &[Value]) {
        if keys.is_empty() {
            self.errors.required(schema.at(LIST_KEYS), &format!("must not be empty if {LIST_TYPE} is map"));
        }
        let Some(items) = items else {
            if !schema.has("items") {
                let why = format!("must have a schema if {LIST_TYPE} is map");
                self.errors.required(schema.at("items"), &why);
            }
            return;
        };
        let kind = items.str("type");
        if kind != "object" {
            let why = format!("must be object if parent array's {LIST_TYPE} is map");
            self.errors.invalid(items.at("type"), kind, why);
        }
        self.no_null_items(items, "map");
        for (index, key) in keys.iter().enumerate() {
            let name = key.as_str().unwrap_or_default();
            let given = || Value::Array(keys.to_vec());
            let found = property(items, name);
            if kind == "object" {
                match &found {
                    None => {
                        let why = "entries must all be names of item properties";
                        self.errors.invalid(schema.at(LIST_KEYS), given(), why);
                    }
                    Some(found) if matches!(found.str("type"), "object" | "array") => {
                        let why = format!("must be a scalar type if parent array's {LIST_TYPE} is map");
                        self.errors.invalid(found.at("type"), kind, why);
                    }
                    Some(_) => {}
                }
                if keys[..index].contains(key) {
                    self.errors.invalid(schema.at(LIST_KEYS), given(), "must not contain duplicate entries");
                }
            }
            let Some(found) = found else { continue };
            let why = format!("this property is in {LIST_KEYS}, so it");
            if !items.strings("required").any(|required| required == name) && !found.has("default") {
                let why = format!("{why} must have a default or be a required property");
                self.later(Later::KeysAndItems, FieldError::required(found.at("default"), why));
            }
            if found.bool("nullable") {
                let why = format!("{why} cannot be nullable");
                self.later(Later::KeysAndItems, FieldError::forbidden(found.at("nullable"), why));
            }
        }
    }
}
