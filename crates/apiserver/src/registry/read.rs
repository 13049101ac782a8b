//! get, list and watch.

use super::{Answer, Context};
use crate::cache::{Entry, Page, Resource, Since, TooOld};
use crate::list::{ListBody, ListMeta, ListOptions, Match, Token, list_head, parse_revision};
use crate::local::{Body, full};
use crate::negotiate::{self, Encoding, Form, GZIP_THRESHOLD_BYTES, Output};
use crate::watch::{Converter, Encoder, Marks, Source, WatchBody, error_frame, selects};
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use skeg_api::status::{Cause, Details};
use skeg_api::{Reason, Status};
use skeg_store::{Error, Revision};
use std::sync::Arc;
use std::time::Duration;

/// Upstream's `--min-request-timeout`: watches without a timeout last this long or up to twice.
const WATCH_TIMEOUT_MIN_S: u64 = 1800;

pub async fn get(ctx: Context<'_>, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let output = ctx.output(headers)?;
    let resource = resource(ctx)?;
    if let Some(revision) = parse_revision(ctx.query.text("resourceVersion"))? {
        wait(ctx, revision).await?;
    }
    let entry = resource.get(&ctx.path()).ok_or_else(|| ctx.not_found())?;
    let answer = Answer::Stored { code: StatusCode::OK, body: entry.body.clone(), revision: entry.revision };
    ctx.respond(output, answer).await
}

pub(super) fn resource<'a>(ctx: Context<'a>) -> Result<&'a Arc<Resource>, Status> {
    ctx.served.resource.as_ref().ok_or_else(Status::unserved)
}

pub async fn list(ctx: Context<'_>, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let output = ctx.output(headers)?;
    let options = ListOptions::parse(ctx.info, ctx.query, ctx.served)?;
    // Only a list of the state now can be answered by the last one like it.
    let target = ctx.target(output);
    let copied = target.is_some() || ctx.served.native && output.is_plain();
    let now = options.continue_token.is_empty() && options.resource_version.is_empty();
    let key = (copied && output.gzip && now).then(|| {
        let Output { encoding, form, .. } = output;
        format!("{}?{}#{encoding:?}{form:?}", ctx.info.namespace, ctx.info.query)
    });
    if let Some(key) = &key
        && let Some(bytes) = resource(ctx)?.packed(key, 0)
    {
        return Ok(negotiate::respond_packed(output, bytes));
    }
    let page = match page(ctx, &options).await {
        Ok(page) => page,
        Err(Refusal::Status(status)) => return Err(status),
        Err(Refusal::Expired(token)) => return Ok(expired(&token, output.encoding)),
    };
    respond_list(ctx, output, page, key.as_deref()).await
}

/// Answers one page of objects; with a key, a compressed one is kept for the next who asks.
pub(super) async fn respond_list(
    ctx: Context<'_>,
    output: Output,
    page: Page,
    key: Option<&str>,
) -> Result<Response<Body>, Status> {
    let mut meta = ListMeta { revision: page.revision, ..Default::default() };
    if page.more
        && let Some(last) = page.entries.last()
    {
        meta.continue_token = Token::new(Some(page.revision), last.path()).encode();
        meta.remaining = page.remaining;
    }
    let pack = |bytes: &[u8]| {
        let bytes = negotiate::gzip(bytes);
        if let Some(key) = key {
            resource(ctx)?.keep_packed(key, page.revision, &bytes);
        }
        Ok(negotiate::respond_packed(output, bytes))
    };
    if let Some(target) = ctx.target(output) {
        let objects = page.entries.iter().map(|entry| (&entry.body, entry.revision));
        let bytes = target.list(&meta, objects)?;
        return match output.gzip && bytes.len() > GZIP_THRESHOLD_BYTES {
            true => pack(&bytes),
            false => Ok(negotiate::respond(StatusCode::OK, Output { gzip: false, ..output }, bytes.into())),
        };
    }
    if !(ctx.served.native && output.is_plain()) {
        let renderer = ctx.renderer(output.form)?;
        // Metadata is the same in every version.
        let asks = ctx.served.kind.conversion().is_some() && output.form != Form::Metadata;
        let value = match asks {
            true => renderer.values(&meta, ctx.shown_all(&page.entries).await?),
            false => renderer.list(&meta, &page.entries),
        };
        return negotiate::respond_value(StatusCode::OK, output, &value);
    }
    let kind = &ctx.served.kind;
    let body = ListBody::new(list_head(&kind.gvk.api_version(), &kind.list_kind, &meta), page.entries);
    if output.gzip && body.left() > GZIP_THRESHOLD_BYTES as u64 {
        return pack(&body.into_bytes());
    }
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, output.encoding.content_type());
    Ok(response)
}

pub(super) enum Refusal {
    Status(Status),
    /// 410 with a token that goes on inconsistently.
    Expired(String),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal::Status(status)
    }
}

/// The page that the options ask for.
pub(super) async fn page(ctx: Context<'_>, options: &ListOptions) -> Result<Page, Refusal> {
    let mut page = stored_page(ctx, options).await?;
    if !options.late.is_everything() {
        let objects = ctx.shown_all(&page.entries).await?;
        let mut fits = objects.iter().map(|object| selects(&options.late, &ctx.served.kind, object));
        page.entries.retain(|_| fits.next().unwrap_or_default());
        page.remaining = None;
    }
    Ok(page)
}

async fn stored_page(ctx: Context<'_>, options: &ListOptions) -> Result<Page, Refusal> {
    let resource = resource(ctx)?;
    let asked = options.revision()?;
    if !options.continue_token.is_empty() {
        if asked.is_some_and(|revision| revision > 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            )
            .into());
        }
        let token = Token::decode(&options.continue_token)?;
        let Some(revision) = token.revision() else {
            // The client chose to go on with whatever is there now.
            return Ok(resource.list(&options.filter, Some(token.after()), options.limit));
        };
        return match at(ctx, resource, revision, options, Some(token.after())).await {
            Ok(page) => Ok(page),
            Err(Past::Compacted) => Err(Refusal::Expired(Token::new(None, token.after()).encode())),
            Err(Past::Status(status)) => Err(status.into()),
        };
    }
    match (asked, options.resource_version_match) {
        (None, _) => Ok(resource.list(&options.filter, None, options.limit)),
        // Any state will do; upstream's cache then gives all of it.
        (Some(0), _) => Ok(resource.list(&options.filter, None, 0)),
        (Some(revision), Some(Match::NotOlderThan)) => {
            wait(ctx, revision).await?;
            Ok(resource.list(&options.filter, None, options.limit))
        }
        (Some(revision), None) if options.limit == 0 => {
            wait(ctx, revision).await?;
            Ok(resource.list(&options.filter, None, 0))
        }
        (Some(revision), _) => {
            wait(ctx, revision).await?;
            match at(ctx, resource, revision, options, None).await {
                Ok(page) => Ok(page),
                Err(Past::Compacted) => {
                    Err(Status::expired("The resourceVersion for the provided list is too old.").into())
                }
                Err(Past::Status(status)) => Err(status.into()),
            }
        }
    }
}

enum Past {
    Compacted,
    Status(Status),
}

/// The state at an older revision: from the recent changes, else from the store.
async fn at(
    ctx: Context<'_>,
    resource: &Arc<Resource>,
    revision: u64,
    options: &ListOptions,
    after: Option<&str>,
) -> Result<Page, Past> {
    if let Ok(page) = resource.list_at(revision, &options.filter, after, options.limit) {
        return Ok(page);
    }
    let store = ctx.server.cache.store();
    let filter = &options.filter;
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut page = Page { revision, ..Default::default() };
    let prefix = match filter.namespace.as_str() {
        "" => resource.prefix.clone(),
        namespace => format!("{}{namespace}/", resource.prefix),
    };
    let mut after = after.map(|after| format!("{}{after}", resource.prefix));
    loop {
        // One more than asked tells whether there is more.
        let ask = if filter.selects_all() && limit != usize::MAX { limit + 1 } else { 1000 };
        let records = match store.list(&prefix, Some(Revision(revision)), after.as_deref(), ask).await {
            Ok(records) => records,
            Err(Error::Compacted { .. }) => return Err(Past::Compacted),
            Err(error) => return Err(Past::Status(Status::internal(error))),
        };
        let left = records.remaining;
        let read = records.records.len() as u64;
        for (i, record) in records.records.into_iter().enumerate() {
            after = Some(record.key.to_string());
            let entry = resource.entry(record.key, &record.value, record.modified.0, None);
            let entry: Entry = entry.map_err(|error| Past::Status(Status::internal(error)))?;
            if !filter.matches(&entry) {
                continue;
            }
            if page.entries.len() == limit {
                page.more = true;
                page.remaining = filter.selects_all().then_some(left + read - i as u64);
                return Ok(page);
            }
            page.entries.push(Arc::new(entry));
        }
        if left == 0 {
            return Ok(page);
        }
    }
}

/// Waits for a revision that the client has seen elsewhere.
async fn wait(ctx: Context<'_>, revision: u64) -> Result<(), Status> {
    if ctx.server.cache.wait(revision).await {
        return Ok(());
    }
    let current = ctx.server.cache.revision();
    let cause = Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    let details = Details { causes: vec![cause], retry_after_seconds: 1, ..Default::default() };
    Err(Status::new(
        504,
        Reason::Timeout,
        format!("Timeout: Too large resource version: {revision}, current: {current}"),
    )
    .with_details(details))
}

fn expired(token: &str, encoding: Encoding) -> Response<Body> {
    let status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    let mut value = status.to_value();
    value["metadata"]["continue"] = token.into();
    negotiate::respond_status_value(&status, encoding, &value)
}

pub async fn watch(ctx: Context<'_>, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let output = ctx.output(headers)?.streamed()?;
    let options = ListOptions::parse(ctx.info, ctx.query, ctx.served)?;
    let resource = resource(ctx)?;
    let initial = options.send_initial_events;
    let since = match options.revision()? {
        None | Some(0) if initial != Some(false) => Since::State,
        None | Some(0) => Since::Now,
        Some(revision) if initial == Some(true) => {
            wait(ctx, revision).await?;
            Since::State
        }
        Some(revision) => Since::After(revision),
    };
    if ctx.server.is_stopping() {
        return Err(Status::unavailable("the API server is shutting down"));
    }
    let subscription = match resource.watch(options.filter.clone(), since, options.allow_watch_bookmarks) {
        Ok(subscription) => subscription,
        Err(TooOld { oldest }) => {
            let asked = &options.resource_version;
            let status = Status::expired(format!("too old resource version: {asked} ({oldest})"));
            return Ok(stream(output.encoding, full(error_frame(&status, output.encoding))));
        }
    };
    let source = match (output.encoding, output.form) {
        (Encoding::Protobuf, _) => ctx.target(output).map_or(Source::Values, Source::Protobuf),
        (_, Form::Whole) if ctx.served.native => Source::Json,
        (_, Form::Metadata) => Source::Metadata,
        _ => Source::Values,
    };
    let asks = output.form != Form::Metadata || !options.late.is_everything();
    let converter = (ctx.served.kind.conversion().is_some() && asks).then(|| Converter {
        server: ctx.server.clone(),
        served: ctx.served.clone(),
        late: options.late.clone(),
    });
    let encoder = Encoder::new(ctx.renderer(output.form)?, output, source, converter);
    let marks = Marks {
        bookmarks: options.allow_watch_bookmarks,
        initial_events_end: initial == Some(true) && options.allow_watch_bookmarks,
    };
    let seconds = match options.timeout_seconds {
        None | Some(0) => WATCH_TIMEOUT_MIN_S + ctx.server.seams().random.below(WATCH_TIMEOUT_MIN_S),
        Some(seconds) => seconds,
    };
    let timeout = tokio::time::sleep(Duration::from_secs(seconds));
    let body = WatchBody::new(subscription, encoder, marks, timeout).boxed_unsync();
    Ok(stream(output.encoding, body))
}

fn stream(encoding: Encoding, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let media_type = match encoding {
        Encoding::Protobuf => HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch"),
        _ => encoding.content_type(),
    };
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}
