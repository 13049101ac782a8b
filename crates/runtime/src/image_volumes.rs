//! The directories that an image calls volumes (OCI image spec, `config.Volumes`). Each container has each of
//! them to itself, beside its writable layer; it begins as what the image has there.
//! Runs in the child that becomes the container, while the host's `/proc` is still in sight.
//! Upstream counterpart: `volumeMounts` and `WithVolumes` of containerd's CRI plugin.

use crate::protocol::{Context, Failure};
use crate::types::{Mount, MountSource, Propagation};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// Links that are followed in one path: as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// Makes the volumes of a container in `dir` and returns their mounts. `root` is its root directory without any
/// mount in it. A path at which `mounts` has something, under whatever name, is left to that; so is `/`, which is
/// the container's own already.
pub fn make(root: &Path, dir: &Path, volumes: &[PathBuf], mounts: &[Mount]) -> Result<Vec<Mount>, Failure> {
    if volumes.is_empty() {
        return Ok(Vec::new());
    }
    let mut taken: BTreeSet<PathBuf> = mounts.iter().map(|m| real_path(root, &m.destination)).collect();
    taken.insert("/".into());
    let mut made = Vec::new();
    for volume in volumes {
        let path = real_path(root, volume);
        if !taken.insert(path.clone()) {
            continue;
        }
        let own = dir.join(made.len().to_string());
        begin(&root.join(path.strip_prefix("/").unwrap_or(&path)), &own)
            .at(|| format!("make the image's volume {}", volume.display()))?;
        made.push(Mount {
            destination: path,
            source: MountSource::Bind(own),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
        });
    }
    Ok(made)
}

/// Where `path` leads in the root directory `root`, as its links are for those inside: an absolute path there
/// without links and `..`.
fn real_path(root: &Path, path: &Path) -> PathBuf {
    let parts = |path: &Path| path.components().rev().map(|c| c.as_os_str().to_owned()).collect::<Vec<_>>();
    let (mut real, mut rest, mut links) = (PathBuf::from("/"), parts(path), 0);
    while let Some(part) = rest.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(name)) => {
                let name = real.join(name);
                match fs::read_link(root.join(name.strip_prefix("/").unwrap_or(&name))) {
                    Ok(target) if links < LINKS_MAX => {
                        links += 1;
                        rest.extend(parts(&target));
                    }
                    _ => real = name,
                }
            }
            Some(Component::RootDir) => real = "/".into(),
            Some(Component::ParentDir) => drop(real.pop()),
            _ => {}
        }
    }
    real
}

/// Makes a volume of what the image has there: a directory, or nothing.
fn begin(image: &Path, own: &Path) -> io::Result<()> {
    fs::create_dir_all(own)?;
    fs::set_permissions(own, fs::Permissions::from_mode(0o755))?;
    match fs::symlink_metadata(image) {
        Ok(meta) if !meta.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => copy(image, own, &mut BTreeMap::new()),
    }
}

/// Copies a tree with owners, modes, times, extended attributes and hard links. `first_names` tells where a file
/// of several names was copied to.
fn copy(from: &Path, to: &Path, first_names: &mut BTreeMap<(u64, u64), PathBuf>) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    let kind = meta.file_type();
    if !kind.is_dir() && meta.nlink() > 1 {
        if let Some(first) = first_names.get(&(meta.dev(), meta.ino())) {
            return fs::hard_link(first, to);
        }
        first_names.insert((meta.dev(), meta.ino()), to.to_owned());
    }
    if kind.is_dir() {
        match fs::create_dir(to) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), first_names)?;
        }
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else {
        let (kind, mode) = (FileType::from_raw_mode(meta.mode()), Mode::from_raw_mode(meta.mode()));
        rustix::fs::mknodat(CWD, to, kind, mode, meta.rdev())?;
    }
    // The owner first: a new one takes capabilities and set-id bits away.
    std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    copy_attributes(from, to)?;
    if !kind.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Copies the extended attributes of a file, as far as file systems have them.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    /// What the kernel lets the names and each value be long.
    const LEN_MAX: usize = 64 << 10;
    let (mut names, mut value) = (vec![0; LEN_MAX], vec![0; LEN_MAX]);
    let len = match rustix::fs::llistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let len = rustix::fs::lgetxattr(from, name, &mut value)?;
        match rustix::fs::lsetxattr(to, name, &value[..len], XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}
