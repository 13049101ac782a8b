//! ConfigMaps and Secrets that a Pod refers to, from the informer or, when that does not have
//! them (yet), from the API. Each that some Pod refers to is followed by a watch of its own: a node
//! neither may nor need see others. Upstream counterpart: `pkg/kubelet/util/manager`.

use crate::{Context, text};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret, VolumeProjection};
use parking_lot::Mutex;
use skeg_client::{Change, Informer, Informers, ListOptions, ObjectKey, Typed};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is followed.
pub struct Followed {
    /// They act as the node.
    informers: Informers,
    each: Mutex<Each>,
}

#[derive(Default)]
struct Each {
    config_maps: BTreeMap<ObjectKey, Informer<ConfigMap>>,
    secrets: BTreeMap<ObjectKey, Informer<Secret>>,
}

impl Followed {
    pub fn new(informers: Informers) -> Self {
        Followed { informers, each: Mutex::default() }
    }

    /// Follows what `wanted` says by namespace, and nothing else. Asks while nobody else follows, so that
    /// the last answer is the one that counts. `changed` is told of each change.
    pub fn follow(
        &self,
        wanted: impl FnOnce() -> Vec<(String, Arc<References>)>,
        changed: impl Fn(&str, &References) + Clone + Send + Sync + 'static,
    ) {
        let mut each = self.each.lock();
        let wanted = wanted();
        let keys = |of: fn(&References) -> &BTreeSet<String>| {
            let keys = wanted.iter().flat_map(|(ns, refs)| of(refs).iter().map(|n| ObjectKey::new(ns, n)));
            keys.collect()
        };
        let (config_maps, secrets) = (keys(|refs| &refs.config_maps), keys(|refs| &refs.secrets));
        let told = changed.clone();
        follow(&self.informers, &mut each.config_maps, config_maps, move |key| {
            let config_maps = [key.name.to_string()].into();
            told(&key.namespace, &References { config_maps, ..Default::default() });
        });
        follow(&self.informers, &mut each.secrets, secrets, move |key| {
            let secrets = [key.name.to_string()].into();
            changed(&key.namespace, &References { secrets, ..Default::default() });
        });
    }

    fn config_map(&self, key: &ObjectKey) -> Option<Arc<ConfigMap>> {
        let informer = self.each.lock().config_maps.get(key).cloned();
        informer?.get(&key.namespace, &key.name)
    }

    fn secret(&self, key: &ObjectKey) -> Option<Arc<Secret>> {
        let informer = self.each.lock().secrets.get(key).cloned();
        informer?.get(&key.namespace, &key.name)
    }
}

fn follow<K: Typed>(
    informers: &Informers,
    followed: &mut BTreeMap<ObjectKey, Informer<K>>,
    wanted: BTreeSet<ObjectKey>,
    changed: impl Fn(&ObjectKey) + Clone + Send + Sync + 'static,
) {
    let named = |key: &ObjectKey| ListOptions::fields(format!("metadata.name={}", key.name));
    followed.retain(|key, _| {
        let stays = wanted.contains(key);
        if !stays {
            informers.stop_selected::<K>(&key.namespace, &named(key));
        }
        stays
    });
    for key in wanted {
        let (namespace, named) = (key.namespace.clone(), named(&key));
        followed.entry(key).or_insert_with(|| {
            let informer = informers.selected::<K>(&namespace, &named);
            let changed = changed.clone();
            informer.subscribe(move |change: Change<'_, K>| changed(change.key()));
            informer
        });
    }
}

/// Names of one namespace's ConfigMaps and Secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// The referred objects; `None` where there is none.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

impl Sources {
    pub fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name)?.as_deref()
    }

    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)?.as_deref()
    }
}

impl References {
    pub fn of_container(container: &Container) -> Self {
        let mut out = References::default();
        for from in container.env_from.iter().flatten() {
            out.config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            out.secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            out.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            out.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
        out
    }

    pub fn of_volumes(spec: &PodSpec) -> Self {
        let mut out = References::default();
        for volume in spec.volumes.iter().flatten() {
            out.config_maps.extend(volume.config_map.as_ref().map(|v| v.name.clone()));
            out.secrets.extend(volume.secret.as_ref().and_then(|v| v.secret_name.clone()));
            let projections = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            for VolumeProjection { config_map, secret, .. } in projections {
                out.config_maps.extend(config_map.as_ref().map(|v| v.name.clone()));
                out.secrets.extend(secret.as_ref().map(|v| v.name.clone()));
            }
        }
        out
    }

    /// Whether one of those of `other` is among them.
    pub fn meets(&self, other: &References) -> bool {
        !self.config_maps.is_disjoint(&other.config_maps) || !self.secrets.is_disjoint(&other.secrets)
    }

    /// Everything a Pod refers to in any way.
    pub fn of_pod(spec: &PodSpec) -> Self {
        let mut out = Self::of_volumes(spec);
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let ephemeral: Vec<Container> = ephemeral.map(crate::machine::ephemeral::as_container).collect();
        for container in crate::machine::all_containers(spec).chain(&ephemeral) {
            let own = Self::of_container(container);
            out.config_maps.extend(own.config_maps);
            out.secrets.extend(own.secrets);
        }
        out.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|r| r.name.clone()));
        out
    }

    pub async fn fetch(&self, ctx: &Context, pod: &Pod) -> skeg_client::Result<Sources> {
        let ns = text(&pod.metadata.namespace);
        let mut out = Sources::default();
        for name in &self.config_maps {
            let found = match ctx.followed.config_map(&ObjectKey::new(ns, name)) {
                Some(found) => Some(found),
                None => ctx.client.api::<ConfigMap>().get_opt(ns, name).await?.map(Arc::new),
            };
            out.config_maps.insert(name.clone(), found);
        }
        for name in &self.secrets {
            let found = match ctx.followed.secret(&ObjectKey::new(ns, name)) {
                Some(found) => Some(found),
                None => ctx.client.api::<Secret>().get_opt(ns, name).await?.map(Arc::new),
            };
            out.secrets.insert(name.clone(), found);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::{StreamExt, stream};
    use http::{Request, Response};
    use http_body_util::{BodyExt, StreamBody};
    use serde_json::json;
    use skeg_base::Random;
    use skeg_client::{Body, BoxError, Client};
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    type Frames = mpsc::Sender<Bytes>;

    /// A server that is told of each watch.
    fn server() -> (Informers, mpsc::UnboundedReceiver<(String, Frames)>) {
        let (calls, called) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (frames, sent) = mpsc::channel(4);
            let told = calls.send((request.uri().to_string(), frames));
            let body =
                stream::unfold(sent, |mut sent| async { sent.recv().await.map(|bytes| (bytes, sent)) });
            let body = StreamBody::new(body.map(|bytes| Ok::<_, BoxError>(hyper::body::Frame::data(bytes))));
            async move {
                told.map_err(|_| "closed")?;
                Ok::<_, BoxError>(Response::new(body.boxed_unsync()))
            }
        });
        let informers = Informers::new(Client::new(service), Random::seeded(1), CancellationToken::new());
        (informers, called)
    }

    fn refers(config_maps: &[&str], secrets: &[&str]) -> (String, Arc<References>) {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let references = References { config_maps: set(config_maps), secrets: set(secrets) };
        ("ns".to_owned(), Arc::new(references))
    }

    #[tokio::test]
    async fn what_pods_refer_to_is_followed_and_nothing_else() {
        let (informers, mut called) = server();
        let (told, mut changes) = mpsc::unbounded_channel();
        let followed = Followed::new(informers);
        let follow = |wanted: Vec<_>| {
            let told = told.clone();
            followed.follow(
                || wanted,
                move |ns, changed| {
                    let _ = told.send((ns.to_owned(), Arc::new(changed.clone())));
                },
            );
        };
        follow(vec![refers(&["a"], &["s"]), refers(&["a"], &[])]);
        let mut watches = BTreeMap::new();
        for _ in 0..2 {
            let (uri, frames) = called.recv().await.unwrap();
            watches.insert(uri.split("&").take(2).collect::<Vec<_>>().join("&"), frames);
        }
        let a = "/api/v1/namespaces/ns/configmaps?watch=true&fieldSelector=metadata.name%3Da";
        let s = "/api/v1/namespaces/ns/secrets?watch=true&fieldSelector=metadata.name%3Ds";
        assert_eq!(watches.keys().collect::<Vec<_>>(), [a, s]);

        let meta = json!({"name": "a", "namespace": "ns", "uid": "1", "resourceVersion": "5"});
        let event = json!({"type": "ADDED", "object": {"metadata": meta, "data": {"k": "v"}}});
        let end = json!({"resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}});
        let end = json!({"type": "BOOKMARK", "object": {"metadata": end}});
        watches[a].send(format!("{event}\n{end}\n").into()).await.unwrap();
        assert_eq!(changes.recv().await.unwrap(), refers(&["a"], &[]));
        let key = ObjectKey::new("ns", "a");
        assert_eq!(followed.config_map(&key).unwrap().data.as_ref().unwrap()["k"], "v");

        // Who still refers to it keeps its watch; another begins, one ends.
        follow(vec![refers(&["a", "b"], &[])]);
        watches[s].closed().await;
        let (uri, b) = called.recv().await.unwrap();
        assert!(uri.contains("metadata.name%3Db"), "{uri}");
        assert!(!watches[a].is_closed() && called.try_recv().is_err());
        follow(Vec::new());
        watches[a].closed().await;
        b.closed().await;
        assert!(followed.config_map(&key).is_none());
    }
}
