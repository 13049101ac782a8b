//! Admission: the chain of plugins that may change or refuse a write, by upstream's names.

use crate::auth::authz::Union;
use crate::hooks::{Reservation, Seams};
use crate::identity::Identity;
use crate::proxy::Dialer;
use crate::registry::{DeleteOptions, WriteOptions};
use crate::server::ApiServer;
use futures_util::future::BoxFuture;
use pod_security::PodSecurityConfiguration;
use reinvocation::Reinvocation;
use skeg_api::{Kind, Status, Value};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As rules and reviews name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// Why an object is refused that names another namespace than its request.
pub const OTHER_NAMESPACE: &str =
    "the namespace of the provided object does not match the namespace sent on the request";

/// One write on its way in.
pub struct Admission<'a> {
    pub operation: Operation,
    pub kind: &'a Kind,
    /// Empty, or `status`, `scale`, `binding`, `eviction`, `exec`, …
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub identity: &'a Identity,
    /// The new object; `None` on delete and for connect.
    pub object: Option<&'a mut Value>,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// What the client said beside the object.
    pub options: Options<'a>,
    /// Warnings for the client, added to.
    pub warnings: &'a mut Vec<String>,
    /// What the write holds until it is stored, or is not; added to.
    pub reservations: &'a mut Vec<Box<dyn Reservation>>,
    /// The server that the write goes through; none where a plugin is tried alone.
    pub server: Option<&'a Arc<ApiServer>>,
    pub reinvocation: Reinvocation,
}

/// The options of a request.
#[derive(Clone, Copy)]
pub enum Options<'a> {
    None,
    Write(&'a WriteOptions),
    Delete(&'a DeleteOptions),
}

/// One admission plugin.
pub trait Plugin: Send + Sync {
    /// Upstream's name: `NamespaceLifecycle`.
    fn name(&self) -> &'static str;

    /// May change the object; runs before validation. Quick plugins return a ready future.
    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>>;

    /// May only refuse; runs after all `admit`s and the kind's own validation.
    fn validate<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

pub mod certificates;
pub mod classes;
pub mod device_access;
pub mod escalation;
pub mod expressions;
pub mod limit_ranger;
pub mod matching;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod owner_references;
pub mod pod_defaults;
pub mod pod_security;
pub mod policy;
pub mod reinvocation;
mod request;
pub mod resource_quota;
pub mod service_account;
pub mod signing_request;
pub mod storage;
mod versions;
pub mod webhook;

/// Which plugins differ from upstream's defaults: its flags `--enable-admission-plugins`,
/// `--disable-admission-plugins` and what `--admission-control-config-file` says of them.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    pub enable: Vec<String>,
    pub disable: Vec<String>,
    pub pod_security: PodSecurityConfiguration,
}

impl Plugins {
    /// The names that no plugin has which can be switched.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.enable.iter().chain(&self.disable).map(String::as_str).filter(|name| !SWITCHABLE.contains(name))
    }

    fn has(&self, name: &str) -> bool {
        let named = |list: &[String]| list.iter().any(|listed| listed == name);
        !named(&self.disable) && (!OFF_BY_DEFAULT.contains(&name) || named(&self.enable))
    }
}

/// Plugins that a configuration may name. What else is in the chain are rules of the API that upstream
/// has elsewhere.
pub const SWITCHABLE: &[&str] = &[
    "NamespaceLifecycle",
    "LimitRanger",
    "ServiceAccount",
    "NodeRestriction",
    "TaintNodesByCondition",
    "PodSecurity",
    "Priority",
    "DefaultTolerationSeconds",
    "ExtendedResourceToleration",
    "DefaultStorageClass",
    "StorageObjectInUseProtection",
    "OwnerReferencesPermissionEnforcement",
    "PersistentVolumeClaimResize",
    "RuntimeClass",
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "DefaultIngressClass",
    "PodTopologyLabels",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
];
/// Plugins that are off unless the configuration asks for them.
const OFF_BY_DEFAULT: [&str; 2] = ["ExtendedResourceToleration", "OwnerReferencesPermissionEnforcement"];

/// The chain, in upstream's order. Webhooks are reached by the dialer, or without one by this host's
/// own connections.
pub fn chain(
    seams: &Seams,
    authorizer: &Arc<Union>,
    dialer: Option<Arc<dyn Dialer>>,
    plugins: &Plugins,
) -> Vec<Arc<dyn Plugin>> {
    let mut all = every(seams, authorizer, dialer, plugins);
    all.retain(|plugin| plugins.has(plugin.name()));
    all
}

fn every(
    seams: &Seams,
    authorizer: &Arc<Union>,
    dialer: Option<Arc<dyn Dialer>>,
    plugins: &Plugins,
) -> Vec<Arc<dyn Plugin>> {
    let (reader, webhooks) = (&seams.reader, webhook::Shared::new(dialer, authorizer.clone()));
    vec![
        Arc::new(namespace_lifecycle::NamespaceLifecycle::new(reader.clone())),
        Arc::new(limit_ranger::LimitRanger::new(reader.clone())),
        Arc::new(service_account::ServiceAccount::new(reader.clone(), seams.random.clone())),
        Arc::new(node_restriction::NodeRestriction::new(reader.clone())),
        Arc::new(pod_defaults::TaintNodesByCondition),
        Arc::new(pod_security::PodSecurity::new(reader.clone(), &plugins.pod_security)),
        Arc::new(pod_defaults::Priority::new(reader.clone())),
        Arc::new(pod_defaults::DefaultTolerationSeconds),
        Arc::new(classes::ExtendedResourceToleration),
        Arc::new(storage::DefaultStorageClass(reader.clone())),
        Arc::new(storage::StorageObjectInUseProtection),
        Arc::new(owner_references::OwnerReferencesPermissionEnforcement::new(
            authorizer.clone(),
            seams.kinds.clone(),
        )),
        Arc::new(storage::PersistentVolumeClaimResize(reader.clone())),
        Arc::new(classes::RuntimeClass(reader.clone())),
        Arc::new(certificates::CertificateApproval(authorizer.clone())),
        Arc::new(certificates::CertificateSigning(authorizer.clone())),
        Arc::new(certificates::CertificateSubjectRestriction),
        Arc::new(classes::DefaultIngressClass(reader.clone())),
        Arc::new(classes::PodTopologyLabels(reader.clone())),
        Arc::new(escalation::Escalation::new(authorizer.clone())),
        Arc::new(policy::PolicyParameters {
            reader: reader.clone(),
            kinds: seams.kinds.clone(),
            authorizer: authorizer.clone(),
        }),
        Arc::new(device_access::AdminAccess(reader.clone())),
        Arc::new(device_access::ClaimStatus(authorizer.clone())),
        Arc::new(signing_request::Requestor(seams.clock)),
        Arc::new(policy::MutatingAdmissionPolicy::new(reader.clone(), authorizer.clone())),
        Arc::new(webhook::MutatingAdmissionWebhook::new(reader.clone(), webhooks.clone())),
        Arc::new(policy::ValidatingAdmissionPolicy::new(reader.clone(), authorizer.clone())),
        Arc::new(webhook::ValidatingAdmissionWebhook::new(reader.clone(), webhooks)),
        Arc::new(resource_quota::ResourceQuota::new(reader.clone(), seams.clock)),
    ]
}

/// When admission looks at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before validation: plugins may change the object.
    Mutate,
    /// After it: plugins may only refuse.
    Validate,
}

/// Shows a write to each plugin of a chain, until one refuses. What a webhook changed is shown once
/// more to those that may change it.
pub async fn run(chain: &[Arc<dyn Plugin>], phase: Phase, write: &mut Admission<'_>) -> Result<(), Status> {
    for plugin in chain {
        match phase {
            Phase::Mutate => plugin.admit(write).await?,
            Phase::Validate => plugin.validate(write).await?,
        }
    }
    if phase == Phase::Mutate && write.reinvocation.wanted {
        write.reinvocation.is_again = true;
        for plugin in chain {
            plugin.admit(write).await?;
        }
    }
    Ok(())
}

/// Several errors as one, as upstream writes them.
fn aggregate(mut errors: Vec<String>) -> String {
    if errors.len() == 1 { errors.remove(0) } else { format!("[{}]", errors.join(", ")) }
}

/// What a plugin that decides at once returns.
fn ready<'a>(result: Result<(), Status>) -> BoxFuture<'a, Result<(), Status>> {
    Box::pin(std::future::ready(result))
}

impl Admission<'_> {
    /// Whether the write is about this resource or subresource.
    pub fn is(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.subresource == subresource && &*self.kind.plural == resource && &*self.kind.gvk.group == group
    }

    /// Puts something about the write on record.
    pub fn audit(&self, key: &str, value: &str) {
        let (user, resource) = (self.identity.user(), &*self.kind.plural);
        let (namespace, name) = (self.namespace, self.name);
        tracing::info!(target: "audit", user, resource, namespace, name, key, value);
    }

    /// 403 for this write.
    pub fn forbid(&self, why: impl std::fmt::Display) -> Status {
        Status::forbidden(&self.kind.gvk.group, &self.kind.plural, self.name, why)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use futures_util::FutureExt;
    use skeg_api::Gvk;
    use skeg_api::schema::Schema;

    pub fn kind(group: &str, kind: &str, plural: &str, namespaced: bool) -> Kind {
        let storage = Some(format!("{plural}/").into());
        Kind { namespaced, storage, ..Kind::custom(Gvk::new(group, "v1", kind), plural, Schema::any()) }
    }

    /// One write for one plugin.
    pub struct Case<'a> {
        pub operation: Operation,
        pub kind: Kind,
        pub subresource: &'a str,
        pub identity: Identity,
        pub object: Option<Value>,
        pub old: Option<Value>,
    }

    impl Case<'_> {
        /// Runs `admit`, then `validate`; the object is changed in place.
        pub fn run(&mut self, plugin: &dyn Plugin) -> Result<(), Status> {
            let about = self.object.clone().or(self.old.clone()).unwrap_or_default();
            let (namespace, name) = (skeg_api::meta::namespace(&about), skeg_api::meta::name(&about));
            let (mut warnings, mut reservations) = (Vec::new(), Vec::new());
            let mut admission = Admission {
                operation: self.operation,
                kind: &self.kind,
                subresource: self.subresource,
                namespace,
                name,
                identity: &self.identity,
                object: self.object.as_mut(),
                old: self.old.as_ref(),
                dry_run: false,
                options: Options::None,
                warnings: &mut warnings,
                reservations: &mut reservations,
                server: None,
                reinvocation: Reinvocation::default(),
            };
            plugin.admit(&mut admission).now_or_never().expect("decides at once")?;
            plugin.validate(&mut admission).now_or_never().expect("decides at once")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::fake::Fake;
    use skeg_api::Kinds;
    use skeg_base::{Clock, Random};

    #[test]
    fn plugins_are_switched_by_name() {
        let reader = Arc::new(Fake::default());
        let seams = Seams {
            reader: reader.clone(),
            kinds: Arc::<Kinds>::default(),
            store: Arc::new(skeg_store::Memory::new()),
            clock: Clock::system(),
            random: Random::seeded(1),
        };
        let authorizer = Arc::new(Union::new(reader));
        let names = |enable: &[&str], disable: &[&str]| -> Vec<&'static str> {
            let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
            let plugins = Plugins { enable: owned(enable), disable: owned(disable), ..Plugins::default() };
            let all = chain(&seams, &authorizer, None, &plugins);
            all.iter().map(|plugin| plugin.name()).filter(|name| SWITCHABLE.contains(name)).collect()
        };
        assert_eq!(names(&OFF_BY_DEFAULT, &[]), SWITCHABLE);
        let usual = names(&[], &[]);
        assert!(OFF_BY_DEFAULT.iter().all(|name| !usual.contains(name)));
        assert_eq!(usual.len() + OFF_BY_DEFAULT.len(), SWITCHABLE.len());
        assert!(!names(&[], &["PodSecurity"]).contains(&"PodSecurity"));
        assert_eq!(names(&[], SWITCHABLE), Vec::<&str>::new());
        let wrong = Plugins {
            enable: vec!["AlwaysAdmit".into()],
            disable: vec!["Priority".into()],
            ..Plugins::default()
        };
        assert_eq!(wrong.unknown().collect::<Vec<_>>(), ["AlwaysAdmit"]);
    }
}
