//! A status as the API shows it against what the node says: others may have changed it.

use k8s_openapi::serde::Serialize;
use serde_json::{Value, json};

/// Fields of a status that others may add to: conditions of other types, other resources.
const SHARED: [&str; 2] = ["conditions", "capacity"];

/// Fields of a status that are not the node's.
const FOREIGN: [&str; 4] =
    ["nominatedNodeName", "resourceClaimStatuses", "extendedResourceClaimStatus", "volumesAttached"];

/// Conditions that only the node says, and that go when it does not say them any more.
const OWN_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// Lists that a strategic merge patch adds to, where it does not say otherwise.
const MERGED: [&str; 3] = ["podIPs", "hostIPs", "addresses"];

/// Whether `shown` says what `own` does, and no more than others may add. Times of heartbeats only
/// tell that somebody lives.
pub fn says(shown: &impl Serialize, own: &impl Serialize) -> bool {
    let (Value::Object(shown), Value::Object(own)) = (value(shown), value(own)) else { return false };
    let added = shown.iter().filter(|(key, _)| !own.contains_key(*key) && !FOREIGN.contains(&key.as_str()));
    added.map(|(_, value)| value).all(is_empty)
        && own.iter().all(|(key, own)| match (shown.get(key), SHARED.contains(&key.as_str())) {
            (None, _) => is_empty(own),
            (Some(Value::Object(shown)), true) => {
                own.as_object().is_some_and(|own| own.iter().all(|(key, own)| shown.get(key) == Some(own)))
            }
            (Some(Value::Array(shown)), true) => is_part(own.as_array(), shown),
            (Some(shown), _) => same(shown, own),
        })
}

fn has(conditions: &[Value], kind: &str) -> bool {
    conditions.iter().any(|condition| condition["type"] == kind)
}

fn is_part(own: Option<&Vec<Value>>, shown: &[Value]) -> bool {
    own.is_some_and(|own| own.iter().all(|own| shown.iter().any(|shown| same(shown, own))))
}

fn same(shown: &Value, own: &Value) -> bool {
    match (shown, own) {
        (Value::Object(a), Value::Object(b)) => {
            a.keys().chain(b.keys()).filter(|key| *key != "lastHeartbeatTime").all(|key| {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => same(a, b),
                    (one, other) => one.or(other).is_none_or(is_empty),
                }
            })
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && is_part(Some(b), a),
        _ => shown == own,
    }
}

/// The strategic merge patch that makes a status which shows `shown` say `own`: what is not said
/// any more is taken back, what others may add stays.
pub fn patch(shown: Option<&impl Serialize>, own: &impl Serialize) -> Value {
    let mut patch = value(own);
    let shown = shown.map(value);
    let (Some(Value::Object(shown)), Value::Object(own)) = (&shown, &mut patch) else { return patch };
    for (key, shown) in shown.iter().filter(|(key, _)| !FOREIGN.contains(&key.as_str())) {
        let merged = MERGED.contains(&key.as_str());
        match (own.get_mut(key), shown) {
            (None, _) if is_empty(shown) => {}
            (None, _) => {
                own.insert(key.clone(), Value::Null);
            }
            (Some(Value::Array(own)), Value::Array(shown)) if key == "conditions" => {
                for own in &mut *own {
                    if let Some(shown) = shown.iter().find(|shown| shown["type"] == own["type"]) {
                        take_back(shown, own);
                    }
                }
                let gone = OWN_CONDITIONS.into_iter().filter(|kind| has(shown, kind) && !has(own, kind));
                let gone: Vec<Value> = gone.map(|kind| json!({"type": kind, "$patch": "delete"})).collect();
                own.extend(gone);
            }
            (Some(Value::Array(own)), Value::Array(shown)) if merged && own != shown => {
                own.push(json!({"$patch": "replace"}));
            }
            (Some(own), shown) if !SHARED.contains(&key.as_str()) => take_back(shown, own),
            _ => {}
        }
    }
    patch
}

/// Sets fields of objects that are shown and not said to null; lists are replaced as a whole.
fn take_back(shown: &Value, own: &mut Value) {
    let (Value::Object(shown), Value::Object(own)) = (shown, own) else { return };
    for (key, shown) in shown {
        match own.get_mut(key) {
            Some(own) => take_back(shown, own),
            None => {
                own.insert(key.clone(), Value::Null);
            }
        }
    }
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

/// The API leaves out what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Value {
        json!({"phase": "Running", "images": [], "capacity": {"cpu": "2"}, "allocatable": {"cpu": "1"}, "addresses": [{"type": "Hostname"}],
            "nodeInfo": {"arch": "amd64"},
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "now"}]})
    }

    fn shown() -> Value {
        json!({"phase": "Running", "capacity": {"cpu": "2", "example.com/x": "5"}, "allocatable": {"cpu": "1"}, "nominatedNodeName": "n",
            "addresses": [{"type": "Hostname"}], "nodeInfo": {"arch": "amd64"}, "conditions": [
            {"type": "Other", "status": "False"}, {"type": "Ready", "status": "True", "lastHeartbeatTime": "then"}]})
    }

    #[test]
    fn what_others_may_add_is_theirs_and_what_they_change_is_seen() {
        assert!(says(&shown(), &own()));
        assert!(!says(&json!({"phase": "Running", "capacity": {"cpu": "2"}}), &own()), "conditions are gone");
        for (path, other) in [
            ("/phase", json!("Failed")),
            ("/capacity/cpu", json!("0")),
            ("/allocatable", json!({"example.com/gone": "5"})),
            ("/conditions/1/status", json!("Unknown")),
            ("/addresses", json!([{"type": "Hostname"}, {"type": "ExternalIP"}])),
            ("/nodeInfo", json!({"arch": "amd64", "added": "x"})),
            ("", json!({"reason": "Evicted"})),
            ("/conditions/1", json!({"reason": "Because"})),
        ] {
            let mut changed = shown();
            match (changed.pointer_mut(path).unwrap(), other) {
                (Value::Object(at), Value::Object(other)) => at.extend(other),
                (at, other) => *at = other,
            }
            assert!(!says(&changed, &own()), "{path}");
        }
    }

    #[test]
    fn conditions_of_a_resize_go_with_it() {
        let resizing = |kinds: &[&str]| json!({"conditions": kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect::<Vec<_>>()});
        let (before, now) = (resizing(&["Other", "PodResizePending"]), resizing(&["Ready"]));
        let delete = json!({"type": "PodResizePending", "$patch": "delete"});
        let expected = json!({"conditions": [{"type": "Ready", "status": "True"}, delete]});
        assert_eq!(patch(Some(&before), &now), expected);
        assert_eq!(patch(Some(&before), &before), before);
    }

    #[test]
    fn patches_take_back_what_is_not_said() {
        let mut other = shown();
        other["reason"] = "Evicted".into();
        other["nodeInfo"]["added"] = "x".into();
        other["conditions"][1]["reason"] = "Because".into();
        other["addresses"] = json!([{"type": "ExternalIP"}]);
        let mut expected = own();
        expected["reason"] = Value::Null;
        expected["nodeInfo"]["added"] = Value::Null;
        expected["conditions"][0]["reason"] = Value::Null;
        expected["addresses"] = json!([{"type": "Hostname"}, {"$patch": "replace"}]);
        assert_eq!(patch(Some(&other), &own()), expected);
        assert_eq!(patch(Some(&shown()), &own()), own());
        assert_eq!(patch(None::<&Value>, &own()), own());
    }
}
