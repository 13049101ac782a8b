//! `skeg up`: wires the parts into one process and runs it until a signal.

use crate::detach::Report;
use crate::instance::Instance;
use crate::settings::Settings;
use crate::{cli, forwarding, image, logging, preflight, refuse};
use anyhow::{Context, Result, anyhow};
use skeg_api::Kinds;
use skeg_apiserver::pki::{self, Pki};
use skeg_apiserver::{ApiServer, Identity, assembly, bootstrap};
use skeg_base::{Clock, Random};
use skeg_client::{Client, Informers, Recorder};
use skeg_controllers::ControllerContext;
use skeg_network::{Network, NetworkConfig};
use skeg_node::{Node, NodeConfig, NodeParts};
use skeg_runtime::{Runtime, RuntimeConfig};
use skeg_scheduler::Scheduler;
use skeg_store::{Sqlite, Store};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const CLUSTER_DOMAIN: &str = "cluster.local";
/// How long the parts may take to end before the process ends without them.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the cluster in this process until SIGTERM or SIGINT.
pub fn up(instance: &Instance, settings: Settings, json_log: bool) -> Result<()> {
    let mut report = Report::from_environment();
    let result = run(instance, settings, json_log, &mut report);
    if let Err(error) = &result {
        tracing::error!("{error:#}");
        report.failed(error);
    }
    result
}

fn run(instance: &Instance, settings: Settings, json_log: bool, report: &mut Report) -> Result<()> {
    let started = Instant::now();
    // Whatever can be refused is refused before anything is made.
    instance.check_stopped()?;
    preflight::check(&settings, &instance.id)?;
    let listener = match std::net::TcpListener::bind(settings.listen) {
        Ok(listener) => listener,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            refuse!(
                "--listen {}: the address is in use: stop what uses it, or choose another port",
                settings.listen
            )
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
            let port = settings.listen.port();
            refuse!(
                "--listen {}: this host has no such address: name one of its own, such as 127.0.0.1:{port}, or 0.0.0.0:{port} for all",
                settings.listen
            )
        }
        Err(error) => refuse!("--listen {}: {error}", settings.listen),
    };
    listener.set_nonblocking(true)?;
    instance.create_directories()?;
    let _claim = instance.claim()?;
    logging::start((!json_log).then(|| instance.log_path()).as_deref())?;
    let random = Random::system();
    skeg_base::set_hash_seed(random.next_u64());
    settings.save(instance)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(1 << 20).build()?;
    let result = runtime.block_on(serve(instance, settings, listener, random, started, report));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn serve(
    instance: &Instance,
    settings: Settings,
    listener: std::net::TcpListener,
    random: Random,
    started: Instant,
    report: &mut Report,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let clock = Clock::system();
    let (network, images, runtime, mut control) = tokio::try_join!(
        async {
            match open_network(instance, &settings).await {
                Ok(network) => Ok(network),
                // What the kernel or the host lacks: the text says what to do.
                Err(error) => refuse!("{error:#}"),
            }
        },
        async { image::open(instance, Some(&settings)) },
        async { open_runtime(instance).await },
        ControlPlane::open(instance, &settings, clock, &random),
    )?;
    control.listen(listener, &settings, &network).await?;
    let api_ready = started.elapsed();
    let cancel = CancellationToken::new();
    let parts = control.start_components(&settings, clock, &random, &cancel);
    let node = control
        .start_node(
            instance,
            &settings,
            NodeParts {
                client: control.client(
                    Identity::system(&format!("system:node:{}", settings.node_name), &["system:nodes"]),
                    "kubelet",
                ),
                informers: parts.informers.clone(),
                runtime,
                images,
                network: network.clone(),
                clock,
                random: random.fork(),
            },
            &cancel,
        )
        .await?;
    let mut trouble = control.store.trouble();
    let trouble = async {
        match trouble.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = node.registered() => {
            report.say(&format!(
                "API ready {} ms · node Ready {} ms",
                api_ready.as_millis(),
                started.elapsed().as_millis()
            ));
            report.say(&format!("export KUBECONFIG={}", instance.path("kubeconfig").display()));
            report.ready();
        }
        why = trouble => {
            // What is stored can be read, and writes go on as soon as there is room.
            let directory = instance.data_dir.display();
            let error = anyhow!("the cluster runs, but cannot write, so its node is not Ready: {why}; make room on the disk of {directory}");
            tracing::error!("{error:#}");
            report.failed(&error);
        }
    }
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
        () = control.server.failed() => tracing::error!("stopping: the store's content cannot be understood"),
    }
    cancel.cancel();
    let stop = async {
        parts.controllers.join().await;
        control.server.stop().await;
        control.store.close().await;
    };
    if tokio::time::timeout(STOP_TIMEOUT, stop).await.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    Ok(())
}

/// The API server and what it stands on.
struct ControlPlane {
    server: Arc<ApiServer>,
    store: Arc<Sqlite>,
    pki: Arc<Pki>,
    /// Where the dialer finds the node's server.
    node_port: Arc<OnceLock<u16>>,
    listeners: Vec<skeg_apiserver::net::Listening>,
}

/// What runs beside it.
struct Components {
    informers: Informers,
    controllers: skeg_controllers::Controllers,
}

impl ControlPlane {
    async fn open(instance: &Instance, settings: &Settings, clock: Clock, random: &Random) -> Result<Self> {
        let pki = Arc::new(Pki::open(&instance.path("pki"), clock).context("certificates")?);
        let options = skeg_store::Options::new(instance.path("store.db"), clock);
        let store = tokio::task::spawn_blocking(move || Sqlite::open(&options)).await?.context("store")?;
        let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
        let node_port = Arc::new(OnceLock::new());
        let dialer = crate::dial::Loopback { node: settings.node_name.clone(), port: node_port.clone() };
        let setup = assembly::Setup {
            edge: Some(assembly::Edge { pki: pki.clone(), dialer: Arc::new(dialer) }),
            cluster_domain: CLUSTER_DOMAIN.into(),
            admission: settings.admission(),
            bootstrap: bootstrap::Settings {
                service_range: settings.service_cidr.into(),
                service_ip: settings.api_service_ip().into(),
                endpoints: vec![settings.gateway().into()],
                port: settings.listen.port(),
            },
        };
        let dynamic: Arc<dyn Store> = store.clone();
        let server =
            assembly::open(setup, kinds, dynamic, clock, random.fork()).await.context("API server")?.server;
        server.compact_every(Duration::from_secs(settings.compaction_interval_seconds.into()));
        Ok(ControlPlane { server, store, pki, node_port, listeners: Vec::new() })
    }

    /// Serves on the bound address and on the bridge's, and writes the administrator's kubeconfig.
    async fn listen(
        &mut self,
        listener: std::net::TcpListener,
        settings: &Settings,
        network: &Network,
    ) -> Result<()> {
        let more =
            [settings.listen.ip().to_string(), settings.gateway().to_string(), settings.node_name.clone()];
        let sans = pki::apiserver_sans(&settings.api_service_ip().to_string(), CLUSTER_DOMAIN, &more);
        let tls = Arc::new(self.pki.server_config(sans).context("TLS")?);
        let listener = tokio::net::TcpListener::from_std(listener)?;
        self.listeners.push(self.server.listen(listener, tls.clone())?);
        if settings.listen.ip().is_unspecified() || settings.listen.ip() == IpAddr::from(network.gateway()) {
            return Ok(());
        }
        let gateway = SocketAddr::from((network.gateway(), settings.listen.port()));
        match tokio::net::TcpListener::bind(gateway).await {
            Ok(listener) => self.listeners.push(self.server.listen(listener, tls)?),
            Err(error) => refuse!("the API cannot listen on {gateway}, where Pods reach it: {error}"),
        }
        Ok(())
    }

    fn write_kubeconfig(&self, instance: &Instance, settings: &Settings) -> Result<()> {
        let admin = self.pki.client("admin", "skeg-admin", &["system:masters"])?;
        let host = if settings.listen.ip().is_unspecified() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            settings.listen.ip()
        };
        let server = format!("https://{}", SocketAddr::from((host, settings.listen.port())));
        let text = pki::kubeconfig(&server, self.pki.ca_pem(), "skeg-admin", &admin);
        Ok(pki::write_private(&instance.path("kubeconfig"), &text)?)
    }

    fn client(&self, identity: Identity, name: &str) -> Client {
        Client::new(self.server.client_service(identity)).named(name)
    }

    /// The authority, for the controller that signs.
    fn signer(&self) -> skeg_controllers::Signer {
        let pki = self.pki.clone();
        skeg_controllers::Signer::new(move |request, usages, lasts| {
            let lasts = lasts.try_into().map_err(|_| "the time is too long".to_owned())?;
            pki.sign_request(request, usages, lasts).map_err(|error| error.to_string())
        })
    }

    fn start_components(
        &self,
        settings: &Settings,
        clock: Clock,
        random: &Random,
        cancel: &CancellationToken,
    ) -> Components {
        let reader =
            self.client(Identity::system("system:kube-controller-manager", &[]), "kube-controller-manager");
        let informers = Informers::new(reader, random.fork(), cancel.clone());
        let server = self.server.clone();
        let clients = move |component: &str| {
            Client::new(server.client_service(Identity::component(component))).named(component)
        };
        let ctx = ControllerContext {
            clients: Arc::new(clients),
            informers: informers.clone(),
            clock,
            random: random.fork(),
            config: skeg_controllers::Config {
                root_ca: Some(self.pki.ca_pem().to_owned()),
                signer: Some(self.signer()),
                ..Default::default()
            },
            kinds: self.server.kinds().clone(),
            cancel: cancel.clone(),
        };
        let controllers = skeg_controllers::start(&ctx);
        let client = self.client(Identity::system("system:kube-scheduler", &[]), "kube-scheduler");
        let recorder = Recorder::new(&client, "default-scheduler", &settings.node_name, clock, cancel);
        let scheduler =
            Scheduler::new(&client, &informers, recorder, clock, random.fork(), Default::default());
        let stop = cancel.clone();
        tokio::spawn(async move { scheduler.run(stop).await });
        Components { informers, controllers }
    }

    async fn start_node(
        &self,
        instance: &Instance,
        settings: &Settings,
        parts: NodeParts,
        cancel: &CancellationToken,
    ) -> Result<Arc<Node>> {
        self.write_kubeconfig(instance, settings)?;
        let address = node_address(settings);
        let names = [settings.node_name.clone(), address.to_string(), "127.0.0.1".into(), "localhost".into()];
        let group = ["system:nodes"];
        let serving =
            self.pki.serving("node", &format!("system:node:{}", settings.node_name), &group, &names)?;
        let config = NodeConfig {
            name: settings.node_name.clone(),
            addresses: vec![address],
            data_dir: instance.path("node"),
            max_pods: settings.max_pods,
            cluster_dns: Some(settings.dns_service_ip().into()),
            cluster_domain: CLUSTER_DOMAIN.into(),
            pod_cidr: Some(settings.pod_cidr.to_string()),
            version: cli::KUBERNETES_VERSION.into(),
            labels: Default::default(),
            seccomp_default: settings.seccomp_default,
            server: Some(skeg_node::ServerConfig {
                address: [127, 0, 0, 1].into(),
                port: 0,
                tls: Arc::new(self.pki.node_server_config(&serving)?),
            }),
        };
        let node = Node::start(config, parts, cancel.clone()).await?;
        if let Some(port) = node.server_port() {
            let _ = self.node_port.set(port);
        }
        Ok(node)
    }
}

/// The node's own address: the bridge's, which Pods and the host both reach.
fn node_address(settings: &Settings) -> IpAddr {
    settings.gateway().into()
}

pub async fn open_runtime(instance: &Instance) -> Result<Arc<Runtime>> {
    let config = RuntimeConfig {
        id: instance.id.clone(),
        run_dir: instance.run_dir.join("shim"),
        data_dir: instance.path("containers"),
        exe: PathBuf::from("/proc/self/exe"),
    };
    Runtime::open(config).await.context("containers")
}

pub async fn open_network(instance: &Instance, settings: &Settings) -> Result<Arc<Network>> {
    let config = NetworkConfig {
        id: instance.id.clone(),
        state_dir: instance.path("network"),
        pod_cidr: settings.pod_cidr,
        service_cidr: settings.service_cidr,
        cluster_domain: CLUSTER_DOMAIN.into(),
        dns_ip: Some(settings.dns_service_ip()),
        resolv_conf: "/etc/resolv.conf".into(),
    };
    forwarding::note(&instance.run_dir)?;
    Network::open(config).await.context("network")
}
