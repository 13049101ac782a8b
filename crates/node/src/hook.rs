//! One attempt of a probe or lifecycle handler: exec, HTTP, TCP, gRPC or sleep.

use crate::http_client::{self, Target};
use crate::text;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skeg_runtime::PodRuntime;
use std::time::Duration;

/// Output of a command that is kept for its event.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// Where a handler runs.
pub struct Place<'a> {
    pub runtime: &'a dyn PodRuntime,
    pub uid: &'a str,
    pub id: &'a str,
    pub container: &'a Container,
    pub pod_ip: &'a str,
}

/// What a probe found, with the words for its event.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    Success,
    /// A success that somebody should look at.
    Warning(String),
    Failure(String),
    /// The probe could not be run: that says nothing about the container.
    Unknown(String),
}

impl From<Result<(), String>> for Found {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Found::Failure, |()| Found::Success)
    }
}

/// Runs a probe once.
pub async fn probe(place: &Place<'_>, probe: &Probe) -> Found {
    let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
    if let Some(action) = &probe.exec {
        return exec(place, action.command.clone().unwrap_or_default(), timeout).await;
    }
    // Its errors are those of a probe that cannot be run.
    let attempt = async {
        if let Some(action) = &probe.http_get {
            let port = port(place.container, &action.port)?;
            return Ok(match http(place, action, port, "kube-probe/1.36").await {
                Ok((200..300, _)) => Found::Success,
                Ok((300..400, body)) => {
                    Found::Warning(format!("Probe terminated redirects, Response body: {body}"))
                }
                Ok((code, _)) => Found::Failure(format!("HTTP probe failed with statuscode: {code}")),
                Err(why) => Found::Failure(why),
            });
        }
        if let Some(action) = &probe.tcp_socket {
            let port = port(place.container, &action.port)?;
            let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(place.pod_ip);
            return Ok(http_client::connect(host, port).await.map(drop).into());
        }
        if let Some(action) = &probe.grpc {
            let port = u16::try_from(action.port).map_err(|_| format!("invalid port {}", action.port))?;
            return Ok(http_client::grpc_check(place.pod_ip, port, text(&action.service)).await.into());
        }
        Err("missing probe handler".to_owned())
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result.unwrap_or_else(Found::Unknown),
        Err(_) => Found::Failure(timeout_text(place, probe)),
    }
}

fn timeout_text(place: &Place<'_>, probe: &Probe) -> String {
    if let Some(action) = &probe.http_get {
        let url = port(place.container, &action.port)
            .map(|port| target_url(place, action, port))
            .unwrap_or_default();
        return format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        );
    }
    if let Some(action) = &probe.tcp_socket {
        let port = port(place.container, &action.port).unwrap_or_default();
        return format!("dial tcp {}:{port}: i/o timeout", action.host.as_deref().unwrap_or(place.pod_ip));
    }
    "timeout: health rpc did not complete within its deadline".to_owned()
}

fn target_url(place: &Place<'_>, action: &HTTPGetAction, port: u16) -> String {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(place.pod_ip);
    let https = action.scheme.as_deref() == Some("HTTPS");
    Target { https, host, port, path: action.path.as_deref().unwrap_or("/"), headers: &[] }.url()
}

async fn exec(place: &Place<'_>, command: Vec<String>, timeout: Duration) -> Found {
    let result =
        place.runtime.exec_sync(place.uid, place.id, command.clone(), timeout, OUTPUT_BYTES_MAX).await;
    match result {
        Ok(output) if output.timed_out => Found::Failure(format!(
            "command timed out: \"{}\" timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
        Ok(output) if output.exit_code == 0 => Found::Success,
        Ok(output) => Found::Failure(String::from_utf8_lossy(&output.output).into_owned()),
        Err(error) => Found::Unknown(error.to_string()),
    }
}

async fn http(
    place: &Place<'_>,
    action: &HTTPGetAction,
    port: u16,
    user_agent: &str,
) -> Result<(u16, String), String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(place.pod_ip);
    let headers: Vec<(String, String)> =
        action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    let target = Target {
        https: action.scheme.as_deref() == Some("HTTPS"),
        host,
        port,
        path: action.path.as_deref().unwrap_or("/"),
        headers: &headers,
    };
    http_client::get(&target, user_agent).await
}

/// A port by number, or by the name one of the container's ports has.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => {
            match container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name)) {
                Some(found) => found.container_port,
                None => name.parse().map_err(|_| format!("couldn't find port: {name:?}"))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Runs a lifecycle handler to its end.
pub async fn lifecycle(
    place: &Place<'_>,
    handler: &LifecycleHandler,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        let result =
            place.runtime.exec_sync(place.uid, place.id, command.clone(), timeout, OUTPUT_BYTES_MAX).await;
        return match result {
            Ok(output) if output.exit_code == 0 && !output.timed_out => Ok(()),
            Ok(output) => Err(format!(
                "Exec lifecycle hook ({:?}) for Container \"{}\" failed - error: command '{}' exited with {}: {}",
                command,
                place.container.name,
                command.join(" "),
                output.exit_code,
                String::from_utf8_lossy(&output.output)
            )),
            Err(error) => Err(error.to_string()),
        };
    }
    let attempt = async {
        if let Some(action) = &handler.http_get {
            // Upstream takes any answer as success.
            let port = port(place.container, &action.port)?;
            return http(place, action, port, "kube-lifecycle/1.36").await.map(drop);
        }
        if let Some(action) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(action.seconds.max(0) as u64)).await;
            return Ok(());
        }
        // tcpSocket is accepted by the API for old clients only and never was a lifecycle handler.
        Err(format!("invalid handler: {}", place.container.name))
    };
    tokio::time::timeout(timeout, attempt).await.unwrap_or_else(|_| Err("hook timed out".to_owned()))
}
