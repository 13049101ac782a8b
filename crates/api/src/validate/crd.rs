//! CustomResourceDefinition: names, versions, conversion, subresources and columns. What a schema
//! may say is in [`structural`].
//! Upstream counterpart: `apiextensions-apiserver/pkg/apis/apiextensions/validation`.

use super::at::{At, Errors};
use super::{conversion, structural, validations};
use crate::crd::{self, COLUMN_FORMATS, COLUMN_TYPES, field_path};
use crate::field::{ErrorKind, FieldError, Path};
use crate::kinds::Strategy;
use crate::{meta, names};
use serde_json::Value;
use std::collections::BTreeSet;

const SELECTABLE_FIELDS_MAX: usize = 8;
const WARNING_MAX_BYTES: usize = 256;
/// The annotation by which a group that is Kubernetes' own may be used.
const APPROVED: &str = "api-approved.kubernetes.io";

pub(super) fn strategy() -> Strategy {
    Strategy {
        validate,
        validate_create,
        validate_update,
        validate_status: |new, _| {
            let mut errors = Errors(stored_versions(new));
            check_names(&At::root(new).child("status").child("acceptedNames"), &mut errors);
            errors.0
        },
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
    let (group, accepted) = (spec.str("group"), spec.child("names"));
    if errors.need(&spec, "group") {
        let why = names::is_dns1123_subdomain(group).join(",");
        if !why.is_empty() {
            errors.invalid(spec.at("group"), group, why);
        } else if !group.contains('.') {
            errors.invalid(spec.at("group"), group, "should be a domain with at least one dot");
        }
    }
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

/// Groups of Kubernetes' own need an approval; what an update says of it as before is let pass.
fn approval(value: &Value, old: Option<&Value>, errors: &mut Errors) {
    let root = At::root(value);
    let group = root.child("spec").str("group");
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group == *own || group.strip_suffix(own).is_some_and(|rest| rest.ends_with('.')));
    if !is_protected || old.is_some_and(|old| Approval::of(old) == Approval::of(value)) {
        return;
    }
    let path = root.at("metadata").child("annotations").key(APPROVED);
    match Approval::of(value) {
        Approval::Missing => errors.required(
            path,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
        Approval::Invalid => errors.invalid(
            path,
            meta::annotation(value, APPROVED).unwrap_or_default(),
            "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
        Approval::Bypassed | Approval::Given => {}
    }
}

#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Invalid,
    Bypassed,
    Given,
}

impl Approval {
    fn of(definition: &Value) -> Self {
        match meta::annotation(definition, APPROVED).unwrap_or_default() {
            "" => Approval::Missing,
            text if text.starts_with("unapproved") => Approval::Bypassed,
            text if text.starts_with("https://") || text.starts_with("http://") => Approval::Given,
            _ => Approval::Invalid,
        }
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
        deprecation(&version, errors);
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
        for (field, known, is_needed) in
            [("type", &COLUMN_TYPES[..], true), ("format", &COLUMN_FORMATS, false)]
        {
            let (value, why) = (column.str(field), format!("must be one of {}", known.join(",")));
            match value {
                "" if is_needed => errors.required(column.at(field), &why),
                "" => {}
                value if !known.contains(&value) => errors.invalid(column.at(field), value, why),
                _ => {}
            }
        }
        // The field is named as upstream's errors name it.
        let (path, text) = (column.at("JSONPath"), column.str("jsonPath"));
        if text.is_empty() {
            errors.required(path, "");
        } else {
            simple_path(path, text, errors);
        }
    }
    for version in holders(spec, "selectableFields") {
        selectable(&version, errors);
    }
}

fn deprecation(version: &At<'_>, errors: &mut Errors) {
    let Some(warning) = version.value.get("deprecationWarning").and_then(Value::as_str) else { return };
    let mut refuse = |why: String| errors.invalid(version.at("deprecationWarning"), warning, why);
    if !version.bool("deprecated") {
        return refuse("can only be set for deprecated versions".to_owned());
    }
    if warning.len() > WARNING_MAX_BYTES {
        refuse(format!("must be <= {WARNING_MAX_BYTES} characters long"));
    }
    if warning.is_empty() {
        refuse("must not be an empty string".to_owned());
    }
    if let Some((at, _)) =
        warning.char_indices().find(|(_, c)| c.is_control() || c.is_whitespace() && *c != ' ')
    {
        refuse(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
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

/// A schema of a definition, where errors place it.
struct Placed<'a> {
    schema: At<'a>,
    /// Whether the status is written apart.
    has_status: bool,
}

fn schemas_of<'a>(definition: &'a Value) -> Vec<Placed<'a>> {
    let spec = At::root(definition).child("spec");
    let has_status = |version: &At<'_>| version.child("subresources").has("status");
    let of = |version: At<'a>| {
        let is_whole = version.path == spec.path;
        let field = if is_whole { "validation" } else { "schema" };
        let value = version.value.get("schema")?.get("openAPIV3Schema").filter(|schema| !schema.is_null())?;
        let has_status = match is_whole {
            true => spec.items("versions").any(|version| has_status(&version)),
            false => has_status(&version),
        };
        Some((value, version.at(field).child("openAPIV3Schema"), has_status))
    };
    let placed = |(value, path, has_status)| Placed { schema: At { value, path }, has_status };
    holders(&spec, "schema").into_iter().filter_map(of).map(placed).collect()
}

/// Checks the schemas and their rules, but for what is as it was.
fn schemas(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let before = old.map(schemas_of).unwrap_or_default();
    let as_before = |new: &Placed<'_>| {
        let same =
            |old: &Placed<'_>| old.schema.value == new.schema.value && old.has_status == new.has_status;
        before.iter().any(same)
    };
    let changed: Vec<_> = schemas_of(new).into_iter().filter(|new| !as_before(new)).collect();
    if changed.is_empty() {
        return Vec::new();
    }
    let lenient = before.iter().flat_map(|old| structural::broken(&old.schema)).collect();
    for Placed { schema, has_status } in changed {
        let known = errors.0.len();
        structural::check(&schema, has_status, &lenient, &mut errors);
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

/// Faults that a rule had before are let pass, so that it does not stand in the way of other changes.
fn keep_new(found: &mut Errors, before: &[Placed<'_>]) {
    let mut known = Errors::default();
    before.iter().for_each(|old| validations::check(&old.schema, &mut known));
    found.0.retain(|error| {
        let same = |was: &FieldError| {
            (was.kind, &was.value, &was.detail) == (error.kind, &error.value, &error.detail)
                && (error.kind != ErrorKind::Forbidden || was.path == error.path)
        };
        !known.0.iter().any(same)
    });
}

/// Upstream looks at the start of a path alone; what leads nowhere shows nothing.
fn simple_path(path: Path, text: &str, errors: &mut Errors) -> bool {
    let is_simple = text.starts_with('.');
    if !is_simple {
        errors.invalid(path, text, "must be a simple json path starting with .");
    }
    is_simple
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
            && simple_path(scale.at(field), text, errors)
            && !roots.iter().any(|root| text.starts_with(root))
        {
            errors.invalid(scale.at(field), text, why);
        }
    }
}

/// Fields by which objects may be selected: scalars that the schema names.
fn selectable(version: &At<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for field in version.items("selectableFields") {
        let (path, text) = (field.at("jsonPath"), field.str("jsonPath"));
        if text.is_empty() {
            errors.required(path, "");
            continue;
        }
        let schema = version.child("schema").child("openAPIV3Schema");
        let found = match text.contains('[') {
            true => Err("array notation is not allowed".to_owned()),
            false => field_path::parse(text, schema.value),
        };
        let (leads_to, found) = match found {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(path, text, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if leads_to.as_str().split(['.', '[']).next() == Some("metadata") {
            errors.invalid(path.clone(), text, "must not point to fields in metadata");
        }
        if !matches!(found.get("type").and_then(Value::as_str), Some("string" | "integer" | "boolean")) {
            errors.invalid(
                path.clone(),
                text,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            );
        }
        if !seen.insert(leads_to.as_str().to_owned()) {
            errors.duplicate(path, text);
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX {
        let path = version.at("selectableFields");
        errors.push(FieldError::too_many(path, seen.len(), SELECTABLE_FIELDS_MAX));
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (new, old) = (At::root(new), At::root(old));
    let (spec, was) = (new.child("spec"), old.child("spec"));
    if crd::is_established(old.value) {
        errors.immutable(&spec, &was, "scope");
        errors.immutable(&spec.child("names"), &was.child("names"), "kind");
    }
    errors.immutable(&spec, &was, "group");
    errors.immutable(&spec.child("names"), &was.child("names"), "plural");
    check_names(&new.child("status").child("acceptedNames"), &mut errors);
    errors.extend(stored_versions(new.value));
    approval(new.value, Some(old.value), &mut errors);
    errors.extend(schemas(new.value, Some(old.value)));
    errors.extend(conversion::authority(new.value, old.value));
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
            let name = item.value.as_str().unwrap_or_default();
            errors.invalid(item.path, name, format!("missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"));
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
    let (root, mut errors) = (At::root(new), Errors::default());
    let (spec, name) = (root.child("spec"), meta::name(new));
    if name != format!("{}.{}", spec.child("names").str("plural"), spec.str("group")) {
        errors.invalid(root.at("metadata").child("name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
    approval(new, None, &mut errors);
    errors.extend(schemas(new, None));
    errors.0
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
