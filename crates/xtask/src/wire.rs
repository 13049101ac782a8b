//! Part of `cargo xtask codegen`: the field numbers of the protobuf encoding, read from a crate
//! that carries them as attributes of generated structs. Only numbers, names and types are kept.
//!
//! One line a message: its full name, then fields as `number:json name:type`. Types: `s` string,
//! `i` integer, `b` boolean, `d` double, `y` bytes, `T` Time, `M` MicroTime, `Q` Quantity, `I`
//! IntOrString, `R` raw JSON, `L` a list wrapped in a message, the number of a line for a message,
//! and such a number after `|` for a message of which JSON shows only the one field that is set.
//! `*` before a type repeats it, `%` makes it a map's value. A field without a name is a message
//! whose fields are its parent's in JSON.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

const CRATE: &str = "k8s-pb";
const VERSION: &str = "=0.9.0";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Modules whose messages requests may carry.
const ROOTS: [&str; 25] = [
    META,
    "io.k8s.api.apidiscovery.v2",
    "io.k8s.api.apidiscovery.v2beta1",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    "io.k8s.api.flowcontrol.v1",
    "io.k8s.api.resource.v1",
    "io.k8s.api.admissionregistration.v1",
    "io.k8s.api.apps.v1",
    "io.k8s.api.authentication.v1",
    "io.k8s.api.authorization.v1",
    "io.k8s.api.autoscaling.v1",
    "io.k8s.api.autoscaling.v2",
    "io.k8s.api.batch.v1",
    "io.k8s.api.certificates.v1",
    "io.k8s.api.coordination.v1",
    "io.k8s.api.core.v1",
    "io.k8s.api.discovery.v1",
    "io.k8s.api.events.v1",
    "io.k8s.api.networking.v1",
    "io.k8s.api.node.v1",
    "io.k8s.api.policy.v1",
    "io.k8s.api.rbac.v1",
    "io.k8s.api.scheduling.v1",
    "io.k8s.api.storage.v1",
    "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1",
];

/// Messages with a JSON form of their own.
const SPECIAL: [(&str, &str); 11] = [
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Verbs", "L"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "R"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "T"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "M"),
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "Q"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "I"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "R"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "R"),
    ("io.k8s.api.authentication.v1.ExtraValue", "L"),
    ("io.k8s.api.authorization.v1.ExtraValue", "L"),
    ("io.k8s.api.certificates.v1.ExtraValue", "L"),
];

/// Lists that are not metadata and items.
const LISTS: [&str; 2] = ["APIGroupList", "APIResourceList"];

/// Messages of which JSON shows only the one field that is set.
const UNIONS: [&str; 3] = ["JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray"];

/// A version that is newer than the crate and has the messages of an older one.
const SAME: (&str, &str) =
    ("io.k8s.api.admissionregistration.v1beta1", "io.k8s.api.admissionregistration.v1");

/// Fields of v1.36 that are newer than the crate: (message, number, name, prefix, type). Additions
/// take the next free number.
const NEWER: [(&str, &str, &str, &str, &str); 20] = [
    ("io.k8s.api.core.v1.ImageVolumeStatus", "1", "imageRef", "", "s"),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus", "1", "resourceClaimName", "", "s"),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus", "2", "containers", "*", "s"),
    (
        "io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus",
        "3",
        "resources",
        "%",
        "io.k8s.apimachinery.pkg.api.resource.Quantity",
    ),
    ("io.k8s.api.core.v1.PodSchedulingGroup", "1", "podGroupName", "", "s"),
    ("io.k8s.api.core.v1.PodSpec", "43", "schedulingGroup", "", "io.k8s.api.core.v1.PodSchedulingGroup"),
    (
        "io.k8s.api.core.v1.PodStatus",
        "21",
        "nodeAllocatableResourceClaimStatuses",
        "*",
        "io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus",
    ),
    ("io.k8s.api.core.v1.ResourceHealth", "3", "message", "", "s"),
    ("io.k8s.api.core.v1.VolumeMountStatus", "5", "volumeStatus", "", "io.k8s.api.core.v1.VolumeStatus"),
    ("io.k8s.api.core.v1.VolumeStatus", "1", "image", "", "io.k8s.api.core.v1.ImageVolumeStatus"),
    (
        "io.k8s.api.resource.v1.Device",
        "13",
        "nodeAllocatableResourceMappings",
        "%",
        "io.k8s.api.resource.v1.NodeAllocatableResourceMapping",
    ),
    ("io.k8s.api.resource.v1.DeviceAttribute", "6", "ints", "*", "i"),
    ("io.k8s.api.resource.v1.DeviceAttribute", "7", "bools", "*", "b"),
    ("io.k8s.api.resource.v1.DeviceAttribute", "8", "strings", "*", "s"),
    ("io.k8s.api.resource.v1.DeviceAttribute", "9", "versions", "*", "s"),
    ("io.k8s.api.resource.v1.NodeAllocatableResourceMapping", "1", "capacityKey", "", "s"),
    (
        "io.k8s.api.resource.v1.NodeAllocatableResourceMapping",
        "2",
        "allocationMultiplier",
        "",
        "io.k8s.apimachinery.pkg.api.resource.Quantity",
    ),
    ("io.k8s.api.storage.v1.CSIDriverSpec", "11", "preventPodSchedulingIfMissing", "", "b"),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
        "5",
        "shardInfo",
        "",
        "io.k8s.apimachinery.pkg.apis.meta.v1.ShardInfo",
    ),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ShardInfo", "1", "selector", "", "s"),
];

#[derive(Clone)]
struct Field {
    number: String,
    name: String,
    /// `s`, `i`, …, or the full name of a message.
    kind: String,
    prefix: &'static str,
}

type Messages = BTreeMap<String, Vec<Field>>;

/// Fetches the crate and writes the table.
pub fn write(definitions: &Map<String, Value>, dir: &Path, out: &Path) -> Result<()> {
    let project = dir.join("wire");
    std::fs::create_dir_all(project.join("src"))?;
    let manifest = format!(
        "[package]\nname = \"wire\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{CRATE} = \"{VERSION}\"\n"
    );
    std::fs::write(project.join("Cargo.toml"), manifest)?;
    std::fs::write(project.join("src/lib.rs"), "")?;
    let status = Command::new("cargo").args(["vendor", "--quiet"]).current_dir(&project).status()?;
    if !status.success() {
        bail!("cargo vendor failed: {status}");
    }
    let mut messages = Messages::new();
    read(&project.join("vendor").join(CRATE).join("src"), "io.k8s", &mut messages)?;
    let mut messages = spelled(copied(messages), definitions);
    for (message, number, name, prefix, kind) in NEWER {
        let field = Field { number: number.to_owned(), name: name.to_owned(), kind: kind.to_owned(), prefix };
        messages.entry(message.to_owned()).or_default().push(field);
    }
    let table = table(&messages, definitions)?;
    std::fs::write(out, &table)?;
    println!("{}: {} bytes", out.display(), table.len());
    Ok(())
}

/// Adds the messages of a version that is newer than the crate.
fn copied(mut messages: Messages) -> Messages {
    let renamed = |name: &str| name.replacen(&format!("{}.", SAME.0), &format!("{}.", SAME.1), 1);
    let copies: Vec<(String, Vec<Field>)> = messages
        .iter()
        .filter(|(name, _)| name.starts_with(SAME.0) && !messages.contains_key(&renamed(name)))
        .map(|(name, fields)| {
            let field = |field: &Field| Field { kind: renamed(&field.kind), ..field.clone() };
            (renamed(name), fields.iter().map(field).collect())
        })
        .collect();
    messages.extend(copies);
    messages
}

/// Messages under the names that their schemas have: the crate writes acronyms in its own way.
fn spelled(messages: Messages, definitions: &Map<String, Value>) -> Messages {
    let known: BTreeMap<String, &String> =
        definitions.keys().map(|name| (name.to_lowercase(), name)).collect();
    let name = |name: &str| known.get(&name.to_lowercase()).map_or(name, |name| name.as_str()).to_owned();
    let field = |field: Field| Field { kind: name(&field.kind), ..field };
    messages.into_iter().map(|(of, fields)| (name(&of), fields.into_iter().map(field).collect())).collect()
}

fn read(dir: &Path, module: &str, messages: &mut Messages) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() {
            // A module's name has no hyphens, where a schema's has.
            read(&path, &format!("{module}.{}", name.replace('_', "-")), messages)?;
        } else if name == "mod" {
            parse(&std::fs::read_to_string(&path)?, module, messages)?;
        }
    }
    Ok(())
}

fn parse(text: &str, module: &str, messages: &mut Messages) -> Result<()> {
    let (mut current, mut attribute, mut declaration) = (None, String::new(), String::new());
    for line in text.lines().map(str::trim) {
        if line.starts_with("//") || line.starts_with("#[derive") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{']).next().unwrap_or_default();
            let full = format!("{module}.{name}");
            messages.entry(full.clone()).or_default();
            current = if rest.contains('}') { None } else { Some(full) };
            (attribute, declaration) = Default::default();
        } else if line == "}" {
            current = None;
        } else if line.starts_with("#[prost(") || (!attribute.is_empty() && !attribute.ends_with(")]")) {
            attribute.push_str(line);
        } else if let Some(message) = &current
            && attribute.ends_with(")]")
        {
            declaration.push_str(line);
            if declaration.ends_with(',')
                && declaration.matches('<').count() == declaration.matches('>').count()
            {
                let field = field(&attribute, &declaration, module)?;
                messages.entry(message.clone()).or_default().push(field);
                (attribute, declaration) = Default::default();
            }
        }
    }
    Ok(())
}

fn field(attribute: &str, declaration: &str, module: &str) -> Result<Field> {
    let inner = attribute.trim_start_matches("#[prost(").trim_end_matches(")]");
    let number =
        inner.split("tag = \"").nth(1).and_then(|rest| rest.split('"').next()).context("a tag")?.to_owned();
    let kind = inner.split([',', ' ']).next().unwrap_or_default();
    let (name, ty) =
        declaration.trim_start_matches("pub ").trim_end_matches(',').split_once(':').context("a field")?;
    let value = |kind: &str| -> Result<String> {
        Ok(match kind {
            "string" => "s".into(),
            "int32" | "int64" => "i".into(),
            "bool" => "b".into(),
            "double" => "d".into(),
            "bytes" => "y".into(),
            "message" => resolve(ty, module),
            other => bail!("{module}: unknown kind {other} of {declaration}"),
        })
    };
    let (prefix, kind) = if kind == "btree_map" {
        let of =
            inner.split("btree_map = \"").nth(1).and_then(|rest| rest.split('"').next()).context("a map")?;
        ("%", value(of.split(',').nth(1).unwrap_or_default().trim())?)
    } else if inner.contains("repeated") {
        ("*", value(kind)?)
    } else {
        ("", value(kind)?)
    };
    Ok(Field { number, name: name.trim_start_matches("r#").to_owned(), kind, prefix })
}

/// The full name of the message in a field's type: the last path in it.
fn resolve(ty: &str, module: &str) -> String {
    let mut parts = ty.split([',', '<', '>']).map(str::trim).filter(|part| !part.is_empty());
    let path = parts.next_back().unwrap_or_default();
    let mut base: Vec<&str> = module.split('.').collect();
    let mut rest = Vec::new();
    for part in path.split("::") {
        if part == "super" {
            base.pop();
        } else {
            rest.push(part);
        }
    }
    base.extend(rest);
    base.join(".")
}

fn plain(name: &str) -> String {
    name.replace(['_', '-', '$'], "").to_lowercase()
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut name, part| {
        let mut chars = part.chars();
        name.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        name.push_str(chars.as_str());
        name
    })
}

fn table(messages: &Messages, definitions: &Map<String, Value>) -> Result<String> {
    let properties = |message: &str| definitions.get(message).and_then(|d| d["properties"].as_object());
    // For messages without a schema: names as all schemas together write them.
    let mut known: BTreeMap<String, &str> = BTreeMap::new();
    for definition in definitions.values() {
        for name in definition["properties"].as_object().into_iter().flat_map(Map::keys) {
            known.entry(plain(name)).or_insert(name);
        }
    }
    let special = |message: &str| SPECIAL.iter().find(|(name, _)| *name == message).map(|(_, code)| *code);
    let is_root = |name: &str| {
        let (module, kind) = name.rsplit_once('.').unwrap_or_default();
        ROOTS.contains(&module) && (!kind.ends_with("List") || LISTS.contains(&kind))
    };
    let mut wanted: BTreeSet<&str> =
        messages.keys().map(String::as_str).filter(|name| is_root(name)).collect();
    let mut queue: Vec<&str> = wanted.iter().copied().collect();
    while let Some(name) = queue.pop() {
        for field in messages.get(name).with_context(|| format!("no message {name}"))? {
            if field.kind.len() > 1 && special(&field.kind).is_none() && wanted.insert(&field.kind) {
                queue.push(&field.kind);
            }
        }
    }
    wanted.retain(|name| special(name).is_none());
    let index: BTreeMap<&str, usize> = wanted.iter().enumerate().map(|(i, name)| (*name, i)).collect();
    let mut out = String::new();
    for name in &wanted {
        out.push_str(name);
        for field in &messages[*name] {
            let wanted = plain(&field.name);
            let own = properties(name).map(|p| p.keys().find(|key| plain(key) == wanted).cloned());
            let json = match own {
                Some(Some(json)) => json,
                // Embedded in its parent, where its fields are the parent's too.
                Some(None) if is_embedded(field, messages, properties(name)) => String::new(),
                // Of another API level.
                Some(None) => continue,
                _ => known.get(&wanted).map_or_else(|| camel(&field.name), |name| (*name).to_owned()),
            };
            let code = match special(&field.kind) {
                Some(code) => code.to_owned(),
                None if field.kind.len() == 1 => field.kind.clone(),
                None => {
                    let is_union = UNIONS.iter().any(|name| field.kind.ends_with(&format!(".{name}")));
                    format!("{}{}", if is_union { "|" } else { "" }, index[field.kind.as_str()])
                }
            };
            write!(out, "\t{}:{json}:{}{code}", field.number, field.prefix)?;
        }
        out.push('\n');
    }
    Ok(out)
}

/// Whether a field that its schema does not name is a message whose fields the schema does.
fn is_embedded(field: &Field, messages: &Messages, schema: Option<&Map<String, Value>>) -> bool {
    let (Some(inner), Some(schema), "") = (messages.get(&field.kind), schema, field.prefix) else {
        return false;
    };
    let has = |wanted: &str| schema.keys().any(|key| plain(key) == wanted);
    !inner.is_empty()
        && inner.iter().all(|field| has(&plain(&field.name)) || is_embedded(field, messages, Some(schema)))
}
