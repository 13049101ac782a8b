//! What those who look at a write see: its objects in the version that they asked for; and what they
//! make of them, taken over.

use super::{Admission, OTHER_NAMESPACE};
use crate::convert;
use crate::server::ApiServer;
use serde_json::Value;
use skeg_api::{Kind, Status, decode, meta};
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

/// The objects of a write in one version.
pub struct Objects<'o> {
    pub object: Option<Cow<'o, Value>>,
    pub old: Option<Cow<'o, Value>>,
}

/// The objects of a write as they are seen: in the version that matched.
///
/// # Errors
/// If they cannot be converted.
pub async fn objects<'o>(
    server: &Arc<ApiServer>,
    a: &'o Admission<'_>,
    row: &Kind,
) -> Result<Objects<'o>, Status> {
    let object = match a.object.as_deref() {
        Some(object) => Some(shown(server, a, row, object).await?),
        None => None,
    };
    let old = match a.old {
        Some(old) => Some(shown(server, a, row, old).await?),
        None => None,
    };
    Ok(Objects { object, old })
}

/// An object in the version that matched.
///
/// # Errors
/// If it cannot be converted.
pub async fn shown<'o>(
    server: &Arc<ApiServer>,
    a: &Admission<'_>,
    row: &Kind,
    object: &'o Value,
) -> Result<Cow<'o, Value>, Status> {
    if row.gvk == a.kind.gvk || is_of_subresource(a) {
        return Ok(Cow::Borrowed(object));
    }
    let mut translated = object.clone();
    translate(server, a.kind, row, &mut translated).await?;
    Ok(Cow::Owned(translated))
}

/// Takes over what admission made of the object, in the version of `row`. Returns whether it changed.
///
/// # Errors
/// If it is no object of its kind any more.
pub async fn take_over(
    server: &Arc<ApiServer>,
    a: &mut Admission<'_>,
    row: &Kind,
    mut made: Value,
) -> Result<bool, Status> {
    // Subresources carry kinds of their own, which are small and checked where they are used.
    let is_whole = !is_of_subresource(a);
    let Some(object) = a.object.as_deref_mut() else { return Ok(false) };
    if is_whole {
        let (kind, version) = (meta::kind(&made), meta::api_version(&made));
        if kind != &*row.gvk.kind || version != row.gvk.api_version() {
            let wanted = format!("{}, Kind={}", row.gvk.api_version(), row.gvk.kind);
            return Err(Status::internal(format!(
                "admission changed the object to {version}, Kind={kind}, which is no {wanted}"
            )));
        }
        let namespace = meta::namespace(&made);
        if !namespace.is_empty() && namespace != meta::namespace(object) {
            return Err(Status::bad_request(OTHER_NAMESPACE));
        }
        decode::check(&row.schema, &mut made).map_err(Status::internal)?;
        if row.gvk != a.kind.gvk {
            translate(server, row, a.kind, &mut made).await?;
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

/// Between two versions of one kind: by its webhook, or by way of the stored one.
async fn translate(
    server: &Arc<ApiServer>,
    from: &Kind,
    to: &Kind,
    object: &mut Value,
) -> Result<(), Status> {
    let Some(served) = server.served(&from.gvk.group, &from.gvk.version, &from.plural) else { return Ok(()) };
    if from.conversion().is_none() {
        convert::to_storage(from, &served.stored, object);
    }
    convert::read(server, to, &served.stored, std::slice::from_mut(object)).await
}
