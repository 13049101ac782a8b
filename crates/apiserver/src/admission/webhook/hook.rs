//! One webhook of a configuration, compiled: which writes it is asked about.
//! Upstream counterpart: `plugin/webhook/generic` of `k8s.io/apiserver/pkg/admission`.

use crate::admission::expressions::{Compiler, Conditions};
use crate::admission::matching::Matching;
use crate::proxy::Dialer;
use crate::webhook::Client;
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
    pub conditions: Arc<Conditions>,
    match_conditions: Value,
}

impl Hook {
    /// The webhooks of a configuration; those that reach the same server keep its connections, and those
    /// of the same conditions keep them compiled.
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
        let match_conditions = hook["matchConditions"].clone();
        let known = before.iter().find(|known| known.uid == uid);
        let client = match known.filter(|known| known.client_config == client_config) {
            Some(known) => known.client.clone(),
            None => Arc::new(Client::new(&client_config, dialer.cloned())),
        };
        let conditions = match known.filter(|known| known.match_conditions == match_conditions) {
            Some(known) => known.conditions.clone(),
            None => Arc::new(Conditions::new(&match_conditions, &Compiler::default())),
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
            conditions,
            match_conditions,
        }
    }
}

fn strings(list: &Value) -> impl Iterator<Item = String> + use<'_> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}
