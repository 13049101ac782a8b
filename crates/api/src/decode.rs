//! Bytes to objects: JSON and YAML into values with duplicate keys noticed at any depth, then one
//! walk against the schema that does what decoding into typed structs does upstream: wrong types
//! are refused, unknown fields and nulls dropped, quantities and times put in canonical form.
//! It knows nothing of kinds beyond their schema and name.
//! Upstream counterpart: `k8s.io/apimachinery/pkg/runtime/serializer/json`, `sigs.k8s.io/json`.

mod check;
mod order;
mod parse;
mod scalar;

pub use check::{Checked, TypeError, check};
pub use parse::{DEPTH_MAX, Decoded, SyntaxError, decode_apply, decode_json, decode_yaml, depth};

use crate::field::{FieldError, Path};
use crate::gvk::Gvk;
use crate::schema::Schema;
use crate::status::Status;
use serde_json::Value;

/// What to do about unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    pub const SUPPORTED: [&str; 3] = ["Ignore", "Strict", "Warn"];

    /// Of the query parameter; absent and empty mean `Warn`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(FieldValidation::Warn),
            "Ignore" => Some(FieldValidation::Ignore),
            "Strict" => Some(FieldValidation::Strict),
            _ => None,
        }
    }
}

/// The encodings of a request body that carry an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

/// An object that was read from a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub value: Value,
    /// Unknown and duplicate fields, each a Warning header of the answer.
    pub warnings: Vec<String>,
    /// What a custom resource says wrongly of its kind, which its validation reports as 422.
    pub invalid: Vec<FieldError>,
}

/// Reads the object of a create or update: parses, fills in `apiVersion` and `kind` where the body
/// leaves them out (but those of custom resources), refuses another kind, and checks every field.
pub fn decode_object(
    bytes: &[u8],
    encoding: Encoding,
    expected: &Gvk,
    schema: &Schema,
    validation: FieldValidation,
) -> Result<Object, Status> {
    let decoded = match encoding {
        Encoding::Json => decode_json(bytes),
        Encoding::Yaml => decode_yaml(bytes),
    };
    let Decoded { mut value, duplicates } =
        decoded.map_err(|error| unrecognized(expected, &error.to_string(), bytes))?;
    let invalid = match schema.is_custom() {
        true => identify_custom(&value, expected, bytes)?,
        false => identify(&mut value, expected, bytes).map(|()| Vec::new())?,
    };
    let Checked { unknown } = check(schema, &mut value).map_err(|error| cannot_handle(expected, &error))?;
    let has_any = !duplicates.is_empty() || !unknown.is_empty();
    let complaints = match encoding {
        Encoding::Json if has_any && validation != FieldValidation::Ignore => {
            order::json_complaints(bytes, unknown)
        }
        _ => complaints(duplicates, unknown, validation),
    };
    if validation == FieldValidation::Strict && !complaints.is_empty() {
        return Err(cannot_handle(expected, strict_error(&complaints)));
    }
    Ok(Object { value, warnings: complaints, invalid })
}

/// The complaints that `validation` wants to hear of, where duplicates (of a patch, or of YAML) are
/// found by another decoder than unknown fields.
pub fn complaints(duplicates: Vec<String>, unknown: Vec<String>, validation: FieldValidation) -> Vec<String> {
    if validation == FieldValidation::Ignore {
        return Vec::new();
    }
    let mut all = duplicates;
    all.extend(unknown);
    all
}

/// The text of the error that `fieldValidation=Strict` makes of complaints.
pub fn strict_error(complaints: &[String]) -> String {
    // The YAML reader reports all that it finds as one error of several lines.
    let (yaml, others): (Vec<String>, Vec<String>) =
        complaints.iter().cloned().partition(|complaint| complaint.starts_with("line "));
    let yaml = (!yaml.is_empty()).then(|| yaml_error(&yaml));
    format!("strict decoding error: {}", yaml.into_iter().chain(others).collect::<Vec<_>>().join(", "))
}

/// The one error that the YAML reader makes of complaints.
pub fn yaml_error(complaints: &[String]) -> String {
    let lines: String = complaints.iter().map(|line| format!("\n  {line}")).collect();
    format!("yaml: unmarshal errors:{lines}")
}

/// What a value says of its kind: `apiVersion` and `kind`, each empty where it says nothing.
///
/// # Errors
/// If it can be no object, in upstream's words.
pub fn types(value: &Value) -> Result<(&str, &str), String> {
    let refused = |what: String| {
        Err(format!("couldn't get version/kind; json parse error: json: cannot unmarshal {what}"))
    };
    let map = match value {
        Value::Object(map) => map,
        Value::Null => return Ok(("", "")),
        other => {
            return refused(format!(
                "{} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                 \"json:\\\"kind,omitempty\\\"\" }}",
                scalar::json_type(other)
            ));
        }
    };
    for field in ["apiVersion", "kind"] {
        if let Some(other) = map.get(field).filter(|value| !value.is_null() && !value.is_string()) {
            let what = scalar::json_type(other);
            return refused(format!("{what} into Go struct field .{field} of type string"));
        }
    }
    Ok((text(map.get("apiVersion")), text(map.get("kind"))))
}

/// Fills in what the body does not say of its kind, and refuses what it says wrongly.
fn identify(value: &mut Value, expected: &Gvk, bytes: &[u8]) -> Result<(), Status> {
    let (api_version, kind) = types(value).map_err(|error| unrecognized(expected, &error, bytes))?;
    if !api_version.is_empty() && api_version != expected.api_version() {
        let (version, name) = (version_of(api_version), if kind.is_empty() { &*expected.kind } else { kind });
        // A kind of another version is converted upstream where that is possible; each kind here
        // has one version, so that no conversion exists.
        return Err(Status::bad_request(if kind.is_empty() || kind == &*expected.kind {
            version_differs(api_version, expected)
        } else {
            format!(
                "{name} in version \"{version}\" cannot be handled as a {}: no kind \"{kind}\" is registered for \
                 version \"{api_version}\"",
                expected.kind
            )
        }));
    }
    if !kind.is_empty() && kind != &*expected.kind {
        return Err(Status::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {}: converting ({}.{kind}) to ({}.{}): unknown conversion",
            expected.version,
            expected.kind,
            expected.version,
            internal_group(expected),
            expected.kind
        )));
    }
    let (no_version, no_kind) = (api_version.is_empty(), kind.is_empty());
    if value.is_null() {
        *value = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(map) = value {
        if no_version {
            map.insert("apiVersion".into(), expected.api_version().into());
        }
        if no_kind {
            map.insert("kind".into(), (*expected.kind).into());
        }
    }
    Ok(())
}

/// What the body of a custom resource must say of its kind.
fn identify_custom(value: &Value, expected: &Gvk, bytes: &[u8]) -> Result<Vec<FieldError>, Status> {
    let (api_version, kind) = types(value).map_err(|error| unrecognized(expected, &error, bytes))?;
    if kind.is_empty() {
        return Err(unrecognized(expected, &kind_missing(&String::from_utf8_lossy(bytes)), bytes));
    }
    if api_version != expected.api_version() {
        return Err(Status::bad_request(version_differs(api_version, expected)));
    }
    Ok(misnamed(value, expected).into_iter().collect())
}

/// The message about an object that says nothing of its kind.
pub fn kind_missing(object: &str) -> String {
    format!("Object 'Kind' is missing in '{object}'")
}

/// What a custom resource of the right version says wrongly of its kind.
pub fn misnamed(value: &Value, expected: &Gvk) -> Option<FieldError> {
    let (kind, wanted) = (text(value.get("kind")), &expected.kind);
    (kind != &**wanted).then(|| FieldError::invalid(Path::new("kind"), kind, format!("must be {wanted}")))
}

fn version_differs(api_version: &str, expected: &Gvk) -> String {
    let wanted = expected.api_version();
    format!("the API version in the data ({api_version}) does not match the expected API version ({wanted})")
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or("")
}

fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

/// The package name of the internal version, which one error message shows.
fn internal_group(gvk: &Gvk) -> &str {
    if gvk.group.is_empty() { "core" } else { gvk.group.split('.').next().unwrap_or("core") }
}

/// 400: the body was recognised as a kind but not taken.
pub fn cannot_handle(gvk: &Gvk, why: impl std::fmt::Display) -> Status {
    let Gvk { version, kind, .. } = gvk;
    Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
}

/// 400: the body could not be read at all.
pub fn unrecognized(expected: &Gvk, why: &str, body: &[u8]) -> Status {
    let kind = &expected.kind;
    let body = summary(body);
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({body})"
    ))
}

/// How much of a body an error shows.
const SUMMARY_LEN_MAX: usize = 30;

fn summary(body: &[u8]) -> String {
    let shown = &body[..body.len().min(SUMMARY_LEN_MAX)];
    let more = if body.len() > SUMMARY_LEN_MAX { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => {
            let hex: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
