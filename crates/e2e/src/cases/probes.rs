//! Probes of each kind, and what they decide.

use super::network::page_from_host;
use super::{pod, started, status};
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
    scope.cluster.skeg(&["image", "import", &scope.cluster.archive("etcd").to_string_lossy()])?;
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
    Ok(())
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
