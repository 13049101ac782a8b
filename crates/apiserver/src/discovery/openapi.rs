//! The OpenAPI documents, with what other servers add to them; kept compressed, as they were asked
//! for.
//! Upstream counterpart: `kube-openapi/pkg/handler3`, `kube-aggregator/pkg/controllers/openapi`.

use super::{Document, Documents, accept, cached, etag, mark, not_modified, same_etag};
use crate::aggregator::merge_v2;
use crate::local::{Body, empty};
use crate::negotiate::{self, Offer, Output};
use crate::query::Query;
use bytes::{Buf, Bytes};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use skeg_api::kinds::Snapshot;
use skeg_api::{Status, openapi};
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

/// How clients ask for OpenAPI v2 in protobuf, and how they are answered: their form is no media type.
const GNOSTIC_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// OpenAPI documents whose URL carries their hash never change.
const IMMUTABLE: &str = "public, immutable, max-age=31536000";

/// How much of a document is compressed or sent at once.
const CHUNK_BYTES: usize = 64 << 10;

pub(super) fn serve(
    documents: &Documents,
    rest: &str,
    query: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let not_acceptable = || {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
        response
    };
    let takes_json = || match accept(headers) {
        "" => true,
        accept => negotiate::clauses(accept).iter().any(|clause| clause.takes("application/json")),
    };
    if rest != "v2" && !takes_json() {
        return Ok(not_acceptable());
    }
    if rest == "v3" {
        let bytes: Bytes = documents.v3_index().into();
        let document = Document { etag: etag(&bytes), bytes };
        return cached(headers, &document, "application/json", "no-cache, private", Output::default());
    }
    let gzip = Output::negotiate(headers, Offer::PLAIN).is_ok_and(|output| output.gzip);
    if rest == "v2" {
        let (packed, media) = match asks_for_gnostic(headers) {
            Some(true) => (
                documents.packed("v2 gnostic", None, |out| {
                    documents.v2(openapi::v2_gnostic, openapi::gnostic_of, out)
                }),
                GNOSTIC,
            ),
            Some(false) => (
                documents.packed(rest, None, |out| {
                    documents.v2(openapi::v2_document, |v| v.to_string().into_bytes(), out)
                }),
                "application/json",
            ),
            None => return Ok(not_acceptable()),
        };
        let document = packed.ok_or_else(Status::no_route)?;
        return Ok(unpacked(headers, &document, media, "no-cache, private", gzip));
    }
    let path = rest.strip_prefix("v3/").ok_or_else(Status::no_route)?;
    let hash = openapi::v3_hash(&documents.snapshot, path).ok_or_else(Status::no_route)?;
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
    let make = |out: &mut dyn Write| {
        out.write_all(&openapi::v3_document(&documents.snapshot, path).ok_or(io::ErrorKind::NotFound)?)
    };
    let document = documents.packed(rest, Some(&hash), make).ok_or_else(Status::no_route)?;
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
        // As it is sent, so that it is never in memory as a whole.
        let mut plain = GzDecoder::new(document.bytes.clone().reader());
        let chunks = std::iter::from_fn(move || {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            // What was compressed here decompresses.
            let read = (&mut plain).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
            read.is_ok_and(|count| count > 0).then(|| Ok(Frame::data(chunk.into())))
        });
        Response::new(StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync())
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
    fn v2(
        &self,
        own: fn(&Snapshot, &mut dyn Write) -> io::Result<()>,
        encode: fn(&Value) -> Vec<u8>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let others: Vec<_> =
            self.remotes.values().filter_map(|remote| remote.learned.lock().openapi_v2.clone()).collect();
        if others.is_empty() {
            return own(&self.snapshot, out);
        }
        let mut text = Vec::new();
        openapi::v2_document(&self.snapshot, &mut text)?;
        let mut document: Value = serde_json::from_slice(&text)?;
        for other in others {
            merge_v2(&mut document, &other);
        }
        out.write_all(&encode(&document))
    }

    /// A document that is compressed as `make` writes it. Without a hash its tag is made of its bytes.
    fn packed(
        &self,
        name: &str,
        hash: Option<&str>,
        make: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Option<Arc<Document>> {
        self.kept(name, || {
            let encoder = GzEncoder::new(Vec::new(), Compression::fast());
            let mut buffer = BufWriter::with_capacity(CHUNK_BYTES, encoder);
            make(&mut buffer).ok()?;
            let bytes = buffer.into_inner().ok()?.finish().ok()?;
            let etag = hash.map_or_else(|| etag(&bytes), str::to_owned);
            Some(Document { bytes: bytes.into_boxed_slice().into(), etag })
        })
    }
}
