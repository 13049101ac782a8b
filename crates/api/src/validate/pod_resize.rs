//! `pods/resize`: the cpu and memory of a Pod and its containers, and what is to happen to a
//! container when they change. Nothing is removed, and the QoS class stays.

use super::at::{At, Errors, same};
use super::pod::{self, MIRROR};
use crate::field::{FieldError, Path};
use crate::portion::Portion;
use crate::{meta, pod as pods, predicates};
use serde_json::{Map, Value};

const LISTS: [&str; 2] = ["containers", "initContainers"];

pub(super) const RESIZE: Portion = Portion {
    name: "resize",
    fields: &[
        &["spec", "resources"],
        &["spec", "containers", "*", "resources"],
        &["spec", "containers", "*", "resizePolicy"],
        &["spec", "initContainers", "*", "resources"],
        &["spec", "initContainers", "*", "resizePolicy"],
    ],
    take,
    validate,
};

fn put(into: &mut Map<String, Value>, field: &str, value: Option<&Value>) {
    match value {
        Some(value) => into.insert(field.to_owned(), value.clone()),
        None => into.remove(field),
    };
}

/// Where containers are not the old ones, one by one, the new lists stay: validation tells of it.
fn take(new: &Value, old: &Value) -> Value {
    let mut made = old.clone();
    let (new, old) = (At::root(new).child("spec"), At::root(old).child("spec"));
    let Some(spec) = made.get_mut("spec").and_then(Value::as_object_mut) else { return made };
    put(spec, "resources", new.value.get("resources"));
    for list in LISTS {
        let (now, had) = (new.list(list), old.list(list));
        if now.len() != had.len() || now.iter().zip(had).any(|(now, had)| now["name"] != had["name"]) {
            put(spec, list, new.value.get(list));
            continue;
        }
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, now) in containers.zip(now) {
            let Some(container) = container.as_object_mut() else { continue };
            put(container, "resources", now.get("resources"));
            put(container, "resizePolicy", now.get("resizePolicy"));
        }
    }
    made
}

fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let (spec, old_spec) = (At::root(new).child("spec"), At::root(old).child("spec"));
    let whole = |why: &str| vec![FieldError::forbidden(Path::new(""), why)];
    if meta::annotation(old, MIRROR).is_some() {
        return whole("static pods cannot be resized");
    }
    if old_spec.child("os").str("name") == "windows" {
        return whole("windows pods cannot be resized");
    }
    let mut errors = Errors(pod::validate(new));
    if pods::qos_class(new) != pods::qos_class(old) {
        let class = new.get("status").and_then(|s| s.get("qosClass")).cloned().unwrap_or_default();
        errors.invalid(spec.path.clone(), class, "Pod QOS Class may not change as a result of resizing");
    }
    if !is_supported(old) {
        errors.forbidden(spec.path.clone(), "Pod running on node without support for resize");
    }
    own_resources(&spec, &old_spec, &mut errors);
    let before = errors.0.len();
    for list in LISTS {
        same_containers(&spec, &old_spec, list, &mut errors);
    }
    if errors.0.len() == before {
        for list in LISTS {
            for (now, had) in spec.items(list).zip(old_spec.items(list)) {
                container(&now, &had, list == "initContainers", &spec, &mut errors);
            }
        }
    }
    errors.0
}

/// A node that shows the resources of what runs can change them.
fn is_supported(pod: &Value) -> bool {
    let status = At::root(pod).child("status");
    let running = status.items("containerStatuses").find(|c| c.child("state").has("running"));
    running.is_none_or(|running| running.has("resources"))
}

fn same_containers(new: &At<'_>, old: &At<'_>, list: &str, errors: &mut Errors) {
    if new.list(list).len() != old.list(list).len() {
        return errors.forbidden(new.at(list), format!("{list} may not be added or removed on resize"));
    }
    for (now, had) in new.items(list).zip(old.items(list)) {
        if now.str("name") != had.str("name") {
            errors.forbidden(now.at("name"), format!("{list} may not be renamed or reordered on resize"));
        }
    }
}

/// The resources of the Pod as a whole.
fn own_resources(new: &At<'_>, old: &At<'_>, errors: &mut Errors) {
    let is_set = |spec: &At<'_>| {
        ["requests", "limits"].iter().any(|list| spec.child("resources").entries(list).next().is_some())
    };
    if !is_set(new) && !is_set(old) {
        return;
    }
    let (now, had) = (new.child("resources"), old.child("resources"));
    if old.has("resources") && !new.has("resources") {
        return errors.forbidden(now.path, "pod-level resources cannot be removed");
    }
    for (list, what) in [("requests", "requests"), ("limits", "limits")] {
        if is_removed(&now, &had, list) {
            errors.forbidden(now.at(list), format!("pod-level resource {what} cannot be removed"));
        }
    }
    if !same(Some(&without_sizes(&now, &had)), Some(had.value)) {
        errors.forbidden(new.path.clone(), "only cpu and memory resources are mutable at pod-level");
    }
}

fn container(now: &At<'_>, had: &At<'_>, is_init: bool, spec: &At<'_>, errors: &mut Errors) {
    let (resources, had_resources) = (now.child("resources"), had.child("resources"));
    for (list, why) in
        [("requests", "resource requests cannot be removed"), ("limits", "resource limits cannot be removed")]
    {
        if is_removed(&resources, &had_resources, list) {
            errors.forbidden(resources.at(list), why);
        }
    }
    let mut munged = now.value.clone();
    if let Some(fields) = munged.as_object_mut() {
        fields.insert("resources".into(), without_sizes(&resources, &had_resources));
    }
    let is_other = !same(Some(&munged), Some(had.value));
    if !is_init {
        if is_other {
            errors.forbidden(spec.path.clone(), "only cpu and memory resources are mutable");
        }
        return;
    }
    if is_other {
        let why = "only cpu and memory resources for init or sidecar containers are mutable";
        errors.forbidden(now.path.clone(), why);
    }
    let restarts = now.items("resizePolicy").any(|policy| policy.str("restartPolicy") == "RestartContainer");
    if restarts && now.str("restartPolicy") != "Always" && !same(Some(now.value), Some(had.value)) {
        let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
        errors.forbidden(now.path.clone(), why);
    }
}

fn is_removed(now: &At<'_>, had: &At<'_>, list: &str) -> bool {
    let now = now.child(list);
    had.entries(list).any(|(name, _)| !now.has(name))
}

/// The new requirements with cpu and memory as they were.
fn without_sizes(now: &At<'_>, had: &At<'_>) -> Value {
    let mut out = now.value.as_object().cloned().unwrap_or_default();
    for list in ["requests", "limits"] {
        let had = had.child(list);
        if had.value.is_object() {
            out.entry(list).or_insert_with(|| Value::Object(Map::new()));
        }
        let Some(amounts) = out.get_mut(list).and_then(Value::as_object_mut) else { continue };
        for name in predicates::RESIZABLE {
            put(amounts, name, had.value.get(name));
        }
        // Another way to write the same amount is none of the changes.
        for (name, amount) in amounts.iter_mut() {
            if let (Some(before), Some(now)) =
                (had.value.get(name), crate::quantity::Quantity::from_value(amount).ok())
                && crate::quantity::Quantity::from_value(before).is_ok_and(|before| before == now)
            {
                amount.clone_from(before);
            }
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(name: &str, resources: Value) -> Value {
        json!({"name": name, "image": "i", "imagePullPolicy": "IfNotPresent", "terminationMessagePolicy": "File",
            "resources": resources})
    }

    fn sized(cpu: &str, memory: &str) -> Value {
        json!({"requests": {"cpu": cpu, "memory": memory}})
    }

    fn pod(containers: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": containers, "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30}})
    }

    fn told(new: &Value, old: &Value) -> Vec<String> {
        validate(&take(new, old), old).iter().map(|e| format!("{}: {}", e.path, e.message())).collect()
    }

    #[test]
    fn cpu_and_memory_may_change_and_nothing_else() {
        let old = pod(json!([container("a", sized("1", "1Gi"))]));
        let check = |resources: Value| told(&pod(json!([container("a", resources)])), &old);
        assert_eq!(check(sized("2", "512Mi")), [""; 0], "up and down");
        let limits =
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "3", "memory": "2Gi"}});
        assert_eq!(check(limits.clone()), [""; 0], "limits may be added");
        assert_eq!(
            check(json!({"requests": {"cpu": "1"}})),
            ["spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"]
        );
        let limited = pod(json!([container("a", limits)]));
        assert_eq!(
            told(&old, &limited),
            ["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"]
        );
        let other = json!({"requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}});
        assert_eq!(check(other), ["spec: Forbidden: only cpu and memory resources are mutable"]);
        assert_eq!(
            check(
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}})
            ),
            ["spec: Invalid value: null: Pod QOS Class may not change as a result of resizing"]
        );
        let mut mirror = old.clone();
        mirror["metadata"]["annotations"] = json!({MIRROR: "x"});
        assert_eq!(told(&old, &mirror), ["<nil>: Forbidden: static pods cannot be resized"]);
        let mut elsewhere = old.clone();
        elsewhere["status"] = json!({"containerStatuses": [{"name": "a", "state": {"running": {}}}]});
        assert_eq!(
            told(&old, &elsewhere),
            ["spec: Forbidden: Pod running on node without support for resize"]
        );
    }

    #[test]
    fn containers_stay_who_they_are() {
        let (a, b) = (container("a", sized("1", "1Gi")), container("b", sized("1", "1Gi")));
        let old = pod(json!([a, b]));
        assert_eq!(
            told(&pod(json!([b, a])), &old),
            [
                "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize",
                "spec.containers[1].name: Forbidden: containers may not be renamed or reordered on resize"
            ]
        );
        assert_eq!(
            told(&pod(json!([a])), &old),
            ["spec.containers: Forbidden: containers may not be added or removed on resize"]
        );
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "other".into();
        new["spec"]["nodeName"] = "n".into();
        assert_eq!(take(&new, &old), old, "of other fields nothing comes");
    }

    #[test]
    fn init_containers_and_the_pod_itself_are_resized() {
        let mut old = pod(json!([container("a", json!({}))]));
        old["spec"]["initContainers"] = json!([container("i", sized("1", "1Gi"))]);
        old["spec"]["initContainers"][0]["restartPolicy"] = "Always".into();
        let resize = |cpu: &str| {
            let mut new = old.clone();
            new["spec"]["initContainers"][0]["resources"]["requests"]["cpu"] = cpu.into();
            new
        };
        assert_eq!(told(&resize("2"), &old), [""; 0]);
        let mut other = resize("2");
        other["spec"]["initContainers"][0]["resources"]["requests"]["ephemeral-storage"] = "1".into();
        assert_eq!(
            told(&other, &old),
            [
                "spec.initContainers[0]: Forbidden: only cpu and memory resources for init or sidecar containers are mutable"
            ]
        );
        let mut old = pod(json!([container("a", json!({}))]));
        old["spec"]["resources"] = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}});
        let mut new = old.clone();
        new["spec"]["resources"]["limits"]["cpu"] = "3".into();
        assert_eq!(told(&new, &old), [""; 0]);
        new["spec"]["resources"] = json!({"requests": {"cpu": "1"}});
        assert_eq!(
            told(&new, &old),
            ["spec.resources.limits: Forbidden: pod-level resource limits cannot be removed"]
        );
        new["spec"].as_object_mut().unwrap().remove("resources");
        assert_eq!(
            told(&new, &old)[1..],
            ["spec.resources: Forbidden: pod-level resources cannot be removed"]
        );
    }
}
