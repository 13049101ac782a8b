//! Limits on local storage: `emptyDir.sizeLimit` and `limits.ephemeral-storage`. A Pod that takes
//! more is evicted; nothing is measured of Pods without such limits. Upstream counterpart:
//! `localStorageEviction` in `pkg/kubelet/eviction`.

use crate::machine::{self, Memory};
use crate::{Context, volumes};
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use skeg_api::predicates::{pod_limits, resource_lists};
use skeg_api::quantity::Quantity;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// The directories whose content counts.
struct Places<'a> {
    volume: &'a dyn Fn(&Volume) -> PathBuf,
    /// Writable layer, image's volumes and logs of a container.
    container: &'a dyn Fn(&str) -> Vec<PathBuf>,
}

/// Why the Pod must go, if it must. Reads the disk: for a thread that may block.
pub fn excess(ctx: &Context, pod: &Pod, memory: &Memory) -> Option<String> {
    let uid = crate::text(&pod.metadata.uid);
    let container = |name: &str| -> Vec<PathBuf> {
        let Some(run) = memory.container(name).and_then(|c| c.current.as_ref()) else { return vec![] };
        let log = ctx.log_path(pod, name, run.attempt).parent().map(Path::to_owned);
        ctx.runtime.writable_dirs(uid, &run.id).into_iter().chain(log).collect()
    };
    over_limit(
        pod,
        &Places { volume: &|volume| volumes::volume_path(ctx, pod, volume), container: &container },
    )
}

/// Whether anything of the Pod is limited.
pub fn is_limited(pod: &Pod) -> bool {
    let spec = machine::spec(pod);
    spec.volumes.iter().flatten().any(|v| on_disk(v) && size_limit(v).is_some())
        || machine::all_containers(spec)
            .any(|c| resource_lists(c.resources.as_ref()).1.contains_key(EPHEMERAL_STORAGE))
}

fn over_limit(pod: &Pod, places: &Places<'_>) -> Option<String> {
    let spec = machine::spec(pod);
    let is_over = |used: u64, limit: Quantity| i64::try_from(used).unwrap_or(i64::MAX) > limit.units();
    let mut total = 0;
    for volume in spec.volumes.iter().flatten().filter(|v| on_disk(v)) {
        let used = usage_bytes(&(places.volume)(volume));
        total += used;
        if let Some(text) = size_limit(volume).filter(|text| is_over(used, Quantity::of(text))) {
            let (name, limit) = (&volume.name, &text.0);
            return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". "));
        }
    }
    let mut containers = Vec::new();
    for container in machine::all_containers(spec) {
        let used = (places.container)(&container.name).iter().map(|path| usage_bytes(path)).sum::<u64>();
        total += used;
        containers.push((container, used));
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        total += (places.container)(&container.name).iter().map(|path| usage_bytes(path)).sum::<u64>();
    }
    if let Some(limit) = pod_limits(pod).get(EPHEMERAL_STORAGE).filter(|limit| is_over(total, **limit)) {
        let limit = limit.to_text().0;
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
        ));
    }
    containers.into_iter().find_map(|(container, used)| {
        let limit = resource_lists(container.resources.as_ref()).1.get(EPHEMERAL_STORAGE).copied();
        let limit = limit.filter(|limit| is_over(used, *limit))?.to_text().0;
        let name = &container.name;
        Some(format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "))
    })
}

/// An emptyDir that is not in memory.
fn on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref().unwrap_or_default().is_empty())
}

fn size_limit(volume: &Volume) -> Option<&Text> {
    let limit = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
    (!Quantity::of(limit).is_zero()).then_some(limit)
}

/// What a tree takes on the disk, each file once however many names it has. What goes away while
/// it is counted counts as nothing.
fn usage_bytes(path: &Path) -> u64 {
    const BLOCK_BYTES: u64 = 512;
    let (mut bytes, mut seen, mut pending) = (0, BTreeSet::new(), vec![path.to_owned()]);
    while let Some(path) = pending.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        bytes += meta.blocks() * BLOCK_BYTES;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(volume_kib: usize, container_kib: usize, expected: Option<&str>) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "100Ki"}}, {"name": "free", "emptyDir": {}}],
        "containers": [
            {"name": "a", "resources": {"limits": {"ephemeral-storage": "200Ki"}}},
            {"name": "b", "resources": {"limits": {"ephemeral-storage": "300Ki"}}},
        ]}}))
        .unwrap();
        assert!(is_limited(&pod));
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, kib: usize| {
            let place = dir.path().join(name);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("f"), vec![1; kib << 10]).unwrap();
            fs::hard_link(place.join("f"), place.join("again")).unwrap();
        };
        write("v", volume_kib);
        write("a", container_kib);
        let volume = |v: &Volume| dir.path().join(&v.name);
        let container = |name: &str| vec![dir.path().join(name)];
        let found = over_limit(&pod, &Places { volume: &volume, container: &container });
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn who_takes_more_than_they_may_is_told() {
        check(64, 64, None);
        check(128, 0, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"100Ki\". "));
        check(0, 256, Some("Container a exceeded its local ephemeral storage limit \"200Ki\". "));
        check(
            64,
            480,
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 500Ki. "),
        );
    }

    #[test]
    fn pods_without_limits_are_not_measured() {
        let pod = json!({"spec": {"volumes": [
            {"name": "v", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [{"name": "a"}]}});
        assert!(!is_limited(&serde_json::from_value(pod).unwrap()));
    }
}
