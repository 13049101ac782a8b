//! HTTP to Pods, Services and nodes through the API server, and through `kubectl proxy`.

use super::deployment;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

pub const CASES: &[Case] = &[
    Case { name: "raw_requests_reach_pods_services_and_nodes", run: raw },
    Case { name: "kubectl_proxy_on_port_and_socket", run: kubectl_proxy },
];

/// nginx behind a Service, reachable.
fn served(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 1))?;
    scope.rolled_out("web")?;
    scope.kubectl(&["expose", "deployment", "web", "--port=8080", "--target-port=80"])?;
    let slices = ["endpointslices", "-l", "kubernetes.io/service-name=web"];
    scope
        .watch_until(&slices, |slice| slice["endpoints"][0]["conditions"]["ready"] == true)
        .context("the Pod becomes an endpoint")?;
    Ok(())
}

fn raw(scope: &Scope<'_>) -> Result<()> {
    served(scope)?;
    let pod = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}")?;
    let node = scope.jsonpath(&["nodes"], "{.items[0].metadata.name}")?;
    let namespace = format!("/api/v1/namespaces/{}", scope.namespace);
    for path in [
        format!("pods/{pod}/proxy/"),
        format!("pods/{pod}/proxy"),
        format!("pods/http:{pod}:80/proxy/index.html"),
        "services/web:8080/proxy/".to_owned(),
        "services/web/proxy/".to_owned(),
    ] {
        let page = scope.kubectl(&["get", "--raw", &format!("{namespace}/{path}")])?;
        ensure!(page.contains("Welcome to nginx!"), "{path}: {page}");
    }
    let missing = scope.kubectl_fails(&["get", "--raw", &format!("{namespace}/pods/{pod}/proxy/none")])?;
    ensure!(missing.contains("could not find"), "{missing}");
    let refused = scope.kubectl_fails(&["get", "--raw", &format!("{namespace}/pods/{pod}:81/proxy/")])?;
    ensure!(refused.contains("error trying to reach service"), "{refused}");
    let pods = scope.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/pods")])?;
    ensure!(pods.contains(&pod), "{pods}");
    Ok(())
}

fn start(scope: &Scope<'_>, option: &str) -> Result<(Child, String)> {
    let mut child = scope.kubectl_command();
    let mut child = child.args(["proxy", option]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let line = lines.next().context("a line")??;
    Ok((child, line.rsplit(' ').next().unwrap_or_default().to_owned()))
}

fn ask(mut stream: impl Read + Write, path: &str) -> Result<String> {
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn kubectl_proxy(scope: &Scope<'_>) -> Result<()> {
    served(scope)?;
    let (mut child, address) = start(scope, "--port=0")?;
    let versions = ask(TcpStream::connect(&address)?, "/api/");
    let path = format!("/api/v1/namespaces/{}/services/web/proxy/", scope.namespace);
    let page = ask(TcpStream::connect(&address)?, &path);
    child.kill()?;
    child.wait()?;
    ensure!(versions?.contains("\"v1\""));
    ensure!(page?.contains("Welcome to nginx!"));
    let socket = std::env::temp_dir().join(format!("{}.sock", scope.namespace));
    let (mut child, _) = start(scope, &format!("--unix-socket={}", socket.display()))?;
    let versions = UnixStream::connect(&socket).map(|stream| ask(stream, "/api/"));
    child.kill()?;
    child.wait()?;
    std::fs::remove_file(&socket)?;
    ensure!(versions??.contains("\"v1\""));
    Ok(())
}
