//! Paths: what a request asks, and which row of the kinds table serves it.
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.

use crate::cache::{Cache, Resource};
use crate::query::{self, Query};
use crate::request::RequestInfo;
use http::Method;
use parking_lot::RwLock;
use skeg_api::selector::FieldSelector;
use skeg_api::{Kind, Kinds, Status, names};
use skeg_base::{HashMap, new_map};
use std::sync::Arc;

/// Subresources of a namespace, which `/namespaces/<name>/<x>` could also mean as a resource.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// Parses method, path and query.
pub fn parse(method: &Method, uri: &http::Uri) -> Result<RequestInfo, Status> {
    let path = query::decode(uri.path(), false);
    let query = uri.query().unwrap_or_default();
    let mut info = RequestInfo { verb: plain_verb(method), query: query.to_owned(), ..Default::default() };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => {
            info.version = (*version).to_owned();
            rest
        }
        ["apis", group, version, rest @ ..] if !rest.is_empty() => {
            info.group = (*group).to_owned();
            info.version = (*version).to_owned();
            rest
        }
        _ => {
            info.path = path;
            return Ok(info);
        }
    };
    info.verb = resource_verb(method);
    let rest = match rest {
        ["watch", rest @ ..] => {
            if rest.is_empty() {
                return Err(Status::bad_request(format!(
                    "unable to determine kind and namespace from url, {path}"
                )));
            }
            info.verb = "watch";
            rest
        }
        rest => rest,
    };
    let rest = match rest {
        ["namespaces", namespace, after @ ..] => {
            info.namespace = (*namespace).to_owned();
            match after {
                [] => rest,
                [sub, ..] if NAMESPACE_SUBRESOURCES.contains(sub) => rest,
                after => after,
            }
        }
        rest => rest,
    };
    let part = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
    (info.resource, info.name, info.subresource) = (part(0), part(1), part(2));
    info.rest = rest.get(3..).unwrap_or_default().join("/");
    if info.verb == "get" && info.name.is_empty() {
        let query = Query::parse(query);
        info.verb = if query.flag("watch") == Some(true) { "watch" } else { "list" };
        name_of_selector(&query, &mut info);
    } else if info.verb == "watch" && info.name.is_empty() {
        name_of_selector(&Query::parse(query), &mut info);
    } else if info.verb == "delete" && info.name.is_empty() {
        info.verb = "deletecollection";
    }
    info.path = path;
    Ok(info)
}

/// A list of one name is authorized as a request for that name.
fn name_of_selector(query: &Query, info: &mut RequestInfo) {
    if let Some(text) = query.get("fieldSelector")
        && let Ok(selector) = FieldSelector::parse(text)
        && let Some(name) = selector.exact("metadata.name")
        && names::is_path_segment_name(name).is_empty()
    {
        info.name = name.to_owned();
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// A row of the kinds table, ready to serve.
pub struct Served {
    pub kind: Arc<Kind>,
    /// The cache of its objects, for kinds that are stored.
    pub resource: Option<Arc<Resource>>,
    /// The row whose version is stored; the same row, except for a few.
    pub stored: Arc<Kind>,
    /// Whether entries are served as they are stored.
    pub native: bool,
}

impl Served {
    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.kind.gvk.group, &self.kind.plural, name)
    }

    pub fn path(&self, namespace: &str, name: &str) -> String {
        if self.kind.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }
}

/// The kinds table by path, rebuilt when the table changes.
pub struct Routes {
    kinds: Arc<Kinds>,
    current: RwLock<Arc<Table>>,
}

struct Table {
    generation: u64,
    /// Group, version, resource.
    served: HashMap<[Arc<str>; 3], Arc<Served>>,
}

/// Looks up without allocating.
#[derive(Hash)]
struct Key<'a>([&'a str; 3]);

impl hashbrown::Equivalent<[Arc<str>; 3]> for Key<'_> {
    fn equivalent(&self, key: &[Arc<str>; 3]) -> bool {
        self.0[0] == &*key[0] && self.0[1] == &*key[1] && self.0[2] == &*key[2]
    }
}

impl Routes {
    pub fn new(kinds: Arc<Kinds>, cache: &Cache) -> Self {
        let current = RwLock::new(Arc::new(build(&kinds, cache)));
        Routes { kinds, current }
    }

    pub fn find(&self, cache: &Cache, group: &str, version: &str, resource: &str) -> Option<Arc<Served>> {
        let mut table = self.current.read().clone();
        if table.generation != self.kinds.snapshot().generation {
            table = Arc::new(build(&self.kinds, cache));
            *self.current.write() = table.clone();
        }
        table.served.get(&Key([group, version, resource])).cloned()
    }
}

fn build(kinds: &Kinds, cache: &Cache) -> Table {
    let snapshot = kinds.snapshot();
    let mut served = new_map();
    for kind in snapshot.iter() {
        let resource = kind.storage.as_deref().and_then(|storage| cache.resource(storage));
        let stored = resource.as_ref().map_or_else(|| kind.clone(), |resource| resource.kind());
        let native = crate::convert::is_native(kind, &stored);
        let gvr = kind.gvr();
        let row = Served { kind: kind.clone(), resource, stored, native };
        served.insert([gvr.group, gvr.version, gvr.resource], Arc::new(row));
    }
    Table { generation: snapshot.generation, served }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, uri: &str, expected: [&str; 7]) {
        let info = parse(&method, &uri.parse().unwrap()).unwrap();
        let got = [
            info.verb,
            &info.group,
            &info.version,
            &info.namespace,
            &info.resource,
            &info.name,
            &info.subresource,
        ];
        assert_eq!(got, expected, "{method} {uri}");
    }

    #[test]
    fn paths_read_as_upstreams() {
        check(Method::GET, "/api/v1/pods", ["list", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/api/v1/pods?watch=true", ["watch", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/api/v1/watch/pods", ["watch", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/api/v1/watch/namespaces/a/pods/b", ["watch", "", "v1", "a", "pods", "b", ""]);
        check(Method::GET, "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "a", ""]);
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            ["update", "", "v1", "a", "namespaces", "a", "finalize"],
        );
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            ["deletecollection", "apps", "v1", "a", "deployments", "", ""],
        );
        check(
            Method::POST,
            "/api/v1/namespaces/a/pods/b/exec",
            ["create", "", "v1", "a", "pods", "b", "exec"],
        );
        check(
            Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name%3Dx",
            ["list", "", "v1", "", "pods", "x", ""],
        );
        check(Method::GET, "/apis/apps/v1", ["get", "", "", "", "", "", ""]);
        check(Method::GET, "/api/v1", ["get", "", "", "", "", "", ""]);
        check(Method::GET, "/healthz", ["get", "", "", "", "", "", ""]);
        check(Method::GET, "/api/v1/nodes/a%3Ab/proxy/x/y", ["get", "", "v1", "", "nodes", "a:b", "proxy"]);
    }
}
