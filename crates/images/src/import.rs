//! Imports: OCI layouts (directory or tar) and `docker save` archives, plain or compressed.
//! Each imported reference is pinned until it is removed.

use crate::manifest::{
    self, ConfigBlob, DOCUMENT_SIZE_MAX, Descriptor, Document, Manifest, Platform, digest_of, digest_text,
};
use crate::pull::{Blobs, check, valid};
use crate::reference::valid_digest;
use crate::store::{Images, Target, blocking};
use crate::unpack::decompressed;
use crate::{Error, Image, Reference, Result, io};
use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

const ENTRIES_MAX: usize = 10_000;

/// One image found in an archive.
struct Found {
    references: Vec<String>,
    /// Digest of the manifest as the archive names it.
    digest: String,
    digests: BTreeSet<String>,
    manifest: Manifest,
    config: Bytes,
    /// Blob files by digest.
    files: BTreeMap<String, PathBuf>,
}

impl Images {
    /// Imports every image of an OCI archive, OCI layout directory or `docker save` archive,
    /// under the names it carries, or under `reference` if given (then it must hold one image).
    pub async fn import(self: &Arc<Self>, path: &Path, reference: Option<&str>) -> Result<Vec<Image>> {
        let reference = reference.map(Reference::parse).transpose()?;
        let (from, scratch) = (path.to_owned(), self.scratch());
        let work = scratch.path().to_owned();
        let found = blocking(move || {
            let dir = if from.is_dir() { from.clone() } else { extract(&from, &work)? };
            find(&dir).map_err(|e| match e {
                Error::Invalid(why) => Error::Invalid(format!("{}: {why}", from.display())),
                other => other,
            })
        })
        .await?;
        if reference.is_some() && found.len() > 1 {
            return Err(Error::Invalid(format!(
                "{} holds {} images, one name was given",
                path.display(),
                found.len()
            )));
        }
        let mut images = Vec::new();
        for image in found {
            let names = match &reference {
                Some(name) => vec![name.to_string()],
                None => image
                    .references
                    .iter()
                    .map(|name| Reference::parse(name).map(|r| r.to_string()))
                    .collect::<Result<Vec<_>>>()?,
            };
            if names.is_empty() {
                return Err(Error::Invalid(format!(
                    "{} names no image; give it a reference",
                    path.display()
                )));
            }
            for name in names {
                let target = Target {
                    holders: None,
                    id: image.manifest.config.digest.clone(),
                    digest: image.digest.clone(),
                    pinned: true,
                };
                let files = |digest: &str| image.files.get(digest).cloned();
                let blobs = Blobs::Files(&files);
                let digests = image.digests.clone();
                images.push(
                    self.install(name, target, digests, &image.manifest, &image.config, blobs, None).await?,
                );
            }
        }
        drop(scratch);
        Ok(images)
    }
}

/// Extracts the plain files of an archive (links in old `docker save` archives become copies).
fn extract(archive: &Path, to: &Path) -> Result<PathBuf> {
    let file = File::open(archive).map_err(io(format!("open {}", archive.display())))?;
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut tar = tar::Archive::new(decompressed(&mut reader)?);
    fs::create_dir(to).map_err(io(format!("create {}", to.display())))?;
    // What the archive's reader says of a header that makes no sense holds that header.
    let bad = |e: std::io::Error| match e.kind() {
        ErrorKind::Other | ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => {
            Error::Invalid(format!(
                "{} is no archive of an image, or is damaged: make one with `docker save` or `skopeo copy`",
                archive.display()
            ))
        }
        _ => io(format!("extract {}", archive.display()))(e),
    };
    let mut links = Vec::new();
    for (n, entry) in tar.entries().map_err(bad)?.enumerate() {
        let mut entry = entry.map_err(bad)?;
        if n >= ENTRIES_MAX {
            return Err(Error::Invalid(format!("{} has more than {ENTRIES_MAX} entries", archive.display())));
        }
        let name = entry.path().map_err(bad)?.into_owned();
        let Some(name) = inside(Path::new(""), &name) else {
            return Err(Error::Invalid(format!("{}: entry {}", archive.display(), name.display())));
        };
        let path = to.join(&name);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(io(format!("create {}", parent.display())))?;
            }
            let mut file = File::create(&path).map_err(io(format!("create {}", path.display())))?;
            std::io::copy(&mut entry, &mut file).map_err(bad)?;
        } else if kind.is_symlink() || kind.is_hard_link() {
            let link = entry.link_name().map_err(bad)?.map(|l| l.into_owned()).unwrap_or_default();
            let base = if kind.is_symlink() { name.parent().unwrap_or(Path::new("")) } else { Path::new("") };
            links.extend(inside(base, &link).map(|target| (path, to.join(target))));
        }
    }
    for (path, target) in links {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io(format!("create {}", parent.display())))?;
        }
        let _ = fs::hard_link(&target, &path);
    }
    Ok(to.to_owned())
}

/// `base/path` as a relative path that stays inside, or nothing.
fn inside(base: &Path, path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in base.components().chain(path.components()) {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

fn find(dir: &Path) -> Result<Vec<Found>> {
    if dir.join("index.json").exists() {
        return find_oci(dir);
    }
    if dir.join("manifest.json").exists() {
        return find_docker(dir);
    }
    Err(Error::Invalid("neither an OCI layout nor a docker archive".into()))
}

fn document(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(io(format!("open {}", path.display())))?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_SIZE_MAX).read_to_end(&mut bytes).map_err(io(format!("read {}", path.display())))?;
    Ok(bytes.into())
}

fn blob_path(dir: &Path, digest: &str) -> Result<PathBuf> {
    if !valid_digest(digest) {
        return Err(Error::Invalid(format!("digest {digest:?}")));
    }
    Ok(dir.join("blobs").join(digest.replacen(':', "/", 1)))
}

fn blob(dir: &Path, digest: &str) -> Result<Bytes> {
    let bytes = document(&blob_path(dir, digest)?)?;
    check("blob", Some(digest), &digest_of(&bytes))?;
    Ok(bytes)
}

fn find_oci(dir: &Path) -> Result<Vec<Found>> {
    let index = Document::parse(&document(&dir.join("index.json"))?)?;
    let entries = index.manifests.ok_or_else(|| Error::Invalid("index.json without manifests".into()))?;
    // One entry per name; entries of one name that differ in platform only are one image.
    let mut by_name: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
    for entry in entries {
        by_name.entry(name_of(&entry)).or_default().push(entry);
    }
    let platform = Platform::host();
    let mut found = Vec::new();
    for (name, entries) in by_name {
        let chosen = match &entries[..] {
            [one] => one,
            many => {
                manifest::choose(many, &platform).ok_or_else(|| Error::NoPlatform(platform.to_string()))?
            }
        };
        let mut digests = BTreeSet::from([chosen.digest.clone()]);
        let mut document = Document::parse(&blob(dir, &chosen.digest)?)?;
        if let Some(entries) = document.manifests.take() {
            let chosen = manifest::choose(&entries, &platform)
                .ok_or_else(|| Error::NoPlatform(platform.to_string()))?;
            digests.insert(chosen.digest.clone());
            document = Document::parse(&blob(dir, &chosen.digest)?)?;
        }
        let manifest = document.into_manifest()?;
        valid(&manifest)?;
        let config = blob(dir, &manifest.config.digest)?;
        let mut files = BTreeMap::new();
        for layer in &manifest.layers {
            files.insert(layer.digest.clone(), blob_path(dir, &layer.digest)?);
        }
        let references = name.into_iter().collect();
        found.push(Found { references, digest: chosen.digest.clone(), digests, manifest, config, files });
    }
    Ok(found)
}

/// containerd writes the whole name; skopeo and others only what follows `layout:`, which counts
/// as a name when it is more than a tag.
fn name_of(entry: &Descriptor) -> Option<String> {
    if let Some(name) = entry.annotations.get("io.containerd.image.name") {
        return Some(name.clone());
    }
    let name = entry.annotations.get("org.opencontainers.image.ref.name")?;
    name.contains([':', '/']).then(|| name.clone())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: PathBuf,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

fn find_docker(dir: &Path) -> Result<Vec<Found>> {
    let entries: Vec<DockerEntry> = serde_json::from_slice(&document(&dir.join("manifest.json"))?)
        .map_err(|e| Error::Invalid(format!("manifest.json: {e}")))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = |name: &Path| {
            let clean = inside(Path::new(""), name)
                .ok_or_else(|| Error::Invalid(format!("path {}", name.display())))?;
            Ok::<_, Error>(dir.join(clean))
        };
        let config = document(&path(&entry.config)?)?;
        ConfigBlob::parse(&config)?;
        let mut files = BTreeMap::new();
        let mut layers = Vec::new();
        for layer in &entry.layers {
            let file = path(layer)?;
            let (digest, size) = file_digest(&file)?;
            layers.push(descriptor(digest.clone(), size));
            files.insert(digest, file);
        }
        let manifest = Manifest { config: descriptor(digest_of(&config), config.len() as u64), layers };
        // The archive has no manifest of its own: this one is ours, made the same way each time.
        let digest =
            digest_of(&serde_json::to_vec(&(&manifest.config, &manifest.layers)).unwrap_or_default());
        let digests = BTreeSet::from([digest.clone()]);
        found.push(Found {
            references: entry.repo_tags.unwrap_or_default(),
            digest,
            digests,
            manifest,
            config,
            files,
        });
    }
    Ok(found)
}

fn descriptor(digest: String, size: u64) -> Descriptor {
    Descriptor { media_type: String::new(), digest, size, platform: None, annotations: BTreeMap::new() }
}

fn file_digest(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(io(format!("open {}", path.display())))?;
    let (mut hash, mut size, mut block) = (Sha256::new(), 0u64, vec![0u8; 256 << 10]);
    loop {
        let n = file.read(&mut block).map_err(io(format!("read {}", path.display())))?;
        if n == 0 {
            return Ok((digest_text(&hash.finalize()), size));
        }
        hash.update(&block[..n]);
        size += n as u64;
    }
}
