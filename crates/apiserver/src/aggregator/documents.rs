//! What another server says of its resources, in the forms in which this one tells it.
//! Upstream counterpart: `kube-aggregator/pkg/apiserver/handler_discovery.go`,
//! `pkg/controllers/{openapi,openapiv3}/aggregator`.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const DEFINITION: &str = "#/definitions/";

/// An APIResourceList as the resources of aggregated discovery.
pub(super) fn resources(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let all = || list["resources"].as_array().into_iter().flatten();
    let kind_of = |row: &Value| {
        let or = |field: &str, own: &str| match row[field].as_str() {
            None | Some("") => own.to_owned(),
            Some(other) => other.to_owned(),
        };
        json!({"group": or("group", group), "version": or("version", version), "kind": row["kind"]})
    };
    let name = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    let mut out = Vec::new();
    for row in all().filter(|row| !name(row).contains('/')) {
        let scope = if row["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut resource = json!({"resource": row["name"], "responseKind": kind_of(row), "scope": scope,
            "singularResource": row["singularName"], "verbs": row["verbs"]});
        for field in ["shortNames", "categories"] {
            if row[field].as_array().is_some_and(|list| !list.is_empty()) {
                resource[field] = row[field].clone();
            }
        }
        let prefix = format!("{}/", name(row));
        let subresources: Vec<Value> = all()
            .filter_map(|sub| Some((name(sub).strip_prefix(&prefix)?.to_owned(), sub)))
            .map(|(name, sub)| json!({"subresource": name, "responseKind": kind_of(sub), "verbs": sub["verbs"]}))
            .collect();
        if !subresources.is_empty() {
            resource["subresources"] = subresources.into();
        }
        out.push(resource);
    }
    out
}

/// Of an index of OpenAPI v3, the entry of a group version.
pub(super) fn openapi_v3(index: &Value, root: &str) -> Option<Value> {
    let entry = index["paths"].get(root.trim_start_matches('/'))?;
    entry["serverRelativeURL"].is_string().then(|| entry.clone())
}

/// Of a document of OpenAPI v2, what is below `root`.
pub(super) fn openapi_v2(mut document: Value, root: &str) -> Option<Value> {
    let paths = document.get_mut("paths")?.as_object_mut()?;
    paths.retain(|path, _| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    let mut kept = json!({"paths": Value::Object(std::mem::take(paths))});
    kept["definitions"] = document.get_mut("definitions").map(Value::take).unwrap_or_default();
    Some(kept)
}

/// Adds what another server says. A definition whose name is taken by another one gets a name of
/// its own.
pub(crate) fn merge_v2(into: &mut Value, other: &Value) {
    let none = Map::new();
    let theirs = other["definitions"].as_object().unwrap_or(&none);
    let ours = into["definitions"].as_object().unwrap_or(&none);
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for (name, definition) in theirs {
        let own = match ours.get(name) {
            Some(taken) if taken != definition => (2..)
                .map(|n| format!("{name}_v{n}"))
                .find(|other| !ours.contains_key(other) && !theirs.contains_key(other))
                .unwrap_or_default(),
            _ => name.clone(),
        };
        names.insert(name, own);
    }
    for (part, value) in [("paths", &other["paths"]), ("definitions", &other["definitions"])] {
        for (name, value) in value.as_object().unwrap_or(&none) {
            let name = if part == "definitions" { names[name.as_str()].clone() } else { name.clone() };
            let mut value = value.clone();
            rename(&mut value, &names);
            if into[part].get(&name).is_none() {
                into[part][name] = value;
            }
        }
    }
}

fn rename(value: &mut Value, names: &BTreeMap<&str, String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                if field == "$ref"
                    && let Some(name) = value.as_str().and_then(|to| to.strip_prefix(DEFINITION))
                    && let Some(own) = names.get(name)
                {
                    *value = format!("{DEFINITION}{own}").into();
                } else {
                    rename(value, names);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| rename(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_aggregated_discovery() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"], "shortNames": ["fl"]},
            {"name": "flunders/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"]}]});
        let expected = json!([{"resource": "flunders", "singularResource": "flunder", "scope": "Namespaced", "verbs": ["get"],
            "shortNames": ["fl"], "responseKind": {"group": "g", "version": "v1", "kind": "Flunder"},
            "subresources": [{"subresource": "scale", "verbs": ["get"],
                "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}]}]);
        assert_eq!(Value::Array(resources(&list, "g", "v1")), expected);
    }

    #[test]
    fn documents_are_merged_and_names_stay_apart() {
        let reference = |name: &str| json!({"$ref": format!("{DEFINITION}{name}")});
        let theirs = json!({"paths": {"/apis/g/v1/x": reference("A"), "/apis/g/v10/x": {}, "/other": {}},
            "definitions": {"A": {"theirs": reference("B")}, "B": {}}});
        let kept = openapi_v2(theirs, "/apis/g/v1").unwrap();
        assert_eq!(kept["paths"].as_object().unwrap().len(), 1);
        let mut into = json!({"paths": {"/api": {}}, "definitions": {"A": {"ours": 1}, "B": {}}});
        merge_v2(&mut into, &kept);
        assert_eq!(into["paths"], json!({"/api": {}, "/apis/g/v1/x": reference("A_v2")}));
        assert_eq!(
            into["definitions"],
            json!({"A": {"ours": 1}, "B": {}, "A_v2": {"theirs": reference("B")}})
        );
    }
}
