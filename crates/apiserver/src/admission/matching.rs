//! Which writes a webhook or a policy is about: by operation and resource, in the write's own version
//! or another of the same objects, and by the labels of the object and of its namespace.
//! Upstream counterparts: `plugin/policy/matching` and `plugin/webhook/predicates` of
//! `k8s.io/apiserver/pkg/admission`.

use super::{Admission, Operation};
use crate::reader::Reader;
use crate::resources;
use crate::server::ApiServer;
use serde_json::Value;
use skeg_api::selector::{LabelSelector, SelectorError};
use skeg_api::{Kind, Status};
use std::cell::OnceCell;
use std::sync::Arc;

pub struct Matching {
    /// Without, every write.
    rules: Option<Vec<Rule>>,
    excluded: Vec<Rule>,
    takes_equivalents: bool,
    namespaces: Result<LabelSelector, SelectorError>,
    objects: Result<LabelSelector, SelectorError>,
}

/// In which version a write is shown: that of another kind, or (none) its own.
pub type Version = Option<Arc<Kind>>;

/// One write, for all who may match it: what they ask of the server is found once.
pub struct Subject<'s, 'r> {
    a: &'s Admission<'r>,
    server: &'s Arc<ApiServer>,
    /// The other versions of its kind.
    others: OnceCell<Vec<Arc<Kind>>>,
}

impl<'s, 'r> Subject<'s, 'r> {
    pub fn new(a: &'s Admission<'r>, server: &'s Arc<ApiServer>) -> Self {
        Subject { a, server, others: OnceCell::new() }
    }

    fn others(&self) -> &[Arc<Kind>] {
        self.others.get_or_init(|| {
            let kind = self.a.kind;
            let is_other = |row: &&Arc<Kind>| {
                row.storage.is_some() && row.storage == kind.storage && row.gvk != kind.gvk
            };
            self.server.seams().kinds.snapshot().iter().filter(is_other).cloned().collect()
        })
    }
}

impl Matching {
    /// As a webhook of a configuration says it.
    pub fn of_webhook(hook: &Value) -> Self {
        let rules = rules(hook, "rules");
        Matching { rules: Some(rules), ..Self::of_resources(hook) }
    }

    /// As `matchConstraints` and `matchResources` say it. Without rules it is about every resource.
    pub fn of_resources(resources: &Value) -> Self {
        let rules_given = rules(resources, "resourceRules");
        Matching {
            rules: Some(rules_given).filter(|rules| !rules.is_empty()),
            excluded: rules(resources, "excludeResourceRules"),
            takes_equivalents: resources["matchPolicy"] == "Equivalent",
            namespaces: LabelSelector::from_object(resources.get("namespaceSelector")),
            objects: LabelSelector::from_object(resources.get("objectSelector")),
        }
    }

    /// Whether a write matches, and in which version.
    ///
    /// # Errors
    /// If it cannot be told, as where the namespace is not there.
    pub fn matches(&self, subject: &Subject<'_, '_>) -> Result<Option<Version>, Status> {
        let a = subject.a;
        if !self.selects_object(a)? || self.find(&self.excluded, subject).is_some() {
            return Ok(None);
        }
        let version = match &self.rules {
            None => Some(None),
            Some(rules) => self.find(rules, subject),
        };
        match version {
            Some(version) if self.selects_namespace(a, &*subject.server.seams().reader)? => Ok(Some(version)),
            _ => Ok(None),
        }
    }

    fn find(&self, rules: &[Rule], subject: &Subject<'_, '_>) -> Option<Version> {
        let a = subject.a;
        let concerned = || rules.iter().filter(|rule| rule.concerns(a));
        if concerned().any(|rule| rule.names(a, a.kind)) {
            return Some(None);
        }
        if !self.takes_equivalents || concerned().next().is_none() {
            return None;
        }
        let named = |rule: &Rule| subject.others().iter().find(|row| rule.names(a, row));
        concerned().find_map(named).map(|row| Some(row.clone()))
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

pub fn is_namespace(a: &Admission<'_>) -> bool {
    a.kind.gvk.group.is_empty() && &*a.kind.plural == "namespaces"
}

/// The namespace that a write is about: of a Namespace its own name.
pub fn namespace<'a>(a: &Admission<'a>) -> &'a str {
    if is_namespace(a) { a.name } else { a.namespace }
}

struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    scope: String,
    /// Names of objects; none for all.
    names: Vec<String>,
}

fn rules(holder: &Value, field: &str) -> Vec<Rule> {
    holder[field].as_array().into_iter().flatten().map(Rule::new).collect()
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
            names: strings(&rule["resourceNames"]).collect(),
        }
    }

    /// Whether the rule is about such a write, of whatever kind.
    fn concerns(&self, a: &Admission<'_>) -> bool {
        let in_namespace = !is_namespace(a) && !a.namespace.is_empty();
        let scope = match self.scope.as_str() {
            "Namespaced" => in_namespace,
            "Cluster" => !in_namespace,
            _ => true,
        };
        scope
            && has(&self.operations, a.operation.as_str())
            && (self.names.is_empty() || self.names.iter().any(|name| name == a.name))
    }

    /// Whether it names the resource of a write, seen as one of this kind.
    fn names(&self, a: &Admission<'_>, row: &Kind) -> bool {
        has(&self.groups, &row.gvk.group)
            && has(&self.versions, &row.gvk.version)
            && self.resources.iter().any(|(resource, subresource)| {
                (resource == "*" || **resource == *row.plural)
                    && (subresource == "*" || subresource == a.subresource)
            })
    }
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|own| own == "*" || own == value)
}
