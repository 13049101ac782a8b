//! Starts the node and keeps one worker per Pod: who is born, who hears of what, who is left over
//! from before. Upstream counterpart: `kubelet.go`'s sync loop.

mod resizes;

use crate::machine::resize::Allocation;
use crate::machine::{self, Ended};
use crate::sources::Followed;
use crate::worker::{self, Birth, Worker};
use crate::{
    Context, Error, NodeConfig, NodeParts, admit, host, registration, server, services, storage, text,
    volumes,
};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use skeg_client::{Change, EventType, Informer, Informers, Recorder, object_ref};
use skeg_runtime::{Event, SandboxStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, oneshot};
use tokio_util::sync::CancellationToken;

/// How often local storage is measured, as upstream's kubelet does.
const STORAGE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
const INDEX_NODE: &str = "spec.nodeName";

/// The running node agent.
pub struct Node {
    agent: Arc<Agent>,
    registered: Mutex<Option<oneshot::Receiver<()>>>,
}

pub(crate) struct Agent {
    pub ctx: Arc<Context>,
    workers: Mutex<BTreeMap<String, Arc<Worker>>>,
    /// Sandboxes found at start, until their Pod's worker takes them.
    found: Mutex<BTreeMap<String, SandboxStatus>>,
    nodes: Informer<NodeObject>,
    /// A Pod came whose local storage is limited.
    limited: Notify,
    /// A Pod asks for another size, or room was freed that one waits for.
    resize: Notify,
    /// Some Pod waits for room to grow.
    waiting: AtomicBool,
    /// Room is given to one after the other.
    admission: Mutex<()>,
    handle: Handle,
}

impl Node {
    /// Starts the agent: registers the node, takes up the sandboxes it finds, follows its Pods.
    /// Returns once its server listens; see [`Node::registered`]. It works until `cancel`.
    pub async fn start(
        mut config: NodeConfig,
        parts: NodeParts,
        cancel: CancellationToken,
    ) -> Result<Arc<Node>, Error> {
        let create = |dir: &str| {
            let path = config.data_dir.join(dir);
            std::fs::create_dir_all(&path)
                .map_err(|source| Error::Io { what: format!("create {}", path.display()), source })
        };
        create("pods")?;
        create("logs")?;
        let listener = config.server.as_mut().map(server::bind).transpose()?;
        let host = host::Host::read(&config.data_dir, config.max_pods, &config.version);
        let recorder = Recorder::new(&parts.client, "kubelet", &config.name, parts.clock, &cancel);
        let found = parts.runtime.sandboxes().await?;
        let ctx = Arc::new(Context {
            recorder,
            pods: parts.informers.of::<Pod>(),
            followed: Followed::new(Informers::new(
                parts.client.clone(),
                parts.random.fork(),
                cancel.clone(),
            )),
            services: parts.informers.of::<Service>(),
            client: parts.client,
            runtime: parts.runtime,
            images: parts.images,
            network: parts.network,
            clock: parts.clock,
            random: parts.random,
            host,
            config,
        });
        let agent = Arc::new(Agent {
            ctx: ctx.clone(),
            workers: Mutex::default(),
            found: Mutex::new(found.into_iter().map(|s| (s.config.uid.clone(), s)).collect()),
            nodes: parts.informers.of::<NodeObject>(),
            limited: Notify::new(),
            resize: Notify::new(),
            waiting: AtomicBool::new(false),
            admission: Mutex::default(),
            handle: Handle::current(),
        });
        let (told, registered) = oneshot::channel();
        tokio::spawn(registration::run(ctx.clone(), told, cancel.clone()));
        if let (Some(config), Some(listener)) = (&ctx.config.server, listener) {
            server::start(agent.clone(), config, listener, cancel.clone())?;
        }
        tokio::spawn(agent.clone().follow_runtime(cancel.clone()));
        tokio::spawn(agent.clone().follow_api(cancel.clone()));
        tokio::spawn(agent.clone().limit_storage(cancel.clone()));
        tokio::spawn(crate::image_gc::run(agent.ctx.clone(), cancel.clone()));
        tokio::spawn(agent.clone().follow_resizes(cancel.clone()));
        let slices = parts.informers.of::<EndpointSlice>();
        tokio::spawn(publish_services(ctx, slices, cancel));
        Ok(Arc::new(Node { agent, registered: Mutex::new(Some(registered)) }))
    }

    /// Returns once the Node object says Ready.
    pub async fn registered(&self) {
        let receiver = self.registered.lock().take();
        if let Some(receiver) = receiver {
            let _ = receiver.await;
        }
    }

    /// The port of the node's server.
    pub fn server_port(&self) -> Option<u16> {
        self.agent.ctx.config.server.as_ref().map(|server| server.port)
    }

    /// How many Pods have a worker.
    pub fn pods(&self) -> usize {
        self.agent.workers.lock().len()
    }
}

impl Agent {
    pub fn worker(&self, uid: &str) -> Option<Arc<Worker>> {
        self.workers.lock().get(uid).cloned()
    }

    pub fn workers(&self) -> Vec<Arc<Worker>> {
        self.workers.lock().values().cloned().collect()
    }

    /// The worker of a Pod by its name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Worker>> {
        self.workers
            .lock()
            .values()
            .find(|w| {
                let pod = w.pod();
                text(&pod.metadata.namespace) == namespace && text(&pod.metadata.name) == name
            })
            .cloned()
    }

    async fn follow_api(self: Arc<Self>, cancel: CancellationToken) {
        let ctx = &self.ctx;
        ctx.pods
            .add_index(INDEX_NODE, |pod: &Pod| pod.spec.iter().filter_map(|s| s.node_name.clone()).collect());
        let weak = Arc::downgrade(&self);
        ctx.pods.subscribe(move |change: Change<'_, Pod>| {
            let Some(agent) = weak.upgrade() else { return };
            let pod = change.object().arc();
            let mine = pod.spec.as_ref().and_then(|s| s.node_name.as_deref())
                == Some(agent.ctx.config.name.as_str());
            if mine {
                match change {
                    Change::Deleted(_) => agent.pod_gone(text(&pod.metadata.uid)),
                    Change::Updated { old, .. } => {
                        // A Pod of the same name may have taken the place of another unseen.
                        if old.entry().uid() != text(&pod.metadata.uid) {
                            agent.pod_gone(old.entry().uid());
                        }
                        agent.pod_seen(pod.clone());
                    }
                    Change::Added(_) => agent.pod_seen(pod.clone()),
                }
            }
        });
        tokio::select! {
            () = cancel.cancelled() => return,
            () = ctx.pods.synced() => {}
        }
        self.sweep().await;
    }

    /// Follows what the Pods refer to by now.
    fn follow_sources(self: &Arc<Self>) {
        let wanted = || {
            let workers = self.workers();
            let of = |worker: &Arc<Worker>| {
                (text(&worker.pod().metadata.namespace).to_owned(), worker.references())
            };
            workers.iter().map(of).collect()
        };
        let weak = Arc::downgrade(self);
        self.ctx.followed.follow(wanted, move |namespace, changed| {
            let Some(agent) = weak.upgrade() else { return };
            for worker in agent.workers() {
                if worker.references().meets(changed) && text(&worker.pod().metadata.namespace) == namespace {
                    worker.sources_changed();
                }
            }
        });
    }

    fn pod_seen(self: &Arc<Self>, pod: Arc<Pod>) {
        let uid = text(&pod.metadata.uid).to_owned();
        if let Some(worker) = self.worker(&uid) {
            let refers_anew = worker.deliver(pod);
            if refers_anew {
                self.follow_sources();
            }
            if worker.resizes() {
                self.resize.notify_one();
            }
            return self.room_changed();
        }
        let _turn = self.admission.lock();
        let checkpoint = worker::read_checkpoint(&self.ctx, &uid).map(|checkpoint| checkpoint.allocated);
        let birth = match self.found.lock().remove(&uid) {
            Some(sandbox) => Birth::Recovered(sandbox),
            None => match self.admit(&pod) {
                Ok(()) => Birth::Fresh,
                Err(ended) => {
                    let message = ended.message.trim_start_matches("Pod was rejected: ");
                    self.ctx.recorder.event(&object_ref(&*pod), EventType::Warning, &ended.reason, message);
                    Birth::Rejected(ended)
                }
            },
        };
        self.raise(pod, checkpoint, birth);
    }

    fn raise(self: &Arc<Self>, pod: Arc<Pod>, allocation: Option<Allocation>, birth: Birth) {
        let limited = storage::is_limited(&pod);
        let worker = Worker::new(pod, false, allocation);
        if worker.resizes() {
            self.resize.notify_one();
        }
        self.workers.lock().insert(worker.uid.clone(), worker.clone());
        self.follow_sources();
        if limited {
            self.limited.notify_one();
        }
        let agent = self.clone();
        self.handle.spawn(async move {
            let uid = worker.uid.clone();
            // The worker is the panic boundary of its Pod.
            let task = tokio::spawn(worker::run(agent.ctx.clone(), worker, birth));
            if let Err(error) = task.await {
                tracing::error!(uid, %error, "a Pod worker panicked");
            }
            agent.workers.lock().remove(&uid);
            agent.follow_sources();
            agent.room_changed();
        });
    }

    /// Pods that started before are not judged again; nor are those that will never run.
    fn admit(&self, pod: &Pod) -> Result<(), Ended> {
        let started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if started || pod.metadata.deletion_timestamp.is_some() || !admit::counts(pod) {
            return Ok(());
        }
        let Some(node) = self.nodes.get("", &self.ctx.config.name) else { return Ok(()) };
        // The scheduler gives away the room of Pods that are gone, whatever still runs of them.
        let others: Vec<Arc<Pod>> = self
            .workers()
            .iter()
            .filter(|w| !w.is_gone() && !w.memory().is_over())
            .map(|w| w.allocated_pod())
            .filter(|p| admit::counts(p))
            .collect();
        admit::admit(pod, &node, &others)
    }

    fn pod_gone(&self, uid: &str) {
        if let Some(worker) = self.worker(uid) {
            worker.gone();
        }
        self.room_changed();
    }

    async fn follow_runtime(self: Arc<Self>, cancel: CancellationToken) {
        let mut events = self.ctx.runtime.events();
        loop {
            let event = tokio::select! {
                () = cancel.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Ok(Event::Container { uid, .. } | Event::SandboxGone { uid }) => {
                    if let Some(worker) = self.worker(&uid) {
                        worker.runtime_changed();
                    }
                }
                Ok(Event::Lagged) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.workers().iter().for_each(|w| w.runtime_changed());
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Removes what Pods that no longer exist left on the host: sandboxes, addresses,
    /// directories, holds on images.
    async fn sweep(self: &Arc<Self>) {
        let orphans: Vec<SandboxStatus> = std::mem::take(&mut *self.found.lock()).into_values().collect();
        for sandbox in orphans {
            let uid = &sandbox.config.uid;
            tracing::info!(uid, "removing the sandbox of a Pod that is gone");
            if let Err(why) = worker::remove_sandbox(&self.ctx, uid, &[]).await {
                tracing::error!(uid, why, "cannot remove a left-over sandbox");
            }
        }
        let alive: BTreeSet<String> = self.workers.lock().keys().cloned().collect();
        match self.ctx.network.attached().await {
            Ok(attached) => {
                for uid in attached.iter().filter(|uid| !alive.contains(*uid)) {
                    if let Err(error) = self.ctx.network.detach(uid).await {
                        tracing::warn!(uid, %error, "cannot release an address");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list addresses"),
        }
        let containers: Option<BTreeSet<String>> = match self.ctx.runtime.sandboxes().await {
            Ok(all) => Some(all.into_iter().flat_map(|s| s.containers.into_iter().map(|c| c.id)).collect()),
            Err(_) => None,
        };
        let ctx = self.ctx.clone();
        let done = tokio::task::spawn_blocking(move || {
            for entry in std::fs::read_dir(ctx.config.data_dir.join("pods"))?.flatten() {
                if !alive.contains(&*entry.file_name().to_string_lossy()) {
                    volumes::remove_pod_dir(&entry.path())?;
                }
            }
            for entry in std::fs::read_dir(ctx.config.data_dir.join("logs"))?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let uid = name.rsplit('_').next().unwrap_or_default();
                if !alive.contains(uid) {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
            if let Some(containers) = containers
                && let Err(error) = ctx.images.reconcile(|owner| containers.contains(owner))
            {
                tracing::warn!(%error, "cannot collect images");
            }
            Ok::<(), std::io::Error>(())
        });
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot remove left-over directories"),
            Err(error) => tracing::error!(%error, "the sweep panicked"),
        }
    }

    /// Evicts Pods that take more local storage than their limits say. Does nothing while no such
    /// Pod runs.
    async fn limit_storage(self: Arc<Self>, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(STORAGE_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let limited = |worker: &Arc<Worker>| {
            let pod = worker.pod();
            storage::is_limited(&pod) && !machine::is_finished(&pod, &worker.memory())
        };
        loop {
            let idle = !self.workers().iter().any(limited);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.limited.notified(), if idle => continue,
                _ = ticks.tick(), if !idle => {}
            }
            for worker in self.workers().into_iter().filter(limited) {
                let (pod, memory) = (worker.pod(), worker.memory());
                let ctx = self.ctx.clone();
                let measured = tokio::task::spawn_blocking(move || storage::excess(&ctx, &pod, &memory));
                match measured.await {
                    Ok(Some(why)) => worker.evict(why),
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "measuring local storage panicked"),
                }
            }
        }
    }
}

/// Follows Services and EndpointSlices and publishes their tables; changes that come while one
/// publication is under way are published together.
async fn publish_services(ctx: Arc<Context>, slices: Informer<EndpointSlice>, cancel: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    ctx.services.subscribe(move |_: Change<'_, Service>| notify.notify_one());
    let notify = changed.clone();
    slices.subscribe(move |_: Change<'_, EndpointSlice>| notify.notify_one());
    ctx.services.synced().await;
    slices.synced().await;
    let mut published = None;
    loop {
        let tables =
            services::tables(&ctx.services.list(None), &slices.list(None), &ctx.config.cluster_domain);
        if published.as_ref() != Some(&tables) {
            match ctx.network.publish(tables.clone()).await {
                Ok(()) => published = Some(tables),
                Err(error) => {
                    tracing::warn!(%error, "cannot publish Services");
                    let notify = changed.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        notify.notify_one();
                    });
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = changed.notified() => {}
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn config() -> NodeConfig {
        NodeConfig {
            name: "n1".into(),
            addresses: vec!["192.168.0.1".parse().unwrap()],
            data_dir: "/nonexistent".into(),
            max_pods: 110,
            cluster_dns: Some("10.96.0.10".parse().unwrap()),
            cluster_domain: "cluster.local".into(),
            pod_cidr: None,
            version: "v1.36.0".into(),
            labels: BTreeMap::new(),
            seccomp_default: true,
            server: None,
        }
    }
}
