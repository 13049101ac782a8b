//! `skeg status`: whether the process runs, the API answers and the node is Ready.

use crate::instance::Instance;
use crate::refuse;
use crate::settings::Settings;
use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use skeg_apiserver::pki::Pki;
use skeg_base::Clock;
use std::sync::Arc;
use std::time::Duration;

/// How long the API may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub fn status(instance: &Instance) -> Result<()> {
    let Some(settings) = Settings::load(instance)? else {
        refuse!("there is no cluster in {}: start one with `skeg up`", instance.data_dir.display());
    };
    let Some(pid) = instance.running_pid()? else {
        refuse!("the cluster in {} is stopped: start it with `skeg up`", instance.data_dir.display());
    };
    crate::say!("running   process {pid}, https://{}", settings.listen);
    crate::say!("instance  {} in {}", instance.id, instance.data_dir.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ready = get(instance, &settings, "/readyz?verbose").await?;
        let line = ready.lines().last().unwrap_or_default();
        crate::say!("api       {line}");
        let nodes: Value = serde_json::from_str(&get(instance, &settings, "/api/v1/nodes").await?)?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            let conditions = node["status"]["conditions"].as_array();
            let ready = conditions
                .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"));
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            crate::say!("node      {name} {}", if ready { "Ready" } else { "NotReady" });
        }
        let pods: Value = serde_json::from_str(&get(instance, &settings, "/api/v1/pods").await?)?;
        let pods = pods["items"].as_array().map_or(&[][..], Vec::as_slice);
        let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        crate::say!("pods      {} of {} running", running, pods.len());
        Ok(())
    })
}

async fn get(instance: &Instance, settings: &Settings, path: &str) -> Result<String> {
    tokio::time::timeout(ANSWER_TIMEOUT, fetch(instance, settings, path))
        .await
        .with_context(|| format!("https://{} does not answer", settings.listen))?
}

async fn fetch(instance: &Instance, settings: &Settings, path: &str) -> Result<String> {
    let pki = Pki::open(&instance.path("pki"), Clock::system())?;
    let admin = pki.client("admin", "skeg-admin", &["system:masters"])?;
    let mut config = pki.client_config(Some(&admin))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = tokio::net::TcpStream::connect(settings.listen).await.context("connecting to the API")?;
    let tls =
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into()?, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    let driver = tokio::spawn(connection);
    let request =
        http::Request::get(path).header("host", "localhost").body(Empty::<hyper::body::Bytes>::new())?;
    let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok(String::from_utf8_lossy(&body).into_owned())
}
