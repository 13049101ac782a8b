//! Requests for resources: typed over `k8s-openapi`, dynamic over JSON values, or metadata only.

use crate::error::{Error, Result};
use crate::transport::{Client, RawRequest};
use crate::watch::WatchStream;
use bytes::Bytes;
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, ObjectMeta};
use k8s_openapi::{Metadata, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skeg_api::meta::ObjectRef;
use skeg_api::{Gvr, Value};
use std::fmt::Write;
use std::marker::PhantomData;

const ACCEPT_JSON: &str = "application/json";
const ACCEPT_METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const ACCEPT_METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// An object of a kind known at build time.
pub trait Typed:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Typed for K where
    K: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// The resource that holds a typed kind.
pub fn gvr_of<K: Resource>() -> Gvr {
    Gvr::new(K::GROUP, K::VERSION, K::URL_PATH_SEGMENT)
}

/// Names a typed object in an event, a binding or an owner reference.
pub fn object_ref<K: Typed>(object: &K) -> ObjectRef {
    let meta = object.metadata();
    ObjectRef {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
    }
}

/// An object of which only the metadata is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PartialObjectMetadata {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
}

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// A merge that knows list keys; built-in kinds only.
    Strategic,
}

impl PatchKind {
    pub fn content_type(self) -> &'static str {
        match self {
            PatchKind::Json => "application/json-patch+json",
            PatchKind::Merge => "application/merge-patch+json",
            PatchKind::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// What a list or a watch covers. The default is everything, at the newest revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// 0 for no limit.
    pub limit: u32,
    pub continue_token: String,
    pub resource_version: String,
    pub resource_version_match: String,
}

impl ListOptions {
    pub fn labels(selector: impl Into<String>) -> Self {
        ListOptions { label_selector: selector.into(), ..Default::default() }
    }

    pub fn fields(selector: impl Into<String>) -> Self {
        ListOptions { field_selector: selector.into(), ..Default::default() }
    }

    fn query(&self, query: &mut Query) {
        query.text("labelSelector", &self.label_selector);
        query.text("fieldSelector", &self.field_selector);
        if self.limit > 0 {
            query.text("limit", &self.limit.to_string());
        }
        query.text("continue", &self.continue_token);
        query.text("resourceVersion", &self.resource_version);
        query.text("resourceVersionMatch", &self.resource_version_match);
    }
}

/// What a watch covers and where it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    pub list: ListOptions,
    pub send_initial_events: bool,
    pub bookmarks: bool,
    /// 0 leaves the length of the watch to the server.
    pub timeout_seconds: u32,
}

/// One page of a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
pub struct List<K> {
    #[serde(default)]
    pub metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub items: Vec<K>,
}

impl<K> List<K> {
    /// The revision the list shows.
    pub fn resource_version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }

    /// Where the next page starts; empty after the last.
    pub fn continue_token(&self) -> &str {
        self.metadata.continue_.as_deref().unwrap_or_default()
    }
}

/// Requests for one resource. `K` is what its objects decode to. Namespaces are empty for
/// cluster-scoped resources and, in lists and watches, for all namespaces.
pub struct Api<K> {
    client: Client,
    gvr: Gvr,
    metadata_only: bool,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Api {
            client: self.client.clone(),
            gvr: self.gvr.clone(),
            metadata_only: self.metadata_only,
            kind: PhantomData,
        }
    }
}

impl Client {
    pub fn api<K: Typed>(&self) -> Api<K> {
        Api { client: self.clone(), gvr: gvr_of::<K>(), metadata_only: false, kind: PhantomData }
    }

    /// A resource that is known by name only, as JSON.
    pub fn dynamic(&self, gvr: &Gvr) -> Api<Value> {
        Api { client: self.clone(), gvr: gvr.clone(), metadata_only: false, kind: PhantomData }
    }

    /// A resource that is known by name only, and of its objects only the metadata.
    pub fn metadata(&self, gvr: &Gvr) -> Api<PartialObjectMetadata> {
        Api { client: self.clone(), gvr: gvr.clone(), metadata_only: true, kind: PhantomData }
    }
}

impl<K> Api<K> {
    pub fn gvr(&self) -> &Gvr {
        &self.gvr
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    fn request(&self, method: Method, ns: &str, name: &str, subresource: &str, query: Query) -> RawRequest {
        let one = !name.is_empty() || method == Method::POST;
        let mut request = RawRequest::new(method, query.after(path(&self.gvr, ns, name, subresource)));
        request.accept = match (self.metadata_only, one) {
            (false, _) => ACCEPT_JSON,
            (true, true) => ACCEPT_METADATA,
            (true, false) => ACCEPT_METADATA_LIST,
        };
        request
    }

    fn write_query(&self) -> Query {
        let mut query = Query::default();
        query.text("fieldManager", self.client.component());
        query
    }

    pub async fn delete(&self, ns: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        let mut request = self.request(Method::DELETE, ns, name, "", Query::default());
        request.body = encode(options)?;
        self.client.bytes(&request).await.map(drop)
    }

    pub async fn delete_collection(
        &self,
        ns: &str,
        which: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<()> {
        let mut query = Query::default();
        which.query(&mut query);
        let mut request = self.request(Method::DELETE, ns, "", "", query);
        request.body = encode(options)?;
        self.client.bytes(&request).await.map(drop)
    }

    pub async fn watch(&self, ns: &str, options: &WatchOptions) -> Result<WatchStream> {
        let mut query = Query::default();
        query.text("watch", "true");
        options.list.query(&mut query);
        if options.send_initial_events {
            query.text("sendInitialEvents", "true");
        }
        if options.bookmarks {
            query.text("allowWatchBookmarks", "true");
        }
        if options.timeout_seconds > 0 {
            query.text("timeoutSeconds", &options.timeout_seconds.to_string());
        }
        let mut request = self.request(Method::GET, ns, "", "", query);
        if self.metadata_only {
            // Each event carries one object.
            request.accept = ACCEPT_METADATA;
        }
        Ok(WatchStream::new(self.client.open(&request).await?.into_body()))
    }

    /// The list as the server wrote it.
    pub async fn list_bytes(&self, ns: &str, options: &ListOptions) -> Result<Bytes> {
        let mut query = Query::default();
        options.query(&mut query);
        self.client.bytes(&self.request(Method::GET, ns, "", "", query)).await
    }

    /// Posts to a subresource: `binding`, `eviction`, `token`.
    pub async fn create_subresource<B: Serialize, R: DeserializeOwned>(
        &self,
        ns: &str,
        name: &str,
        subresource: &str,
        body: &B,
    ) -> Result<R> {
        let mut request = self.request(Method::POST, ns, name, subresource, self.write_query());
        request.accept = ACCEPT_JSON;
        request.body = encode(body)?;
        self.client.json(&request).await
    }

    /// Reads a subresource: `scale`, `status`.
    pub async fn get_subresource<R: DeserializeOwned>(
        &self,
        ns: &str,
        name: &str,
        subresource: &str,
    ) -> Result<R> {
        self.client.json(&self.request(Method::GET, ns, name, subresource, Query::default())).await
    }

    /// Replaces a subresource: `scale`, `status`, `approval`.
    pub async fn update_subresource<B: Serialize, R: DeserializeOwned>(
        &self,
        ns: &str,
        name: &str,
        subresource: &str,
        body: &B,
    ) -> Result<R> {
        let mut request = self.request(Method::PUT, ns, name, subresource, self.write_query());
        request.body = encode(body)?;
        self.client.json(&request).await
    }
}

impl<K: Serialize + DeserializeOwned> Api<K> {
    pub async fn get(&self, ns: &str, name: &str) -> Result<K> {
        self.client.json(&self.request(Method::GET, ns, name, "", Query::default())).await
    }

    /// The object, or `None` where there is none.
    pub async fn get_opt(&self, ns: &str, name: &str) -> Result<Option<K>> {
        match self.get(ns, name).await {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub async fn list(&self, ns: &str, options: &ListOptions) -> Result<List<K>> {
        let bytes = self.list_bytes(ns, options).await?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Decode {
            what: format!("list of {}", self.gvr.group_resource()),
            source,
        })
    }

    pub async fn create(&self, ns: &str, object: &K) -> Result<K> {
        let mut request = self.request(Method::POST, ns, "", "", self.write_query());
        request.body = encode(object)?;
        self.client.json(&request).await
    }

    /// Replaces the object; with a resourceVersion in it, only that version.
    pub async fn update(&self, ns: &str, name: &str, object: &K) -> Result<K> {
        let mut request = self.request(Method::PUT, ns, name, "", self.write_query());
        request.body = encode(object)?;
        self.client.json(&request).await
    }

    pub async fn update_status(&self, ns: &str, name: &str, object: &K) -> Result<K> {
        self.update_subresource(ns, name, "status", object).await
    }

    /// Patches the object or one of its subresources.
    pub async fn patch(
        &self,
        ns: &str,
        name: &str,
        kind: PatchKind,
        patch: &impl Serialize,
        subresource: Option<&str>,
    ) -> Result<K> {
        let mut request =
            self.request(Method::PATCH, ns, name, subresource.unwrap_or_default(), self.write_query());
        request.content_type = kind.content_type();
        request.body = encode(patch)?;
        self.client.json(&request).await
    }
}

fn encode(value: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|source| Error::Decode { what: "request body".into(), source })
}

/// The path of a resource, an object or a subresource.
pub fn path(gvr: &Gvr, ns: &str, name: &str, subresource: &str) -> String {
    let mut path = if gvr.group.is_empty() {
        format!("/api/{}", gvr.version)
    } else {
        format!("/apis/{}/{}", gvr.group, gvr.version)
    };
    let namespaces = (!ns.is_empty()).then_some(["namespaces", ns]);
    let segments = namespaces.iter().flatten().copied().chain([&*gvr.resource, name, subresource]);
    for segment in segments.filter(|s| !s.is_empty()) {
        path.push('/');
        percent_encode(segment, &mut path);
    }
    path
}

#[derive(Default)]
struct Query(String);

impl Query {
    /// Adds a parameter unless its value is empty.
    fn text(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(key);
        self.0.push('=');
        percent_encode(value, &mut self.0);
    }

    fn after(self, mut path: String) -> String {
        if !self.0.is_empty() {
            path.push('?');
            path.push_str(&self.0);
        }
        path
    }
}

/// RFC 3986: everything but unreserved characters and a colon (role names have them).
fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_groups_namespaces_and_subresources() {
        let pods = Gvr::new("", "v1", "pods");
        assert_eq!(path(&pods, "default", "web", "status"), "/api/v1/namespaces/default/pods/web/status");
        assert_eq!(path(&pods, "", "", ""), "/api/v1/pods");
        let roles = Gvr::new("rbac.authorization.k8s.io", "v1", "clusterroles");
        assert_eq!(
            path(&roles, "", "system:node/x", ""),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node%2Fx"
        );
    }

    #[test]
    fn selectors_are_encoded() {
        let mut query = Query::default();
        ListOptions { label_selector: "a in (b,c)".into(), limit: 5, ..Default::default() }.query(&mut query);
        assert_eq!(query.after("/x".into()), "/x?labelSelector=a%20in%20%28b%2Cc%29&limit=5");
    }
}
