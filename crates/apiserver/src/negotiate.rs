//! Content negotiation: which form a body has and which form the answer takes. Answers in another
//! encoding plug in here: a variant of [`Encoding`] and its arms. (Protobuf bodies of requests are
//! JSON by the time they come here.)
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`.

use crate::local::{Body, full};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use skeg_api::{Status, Value};
use std::io::Write;

/// Answers above this size are compressed for clients that take it.
pub const GZIP_THRESHOLD_BYTES: usize = 128 << 10;

const MEDIA_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Encoding {
    #[default]
    Json,
    Yaml,
}

impl Encoding {
    fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json" => Some(Encoding::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Some(Encoding::Yaml),
            _ => None,
        }
    }

    pub fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
        })
    }

    pub fn encode(self, value: &Value) -> Result<Vec<u8>, Status> {
        match self {
            Encoding::Json => serde_json::to_vec(value).map_err(Status::internal),
            Encoding::Yaml => {
                serde_saphyr::to_string(value).map(String::into_bytes).map_err(Status::internal)
            }
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
    /// Indented, for people.
    pub pretty: bool,
}

impl Output {
    /// From the Accept headers. `forms` is whether Table and metadata-only can be had here.
    pub fn negotiate(headers: &HeaderMap, forms: bool) -> Result<Self, Status> {
        let gzip = headers
            .get_all(ACCEPT_ENCODING)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(takes_gzip);
        // What most clients send.
        if let Some(b"application/json" | b"*/*" | b"application/json, */*") = single(headers, &ACCEPT) {
            return Ok(Output { gzip, ..Default::default() });
        }
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        if accept.iter().all(|v| v.trim().is_empty()) {
            return Ok(Output { gzip, ..Default::default() });
        }
        // The order of equal qualities is the client's order.
        let mut ranges: Vec<(f32, Range<'_>)> =
            accept.iter().flat_map(|v| v.split(',')).filter_map(Range::parse).collect();
        ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found = ranges.iter().find_map(|(_, range)| range.output(forms));
        match found {
            Some((encoding, form)) => Ok(Output { encoding, form, gzip, pretty: false }),
            None => Err(Status::not_acceptable(format!(
                "only the following media types are accepted: {MEDIA_TYPES}"
            ))),
        }
    }

    /// Whether JSON bodies of entries can be copied into the answer.
    pub fn is_plain(self) -> bool {
        self.encoding == Encoding::Json && self.form == Form::Whole && !self.pretty
    }

    fn encode(self, value: &Value) -> Result<Vec<u8>, Status> {
        if self.pretty && self.encoding == Encoding::Json {
            return serde_json::to_vec_pretty(value).map_err(Status::internal);
        }
        self.encoding.encode(value)
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
        true => Output::negotiate(headers, true).map(|output| output.encoding).unwrap_or_default(),
        false => Encoding::Json,
    }
}

fn takes_gzip(coding: &str) -> bool {
    let mut parts = coding.split(';').map(str::trim);
    let named = parts.next().is_some_and(|name| name == "gzip" || name == "*");
    named && !parts.any(|p| p.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0)))
}

/// One media range of an Accept header.
struct Range<'a> {
    media_type: &'a str,
    form: &'a str,
    group: &'a str,
    version: &'a str,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<(f32, Self)> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Range { media_type: parts.next()?, form: "", group: "", version: "" };
        let mut quality = 1.0;
        for (name, value) in parts.filter_map(|p| p.split_once('=')) {
            match name.trim() {
                "q" => quality = value.parse().ok()?,
                "as" => range.form = value,
                "g" => range.group = value,
                "v" => range.version = value,
                _ => {}
            }
        }
        (quality > 0.0).then_some((quality, range))
    }

    fn output(&self, forms: bool) -> Option<(Encoding, Form)> {
        let encoding = match self.media_type {
            "*/*" | "application/*" => Encoding::Json,
            other => Encoding::of_media_type(other)?,
        };
        let form = match self.form {
            "" => Form::Whole,
            _ if !forms || self.group != "meta.k8s.io" || !matches!(self.version, "v1" | "v1beta1") => {
                return None;
            }
            "Table" => Form::Table,
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Form::Metadata,
            _ => return None,
        };
        Some((encoding, form))
    }
}

/// The encoding of a request body.
pub fn input(headers: &HeaderMap) -> Result<Encoding, Status> {
    match media_type(headers) {
        "" => Ok(Encoding::Json),
        media_type => Encoding::of_media_type(media_type).ok_or_else(unsupported),
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
mod tests {
    use super::*;

    fn check(accept: &str, expected: Option<(Encoding, Form)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        let got = Output::negotiate(&headers, true).ok().map(|o| (o.encoding, o.form));
        assert_eq!(got, expected, "{accept}");
    }

    #[test]
    fn picks_the_first_form_it_can() {
        check("*/*", Some((Encoding::Json, Form::Whole)));
        check("application/yaml", Some((Encoding::Yaml, Form::Whole)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Encoding::Json, Form::Whole)));
        check("application/vnd.kubernetes.protobuf", None);
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Encoding::Json, Form::Table)),
        );
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Encoding::Json, Form::Metadata)),
        );
        check("application/yaml;q=0.5, application/json", Some((Encoding::Json, Form::Whole)));
        check("text/html", None);
    }
}
