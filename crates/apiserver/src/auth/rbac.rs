//! Role-based access control: the four RBAC kinds compiled into tables that answer in a lookup or
//! two, and made anew when one of the kinds changes.
//! Upstream counterpart: `plugin/pkg/auth/authorizer/rbac`, `pkg/registry/rbac/validation`.

use super::authn::SERVICE_ACCOUNT_PREFIX;
use crate::identity::Identity;
use crate::reader::Reader;
use crate::request::{Attributes, Decision};
use crate::resources;
use bytes::Bytes;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use skeg_api::Gvr;
use skeg_base::{HashMap, new_map};
use std::sync::Arc;
use tokio::sync::watch;

/// `rbac.v1.PolicyRule`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(rename = "apiGroups", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if asked.resource.is_empty() {
            return self.urls.iter().any(|url| url_matches(url, asked.path));
        }
        has(&self.groups, asked.group)
            && self.resources.iter().any(|rule| resource_matches(rule, asked.resource, asked.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == asked.name))
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        _ if rule == "*" || rule == path => true,
        Some(prefix) => path.starts_with(prefix.trim_end_matches('*')),
        None => false,
    }
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    match rule.split_once('/') {
        Some((head, tail)) => (head == resource || head == "*") && tail == subresource,
        None => false,
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Subject {
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Role {
    metadata: Name,
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    metadata: Name,
    #[serde(default)]
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

/// A binding, as it applies to one subject.
struct Grant {
    binding: Arc<str>,
    role: Arc<RoleRef>,
    /// How the reason names the subject.
    subject: Box<str>,
}

#[derive(Default)]
struct Bindings {
    users: Option<HashMap<String, Vec<Grant>>>,
    groups: Option<HashMap<String, Vec<Grant>>>,
}

impl Bindings {
    fn add(&mut self, binding: &Binding) {
        let (name, role) =
            (Arc::<str>::from(binding.metadata.name.as_str()), Arc::new(binding.role_ref.clone()));
        for subject in binding.subjects.iter().flatten() {
            let (map, key, text) = match subject.kind.as_str() {
                "User" => (&mut self.users, subject.name.clone(), format!("User {:?}", subject.name)),
                "Group" => (&mut self.groups, subject.name.clone(), format!("Group {:?}", subject.name)),
                "ServiceAccount" => {
                    let namespace = if subject.namespace.is_empty() {
                        &binding.metadata.namespace
                    } else {
                        &subject.namespace
                    };
                    if namespace.is_empty() {
                        continue;
                    }
                    let user = format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{}", subject.name);
                    (&mut self.users, user, format!("ServiceAccount \"{}/{namespace}\"", subject.name))
                }
                _ => continue,
            };
            let grant = Grant { binding: name.clone(), role: role.clone(), subject: text.into() };
            map.get_or_insert_with(new_map).entry(key).or_default().push(grant);
        }
    }

    fn of<'a>(&'a self, identity: &'a Identity) -> impl Iterator<Item = &'a Grant> {
        let users = self.users.iter().flat_map(|users| users.get(identity.user()));
        let groups =
            self.groups.iter().flat_map(|map| identity.groups().iter().filter_map(|group| map.get(group)));
        users.chain(groups).flatten()
    }
}

type Rules = Arc<[Rule]>;

/// The compiled form. Each part is shared with the one before it where its kind did not change.
#[derive(Clone)]
struct Compiled {
    versions: [u64; 4],
    cluster_roles: Arc<HashMap<String, Rules>>,
    /// Namespace, then name.
    roles: Arc<HashMap<String, HashMap<String, Rules>>>,
    cluster_bindings: Arc<Bindings>,
    bindings: Arc<HashMap<String, Bindings>>,
}

const CLUSTER_ROLES: usize = 0;
const ROLES: usize = 1;
const CLUSTER_BINDINGS: usize = 2;
const BINDINGS: usize = 3;

pub struct Rbac {
    reader: Arc<dyn Reader>,
    changes: [watch::Receiver<u64>; 4],
    compiled: RwLock<Arc<Compiled>>,
}

fn kinds() -> [&'static Gvr; 4] {
    [
        &resources::CLUSTER_ROLES,
        &resources::ROLES,
        &resources::CLUSTER_ROLE_BINDINGS,
        &resources::ROLE_BINDINGS,
    ]
}

/// Objects that cannot be read grant nothing.
fn parse<T: for<'de> Deserialize<'de>>(objects: &[Bytes]) -> impl Iterator<Item = T> {
    objects.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok())
}

impl Rbac {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        let changes = kinds().map(|gvr| reader.changes(gvr));
        let compiled = Compiled {
            // No counter is there yet: everything is compiled at the first question.
            versions: [u64::MAX; 4],
            cluster_roles: Arc::new(new_map()),
            roles: Arc::new(new_map()),
            cluster_bindings: Arc::default(),
            bindings: Arc::new(new_map()),
        };
        Rbac { reader, changes, compiled: RwLock::new(Arc::new(compiled)) }
    }

    fn current(&self) -> Arc<Compiled> {
        let versions = self.changes.each_ref().map(|changes| *changes.borrow());
        {
            let compiled = self.compiled.read();
            if compiled.versions == versions {
                return compiled.clone();
            }
        }
        let mut slot = self.compiled.write();
        let fresh = Arc::new(self.compile(&slot));
        *slot = fresh.clone();
        fresh
    }

    /// The counters are read before the objects: a change in between is compiled twice, never missed.
    fn compile(&self, before: &Compiled) -> Compiled {
        let versions = self.changes.each_ref().map(|changes| *changes.borrow());
        let mut next = before.clone();
        let stale = |kind: usize| versions[kind] != before.versions[kind];
        let objects = |kind: usize| self.reader.list(kinds()[kind], "");
        if stale(CLUSTER_ROLES) {
            let mut map = new_map();
            for role in parse::<Role>(&objects(CLUSTER_ROLES)) {
                map.insert(role.metadata.name, role.rules.unwrap_or_default().into());
            }
            next.cluster_roles = Arc::new(map);
        }
        if stale(ROLES) {
            let mut map: HashMap<String, HashMap<String, Rules>> = new_map();
            for role in parse::<Role>(&objects(ROLES)) {
                let rules = role.rules.unwrap_or_default().into();
                map.entry(role.metadata.namespace).or_insert_with(new_map).insert(role.metadata.name, rules);
            }
            next.roles = Arc::new(map);
        }
        if stale(CLUSTER_BINDINGS) {
            let mut all = Bindings::default();
            parse::<Binding>(&objects(CLUSTER_BINDINGS)).for_each(|binding| all.add(&binding));
            next.cluster_bindings = Arc::new(all);
        }
        if stale(BINDINGS) {
            let mut map: HashMap<String, Bindings> = new_map();
            for binding in parse::<Binding>(&objects(BINDINGS)) {
                map.entry(binding.metadata.namespace.clone()).or_default().add(&binding);
            }
            next.bindings = Arc::new(map);
        }
        next.versions = versions;
        next
    }

    pub fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        let compiled = self.current();
        let mut missing = Vec::new();
        for (place, grants) in compiled.places(asked.namespace) {
            for grant in grants.of(asked.identity) {
                match compiled.rules(&grant.role, place) {
                    Some(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                        return Decision::Allow(grant.reason(place));
                    }
                    Some(_) => {}
                    None => missing.push(grant.role.missing()),
                }
            }
        }
        if missing.is_empty() {
            return Decision::NoOpinion(String::new());
        }
        missing.dedup();
        let many = if missing.len() > 1 { format!("[{}]", missing.join(", ")) } else { missing.remove(0) };
        Decision::NoOpinion(format!("RBAC: {many}"))
    }

    /// Every rule that a user has in a namespace (empty: cluster-wide ones only).
    pub fn rules_for(&self, identity: &Identity, namespace: &str) -> Vec<Rule> {
        let compiled = self.current();
        let mut all = Vec::new();
        for (place, grants) in compiled.places(namespace) {
            for grant in grants.of(identity) {
                all.extend(
                    compiled.rules(&grant.role, place).into_iter().flat_map(|rules| rules.iter().cloned()),
                );
            }
        }
        all
    }

    /// The rules of a role, if it exists.
    pub fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Vec<Rule>> {
        self.current().rules(role, namespace).map(|rules| rules.to_vec())
    }
}

impl Compiled {
    /// Cluster-wide bindings, then those of the namespace.
    fn places<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a str, &'a Bindings)> {
        let local = (!namespace.is_empty()).then(|| self.bindings.get(namespace)).flatten();
        [("", &*self.cluster_bindings)].into_iter().chain(local.map(|bindings| (namespace, bindings)))
    }

    fn rules(&self, role: &RoleRef, namespace: &str) -> Option<&Rules> {
        match role.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(&role.name),
            "Role" => self.roles.get(namespace)?.get(&role.name),
            _ => None,
        }
    }
}

impl RoleRef {
    fn missing(&self) -> String {
        let resource = if self.kind == "Role" { "role" } else { "clusterrole" };
        format!("{resource}.rbac.authorization.k8s.io {:?} not found", self.name)
    }
}

impl Grant {
    fn reason(&self, namespace: &str) -> String {
        let RoleRef { kind, name } = &*self.role;
        let (binding, subject) = (&self.binding, &self.subject);
        if namespace.is_empty() {
            return format!(
                "RBAC: allowed by ClusterRoleBinding {binding:?} of {kind} {name:?} to {subject}"
            );
        }
        let full = format!("{binding}/{namespace}");
        format!("RBAC: allowed by RoleBinding {full:?} of {kind} {name:?} to {subject}")
    }
}

/// Which of `wanted` is not covered by `held`, taken apart into single permissions.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for single in wanted.iter().flat_map(singles) {
        if !held.iter().any(|rule| covers(rule, &single)) && !missing.contains(&single) {
            missing.push(single);
        }
    }
    missing
}

/// Joins the verbs of single permissions on the same things, and sorts them: for people.
pub fn compact(singles: &[Rule]) -> Vec<Rule> {
    let mut all: Vec<Rule> = Vec::new();
    for single in singles {
        let same = |rule: &&mut Rule| {
            rule.urls.is_empty()
                && single.urls.is_empty()
                && (&rule.groups, &rule.resources, &rule.resource_names)
                    == (&single.groups, &single.resources, &single.resource_names)
        };
        match all.iter_mut().find(same) {
            Some(rule) => rule.verbs.extend(single.verbs.iter().cloned()),
            None => all.push(single.clone()),
        }
    }
    all.sort_by_cached_key(ToString::to_string);
    all
}

/// Every combination of one verb, one group, one resource and one name (or one verb and one URL).
fn singles(rule: &Rule) -> Vec<Rule> {
    let one = |text: &String| vec![text.clone()];
    let mut all = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.groups {
            for resource in &rule.resources {
                let base = Rule {
                    verbs: one(verb),
                    groups: one(group),
                    resources: one(resource),
                    ..Default::default()
                };
                if rule.resource_names.is_empty() {
                    all.push(base);
                } else {
                    let named = rule.resource_names.iter();
                    all.extend(named.map(|name| Rule { resource_names: one(name), ..base.clone() }));
                }
            }
        }
        all.extend(rule.urls.iter().map(|url| Rule {
            verbs: one(verb),
            urls: one(url),
            ..Default::default()
        }));
    }
    all
}

fn covers(held: &Rule, single: &Rule) -> bool {
    let first = |list: &[String]| list.first().map(String::as_str).unwrap_or_default().to_owned();
    if !has(&held.verbs, &first(&single.verbs)) {
        return false;
    }
    if let Some(wanted) = single.urls.first() {
        return held.urls.iter().any(|url| match url.strip_suffix('*') {
            _ if url == "*" || url == wanted => true,
            Some(prefix) => wanted.starts_with(prefix),
            None => false,
        });
    }
    let wanted = first(&single.resources);
    let subresource = wanted.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    has(&held.groups, &first(&single.groups))
        && held.resources.iter().any(|resource| {
            resource == "*" || *resource == wanted || subresource.as_ref().is_some_and(|sub| sub == resource)
        })
        && (held.resource_names.is_empty()
            || single.resource_names.first().is_some_and(|name| held.resource_names.contains(name)))
}

/// As the error message of an escalation shows it.
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.urls),
            ("Verbs", &self.verbs),
        ];
        let shown = parts.into_iter().filter(|(_, list)| !list.is_empty());
        let text: Vec<String> = shown
            .map(|(name, list)| {
                format!("{name}:[{}]", list.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" "))
            })
            .collect();
        write!(f, "{{{}}}", text.join(", "))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::reader::fake::Fake;
    use serde_json::json;
    use std::collections::BTreeMap;

    pub fn user(name: &str, groups: &[&str]) -> Identity {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        Identity::new(name.to_owned(), String::new(), groups, BTreeMap::new())
    }

    pub fn asked<'a>(identity: &'a Identity, verb: &'a str, what: [&'a str; 5]) -> Attributes<'a> {
        let [group, resource, subresource, namespace, name] = what;
        Attributes {
            identity,
            verb,
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
            path: "",
            query: "",
        }
    }

    fn allowed(rbac: &Rbac, identity: &Identity, verb: &str, what: [&str; 5]) -> bool {
        matches!(rbac.authorize(&asked(identity, verb, what)), Decision::Allow(_))
    }

    #[test]
    fn roles_apply_where_they_are_bound_and_as_soon_as_they_change() {
        let reader = Arc::new(Fake::default());
        let rbac = Rbac::new(reader.clone());
        let (jane, bot) = (user("jane", &["dev"]), user("system:serviceaccount:a:bot", &[]));
        assert!(!allowed(&rbac, &jane, "get", ["", "pods", "", "a", "x"]));
        reader.put(
            &resources::CLUSTER_ROLES,
            json!({"metadata": {"name": "view"}, "rules": [
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"]},
                {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/api/*"]},
            ]}),
        );
        reader.put(
            &resources::ROLE_BINDINGS,
            json!({"metadata": {"name": "b", "namespace": "a"},
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "Group", "name": "dev"}, {"kind": "ServiceAccount", "name": "bot"}]}),
        );
        for (who, verb, what, expected) in [
            (&jane, "get", ["", "pods", "", "a", "x"], true),
            (&bot, "get", ["", "pods", "", "a", "x"], true),
            (&bot, "get", ["", "pods", "log", "a", "x"], true),
            (&jane, "get", ["", "pods", "exec", "a", "x"], false),
            (&jane, "get", ["", "pods", "scale", "a", "x"], true),
            (&jane, "delete", ["", "pods", "", "a", "x"], false),
            (&jane, "get", ["", "pods", "", "b", "x"], false),
            (&jane, "get", ["apps", "pods", "", "a", "x"], false),
            (&jane, "list", ["", "pods", "", "", ""], false),
        ] {
            assert_eq!(allowed(&rbac, who, verb, what), expected, "{verb} {what:?}");
        }
        let url = |path| Attributes { path, ..asked(&jane, "get", [""; 5]) };
        assert!(!matches!(rbac.authorize(&url("/metrics")), Decision::Allow(_)));
        reader.put(&resources::CLUSTER_ROLE_BINDINGS, json!({"metadata": {"name": "c"},
            "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "jane"}]}));
        assert!(matches!(rbac.authorize(&url("/metrics")), Decision::Allow(_)));
        assert!(matches!(rbac.authorize(&url("/api/v1")), Decision::Allow(_)));
        assert!(!matches!(rbac.authorize(&url("/metrics/x")), Decision::Allow(_)));
        assert_eq!(
            rbac.authorize(&asked(&jane, "list", ["", "pods", "", "", ""])),
            Decision::Allow(
                "RBAC: allowed by ClusterRoleBinding \"c\" of ClusterRole \"view\" to User \"jane\"".into()
            )
        );
        reader.remove(&resources::CLUSTER_ROLES, "", "view");
        assert_eq!(
            rbac.authorize(&asked(&jane, "list", ["", "pods", "", "", ""])),
            Decision::NoOpinion("RBAC: clusterrole.rbac.authorization.k8s.io \"view\" not found".into())
        );
    }

    #[test]
    fn names_narrow_rules() {
        let rule: Rule = serde_json::from_value(
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["secrets"], "resourceNames": ["a"]}),
        )
        .unwrap();
        let jane = user("jane", &[]);
        assert!(rule.allows(&asked(&jane, "get", ["", "secrets", "", "n", "a"])));
        assert!(!rule.allows(&asked(&jane, "get", ["", "secrets", "", "n", "b"])));
        assert!(!rule.allows(&asked(&jane, "list", ["", "secrets", "", "n", ""])));
    }

    #[test]
    fn what_is_not_held_is_named() {
        let rule = |verbs: &[&str], groups: &[&str], resources: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
            Rule { verbs: own(verbs), groups: own(groups), resources: own(resources), ..Default::default() }
        };
        let held = [rule(&["get", "list"], &[""], &["pods"]), rule(&["*"], &["apps"], &["*"])];
        assert!(
            uncovered(
                &held,
                &[rule(&["get"], &[""], &["pods"]), rule(&["delete"], &["apps"], &["x", "x/y"])]
            )
            .is_empty()
        );
        let missing = uncovered(&held, &[rule(&["get", "delete"], &[""], &["pods"])]);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].to_string(), "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}");
        assert_eq!(uncovered(&held, &[rule(&["*"], &["*"], &["*"])]).len(), 1);
        let joined = compact(&uncovered(&[], &[rule(&["list", "get"], &[""], &["pods", "nodes"])]));
        assert_eq!(joined.len(), 2);
        assert_eq!(
            joined[0].to_string(),
            "{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"list\" \"get\"]}"
        );
        let mut named = rule(&["get"], &[""], &["pods"]);
        named.resource_names = vec!["a".into()];
        assert!(uncovered(&held, std::slice::from_ref(&named)).is_empty());
        assert_eq!(uncovered(&[named], &held[..1]).len(), 2);
    }

    #[test]
    fn a_decision_takes_about_a_microsecond() {
        let reader = Arc::new(Fake::default());
        for (gvr, object) in crate::bootstrap::rbac::objects() {
            reader.put(gvr, object);
        }
        let rbac = Rbac::new(reader);
        let controller = Identity::component("deployment-controller");
        let question = asked(&controller, "update", ["apps", "deployments", "status", "default", "x"]);
        assert!(matches!(rbac.authorize(&question), Decision::Allow(_)));
        let (rounds, start) = (2_000, tokio::time::Instant::now());
        for _ in 0..rounds {
            std::hint::black_box(rbac.authorize(&question));
        }
        let each = start.elapsed() / rounds;
        // A debug build on a busy machine; a release build is an order of magnitude below.
        assert!(each < std::time::Duration::from_micros(100), "{each:?}");
    }
}
