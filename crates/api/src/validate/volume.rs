//! Volumes of a Pod: one source each, with the fields that source needs.

use super::at::{At, Errors};
use crate::field::Path;
use crate::names;
use serde_json::Value;
use std::collections::BTreeSet;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const ONE_TYPE: &str = "may not specify more than 1 volume type";

type Check = fn(&At<'_>, &mut Errors);

/// A volume source in the order of upstream's checks.
struct Source {
    field: &'static str,
    /// The last part of the paths in errors about its fields, where it is not the field's name.
    path: &'static str,
    /// The last part of the path in the error about a second source.
    second: &'static str,
    /// Strings (or lists) that must be set.
    required: &'static [&'static str],
    check: Check,
}

const fn source(field: &'static str, required: &'static [&'static str], check: Check) -> Source {
    Source { field, path: field, second: field, required, check }
}

fn nothing(_: &At<'_>, _: &mut Errors) {}

const SOURCES: &[Source] = &[
    source("emptyDir", &[], empty_dir),
    source("hostPath", &["path"], host_path),
    source("gitRepo", &["repository"], git_repo),
    Source { path: "persistentDisk", ..source("gcePersistentDisk", &["pdName"], partition) },
    source("awsElasticBlockStore", &["volumeID"], partition),
    source("secret", &["secretName"], items_with_mode),
    source("nfs", &["server", "path"], nfs),
    source("iscsi", &["targetPortal", "iqn"], iscsi),
    source("glusterfs", &["endpoints", "path"], nothing),
    source("flocker", &[], flocker),
    source("persistentVolumeClaim", &["claimName"], nothing),
    source("rbd", &["monitors", "image"], nothing),
    source("cinder", &["volumeID"], nothing),
    Source { second: "cephFS", ..source("cephfs", &["monitors"], nothing) },
    source("quobyte", &["registry", "volume"], nothing),
    Source { second: "downwarAPI", ..source("downwardAPI", &[], downward_api) },
    source("fc", &[], fibre_channel),
    source("flexVolume", &["driver"], nothing),
    source("configMap", &["name"], items_with_mode),
    source("azureFile", &["secretName", "shareName"], nothing),
    source("vsphereVolume", &["volumePath"], nothing),
    source("photonPersistentDisk", &["pdID"], nothing),
    source("portworxVolume", &["volumeID"], nothing),
    source("azureDisk", &["diskName", "diskURI"], nothing),
    source("storageos", &["volumeName"], nothing),
    source("projected", &[], projected),
    source("scaleIO", &["gateway", "system", "volumeName"], nothing),
    source("csi", &["driver"], nothing),
    source("ephemeral", &[], ephemeral),
    source("image", &[], image),
];

/// Sources of PersistentVolumes only, or with other fields there.
const PERSISTENT: &[Source] = &[
    source("local", &["path"], |at, errors| no_backsteps(at.str("path"), &at.at("path"), errors)),
    source("csi", &["volumeHandle"], super::persistent_volume::csi),
];

/// `spec.volumes`. `pod_name` is empty for templates.
pub(super) fn volumes(spec: &At<'_>, pod_name: &str, is_pod: bool, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let all = spec.list("volumes");
    for at in spec.items("volumes") {
        volume_source(&at, SOURCES.iter(), errors);
        if let Some(image) = at.get("image").filter(|image| is_pod && image.str("reference").is_empty()) {
            errors.required(image.at("reference"), "");
        }
        let name = at.str("name");
        if errors.need(&at, "name") {
            errors.checked(&at, "name", names::is_dns1123_label);
        }
        if !name.is_empty() && seen.contains(&name) {
            errors.duplicate(at.at("name"), name);
        }
        seen.insert(name);
        // The claims of ephemeral volumes belong to the Pod; no other volume may use them.
        let claim = at.child("persistentVolumeClaim");
        let claim_name = claim.str("claimName");
        let is_ephemeral = |v: &Value| {
            let name = v.get("name").and_then(Value::as_str).unwrap_or_default();
            v.get("ephemeral").is_some() && format!("{pod_name}-{name}") == claim_name
        };
        if !pod_name.is_empty() && !claim_name.is_empty() && all.iter().any(is_ephemeral) {
            errors.invalid(
                claim.at("claimName"),
                claim_name,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
}

/// The one source of a PersistentVolume.
pub(super) fn persistent_source(spec: &At<'_>, errors: &mut Errors) {
    let replaced = |source: &&Source| PERSISTENT.iter().all(|other| other.field != source.field);
    volume_source(spec, SOURCES.iter().filter(replaced).chain(PERSISTENT), errors);
}

/// The names of all fields that are sources of volumes.
pub(super) fn source_fields() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().chain(PERSISTENT).map(|source| source.field)
}

fn volume_source<'s>(at: &At<'_>, sources: impl Iterator<Item = &'s Source>, errors: &mut Errors) {
    let mut count = 0;
    for source in sources.filter(|source| at.has(source.field)) {
        count += 1;
        if count > 1 {
            errors.forbidden(at.at(source.second), ONE_TYPE);
            continue;
        }
        let field = At::new(at.value.get(source.field), at.at(source.path));
        let missing = source.required.iter().filter(|name| is_unset(field.value.get(**name)));
        let before = errors.0.len();
        missing.for_each(|name| errors.required(field.at(name), ""));
        // Upstream says no more about a path that is not there.
        if source.field != "hostPath" || errors.0.len() == before {
            (source.check)(&field, errors);
        }
    }
    if count == 0 {
        errors.required(at.path.clone(), "must specify a volume type");
    }
}

fn is_unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn mode(at: &At<'_>, name: &str, errors: &mut Errors) {
    if let Some(mode) = at.int(name).filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(at.at(name), mode, FILE_MODE);
    }
}

fn empty_dir(at: &At<'_>, errors: &mut Errors) {
    if at.quantity("sizeLimit").is_some_and(|q| q.sign() < 0) {
        errors.forbidden(at.at("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
}

fn host_path(at: &At<'_>, errors: &mut Errors) {
    no_backsteps(at.str("path"), &at.at("path"), errors);
    let kinds = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    errors.optional_one_of(at, "type", kinds);
}

fn git_repo(at: &At<'_>, errors: &mut Errors) {
    local_descending(at.str("directory"), &at.at("directory"), errors);
}

fn partition(at: &At<'_>, errors: &mut Errors) {
    if let Some(n) = at.int("partition").filter(|n| !(0..=255).contains(n)) {
        errors.invalid(at.at("partition"), n, "must be between 1 and 255, inclusive");
    }
}

fn nfs(at: &At<'_>, errors: &mut Errors) {
    if !at.str("path").starts_with('/') {
        errors.invalid(at.at("path"), at.str("path"), "must be an absolute path");
    }
}

fn iscsi(at: &At<'_>, errors: &mut Errors) {
    let iqn = at.str("iqn");
    if !iqn.is_empty() && !["iqn", "eui", "naa"].iter().any(|prefix| iqn.starts_with(prefix)) {
        errors.invalid(at.at("iqn"), iqn, "must be valid format starting with iqn, eui, or naa");
    }
    errors.range(at, "lun", 0, 255);
    if (at.bool("chapAuthDiscovery") || at.bool("chapAuthSession")) && !at.has("secretRef") {
        errors.required(at.at("secretRef"), "");
    }
}

fn flocker(at: &At<'_>, errors: &mut Errors) {
    match (at.str("datasetName").is_empty(), at.str("datasetUUID").is_empty()) {
        (true, true) => errors.required(at.path.clone(), "one of datasetName and datasetUUID is required"),
        (false, false) => {
            errors.invalid(
                at.path.clone(),
                "resource",
                "datasetName and datasetUUID can not be specified simultaneously",
            );
        }
        _ => {}
    }
}

fn fibre_channel(at: &At<'_>, errors: &mut Errors) {
    match (at.list("targetWWNs").is_empty(), at.list("wwids").is_empty()) {
        (true, true) => {
            errors.required(at.at("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
        }
        (false, false) => {
            let value = Value::from(at.list("targetWWNs"));
            errors.invalid(
                at.at("targetWWNs"),
                value,
                "targetWWNs and wwids can not be specified simultaneously",
            );
        }
        (false, true) if !at.has("lun") => {
            errors.required(at.at("lun"), "lun is required if targetWWNs is specified")
        }
        _ => errors.range(at, "lun", 0, 255),
    }
}

fn ephemeral(at: &At<'_>, errors: &mut Errors) {
    match at.get("volumeClaimTemplate") {
        Some(template) => super::volume_claim::spec(&template.child("spec"), errors),
        None => errors.required(at.at("volumeClaimTemplate"), ""),
    }
}

fn image(at: &At<'_>, errors: &mut Errors) {
    errors.optional_one_of(at, "pullPolicy", &["Always", "IfNotPresent", "Never"]);
}

fn items_with_mode(at: &At<'_>, errors: &mut Errors) {
    mode(at, "defaultMode", errors);
    at.items("items").for_each(|item| key_to_path(&item, errors));
}

fn key_to_path(item: &At<'_>, errors: &mut Errors) {
    errors.need(item, "key");
    errors.need(item, "path");
    local_non_reserved(item.str("path"), &item.at("path"), errors);
    mode(item, "mode", errors);
}

fn downward_api(at: &At<'_>, errors: &mut Errors) {
    mode(at, "defaultMode", errors);
    // Upstream names the list, not the item, in errors about items.
    at.items("items").for_each(|item| downward_file(&At::new(Some(item.value), at.path.clone()), errors));
}

fn downward_file(at: &At<'_>, errors: &mut Errors) {
    errors.need(at, "path");
    local_non_reserved(at.str("path"), &at.at("path"), errors);
    match (at.get("fieldRef"), at.get("resourceFieldRef")) {
        (Some(field), resource) => {
            super::container::field_ref(&field, super::container::VOLUME_FIELDS, errors);
            if resource.is_some() {
                errors.invalid(
                    at.path.clone(),
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (None, Some(resource)) => super::container::resource_field_ref(&resource, true, errors),
        (None, None) => errors.required(at.path.clone(), "one of fieldRef and resourceFieldRef is required"),
    }
    mode(at, "mode", errors);
}

fn projected(at: &At<'_>, errors: &mut Errors) {
    mode(at, "defaultMode", errors);
    let mut paths: Vec<&str> = Vec::new();
    for source in at.items("sources") {
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let Some(source) = source.get(kind) else { continue };
            count += 1;
            errors.need(&source, "name");
            for item in source.items("items") {
                key_to_path(&item, errors);
                once(item.str("path"), source.str("name"), &mut paths, at, errors);
            }
        }
        if let Some(downward) = source.get("downwardAPI") {
            count += 1;
            for item in downward.items("items") {
                downward_file(&At::new(Some(item.value), downward.path.clone()), errors);
                once(item.str("path"), item.str("path"), &mut paths, at, errors);
            }
        }
        if let Some(token) = source.get("serviceAccountToken") {
            count += 1;
            service_account_token(&token, at, errors);
        }
        if let Some(bundle) = source.get("clusterTrustBundle") {
            count += 1;
            trust_bundle(&bundle, errors);
            once(bundle.str("path"), bundle.str("path"), &mut paths, at, errors);
        }
        count += usize::from(source.has("podCertificate"));
        if count > 1 {
            errors.forbidden(source.path, "may not specify more than 1 volume type");
        }
    }
}

fn once<'a>(path: &'a str, value: &str, paths: &mut Vec<&'a str>, at: &At<'_>, errors: &mut Errors) {
    if path.is_empty() {
        return;
    }
    if paths.contains(&path) {
        errors.invalid(at.path.clone(), value, "conflicting duplicate paths");
    }
    paths.push(path);
}

fn service_account_token(token: &At<'_>, volume: &At<'_>, errors: &mut Errors) {
    if let Some(seconds) = token.int("expirationSeconds") {
        token_lifetime(seconds, &token.at("expirationSeconds"), errors);
    }
    match token.str("path") {
        "" => errors.required(volume.at("path"), ""),
        path => local_non_reserved(path, &volume.at("path"), errors),
    }
}

/// How long a ServiceAccount token may be asked to live.
pub(super) fn token_lifetime(seconds: i64, path: &Path, errors: &mut Errors) {
    if seconds < 600 {
        errors.invalid(path.clone(), seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errors.invalid(path.clone(), seconds, "may not specify a duration larger than 2^32 seconds");
    }
}

fn trust_bundle(at: &At<'_>, errors: &mut Errors) {
    match (at.has("name"), at.has("signerName")) {
        (true, true) => {
            errors.invalid(at.path.clone(), at.value.clone(), "only one of name and signerName may be used")
        }
        (false, false) => errors.required(at.path.clone(), "either name or signerName must be specified"),
        _ => {}
    }
    if errors.need(at, "path") {
        local_non_reserved(at.str("path"), &at.at("path"), errors);
    }
}

/// A relative path that does not leave its root.
pub(super) fn local_descending(path: &str, at: &Path, errors: &mut Errors) {
    if path.starts_with('/') {
        errors.invalid(at.clone(), path, "must be a relative path");
    }
    no_backsteps(path, at, errors);
}

pub(super) fn no_backsteps(path: &str, at: &Path, errors: &mut Errors) {
    if path.split('/').any(|part| part == "..") {
        errors.invalid(at.clone(), path, "must not contain '..'");
    }
}

fn local_non_reserved(path: &str, at: &Path, errors: &mut Errors) {
    local_descending(path, at, errors);
    // Backsteps alone are already reported; names that merely begin so are reserved.
    if path.starts_with("..") && !path.starts_with("../") {
        errors.invalid(at.clone(), path, "must not start with '..'");
    }
}
