//! The guest with pure cgroup v2: Debian's cloud kernel and an initial RAM file system with Skeg,
//! nft and the test images in it, under `target/guest`. The end-to-end suite boots it in QEMU.

use crate::host::{command, output, run, target};
use crate::images;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Modules that Skeg needs, beyond what is built in; their dependencies come along.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "overlay",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_numgen",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_ct",
    "nft_hash",
    "nft_redir",
    "nft_fib_ipv4",
    "nft_fib_inet",
    "nf_conntrack",
    "nf_nat",
    "crc32c_generic",
    "crc32c_intel",
];

/// First process: moves everything to a tmpfs, because pivot_root refuses the initial root.
const INIT: &str = "#!/bin/sh
/bin/busybox mkdir -p /new
/bin/busybox mount -t tmpfs -o size=1400m tmpfs /new
/bin/busybox cp -a /bin /etc /lib /lib64 /sbin /usr /skeg /images /second /new/
exec /bin/busybox switch_root /new /second
";

/// Then the machine as a small Debian would be, with a shell on the serial line.
const SECOND: &str = "#!/bin/sh
export PATH=/bin:/sbin:/usr/sbin:/usr/bin HOME=/
mkdir -p /proc /sys /dev /run /tmp /var/lib /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo /bin/modprobe > /proc/sys/kernel/modprobe
for module in MODULES; do modprobe $module 2>/dev/null; done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
hostname guest
exec 2>&1
echo GUEST-READY
# The first process must never end; a shell on the line may.
export PS1=
while true; do setsid cttyhack sh; done
";

/// Where the kernel and the initial file system are.
pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// Makes both; the kernel once, the file system for each binary.
pub fn prepare(skeg: &Path) -> Result<Guest> {
    let directory = target().join("guest");
    let kernel = directory.join("vmlinuz");
    if !kernel.exists() {
        fetch_kernel(&directory)?;
    }
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for folder in ["bin", "etc", "lib64", "sbin", "usr", "images"] {
        fs::create_dir_all(root.join(folder))?;
    }
    install_modules(&directory, &root)?;
    install_tools(&root)?;
    fs::copy(skeg, root.join("skeg"))?;
    install_libraries(skeg, &root)?;
    for image in ["nginx", "busybox"] {
        fs::copy(images::archive(image), root.join("images").join(format!("{image}.tar")))?;
    }
    let second = SECOND.replace("MODULES", &MODULES.join(" "));
    for (name, content) in [("init", INIT), ("second", &second)] {
        fs::write(root.join(name), content)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/resolv.conf"), "nameserver 10.0.2.3\n")?;
    let initrd = directory.join("initrd");
    // Not compressed: unpacking would cost the emulated processor more than reading does.
    let script = "cd \"$1\" && find . | cpio --quiet -o -H newc > \"$2\"";
    run(command("sh").args(["-c", script, "sh"]).arg(&root).arg(&initrd))?;
    Ok(Guest { kernel, initrd })
}

fn fetch_kernel(directory: &Path) -> Result<()> {
    println!("fetching Debian's cloud kernel");
    fs::create_dir_all(directory)?;
    // All packages may be installed and the lists of packages be missing.
    crate::setup::package_lists("linux-image-cloud-amd64")?;
    let depends = output(command("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .lines()
        .find_map(|line| {
            line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with("linux-image-"))
        })
        .context("Debian names no cloud kernel: run `apt-get update`")?;
    output(command("apt-get").current_dir(directory).args(["download", "-qq", package]))?;
    let files: Vec<PathBuf> =
        fs::read_dir(directory)?.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    let deb =
        files.iter().find(|path| path.extension().is_some_and(|e| e == "deb")).context("a kernel package")?;
    let unpacked = directory.join("kernel");
    run(command("dpkg-deb").arg("-x").arg(deb).arg(&unpacked))?;
    fs::remove_file(deb)?;
    let boot = fs::read_dir(unpacked.join("boot"))?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let image = boot
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("a kernel image")?;
    run(command("depmod").arg("-b").arg(&unpacked).arg(version(&unpacked)?))?;
    fs::rename(image, directory.join("vmlinuz"))?;
    Ok(())
}

fn version(unpacked: &Path) -> Result<String> {
    let entry = fs::read_dir(unpacked.join("lib/modules"))?.next().context("no modules")??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// Copies the modules and all that they depend on.
fn install_modules(directory: &Path, root: &Path) -> Result<()> {
    let unpacked = directory.join("kernel");
    let version = version(&unpacked)?;
    let (from, to) = (unpacked.join("lib/modules").join(&version), root.join("lib/modules").join(&version));
    fs::create_dir_all(&to)?;
    for index in ["modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.order"] {
        let _ = fs::copy(from.join(index), to.join(index));
    }
    for line in fs::read_to_string(from.join("modules.dep"))?.lines() {
        let (module, needs) = line.split_once(':').context("a line of modules.dep")?;
        let name = Path::new(module).file_name().unwrap_or_default().to_string_lossy();
        let name = name.split('.').next().unwrap_or_default().replace('-', "_");
        if MODULES.contains(&name.as_str()) {
            for file in needs.split_whitespace().chain([module]) {
                let target = to.join(file);
                fs::create_dir_all(target.parent().context("a folder")?)?;
                fs::copy(from.join(file), target)?;
            }
        }
    }
    Ok(())
}

/// busybox, from the image that has it, and nft with its libraries.
fn install_tools(root: &Path) -> Result<()> {
    let debs = root.with_file_name("debs");
    fs::create_dir_all(&debs)?;
    output(command("apt-get").current_dir(&debs).args(["download", "-qq", "busybox-static"]))?;
    for deb in fs::read_dir(&debs)? {
        run(command("dpkg-deb").arg("-x").arg(deb?.path()).arg(root))?;
    }
    fs::remove_dir_all(&debs)?;
    for applet in output(command(root.join("bin/busybox")).arg("--list"))?.lines() {
        let link = root.join("bin").join(applet);
        if fs::symlink_metadata(&link).is_err() {
            symlink("busybox", link)?;
        }
    }
    fs::create_dir_all(root.join("usr/sbin"))?;
    let nft = Path::new("/usr/sbin/nft");
    fs::copy(nft, root.join("usr/sbin/nft"))?;
    install_libraries(nft, root)
}

/// Copies the shared libraries of a program, by what `ldd` says.
fn install_libraries(program: &Path, root: &Path) -> Result<()> {
    for line in output(command("ldd").arg(program))?.lines() {
        let path = line.split("=>").last().unwrap_or_default().trim().split(' ').next().unwrap_or_default();
        if path.starts_with('/') {
            let target = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(target.parent().context("a folder")?)?;
            fs::copy(path, &target).with_context(|| path.to_owned())?;
        }
    }
    Ok(())
}
