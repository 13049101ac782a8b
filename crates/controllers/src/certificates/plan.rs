//! What becomes of a CertificateSigningRequest.

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::jiff::Timestamp;
use skeg_api::csr;
use std::time::Duration;

/// How long requests stay: those that were signed and those that were refused, and those of which
/// nothing came.
const DONE: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);
/// The least that is signed, whatever was asked for.
const SHORTEST: Duration = Duration::from_secs(600);

/// What a sender must be allowed to create, for its request to be approved by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Permission {
    pub subresource: &'static str,
    /// What the condition says.
    pub message: &'static str,
}

const SELF_NODE: Permission = Permission {
    subresource: "selfnodeclient",
    message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
};
const NODE: Permission = Permission {
    subresource: "nodeclient",
    message: "Auto approving kubelet client certificate after SubjectAccessReview.",
};

/// What the signer does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Nothing,
    /// A rule is broken; approval does not help.
    Refuse(String),
    Sign(Box<csr::Request>),
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default().iter().find(|condition| condition.type_ == kind)
}

/// The certificate, where one was issued.
fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let status = request.status.as_ref()?;
    status.certificate.as_ref().map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
}

fn usages(request: &CertificateSigningRequest) -> &[String] {
    request.spec.usages.as_deref().unwrap_or_default()
}

/// The permissions of which one lets a request be approved; none where people decide, or did.
pub(super) fn permissions(request: &CertificateSigningRequest) -> Vec<Permission> {
    let decided = condition(request, "Approved").or(condition(request, "Denied")).is_some();
    if decided || certificate(request).is_some() || request.spec.signer_name != csr::KUBELET_CLIENT {
        return Vec::new();
    }
    match csr::Request::parse(&request.spec.request.0) {
        Ok(asked) if csr::kubelet_client(&asked, usages(request)).is_ok() => {
            // A node that renews its own is more than one that lets another in.
            if request.spec.username.as_deref() == Some(asked.common_name.as_str()) {
                vec![SELF_NODE, NODE]
            } else {
                vec![NODE]
            }
        }
        _ => Vec::new(),
    }
}

pub(super) fn verdict(request: &CertificateSigningRequest) -> Verdict {
    let is_true = |kind: &str| condition(request, kind).is_some_and(|condition| condition.status == "True");
    let decided = condition(request, "Approved").is_some() && condition(request, "Denied").is_none();
    if !decided || is_true("Failed") || certificate(request).is_some() {
        return Verdict::Nothing;
    }
    let Ok(asked) = csr::Request::parse(&request.spec.request.0) else { return Verdict::Nothing };
    match csr::permitted(&request.spec.signer_name, &asked, usages(request)) {
        None => Verdict::Nothing,
        Some(Err(why)) => Verdict::Refuse(why),
        Some(Ok(())) => Verdict::Sign(Box::new(asked)),
    }
}

/// How long a certificate lasts.
pub(super) fn duration(asked_s: Option<i32>, longest: Duration) -> Duration {
    match asked_s.and_then(|seconds| u64::try_from(seconds).ok()) {
        None => longest,
        Some(seconds) => Duration::from_secs(seconds).max(SHORTEST).min(longest),
    }
}

/// How long a request stays, from now; nothing where it does not go by itself.
pub(super) fn left(request: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let since = |kind: &str, stays: Duration| {
        let at = condition(request, kind)?.last_update_time.as_ref()?.0;
        Some(at.as_second() + stays.as_secs() as i64)
    };
    let issued = certificate(request);
    let ends = [
        issued.and_then(csr::not_after),
        since("Approved", if issued.is_some() { DONE } else { PENDING }),
        since("Denied", DONE),
        since("Failed", DONE),
        created(request).filter(|_| has_no_conditions(request)),
    ];
    let end = ends.into_iter().flatten().min()?;
    // A second more, so that no clock that is a little late sees it too early.
    Some(Duration::from_secs((end - now.as_second()).max(-1).saturating_add(1) as u64))
}

fn created(request: &CertificateSigningRequest) -> Option<i64> {
    let at = request.metadata.creation_timestamp.as_ref()?.0;
    Some(at.as_second() + PENDING.as_secs() as i64)
}

fn has_no_conditions(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|status| status.conditions.as_ref()).is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const PEM: &str = include_str!("../../../api/testdata/request.pem");
    const NODE_PEM: &str = include_str!("../../../api/testdata/request-node.pem");

    fn now() -> Timestamp {
        "2026-01-02T00:00:00Z".parse().unwrap()
    }

    fn request(pem: &str, spec: Value, status: Value) -> CertificateSigningRequest {
        let mut request: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "r", "creationTimestamp": "2026-01-01T12:00:00Z"},
            "spec": {"request": "", "signerName": csr::CLIENT, "usages": ["client auth"]}, "status": status}))
        .unwrap();
        request.spec.request.0 = pem.as_bytes().to_vec();
        let text = |field: &str| spec[field].as_str().map(str::to_owned);
        request.spec.username = text("username");
        request.spec.signer_name = text("signerName").unwrap_or(request.spec.signer_name);
        if spec["usages"].is_array() {
            request.spec.usages = serde_json::from_value(spec["usages"].clone()).unwrap();
        }
        request
    }

    fn with(kind: &str, minutes_ago: i64) -> Value {
        let at = Timestamp::from_second(now().as_second() - minutes_ago * 60).unwrap();
        json!({"conditions": [{"type": kind, "status": "True", "lastUpdateTime": at.to_string()}]})
    }

    #[test]
    fn nodes_are_approved_by_permission_and_others_are_not() {
        let usages = json!(["client auth", "digital signature"]);
        let of = |pem: &str, username: &str, signer: &str, status: Value| {
            let spec = json!({"username": username, "signerName": signer, "usages": usages});
            permissions(&request(pem, spec, status))
        };
        assert_eq!(of(NODE_PEM, "system:bootstrap:x", csr::KUBELET_CLIENT, json!({})), [NODE]);
        assert_eq!(of(NODE_PEM, "system:node:n1", csr::KUBELET_CLIENT, json!({})), [SELF_NODE, NODE]);
        assert_eq!(of(NODE_PEM, "system:node:n1", csr::CLIENT, json!({})), []);
        assert_eq!(of(PEM, "jane", csr::KUBELET_CLIENT, json!({})), []);
        assert_eq!(of(NODE_PEM, "x", csr::KUBELET_CLIENT, with("Denied", 0)), []);
    }

    #[test]
    fn what_is_approved_is_signed_by_the_signers_rules() {
        let of = |usages: Value, status: Value| verdict(&request(PEM, json!({"usages": usages}), status));
        assert_eq!(of(json!(["client auth"]), json!({})), Verdict::Nothing);
        let Verdict::Sign(asked) = of(json!(["client auth"]), with("Approved", 0)) else {
            panic!("not signed")
        };
        assert_eq!(asked.common_name, "jane");
        let why = "invalid usage for client certificate: server auth".to_owned();
        assert_eq!(of(json!(["server auth"]), with("Approved", 0)), Verdict::Refuse(why));
        let mut both = with("Approved", 0);
        both["conditions"].as_array_mut().unwrap().push(json!({"type": "Failed", "status": "True"}));
        assert_eq!(of(json!(["server auth"]), both), Verdict::Nothing);
        let other = json!({"signerName": "example.com/x"});
        assert_eq!(verdict(&request(PEM, other, with("Approved", 0))), Verdict::Nothing);
        let mut done = with("Approved", 0);
        done["certificate"] = "eA==".into();
        assert_eq!(of(json!(["client auth"]), done), Verdict::Nothing);
    }

    #[test]
    fn certificates_last_as_asked_within_limits() {
        let longest = Duration::from_secs(100_000);
        for (asked, expected) in [(None, 100_000), (Some(700), 700), (Some(1), 600), (Some(200_000), 100_000)]
        {
            assert_eq!(duration(asked, longest).as_secs(), expected);
        }
    }

    #[test]
    fn old_requests_go() {
        let of = |status: Value| left(&request(PEM, json!({}), status), now()).unwrap().as_secs();
        assert_eq!(of(json!({})), 12 * 3600 + 1);
        assert_eq!(of(with("Denied", 20)), 40 * 60 + 1);
        assert_eq!(of(with("Denied", 61)), 0);
        assert_eq!(of(with("Failed", 30)), 30 * 60 + 1);
        assert_eq!(of(with("Approved", 61)), 23 * 3600 - 60 + 1);
        let mut issued = with("Approved", 59);
        issued["certificate"] = "eA==".into();
        assert_eq!(of(issued.clone()), 61);
        issued["conditions"][0]["lastUpdateTime"] = "2026-01-01T23:00:00Z".into();
        assert_eq!(of(issued), 1);
    }
}
