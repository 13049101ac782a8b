//! Probes of each kind, and what they decide.

use super::network::page_from_host;
use super::{import, pod, started, status};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "liveness_and_startup_probes", run: liveness_and_startup },
    Case { name: "who_ends_well_when_told_to_starts_again", run: polite },
    Case { name: "readiness_by_exec_and_tcp", run: readiness },
    Case { name: "http_grpc_and_https_probes", run: http_probes },
    Case { name: "https_and_grpc_probes_succeed", run: secure_and_grpc },
    Case { name: "a_pod_that_ends_serves_while_it_can", run: ending },
    Case { name: "a_probe_that_cannot_be_run_decides_nothing", run: unknown },
    Case { name: "a_probe_has_its_time", run: timeouts },
    Case { name: "a_failed_probe_gives_its_own_grace", run: grace },
    Case { name: "a_failed_startup_probe_ends_the_container", run: startup_fails },
];

fn liveness_and_startup(scope: &Scope<'_>) -> Result<()> {
    let mut sick = pod("sick", &[("main", "touch /tmp/well; sleep 1000")]);
    sick["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["cat", "/tmp/well"]}, "periodSeconds": 1, "failureThreshold": 1,
    });
    sick["spec"]["containers"][0]["startupProbe"] =
        json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    started(scope, &sick)?;
    scope.exec("sick", &["rm", "/tmp/well"])?;
    scope.wait_for("pod/sick", "{.status.containerStatuses[0].restartCount}=1")?;
    scope.event("sick", "Unhealthy", "Liveness probe failed")?;
    scope.event("sick", "Killing", "will be restarted")
}

/// Whatever the exit code: the probe or the other image ended it, not its work.
fn polite(scope: &Scope<'_>) -> Result<()> {
    let policed = |name: &str, policy: &str| {
        let mut pod = pod(name, &[("main", "trap 'exit 0' TERM; touch /tmp/well; sleep 1000 & wait")]);
        pod["spec"]["restartPolicy"] = policy.into();
        pod
    };
    let mut sick = policed("probed", "OnFailure");
    sick["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["cat", "/tmp/well"]}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1,
    });
    let mut killed = sick.clone();
    killed["metadata"]["name"] = "killed".into();
    killed["spec"]["restartPolicy"] = "Never".into();
    for pod in [sick, killed, policed("changed", "Never")] {
        started(scope, &pod)?;
    }
    for name in ["probed", "killed"] {
        scope.exec(name, &["rm", "/tmp/well"])?;
    }
    scope.wait_for("pod/probed", "{.status.containerStatuses[0].restartCount}=1")?;
    scope.wait_ready("probed")?;
    scope.kubectl(&["set", "image", "pod/changed", "main=docker.io/library/busybox:latest"])?;
    scope.wait_for("pod/changed", "{.status.containerStatuses[0].restartCount}=1")?;
    scope.wait_ready("changed")?;
    // Nothing starts where nothing may.
    scope.wait_for("pod/killed", "{.status.phase}=Succeeded")
}

fn readiness(scope: &Scope<'_>) -> Result<()> {
    let mut gated = pod("gated", &[("main", "sleep 1000"), ("server", "httpd -f -p 8080 -h /tmp")]);
    gated["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1});
    gated["spec"]["containers"][1]["readinessProbe"] =
        json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    scope.apply(&gated)?;
    scope.wait_for("pod/gated", "{.status.containerStatuses[1].ready}=true")?;
    let ready = scope.jsonpath(&["pod", "gated"], "{.status.containerStatuses[0].ready}")?;
    ensure!(ready == "false", "not before the probe succeeds");
    scope.kubectl(&["exec", "gated", "-c", "main", "--", "touch", "/tmp/ready"])?;
    scope.wait_ready("gated")?;
    scope.kubectl(&["exec", "gated", "-c", "main", "--", "rm", "/tmp/ready"])?;
    scope.kubectl(&["wait", "--for=condition=Ready=false", "pod/gated", "--timeout=60s"])?;
    Ok(())
}

/// HTTP with a path, headers and a named port; what answers wrongly is not ready.
fn http_probes(scope: &Scope<'_>) -> Result<()> {
    let mut web = pod("web", &[("main", "mkdir /www; echo ok > /www/there; httpd -f -p 8080 -h /www")]);
    web["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    web["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/late", "port": "http"}, "periodSeconds": 1});
    web["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"path": "/there", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1});
    scope.apply(&web)?;
    scope.event("web", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")?;
    scope.exec("web", &["sh", "-c", "echo now > /www/late"])?;
    scope.wait_ready("web")?;
    ensure!(status(scope, "web")?["containerStatuses"][0]["restartCount"] == 0);
    scope.exec("web", &["rm", "/www/there"])?;
    scope.wait_for("pod/web", "{.status.containerStatuses[0].restartCount}=1")?;
    // No TLS and no gRPC are spoken there: neither probe takes a plain answer for one of its own.
    for (name, probe) in [
        ("tls", json!({"httpGet": {"path": "/", "port": 8080, "scheme": "HTTPS"}, "periodSeconds": 1})),
        ("grpc", json!({"grpc": {"port": 8080}, "periodSeconds": 1})),
    ] {
        let mut plain = pod(name, &[("main", "httpd -f -p 8080 -h /")]);
        plain["spec"]["containers"][0]["readinessProbe"] = probe;
        scope.apply(&plain)?;
        scope.event(name, "Unhealthy", "Readiness probe failed")?;
        ensure!(status(scope, name)?["containerStatuses"][0]["ready"] == false);
    }
    Ok(())
}

/// etcd speaks both: HTTPS with a certificate that it makes up, and gRPC's health protocol, where
/// it knows no service by name.
fn secure_and_grpc(scope: &Scope<'_>) -> Result<()> {
    const URLS: &str = "https://0.0.0.0:2379,http://0.0.0.0:2381";
    import(scope, "etcd")?;
    let script = format!(
        "exec etcd --data-dir=/tmp/etcd --auto-tls --listen-client-urls={URLS} --advertise-client-urls={URLS}"
    );
    let mut etcd = pod("etcd", &[("main", &script)]);
    let main = &mut etcd["spec"]["containers"][0];
    main["image"] = "etcd".into();
    main["startupProbe"] = json!({"grpc": {"port": 2381}, "periodSeconds": 1, "failureThreshold": 60});
    main["livenessProbe"] = json!({"grpc": {"port": 2381}, "periodSeconds": 1, "failureThreshold": 1});
    main["readinessProbe"] =
        json!({"httpGet": {"path": "/health", "port": 2379, "scheme": "HTTPS"}, "periodSeconds": 1});
    started(scope, &etcd)?;
    let main = status(scope, "etcd")?["containerStatuses"][0].clone();
    ensure!(main["started"] == true && main["restartCount"] == 0, "{main}");
    // A service that the server does not know is not healthy.
    etcd["metadata"]["name"] = "unknown".into();
    etcd["spec"]["containers"][0]["readinessProbe"] =
        json!({"grpc": {"port": 2381, "service": "nobody"}, "periodSeconds": 1});
    scope.apply(&etcd)?;
    scope.wait_for("pod/unknown", "{.status.containerStatuses[0].started}=true")?;
    scope.event("unknown", "Unhealthy", "Readiness probe failed")?;
    ensure!(status(scope, "unknown")?["containerStatuses"][0]["ready"] == false);
    // A port where nobody speaks: it starts again.
    etcd["metadata"]["name"] = "misled".into();
    etcd["spec"]["containers"][0]["livenessProbe"]["grpc"]["port"] = 2399.into();
    scope.apply(&etcd)?;
    scope.wait_for("pod/misled", "{.status.containerStatuses[0].restartCount}=1")
}

/// Readiness is still probed, liveness is not; the Service sends what comes to nobody else.
fn ending(scope: &Scope<'_>) -> Result<()> {
    const SLICES: [&str; 3] = ["endpointslices", "-l", "kubernetes.io/service-name=ending"];
    let mut web =
        pod("ending", &[("main", "touch /tmp/ready; echo ok > /tmp/index.html; httpd -f -p 8080 -h /tmp")]);
    web["spec"]["terminationGracePeriodSeconds"] = 60.into();
    let main = &mut web["spec"]["containers"][0];
    main["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "until [ -e /tmp/end ]; do sleep 0.1; done"]}}});
    let probe =
        json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    (main["readinessProbe"], main["livenessProbe"]) = (probe.clone(), probe);
    started(scope, &web)?;
    scope.kubectl(&["expose", "pod", "ending", "--port=80", "--target-port=8080"])?;
    scope.kubectl(&["delete", "pod", "ending", "--wait=false"])?;
    let conditions = |wanted: serde_json::Value| {
        scope.watch_until(&SLICES, |slice| slice["endpoints"][0]["conditions"] == wanted)
    };
    conditions(json!({"ready": false, "serving": true, "terminating": true}))?;
    let ip = scope.jsonpath(&["service", "ending"], "{.spec.clusterIP}")?;
    let page = eventually("the Service still answers", || Ok(page_from_host(&ip, 80).ok()))?;
    ensure!(page.contains("200 OK"), "{page}");
    scope.exec("ending", &["rm", "/tmp/ready"])?;
    conditions(json!({"ready": false, "serving": false, "terminating": true}))?;
    let status = status(scope, "ending")?;
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status}");
    ensure!(status["containerStatuses"][0]["state"]["running"].is_object(), "{status}");
    // What somebody else adds to the status does not stay.
    let evicted = r#"{"status": {"reason": "Evicted", "message": "by nobody"}}"#;
    scope.kubectl(&["patch", "pod", "ending", "--subresource=status", "-p", evicted])?;
    scope.watch_until(&["pod", "ending"], |pod| pod["status"].get("reason").is_none())?;
    scope.exec("ending", &["touch", "/tmp/end"])?;
    scope.kubectl(&["wait", "--for=delete", "pod/ending", "--timeout=60s"])?;
    Ok(())
}

/// A command that is not there, a port that nothing is called: told, but no verdict on the container.
fn unknown(scope: &Scope<'_>) -> Result<()> {
    let mut odd = pod("odd", &[("main", "sleep 1000"), ("well", "sleep 1000")]);
    let nothing = json!({"exec": {"command": ["/no/such"]}, "periodSeconds": 1, "failureThreshold": 1});
    odd["spec"]["containers"][0]["livenessProbe"] = nothing;
    odd["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"port": "nobody"}, "periodSeconds": 1, "failureThreshold": 1});
    // One that was found ready stays it while nothing is found out.
    let script = "echo >> /tmp/runs; [ $(wc -l < /tmp/runs) = 1 ] && exec mv /tmp/sh /tmp/gone";
    odd["spec"]["containers"][1]["command"] = json!(["sh", "-c", "cp /bin/busybox /tmp/sh; exec sleep 1000"]);
    odd["spec"]["containers"][1]["readinessProbe"] =
        json!({"exec": {"command": ["/tmp/sh", "-c", script]}, "periodSeconds": 1, "failureThreshold": 1});
    scope.apply(&odd)?;
    const UNKNOWN: &str = "probe errored and resulted in unknown state: ";
    scope.event("odd", "Unhealthy", &format!("Readiness {UNKNOWN}couldn't find port"))?;
    let selector = "--field-selector=reason=Unhealthy,involvedObject.name=odd";
    let often = |probe: &'static str, container: &'static str| {
        scope.watch_until(&["events", selector], move |event| {
            let says =
                event["message"].as_str().is_some_and(|m| m.starts_with(&format!("{probe} {UNKNOWN}")));
            let path = event["involvedObject"]["fieldPath"].as_str().unwrap_or_default();
            says && path.contains(container) && event["count"].as_i64() >= Some(3)
        })
    };
    often("Liveness", "{main}")?;
    often("Readiness", "{well}")?;
    let containers = status(scope, "odd")?["containerStatuses"].clone();
    ensure!(containers[0]["restartCount"] == 0 && containers[0]["ready"] == false, "{containers}");
    ensure!(containers[1]["ready"] == true, "{containers}");
    Ok(())
}

fn timeouts(scope: &Scope<'_>) -> Result<()> {
    let probe = |handler: serde_json::Value, seconds: u32| {
        let mut probe = handler;
        (probe["periodSeconds"], probe["timeoutSeconds"]) = (1.into(), seconds.into());
        probe
    };
    let slow = json!({"exec": {"command": ["sleep", "2"]}});
    let silent = json!({"httpGet": {"port": 8080}});
    let mut timed = pod("timed", &[("hasty", "sleep 1000"), ("patient", "nc -l -p 8080 -e sleep 1000")]);
    timed["spec"]["containers"][0]["readinessProbe"] = probe(slow.clone(), 1);
    timed["spec"]["containers"][1]["readinessProbe"] = probe(slow, 60);
    scope.apply(&timed)?;
    scope.event(
        "timed",
        "Unhealthy",
        "Readiness probe failed: command timed out: \"sleep 2\" timed out after 1s",
    )?;
    scope.wait_for("pod/timed", "{.status.containerStatuses[1].ready}=true")?;
    ensure!(status(scope, "timed")?["containerStatuses"][0]["ready"] == false);
    timed["metadata"]["name"] = "silent".into();
    timed["spec"]["containers"][1]["readinessProbe"] = probe(silent, 1);
    scope.apply(&timed)?;
    scope.event("silent", "Unhealthy", "context deadline exceeded")
}

/// The Pod would wait for an hour.
fn grace(scope: &Scope<'_>) -> Result<()> {
    for kind in ["livenessProbe", "startupProbe"] {
        let name = kind.to_ascii_lowercase();
        let mut deaf = pod(&name, &[("main", "trap '' TERM; while true; do sleep 0.1; done")]);
        deaf["spec"]["terminationGracePeriodSeconds"] = 3600.into();
        deaf["spec"]["containers"][0][kind] = json!({"exec": {"command": ["false"]}, "periodSeconds": 1,
            "failureThreshold": 1, "terminationGracePeriodSeconds": 1});
        scope.apply(&deaf)?;
        scope.wait_for(&format!("pod/{name}"), "{.status.containerStatuses[0].restartCount}=1")?;
        scope.kubectl(&["delete", "pod", &name, "--grace-period=1"])?;
    }
    Ok(())
}

/// It is started again where its Pod's policy says so; until it started nothing else is probed.
fn startup_fails(scope: &Scope<'_>) -> Result<()> {
    for (name, policy) in [("again", "Always"), ("once", "Never")] {
        let mut slow = pod(name, &[("main", "exec sleep 1000")]);
        slow["spec"]["restartPolicy"] = policy.into();
        slow["spec"]["terminationGracePeriodSeconds"] = 1.into();
        let fails = json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2});
        let main = &mut slow["spec"]["containers"][0];
        (main["startupProbe"], main["livenessProbe"]) = (fails.clone(), fails);
        main["livenessProbe"]["failureThreshold"] = 1.into();
        scope.apply(&slow)?;
    }
    scope.event("again", "Unhealthy", "Startup probe failed")?;
    scope.event("again", "Killing", "Container main failed startup probe, will be restarted")?;
    scope.wait_for("pod/again", "{.status.containerStatuses[0].restartCount}=1")?;
    scope.wait_for("pod/once", "{.status.phase}=Failed")?;
    let once = status(scope, "once")?["containerStatuses"][0].clone();
    ensure!(once["restartCount"] == 0 && once["started"] == false && once["ready"] == false, "{once}");
    for name in ["again", "once"] {
        let events =
            scope.kubectl(&["get", "events", &format!("--field-selector=involvedObject.name={name}")])?;
        ensure!(!events.contains("Liveness"), "{events}");
    }
    Ok(())
}
