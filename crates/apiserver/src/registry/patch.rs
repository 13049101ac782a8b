//! patch: JSON, merge and strategic merge patches of objects and their parts, and server-side apply.
//! Upstream counterpart: `endpoints/handlers/patch.go`.

use super::object::Decoded;
use super::update::{check_name, modify};
use super::{Answer, Context, Part, WriteOptions, Writing, create, read};
use crate::negotiate;
use http::HeaderMap;
use skeg_api::decode::{self, FieldValidation};
use skeg_api::field::{FieldError, Path};
use skeg_api::fieldset::{self, Apply};
use skeg_api::patch::{self, PatchType};
use skeg_api::{Kind, Reason, Status, Value, meta};

/// The type of a patch; 415 for one that the kind does not know.
pub fn media_type(kind: &Kind, headers: &HeaderMap) -> Result<PatchType, Status> {
    // Strategic merge patches follow what Go types say, and custom resources have none.
    let known = || {
        PatchType::ALL
            .into_iter()
            .filter(|(patch, _)| *patch != PatchType::StrategicMerge || !kind.schema.is_custom())
    };
    let sent = negotiate::media_type(headers);
    known().find(|(_, media_type)| *media_type == sent).map(|(patch, _)| patch).ok_or_else(|| {
        let types: Vec<&str> = known().map(|(_, media_type)| media_type).collect();
        Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            types.join(", ")
        ))
    })
}

/// The document of a patch.
pub struct Patch<'a> {
    ctx: Context<'a>,
    kind: PatchType,
    options: WriteOptions,
    document: Value,
    duplicates: Vec<String>,
}

impl<'a> Patch<'a> {
    pub fn read(w: &Writing<'a>, bytes: &[u8]) -> Result<Self, Status> {
        let kind = media_type(&w.ctx.served.kind, w.headers)?;
        let decoded = match kind {
            PatchType::Apply => decode::decode_apply(bytes)
                .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?,
            _ => decode::decode_json(bytes).map_err(|error| {
                let text = error.to_string();
                let text = text.rsplit_once("json parse error: ").map_or(text.as_str(), |(_, why)| why);
                Status::bad_request(format!("error decoding patch: {text}"))
            })?,
        };
        let options = w.options.clone();
        Ok(Patch { ctx: w.ctx, kind, options, document: decoded.value, duplicates: decoded.duplicates })
    }

    pub fn is_apply(&self) -> bool {
        self.kind == PatchType::Apply
    }

    /// The patched object, checked, with defaults. `old` is `None` only for an apply of an object
    /// that does not exist.
    pub fn apply(
        &self,
        kind: &Kind,
        part: Part,
        warnings: &mut Vec<String>,
        old: Option<&Value>,
    ) -> Result<Decoded, Status> {
        let mut value = match self.kind {
            PatchType::Apply => self.server_side(kind, part, old)?,
            _ => old.cloned().unwrap_or_default(),
        };
        match self.kind {
            PatchType::Json => patch::json_patch(&mut value, &self.document)?,
            PatchType::Merge => patch::merge_patch(&mut value, self.document.clone())?,
            PatchType::StrategicMerge => {
                patch::strategic_merge_patch(&mut value, self.document.clone(), kind.schema.root())?;
            }
            PatchType::Apply => {}
        }
        if kind.custom.is_some() && meta::kind(&value).is_empty() {
            return Err(self.unfit(kind, &value, &decode::kind_missing(&value.to_string())));
        }
        let checked = decode::check(&kind.schema, &mut value)
            .map_err(|error| self.unfit(kind, &value, &error.to_string()))?;
        let validation = self.options.field_validation;
        let complaints = decode::complaints(self.duplicates.clone(), checked.unknown, validation);
        if validation == FieldValidation::Strict && !complaints.is_empty() {
            return Err(match self.kind {
                PatchType::Apply => Status::bad_request(format!(
                    "error strict decoding YAML: error converting YAML to JSON: {}",
                    decode::yaml_error(&complaints)
                )),
                _ => self.unfit(kind, &value, &decode::strict_error(&complaints)),
            });
        }
        warnings.extend(complaints);
        kind.default(&mut value);
        // Only a resourceVersion in the patch makes it conditional.
        if !self.names_version() {
            meta::set_resource_version(&mut value, "");
        }
        let invalid = match kind.custom {
            Some(_) => decode::misnamed(&value, &kind.gvk).into_iter().collect(),
            None => Vec::new(),
        };
        Ok(Decoded { value, invalid, is_applied: self.is_apply() })
    }

    fn server_side(&self, kind: &Kind, part: Part, old: Option<&Value>) -> Result<Value, Status> {
        let api_version = kind.gvk.api_version();
        let tracking = self.ctx.tracking(&self.options, part, &api_version);
        let request = Apply { tracking, kind: &kind.gvk, force: self.options.force };
        let portion = match part {
            Part::Portion(name) => kind.strategy.portion(name),
            _ => None,
        };
        match portion {
            Some(portion) => {
                let held = portion.hold(&self.document);
                fieldset::apply(old, &held, &request, kind.schema.root())
            }
            None => fieldset::apply(old, &self.document, &request, kind.schema.root()),
        }
    }

    /// The refusal of what a patch makes of an object.
    fn unfit(&self, kind: &Kind, value: &Value, why: &str) -> Status {
        let shown = match self.kind {
            PatchType::Apply => {
                let (namespace, name, gvk) = (meta::namespace(value), meta::name(value), kind.gvk.display());
                return Status::new(
                    500,
                    Reason::Empty,
                    format!(
                        "failed to convert new object ({namespace}/{name}; {gvk}) to proper version: unable to \
                         convert unstructured object to {gvk}: {why}"
                    ),
                );
            }
            PatchType::StrategicMerge => patch::display(&self.document),
            PatchType::Json | PatchType::Merge => value.to_string(),
        };
        Status::invalid("", "", "", &[FieldError::invalid(Path::new("patch"), shown, why.to_owned())])
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
    let kind = &ctx.served.kind;
    let patch = Patch::read(w, bytes)?;
    let checked = |patched: &mut Decoded| {
        create::enter_namespace(&mut patched.value, kind.namespaced, &ctx.info.namespace)?;
        check_kind(kind, &patched.value)?;
        check_name(&patched.value, &ctx.info.name, &ctx.info.namespace)
    };
    let is_missing = || Ok::<_, Status>(read::resource(ctx)?.get(&ctx.path()).is_none());
    if patch.is_apply() && part == Part::Main && is_missing()? {
        ctx.may_create()?;
        let warned = w.warnings.len();
        let mut made = patch.apply(kind, part, &mut w.warnings, None)?;
        let uid = meta::uid(&made.value);
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(ctx.conflict(&ctx.info.name, why));
        }
        checked(&mut made)?;
        meta::set_resource_version(&mut made.value, "");
        match create::create(w, made).await {
            // Another writer was first: it is an update by now.
            Err(status) if status.is_already_exists() && !is_missing()? => w.warnings.truncate(warned),
            answer => return answer,
        }
    }
    modify(w, part, &mut |warnings, old| {
        let mut patched = patch.apply(kind, part, warnings, Some(old))?;
        checked(&mut patched)?;
        Ok(patched)
    })
    .await
}

/// A patch may not make another kind of the object.
fn check_kind(kind: &Kind, value: &Value) -> Result<(), Status> {
    let (own, version) = (skeg_api::meta::kind(value), skeg_api::meta::api_version(value));
    // Any kind is one in the version of a custom resource: its validation refuses it.
    if (own == &*kind.gvk.kind || kind.custom.is_some()) && version == kind.gvk.api_version() {
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
