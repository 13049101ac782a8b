//! delete and deletecollection: preconditions, grace periods, finalizers.
//! Upstream counterparts: `registry/rest/delete.go`, `registry/generic/registry/store.go`,
//! `registry/core/namespace/storage`.

use super::object::Unstored;
use super::{Answer, Context, DeleteOptions, Part, WriteOptions, Writing, read};
use crate::admission::{Operation, Phase};
use crate::cache::Entry;
use crate::list::ListOptions;
use crate::local::Body;
use futures_util::future::join_all;
use http::request::Parts;
use http::{Response, StatusCode};
use jiff::SignedDuration;
use skeg_api::{Kind, Status, Value, meta};
use skeg_store::{Expect, Revision};
use std::sync::Arc;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// How many objects of a collection are deleted at a time.
const COLLECTION_BATCH: usize = 16;

pub async fn serve(w: &mut Writing<'_>, bytes: &bytes::Bytes) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let options = DeleteOptions::parse(ctx, w.headers, bytes)?;
    w.options.dry_run |= options.is_dry_run();
    w.delete = options;
    let path = ctx.path();
    delete(w, &path).await
}

/// Deletes one object, or starts to, by the options of the write.
pub(super) async fn delete(w: &mut Writing<'_>, path: &str) -> Result<Answer, Status> {
    let (ctx, options) = (w.ctx, w.delete.clone());
    let options = &options;
    let resource = read::resource(ctx)?;
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    loop {
        let entry = resource.get(path).ok_or_else(|| ctx.served.not_found(&name))?;
        let old = ctx.decode(&entry).await?;
        check_preconditions(ctx, &name, &old, options)?;
        w.admit(Phase::Mutate, Operation::Delete, None, Some(&old), &name).await?;
        w.admit(Phase::Validate, Operation::Delete, None, Some(&old), &name).await?;
        let plan = plan(&ctx.served.kind, &old, options, ctx.server.clock().now_seconds());
        match carry_out(w, &entry, old, plan, options).await {
            Ok(answer) => return Ok(answer),
            // Within the time that the request has.
            Err(Unstored::Raced) => {}
            Err(Unstored::Unknown(status) | Unstored::Status(status)) => return Err(status),
        }
    }
}

fn check_preconditions(
    ctx: Context<'_>,
    name: &str,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let Some(preconditions) = &options.preconditions else { return Ok(()) };
    let (uid, version) = (meta::uid(old), meta::resource_version(old));
    if let Some(wanted) = preconditions.uid.as_deref().filter(|wanted| *wanted != uid) {
        return Err(ctx.conflict(name, format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        )));
    }
    if let Some(wanted) = preconditions.resource_version.as_deref().filter(|wanted| *wanted != version) {
        return Err(ctx.conflict(name, format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        )));
    }
    Ok(())
}

/// What a delete does.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Deletion is under way already and nothing about it changes.
    Pending,
    /// The object goes now.
    Remove(Value),
    /// The object is marked; its finalizers or its node let it go later.
    Mark(Value),
}

/// Decides, from the object and what was asked.
fn plan(kind: &Kind, old: &Value, options: &DeleteOptions, now: jiff::Timestamp) -> Plan {
    if kind.gvk.group.is_empty() && &*kind.gvk.kind == "Namespace" {
        return plan_namespace(old, options, now);
    }
    let mut new = old.clone();
    let graceful = match grace(kind, old, options) {
        Grace::Pending => return Plan::Pending,
        Grace::None => None,
        Grace::Shorten(seconds) => {
            let was = meta::deletion_grace_period_seconds(old).unwrap_or(0);
            if let Some(at) = meta::deletion_timestamp(old) {
                let at = at.saturating_add(SignedDuration::from_secs(seconds - was)).unwrap_or(at);
                meta::set_deletion_timestamp(&mut new, at);
            }
            meta::set_deletion_grace_period_seconds(&mut new, seconds);
            Some(seconds)
        }
        Grace::Start(seconds) => {
            let at = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
            meta::set_deletion_timestamp(&mut new, at);
            meta::set_deletion_grace_period_seconds(&mut new, seconds);
            bump_generation(&mut new);
            Some(seconds)
        }
    };
    if let Some(finalizers) = finalizers_for(old, options) {
        meta::set_finalizers(&mut new, finalizers);
    }
    if let Some(own) = kind.strategy.delete_finalizer.filter(|_| !meta::is_deleting(old))
        && !meta::finalizers(&new).any(|finalizer| finalizer == own)
    {
        let finalizers = meta::finalizers(&new).chain([own]).map(str::to_owned).collect();
        meta::set_finalizers(&mut new, finalizers);
    }
    let pending = meta::has_finalizers(&new);
    match graceful {
        None if !pending => Plan::Remove(new),
        None => {
            mark(&mut new, now);
            Plan::Mark(new)
        }
        Some(0) if !pending => Plan::Remove(new),
        Some(_) => Plan::Mark(new),
    }
}

fn plan_namespace(old: &Value, options: &DeleteOptions, now: jiff::Timestamp) -> Plan {
    let held = old.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    if meta::is_deleting(old) {
        return match held {
            true => Plan::Mark(old.clone()),
            false if meta::has_finalizers(old) => Plan::Mark(old.clone()),
            false => Plan::Remove(old.clone()),
        };
    }
    let mut new = old.clone();
    meta::set_deletion_timestamp(&mut new, now);
    if let Some(finalizers) = finalizers_for(old, options) {
        meta::set_finalizers(&mut new, finalizers);
    }
    if !new["status"].is_object() {
        new["status"] = serde_json::json!({});
    }
    new["status"]["phase"] = "Terminating".into();
    Plan::Mark(new)
}

/// Marks an object without a grace period that waits for its finalizers.
fn mark(object: &mut Value, now: jiff::Timestamp) {
    if !meta::is_deleting(object) {
        meta::set_deletion_timestamp(object, now);
        bump_generation(object);
    }
    meta::set_deletion_grace_period_seconds(object, 0);
}

fn bump_generation(object: &mut Value) {
    let generation = meta::generation(object);
    if generation > 0 {
        meta::set_generation(object, generation + 1);
    }
}

enum Grace {
    None,
    Pending,
    Start(i64),
    Shorten(i64),
}

/// Only Pods end gracefully: someone has to stop their containers.
fn grace(kind: &Kind, old: &Value, options: &DeleteOptions) -> Grace {
    if !(kind.gvk.group.is_empty() && &*kind.gvk.kind == "Pod") {
        return Grace::None;
    }
    if meta::is_deleting(old) {
        let Some(running) = meta::deletion_grace_period_seconds(old) else { return Grace::None };
        return match options.grace_period_seconds {
            Some(asked) if asked < running => Grace::Shorten(asked),
            _ => Grace::Pending,
        };
    }
    let own = || old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    let mut seconds = options.grace_period_seconds.unwrap_or_else(own);
    let text = |pointer| old.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if text("/spec/nodeName").is_empty() || matches!(text("/status/phase"), "Succeeded" | "Failed") {
        seconds = 0;
    }
    Grace::Start(if seconds < 0 { 1 } else { seconds })
}

/// The finalizers that the garbage collector works by, where the options change them.
fn finalizers_for(old: &Value, options: &DeleteOptions) -> Option<Vec<String>> {
    let had: Vec<&str> = meta::finalizers(old).collect();
    let orphan = match (options.orphan_dependents, options.policy()) {
        (Some(orphan), _) => orphan,
        (None, "Orphan") => true,
        (None, "Background" | "Foreground") => false,
        _ => had.contains(&ORPHAN),
    };
    let foreground = match (options.orphan_dependents, options.policy()) {
        (Some(_), _) | (None, "Orphan" | "Background") => false,
        (None, "Foreground") => true,
        _ => had.contains(&FOREGROUND) && !orphan,
    };
    let mut finalizers: Vec<&str> =
        had.iter().copied().filter(|f| *f != ORPHAN && *f != FOREGROUND).collect();
    if orphan {
        finalizers.push(ORPHAN);
    }
    if foreground {
        finalizers.push(FOREGROUND);
    }
    let same = finalizers.len() == had.len() && finalizers.iter().all(|f| had.contains(f));
    (!same).then(|| finalizers.into_iter().map(str::to_owned).collect())
}

/// Whether an update lets an object go whose deletion waited for it.
pub(super) fn is_finished(kind: &Kind, new: &Value, old: &Value) -> bool {
    let namespace = kind.gvk.group.is_empty() && &*kind.gvk.kind == "Namespace";
    let held =
        namespace && new.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    meta::is_deleting(old)
        && !meta::has_finalizers(new)
        && !held
        && meta::deletion_grace_period_seconds(old).is_none_or(|seconds| seconds == 0)
}

async fn carry_out(
    w: &mut Writing<'_>,
    entry: &Arc<Entry>,
    old: Value,
    plan: Plan,
    options: &DeleteOptions,
) -> Result<Answer, Unstored> {
    let ctx = w.ctx;
    let kind = &ctx.served.kind;
    match plan {
        Plan::Pending => Ok(done(kind, old)),
        Plan::Remove(mut last) => {
            if !w.options.dry_run {
                let revision = ctx.remove(entry, true).await?;
                meta::set_resource_version(&mut last, &revision.to_string());
            }
            Ok(done(kind, last))
        }
        Plan::Mark(mut new) => {
            let accepted = options.orphan_dependents == Some(false);
            let code = if accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
            if w.options.dry_run || new == old {
                return Ok(Answer::Value { code, value: new });
            }
            let (body, revision) =
                ctx.store(entry.key(), Expect::Modified(Revision(entry.revision)), &mut new).await?;
            Ok(Answer::Stored { code, body, revision })
        }
    }
}

/// The answer to a delete that is done, or that was begun before.
fn done(kind: &Kind, object: Value) -> Answer {
    let code = StatusCode::OK;
    if kind.strategy.returns_deleted {
        return Answer::Value { code, value: object };
    }
    let mut status =
        Status::success(&kind.gvk.group, &kind.plural, meta::name(&object), meta::uid(&object)).to_value();
    if let Some(fields) = status.as_object_mut() {
        fields.remove("code");
    }
    Answer::Value { code, value: status }
}

pub async fn serve_collection(ctx: Context<'_>, parts: &Parts, body: Body) -> Result<Response<Body>, Status> {
    let output = ctx.output(&parts.headers)?;
    let options = WriteOptions::parse(ctx.info.verb, None, ctx.query, ctx.identity, &parts.headers)?;
    let list = ListOptions::parse(ctx.info, ctx.query, ctx.served)?;
    let bytes = super::read_body(body).await?;
    let delete_options = DeleteOptions::parse(ctx, &parts.headers, &bytes)?;
    let page = match read::page(ctx, &list).await {
        Ok(page) => page,
        Err(read::Refusal::Status(status)) => return Err(status),
        Err(read::Refusal::Expired(_)) => {
            return Err(Status::expired("The provided continue parameter is too old."));
        }
    };
    let mut options = options;
    options.dry_run |= delete_options.is_dry_run();
    let mut warnings = Vec::new();
    for batch in page.entries.chunks(COLLECTION_BATCH) {
        // Writes at the same time share a sync.
        let deletes = batch.iter().map(|entry| async {
            let mut w = Writing::new(ctx, &parts.headers, options.clone());
            w.delete = delete_options.clone();
            let deleted = delete(&mut w, entry.path()).await;
            (deleted, w.warnings)
        });
        for (deleted, told) in join_all(deletes).await {
            warnings.extend(told);
            match deleted {
                Err(status) if status.is_not_found() => {}
                deleted => {
                    deleted?;
                }
            }
        }
    }
    let mut response = read::respond_list(ctx, output, page, None).await?;
    super::warn(response.headers_mut(), &warnings);
    Ok(response)
}

impl Writing<'_> {
    /// A write of another part that turned out to be a plain update.
    pub(super) fn part_of(kind: &Kind, subresource: &str) -> Option<Part> {
        match subresource {
            "status" => Some(Part::Status),
            "approval" => Some(Part::Approval),
            "finalize" => Some(Part::Finalize),
            _ => kind.strategy.portion(subresource).map(|portion| Part::Portion(portion.name)),
        }
    }
}
