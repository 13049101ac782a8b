//! The one generic path for every kind: verbs on objects and their subresources. Reads copy cache
//! entries; writes run decode → default → track → admit → prepare → validate → encode → store.
//! Upstream counterpart: `k8s.io/apiserver/pkg/registry/generic/registry` and
//! `endpoints/handlers`.

mod components;
mod create;
mod delete;
mod object;
mod options;
mod patch;
mod read;
mod subresource;
mod update;

use crate::identity::Identity;
use crate::local::Body;
use crate::negotiate::{self, Form, Offer, Output};
use crate::protobuf::Target;
use crate::query::Query;
use crate::record;
use crate::request::RequestInfo;
use crate::route::Served;
use crate::server::ApiServer;
use crate::table::Renderer;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue, WARNING};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use object::Reservations;
pub use options::{DeleteOptions, WriteOptions};
use skeg_api::decode::{self, Encoding};
use skeg_api::{Status, Value};
use std::sync::Arc;
use std::time::Duration;

/// Upstream's limit of a request body.
pub const BODY_MAX_BYTES: usize = 3 << 20;

/// One request on a kind.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub server: &'a Arc<ApiServer>,
    pub served: &'a Arc<Served>,
    pub identity: &'a Identity,
    pub info: &'a RequestInfo,
    pub query: &'a Query,
}

/// What a verb hands back, before it takes the form that was asked for.
pub enum Answer {
    /// An object as it is stored, in the stored version.
    Stored { code: StatusCode, body: record::Body, revision: u64 },
    /// An object or Status, in the version of the request.
    Value { code: StatusCode, value: Value },
}

/// Parameters of the API that this server knows and does not act on. Upstream has them behind
/// gates that are off.
const WITHOUT_EFFECT: [&str; 2] = ["ignoreStoreReadErrorWithClusterBreakingPotential", "shardSelector"];

/// Serves one authorized request.
pub async fn serve(ctx: Context<'_>, parts: &Parts, body: Body) -> Result<Response<Body>, Status> {
    let mut response = dispatch(ctx, parts, body).await?;
    let strategy = &ctx.served.kind.strategy;
    let writes = matches!(ctx.info.verb, "create" | "update" | "patch") && ctx.info.subresource.is_empty();
    let inert = strategy.without_effect.filter(|_| writes);
    let deprecated = ctx.served.kind.deprecated().or(inert);
    if deprecated.is_some() || !ctx.query.is_empty() {
        let given = WITHOUT_EFFECT.iter().filter(|name| ctx.query.get(name).is_some());
        let given = given.map(|name| format!("{name}: has no effect on this server"));
        let told: Vec<String> = deprecated.map(str::to_owned).into_iter().chain(given).collect();
        warn(response.headers_mut(), &told);
    }
    Ok(response)
}

async fn dispatch(ctx: Context<'_>, parts: &Parts, body: Body) -> Result<Response<Body>, Status> {
    if !ctx.info.subresource.is_empty() || ctx.served.resource.is_none() {
        return match ctx.info.verb {
            "get" | "list" if &*ctx.served.kind.plural == components::PLURAL => {
                Box::pin(components::read(ctx, &parts.headers)).await
            }
            "get" => Box::pin(subresource::get(ctx, &parts.headers)).await,
            _ => Box::pin(write(ctx, parts, body)).await,
        };
    }
    match ctx.info.verb {
        "get" => read::get(ctx, &parts.headers).await,
        // Each connection keeps room for its largest future: the large ones are boxed.
        "list" => Box::pin(read::list(ctx, &parts.headers)).await,
        "watch" => Box::pin(read::watch(ctx, &parts.headers)).await,
        "deletecollection" => Box::pin(delete::serve_collection(ctx, parts, body)).await,
        _ => Box::pin(write(ctx, parts, body)).await,
    }
}

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but status, where that is a subresource.
    Main,
    Status,
    /// The conditions of a CertificateSigningRequest by which it is approved or denied.
    Approval,
    /// `spec.finalizers` of a Namespace.
    Finalize,
    /// What the kind's [`skeg_api::kinds::Portion`] of this name says.
    Portion(&'static str),
    /// Whatever the server itself decided to change; not checked against the kind's rules for
    /// updates. Only `binding` needs it.
    Unchecked,
}

/// A write under way: the request and what it gathers.
pub struct Writing<'a> {
    pub ctx: Context<'a>,
    pub headers: &'a HeaderMap,
    pub options: WriteOptions,
    /// The options of a delete, also of one that an eviction is.
    pub delete: DeleteOptions,
    pub warnings: Vec<String>,
    /// What admission reserved.
    pub charges: Reservations,
}

/// Reads the body, runs the verb, and answers in the form that was asked for.
async fn write(ctx: Context<'_>, parts: &Parts, body: Body) -> Result<Response<Body>, Status> {
    let output = ctx.output(&parts.headers)?;
    let patch_type = match ctx.info.verb {
        "patch" => Some(patch::media_type(&ctx.served.kind, &parts.headers)?),
        _ => None,
    };
    let options = WriteOptions::parse(ctx.info.verb, patch_type, ctx.query, ctx.identity, &parts.headers)?;
    let bytes = read_body(body).await?;
    let mut writing = Writing::new(ctx, &parts.headers, options);
    let answer = match (ctx.info.subresource.as_str(), ctx.info.verb) {
        ("", "create") if ctx.served.resource.is_some() => create::serve(&mut writing, &bytes).await,
        ("", "update") => update::serve(&mut writing, Part::Main, &bytes).await,
        ("", "patch") => patch::serve(&mut writing, Part::Main, &bytes).await,
        ("", "delete") => delete::serve(&mut writing, &bytes).await,
        _ => subresource::write(&mut writing, &bytes).await,
    };
    let mut response = match answer {
        Ok(answer) => ctx.respond(output, answer).await?,
        // Warnings are told with a refusal too.
        Err(status) if !writing.warnings.is_empty() => negotiate::respond_status(&status, output.encoding),
        Err(status) => return Err(status),
    };
    warn(response.headers_mut(), &writing.warnings);
    Ok(response)
}

/// The whole request body, within its limit.
pub async fn read_body(body: Body) -> Result<Bytes, Status> {
    if http_body::Body::size_hint(&body).lower() > BODY_MAX_BYTES as u64 {
        return Err(too_large(body));
    }
    // Most bodies come in one frame, which is passed on without a copy.
    let (mut first, mut rest) = (Bytes::new(), Vec::new());
    let mut body = body;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Status::bad_request(format!("unable to read the request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > BODY_MAX_BYTES {
            return Err(too_large(body));
        }
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = Vec::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.into())
}

/// The answer to a body over the limit. What is still under way is taken, for a while, and thrown
/// away: a client whose HTTP/2 stream is reset while it sends does not look at the answer.
fn too_large(mut body: Body) -> Status {
    const REST_MAX_BYTES: usize = 16 * BODY_MAX_BYTES;
    const REST_TIMEOUT: Duration = Duration::from_secs(2);
    tokio::spawn(tokio::time::timeout(REST_TIMEOUT, async move {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > REST_MAX_BYTES {
                return;
            }
        }
    }));
    Status::too_large(format!("Request entity too large: limit is {BODY_MAX_BYTES}"))
}

/// The whole body of an answer of this server.
pub(crate) async fn read_answer(body: Body) -> Result<Bytes, String> {
    Ok(body.collect().await.map_err(|error| error.to_string())?.to_bytes())
}

/// How many characters of warnings an answer carries. Where they are more, each is cut.
const WARNINGS_CHARS_MAX: usize = 4096;
const CUT_CHARS_MAX: usize = 256;

/// Adds `Warning: 299 - "…"` headers (RFC 7234, section 5.5).
pub fn warn(headers: &mut HeaderMap, warnings: &[String]) {
    let mut seen: Vec<&String> = Vec::new();
    for warning in warnings {
        if !seen.contains(&warning) {
            seen.push(warning);
        }
    }
    let chars: usize = seen.iter().map(|warning| warning.chars().count()).sum();
    let chars_max = if chars > WARNINGS_CHARS_MAX { CUT_CHARS_MAX } else { WARNINGS_CHARS_MAX };
    let mut total = 0;
    for warning in seen {
        let mut text = String::from("299 - \"");
        for c in warning.chars().take(chars_max).filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
        total += text.len();
        if total > 2 * WARNINGS_CHARS_MAX {
            return;
        }
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.append(WARNING, value);
        }
    }
}

impl Context<'_> {
    pub fn renderer(&self, form: Form) -> Result<Renderer, Status> {
        Renderer::new(self.served.clone(), form, self.query, self.server.clock(), self.server.stats.clone())
    }

    /// How the answer is written.
    fn output(&self, headers: &HeaderMap) -> Result<Output, Status> {
        let kind = &self.served.kind;
        let other = kind.subresource(&self.info.subresource).is_some_and(|sub| sub.gvk.is_some());
        let output =
            Output::negotiate(headers, Offer { forms: true, protobuf: other || !kind.schema.is_custom() })?;
        if output.form == Form::Metadata {
            let list = &kind.list_kind;
            match (self.info.verb, output.of_lists) {
                ("list", false) => {
                    return Err(Status::not_acceptable(format!(
                        "you requested PartialObjectMetadata, but the requested object is a list ({list})"
                    )));
                }
                ("get" | "create" | "update" | "patch", true) => {
                    return Err(Status::not_acceptable(format!(
                        "you requested PartialObjectMetadataList, but the requested object is not a list ({})",
                        kind.gvk.kind
                    )));
                }
                _ => {}
            }
        }
        let asked = if self.query.is_empty() { None } else { self.query.flag("pretty") };
        Ok(Output { pretty: asked.unwrap_or(output.pretty), ..output })
    }

    /// What entries are written as in protobuf; nothing where they are not written straight from
    /// their bytes.
    fn target(&self, output: Output) -> Option<Target> {
        match (output.encoding, output.form) {
            (negotiate::Encoding::Protobuf, Form::Metadata) => Target::metadata(),
            (negotiate::Encoding::Protobuf, Form::Whole) if self.served.native => {
                Target::of(&self.served.kind)
            }
            _ => None,
        }
    }

    /// The path of the object that the request names.
    pub fn path(&self) -> String {
        self.served.path(&self.info.namespace, &self.info.name)
    }

    pub fn not_found(&self) -> Status {
        self.served.not_found(&self.info.name)
    }

    async fn respond(&self, output: Output, answer: Answer) -> Result<Response<Body>, Status> {
        if let Answer::Stored { code, body, revision } = &answer
            && let Some(target) = self.target(output)
        {
            return Ok(negotiate::respond(*code, output, target.object(body, *revision)?.into()));
        }
        match answer {
            Answer::Stored { code, body, revision } if self.served.native && output.is_plain() => {
                let mut out = Vec::with_capacity(body.len(revision) + 1);
                body.write(revision, &mut out);
                out.push(b'\n');
                Ok(negotiate::respond(code, output, out.into()))
            }
            Answer::Stored { code, body, revision } => {
                let value = match output.form {
                    // Metadata is the same in every version.
                    Form::Metadata => self.recorded(&body, revision)?,
                    // Boxed: what converts nothing, which is nearly everything, needs no room for it.
                    _ => Box::pin(self.written(&body, revision)).await?,
                };
                let value = self.renderer(output.form)?.value(value, revision);
                negotiate::respond_value(code, output, &value)
            }
            Answer::Value { code, value } => {
                let named = value.get("kind").and_then(Value::as_str).unwrap_or_default();
                let own = Some(&*self.served.kind).filter(|kind| &*kind.gvk.kind == named);
                let kind = own.or_else(|| subresource::carried(named));
                let value = match kind.filter(|_| output.form != Form::Whole) {
                    Some(kind) => {
                        let revision = skeg_api::meta::resource_version(&value).parse().unwrap_or(0);
                        self.renderer(output.form)?.value_of(kind, value, revision)
                    }
                    // A Status is shown as it is.
                    None => value,
                };
                negotiate::respond_value(code, output, &value)
            }
        }
    }
}

impl<'a> Writing<'a> {
    pub fn new(ctx: Context<'a>, headers: &'a HeaderMap, options: WriteOptions) -> Self {
        let (delete, charges) = (DeleteOptions::default(), Reservations::default());
        Writing { ctx, headers, options, delete, warnings: Vec::new(), charges }
    }

    /// The object in the body, checked against the schema and with defaults filled in.
    fn decode(&mut self, bytes: &[u8]) -> Result<object::Decoded, Status> {
        let encoding = self.encoding()?;
        let kind = &self.ctx.served.kind;
        let read =
            decode::decode_object(bytes, encoding, &kind.gvk, &kind.schema, self.options.field_validation)?;
        self.warnings.extend(read.warnings);
        let mut value = read.value;
        kind.default(&mut value);
        Ok(object::Decoded { value, invalid: read.invalid, is_applied: false })
    }

    fn encoding(&self) -> Result<Encoding, Status> {
        negotiate::input(self.headers)
    }
}
