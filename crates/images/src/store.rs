//! The images on disk: which there are, their layers, who holds them. Several processes may share
//! the directory (`skeg image import` beside a running agent): every change takes a file lock and
//! re-reads; every file appears by rename.
//!
//! ```text
//! state.json       images and references
//! lock             held while state.json changes
//! pulls            held shared while layers are made, exclusively while they are collected
//! layers/<chain>/  an unpacked layer
//! holds/<owner>    the id of an image that a container uses
//! tmp/<n>/         work of one process, removed once its lock is free
//! ```

use crate::manifest::ImageConfig;
use crate::registries::Registries;
use crate::registry::{Credential, Registry};
use crate::{Error, Image, Reference, Result, io};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Layers downloaded and unpacked at the same time.
const LAYERS_AT_ONCE: usize = 3;

#[derive(Clone, Debug, Default)]
pub struct ImagesConfig {
    /// `<data-dir>/images`; made if missing.
    pub dir: PathBuf,
    pub registries: Registries,
}

/// The images of one host.
pub struct Images {
    pub(crate) dir: PathBuf,
    pub(crate) registry: Registry,
    pub(crate) layer_slots: tokio::sync::Semaphore,
    cached: Mutex<Cached>,
    /// When images were last asked for or let go, by id; before this process began where it says nothing.
    used: Mutex<BTreeMap<String, Instant>>,
    /// One lock per layer being made, so that concurrent pulls make it once.
    layer_locks: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    work: WorkDir,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// By id.
    pub images: BTreeMap<String, Record>,
    /// By normalised reference.
    pub references: BTreeMap<String, Target>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Record {
    /// Digests of the manifests and indexes that led here.
    pub digests: BTreeSet<String>,
    /// Chain ids, bottom first.
    pub chain: Vec<String>,
    pub size_bytes: u64,
    pub config: ImageConfig,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Target {
    pub id: String,
    pub digest: String,
    pub pinned: bool,
    /// By whose credentials it came, as [`crate::Credential`]s are told apart; `None` is everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holders: Option<BTreeSet<String>>,
}

#[derive(Default)]
struct Cached {
    /// Device, inode and change time of the file `state` was read from.
    version: Option<(u64, i64, i64)>,
    state: Arc<State>,
}

struct WorkDir {
    path: PathBuf,
    next: AtomicU64,
    _lock: File,
}

/// What a normalised reference names.
fn named<'s>(state: &'s State, key: &str) -> Option<&'s Target> {
    state.references.get(key).or_else(|| by_digest(state, key))
}

/// What came by a tag is known by its digest too.
fn by_digest<'s>(state: &'s State, key: &str) -> Option<&'s Target> {
    let wanted = Reference::parse(key).ok()?;
    let digest = wanted.digest.as_deref()?;
    let is_it = |name: &str| Reference::parse(name).is_ok_and(|known| known.name() == wanted.name());
    let mut found = state.references.iter().filter(|(name, target)| target.digest == digest && is_it(name));
    found.next().map(|(_, target)| target)
}

impl Images {
    pub fn open(config: ImagesConfig) -> Result<Arc<Self>> {
        let dir = config.dir;
        for part in ["layers", "holds", "tmp"] {
            fs::create_dir_all(dir.join(part)).map_err(io(format!("create {}", dir.join(part).display())))?;
        }
        let work = WorkDir::open(&dir.join("tmp"))?;
        let images = Images {
            dir,
            registry: Registry::new(config.registries),
            layer_slots: tokio::sync::Semaphore::new(LAYERS_AT_ONCE),
            cached: Mutex::default(),
            used: Mutex::default(),
            layer_locks: Mutex::default(),
            work,
        };
        images.state()?;
        Ok(Arc::new(images))
    }

    /// The image a reference (or image id) names, if it is here.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>> {
        let state = self.state()?;
        let found = match state.images.contains_key(reference) {
            true => self.image(&state, reference, None),
            false => self.resolve_key(&state, &Reference::parse(reference)?.to_string()),
        };
        if let Some(image) = &found {
            self.used.lock().insert(image.id.clone(), Instant::now());
        }
        Ok(found)
    }

    /// Whether who has these credentials may use an image that is here without asking its registry:
    /// what nobody's Secret was needed for, or what one of these, or the same from another Secret,
    /// brought from the same repository (KEP-2535).
    pub fn allows(&self, reference: &str, credentials: &[Credential]) -> Result<bool> {
        let state = self.state()?;
        let (id, repository) = match state.images.contains_key(reference) {
            true => (reference.to_owned(), None),
            false => {
                let wanted = Reference::parse(reference)?;
                let Some(target) = named(&state, &wanted.to_string()) else { return Ok(false) };
                (target.id.clone(), Some(wanted))
            }
        };
        let ours: BTreeSet<String> = credentials
            .iter()
            .filter(|credential| repository.as_ref().is_none_or(|wanted| credential.is_for(wanted)))
            .flat_map(Credential::holders)
            .collect();
        let is_of = |name: &str| {
            repository
                .as_ref()
                .is_none_or(|wanted| Reference::parse(name).is_ok_and(|known| known.name() == wanted.name()))
        };
        Ok(state
            .references
            .iter()
            .filter(|(name, target)| target.id == id && is_of(name))
            .any(|(_, target)| target.holders.as_ref().is_none_or(|holders| !holders.is_disjoint(&ours))))
    }

    pub(crate) fn resolve_key(&self, state: &State, key: &str) -> Option<Image> {
        let target = named(state, key)?;
        self.image(state, &target.id, Some(target.pinned))
    }

    /// All images, by id. `pinned` tells whether any reference of the image is pinned.
    pub fn list(&self) -> Result<Vec<Image>> {
        let state = self.state()?;
        Ok(state.images.keys().filter_map(|id| self.image(&state, id, None)).collect())
    }

    /// Removes a reference (or, by id, all of an image's), and what nothing refers to any more.
    pub async fn remove(self: &Arc<Self>, reference: &str) -> Result<()> {
        let images = self.clone();
        let reference = reference.to_owned();
        blocking(move || {
            let by_id = images.state()?.images.contains_key(&reference);
            let key = if by_id { reference.clone() } else { Reference::parse(&reference)?.to_string() };
            let gone = images.change(|state| {
                let before = state.references.len();
                state.references.retain(|name, target| if by_id { target.id != key } else { *name != key });
                before > state.references.len() || by_id
            })?;
            if !gone {
                return Err(Error::NoImage(reference));
            }
            images.collect()
        })
        .await
    }

    /// Keeps an image's layers while `owner` (a container) uses them, across restarts.
    pub fn hold(&self, owner: &str, id: &str) -> Result<()> {
        self.used.lock().insert(id.to_owned(), Instant::now());
        write_file(&self.dir.join("holds").join(owner), id.as_bytes(), &self.work.file(), false)
    }

    pub fn release(&self, owner: &str) {
        match fs::remove_file(self.dir.join("holds").join(owner)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(owner, %error, "cannot release an image")
            }
            _ => {}
        }
    }

    /// Removes the image that no container has used for longest, if that is longer than `idle`; gives its
    /// id. Pinned ones stay.
    pub fn remove_least_used(&self, idle: Duration) -> Result<Option<String>> {
        let held = self.held()?;
        let state = self.state()?;
        let pinned: BTreeSet<&String> =
            state.references.values().filter(|t| t.pinned).map(|t| &t.id).collect();
        let mut used = self.used.lock();
        used.retain(|id, _| state.images.contains_key(id));
        let spare = state.images.keys().filter(|id| !held.contains(*id) && !pinned.contains(id));
        let idle = spare.filter(|id| used.get(*id).is_none_or(|at| at.elapsed() >= idle));
        let Some(id) = idle.min_by_key(|id| used.get(*id)).cloned() else { return Ok(None) };
        drop(used);
        self.change(|state| {
            state.references.retain(|_, target| target.id != id);
            true
        })?;
        self.collect()?;
        Ok(Some(id))
    }

    /// Whether there are images that no reference names and no container uses.
    pub fn has_unnamed(&self) -> Result<bool> {
        let state = self.state()?;
        let named: BTreeSet<&String> = state.references.values().map(|target| &target.id).collect();
        let mut unnamed = state.images.keys().filter(|id| !named.contains(id)).peekable();
        if unnamed.peek().is_none() {
            return Ok(false);
        }
        let held = self.held()?;
        Ok(unnamed.any(|id| !held.contains(id)))
    }

    /// The ids of images that containers use.
    fn held(&self) -> Result<BTreeSet<String>> {
        let read = |owner| fs::read_to_string(self.dir.join("holds").join(owner)).ok();
        Ok(names(&self.dir.join("holds"))?.into_iter().filter_map(read).collect())
    }

    /// Drops holds of owners that are no more, then collects.
    pub fn reconcile(&self, alive: impl Fn(&str) -> bool) -> Result<()> {
        for owner in names(&self.dir.join("holds"))? {
            if !alive(&owner) {
                self.release(&owner);
            }
        }
        self.collect()
    }

    /// Forgets images that no reference and no container needs, and deletes layers of no image.
    /// Does nothing while a pull is under way: the next collection will.
    pub fn collect(&self) -> Result<()> {
        let pulls = self.lock_file("pulls")?;
        if flock(&pulls, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        let held = self.held()?;
        self.change(|state| {
            let named: BTreeSet<&String> = state.references.values().map(|t| &t.id).collect();
            let before = state.images.len();
            state.images.retain(|id, _| named.contains(id) || held.contains(id));
            state.images.len() != before
        })?;
        let state = self.state()?;
        let needed: BTreeSet<&str> =
            state.images.values().flat_map(|r| &r.chain).map(|chain| layer_name(chain)).collect();
        for layer in names(&self.dir.join("layers"))? {
            if !needed.contains(layer.as_str()) {
                // Moved first: a half-deleted layer must not look like a whole one.
                let trash = self.work.file();
                let path = self.dir.join("layers").join(&layer);
                fs::rename(&path, &trash).map_err(io(format!("remove {}", path.display())))?;
                fs::remove_dir_all(&trash).map_err(io(format!("remove {}", trash.display())))?;
            }
        }
        Ok(())
    }

    fn image(&self, state: &State, id: &str, pinned: Option<bool>) -> Option<Image> {
        let record = state.images.get(id)?;
        let (mut tags, mut repo_digests, mut any_pinned) = (Vec::new(), BTreeSet::new(), false);
        let mut pinned_names = BTreeSet::new();
        for (name, target) in state.references.iter().filter(|(_, t)| t.id == id) {
            any_pinned |= target.pinned;
            if let Ok(reference) = Reference::parse(name) {
                let by_digest = format!("{}@{}", reference.name(), target.digest);
                let by_tag = Reference { digest: None, ..reference.clone() }.to_string();
                if target.pinned {
                    pinned_names.extend([by_tag.clone(), by_digest.clone()]);
                }
                if reference.tag.is_some() {
                    tags.push(by_tag);
                }
                repo_digests.insert(by_digest);
            }
        }
        tags.dedup();
        Some(Image {
            id: id.to_owned(),
            repo_digests: repo_digests.into_iter().collect(),
            tags,
            size_bytes: record.size_bytes,
            layers: record.chain.iter().rev().map(|chain| self.layer_path(chain)).collect(),
            config: record.config.clone(),
            pinned: pinned.unwrap_or(any_pinned),
            pinned_names,
        })
    }

    pub(crate) fn layer_path(&self, chain_id: &str) -> PathBuf {
        self.dir.join("layers").join(layer_name(chain_id))
    }

    /// An unused path in this process's work directory.
    pub(crate) fn scratch(&self) -> Scratch {
        Scratch(self.work.file())
    }

    pub(crate) fn layer_lock(&self, chain_id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.layer_locks.lock();
        // Those that nobody waits for any more are only in the table.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(chain_id.to_owned()).or_default().clone()
    }

    /// Held while layers are made that no image names yet.
    pub(crate) fn protect_layers(&self) -> Result<File> {
        let file = self.lock_file("pulls")?;
        flock(&file, FlockOperation::LockShared).map_err(|e| io("lock")(e.into()))?;
        Ok(file)
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.dir.join(name);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io(format!("open {}", path.display())))
    }

    /// The current state; read again when another process changed it.
    pub(crate) fn state(&self) -> Result<Arc<State>> {
        use std::os::unix::fs::MetadataExt;
        let path = self.dir.join("state.json");
        let version = match fs::metadata(&path) {
            Ok(meta) => Some((meta.ino(), meta.ctime(), meta.ctime_nsec())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(io(format!("read {}", path.display()))(error)),
        };
        let mut cached = self.cached.lock();
        if cached.version != version {
            cached.state = match version {
                None => Arc::default(),
                Some(_) => {
                    let bytes = fs::read(&path).map_err(io(format!("read {}", path.display())))?;
                    let state = serde_json::from_slice(&bytes);
                    Arc::new(state.map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))?)
                }
            };
            cached.version = version;
        }
        Ok(cached.state.clone())
    }

    /// Changes the state durably; `edit` says whether it changed anything.
    pub(crate) fn change(&self, edit: impl FnOnce(&mut State) -> bool) -> Result<bool> {
        let lock = self.lock_file("lock")?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| io("lock")(e.into()))?;
        let mut state = (*self.state()?).clone();
        if !edit(&mut state) {
            return Ok(false);
        }
        let bytes = serde_json::to_vec(&state).map_err(|e| Error::Invalid(e.to_string()))?;
        write_file(&self.dir.join("state.json"), &bytes, &self.work.file(), true)?;
        Ok(true)
    }
}

/// A file or directory that goes with its owner, however that ends: a failed or cancelled pull
/// leaves nothing behind. What was moved to its place by then stays there.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if fs::remove_file(&self.0).is_err() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

impl WorkDir {
    fn open(tmp: &Path) -> Result<Self> {
        // What dead processes left behind: their locks can be taken.
        for name in names(tmp)? {
            let dir = tmp.join(name);
            let free = File::open(dir.join(".lock"))
                .map_or(true, |lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
            if free {
                let _ = fs::remove_dir_all(&dir);
            }
        }
        for n in 0u64.. {
            let path = tmp.join(format!("{}-{n}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock = File::create(path.join(".lock")).map_err(io("create lock"))?;
                    flock(&lock, FlockOperation::LockExclusive).map_err(|e| io("lock")(e.into()))?;
                    return Ok(WorkDir { path, next: AtomicU64::new(0), _lock: lock });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io(format!("create {}", path.display()))(error)),
            }
        }
        unreachable!("u64 names are not used up")
    }

    fn file(&self) -> PathBuf {
        self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn layer_name(chain_id: &str) -> &str {
    chain_id.strip_prefix("sha256:").unwrap_or(chain_id)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).map_err(io(format!("list {}", dir.display())))? {
        let entry = entry.map_err(io(format!("list {}", dir.display())))?;
        out.extend(entry.file_name().into_string().ok());
    }
    Ok(out)
}

/// Writes a file that is whole or absent; `durable` also survives power loss.
fn write_file(path: &Path, bytes: &[u8], temporary: &Path, durable: bool) -> Result<()> {
    let write = || -> std::io::Result<()> {
        fs::write(temporary, bytes)?;
        if durable {
            File::open(temporary)?.sync_all()?;
        }
        fs::rename(temporary, path)?;
        if durable && let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(io(format!("write {}", path.display())))
}

/// Runs blocking work on a thread meant for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Invalid(format!("task failed: {error}"))),
    }
}
