//! `make demo`: a Deployment of three real nginx Pods, from nothing to a fetched page.

use crate::host::{command, output, release_binary, root, run};
use crate::{images, setup};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The demo's cluster: Skeg's own default, so that later commands need no flags.
const DATA_DIR: &str = "/var/lib/skeg";
/// In it: the cluster is a demo's.
const MARKER: &str = "demo";

pub fn demo() -> Result<()> {
    setup::setup()?;
    let kubectl = setup::kubectl()?;
    let skeg = release_binary()?;
    let archives = images::build_all()?;

    // "On an empty data directory": what an earlier demo left is removed first, and nothing else.
    let marker = Path::new(DATA_DIR).join(MARKER);
    if std::fs::read_dir(DATA_DIR).is_ok_and(|mut entries| entries.next().is_some()) {
        if !marker.exists() {
            bail!(
                "{DATA_DIR} holds a cluster that no demo made: `skeg down --purge` removes it, with all its data"
            );
        }
        step("removing the cluster of an earlier demo");
        run(command(&skeg).args(["down", "--purge", "--data-dir", DATA_DIR]))?;
    }
    step("starting the cluster");
    run(command(&skeg).args(["up", "--detach", "--data-dir", DATA_DIR]))?;
    std::fs::write(&marker, "made by `make demo`, which removes it when it runs again\n")?;
    step("making the nginx image available");
    run(command(&skeg).args(["image", "import", "--data-dir", DATA_DIR]).arg(&archives[0]))?;

    let kubeconfig = format!("{DATA_DIR}/kubeconfig");
    let kubectl = |args: &[&str]| -> Command {
        let mut command = command(&kubectl);
        command.args(["--kubeconfig", &kubeconfig]).args(args);
        command
    };
    step("kubectl apply -f examples/deployment.yaml");
    let example = root().join("examples/deployment.yaml");
    run(kubectl(&["apply", "-f"]).arg(&example))?;
    run(&mut kubectl(&["rollout", "status", "deployment/example-deployment", "--timeout=120s"]))?;
    run(&mut kubectl(&["get", "deployments,replicasets,pods", "-o", "wide"]))?;

    step("fetching a page from each Pod");
    let template = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{\"\\n\"}{end}";
    let pods = output(&mut kubectl(&["get", "pods", "-l", "app=example", "-o", template]))?;
    let mut fetched = 0;
    for line in pods.lines() {
        let (name, ip) = line.split_once(' ').context("a Pod without an address")?;
        let page = fetch(ip)?;
        if !page.contains("Welcome to nginx!") {
            bail!("{name} at {ip} answered something else:\n{page}");
        }
        println!("  http://{ip}/ ({name}): Welcome to nginx!");
        fetched += 1;
    }
    if fetched != 3 {
        bail!("expected three Pods, found {fetched}");
    }
    let binary = skeg.strip_prefix(root()).unwrap_or(&skeg).display();
    println!("\nuse it:   export KUBECONFIG={kubeconfig}; {} get pods", kubectl_name(&kubectl(&[])));
    println!("stop it:  {binary} down --purge");
    Ok(())
}

fn kubectl_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn fetch(ip: &str) -> Result<String> {
    let mut stream = TcpStream::connect((ip, 80)).with_context(|| format!("connecting to {ip}:80"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {ip}\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
