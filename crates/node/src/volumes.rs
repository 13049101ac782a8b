//! A Pod's volumes on the host: made before its containers, kept up to date, removed after them.
//! Files from the API change as a whole, by one rename, as upstream's atomic writer does it.
//! Upstream counterparts: `pkg/volume/{emptydir,configmap,secret,downwardapi,projected,hostpath}`.

use crate::env::{Facts, field, resource};
use crate::sources::{References, Sources};
use crate::{Context, machine, text};
use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Pod, PodSpec, ServiceAccount, ServiceAccountTokenProjection,
    Volume,
};
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde_json::{Value, json};
use skeg_api::predicates::pod_limits;
use skeg_api::quantity::Quantity;
use skeg_base::Timestamp;
use skeg_runtime::MountSource;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

const DEFAULT_MODE: i32 = 0o644;
/// A token is renewed when this part of its life is over, or after a day.
const TOKEN_REFRESH_PART: f64 = 0.8;
const TOKEN_REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// Which volume failed, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeError {
    pub volume: String,
    pub why: String,
}

impl std::fmt::Display for VolumeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MountVolume.SetUp failed for volume \"{}\" : {}", self.volume, self.why)
    }
}

/// Tokens of one Pod, by audience and lifetime.
#[derive(Default)]
pub struct Tokens(Mutex<BTreeMap<(String, i64), Token>>);

#[derive(Clone)]
struct Token {
    text: String,
    refresh_at: Timestamp,
    expires_at: Timestamp,
}

/// Relative path → content and mode.
type Files = BTreeMap<PathBuf, FileContent>;

#[derive(Clone, Debug, PartialEq)]
struct FileContent {
    bytes: Vec<u8>,
    mode: u32,
    owner: Option<u32>,
}

enum Step {
    /// In memory with a size in bytes (0: the kernel's default), else on disk.
    EmptyDir {
        memory: Option<u64>,
    },
    HostPath {
        path: PathBuf,
        kind: String,
    },
    /// What may be secret is kept in memory.
    Files {
        files: Files,
        memory: bool,
    },
}

/// What became of the volumes of a Pod.
#[derive(Default)]
pub struct Prepared {
    /// When a token of theirs is due.
    pub refresh_at: Option<Timestamp>,
    /// Those that could not be made; the others were.
    pub failed: Vec<VolumeError>,
}

/// The volumes that a container mounts: nobody waits for the others.
fn mounted(spec: &PodSpec) -> impl Iterator<Item = &Volume> {
    let ephemeral = spec.ephemeral_containers.iter().flatten().flat_map(|c| c.volume_mounts.iter().flatten());
    let mounts =
        machine::all_containers(spec).flat_map(|c| c.volume_mounts.iter().flatten()).chain(ephemeral);
    let names: BTreeSet<&str> = mounts.map(|mount| mount.name.as_str()).collect();
    spec.volumes.iter().flatten().filter(move |volume| names.contains(volume.name.as_str()))
}

/// Makes or refreshes the volumes that are mounted, each for itself. `again` leaves out what is looked
/// at once, before containers start.
pub async fn prepare(ctx: &Context, pod: &Pod, tokens: &Tokens, again: bool) -> Prepared {
    let spec = machine::spec(pod);
    let mut prepared = Prepared::default();
    let sources = match References::of_volumes(spec).fetch(ctx, pod).await {
        Ok(sources) => sources,
        Err(error) => {
            let volume = mounted(spec).next().map(|volume| volume.name.clone()).unwrap_or_default();
            prepared.failed.push(VolumeError { volume, why: error.to_string() });
            return prepared;
        }
    };
    let mut steps = Vec::new();
    for volume in mounted(spec).filter(|volume| !again || volume.host_path.is_none()) {
        match step(ctx, pod, volume, &sources, tokens, &mut prepared.refresh_at).await {
            Ok(step) => steps.push((volume.name.clone(), volume_path(ctx, pod, volume), step)),
            Err(why) => prepared.failed.push(VolumeError { volume: volume.name.clone(), why }),
        }
    }
    let fs_group =
        spec.security_context.as_ref().and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
    let policy_on_mismatch = spec.security_context.as_ref().and_then(|s| s.fs_group_change_policy.as_deref())
        == Some("OnRootMismatch");
    let pod_dir = ctx.pod_dir(text(&pod.metadata.uid));
    let stamp = ctx.clock.now();
    let salt = ctx.random.below(1 << 32);
    let work = move || -> Vec<VolumeError> {
        let failed =
            |volume: &str, why: io::Error| VolumeError { volume: volume.into(), why: why.to_string() };
        if let Err(why) = make_dir(&pod_dir, 0o750) {
            return vec![failed("pod directory", why)];
        }
        let apply = |(name, path, step): (String, PathBuf, Step)| {
            let applied = apply(&path, step, fs_group, policy_on_mismatch, stamp, salt);
            applied.err().map(|why| failed(&name, why))
        };
        steps.into_iter().filter_map(apply).collect()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(failed) => prepared.failed.extend(failed),
        Err(error) => prepared.failed.push(VolumeError { volume: String::new(), why: error.to_string() }),
    }
    prepared
}

async fn step(
    ctx: &Context,
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    tokens: &Tokens,
    refresh_at: &mut Option<Timestamp>,
) -> Result<Step, String> {
    let mut files = Files::new();
    if let Some(source) = &volume.empty_dir {
        let memory = match source.medium.as_deref().unwrap_or_default() {
            "" => false,
            "Memory" => true,
            other => return Err(format!("unsupported emptyDir medium \"{other}\"")),
        };
        return Ok(Step::EmptyDir {
            memory: memory.then(|| memory_size(ctx, pod, source.size_limit.as_ref())),
        });
    }
    if let Some(source) = &volume.host_path {
        return Ok(Step::HostPath {
            path: source.path.clone().into(),
            kind: source.type_.clone().unwrap_or_default(),
        });
    }
    let mode = |mode: Option<i32>| mode.unwrap_or(DEFAULT_MODE) as u32;
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        config_map_files(
            sources,
            &source.name,
            source.items.as_deref(),
            optional,
            mode(source.default_mode),
            &mut files,
        )?;
    } else if let Some(source) = &volume.secret {
        let name = text(&source.secret_name);
        let optional = source.optional == Some(true);
        secret_files(
            sources,
            name,
            source.items.as_deref(),
            optional,
            mode(source.default_mode),
            &mut files,
        )?;
    } else if let Some(source) = &volume.downward_api {
        downward_files(
            ctx,
            pod,
            source.items.as_deref().unwrap_or_default(),
            mode(source.default_mode),
            &mut files,
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                let optional = s.optional == Some(true);
                config_map_files(sources, &s.name, s.items.as_deref(), optional, mode, &mut files)?;
            } else if let Some(s) = &source.secret {
                secret_files(
                    sources,
                    &s.name,
                    s.items.as_deref(),
                    s.optional == Some(true),
                    mode,
                    &mut files,
                )?;
            } else if let Some(s) = &source.downward_api {
                downward_files(ctx, pod, s.items.as_deref().unwrap_or_default(), mode, &mut files)?;
            } else if let Some(s) = &source.service_account_token {
                let token = tokens.get(ctx, pod, s).await?;
                *refresh_at = Some(refresh_at.map_or(token.refresh_at, |at| at.min(token.refresh_at)));
                let owner = common_user(pod);
                let private = owner.is_some() || has_fs_group(pod);
                let content = FileContent {
                    bytes: token.text.into_bytes(),
                    mode: if private { 0o600 } else { mode },
                    owner,
                };
                files.insert(relative(&s.path)?, content);
            } else if source.cluster_trust_bundle.is_some() {
                return Err("unsupported projected volume source clusterTrustBundle".into());
            } else if source.pod_certificate.is_some() {
                return Err("unsupported projected volume source podCertificate".into());
            }
        }
    } else {
        let kind = serde_json::to_value(volume)
            .ok()
            .and_then(|v| v.as_object().and_then(|o| o.keys().find(|k| *k != "name").cloned()))
            .unwrap_or_default();
        return Err(format!("unsupported volume kind \"{kind}\": this node cannot mount it"));
    }
    Ok(Step::Files { files, memory: volume.config_map.is_none() })
}

/// The size of an emptyDir in memory: the least of its own limit, the Pod's and the node's.
fn memory_size(
    ctx: &Context,
    pod: &Pod,
    limit: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
) -> u64 {
    let of_pod = pod_limits(pod).get("memory").copied();
    let all = [ctx.host.allocatable.get("memory").copied(), of_pod, limit.map(Quantity::of)];
    let sizes = all.into_iter().flatten().filter(|q| !q.is_zero()).map(|q| q.units().max(0) as u64);
    sizes.min().unwrap_or(0)
}

fn has_fs_group(pod: &Pod) -> bool {
    machine::spec(pod).security_context.as_ref().is_some_and(|s| s.fs_group.is_some())
}

/// The user that all containers of the Pod run as, if the spec says so.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = machine::spec(pod);
    let shared = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = machine::all_containers(spec)
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(shared));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then_some(first).and_then(|u| u32::try_from(u).ok())
}

fn relative(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    let ok = !path.as_os_str().is_empty() && path.components().all(|c| matches!(c, Component::Normal(_)));
    if ok { Ok(path.to_owned()) } else { Err(format!("invalid path: {}", path.display())) }
}

fn chosen(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Files,
) -> Result<(), String> {
    let plain = |bytes: &[u8], mode: u32| FileContent { bytes: bytes.to_vec(), mode, owner: None };
    match items {
        None | Some([]) => {
            for (key, bytes) in data {
                files.insert(relative(key)?, plain(bytes, mode));
            }
        }
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(bytes) => {
                        let mode = item.mode.map_or(mode, |m| m as u32);
                        files.insert(relative(&item.path)?, plain(bytes, mode));
                    }
                    None if optional => {}
                    None => return Err(format!("references non-existent config key: {}", item.key)),
                }
            }
        }
    }
    Ok(())
}

fn config_map_files(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Files,
) -> Result<(), String> {
    let Some(map) = sources.config_map(name) else {
        return if optional { Ok(()) } else { Err(format!("configmap \"{name}\" not found")) };
    };
    let mut data = BTreeMap::new();
    data.extend(map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes())));
    data.extend(map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())));
    chosen(&data, items, optional, mode, files)
}

fn secret_files(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Files,
) -> Result<(), String> {
    let Some(secret) = sources.secret(name) else {
        return if optional { Ok(()) } else { Err(format!("secret \"{name}\" not found")) };
    };
    let data: BTreeMap<String, Vec<u8>> =
        secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
    let result = chosen(&data, items, optional, mode, files);
    result.map_err(|e| e.replace("non-existent config key", "non-existent secret key"))
}

fn downward_files(
    ctx: &Context,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: u32,
    files: &mut Files,
) -> Result<(), String> {
    let facts = Facts {
        pod,
        pod_ips: &[],
        host_ips: &[],
        node_name: &ctx.config.name,
        allocatable: &ctx.host.allocatable,
    };
    let none = Container::default();
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(wanted), _) => field(&facts, &wanted.field_path)?,
            (None, Some(wanted)) => resource(&facts, &none, wanted)?,
            (None, None) => String::new(),
        };
        let mode = item.mode.map_or(mode, |m| m as u32);
        files.insert(relative(&item.path)?, FileContent { bytes: value.into_bytes(), mode, owner: None });
    }
    Ok(())
}

impl Tokens {
    async fn get(
        &self,
        ctx: &Context,
        pod: &Pod,
        wanted: &ServiceAccountTokenProjection,
    ) -> Result<Token, String> {
        let seconds = wanted.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        let key = (text(&wanted.audience).to_owned(), seconds);
        let now = ctx.clock.now();
        let known = self.0.lock().get(&key).cloned();
        if let Some(token) = known.clone().filter(|t| t.refresh_at > now) {
            return Ok(token);
        }
        match request_token(ctx, pod, &key.0, seconds, now).await {
            Ok(token) => {
                self.0.lock().insert(key, token.clone());
                Ok(token)
            }
            // The old one still works for a while; the next refresh tries again.
            Err(why) => match known.filter(|t| t.expires_at > now) {
                Some(old) => {
                    tracing::warn!(pod = text(&pod.metadata.name), why, "cannot renew a token");
                    let soon = now.checked_add(Duration::from_secs(10)).unwrap_or(now);
                    Ok(Token { refresh_at: soon, ..old })
                }
                None => Err(format!("failed to fetch token: {why}")),
            },
        }
    }
}

async fn request_token(
    ctx: &Context,
    pod: &Pod,
    audience: &str,
    seconds: i64,
    now: Timestamp,
) -> Result<Token, String> {
    let meta = &pod.metadata;
    let account =
        machine::spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let audiences: Vec<&str> = Some(audience).filter(|a| !a.is_empty()).into_iter().collect();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": audiences, "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid}}
    });
    let api = ctx.client.api::<ServiceAccount>();
    let answer: Value = api
        .create_subresource(text(&meta.namespace), account, "token", &request)
        .await
        .map_err(|e| e.to_string())?;
    let status = &answer["status"];
    let token = status["token"].as_str().ok_or("answer without token")?;
    let expires_at: Timestamp =
        status["expirationTimestamp"].as_str().and_then(|t| t.parse().ok()).ok_or("answer without expiry")?;
    let life = Duration::try_from(expires_at.duration_since(now)).unwrap_or_default();
    let refresh = life.mul_f64(TOKEN_REFRESH_PART).min(TOKEN_REFRESH_MAX);
    let refresh_at = now.checked_add(refresh).unwrap_or(expires_at);
    Ok(Token { text: token.to_owned(), refresh_at, expires_at })
}

/// Where a volume's content is on the host.
pub fn volume_path(ctx: &Context, pod: &Pod, volume: &Volume) -> PathBuf {
    if let Some(host) = &volume.host_path {
        return host.path.clone().into();
    }
    let kind = if volume.empty_dir.is_some() {
        "kubernetes.io~empty-dir"
    } else if volume.config_map.is_some() {
        "kubernetes.io~configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io~secret"
    } else if volume.downward_api.is_some() {
        "kubernetes.io~downward-api"
    } else {
        "kubernetes.io~projected"
    };
    ctx.pod_dir(text(&pod.metadata.uid)).join("volumes").join(kind).join(&volume.name)
}

/// Whether containers can only read the volume, whatever their mounts ask for: what comes from
/// the API is the node's to write.
pub fn is_read_only(pod: &Pod, volume_name: &str) -> bool {
    let mut volumes = machine::spec(pod).volumes.iter().flatten();
    volumes.any(|v| v.name == volume_name && v.host_path.is_none() && v.empty_dir.is_none())
}

/// What a mount of this volume shows, after its subPath.
pub fn mount_source(
    ctx: &Context,
    pod: &Pod,
    volume_name: &str,
    sub_path: Option<&str>,
) -> Result<MountSource, String> {
    let spec = machine::spec(pod);
    let volume = spec.volumes.iter().flatten().find(|v| v.name == volume_name);
    let volume = volume.ok_or_else(|| format!("volume \"{volume_name}\" not found"))?;
    let path = volume_path(ctx, pod, volume);
    match sub_path.filter(|s| !s.is_empty()) {
        None => Ok(MountSource::Bind(path)),
        // Its containers may change the volume at any moment: the runtime resolves the path where it
        // mounts it, and what is checked here is told in time.
        Some(sub) => make_sub_path(&path, sub)
            .map(|()| MountSource::BindBeneath { root: path, path: sub.into() })
            .map_err(|e| format!("failed to prepare subPath for volumeMount \"{volume_name}\": {e}")),
    }
}

fn leaves_volume(sub: &Path) -> io::Error {
    let why = format!(
        "subPath {:?} leads out of the volume: name a path inside it, not through a link or `..` that leaves it",
        sub.display().to_string()
    );
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Makes the directories of `sub` that are missing, with the mode of the volume, without leaving it.
fn make_sub_path(volume: &Path, sub: &str) -> io::Result<()> {
    let sub = Path::new(sub);
    if !sub.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(leaves_volume(sub));
    }
    let root = rustix::fs::openat(CWD, volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(
            &root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        )
        .map_err(|error| match error {
            // RESOLVE_BENEATH says so of every way out.
            rustix::io::Errno::XDEV => leaves_volume(sub),
            other => other.into(),
        })
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o7777);
    let mut made = PathBuf::new();
    let mut at = open(Path::new("."))?;
    for part in sub.components().filter(|c| matches!(c, Component::Normal(_))) {
        made.push(part);
        at = match open(&made) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let part = Path::new(part.as_os_str());
                rustix::fs::mkdirat(&at, part, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let new = rustix::fs::openat(&at, part, flags, Mode::empty())?;
                // Not by the call that makes it, which the process's umask bears on.
                rustix::fs::fchmod(&new, mode)?;
                open(&made)?
            }
            other => other?,
        };
    }
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn apply(
    path: &Path,
    step: Step,
    fs_group: Option<u32>,
    on_mismatch: bool,
    stamp: Timestamp,
    salt: u64,
) -> io::Result<()> {
    match step {
        Step::EmptyDir { memory } => {
            let mut fresh = ensure_dir(path)?;
            if let Some(size_bytes) = memory {
                fresh |= mount_memory(path, size_bytes)?;
            }
            match fs_group {
                Some(group) if fresh => own_tree(path, group, READ_WRITE, on_mismatch),
                _ => Ok(()),
            }
        }
        Step::HostPath { path, kind } => host_path(&path, &kind),
        Step::Files { files, memory } => {
            ensure_dir(path)?;
            if memory {
                mount_memory(path, 0)?;
            }
            write_atomically(path, &files, fs_group, stamp, salt)
        }
    }
}

/// Makes a volume's directory, open to every user as upstream's; whether it was missing.
fn ensure_dir(path: &Path) -> io::Result<bool> {
    let missing = !path.exists();
    if missing {
        make_dir(path, 0o777)?;
    }
    Ok(missing)
}

/// Mounts a tmpfs of `size_bytes` unless one is there (a reboot takes it away); whether it did.
/// It never goes to swap where the kernel can promise that (Linux 6.4).
fn mount_memory(path: &Path, size_bytes: u64) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    if fs::metadata(path)?.dev() != fs::metadata(parent)?.dev() {
        return Ok(false);
    }
    let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
    let mount = |options: &str| {
        let options = format!("mode=1777,size={size_bytes}{options}");
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
    };
    match mount(",noswap") {
        Err(nix::errno::Errno::EINVAL) => mount("")?,
        other => other?,
    }
    Ok(true)
}

fn host_path(path: &Path, kind: &str) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let wrong = |what: &str| {
        Err(io::Error::other(format!("hostPath type check failed: {} is not a {what}", path.display())))
    };
    match kind {
        // Container runtimes make what is missing as a directory.
        "" => {
            if found.is_none() {
                make_dir(path, 0o755)
            } else {
                Ok(())
            }
        }
        "DirectoryOrCreate" => match found {
            None => make_dir(path, 0o755),
            Some(kind) if kind.is_dir() => Ok(()),
            Some(_) => wrong("directory"),
        },
        "FileOrCreate" => match found {
            None => {
                fs::File::create(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o644))
            }
            Some(kind) if kind.is_file() => Ok(()),
            Some(_) => wrong("file"),
        },
        "Directory" if found.is_some_and(|k| k.is_dir()) => Ok(()),
        "Directory" => wrong("directory"),
        "File" if found.is_some_and(|k| k.is_file()) => Ok(()),
        "File" => wrong("file"),
        "Socket" if found.is_some_and(|k| k.is_socket()) => Ok(()),
        "Socket" => wrong("socket file"),
        "CharDevice" if found.is_some_and(|k| k.is_char_device()) => Ok(()),
        "CharDevice" => wrong("character device"),
        "BlockDevice" if found.is_some_and(|k| k.is_block_device()) => Ok(()),
        "BlockDevice" => wrong("block device"),
        other => Err(io::Error::other(format!("hostPath type \"{other}\" is unknown"))),
    }
}

/// What a group may do with a volume's files; with directories also enter them.
const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;

/// `fsGroup`: the group owns everything, may use it, and new files inherit it.
fn own_tree(path: &Path, group: u32, access: u32, on_mismatch: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let of_dir = 0o2110 | access;
    if on_mismatch && meta.gid() == group && meta.mode() & of_dir == of_dir {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mode = meta.mode() & 0o7777;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            own_tree(&entry?.path(), group, access, false)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode | of_dir))
    } else {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | access))
    }
}

/// Replaces the visible files by switching `..data` to a new directory; does nothing where the
/// content is the same already.
fn write_atomically(
    dir: &Path,
    files: &Files,
    fs_group: Option<u32>,
    stamp: Timestamp,
    salt: u64,
) -> io::Result<()> {
    let data = dir.join("..data");
    let old = fs::read_link(&data).ok();
    if old.is_some() && same_content(&data, files, fs_group) {
        return Ok(());
    }
    let name = format!("..{}.{salt}", stamp.strftime("%Y_%m_%d_%H_%M_%S"));
    let fresh = dir.join(&name);
    make_dir(&fresh, 0o755)?;
    for (path, content) in files {
        let to = fresh.join(path);
        if let Some(parent) = to.parent().filter(|p| *p != fresh) {
            fs::create_dir_all(parent)?;
        }
        fs::write(&to, &content.bytes)?;
        std::os::unix::fs::chown(&to, content.owner, None)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(content.mode))?;
    }
    if let Some(group) = fs_group {
        own_tree(&fresh, group, READ_ONLY, false)?;
        // The volume's own directory; the rest in it is links, whose owner nobody asks for.
        let mode = fs::metadata(dir)?.mode() & 0o7777;
        std::os::unix::fs::chown(dir, None, Some(group))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o2110 | READ_ONLY))?;
    }
    let temporary = dir.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&name, &temporary)?;
    fs::rename(&temporary, &data)?;
    let top = |path: &PathBuf| path.components().next().map(|c| PathBuf::from(c.as_os_str()));
    let visible: std::collections::BTreeSet<PathBuf> = files.keys().filter_map(top).collect();
    for name in &visible {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        if !name.to_string_lossy().starts_with("..") && !visible.contains(&name) {
            fs::remove_file(dir.join(&name))?;
        }
    }
    match old {
        Some(old) => fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

/// With an fsGroup the group reads files too (and secrets nobody else needs to).
fn shown_mode(content: &FileContent, fs_group: Option<u32>) -> u32 {
    if fs_group.is_some() { content.mode | READ_ONLY } else { content.mode }
}

fn same_content(data: &Path, files: &Files, fs_group: Option<u32>) -> bool {
    let mut seen = 0;
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(data.join(&dir)) else { return false };
        for entry in entries.flatten() {
            let path = dir.join(entry.file_name());
            let Ok(meta) = entry.metadata() else { return false };
            if meta.is_dir() {
                pending.push(path);
                continue;
            }
            let same = files.get(&path).is_some_and(|content| {
                meta.mode() & 0o777 == shown_mode(content, fs_group)
                    && fs::read(data.join(&path)).is_ok_and(|bytes| bytes == content.bytes)
            });
            if !same {
                return false;
            }
            seen += 1;
        }
    }
    seen == files.len()
}

/// Removes everything of a Pod but its logs. Mounts inside are detached first, so that nothing
/// behind them is deleted.
pub fn remove_pod_dir(pod_dir: &Path) -> io::Result<()> {
    if !pod_dir.exists() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut inside: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(pod_dir))
        .collect();
    inside.sort();
    for path in inside.iter().rev() {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)?;
    }
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(content: &[(&str, &str)]) -> Files {
        content
            .iter()
            .map(|(path, bytes)| {
                (
                    PathBuf::from(path),
                    FileContent { bytes: bytes.as_bytes().to_vec(), mode: 0o644, owner: None },
                )
            })
            .collect()
    }

    #[test]
    fn files_change_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        write_atomically(dir.path(), &files(&[("a", "1"), ("d/b", "2")]), None, at, 1).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("d/b")).unwrap(), "2");
        let first = fs::read_link(dir.path().join("..data")).unwrap();
        write_atomically(dir.path(), &files(&[("a", "1"), ("d/b", "2")]), None, at, 2).unwrap();
        assert_eq!(fs::read_link(dir.path().join("..data")).unwrap(), first, "nothing changed");
        write_atomically(dir.path(), &files(&[("a", "3"), ("c", "4")]), Some(0), at, 3).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(!dir.path().join("d").exists() && !dir.path().join(first).exists());
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 4, "a, c, ..data and its directory");
    }

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
        make_sub_path(&volume, "x/y").unwrap();
        assert_eq!(fs::metadata(volume.join("x/y")).unwrap().mode() & 0o7777, 0o2777, "as its volume's");
        symlink("/etc", volume.join("out")).unwrap();
        for sub in ["out", "out/passwd", "../w", "/etc"] {
            let error = make_sub_path(&volume, sub).unwrap_err().to_string();
            assert!(error.starts_with(&format!("subPath {sub:?} leads out of the volume: ")), "{error}");
        }
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        host_path(&dir.path().join("new"), "DirectoryOrCreate").unwrap();
        let error = host_path(&dir.path().join("none"), "File").unwrap_err();
        assert!(error.to_string().starts_with("hostPath type check failed: "), "{error}");
    }

    #[test]
    fn groups_own_trees() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        own_tree(dir.path(), 1234, READ_WRITE, false).unwrap();
        let meta = fs::metadata(dir.path()).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o2770), (1234, 0o2770));
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().gid(), 1234);
    }
}
