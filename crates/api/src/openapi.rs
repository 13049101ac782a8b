//! The OpenAPI documents: version 3 per path of the root, group, and version of a group, with an
//! index; and version 2 as one.
//! Made from the kinds table and the schema table when asked for; keeping them is the caller's
//! matter. It knows nothing of HTTP.
//! Upstream counterpart: `kube-openapi` and the installer of `apiserver/pkg/endpoints`.

mod gnostic;
mod paths;
mod schemas;

use crate::gvk::GroupVersion;
use crate::kinds::{Kind, Snapshot};
use crate::schema::Descriptions;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::sync::Arc;

/// The version of the API that the documents describe.
pub const API_VERSION: &str = "v1.36.0";

/// The two forms, which differ in where things stand more than in what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

impl Form {
    fn reference(self, name: &str) -> Value {
        match self {
            Form::V2 => json!({ "$ref": format!("#/definitions/{name}") }),
            Form::V3 => json!({ "$ref": format!("#/components/schemas/{name}") }),
        }
    }
}

/// The group versions of the table, with their kinds.
fn by_group_version(snapshot: &Snapshot) -> BTreeMap<GroupVersion, Vec<Arc<Kind>>> {
    let mut groups: BTreeMap<GroupVersion, Vec<Arc<Kind>>> = BTreeMap::new();
    for kind in snapshot.iter() {
        groups.entry(kind.gvk.group_version()).or_default().push(kind.clone());
    }
    groups
}

fn is_builtin<'a>(kinds: impl IntoIterator<Item = &'a Arc<Kind>>) -> bool {
    kinds.into_iter().any(|kind| !kind.schema.is_custom())
}

/// The path of a group version below the root: `api/v1`, `apis/apps/v1`.
fn prefix(gv: &GroupVersion) -> String {
    if gv.group.is_empty() {
        format!("api/{}", gv.version)
    } else {
        format!("apis/{}/{}", gv.group, gv.version)
    }
}

/// What one document of version 3 is about.
enum Subject<'a> {
    /// A path that belongs to no group.
    Root(&'static paths::Root),
    /// The versions of a named group: of built-in kinds, as upstream's server of definitions has none for
    /// its groups.
    Group(&'a str),
    Version(GroupVersion, Vec<Arc<Kind>>),
}

impl<'a> Subject<'a> {
    /// By the path as the index has it, like `apis/apps/v1`; looks at no other group.
    fn at(snapshot: &Snapshot, path: &'a str) -> Option<Self> {
        let (group, version) = match *path.split('/').collect::<Vec<_>>() {
            ["api", version] => ("", Some(version)),
            ["apis", group] if !group.is_empty() => (group, None),
            ["apis", group, version] if !group.is_empty() => (group, Some(version)),
            _ => {
                let mut roots = paths::ROOTS.iter();
                return roots.find(|root| root.path.trim_matches('/') == path).map(Subject::Root);
            }
        };
        let kinds = snapshot.of_group(group);
        let Some(version) = version else {
            return is_builtin(kinds).then_some(Subject::Group(group));
        };
        let kinds: Vec<_> = kinds.filter(|kind| &*kind.gvk.version == version).cloned().collect();
        (!kinds.is_empty()).then(|| Subject::Version(GroupVersion::new(group, version), kinds))
    }

    fn kinds(&self) -> &[Arc<Kind>] {
        match self {
            Subject::Version(_, kinds) => kinds,
            Subject::Root(_) | Subject::Group(_) => &[],
        }
    }
}

/// `/openapi/v3`: where the documents are. The hash in each URL changes with its document, so that
/// clients may keep what they have.
pub fn v3_index(snapshot: &Snapshot) -> Vec<u8> {
    let mut paths = Entries::new();
    let mut add = |path: String, kinds: &[Arc<Kind>]| {
        let url = format!("/openapi/v3/{path}?hash={}", fingerprint(kinds));
        paths.insert(path, json!({ "serverRelativeURL": url }));
    };
    for root in &paths::ROOTS {
        add(root.path.trim_matches('/').to_owned(), &[]);
    }
    for (gv, kinds) in by_group_version(snapshot) {
        if !gv.group.is_empty() && is_builtin(&kinds) {
            add(format!("apis/{}", gv.group), &[]);
        }
        add(prefix(&gv), &kinds);
    }
    json!({ "paths": paths }).to_string().into_bytes()
}

/// The hash of the document at a path of the index, as the index has it; none if there is no such document.
pub fn v3_hash(snapshot: &Snapshot, path: &str) -> Option<String> {
    Subject::at(snapshot, path).map(|subject| fingerprint(subject.kinds()))
}

/// Of everything that the document of these kinds is made of.
fn fingerprint(kinds: &[Arc<Kind>]) -> String {
    /// Two FNV-1a streams make 128 bits: no secret, but enough never to meet by chance.
    struct Fnv(u64, u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                self.1 = (self.1 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(7);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325, 0x9ae1_6a3b_2f90_404f);
    (API_VERSION, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    for kind in kinds {
        (&kind.gvk, &kind.plural, kind.namespaced, kind.verbs).hash(&mut hasher);
        for sub in &kind.subresources {
            (sub.name, sub.gvk, sub.verbs).hash(&mut hasher);
        }
        kind.schema.source_hash().hash(&mut hasher);
    }
    format!("{:016X}{:016X}", hasher.0, hasher.1)
}

/// `/openapi/v3/<path>`: the document at a path of the index, like `version`, `apis/apps` or
/// `apis/apps/v1`; none if there is no such document.
pub fn v3_document(snapshot: &Snapshot, path: &str) -> Option<Vec<u8>> {
    let subject = Subject::at(snapshot, path)?;
    let descriptions = Descriptions::load();
    let (mut paths, mut used) = (Entries::new(), BTreeSet::new());
    match &subject {
        Subject::Root(root) => paths::add_root(Form::V3, root, &mut paths, &mut used),
        Subject::Group(group) => paths::add_group(Form::V3, group, &mut paths, &mut used),
        Subject::Version(gv, kinds) => paths::add(Form::V3, gv, kinds, &mut paths, &mut used),
    }
    let schemas = schemas::all(Form::V3, subject.kinds(), used, &BTreeSet::new(), &descriptions);
    let document = json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": { "BearerToken": bearer_token() } },
    });
    Some(document.to_string().into_bytes())
}

/// The name of a kind's type, and by their names this and all types that it refers to: as the documents
/// have them, without texts. Names in references stand behind `#/definitions/` or
/// `#/components/schemas/`.
pub fn types_of(kind: &Arc<Kind>) -> (String, serde_json::Map<String, Value>) {
    // Version 3 says what custom resources say; of built-in kinds version 2 names simpler types.
    let form = if kind.schema.is_custom() { Form::V3 } else { Form::V2 };
    let name = schemas::type_name(kind);
    let used = BTreeSet::from([name.clone()]);
    (name, schemas::all(form, std::slice::from_ref(kind), used, &BTreeSet::new(), &Descriptions::none()))
}

/// `/openapi/v2`: one document of all kinds, as JSON. Of it no more than the definitions is ever in
/// memory at once.
pub fn v2_document(snapshot: &Snapshot, out: &mut dyn Write) -> io::Result<()> {
    fn add(entries: Entries, is_first: &mut bool, out: &mut dyn Write) -> io::Result<()> {
        for (name, value) in entries {
            let joint = if std::mem::take(is_first) { "" } else { "," };
            write!(out, "{joint}{}:{value}", Value::String(name))?;
        }
        Ok(())
    }
    let head = v2_head().to_string();
    write!(out, "{},\"paths\":{{", head.trim_end_matches('}'))?;
    let (mut texts, mut no_path, mut no_text) = (Vec::new(), true, true);
    v2(snapshot, |paths, definitions| {
        add(definitions, &mut no_text, &mut texts)?;
        add(paths, &mut no_path, out)
    })?;
    out.write_all(b"},\"definitions\":{")?;
    out.write_all(&texts)?;
    out.write_all(b"}}")
}

/// The same in gnostic's protobuf.
pub fn v2_gnostic(snapshot: &Snapshot, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&gnostic::encode(&v2_head()))?;
    // Messages one behind the other are one message with the fields of all.
    v2(snapshot, |paths, definitions| {
        out.write_all(&gnostic::encode(&json!({ "paths": paths, "definitions": definitions })))
    })
}

/// A document of version 2 in gnostic's protobuf.
pub fn gnostic_of(document: &Value) -> Vec<u8> {
    gnostic::encode(document)
}

fn v2_head() -> Value {
    json!({
        "swagger": "2.0",
        "info": info(),
        "security": [{ "BearerToken": [] }],
        "securityDefinitions": { "BearerToken": bearer_token() },
    })
}

type Entries = serde_json::Map<String, Value>;

/// Hands out paths and definitions in parts, each a group version: there may be so many that all at
/// once would be too large.
fn v2(snapshot: &Snapshot, mut part: impl FnMut(Entries, Entries) -> io::Result<()>) -> io::Result<()> {
    let descriptions = Descriptions::load();
    let (mut used, mut paths) = (BTreeSet::new(), Entries::new());
    let groups = by_group_version(snapshot);
    for root in &paths::ROOTS {
        paths::add_root(Form::V2, root, &mut paths, &mut used);
    }
    for (gv, _) in groups.iter().filter(|(gv, kinds)| !gv.group.is_empty() && is_builtin(*kinds)) {
        paths::add_group(Form::V2, &gv.group, &mut paths, &mut used);
    }
    let mut told = BTreeSet::new();
    for (gv, kinds) in groups {
        paths::add(Form::V2, &gv, &kinds, &mut paths, &mut used);
        let definitions = schemas::all(Form::V2, &kinds, std::mem::take(&mut used), &told, &descriptions);
        told.extend(definitions.keys().cloned());
        part(std::mem::take(&mut paths), definitions)?;
    }
    Ok(())
}

fn info() -> Value {
    json!({ "title": "Kubernetes", "version": API_VERSION })
}

fn bearer_token() -> Value {
    json!({ "type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication" })
}

#[cfg(test)]
mod tests;
