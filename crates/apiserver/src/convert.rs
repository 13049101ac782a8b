//! Translation between the versions of a kind that share one storage. One row of the group is
//! stored; requests for another are converted on the way in and out. The built-in cases are Events
//! (`events.k8s.io/v1` is stored as core `v1`) and autoscalers (`autoscaling/v1` is stored as `v2`).
//! Upstream counterpart: the scheme's conversion functions, `pkg/apis/events/v1/conversion.go`.

mod review;
mod webhook;

pub use webhook::Conversions;

use crate::cache::Entry;
use crate::server::ApiServer;
use bytes::Bytes;
use serde_json::{Map, Value};
use skeg_api::{Kind, Status, autoscaling, meta};
use std::sync::Arc;

/// `(events.k8s.io/v1, core v1)` names of the fields that differ.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The stored form is the requested form.
    Same,
    /// Only `apiVersion` differs.
    Rename,
    Event,
    Autoscaler,
}

fn rule(kind: &Kind, stored: &Kind) -> Rule {
    if kind.gvk == stored.gvk {
        Rule::Same
    } else if &*kind.gvk.group == "events.k8s.io" && &*kind.gvk.kind == "Event" {
        Rule::Event
    } else if &*kind.gvk.group == "autoscaling" && &*kind.gvk.kind == "HorizontalPodAutoscaler" {
        Rule::Autoscaler
    } else {
        Rule::Rename
    }
}

/// Whether entries can be served as they are stored. Of a kind with a webhook some may be of the
/// version that was stored before.
pub fn is_native(kind: &Kind, stored: &Kind) -> bool {
    kind.gvk == stored.gvk && kind.conversion().is_none()
}

/// As [`to_storage`], also of kinds whose definition has a webhook for it.
///
/// # Errors
/// The webhook's, or what is wrong with its answer.
pub async fn write(
    server: &Arc<ApiServer>,
    kind: &Kind,
    stored: &Kind,
    object: &mut Value,
) -> Result<(), Status> {
    match kind.conversion() {
        Some(conversion) => {
            webhook::convert(server, conversion, stored, std::slice::from_mut(object)).await?;
            stored.default(object);
        }
        None => to_storage(kind, stored, object),
    }
    Ok(())
}

/// As [`from_storage`], also of kinds whose definition has a webhook for it: then one review is for
/// all objects that are not of the version that is asked for.
///
/// # Errors
/// The webhook's, or what is wrong with its answer.
pub async fn read(
    server: &Arc<ApiServer>,
    kind: &Kind,
    stored: &Kind,
    objects: &mut [Value],
) -> Result<(), Status> {
    match kind.conversion() {
        Some(conversion) => {
            let own = stored.gvk.api_version();
            for object in objects.iter_mut().filter(|object| meta::api_version(object) != own) {
                fit_own(server, kind, object);
            }
            webhook::convert(server, conversion, kind, objects).await?;
        }
        None => objects.iter_mut().for_each(|object| from_storage(kind, stored, object)),
    }
    Ok(())
}

/// From the requested version to the stored one, with its defaults.
pub fn to_storage(kind: &Kind, stored: &Kind, object: &mut Value) {
    if rule(kind, stored) == Rule::Autoscaler {
        *object = autoscaling::to_v2(object.take());
        (stored.strategy.default)(object);
        return;
    }
    convert(rule(kind, stored), stored, object, |(requested, core)| (requested, core));
    if rule(kind, stored) == Rule::Rename {
        fit(stored, object);
    }
}

/// Brings an object that was stored in a version of another day into the form of that version, if there
/// still is one.
fn fit_own(server: &ApiServer, kind: &Kind, object: &mut Value) {
    let version = meta::api_version(object).rsplit('/').next().unwrap_or_default().to_owned();
    let snapshot = server.kinds().snapshot();
    let is_own = |row: &&Arc<Kind>| row.storage == kind.storage && *row.gvk.version == *version;
    if let Some(row) = snapshot.all().find(is_own) {
        fit(row, object);
    }
}

/// Brings a custom resource into the form that its row says: named by that version, without fields
/// that the schema does not have, with defaults.
pub fn fit(kind: &Kind, object: &mut Value) {
    if kind.custom.is_none() {
        return;
    }
    convert(Rule::Rename, kind, object, |pair| pair);
    // Of custom resources nothing is refused here: that is validation's.
    let _ = skeg_api::decode::check(&kind.schema, object);
    kind.default(object);
}

/// From the stored version to the requested one.
pub fn from_storage(kind: &Kind, stored: &Kind, object: &mut Value) {
    if rule(kind, stored) == Rule::Autoscaler {
        *object = autoscaling::to_v1(object.take());
        return;
    }
    convert(rule(kind, stored), kind, object, |(requested, core)| (core, requested));
    if rule(kind, stored) == Rule::Rename && kind.custom.is_some() {
        let _ = skeg_api::decode::check(&kind.schema, object);
    }
}

/// The field-selector key of the stored version that a key of the requested one means.
pub fn field_key(kind: &Kind, stored: &Kind, key: &str) -> String {
    if rule(kind, stored) != Rule::Event {
        return key.to_owned();
    }
    let (head, tail) = key.split_once('.').map_or((key, None), |(head, tail)| (head, Some(tail)));
    let head = EVENT_FIELDS.iter().find(|(requested, _)| *requested == head).map_or(head, |(_, core)| core);
    tail.map_or_else(|| head.to_owned(), |tail| format!("{head}.{tail}"))
}

/// An entry as clients of `kind` see it.
pub fn output(kind: &Kind, stored: &Kind, entry: &Entry) -> Bytes {
    if is_native(kind, stored) {
        return entry.json();
    }
    let mut object = entry.value();
    from_storage(kind, stored, &mut object);
    serde_json::to_vec(&object).unwrap_or_default().into()
}

fn convert(
    rule: Rule,
    to: &Kind,
    object: &mut Value,
    pair: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Some(fields) = object.as_object_mut() else { return };
    match rule {
        Rule::Same => return,
        Rule::Rename | Rule::Autoscaler => {}
        Rule::Event => EVENT_FIELDS.into_iter().map(pair).for_each(|(from, to)| rename(fields, from, to)),
    }
    fields.insert("apiVersion".into(), to.gvk.api_version().into());
    fields.insert("kind".into(), (*to.gvk.kind).into());
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}
