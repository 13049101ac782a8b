//! The parts of a Pod that have subresources of their own: what they change and what they must not.

use super::at::{At, Errors, same};
use super::pod::{self, MIRROR, changed_paths};
use super::pod_resize::RESIZE;
use crate::field::{FieldError, Path};
use crate::meta;
use crate::portion::Portion;
use serde_json::Value;

pub(super) const PORTIONS: &[Portion] = &[
    Portion {
        name: "ephemeralcontainers",
        fields: &[&["spec", "ephemeralContainers"]],
        take: take_ephemeral_containers,
        validate: validate_ephemeral_containers,
    },
    RESIZE,
];

fn take_ephemeral_containers(new: &Value, old: &Value) -> Value {
    let mut made = old.clone();
    let list = new.get("spec").and_then(|spec| spec.get("ephemeralContainers")).cloned();
    if let Some(spec) = made.get_mut("spec").and_then(Value::as_object_mut) {
        match list {
            Some(list) => spec.insert("ephemeralContainers".into(), list),
            None => spec.remove("ephemeralContainers"),
        };
    }
    made
}

/// Ephemeral containers are only ever added.
fn validate_ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    if meta::annotation(old, MIRROR).is_some() {
        let why = "static pods do not support ephemeral containers";
        return vec![FieldError::forbidden(Path::new(""), why)];
    }
    let mut errors = Errors(pod::validate(new));
    let (spec, old_spec) = (At::root(new).child("spec"), At::root(old).child("spec"));
    for had in old_spec.items("ephemeralContainers") {
        let name = had.str("name");
        let kept = spec.items("ephemeralContainers").find(|now| now.str("name") == name);
        let why = match kept {
            None => format!("existing ephemeral containers {name:?} may not be removed\n"),
            Some(now) if !same(Some(now.value), Some(had.value)) => {
                let changes = changed_paths(now.value, had.value, &Path::root()).join("\n");
                format!("existing ephemeral containers {name:?} may not be changed\n{changes}")
            }
            Some(_) => continue,
        };
        errors.forbidden(spec.at("ephemeralContainers"), why);
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(name: &str, more: Value) -> Value {
        let mut container = json!({"name": name, "image": "i", "imagePullPolicy": "IfNotPresent",
            "terminationMessagePolicy": "File"});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        container
    }

    fn pod(ephemeral: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "containers": [container("main", json!({}))], "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "terminationGracePeriodSeconds": 30, "ephemeralContainers": ephemeral}})
    }

    fn told(new: &Value, old: &Value) -> Vec<String> {
        let errors = validate_ephemeral_containers(new, old);
        errors.iter().map(|e| format!("{}: {}", e.path, e.message())).collect()
    }

    #[test]
    fn ephemeral_containers_are_only_added() {
        let (one, two) =
            (container("one", json!({})), container("two", json!({"targetContainerName": "main"})));
        let (none, first, both) = (pod(json!([])), pod(json!([one])), pod(json!([two, one])));
        assert_eq!(told(&first, &none), [""; 0]);
        assert_eq!(told(&both, &first), [""; 0], "in any order");
        let path = "spec.ephemeralContainers: Forbidden: existing ephemeral containers";
        assert_eq!(told(&none, &first), [format!("{path} \"one\" may not be removed\n")]);
        let changed = pod(json!([container("one", json!({"image": "other"}))]));
        let said = told(&changed, &first).remove(0);
        assert!(
            said.starts_with(&format!("{path} \"one\" may not be changed\n")) && said.contains("image"),
            "{said}"
        );
        let mut mirror = none;
        mirror["metadata"]["annotations"] = json!({MIRROR: "x"});
        assert_eq!(
            told(&first, &mirror),
            ["<nil>: Forbidden: static pods do not support ephemeral containers"]
        );
    }

    #[test]
    fn ephemeral_containers_serve_nobody() {
        let check = |more: Value| told(&pod(json!([container("debug", more)])), &pod(json!([])));
        let probe = json!({"tcpSocket": {"port": 1}, "successThreshold": 1});
        for (field, value) in [
            ("ports", json!([{"containerPort": 1, "protocol": "TCP"}])),
            ("resources", json!({"limits": {"cpu": "1"}})),
            ("livenessProbe", probe.clone()),
            ("readinessProbe", probe.clone()),
            ("startupProbe", probe),
            ("lifecycle", json!({"preStop": {"sleep": {"seconds": 1}}})),
            ("resizePolicy", json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}])),
            ("restartPolicy", json!("Always")),
        ] {
            let expected = format!(
                "spec.ephemeralContainers[0].{field}: Forbidden: cannot be set for an Ephemeral Container"
            );
            assert_eq!(check(json!({field: value})), [expected]);
        }
        assert_eq!(
            check(json!({"securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}}, "tty": true})),
            [""; 0]
        );
        assert_eq!(
            check(json!({"targetContainerName": "none"})),
            ["spec.ephemeralContainers[0].targetContainerName: Not found: \"none\""]
        );
        assert_eq!(
            check(json!({"name": "main"})),
            ["spec.ephemeralContainers[0].name: Duplicate value: \"main\""]
        );
    }

    #[test]
    fn only_the_list_is_taken() {
        let mut new = pod(json!([container("debug", json!({}))]));
        new["spec"]["containers"][0]["image"] = "other".into();
        new["status"] = json!({"phase": "Failed"});
        let old = pod(json!([]));
        let made = take_ephemeral_containers(&new, &old);
        assert_eq!(made["spec"]["ephemeralContainers"], new["spec"]["ephemeralContainers"]);
        assert_eq!(
            (&made["spec"]["containers"], &made["status"]),
            (&old["spec"]["containers"], &Value::Null)
        );
    }
}
