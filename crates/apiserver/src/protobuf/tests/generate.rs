//! Objects of every kind, made up from the schema table, through protobuf and back.

use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, json};
use skeg_api::schema::{Format, SchemaRef, Shape};
use std::cell::RefCell;
use std::collections::BTreeSet;

const SCHEMAS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// The ends of what Go's times reach, the moment of which all numbers are zero, and around it.
const TIMES: [&str; 6] = [
    "0001-01-01T00:00:01Z",
    "1969-12-31T23:59:59Z",
    "1970-01-01T00:00:00Z",
    "2026-01-02T03:04:05Z",
    "2038-01-19T03:14:08Z",
    "9999-12-30T21:59:59Z",
];
const MICRO_TIMES: [&str; 5] = [
    "1969-12-31T23:59:59.123456Z",
    "1970-01-01T00:00:00.000000Z",
    "1970-01-01T00:00:00.000001Z",
    "2026-01-02T03:04:05.000000Z",
    "2026-01-02T03:04:05.999999Z",
];
const QUANTITIES: [&str; 10] =
    ["0", "1500m", "2Gi", "-1", "1n", "-5u", "9223372036854775807", "12e6", "1E", "0.000000001Ki"];

/// Numbers that follow from a seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        // Steele, Lea, Flood: SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn text(&mut self) -> String {
        let texts = ["", "a", "web-0", "Grüße \"quoted\" \\ \n\t", "日本", &"long ".repeat(40)];
        texts[self.below(texts.len() as u64) as usize].to_owned()
    }

    fn json(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"a": [1, 2.5, null, {"b": "c\n"}], "f:metadata": {"f:name": {}}}),
            1 => json!([[], {}, [{"": [i64::MIN, u64::MAX, 1e300]}]]),
            2 => json!("text \u{1f980}\u{0}"),
            _ => json!(false),
        }
    }
}

/// A value of a type. Lists and maps are not empty: in protobuf, as in Go's JSON, these are absent.
/// `known` says which properties there are.
pub fn value(
    schema: SchemaRef<'_>,
    dice: &mut Dice,
    depth: u32,
    known: &dyn Fn(&str, &str) -> bool,
) -> Value {
    let own = schema.type_name().unwrap_or_default();
    let inner = |dice: &mut Dice| match Schema::builtin(SCHEMAS) {
        Some(schema) => value(schema.root(), dice, depth + 2, known),
        None => Value::Null,
    };
    match own.rsplit('.').next().unwrap_or_default() {
        "JSONSchemaPropsOrBool" if dice.below(2) == 0 => return (dice.below(2) == 0).into(),
        "JSONSchemaPropsOrArray" if dice.below(2) == 0 => return vec![inner(dice), inner(dice)].into(),
        "JSONSchemaPropsOrStringArray" if dice.below(2) == 0 => return json!(["a", ""]),
        name if name.starts_with("JSONSchemaPropsOr") => return inner(dice),
        "JSON" | "RawExtension" => return dice.json(),
        _ => {}
    }
    match (schema.shape(), schema.format()) {
        (Shape::Any, _) => dice.json(),
        (Shape::Object, _) if schema.preserve_unknown() && schema.properties().len() == 0 => dice.json(),
        (Shape::Object, _) => {
            let mut object = Map::new();
            // An object within an object has no types of its own in protobuf.
            let message = TABLE.by_name.get(own).map(|of| &TABLE.messages[*of]);
            let in_message = |name: &str| {
                !matches!(name, "apiVersion" | "kind")
                    || message.is_none_or(|message| message.named(name.as_bytes()).is_some())
            };
            for property in schema.properties().filter(|property| in_message(property.name)) {
                // What has nothing below it does no harm at any depth.
                let is_leaf = property.schema.items().is_none() && property.schema.properties().len() == 0;
                // A schema within a schema would go on for long.
                let chance = match (depth < 6 || is_leaf, own == SCHEMAS) {
                    (true, _) => 2,
                    (false, true) => depth.into(),
                    (false, false) => 3,
                };
                if dice.below(chance) == 0 && depth < 12 && known(own, property.name) {
                    object.insert(property.name.into(), value(property.schema, dice, depth + 1, known));
                }
            }
            object.into()
        }
        (Shape::Map, _) => {
            let items = schema.items().unwrap();
            let keys = ["", "key", "example.com/name"];
            let count = 1 + dice.below(2) as usize;
            keys[..count]
                .iter()
                .map(|key| ((*key).to_owned(), value(items, dice, depth + 1, known)))
                .collect()
        }
        (Shape::Array, _) => {
            let items = schema.items().unwrap();
            (0..1 + dice.below(2)).map(|_| value(items, dice, depth + 1, known)).collect()
        }
        (Shape::String, Format::Byte) => {
            let most = [1, 4, 200][dice.below(3) as usize];
            let bytes: Vec<u8> = (0..dice.below(most)).map(|_| dice.below(256) as u8).collect();
            STANDARD.encode(bytes).into()
        }
        (Shape::String, Format::Time) => dice.one_of(&TIMES).into(),
        (Shape::String, Format::MicroTime) => dice.one_of(&MICRO_TIMES).into(),
        (Shape::String, _) => dice.text().into(),
        (Shape::Integer, Format::Int32) => match dice.below(5) {
            0 => dice.one_of(&[0, 1, -1, i32::MIN, i32::MAX]).into(),
            _ => (dice.below(u64::from(u32::MAX)) as i32).into(),
        },
        (Shape::Integer, _) => match dice.below(5) {
            0 => dice.one_of(&[0, 1, -1, i64::MIN, i64::MAX]).into(),
            _ => (dice.below(u64::MAX) as i64 >> dice.below(64)).into(),
        },
        (Shape::Number, _) => (dice.below(1000) as f64 + 0.5).into(),
        (Shape::Boolean, _) => (dice.below(2) == 0).into(),
        (Shape::IntOrString, _) if dice.below(2) == 0 => dice.text().into(),
        (Shape::IntOrString, _) => (dice.below(70000) as i32 - 2000).into(),
        (Shape::Quantity, _) => dice.one_of(&QUANTITIES).into(),
    }
}

/// Every kind of the schema table that has a message, as `apiVersion`, kind and schema.
pub fn kinds() -> Vec<(String, String, Schema)> {
    let mut kinds = Vec::new();
    for definition in Schema::builtin_definitions() {
        for (group, version, kind) in definition.gvks() {
            let version = GroupVersion::new(group, version).to_string();
            if message_of(&version, kind).is_some() && !kind.ends_with("Options") && kind != "WatchEvent" {
                let schema = Schema::builtin(definition.name()).unwrap();
                kinds.push((version, kind.to_owned(), schema));
            }
        }
    }
    kinds
}

/// An object of a kind.
pub fn object(
    (version, kind, schema): &(String, String, Schema),
    dice: &mut Dice,
    known: &dyn Fn(&str, &str) -> bool,
) -> Value {
    let mut object = value(schema.root(), dice, 0, known);
    object["apiVersion"] = version.as_str().into();
    object["kind"] = kind.as_str().into();
    object
}

/// Runs of objects of every kind, each from the numbers of its seed.
const RUNS: u64 = 250;

#[test]
fn nothing_is_lost() {
    for seed in 0..RUNS {
        let mut dice = Dice(seed);
        for kind in kinds() {
            let object = object(&kind, &mut dice, &|_, _| true);
            let bytes = encode(&object).unwrap();
            assert_eq!(to_value(&bytes).unwrap(), object, "seed {seed}");
        }
    }
}

/// The fields below a type, by the type's name and theirs.
fn fields(schema: SchemaRef<'_>, out: &mut BTreeSet<(String, String)>) {
    let own = schema.type_name().unwrap_or_default().to_owned();
    for property in schema.properties() {
        let types = matches!(property.name, "apiVersion" | "kind");
        if !types && out.insert((own.clone(), property.name.to_owned())) {
            fields(property.schema, out);
        }
    }
    schema.items().into_iter().for_each(|items| fields(items, out));
}

/// Each field of each kind is in one of the objects.
#[test]
fn no_field_is_left_out() {
    let (all, made) = (RefCell::new(BTreeSet::new()), RefCell::new(BTreeSet::new()));
    kinds().iter().for_each(|(_, _, schema)| fields(schema.root(), &mut all.borrow_mut()));
    let note = |of: &str, name: &str| {
        made.borrow_mut().insert((of.to_owned(), name.to_owned()));
        true
    };
    for seed in 0..RUNS {
        let mut dice = Dice(seed);
        kinds().iter().for_each(|kind| drop(object(kind, &mut dice, &note)));
    }
    let all = all.into_inner();
    let left: Vec<_> = all.difference(&made.into_inner()).cloned().collect();
    assert!(all.len() > 1500 && left.is_empty(), "{} of {}: {left:?}", left.len(), all.len());
}

#[test]
fn every_kind_is_among_them() {
    let kinds = kinds();
    for row in skeg_api::builtin::builtin() {
        let (version, kind) = (row.gvk.api_version(), &*row.gvk.kind);
        assert!(kinds.iter().any(|(v, k, _)| *v == version && k == kind), "{version} {kind}");
    }
    for kind in
        ["CustomResourceDefinition", "FlowSchema", "ResourceSlice", "MutatingAdmissionPolicy", "APIService"]
    {
        assert!(kinds.iter().any(|(_, k, _)| k == kind), "{kind}");
    }
}
