//! create, with generated names.

use super::object::{Decoded, Unstored};
use super::{Answer, Part, Writing};
use crate::admission::{Operation, Phase};
use http::StatusCode;
use skeg_api::{Reason, Status, Value, meta, names, object_meta};
use skeg_store::Expect;
use std::sync::Arc;

/// How many generated names are tried.
const NAME_TRIES_MAX: usize = 8;

pub async fn serve(w: &mut Writing<'_>, bytes: &[u8]) -> Result<Answer, Status> {
    let decoded = w.decode(bytes)?;
    if !w.ctx.info.name.is_empty() {
        return Err(Status::unserved());
    }
    create(w, decoded).await
}

/// Creates an object that was decoded and has its defaults.
pub async fn create(w: &mut Writing<'_>, decoded: Decoded) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let kind = &ctx.served.kind;
    let mut object = decoded.value;
    if kind.custom.as_ref().is_some_and(|custom| custom.is_terminating) {
        return Err(Status::method_not_allowed(
            "create not allowed while custom resource definition is terminating",
        ));
    }
    enter_namespace(&mut object, kind.namespaced, &ctx.info.namespace)?;
    if !matches!(meta::resource_version(&object), "" | "0") {
        return Err(Status::new(
            500,
            Reason::Empty,
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let generated = fill_system_fields(w, &mut object);
    if !decoded.is_applied {
        w.track(None, &mut object, Part::Main);
    }
    let name = meta::name(&object).to_owned();
    w.admit(Phase::Mutate, Operation::Create, Some(&mut object), None, &name).await?;
    enter_namespace(&mut object, kind.namespaced, &ctx.info.namespace)?;
    let mut reservations = Some(w.allocate(Operation::Create, &mut object, None).await?);
    if kind.has_status()
        && !kind.strategy.status_on_create
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    (kind.strategy.prepare_create)(&mut object);
    if kind.has_generation {
        meta::set_generation(&mut object, 1);
    }
    let mut errors = object_meta::validate_object_meta(&object, kind.namespaced, kind.name_rule);
    errors.extend(decoded.invalid);
    errors.extend((kind.strategy.validate)(&object));
    errors.extend((kind.strategy.validate_create)(&object));
    errors.extend(crate::admission::expressions::check::errors(kind, &object, None));
    w.warnings.extend(kind.check(&object, None, &mut errors));
    ctx.invalid(&name, &errors)?;
    w.warnings.extend((kind.strategy.warnings)(&object, None));
    w.admit(Phase::Validate, Operation::Create, Some(&mut object), None, &name).await?;
    let resource = super::read::resource(ctx)?;
    for attempt in 1.. {
        let name = meta::name(&object).to_owned();
        let path = ctx.served.path(meta::namespace(&object), &name);
        let raced = if w.options.dry_run {
            if resource.get(&path).is_none() {
                return Ok(Answer::Value { code: StatusCode::CREATED, value: object });
            }
            true
        } else {
            let key: Arc<str> = format!("{}{path}", resource.prefix).into();
            match ctx.store(&key, Expect::Absent, &mut object).await {
                Ok((body, revision)) => {
                    if let Some(reservations) = reservations.take() {
                        reservations.stored();
                    }
                    w.charged();
                    return Ok(Answer::Stored { code: StatusCode::CREATED, body, revision });
                }
                Err(Unstored::Unknown(status)) => {
                    if let Some(reservations) = reservations.take() {
                        reservations.unknown();
                    }
                    std::mem::take(&mut w.charges).unknown();
                    return Err(status);
                }
                Err(Unstored::Status(status)) => return Err(status),
                Err(Unstored::Raced) => true,
            }
        };
        debug_assert!(raced);
        if !generated || attempt == NAME_TRIES_MAX {
            return Err(exists(w, &path, &name, generated));
        }
        generate_name(w, &mut object);
    }
    unreachable!("the loop ends by returning")
}

fn exists(w: &Writing<'_>, path: &str, name: &str, generated: bool) -> Status {
    let kind = &w.ctx.served.kind;
    let mut status = Status::already_exists(&kind.gvk.group, &kind.plural, name);
    if generated {
        status.message += ", the server was not able to generate a unique name for the object";
    }
    let there = w.ctx.served.resource.as_ref().and_then(|resource| resource.get(path));
    if there.is_some_and(|entry| meta::is_deleting(&entry.value())) {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

/// The object's namespace is the request's.
pub(super) fn enter_namespace(object: &mut Value, namespaced: bool, namespace: &str) -> Result<(), Status> {
    if !namespaced {
        meta::remove(object, "namespace");
        return Ok(());
    }
    match meta::namespace(object) {
        "" => meta::set_namespace(object, namespace),
        own if own == namespace => {}
        _ => {
            return Err(Status::bad_request(crate::admission::OTHER_NAMESPACE));
        }
    }
    Ok(())
}

/// Sets what only the server may set. Returns whether the name was generated.
fn fill_system_fields(w: &Writing<'_>, object: &mut Value) -> bool {
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        meta::remove(object, field);
    }
    let seams = w.ctx.server.seams();
    meta::set_creation_timestamp(object, seams.clock.now_seconds());
    meta::set_uid(object, &seams.random.uuid());
    let generated = meta::name(object).is_empty() && !meta::generate_name(object).is_empty();
    if generated {
        generate_name(w, object);
    }
    generated
}

fn generate_name(w: &Writing<'_>, object: &mut Value) {
    let name = names::generated_name(meta::generate_name(object), &w.ctx.server.seams().random.suffix());
    meta::set_name(object, &name);
}
