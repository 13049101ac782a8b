//! What the server itself writes into a CertificateSigningRequest: who asks, whatever the client
//! says, and when its conditions were set, where the client does not say.
//! Upstream counterpart: `pkg/registry/certificates/certificates/strategy.go`.

use super::{Admission, Operation, Plugin, ready};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use skeg_api::{Status, meta};
use skeg_base::Clock;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";

pub struct Requestor(pub Clock);

impl Plugin for Requestor {
    fn name(&self) -> &'static str {
        "CertificateRequestor"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let fields = |object: Option<&'a mut Value>| object.and_then(Value::as_object_mut);
        if request.operation == Operation::Create && request.is(GROUP, REQUESTS, "") {
            let who = request.identity;
            if let Some(spec) = fields(request.object.as_mut().and_then(|object| object.get_mut("spec"))) {
                name_sender(spec, who);
            }
        } else if request.operation == Operation::Update
            && ["approval", "status"].iter().any(|part| request.is(GROUP, REQUESTS, part))
            && let (Some(object), Some(old)) = (request.object.as_mut(), request.old)
        {
            date_conditions(object, old, &meta::format_time(self.0.now_seconds()));
        }
        ready(Ok(()))
    }
}

fn name_sender(spec: &mut Map<String, Value>, who: &crate::Identity) {
    for (field, value) in [
        ("username", json!(who.user())),
        ("uid", json!(who.uid())),
        ("groups", json!(who.groups())),
        ("extra", json!(who.extra())),
    ] {
        let empty = value.as_str() == Some("")
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(Map::is_empty);
        match empty {
            true => spec.remove(field),
            false => spec.insert(field.to_owned(), value),
        };
    }
}

/// A condition that stays as it is keeps the time of its last change.
fn date_conditions(object: &mut Value, old: &Value, now: &str) {
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        if condition.get("lastUpdateTime").is_none_or(Value::is_null) {
            condition.insert("lastUpdateTime".into(), now.into());
        }
        if condition.get("lastTransitionTime").is_none_or(Value::is_null) {
            let before = old["status"]["conditions"].as_array().into_iter().flatten().find(|before| {
                ["type", "status"].iter().all(|field| before.get(field) == condition.get(*field))
            });
            let since = before.and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(now);
            condition.insert("lastTransitionTime".into(), since.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_request_says_who_sent_it() {
        let spec = json!({"username": "admin", "uid": "1", "request": "x", "extra": {"a": ["b"]}});
        let mut case = Case {
            operation: Operation::Create,
            kind: kind(
                "certificates.k8s.io",
                "CertificateSigningRequest",
                "certificatesigningrequests",
                false,
            ),
            subresource: "",
            identity: Identity::system("jane", &["team"]),
            object: Some(json!({"metadata": {"name": "r"}, "spec": spec})),
            old: None,
        };
        case.run(&Requestor(Clock::system())).unwrap();
        let expected =
            json!({"username": "jane", "groups": ["team", "system:authenticated"], "request": "x"});
        assert_eq!(case.object.unwrap()["spec"], expected);
    }

    #[test]
    fn conditions_get_the_times_that_the_client_leaves_out() {
        let status = |conditions: Value| json!({"status": {"conditions": conditions}});
        let old = status(json!([{"type": "Approved", "status": "True", "lastTransitionTime": "then"}]));
        let mut new = status(
            json!([{"type": "Approved", "status": "True", "lastUpdateTime": "mine"}, {"type": "Failed", "status": "True"}]),
        );
        date_conditions(&mut new, &old, "now");
        let expected = json!([
            {"type": "Approved", "status": "True", "lastUpdateTime": "mine", "lastTransitionTime": "then"},
            {"type": "Failed", "status": "True", "lastUpdateTime": "now", "lastTransitionTime": "now"}]);
        assert_eq!(new["status"]["conditions"], expected);
    }
}
