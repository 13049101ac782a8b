//! The variable `authorizer`: questions to the server's own authorizer, as who sent the request.

use crate::auth::authz::{Union, question};
use crate::identity::Identity;
use crate::request::{Attributes, Decision as Decided};
use skeg_cel::{Authorizer, Check, Decision, What};
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Asker {
    pub authorizer: Arc<Union>,
    pub identity: Identity,
}

impl Authorizer for Asker {
    fn authorize(&self, check: &Check<'_>) -> Decision {
        let account = check.service_account.map(|(namespace, name)| service_account(namespace, name));
        let identity = account.as_ref().unwrap_or(&self.identity);
        let asked = match check.what {
            What::Path(path) => Attributes { version: "", path, ..question(identity, check.verb, [""; 5]) },
            What::Resource(of) => {
                let what = [&*of.group, &*of.resource, &*of.subresource, &*of.namespace, &*of.name];
                question(identity, check.verb, what)
            }
        };
        match self.authorizer.decide(&asked) {
            Decided::Allow(reason) => Decision { allowed: true, reason, error: None },
            Decided::Deny(reason) | Decided::NoOpinion(reason) => {
                Decision { allowed: false, reason, error: None }
            }
        }
    }
}

/// A ServiceAccount as authentication names it.
fn service_account(namespace: &str, name: &str) -> Identity {
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    let groups = groups.into_iter().chain(["system:authenticated".to_owned()]).collect();
    Identity::new(format!("system:serviceaccount:{namespace}:{name}"), String::new(), groups, BTreeMap::new())
}
