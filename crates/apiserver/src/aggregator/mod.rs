//! API servers behind this one: an APIService with a Service gives that server a group and version,
//! and requests for it are passed on with the name of who asks. What such servers say of their
//! resources is part of what this one says of all.
//! Upstream counterpart: `k8s.io/kube-aggregator`.

mod availability;
mod documents;
mod relay;
mod remote;

use crate::hooks::{Call, Endpoint, Seams};
use crate::local::Body;
use crate::pki::{Pair, PkiError, chain_of, key_of};
use crate::proxy::Dialer;
use crate::reader::Reader;
use crate::request::RequestInfo;
use crate::resources;
use crate::webhook::trusting;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use parking_lot::RwLock;
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder};
use serde_json::Value;
use skeg_api::{Kinds, Status};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsConnector;

pub(crate) use availability::run;
pub(crate) use documents::merge_v2;
pub(crate) use remote::Remote;

/// Requests to other servers at once, watches and streams included.
const REQUESTS_MAX: usize = 4096;

/// By group and version.
pub(crate) type Remotes = BTreeMap<(String, String), Arc<Remote>>;

pub struct Aggregator {
    reader: Arc<dyn Reader>,
    kinds: Arc<Kinds>,
    dialer: Option<Arc<dyn Dialer>>,
    /// By which those servers know this one; none in the simulation.
    identity: Option<Pair>,
    changes: watch::Receiver<u64>,
    current: RwLock<Current>,
    slots: Arc<Semaphore>,
}

/// The other servers at one moment.
#[derive(Clone, Default)]
struct Current {
    /// The count of changes that it is of.
    count: Option<u64>,
    /// What changed after this revision is not in it.
    revision: u64,
    remotes: Arc<Remotes>,
}

impl Aggregator {
    pub fn new(seams: &Seams, dialer: Option<Arc<dyn Dialer>>, identity: Option<Pair>) -> Self {
        Aggregator {
            reader: seams.reader.clone(),
            kinds: seams.kinds.clone(),
            dialer,
            identity,
            changes: seams.reader.changes(&resources::API_SERVICES),
            current: RwLock::default(),
            slots: Arc::new(Semaphore::new(REQUESTS_MAX)),
        }
    }

    /// The other servers, as of now.
    pub(crate) fn remotes(&self) -> Arc<Remotes> {
        let count = *self.changes.borrow();
        let Current { count: seen, revision, remotes: known } = self.current.read().clone();
        if seen == Some(count) {
            return known;
        }
        let (all, newest) = self.reader.revisions(&resources::API_SERVICES);
        // What did not change is what it was.
        let stays = |remote: &Remote| all.iter().any(|(name, at)| *name == remote.name && *at <= revision);
        let mut fresh: Remotes = known
            .iter()
            .filter(|(_, remote)| stays(remote))
            .map(|(key, remote)| (key.clone(), remote.clone()))
            .collect();
        let changed = all.iter().filter(|(_, at)| *at > revision);
        fresh.extend(
            changed
                .filter_map(|(name, _)| self.reader.get_value(&resources::API_SERVICES, "", name))
                .filter(|object| object["spec"]["service"].is_object())
                .map(|object| {
                    let text = |field: &str| object["spec"][field].as_str().unwrap_or_default().to_owned();
                    let key = (text("group"), text("version"));
                    let before = known.get(&key).cloned();
                    let remote = match before {
                        Some(before) if before.is_of(&object) => before,
                        before => {
                            Arc::new(Remote::new(&object, self.tls(&object["spec"]), before.as_deref()))
                        }
                    };
                    (key, remote)
                }),
        );
        let is_other = fresh.len() != known.len()
            || fresh.iter().any(|(key, remote)| known.get(key).is_none_or(|old| !Arc::ptr_eq(old, remote)));
        let fresh = Arc::new(fresh);
        *self.current.write() = Current { count: Some(count), revision: newest, remotes: fresh.clone() };
        if is_other {
            // Whoever keeps something of what is served makes it anew.
            self.kinds.touch();
        }
        fresh
    }

    fn tls(&self, spec: &Value) -> Result<TlsConnector, String> {
        let builder = ClientConfig::builder_with_provider(skeg_base::tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        if spec["insecureSkipTLSVerify"] == true {
            return self.identified(skeg_base::tls::trusting_anyone(builder));
        }
        self.identified(trusting(builder, spec["caBundle"].as_str().unwrap_or_default())?)
    }

    /// For looks at whether a server answers at all.
    fn trusting(&self) -> Result<TlsConnector, String> {
        self.tls(&serde_json::json!({"insecureSkipTLSVerify": true}))
    }

    fn identified(
        &self,
        builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    ) -> Result<TlsConnector, String> {
        let failed = |error: PkiError| error.to_string();
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(pair) => builder
                .with_client_auth_cert(chain_of(pair).map_err(failed)?, key_of(pair).map_err(failed)?)
                .map_err(|error| error.to_string())?,
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// Whose a request is, if it is another server's.
    fn remote_of(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        let path = info.path.trim_matches('/');
        let key = if info.is_resource() {
            (info.group.as_str(), info.version.as_str())
        } else {
            match *path.split('/').collect::<Vec<_>>() {
                ["apis", group, version] | ["openapi", "v3", "apis", group, version] => (group, version),
                _ => return None,
            }
        };
        // The group without a name cannot be another server's.
        if key.0.is_empty() {
            return None;
        }
        let remotes = self.remotes();
        if remotes.is_empty() {
            return None;
        }
        remotes.get(&(key.0.to_owned(), key.1.to_owned())).cloned()
    }
}

impl Endpoint for Aggregator {
    fn handles(&self, info: &RequestInfo) -> bool {
        self.remote_of(info).is_some()
    }

    fn claims(&self, info: &RequestInfo) -> bool {
        info.is_resource() && self.remote_of(info).is_some()
    }

    fn long_running(&self, _info: &RequestInfo) -> bool {
        true
    }

    fn call(&self, call: Call, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, Status>> {
        Box::pin(async move {
            // Gone since it was asked for.
            let remote = self.remote_of(&call.info).ok_or_else(Status::no_route)?;
            self.relay(&call, &remote, request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::fake::Fake;
    use serde_json::json;
    use skeg_base::{Clock, Random};
    use std::sync::atomic::Ordering;

    #[test]
    fn what_changed_alone_is_read_again() {
        let reader = Arc::new(Fake::default());
        let seams = Seams {
            reader: reader.clone(),
            kinds: Arc::default(),
            store: Arc::new(skeg_store::Memory::new()),
            clock: Clock::system(),
            random: Random::seeded(1),
        };
        let aggregator = Aggregator::new(&seams, None, None);
        let put = |group: &str, service: Value| {
            reader.put(
                &resources::API_SERVICES,
                json!({"metadata": {"name": format!("v1.{group}")}, "spec": {"group": group, "version": "v1",
                    "insecureSkipTLSVerify": true, "service": service}}),
            );
        };
        let groups =
            || -> Vec<String> { aggregator.remotes().keys().map(|(group, _)| group.clone()).collect() };
        let read = || reader.read.swap(0, Ordering::Relaxed);
        (0..100).for_each(|n| put(&format!("own{n}"), Value::Null));
        put("a", json!({"name": "a"}));
        assert_eq!((groups(), read()), (vec!["a".to_owned()], 101));
        put("own100", Value::Null);
        put("b", json!({"name": "b"}));
        let known = aggregator.remotes();
        assert_eq!((groups(), read()), (vec!["a".to_owned(), "b".to_owned()], 2));
        // One that changes hands, and one that goes.
        put("a", Value::Null);
        assert_eq!((groups(), read()), (vec!["b".to_owned()], 1));
        let key = ("b".to_owned(), "v1".to_owned());
        assert!(Arc::ptr_eq(&aggregator.remotes()[&key], &known[&key]), "what did not change is what it was");
        reader.remove(&resources::API_SERVICES, "", "v1.b");
        assert_eq!((groups(), read()), (vec![], 0));
    }
}
