//! Against Debian's `docker-registry` on loopback, with images pushed by skopeo.

#![allow(clippy::unwrap_used, reason = "a failed helper fails its test")]

use sha2::{Digest, Sha256};
use skeg_images::{Credential, Error, Images, ImagesConfig, LayerPhase, Progress, Registries};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// `tester:secret` (bcrypt).
const HTPASSWD: &str = "tester:$2b$04$b6KxObqr4BkkR9PC8k0E5unDWdP4tHYZ97TZYqAxhwb6CTuNXuOqu\n";

struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
}

impl Registry {
    async fn start(auth: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let htpasswd = dir.path().join("htpasswd");
        std::fs::write(&htpasswd, HTPASSWD).unwrap();
        let auth = if auth {
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display())
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog:\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{auth}",
            dir.path().join("data").display()
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve"])
            .arg(dir.path().join("config.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is installed");
        let registry = Registry { child, dir, address };
        until("registry listens", || std::net::TcpStream::connect(&registry.address).is_ok()).await;
        registry
    }

    fn push(&self, layout: &Path, name: &str, credentials: Option<&str>) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--dest-tls-verify=false"]);
        if let Some(credentials) = credentials {
            command.args(["--dest-creds", credentials]);
        }
        let done = command
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{}/{name}", self.address))
            .stdout(Stdio::null())
            .status()
            .expect("skopeo is installed");
        assert!(done.success());
    }

    /// Blob downloads so far. The log is complete once a later request shows in it.
    async fn blob_downloads(&self, images: &Arc<Images>) -> usize {
        let sentinel = format!("sentinel-{}", std::fs::metadata(self.dir.path().join("log")).unwrap().len());
        let _ = images.pull(&format!("{}/{sentinel}:x", self.address), &[], None).await;
        let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        until("log shows the sentinel", || log().contains(&sentinel)).await;
        log().lines().filter(|l| l.contains("\"GET /v2/") && l.contains("/blobs/")).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("timed out: {what}"));
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hash}")
}

/// An OCI layout with these layers (the second compressed with gzip, the third with zstd).
fn layout(dir: &Path, name: Option<&str>, layers: &[Vec<u8>]) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8], media: &str| {
        let digest = digest(bytes);
        std::fs::write(dir.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        serde_json::json!({"mediaType": media, "digest": digest, "size": bytes.len()})
    };
    let entries: Vec<_> = layers
        .iter()
        .enumerate()
        .map(|(n, layer)| match n {
            1 => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                gzip.write_all(layer).unwrap();
                blob(&gzip.finish().unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip")
            }
            2 => {
                blob(&zstd::encode_all(&layer[..], 1).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd")
            }
            _ => blob(layer, "application/vnd.oci.image.layer.v1.tar"),
        })
        .collect();
    let diff_ids: Vec<_> = layers.iter().map(|l| digest(l)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox"], "Cmd": ["sh"], "Env": ["A=b"], "WorkingDir": "/work",
                   "User": "1000", "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}
    });
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": media, "config": config, "layers": entries});
    let mut manifest = blob(manifest.to_string().as_bytes(), media);
    if let Some(name) = name {
        manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn busybox() -> Vec<u8> {
    std::fs::read("/bin/busybox").expect("busybox-static is installed")
}

fn three_layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[("bin/busybox", &busybox()), ("etc/base", b"1"), ("old/file", b"x")]),
        tar(&[("etc/.wh.base", b""), ("old/.wh..wh..opq", b""), ("old/new", b"2")]),
        tar(&[("top", b"3")]),
    ]
}

fn open(dir: &Path, registries: &str) -> Arc<Images> {
    let registries = Registries::parse(registries).unwrap();
    Images::open(ImagesConfig { dir: dir.join("images"), registries }).unwrap()
}

fn walk(dir: &Path) -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.metadata().unwrap() {
            meta if meta.is_dir() => found.extend(walk(&entry.path())),
            meta => found.push((meta.len(), entry.path())),
        }
    }
    found
}

fn layers_on_disk(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("images/layers")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_fetches_no_blob_and_concurrent_pulls_share_layers() {
    let registry = Registry::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    registry.push(&dir.path().join("oci"), "team/app:v1", None);
    registry.push(&dir.path().join("oci"), "team/app:v2", None);
    let images = open(dir.path(), "");
    let name = format!("{}/team/app:v1", registry.address);

    let (progress, seen) = tokio::sync::watch::channel(Progress::default());
    let pulls = (0..4).map(|n| {
        let (images, name, progress) = (images.clone(), name.clone(), (n == 0).then(|| progress.clone()));
        tokio::spawn(async move { images.pull(&name, &[], progress).await.unwrap() })
    });
    let pulled = futures_util::future::join_all(pulls).await;
    let image = pulled[0].as_ref().unwrap();
    assert!(seen.borrow().layers.iter().all(|l| l.phase == LayerPhase::Complete));
    assert_eq!(image.layers.len(), 3);
    assert!(image.layers[0].join("top").exists() && image.layers[2].join("bin/busybox").exists());
    assert_eq!(image.config.entrypoint, ["/bin/busybox"]);
    assert_eq!((image.config.stop_signal.as_str(), image.config.user.as_str()), ("SIGQUIT", "1000"));
    assert_eq!(image.tags, std::slice::from_ref(&name));
    assert!(image.repo_digests[0].starts_with(&format!("{}/team/app@sha256:", registry.address)));
    assert!(!image.pinned);
    let log = std::fs::read_to_string(registry.dir.path().join("log")).unwrap();
    assert!(!log.is_empty());
    let first = registry.blob_downloads(&images).await;
    assert!(
        (4..=3 + 4).contains(&first),
        "three layers once, the small configuration at most once a pull: {first}"
    );

    images.pull(&name, &[], None).await.unwrap();
    let same = images.pull(&format!("{}/team/app:v2", registry.address), &[], None).await.unwrap();
    assert_eq!(same.id, image.id);
    assert_eq!(registry.blob_downloads(&images).await, first);

    // Another process sees it, and removal collects layers once the last name and hold are gone.
    let other = open(dir.path(), "");
    assert_eq!(other.list().unwrap().len(), 1);
    images.hold("container-1", &image.id).unwrap();
    other.remove(&image.id).await.unwrap();
    assert!(images.resolve(&name).unwrap().is_none());
    assert_eq!(layers_on_disk(dir.path()), 3);
    images.reconcile(|owner| owner != "container-1").unwrap();
    assert_eq!(layers_on_disk(dir.path()), 0);
    assert!(matches!(other.remove(&name).await, Err(Error::NoImage(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told_apart() {
    let registry = Registry::start(true).await;
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    registry.push(&dir.path().join("oci"), "app:v1", Some("tester:secret"));
    let images = open(dir.path(), "");
    let name = format!("{}/app:v1", registry.address);

    assert!(matches!(images.pull(&name, &[], None).await, Err(Error::Unauthorized(_))));
    let mut credential = Credential {
        server: registry.address.clone(),
        username: "tester".into(),
        password: "wrong".into(),
        ..Default::default()
    };
    assert!(matches!(
        images.pull(&name, std::slice::from_ref(&credential), None).await,
        Err(Error::Unauthorized(_))
    ));
    let wrong = credential.clone();
    credential.password = "secret".into();
    images.pull(&name, &[wrong, credential.clone()], None).await.unwrap();
    let missing = format!("{}/app:none", registry.address);
    assert!(matches!(
        images.pull(&missing, std::slice::from_ref(&credential), None).await,
        Err(Error::NotFound(_))
    ));
    assert!(matches!(images.pull("Not A Name", &[], None).await, Err(Error::InvalidReference(_))));
    // A name in registries.yaml carries its own credentials, and a mirror stands in for the hub.
    let own = tempfile::tempdir().unwrap();
    let yaml = format!(
        "mirrors: {{docker.io: {{endpoint: ['http://{0}'], rewrite: {{'^library/(.*)': '$1'}}}}}}\nconfigs: {{'{0}': {{auth: {{username: tester, password: secret}}}}}}",
        registry.address
    );
    let mirrored = open(own.path(), &yaml).pull("app:v1", &[], None).await.unwrap();
    assert_eq!(mirrored.tags, ["docker.io/library/app:v1"]);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(images.pull(&format!("{gone}/app"), &[], None).await, Err(Error::Network(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_blob_is_refused_and_leaves_nothing() {
    let registry = Registry::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    registry.push(&dir.path().join("oci"), "app:v1", None);
    // The largest blob is the layer with busybox, compressed on its way or not.
    let blobs = registry.dir.path().join("data/docker/registry/v2/blobs/sha256");
    let (_, blob) = walk(&blobs).into_iter().max().unwrap();
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let images = open(dir.path(), "");
    let result = images.pull(&format!("{}/app:v1", registry.address), &[], None).await;
    assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{result:?}");
    assert!(images.list().unwrap().is_empty());
    images.collect().unwrap();
    assert_eq!(layers_on_disk(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_pin_their_reference() {
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("oci");
    // Debian's skopeo cannot write zstd layers into a docker archive.
    layout(&oci, Some("nginx:latest"), &three_layers()[..2]);
    let archive = dir.path().join("image.tar");
    assert!(
        Command::new("tar").arg("-C").arg(&oci).arg("-cf").arg(&archive).arg(".").status().unwrap().success()
    );
    let gzipped = dir.path().join("image.tar.gz");
    assert!(
        Command::new("tar")
            .arg("-C")
            .arg(&oci)
            .arg("-czf")
            .arg(&gzipped)
            .arg(".")
            .status()
            .unwrap()
            .success()
    );
    let docker = dir.path().join("docker.tar");
    let saved = Command::new("skopeo")
        .args(["copy", "--quiet"])
        .arg(format!("oci:{}", oci.display()))
        .arg(format!("docker-archive:{}:docker.io/library/nginx:latest", docker.display()))
        .status()
        .unwrap();
    assert!(saved.success());
    for source in [&oci, &archive, &gzipped, &docker] {
        let data = tempfile::tempdir().unwrap();
        let images = open(data.path(), "");
        let imported = images.import(source, None).await.unwrap();
        assert_eq!(imported[0].tags, ["docker.io/library/nginx:latest"], "{}", source.display());
        assert!(imported[0].pinned);
        // Always pulling asks no registry: docker.io is out of reach here.
        let again = images.pull("nginx", &[], None).await.unwrap();
        assert!(again.pinned);
        assert_eq!(again.layers.len(), 2);
        let reopened = open(data.path(), "");
        assert!(reopened.list().unwrap()[0].pinned);
        images.remove("nginx").await.unwrap();
        assert!(reopened.list().unwrap().is_empty());
        assert_eq!(layers_on_disk(data.path()), 0);
    }
    let images = open(dir.path(), "");
    let named = images.import(&archive, Some("example.com/other:1")).await.unwrap();
    assert_eq!(named[0].tags, ["example.com/other:1"]);
    assert!(images.import(&dir.path().join("missing"), None).await.is_err());
}

#[tokio::test]
async fn leftovers_of_a_killed_process_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), "");
    let stale = dir.path().join("images/tmp/999999-0");
    std::fs::create_dir_all(stale.join("half-a-layer")).unwrap();
    std::fs::create_dir_all(dir.path().join("images/layers/unreferenced")).unwrap();
    let second = open(dir.path(), "");
    assert!(!stale.exists());
    assert_eq!(std::fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 2, "both live ones stay");
    second.collect().unwrap();
    assert_eq!(layers_on_disk(dir.path()), 0);
    drop(first);
}
