//! Every object of `testdata/invalid*.yaml` is refused with upstream's fields and reasons, and
//! every base is accepted.

use serde_json::{Value, json};
use skeg_api::field::FieldError;
use skeg_api::kinds::Kind;
use skeg_api::{GroupVersion, Gvk, builtin, meta, object_meta, validate};
use std::collections::BTreeMap;

const TABLES: [&str; 6] = [
    include_str!("../../testdata/invalid.yaml"),
    include_str!("../../testdata/invalid-workloads.yaml"),
    include_str!("../../testdata/invalid-cluster.yaml"),
    include_str!("../../testdata/invalid-definitions.yaml"),
    include_str!("../../testdata/invalid-details.yaml"),
    include_str!("../../testdata/invalid-devices.yaml"),
];

/// All tables as one.
pub fn table() -> &'static Value {
    static PARSED: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
    PARSED.get_or_init(|| {
        let tables = TABLES.map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
        let bases = tables.iter().flat_map(|table| table["bases"].as_object().unwrap().clone());
        let cases = tables.iter().flat_map(|table| table["cases"].as_array().unwrap().clone());
        json!({"bases": bases.collect::<serde_json::Map<_, _>>(), "cases": cases.collect::<Vec<_>>()})
    })
}

pub struct Rows(BTreeMap<(String, String), Kind>);

impl Rows {
    pub fn new() -> Self {
        Rows(
            builtin::builtin()
                .into_iter()
                .map(|k| ((k.gvk.api_version(), k.gvk.kind.to_string()), k))
                .collect(),
        )
    }

    /// The row of a kind; kinds that only subresources take get one made up for them.
    pub fn of(&self, object: &Value) -> Kind {
        let key = (meta::api_version(object).to_owned(), meta::kind(object).to_owned());
        self.0.get(&key).cloned().unwrap_or_else(|| {
            let group = GroupVersion::parse(&key.0).unwrap().group;
            let gvk = Gvk::new(&group, "v1", &key.1);
            let strategy = validate::strategy_for(&group, "v1", &key.1);
            Kind { gvk, strategy, storage: None, ..self.0.values().next().unwrap().clone() }
        })
    }
}

/// What the generic path does to a new object, as far as validation can see it.
pub fn create(kind: &Kind, mut object: Value) -> (Value, Vec<FieldError>) {
    if kind.storage.is_some() {
        meta::set_uid(&mut object, "1");
    }
    (kind.strategy.default)(&mut object);
    (kind.strategy.prepare_create)(&mut object);
    let mut errors = match kind.storage {
        Some(_) => object_meta::validate_object_meta(&object, kind.namespaced, kind.name_rule),
        None => Vec::new(),
    };
    errors.extend((kind.strategy.validate)(&object));
    errors.extend((kind.strategy.validate_create)(&object));
    (object, errors)
}

pub fn update(kind: &Kind, mut new: Value, old: &Value) -> Vec<FieldError> {
    (kind.strategy.default)(&mut new);
    (kind.strategy.prepare_update)(&mut new, old);
    let mut errors = object_meta::validate_object_meta_update(&new, old);
    errors.extend(object_meta::validate_object_meta(&new, kind.namespaced, kind.name_rule));
    errors.extend((kind.strategy.validate)(&new));
    errors.extend((kind.strategy.validate_update)(&new, old));
    errors
}

fn update_status(kind: &Kind, mut new: Value, old: &Value) -> Vec<FieldError> {
    (kind.strategy.default)(&mut new);
    (kind.strategy.prepare_status)(&mut new, old);
    (kind.strategy.validate_status)(&new, old)
}

pub fn change(mut object: Value, set: &Value) -> Value {
    for (pointer, value) in set.as_object().unwrap() {
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        let parent = parent.split('/').skip(1).fold(&mut object, |at, token| match at {
            Value::Array(items) => &mut items[token.parse::<usize>().unwrap()],
            at => &mut at[token],
        });
        match parent {
            Value::Array(items) => {
                let at: usize = last.parse().unwrap();
                if at == items.len() { items.push(value.clone()) } else { items[at] = value.clone() }
            }
            parent if value.is_null() => {
                parent.as_object_mut().unwrap().remove(&last);
            }
            parent => parent[last] = value.clone(),
        }
    }
    object
}

pub fn stored(mut object: Value) -> Value {
    meta::set_uid(&mut object, "1");
    meta::set_resource_version(&mut object, "1");
    meta::set(&mut object, "creationTimestamp", json!("2026-01-01T00:00:00Z"));
    object
}

#[test]
fn the_bases_are_valid() {
    let (rows, table) = (Rows::new(), table());
    for (name, base) in table["bases"].as_object().unwrap() {
        let kind = rows.of(base);
        let (object, errors) = create(&kind, base.clone());
        assert_eq!(errors, [], "{name}");
        if kind.storage.is_some() {
            let object = stored(object);
            assert_eq!(update(&kind, object.clone(), &object), [], "{name}, update that changes nothing");
            assert_eq!(
                update_status(&kind, object.clone(), &object),
                [],
                "{name}, status that changes nothing"
            );
        }
    }
}

#[test]
fn invalid_objects_are_refused_as_upstream_does() {
    let (rows, table) = (Rows::new(), table());
    let cases = table["cases"].as_array().unwrap();
    let mut failed = Vec::new();
    let mut kinds = std::collections::BTreeSet::new();
    for case in cases {
        let base = &table["bases"][case["base"].as_str().unwrap()];
        assert!(base.is_object(), "{case}");
        let kind = rows.of(base);
        kinds.insert(kind.gvk.kind.to_string());
        let errors = match case.get("on").and_then(Value::as_str).unwrap_or("create") {
            "create" => create(&kind, change(base.clone(), &case["set"])).1,
            on => {
                let old = stored(create(&kind, base.clone()).0);
                let old = case.get("was").map_or_else(|| old.clone(), |was| change(old.clone(), was));
                let new = change(old.clone(), &case["set"]);
                if on == "update" { update(&kind, new, &old) } else { update_status(&kind, new, &old) }
            }
        };
        let mut found: Vec<[String; 2]> = errors
            .iter()
            .map(|e| [e.path.to_string(), e.kind.reason().trim_start_matches("FieldValue").to_owned()])
            .collect();
        let mut expected: Vec<[String; 2]> = serde_json::from_value(case["causes"].clone()).unwrap();
        found.sort();
        expected.sort();
        let status = skeg_api::Status::invalid("", "", "", &errors);
        let message = case.get("message").and_then(Value::as_str).unwrap_or_default();
        if found != expected || !status.message.contains(message) {
            failed.push(format!(
                "{}\n  expected {expected:?} {message}\n  found    {found:?} {}",
                case["name"], status.message
            ));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases differ:\n{}", failed.len(), cases.len(), failed.join("\n"));
    assert!(cases.len() >= 500, "{} cases", cases.len());
    assert!(kinds.len() >= 60, "{kinds:?}");
}
