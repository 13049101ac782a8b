//! Pulls: manifest, configuration, then the layers that are missing, several at once.

use crate::manifest::{self, ConfigBlob, Descriptor, Document, Manifest, Platform, chain_ids, digest_of};
use crate::reference::valid_digest;
use crate::registry::{Credential, Source};
use crate::store::{Images, Record, Scratch, State, Target, blocking};
use crate::unpack::{inherit_attributes, unpack};
use crate::{Error, Image, Reference, Result, io};
use bytes::Bytes;
use futures_util::future::try_join_all;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// How far a pull is; the latest value is all that matters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub layers: Vec<LayerProgress>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LayerProgress {
    pub digest: String,
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub phase: LayerPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerPhase {
    Waiting,
    Downloading,
    Unpacking,
    /// Unpacked now, or present before.
    Complete,
}

/// Where blobs come from.
pub(crate) enum Blobs<'a> {
    Registry(&'a Source),
    /// Files that an archive or a layout holds, by digest.
    Files(&'a (dyn Fn(&str) -> Option<PathBuf> + Sync)),
}

impl Images {
    /// Makes the image present. A pinned reference resolves locally, without the network; any
    /// other asks the registry, and a failure there is an error even if an older image is here.
    pub async fn pull(
        self: &Arc<Self>,
        reference: &str,
        credentials: &[Credential],
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Image> {
        let reference = Reference::parse(reference)?;
        let key = reference.to_string();
        if let Some(image) = self.resolve_key(&*self.state()?, &key).filter(|image| image.pinned) {
            return Ok(image);
        }
        let (source, digest) = self.registry.locate(&reference, credentials).await?;
        let digest = digest.or_else(|| reference.digest.clone());
        if let Some(digest) = &digest
            && let Some(image) = self.known(&key, digest, source.holders())?
        {
            return Ok(image);
        }
        let target = digest.as_deref().unwrap_or_else(|| reference.target());
        let top = self.registry.manifest(&source, target).await?;
        let top_digest = digest_of(&top);
        check("manifest", digest.as_deref(), &top_digest)?;
        let mut digests = BTreeSet::from([top_digest.clone()]);
        let mut document = Document::parse(&top)?;
        if let Some(entries) = document.manifests.take() {
            let platform = Platform::host();
            let chosen = manifest::choose(&entries, &platform)
                .ok_or_else(|| Error::NoPlatform(platform.to_string()))?;
            let bytes = self.registry.manifest(&source, &chosen.digest).await?;
            check("manifest", Some(&chosen.digest), &digest_of(&bytes))?;
            digests.insert(chosen.digest.clone());
            document = Document::parse(&bytes)?;
        }
        let manifest = document.into_manifest()?;
        valid(&manifest)?;
        let config = self.registry.config(&source, &manifest.config.digest).await?;
        check("configuration", Some(&manifest.config.digest), &digest_of(&config))?;
        let (id, holders) = (manifest.config.digest.clone(), source.holders());
        let target = Target { id, digest: top_digest, pinned: false, holders };
        self.install(key, target, digests, &manifest, &config, Blobs::Registry(&source), progress).await
    }

    /// An image that this manifest digest led to before, now also under this reference.
    fn known(&self, key: &str, digest: &str, holders: Option<BTreeSet<String>>) -> Result<Option<Image>> {
        let state = self.state()?;
        let Some(id) =
            state.images.iter().find(|(_, r)| r.digests.contains(digest)).map(|(id, _)| id.clone())
        else {
            return Ok(None);
        };
        if !state.images[&id].chain.iter().all(|chain| self.layer_path(chain).exists()) {
            return Ok(None);
        }
        let target = Target { id: id.clone(), digest: digest.to_owned(), pinned: false, holders };
        self.change(|state| state.images.contains_key(&id) && set_reference(state, key, target))?;
        Ok(self.resolve_key(&*self.state()?, key))
    }

    /// Unpacks the layers that are missing and records the image under `key`.
    #[expect(clippy::too_many_arguments, reason = "one call from each kind of source, with what it found")]
    pub(crate) async fn install(
        self: &Arc<Self>,
        key: String,
        target: Target,
        digests: BTreeSet<String>,
        manifest: &Manifest,
        config: &Bytes,
        blobs: Blobs<'_>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Image> {
        let blob = ConfigBlob::parse(config)?;
        if blob.diff_ids.len() != manifest.layers.len() {
            return Err(Error::Invalid(format!(
                "{} layers, {} diff ids",
                manifest.layers.len(),
                blob.diff_ids.len()
            )));
        }
        let chain = chain_ids(&blob.diff_ids);
        let protection = {
            let images = self.clone();
            blocking(move || images.protect_layers()).await?
        };
        let report = Report::new(progress, &manifest.layers);
        let (ready, _) = watch::channel(0usize);
        let layers = manifest
            .layers
            .iter()
            .enumerate()
            .map(|(n, layer)| self.layer(n, layer, &blob.diff_ids[n], &chain, &blobs, &ready, &report));
        try_join_all(layers).await?;
        let record = Record {
            digests,
            chain,
            size_bytes: manifest.layers.iter().map(|l| l.size).sum::<u64>() + config.len() as u64,
            config: blob.config,
        };
        let images = self.clone();
        blocking(move || {
            images.change(|state| {
                let known = state.images.entry(target.id.clone()).or_insert_with(|| record.clone());
                known.digests.extend(record.digests);
                set_reference(state, &key, target);
                true
            })?;
            drop(protection);
            images.resolve_key(&*images.state()?, &key).ok_or(Error::NoImage(key))
        })
        .await
    }

    /// Makes layer `n` present: fetched and unpacked beside the others, put in place in order,
    /// because directories it does not name take their attributes from the layers below.
    #[expect(clippy::too_many_arguments, reason = "the loop body of install")]
    async fn layer(
        self: &Arc<Self>,
        n: usize,
        layer: &Descriptor,
        diff_id: &str,
        chain: &[String],
        blobs: &Blobs<'_>,
        ready: &watch::Sender<usize>,
        report: &Report,
    ) -> Result<()> {
        let path = self.layer_path(&chain[n]);
        let lock = self.layer_lock(&chain[n]);
        let _held = lock.lock().await;
        let unpacked = if path.exists() {
            None
        } else {
            let _slot = self.layer_slots.acquire().await.map_err(|_| Error::Invalid("closed".into()))?;
            Some(self.unpack_layer(n, layer, diff_id, blobs, report).await?)
        };
        // Below must be in place first; a failure there cancels us through try_join_all.
        let mut below_ready = ready.subscribe();
        let _ = below_ready.wait_for(|count| *count >= n).await;
        if let Some((root, implicit)) = unpacked {
            let below: Vec<PathBuf> = chain[..n].iter().rev().map(|c| self.layer_path(c)).collect();
            let layers = self.dir.join("layers");
            blocking(move || {
                inherit_attributes(root.path(), &implicit, &below)?;
                place(root.path(), &path)?;
                File::open(&layers).and_then(|d| d.sync_all()).map_err(io("sync layers"))
            })
            .await?;
        }
        report.phase(n, LayerPhase::Complete);
        ready.send_modify(|count| *count = n + 1);
        Ok(())
    }

    async fn unpack_layer(
        self: &Arc<Self>,
        n: usize,
        layer: &Descriptor,
        diff_id: &str,
        blobs: &Blobs<'_>,
        report: &Report,
    ) -> Result<(Scratch, Vec<PathBuf>)> {
        report.phase(n, LayerPhase::Downloading);
        let (blob, temporary) = match blobs {
            Blobs::Registry(source) => {
                let to = self.scratch();
                self.registry.blob(source, layer, to.path(), |done| report.bytes(n, done)).await?;
                (to.path().to_owned(), Some(to))
            }
            Blobs::Files(find) => {
                let found = find(&layer.digest);
                (found.ok_or_else(|| Error::Invalid(format!("layer {} is missing", layer.digest)))?, None)
            }
        };
        report.phase(n, LayerPhase::Unpacking);
        let root = self.scratch();
        let (digest, diff_id) = (layer.digest.clone(), diff_id.to_owned());
        blocking(move || {
            let dir = root.path();
            fs::create_dir(dir).map_err(io(format!("create {}", dir.display())))?;
            // A layer's root is world-readable whatever the agent's umask is.
            fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .map_err(io("chmod layer"))?;
            let file = File::open(&blob).map_err(io(format!("open {}", blob.display())))?;
            let unpacked = unpack(file, dir).map_err(|error| error.inside(dir))?;
            drop(temporary);
            check("layer", Some(&digest), &unpacked.digest)?;
            check("unpacked layer", Some(&diff_id), &unpacked.diff_id)?;
            Ok((root, unpacked.implicit))
        })
        .await
    }
}

pub(crate) fn check(what: &str, expected: Option<&str>, actual: &str) -> Result<()> {
    match expected {
        Some(expected) if expected != actual => {
            Err(Error::DigestMismatch { what: what.into(), expected: expected.into(), actual: actual.into() })
        }
        _ => Ok(()),
    }
}

pub(crate) fn valid(manifest: &Manifest) -> Result<()> {
    let mut all = manifest.layers.iter().chain([&manifest.config]);
    match all.find(|d| !valid_digest(&d.digest)) {
        Some(bad) => Err(Error::Invalid(format!("digest {:?}", bad.digest))),
        None => Ok(()),
    }
}

/// How many credentials are remembered of a reference; beyond that the newest alone.
const HOLDERS_MAX: usize = 256;

/// Points a reference at an image; an import's pin stays until the reference is removed, and who may
/// use the image goes on to.
fn set_reference(state: &mut State, key: &str, mut target: Target) -> bool {
    if let Some(old) = state.references.get(key) {
        target.pinned |= old.pinned;
        if old.id == target.id {
            target.holders = match (target.holders, &old.holders) {
                (Some(new), Some(old)) if old.len() < HOLDERS_MAX => Some(&new | old),
                (new, Some(_)) => new,
                (_, None) => None,
            };
        }
    }
    state.references.insert(key.to_owned(), target.clone()) != Some(target)
}

/// Renames into place; another process may have been faster.
fn place(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(_) if to.exists() => fs::remove_dir_all(from).map_err(io(format!("remove {}", from.display()))),
        other => other.map_err(io(format!("rename to {}", to.display()))),
    }
}

struct Report(Option<watch::Sender<Progress>>);

impl Report {
    fn new(sender: Option<watch::Sender<Progress>>, layers: &[Descriptor]) -> Self {
        if let Some(sender) = &sender {
            sender.send_replace(Progress {
                layers: layers
                    .iter()
                    .map(|layer| LayerProgress {
                        digest: layer.digest.clone(),
                        done_bytes: 0,
                        total_bytes: layer.size,
                        phase: LayerPhase::Waiting,
                    })
                    .collect(),
            });
        }
        Report(sender)
    }

    fn bytes(&self, n: usize, done: u64) {
        self.edit(n, |layer| layer.done_bytes = done);
    }

    fn phase(&self, n: usize, phase: LayerPhase) {
        self.edit(n, |layer| {
            layer.phase = phase;
            if phase == LayerPhase::Complete {
                layer.done_bytes = layer.total_bytes;
            }
        });
    }

    fn edit(&self, n: usize, edit: impl FnOnce(&mut LayerProgress)) {
        if let Some(sender) = &self.0 {
            sender.send_modify(|progress| edit(&mut progress.layers[n]));
        }
    }
}
