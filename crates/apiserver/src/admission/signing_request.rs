//! Who asks for a certificate is written into the request by the server, whatever the client says.
//! Upstream counterpart: `pkg/registry/certificates/certificates/strategy.go`.

use super::{Admission, Operation, Plugin, ready};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skeg_api::Status;

pub struct Requestor;

impl Plugin for Requestor {
    fn name(&self) -> &'static str {
        "CertificateRequestor"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        if request.operation == Operation::Create
            && request.is("certificates.k8s.io", "certificatesigningrequests", "")
            && let Some(spec) = request
                .object
                .as_mut()
                .and_then(|object| object.get_mut("spec"))
                .and_then(Value::as_object_mut)
        {
            let who = request.identity;
            for (field, value) in [
                ("username", json!(who.user())),
                ("uid", json!(who.uid())),
                ("groups", json!(who.groups())),
                ("extra", json!(who.extra())),
            ] {
                let empty = value.as_str() == Some("")
                    || value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(serde_json::Map::is_empty);
                match empty {
                    true => spec.remove(field),
                    false => spec.insert(field.to_owned(), value),
                };
            }
        }
        ready(Ok(()))
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
        case.run(&Requestor).unwrap();
        let expected =
            json!({"username": "jane", "groups": ["team", "system:authenticated"], "request": "x"});
        assert_eq!(case.object.unwrap()["spec"], expected);
    }
}
