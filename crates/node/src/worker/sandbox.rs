//! A Pod's sandbox and address, and what is left to clean up at its end.

use crate::network::HostPortMapping;
use crate::{Context, container, machine, text, volumes};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::Value;
use skeg_client::{DeleteOptions, PatchKind, Preconditions};
use std::sync::Arc;

/// What a Pod asks for that this node cannot give; better said than silently left out.
fn unsupported(pod: &Pod) -> Option<String> {
    let spec = machine::spec(pod);
    if spec.host_users == Some(false) {
        return Some("user namespaces (hostUsers: false) are not supported on this node".to_owned());
    }
    let claim = spec.resource_claims.iter().flatten().next();
    claim.map(|claim| format!("resource claim \"{}\" cannot be prepared on this node", claim.name))
}

/// What RuntimeClasses may name: both are the one runtime that a node has.
const HANDLERS: [&str; 2] = ["runc", "skeg"];

/// A Pod's runtime class must be there, and name a runtime of this node.
async fn check_runtime(ctx: &Context, pod: &Pod) -> Result<(), String> {
    let name = machine::spec(pod).runtime_class_name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Ok(());
    }
    let class =
        ctx.client.api::<RuntimeClass>().get_opt("", name).await.map_err(|error| error.to_string())?;
    match class.map(|class| class.handler) {
        Some(handler) if HANDLERS.contains(&handler.as_str()) => Ok(()),
        Some(handler) => {
            Err(format!("no runtime for \"{handler}\" of RuntimeClass \"{name}\" is configured"))
        }
        None => Err(format!("RuntimeClass \"{name}\" not found")),
    }
}

pub(super) async fn create_sandbox(ctx: &Context, pod: &Pod) -> Result<Vec<String>, String> {
    if let Some(why) = unsupported(pod) {
        return Err(why);
    }
    check_runtime(ctx, pod).await?;
    let config = container::sandbox_config(ctx, pod);
    let host_network = config.host_network;
    let uid = config.uid.clone();
    let existing = ctx.runtime.sandbox(&uid).await.ok().filter(|s| s.ready);
    let sandbox = match existing {
        Some(sandbox) => sandbox,
        None => {
            // Another sandbox may get another address, which the old hosts file does not know.
            let _ = std::fs::remove_file(ctx.pod_dir(&uid).join("etc/hosts"));
            ctx.runtime.create_sandbox(config).await.map_err(|e| e.to_string())?
        }
    };
    if host_network {
        return Ok(ctx.config.addresses.iter().map(ToString::to_string).collect());
    }
    let netns = sandbox.netns.ok_or("the sandbox has no network namespace")?;
    let ports = host_ports(pod);
    let ips = ctx.network.attach(&uid, &netns, &ports).await.map_err(|e| format!("network: {e}"))?;
    Ok(ips.iter().map(ToString::to_string).collect())
}

fn host_ports(pod: &Pod) -> Vec<HostPortMapping> {
    let spec = machine::spec(pod);
    let port = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    machine::all_containers(spec)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            Some(HostPortMapping {
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: port(p.host_port?)?,
                container_port: port(p.container_port)?,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect()
}

pub async fn remove_sandbox(ctx: &Context, uid: &str, ids: &[String]) -> Result<(), String> {
    let (sandbox, network) = tokio::join!(ctx.runtime.remove_sandbox(uid), ctx.network.detach(uid));
    sandbox.map_err(|e| e.to_string())?;
    network.map_err(|e| e.to_string())?;
    for id in ids {
        ctx.images.release(id);
    }
    Ok(())
}

/// Cleans the host up, says the last word on the status and deletes the object.
pub(super) async fn finish(
    ctx: &Arc<Context>,
    pod: &Pod,
    gone: bool,
    last: Option<Value>,
) -> Result<(), String> {
    let meta = &pod.metadata;
    let (ns, name) = (text(&meta.namespace), text(&meta.name));
    // A rejected or never started Pod may still have an address from an earlier life.
    ctx.network.detach(text(&meta.uid)).await.map_err(|e| e.to_string())?;
    let (pod_dir, log_dir) = (ctx.pod_dir(text(&meta.uid)), ctx.pod_log_dir(pod));
    let cleaned = tokio::task::spawn_blocking(move || {
        volumes::remove_pod_dir(&pod_dir)?;
        match std::fs::remove_dir_all(&log_dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    });
    cleaned.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    if gone {
        return Ok(());
    }
    let api = ctx.client.api::<Pod>();
    if let Some(body) = last {
        match api.patch(ns, name, PatchKind::Strategic, &body, Some("status")).await {
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error.to_string()),
            Ok(_) => {}
        }
    }
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    match api.delete(ns, name, &options).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
