//! Server-side apply against a model of field ownership that knows nothing of sets, schemas or
//! JSON: an object is a map of paths to values, an owner a set of paths.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use skeg_api::fieldset::{Apply, FieldSet, Operation, Tracking, apply, track};
use skeg_api::schema::Schema;
use skeg_api::{Gvk, Kinds};
use std::collections::{BTreeMap, BTreeSet};

/// Paths as people read them, with their values.
type Fields = BTreeMap<String, u8>;

const REPLICAS: &str = ".spec.replicas";
const SELECTOR: &str = ".spec.template.spec.nodeSelector";

fn container(name: &str) -> String {
    format!(".spec.template.spec.containers[name=\"{name}\"]")
}

fn port(container: &str, port: &str) -> String {
    format!("{container}.ports[containerPort={port},protocol=\"TCP\"]")
}

/// Whatever a client may set: a leaf, map keys, a set, an atomic map, items with leaves, items in
/// items with a key that has a default.
fn fields() -> impl Strategy<Value = Fields> {
    let value = || 0..3u8;
    let maybe = move || prop::option::weighted(0.6, value());
    let labels = prop::collection::btree_map("[ab]", value(), 0..3);
    let finalizers = prop::collection::btree_set("[xy]", 0..3);
    let ports = || prop::collection::btree_map("[78]", maybe(), 0..3);
    let containers = prop::collection::btree_map("[cd]", (maybe(), maybe(), ports()), 0..3);
    (maybe(), labels, finalizers, maybe(), containers).prop_map(
        |(replicas, labels, finalizers, selector, containers)| {
            let mut fields = Fields::new();
            let mut set = |path: String, value: Option<u8>| fields.extend(value.map(|value| (path, value)));
            set(REPLICAS.into(), replicas);
            set(SELECTOR.into(), selector);
            labels.into_iter().for_each(|(key, value)| set(format!(".metadata.labels.{key}"), Some(value)));
            finalizers
                .into_iter()
                .for_each(|name| set(format!(".metadata.finalizers[=\"example.com/{name}\"]"), Some(0)));
            for (name, (image, args, ports)) in containers {
                let at = container(&name);
                set(at.clone(), Some(0));
                set(format!("{at}.name"), Some(0));
                set(format!("{at}.image"), image);
                set(format!("{at}.args"), args);
                for (number, host) in ports {
                    let at = port(&at, &number);
                    set(at.clone(), Some(0));
                    set(format!("{at}.containerPort"), Some(0));
                    set(format!("{at}.hostPort"), host);
                }
            }
            fields
        },
    )
}

/// The JSON of an object.
fn object(fields: &Fields) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}});
    let number = |path: &str| fields.get(path).map(|value| Value::from(*value));
    if let Some(replicas) = number(REPLICAS) {
        object["spec"]["replicas"] = replicas;
    }
    if let Some(selector) = fields.get(SELECTOR) {
        object["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": selector.to_string()});
    }
    for key in ["a", "b"] {
        if let Some(value) = fields.get(&format!(".metadata.labels.{key}")) {
            object["metadata"]["labels"][key] = value.to_string().into();
        }
    }
    let has = |path: &str| fields.contains_key(path);
    let finalizers: Vec<Value> = ["x", "y"]
        .into_iter()
        .map(|name| format!("example.com/{name}"))
        .filter(|name| has(&format!(".metadata.finalizers[={name:?}]")))
        .map(Value::from)
        .collect();
    if !finalizers.is_empty() {
        object["metadata"]["finalizers"] = finalizers.into();
    }
    let mut containers = Vec::new();
    for name in ["c", "d"] {
        let at = container(name);
        if !has(&at) {
            continue;
        }
        let mut item = json!({ "name": name });
        if let Some(image) = fields.get(&format!("{at}.image")) {
            item["image"] = image.to_string().into();
        }
        if let Some(args) = fields.get(&format!("{at}.args")) {
            item["args"] = json!([args.to_string(), "same"]);
        }
        let mut ports = Vec::new();
        for number in ["7", "8"] {
            let at = port(&at, number);
            if has(&at) {
                // The protocol is left to its default.
                let mut item = json!({ "containerPort": number.parse::<u8>().unwrap() });
                if let Some(host) = fields.get(&format!("{at}.hostPort")) {
                    item["hostPort"] = (*host).into();
                }
                ports.push(item);
            }
        }
        if !ports.is_empty() {
            item["ports"] = ports.into();
        }
        containers.push(item);
    }
    if !containers.is_empty() {
        object["spec"]["template"]["spec"]["containers"] = containers.into();
    }
    object
}

/// Back from JSON, whatever order lists have.
fn flatten(object: &Value) -> Fields {
    let mut fields = Fields::new();
    let number = |value: &Value| -> u8 {
        value.as_u64().map_or_else(|| value.as_str().unwrap().parse().unwrap(), |n| n as u8)
    };
    let mut set = |path: String, value: Option<&Value>| {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            fields.insert(path, number(value));
        }
    };
    set(REPLICAS.into(), object.pointer("/spec/replicas"));
    set(SELECTOR.into(), object.pointer("/spec/template/spec/nodeSelector/disk"));
    for (key, value) in object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
        set(format!(".metadata.labels.{key}"), Some(value));
    }
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    for name in list(object.pointer("/metadata/finalizers")) {
        set(format!(".metadata.finalizers[={name}]"), Some(&json!(0)));
    }
    for item in list(object.pointer("/spec/template/spec/containers")) {
        let at = container(item["name"].as_str().unwrap());
        set(at.clone(), Some(&json!(0)));
        set(format!("{at}.name"), Some(&json!(0)));
        set(format!("{at}.image"), item.get("image"));
        set(format!("{at}.args"), item.pointer("/args/0"));
        for item in list(item.get("ports")) {
            let at = port(&at, &item["containerPort"].to_string());
            set(at.clone(), Some(&json!(0)));
            set(format!("{at}.containerPort"), Some(&json!(0)));
            set(format!("{at}.hostPort"), item.get("hostPort"));
        }
    }
    fields
}

#[derive(Clone, Debug)]
enum Step {
    Apply { manager: u8, fields: Fields, force: bool },
    Update { manager: u8, fields: Fields },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3u8, fields(), any::<bool>()).prop_map(|(manager, fields, force)| Step::Apply { manager, fields, force }),
        1 => (0..2u8, fields()).prop_map(|(manager, fields)| Step::Update { manager, fields }),
    ];
    prop::collection::vec(step, 1..8)
}

/// Who owns what, as KEP-555 has it.
#[derive(Default)]
struct Model {
    object: Option<Fields>,
    owners: BTreeMap<String, BTreeSet<String>>,
}

impl Model {
    /// Whether it was done; a conflict changes nothing.
    fn apply(
        &mut self,
        manager: &str,
        config: &Fields,
        force: bool,
    ) -> Result<(), BTreeSet<(String, String)>> {
        let live = self.object.clone().unwrap_or_default();
        let others = |path: &str| {
            self.owners.iter().filter(|(name, owned)| *name != manager && owned.contains(path)).count()
        };
        let mut merged = live.clone();
        merged.extend(config.clone());
        let last = self.owners.get(manager).cloned().unwrap_or_default();
        let gone = |path: &String| last.contains(path) && !config.contains_key(path) && others(path) == 0;
        let gone: Vec<String> = merged.keys().filter(|path| gone(path)).cloned().collect();
        merged
            .retain(|path, _| !gone.iter().any(|gone| path == gone || path.starts_with(&format!("{gone}."))));
        let changed: BTreeSet<String> = merged
            .iter()
            .filter(|(path, value)| live.get(*path) != Some(value))
            .map(|(path, _)| path.clone())
            .collect();
        let conflicts: BTreeSet<(String, String)> = self
            .owners
            .iter()
            .filter(|(name, _)| *name != manager)
            .flat_map(|(name, owned)| owned.intersection(&changed).map(|path| (name.clone(), path.clone())))
            .collect();
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        self.moved(&merged, &changed);
        self.owners.insert(manager.to_owned(), config.keys().cloned().collect());
        self.finish(merged);
        Ok(())
    }

    fn update(&mut self, manager: &str, new: &Fields) {
        let live = self.object.clone().unwrap_or_default();
        let changed: BTreeSet<String> = new
            .iter()
            .filter(|(path, value)| live.get(*path) != Some(value))
            .map(|(path, _)| path.clone())
            .collect();
        self.moved(new, &changed);
        self.owners.entry(manager.to_owned()).or_default().extend(changed);
        self.finish(new.clone());
    }

    fn moved(&mut self, merged: &Fields, changed: &BTreeSet<String>) {
        for owned in self.owners.values_mut() {
            owned.retain(|path| !changed.contains(path) && merged.contains_key(path));
        }
    }

    fn finish(&mut self, object: Fields) {
        self.object = Some(object);
        self.owners.retain(|_, owned| !owned.is_empty());
    }
}

/// The owners of an object, by the fields that the model knows.
fn owners(object: &Value, known: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
    let owner = |entry: &Value| {
        let fields = FieldSet::from_value(&entry["fieldsV1"]).unwrap();
        let paths: BTreeSet<String> =
            fields.display_paths().into_iter().filter(|path| known.contains(path)).collect();
        (format!("{} {}", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap()), paths)
    };
    entries.map(owner).filter(|(_, owned)| !owned.is_empty()).collect()
}

fn tracking(manager: &str, second: i64) -> Tracking<'_> {
    let now = jiff::Timestamp::from_second(second).unwrap();
    Tracking { manager, api_version: "apps/v1", subresource: "", now, ignored: &["status"] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn ownership_follows_the_model(steps in steps()) {
        let schema = Schema::builtin_kind("apps", "v1", "Deployment").unwrap();
        let gvk = Gvk::new("apps", "v1", "Deployment");
        let (mut model, mut live): (Model, Option<Value>) = Default::default();
        let mut known = BTreeSet::new();
        for (second, step) in steps.iter().enumerate() {
            match step {
                Step::Apply { manager, fields, force } => {
                    known.extend(fields.keys().cloned());
                    let manager = format!("m{manager}");
                    let request = Apply { tracking: tracking(&manager, second as i64), kind: &gvk, force: *force };
                    // An object that was left without entries is another matter.
                    prop_assume!(live.is_none() || !model.owners.is_empty());
                    let result = apply(live.as_ref(), &object(fields), &request, schema.root());
                    // Of a map that lost its last part, upstream's owner keeps the map itself, and
                    // whoever fills it again meets that owner. The model knows parts alone.
                    let is_of_whole = result.as_ref().is_err_and(|status| {
                        let causes = status.details.iter().flat_map(|details| &details.causes);
                        causes.into_iter().any(|cause| !known.contains(&cause.field))
                    });
                    prop_assume!(!is_of_whole);
                    match (model.apply(&format!("{manager} {}", Operation::Apply.as_str()), fields, *force), result) {
                        (Ok(()), Ok(result)) => live = Some(result),
                        (Err(expected), Err(status)) => {
                            let causes = status.details.unwrap().causes;
                            let told: BTreeSet<String> = causes.iter().map(|cause| cause.field.clone()).collect();
                            prop_assert_eq!(causes.len(), expected.len());
                            prop_assert_eq!(told, expected.into_iter().map(|(_, path)| path).collect());
                        }
                        (expected, result) => prop_assert!(false, "{expected:?} but {result:?}"),
                    }
                }
                Step::Update { manager, fields } => {
                    known.extend(fields.keys().cloned());
                    let manager = format!("m{manager}");
                    let mut new = object(fields);
                    for port in ["/spec/template/spec/containers/0/ports/0", "/spec/template/spec/containers/0/ports/1", "/spec/template/spec/containers/1/ports/0", "/spec/template/spec/containers/1/ports/1"] {
                        if let Some(port) = new.pointer_mut(port) {
                            port["protocol"] = "TCP".into();
                        }
                    }
                    prop_assume!(live.is_none() || !model.owners.is_empty());
                    track(live.as_ref(), &mut new, &tracking(&manager, second as i64), schema.root());
                    model.update(&format!("{manager} {}", Operation::Update.as_str()), fields);
                    live = Some(new);
                }
            }
            if let Some(live) = &live {
                prop_assert_eq!(Some(flatten(live)), model.object.clone());
                prop_assert_eq!(owners(live, &known), model.owners.clone());
            }
        }
    }

    #[test]
    fn applying_twice_changes_nothing_more(first in fields(), second in fields()) {
        let schema = Schema::builtin_kind("apps", "v1", "Deployment").unwrap();
        let gvk = Gvk::new("apps", "v1", "Deployment");
        let request = |manager, at| Apply { tracking: tracking(manager, at), kind: &gvk, force: true };
        let one = apply(None, &object(&first), &request("one", 1), schema.root()).unwrap();
        let two = apply(Some(&one), &object(&second), &request("two", 2), schema.root()).unwrap();
        let again = apply(Some(&two), &object(&second), &request("two", 3), schema.root()).unwrap();
        prop_assert_eq!(again, two);
    }
}

/// Something like an object of any kind, and something like a set.
fn odd_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a.:\\[\"]{0,3}".prop_map(Value::from),
    ];
    let keys =
        "name|metadata|spec|containers|ports|labels|managedFields|finalizers|\\.|f:spec|k:\\{\\}|v:1|i:0";
    leaf.prop_recursive(5, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(keys, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn odd_configurations_are_refused_or_applied(kind in any::<prop::sample::Index>(), config in odd_json(), live in odd_json(), entries in odd_json(), force in any::<bool>()) {
        let kinds = Kinds::new(skeg_api::builtin::builtin()).snapshot();
        let all: Vec<_> = kinds.iter().collect();
        let kind = all[kind.index(all.len())];
        let identify = |mut value: Value| {
            if !value.is_object() {
                value = Value::Object(Map::new());
            }
            value["apiVersion"] = kind.gvk.api_version().into();
            value["kind"] = (*kind.gvk.kind).into();
            value
        };
        let (config, mut live) = (identify(config), identify(live));
        skeg_api::meta::set(&mut live, "managedFields", json!([{"manager": "m", "operation": "Apply", "fieldsV1": entries}, entries]));
        let request = Apply { tracking: tracking("m", 1), kind: &kind.gvk, force };
        let _ = apply(Some(&live), &config, &request, kind.schema.root());
        let mut scale = json!({});
        skeg_api::fieldset::scale::to_scale(&live, &mut scale, &skeg_api::fieldset::scale::REPLICAS);
        skeg_api::fieldset::scale::to_object(&scale, &mut live, &skeg_api::fieldset::scale::REPLICAS);
    }

    #[test]
    fn odd_bodies_do_not_panic(body in prop::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), Just(b'['), Just(b':'), Just(b'"'), Just(b'\n'), Just(b'-'), Just(b' '), Just(b'&'), Just(b'*'), Just(b'a'), any::<u8>()], 0..40)) {
        let _ = skeg_api::decode::decode_apply(&body);
    }
}
