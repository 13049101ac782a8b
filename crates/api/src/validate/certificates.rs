//! CertificateSigningRequest and its subresource `approval`.

use super::at::{At, Errors};
use crate::field::{FieldError, Path};
use crate::kinds::Strategy;
use crate::{csr, names};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

const SIGNER_DOMAIN_MAX_BYTES: usize = 253;
const EXPIRATION_MIN_S: i64 = 600;

/// What a certificate may be for.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub(super) fn strategy() -> Strategy {
    Strategy {
        prepare_update: |new, old| keep(new, old, "spec"),
        validate,
        validate_update: |new, old| conditions(new, old, false),
        validate_status: |new, old| conditions(new, old, false),
        prepare_approval,
        validate_approval: |new, old| conditions(new, old, true),
        selectable: |value| vec![("spec.signerName", super::text(value, &["spec", "signerName"]))],
        selectable_keys: &["spec.signerName"],
        ..Strategy::default()
    }
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    if let (Some(fields), Some(value)) = (new.as_object_mut(), old.get(field)) {
        fields.insert(field.to_owned(), value.clone());
    }
}

/// An approval changes conditions, and nothing else of the status.
fn prepare_approval(new: &mut Value, old: &Value) {
    let conditions = new.get_mut("status").and_then(|status| status.get_mut("conditions")).map(Value::take);
    keep(new, old, "status");
    let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) else { return };
    match conditions {
        Some(conditions) => status.insert("conditions".into(), conditions),
        None => status.remove("conditions"),
    };
}

fn validate(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if let Err(why) = csr::Request::decode(spec.str("request")) {
        errors.invalid(spec.at("request"), spec.str("request"), why);
    }
    let usages: Vec<&str> = spec.strings("usages").collect();
    if usages.is_empty() {
        errors.required(spec.at("usages"), "usages is required");
    }
    for (i, usage) in usages.iter().enumerate() {
        if !USAGES.contains(usage) {
            errors.not_supported(spec.at("usages").index(i), *usage, USAGES);
        }
        if usages[..i].contains(usage) {
            errors.duplicate(spec.at("usages").index(i), *usage);
        }
    }
    signer_name(spec.str("signerName"), &spec.at("signerName"), &mut errors);
    if spec.str("signerName") == csr::LEGACY_UNKNOWN {
        let why = "the legacy signerName is not allowed via this API version";
        errors.invalid(spec.at("signerName"), csr::LEGACY_UNKNOWN, why);
    }
    if let Some(seconds) = spec.int("expirationSeconds").filter(|seconds| *seconds < EXPIRATION_MIN_S) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(spec.at("expirationSeconds"), seconds, why);
    }
    condition_list(&root, &mut errors);
    errors.0
}

/// What a signer issued: certificates in PEM and nothing else.
fn issued(encoded: &str) -> Result<(), String> {
    const BEGIN: &str = "-----BEGIN ";
    let none = || "must contain one or more PEM blocks".to_owned();
    let text = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or_else(none)?;
    let mut count = 0;
    for block in text.split(BEGIN).skip(1) {
        let (kind, rest) = block.split_once("-----").ok_or_else(none)?;
        if kind != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}"));
        }
        let body = rest.split_once("-----END CERTIFICATE-----").ok_or_else(none)?.0;
        if body.contains(':') {
            return Err("no PEM block headers are permitted".into());
        }
        let packed: String = body.split_whitespace().collect();
        let der = STANDARD.decode(packed).map_err(|_| none())?;
        x509_parser::parse_x509_certificate(&der).map_err(|_| "x509: malformed certificate".to_owned())?;
        count += 1;
    }
    if count == 0 { Err(none()) } else { Ok(()) }
}

fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path.clone(), "");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, rest] = parts[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(path.clone(), name, why);
        return;
    };
    for message in names::is_dns1123_subdomain(domain) {
        errors.invalid(path.clone(), domain, format!("validating label {domain:?}: {message}"));
    }
    if domain.split('.').count() < 2 {
        let why = "should be a domain with at least two segments separated by dots";
        errors.invalid(path.clone(), domain, why);
    }
    if domain.len() > SIGNER_DOMAIN_MAX_BYTES {
        errors.push(FieldError::too_long(path.clone(), SIGNER_DOMAIN_MAX_BYTES));
    }
    for part in rest.split('.') {
        for message in names::is_dns1123_subdomain(part) {
            errors.invalid(path.clone(), rest, format!("validating label {part:?}: {message}"));
        }
    }
}

fn condition_list(root: &At<'_>, errors: &mut Errors) {
    let status = root.child("status");
    let mut seen: Vec<&str> = Vec::new();
    for condition in status.items("conditions") {
        let kind = condition.str("type");
        errors.need(&condition, "type");
        let known: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["True", "False", "Unknown"],
        };
        errors.one_of(&condition, "status", known);
        if seen.contains(&kind) {
            errors.duplicate(condition.at("type"), kind);
        }
        let opposite = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(&opposite) {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(condition.at("type"), kind, why);
        }
        seen.push(kind);
    }
}

/// Who approves or denies does so by the subresource for it, and for good.
fn conditions(new: &Value, old: &Value, approval: bool) -> Vec<FieldError> {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    let (status, had) = (root.child("status"), old_root.child("status"));
    let path = status.at("conditions");
    let of = |at: &At<'_>, kind: &str| {
        at.list("conditions")
            .iter()
            .filter(|condition| condition["type"] == kind)
            .cloned()
            .collect::<Vec<_>>()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        let (now, before) = (of(&status, kind), of(&had, kind));
        if now.is_empty() && !before.is_empty() {
            errors.forbidden(path.clone(), format!("updates may not remove a condition of type {kind:?}"));
        }
        if !approval && kind != "Failed" && before.is_empty() && !now.is_empty() {
            errors.forbidden(path.clone(), format!("updates may not add a condition of type {kind:?}"));
        }
        if kind != "Failed" && !before.is_empty() && !now.is_empty() && now != before {
            errors.forbidden(path.clone(), format!("updates may not modify a condition of type {kind:?}"));
        }
    }
    let (certificate, before) = (status.str("certificate"), had.str("certificate"));
    if before.is_empty()
        && !certificate.is_empty()
        && let Err(why) = issued(certificate)
    {
        errors.invalid(status.at("certificate"), "<certificate data>", why);
    }
    if !before.is_empty() && certificate != before {
        errors.forbidden(status.at("certificate"), "updates may not set certificate content once it is set");
    }
    condition_list(&root, &mut errors);
    errors.0
}
