//! Lists: their parameters, continue tokens, and bodies copied from cache entries.
//! Upstream counterparts: `metav1.ListOptions` validation, `storage/continue.go`.

use crate::cache::{Entry, Filter};
use crate::convert;
use crate::local::BoxError;
use crate::query::Query;
use crate::record::Decimal;
use crate::request::RequestInfo;
use crate::route::Served;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde::{Deserialize, Serialize};
use skeg_api::Status;
use skeg_api::field::{FieldError, Path};
use skeg_api::selector::{FieldSelector, LabelSelector};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Exact,
    NotOlderThan,
}

/// The parameters of list, watch and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub filter: Filter,
    /// Fields that are known once a webhook has converted an object.
    pub late: FieldSelector,
    /// Empty, `0`, or a revision.
    pub resource_version: String,
    pub resource_version_match: Option<Match>,
    pub limit: usize,
    pub continue_token: String,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    pub fn parse(info: &RequestInfo, query: &Query, served: &Served) -> Result<Self, Status> {
        let number = |name: &str| -> Result<Option<u64>, Status> {
            match query.text(name) {
                "" => Ok(None),
                text => text.parse::<i64>().map(|n| Some(n.max(0) as u64)).map_err(|_| {
                    Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
                }),
            }
        };
        let resource_version_match = match query.text("resourceVersionMatch") {
            "" => None,
            "Exact" => Some(Match::Exact),
            "NotOlderThan" => Some(Match::NotOlderThan),
            other => {
                let path = Path::new("resourceVersionMatch");
                return Err(invalid(FieldError::not_supported(path, other, &["Exact", "NotOlderThan"])));
            }
        };
        let mut filter = filter(info, query, served)?;
        let late = late(&mut filter, served);
        let mut options = ListOptions {
            filter,
            late,
            resource_version: query.text("resourceVersion").to_owned(),
            resource_version_match,
            limit: number("limit")?.unwrap_or(0) as usize,
            continue_token: query.text("continue").to_owned(),
            allow_watch_bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            send_initial_events: query.flag("sendInitialEvents"),
            timeout_seconds: number("timeoutSeconds")?,
        };
        options.validate(info.verb == "watch")?;
        // How many objects such fields select is known once all are converted.
        if !options.late.is_everything() {
            options.limit = 0;
        }
        // A watch knows no bookmarks without being asked, and a list has no events.
        options.allow_watch_bookmarks &= info.verb == "watch";
        Ok(options)
    }

    fn validate(&self, watch: bool) -> Result<(), Status> {
        let rv_match = Path::new("resourceVersionMatch");
        let initial = Path::new("sendInitialEvents");
        let forbidden = |path: Path, text: &str| Err(invalid(FieldError::forbidden(path, text)));
        let continued = "resourceVersionMatch is forbidden when continue is provided";
        if watch {
            match (self.send_initial_events, self.resource_version_match) {
                (None, Some(_)) => {
                    return forbidden(
                        rv_match,
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    );
                }
                (Some(_), rv) if rv != Some(Match::NotOlderThan) => {
                    return forbidden(
                        rv_match,
                        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    );
                }
                (Some(_), _) if !self.continue_token.is_empty() => return forbidden(rv_match, continued),
                _ => {}
            }
            return Ok(());
        }
        if self.send_initial_events.is_some() {
            return forbidden(initial, "sendInitialEvents is forbidden for list");
        }
        match self.resource_version_match {
            Some(_) if self.resource_version.is_empty() => {
                forbidden(rv_match, "resourceVersionMatch is forbidden unless resourceVersion is provided")
            }
            Some(_) if !self.continue_token.is_empty() => forbidden(rv_match, continued),
            Some(Match::Exact) if self.resource_version == "0" => {
                forbidden(rv_match, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
            }
            _ => Ok(()),
        }
    }

    /// The revision asked for: `None` where the parameter is absent.
    pub fn revision(&self) -> Result<Option<u64>, Status> {
        parse_revision(&self.resource_version)
    }
}

/// A resourceVersion as a client sent it.
pub fn parse_revision(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let error = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let error = FieldError::invalid(Path::new("resourceVersion"), text, error);
        Status::bad_request(format!("invalid resource version: {error}"))
    })
}

fn invalid(error: FieldError) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", &[error])
}

fn filter(info: &RequestInfo, query: &Query, served: &Served) -> Result<Filter, Status> {
    let labels = LabelSelector::parse(query.text("labelSelector")).map_err(|e| Status::bad_request(e.0))?;
    let mut fields =
        FieldSelector::parse(query.text("fieldSelector")).map_err(|e| Status::bad_request(e.0))?;
    let keys = match served.kind.custom {
        Some(_) => served.kind.selectable_keys(),
        None => served.stored.selectable_keys(),
    };
    for requirement in &mut fields.requirements {
        let field = convert::field_key(&served.kind, &served.stored, &requirement.field);
        let known = match field.as_str() {
            "metadata.name" => true,
            "metadata.namespace" => served.kind.namespaced || keys.is_empty(),
            other => keys.contains(&other),
        };
        if !known {
            return Err(Status::bad_request(if keys.is_empty() {
                format!(
                    "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    requirement.field
                )
            } else {
                format!("field label not supported: {}", requirement.field)
            }));
        }
        requirement.field = field;
    }
    if !info.name.is_empty() && fields.exact("metadata.name").is_none() {
        // The deprecated `/watch/` paths name their object.
        let name = FieldSelector::parse(&format!("metadata.name={}", info.name))
            .map_err(|e| Status::bad_request(e.0))?;
        fields.requirements.extend(name.requirements);
    }
    let mut namespace = if served.kind.namespaced { info.namespace.clone() } else { String::new() };
    if namespace.is_empty()
        && served.kind.namespaced
        && let Some(wanted) = fields.exact("metadata.namespace")
    {
        namespace = wanted.to_owned();
    }
    Ok(Filter { namespace, labels, fields })
}

/// Takes the fields out of a filter that differ between versions in ways that only a webhook knows.
fn late(filter: &mut Filter, served: &Served) -> FieldSelector {
    if served.kind.conversion().is_none() {
        return FieldSelector::default();
    }
    let all = std::mem::take(&mut filter.fields.requirements);
    let (early, late) = all.into_iter().partition(|asked| asked.field.starts_with("metadata."));
    filter.fields.requirements = early;
    FieldSelector { requirements: late }
}

/// Where a paged list goes on. Opaque to clients.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    v: String,
    /// The revision of the first page; -1 for a list that may be inconsistent.
    rv: i64,
    /// The last path that was listed.
    start: String,
}

impl Token {
    pub fn new(revision: Option<u64>, last: &str) -> Self {
        let rv = revision.map_or(-1, |revision| i64::try_from(revision).unwrap_or(i64::MAX));
        Token { v: "meta.k8s.io/v1".into(), rv, start: format!("{last}\0") }
    }

    pub fn encode(&self) -> String {
        BASE64.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    pub fn decode(text: &str) -> Result<Self, Status> {
        let bad = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = BASE64.decode(text).map_err(|e| bad(&e.to_string()))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(bad(&format!("server does not recognize this encoded version {:?}", token.v)));
        }
        if token.rv == 0 {
            return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        if token.start.trim_end_matches('\0').is_empty() {
            return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
        }
        Ok(token)
    }

    pub fn revision(&self) -> Option<u64> {
        u64::try_from(self.rv).ok()
    }

    pub fn after(&self) -> &str {
        self.start.trim_end_matches('\0')
    }
}

/// What `metadata` of a list says.
#[derive(Clone, Debug, Default)]
pub struct ListMeta {
    pub revision: u64,
    pub continue_token: String,
    pub remaining: Option<u64>,
}

impl ListMeta {
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"resourceVersion\":\"");
        out.extend_from_slice(Decimal::new(self.revision).as_bytes());
        out.push(b'"');
        if !self.continue_token.is_empty() {
            // Base64: nothing to escape.
            out.extend_from_slice(b",\"continue\":\"");
            out.extend_from_slice(self.continue_token.as_bytes());
            out.push(b'"');
            if let Some(remaining) = self.remaining {
                out.extend_from_slice(b",\"remainingItemCount\":");
                out.extend_from_slice(Decimal::new(remaining).as_bytes());
            }
        }
        out.push(b'}');
    }
}

/// How much of a list is copied at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// The body of a list, copied from the entries chunk by chunk as the client reads it.
pub struct ListBody {
    head: Option<Vec<u8>>,
    entries: Vec<Arc<Entry>>,
    next: usize,
    left: u64,
}

impl ListBody {
    /// `head` is everything up to and with `"items":[`.
    pub fn new(head: Vec<u8>, entries: Vec<Arc<Entry>>) -> Self {
        let items: usize = entries.iter().map(|e| e.body.len(e.revision) + 1).sum();
        // No comma before the first item; `]}` and a line break at the end.
        let left = head.len() + items.saturating_sub(usize::from(!entries.is_empty())) + 3;
        ListBody { head: Some(head), entries, next: 0, left: left as u64 }
    }

    /// How many bytes are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    fn chunk(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let mut out = Vec::with_capacity((self.left as usize).min(CHUNK_BYTES + (64 << 10)));
        if let Some(head) = self.head.take() {
            out.extend_from_slice(&head);
        }
        while self.next < self.entries.len() && out.len() < CHUNK_BYTES {
            if self.next > 0 {
                out.push(b',');
            }
            let entry = &self.entries[self.next];
            entry.body.write(entry.revision, &mut out);
            self.next += 1;
        }
        if self.next == self.entries.len() {
            out.extend_from_slice(b"]}\n");
            debug_assert_eq!(out.len() as u64, self.left);
            self.left = out.len() as u64;
        }
        self.left -= out.len() as u64;
        Some(out.into())
    }

    /// The whole body at once.
    pub fn into_bytes(mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.left as usize);
        while let Some(chunk) = self.chunk() {
            out.extend_from_slice(&chunk);
        }
        out
    }
}

impl http_body::Body for ListBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _ctx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.get_mut().chunk().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Everything of a list's JSON before its items.
pub fn list_head(api_version: &str, kind: &str, meta: &ListMeta) -> Vec<u8> {
    let mut out = Vec::with_capacity(200);
    out.extend_from_slice(b"{\"kind\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"apiVersion\":\"");
    out.extend_from_slice(api_version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    meta.write(&mut out);
    out.extend_from_slice(b",\"items\":[");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_and_nonsense_is_refused() {
        let token = Token::new(Some(7), "ns/name");
        let back = Token::decode(&token.encode()).unwrap();
        assert_eq!((back.revision(), back.after()), (Some(7), "ns/name"));
        assert_eq!(Token::decode(&Token::new(None, "x").encode()).unwrap().revision(), None);
        for bad in ["%", "bm90IGpzb24", &BASE64.encode(r#"{"v":"v9","rv":1,"start":"a"}"#)] {
            assert_eq!(Token::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
