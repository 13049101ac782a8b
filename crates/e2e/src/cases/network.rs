//! Pod addresses, Services, DNS, the API from inside.

use super::{deployment, pod};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "a_pod_reaches_the_api_with_its_token", run: api_from_inside },
    Case { name: "a_service_reaches_ready_pods", run: service },
    Case { name: "service_names_resolve", run: names },
    Case { name: "endpoints_follow_readiness", run: endpoints },
    Case { name: "cluster_ips_are_allocated", run: cluster_ips },
    Case { name: "pods_reach_each_other", run: pod_to_pod },
];

/// A Pod with a wget that resolves names and checks certificates.
fn client(name: &str) -> serde_json::Value {
    let mut pod = pod(name, &[("main", "sleep 1000")]);
    pod["spec"]["containers"][0]["image"] = "client".into();
    pod
}

fn api_from_inside(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&client("box"))?;
    scope.wait_ready("box")?;
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let script = format!(
        "/usr/bin/wget -qO- --ca-certificate={token}/ca.crt --header \"Authorization: Bearer $(cat {token}/token)\" https://kubernetes.default.svc/version"
    );
    let version =
        eventually("the API answers inside", || Ok(scope.exec("box", &["sh", "-c", &script]).ok()))?;
    ensure!(version.contains("\"gitVersion\""), "{version}");
    let me = format!("system:serviceaccount:{}:default", scope.namespace);
    let forbidden = scope.exec("box", &["sh", "-c", &format!(
        "/usr/bin/wget -O- --ca-certificate={token}/ca.crt --header \"Authorization: Bearer $(cat {token}/token)\" https://kubernetes.default.svc/api/v1/secrets 2>&1 || true"
    )])?;
    ensure!(forbidden.contains("403"), "{me} may not read secrets: {forbidden}");
    Ok(())
}

fn service(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 2))?;
    scope.kubectl(&["expose", "deployment", "web", "--port=8000", "--target-port=80"])?;
    scope.rolled_out("web")?;
    scope.apply(&client("box"))?;
    scope.wait_ready("box")?;
    let ip = scope.jsonpath(&["service", "web"], "{.spec.clusterIP}")?;
    let page = eventually("the service answers", || {
        Ok(scope.exec("box", &["wget", "-qO-", "-T", "2", &format!("http://{ip}:8000/")]).ok())
    })?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    // From the host as well.
    let mut stream = std::net::TcpStream::connect((ip.as_str(), 8000)).context("from the host")?;
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    std::io::Read::read_to_string(&mut stream, &mut page)?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    Ok(())
}

fn names(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 1))?;
    scope.kubectl(&["expose", "deployment", "web", "--port=80"])?;
    scope.rolled_out("web")?;
    scope.apply(&client("box"))?;
    scope.wait_ready("box")?;
    for name in [
        "web".to_owned(),
        format!("web.{}", scope.namespace),
        format!("web.{}.svc.cluster.local", scope.namespace),
    ] {
        let url = format!("http://{name}/");
        let page = eventually(&name, || Ok(scope.exec("box", &["wget", "-qO-", "-T", "2", &url]).ok()))?;
        ensure!(page.contains("Welcome to nginx!"), "{page}");
    }
    let hosts = scope.exec("box", &["cat", "/etc/hosts", "/etc/resolv.conf"])?;
    ensure!(
        hosts.contains("\tbox")
            && hosts.contains(&format!(
                "search {}.svc.cluster.local svc.cluster.local cluster.local",
                scope.namespace
            )),
        "{hosts}"
    );
    Ok(())
}

fn endpoints(scope: &Scope<'_>) -> Result<()> {
    let mut gated = pod("gated", &[("main", "sleep 1000")]);
    gated["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1});
    scope.apply(&gated)?;
    scope.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "gated"},
        "spec": {"selector": {"app": "gated"}, "ports": [{"port": 80, "targetPort": 8080, "name": "http"}]},
    }))?;
    scope.watch_until(&["endpointslices", "-l", "kubernetes.io/service-name=gated"], |slice| {
        slice["endpoints"][0]["conditions"]["ready"] == false
    })?;
    scope.exec("gated", &["touch", "/tmp/ready"])?;
    let slice = scope
        .watch_until(&["endpointslices", "-l", "kubernetes.io/service-name=gated"], |slice| {
            slice["endpoints"][0]["conditions"]["ready"] == true
        })?;
    ensure!(slice["ports"][0]["port"] == 8080 && slice["ports"][0]["name"] == "http", "{slice}");
    ensure!(slice["endpoints"][0]["targetRef"]["name"] == "gated", "{slice}");
    let old = eventually("Endpoints follow", || {
        let endpoints = scope.get(&["endpoints", "gated"])?;
        Ok((!endpoints["subsets"][0]["addresses"].is_null()).then_some(endpoints))
    })?;
    ensure!(old["subsets"][0]["ports"][0]["port"] == 8080, "{old}");
    Ok(())
}

fn cluster_ips(scope: &Scope<'_>) -> Result<()> {
    let service = |name: &str, spec: serde_json::Value| {
        let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        object
    };
    scope.apply(&service("one", json!({})))?;
    let ip = scope.jsonpath(&["service", "one"], "{.spec.clusterIP}")?;
    ensure!(ip.starts_with("10.97."), "{ip}");
    let taken = scope.apply(&service("two", json!({"clusterIP": ip}))).err().context("taken")?.to_string();
    ensure!(taken.contains("provided IP is already allocated"), "{taken}");
    scope.kubectl(&["delete", "service", "one"])?;
    scope.apply(&service("two", json!({"clusterIP": ip}))).context("free again")?;
    scope.apply(&service("headless", json!({"clusterIP": "None"})))?;
    ensure!(scope.jsonpath(&["service", "headless"], "{.spec.clusterIP}")? == "None");
    let outside = scope
        .apply(&service("three", json!({"clusterIP": "192.0.2.1"})))
        .err()
        .context("outside")?
        .to_string();
    ensure!(outside.contains("valid range"), "{outside}");
    Ok(())
}

fn pod_to_pod(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("server", &[("main", "echo hi > /tmp/f; httpd -f -p 80 -h /tmp")]))?;
    scope.apply(&client("client"))?;
    scope.wait_ready("server")?;
    scope.wait_ready("client")?;
    let ip = scope.jsonpath(&["pod", "server"], "{.status.podIP}")?;
    let url = format!("http://{ip}/f");
    let text = eventually("the server answers", || {
        Ok(scope.exec("client", &["wget", "-qO-", "-T", "2", &url]).ok())
    })?;
    ensure!(text == "hi\n", "{text}");
    Ok(())
}
