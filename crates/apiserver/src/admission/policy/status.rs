//! Writes what is wrong with the types of a ValidatingAdmissionPolicy's expressions into its status, once
//! for each generation.
//! Upstream counterpart: `pkg/controller/validatingadmissionpolicystatus`.

use super::type_check::warnings;
use crate::local::{LocalService, full};
use crate::resources;
use crate::server::ApiServer;
use http::{Method, Request, header};
use serde_json::{Value, json};
use skeg_api::meta;
use skeg_base::Backoff;
use std::sync::Arc;
use std::time::Duration;

const PATH: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const MANAGER: &str = "validatingadmissionpolicy-status";

/// Follows the policies until the server stops.
pub async fn run(server: Arc<ApiServer>) {
    let reader = server.seams().reader.clone();
    let mut changes = reader.changes(&resources::VALIDATING_POLICIES);
    let (service, stop) = (server.loopback(), server.tasks().1.clone());
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
    loop {
        changes.borrow_and_update();
        let mut failed = false;
        for bytes in reader.list(&resources::VALIDATING_POLICIES, "") {
            let Ok(policy) = serde_json::from_slice::<Value>(&bytes) else { continue };
            let observed = policy["status"]["observedGeneration"].as_i64().unwrap_or_default();
            if observed >= meta::generation(&policy) {
                continue;
            }
            if let Err(why) = write(&service, &policy, &server).await {
                tracing::warn!(policy = meta::name(&policy), why, "status not written, will be retried");
                failed = true;
            }
        }
        let pause = if failed { backoff.next() } else { Duration::ZERO };
        if !failed {
            backoff.reset();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause), if failed => {}
        }
    }
}

async fn write(service: &LocalService, policy: &Value, server: &Arc<ApiServer>) -> Result<(), String> {
    let found = warnings(policy, &server.kinds().snapshot());
    let checked = if found.is_empty() { json!({}) } else { json!({"expressionWarnings": found}) };
    let name = meta::name(policy);
    let applied = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "status": {"observedGeneration": meta::generation(policy), "typeChecking": checked},
    });
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(format!("{PATH}/{name}/status?fieldManager={MANAGER}&force=true"))
        .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
        .body(full(applied.to_string()))
        .map_err(|error| error.to_string())?;
    let response = service.send(request).await;
    match response.status() {
        // It may be gone by now.
        code if code.is_success() || code == http::StatusCode::NOT_FOUND => Ok(()),
        code => {
            let body = crate::registry::read_answer(response.into_body()).await?;
            Err(format!("{code}: {}", String::from_utf8_lossy(&body)))
        }
    }
}
