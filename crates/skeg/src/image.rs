//! `skeg image …`: works on the instance's image store, whether the cluster runs or not.

use crate::cli::Image as Command;
use crate::instance::Instance;
use crate::refuse;
use crate::settings::Settings;
use anyhow::{Context, Result};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use skeg_images::{Error, Image, Images, ImagesConfig, LayerPhase, Progress, Registries};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use tokio::sync::watch;

pub fn open(instance: &Instance, settings: Option<&Settings>) -> Result<Arc<Images>> {
    let registries = match settings.and_then(|settings| settings.registries.as_ref()) {
        Some(path) => Registries::load(path)?,
        None => Registries::default(),
    };
    Ok(Images::open(ImagesConfig { dir: instance.path("images"), registries })?)
}

pub fn image(instance: &Instance, command: Command) -> Result<()> {
    if matches!(command, Command::List | Command::Remove { .. }) && !instance.data_dir.exists() {
        refuse!(
            "--data-dir {}: there is no such directory: name a cluster's, or make one with `skeg up`",
            instance.data_dir.display()
        );
    }
    if let Command::Import { path, .. } = &command
        && !path.exists()
    {
        refuse!(
            "image import {}: there is no such file: name an OCI or docker archive, or an OCI layout directory",
            path.display()
        );
    }
    let is_new = !instance.data_dir.exists();
    let done = run(instance, command);
    if done.is_err() && is_new {
        // What a refused command made is empty.
        let images = ["layers", "holds", "tmp", ""].map(|part| instance.path("images").join(part));
        for directory in images.iter().chain([&instance.data_dir, &instance.run_dir]) {
            let _ = std::fs::remove_dir(directory);
        }
    }
    done
}

fn run(instance: &Instance, command: Command) -> Result<()> {
    instance.create_directories()?;
    let images = open(instance, Settings::load(instance)?.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match command {
            Command::Import { path, name } => {
                for image in images.import(&path, name.as_deref()).await? {
                    crate::say!("imported {} ({})", image.tags.join(", "), HumanBytes(image.size_bytes));
                }
                Ok(())
            }
            Command::List => {
                crate::print(&table(&images.list()?));
                Ok(())
            }
            Command::Pull { reference } => {
                let (sender, receiver) = watch::channel(Progress::default());
                let bars = tokio::spawn(show(receiver));
                let pulled = images.pull(&reference, &[], Some(sender)).await;
                let _ = bars.await;
                let image = pulled?;
                crate::say!("pulled {reference} ({}, {})", image.id, HumanBytes(image.size_bytes));
                Ok(())
            }
            Command::Remove { reference } => images.remove(&reference).await,
        }
    });
    match result {
        Ok(()) => Ok(()),
        Err(error @ Error::InvalidReference(_)) => {
            refuse!("{error}: name one such as nginx:1.27 or registry.example/team/app:v1, in lower case")
        }
        Err(
            error @ (Error::NoImage(_)
            | Error::Invalid(_)
            | Error::NotFound(_)
            | Error::Unauthorized(_)
            | Error::NoPlatform(_)
            | Error::Config(_)
            | Error::Io { .. }),
        ) => refuse!("{error}"),
        Err(error) => Err(error).context("image"),
    }
}

fn table(images: &[Image]) -> String {
    let mut rows =
        vec![["REFERENCE".to_owned(), "IMAGE ID".to_owned(), "SIZE".to_owned(), "PINNED".to_owned()]];
    for image in images {
        let names = if image.tags.is_empty() { &image.repo_digests } else { &image.tags };
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        rows.extend(names.iter().map(|name| {
            let pinned = if image.pinned_names.contains(name) { "yes" } else { "" };
            [name.clone(), id.clone(), HumanBytes(image.size_bytes).to_string(), pinned.to_owned()]
        }));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |row: &[String; 4]| {
        let text = format!(
            "{:<a$}   {:<b$}   {:<c$}   {}",
            row[0],
            row[1],
            row[2],
            row[3],
            a = widths[0],
            b = widths[1],
            c = widths[2]
        );
        format!("{}\n", text.trim_end())
    };
    rows.iter().map(line).collect()
}

/// Draws a bar a layer, on a terminal only.
async fn show(mut progress: watch::Receiver<Progress>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let bars = MultiProgress::new();
    let mut shown: BTreeMap<String, ProgressBar> = BTreeMap::new();
    while progress.changed().await.is_ok() {
        let layers = progress.borrow_and_update().layers.clone();
        for layer in layers {
            let bar = shown.entry(layer.digest.clone()).or_insert_with(|| {
                let bar = bars.add(ProgressBar::new(layer.total_bytes));
                let style = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes} {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(layer.digest.chars().skip(7).take(12).collect::<String>());
                bar
            });
            bar.set_position(layer.done_bytes);
            bar.set_message(match layer.phase {
                LayerPhase::Waiting => "waiting",
                LayerPhase::Downloading => "downloading",
                LayerPhase::Unpacking => "unpacking",
                LayerPhase::Complete => "complete",
            });
        }
    }
    shown.values().for_each(ProgressBar::abandon);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_pinned_by_itself() {
        let image = Image {
            id: "sha256:0123456789abcdef".into(),
            repo_digests: vec!["r/a@sha256:1".into()],
            tags: vec!["r/a:1".into(), "r/b:1".into()],
            size_bytes: 1024,
            layers: vec![],
            config: Default::default(),
            pinned: true,
            pinned_names: ["r/a:1".to_owned()].into(),
        };
        assert_eq!(
            table(&[image]),
            "REFERENCE   IMAGE ID       SIZE       PINNED\n\
             r/a:1       0123456789ab   1.00 KiB   yes\n\
             r/b:1       0123456789ab   1.00 KiB\n"
        );
    }
}
