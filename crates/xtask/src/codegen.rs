//! `cargo xtask codegen`: turns the published JSON schemas of the Kubernetes API into the compact
//! files under `crates/api/data` that the API server embeds. Run by hand at an API level change;
//! builds and tests only read the committed result.
//!
//! The layout of `schema.bin` is described (and read) in `crates/api/src/schema/embedded.rs`.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python package whose data we read: schemas of every API level, with descriptions, merge
/// keys and required fields.
const PACKAGE: &str = "kubernetes-validate==1.37.0";
const API_LEVEL: &str = "v1.36.0";
const MAGIC: &[u8; 8] = b"skegsch\x01";
const NONE: u32 = u32::MAX;

// As in `crates/api/src/schema/table.rs`.
const FLAG_MERGE: u8 = 1;
const FLAG_REPLACE: u8 = 2;
const FLAG_RETAIN_KEYS: u8 = 4;
const FLAG_PRESERVE_UNKNOWN: u8 = 8;
const FLAG_SITE: u8 = 64;
const FLAG_EXPLICIT: u8 = 128;

const PROP_REQUIRED: u8 = 1;
const PROP_OMIT_ZERO: u8 = 2;

/// Types that hold any object: they keep every field.
const RAW: [&str; 3] = [
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.runtime.RawExtension",
];

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";

/// Defaults that upstream's schemas declare and the published data lacks: (definition, property,
/// JSON). List map keys that are absent count as having them.
const DEFAULTS: [(&str, &str, &str); 15] = [
    ("io.k8s.api.core.v1.AzureDiskVolumeSource", "cachingMode", "\"ReadWrite\""),
    ("io.k8s.api.core.v1.AzureDiskVolumeSource", "fsType", "\"ext4\""),
    ("io.k8s.api.core.v1.AzureDiskVolumeSource", "kind", "\"Shared\""),
    ("io.k8s.api.core.v1.AzureDiskVolumeSource", "readOnly", "false"),
    ("io.k8s.api.core.v1.ContainerPort", "protocol", "\"TCP\""),
    ("io.k8s.api.core.v1.GRPCAction", "service", "\"\""),
    ("io.k8s.api.core.v1.ISCSIPersistentVolumeSource", "iscsiInterface", "\"default\""),
    ("io.k8s.api.core.v1.ISCSIVolumeSource", "iscsiInterface", "\"default\""),
    ("io.k8s.api.core.v1.RBDPersistentVolumeSource", "pool", "\"rbd\""),
    ("io.k8s.api.core.v1.RBDPersistentVolumeSource", "user", "\"admin\""),
    ("io.k8s.api.core.v1.RBDVolumeSource", "pool", "\"rbd\""),
    ("io.k8s.api.core.v1.RBDVolumeSource", "user", "\"admin\""),
    ("io.k8s.api.core.v1.ScaleIOPersistentVolumeSource", "storageMode", "\"ThinProvisioned\""),
    ("io.k8s.api.core.v1.ScaleIOVolumeSource", "storageMode", "\"ThinProvisioned\""),
    ("io.k8s.api.core.v1.ServicePort", "protocol", "\"TCP\""),
];

/// Optional scalars that upstream's Go structs hold by value: zero, false and the empty string are
/// not written back. (Optional scalars elsewhere are pointers, which keep them.) The published
/// data does not tell the two apart. A definition a line, after `io.k8s.`, then its properties.
const OMIT_ZERO: &str = include_str!("omit_zero.txt");

/// Descriptions that the published data lacks, in our own words.
const DESCRIPTIONS: [(&str, &str); 2] = [
    (
        QUANTITY,
        "Quantity is a fixed-point number with an optional decimal or binary suffix, such as 500m, 1.5, 2Gi or 1e3.",
    ),
    (
        INT_OR_STRING,
        "IntOrString holds either an integer or a string, such as a port number or its name, or a count or a percentage.",
    ),
];

/// Fetches the schemas (or reads them from `--from FILE`) and writes the data files.
pub fn codegen(args: &[String]) -> Result<()> {
    let source = match args {
        [] => fetch()?,
        [flag, file] if flag == "--from" => PathBuf::from(file),
        _ => bail!("usage: cargo xtask codegen [--from DEFINITIONS.json]"),
    };
    let text = std::fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
    let document: Value =
        serde_json::from_str(&text).with_context(|| format!("parsing {}", source.display()))?;
    let definitions = document["$defs"].as_object().context("the document has no $defs")?;
    let generated = Generator::new(definitions)?.run()?;
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/data");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("schema.bin"), &generated.schema)?;
    let compressed = zstd::bulk::compress(generated.descriptions.as_bytes(), 22)?;
    std::fs::write(out.join("descriptions.zst"), &compressed)?;
    println!("schema.bin {} bytes, descriptions.zst {} bytes", generated.schema.len(), compressed.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    crate::wire::write(
        definitions,
        &root.join("../target/codegen"),
        &root.join("apiserver/data/protobuf.tsv"),
    )
}

/// Downloads the package into `target/codegen` and returns the file with all definitions.
fn fetch() -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/codegen");
    std::fs::create_dir_all(&dir)?;
    run(Command::new("pip").args(["download", "--no-deps", "--quiet", "--dest"]).arg(&dir).arg(PACKAGE))?;
    let wheel = std::fs::read_dir(&dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .context("pip downloaded no wheel")?;
    let unpacked = dir.join("unpacked");
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    Ok(unpacked
        .join("kubernetes_validate/kubernetes-json-schema")
        .join(format!("{API_LEVEL}-local"))
        .join("_definitions.json"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

struct Generated {
    schema: Vec<u8>,
    descriptions: String,
}

#[derive(Clone, Copy)]
struct Node {
    head: [u8; 8],
    props: (u32, u32),
    item: u32,
    definition: u32,
    merge_key: u32,
    keys: (u32, u32),
    default: u32,
}

impl Node {
    fn new(shape: u8, format: u8) -> Self {
        Node {
            head: [shape, format, 0, 0, 0, 0, 0, 0],
            props: (0, 0),
            item: NONE,
            definition: NONE,
            merge_key: NONE,
            keys: (0, 0),
            default: NONE,
        }
    }

    fn flag(&mut self, flag: u8) {
        self.head[4] |= flag;
    }
}

struct Prop {
    name: (u32, u32),
    node: u32,
    flags: u8,
    description: String,
}

struct Generator<'a> {
    definitions: &'a Map<String, Value>,
    /// Definition names in order: the index is the identity of a definition and of its node.
    order: BTreeMap<&'a str, u32>,
    text: String,
    interned: BTreeMap<String, (u32, u32)>,
    texts: Vec<(u32, u32)>,
    nodes: Vec<Node>,
    props: Vec<Prop>,
    values: Vec<(u32, u32)>,
}

impl<'a> Generator<'a> {
    fn new(definitions: &'a Map<String, Value>) -> Result<Self> {
        let mut names: Vec<&str> = definitions.keys().map(String::as_str).collect();
        names.sort_unstable();
        let order: BTreeMap<&str, u32> =
            names.iter().enumerate().map(|(at, name)| (*name, at as u32)).collect();
        for needed in [QUANTITY, INT_OR_STRING, MICRO_TIME, TIME] {
            if !order.contains_key(needed) {
                bail!("the document lacks {needed}");
            }
        }
        Ok(Generator {
            definitions,
            // The nodes of the definitions come first, so that references need no second pass.
            nodes: vec![Node::new(0, 0); order.len()],
            order,
            text: String::new(),
            interned: BTreeMap::new(),
            texts: Vec::new(),
            props: Vec::new(),
            values: Vec::new(),
        })
    }

    fn run(mut self) -> Result<Generated> {
        let names: Vec<(&str, u32)> = self.order.iter().map(|(name, at)| (*name, *at)).collect();
        // Two passes: scalar definitions and objects first get their shapes, so that a reference
        // with attributes of its own can copy a finished node.
        for (name, at) in &names {
            let mut node = self.definition(name)?;
            node.definition = *at;
            self.nodes[*at as usize] = node;
        }
        self.resolve_sites();
        let mut out = Vec::new();
        let mut definitions = Vec::new();
        let mut gvks = Vec::new();
        let mut texts = vec![];
        for (name, at) in &names {
            let schema = &self.definitions[*name];
            let start = gvks.len() as u32;
            for gvk in schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                for key in ["group", "version", "kind"] {
                    let text = self.intern(gvk[key].as_str().unwrap_or(""));
                    gvks.push(text);
                }
            }
            let unions = match schema.get("x-kubernetes-unions") {
                Some(unions) => unions.to_string(),
                None => String::new(),
            };
            let span = (start / 3, (gvks.len() as u32 - start) / 3);
            definitions.push((self.intern(name), *at, span, self.intern(&unions)));
            texts.push(description(name, schema));
        }
        let descriptions = self.descriptions(&texts);
        out.extend_from_slice(MAGIC);
        put(&mut out, self.text.len() as u32);
        out.extend_from_slice(self.text.as_bytes());
        put(&mut out, self.texts.len() as u32);
        self.texts.iter().for_each(|pair| put_pair(&mut out, *pair));
        put(&mut out, self.nodes.len() as u32);
        for node in &self.nodes {
            out.extend_from_slice(&node.head);
            put_pair(&mut out, node.props);
            [node.item, node.definition, node.merge_key].into_iter().for_each(|n| put(&mut out, n));
            put_pair(&mut out, node.keys);
            put(&mut out, node.default);
        }
        put(&mut out, self.props.len() as u32);
        for prop in &self.props {
            put_pair(&mut out, prop.name);
            put(&mut out, prop.node);
            put(&mut out, u32::from(prop.flags));
        }
        put(&mut out, definitions.len() as u32);
        for (name, node, gvks, unions) in definitions {
            put_pair(&mut out, name);
            put(&mut out, node);
            put_pair(&mut out, gvks);
            put_pair(&mut out, unions);
        }
        put(&mut out, gvks.len() as u32 / 3);
        gvks.into_iter().for_each(|text| put_pair(&mut out, text));
        put(&mut out, self.values.len() as u32);
        self.values.iter().for_each(|pair| put_pair(&mut out, *pair));
        Ok(Generated { schema: out, descriptions })
    }

    /// Nodes that copy a definition (they carry attributes of their place) take its content.
    fn resolve_sites(&mut self) {
        for at in self.order.len()..self.nodes.len() {
            let site = self.nodes[at];
            if site.head[4] & FLAG_SITE == 0 {
                continue;
            }
            let mut copy = self.nodes[site.definition as usize];
            copy.head[4] |= site.head[4];
            if site.head[5] != 0 {
                copy.head[3] = site.head[3];
            }
            copy.head[5] = 0;
            if site.merge_key != NONE {
                copy.merge_key = site.merge_key;
            }
            self.nodes[at] = copy;
        }
    }

    fn descriptions(&self, definitions: &[String]) -> String {
        let mut text = format!("{} {}\0", definitions.len(), self.props.len());
        for line in definitions.iter().chain(self.props.iter().map(|prop| &prop.description)) {
            text.push_str(&line.replace('\0', ""));
            text.push('\0');
        }
        text
    }

    fn intern(&mut self, text: &str) -> (u32, u32) {
        if let Some(pair) = self.interned.get(text) {
            return *pair;
        }
        let pair = (self.text.len() as u32, text.len() as u32);
        self.text.push_str(text);
        self.interned.insert(text.to_owned(), pair);
        pair
    }

    fn push_text(&mut self, text: &str) -> u32 {
        let pair = self.intern(text);
        self.texts.push(pair);
        self.texts.len() as u32 - 1
    }

    fn definition(&mut self, name: &str) -> Result<Node> {
        let schema = self.definitions[name].clone();
        Ok(match name {
            QUANTITY => Node::new(9, 0),
            INT_OR_STRING => Node::new(8, 0),
            TIME => Node::new(4, 5),
            MICRO_TIME => Node::new(4, 6),
            _ => self.inline(name, &schema).with_context(|| name.to_owned())?,
        })
    }

    /// A type that is written in place.
    fn inline(&mut self, owner: &str, schema: &Value) -> Result<Node> {
        let map_values = schema.get("additionalProperties");
        let kind = schema.get("type").map(type_name).transpose()?;
        let shape = match kind {
            None => 0,
            Some("object") if map_values.is_some() => 2,
            Some("object") => 1,
            Some("array") => 3,
            Some("string") => 4,
            Some("integer") => 5,
            Some("number") => 6,
            Some("boolean") => 7,
            Some(other) => bail!("unknown type {other}"),
        };
        let format = match schema["format"].as_str() {
            None => 0,
            Some("int32") => 1,
            Some("int64") => 2,
            Some("double") => 3,
            Some("byte") => 4,
            Some(other) => bail!("unknown format {other}"),
        };
        let mut node = Node::new(shape, format);
        self.attributes(&mut node, schema)?;
        if shape == 0 || RAW.contains(&owner) {
            node.flag(FLAG_PRESERVE_UNKNOWN);
        }
        if let Some(item) = schema.get("items").or(map_values) {
            node.item = self.place(item)?;
        }
        if let Some(props) = schema["properties"].as_object() {
            node.props = self.properties(owner, schema, props)?;
        }
        Ok(node)
    }

    fn properties(&mut self, owner: &str, schema: &Value, props: &Map<String, Value>) -> Result<(u32, u32)> {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let omit_zero = omit_zero(owner);
        if let Some(unknown) =
            omit_zero.iter().find(|name| !props.contains_key(**name) || required.contains(name))
        {
            bail!("{owner} has no optional property {unknown}");
        }
        let sorted: BTreeMap<&String, &Value> = props.iter().collect();
        let mut own = Vec::new();
        for (name, schema) in sorted {
            let node = self.place(schema).with_context(|| name.clone())?;
            if let Some((_, _, value)) = DEFAULTS.iter().find(|(def, prop, _)| *def == owner && prop == name)
            {
                let text = self.intern(value);
                self.values.push(text);
                self.nodes[node as usize].default = self.values.len() as u32 - 1;
            }
            let description = schema["description"].as_str().unwrap_or("").to_owned();
            let omits = omit_zero.contains(&name.as_str());
            let mut flags = if required.contains(&name.as_str()) { PROP_REQUIRED } else { 0 };
            flags |= if omits { PROP_OMIT_ZERO } else { 0 };
            own.push(Prop { name: self.intern(name), node, flags, description });
        }
        let span = (self.props.len() as u32, own.len() as u32);
        self.props.extend(own);
        Ok(span)
    }

    /// The node of a place: of the definition it refers to, a copy of that where the place has
    /// attributes of its own, or a new one.
    fn place(&mut self, schema: &Value) -> Result<u32> {
        let node = match schema["$ref"].as_str() {
            Some(reference) => {
                let name = reference.rsplit('/').next().unwrap_or("");
                let at = *self.order.get(name).with_context(|| format!("no definition {name}"))?;
                let mut site = Node::new(0, 0);
                self.attributes(&mut site, schema)?;
                if site.head[4] == 0 && site.merge_key == NONE {
                    return Ok(at);
                }
                site.head[5] = u8::from(site.head[4] & FLAG_EXPLICIT != 0);
                site.flag(FLAG_SITE);
                site.definition = at;
                site
            }
            None => self.inline("", schema)?,
        };
        self.nodes.push(node);
        Ok(self.nodes.len() as u32 - 1)
    }

    fn attributes(&mut self, node: &mut Node, schema: &Value) -> Result<()> {
        if let Some(list) = schema["x-kubernetes-list-type"].as_str() {
            node.flag(FLAG_EXPLICIT);
            node.head[2] = match list {
                "atomic" => 0,
                "set" => 1,
                "map" => 2,
                other => bail!("unknown list type {other}"),
            };
        }
        if let Some(map) = schema["x-kubernetes-map-type"].as_str() {
            node.flag(FLAG_EXPLICIT);
            node.head[3] = match map {
                "granular" => 0,
                "atomic" => 1,
                other => bail!("unknown map type {other}"),
            };
        }
        if let Some(strategies) = schema["x-kubernetes-patch-strategy"].as_str() {
            for strategy in strategies.split(',') {
                node.flag(match strategy {
                    "merge" => FLAG_MERGE,
                    "replace" => FLAG_REPLACE,
                    "retainKeys" => FLAG_RETAIN_KEYS,
                    other => bail!("unknown patch strategy {other}"),
                });
            }
        }
        if let Some(key) = schema["x-kubernetes-patch-merge-key"].as_str() {
            node.merge_key = self.push_text(key);
        }
        if let Some(keys) = schema["x-kubernetes-list-map-keys"].as_array() {
            node.keys = (self.texts.len() as u32, keys.len() as u32);
            for key in keys {
                self.push_text(key.as_str().context("list map keys are strings")?);
            }
        }
        Ok(())
    }
}

/// The optional properties of a definition whose zero is the same as absent.
fn omit_zero(owner: &str) -> Vec<&'static str> {
    let of =
        |line: &&str| line.split(' ').next().is_some_and(|name| owner.strip_prefix("io.k8s.") == Some(name));
    OMIT_ZERO.lines().find(of).map_or_else(Vec::new, |line| line.split(' ').skip(1).collect())
}

/// The one type besides `null`, which upstream's own document does not have.
fn type_name(kind: &Value) -> Result<&str> {
    match kind {
        Value::String(name) => Ok(name),
        Value::Array(names) => {
            let mut names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.next().context("a type beside null")
        }
        other => bail!("unusable type {other}"),
    }
}

fn description(name: &str, schema: &Value) -> String {
    let own = DESCRIPTIONS.iter().find(|(of, _)| *of == name).map(|(_, text)| json!(text));
    let text = own.unwrap_or_else(|| schema["description"].clone());
    text.as_str().unwrap_or("").to_owned()
}

fn put(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_pair(out: &mut Vec<u8>, (a, b): (u32, u32)) {
    put(out, a);
    put(out, b);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(definitions: Value) -> Result<Generated> {
        let mut all = definitions;
        for name in [QUANTITY, INT_OR_STRING, MICRO_TIME, TIME] {
            all[name] = json!({});
        }
        Generator::new(all.as_object().context("an object")?)?.run()
    }

    #[test]
    fn definitions_become_tables() {
        let generated = generate(json!({"a.A": {"type": "object", "description": "An A.", "properties": {
            "b": {"$ref": "#/$defs/a.A", "x-kubernetes-patch-strategy": "retainKeys", "description": "Its B."},
            "n": {"type": ["integer", "null"], "format": "int32"}}}}))
        .unwrap();
        assert!(generated.schema.starts_with(MAGIC));
        assert!(generated.descriptions.starts_with("5 2\0An A.\0"), "{:?}", generated.descriptions);
        assert!(generated.descriptions.ends_with("Its B.\0\0"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refused = |property: Value| {
            let definitions = json!({"a.A": {"type": "object", "properties": {"b": property}}});
            format!("{:#}", generate(definitions).err().unwrap())
        };
        assert_eq!(refused(json!({"type": "string", "format": "ipv9"})), "a.A: b: unknown format ipv9");
        assert_eq!(refused(json!({"$ref": "#/$defs/a.B"})), "a.A: b: no definition a.B");
        assert_eq!(
            refused(json!({"type": "array", "x-kubernetes-list-type": "bag"})),
            "a.A: b: unknown list type bag"
        );
    }

    #[test]
    fn null_is_taken_out_of_types() {
        assert_eq!(type_name(&json!(["string", "null"])).unwrap(), "string");
        assert_eq!(type_name(&json!("object")).unwrap(), "object");
        assert!(type_name(&json!(["null"])).is_err());
    }
}
