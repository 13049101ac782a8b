//! A configuration merged into an object that nobody comes to own, as a mutating policy does.
//! Upstream counterpart: `ApplyStructuredMergeDiff` of `plugin/policy/mutating/patch`.

use super::merge::merge;
use super::set::{display_element, field_element, granular, item_schema, merges};
use super::typed;
use crate::schema::SchemaRef;
use serde_json::Value;

/// Merges a configuration into an object.
///
/// # Errors
/// If it does not fit the type, or would replace as a whole what has parts: who names some of them may
/// not know of the others. The object is as it was then.
pub fn configure(live: &mut Value, config: &Value, schema: SchemaRef<'_>) -> Result<(), String> {
    typed::check(config, schema)
        .map_err(|why| format!("failed to convert patch object to typed object: {why}"))?;
    let mut found = Vec::new();
    atomics(config, schema, "", &mut found);
    if !found.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            found.join(", ")
        ));
    }
    merge(live, config, schema);
    Ok(())
}

/// The paths of lists and maps that have one owner for all that is in them.
fn atomics(value: &Value, schema: SchemaRef<'_>, path: &str, found: &mut Vec<String>) {
    let below = |element: &str| {
        let mut path = path.to_owned();
        display_element(element, &mut path);
        path
    };
    match value {
        Value::Object(fields) => {
            if !granular(schema) {
                found.push(path.to_owned());
            }
            for (name, child) in fields {
                if let Some(own) = schema.child(name) {
                    atomics(child, own, &below(&field_element(name)), found);
                }
            }
        }
        Value::Array(items) => {
            if !merges(schema) {
                found.push(path.to_owned());
            }
            for (index, item) in items.iter().enumerate() {
                atomics(item, item_schema(schema), &below(&format!("i:{index}")), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;
    use serde_json::json;

    #[test]
    fn parts_are_merged_and_wholes_are_refused() {
        let deployment = Schema::builtin_kind("apps", "v1", "Deployment").unwrap();
        let live = json!({"metadata": {"name": "a", "labels": {"a": "b"}}, "spec": {"replicas": 1,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        let mut merged = live.clone();
        let config = json!({"metadata": {"labels": {"c": "d"}}, "spec": {"template": {"spec": {
            "initContainers": [{"name": "i"}], "containers": [{"name": "c", "tty": true}]}}}});
        configure(&mut merged, &config, deployment.root()).unwrap();
        assert_eq!(merged["metadata"]["labels"], json!({"a": "b", "c": "d"}));
        let pod = &merged["spec"]["template"]["spec"];
        assert_eq!(pod["containers"], json!([{"name": "c", "image": "x", "tty": true}]));
        assert_eq!(pod["initContainers"], json!([{"name": "i"}]));
        for (config, why) in [
            (
                json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}}),
                "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "command": ["x"]}]}}}}),
                "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: \
                 .spec.template.spec.containers[0].command",
            ),
            (
                json!({"spec": {"nope": 1}}),
                "failed to convert patch object to typed object: .spec.nope: field not declared in schema",
            ),
        ] {
            let mut object = live.clone();
            assert_eq!(configure(&mut object, &config, deployment.root()), Err(why.to_owned()));
            assert_eq!(object, live);
        }
    }
}
