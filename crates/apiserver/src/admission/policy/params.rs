//! The parameters of a binding: objects of any kind that the policy's expressions see.

use crate::server::ApiServer;
use serde_json::Value;
use skeg_api::selector::{LabelSelector, SelectorError};
use skeg_api::{Gvk, Kind};
use std::sync::Arc;

/// A `paramRef`.
pub struct Reference {
    name: String,
    namespace: String,
    selector: Option<Result<LabelSelector, SelectorError>>,
    /// Without parameters the write is refused.
    denies_without: bool,
}

impl Reference {
    pub fn new(reference: &Value) -> Self {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let selector = reference.get("selector").filter(|selector| !selector.is_null());
        Reference {
            name: text("name").to_owned(),
            namespace: text("namespace").to_owned(),
            selector: selector.map(|selector| LabelSelector::from_object(Some(selector))),
            denies_without: text("parameterNotFoundAction") == "Deny",
        }
    }
}

/// The kind of parameters.
///
/// # Errors
/// If there is none of that name.
pub fn kind(gvk: &Gvk, server: &Arc<ApiServer>) -> Result<Arc<Kind>, String> {
    let snapshot = server.seams().kinds.snapshot();
    let kind = snapshot.by_gvk(gvk).filter(|kind| kind.storage.is_some()).cloned();
    kind.ok_or_else(|| format!("failed to find resource referenced by paramKind: '{}'", gvk.display()))
}

/// The parameters for a write in `namespace`, one for each evaluation; one of nothing where the policy
/// has no parameters or the binding names none.
///
/// # Errors
/// If there are none and must be, or the reference does not fit the kind.
pub fn collect(
    kind: Option<&Kind>,
    reference: Option<&Reference>,
    namespace: &str,
    server: &Arc<ApiServer>,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
    let namespace = match (kind.namespaced, reference.namespace.as_str()) {
        (true, "") if namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "") => namespace,
        (true, own) => own,
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
    };
    let (reader, gvr) = (&server.seams().reader, kind.gvr());
    let found: Vec<Option<Arc<Value>>> = match &reference.selector {
        None => reader.get_value(&gvr, namespace, &reference.name).map(Some).into_iter().collect(),
        Some(selector) => {
            let selector = selector.as_ref().map_err(ToString::to_string)?;
            let all = reader.list(&gvr, namespace);
            let parsed = all.iter().filter_map(|bytes| serde_json::from_slice::<Value>(bytes).ok());
            parsed.filter(|object| selector.matches(object)).map(|object| Some(Arc::new(object))).collect()
        }
    };
    if found.is_empty() && reference.denies_without {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}
