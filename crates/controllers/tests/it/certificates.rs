//! CertificateSigningRequests, with a signer that notes what it is asked.

use crate::Cluster;
use http::Method;
use serde_json::{Value, json};
use skeg_controllers::Signer;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const PEM: &str = include_str!("../../../api/testdata/request.pem");
const NODE_PEM: &str = include_str!("../../../api/testdata/request-node.pem");

/// Its certificates say whose they are, and for how long and what.
pub fn signer() -> Signer {
    Signer::new(|request, usages, lasts| {
        Ok(format!("{} {} {}", request.common_name, lasts.as_secs(), usages.join("+")))
    })
}

fn encoded(text: &str) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap()
}

fn request(name: &str, signer: &str, pem: &str, groups: &[&str]) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": encoded(pem), "signerName": signer, "usages": ["client auth", "digital signature"],
                 "username": "someone", "groups": groups}, "status": {}})
}

fn approve(cluster: &Cluster, name: &str) {
    let now = cluster.api.state().now();
    let condition = json!({"type": "Approved", "status": "True", "lastUpdateTime": now});
    let status = json!({"status": {"conditions": [condition]}});
    cluster.api.send(Method::PATCH, &format!("{REQUESTS}/{name}/approval"), status);
}

#[tokio::test(start_paused = true)]
async fn approved_requests_are_signed_and_go_after_an_hour() {
    let cluster = Cluster::start().await;
    let api = cluster.api.clone();
    let mut short = request("short", CLIENT, PEM, &[]);
    short["spec"]["expirationSeconds"] = 700.into();
    api.send(Method::POST, REQUESTS, short);
    api.send(Method::POST, REQUESTS, request("other", "example.com/x", PEM, &[]));
    cluster.settled().await;
    assert!(
        api.state().get("certificatesigningrequests", "", "short").unwrap()["status"]
            .get("certificate")
            .is_none()
    );
    approve(&cluster, "short");
    approve(&cluster, "other");
    let start = tokio::time::Instant::now();
    let signed = encoded("jane 700 client auth+digital signature");
    api.wait("signed", |state| {
        state.get("certificatesigningrequests", "", "short").unwrap()["status"]["certificate"] == signed
    })
    .await;
    let all = |name: &'static str| {
        let api = api.clone();
        async move {
            let gone = |state: &crate::State| state.get("certificatesigningrequests", "", name).is_none();
            while !gone(&api.state()) {
                tokio::time::sleep(std::time::Duration::from_secs(60)).await;
            }
        }
    };
    all("short").await;
    let minutes = start.elapsed().as_secs() / 60;
    assert!((60..63).contains(&minutes), "after {minutes} min");
    let other = api.state().get("certificatesigningrequests", "", "other").unwrap().clone();
    assert!(other["status"].get("certificate").is_none(), "{other}");
    all("other").await;
    let hours = start.elapsed().as_secs() / 3600;
    assert_eq!(hours, 24, "what nobody signs stays for a day");
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_breaks_a_rule_of_its_signer_fails() {
    let cluster = Cluster::start().await;
    cluster.api.send(Method::POST, REQUESTS, request("web", "kubernetes.io/kubelet-serving", PEM, &[]));
    approve(&cluster, "web");
    cluster
        .api
        .wait("failed", |state| {
            let request = state.get("certificatesigningrequests", "", "web").unwrap();
            let failed = request["status"]["conditions"].as_array().and_then(|all| all.get(1));
            failed.is_some_and(|failed| {
                failed["type"] == "Failed"
                    && failed["reason"] == "SignerValidationFailure"
                    && failed["message"] == "subject organization is not system:nodes"
            })
        })
        .await;
    cluster.settled().await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_may_are_approved_by_themselves() {
    let cluster = Cluster::start().await;
    let api = cluster.api.clone();
    api.send(Method::POST, REQUESTS, request("new", KUBELET, NODE_PEM, &["system:bootstrappers"]));
    api.send(Method::POST, REQUESTS, request("unknown", KUBELET, NODE_PEM, &["system:authenticated"]));
    api.wait("signed", |state| {
        let request = state.get("certificatesigningrequests", "", "new").unwrap();
        let approved = &request["status"]["conditions"][0];
        approved["reason"] == "AutoApproved" && request["status"].get("certificate").is_some()
    })
    .await;
    cluster.settled().await;
    let unknown = api.state().get("certificatesigningrequests", "", "unknown").unwrap().clone();
    assert!(unknown["status"].get("conditions").is_none(), "{unknown}");
    cluster.stop().await;
}
