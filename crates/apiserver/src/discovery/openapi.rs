//! The OpenAPI documents, with what other servers add to them; kept compressed, as they were asked
//! for.
//! Upstream counterpart: `kube-openapi/pkg/handler3`, `kube-aggregator/pkg/controllers/openapi`.

use super::{Document, Documents, accept, cached, etag, mark, not_modified, same_etag};
use crate::aggregator::merge_v2;
use crate::local::{Body, empty};
use crate::negotiate::{self, Offer, Output};
use crate::query::Query;
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use serde_json::Value;
use skeg_api::kinds::Snapshot;
use skeg_api::{GroupVersion, Status, openapi};
use std::io::Read;
use std::sync::Arc;

/// How clients ask for OpenAPI v2 in protobuf, and how they are answered: their form is no media type.
const GNOSTIC_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// OpenAPI documents whose URL carries their hash never change.
const IMMUTABLE: &str = "public, immutable, max-age=31536000";

pub(super) fn serve(
    documents: &Documents,
    rest: &str,
    query: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    if rest == "v3" {
        let bytes: Bytes = documents.v3_index().into();
        let document = Document { etag: etag(&bytes), bytes };
        return cached(headers, &document, "application/json", "no-cache, private", Output::default());
    }
    let gzip = Output::negotiate(headers, Offer::PLAIN).is_ok_and(|output| output.gzip);
    if rest == "v2" {
        let (packed, media) = match asks_for_gnostic(headers) {
            Some(true) => (
                documents.packed("v2 gnostic", || {
                    Some((documents.v2(openapi::v2_gnostic, openapi::gnostic_of), None))
                }),
                GNOSTIC,
            ),
            Some(false) => (
                documents.packed(rest, || {
                    Some((documents.v2(openapi::v2_document, |v| v.to_string().into_bytes()), None))
                }),
                "application/json",
            ),
            None => {
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
                return Ok(response);
            }
        };
        let document = packed.ok_or_else(Status::no_route)?;
        return Ok(unpacked(headers, &document, media, "no-cache, private", gzip));
    }
    let gv = match rest.strip_prefix("v3/").map(|rest| rest.split('/').collect::<Vec<_>>()).as_deref() {
        Some(["api", version]) => GroupVersion::new("", version),
        Some(["apis", group, version]) => GroupVersion::new(group, version),
        _ => return Err(Status::no_route()),
    };
    let hash = openapi::v3_hash(&documents.snapshot, &gv).ok_or_else(Status::no_route)?;
    let query = Query::parse(query);
    let asked = query.get("hash");
    if asked.is_some_and(|asked| asked != hash) {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        if let Ok(value) = HeaderValue::from_str(&format!("/openapi/{rest}?hash={hash}")) {
            response.headers_mut().insert(header::LOCATION, value);
        }
        return Ok(response);
    }
    let make = || Some((openapi::v3_document(&documents.snapshot, &gv)?, Some(hash.clone())));
    let document = documents.packed(rest, make).ok_or_else(Status::no_route)?;
    let control = if asked.is_some() { IMMUTABLE } else { "no-cache, private" };
    Ok(unpacked(headers, &document, "application/json", control, gzip))
}

/// Whether clients of OpenAPI v2 prefer it in protobuf; nothing where they take neither form.
fn asks_for_gnostic(headers: &HeaderMap) -> Option<bool> {
    let accept = match accept(headers) {
        "" => "*/*",
        accept => accept,
    };
    negotiate::clauses(accept).iter().find_map(|clause| match clause.takes("application/json") {
        true => Some(false),
        false => [GNOSTIC_ASKED, GNOSTIC].iter().any(|media| clause.takes(media)).then_some(true),
    })
}

/// Sends a compressed document, as it is to whom can read it so.
fn unpacked(
    headers: &HeaderMap,
    document: &Document,
    media: &str,
    control: &'static str,
    gzip: bool,
) -> Response<Body> {
    let mut response = if same_etag(headers, &document.etag) {
        not_modified()
    } else if gzip {
        negotiate::respond_packed(Output::default(), document.bytes.clone())
    } else {
        let mut plain = Vec::new();
        // What was compressed here decompresses.
        let _ = GzDecoder::new(&document.bytes[..]).read_to_end(&mut plain);
        negotiate::respond(StatusCode::OK, Output::default(), plain.into())
    };
    mark(response.headers_mut(), &document.etag, media, control);
    if gzip {
        response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

impl Documents {
    /// The index of OpenAPI v3, with the documents of other servers, which are theirs to send.
    fn v3_index(&self) -> Vec<u8> {
        let own = openapi::v3_index(&self.snapshot);
        if self.remotes.is_empty() {
            return own;
        }
        let mut index: Value = serde_json::from_slice(&own).unwrap_or_default();
        for remote in self.remotes.values() {
            let path = remote.root().trim_start_matches('/').to_owned();
            match &remote.learned.lock().openapi_v3 {
                Some(entry) => index["paths"][path] = entry.clone(),
                None => {
                    index["paths"].as_object_mut().map(|paths| paths.remove(&path));
                }
            }
        }
        index.to_string().into_bytes()
    }

    /// The document of OpenAPI v2, with what other servers add to it.
    fn v2(&self, own: fn(&Snapshot) -> Vec<u8>, encode: fn(&Value) -> Vec<u8>) -> Vec<u8> {
        let others: Vec<_> =
            self.remotes.values().filter_map(|remote| remote.learned.lock().openapi_v2.clone()).collect();
        if others.is_empty() {
            return own(&self.snapshot);
        }
        let mut document: Value =
            serde_json::from_slice(&openapi::v2_document(&self.snapshot)).unwrap_or_default();
        for other in others {
            merge_v2(&mut document, &other);
        }
        encode(&document)
    }

    fn packed(
        &self,
        name: &str,
        make: impl FnOnce() -> Option<(Vec<u8>, Option<String>)>,
    ) -> Option<Arc<Document>> {
        if let Some(document) = self.packed.lock().get(name) {
            return Some(document.clone());
        }
        let (bytes, hash) = make()?;
        let etag = hash.unwrap_or_else(|| etag(&bytes));
        let document = Arc::new(Document { bytes: negotiate::gzip(&bytes), etag });
        self.packed.lock().insert(name.to_owned(), document.clone());
        Some(document)
    }
}
