//! One webhook of a configuration, compiled: which writes it is asked about.
//! Upstream counterparts: `plugin/webhook/{generic,predicates}` of `k8s.io/apiserver/pkg/admission`.

use crate::admission::{Admission, Operation};
use crate::proxy::Dialer;
use crate::reader::Reader;
use crate::resources;
use crate::server::ApiServer;
use crate::webhook::Client;
use serde_json::Value;
use skeg_api::selector::{LabelSelector, SelectorError};
use skeg_api::{Kind, Status, meta};
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
    rules: Vec<Rule>,
    takes_equivalents: bool,
    namespaces: Result<LabelSelector, SelectorError>,
    objects: Result<LabelSelector, SelectorError>,
}

struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    scope: String,
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
            rules: hook["rules"].as_array().into_iter().flatten().map(Rule::new).collect(),
            takes_equivalents: text("matchPolicy") == "Equivalent",
            namespaces: LabelSelector::from_object(hook.get("namespaceSelector")),
            objects: LabelSelector::from_object(hook.get("objectSelector")),
        }
    }

    /// Whether the webhook is asked about a write, and in the version of which other kind if not in its
    /// own.
    ///
    /// # Errors
    /// If it cannot be told because the namespace is not there.
    pub fn matches(
        &self,
        a: &Admission<'_>,
        server: &Arc<ApiServer>,
    ) -> Result<Option<Option<Arc<Kind>>>, Status> {
        if !self.selects_object(a)? {
            return Ok(None);
        }
        let row = match self.rules.iter().any(|rule| rule.matches(a, a.kind)) {
            true => Some(None),
            false if self.takes_equivalents => {
                let snapshot = server.seams().kinds.snapshot();
                let others: Vec<Arc<Kind>> = snapshot
                    .iter()
                    .filter(|row| {
                        row.storage.is_some() && row.storage == a.kind.storage && row.gvk != a.kind.gvk
                    })
                    .cloned()
                    .collect();
                let fits = |rule: &Rule| others.iter().find(|row| rule.matches(a, row)).cloned();
                self.rules.iter().find_map(fits).map(Some)
            }
            false => None,
        };
        match row {
            Some(row) if self.selects_namespace(a, &*server.seams().reader)? => Ok(Some(row)),
            _ => Ok(None),
        }
    }

    fn selects_object(&self, a: &Admission<'_>) -> Result<bool, Status> {
        let selector = self.objects.as_ref().map_err(Status::internal)?;
        let matches = |object: &Value| selector.matches(object);
        Ok(selector.is_everything() || a.object.as_deref().is_some_and(matches) || a.old.is_some_and(matches))
    }

    fn selects_namespace(&self, a: &Admission<'_>, reader: &dyn Reader) -> Result<bool, Status> {
        let selector = self.namespaces.as_ref().map_err(Status::internal)?;
        let namespace = namespace(a);
        if selector.is_everything() || namespace.is_empty() {
            return Ok(!selector.is_nothing());
        }
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        if is_namespace(a) && a.subresource.is_empty() && writes {
            return Ok(a.object.as_deref().is_some_and(|object| selector.matches(object)));
        }
        let found = reader.get_value(&resources::NAMESPACES, "", namespace);
        found
            .map(|found| selector.matches(&*found))
            .ok_or_else(|| Status::not_found("", "namespaces", namespace))
    }
}

fn is_namespace(a: &Admission<'_>) -> bool {
    a.kind.gvk.group.is_empty() && &*a.kind.plural == "namespaces"
}

/// The namespace that a write is about: of a Namespace its own name.
pub fn namespace<'a>(a: &Admission<'a>) -> &'a str {
    if is_namespace(a) { a.name } else { a.namespace }
}

fn strings(list: &Value) -> impl Iterator<Item = String> + use<'_> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}

impl Rule {
    fn new(rule: &Value) -> Self {
        let split = |text: String| match text.split_once('/') {
            Some((resource, subresource)) => (resource.to_owned(), subresource.to_owned()),
            None => (text, String::new()),
        };
        Rule {
            operations: strings(&rule["operations"]).collect(),
            groups: strings(&rule["apiGroups"]).collect(),
            versions: strings(&rule["apiVersions"]).collect(),
            resources: strings(&rule["resources"]).map(split).collect(),
            scope: rule["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    /// Whether a write matches, seen as one of this kind.
    fn matches(&self, a: &Admission<'_>, row: &Kind) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|own| own == "*" || own == value);
        let in_namespace = !is_namespace(a) && !a.namespace.is_empty();
        let scope = match self.scope.as_str() {
            "Namespaced" => in_namespace,
            "Cluster" => !in_namespace,
            _ => true,
        };
        scope
            && has(&self.operations, a.operation.as_str())
            && has(&self.groups, &row.gvk.group)
            && has(&self.versions, &row.gvk.version)
            && self.resources.iter().any(|(resource, subresource)| {
                (resource == "*" || **resource == *row.plural)
                    && (subresource == "*" || subresource == a.subresource)
            })
    }
}
