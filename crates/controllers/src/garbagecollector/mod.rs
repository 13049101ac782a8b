//! Deletes what lost its owners, in the order that the way of their deletion asks for.
//! Upstream counterpart: `pkg/controller/garbagecollector`.

mod graph;
mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::discovery::{Resource, Served, other_than};
use crate::error::{Error, Result, ignore_not_found};
use crate::meta;
use graph::{FOREGROUND, Graph, Identity, ORPHAN, Uid, Work};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use plan::{Action, Owner};
use serde_json::json;
use skeg_api::Gvr;
use skeg_base::Level;
use skeg_client::{
    Api, Change, Client, DeleteOptions, EventType, Informer, Informers, ObjectRef, PartialObjectMetadata,
    PatchKind, Preconditions, Queue, Recorder,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 20;

/// Events come in great number, own nothing and expire by themselves.
const IGNORED: [&str; 1] = ["events"];

struct Controller {
    client: Client,
    served: Arc<Level<Arc<Served>>>,
    graph: Mutex<Graph>,
    queue: Queue<Work>,
    recorder: Recorder,
    /// The informers that feed the graph.
    followed: Mutex<BTreeMap<Gvr, Informer<PartialObjectMetadata>>>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, served: Arc<Level<Arc<Served>>>) {
    let client = ctx.client("generic-garbage-collector");
    let controller = Arc::new(Controller {
        recorder: ctx.recorder(&client, "garbage-collector-controller"),
        client,
        served: served.clone(),
        graph: Mutex::default(),
        queue: ctx.queue(),
        followed: Mutex::default(),
    });
    let synced = Arc::<Level<bool>>::default();
    let is_synced = synced.clone();
    let (informers, cancel, of) = (ctx.informers.clone(), ctx.cancel.clone(), controller.clone());
    controllers.0.spawn(async move {
        cancel.run_until_cancelled(follow_kinds(of, informers, served, synced)).await;
    });
    let queue = controller.queue.clone();
    // Nothing is judged before all kinds are known: an owner not seen yet is not a missing one.
    let ready = async move {
        is_synced.find(|synced| synced.then_some(())).await;
    };
    controllers.work("garbagecollector", WORKERS, queue, ready, move |work| {
        let controller = controller.clone();
        async move { controller.handle(work).await }
    });
}

/// Whether objects of the resource can be collected.
pub(crate) fn is_collectable(resource: &Resource) -> bool {
    resource.has(&["delete", "list", "watch"]) && !IGNORED.contains(&&*resource.gvr.resource)
}

/// Feeds the graph with every kind that can be collected, also with those that come later.
async fn follow_kinds(
    controller: Arc<Controller>,
    informers: Informers,
    served: Arc<Level<Arc<Served>>>,
    synced: Arc<Level<bool>>,
) {
    let mut now = Arc::<Served>::default();
    loop {
        now = other_than(&now, &served).await;
        let wanted: Vec<&Resource> = now.iter().filter(|resource| is_collectable(resource)).collect();
        let mut new = Vec::new();
        {
            let mut followed = controller.followed.lock();
            followed.retain(|gvr, _| {
                let stays = now.get(gvr).is_some_and(is_collectable);
                if !stays {
                    informers.stop(gvr);
                }
                stays
            });
            for resource in &wanted {
                if !followed.contains_key(&resource.gvr) {
                    let informer = informers.metadata(&resource.gvr);
                    followed.insert(resource.gvr.clone(), informer.clone());
                    new.push((informer, *resource));
                }
            }
        }
        for (informer, resource) in &new {
            let of = controller.clone();
            let api_version = resource.gvr.group_version().to_string().into();
            let kind = graph::Kind { api_version, kind: resource.kind.as_str().into() };
            informer.subscribe(move |change| of.changed(&kind, &change));
        }
        let all: Vec<_> = controller.followed.lock().values().cloned().collect();
        let all_synced = async {
            for informer in &all {
                informer.synced().await;
            }
        };
        tokio::select! {
            biased;
            () = all_synced => {
                if !all.is_empty() {
                    synced.modify(|synced| *synced = true);
                }
            }
            // A kind that went before its first list never syncs.
            _ = other_than(&now, &served) => {}
        }
    }
}

impl Controller {
    fn changed(&self, kind: &graph::Kind, change: &Change<'_, PartialObjectMetadata>) {
        let meta = &change.object().metadata;
        let work = match change {
            Change::Deleted(_) => self.graph.lock().remove(meta.uid.as_deref().unwrap_or_default()),
            Change::Updated { old, new } if same_to_graph(&old.metadata, &new.metadata) => return,
            _ => self.graph.lock().upsert(kind, change.key(), meta),
        };
        self.enqueue(work);
    }

    fn enqueue(&self, work: Vec<Work>) {
        work.into_iter().for_each(|work| self.queue.add(work));
    }

    async fn handle(&self, work: Work) -> Result<Option<Duration>> {
        match work {
            Work::Delete(uid) => self.look_at(uid).await,
            Work::Orphan(uid) => self.orphan(uid).await,
        }
    }

    fn resource(&self, api_version: &str, kind: &str) -> Result<Resource> {
        let found = self.served.read(|served| served.of_kind(api_version, kind).cloned());
        found.ok_or_else(|| Error::Discovery(format!("{kind} in {api_version}")))
    }

    fn api(&self, resource: &Resource) -> Api<PartialObjectMetadata> {
        self.client.metadata(&resource.gvr)
    }

    async fn look_at(&self, uid: Uid) -> Result<Option<Duration>> {
        let Some(node) = self.graph.lock().get(&uid).cloned() else { return Ok(None) };
        if node.is_deleting && !node.is_deleting_dependents {
            return Ok(None);
        }
        let identity = &node.identity;
        let resource = self.resource(&identity.api_version, &identity.kind)?;
        if node.is_virtual && resource.namespaced && identity.namespace.is_empty() {
            // A cluster-scoped object cannot be owned by one of a namespace: nothing to check.
            return Ok(None);
        }
        let namespace = if resource.namespaced { &*identity.namespace } else { "" };
        let live = self.api(&resource).get_opt(namespace, &identity.name).await?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(&*uid)) else {
            return Ok(self.gone(&node));
        };
        if node.is_virtual {
            // It exists, and its event is on the way. Were it to end before that comes, only the
            // event could tell.
            let followed = self.followed.lock().get(&resource.gvr).cloned();
            if let Some(informer) = followed {
                informer.wait_for(meta::revision(&live.metadata)).await;
            }
            return Ok(None);
        }
        if node.is_deleting_dependents {
            return self.delete_dependents(&uid, &resource, &live.metadata).await;
        }
        let Some(owners) = self.classify(identity, &live.metadata).await? else { return Ok(None) };
        let (has_dependents, has_waiting) = {
            let graph = self.graph.lock();
            (!graph.dependents(&uid).is_empty(), graph.has_waiting_dependent(&uid))
        };
        match plan::plan(&live.metadata, &owners, has_dependents, has_waiting) {
            Action::Keep => {}
            Action::DropReferences(uids) => self.drop_references(identity, &resource, &uids).await?,
            Action::Delete { propagation, unblock } => {
                let mut version = live.metadata.resource_version.clone();
                if unblock {
                    version = self.unblock_owners(identity, &resource, &live.metadata).await?;
                }
                let options = DeleteOptions {
                    preconditions: Some(Preconditions {
                        uid: Some(uid.to_string()),
                        resource_version: version,
                    }),
                    propagation_policy: Some(propagation.name().to_owned()),
                    ..Default::default()
                };
                ignore_not_found(self.api(&resource).delete(namespace, &identity.name, &options).await)?;
            }
        }
        Ok(None)
    }

    /// The server knows no such object. An observed one may still be on its way out of its
    /// informer: its event does the same again, and finds nothing.
    fn gone(&self, node: &graph::Node) -> Option<Duration> {
        let uid = &node.identity.uid;
        let work = {
            let mut graph = self.graph.lock();
            if node.is_virtual { graph.remove_virtual(uid) } else { graph.remove(uid) }
        };
        self.enqueue(work);
        None
    }

    /// Tells of each reference whether its owner is there. `None` for an object that can have no
    /// such owner, which is left alone.
    async fn classify(&self, identity: &Identity, object: &ObjectMeta) -> Result<Option<Vec<Owner>>> {
        let mut owners = Vec::new();
        for reference in object.owner_references.iter().flatten() {
            if self.graph.lock().is_absent(reference, &identity.namespace) {
                owners.push(Owner::Dangling);
                continue;
            }
            let resource = self.resource(&reference.api_version, &reference.kind)?;
            if resource.namespaced && identity.namespace.is_empty() {
                self.tell_invalid(identity, reference);
                return Ok(None);
            }
            let namespace = if resource.namespaced { &*identity.namespace } else { "" };
            let live = self.api(&resource).get_opt(namespace, &reference.name).await?;
            let owner = plan::classify(&reference.uid, live.as_ref().map(|live| &live.metadata));
            if owner == Owner::Dangling {
                let elsewhere = {
                    let mut graph = self.graph.lock();
                    graph.remember_absent(Identity::claimed(reference, namespace));
                    graph
                        .get(&reference.uid)
                        .is_some_and(|known| !known.is_virtual && *known.identity.namespace != *namespace)
                };
                if elsewhere {
                    self.tell_invalid(identity, reference);
                }
            }
            owners.push(owner);
        }
        Ok(Some(owners))
    }

    /// An owner must be in the namespace of its dependent, or in none.
    fn tell_invalid(&self, identity: &Identity, reference: &OwnerReference) {
        let described = format!(
            "[{}/{}, name: {}, uid: {}]",
            reference.api_version, reference.kind, reference.name, reference.uid
        );
        let message = format!("ownerRef {described} does not exist in namespace \"{}\"", identity.namespace);
        let about = ObjectRef {
            api_version: identity.api_version.to_string(),
            kind: identity.kind.to_string(),
            namespace: identity.namespace.to_string(),
            name: identity.name.to_string(),
            uid: identity.uid.to_string(),
            resource_version: String::new(),
        };
        self.recorder.event(&about, EventType::Warning, "OwnerRefInvalidNamespace", &message);
    }

    /// Lets an object go once nothing that blocks it depends on it.
    async fn delete_dependents(
        &self,
        uid: &str,
        resource: &Resource,
        live: &ObjectMeta,
    ) -> Result<Option<Duration>> {
        let work: Option<Vec<Work>> = {
            let graph = self.graph.lock();
            let blocking = graph.blocking_dependents(uid);
            let waiting = blocking.iter().filter(|node| !node.is_deleting_dependents);
            (!blocking.is_empty())
                .then(|| waiting.map(|node| Work::Delete(node.identity.uid.clone())).collect())
        };
        match work {
            Some(work) => self.enqueue(work),
            None => self.remove_finalizer(resource, live, FOREGROUND).await?,
        }
        Ok(None)
    }

    async fn remove_finalizer(&self, resource: &Resource, live: &ObjectMeta, finalizer: &str) -> Result<()> {
        let finalizers: Vec<&String> =
            live.finalizers.iter().flatten().filter(|own| *own != finalizer).collect();
        if live.finalizers.iter().flatten().count() == finalizers.len() {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": live.uid, "resourceVersion": live.resource_version, "finalizers": finalizers}});
        let (namespace, name) = (meta::namespace(live), meta::name(live));
        Ok(ignore_not_found(self.api(resource).patch(namespace, name, PatchKind::Merge, &patch, None).await)?)
    }

    /// Removes references to owners that do not keep the object any more.
    async fn drop_references(&self, identity: &Identity, resource: &Resource, uids: &[String]) -> Result<()> {
        let removals: Vec<_> = uids.iter().map(|uid| json!({"$patch": "delete", "uid": uid})).collect();
        let patch = json!({"metadata": {"uid": &*identity.uid, "ownerReferences": removals}});
        let api = self.api(resource);
        let (namespace, name) = (&*identity.namespace, &*identity.name);
        match api.patch(namespace, name, PatchKind::Strategic, &patch, None).await {
            // Custom resources know no strategic merge: send what is to be left.
            Err(error) if error.code() == Some(415) => {}
            other => return Ok(ignore_not_found(other)?),
        }
        let Some(live) = api.get_opt(namespace, name).await? else { return Ok(()) };
        let meta = &live.metadata;
        let left: Vec<_> =
            meta.owner_references.iter().flatten().filter(|owner| !uids.contains(&owner.uid)).collect();
        let patch = json!({"metadata": {"uid": &*identity.uid, "resourceVersion": meta.resource_version, "ownerReferences": left}});
        Ok(ignore_not_found(api.patch(namespace, name, PatchKind::Merge, &patch, None).await)?)
    }

    /// Makes an object hold up none of its owners; the version it then has.
    async fn unblock_owners(
        &self,
        identity: &Identity,
        resource: &Resource,
        live: &ObjectMeta,
    ) -> Result<Option<String>> {
        let mut owners = live.owner_references.clone().unwrap_or_default();
        for owner in &mut owners {
            owner.block_owner_deletion = Some(false);
        }
        let patch = json!({"metadata": {"uid": &*identity.uid, "resourceVersion": live.resource_version, "ownerReferences": owners}});
        let api = self.api(resource);
        let patched = api.patch(&identity.namespace, &identity.name, PatchKind::Merge, &patch, None).await?;
        Ok(patched.metadata.resource_version)
    }

    /// Cuts the dependents of an object loose, then lets it go.
    async fn orphan(&self, uid: Uid) -> Result<Option<Duration>> {
        let (node, dependents) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(&uid).cloned() else { return Ok(None) };
            let dependents: Vec<Identity> =
                graph.dependents(&uid).into_iter().map(|node| node.identity.clone()).collect();
            (node, dependents)
        };
        let uids = [uid.to_string()];
        let drops = dependents.iter().map(|dependent| {
            let uids = &uids;
            async move {
                let resource = self.resource(&dependent.api_version, &dependent.kind)?;
                self.drop_references(dependent, &resource, uids).await
            }
        });
        for result in futures_util::future::join_all(drops).await {
            match result {
                // 409 and 422: another object of that name, which does not depend on this one.
                Err(Error::Client(error)) if matches!(error.code(), Some(409 | 422)) => {}
                other => other?,
            }
        }
        let resource = self.resource(&node.identity.api_version, &node.identity.kind)?;
        let live = self.api(&resource).get_opt(&node.identity.namespace, &node.identity.name).await?;
        if let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(&*uid)) {
            self.remove_finalizer(&resource, &live.metadata, ORPHAN).await?;
        }
        Ok(None)
    }
}

/// Whether two states of an object differ in nothing the graph keeps.
fn same_to_graph(old: &ObjectMeta, new: &ObjectMeta) -> bool {
    old.owner_references == new.owner_references
        && old.finalizers == new.finalizers
        && old.deletion_timestamp.is_some() == new.deletion_timestamp.is_some()
}
