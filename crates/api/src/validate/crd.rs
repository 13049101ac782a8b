//! CustomResourceDefinition: names, versions, conversion, subresources and columns. What a schema
//! may say is in [`structural`].
//! Upstream counterpart: `apiextensions-apiserver/pkg/apis/apiextensions/validation`.

use super::at::{At, Errors};
use super::{conversion, structural, validations};
use crate::crd::{self, COLUMN_FORMATS, COLUMN_TYPES};
use crate::field::{ErrorKind, FieldError};
use crate::jsonpath::JsonPath;
use crate::kinds::Strategy;
use crate::{meta, names};
use serde_json::Value;
use std::collections::BTreeSet;

const SELECTABLE_FIELDS_MAX: usize = 8;
/// The annotation by which a group that is Kubernetes' own may be used.
const APPROVED: &str = "api-approved.kubernetes.io";

pub(super) fn strategy() -> Strategy {
    Strategy {
        validate,
        validate_create,
        validate_update,
        validate_status: |new, _| stored_versions(new),
        prepare_create: crd::prepare_create,
        prepare_update: crd::prepare_update,
        warnings,
        delete_finalizer: Some(crd::CLEANUP),
        ..Strategy::default()
    }
}

fn validate(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let (group, name) = (spec.str("group"), meta::name(value));
    let accepted = spec.child("names");
    if name != format!("{}.{group}", accepted.str("plural")) {
        errors.invalid(root.at("metadata").child("name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
    if errors.need(&spec, "group") {
        let messages = names::is_dns1123_subdomain(group);
        if messages.is_empty() && !group.contains('.') {
            errors.invalid(spec.at("group"), group, "should be a domain with at least one dot");
        }
        errors.each(&spec.at("group"), group, messages);
    }
    approval(value, group, &mut errors);
    errors.one_of(&spec, "scope", &["Cluster", "Namespaced"]);
    if spec.bool("preserveUnknownFields") {
        errors.invalid(
            spec.at("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    versions(&spec, &mut errors);
    for field in ["plural", "singular", "kind", "listKind"] {
        errors.need(&accepted, field);
    }
    check_names(&accepted, &mut errors);
    conversion::check(&spec.child("conversion"), &mut errors);
    errors.0
}

/// Groups of Kubernetes' own need an approval.
fn approval(value: &Value, group: &str, errors: &mut Errors) {
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group == *own || group.strip_suffix(own).is_some_and(|rest| rest.ends_with('.')));
    if !is_protected {
        return;
    }
    let path = At::root(value).at("metadata").child("annotations").key(APPROVED);
    match meta::annotation(value, APPROVED).unwrap_or_default() {
        "" => errors.required(
            path,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
        text if text.starts_with("unapproved") || text.starts_with("https://") || text.starts_with("http://") => {}
        text => errors.invalid(
            path,
            text,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
    }
}

fn check_names(names_at: &At<'_>, errors: &mut Errors) {
    let joined = |value: &str| names::is_dns1035_label(value).join(",");
    for field in ["plural", "singular"] {
        let value = names_at.str(field);
        let why = joined(value);
        if !value.is_empty() && !why.is_empty() {
            errors.invalid(names_at.at(field), value, why);
        }
    }
    for field in ["kind", "listKind"] {
        let value = names_at.str(field);
        let why = joined(&value.to_lowercase());
        if !value.is_empty() && !why.is_empty() {
            errors.invalid(
                names_at.at(field),
                value,
                format!("may have mixed case, but should otherwise match: {why}"),
            );
        }
    }
    for field in ["shortNames", "categories"] {
        for item in names_at.items(field) {
            let value = item.value.as_str().unwrap_or_default();
            let why = joined(value);
            if !why.is_empty() {
                errors.invalid(item.path, value, why);
            }
        }
    }
    let kind = names_at.str("kind");
    if !kind.is_empty() && kind == names_at.str("listKind") {
        errors.invalid(names_at.at("listKind"), kind, "kind and listKind may not be the same");
    }
}

fn versions(spec: &At<'_>, errors: &mut Errors) {
    let all: Vec<&str> = spec.items("versions").map(|version| version.str("name")).collect();
    if all.iter().collect::<BTreeSet<_>>().len() != all.len() {
        let value = spec.value["versions"].clone();
        errors.invalid(spec.at("versions"), value, "must contain unique version names");
    }
    if spec.items("versions").filter(|version| version.bool("storage")).count() != 1 {
        let value = spec.value["versions"].clone();
        errors.invalid(spec.at("versions"), value, "must have exactly one version marked as storage version");
    }
    for version in spec.items("versions") {
        let name = version.str("name");
        let why = names::is_dns1035_label(name).join(",");
        if !why.is_empty() {
            errors.invalid(version.at("name"), name, why);
        }
        if version.has("deprecationWarning") && !version.bool("deprecated") {
            errors.invalid(
                version.at("deprecationWarning"),
                version.str("deprecationWarning"),
                "can only be set for deprecated versions",
            );
        }
        let schema = version.child("schema").child("openAPIV3Schema");
        if schema.value.is_null() {
            errors.required(schema.path, "schemas are required");
        }
    }
    for version in holders(spec, "subresources") {
        subresources(&version.child("subresources"), errors);
    }
    for column in holders(spec, "additionalPrinterColumns")
        .iter()
        .flat_map(|version| version.items("additionalPrinterColumns"))
    {
        errors.need(&column, "name");
        errors.one_of(&column, "type", &COLUMN_TYPES);
        if !column.str("format").is_empty() {
            errors.optional_one_of(&column, "format", &COLUMN_FORMATS);
        }
        if errors.need(&column, "jsonPath") {
            simple_path(&column, "jsonPath", errors);
        }
    }
    for version in holders(spec, "selectableFields") {
        selectable(&version, errors);
    }
}

/// The versions as errors about one of their fields name them: what is the same in all of them is told
/// once, as if it were said for the definition as a whole.
fn holders<'a>(spec: &At<'a>, field: &str) -> Vec<At<'a>> {
    let versions: Vec<At<'a>> = spec.items("versions").collect();
    let own = |version: &At<'a>| version.value.get(field).filter(|value| !value.is_null());
    match versions.first() {
        Some(first) if versions.iter().all(|version| own(version) == own(first)) => {
            vec![At { value: first.value, path: spec.path.clone() }]
        }
        _ => versions,
    }
}

/// The schemas of a definition, each where errors place it.
fn schemas_of<'a>(spec: &At<'a>) -> impl Iterator<Item = At<'a>> {
    let whole = spec.path.clone();
    holders(spec, "schema").into_iter().filter_map(move |version| {
        let field = if version.path == whole { "validation" } else { "schema" };
        let value = version.value.get("schema")?.get("openAPIV3Schema").filter(|schema| !schema.is_null())?;
        Some(At { value, path: version.at(field).child("openAPIV3Schema") })
    })
}

/// Checks the schemas and their rules, but for what is as it was.
fn schemas(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = At::root(new).child("spec");
    let before: Vec<At<'_>> = old.map(|old| spec_of(old).collect()).unwrap_or_default();
    for schema in schemas_of(&spec) {
        if before.iter().any(|before| before.value == schema.value) {
            continue;
        }
        let known = errors.0.len();
        structural::check(&schema, &mut errors);
        if errors.0.len() == known {
            let mut found = Errors::default();
            validations::check(&schema, &mut found);
            if !found.0.is_empty() {
                keep_new(&mut found, &before);
            }
            errors.extend(found.0);
        }
    }
    errors.0
}

fn spec_of(definition: &Value) -> impl Iterator<Item = At<'_>> {
    schemas_of(&At::root(definition).child("spec")).collect::<Vec<_>>().into_iter()
}

/// Faults that a rule had before are let pass, so that it does not stand in the way of other changes.
fn keep_new(found: &mut Errors, before: &[At<'_>]) {
    let mut known = Errors::default();
    before.iter().for_each(|schema| validations::check(schema, &mut known));
    found.0.retain(|error| {
        let same = |was: &FieldError| {
            (was.kind, &was.value, &was.detail) == (error.kind, &error.value, &error.detail)
                && (error.kind != ErrorKind::Forbidden || was.path == error.path)
        };
        !known.0.iter().any(same)
    });
}

fn simple_path(at: &At<'_>, field: &str, errors: &mut Errors) -> bool {
    let text = at.str(field);
    if !text.starts_with('.') {
        errors.invalid(at.at(field), text, "must be a simple json path starting with .");
        return false;
    }
    if let Err(why) = JsonPath::parse(text) {
        errors.invalid(at.at(field), text, format!("is an invalid JSON path: {why}"));
        return false;
    }
    true
}

fn subresources(at: &At<'_>, errors: &mut Errors) {
    let Some(scale) = at.get("scale") else { return };
    for (field, roots, why) in [
        ("specReplicasPath", &[".spec."][..], "should be a json path under .spec"),
        ("statusReplicasPath", &[".status."], "should be a json path under .status"),
        ("labelSelectorPath", &[".spec.", ".status."], "should be a json path under either .spec or .status"),
    ] {
        let text = scale.str(field);
        if text.is_empty() && field == "labelSelectorPath" {
            continue;
        }
        if errors.need(&scale, field)
            && simple_path(&scale, field, errors)
            && !roots.iter().any(|root| text.starts_with(root))
        {
            errors.invalid(scale.at(field), text, why);
        }
    }
}

/// Fields by which objects may be selected: scalars that the schema names.
fn selectable(version: &At<'_>, errors: &mut Errors) {
    let count = version.list("selectableFields").len();
    if count > SELECTABLE_FIELDS_MAX {
        let path = version.at("selectableFields");
        errors.push(FieldError::too_many(path, count, SELECTABLE_FIELDS_MAX));
    }
    let mut seen = BTreeSet::new();
    for field in version.items("selectableFields") {
        let path = field.at("jsonPath");
        let text = field.str("jsonPath");
        let parsed = JsonPath::parse(text);
        let Some(steps) = parsed.as_ref().ok().and_then(JsonPath::fields).filter(|_| text.starts_with('.'))
        else {
            errors.invalid(path, text, "is an invalid path: must be a simple path of field names");
            continue;
        };
        if steps.first() == Some(&"metadata") {
            errors.invalid(path.clone(), text, "must not point to fields in metadata");
        }
        let schema = version.child("schema").child("openAPIV3Schema");
        let found = steps.iter().try_fold(schema.value, |at, step| at.get("properties")?.get(step));
        match found.and_then(|schema| schema.get("type")).and_then(Value::as_str) {
            Some("string" | "integer" | "boolean") => {}
            _ => errors.invalid(
                path.clone(),
                text,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ),
        }
        if !seen.insert(text) {
            errors.duplicate(path, text);
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (new, old) = (At::root(new), At::root(old));
    let (spec, was) = (new.child("spec"), old.child("spec"));
    let is_established = old
        .child("status")
        .list("conditions")
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    if is_established {
        errors.immutable(&spec, &was, "scope");
        errors.immutable(&spec.child("names"), &was.child("names"), "kind");
    }
    errors.immutable(&spec, &was, "group");
    errors.immutable(&spec.child("names"), &was.child("names"), "plural");
    errors.extend(stored_versions(new.value));
    errors.extend(schemas(new.value, Some(old.value)));
    errors.extend(conversion::authority(new.value, Some(old.value)));
    errors.0
}

/// Objects may be stored in the versions that the status names, and will be in the one of today.
fn stored_versions(definition: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(definition);
    let (spec, status) = (root.child("spec"), root.child("status"));
    let (path, stored) = (status.at("storedVersions"), status.list("storedVersions"));
    let given = Value::Array(stored.to_vec());
    if stored.is_empty() {
        errors.invalid(path, given, "must have at least one stored version");
        return errors.0;
    }
    for item in status.items("storedVersions") {
        if !spec.list("versions").iter().any(|version| version["name"] == *item.value) {
            errors.invalid(item.path, item.value.clone(), "must appear in spec.versions");
        }
    }
    let storage = spec.items("versions").find(|version| version.bool("storage"));
    if let Some(storage) = storage.filter(|storage| !stored.contains(&storage.value["name"])) {
        let why = format!("must have the storage version {}", storage.str("name"));
        errors.invalid(path, given, why);
    }
    errors.0
}

fn validate_create(new: &Value) -> Vec<FieldError> {
    let mut errors = schemas(new, None);
    errors.extend(conversion::authority(new, None));
    errors
}

fn warnings(new: &Value, _old: Option<&Value>) -> Vec<String> {
    let spec = At::root(new).child("spec");
    let mut out = Vec::new();
    for version in spec.items("versions") {
        let schema = version.child("schema").child("openAPIV3Schema");
        let mut unknown = Vec::new();
        structural::unknown_formats(&schema, &mut unknown);
        out.extend(
            unknown.into_iter().map(|(path, format)| format!("{path}: unrecognized format {format:?}")),
        );
    }
    out
}
