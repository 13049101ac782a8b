//! Policies of expressions, by a server that has everything which plugs in.

mod choosing;
mod mutating;
mod validating;
mod writing;

use crate::harness::{Answer, CONFIG_MAPS, Server, config_map, start_assembled};
use serde_json::{Value, json};
use skeg_store::Memory;
use std::sync::Arc;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

async fn start() -> Server {
    start_assembled(Arc::new(Memory::new())).await
}

fn rule(operations: &[&str], group: &str, version: &str, resources: &[&str]) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": [version], "resources": resources})
}

fn maps() -> Value {
    rule(&["CREATE", "UPDATE", "DELETE"], "", "v1", &["configmaps"])
}

fn with(mut spec: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

/// What a policy and its binding have beyond the rules.
struct Spec {
    policy: Value,
    binding: Value,
}

impl Spec {
    fn new(policy: Value) -> Self {
        Spec { policy, binding: json!({}) }
    }
}

impl Server {
    /// Makes a policy and a binding of the same name, anew if they are there.
    async fn bind(&self, kind: &str, name: &str, rules: Value, spec: Spec) {
        let constraints = json!({"matchConstraints": {"resourceRules": rules}});
        let actions = if kind == "validating" { json!({"validationActions": ["Deny"]}) } else { json!({}) };
        for (resource, base, more) in [
            ("policies", with(constraints, &json!({})), &spec.policy),
            ("policybindings", with(actions, &json!({"policyName": name})), &spec.binding),
        ] {
            let path = format!("{GROUP}/{kind}admission{resource}");
            self.delete(&format!("{path}/{name}")).await;
            let made = self.post(&path, &json!({"metadata": {"name": name}, "spec": with(base, more)})).await;
            assert_eq!(made.warnings(), Vec::<String>::new());
            made.expect(201);
        }
    }

    async fn validate(&self, name: &str, policy: Value) {
        self.bind("validating", name, json!([maps()]), Spec::new(policy)).await;
    }

    async fn unbind(&self, kind: &str, name: &str) {
        self.delete(&format!("{GROUP}/{kind}admissionpolicybindings/{name}")).await.expect(200);
        self.delete(&format!("{GROUP}/{kind}admissionpolicies/{name}")).await.expect(200);
    }

    /// Tries to make a ConfigMap.
    async fn try_map(&self, name: &str, data: Value) -> Answer {
        self.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map(name, data)).await
    }
}

fn refusal(what: &str, policy: &str, why: &str) -> String {
    format!(
        "{what} is forbidden: ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: {why}"
    )
}

/// A cluster-scoped kind, served by the time this returns.
async fn define(server: &Server) {
    const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let schema = json!({"type": "object", "properties": {"data": {"type": "object", "properties": {"max": {"type": "integer"}}}}});
    let definition = json!({"metadata": {"name": "limits.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "limits", "kind": "Limit"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    server.post(CRDS, &definition).await.expect(201);
    let mut watch =
        server.watch(&format!("{CRDS}?watch=true&fieldSelector=metadata.name=limits.example.com")).await;
    let established = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
    };
    while !established(&watch.next().await.unwrap()["object"]) {}
}

fn mutation(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

fn mutations(list: &[Value]) -> Value {
    json!({"reinvocationPolicy": "Never", "mutations": list})
}

fn changes(group: &str, resources: &[&str]) -> Value {
    json!([rule(&["CREATE", "UPDATE"], group, "v1", resources)])
}
