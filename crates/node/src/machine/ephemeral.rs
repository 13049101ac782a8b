//! Ephemeral containers: started once each beside the others, as soon as the Pod's sandbox stands,
//! and never again.

use super::{ContainerMemory, Memory};
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};
use skeg_base::Timestamp;

/// What to do about an ephemeral container.
#[derive(Debug, PartialEq)]
pub enum Next {
    Start,
    /// Look again then.
    Wake(Timestamp),
    Nothing,
}

pub fn next(name: &str, memory: &Memory, now: Timestamp) -> Next {
    let none = ContainerMemory::default();
    let known = memory.container(name).unwrap_or(&none);
    let begun = known.current.as_ref().is_some_and(|run| !run.is_created());
    match known.retry_at.filter(|at| *at > now) {
        _ if begun || known.busy.is_some() => Next::Nothing,
        Some(at) => Next::Wake(at),
        None => Next::Start,
    }
}

/// The container of any sort by its name.
pub fn find_container(spec: &PodSpec, name: &str) -> Option<Container> {
    let found = super::all_containers(spec).find(|c| c.name == name).cloned();
    found.or_else(|| spec.ephemeral_containers.iter().flatten().find(|c| c.name == name).map(as_container))
}

/// The container whose processes the ephemeral container of that name is to see.
pub fn target_of<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a str> {
    let found = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
    found.target_container_name.as_deref().filter(|target| !target.is_empty())
}

/// An ephemeral container as what it is otherwise: a container.
pub fn as_container(from: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = from.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}
