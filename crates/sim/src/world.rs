//! Puts the virtual cluster together, lets it run, breaks it, and asks the checkers.

use crate::check::Checker;
use crate::fault::{Faults, Seam};
use crate::gateway::Gateway;
use crate::load::User;
use crate::observe::Observer;
use crate::{Options, Outcome, epoch, node};
use parking_lot::Mutex;
use serde_json::Value;
use skeg_apiserver::Identity;
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
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Pretend nodes in a run.
const NODES: u64 = 3;
/// How long the cluster may take to settle once faults end, and how quiet it must be then: longer
/// than the longest wait of a controller.
const SETTLE: Duration = Duration::from_secs(1200);
const QUIET: Duration = Duration::from_secs(330);

struct World {
    clock: Clock,
    random: Random,
    faults: Arc<Faults>,
    gateway: Arc<Gateway>,
}

/// One process; dropping it is its crash.
struct Process {
    cancel: CancellationToken,
    _controllers: Controllers,
    _tasks: JoinSet<()>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The processes beside the API server, as far as they run.
struct Processes {
    manager: Option<Process>,
    nodes: Vec<Option<Process>>,
}

impl World {
    fn client(&self, identity: Identity, component: &str) -> Client {
        let (gateway, faults) = (self.gateway.clone(), self.faults.clone());
        Client::new(Seam { component: component.into(), identity, gateway, faults }).named(component)
    }

    /// The controllers and the scheduler.
    fn start_manager(self: &Arc<Self>) -> Process {
        let cancel = CancellationToken::new();
        let world = self.clone();
        let clients = move |component: &str| world.client(Identity::component(component), component);
        let reader =
            self.client(Identity::system("system:kube-controller-manager", &[]), "kube-controller-manager");
        let informers = Informers::new(reader, self.random.fork(), cancel.clone());
        let ctx = ControllerContext {
            clients: Arc::new(clients),
            informers,
            clock: self.clock,
            random: self.random.fork(),
            config: skeg_controllers::Config { root_ca: Some("pretend".into()), ..Default::default() },
            kinds: self.gateway.kinds.clone(),
            cancel: cancel.clone(),
        };
        let controllers = skeg_controllers::start(&ctx);
        let client = self.client(Identity::system("system:kube-scheduler", &[]), "kube-scheduler");
        let recorder = Recorder::new(&client, "default-scheduler", "", self.clock, &cancel);
        let informers = Informers::new(client.clone(), self.random.fork(), cancel.clone());
        let scheduler =
            Scheduler::new(&client, &informers, recorder, self.clock, self.random.fork(), Default::default());
        let mut tasks = JoinSet::new();
        let stop = cancel.clone();
        tasks.spawn(async move { scheduler.run(stop).await });
        Process { cancel, _controllers: controllers, _tasks: tasks }
    }

    fn start_node(self: &Arc<Self>, n: usize) -> Process {
        let cancel = CancellationToken::new();
        let user = format!("system:node:{}", node_name(n));
        let client = self.client(Identity::system(&user, &["system:nodes"]), "kubelet");
        let mut tasks = JoinSet::new();
        tasks.spawn(node::run(node_name(n), client, self.clock, self.random.fork(), cancel.clone()));
        Process { cancel, _controllers: Controllers::default(), _tasks: tasks }
    }

    /// Starts whatever does not run.
    async fn start(self: &Arc<Self>, processes: &mut Processes, lost: Option<usize>) -> Result<(), String> {
        self.gateway.start().await?;
        processes.manager.get_or_insert_with(|| self.start_manager());
        for (n, node) in processes.nodes.iter_mut().enumerate().filter(|(n, _)| Some(*n) != lost) {
            node.get_or_insert_with(|| self.start_node(n));
        }
        Ok(())
    }

    /// Crashes one process after the other, and starts each again after a while.
    async fn crash_now_and_then(self: &Arc<Self>, processes: &mut Processes) -> Result<(), String> {
        loop {
            sleep(Duration::from_secs(5 + self.random.below(20))).await;
            let a_while = Duration::from_millis(self.random.below(10_000));
            match self.random.below(4) {
                0 => {
                    processes.manager = None;
                    sleep(a_while).await;
                }
                1 => {
                    // Long enough that it may be missed.
                    processes.nodes[self.random.below(NODES) as usize] = None;
                    sleep(a_while * 9).await;
                }
                2 => {
                    self.gateway.crash().await;
                    sleep(a_while / 2).await;
                }
                _ => continue,
            }
            self.start(processes, None).await?;
        }
    }
}

fn node_name(n: usize) -> String {
    format!("node-{n}")
}

pub async fn run(options: &Options) -> Outcome {
    let checker = Arc::new(Mutex::new(Checker::default()));
    let random = Random::seeded(options.seed);
    let faults = Faults::new(random.fork(), options.faults, options.bug);
    let broken = checker.lock().broken.clone();
    let end = tokio::select! {
        biased;
        // What follows a broken promise shows no more.
        () = broken.cancelled() => Ok(Vec::new()),
        end = go(options, &checker, random, faults.clone()) => end,
    };
    let mut failures = end.unwrap_or_else(|error| vec![format!("the run did not get to its end: {error}")]);
    let checker = checker.lock();
    let mut violations = checker.violations.clone();
    violations.append(&mut failures);
    Outcome {
        trace_hash: checker.hash,
        writes: checker.writes,
        requests: faults.requests.load(Ordering::Relaxed),
        violations,
    }
}

/// The run itself. Violations that no single write shows are returned.
async fn go(
    options: &Options,
    checker: &Arc<Mutex<Checker>>,
    random: Random,
    faults: Arc<Faults>,
) -> Result<Vec<String>, String> {
    let clock = Clock::simulated(epoch());
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let _checking = check(&*store, checker.clone()).await?;
    let gateway = Arc::new(Gateway::new(store.clone(), clock, random.fork()));
    let world = Arc::new(World { clock, random: random.clone(), faults: faults.clone(), gateway });
    let mut processes = Processes { manager: None, nodes: (0..NODES).map(|_| None).collect() };
    world.start(&mut processes, None).await?;
    let admin = |component: &str| world.client(Identity::system("admin", &["system:masters"]), component);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let observer = Observer::start(admin("observer"), random.fork(), stop);
    let user = User::new(admin("kubectl"), random.fork());

    tokio::select! {
        biased;
        () = user.work() => {}
        failed = world.crash_now_and_then(&mut processes), if options.faults => failed?,
    }
    faults.end();
    // In some runs a machine never comes back.
    let lost = Some(random.below(2 * NODES) as usize).filter(|n| options.faults && *n < NODES as usize);
    if let Some(lost) = lost {
        processes.nodes[lost] = None;
    }
    world.start(&mut processes, lost).await?;
    user.finish(lost.map(node_name).as_deref()).await.map_err(|error| error.to_string())?;
    settle(checker).await;
    checker.lock().settled(QUIET, &user.sizes());
    let violations = observer.finish().await;
    let listed = list(&*store).await;
    checker.lock().same_as(&listed);
    drop(processes);
    world.gateway.crash().await;
    Ok(violations)
}

/// Shows the checker every write from now on.
async fn check(store: &dyn Store, checker: Arc<Mutex<Checker>>) -> Result<JoinSet<()>, String> {
    let mut changes = store.watch("/registry/", Revision(1)).await.map_err(|error| error.to_string())?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(item) = changes.recv().await {
            if let WatchItem::Changes(changes) = item {
                let mut checker = checker.lock();
                changes.iter().for_each(|change| checker.see(change));
            }
        }
    });
    Ok(tasks)
}

/// Waits until nothing but signs of life was written for long, or for as long as is allowed.
async fn settle(checker: &Mutex<Checker>) {
    let deadline = Instant::now() + SETTLE;
    loop {
        let last = checker.lock().last_write().unwrap_or_else(Instant::now);
        let until = (last + QUIET).min(deadline);
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}

async fn list(store: &dyn Store) -> BTreeMap<Arc<str>, Value> {
    let page = store.list("/registry/", None, None, 0).await;
    let records = page.map(|page| page.records).unwrap_or_default();
    let value = |bytes: &bytes::Bytes| {
        skeg_apiserver::record::decode(bytes).ok().and_then(|body| serde_json::from_slice(&body.json).ok())
    };
    records.into_iter().map(|record| (record.key, value(&record.value).unwrap_or_default())).collect()
}
