//! How a definition says that its versions are converted.
//! Upstream counterpart: `validateCustomResourceConversion` of `apiextensions-apiserver`.

use super::admission::client_config;
use super::at::{At, Errors};
use crate::field::FieldError;
use crate::{crd, names};
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

/// What a webhook's authority must stay, once it may be relied on: certificates. Before that, a definition
/// whose authority is none is not served.
pub(super) fn authority(definition: &Value, old: &Value) -> Vec<FieldError> {
    let may_be_odd = !crd::is_established(old) || crd::has_odd_authority(old);
    if may_be_odd || !crd::has_odd_authority(definition) {
        return Vec::new();
    }
    let path =
        At::root(definition).at("spec").child("conversion").child("webhookClientConfig").child("caBundle");
    let why = "data does not contain any valid RSA or ECDSA certificates";
    vec![FieldError::invalid(path, crd::authority(definition), why)]
}
