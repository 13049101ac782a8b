//! update, of objects and their parts: read, change, check, compare and swap.

use super::object::{Decoded, Reservations, Unstored};
use super::{Answer, Part, Writing, create, delete, subresource};
use crate::admission::{Operation, Phase};
use crate::cache::Entry;
use http::StatusCode;
use serde_json::Map;
use skeg_api::field::FieldError;
use skeg_api::{Kind, Status, Value, fieldset, meta, names, object_meta};
use skeg_store::{Expect, Revision};
use std::sync::Arc;

pub async fn serve(w: &mut Writing<'_>, part: Part, bytes: &[u8]) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let decoded = w.decode(bytes)?;
    check_name(&decoded.value, &ctx.info.name, &ctx.info.namespace)?;
    let kind = &ctx.served.kind;
    let resource = super::read::resource(ctx)?;
    let again =
        || Decoded { value: decoded.value.clone(), invalid: decoded.invalid.clone(), is_applied: false };
    let creates = part == Part::Main && kind.strategy.create_on_update;
    while creates && resource.get(&ctx.path()).is_none() {
        ctx.may_create()?;
        let warned = w.warnings.len();
        match create::create(w, again()).await {
            // Another writer was first: it is an update by now.
            Err(status) if status.is_already_exists() => w.warnings.truncate(warned),
            answer => return answer,
        }
    }
    if meta::resource_version(&decoded.value).is_empty() && kind.strategy.conditional_update {
        let path = skeg_api::field::Path::new("metadata").child("resourceVersion");
        ctx.invalid(&ctx.info.name, &[FieldError::invalid(path, "", "must be specified for an update")])?;
    }
    modify(w, part, &mut |_, _| Ok(again())).await
}

/// The object must be the one that the path names.
pub(super) fn check_name(object: &Value, name: &str, namespace: &str) -> Result<(), Status> {
    let own = meta::name(object);
    if own.is_empty() {
        let text =
            format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return Err(Status::bad_request(text));
    }
    if own != name {
        let text = format!("the name of the object ({own}) does not match the name on the URL ({name})");
        return Err(Status::bad_request(text));
    }
    let own = meta::namespace(object);
    if !namespace.is_empty() && !own.is_empty() && own != namespace {
        let text = format!(
            "the namespace of the object ({own}) does not match the namespace on the request ({namespace})"
        );
        return Err(Status::bad_request(text));
    }
    Ok(())
}

/// Makes the new object out of the current one. Called anew when another writer was first.
pub(super) type Make<'m> = &'m mut (dyn FnMut(&mut Vec<String>, &Value) -> Result<Decoded, Status> + Send);

/// Changes the object that the request names: one that names no resourceVersion as often as others are
/// first, within the time that the request has.
pub(super) async fn modify(w: &mut Writing<'_>, part: Part, make: Make<'_>) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let resource = super::read::resource(ctx)?;
    let path = ctx.path();
    loop {
        let entry = resource.get(&path).ok_or_else(|| ctx.not_found())?;
        let old = ctx.decode(&entry).await?;
        // Warnings of a try that lost its race are not told twice.
        let warned = w.warnings.len();
        let made = make(&mut w.warnings, &old)?;
        let unconditional = matches!(meta::resource_version(&made.value), "" | "0");
        match attempt_once(w, part, &entry, &old, made).await {
            Ok(answer) => return Ok(answer),
            Err(Unstored::Raced) if unconditional => w.warnings.truncate(warned),
            Err(Unstored::Raced) if resource.get(&path).is_none() => return Err(ctx.not_found()),
            Err(Unstored::Raced) => return Err(ctx.modified(&ctx.info.name)),
            Err(Unstored::Unknown(status) | Unstored::Status(status)) => return Err(status),
        }
    }
}

impl From<Status> for Unstored {
    fn from(status: Status) -> Self {
        Unstored::Status(status)
    }
}

async fn attempt_once(
    w: &mut Writing<'_>,
    part: Part,
    entry: &Arc<Entry>,
    old: &Value,
    made: Decoded,
) -> Result<Answer, Unstored> {
    let ctx = w.ctx;
    let kind = &ctx.served.kind;
    let name = entry.name();
    let mut new = made.value;
    create::enter_namespace(&mut new, kind.namespaced, entry.namespace())?;
    preconditions(w, name, &new, old)?;
    restore_metadata(&mut new, old);
    if let Part::Portion(portion) = part {
        // Before the tracking, so that nobody comes to own what is not changed.
        keep_all_but_portion(kind, portion, &mut new, old);
    }
    if part != Part::Unchecked && !made.is_applied {
        w.track(Some(old), &mut new, part);
    }
    // What a try that lost its race held is given back.
    w.charges = Reservations::default();
    let admitted = part != Part::Unchecked && ctx.info.subresource != "scale";
    if ctx.info.subresource == "scale" {
        subresource::admit_scale(w, &mut new, old, name).await?;
    }
    if admitted {
        w.admit(Phase::Mutate, Operation::Update, Some(&mut new), Some(old), name).await?;
    }
    let reservations = w.allocate(Operation::Update, &mut new, Some(old)).await?;
    prepare(kind, part, &mut new, old);
    let mut errors = made.invalid;
    w.warnings.extend(validate(kind, part, &new, old, &mut errors));
    names::keep_ambiguous(&mut errors, old);
    ctx.invalid(name, &errors)?;
    if part == Part::Main {
        w.warnings.extend((kind.strategy.warnings)(&new, Some(old)));
    }
    if admitted {
        w.admit(Phase::Validate, Operation::Update, Some(&mut new), Some(old), name).await?;
    }
    fieldset::keep_times(&mut new, old);
    if delete::is_finished(kind, &new, old) {
        if !w.options.dry_run {
            let revision = ctx.remove(entry, true).await?;
            meta::set_resource_version(&mut new, &revision.to_string());
        }
        reservations.stored();
        return Ok(Answer::Value { code: StatusCode::OK, value: new });
    }
    // An update that changes nothing writes nothing, unless the record is in another form.
    if new == *old && entry.stored.is_none() && !entry.is_foreign {
        return Ok(Answer::Stored {
            code: StatusCode::OK,
            body: entry.body.clone(),
            revision: entry.revision,
        });
    }
    if w.options.dry_run {
        return Ok(Answer::Value { code: StatusCode::OK, value: new });
    }
    match ctx.store(entry.key(), Expect::Modified(Revision(entry.revision)), &mut new).await {
        Ok((body, revision)) => {
            reservations.stored();
            w.charged();
            Ok(Answer::Stored { code: StatusCode::OK, body, revision })
        }
        Err(unstored) => {
            if matches!(unstored, Unstored::Unknown(_)) {
                reservations.unknown();
                std::mem::take(&mut w.charges).unknown();
            }
            Err(unstored)
        }
    }
}

/// The uid and resourceVersion that the new object names must be those of the old.
fn preconditions(w: &Writing<'_>, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let (uid, own) = (meta::uid(new), meta::uid(old));
    if !uid.is_empty() && uid != own {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
        return Err(w.ctx.conflict(name, why));
    }
    match meta::resource_version(new) {
        "" | "0" => Ok(()),
        version if version.parse::<u64>().is_err() => {
            let path = skeg_api::field::Path::new("metadata").child("resourceVersion");
            let why = format!("strconv.ParseUint: parsing {version:?}: invalid syntax");
            w.ctx.invalid(name, &[FieldError::invalid(path, version, why)])
        }
        version if version != meta::resource_version(old) => Err(w.ctx.modified(name)),
        _ => Ok(()),
    }
}

/// What of the metadata a client cannot change, or need not repeat.
fn restore_metadata(new: &mut Value, old: &Value) {
    let Some(had) = meta::metadata(old) else { return };
    meta::remove(new, "selfLink");
    for field in ["uid", "creationTimestamp"] {
        let missing = meta::metadata(new).is_none_or(|m| m.get(field).is_none_or(|v| v.is_null() || v == ""));
        if let (true, Some(value)) = (missing, had.get(field)) {
            meta::set(new, field, value.clone());
        }
    }
    for field in ["resourceVersion", "generation"] {
        meta::keep(new, old, field);
    }
    // A deletion cannot be taken back.
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        if let Some(value) = had.get(field) {
            meta::set(new, field, value.clone());
        }
    }
}

fn prepare(kind: &Kind, part: Part, new: &mut Value, old: &Value) {
    match part {
        Part::Unchecked => {}
        Part::Main => {
            if kind.has_status() {
                copy_field(new, old, "status");
            }
            (kind.strategy.prepare_update)(new, old);
            count_generation(kind, new, old);
        }
        Part::Status => {
            keep_all_but_status(kind, new, old);
            (kind.strategy.prepare_status)(new, old);
        }
        Part::Approval => {
            keep_all_but_status(kind, new, old);
            (kind.strategy.prepare_approval)(new, old);
        }
        Part::Portion(portion) => {
            keep_all_but_portion(kind, portion, new, old);
            count_generation(kind, new, old);
        }
        Part::Finalize => {
            let finalizers = new.get_mut("spec").and_then(|spec| spec.get_mut("finalizers")).map(Value::take);
            copy_field(new, old, "spec");
            copy_field(new, old, "status");
            let Some(fields) = new.as_object_mut() else { return };
            let spec = fields.entry("spec").or_insert_with(|| Value::Object(Map::new()));
            match (finalizers, spec.as_object_mut()) {
                (Some(finalizers), Some(spec)) if finalizers != Value::Array(Vec::new()) => {
                    spec.insert("finalizers".into(), finalizers);
                }
                (_, Some(spec)) => {
                    spec.remove("finalizers");
                }
                _ => {}
            }
        }
    }
}

fn count_generation(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.has_generation {
        let generation = meta::generation(old) + i64::from(spec_changed(kind, new, old));
        meta::set_generation(new, generation);
    }
}

/// A request to a part's subresource changes that part, and who owns what of it.
fn keep_all_but_portion(kind: &Kind, portion: &str, new: &mut Value, old: &Value) {
    let Some(portion) = kind.strategy.portion(portion) else { return };
    let entries = meta::remove(new, "managedFields");
    *new = (portion.take)(new, old);
    let Some(fields) = new.as_object_mut() else { return };
    if let Some(metadata) = old.get("metadata") {
        fields.insert("metadata".into(), metadata.clone());
    }
    meta::remove(new, "managedFields");
    if let Some(entries) = entries {
        meta::set(new, "managedFields", entries);
    }
}

/// Anything but most of the metadata and a status that is written apart.
fn spec_changed(kind: &Kind, new: &Value, old: &Value) -> bool {
    let is_apart = kind.custom.is_none() || kind.has_status();
    let rest = |object| {
        let fields = Value::as_object(object).into_iter().flatten();
        fields.filter(|(key, _)| *key != "metadata" && (*key != "status" || is_apart))
    };
    let differs = |field: &&str| entries(new, field) != entries(old, field);
    !rest(new).eq(rest(old)) || kind.strategy.generation_counts.iter().any(differs)
}

/// A map of the metadata; an empty one is the same as none.
fn entries<'a>(object: &'a Value, field: &str) -> Option<&'a Map<String, Value>> {
    meta::metadata(object)?.get(field)?.as_object().filter(|map| !map.is_empty())
}

fn copy_field(new: &mut Value, old: &Value, field: &str) {
    let Some(fields) = new.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.remove(field),
    };
}

/// A request to `status` may change that, and for most kinds most of the metadata.
fn keep_all_but_status(kind: &Kind, new: &mut Value, old: &Value) {
    let (status, metadata) = (new.get("status").cloned(), new.get("metadata").cloned());
    *new = old.clone();
    let Some(fields) = new.as_object_mut() else { return };
    match status {
        Some(status) => fields.insert("status".into(), status),
        None => fields.remove("status"),
    };
    if let Some(mut metadata) = metadata {
        if kind.strategy.status_resets.contains(&"metadata") {
            let entries = metadata.get_mut("managedFields").map(Value::take);
            meta::remove(new, "managedFields");
            if let Some(entries) = entries {
                meta::set(new, "managedFields", entries);
            }
        } else {
            fields.insert("metadata".into(), metadata);
        }
    }
}

/// Adds what is wrong; returns what is let pass and told.
fn validate(kind: &Kind, part: Part, new: &Value, old: &Value, errors: &mut Vec<FieldError>) -> Vec<String> {
    errors.extend(object_meta::validate_object_meta_update(new, old));
    match part {
        Part::Main => {
            errors.extend(object_meta::validate_object_meta(new, kind.namespaced, kind.name_rule));
            errors.extend((kind.strategy.validate)(new));
            errors.extend((kind.strategy.validate_update)(new, old));
            errors.extend(crate::admission::expressions::check::errors(kind, new, Some(old)));
            return kind.check(new, Some(old), errors);
        }
        Part::Status => {
            errors.extend((kind.strategy.validate_status)(new, old));
            return kind.check(new, Some(old), errors);
        }
        Part::Approval => errors.extend((kind.strategy.validate_approval)(new, old)),
        Part::Portion(portion) => {
            if let Some(portion) = kind.strategy.portion(portion) {
                errors.extend((portion.validate)(new, old));
            }
        }
        Part::Finalize => errors.extend((kind.strategy.validate)(new)),
        Part::Unchecked => {}
    }
    Vec::new()
}
