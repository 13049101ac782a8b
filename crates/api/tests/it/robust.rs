//! No rule panics on an object of the wrong shape: validation also meets objects that were stored
//! by another version, and custom resources under a built-in strategy must not bring a server down.

use crate::invalid::{Rows, table};
use proptest::prelude::*;
use serde_json::Value;
use skeg_api::fieldset::{FieldSet, Tracking, track};
use skeg_api::{object_meta, patch, pod};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![Just(""), Just("a"), Just("A b"), Just("-1"), Just("10%"), Just("é['"), Just("..")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::btree_map("name|ip|type|spec|key", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Replaces one place of the value, chosen by the bits of `at`.
fn damage(value: &mut Value, at: u64, with: Value) {
    let count = match value {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    let choice = (at % (count as u64 + 1)) as usize;
    let child = match value {
        Value::Array(items) => items.get_mut(choice),
        Value::Object(map) => map.values_mut().nth(choice),
        _ => None,
    };
    match child {
        Some(child) => damage(child, at / (count as u64 + 1), with),
        None => *value = with,
    }
}

fn rows() -> &'static Rows {
    static ROWS: std::sync::OnceLock<Rows> = std::sync::OnceLock::new();
    ROWS.get_or_init(Rows::new)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn damaged_objects_do_not_panic(base in any::<prop::sample::Index>(), case in any::<prop::sample::Index>(), at in any::<u64>(), with in any_json()) {
        let (rows, table) = (rows(), table());
        let bases = table["bases"].as_object().unwrap();
        let case = case.get(table["cases"].as_array().unwrap());
        let object = match at % 2 {
            0 => bases.values().nth(base.index(bases.len())).unwrap().clone(),
            _ => crate::invalid::change(bases[case["base"].as_str().unwrap()].clone(), &case["set"]),
        };
        let kind = rows.of(&object);
        let mut damaged = object.clone();
        for field in ["metadata", "spec", "status", "data", "subsets", "endpoints", "rules", "subjects", "roleRef"] {
            if let Some(part) = damaged.get_mut(field) {
                damage(part, at, with.clone());
            }
        }
        let strategy = kind.strategy;
        for (new, old) in [(&damaged, &object), (&object, &damaged)] {
            let mut new = new.clone();
            (strategy.prepare_create)(&mut new);
            (strategy.prepare_update)(&mut new, old);
            (strategy.prepare_status)(&mut new, old);
            object_meta::validate_object_meta(&new, kind.namespaced, kind.name_rule);
            object_meta::validate_object_meta_update(&new, old);
            (strategy.validate)(&new);
            (strategy.validate_create)(&new);
            (strategy.validate_update)(&new, old);
            (strategy.validate_status)(&new, old);
            (strategy.warnings)(&new, Some(old));
            (strategy.selectable)(&new);
            pod::qos_class(&new);
            let now = jiff::Timestamp::UNIX_EPOCH;
            let tracking = Tracking { manager: "m", api_version: "v1", subresource: "", now, ignored: &[] };
            track(Some(old), &mut new, &tracking, kind.schema.root());
            let _ = patch::strategic_merge_patch(&mut new, old.clone(), kind.schema.root());
        }
    }

    #[test]
    fn every_field_of_a_new_object_has_an_owner(base in any::<prop::sample::Index>()) {
        let (rows, table) = (rows(), table());
        let bases = table["bases"].as_object().unwrap();
        let mut object = bases.values().nth(base.index(bases.len())).unwrap().clone();
        let schema = rows.of(&object).schema.clone();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let tracking = Tracking { manager: "m", api_version: "v1", subresource: "", now, ignored: &[] };
        track(None, &mut object, &tracking, schema.root());
        let owned = match object["metadata"]["managedFields"].get(0) {
            Some(entry) => FieldSet::from_value(&entry["fieldsV1"]).unwrap(),
            None => FieldSet::new(),
        };
        skeg_api::meta::remove(&mut object, "managedFields");
        let all = FieldSet::of(&object, schema.root());
        let containers_and_names = all.difference(&owned).paths();
        for path in containers_and_names {
            let unowned = ["f:apiVersion", "f:kind", "f:metadata", "f:spec", "f:template", "f:strategy"];
            let known = path.iter().any(|p| unowned.contains(&p.as_str())) && path.len() <= 3
                || ["f:containers", "f:ports", "f:involvedObject", "f:regarding", "f:endpoints", "f:rules", "f:target"].contains(&path.last().unwrap().as_str())
                || path.ends_with(&["f:template".to_owned(), "f:spec".to_owned()]);
            prop_assert!(known, "{path:?} has no owner");
        }
    }
}
