//! Aggregated cluster roles: a role with an aggregationRule has the rules of all roles that its
//! selectors match. Upstream counterpart: `pkg/controller/clusterroleaggregation`.

use crate::identity::Identity;
use crate::local::full;
use crate::resources;
use crate::server::ApiServer;
use http::{Method, Request, header};
use serde_json::Value;
use skeg_api::meta;
use skeg_api::selector::LabelSelector;
use skeg_base::Backoff;
use std::sync::Arc;
use std::time::Duration;

/// The rules that aggregation gives a role, if it is aggregated.
pub fn rules_of(role: &Value, all: &[Value]) -> Option<Vec<Value>> {
    let selectors = role.get("aggregationRule")?["clusterRoleSelectors"].as_array()?;
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        let Ok(selector) = LabelSelector::from_object(Some(selector)) else { continue };
        let mut matching: Vec<&Value> = all
            .iter()
            .filter(|other| meta::name(other) != meta::name(role))
            .filter(|other| selector.matches(&labels(other)))
            .collect();
        matching.sort_by_key(|role| meta::name(role));
        for rule in matching.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

fn labels(role: &Value) -> std::collections::BTreeMap<String, String> {
    let pairs = meta::labels(role).into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Gives every aggregated role its rules, until nothing changes: roles that are aggregated may be
/// aggregated again.
pub fn settle(roles: &mut [Value]) {
    // Each round settles one more level; a cycle cannot grow beyond the number of roles.
    for _ in 0..roles.len() {
        let before = roles.to_vec();
        for role in roles.iter_mut() {
            if let Some(rules) = rules_of(role, &before) {
                role["rules"] = rules.into();
            }
        }
        if *roles == *before {
            return;
        }
    }
}

/// Keeps aggregated roles up to date until the server stops.
pub async fn run(server: Arc<ApiServer>) {
    let reader = server.seams().reader.clone();
    let mut changes = reader.changes(&resources::CLUSTER_ROLES);
    let service = server.client_service(Identity::component("clusterrole-aggregation-controller"));
    let stop = server.tasks().1.clone();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
    loop {
        changes.borrow_and_update();
        let all: Vec<Value> = reader
            .list(&resources::CLUSTER_ROLES, "")
            .iter()
            .filter_map(|b| serde_json::from_slice(b).ok())
            .collect();
        let mut failed = false;
        for role in &all {
            let Some(rules) = rules_of(role, &all) else { continue };
            let held = role["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
            if held == rules {
                continue;
            }
            let mut role = role.clone();
            role["rules"] = rules.into();
            let request = Request::builder()
                .method(Method::PUT)
                .uri(format!(
                    "/apis/rbac.authorization.k8s.io/v1/clusterroles/{}",
                    meta::name(&role).replace('%', "%25")
                ))
                .header(header::CONTENT_TYPE, "application/json")
                .body(full(role.to_string()));
            let Ok(request) = request else { continue };
            match tower::Service::call(&mut service.clone(), request).await {
                Ok(response) if response.status().is_success() => {}
                // The role changed or went: that is a change, which is looked at next.
                Ok(response) if matches!(response.status().as_u16(), 404 | 409) => {}
                Ok(response) => {
                    tracing::warn!(
                        role = meta::name(&role),
                        code = response.status().as_u16(),
                        "aggregated role not written"
                    );
                    failed = true;
                }
                Err(error) => {
                    tracing::warn!(role = meta::name(&role), %error, "aggregated role not written");
                    failed = true;
                }
            }
        }
        let retry = if failed { Some(backoff.next()) } else { None };
        if retry.is_none() {
            backoff.reset();
        }
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn roles_settle_over_levels_and_cycles() {
        let role = |name: &str, label: &str, from: Option<&str>, verb: Option<&str>| {
            let mut role = json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": []});
            if let Some(from) = from {
                role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"to": from}}]});
            }
            if let Some(verb) = verb {
                role["rules"] = json!([{"verbs": [verb]}]);
            }
            role
        };
        let mut roles = [
            role("top", "", Some("top"), None),
            role("middle", "top", Some("middle"), None),
            role("leaf", "middle", None, Some("get")),
            role("x", "y", Some("x"), None),
            role("y", "x", Some("y"), None),
        ];
        settle(&mut roles);
        assert_eq!(roles[0]["rules"], json!([{"verbs": ["get"]}]));
        assert_eq!(roles[1]["rules"], json!([{"verbs": ["get"]}]));
        assert_eq!(roles[3]["rules"], json!([]));
    }
}
