//! An API server behind Skeg's, in a Pod: nginx that lets in only the front proxy.

use crate::{Case, Scope};
use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub const CASES: &[Case] = &[Case { name: "another_api_server_in_a_pod", run: another }];

const GROUP: &str = "wardle.example.com";
const ROOT: &str = "/apis/wardle.example.com/v1alpha1";
const API_SERVICE: &str = "v1alpha1.wardle.example.com";

/// Authority, certificate and key of a server, as PEM.
fn serving(name: String) -> Result<[String; 3]> {
    let authority_key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key)?.pem();
    let issuer = rcgen::Issuer::new(params, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec![name])?.signed_by(&key, &issuer)?.pem();
    Ok([authority, certificate, key.serialize_pem()])
}

/// One resource, whose only object has the name of whoever asks.
fn nginx_conf() -> String {
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/v1alpha1"),
        "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]}]});
    let version = format!("{GROUP}/v1alpha1");
    let flunders = json!({"kind": "FlunderList", "apiVersion": version, "metadata": {},
        "items": [{"kind": "Flunder", "apiVersion": version, "metadata": {"name": "seen-$http_x_remote_user"}}]});
    format!(
        "pid /tmp/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n  access_log off;\n  server {{\n    listen 8443 ssl;\n    \
         ssl_certificate /own/tls.crt;\n    ssl_certificate_key /own/tls.key;\n    ssl_client_certificate /own/ca.crt;\n    \
         ssl_verify_client on;\n    default_type application/json;\n    location = {ROOT} {{ return 200 '{list}'; }}\n    \
         location {ROOT}/ {{ return 200 '{flunders}'; }}\n    location / {{ return 404 '{{}}'; }}\n  }}\n}}\n"
    )
}

fn another(scope: &Scope<'_>) -> Result<()> {
    let [authority, certificate, key] = serving(format!("api.{}.svc", scope.namespace))?;
    let path = "jsonpath={.data.requestheader-client-ca-file}";
    let front_proxy = scope.kubectl(&[
        "get",
        "configmap",
        "extension-apiserver-authentication",
        "--namespace",
        "kube-system",
        "-o",
        path,
    ])?;
    let files = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "own"}, "stringData": {
        "nginx.conf": nginx_conf(), "tls.crt": certificate, "tls.key": key, "ca.crt": front_proxy}});
    scope.apply(&files)?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api", "labels": {"app": "api"}}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "own", "secret": {"secretName": "own"}}],
        "containers": [{"name": "nginx", "image": "nginx", "command": ["nginx", "-c", "/own/nginx.conf", "-g", "daemon off;"],
            "volumeMounts": [{"name": "own", "mountPath": "/own"}],
            "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1}}]}});
    scope.apply(&pod)?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api"},
        "spec": {"selector": {"app": "api"}, "ports": [{"port": 443, "targetPort": 8443}]}});
    scope.apply(&service)?;
    scope.wait_ready("api")?;
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": API_SERVICE},
        "spec": {"group": GROUP, "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
                 "caBundle": STANDARD.encode(authority), "service": {"name": "api", "namespace": scope.namespace}}});
    scope.apply(&object)?;
    let result = use_it(scope);
    // Others of this cluster do not wait for its server.
    scope.kubectl(&["delete", "apiservice", API_SERVICE])?;
    result?;
    let groups = scope.kubectl(&["api-versions"])?;
    ensure!(!groups.contains(GROUP), "{groups}");
    Ok(())
}

fn use_it(scope: &Scope<'_>) -> Result<()> {
    let is_available = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Available" && c["reason"] == "Passed"))
    };
    scope.watch_until(&["apiservice", API_SERVICE], is_available)?;
    let resources = scope.kubectl(&["api-resources", "--api-group", GROUP])?;
    ensure!(resources.contains("flunders"), "{resources}");
    let got = scope.kubectl(&["get", "flunders"])?;
    ensure!(got.contains("seen-skeg-admin"), "{got}");
    let table = scope.kubectl(&["get", "apiservice", API_SERVICE])?;
    ensure!(table.contains(&format!("{}/api", scope.namespace)) && table.contains("True"), "{table}");
    Ok(())
}
