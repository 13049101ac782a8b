//! The types of `request`, `namespaceObject` and of variables, with upstream's names.

use serde_json::{Value, json};
use skeg_cel::{Schema, Type};
use std::sync::LazyLock;

pub const VARIABLES: &str = "kubernetes.variables";

fn object(name: &str, fields: &[(&str, Type)]) -> Type {
    let fields = fields.iter().map(|(field, of)| ((*field).to_owned(), of.clone()));
    Type::object(&format!("kubernetes.{name}"), fields)
}

pub static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let text = || Type::String;
    let kind = object("GroupVersionKind", &[("group", text()), ("version", text()), ("kind", text())]);
    let resource =
        object("GroupVersionResource", &[("group", text()), ("version", text()), ("resource", text())]);
    let user = object(
        "UserInfo",
        &[
            ("username", text()),
            ("uid", text()),
            ("groups", Type::list(text())),
            ("extra", Type::map(text(), Type::list(text()))),
        ],
    );
    object(
        "AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
});

pub static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    let text = || Type::String;
    let labels = || Type::map(text(), text());
    let metadata = object(
        "NamespaceMetadata",
        &[
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", labels()),
            ("annotations", labels()),
            ("UID", text()),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", text()),
            ("finalizers", Type::list(text())),
        ],
    );
    let condition = object(
        "NamespaceCondition",
        &[
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", Type::Timestamp),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let status = object("NamespaceStatus", &[("conditions", Type::list(condition)), ("phase", text())]);
    let spec = object("NamespaceSpec", &[("finalizers", Type::list(text()))]);
    object("Namespace", &[("metadata", metadata), ("spec", spec), ("status", status)])
});

/// What a Namespace's JSON stands for: times are times, and what has no type above is not seen.
pub static NAMESPACE_SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let (text, number) = (json!({"type": "string"}), json!({"type": "integer"}));
    let time = json!({"type": "string", "format": "date-time"});
    let (list, map) = (
        |of: &Value| json!({"type": "array", "items": of}),
        |of: &Value| json!({"type": "object", "additionalProperties": of}),
    );
    let structure = |properties: Value| json!({"type": "object", "properties": properties});
    let condition = structure(json!({"status": text, "type": text, "lastTransitionTime": time,
        "message": text, "reason": text}));
    Schema::new(&structure(json!({
        "metadata": structure(json!({"name": text, "generateName": text, "namespace": text,
            "labels": map(&text), "annotations": map(&text), "UID": text, "creationTimestamp": time,
            "deletionGracePeriodSeconds": number, "deletionTimestamp": time, "generation": number,
            "resourceVersion": text, "finalizers": list(&text)})),
        "spec": structure(json!({"finalizers": list(&text)})),
        "status": structure(json!({"conditions": list(&condition), "phase": text})),
    })))
});

/// The type that a variable has for others: simple values, lists and maps of such; all else is untyped.
pub fn of_variable(of: &Type) -> Type {
    match of {
        Type::Bool
        | Type::Bytes
        | Type::Double
        | Type::Duration
        | Type::Int
        | Type::Null
        | Type::String
        | Type::Timestamp
        | Type::Uint => of.clone(),
        Type::List(item) => Type::list(of_variable(item)),
        Type::Map(pair) => Type::map(of_variable(&pair.0), of_variable(&pair.1)),
        _ => Type::Dyn,
    }
}
