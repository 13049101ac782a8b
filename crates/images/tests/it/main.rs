//! Against Debian's `docker-registry` on loopback, with images pushed by skopeo.

#![allow(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod odd;

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
        Registry::with(|dir| {
            let htpasswd = dir.join("htpasswd");
            std::fs::write(&htpasswd, HTPASSWD).unwrap();
            match auth {
                true => format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display()),
                false => String::new(),
            }
        })
        .await
    }

    /// With more configuration, which may name files in the registry's directory.
    async fn with(more: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let more = more(dir.path());
        // Between the choice of a port and its use another test's registry may take it: only what
        // this one says itself shows that it listens.
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let config = format!(
                "version: 0.1\nlog:\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{more}",
                dir.path().join("data").display(),
            );
            std::fs::write(dir.path().join("config.yml"), config).unwrap();
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let mut child = Command::new("docker-registry")
                .args(["serve"])
                .arg(dir.path().join("config.yml"))
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect("docker-registry is installed");
            let listens =
                || std::fs::read_to_string(dir.path().join("log")).unwrap().contains("listening on");
            until("registry listens or ends", || listens() || child.try_wait().unwrap().is_some()).await;
            if child.try_wait().unwrap().is_none() {
                return Registry { child, dir, address };
            }
        }
    }

    fn push(&self, layout: &Path, name: &str, credentials: Option<&str>) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--all", "--dest-tls-verify=false"]);
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
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => found.extend(walk(&entry.path())),
            Ok(meta) => found.push((meta.len(), entry.path())),
            // A registry moves what it was given into place.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
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
async fn what_nothing_uses_goes_the_least_used_first() {
    let registry = Registry::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path(), "");
    let pull = async |layers: usize, name: &str| {
        let source = dir.path().join(format!("oci-{layers}"));
        layout(&source, None, &three_layers()[..layers]);
        registry.push(&source, name, None);
        images.pull(&format!("{}/{name}", registry.address), &[], None).await.unwrap().id
    };
    let there = || images.list().unwrap().into_iter().map(|image| image.id).collect::<Vec<_>>();
    let (idle, hour) = (Duration::ZERO, Duration::from_secs(3600));
    let mut ids = vec![pull(1, "app:v0").await];
    images.hold("first", &ids[0]).unwrap();
    // The tag moves on.
    ids.extend([pull(2, "app:v0").await, pull(3, "app:v1").await]);
    assert!(!images.has_unnamed().unwrap(), "it is in use");
    images.release("first");
    assert!(images.has_unnamed().unwrap());
    images.collect().unwrap();
    assert!(!images.has_unnamed().unwrap() && !there().contains(&ids[0]));
    ids[0] = pull(1, "app:v2").await;
    images.hold("first", &ids[0]).unwrap();
    images.release("first");
    images.hold("container", &ids[1]).unwrap();
    assert_eq!(images.remove_least_used(hour).unwrap().as_ref(), Some(&ids[2]), "never asked for");
    assert_eq!(images.remove_least_used(hour).unwrap(), None, "the others were, a moment ago");
    assert_eq!(images.remove_least_used(idle).unwrap().as_ref(), Some(&ids[0]));
    assert_eq!(images.remove_least_used(idle).unwrap(), None, "one is held");
    assert_eq!(there(), [ids[1].clone()]);
    images.release("container");
    assert_eq!(images.remove_least_used(idle).unwrap().as_ref(), Some(&ids[1]));
    assert_eq!(layers_on_disk(dir.path()), 0);
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
async fn what_a_secret_brought_is_for_those_who_have_it() {
    let (closed, open_to_all) = (Registry::start(true).await, Registry::start(false).await);
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    closed.push(&dir.path().join("oci"), "app:v1", Some("tester:secret"));
    open_to_all.push(&dir.path().join("oci"), "app:v1", None);
    let name = format!("{}/app:v1", closed.address);
    let of = |secret: &str, password: &str| Credential {
        server: closed.address.clone(),
        username: "tester".into(),
        password: password.into(),
        secret: secret.into(),
        ..Default::default()
    };
    let images = open(dir.path(), "");
    let allows =
        |name: &str, credential: Option<Credential>| images.allows(name, credential.as_slice()).unwrap();
    assert!(!allows(&name, None), "it is not here");
    let image = images.pull(&name, &[of("a/pull/1", "secret")], None).await.unwrap();
    let by_digest = image.repo_digests[0].clone();
    for known in [&name, &by_digest, &image.id] {
        assert!(allows(known, Some(of("a/pull/1", "secret"))));
        assert!(allows(known, Some(of("b/pull/2", "secret"))), "the same from another Secret");
        assert!(allows(known, Some(of("a/pull/1", "newer"))), "a newer state of the Secret");
        assert!(!allows(known, Some(of("b/pull/2", "guessed"))), "{known}");
        assert!(!allows(known, None), "{known}");
    }
    let elsewhere = Credential { server: "other.example".into(), ..of("a/pull/1", "secret") };
    assert!(!allows(&name, Some(elsewhere)), "it is for another registry");
    // Another way to the same image opens this one to nobody else, but for those who name its id.
    let public = format!("{}/app:v1", open_to_all.address);
    images.pull(&public, &[], None).await.unwrap();
    assert!(allows(&public, None) && allows(&image.id, None) && !allows(&name, None));
    // It is remembered, and what the host itself may pull everybody may use.
    drop(images);
    let images = open(dir.path(), "");
    assert!(!images.allows(&name, &[]).unwrap());
    images.pull(&name, &[of("", "secret")], None).await.unwrap();
    images.pull(&name, &[of("a/pull/1", "secret")], None).await.unwrap();
    assert!(images.allows(&name, &[]).unwrap());
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
    nothing_is_left(&images, dir.path()).await;

    // Longer than its descriptor says: refused before it is all here.
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes.resize(bytes.len() + 1_000_000, 0);
    std::fs::write(&blob, bytes).unwrap();
    let result = images.pull(&format!("{}/app:v1", registry.address), &[], None).await;
    assert!(matches!(&result, Err(Error::Invalid(why)) if why.contains("longer than")), "{result:?}");
    nothing_is_left(&images, dir.path()).await;
}

/// The other layers of a pull that failed are still being unpacked: each clears up when it is done.
async fn nothing_is_left(images: &Images, dir: &Path) {
    until("no layer and nothing downloaded is left", || {
        images.collect().unwrap();
        layers_on_disk(dir) == 0 && scratch_files(dir) == 0
    })
    .await;
}

/// Files in work directories, beside their locks.
fn scratch_files(dir: &Path) -> usize {
    walk(&dir.join("images/tmp")).iter().filter(|(_, path)| !path.ends_with(".lock")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_registry_is_no_reason_to_use_what_is_here() {
    let registry = Registry::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    registry.push(&dir.path().join("oci"), "app:v1", None);
    let images = open(dir.path(), "");
    let name = format!("{}/app:v1", registry.address);
    images.pull(&name, &[], None).await.unwrap();
    drop(registry);
    assert!(matches!(images.pull(&name, &[], None).await, Err(Error::Network(_))));
    assert!(images.resolve(&name).unwrap().is_some(), "it is here for who does not ask the registry");
}

/// Signs tokens that the registry trusts, for those who say who they are.
struct TokenServer {
    address: String,
    certificate: String,
    /// Request lines, with the body of forms.
    asked: Arc<std::sync::Mutex<Vec<String>>>,
}

impl TokenServer {
    async fn start() -> Self {
        use base64::Engine;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let made = rcgen::generate_simple_self_signed(["tokens".to_owned()]).unwrap();
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = made.signing_key.serialize_der();
        let key = ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &random).unwrap();
        let header =
            serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(made.cert.der())]});
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = TokenServer {
            address: listener.local_addr().unwrap().to_string(),
            certificate: made.cert.pem(),
            asked: Arc::default(),
        };
        let asked = server.asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut text, mut chunk) = (String::new(), [0; 4096]);
                let length = |text: &str| {
                    let line = text.lines().find_map(|l| {
                        l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned)
                    });
                    line.map_or(0, |n| n.trim().parse::<usize>().unwrap())
                };
                let body = loop {
                    let n = stream.read(&mut chunk).await.unwrap();
                    text.push_str(&String::from_utf8_lossy(&chunk[..n]));
                    match text.split_once("\r\n\r\n") {
                        Some((head, body)) if body.len() >= length(head) => break body.to_owned(),
                        _ => assert!(n > 0, "{text}"),
                    }
                };
                let line = text.lines().next().unwrap().to_owned();
                let basic = format!("authorization: Basic {}", STANDARD.encode("tester:secret"));
                let known = text.lines().any(|l| l.eq_ignore_ascii_case(&basic))
                    || line.starts_with("POST ")
                        && body.contains("grant_type=refresh_token")
                        && body.contains("refresh_token=refresh%2Bme");
                let query = line.split([' ', '?']).nth(2).unwrap_or_default();
                let parameters = format!("{query}&{body}").replace("%3A", ":").replace("%2C", ",");
                let scope = parameters.split('&').find_map(|p| p.strip_prefix("scope=")).unwrap_or_default();
                let access: Vec<_> = scope
                    .split_once("repository:")
                    .and_then(|(_, rest)| rest.rsplit_once(':'))
                    .map(|(name, actions)| {
                        serde_json::json!({"type": "repository", "name": name.replace("%2F", "/"),
                            "actions": actions.split(',').collect::<Vec<_>>()})
                    })
                    .into_iter()
                    .collect();
                asked.lock().unwrap().push(format!("{line} {body}"));
                let now = skeg_base::Clock::system().now().as_second();
                let claims = serde_json::json!({"iss": "test-issuer", "sub": "tester", "aud": "test-registry",
                    "exp": now + 300, "nbf": now - 10, "iat": now, "jti": "1", "access": access});
                let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
                let signed = format!("{}.{}", part(&header), part(&claims));
                let signature = key.sign(&random, signed.as_bytes()).unwrap();
                let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
                let field = if line.starts_with("POST ") { "access_token" } else { "token" };
                let (status, answer) = match known {
                    true => ("200 OK", serde_json::json!({field: token}).to_string()),
                    false => ("401 Unauthorized", "{}".to_owned()),
                };
                let text = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                    answer.len()
                );
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        server
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_where_the_registry_says() {
    let tokens = TokenServer::start().await;
    let registry = Registry::with(|dir| {
        let bundle = dir.join("tokens.pem");
        std::fs::write(&bundle, &tokens.certificate).unwrap();
        format!(
            "auth:\n  token:\n    realm: http://{}/token\n    service: test-registry\n    issuer: test-issuer\n    rootcertbundle: {}\n",
            tokens.address,
            bundle.display()
        )
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    let push = (registry.address.clone(), dir.path().join("oci"));
    // skopeo talks to the token server of this runtime.
    let registry = tokio::task::spawn_blocking(move || {
        registry.push(&push.1, "team/app:v1", Some("tester:secret"));
        registry
    })
    .await
    .unwrap();
    let name = format!("{}/team/app:v1", registry.address);
    let by_password = Credential {
        server: registry.address.clone(),
        username: "tester".into(),
        password: "secret".into(),
        ..Default::default()
    };
    let by_refresh_token = Credential {
        server: registry.address.clone(),
        identity_token: "refresh+me".into(),
        ..Default::default()
    };
    let wrong = Credential { password: "wrong".into(), ..by_password.clone() };
    for (credentials, welcome) in
        [(vec![], false), (vec![wrong], false), (vec![by_password], true), (vec![by_refresh_token], true)]
    {
        let own = tempfile::tempdir().unwrap();
        tokens.asked.lock().unwrap().clear();
        let result = open(own.path(), "").pull(&name, &credentials, None).await;
        match result {
            Ok(image) => assert!(welcome && image.layers.len() == 3),
            Err(error) => assert!(!welcome && matches!(error, Error::Unauthorized(_)), "{error}"),
        }
        let asked = tokens.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 1, "a token is asked for once a pull: {asked:?}");
        assert!(
            asked[0].contains("service=test-registry") && asked[0].contains("team/app:pull"),
            "{asked:?}"
        );
        assert!(!asked[0].split("HTTP/1.1").next().unwrap().contains("refresh"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_trusted_as_configured() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut ca = PathBuf::new();
    let registry = Registry::with(|dir| {
        ca = dir.join("cert.pem");
        std::fs::write(&ca, made.cert.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        format!("  tls:\n    certificate: {}\n    key: {}\n", ca.display(), dir.join("key.pem").display())
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    registry.push(&dir.path().join("oci"), "app:v1", None);
    let name = format!("{}/app:v1", registry.address);
    for (tls, trusted) in [
        ("{}".to_owned(), false),
        (format!("{{ca_file: '{}'}}", ca.display()), true),
        ("{insecure_skip_verify: true}".to_owned(), true),
    ] {
        let own = tempfile::tempdir().unwrap();
        let yaml = format!("configs: {{'{}': {{tls: {tls}}}}}", registry.address);
        match open(own.path(), &yaml).pull(&name, &[], None).await {
            Ok(_) => assert!(trusted, "{tls}"),
            Err(error) => assert!(!trusted && matches!(error, Error::Network(_)), "{tls}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_read_by_platform() {
    let registry = Registry::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("oci");
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    // Two images, and an index that offers them to two machines, the other one first.
    let mut entries = Vec::new();
    for (file, architecture) in [("other", "s390x"), ("ours", own)] {
        layout(&oci, None, &[tar(&[(file, b"1")])]);
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(oci.join("index.json")).unwrap()).unwrap();
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let push = |entries: &[serde_json::Value], name: &str| {
        let media = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": media, "manifests": entries});
        let (bytes, digest) = (index.to_string(), digest(index.to_string().as_bytes()));
        std::fs::write(oci.join("blobs").join(digest.replace(':', "/")), &bytes).unwrap();
        let top = serde_json::json!({"schemaVersion": 2,
            "manifests": [{"mediaType": media, "digest": digest, "size": bytes.len()}]});
        std::fs::write(oci.join("index.json"), top.to_string()).unwrap();
        registry.push(&oci, name, None);
    };
    push(&entries, "app:all");
    let images = open(dir.path(), "");
    let image = images.pull(&format!("{}/app:all", registry.address), &[], None).await.unwrap();
    assert!(image.layers[0].join("ours").exists());
    // The index's digest is the image's, not that of the manifest in it.
    let chosen = entries[1]["digest"].as_str().unwrap();
    assert!(!image.repo_digests[0].ends_with(chosen), "{:?}", image.repo_digests);
    // The layout itself can be imported just so.
    let other = tempfile::tempdir().unwrap();
    let imported = open(other.path(), "").import(&oci, Some("x.example/app:1")).await.unwrap();
    assert!(imported[0].layers[0].join("ours").exists());

    push(&entries[..1], "app:foreign");
    let result = images.pull(&format!("{}/app:foreign", registry.address), &[], None).await;
    assert!(matches!(result, Err(Error::NoPlatform(_))), "{result:?}");
}

/// A small file system that the test can make larger.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "small"]).arg(&at).status();
        assert!(done.unwrap().success());
        SmallDisk(at)
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_a_pull_and_leaves_nothing() {
    let registry = Registry::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("oci"), None, &three_layers());
    registry.push(&dir.path().join("oci"), "app:v1", None);
    let blob = walk(&dir.path().join("oci/blobs")).into_iter().map(|(size, _)| size).max().unwrap();
    let name = format!("{}/app:v1", registry.address);
    // Too small for the download; large enough for that, but not for its content beside it.
    for room in [blob / 2, blob + blob / 2] {
        let data = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(data.path().join("images"), &format!("size={room}"));
        let images = open(data.path(), "");
        let result = images.pull(&name, &[], None).await;
        let Err(Error::Io { what, source }) = &result else { panic!("{result:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{what}");
        assert!(what.contains(data.path().to_str().unwrap()), "the path is told: {what}");
        assert!(images.list().unwrap().is_empty());
        // Layers beside it may still be on their way out.
        until("the work is cleared up", || scratch_files(data.path()) == 0).await;
        disk.resize("100m");
        assert_eq!(images.pull(&name, &[], None).await.unwrap().layers.len(), 3);
        drop(images);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_not_imported() {
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("oci");
    layout(&oci, Some("good:1"), &three_layers()[..1]);
    let archive = |name: &str, change: &dyn Fn(&Path)| -> PathBuf {
        let copy = dir.path().join(name);
        assert!(Command::new("cp").arg("-r").arg(&oci).arg(&copy).status().unwrap().success());
        change(&copy);
        let to = dir.path().join(format!("{name}.tar"));
        assert!(
            Command::new("tar").arg("-C").arg(&copy).arg("-cf").arg(&to).arg(".").status().unwrap().success()
        );
        to
    };
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let good = archive("good", &|_| ());
    let whole = std::fs::read(&good).unwrap();
    let blobs = |copy: &Path| {
        let mut found = walk(&copy.join("blobs"));
        found.sort();
        found
    };
    let index =
        |text: &'static str| move |copy: &Path| std::fs::write(copy.join("index.json"), text).unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let bad = [
        file("empty", b""),
        file("text", "root:x:0:0:secret:/root:/bin/sh\n".repeat(100).as_bytes()),
        file(
            "noise",
            &(0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>(),
        ),
        file("cut", &whole[..whole.len() / 2]),
        file("gzip", &[0x1f, 0x8b, 8, 0, 1, 2, 3]),
        file("zstd", &[0x28, 0xb5, 0x2f, 0xfd, 9, 9, 9]),
        archive("no-index", &|copy| std::fs::remove_file(copy.join("index.json")).unwrap()),
        archive("no-json", &index("{{{")),
        archive("no-digest", &index(r#"{"manifests":[{"digest":"sha256:../../../../secret","size":1}]}"#)),
        archive(
            "no-blob",
            &index(
                r#"{"manifests":[{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1}]}"#,
            ),
        ),
        archive("changed", &|copy| {
            let (_, layer) = blobs(copy).pop().unwrap();
            let mut bytes = std::fs::read(&layer).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(layer, bytes).unwrap();
        }),
        archive("a-link-out", &|copy| {
            let (_, layer) = blobs(copy).pop().unwrap();
            std::fs::remove_file(&layer).unwrap();
            std::os::unix::fs::symlink(&secret, layer).unwrap();
        }),
    ];
    for path in bad {
        let data = tempfile::tempdir().unwrap();
        let images = open(data.path(), "");
        let result = images.import(&path, None).await;
        let Err(error) = result else { panic!("{} was imported", path.display()) };
        let error = error.to_string();
        assert!(!error.is_empty() && !error.contains("secret:"), "{error}");
        assert!(images.list().unwrap().is_empty());
        nothing_is_left(&images, data.path()).await;
    }
    let data = tempfile::tempdir().unwrap();
    assert_eq!(open(data.path(), "").import(&good, None).await.unwrap().len(), 1);
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
