//! `skeg down`: stops the cluster's process; with `--purge` removes every trace of the instance.

use crate::instance::Instance;
use crate::settings::Settings;
use crate::{forwarding, process, up};
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::path::Path;

pub fn down(instance: &Instance, purge: bool) -> Result<()> {
    if let Some(pid) = instance.running_pid()? {
        process::stop(pid).with_context(|| format!("stopping process {pid}"))?;
        crate::say!(
            "stopped the cluster (process {pid}){}",
            if purge { "" } else { "; its Pods keep running" }
        );
    } else if !purge {
        crate::say!("no cluster runs in {}", instance.data_dir.display());
    }
    if purge {
        let existed = remove(instance).context("removing the cluster; run the command again to finish")?;
        if existed {
            crate::say!(
                "removed the Pods, links, mounts, cgroups, rules and data of {}",
                instance.data_dir.display()
            );
        }
    }
    Ok(())
}

/// Removes what the host has of it; whether there was anything. The data directory may be gone, or
/// have been at another place.
fn remove(instance: &Instance) -> Result<bool> {
    if !instance.data_dir.exists() && !instance.is_on_host() {
        return Ok(false);
    }
    let former = Settings::load(instance)?.and_then(|settings| settings.former(instance));
    if let Some(former) = former {
        remove(&former).with_context(|| format!("what was named after {}", former.data_dir.display()))?;
    }
    instance.create_directories()?;
    // Nobody may start the cluster while it is taken apart.
    let claim = instance.claim()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        up::open_runtime(instance).await?.purge().await.context("containers")?;
        // Volumes in memory are mounts.
        skeg_node::remove_pod_dir(&instance.path("node/pods")).context("volumes")?;
        skeg_network::purge(&instance.id, &instance.path("network")).await.context("network")
    })?;
    forwarding::give_back(&instance.run_dir)?;
    remove_all(&instance.run_dir)?;
    // By its settings a directory is known as Skeg's: they go last, so that what was interrupted can be
    // finished.
    for entry in std::fs::read_dir(&instance.data_dir)?.flatten() {
        if entry.path() == Settings::path(instance) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => remove_all(&entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    remove_all(&instance.data_dir)?;
    drop(claim);
    Ok(true)
}

/// Removes a directory with all that is in it; a mount point stays, empty.
fn remove_all(directory: &Path) -> Result<()> {
    let is_empty = || std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy && is_empty() => Ok(()),
        other => other.with_context(|| format!("{}", directory.display())),
    }
}
