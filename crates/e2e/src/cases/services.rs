//! Services as Kubernetes' conformance tests use them: each replica by each protocol, affinity that
//! is switched, slices and Endpoints that are made by hand, names of elsewhere.

use super::{import, pod, started};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub const CASES: &[Case] = &[
    Case { name: "each_replica_answers_over_tcp_and_udp", run: replicas },
    Case { name: "session_affinity_is_switched", run: affinity },
    Case { name: "one_port_of_two_protocols", run: protocols },
    Case { name: "slices_and_endpoints_made_by_hand", run: by_hand },
    Case { name: "an_external_name_changes_and_ends", run: external_name },
];

/// A Pod that answers at ports like `tcp/8080`, the first of which tells that it is ready, with its
/// name and the port.
fn server(name: &str, ports: &[&str]) -> Value {
    let mut pod = pod(name, &[("main", "")]);
    let main = &mut pod["spec"]["containers"][0];
    main["image"] = "perl".into();
    main["command"] = [&["perl", "/serve"], ports].concat().into();
    main["readinessProbe"] = json!({"httpGet": {"port": 8080}, "periodSeconds": 1});
    pod
}

/// So many of a Pod, as a kind of its own.
fn replicated(version: &str, kind: &str, replicas: u32, pod: &Value) -> Value {
    let labels = &pod["metadata"]["labels"];
    let selector =
        if kind == "ReplicationController" { labels.clone() } else { json!({"matchLabels": labels}) };
    json!({
        "apiVersion": version, "kind": kind, "metadata": {"name": pod["metadata"]["name"]},
        "spec": {"replicas": replicas, "selector": selector,
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]}},
    })
}

/// Starts the Pod that [`ask`] asks from, in the cluster's network or in the node's.
fn asker(scope: &Scope<'_>, name: &str, host_network: bool) -> Result<()> {
    import(scope, "perl")?;
    let mut asker = pod(name, &[("main", "exec sleep 1000")]);
    asker["spec"]["hostNetwork"] = host_network.into();
    asker["spec"]["containers"][0]["image"] = "perl".into();
    started(scope, &asker)
}

/// The answers at a port like `udp/80`.
fn ask(scope: &Scope<'_>, from: &str, port: &str, host: &str, times: usize) -> Result<Vec<String>> {
    let said = scope.exec(from, &["perl", "/ask", port, host, &times.to_string()])?;
    let answers: Vec<String> = said.lines().map(str::to_owned).collect();
    ensure!(answers.len() == times, "{said}");
    Ok(answers)
}

fn answers(scope: &Scope<'_>, port: &str, host: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{wanted} answers at {port} of {host}"), || {
        Ok(ask(scope, "asker", port, host, 1).ok().filter(|said| said[0] == wanted).map(drop))
    })
}

/// From a Pod and from the node; a replica that no longer matches is let go.
fn replicas(scope: &Scope<'_>) -> Result<()> {
    asker(scope, "asker", false)?;
    asker(scope, "node", true)?;
    let echo = server("echo", &["tcp/8080", "udp/8081"]);
    scope.apply(&replicated("v1", "ReplicationController", 2, &echo))?;
    scope.wait_for("rc/echo", "{.status.readyReplicas}=2")?;
    let pods = || -> Result<Vec<Value>> {
        let list = scope.get(&["pods", "-l", "app=echo"])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    let before = pods()?;
    for pod in &before {
        let name = pod["metadata"]["name"].as_str().context("a name")?;
        let ip = pod["status"]["podIP"].as_str().context("an address")?;
        for from in ["asker", "node"] {
            for port in ["tcp/8080", "udp/8081"] {
                let said = ask(scope, from, port, ip, 2)?;
                ensure!(said.iter().all(|said| *said == format!("{name} {port}")), "{from}: {said:?}");
            }
        }
    }
    let loose = before[0]["metadata"]["name"].as_str().context("a name")?;
    scope.kubectl(&["label", "pod", loose, "--overwrite", "app=loose"])?;
    scope.watch_until(&["pod", loose], |pod| pod["metadata"].get("ownerReferences").is_none())?;
    eventually("another takes its place", || Ok((pods()?.len() == 2).then_some(())))?;
    let status = scope.get(&["pod", loose])?;
    ensure!(status["metadata"].get("deletionTimestamp").is_none(), "{status}");
    ensure!(pods()?.iter().any(|pod| pod["metadata"]["uid"] == before[1]["metadata"]["uid"]));
    Ok(())
}

fn affinity(scope: &Scope<'_>) -> Result<()> {
    asker(scope, "asker", false)?;
    scope.apply(&replicated("apps/v1", "Deployment", 3, &server("web", &["tcp/8080"])))?;
    let kinds = ["ClusterIP", "NodePort"];
    for kind in kinds {
        scope.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": kind.to_ascii_lowercase()},
            "spec": {"type": kind, "sessionAffinity": "ClientIP", "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": 8080}]},
        }))?;
    }
    scope.rolled_out("web")?;
    let node = scope.jsonpath(&["pod", "asker"], "{.status.hostIP}")?;
    for kind in kinds {
        let name = kind.to_ascii_lowercase();
        let spec = scope.get(&["service", &name])?["spec"].clone();
        let cluster_ip = spec["clusterIP"].as_str().context("an address")?.to_owned();
        let mut places = vec![(name.clone(), "tcp/80".to_owned()), (cluster_ip, "tcp/80".to_owned())];
        if let Some(port) = spec["ports"][0]["nodePort"].as_u64() {
            places.push((node.clone(), format!("tcp/{port}")));
        }
        ensure!(places.len() == if kind == "NodePort" { 3 } else { 2 }, "{spec}");
        for (affinity, wanted) in [("ClientIP", 1), ("None", 3), ("ClientIP", 1)] {
            let patch = json!({"spec": {"sessionAffinity": affinity}}).to_string();
            scope.kubectl(&["patch", "service", &name, "-p", &patch])?;
            for (host, port) in &places {
                eventually(&format!("{wanted} answer at {host} with {affinity}"), || {
                    let said = ask(scope, "asker", port, host, 40).unwrap_or_default();
                    Ok((said.into_iter().collect::<BTreeSet<_>>().len() == wanted).then_some(()))
                })?;
            }
        }
    }
    Ok(())
}

fn protocols(scope: &Scope<'_>) -> Result<()> {
    asker(scope, "asker", false)?;
    started(scope, &server("both", &["tcp/8080", "udp/8080"]))?;
    scope.kubectl(&["expose", "pod", "both", "--port=80", "--target-port=8080"])?;
    for (exposed, hidden) in
        [(&["tcp", "udp"][..], &[][..]), (&["tcp"], &["udp"]), (&["udp"], &["tcp"]), (&["tcp", "udp"], &[])]
    {
        let ports: Vec<Value> = exposed
            .iter()
            .map(|protocol| json!({"name": protocol, "protocol": protocol.to_ascii_uppercase(), "port": 80, "targetPort": 8080}))
            .collect();
        let patch = json!({"spec": {"ports": ports}}).to_string();
        scope.kubectl(&["patch", "service", "both", "--type=merge", "-p", &patch])?;
        for protocol in exposed {
            answers(scope, &format!("{protocol}/80"), "both", &format!("both {protocol}/8080"))?;
        }
        for protocol in hidden {
            eventually(&format!("{protocol} is refused"), || {
                Ok(ask(scope, "asker", &format!("{protocol}/80"), "both", 1).is_err().then_some(()))
            })?;
        }
    }
    Ok(())
}

fn by_hand(scope: &Scope<'_>) -> Result<()> {
    asker(scope, "asker", false)?;
    for name in ["one", "two"] {
        scope.apply(&server(name, &["tcp/8080", "tcp/8081"]))?;
    }
    let mut ips = Vec::new();
    for name in ["one", "two"] {
        scope.wait_ready(name)?;
        ips.push(scope.jsonpath(&["pod", name], "{.status.podIP}")?);
    }
    // No selector: who is behind its two ports is told by a slice for each.
    let service = |name: &str| {
        scope.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"name": "first", "port": 80}, {"name": "second", "port": 81}]},
        }))
    };
    for (name, addresses) in [("same", [&ips[0], &ips[0]]), ("apart", [&ips[0], &ips[1]])] {
        service(name)?;
        for (port, address, number) in [("first", addresses[0], 8080), ("second", addresses[1], 8081)] {
            scope.apply(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": format!("{name}-{port}"), "labels": {"kubernetes.io/service-name": name}},
                "endpoints": [{"addresses": [address]}],
                "ports": [{"name": port, "protocol": "TCP", "port": number}],
            }))?;
        }
    }
    answers(scope, "tcp/80", "same", "one tcp/8080")?;
    answers(scope, "tcp/81", "same", "one tcp/8081")?;
    answers(scope, "tcp/80", "apart", "one tcp/8080")?;
    answers(scope, "tcp/81", "apart", "two tcp/8081")?;

    // Endpoints as they were before slices are mirrored into one.
    let served = scope.kubectl(&["get", "--raw", "/apis/discovery.k8s.io/v1"])?;
    ensure!(served.contains("\"endpointslices\""), "{served}");
    service("mirrored")?;
    const SLICES: [&str; 3] = ["endpointslices", "-l", "kubernetes.io/service-name=mirrored"];
    for (name, ip) in [("one", &ips[0]), ("two", &ips[1])] {
        scope.apply(&json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "mirrored"},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "first", "port": 8080}]}],
        }))?;
        let slice =
            scope.watch_until(&SLICES, |slice| slice["endpoints"][0]["addresses"][0] == ip.as_str())?;
        let label = "endpointslice.kubernetes.io/managed-by";
        ensure!(
            slice["metadata"]["labels"][label] == "endpointslicemirroring-controller.k8s.io"
                && slice["ports"] == json!([{"name": "first", "protocol": "TCP", "port": 8080}]),
            "{slice}"
        );
        answers(scope, "tcp/80", "mirrored", &format!("{name} tcp/8080"))?;
    }
    scope.kubectl(&["delete", "endpoints", "mirrored"])?;
    scope.kubectl(&[&["wait", "--for=delete", "--timeout=60s"], &SLICES[..]].concat())?;
    Ok(())
}

fn external_name(scope: &Scope<'_>) -> Result<()> {
    started(scope, &pod("box", &[("main", "exec sleep 1000")]))?;
    let name = format!("elsewhere.{}.svc.cluster.local", scope.namespace);
    let resolves = |kind: &str, wanted: &str| {
        eventually(&format!("{name} is {wanted}"), || {
            let found = scope.exec("box", &["nslookup", &format!("-type={kind}"), &name]);
            Ok(found.is_ok_and(|found| found.contains(wanted)).then_some(()))
        })
    };
    scope.kubectl(&["create", "service", "externalname", "elsewhere", "--external-name=foo.example.com"])?;
    resolves("cname", "canonical name = foo.example.com")?;
    scope.kubectl(&[
        "patch",
        "service",
        "elsewhere",
        "-p",
        r#"{"spec":{"externalName":"bar.example.com"}}"#,
    ])?;
    resolves("cname", "canonical name = bar.example.com")?;
    let patch =
        json!({"spec": {"type": "ClusterIP", "externalName": null, "ports": [{"name": "http", "port": 80}]}});
    scope.kubectl(&["patch", "service", "elsewhere", "-p", &patch.to_string()])?;
    let ip = scope.jsonpath(&["service", "elsewhere"], "{.spec.clusterIP}")?;
    ensure!(ip.starts_with("10.97."), "{ip}");
    resolves("a", &format!("Address: {ip}"))
}
