//! Subresources on the generic path: status, finalize, scale, binding, eviction, parts of Pods. Those that reach
//! beyond the stored object (tokens, streams) are endpoints that plug in.

use super::object::Decoded;
use super::patch::Patch;
use super::update::modify;
use super::{Answer, Context, DeleteOptions, Part, Writing, delete, patch, read, update};
use crate::admission::{Operation, Phase};
use crate::local::Body;
use http::header::HeaderMap;
use http::{Response, StatusCode};
use serde_json::json;
use skeg_api::crd::Scale;
use skeg_api::jsonpath::JsonPath;
use skeg_api::selector::LabelSelector;
use skeg_api::{Kind, Status, Value, builtin, decode, fieldset, meta};
use std::sync::OnceLock;

pub async fn get(ctx: Context<'_>, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let output = ctx.output(headers)?;
    match ctx.info.subresource.as_str() {
        "scale" => {
            let entry = read::resource(ctx)?.get(&ctx.path()).ok_or_else(|| ctx.not_found())?;
            let value = scale_of(&ctx.served.kind, &ctx.decode(&entry).await?)?;
            ctx.respond(output, Answer::Value { code: StatusCode::OK, value }).await
        }
        "status" | "approval" => read::get(ctx, headers).await,
        subresource if ctx.served.kind.strategy.portion(subresource).is_some() => {
            read::get(ctx, headers).await
        }
        _ => Err(Status::unserved()),
    }
}

pub async fn write(w: &mut Writing<'_>, bytes: &[u8]) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let kind = &ctx.served.kind;
    match (&*kind.plural, ctx.info.subresource.as_str(), ctx.info.verb) {
        ("bindings", "", "create") => bind(w, bytes).await,
        ("pods", "binding", "create") => bind(w, bytes).await,
        ("pods", "eviction", "create") => evict(w, bytes).await,
        (_, "scale", "update" | "patch") => scale(w, bytes).await,
        (_, subresource, verb) => match (Writing::part_of(kind, subresource), verb) {
            (Some(part), "update") => update::serve(w, part, bytes).await,
            (Some(part), "patch") => patch::serve(w, part, bytes).await,
            _ => Err(Status::unserved()),
        },
    }
}

/// The row of a kind that only subresources carry, or of Binding.
pub(super) fn carried(name: &str) -> Option<&'static Kind> {
    static ROWS: OnceLock<Vec<Kind>> = OnceLock::new();
    let rows = ROWS.get_or_init(|| {
        let bindings = builtin::builtin().into_iter().filter(|kind| &*kind.gvk.kind == "Binding");
        builtin::subresource_kinds().into_iter().chain(bindings).collect()
    });
    rows.iter().find(|kind| &*kind.gvk.kind == name)
}

fn row(name: &str) -> Result<&'static Kind, Status> {
    carried(name).ok_or_else(|| Status::internal(format!("no row of kind {name}")))
}

/// Reads a body of another kind than the parent's, with its defaults.
fn decode_as(w: &mut Writing<'_>, kind: &Kind, bytes: &[u8]) -> Result<Value, Status> {
    let encoding = w.encoding()?;
    let read = decode::decode_object(bytes, encoding, &kind.gvk, &kind.schema, w.options.field_validation)?;
    w.warnings.extend(read.warnings);
    let mut value = read.value;
    (kind.strategy.default)(&mut value);
    Ok(value)
}

fn validate_as(kind: &Kind, object: &Value, name: &str) -> Result<(), Status> {
    let errors = (kind.strategy.validate)(object);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(&kind.gvk.group, &kind.gvk.kind, name, &errors))
    }
}

/// `autoscaling/v1` Scale of a workload.
fn scale_of(kind: &Kind, object: &Value) -> Result<Value, Status> {
    if let Some(scale) = kind.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        return custom_scale(scale, object);
    }
    let metadata = scale_metadata(object);
    let number = |pointer| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let selector = object.pointer("/spec/selector");
    let selector = match (meta::kind(object), selector.and_then(Value::as_object)) {
        // The one kind whose selector is a plain map.
        ("ReplicationController", Some(labels)) => Ok(LabelSelector::from_labels(
            labels.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())),
        )),
        _ => LabelSelector::from_object(selector),
    };
    let mut status = json!({"replicas": number("/status/replicas")});
    if let Ok(selector) = selector {
        status["selector"] = selector.to_string().into();
    }
    let mut spec = json!({});
    if number("/spec/replicas") != 0 {
        spec["replicas"] = number("/spec/replicas").into();
    }
    Ok(
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}),
    )
}

/// What of an object's metadata its Scale shows.
fn scale_metadata(object: &Value) -> serde_json::Map<String, Value> {
    let metadata = meta::metadata(object);
    let kept = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    kept.iter().filter_map(|field| Some(((*field).to_owned(), metadata?.get(*field)?.clone()))).collect()
}

/// The Scale of a custom resource, from where its definition says.
fn custom_scale(scale: &Scale, object: &Value) -> Result<Value, Status> {
    let number = |path: &JsonPath| path.first(object).and_then(Value::as_i64);
    let Some(replicas) = number(&scale.spec_replicas) else {
        let path = scale.spec_replicas.fields().unwrap_or_default().join(".");
        return Err(Status::internal(format!("the spec replicas field \".{path}\" does not exist")));
    };
    let mut status = json!({"replicas": number(&scale.status_replicas).unwrap_or(0)});
    let selector = scale.selector.as_ref().and_then(|path| path.first(object)).and_then(Value::as_str);
    if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
        status["selector"] = selector.into();
    }
    let mut spec = json!({});
    if replicas != 0 {
        spec["replicas"] = replicas.into();
    }
    Ok(
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": scale_metadata(object), "spec": spec, "status": status}),
    )
}

/// Where a kind has its replicas.
fn replicas_path(kind: &Kind) -> Vec<&str> {
    let custom = kind.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    custom
        .and_then(|scale| scale.spec_replicas.fields())
        .unwrap_or_else(|| fieldset::scale::REPLICAS.to_vec())
}

/// Puts the replicas where the kind has them.
fn set_replicas(kind: &Kind, object: &mut Value, replicas: i64) {
    let mut at = object;
    for name in replicas_path(kind) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[name];
    }
    *at = replicas.into();
}

/// Admission sees the Scale; what it makes of the replicas counts.
pub(super) async fn admit_scale(
    w: &mut Writing<'_>,
    new: &mut Value,
    old: &Value,
    name: &str,
) -> Result<(), Status> {
    let kind = &w.ctx.served.kind;
    let (mut scale, old) = (scale_of(kind, new)?, scale_of(kind, old)?);
    for phase in [Phase::Mutate, Phase::Validate] {
        w.admit(phase, Operation::Update, Some(&mut scale), Some(&old), name).await?;
    }
    validate_as(row("Scale")?, &scale, name)?;
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if new.pointer(&format!("/{}", replicas_path(kind).join("/"))).and_then(Value::as_i64) != Some(replicas) {
        set_replicas(kind, new, replicas);
    }
    Ok(())
}

async fn scale(w: &mut Writing<'_>, bytes: &[u8]) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let kind = row("Scale")?;
    enum Source<'a> {
        Whole(Value),
        Patch(Patch<'a>),
    }
    let source = if ctx.info.verb == "patch" {
        Source::Patch(Patch::read(w, bytes)?)
    } else {
        Source::Whole(decode_as(w, kind, bytes)?)
    };
    let answer = modify(w, Part::Main, &mut |warnings, old| {
        let scaled = match &source {
            Source::Whole(scale) => Decoded { value: scale.clone(), invalid: Vec::new(), is_applied: false },
            Source::Patch(patch) => {
                let mut scale = scale_of(&ctx.served.kind, old)?;
                if patch.is_apply() {
                    fieldset::scale::to_scale(old, &mut scale, &replicas_path(&ctx.served.kind));
                }
                patch.apply(kind, Part::Unchecked, warnings, Some(&scale))?
            }
        };
        let scale = &scaled.value;
        update::check_name(scale, &ctx.info.name, &ctx.info.namespace)?;
        validate_as(kind, scale, &ctx.info.name)?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        let mut new = old.clone();
        set_replicas(&ctx.served.kind, &mut new, replicas);
        for field in ["uid", "resourceVersion"] {
            match meta::metadata(scale).and_then(|m| m.get(field)) {
                Some(value) => meta::set(&mut new, field, value.clone()),
                None => {
                    meta::remove(&mut new, field);
                }
            }
        }
        if scaled.is_applied {
            fieldset::scale::to_object(scale, &mut new, &replicas_path(&ctx.served.kind));
        }
        Ok(Decoded { value: new, ..scaled })
    })
    .await?;
    let object = match answer {
        Answer::Value { value, .. } => value,
        Answer::Stored { body, revision, .. } => ctx.written(&body, revision).await?,
    };
    Ok(Answer::Value { code: StatusCode::OK, value: scale_of(&ctx.served.kind, &object)? })
}

/// Sets the node of a Pod that has none: `pods/<name>/binding`, or a Binding by itself.
async fn bind(w: &mut Writing<'_>, bytes: &[u8]) -> Result<Answer, Status> {
    let mut binding = decode_as(w, row("Binding")?, bytes)?;
    super::create::enter_namespace(&mut binding, true, &w.ctx.info.namespace)?;
    let name = meta::name(&binding).to_owned();
    if w.ctx.info.name.is_empty() {
        // A Binding by itself names its Pod.
        let mut info = w.ctx.info.clone();
        info.name = name;
        info.resource = "pods".into();
        info.subresource = "binding".into();
        let served = w.ctx.server.served("", "v1", "pods").ok_or_else(Status::unserved)?;
        let ctx = Context { info: &info, served: &served, ..w.ctx };
        let mut inner = Writing::new(ctx, w.headers, w.options.clone());
        let bound = bind_pod(&mut inner, binding).await;
        let warnings = std::mem::take(&mut inner.warnings);
        w.warnings.extend(warnings);
        return bound;
    }
    if name != w.ctx.info.name {
        let url = &w.ctx.info.name;
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Binding object: {url} vs {name}"
        )));
    }
    bind_pod(w, binding).await
}

async fn bind_pod(w: &mut Writing<'_>, mut binding: Value) -> Result<Answer, Status> {
    let ctx = w.ctx;
    let name = ctx.info.name.clone();
    w.admit(Phase::Mutate, Operation::Create, Some(&mut binding), None, &name).await?;
    let target = |field: &str| {
        binding.pointer(&format!("/target/{field}")).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let node = target("name");
    validate_as(row("Binding")?, &binding, &name)?;
    w.admit(Phase::Validate, Operation::Create, Some(&mut binding), None, &name).await?;
    let now = meta::format_time(ctx.server.clock().now_seconds());
    let conflict = |why: String| Status::conflict("", "pods/binding", &name, why);
    modify(w, Part::Unchecked, &mut |_, old| {
        if meta::is_deleting(old) {
            return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let bound = old.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        if !bound.is_empty() {
            return Err(conflict(format!("pod {name} is already assigned to node {bound:?}")));
        }
        if old
            .pointer("/spec/schedulingGates")
            .and_then(Value::as_array)
            .is_some_and(|gates| !gates.is_empty())
        {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        for (field, wanted, own) in [
            ("UID", meta::uid(&binding), meta::uid(old)),
            ("ResourceVersion", meta::resource_version(&binding), meta::resource_version(old)),
        ] {
            if !wanted.is_empty() && wanted != own {
                let why = format!(
                    "Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {own}"
                );
                return Err(conflict(why));
            }
        }
        let mut new = old.clone();
        meta::set_resource_version(&mut new, "");
        new["spec"]["nodeName"] = node.clone().into();
        for (key, value) in meta::annotations(&binding).into_iter().flatten() {
            meta::set_annotation(&mut new, key, value.as_str().unwrap_or_default());
        }
        for (key, value) in meta::labels(&binding).into_iter().flatten() {
            // Labels of a Pod win over those of its Binding.
            if meta::label(&new, key).is_none() {
                meta::set_label(&mut new, key, value.as_str().unwrap_or_default());
            }
        }
        set_scheduled(&mut new, &now);
        // The nomination has come true.
        if let Some(status) = new["status"].as_object_mut() {
            status.remove("nominatedNodeName");
        }
        Ok(Decoded { value: new, invalid: Vec::new(), is_applied: false })
    })
    .await?;
    let mut status = Status::success("", "", "", "");
    status.code = 201;
    status.details = None;
    Ok(Answer::Value { code: StatusCode::CREATED, value: status.to_value() })
}

fn set_scheduled(pod: &mut Value, now: &str) {
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let generation = meta::generation(pod);
    let status = &mut pod["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let mut condition = condition;
    if let Some(fields) = condition.as_object_mut() {
        // Null times are left out, as typed objects leave them out.
        fields.remove("lastProbeTime");
        if generation > 0 {
            fields.insert("observedGeneration".into(), generation.into());
        }
    }
    match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(there) => *there = condition,
        None => conditions.push(condition),
    }
}

/// Deletes a Pod as the eviction says. Nothing counts yet what disruption budgets allow, so none
/// can refuse it.
async fn evict(w: &mut Writing<'_>, bytes: &[u8]) -> Result<Answer, Status> {
    let eviction = decode_as(w, row("Eviction")?, bytes)?;
    let ctx = w.ctx;
    let name = meta::name(&eviction);
    if name != ctx.info.name {
        let url = &ctx.info.name;
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {url} vs {name}"
        )));
    }
    let options = match eviction.get("deleteOptions") {
        Some(options) => serde_json::from_value::<DeleteOptions>(options.clone())
            .map_err(|error| Status::bad_request(error.to_string()))?,
        None => DeleteOptions::default(),
    };
    w.options.dry_run |= options.is_dry_run();
    let mut sent = eviction.clone();
    w.admit(Phase::Mutate, Operation::Create, Some(&mut sent), None, &ctx.info.name).await?;
    w.admit(Phase::Validate, Operation::Create, Some(&mut sent), None, &ctx.info.name).await?;
    w.delete = options;
    delete::delete(w, &ctx.path()).await?;
    let mut status = Status::success("", "", "", "");
    status.code = 201;
    status.details = None;
    Ok(Answer::Value { code: StatusCode::CREATED, value: status.to_value() })
}
