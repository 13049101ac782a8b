//! Certificates that users ask for, and who they are with them.

use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs;

pub const CASES: &[Case] = &[
    Case { name: "kubectl_approves_certificates", run: approve },
    Case { name: "groups_and_flows_are_registered", run: registered },
];

/// Key and request of a user, as PEM.
fn ask(user: &str, group: &str) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
    params.distinguished_name.push(rcgen::DnType::CommonName, user);
    Ok((key.serialize_pem(), params.serialize_request(&key)?.pem()?))
}

fn request(name: &str, pem: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client",
                 "usages": ["client auth"], "expirationSeconds": 3600}})
}

fn approve(scope: &Scope<'_>) -> Result<()> {
    let (key, asked) = ask("jane", "developers")?;
    let created = scope.apply(&request("jane", &asked))?;
    ensure!(created.contains("jane created") && !created.contains("Warning"), "{created}");
    ensure!(scope.kubectl(&["get", "csr", "jane"])?.contains("Pending"));
    let approved = scope.kubectl(&["certificate", "approve", "jane"])?;
    ensure!(approved.contains("jane approved"), "{approved}");
    scope.watch_until(&["csr", "jane"], |request| request["status"]["certificate"].is_string())?;
    let table = scope.kubectl(&["get", "csr", "jane"])?;
    ensure!(table.contains("Approved,Issued") && table.contains("60m"), "{table}");
    let certificate = scope.jsonpath(&["csr", "jane"], "{.status.certificate}")?;
    let cluster = scope.kubectl(&["config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster}"])?;
    let cluster: Value = serde_json::from_str(&cluster).context("kubectl config view")?;
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "jane",
        "clusters": [{"name": "c", "cluster": cluster}],
        "contexts": [{"name": "jane", "context": {"cluster": "c", "user": "jane"}}],
        "users": [{"name": "jane", "user": {"client-certificate-data": certificate, "client-key-data": STANDARD.encode(&key)}}]});
    let path = scope.cluster.scratch().join("jane.kubeconfig");
    fs::write(&path, config.to_string())?;
    let path = path.to_string_lossy().into_owned();
    let who = scope.kubectl(&["auth", "whoami", "-o", "json", "--kubeconfig", &path])?;
    let who: Value = serde_json::from_str(&who)?;
    let info = &who["status"]["userInfo"];
    ensure!(info["username"] == "jane", "{who}");
    ensure!(info["groups"] == json!(["developers", "system:authenticated"]), "{who}");
    let refused = scope.kubectl_fails(&["get", "nodes", "--kubeconfig", &path])?;
    ensure!(refused.contains("User \"jane\" cannot list resource \"nodes\""), "{refused}");
    scope.apply(&request("refused", &asked))?;
    scope.kubectl(&["certificate", "deny", "refused"])?;
    ensure!(scope.kubectl(&["get", "csr", "refused"])?.contains("Denied"));
    let (_, superuser) = ask("jane", "system:masters")?;
    let object = serde_json::to_string(&request("superuser", &superuser))?;
    let object_path = scope.cluster.scratch().join("superuser.json");
    fs::write(&object_path, object)?;
    let refused = scope.kubectl_fails(&["create", "-f", &object_path.to_string_lossy()])?;
    ensure!(refused.contains("system:masters group is not allowed"), "{refused}");
    scope.kubectl(&["delete", "csr", "jane", "refused"])?;
    Ok(())
}

fn registered(scope: &Scope<'_>) -> Result<()> {
    let services = scope.kubectl(&["get", "apiservices", "--no-headers"])?;
    ensure!(services.lines().count() >= 21, "{services}");
    let odd = services.lines().find(|line| !(line.contains("Local") && line.contains("True")));
    ensure!(odd.is_none(), "{odd:?}");
    let schemas = scope.kubectl(&["get", "flowschemas", "--no-headers"])?;
    ensure!(schemas.lines().count() == 13, "{schemas}");
    ensure!(scope.kubectl(&["get", "servicecidr", "kubernetes"])?.contains('/'));
    Ok(())
}
