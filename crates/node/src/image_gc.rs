//! Images that nothing uses: those without a name go at once, the others when the disk fills, the least
//! used first. Upstream counterpart: `pkg/kubelet/images/image_gc_manager.go`.

use crate::Context;
use skeg_images::{Error, Images};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(10);
/// Images that were used a moment ago stay, as with upstream's `imageMinimumGCAge`.
const IDLE_MIN: Duration = Duration::from_secs(120);
/// Where images begin to go and where that ends, in percent of the disk in use. Upstream's defaults are
/// 85 and 80; disk pressure begins later here too, for small clusters run on the disks of people's desks.
const HIGH_PERCENT: u64 = 90;
const LOW_PERCENT: u64 = 85;

pub(crate) async fn run(ctx: Arc<Context>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let dir = &ctx.config.data_dir;
        if !ctx.images.has_unnamed().unwrap_or(true) && percent_used(dir) < HIGH_PERCENT {
            continue;
        }
        let (images, dir) = (ctx.images.clone(), dir.clone());
        match tokio::task::spawn_blocking(move || collect(&images, || percent_used(&dir))).await {
            Ok(Ok(removed)) => {
                for id in removed {
                    tracing::info!(%id, "removed an image that nothing uses: the disk is nearly full");
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot collect images"),
            Err(error) => tracing::error!(%error, "the collection of images panicked"),
        }
    }
}

/// What goes for want of room, by id.
fn collect(images: &Images, percent_used: impl Fn() -> u64) -> Result<Vec<String>, Error> {
    images.collect()?;
    let mut removed = Vec::new();
    if percent_used() >= HIGH_PERCENT {
        while percent_used() > LOW_PERCENT
            && let Some(id) = images.remove_least_used(IDLE_MIN)?
        {
            removed.push(id);
        }
    }
    Ok(removed)
}

fn percent_used(dir: &Path) -> u64 {
    let Ok(disk) = nix::sys::statvfs::statvfs(dir) else { return 0 };
    let used = disk.blocks() - disk.blocks_free();
    (used * 100).checked_div(used + disk.blocks_available()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skeg_images::ImagesConfig;
    use std::cell::Cell;

    #[test]
    fn images_go_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let config = skeg_images::ImageConfig::default();
        let record = json!({"digests": [], "chain": [], "size_bytes": 1, "config": config});
        let target = |id: &str, pinned: bool| json!({"id": id, "digest": "sha256:0", "pinned": pinned});
        let state = json!({
            "images": {"a": record, "b": record, "imported": record, "unnamed": record},
            "references": {"x/a:1": target("a", false), "x/b:1": target("b", false),
                "x/imported:1": target("imported", true)},
        });
        std::fs::write(dir.path().join("state.json"), state.to_string()).unwrap();
        let images = Images::open(ImagesConfig { dir: dir.path().to_owned(), ..Default::default() }).unwrap();
        let there = || images.list().unwrap().into_iter().map(|image| image.id).collect::<Vec<_>>();
        let none: [&str; 0] = [];
        assert_eq!(collect(&images, || HIGH_PERCENT - 1).unwrap(), none);
        assert_eq!(there(), ["a", "b", "imported"], "what has no name needs no full disk to go");
        // Each removal makes some room.
        let used = Cell::new(HIGH_PERCENT + 4);
        let percent = || used.replace(used.get() - 3);
        assert_eq!(collect(&images, percent).unwrap(), ["a", "b"]);
        assert_eq!(there(), ["imported"]);
        assert_eq!(collect(&images, || 100).unwrap(), none, "there is nothing more to remove");
    }
}
