//! What those who look at a write see: its objects in the version that they asked for; and what they
//! make of them, taken over.

use super::Admission;
use crate::convert;
use crate::server::ApiServer;
use serde_json::Value;
use skeg_api::{Kind, decode, meta};
use std::borrow::Cow;
use std::sync::Arc;

/// What of the metadata only the server sets.
const KEPT: [&str; 8] = [
    "namespace",
    "uid",
    "creationTimestamp",
    "resourceVersion",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
];

/// Whether what is written is of a kind of the subresource's own, such as a Scale.
fn is_of_subresource(a: &Admission<'_>) -> bool {
    a.kind.subresource(a.subresource).is_some_and(|sub| sub.gvk.is_some())
}

/// An object as it is seen: in the version that matched.
pub fn shown<'o>(
    server: &Arc<ApiServer>,
    a: &Admission<'_>,
    row: &Kind,
    object: &'o Value,
) -> Cow<'o, Value> {
    if row.gvk == a.kind.gvk || is_of_subresource(a) {
        return Cow::Borrowed(object);
    }
    let mut translated = object.clone();
    translate(server, a.kind, row, &mut translated);
    Cow::Owned(translated)
}

/// Takes over what admission made of the object, in the version of `row`. Returns whether it changed.
///
/// # Errors
/// If it is no object of its kind any more.
pub fn take_over(
    server: &Arc<ApiServer>,
    a: &mut Admission<'_>,
    row: &Kind,
    mut made: Value,
) -> Result<bool, String> {
    // Subresources carry kinds of their own, which are small and checked where they are used.
    let is_whole = !is_of_subresource(a);
    let Some(object) = a.object.as_deref_mut() else { return Ok(false) };
    if is_whole {
        decode::check(&row.schema, &mut made).map_err(|error| error.to_string())?;
        if row.gvk != a.kind.gvk {
            translate(server, row, a.kind, &mut made);
        }
        for field in KEPT {
            meta::keep(&mut made, object, field);
        }
        a.kind.default(&mut made);
    }
    let changed = made != *object;
    if changed {
        *object = made;
    }
    Ok(changed)
}

/// Between two versions of one kind, by way of the stored one.
fn translate(server: &Arc<ApiServer>, from: &Kind, to: &Kind, object: &mut Value) {
    if let Some(served) = server.served(&from.gvk.group, &from.gvk.version, &from.plural) {
        convert::to_storage(from, &served.stored, object);
        convert::from_storage(to, &served.stored, object);
    }
}
