//! Pod addresses, Services, DNS, the API from inside.

use super::{deployment, pod};
use crate::cluster::eventually;
use crate::http::{Connection, Endpoint, request};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "logs_and_watches_over_websocket", run: websockets },
    Case { name: "a_pod_reaches_the_api_with_its_token", run: api_from_inside },
    Case { name: "a_service_reaches_ready_pods", run: service },
    Case { name: "service_names_resolve", run: names },
    Case { name: "endpoints_follow_readiness", run: endpoints },
    Case { name: "cluster_ips_are_allocated", run: cluster_ips },
    Case { name: "pods_reach_each_other", run: pod_to_pod },
    Case { name: "a_pod_has_the_names_it_asks_for", run: names_of_a_pod },
    Case { name: "aliases_and_headless_names_resolve", run: aliases },
    Case { name: "a_host_port_leads_to_its_pod", run: host_port },
    Case { name: "the_node_asks_who_calls", run: node_access },
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
    let page = page_from_host(&ip, 8000)?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    Ok(())
}

/// The answer to a request for `/` that this host makes.
pub(super) fn page_from_host(ip: &str, port: u16) -> Result<String> {
    let mut stream = std::net::TcpStream::connect((ip, port)).context("from the host")?;
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    std::io::Read::read_to_string(&mut stream, &mut page)?;
    Ok(page)
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
    let old = scope
        .watch_until(&["endpoints", "gated"], |endpoints| !endpoints["subsets"][0]["addresses"].is_null())?;
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
    let mut server = pod("server", &[("main", "echo hi > /tmp/f; httpd -f -p 80 -h /tmp")]);
    server["spec"]["containers"][0]["readinessProbe"] =
        json!({"tcpSocket": {"port": 80}, "periodSeconds": 1});
    scope.apply(&server)?;
    scope.apply(&client("client"))?;
    scope.wait_ready("server")?;
    scope.wait_ready("client")?;
    let ip = scope.jsonpath(&["pod", "server"], "{.status.podIP}")?;
    let text = scope.exec("client", &["wget", "-qO-", "-T", "2", &format!("http://{ip}/f")])?;
    ensure!(text == "hi\n", "{text}");
    Ok(())
}

/// hostname, subdomain, setHostnameAsFQDN, hostAliases, dnsPolicy and dnsConfig.
fn names_of_a_pod(scope: &Scope<'_>) -> Result<()> {
    let mut named = client("named");
    let spec = &mut named["spec"];
    spec["hostname"] = "one".into();
    spec["subdomain"] = "group".into();
    spec["setHostnameAsFQDN"] = true.into();
    spec["hostAliases"] = json!([{"ip": "192.0.2.7", "hostnames": ["seven", "siete"]}]);
    // Three beside the cluster's own: resolvers take no fourth.
    let servers = json!(["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    spec["dnsConfig"] = json!({"nameservers": servers, "searches": ["more.example"], "options": [{"name": "ndots", "value": "2"}]});
    let mut alone = pod("alone", &[("main", "sleep 1000")]);
    alone["spec"]["dnsPolicy"] = "None".into();
    alone["spec"]["dnsConfig"] = json!({"nameservers": ["192.0.2.53"], "searches": ["only.example"]});
    let mut host = pod("default-dns", &[("main", "sleep 1000")]);
    host["spec"]["dnsPolicy"] = "Default".into();
    for pod in [&named, &alone, &host] {
        scope.apply(pod)?;
    }
    // A headless Service of the subdomain's name gives the Pod its name in DNS.
    scope.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "group"},
        "spec": {"clusterIP": "None", "selector": {"app": "named"}, "ports": [{"port": 80, "name": "http"}]}}))?;
    scope.wait_ready("named")?;
    let full = format!("one.group.{}.svc.cluster.local", scope.namespace);
    ensure!(scope.exec("named", &["hostname"])?.trim() == full);
    let ip = scope.jsonpath(&["pod", "named"], "{.status.podIP}")?;
    let hosts = scope.exec("named", &["cat", "/etc/hosts"])?;
    ensure!(hosts.contains(&format!("{ip}\t{full}\tone\n")), "{hosts}");
    ensure!(hosts.contains("192.0.2.7\tseven\tsiete\n"), "{hosts}");
    let resolver = scope.exec("named", &["cat", "/etc/resolv.conf"])?;
    ensure!(resolver.contains(" more.example") && resolver.contains("options ndots:2"), "{resolver}");
    ensure!(resolver.contains("nameserver 192.0.2.2") && !resolver.contains("192.0.2.3"), "{resolver}");
    let cut = format!("the applied nameserver line is: {} 192.0.2.1 192.0.2.2", dns_address(scope)?);
    scope.event("named", "DNSConfigForming", &cut)?;
    scope.wait_ready("alone")?;
    let resolver = scope.exec("alone", &["cat", "/etc/resolv.conf"])?;
    ensure!(
        resolver.contains("nameserver 192.0.2.53") && resolver.contains("search only.example"),
        "{resolver}"
    );
    ensure!(!resolver.contains("cluster.local"), "{resolver}");
    scope.wait_ready("default-dns")?;
    let resolver = scope.exec("default-dns", &["cat", "/etc/resolv.conf"])?;
    let own = std::fs::read_to_string("/etc/resolv.conf")?;
    let servers = |text: &str| -> Vec<String> {
        text.lines().filter(|l| l.starts_with("nameserver")).map(str::to_owned).collect()
    };
    ensure!(servers(&resolver) == servers(&own) && !resolver.contains("cluster.local"), "{resolver}");
    eventually("the name resolves", || {
        let found = scope.exec("alone", &["nslookup", &full, &dns_address(scope)?]);
        Ok(found.is_ok_and(|text| text.contains(&ip)).then_some(()))
    })
}

/// The name server's address, as Pods have it.
fn dns_address(scope: &Scope<'_>) -> Result<String> {
    let resolver = scope.exec("named", &["cat", "/etc/resolv.conf"])?;
    let line = resolver.lines().find_map(|l| l.strip_prefix("nameserver ")).context("a name server")?;
    Ok(line.trim().to_owned())
}

fn aliases(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 2))?;
    scope.kubectl(&["expose", "deployment", "web", "--port=80"])?;
    scope.kubectl(&["expose", "deployment", "web", "--name=all", "--cluster-ip=None", "--port=80"])?;
    let target = format!("web.{}.svc.cluster.local", scope.namespace);
    scope.kubectl(&["create", "service", "externalname", "other", &format!("--external-name={target}")])?;
    scope.rolled_out("web")?;
    scope.apply(&client("box"))?;
    scope.wait_ready("box")?;
    for name in ["other", "all"] {
        let url = format!("http://{name}/");
        let page = eventually(name, || Ok(scope.exec("box", &["wget", "-qO-", "-T", "2", &url]).ok()))?;
        ensure!(page.contains("Welcome to nginx!"), "{page}");
    }
    let ips = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[*].status.podIP}")?;
    eventually("a headless Service resolves to all of its Pods", || {
        let found =
            scope.exec("box", &["nslookup", &format!("all.{}.svc.cluster.local", scope.namespace)])?;
        Ok(ips.split(' ').all(|ip| found.contains(ip)).then_some(()))
    })?;
    let absent = scope.kubectl_fails(&["exec", "box", "--", "nslookup", "nobody.default.svc.cluster.local"]);
    ensure!(absent.is_ok(), "a name that is not there does not resolve");
    Ok(())
}

fn host_port(scope: &Scope<'_>) -> Result<()> {
    const PORT: u16 = 38_765;
    let mut server = pod("server", &[("main", "echo hi > /tmp/f; httpd -f -p 8080 -h /tmp")]);
    server["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": PORT}]);
    scope.apply(&server)?;
    scope.wait_ready("server")?;
    let node = scope.jsonpath(&["pod", "server"], "{.status.hostIP}")?;
    let ask_at = |address: &str| -> Result<String> {
        let mut stream = std::net::TcpStream::connect((address, PORT))?;
        std::io::Write::write_all(&mut stream, b"GET /f HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        std::io::Read::read_to_string(&mut stream, &mut page)?;
        Ok(page)
    };
    let ask = || ask_at(&node);
    eventually("the host's port answers", || Ok(ask().ok().filter(|page| page.ends_with("hi\n"))))?;
    // Nobody else gets it meanwhile, and it goes with the Pod.
    let mut second = server.clone();
    second["metadata"]["name"] = "second".into();
    scope.apply(&second)?;
    scope.wait_for("pod/second", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable")?;
    scope.kubectl(&["delete", "pod", "second", "server", "--timeout=60s"])?;
    eventually("the port is free again", || Ok(ask().is_err().then_some(())))?;
    // By address and protocol it is another port.
    for (name, host_ip, protocol) in [
        ("loopback", "127.0.0.1", "TCP"),
        ("address", node.as_str(), "TCP"),
        ("datagrams", node.as_str(), "UDP"),
    ] {
        let mut one = pod(name, &[("main", &format!("echo {name} > /tmp/f; httpd -f -p 8080 -h /tmp"))]);
        one["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": 8080, "hostPort": PORT, "hostIP": host_ip, "protocol": protocol}]);
        scope.apply(&one)?;
        scope.wait_ready(name)?;
    }
    for (address, name) in [("127.0.0.1", "loopback"), (node.as_str(), "address")] {
        let right = || Ok(ask_at(address).ok().filter(|page| page.ends_with(&format!("{name}\n"))));
        eventually("each address leads to its Pod", right)?;
    }
    scope.kubectl(&["delete", "pod", "loopback", "address", "datagrams", "--timeout=60s"])?;
    Ok(())
}

/// The node's own server: HTTPS, with authentication and authorization by the API's rules.
fn node_access(scope: &Scope<'_>) -> Result<()> {
    let mut caller = client("caller");
    caller["spec"]["hostNetwork"] = true.into();
    scope.apply(&caller)?;
    scope.wait_ready("caller")?;
    let port = scope.jsonpath(&["node", "e2e-node"], "{.status.daemonEndpoints.kubeletEndpoint.Port}")?;
    let ask = |path: &str, with_token: bool| {
        let token =
            "--header \"Authorization: Bearer $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)\"";
        let token = if with_token { token } else { "" };
        let url = format!("https://127.0.0.1:{port}/{path}");
        scope.exec(
            "caller",
            &["sh", "-c", &format!("/usr/bin/wget -O- --no-check-certificate {token} {url} 2>&1 || true")],
        )
    };
    let anonymous = ask("pods", false)?;
    ensure!(anonymous.contains("401"), "{anonymous}");
    let stranger = ask("pods", true)?;
    ensure!(stranger.contains("403") && !stranger.contains("PodList"), "{stranger}");
    let account = format!("--serviceaccount={}:default", scope.namespace);
    scope.kubectl(&["create", "clusterrole", "e2e-node-pods", "--verb=get", "--resource=nodes/pods"])?;
    scope.kubectl(&[
        "create",
        "clusterrolebinding",
        "e2e-node-pods",
        "--clusterrole=e2e-node-pods",
        &account,
    ])?;
    let tested = eventually("who may reads the node's Pods", || {
        let answer = ask("pods", true)?;
        Ok((answer.contains("PodList") && answer.contains("caller")).then_some(()))
    })
    .and_then(|()| {
        let log = ask(&format!("containerLogs/{}/caller/main", scope.namespace), true)?;
        ensure!(log.contains("403"), "logs are another permission: {log}");
        Ok(())
    });
    scope.kubectl(&["delete", "clusterrole,clusterrolebinding", "e2e-node-pods"])?;
    tested
}

/// What the server sends: its kind (1 text, 2 binary, 8 the end) and content.
async fn message(connection: &mut Connection) -> Result<(u8, Vec<u8>)> {
    let head = connection.take(2).await?;
    let length = match head[1] {
        126 => connection.take(2).await?,
        127 => connection.take(8).await?,
        short => vec![short],
    };
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    Ok((head[0] & 0x0f, connection.take(length).await?))
}

fn websockets(scope: &Scope<'_>) -> Result<()> {
    let mut talker = pod("talker", &[("main", "echo one; echo two")]);
    talker["spec"]["restartPolicy"] = "Never".into();
    scope.apply(&talker)?;
    scope.wait_for("pod/talker", "{.status.phase}=Succeeded")?;
    let upgrade = |protocol: &str| {
        format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
        )
    };
    let endpoint = Endpoint::from_kubeconfig(&scope.cluster.kubeconfig())?;
    let namespace = format!("/api/v1/namespaces/{}", scope.namespace);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        for (protocol, kind, wanted) in
            [("binary.k8s.io", 2, "one\ntwo\n"), ("base64.binary.k8s.io", 1, "b25lCnR3bwo=")]
        {
            let mut connection = endpoint.connect().await?;
            let path = format!("{namespace}/pods/talker/log");
            let (status, _) = connection.open(&request("GET", &path, &upgrade(protocol), b"")).await?;
            ensure!(status == 101, "{status}");
            ensure!(message(&mut connection).await? == (kind, Vec::new()), "the first message is empty");
            ensure!(message(&mut connection).await? == (kind, wanted.into()), "{protocol}");
            ensure!(message(&mut connection).await?.0 == 8, "the log is over");
        }
        let mut connection = endpoint.connect().await?;
        let path = format!("{namespace}/pods?watch=true&fieldSelector=metadata.name%3Dtalker");
        let (status, _) = connection.open(&request("GET", &path, &upgrade(""), b"")).await?;
        ensure!(status == 101, "{status}");
        let (kind, event) = message(&mut connection).await?;
        let event: serde_json::Value = serde_json::from_slice(&event)?;
        ensure!(kind == 1 && event["type"] == "ADDED", "{kind} {event}");
        ensure!(event["object"]["metadata"]["name"] == "talker", "{event}");
        // What is refused is refused as ever.
        let mut connection = endpoint.connect().await?;
        let path = format!("{namespace}/pods/nobody/log");
        let (status, _) = connection.send(&request("GET", &path, &upgrade("binary.k8s.io"), b"")).await?;
        ensure!(status == 404, "{status}");
        Ok(())
    })
}
