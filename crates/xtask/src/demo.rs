//! `make demo`: a Deployment of three real nginx Pods, from nothing to a fetched page.

use crate::host::{command, output, release_binary, root, run, target};
use crate::{images, setup};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The demo's cluster: Skeg's own default, so that later commands need no flags.
const DATA_DIR: &str = "/var/lib/skeg";
/// In it: the cluster is a demo's.
const MARKER: &str = "demo";

/// The demo's last two lines, as a shell takes them.
struct Words {
    use_it: String,
    stop_it: String,
}

pub fn demo() -> Result<()> {
    setup::setup()?;
    let skeg = release_binary()?;
    // "On an empty data directory": what an earlier demo left is removed first, and nothing else.
    let marker = Path::new(DATA_DIR).join(MARKER);
    if std::fs::read_dir(DATA_DIR).is_ok_and(|mut entries| entries.next().is_some()) {
        if !marker.exists() {
            bail!(
                "{DATA_DIR} holds a cluster that no demo made: `skeg down --purge` removes it, with all its data"
            );
        }
        step("removing the cluster of an earlier demo");
        purge(&skeg, Path::new(DATA_DIR))?;
    }
    let words = show(&skeg, Path::new(DATA_DIR), &[])?;
    std::fs::write(&marker, "made by `make demo`, which removes it when it runs again\n")?;
    println!("\nuse it:   {}\nstop it:  {}", words.use_it, words.stop_it);
    Ok(())
}

/// The demo in a data directory of its own, beside whatever runs here: what it says at its end is
/// done too.
pub fn check(skeg: &Path) -> Result<()> {
    let data_dir = target().join("demo");
    purge(skeg, &data_dir)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listen = format!("--listen=127.0.0.1:{port}");
    let result =
        show(skeg, &data_dir, &[&listen, "--pod-cidr=10.179.0.0/16", "--service-cidr=10.97.60.0/24"])
            .and_then(|words| {
                let pods = output(command("sh").args(["-c", &words.use_it]))?;
                if pods.lines().filter(|line| line.contains(" Running ")).count() != 3 {
                    bail!("`{}` shows other than three running Pods:\n{pods}", words.use_it);
                }
                run(command("sh").args(["-c", &words.stop_it]))?;
                if data_dir.exists() {
                    bail!("`{}` left {}", words.stop_it, data_dir.display());
                }
                Ok(())
            });
    let purged = purge(skeg, &data_dir);
    result.and(purged)
}

fn purge(skeg: &Path, data_dir: &Path) -> Result<()> {
    run(command(skeg).args(["down", "--purge", "--data-dir"]).arg(data_dir))
}

/// Starts a cluster, runs the example on it and fetches a page from each Pod.
fn show(skeg: &Path, data_dir: &Path, flags: &[&str]) -> Result<Words> {
    let archives = images::build_all()?;
    let program = setup::kubectl()?;
    step("starting the cluster");
    run(command(skeg).args(["up", "--detach", "--data-dir"]).arg(data_dir).args(flags))?;
    step("making the nginx image available");
    run(command(skeg).args(["image", "import", "--data-dir"]).arg(data_dir).arg(&archives[0]))?;

    let kubeconfig = data_dir.join("kubeconfig");
    let kubectl = |args: &[&str]| -> Command {
        let mut command = command(&program);
        command.arg("--kubeconfig").arg(&kubeconfig).args(args);
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
    let binary = skeg.strip_prefix(root()).unwrap_or(skeg).display();
    let which = match data_dir.to_str() {
        Some(DATA_DIR) => String::new(),
        _ => format!(" --data-dir {}", data_dir.display()),
    };
    Ok(Words {
        use_it: format!("export KUBECONFIG={}; {} get pods", kubeconfig.display(), program.display()),
        stop_it: format!("{binary} down --purge{which}"),
    })
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
