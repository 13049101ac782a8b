//! Probes of each kind, and what they decide.

use super::{pod, started, status};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "liveness_and_startup_probes", run: liveness_and_startup },
    Case { name: "readiness_by_exec_and_tcp", run: readiness },
    Case { name: "http_grpc_and_https_probes", run: http_probes },
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
    eventually("the events", || {
        let text = scope.kubectl(&["get", "events"])?;
        Ok((text.contains("Liveness probe failed") && text.contains("will be restarted")).then_some(()))
    })
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

/// HTTP with a path, headers and a named port; what answers wrongly is not ready. gRPC and HTTPS
/// against servers of the node's own tests.
fn http_probes(scope: &Scope<'_>) -> Result<()> {
    let mut web = pod("web", &[("main", "mkdir /www; echo ok > /www/there; httpd -f -p 8080 -h /www")]);
    web["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    web["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/late", "port": "http"}, "periodSeconds": 1});
    web["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"path": "/there", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1});
    scope.apply(&web)?;
    eventually("the readiness probe fails", || {
        let text = scope.kubectl(&["get", "events", "--field-selector=reason=Unhealthy"])?;
        Ok(text.contains("Readiness probe failed: HTTP probe failed with statuscode: 404").then_some(()))
    })?;
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
        eventually("the probe fails", || {
            let field = format!("--field-selector=reason=Unhealthy,involvedObject.name={name}");
            let text = scope.kubectl(&["get", "events", &field])?;
            Ok(text.contains("Readiness probe failed").then_some(()))
        })?;
        ensure!(status(scope, name)?["containerStatuses"][0]["ready"] == false);
    }
    Ok(())
}
