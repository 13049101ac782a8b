//! Content negotiation: which form a body has and which form the answer takes. Encodings plug in
//! here: a variant of [`Encoding`] and its arms. (Protobuf bodies of requests are JSON by the time
//! they come here.)
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`.

mod accept;

use crate::local::{Body, full};
use crate::protobuf;
pub use accept::{Clause, clauses};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use skeg_api::{Status, Value, decode};
use std::io::Write;

/// Answers above this size are compressed for clients that take it.
pub const GZIP_THRESHOLD_BYTES: usize = 128 << 10;

const MEDIA_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAM_TYPES: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
/// Clients whose answers people read.
const PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Encoding {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// In the order in which an Accept header of wildcards takes them.
    pub const ALL: [Encoding; 3] = [Encoding::Json, Encoding::Yaml, Encoding::Protobuf];

    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => protobuf::MEDIA_TYPE,
        }
    }

    pub fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(self.media_type())
    }

    pub fn encode(self, value: &Value) -> Result<Vec<u8>, Status> {
        match self {
            Encoding::Json => serde_json::to_vec(value).map_err(Status::internal),
            Encoding::Yaml => {
                serde_saphyr::to_string(value).map(String::into_bytes).map_err(Status::internal)
            }
            Encoding::Protobuf => protobuf::encode(value),
        }
    }
}

/// What of the objects an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Form {
    #[default]
    Whole,
    /// `as=Table`: cells for printing.
    Table,
    /// `as=PartialObjectMetadata` or its list.
    Metadata,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Output {
    pub encoding: Encoding,
    pub form: Form,
    pub gzip: bool,
    /// The metadata of lists was asked for, not of an object.
    pub of_lists: bool,
    /// Indented, for people.
    pub pretty: bool,
}

/// What an endpoint can answer with, beside JSON and YAML.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Table and metadata alone.
    pub forms: bool,
    /// Its objects in protobuf, which custom resources do not have.
    pub protobuf: bool,
}

impl Offer {
    /// One kind of object, in one form.
    pub const PLAIN: Offer = Offer { forms: false, protobuf: true };
}

impl Output {
    /// From the Accept header, of which the first counts.
    pub fn negotiate(headers: &HeaderMap, offer: Offer) -> Result<Self, Status> {
        let gzip = headers
            .get_all(ACCEPT_ENCODING)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(takes_gzip);
        let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let pretty = PEOPLE.iter().any(|name| agent.starts_with(name));
        let plain = Output { gzip, pretty, ..Default::default() };
        // What most clients send.
        if let Some(b"application/json" | b"*/*" | b"application/json, */*") = single(headers, &ACCEPT) {
            return Ok(plain);
        }
        let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if accept.is_empty() {
            return Ok(plain);
        }
        let clauses = clauses(accept);
        let found = clauses.iter().find_map(|clause| {
            let mut encodings =
                Encoding::ALL.into_iter().filter(|encoding| clause.takes(encoding.media_type()));
            encodings.find_map(|encoding| Some((clause, encoding, form(clause, encoding, offer)?)))
        });
        match found {
            Some((clause, encoding, form)) => {
                let pretty = pretty || clause.parameter("pretty") == Some("1");
                let of_lists = clause.parameter("as") == Some("PartialObjectMetadataList");
                Ok(Output { encoding, form, gzip, of_lists, pretty })
            }
            None => Err(Status::not_acceptable(format!(
                "only the following media types are accepted: {MEDIA_TYPES}"
            ))),
        }
    }

    /// The same for a watch, which YAML has no frames for.
    pub fn streamed(self) -> Result<Self, Status> {
        match self.encoding {
            Encoding::Yaml => Err(Status::not_acceptable(format!(
                "only the following media types are accepted: {STREAM_TYPES}"
            ))),
            Encoding::Json | Encoding::Protobuf => Ok(self),
        }
    }

    /// Whether JSON bodies of entries can be copied into the answer.
    pub fn is_plain(self) -> bool {
        self.encoding == Encoding::Json && self.form == Form::Whole && !self.pretty
    }

    pub fn encode(self, value: &Value) -> Result<Vec<u8>, Status> {
        if self.pretty && self.encoding == Encoding::Json {
            return serde_json::to_vec_pretty(value).map_err(Status::internal);
        }
        self.encoding.encode(value)
    }
}

/// What a clause asks for in an encoding, where the endpoint can give it.
fn form(clause: &Clause<'_>, encoding: Encoding, offer: Offer) -> Option<Form> {
    if clause
        .parameter("stream")
        .is_some_and(|v| !v.is_empty() && (v != "watch" || encoding == Encoding::Yaml))
        || clause.parameter("sv").is_some_and(|v| !v.is_empty() && v != "v1")
    {
        return None;
    }
    let [kind, group, version] = ["as", "g", "v"].map(|name| clause.parameter(name));
    if (kind, group, version) == (None, None, None) {
        return (encoding != Encoding::Protobuf || offer.protobuf).then_some(Form::Whole);
    }
    if !offer.forms || group != Some("meta.k8s.io") || !matches!(version, Some("v1" | "v1beta1")) {
        return None;
    }
    match kind? {
        // Its cells are free JSON.
        "Table" if encoding != Encoding::Protobuf => Some(Form::Table),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Form::Metadata),
        _ => None,
    }
}

/// The value of a header that comes once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes())
}

/// How to tell an error; clients of unknown encodings get JSON.
pub fn error_encoding(headers: &HeaderMap) -> Encoding {
    match headers.contains_key(ACCEPT) {
        true => Output::negotiate(headers, Offer::PLAIN).map(|output| output.encoding).unwrap_or_default(),
        false => Encoding::Json,
    }
}

fn takes_gzip(coding: &str) -> bool {
    let mut parts = coding.split(';').map(str::trim);
    let named = parts.next().is_some_and(|name| name == "gzip" || name == "*");
    named && !parts.any(|p| p.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0)))
}

/// The encoding of a request body, which is not protobuf by now.
pub fn input(headers: &HeaderMap) -> Result<decode::Encoding, Status> {
    match media_type(headers) {
        "" | "application/json" => Ok(decode::Encoding::Json),
        "application/yaml" => Ok(decode::Encoding::Yaml),
        _ => Err(unsupported()),
    }
}

/// 415 for a body in an encoding that is not known, or not for its type.
pub fn unsupported() -> Status {
    let text = "the body of the request was in an unknown format - accepted media types include: ";
    Status::unsupported_media_type(format!("{text}{MEDIA_TYPES}"))
}

/// The media type of a request body, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// A complete answer, compressed where that pays.
pub fn respond(code: StatusCode, output: Output, bytes: Bytes) -> Response<Body> {
    if output.gzip && bytes.len() > GZIP_THRESHOLD_BYTES {
        let mut response = respond_packed(output, gzip(&bytes));
        *response.status_mut() = code;
        return response;
    }
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, output.encoding.content_type());
    response
}

/// A 200 whose body is compressed already.
pub fn respond_packed(output: Output, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, output.encoding.content_type());
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Compressed for speed: level 1, as upstream.
pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::new(1));
    // Writing to memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default().into()
}

/// An answer of one value.
pub fn respond_value(code: StatusCode, output: Output, value: &Value) -> Result<Response<Body>, Status> {
    Ok(respond(code, output, output.encode(value)?.into()))
}

/// The one place where a refusal becomes bytes.
pub fn respond_status(status: &Status, encoding: Encoding) -> Response<Body> {
    respond_status_value(status, encoding, &status.to_value())
}

/// As [`respond_status`] with a body that says more than the type can.
pub fn respond_status_value(status: &Status, encoding: Encoding, value: &Value) -> Response<Body> {
    let bytes = encoding.encode(value).unwrap_or_default();
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(code, Output { encoding, ..Default::default() }, bytes.into());
    let retry = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(retry));
    }
    response
}

#[cfg(test)]
mod tests;
