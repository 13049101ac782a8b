//! Who asks. An [`Identity`] comes from authentication at the network edge or is made by the
//! wiring for an in-process component; nothing a client sends can become one otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

/// An authenticated user. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    pub(crate) fn new(
        user: String,
        uid: String,
        groups: Vec<String>,
        extra: BTreeMap<String, Vec<String>>,
    ) -> Self {
        Identity(Arc::new(Inner { user, uid, groups, extra }))
    }

    /// A component that runs in this process as the service account
    /// `system:serviceaccount:kube-system:<name>`. Only the wiring calls this.
    pub fn component(name: &str) -> Self {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
        Self::new(
            format!("system:serviceaccount:kube-system:{name}"),
            String::new(),
            groups.map(str::to_owned).to_vec(),
            BTreeMap::new(),
        )
    }

    /// A user of this process that upstream knows by name: `system:kube-scheduler`,
    /// `system:node:<name>` (with the group `system:nodes`). Only the wiring calls this.
    pub fn system(user: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain(["system:authenticated"]).map(str::to_owned).collect();
        Self::new(user.to_owned(), String::new(), groups, BTreeMap::new())
    }

    pub fn anonymous() -> Self {
        Self::new(
            "system:anonymous".into(),
            String::new(),
            vec!["system:unauthenticated".into()],
            BTreeMap::new(),
        )
    }

    pub fn user(&self) -> &str {
        &self.0.user
    }

    pub fn uid(&self) -> &str {
        &self.0.uid
    }

    pub fn groups(&self) -> &[String] {
        &self.0.groups
    }

    pub fn extra(&self) -> &BTreeMap<String, Vec<String>> {
        &self.0.extra
    }

    pub(crate) fn without_group(&self, group: &str) -> Self {
        let groups = self.groups().iter().filter(|own| *own != group).cloned().collect();
        Self::new(self.user().to_owned(), self.uid().to_owned(), groups, self.extra().clone())
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.0.groups.iter().any(|g| g == group)
    }
}
