//! Which groups, versions and resources there are: per group and aggregated, the OpenAPI
//! documents, and the paths of the root. Each is made from one state of the kinds table when it is
//! asked for, and kept until the table changes.
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/discovery`, `kube-openapi/pkg/handler3`.

mod groups;
mod openapi;

use crate::aggregator::{Aggregator, Remotes};
use crate::hooks::{Call, Endpoint};
use crate::local::{Body, empty};
use crate::negotiate::{self, Encoding, Offer, Output};
use crate::request::RequestInfo;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use groups::{Version, groups};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use skeg_api::kinds::Snapshot;
use skeg_api::{GroupVersion, Kind, Kinds, Status};
use std::collections::BTreeMap;
use std::sync::Arc;

const AGGREGATED: [&str; 2] = ["v2", "v2beta1"];
/// The paths that exist beside groups, for the list at `/`.
const PATHS: [&str; 13] = [
    "/.well-known/openid-configuration",
    "/healthz",
    "/healthz/ping",
    "/livez",
    "/livez/ping",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/",
    "/openid/v1/jwks",
    "/readyz",
    "/readyz/ping",
    "/version",
];

pub struct Discovery {
    kinds: Arc<Kinds>,
    aggregator: Option<Arc<Aggregator>>,
    /// Of one state of the table.
    current: Mutex<Option<Arc<Documents>>>,
}

struct Document {
    bytes: Bytes,
    etag: String,
}

struct Documents {
    snapshot: Arc<Snapshot>,
    remotes: Arc<Remotes>,
    /// What was asked for, by path, OpenAPI compressed; of `/api` and `/apis` also the aggregated forms,
    /// as `<path>;<version>`.
    made: Mutex<BTreeMap<String, Arc<Document>>>,
}

impl Discovery {
    /// Of the kinds table, and of other servers where there can be some.
    pub fn new(kinds: Arc<Kinds>, aggregator: Option<Arc<Aggregator>>) -> Self {
        Discovery { kinds, aggregator, current: Mutex::new(None) }
    }

    fn documents(&self) -> Arc<Documents> {
        // A change of theirs is one of the table's generation: they come first.
        let remotes = self.aggregator.as_ref().map(|aggregator| aggregator.remotes()).unwrap_or_default();
        let snapshot = self.kinds.snapshot();
        let mut current = self.current.lock();
        match &*current {
            Some(documents) if documents.snapshot.generation == snapshot.generation => documents.clone(),
            _ => {
                let fresh = Arc::new(Documents { snapshot, remotes, made: Mutex::default() });
                *current = Some(fresh.clone());
                fresh
            }
        }
    }

    fn serve(&self, info: &RequestInfo, request: &Request<Body>) -> Result<Response<Body>, Status> {
        let headers = request.headers();
        let path = match info.path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        if !matches!(info.verb, "get" | "head") {
            return Err(Status::unserved());
        }
        let documents = self.documents();
        if path == "/api" || path == "/apis" {
            if let Some((version, encoding)) = aggregated(headers) {
                let document = documents.get(&format!("{path};{version}")).ok_or_else(Status::no_route)?;
                let media = encoding.media_type();
                let media = format!("{media};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
                let output = Output::negotiate(headers, Offer::PLAIN).unwrap_or_default();
                let output = Output { encoding, pretty: false, ..output };
                return cached(headers, &document, &media, "public", output);
            }
            if path == "/api" {
                return respond(headers, &api_versions(request));
            }
        }
        if let Some(document) = documents.get(path) {
            // The list of paths is no object.
            let output =
                if path == "/" { Output::default() } else { Output::negotiate(headers, Offer::PLAIN)? };
            return Ok(negotiate::respond(StatusCode::OK, output, document.encoded(output)?));
        }
        if let Some(rest) = path.strip_prefix("/openapi/") {
            return openapi::serve(&documents, rest, &info.query, headers);
        }
        Err(Status::no_route())
    }
}

impl Endpoint for Discovery {
    fn handles(&self, info: &RequestInfo) -> bool {
        if info.is_resource() {
            return false;
        }
        let path = info.path.trim_matches('/');
        let first = path.split('/').next().unwrap_or_default();
        let depth = path.split('/').count();
        match first {
            "" => true,
            "api" => depth <= 2 && self.known(info),
            "apis" => depth <= 3 && self.known(info),
            "openapi" => true,
            _ => false,
        }
    }

    fn call(&self, call: Call, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, Status>> {
        let result = self.serve(&call.info, &request);
        Box::pin(std::future::ready(result))
    }
}

impl Discovery {
    /// Unknown groups and versions are the router's to refuse.
    fn known(&self, info: &RequestInfo) -> bool {
        let path = info.path.trim_end_matches('/');
        path == "/api" || path == "/apis" || self.documents().get(path).is_some()
    }
}

fn respond(headers: &HeaderMap, value: &Value) -> Result<Response<Body>, Status> {
    negotiate::respond_value(StatusCode::OK, Output::negotiate(headers, Offer::PLAIN)?, value)
}

impl Document {
    fn encoded(&self, output: Output) -> Result<Bytes, Status> {
        if output.encoding == Encoding::Json && !output.pretty {
            return Ok(self.bytes.clone());
        }
        let value: Value = serde_json::from_slice(&self.bytes).map_err(Status::internal)?;
        Ok(output.encode(&value)?.into())
    }
}

fn accept(headers: &HeaderMap) -> &str {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// Version and encoding of the aggregated form, where the client takes one. The first that is
/// known wins, also behind the plain form.
fn aggregated(headers: &HeaderMap) -> Option<(&'static str, Encoding)> {
    negotiate::clauses(accept(headers)).iter().find_map(|clause| {
        let wanted = clause.parameter("g") == Some("apidiscovery.k8s.io")
            && clause.parameter("as") == Some("APIGroupDiscoveryList");
        let version = AGGREGATED.into_iter().find(|version| clause.parameter("v") == Some(version))?;
        let encoding = Encoding::ALL.into_iter().find(|encoding| clause.takes(encoding.media_type()))?;
        wanted.then_some((version, encoding))
    })
}

/// An answer that clients may keep by its ETag.
fn cached(
    headers: &HeaderMap,
    document: &Document,
    media: &str,
    control: &'static str,
    output: Output,
) -> Result<Response<Body>, Status> {
    let mut response = if same_etag(headers, &document.etag) {
        not_modified()
    } else {
        negotiate::respond(StatusCode::OK, output, document.encoded(output)?)
    };
    mark(response.headers_mut(), &document.etag, media, control);
    Ok(response)
}

fn not_modified() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn same_etag(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).unwrap_or_default();
    known.split(',').any(|tag| tag.trim().trim_start_matches("W/").trim_matches('"') == etag)
}

fn mark(headers: &mut HeaderMap, etag: &str, media: &str, control: &'static str) {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        headers.insert(header::ETAG, value);
    }
    if let Ok(value) = HeaderValue::from_str(media) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
}

fn etag(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

impl Documents {
    /// A document of discovery, by path.
    fn get(&self, path: &str) -> Option<Arc<Document>> {
        self.kept(path, || {
            let bytes: Bytes = self.make(path)?.to_string().into();
            Some(Document { etag: etag(&bytes), bytes })
        })
    }

    fn kept(&self, name: &str, make: impl FnOnce() -> Option<Document>) -> Option<Arc<Document>> {
        if let Some(document) = self.made.lock().get(name) {
            return Some(document.clone());
        }
        let document = Arc::new(make()?);
        self.made.lock().insert(name.to_owned(), document.clone());
        Some(document)
    }

    fn make(&self, path: &str) -> Option<Value> {
        let all = || groups(self.snapshot.iter(), self.remotes.iter());
        let (group, version) = match *path.split('/').skip(1).collect::<Vec<_>>() {
            [""] => return Some(json!({"paths": self.paths()})),
            ["apis"] => {
                let all = all();
                let named = all.iter().filter(|(group, _)| !group.is_empty());
                let list: Vec<Value> = named.map(|(group, versions)| api_group(group, versions)).collect();
                return Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}));
            }
            ["api", version] => ("", Some(version)),
            ["apis", group] if !group.is_empty() => (group, None),
            ["apis", group, version] if !group.is_empty() => (group, Some(version)),
            [aggregated] => {
                let (root, version) = aggregated.split_once(';')?;
                let all = all();
                let of_root = all.iter().filter(|(group, _)| group.is_empty() == (root == "api"));
                let items: Vec<Value> =
                    of_root.map(|(group, versions)| aggregated_group(group, versions)).collect();
                return Some(json!({"kind": "APIGroupDiscoveryList",
                    "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items}));
            }
            _ => return None,
        };
        let of_group = self.remotes.iter().filter(|((own, _), _)| own == group);
        let (_, versions) = groups(self.snapshot.of_group(group), of_group).pop()?;
        let Some(version) = version else {
            let mut alone = api_group(group, &versions);
            alone["kind"] = "APIGroup".into();
            alone["apiVersion"] = "v1".into();
            return Some(alone);
        };
        versions.iter().find_map(|(own, served)| match served {
            // What another server has is its own to say.
            Version::Own(kinds) if own == version => Some(resource_list(group, version, kinds)),
            _ => None,
        })
    }

    /// All paths, sorted.
    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = PATHS.iter().map(|path| (*path).to_owned()).collect();
        paths.extend(["/api".to_owned(), "/apis".to_owned()]);
        for (group, versions) in groups(self.snapshot.iter(), self.remotes.iter()) {
            let prefix = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
            paths.extend(versions.iter().map(|(version, _)| format!("{prefix}/{version}")));
            if !group.is_empty() {
                paths.push(prefix);
            }
        }
        paths.sort();
        paths
    }
}

fn api_versions(request: &Request<Body>) -> Value {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has it in the URI.
    let address = host.or(request.uri().authority().map(|authority| authority.as_str())).unwrap_or_default();
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
}

fn api_group(group: &str, versions: &[(String, Version)]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|(version, _)| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "preferredVersion": versions.first(), "versions": versions})
}

fn strings(list: &[String]) -> Option<Value> {
    (!list.is_empty()).then(|| json!(list))
}

fn resource_list(group: &str, version: &str, kinds: &[Arc<Kind>]) -> Value {
    let mut resources = Vec::new();
    for kind in kinds {
        let mut main = json!({"name": &*kind.plural, "singularName": &*kind.singular, "namespaced": kind.namespaced,
            "kind": &*kind.gvk.kind, "verbs": kind.verbs});
        for (field, list) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
            if let Some(list) = strings(list) {
                main[field] = list;
            }
        }
        if kind.storage.is_some() {
            let id = format!("{group}/{version}/{}", kind.gvk.kind);
            let digest = ring::digest::digest(&ring::digest::SHA256, id.as_bytes());
            main["storageVersionHash"] =
                base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &digest.as_ref()[..8])
                    .into();
        }
        resources.push(main);
        for sub in &kind.subresources {
            let (sub_group, sub_version, sub_kind) = response_kind(kind, sub);
            let mut row = json!({"name": format!("{}/{}", kind.plural, sub.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": sub_kind, "verbs": sub.verbs});
            if (sub_group, sub_version) != (group, version) {
                row["group"] = sub_group.into();
                row["version"] = sub_version.into();
            }
            resources.push(row);
        }
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let gv = GroupVersion::new(group, version).to_string();
    let mut value = json!({"kind": "APIResourceList", "groupVersion": gv, "resources": resources});
    if !group.is_empty() {
        value["apiVersion"] = "v1".into();
    }
    value
}

fn response_kind<'a>(kind: &'a Kind, sub: &skeg_api::kinds::Subresource) -> (&'a str, &'a str, &'a str) {
    sub.gvk.unwrap_or((&kind.gvk.group, &kind.gvk.version, &kind.gvk.kind))
}

fn aggregated_group(group: &str, versions: &[(String, Version)]) -> Value {
    // Group and version of a kind are told where they are not those of its resource.
    let kind_of = |of: &Kind, (group, version, kind): (&str, &str, &str)| {
        let is_own = (group, version) == (&*of.gvk.group, &*of.gvk.version);
        let (group, version) = if is_own { ("", "") } else { (group, version) };
        json!({"group": group, "version": version, "kind": kind})
    };
    let resource = |kind: &Kind| {
        let mut row = Map::new();
        row.insert("resource".into(), (*kind.plural).into());
        row.insert("responseKind".into(), kind_of(kind, ("", "", &kind.gvk.kind)));
        row.insert("scope".into(), if kind.namespaced { "Namespaced" } else { "Cluster" }.into());
        row.insert("singularResource".into(), (*kind.singular).into());
        row.insert("verbs".into(), json!(kind.verbs));
        for (field, list) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
            if let Some(list) = strings(list) {
                row.insert(field.into(), list);
            }
        }
        let subresources: Vec<Value> = kind
            .subresources
            .iter()
            .map(|sub| json!({"subresource": sub.name, "responseKind": kind_of(kind, response_kind(kind, sub)), "verbs": sub.verbs}))
            .collect();
        if !subresources.is_empty() {
            row.insert("subresources".into(), subresources.into());
        }
        Value::Object(row)
    };
    let versions: Vec<Value> = versions
        .iter()
        .map(|(version, served)| match served {
            Version::Own(kinds) => {
                let resources: Vec<Value> = kinds.iter().map(|kind| resource(kind)).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            }
            Version::Other(remote) => {
                let learned = remote.learned.lock();
                let current = remote.is_available && learned.is_current;
                let mut row =
                    json!({"version": version, "freshness": if current { "Current" } else { "Stale" }});
                if let Some(resources) = &learned.resources {
                    row["resources"] = json!(**resources);
                }
                row
            }
        })
        .collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.is_empty() {
        metadata["name"] = group.into();
    }
    json!({"metadata": metadata, "versions": versions})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::kind;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    fn discovery() -> Discovery {
        let rows = [
            kind("", "Pod", "pods", true),
            kind("apps", "Deployment", "deployments", true),
            kind("a.b", "X", "xs", false),
        ];
        Discovery::new(Arc::new(Kinds::new(rows)), None)
    }

    fn ask(
        discovery: &Discovery,
        path: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> (u16, HeaderMap, Value) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.clone(), value.parse().unwrap());
        }
        let info = RequestInfo { verb: "get", path: path.to_owned(), ..Default::default() };
        let mut request = Request::new(crate::local::empty());
        *request.headers_mut() = map;
        let response = discovery.serve(&info, &request).unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().now_or_never().unwrap().unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[test]
    fn lists_groups_and_resources() {
        let discovery = discovery();
        let (_, _, groups) = ask(&discovery, "/apis", &[]);
        assert_eq!(groups["groups"][0]["name"], "apps");
        assert_eq!(groups["groups"][0]["preferredVersion"]["groupVersion"], "apps/v1");
        let (_, _, core) = ask(&discovery, "/api/v1/", &[]);
        assert_eq!((&core["groupVersion"], &core["resources"][0]["name"]), (&json!("v1"), &json!("pods")));
        let (_, _, group) = ask(&discovery, "/apis/a.b", &[]);
        assert_eq!((&group["kind"], &group["name"]), (&json!("APIGroup"), &json!("a.b")));
        assert_eq!(ask(&discovery, "/api", &[]).2["versions"], json!(["v1"]));
        let (_, _, root) = ask(&discovery, "/", &[]);
        assert!(root["paths"].as_array().unwrap().contains(&json!("/apis/apps/v1")));
    }

    #[test]
    fn the_aggregated_form_has_an_etag_and_follows_the_table() {
        let discovery = discovery();
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let (code, headers, list) = ask(&discovery, "/apis", &[(header::ACCEPT, accept)]);
        assert_eq!((code, &list["kind"]), (200, &json!("APIGroupDiscoveryList")));
        assert_eq!(list["items"][0]["versions"][0]["resources"][0]["scope"], "Namespaced");
        assert!(headers[header::CONTENT_TYPE].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
        let etag = headers[header::ETAG].to_str().unwrap().to_owned();
        let again = [(header::ACCEPT, accept), (header::IF_NONE_MATCH, etag.as_str())];
        assert_eq!(ask(&discovery, "/apis", &again).0, 304);
        assert_eq!(
            ask(&discovery, "/apis", &[(header::ACCEPT, "application/json")]).2["kind"],
            "APIGroupList"
        );
        discovery.kinds.insert(kind("later.io", "Y", "ys", true));
        assert_eq!(ask(&discovery, "/apis/later.io/v1", &[]).0, 200);
        assert_eq!(discovery.documents().made.lock().len(), 1, "no document is made that nobody asked for");
        assert_eq!(ask(&discovery, "/apis", &again).0, 200);
        assert_eq!(ask(&discovery, "/apis/later.io/v1", &[]).0, 200);
    }
}
