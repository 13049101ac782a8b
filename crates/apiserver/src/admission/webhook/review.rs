//! What a webhook is asked and what it answers: `admission.k8s.io` AdmissionReview.
//! Upstream counterpart: `k8s.io/apiserver/pkg/admission/plugin/webhook/request`.

use super::hook::Hook;
use crate::admission::{Admission, request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use skeg_api::{Kind, Reason, Status, decode};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    kind: &'static str,
    api_version: String,
    request: Request<'a>,
}

/// What is told of the request, with its objects.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    uid: &'a str,
    object: Option<&'a Value>,
    old_object: Option<&'a Value>,
    #[serde(flatten)]
    rest: Value,
}

/// The review of a write for one webhook, its objects in the version of `row`.
pub fn review(
    a: &Admission<'_>,
    (hook, row): (&Hook, &Kind),
    uid: &str,
    object: Option<&Value>,
    old_object: Option<&Value>,
) -> Bytes {
    let request = Request { uid, object, old_object, rest: request::of(a, row) };
    let api_version = format!("admission.k8s.io/{}", hook.version);
    serde_json::to_vec(&Review { kind: "AdmissionReview", api_version, request }).unwrap_or_default().into()
}

/// What a webhook decided.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// The refusal, if it is one.
    pub refused: Option<Status>,
    /// A JSON patch, not yet read.
    pub patch: Option<Vec<u8>>,
    pub warnings: Vec<String>,
    /// Keys and values to put on record.
    pub annotations: Vec<(String, String)>,
}

/// Reads an answer.
///
/// # Errors
/// What is wrong with it, in upstream's words; the second part of it.
pub fn verdict(hook: &Hook, uid: &str, answer: &[u8], mutating: bool) -> Result<Verdict, String> {
    let invalid = |why: String| format!("received invalid webhook response: {why}");
    let review: Value = serde_json::from_slice(answer).map_err(|error| {
        format!("failed to call webhook: couldn't get version/kind; json parse error: {error}")
    })?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let types = decode::types(&review).map_err(|why| format!("failed to call webhook: {why}"))?;
    let (version, kind) = (types.0.to_owned(), types.1.to_owned());
    if kind.is_empty() {
        let shown: String = String::from_utf8_lossy(answer).chars().take(256).collect();
        return Err(format!("failed to call webhook: Object 'Kind' is missing in '{shown}'"));
    }
    let response = &review["response"];
    if !response.is_object() {
        return Err(invalid("webhook response was absent".to_owned()));
    }
    let strict = hook.version == "v1";
    if strict && response["uid"] != uid {
        let got = text(&response["uid"]);
        return Err(invalid(format!("expected response.uid={uid:?}, got {got:?}")));
    }
    let expected = format!("admission.k8s.io/{}", hook.version);
    if (version.as_str(), kind.as_str()) != (&expected, "AdmissionReview") {
        let got = if version.contains('/') { version } else { format!("/{version}") };
        return Err(invalid(format!(
            "expected webhook response of {expected}, Kind=AdmissionReview, got {got}, Kind={kind}"
        )));
    }
    let (patch, kind) = (text(&response["patch"]), &response["patchType"]);
    match (mutating, patch.is_empty(), kind.as_str()) {
        (false, false, _) if strict => {
            return Err(invalid("validating webhook may not return response.patch".into()));
        }
        (false, _, Some(_)) if strict => {
            return Err(invalid("validating webhook may not return response.patchType".into()));
        }
        (true, false, None) if strict => {
            return Err(invalid("webhook returned response.patch but not response.patchType".into()));
        }
        (true, true, Some(_)) if strict => {
            return Err(invalid("webhook returned response.patchType but not response.patch".into()));
        }
        (true, false, Some(other)) if other != "JSONPatch" => {
            return Err(invalid(format!("webhook returned invalid response.patchType of {other:?}")));
        }
        _ => {}
    }
    let strings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    let mut verdict = Verdict {
        warnings: strings.map(str::to_owned).collect(),
        annotations: annotations.map(|(key, value)| (format!("{}/{key}", hook.name), text(value))).collect(),
        ..Verdict::default()
    };
    if response["allowed"] != true {
        verdict.refused = Some(refusal(&hook.name, &response["status"]));
    } else if mutating && !patch.is_empty() {
        verdict.patch = Some(STANDARD.decode(patch).map_err(|error| invalid(error.to_string()))?);
    }
    Ok(verdict)
}

/// A refusal is one whatever its status says.
fn refusal(name: &str, given: &Value) -> Status {
    let mut status: Status = serde_json::from_value(given.clone())
        .unwrap_or_else(|_| Status::new(0, Reason::Empty, given["message"].as_str().unwrap_or_default()));
    if given["reason"].as_str().is_none() {
        status.reason = Reason::Empty;
    }
    status.code = status.code.max(400);
    status.status = skeg_api::status::Outcome::Failure;
    let denied = format!("admission webhook {name:?} denied the request");
    status.message = match (status.message.as_str(), given["reason"].as_str().unwrap_or_default()) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    status
}
