//! A container's file system, built inside its own new mount namespace: when the last process of
//! the container ends, the kernel takes all of it away, whatever happened to anybody else.
//! Runs in the child that becomes the container; knows nothing of processes.

use crate::cgroup::Cgroups;
use crate::devices;
use crate::image_volumes;
use crate::protocol::{Context, Failure, FailureKind};
use crate::sys::{self, MountAttr};
use crate::types::{Mount, MountSource, Propagation, Security};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

type Step<T = ()> = Result<T, Failure>;

/// What the file system is made of.
pub struct Plan<'a> {
    /// Lower directories, topmost first.
    pub layers: &'a [PathBuf],
    /// Holds [`UPPER`], `work`, `root` and [`VOLUMES`].
    pub dir: &'a Path,
    pub image_volumes: &'a [PathBuf],
    pub mounts: Vec<Mount>,
    pub nodes: &'a [devices::Node],
    pub security: &'a Security,
    pub cgroups: &'a Cgroups,
    /// The Pod's `/dev/shm`, a detached mount. None: the host's.
    pub shm: Option<OwnedFd>,
}

/// Where the container's writes into its root are.
pub const UPPER: &str = "upper";
/// Where its image's volumes are.
pub const VOLUMES: &str = "volumes";

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

const NOSUID: libc::c_ulong = libc::MS_NOSUID;
const NODEV: libc::c_ulong = libc::MS_NODEV;
const NOEXEC: libc::c_ulong = libc::MS_NOEXEC;

fn refuse<T>(text: String) -> Step<T> {
    Err(Failure::new(FailureKind::Other, text))
}

/// A bind mount's source, already detached from the host's tree.
struct Bind {
    tree: OwnedFd,
    is_dir: bool,
}

/// Builds everything and makes it the root. The caller is alone in a new mount namespace.
pub fn build(plan: &mut Plan<'_>) -> Step {
    let mut binds: Vec<Option<Bind>> = plan.mounts.iter().map(|_| None).collect();
    let mut open = |wanted: fn(Propagation) -> bool| -> Step {
        for (bind, mount) in binds.iter_mut().zip(&plan.mounts) {
            if wanted(mount.propagation) {
                *bind = open_source(mount)?;
            }
        }
        Ok(())
    };
    // A copy taken while the tree is still shared with the host stays shared with it.
    open(|p| p == Propagation::Bidirectional)?;
    sys::mount("", Path::new("/"), "", libc::MS_REC | libc::MS_SLAVE, "")
        .at(|| "make / a slave mount".into())?;
    open(|p| p != Propagation::Bidirectional)?;

    let root = mount_overlay(plan)?;
    let own = image_volumes::make(&root, &plan.dir.join(VOLUMES), plan.image_volumes, &plan.mounts)?;
    for mount in own {
        binds.push(open_source(&mount)?);
        plan.mounts.push(mount);
    }
    std::env::set_current_dir(&root).at(|| "enter the root file system".into())?;
    sys::pivot_to_cwd().at(|| "pivot_root".into())?;

    let overridden = |path: &str| plan.mounts.iter().any(|m| m.destination == Path::new(path));
    mount_kernel_trees(plan, &overridden)?;
    if let Some(shm) = plan.shm.take()
        && !overridden("/dev/shm")
    {
        let target = make_dir(Path::new("/dev/shm"))?;
        sys::move_mount(&shm, &target).at(|| "mount /dev/shm".into())?;
    }
    if !overridden("/dev") {
        make_nodes(plan)?;
    }

    // Deeper ones later, so that no mount hides another.
    let mut order: Vec<usize> = (0..plan.mounts.len()).collect();
    order.sort_by_key(|i| plan.mounts[*i].destination.components().count());
    for i in order {
        place(&plan.mounts[i], binds[i].take())?;
    }

    if !plan.security.privileged && !plan.security.unmasked_proc {
        mask(plan)?;
    }
    if plan.security.read_only_root {
        let root = sys::open_path(Path::new("/")).at(|| "open /".into())?;
        let attr = MountAttr { set: sys::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(&root, false, &attr).at(|| "make / read-only".into())?;
    }
    Ok(())
}

/// None for what is made, not bound.
fn open_source(mount: &Mount) -> Step<Option<Bind>> {
    let flags = sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE;
    let to = mount.destination.display();
    let (found, path) = match &mount.source {
        MountSource::Tmpfs { .. } => return Ok(None),
        MountSource::Bind(source) => {
            let what = || format!("failed to mount {} to {to}", source.display());
            (sys::open_path(source).at(what)?, source.clone())
        }
        MountSource::BindBeneath { root, path } => {
            let what = || format!("failed to mount {} of {} to {to}", path.display(), root.display());
            let dir = sys::open_path(root).at(what)?;
            let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_MAGICLINKS;
            (sys::openat2(dir.as_raw_fd(), path, libc::O_PATH, 0, resolve).at(what)?, root.join(path))
        }
    };
    check_propagation(&found, &path, mount.propagation)?;
    // What was found is what is mounted: nothing is looked up a second time.
    let tree = sys::open_tree(found.as_raw_fd(), Path::new(""), flags | sys::AT_EMPTY_PATH)
        .at(|| format!("failed to mount {} to {to}", path.display()))?;
    let metadata = fs::metadata(format!("/proc/self/fd/{}", tree.as_raw_fd()))
        .at(|| format!("look at the source of {to}"))?;
    Ok(Some(Bind { tree, is_dir: metadata.is_dir() }))
}

/// Refuses, in containerd's words, what would never propagate: the host must share what it is on.
fn check_propagation(source: &OwnedFd, path: &Path, wanted: Propagation) -> Step {
    let (tags, kind): (&[&str], _) = match wanted {
        Propagation::Private => return Ok(()),
        Propagation::HostToContainer => (&["shared:", "master:"], "shared or slave"),
        Propagation::Bidirectional => (&["shared:"], "shared"),
    };
    let read = |file: &str| fs::read_to_string(file).at(|| format!("read {file}"));
    let about = read(&format!("/proc/self/fdinfo/{}", source.as_raw_fd()))?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
    let mounts = read("/proc/self/mountinfo")?;
    let Some((on, optional)) = mount_of(&mounts, id) else {
        return refuse(format!("path {path:?} is on no mount of this host"));
    };
    if optional.iter().any(|field| tags.iter().any(|tag| field.starts_with(tag))) {
        return Ok(());
    }
    refuse(format!("path {path:?} is mounted on {on:?} but it is not a {kind} mount"))
}

/// Where the mount of that id is, and its optional fields, by proc(5)'s `mountinfo`.
fn mount_of<'a>(mounts: &'a str, id: &str) -> Option<(String, Vec<&'a str>)> {
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
    let mut fields = line.split(' ').skip(4);
    let on = fields.next()?.replace("\\040", " ").replace("\\134", "\\");
    Some((on, fields.skip(1).take_while(|field| *field != "-").collect()))
}

/// Mounts the layers; where.
fn mount_overlay(plan: &Plan<'_>) -> Step<PathBuf> {
    let Plan { layers, dir, .. } = plan;
    let (upper, work, root) = (dir.join(UPPER), dir.join("work"), dir.join("root"));
    for (path, mode) in [(&upper, 0o755), (&work, 0o700), (&root, 0o700)] {
        match fs::create_dir(path) {
            Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        }
        .at(|| format!("create {}", path.display()))?;
    }
    // Named by descriptor: any number of long paths fits the one page of options, and no
    // character in them needs quoting.
    let open = |path: &Path| sys::open_path(path).at(|| format!("open {}", path.display()));
    let lower: Vec<OwnedFd> = layers.iter().map(|l| open(l)).collect::<Step<_>>()?;
    let (upper, work) = (open(&upper)?, open(&work)?);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    if lower.is_empty() {
        return refuse("the container has no image layers".into());
    }
    let options = format!(
        // The upper layer never outlives the container: syncing it is waste.
        "lowerdir={},upperdir={},workdir={},volatile",
        lower.iter().map(name).collect::<Vec<_>>().join(":"),
        name(&upper),
        name(&work)
    );
    sys::mount("overlay", &root, "overlay", 0, &options)
        .at(|| "mount the overlay of the image's layers".into())?;
    Ok(root)
}

/// Opens `path` inside the root, following no link out of it nor through `/proc`.
fn open_inside(path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
    let root = sys::open_path(Path::new("/"))?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    sys::openat2(root.as_raw_fd(), relative, flags, 0, sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS)
}

/// A descriptor of the directory, made with all above it where missing.
pub fn make_dir(path: &Path) -> Step<OwnedFd> {
    make_dir_io(path).at(|| format!("create {} in the container", path.display()))
}

fn make_dir_io(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    match open_inside(path, flags) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut so_far = PathBuf::from("/");
    let mut dir = open_inside(&so_far, flags)?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        so_far.push(name);
        dir = match open_inside(&so_far, flags) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let c_name = sys::cstr(name)?;
                // SAFETY: a valid descriptor and C string.
                sys::check(unsafe { libc::mkdirat(dir.as_raw_fd(), c_name.as_ptr(), 0o755) })?;
                open_inside(&so_far, flags)?
            }
            other => other?,
        };
    }
    Ok(dir)
}

fn make_file(path: &Path) -> Step<OwnedFd> {
    let what = || format!("create {} in the container", path.display());
    match open_inside(path, libc::O_PATH) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other.at(what),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return refuse(format!("{} cannot be a file", path.display()));
    };
    let dir = make_dir(parent)?;
    let name = sys::cstr(name).at(what)?;
    // SAFETY: a valid descriptor and C string.
    let fd = sys::check(unsafe {
        libc::openat(dir.as_raw_fd(), name.as_ptr(), libc::O_CREAT | libc::O_RDONLY | libc::O_CLOEXEC, 0o755)
    })
    .at(what)?;
    // SAFETY: a new descriptor that nobody else owns.
    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    open_inside(path, libc::O_PATH).at(what)
}

/// Mounts a kernel file system at a path that must be a plain directory: an image that puts a
/// link there could move the masks elsewhere.
fn mount_kernel(kind: &str, path: &str, flags: libc::c_ulong, data: &str) -> Step {
    let what = || format!("mount {path}");
    let target = make_dir(Path::new(path))?;
    let root = sys::open_path(Path::new("/")).at(what)?;
    let relative = Path::new(path.trim_start_matches('/'));
    sys::openat2(root.as_raw_fd(), relative, libc::O_PATH | libc::O_DIRECTORY, 0, sys::RESOLVE_NO_SYMLINKS)
        .map_err(|_| {
        Failure::new(FailureKind::Other, format!("{path} must be mounted on an ordinary directory"))
    })?;
    drop(target);
    sys::mount(kind, Path::new(path), kind, flags, data).at(what)
}

fn mount_kernel_trees(plan: &Plan<'_>, overridden: &dyn Fn(&str) -> bool) -> Step {
    let privileged = plan.security.privileged;
    let read_only = if privileged { 0 } else { libc::MS_RDONLY };
    mount_kernel("proc", "/proc", NOSUID | NOEXEC | NODEV, "")?;
    if !overridden("/dev") {
        mount_kernel("tmpfs", "/dev", NOSUID | libc::MS_STRICTATIME, "mode=755,size=65536k")?;
        mount_kernel("devpts", "/dev/pts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
        if !overridden("/dev/mqueue") {
            mount_kernel("mqueue", "/dev/mqueue", NOSUID | NOEXEC | NODEV, "")?;
        }
    }
    if !overridden("/sys") {
        mount_kernel("sysfs", "/sys", NOSUID | NOEXEC | NODEV | read_only, "")?;
        if !overridden("/sys/fs/cgroup") {
            mount_cgroups(plan.cgroups, NOSUID | NOEXEC | NODEV | libc::MS_RELATIME | read_only)?;
        }
    }
    Ok(())
}

/// Shows the container its own groups; the cgroup namespace makes them look like the roots.
fn mount_cgroups(cgroups: &Cgroups, flags: libc::c_ulong) -> Step {
    let base = Path::new("/sys/fs/cgroup");
    if cgroups.pure_v2() {
        return mount_kernel("cgroup2", "/sys/fs/cgroup", flags, "");
    }
    mount_kernel("tmpfs", "/sys/fs/cgroup", flags & !libc::MS_RDONLY, "mode=755,size=1m")?;
    for mount in cgroups.v1_mounts() {
        let Some(name) = mount.path.file_name() else { continue };
        let target = base.join(name);
        fs::create_dir_all(&target).at(|| format!("create {}", target.display()))?;
        let options = match mount.controllers.as_slice() {
            [one] if one.starts_with("name=") => format!("none,{one}"),
            many => many.join(","),
        };
        sys::mount("cgroup", &target, "cgroup", flags, &options)
            .at(|| format!("mount {}", target.display()))?;
    }
    if cgroups.unified().is_some() {
        let target = base.join("unified");
        fs::create_dir_all(&target).at(|| format!("create {}", target.display()))?;
        sys::mount("cgroup2", &target, "cgroup2", flags, "").at(|| format!("mount {}", target.display()))?;
    }
    if flags & libc::MS_RDONLY != 0 {
        sys::mount("", base, "", libc::MS_REMOUNT | flags, "")
            .at(|| "make /sys/fs/cgroup read-only".into())?;
    }
    Ok(())
}

fn make_node(path: &Path, block: bool, device: libc::dev_t, mode: u32, owner: (u32, u32)) -> Step {
    let what = || format!("create the device {}", path.display());
    let c_path = sys::cstr(path).at(what)?;
    let kind = if block { libc::S_IFBLK } else { libc::S_IFCHR };
    // SAFETY: a valid C string.
    match sys::check(unsafe { libc::mknod(c_path.as_ptr(), kind | mode, device) }) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e).at(what),
        Ok(_) => {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(what)?;
            std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1)).at(what)
        }
    }
}

fn make_nodes(plan: &Plan<'_>) -> Step {
    for (name, major, minor) in NODES {
        make_node(&Path::new("/dev").join(name), false, libc::makedev(major, minor), 0o666, (0, 0))?;
    }
    for (target, link) in LINKS {
        symlink(target, link).at(|| format!("create {link}"))?;
    }
    if Path::new("/proc/kcore").exists() {
        symlink("/proc/kcore", "/dev/core").at(|| "create /dev/core".into())?;
    }
    for node in plan.nodes {
        if let Some(parent) = node.path.parent() {
            make_dir(parent)?;
        }
        make_node(&node.path, node.block, libc::makedev(node.major, node.minor), node.mode, node.owner)?;
    }
    Ok(())
}

/// Puts one mount of the container in its place.
fn place(mount: &Mount, bind: Option<Bind>) -> Step {
    let path = &mount.destination;
    let what = || format!("mount {}", path.display());
    let outside_proc = |place: &Path| match place.starts_with("/proc") {
        true => refuse(format!("{} cannot be mounted because it is inside /proc", path.display())),
        false => Ok(()),
    };
    outside_proc(path)?;
    // A link of the image or of another volume may have led there as well.
    let checked = |target: OwnedFd| -> Step<(PathBuf, OwnedFd)> {
        let shown = PathBuf::from(format!("/proc/self/fd/{}", target.as_raw_fd()));
        outside_proc(&fs::read_link(&shown).at(what)?)?;
        Ok((shown, target))
    };
    match (&mount.source, bind) {
        (MountSource::Bind(_) | MountSource::BindBeneath { .. }, Some(Bind { tree, is_dir })) => {
            let propagation = match mount.propagation {
                Propagation::Private => libc::MS_PRIVATE,
                Propagation::HostToContainer => libc::MS_SLAVE,
                Propagation::Bidirectional => libc::MS_SHARED,
            };
            let attr = MountAttr { propagation, ..MountAttr::default() };
            sys::mount_setattr(&tree, true, &attr).at(what)?;
            if mount.read_only {
                let attr = MountAttr { set: sys::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
                sys::mount_setattr(&tree, mount.recursive_read_only, &attr).at(what)?;
            }
            let (_, target) = checked(if is_dir { make_dir(path)? } else { make_file(path)? })?;
            sys::move_mount(&tree, &target).at(what)
        }
        (MountSource::Tmpfs { size_bytes }, _) => {
            let (shown, _target) = checked(make_dir(path)?)?;
            let size = size_bytes.map_or(String::new(), |size| format!(",size={size}"));
            let flags = NOSUID | NODEV | if mount.read_only { libc::MS_RDONLY } else { 0 };
            sys::mount("tmpfs", &shown, "tmpfs", flags, &format!("mode=1777{size}")).at(what)
        }
        (MountSource::Bind(_) | MountSource::BindBeneath { .. }, None) => {
            refuse(format!("mount {} has no source", path.display()))
        }
    }
}

/// Hides what tells about the host and write-protects what would change it.
fn mask(plan: &Plan<'_>) -> Step {
    let mounted_over = |path: &str| plan.mounts.iter().any(|m| Path::new(path).starts_with(&m.destination));
    for path in MASKED.into_iter().filter(|p| !mounted_over(p)) {
        let target = Path::new(path);
        match fs::symlink_metadata(target) {
            Err(_) => {}
            Ok(m) if m.is_dir() => {
                sys::mount("tmpfs", target, "tmpfs", libc::MS_RDONLY, "size=0k,nr_inodes=2")
                    .at(|| format!("mask {path}"))?;
            }
            Ok(_) => sys::mount("/dev/null", target, "", libc::MS_BIND, "").at(|| format!("mask {path}"))?,
        }
    }
    for path in READ_ONLY.into_iter().filter(|p| !mounted_over(p)) {
        let target = Path::new(path);
        if fs::symlink_metadata(target).is_err() {
            continue;
        }
        let what = || format!("make {path} read-only");
        let tree =
            sys::open_tree(libc::AT_FDCWD, target, sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE).at(what)?;
        let attr = MountAttr { set: sys::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(&tree, true, &attr).at(what)?;
        sys::move_mount(&tree, &sys::open_path(target).at(what)?).at(what)?;
    }
    Ok(())
}

/// Reads a small file of the container; what is missing reads as empty.
pub fn read_inside(path: &str) -> String {
    use std::io::Read;
    const FILE_LEN_MAX: u64 = 4 << 20;
    let mut text = Vec::new();
    if let Ok(fd) = open_inside(Path::new(path), libc::O_RDONLY | libc::O_NONBLOCK) {
        let _ = fs::File::from(fd).take(FILE_LEN_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_id() {
        let mounts = "21 1 0:19 / /proc rw shared:5 - proc proc rw\n\
            22 1 0:20 / /a\\040b rw,noexec shared:7 master:1 - tmpfs x rw\n22 1 0:20 / / rw - ext4 x rw\n";
        assert_eq!(mount_of(mounts, "22"), Some(("/a b".to_owned(), vec!["shared:7", "master:1"])));
        assert_eq!(mount_of("2 1 0:1 / / rw - ext4 x rw\n", "2"), Some(("/".to_owned(), vec![])));
        assert_eq!(mount_of(mounts, "2"), None);
    }
}
