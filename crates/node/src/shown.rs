//! Whether the API still shows what the node wrote to a status: others may have changed it.

use k8s_openapi::serde::Serialize;
use serde_json::Value;

/// Whether `shown` says all that `own` does. What else it says is somebody else's; times of
/// heartbeats only tell that somebody lives.
pub fn says(shown: &impl Serialize, own: &impl Serialize) -> bool {
    let value = |of: Result<Value, serde_json::Error>| of.unwrap_or_default();
    contains(&value(serde_json::to_value(shown)), &value(serde_json::to_value(own)))
}

fn contains(shown: &Value, own: &Value) -> bool {
    match (shown, own) {
        (Value::Object(shown), Value::Object(own)) => own.iter().all(|(key, own)| {
            key == "lastHeartbeatTime"
                || shown.get(key).map_or_else(|| is_empty(own), |shown| contains(shown, own))
        }),
        (Value::Array(shown), Value::Array(own)) => {
            own.iter().all(|own| shown.iter().any(|shown| contains(shown, own)))
        }
        _ => shown == own,
    }
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
    use serde_json::json;

    #[test]
    fn what_others_add_is_theirs_and_what_they_change_is_seen() {
        let own = json!({"phase": "Running", "images": [], "capacity": {"cpu": "2"},
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "now"}]});
        let shown = json!({"phase": "Running", "capacity": {"cpu": "2", "example.com/x": "5"}, "conditions": [
            {"type": "Other", "status": "False"}, {"type": "Ready", "status": "True", "lastHeartbeatTime": "then"}]});
        assert!(says(&shown, &own));
        for (path, other) in
            [("/phase", "Failed"), ("/capacity/cpu", "0"), ("/conditions/1/status", "Unknown")]
        {
            let mut changed = shown.clone();
            *changed.pointer_mut(path).unwrap() = other.into();
            assert!(!says(&changed, &own), "{path}");
        }
        assert!(!says(&json!({"phase": "Running", "capacity": {"cpu": "2"}}), &own), "conditions are gone");
    }
}
