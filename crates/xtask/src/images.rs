//! The container images of the demo and the tests, built from Debian packages as OCI archives
//! under `target/images`. Nothing is pulled from a container registry.

use crate::host::{command, output, run, target};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

struct Image {
    /// As users name it; the archive carries the full reference.
    name: &'static str,
    packages: &'static [&'static str],
    /// Files beyond the packages': path, content.
    files: &'static [(&'static str, &'static str)],
    entrypoint: &'static [&'static str],
    cmd: &'static [&'static str],
    ports: &'static [&'static str],
    volumes: &'static [&'static str],
    user: &'static str,
    stop_signal: &'static str,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

const NGINX_CONF: &str = "user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 256; }
http {
    include /etc/nginx/mime.types;
    access_log /dev/stdout;
    server {
        listen 80 default_server;
        root /usr/share/nginx/html;
    }
}
";

/// `serve tcp/80 udp/53` answers at each port with its host's name and the port: over HTTP, or in a datagram.
const SERVE: &str = r"use IO::Socket::INET;
for (@ARGV) {
    my ($protocol, $port) = split '/';
    next if fork;
    my $answer = qq($ENV{HOSTNAME} $_);
    if ($protocol eq 'udp') {
        my $socket = IO::Socket::INET->new(Proto => $protocol, LocalPort => $port) or die $@;
        while (defined $socket->recv(my $asked, 1500)) { $socket->send($answer) }
    }
    my $socket = IO::Socket::INET->new(LocalPort => $port, Listen => 64, ReuseAddr => 1) or die $@;
    while (my $client = $socket->accept) {
        $client->recv(my $asked, 1500);
        $client->send(qq(HTTP/1.0 200 OK\r\n\r\n$answer));
    }
}
1 while wait > 0;
";

/// `ask udp/53 HOST TIMES` prints each answer on a line; the first that does not come ends it.
const ASK: &str = r"use IO::Socket::INET;
my ($ports, $host, $times) = @ARGV;
my ($protocol, $port) = split '/', $ports;
for (1 .. $times) {
    alarm 2;
    my $socket = IO::Socket::INET->new(Proto => $protocol, PeerAddr => $host, PeerPort => $port) or die $@;
    $socket->send(qq(GET / HTTP/1.0\r\n\r\n)) or die $!;
    my ($answer, $part) = ('', '');
    do {
        defined $socket->recv($part, 1500) or die $!;
        $answer .= $part;
    } while $protocol eq 'tcp' and $part ne '';
    $answer =~ s/^.*\r\n\r\n//s;
    print qq($answer\n);
}
";

/// What most images are: a shell and nothing of their own.
const PLAIN: Image = Image {
    name: "",
    packages: &["busybox-static"],
    files: &[],
    entrypoint: &[],
    cmd: &["sh"],
    ports: &[],
    volumes: &[],
    user: "",
    stop_signal: "",
};

const IMAGES: &[Image] = &[
    Image {
        name: "nginx",
        packages: &[
            "nginx",
            "nginx-common",
            "libc6",
            "libcrypt1",
            "libpcre2-8-0",
            "libssl3",
            "zlib1g",
            "busybox-static",
        ],
        files: &[("etc/nginx/nginx.conf", NGINX_CONF)],
        cmd: &["nginx", "-g", "daemon off;"],
        ports: &["80/tcp"],
        stop_signal: "SIGQUIT",
        ..PLAIN
    },
    // A dynamic client: the static busybox cannot resolve names, nor speak TLS with a given authority.
    Image {
        name: "client",
        packages: &[
            "wget",
            "libc6",
            "libffi8",
            "libgmp10",
            "libgnutls30",
            "libhogweed6",
            "libidn2-0",
            "libnettle8",
            "libp11-kit0",
            "libpcre2-8-0",
            "libpsl5",
            "libtasn1-6",
            "libunistring2",
            "libuuid1",
            "zlib1g",
            "busybox-static",
        ],
        ..PLAIN
    },
    // As busybox, but nobody imports it: a registry must be asked for its layer.
    Image { name: "remote", files: &[("etc/motd", "from a registry\n")], ..PLAIN },
    // Speaks HTTPS and gRPC's health protocol.
    Image {
        name: "etcd",
        packages: &["etcd-server", "libc6", "busybox-static"],
        cmd: &["etcd"],
        ports: &["2379/tcp"],
        ..PLAIN
    },
    // Speaks TCP and UDP, as a server and as a client: busybox has no UDP.
    Image {
        name: "perl",
        packages: &["perl-base", "libc6", "libcrypt1", "busybox-static"],
        files: &[("serve", SERVE), ("ask", ASK)],
        ..PLAIN
    },
    // One of its volumes has something in it, the other is in no layer.
    Image {
        name: "volumes",
        files: &[("data/seed", "of the image\n")],
        volumes: &["/data", "/newvol"],
        ..PLAIN
    },
    // Its user is in no list of users, and it has nothing to run.
    Image { name: "stranger", cmd: &[], user: "stranger", ..PLAIN },
    Image { name: "busybox", ..PLAIN },
];

/// The archive of an image by its short name.
pub fn archive(name: &str) -> PathBuf {
    target().join("images").join(format!("{name}.tar"))
}

/// Builds what is missing; returns the archives.
pub fn build_all() -> Result<Vec<PathBuf>> {
    IMAGES.iter().map(build).collect()
}

fn build(image: &Image) -> Result<PathBuf> {
    let archive = archive(image.name);
    if archive.exists() {
        return Ok(archive);
    }
    println!("building image {} from Debian packages", image.name);
    let work = target().join("images").join(format!("{}.work", image.name));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let (root, layout) = (work.join("root"), work.join("layout"));
    fs::create_dir_all(&root)?;
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    unpack_packages(image, &work.join("debs"), &root)?;
    finish_root(image, &root)?;

    let layer_tar = work.join("layer.tar");
    run(command("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&layer_tar)
        .arg("."))?;
    let diff_id = digest(&fs::read(&layer_tar)?);
    run(command("gzip").args(["-n", "-6"]).arg(&layer_tar))?;
    let layer = add_blob(&layout, &fs::read(work.join("layer.tar.gz"))?)?;
    write_manifest(image, &layout, &layer, &diff_id)?;

    let unfinished = archive.with_extension("tar.new");
    run(command("tar").arg("-C").arg(&layout).arg("-cf").arg(&unfinished).arg("."))?;
    fs::rename(&unfinished, &archive)?;
    fs::remove_dir_all(&work)?;
    Ok(archive)
}

fn unpack_packages(image: &Image, debs: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(debs)?;
    let download = |debs: &Path| {
        output(command("apt-get").current_dir(debs).args(["download", "-qq"]).args(image.packages))
    };
    if download(debs).is_err() {
        // The package lists may be missing or old.
        run(command("apt-get").args(["update", "-qq"]))?;
        download(debs).context("apt-get download")?;
    }
    for deb in fs::read_dir(debs)? {
        run(command("dpkg-deb").arg("-x").arg(deb?.path()).arg(root))?;
    }
    Ok(())
}

fn finish_root(image: &Image, root: &Path) -> Result<()> {
    for dir in ["bin", "etc", "run", "tmp", "var/log/nginx", "var/lib/nginx", "root", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    for (path, content) in image.files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, content)?;
    }
    for dir in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/lintian",
        "usr/share/locale",
        "usr/lib/x86_64-linux-gnu/gconv",
    ] {
        if root.join(dir).exists() {
            fs::remove_dir_all(root.join(dir))?;
        }
    }
    // A shell and its tools, as links to the one busybox.
    for applet in output(command(root.join("bin/busybox")).arg("--list"))?.lines() {
        let link = root.join("bin").join(applet);
        if fs::symlink_metadata(&link).is_err() {
            symlink("busybox", link)?;
        }
    }
    Ok(())
}

fn write_manifest(image: &Image, layout: &Path, layer: &(String, usize), diff_id: &str) -> Result<()> {
    let set = |keys: &[&str]| -> serde_json::Map<String, Value> {
        keys.iter().map(|key| ((*key).to_owned(), json!({}))).collect()
    };
    let mut config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": image.entrypoint,
        "Cmd": image.cmd,
        "WorkingDir": "/",
        "User": image.user,
        "ExposedPorts": set(image.ports),
    });
    if !image.volumes.is_empty() {
        config["Volumes"] = set(image.volumes).into();
    }
    if !image.stop_signal.is_empty() {
        config["StopSignal"] = image.stop_signal.into();
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let (config_digest, config_size) = add_blob(layout, &serde_json::to_vec(&config)?)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.0, "size": layer.1}],
    });
    let (digest, size) = add_blob(layout, &serde_json::to_vec(&manifest)?)?;
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "annotations": {"org.opencontainers.image.ref.name": format!("docker.io/library/{}:latest", image.name)},
        }],
    });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Stores a blob; returns its digest and size.
fn add_blob(layout: &Path, data: &[u8]) -> Result<(String, usize)> {
    let digest = digest(data);
    fs::write(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")), data)?;
    Ok((digest, data.len()))
}
