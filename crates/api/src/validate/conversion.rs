//! How a definition says that its versions are converted.
//! Upstream counterpart: `validateCustomResourceConversion` of `apiextensions-apiserver`.

use super::admission::client_config;
use super::at::{At, Errors};
use crate::field::FieldError;
use crate::names;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The fields of a webhook are named as upstream's errors name them: without the `webhook` around them.
pub(super) fn check(at: &At<'_>, errors: &mut Errors) {
    errors.one_of(at, "strategy", &["None", "Webhook"]);
    let webhook = at.child("webhook");
    let client = At::new(webhook.value.get("clientConfig"), at.at("webhookClientConfig"));
    let path = at.at("conversionReviewVersions");
    let versions = webhook.list("conversionReviewVersions");
    if at.str("strategy") != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if !client.value.is_null() {
            errors.forbidden(client.path, why);
        }
        if !versions.is_empty() {
            errors.forbidden(path, why);
        }
        return;
    }
    match client.value {
        Value::Null => errors.required(client.path, "required when strategy is set to Webhook"),
        _ => client_config(&client, errors),
    }
    if versions.is_empty() {
        return errors.required(path, "");
    }
    for (index, version) in versions.iter().enumerate() {
        let name = version.as_str().unwrap_or_default();
        if versions[..index].contains(version) {
            errors.invalid(path.index(index), name, "duplicate version");
        } else {
            errors.each(&path.index(index), name, names::is_dns1035_label(name));
        }
    }
    if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        let given = Value::Array(versions.to_vec());
        errors.invalid(path, given, "must include at least one of v1, v1beta1");
    }
}

const AUTHORITY: &str = "/spec/conversion/webhook/clientConfig/caBundle";

fn bundle_of(definition: &Value) -> &str {
    definition.pointer(AUTHORITY).and_then(Value::as_str).unwrap_or_default()
}

/// What a webhook's authority must be, where it is a new one: certificates.
pub(super) fn authority(definition: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let bundle = bundle_of(definition);
    if bundle.is_empty() || old.is_some_and(|old| bundle_of(old) == bundle) {
        return Vec::new();
    }
    let pem = STANDARD.decode(bundle).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let is_some = pem.is_some_and(|pem| {
        let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
        let body = |block: &str| {
            block.split("-----END CERTIFICATE-----").next().map(|body| body.replace(['\r', '\n'], ""))
        };
        blocks.filter_map(body).any(|body| !body.is_empty() && STANDARD.decode(body).is_ok())
    });
    if is_some {
        return Vec::new();
    }
    let path =
        At::root(definition).at("spec").child("conversion").child("webhookClientConfig").child("caBundle");
    vec![FieldError::invalid(path, bundle, "data does not contain any valid RSA or ECDSA certificates")]
}
