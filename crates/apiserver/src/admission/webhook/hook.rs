//! One webhook of a configuration, compiled: which writes it is asked about.
//! Upstream counterpart: `plugin/webhook/generic` of `k8s.io/apiserver/pkg/admission`.

use super::client::Client;
use crate::admission::expressions::{Compiler, Conditions};
use crate::admission::matching::Matching;
use crate::proxy::Dialer;
use serde_json::Value;
use skeg_api::meta;
use std::sync::Arc;

pub struct Hook {
    /// The configuration and the name in it.
    pub uid: String,
    pub name: String,
    /// A failure to call it is let pass.
    pub ignores_failure: bool,
    pub seconds: u64,
    pub is_safe_in_dry_runs: bool,
    pub reinvokes: bool,
    /// Of the reviews it understands.
    pub version: &'static str,
    pub client: Arc<Result<Client, String>>,
    client_config: Value,
    /// The writes that it is asked about,
    pub matching: Matching,
    /// and what is more to be so of them.
    pub conditions: Conditions,
}

impl Hook {
    /// The webhooks of a configuration; those that reach the same server keep its connections.
    pub fn of(
        configuration: &Value,
        before: &[Arc<Hook>],
        dialer: Option<&Arc<dyn Dialer>>,
    ) -> Vec<Arc<Hook>> {
        let hooks = configuration["webhooks"].as_array().into_iter().flatten();
        hooks.map(|hook| Arc::new(Hook::new(meta::name(configuration), hook, before, dialer))).collect()
    }

    fn new(
        configuration: &str,
        hook: &Value,
        before: &[Arc<Hook>],
        dialer: Option<&Arc<dyn Dialer>>,
    ) -> Self {
        let text = |field: &str| hook[field].as_str().unwrap_or_default();
        let (name, client_config) = (text("name").to_owned(), hook["clientConfig"].clone());
        let uid = format!("{configuration}/{name}");
        let known = before.iter().find(|known| known.uid == uid && known.client_config == client_config);
        let client = match known {
            Some(known) => known.client.clone(),
            None => Arc::new(Client::new(&client_config, dialer.cloned())),
        };
        let mut versions = strings(&hook["admissionReviewVersions"]);
        let version = versions.find(|version| matches!(version.as_str(), "v1" | "v1beta1"));
        Hook {
            uid,
            name,
            ignores_failure: text("failurePolicy") == "Ignore",
            seconds: hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30),
            is_safe_in_dry_runs: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            reinvokes: text("reinvocationPolicy") == "IfNeeded",
            version: if version.as_deref() == Some("v1beta1") { "v1beta1" } else { "v1" },
            client,
            client_config,
            matching: Matching::of_webhook(hook),
            conditions: Conditions::new(&hook["matchConditions"], &Compiler::default()),
        }
    }
}

fn strings(list: &Value) -> impl Iterator<Item = String> + use<'_> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}
