//! Conditions that the API server itself keeps true, by requests to itself.

use crate::local::send;
use crate::server::ApiServer;
use http::Method;
use serde_json::Value;
use skeg_api::meta;
use std::sync::Arc;

/// Writes a condition into the status of an object of a collection, if it says something else.
pub(crate) async fn set(
    server: &Arc<ApiServer>,
    collection: &str,
    mut object: Value,
    mut condition: Value,
) -> Result<(), String> {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let before = conditions.iter().find(|before| before["type"] == condition["type"]);
    let same = |field: &str| before.is_some_and(|before| before[field] == condition[field]);
    if ["status", "reason", "message"].into_iter().all(same) {
        return Ok(());
    }
    let since = match before.filter(|_| same("status")) {
        Some(before) => before["lastTransitionTime"].clone(),
        None => meta::format_time(server.clock().now_seconds()).into(),
    };
    condition["lastTransitionTime"] = since;
    let mut all: Vec<Value> = conditions.iter().filter(|c| c["type"] != condition["type"]).cloned().collect();
    all.push(condition);
    object["status"]["conditions"] = all.into();
    let path = format!("{collection}/{}/status", meta::name(&object));
    match send(&server.loopback(), Method::PUT, &path, object.to_string()).await {
        // Whoever was first, or deleted it, wakes the caller.
        Err(why) if !(why.starts_with("409") || why.starts_with("404")) => {
            tracing::warn!(name = meta::name(&object), why, "condition not written, will be retried");
            Err(why)
        }
        _ => Ok(()),
    }
}
