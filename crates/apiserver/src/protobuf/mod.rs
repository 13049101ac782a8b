//! The protobuf encoding of objects, by a table of field numbers: request bodies become JSON at
//! the door, so that nothing behind knows of them, and answers are made of JSON bytes as they
//! leave. No kind has code of its own.
//! Upstream counterpart: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`.

mod json;
mod read;
mod table;
mod write;

use crate::list::ListMeta;
use crate::record::Body;
use serde_json::Value;
use skeg_api::{GroupVersion, Gvk, Status, decode};
use std::sync::Arc;
use table::TABLE;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What precedes the envelope.
const MAGIC: &[u8] = b"k8s\0";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

const PARTIAL: &str = "PartialObjectMetadata";

/// Why a message could not be read, in the words of upstream's generated code.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("empty data")]
    Empty,
    #[error("empty body")]
    NoEnvelope,
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("unexpected EOF")]
    Short,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: negative length found during unmarshaling")]
    NegativeLength,
    #[error("proto: wrong wireType = {1} for field {name}", name = go_name(.0))]
    WireType(&'static str, u8),
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    #[error("proto: illegal tag 0 (wire type {0})")]
    Tag(u8),
    #[error("proto: unexpected end of group")]
    EndGroup,
    #[error("proto: field {0} contains invalid UTF-8")]
    Text(&'static str),
    #[error("proto: field {0} is no JSON")]
    Raw(&'static str),
    #[error("proto: field {0} is no time")]
    Time(&'static str),
    #[error("proto: nested too deep")]
    Depth,
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Kind { kind: String, version: String },
}

/// The field of the Go struct.
fn go_name(field: &str) -> String {
    if field == "metadata" {
        return "ObjectMeta".to_owned();
    }
    let mut chars = field.chars();
    chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

/// The JSON of a request body. `expected` is the kind that the body is to be, which the envelope
/// may leave out.
pub fn body_to_json(bytes: &[u8], expected: &Gvk) -> Result<Vec<u8>, Status> {
    let unrecognized = |error: ProtobufError| decode::unrecognized(expected, &error.to_string(), bytes);
    let mut envelope = read::envelope(bytes).map_err(unrecognized)?;
    if envelope.kind.is_empty() {
        envelope.kind = expected.kind.to_string();
    }
    if envelope.version.is_empty() {
        envelope.version = expected.api_version();
    }
    let value = read::object(&envelope, 0).map_err(|error| {
        let version = envelope.version.rsplit('/').next().unwrap_or_default();
        let (kind, expected) = (&envelope.kind, &expected.kind);
        Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {expected}: {error}"
        ))
    })?;
    serde_json::to_vec(&value).map_err(Status::internal)
}

fn message_of(version: &str, kind: &str) -> Option<usize> {
    let gv = GroupVersion::parse(version)?;
    let own = match &*gv.group {
        "" => format!("io.k8s.api.core.{}.{kind}", gv.version),
        "meta.k8s.io" => format!("io.k8s.apimachinery.pkg.apis.meta.{}.{kind}", gv.version),
        "apiregistration.k8s.io" => {
            format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{}.{kind}", gv.version)
        }
        "apiextensions.k8s.io" => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{}.{kind}", gv.version)
        }
        group => format!("io.k8s.api.{}.{}.{kind}", group.split('.').next()?, gv.version),
    };
    let find = |name: &str| TABLE.by_name.get(name).copied();
    // Options belong to every group; the kinds of discovery and Status have none.
    let common = || {
        let is_common = kind.ends_with("Options")
            || version == "v1"
                && matches!(kind, "Status" | "APIVersions" | "APIGroup" | "APIGroupList" | "APIResourceList");
        if is_common { find(&format!("{META}.{kind}")) } else { None }
    };
    find(&own).or_else(common)
}

/// A value as a whole protobuf body; its `apiVersion` and `kind` say what it is.
pub fn encode(value: &Value) -> Result<Vec<u8>, Status> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    // Kinds of discovery that have been there before versions do not tell theirs.
    let registered = if version.is_empty() { "v1" } else { version };
    let mut out = Vec::with_capacity(1024);
    if let Some(message) = message_of(registered, kind) {
        let json = value.to_string();
        write::envelope(version, kind, &mut out, |out| write::fields(message, json.as_bytes(), out))?;
        return Ok(out);
    }
    let item = kind.strip_suffix("List").and_then(|item| message_of(registered, item));
    let (Some(message), Some(items)) = (item, value.get("items").and_then(Value::as_array)) else {
        return Err(Status::not_acceptable(format!(
            "object {kind} does not implement the protobuf marshalling interface and cannot be encoded to a \
             protobuf message"
        )));
    };
    let json = |value: Option<&Value>| value.map_or_else(|| "{}".to_owned(), Value::to_string);
    write::envelope(version, kind, &mut out, |out| {
        write::list(json(value.get("metadata")).as_bytes(), out)?;
        items.iter().try_for_each(|item| write::item(message, json(Some(item)).as_bytes(), out))
    })?;
    Ok(out)
}

/// What stored objects are written as, from their JSON bytes: their kind, or only its metadata.
#[derive(Clone)]
pub struct Target {
    message: usize,
    version: Arc<str>,
    kind: Arc<str>,
    list_kind: Arc<str>,
}

impl Target {
    pub fn of(kind: &skeg_api::Kind) -> Option<Self> {
        let version = kind.gvk.api_version();
        Some(Target {
            message: message_of(&version, &kind.gvk.kind)?,
            version: version.into(),
            kind: kind.gvk.kind.clone(),
            list_kind: kind.list_kind.clone(),
        })
    }

    /// `PartialObjectMetadata`: the other fields are passed over.
    pub fn metadata() -> Option<Self> {
        Some(Target {
            message: message_of("meta.k8s.io/v1", PARTIAL)?,
            version: "meta.k8s.io/v1".into(),
            kind: PARTIAL.into(),
            list_kind: "PartialObjectMetadataList".into(),
        })
    }

    /// The whole body of one object.
    pub fn object(&self, body: &Body, revision: u64) -> Result<Vec<u8>, Status> {
        let mut json = Vec::with_capacity(body.len(revision));
        body.write(revision, &mut json);
        let mut out = Vec::with_capacity(json.len());
        write::envelope(&self.version, &self.kind, &mut out, |out| write::fields(self.message, &json, out))?;
        Ok(out)
    }

    /// Whether it is the object as it is stored.
    pub fn is_whole(&self) -> bool {
        &*self.kind != PARTIAL
    }

    /// The frame of a watch that shows one object.
    pub fn frame(&self, kind: &str, body: &Body, revision: u64) -> Vec<u8> {
        let object = self.object(body, revision).unwrap_or_else(|error| {
            tracing::error!(%error, "an object in the cache does not encode in protobuf");
            Vec::new()
        });
        frame(kind, &object)
    }

    /// The whole body of a list.
    pub fn list<'a>(
        &self,
        meta: &ListMeta,
        objects: impl Iterator<Item = (&'a Body, u64)>,
    ) -> Result<Vec<u8>, Status> {
        let mut json = Vec::new();
        meta.write(&mut json);
        let mut out = Vec::new();
        write::envelope(&self.version, &self.list_kind, &mut out, |out| {
            write::list(&json, out)?;
            for (body, revision) in objects {
                json.clear();
                body.write(revision, &mut json);
                write::item(self.message, &json, out)?;
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// One frame of a watch: its length in four bytes, the highest first, and a `WatchEvent` without an
/// envelope around an object that has one.
pub fn frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    out.extend_from_slice(&[0; 4]);
    write::event(kind, object, &mut out);
    let len = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

#[cfg(test)]
mod tests;
