//! The paths of a kind and what may be done there.

use super::{Form, prefix, schemas};
use crate::gvk::GroupVersion;
use crate::kinds::{Kind, Subresource};
use crate::schema::Schema;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// Bodies of writes may come in every form that is known.
const ANY: &[&str] = &["*/*"];
/// What answers come in; custom resources have no protobuf.
const TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH_TYPES: &[&str] =
    &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PROTOBUF: &str = "protobuf";
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Not for custom resources, which have no types to say how lists of theirs merge. kubectl chooses by this.
const STRATEGIC: &str = "strategic";

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', the output is indented.");
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Asks a watch for BOOKMARK events, which tell how far it has come."),
    ("continue", "string", "The token of an earlier, incomplete list, to go on after it."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("limit", "integer", "The most objects that one answer carries."),
    (
        "resourceVersion",
        "string",
        "The version that the answer must be based on, or after which a watch starts.",
    ),
    ("resourceVersionMatch", "string", "How resourceVersion applies to a list: Exact or NotOlderThan."),
    (
        "sendInitialEvents",
        "boolean",
        "Starts a watch with the objects that exist, and a bookmark after them.",
    ),
    ("timeoutSeconds", "integer", "Ends the call after so many seconds."),
    ("watch", "boolean", "Streams changes instead of listing."),
];
const WRITE: &[Parameter] = &[
    ("dryRun", "string", "With 'All', everything happens but the write."),
    ("fieldManager", "string", "The name under which changed fields are recorded."),
    ("fieldValidation", "string", "What to do about unknown or duplicate fields: Ignore, Warn or Strict."),
];
const FORCE: Parameter =
    ("force", "boolean", "Takes fields from other managers instead of a conflict; of server-side apply.");
const DELETE: &[Parameter] = &[
    ("dryRun", "string", "With 'All', everything happens but the write."),
    ("gracePeriodSeconds", "integer", "How long the object may take to end; 0 means at once."),
    ("orphanDependents", "boolean", "Whether to leave dependents; replaced by propagationPolicy."),
    ("propagationPolicy", "string", "What happens to dependents: Orphan, Background or Foreground."),
];
const LOG: &[Parameter] = &[
    ("container", "string", "The container; needed if the Pod has several."),
    ("follow", "boolean", "Goes on as more is written."),
    (
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "Has no effect: the certificate of a node is always verified.",
    ),
    ("limitBytes", "integer", "The most bytes of the answer."),
    ("previous", "boolean", "The container before the last restart."),
    ("sinceSeconds", "integer", "Only what was written in the last so many seconds."),
    ("sinceTime", "string", "Only what was written after this time."),
    ("stream", "string", "Which output: All, Stdout or Stderr."),
    ("tailLines", "integer", "Only the last so many lines."),
    ("timestamps", "boolean", "Puts the time before each line."),
];
const ATTACH: &[Parameter] = &[
    ("container", "string", "The container; needed if the Pod has several."),
    ("stderr", "boolean", "Whether to carry standard error."),
    ("stdin", "boolean", "Whether to carry standard input."),
    ("stdout", "boolean", "Whether to carry standard output."),
    ("tty", "boolean", "Whether the process has a terminal."),
];
const COMMAND: Parameter =
    ("command", "string", "The program and its arguments, each a parameter; no shell.");
const PATH: Parameter = ("path", "string", "The path at the backend.");
/// Methods of streams, then those that proxies pass on besides.
const PASSED_ON: &[&str] = &["get", "post", "put", "delete", "options", "head", "patch"];
const PORTS: Parameter = ("ports", "integer", "The ports to forward.");

/// What is done at a path by one method.
struct Operation {
    method: &'static str,
    action: &'static str,
    /// The first word of the operation id.
    word: &'static str,
}

const fn operation(method: &'static str, action: &'static str, word: &'static str) -> Operation {
    Operation { method, action, word }
}

const ON_COLLECTION: &[(&str, Operation)] = &[
    ("list", operation("get", "list", "list")),
    ("create", operation("post", "post", "create")),
    ("deletecollection", operation("delete", "deletecollection", "delete")),
];
const ON_OBJECT: &[(&str, Operation)] = &[
    ("get", operation("get", "get", "read")),
    ("update", operation("put", "put", "replace")),
    ("patch", operation("patch", "patch", "patch")),
    ("delete", operation("delete", "delete", "delete")),
];

/// Where a path stands.
struct At<'a> {
    kind: &'a Kind,
    subresource: Option<&'a Subresource>,
    /// A list over all namespaces.
    all_namespaces: bool,
}

/// A path that belongs to no group.
pub(super) struct Root {
    pub(super) path: &'static str,
    tag: &'static str,
    /// The operation's id, and what it does.
    operation: (&'static str, &'static str),
    types: &'static [&'static str],
    /// The type of the answer; a text where there is none.
    answer: Option<&'static str>,
}

pub(super) const ROOTS: [Root; 5] = [
    Root {
        path: "/api/",
        tag: "core",
        operation: ("getCoreAPIVersions", "get the versions of the core group"),
        types: TYPES,
        answer: Some("io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions"),
    },
    Root {
        path: "/apis/",
        tag: "apis",
        operation: ("getAPIVersions", "get the groups and their versions"),
        types: TYPES,
        answer: Some("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList"),
    },
    Root {
        path: "/version/",
        tag: "version",
        operation: ("getCodeVersion", "get the version of this server"),
        types: &["application/json"],
        answer: Some("io.k8s.apimachinery.pkg.version.Info"),
    },
    Root {
        path: "/.well-known/openid-configuration/",
        tag: "WellKnown",
        operation: (
            "getServiceAccountIssuerOpenIDConfiguration",
            "get how tokens of service accounts are verified",
        ),
        types: &["application/json"],
        answer: None,
    },
    Root {
        path: "/openid/v1/jwks/",
        tag: "openid",
        operation: ("getServiceAccountIssuerOpenIDKeyset", "get the keys of tokens of service accounts"),
        types: &["application/jwk-set+json"],
        answer: None,
    },
];

/// One of the root's paths.
pub(super) fn add_root(form: Form, root: &Root, paths: &mut Map<String, Value>, used: &mut BTreeSet<String>) {
    let Root { path, tag, operation, types, answer } = root;
    let mut writer = Writer { form, gv: &GroupVersion::new("", ""), used };
    let answer = answer.map_or_else(|| json!({ "type": "string" }), |name| writer.reference(name));
    let told = writer.told((*tag).into(), operation.0.into(), operation.1, &answer, types);
    paths.insert((*path).into(), told);
}

/// The path of a named group, at which are its versions.
pub(super) fn add_group(
    form: Form,
    group: &str,
    paths: &mut Map<String, Value>,
    used: &mut BTreeSet<String>,
) {
    let mut writer = Writer { form, gv: &GroupVersion::new(group, ""), used };
    let (word, answer) = (group_word(group), writer.reference(&format!("{META}.APIGroup")));
    let id = format!("get{}APIGroup", capitals(&word));
    let told = writer.told(word, id, "get the versions of a group", &answer, TYPES);
    paths.insert(format!("/apis/{group}/"), told);
}

pub(super) fn add(
    form: Form,
    gv: &GroupVersion,
    kinds: &[Arc<Kind>],
    paths: &mut Map<String, Value>,
    used: &mut BTreeSet<String>,
) {
    let root = format!("/{}", prefix(gv));
    let mut writer = Writer { form, gv, used };
    paths.insert(format!("{root}/"), writer.resources());
    for kind in kinds {
        let scope = if kind.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
        let collection = format!("{scope}/{}", kind.plural);
        let at = At { kind, subresource: None, all_namespaces: false };
        writer.path(paths, collection.clone(), &at, ON_COLLECTION, kind.verbs);
        writer.path(paths, format!("{collection}/{{name}}"), &at, ON_OBJECT, kind.verbs);
        if kind.namespaced {
            let at = At { kind, subresource: None, all_namespaces: true };
            writer.path(paths, format!("{root}/{}", kind.plural), &at, &ON_COLLECTION[..1], kind.verbs);
        }
        for subresource in &kind.subresources {
            let at = At { kind, subresource: Some(subresource), all_namespaces: false };
            let path = format!("{collection}/{{name}}/{}", subresource.name);
            writer.subresource(paths, path, &at, subresource);
        }
    }
}

struct Writer<'a> {
    form: Form,
    gv: &'a GroupVersion,
    used: &'a mut BTreeSet<String>,
}

impl Writer<'_> {
    /// The list of resources of the group version.
    fn resources(&mut self) -> Value {
        let answer = self.reference(&format!("{META}.APIResourceList"));
        let id = format!("get{}APIResources", self.group_version_word());
        self.told(self.tag(), id, "get available resources", &answer, TYPES)
    }

    /// A path at which something is told.
    fn told(&self, tag: String, id: String, description: &str, answer: &Value, types: &[&str]) -> Value {
        let mut operation = Map::new();
        operation.insert("tags".into(), json!([tag]));
        operation.insert("description".into(), description.into());
        operation.insert("operationId".into(), id.into());
        self.answers(&mut operation, answer, &[200], types);
        json!({ "get": operation })
    }

    fn reference(&mut self, name: &str) -> Value {
        self.used.insert(name.to_owned());
        self.form.reference(name)
    }

    /// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`.
    fn group_version_word(&self) -> String {
        capitals(&group_word(&self.gv.group)) + &capitals(&self.gv.version)
    }

    fn tag(&self) -> String {
        format!("{}_{}", group_word(&self.gv.group), self.gv.version)
    }

    fn path(
        &mut self,
        paths: &mut Map<String, Value>,
        path: String,
        at: &At<'_>,
        operations: &[(&str, Operation)],
        verbs: &[&str],
    ) {
        let mut item = Map::new();
        for (_, operation) in operations.iter().filter(|(verb, _)| verbs.contains(verb)) {
            item.insert(operation.method.into(), self.operation(at, operation));
        }
        self.finish(paths, path, item);
    }

    fn subresource(&mut self, paths: &mut Map<String, Value>, path: String, at: &At<'_>, sub: &Subresource) {
        let connects = matches!(sub.name, "attach" | "exec" | "portforward" | "proxy");
        if !connects {
            let mut operations: Vec<(&str, Operation)> =
                vec![("create", operation("post", "post", "create"))];
            operations
                .extend(ON_OBJECT.iter().map(|(verb, op)| (*verb, operation(op.method, op.action, op.word))));
            return self.path(paths, path, at, &operations, sub.verbs);
        }
        let methods = if sub.name == "proxy" { PASSED_ON } else { &PASSED_ON[..2] };
        for with_path in [false, true] {
            if with_path && sub.name != "proxy" {
                break;
            }
            let mut item = Map::new();
            for method in methods {
                let mut operation = self.operation(at, &operation(method, "connect", "connect"));
                if with_path && let Some(Value::String(id)) = operation.get_mut("operationId") {
                    id.push_str("WithPath");
                }
                item.insert((*method).into(), operation);
            }
            let path = if with_path { format!("{path}/{{path}}") } else { path.clone() };
            self.finish(paths, path, item);
        }
    }

    /// Adds the parameters that all methods of a path share.
    fn finish(&self, paths: &mut Map<String, Value>, path: String, mut item: Map<String, Value>) {
        if item.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        for (name, text) in [
            ("name", "The name of the object."),
            ("namespace", "The namespace of the object."),
            ("path", "The path at the backend."),
        ] {
            if path.contains(&format!("{{{name}}}")) {
                parameters.push(self.parameter(&(name, "string", text), "path"));
            }
        }
        // Streams are not objects that could be indented.
        if !item.values().any(|operation| operation["x-kubernetes-action"] == "connect") {
            parameters.push(self.parameter(&PRETTY, "query"));
        }
        item.insert("parameters".into(), parameters.into());
        paths.insert(path, item.into());
    }

    fn parameter(&self, (name, kind, text): &Parameter, place: &str) -> Value {
        let mut out = json!({ "name": name, "in": place, "description": text, "uniqueItems": true });
        match self.form {
            Form::V2 => out["type"] = (*kind).into(),
            Form::V3 => {
                out["schema"] = json!({ "type": kind, "uniqueItems": true });
                out.as_object_mut().and_then(|out| out.remove("uniqueItems"));
            }
        }
        if place == "path" {
            out["required"] = true.into();
        }
        out
    }

    fn operation(&mut self, at: &At<'_>, operation: &Operation) -> Value {
        let mut out = Map::new();
        let subject = &at.kind.gvk.kind;
        let what = at.subresource.map_or(String::new(), |sub| format!("{} of the specified ", sub.name));
        let description = match operation.action {
            "list" => format!("list or watch objects of kind {subject}"),
            "post" => format!("create {what}{}", article(subject)),
            "deletecollection" => format!("delete collection of {subject}"),
            "get" => format!("read {what}{subject}"),
            "put" => format!("replace {what}{subject}"),
            "patch" => format!("partially update {what}{subject}"),
            "delete" => format!("delete {}", article(subject)),
            _ => format!("connect to {what}{subject}"),
        };
        out.insert("description".into(), description.into());
        out.insert("tags".into(), json!([self.tag()]));
        out.insert("operationId".into(), self.operation_id(at, operation).into());
        out.insert("x-kubernetes-action".into(), operation.action.into());
        out.insert("x-kubernetes-group-version-kind".into(), gvk_of(at));
        let mut parameters: Vec<Value> = parameters(at, operation)
            .into_iter()
            .map(|parameter| self.parameter(parameter, "query"))
            .collect();
        self.body(at, operation, &mut out, &mut parameters);
        if !parameters.is_empty() {
            out.insert("parameters".into(), parameters.into());
        }
        self.answer(at, operation, &mut out);
        Value::Object(out)
    }

    /// `listAppsV1NamespacedDeployment`, `readCoreV1NodeStatus`, `connectCoreV1GetNamespacedPodExec`.
    fn operation_id(&self, at: &At<'_>, operation: &Operation) -> String {
        let mut id = format!("{}{}", operation.word, self.group_version_word());
        match operation.action {
            "deletecollection" => id.push_str("Collection"),
            "connect" => id.push_str(&capitals(operation.method)),
            _ => {}
        }
        if at.kind.namespaced && !at.all_namespaces {
            id.push_str("Namespaced");
        }
        id.push_str(&at.kind.gvk.kind);
        if let Some(sub) = at.subresource {
            id.push_str(&capitals(sub.name));
        }
        if at.all_namespaces {
            id.push_str("ForAllNamespaces");
        }
        id
    }

    /// The type that a path reads and writes.
    fn object(&mut self, at: &At<'_>) -> Value {
        let of_subresource = at.subresource.and_then(|sub| sub.gvk).and_then(|(group, version, kind)| {
            Schema::builtin_kind(group, version, kind)?.root().type_name().map(str::to_owned)
        });
        let name = of_subresource.unwrap_or_else(|| schemas::type_name(at.kind));
        self.reference(&name)
    }

    fn body(
        &mut self,
        at: &At<'_>,
        op: &Operation,
        out: &mut Map<String, Value>,
        parameters: &mut Vec<Value>,
    ) {
        let name = match op.action {
            "post" | "put" => None,
            "patch" => Some("Patch"),
            "delete" | "deletecollection" => Some("DeleteOptions"),
            _ => {
                if self.form == Form::V2 {
                    out.insert("consumes".into(), ANY.into());
                }
                return;
            }
        };
        let schema = match name {
            Some(name) => self.reference(&format!("{META}.{name}")),
            None => self.object(at),
        };
        let is_custom = at.kind.schema.is_custom();
        let types = if op.action == "patch" { PATCH_TYPES } else { ANY };
        let types: Vec<&str> =
            types.iter().copied().filter(|kind| !(is_custom && kind.contains(STRATEGIC))).collect();
        let required = !matches!(op.action, "delete" | "deletecollection");
        match self.form {
            Form::V2 => {
                let mut body = json!({ "name": "body", "in": "body", "schema": schema });
                if required {
                    body["required"] = true.into();
                }
                parameters.push(body);
                out.insert("consumes".into(), types.into());
            }
            Form::V3 => {
                let content: Map<String, Value> =
                    types.iter().map(|kind| ((*kind).to_owned(), json!({ "schema": schema }))).collect();
                let mut body = json!({ "content": content });
                if required {
                    body["required"] = true.into();
                }
                out.insert("requestBody".into(), body);
            }
        }
    }

    fn answer(&mut self, at: &At<'_>, operation: &Operation, out: &mut Map<String, Value>) {
        let is_log = at.subresource.is_some_and(|sub| sub.name == "log");
        let (schema, codes): (Value, &[u16]) = match operation.action {
            "list" => (self.reference(&schemas::list_name(at.kind)), &[200]),
            "get" if is_log => (json!({ "type": "string" }), &[200]),
            "connect" => (json!({ "type": "string" }), &[200]),
            "post" => (self.object(at), &[200, 201, 202]),
            "put" | "patch" => (self.object(at), &[200, 201]),
            "delete" if answers_with_object(at) => (self.object(at), &[200, 202]),
            "delete" => (self.reference(&format!("{META}.Status")), &[200, 202]),
            "deletecollection" => (self.reference(&format!("{META}.Status")), &[200]),
            _ => (self.object(at), &[200]),
        };
        let types = match operation.action {
            "connect" => ANY.to_vec(),
            action => {
                let text = is_log.then_some("text/plain");
                let watch = if action == "list" { WATCH_TYPES } else { &[] };
                let all = text.into_iter().chain(TYPES.iter().chain(watch).copied());
                all.filter(|kind| !(at.kind.schema.is_custom() && kind.contains(PROTOBUF))).collect()
            }
        };
        self.answers(out, &schema, codes, &types);
    }

    fn answers(&self, out: &mut Map<String, Value>, schema: &Value, codes: &[u16], types: &[&str]) {
        let mut responses = Map::new();
        for code in codes {
            let description = match code {
                200 => "OK",
                201 => "Created",
                _ => "Accepted",
            };
            let mut response = json!({ "description": description });
            match self.form {
                Form::V2 => response["schema"] = schema.clone(),
                Form::V3 => {
                    let content: Map<String, Value> =
                        types.iter().map(|kind| ((*kind).to_owned(), json!({ "schema": schema }))).collect();
                    response["content"] = content.into();
                }
            }
            responses.insert(code.to_string(), response);
        }
        responses.insert("401".into(), json!({ "description": "Unauthorized" }));
        out.insert("responses".into(), responses.into());
        if self.form == Form::V2 {
            out.insert("produces".into(), types.into());
            out.insert("schemes".into(), json!(["https"]));
        }
    }
}

fn gvk_of(at: &At<'_>) -> Value {
    let gvk = &at.kind.gvk;
    let own = (&*gvk.group, &*gvk.version, &*gvk.kind);
    let (group, version, kind) = at.subresource.and_then(|sub| sub.gvk).unwrap_or(own);
    json!({ "group": group, "version": version, "kind": kind })
}

fn parameters(at: &At<'_>, operation: &Operation) -> Vec<&'static Parameter> {
    let streams = at.subresource.map_or("", |sub| sub.name);
    match (operation.action, streams) {
        ("list", _) => LIST.iter().collect(),
        ("patch", _) => WRITE.iter().chain([&FORCE]).collect(),
        ("post" | "put", _) => WRITE.iter().collect(),
        ("delete", _) => DELETE.iter().collect(),
        ("deletecollection", _) => {
            let list = LIST.iter().filter(|(name, ..)| !matches!(*name, "watch" | "allowWatchBookmarks"));
            list.chain(DELETE).collect()
        }
        ("get", "log") => LOG.iter().collect(),
        ("connect", "exec") => [&COMMAND].into_iter().chain(ATTACH).collect(),
        ("connect", "attach") => ATTACH.iter().collect(),
        ("connect", "portforward") => vec![&PORTS],
        ("connect", "proxy") => vec![&PATH],
        _ => Vec::new(),
    }
}

/// Whether what was deleted is the answer, rather than a Status.
fn answers_with_object(at: &At<'_>) -> bool {
    at.kind.strategy.returns_deleted && at.subresource.is_none()
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['A', 'E', 'I', 'O', 'U']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// `core`, `apps`, `rbacAuthorization`.
fn group_word(group: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    let mut parts = short.split('.');
    let first = parts.next().unwrap_or("").to_owned();
    parts.fold(first, |word, part| word + &capitals(part))
}

fn capitals(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}
