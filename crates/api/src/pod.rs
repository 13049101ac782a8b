//! Facts about Pods as pure functions: QoS class, readiness, availability, conditions, hashes.
//! Most read the JSON form, which admission, controllers and the printer hold; the typed twins
//! serve code that has decoded the Pod. Upstream counterpart: `pkg/api/v1/pod`, `pkg/apis/core/v1/helper/qos`.

use crate::meta;
use crate::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use serde_json::{Map, Value, json};

/// Where a finished Pod ends.
pub fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

pub fn phase(pod: &Value) -> &str {
    pod.get("status").and_then(|s| s.get("phase")).and_then(Value::as_str).unwrap_or_default()
}

pub fn is_terminal(pod: &Value) -> bool {
    is_terminal_phase(phase(pod))
}

/// Neither finished nor being deleted: what a ReplicaSet counts.
pub fn is_active(pod: &Value) -> bool {
    !is_terminal(pod) && !meta::is_deleting(pod)
}

/// The condition of a type in `status.conditions` of any object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object.get("status")?.get("conditions")?.as_array()?;
    conditions.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(kind))
}

pub fn is_condition_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).and_then(|c| c.get("status")).and_then(Value::as_str) == Some("True")
}

pub fn is_ready(pod: &Value) -> bool {
    is_condition_true(pod, "Ready")
}

/// Ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Value, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now) == Some(SignedDuration::ZERO)
}

/// How long until the Pod is available if it stays ready; zero if it is; `None` if not ready.
/// A controller re-checks after this time, for no event will tell.
pub fn available_in(pod: &Value, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    let ready = condition(pod, "Ready")?;
    if ready.get("status").and_then(Value::as_str) != Some("True") {
        return None;
    }
    remaining(ready.get("lastTransitionTime").and_then(meta::time), min_ready_seconds, now)
}

fn remaining(since: Option<Timestamp>, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    if min_ready_seconds <= 0 {
        return Some(SignedDuration::ZERO);
    }
    let until = since?.checked_add(SignedDuration::from_secs(min_ready_seconds.into())).ok()?;
    Some(now.duration_until(until).max(SignedDuration::ZERO))
}

/// The typed twin of [`is_ready`].
pub fn is_pod_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|c| c.status == "True")
}

/// The typed twin of [`is_available`].
pub fn is_pod_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    ready_condition(pod).filter(|c| c.status == "True").is_some_and(|c| {
        let since = c.last_transition_time.as_ref().map(|t| t.0);
        remaining(since, min_ready_seconds, now) == Some(SignedDuration::ZERO)
    })
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready")
}

/// Sets a condition in `status.conditions`; the transition time moves only with the status.
/// Returns whether anything changed.
pub fn set_condition(
    object: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let Some(root) = object.as_object_mut() else { return false };
    let status_field = root.entry("status").or_insert_with(|| Value::Object(Map::new()));
    let Some(status_map) = status_field.as_object_mut() else { return false };
    let list = status_map.entry("conditions").or_insert_with(|| Value::Array(Vec::new()));
    let Some(list) = list.as_array_mut() else { return false };
    let mut condition = json!({ "type": kind, "status": status });
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = text.into();
        }
    }
    match list.iter_mut().find(|c| c.get("type").and_then(Value::as_str) == Some(kind)) {
        None => {
            condition["lastTransitionTime"] = meta::format_time(now).into();
            list.push(condition);
            true
        }
        Some(old) => {
            let same = |field: &str| {
                old.get(field).and_then(Value::as_str).unwrap_or_default()
                    == condition[field].as_str().unwrap_or_default()
            };
            if ["status", "reason", "message"].into_iter().all(same) {
                return false;
            }
            let moved = old.get("status") != condition.get("status");
            let Some(old) = old.as_object_mut() else { return false };
            old.remove("reason");
            old.remove("message");
            if moved {
                old.insert("lastTransitionTime".into(), meta::format_time(now).into());
            }
            if let Value::Object(new) = condition {
                old.extend(new);
            }
            true
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from requests and limits of CPU and memory.
pub fn qos_class(pod: &Value) -> &'static str {
    let Some(spec) = pod.get("spec") else { return "BestEffort" };
    // Resources of the Pod itself, where set, decide alone.
    let own = spec.get("resources").filter(|r| set(r, "requests") || set(r, "limits"));
    let holders: Vec<Option<&Value>> = match own {
        Some(resources) => vec![Some(resources)],
        None => ["containers", "initContainers"]
            .iter()
            .filter_map(|field| spec.get(*field)?.as_array())
            .flatten()
            .map(|c| c.get("resources"))
            .collect(),
    };
    let amount = |holder: Option<&Value>, list: &str, name: &str| {
        let quantity = holder?.get(list)?.get(name)?;
        Quantity::from_value(quantity).ok().filter(|q| q.sign() > 0)
    };
    let (mut any, mut guaranteed) = (false, true);
    let mut sums = [[Quantity::ZERO; 2]; 2];
    for holder in &holders {
        for (i, name) in ["cpu", "memory"].into_iter().enumerate() {
            let (request, limit) = (amount(*holder, "requests", name), amount(*holder, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some();
            sums[i][0] += request.unwrap_or_default();
            sums[i][1] += limit.unwrap_or_default();
        }
    }
    // Defaulting has set requests from limits, so equal sums mean equal lists.
    match (any, guaranteed && sums.iter().all(|[requests, limits]| requests == limits)) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn set(resources: &Value, list: &str) -> bool {
    resources.get(list).and_then(Value::as_object).is_some_and(|l| !l.is_empty())
}

/// The `pod-template-hash` of a template: stable over key order, changed by a collision count.
pub fn template_hash(template: &Value, collision_count: Option<i32>) -> String {
    let mut hash = Fnv32(0x811c_9dc5);
    hash.value(template);
    if let Some(count) = collision_count {
        hash.bytes(&count.to_le_bytes());
    }
    safe_encode(&hash.0.to_string())
}

/// Maps each byte into the alphabet of generated names, so that no bad word can come out.
pub fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|b| ALPHABET[usize::from(b) % ALPHABET.len()] as char).collect()
}

/// FNV-1a with 32 bits over a value, each part framed by its type and length.
struct Fnv32(u32);

impl Fnv32 {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    fn text(&mut self, tag: u8, text: &str) {
        self.bytes(&[tag]);
        self.bytes(&(text.len() as u64).to_le_bytes());
        self.bytes(text.as_bytes());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(b"0"),
            Value::Bool(b) => self.bytes(if *b { b"t" } else { b"f" }),
            Value::Number(n) => self.text(b'n', &n.to_string()),
            Value::String(s) => self.text(b's', s),
            Value::Array(items) => {
                self.bytes(b"[");
                items.iter().for_each(|item| self.value(item));
                self.bytes(b"]");
            }
            Value::Object(map) => {
                self.bytes(b"{");
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort_unstable();
                for key in keys {
                    self.text(b'k', key);
                    self.value(&map[key]);
                }
                self.bytes(b"}");
            }
        }
    }
}

/// All containers of a Pod with the list that holds them: init, main, ephemeral.
pub fn all_containers(spec: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |field| {
        let list = spec.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        list.iter().enumerate().map(move |(i, container)| (field, i, container))
    })
}

/// What a Pod's deletion costs; lower goes first when a ReplicaSet shrinks.
pub fn deletion_cost(pod: &Value) -> i32 {
    meta::annotation(pod, "controller.kubernetes.io/pod-deletion-cost")
        .filter(|text| !text.starts_with('+') && (*text == "0" || !text.starts_with('0')))
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qos_classes() {
        let check = |containers: Value| qos_class(&json!({"spec": {"containers": containers}}));
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(check(json!([{"name": "a"}])), "BestEffort");
        assert_eq!(check(json!([{"resources": {"requests": both, "limits": both}}])), "Guaranteed");
        assert_eq!(
            check(json!([{"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": both}}])),
            "Guaranteed"
        );
        assert_eq!(check(json!([{"resources": {"requests": {"cpu": "1"}}}])), "Burstable");
        assert_eq!(
            check(json!([{"resources": {"requests": both, "limits": both}}, {"name": "b"}])),
            "Burstable"
        );
        assert_eq!(check(json!([{"resources": {"requests": {"cpu": "0"}}}])), "BestEffort");
        assert_eq!(check(json!([{"resources": {"requests": {"example.com/x": "1"}}}])), "BestEffort");
        let own =
            json!({"spec": {"containers": [{"name": "a"}], "resources": {"requests": both, "limits": both}}});
        assert_eq!(qos_class(&own), "Guaranteed");
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        assert!(
            is_ready(&pod)
                && is_available(&pod, 0, now)
                && is_available(&pod, 10, now)
                && !is_available(&pod, 11, now)
        );
        assert_eq!(available_in(&pod, 15, now), Some(SignedDuration::from_secs(5)));
        assert_eq!(available_in(&json!({}), 0, now), None);
        let typed: Pod = serde_json::from_value(pod).unwrap();
        assert!(
            is_pod_ready(&typed) && is_pod_available(&typed, 10, now) && !is_pod_available(&typed, 11, now)
        );
    }

    #[test]
    fn conditions_keep_their_transition_time() {
        let (t1, t2) = ("2026-01-01T00:00:00Z".parse().unwrap(), "2026-01-01T00:01:00Z".parse().unwrap());
        let mut pod = json!({});
        assert!(set_condition(&mut pod, "Ready", "False", "A", "", t1));
        assert!(!set_condition(&mut pod, "Ready", "False", "A", "", t2));
        assert!(set_condition(&mut pod, "Ready", "False", "B", "m", t2));
        assert_eq!(condition(&pod, "Ready").unwrap()["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert!(set_condition(&mut pod, "Ready", "True", "", "", t2));
        let ready = condition(&pod, "Ready").unwrap();
        assert_eq!(
            ready,
            &json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"})
        );
    }

    #[test]
    fn hashes_are_stable_and_distinct() {
        let a = json!({"spec": {"containers": [{"name": "a", "image": "nginx"}]}});
        assert_eq!(template_hash(&a, None), template_hash(&a.clone(), None));
        assert_ne!(template_hash(&a, None), template_hash(&a, Some(1)));
        assert_ne!(template_hash(&a, None), template_hash(&json!({}), None));
        // '0' is byte 48, and 48 modulo 27 is the 21st letter.
        assert_eq!(safe_encode("0123"), "4567");
    }

    #[test]
    fn deletion_costs() {
        let cost = |text: &str| {
            deletion_cost(
                &json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": text}}}),
            )
        };
        assert_eq!(
            (cost("5"), cost("-5"), cost("+5"), cost("05"), cost("0"), cost("x")),
            (5, -5, 0, 0, 0, 0)
        );
    }
}
