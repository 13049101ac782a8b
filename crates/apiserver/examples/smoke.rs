use futures_util::future::BoxFuture;
use skeg_api::Kinds;
use skeg_apiserver::assembly::{self, Edge, Setup};
use skeg_apiserver::bootstrap;
use skeg_apiserver::pki::{self, Pki};
use skeg_apiserver::proxy::{Connection, Dialer};
use skeg_base::{Clock, Random};
use std::sync::Arc;
use tokio::net::TcpListener;
struct No;
impl Dialer for No {
    fn dial<'a>(&'a self, _n: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn Connection>>> {
        Box::pin(async { Err(std::io::ErrorKind::NotConnected.into()) })
    }
}
#[tokio::main]
async fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).expect("dir"));
    let pki = Arc::new(Pki::open(&dir, Clock::system()).expect("pki"));
    let store = skeg_store::Sqlite::open(&skeg_store::Options::new(dir.join("db"), Clock::system())).expect("db");
    let setup = Setup {
        edge: Some(Edge { pki: pki.clone(), dialer: Arc::new(No) }),
        cluster_domain: "cluster.local".into(),
        service_range: "10.96.0.0/16".parse().expect("x"),
        bootstrap: bootstrap::Settings { service_ip: "10.96.0.1".parse().expect("x"), endpoints: vec!["10.0.0.1".parse().expect("x")], port: 6443 },
    };
    let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
    let opened = assembly::open(setup, kinds, store, Clock::system(), Random::system()).await.expect("open");
    let sans = pki::apiserver_sans("10.96.0.1", "cluster.local", &[]);
    let listener = TcpListener::bind("127.0.0.1:26443").await.expect("bind");
    let _l = opened.server.listen(listener, Arc::new(pki.server_config(sans).expect("tls"))).expect("listen");
    let admin = pki.issue_client("kubernetes-admin", &["system:masters"]).expect("admin");
    std::fs::write(dir.join("kubeconfig"), pki::kubeconfig("https://127.0.0.1:26443", pki.ca_pem(), "kubernetes-admin", &admin)).expect("w");
    println!("ready");
    tokio::signal::ctrl_c().await.expect("c");
}
