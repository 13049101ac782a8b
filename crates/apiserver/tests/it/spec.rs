//! What is served against what upstream documents, where its files are at hand: discovery and OpenAPI.
//! Each difference is a line; those that stay are told, with the reason, in COMPAT.md.

use crate::harness::{Server, start_assembled};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const AGGREGATED: (&str, &str) =
    ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
const TOLD: &str = include_str!("../../../../COMPAT.md");
const TABLE: &str = "### Differences from upstream's documents";
/// Lists whose order says nothing, and by what their items are known.
const SETS: [(&str, &[&str]); 10] = [
    ("parameters", &["in", "name"]),
    ("resources", &["resource"]),
    ("subresources", &["subresource"]),
    ("required", &[]),
    ("produces", &[]),
    ("consumes", &[]),
    ("verbs", &[]),
    ("categories", &[]),
    ("shortNames", &[]),
    ("x-kubernetes-group-version-kind", &["group", "version", "kind"]),
];
/// Whatever a text says, it is not the same one.
const TEXTS: &str = "description";

/// The lines in which two documents differ.
#[derive(Default)]
struct Differences(BTreeSet<String>);

impl Differences {
    fn compare(&mut self, at: &str, theirs: &Value, ours: &Value) {
        match (theirs, ours) {
            (Value::Object(theirs), Value::Object(ours)) => {
                let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
                for name in names {
                    let at = format!("{at} {name}");
                    match (theirs.get(name), ours.get(name)) {
                        (Some(theirs), Some(ours)) => self.compare(&at, theirs, ours),
                        (Some(theirs), None) => self.tell(format!("{at}: absent{}", leaf(theirs))),
                        (None, ours) => {
                            self.tell(format!("{at}: added{}", leaf(ours.unwrap_or(&Value::Null))))
                        }
                    }
                }
            }
            _ if theirs != ours => self.tell(format!("{at}: {theirs} is {ours}")),
            _ => {}
        }
    }

    fn tell(&mut self, line: String) {
        self.0.insert(line);
    }
}

/// What a difference says of a value: nothing of what has parts.
fn leaf(value: &Value) -> String {
    match value {
        Value::Object(_) | Value::Bool(true) => String::new(),
        value => format!(" {value}"),
    }
}

/// A document in the form in which it is compared: no texts, no references to parameters, sets as maps.
fn normal(value: &Value, parameters: &Map<String, Value>) -> Value {
    match value {
        Value::Object(map) => {
            let known = map.get("$ref").and_then(Value::as_str);
            if let Some(name) = known.and_then(|known| known.strip_prefix("#/parameters/")) {
                return normal(&parameters[name], parameters);
            }
            let mut map = map.clone();
            // Whether a parameter stands at a path or at each of its operations is the same.
            let is_operation = map.contains_key("responses");
            if let Some(Value::Array(shared)) = (!is_operation).then(|| map.remove("parameters")).flatten() {
                for operation in map.values_mut().filter(|value| value.get("responses").is_some()) {
                    match operation["parameters"].as_array_mut() {
                        Some(own) => own.extend(shared.iter().cloned()),
                        None => operation["parameters"] = shared.clone().into(),
                    }
                }
            }
            // What a request without a body consumes says nothing.
            let is_body = |one: &Value| {
                one["in"] == "body" || one["$ref"].as_str().is_some_and(|at| at.contains("/body-"))
            };
            if !map.get("parameters").and_then(Value::as_array).is_some_and(|all| all.iter().any(is_body)) {
                map.remove("consumes");
            }
            map.iter()
                .filter(|(name, value)| *name != TEXTS || !value.is_string())
                .map(|(name, value)| (name.clone(), set(name, normal(value, parameters))))
                .collect()
        }
        Value::Array(items) => items.iter().map(|item| normal(item, parameters)).collect(),
        other => other.clone(),
    }
}

fn set(name: &str, value: Value) -> Value {
    let (Some((_, keys)), Value::Array(items)) = (SETS.iter().find(|(set, _)| *set == name), &value) else {
        return value;
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let key = |item: &Value| match keys {
        [] => text(item),
        keys => keys.iter().map(|key| text(&item[*key])).collect::<Vec<_>>().join(" "),
    };
    let of = |item: &Value| if keys.is_empty() { true.into() } else { item.clone() };
    items.iter().map(|item| (key(item), of(item))).collect()
}

fn normalized(document: &Value) -> Value {
    let none = Map::new();
    let parameters = document["parameters"].as_object().unwrap_or(&none);
    json!({"paths": normal(&document["paths"], parameters), "definitions": normal(&document["definitions"], &none)})
}

/// What version 3 says, in the form of version 2, which has no defaults and one type for each value.
fn as_version_2(value: &Value) -> Value {
    let Value::Object(map) = value else {
        return match value {
            Value::Array(items) => items.iter().map(as_version_2).collect(),
            Value::String(text) => text.replace("#/components/schemas/", "#/definitions/").into(),
            other => other.clone(),
        };
    };
    let named = |value: &Value| match value {
        // Names of fields are no words of the schema.
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), as_version_2(value))).collect()
        }
        other => other.clone(),
    };
    let of =
        |name: &str, value: &Value| if name == "properties" { named(value) } else { as_version_2(value) };
    let mut out: Map<String, Value> =
        map.iter().map(|(name, value)| (name.clone(), of(name, value))).collect();
    out.remove("default");
    if out.remove("oneOf").is_some() {
        out.insert("type".into(), "string".into());
    }
    // A reference with something beside it.
    if let Some(Value::Array(all)) = out.remove("allOf") {
        out.extend(all.into_iter().filter_map(|one| one.as_object().cloned()).flatten());
    }
    if let Some(schema) = out.get("schema").cloned().filter(|_| out.contains_key("in")) {
        out.remove("schema");
        out.extend(schema.as_object().cloned().into_iter().flatten());
    }
    let content = |out: &mut Map<String, Value>| match out.remove("content") {
        Some(Value::Object(content)) => {
            let types: Value = content.keys().cloned().collect();
            content.values().next().map(|one| (types, one["schema"].clone()))
        }
        _ => None,
    };
    let Some(Value::Object(responses)) = out.get_mut("responses") else { return out.into() };
    let mut produces = None;
    for response in responses.values_mut().filter_map(Value::as_object_mut) {
        if let Some((types, schema)) = content(response) {
            response.insert("schema".into(), schema);
            produces = Some(types);
        }
    }
    out.extend(produces.map(|types| ("produces".to_owned(), types)));
    out.insert("schemes".into(), json!(["https"]));
    if let Some(Value::Object(mut body)) = out.remove("requestBody") {
        let (types, schema) = content(&mut body).expect("a body has a type");
        body.extend(
            json!({"in": "body", "name": "body", "schema": schema})
                .as_object()
                .cloned()
                .into_iter()
                .flatten(),
        );
        out.insert("consumes".into(), types);
        if let Some(parameters) = out.entry("parameters").or_insert_with(|| json!([])).as_array_mut() {
            parameters.push(body.into());
        }
    }
    out.into()
}

/// A row of the table: lines that begin, go on and end like the parts between its stars.
fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// The differences that COMPAT.md tells, as the first cells of its table.
fn told() -> Vec<&'static str> {
    let table =
        TOLD.split(TABLE).nth(1).expect("COMPAT.md has the table").split("\n#").next().unwrap_or_default();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split("` |").next());
    cells.collect()
}

fn read(dir: &str, name: &str) -> Value {
    let path = Path::new(dir).join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

/// Groups by name, of which each has its versions in their order and by name.
fn by_name(list: &Value) -> Value {
    let groups = list["items"].as_array().unwrap().iter().map(|group| {
        let versions = group["versions"].as_array().unwrap().iter();
        let names: Vec<&str> = versions.clone().map(|version| version["version"].as_str().unwrap()).collect();
        let of: Map<String, Value> = names
            .iter()
            .zip(versions)
            .map(|(name, version)| ((*name).to_owned(), normal(version, &Map::new())))
            .collect();
        (
            group["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            json!({"order": names, "versions": of}),
        )
    });
    Value::Object(groups.collect())
}

/// What is in a group version, from its own list of resources in the form of the aggregated one.
async fn resources(s: &Server, group: &str, version: &str) -> Value {
    let list = s.get(&format!("/apis/{group}/{version}")).await.expect(200);
    let (mut out, mut below) = (Map::new(), BTreeMap::<String, Vec<Value>>::new());
    for resource in list["resources"].as_array().unwrap() {
        let name = resource["name"].as_str().unwrap();
        let text = |field: &str| resource[field].as_str().unwrap_or_default();
        let kind = json!({"group": text("group"), "version": text("version"), "kind": resource["kind"]});
        let mut row = json!({"responseKind": kind, "verbs": resource["verbs"]});
        if let Some((of, name)) = name.split_once('/') {
            row["subresource"] = name.into();
            below.entry(of.to_owned()).or_default().push(row);
            continue;
        }
        row["resource"] = name.into();
        row["scope"] = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" }.into();
        for (field, of) in
            [("singularResource", "singularName"), ("shortNames", "shortNames"), ("categories", "categories")]
        {
            if !resource[of].is_null() {
                row[field] = resource[of].clone();
            }
        }
        out.insert(name.to_owned(), row);
    }
    for (of, rows) in below {
        out[&of]["subresources"] = rows.into();
    }
    let rows: Vec<Value> = out.into_iter().map(|(_, row)| row).collect();
    normal(&json!({"resources": rows}), &Map::new())
}

#[tokio::test]
async fn documents_agree_with_upstreams() {
    let Ok(dir) = std::env::var("SKEG_SPEC_DIR") else { return };
    let s = start_assembled(Arc::new(skeg_store::Memory::new())).await;
    let mut found = Differences::default();
    // Discovery, aggregated and by group version.
    let theirs = by_name(&read(&dir, "discovery.json"));
    let ours = by_name(&s.send("GET", "/apis", &[AGGREGATED], "").await.expect(200));
    found.compare("discovery", &theirs, &ours);
    for (group, of) in ours.as_object().unwrap() {
        for (version, own) in of["versions"].as_object().unwrap() {
            let mut list = Differences::default();
            let listed = resources(&s, group, version).await;
            list.compare(&format!("list {group} {version}"), &own["resources"], &listed["resources"]);
            // What both say differently from upstream is told once.
            found.0.extend(list.0);
        }
    }
    // OpenAPI, both versions.
    let theirs = normalized(&read(&dir, "swagger.json"));
    let ours = s.get("/openapi/v2").await.expect(200);
    found.compare("v2", &theirs, &normalized(&ours));
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    let index = s.get("/openapi/v3").await.expect(200);
    for entry in index["paths"].as_object().unwrap().values() {
        let document = s.get(entry["serverRelativeURL"].as_str().unwrap()).await.expect(200);
        paths.extend(as_version_2(&document["paths"]).as_object().cloned().unwrap_or_default());
        let of = as_version_2(&document["components"]["schemas"]);
        schemas.extend(of.as_object().cloned().unwrap_or_default());
    }
    found.compare("v3", &theirs, &normalized(&json!({"paths": paths, "definitions": schemas})));
    let (mut counts, mut untold) = (BTreeMap::<&str, usize>::new(), Vec::new());
    let rows = told();
    for line in &found.0 {
        match rows.iter().find(|row| matches(row, line)) {
            Some(row) => *counts.entry(row).or_default() += 1,
            None => untold.push(line.as_str()),
        }
    }
    println!("{} differences, by the rows of COMPAT.md: {counts:#?}", found.0.len());
    let idle: Vec<_> = rows.iter().filter(|row| !counts.contains_key(**row)).collect();
    assert!(
        untold.is_empty(),
        "{} differences that COMPAT.md does not tell:\n{}",
        untold.len(),
        untold.join("\n")
    );
    assert!(idle.is_empty(), "COMPAT.md tells differences that there are not: {idle:?}");
}

#[test]
fn a_difference_is_found_and_told() {
    let mut found = Differences::default();
    let theirs = json!({"paths": {"/a": {"get": {"parameters": [{"in": "query", "name": "x", "description": "y"}], "produces": ["a", "b"], "responses": {}}}}});
    let ours = json!({"paths": {"/a": {"get": {"parameters": [{"in": "query", "name": "x", "type": "string"}], "produces": ["b"], "responses": {}}}, "/b": {}}});
    found.compare("v2", &normalized(&theirs), &normalized(&ours));
    let lines: Vec<&str> = found.0.iter().map(String::as_str).collect();
    assert_eq!(
        lines,
        [
            "v2 paths /a get parameters query x type: added \"string\"",
            "v2 paths /a get produces a: absent",
            "v2 paths /b: added",
        ]
    );
    assert!(matches("v* paths */a get produces a: absent", lines[1]));
    assert!(!matches("v* paths */a get produces: absent", lines[1]) && !matches("v2 paths /b", lines[2]));
}

/// Documents tell what is served: no other method of their paths does anything.
#[tokio::test]
async fn methods_that_are_not_told_are_not_served() {
    let s = start_assembled(Arc::new(skeg_store::Memory::new())).await;
    let index = s.get("/openapi/v3").await.expect(200);
    let (mut asked, mut served) = (0, Vec::new());
    for document in index["paths"].as_object().unwrap().keys() {
        let document = s.get(&format!("/openapi/v3/{document}")).await.expect(200);
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            let url = path.replace("{namespace}", "default").replace("{name}", "x").replace("{path}", "x");
            for method in ["get", "post", "put", "patch", "delete"] {
                if item.get(method).is_some() {
                    continue;
                }
                asked += 1;
                let json = [("content-type", "application/merge-patch+json")];
                let answer = s.send(&method.to_uppercase(), &url, &json, "{}").await;
                if !matches!(answer.code, 404 | 405) {
                    served.push(format!("{method} {path}: {}", answer.code));
                }
            }
        }
    }
    assert!(served.is_empty() && asked > 500, "{asked} were asked, and served: {served:#?}");
}
