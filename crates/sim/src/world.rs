//! Puts the virtual cluster together, lets it run, breaks it, and asks the checkers.

use crate::check::Checker;
use crate::fault::{Faults, Seam};
use crate::load::User;
use crate::{Options, Outcome, epoch, node};
use skeg_api::Kinds;
use skeg_apiserver::{ApiServer, Config, Identity, bootstrap};
use skeg_base::{Clock, Random};
use skeg_client::{Client, Informers, Recorder};
use skeg_controllers::{ControllerContext, Controllers};
use skeg_scheduler::Scheduler;
use skeg_store::{Memory, Revision, Store, WatchItem};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Pretend nodes in a run.
const NODES: u64 = 3;
/// How long the cluster may take to settle once faults end, and how quiet it must be then.
const SETTLE: Duration = Duration::from_secs(900);
const QUIET: Duration = Duration::from_secs(300);

struct World {
    clock: Clock,
    random: Random,
    faults: Arc<Faults>,
    server: Arc<ApiServer>,
    store: Arc<dyn Store>,
}

/// The controllers and the scheduler; dropping them is a crash.
struct Manager {
    cancel: CancellationToken,
    _controllers: Controllers,
    _scheduler: JoinSet<()>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl World {
    fn client(&self, identity: Identity, component: &str) -> Client {
        Client::new(Seam {
            component: component.into(),
            service: self.server.client_service(identity),
            faults: self.faults.clone(),
            store: self.store.clone(),
        })
        .named(component)
    }

    fn start_manager(self: &Arc<Self>) -> Manager {
        let cancel = CancellationToken::new();
        let world = self.clone();
        let clients = move |component: &str| world.client(Identity::component(component), component);
        let reader = self.client(Identity::system("system:kube-controller-manager", &[]), "kube-controller-manager");
        let informers = Informers::new(reader, self.random.fork(), cancel.clone());
        let (_, kinds_changed) = tokio::sync::watch::channel(0);
        let ctx = ControllerContext {
            clients: Arc::new(clients),
            informers,
            clock: self.clock,
            random: self.random.fork(),
            config: skeg_controllers::Config { root_ca: Some("pretend".into()), ..Default::default() },
            kinds_changed,
            cancel: cancel.clone(),
        };
        let controllers = skeg_controllers::start(&ctx);
        let client = self.client(Identity::system("system:kube-scheduler", &[]), "kube-scheduler");
        let recorder = Recorder::new(&client, "default-scheduler", "", self.clock, &cancel);
        let informers = Informers::new(client.clone(), self.random.fork(), cancel.clone());
        let scheduler = Scheduler::new(&client, &informers, recorder, self.clock, self.random.fork(), Default::default());
        let mut tasks = JoinSet::new();
        let stop = cancel.clone();
        tasks.spawn(async move { scheduler.run(stop).await });
        Manager { cancel, _controllers: controllers, _scheduler: tasks }
    }

    fn start_node(self: &Arc<Self>, n: u64) -> (CancellationToken, JoinSet<()>) {
        let cancel = CancellationToken::new();
        let name = format!("node-{n}");
        // Not the node's own identity: a node may only watch its Pods by field selector, and the
        // pretend one shares the informers' plain way.
        let client = self.client(Identity::system("pretend-kubelet", &["system:masters"]), "kubelet");
        let mut tasks = JoinSet::new();
        tasks.spawn(node::run(name, client, self.clock, self.random.fork(), cancel.clone()));
        (cancel, tasks)
    }
}

pub async fn run(options: &Options) -> Outcome {
    let random = Random::seeded(options.seed);
    let clock = Clock::simulated(epoch());
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let checker = Arc::new(parking_lot::Mutex::new(Checker::default()));
    let Ok(mut changes) = store.watch("/registry/", Revision(1)).await else { return failed("the store's watch") };
    let seen = checker.clone();
    let mut background = JoinSet::new();
    background.spawn(async move {
        while let Some(item) = changes.recv().await {
            if let WatchItem::Changes(changes) = item {
                let mut checker = seen.lock();
                changes.iter().for_each(|change| checker.see(change));
            }
        }
    });
    let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
    let addresses = bootstrap::Settings { service_ip: [10, 0, 0, 1].into(), endpoints: vec![[10, 1, 0, 1].into()], port: 6443 };
    if let Err(error) = bootstrap::run(&*store, &kinds, clock, &random, &addresses).await {
        return failed(&error.to_string());
    }
    let config = Config { kinds, hooks: Box::new(crate::hooks::hooks) };
    let server = match ApiServer::open(config, store.clone(), clock, random.fork()).await {
        Ok(server) => server,
        Err(error) => return failed(&error.to_string()),
    };
    let faults = Faults::new(random.fork(), options.faults, options.bug);
    let world = Arc::new(World { clock, random: random.clone(), faults: faults.clone(), server: server.clone(), store: store.clone() });
    let mut manager = world.start_manager();
    let mut nodes: Vec<_> = (0..NODES).map(|n| world.start_node(n)).collect();
    let user = User { client: world.client(Identity::system("admin", &["system:masters"]), "kubectl"), random: random.fork() };

    let work = user.work();
    tokio::pin!(work);
    loop {
        let pause = Duration::from_secs(10 + random.below(30));
        tokio::select! {
            biased;
            () = &mut work => break,
            () = tokio::time::sleep(pause) => {}
        }
        checker.lock().excuse(faults.lost_answers.load(Ordering::Relaxed));
        if options.faults {
            match random.below(4) {
                0 => manager = world.start_manager(),
                1 => {
                    let n = random.below(NODES);
                    nodes[n as usize].0.cancel();
                    nodes[n as usize] = world.start_node(n);
                }
                _ => {}
            }
        }
    }
    faults.end();
    user.finish().await;
    tokio::time::sleep(SETTLE).await;
    checker.lock().settled(QUIET);
    let listed = list(&*store).await;
    checker.lock().same_as(&listed);
    drop(manager);
    nodes.iter().for_each(|(cancel, _)| cancel.cancel());
    server.stop().await;
    let checker = checker.lock();
    Outcome {
        trace_hash: checker.hash,
        writes: checker.writes,
        requests: faults.requests.load(Ordering::Relaxed),
        violations: checker.violations.clone(),
    }
}

async fn list(store: &dyn Store) -> BTreeMap<Arc<str>, serde_json::Value> {
    let page = store.list("/registry/", None, None, 0).await;
    let records = page.map(|page| page.records).unwrap_or_default();
    let value = |bytes: &bytes::Bytes| skeg_apiserver::record::decode(bytes).ok().and_then(|body| serde_json::from_slice(&body.json).ok());
    records.into_iter().map(|record| (record.key, value(&record.value).unwrap_or_default())).collect()
}

fn failed(why: &str) -> Outcome {
    Outcome { trace_hash: 0, writes: 0, requests: 0, violations: vec![format!("the run did not start: {why}")] }
}
