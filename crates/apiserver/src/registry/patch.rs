//! patch: JSON, merge and strategic merge patches of objects and their parts.
//! Upstream counterpart: `endpoints/handlers/patch.go`.

use super::object::Decoded;
use super::update::{check_name, modify};
use super::{Answer, Part, Writing};
use crate::negotiate;
use skeg_api::decode::{self, FieldValidation};
use skeg_api::field::{FieldError, Path};
use skeg_api::patch::{self, PatchType};
use skeg_api::{Kind, Status, Value};

/// The document of a patch.
pub struct Patch {
    kind: PatchType,
    document: Value,
    duplicates: Vec<String>,
}

impl Patch {
    pub fn read(w: &Writing<'_>, bytes: &[u8]) -> Result<Self, Status> {
        let types = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
        let media_type = negotiate::media_type(w.headers);
        let kind = match PatchType::of_media_type(media_type) {
            None | Some(PatchType::Apply) => {
                let text = format!(
                    "the body of the request was in an unknown format - accepted media types include: {types}"
                );
                return Err(Status::unsupported_media_type(text));
            }
            Some(kind) => kind,
        };
        if w.options.force.is_some() {
            let error = FieldError::forbidden(Path::new("force"), "may not be specified for non-apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        let decoded = decode::decode_json(bytes).map_err(|error| {
            let text = error.to_string();
            let text = text.rsplit_once("json parse error: ").map_or(text.as_str(), |(_, why)| why);
            Status::bad_request(format!("error decoding patch: {text}"))
        })?;
        Ok(Patch { kind, document: decoded.value, duplicates: decoded.duplicates })
    }

    /// The patched object, checked, with defaults.
    pub fn apply(
        &self,
        kind: &Kind,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
        old: &Value,
    ) -> Result<Decoded, Status> {
        let mut value = old.clone();
        // Only a resourceVersion in the patch makes it conditional.
        match self.kind {
            PatchType::Json => patch::json_patch(&mut value, &self.document)?,
            PatchType::Merge => patch::merge_patch(&mut value, self.document.clone())?,
            _ => patch::strategic_merge_patch(&mut value, self.document.clone(), kind.schema.root())?,
        }
        let refuse = |value: &Value, why: String| {
            let error = FieldError::invalid(Path::new("patch"), value.to_string(), why);
            Status::invalid("", "", "", &[error])
        };
        let checked = decode::check(&kind.schema, &mut value);
        let checked = checked.map_err(|error| refuse(&self.document, error.to_string()))?;
        let complaints = decode::complaints(self.duplicates.clone(), checked.unknown, validation);
        if validation == FieldValidation::Strict && !complaints.is_empty() {
            return Err(refuse(&self.document, decode::strict_error(&complaints)));
        }
        warnings.extend(complaints);
        (kind.strategy.default)(&mut value);
        if !self.names_version() {
            skeg_api::meta::set_resource_version(&mut value, "");
        }
        Ok(Decoded { value, invalid: checked.invalid })
    }

    /// Whether the patch sets or tests the resourceVersion.
    fn names_version(&self) -> bool {
        match &self.document {
            Value::Array(operations) => operations.iter().any(|operation| {
                operation.get("path").and_then(Value::as_str) == Some("/metadata/resourceVersion")
            }),
            document => {
                document.pointer("/metadata/resourceVersion").is_some_and(|v| !v.is_null() && v != "")
            }
        }
    }
}

pub async fn serve(w: &mut Writing<'_>, part: Part, bytes: &[u8]) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let patch = Patch::read(w, bytes)?;
    let validation = w.options.field_validation;
    modify(w, part, &mut |warnings, old| {
        let decoded = patch.apply(&ctx.served.kind, validation, warnings, old)?;
        check_kind(&ctx.served.kind, &decoded.value)?;
        check_name(&decoded.value, &ctx.info.name, &ctx.info.namespace)?;
        Ok(decoded)
    })
    .await
}

/// A patch may not make another kind of the object.
fn check_kind(kind: &Kind, value: &Value) -> Result<(), Status> {
    let (own, version) = (skeg_api::meta::kind(value), skeg_api::meta::api_version(value));
    if own == &*kind.gvk.kind && version == kind.gvk.api_version() {
        return Ok(());
    }
    let text = if version == kind.gvk.api_version() || version.is_empty() {
        format!("no kind {own:?} is registered for version {version:?} in scheme")
    } else {
        format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            kind.gvk.api_version()
        )
    };
    Err(Status::bad_request(text))
}
