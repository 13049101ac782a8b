//! Registries that lie, break off, send elsewhere, or answer with too much.

use super::{digest, layers_on_disk, open, scratch_files, tar, until};
use serde_json::{Value, json};
use skeg_images::{Error, Image};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An answer: its status line and headers, and its body, which may break off.
#[derive(Clone)]
struct Reply {
    head: String,
    body: Vec<u8>,
    sent: usize,
}

impl Reply {
    fn new(head: &str, body: &[u8]) -> Self {
        Reply { head: head.to_owned(), body: body.to_vec(), sent: body.len() }
    }

    fn ok(body: &[u8]) -> Self {
        Reply::new("200 OK", body)
    }

    /// Breaks off after so many bytes.
    fn cut(self, sent: usize) -> Self {
        Reply { sent, ..self }
    }
}

/// Answers requests for a path one after the other as it was told; the last answer stays.
struct Fake {
    address: String,
    replies: Arc<Mutex<BTreeMap<String, Vec<Reply>>>>,
    /// Heads of requests, in small letters but for the first line.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let fake = Fake { address, replies: Arc::default(), asked: Arc::default() };
        let (replies, asked) = (fake.replies.clone(), fake.asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (replies, asked) = (replies.clone(), asked.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let (line, headers) = head.split_once("\r\n").unwrap();
                    let mut words = line.split(' ');
                    let (method, target) = (words.next().unwrap(), words.next().unwrap());
                    let path = target.split('?').next().unwrap();
                    asked.lock().unwrap().push(format!("{line}\n{}", headers.to_ascii_lowercase()));
                    let reply = {
                        let mut replies = replies.lock().unwrap();
                        match replies.get_mut(path) {
                            Some(list) if list.len() > 1 && method == "GET" => list.remove(0),
                            Some(list) => list[0].clone(),
                            None => Reply::new("404 Not Found", b""),
                        }
                    };
                    let text = format!(
                        "HTTP/1.1 {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                        reply.head,
                        reply.body.len()
                    );
                    let _ = stream.write_all(text.as_bytes()).await;
                    if method == "GET" {
                        let _ = stream.write_all(&reply.body[..reply.sent]).await;
                    }
                });
            }
        });
        fake
    }

    fn answer(&self, path: &str, replies: &[Reply]) {
        self.replies.lock().unwrap().insert(format!("/v2/app/{path}"), replies.to_vec());
    }

    fn asked_for(&self, part: &str) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|head| head.contains(part)).cloned().collect()
    }

    async fn pull_with(&self, registries: &str) -> Result<Image, Error> {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path(), registries);
        let result = images.pull(&format!("{}/app:1", self.address), &[], None).await;
        if result.is_err() {
            assert!(images.list().unwrap().is_empty());
            until("nothing is left", || {
                images.collect().unwrap();
                layers_on_disk(dir.path()) == 0 && scratch_files(dir.path()) == 0
            })
            .await;
        }
        result
    }

    async fn pull(&self) -> Result<Image, Error> {
        self.pull_with("").await
    }
}

/// An image of one layer, in parts that a test can change.
struct Parts {
    layer: Vec<u8>,
    config: Value,
    manifest: Value,
}

impl Parts {
    fn new() -> Self {
        let layer = tar(&[("file", &[7; 100_000])]);
        let mut parts = Parts { config: Value::Null, manifest: Value::Null, layer };
        parts.config = json!({"rootfs": {"type": "layers", "diff_ids": [digest(&parts.layer)]}});
        parts.describe();
        parts
    }

    /// Makes the manifest true.
    fn describe(&mut self) {
        let of = |bytes: &[u8]| json!({"digest": digest(bytes), "size": bytes.len()});
        let config = of(self.config.to_string().as_bytes());
        self.manifest = json!({"schemaVersion": 2, "config": config, "layers": [of(&self.layer)]});
    }

    fn blob(&self) -> String {
        format!("blobs/{}", digest(&self.layer))
    }

    fn serve(&self, fake: &Fake) {
        let config = self.config.to_string();
        fake.answer("manifests/1", &[Reply::ok(self.manifest.to_string().as_bytes())]);
        fake.answer(&format!("blobs/{}", digest(config.as_bytes())), &[Reply::ok(config.as_bytes())]);
        fake.answer(&self.blob(), &[Reply::ok(&self.layer)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_says_of_an_image_is_checked() {
    let fake = Fake::start().await;
    let good = Parts::new();
    good.serve(&fake);
    assert_eq!(fake.pull().await.unwrap().layers.len(), 1);
    let differs = |result: Result<Image, Error>, part: &str| {
        let is = matches!(&result, Err(Error::DigestMismatch { what, .. }) if what == part);
        assert!(is, "{part}: {result:?}");
    };
    // Another manifest than the one that it named.
    let manifest = good.manifest.to_string();
    let named = format!("200 OK\r\ndocker-content-digest: {}", digest(b"another"));
    fake.answer("manifests/1", &[Reply::new(&named, manifest.as_bytes())]);
    fake.answer(&format!("manifests/{}", digest(b"another")), &[Reply::ok(manifest.as_bytes())]);
    differs(fake.pull().await, "manifest");
    // Another than the index has; its one entry names no platform.
    let entry = json!({"digest": digest(b"another"), "size": manifest.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    fake.answer("manifests/1", &[Reply::ok(index.as_bytes())]);
    differs(fake.pull().await, "manifest");
    // Another configuration.
    good.serve(&fake);
    let config = format!("blobs/{}", good.manifest["config"]["digest"].as_str().unwrap());
    let other = json!({"rootfs": good.config["rootfs"], "config": {"User": "0"}}).to_string();
    fake.answer(&config, &[Reply::ok(other.as_bytes())]);
    differs(fake.pull().await, "configuration");
    // Another content than the configuration has.
    let mut parts = Parts::new();
    parts.config["rootfs"]["diff_ids"] = json!([digest(b"another")]);
    parts.describe();
    parts.serve(&fake);
    differs(fake.pull().await, "unpacked layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_make_no_sense_are_refused() {
    let fake = Fake::start().await;
    let refused = async |parts: &Parts, why: &str| {
        parts.serve(&fake);
        let result = fake.pull().await;
        assert!(matches!(&result, Err(Error::Invalid(text)) if text.contains(why)), "{why}: {result:?}");
    };
    let mut parts = Parts::new();
    parts.config["rootfs"]["diff_ids"] = json!([]);
    parts.describe();
    refused(&parts, "1 layers, 0 diff ids").await;
    let mut parts = Parts::new();
    parts.manifest["layers"] = vec![parts.manifest["layers"][0].clone(); 501].into();
    refused(&parts, "more than 500 layers").await;
    let mut parts = Parts::new();
    parts.manifest["layers"][0]["digest"] = "sha256:../../x".into();
    refused(&parts, "digest \"sha256:../../x\"").await;
    // A document that goes on and on.
    let parts = Parts::new();
    parts.serve(&fake);
    let mut manifest = parts.manifest.to_string().into_bytes();
    manifest.resize((8 << 20) + 1, b' ');
    fake.answer("manifests/1", &[Reply::ok(&manifest)]);
    let result = fake.pull().await;
    assert!(matches!(&result, Err(Error::Network(_))), "{result:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_where_they_broke_off() {
    let fake = Fake::start().await;
    let parts = Parts::new();
    parts.serve(&fake);
    let manifest = Reply::ok(parts.manifest.to_string().as_bytes());
    let half = parts.layer.len() / 2;
    let part = Reply::new("206 Partial Content", &parts.layer[half..]);
    fake.answer(&parts.blob(), &[Reply::ok(&parts.layer).cut(half), part]);
    fake.answer("manifests/1", &[manifest.clone().cut(10), manifest]);
    fake.pull().await.unwrap();
    let asked = fake.asked_for(&parts.blob());
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(!asked[0].contains("range:") && asked[1].contains(&format!("range: bytes={half}-")), "{asked:?}");
    // Who does not know of ranges sends all of it again.
    let whole = Reply::ok(&parts.layer);
    fake.answer(&parts.blob(), &[whole.clone().cut(half), whole]);
    fake.pull().await.unwrap();
    // Who never gets to the end is given up.
    fake.answer(&parts.blob(), &[Reply::ok(&parts.layer).cut(half)]);
    let result = fake.pull().await;
    assert!(matches!(&result, Err(Error::Network(_))), "{result:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_stay_with_their_registry() {
    let (fake, store) = (Fake::start().await, Fake::start().await);
    let parts = Parts::new();
    parts.serve(&fake);
    let yaml = format!("configs: {{'{}': {{auth: {{auth: dGVzdGVyOnNlY3JldA==}}}}}}", fake.address);
    // The blob lies at the end of two redirections.
    let moved = |to: &str| Reply::new(&format!("307 Temporary Redirect\r\nlocation: {to}"), b"");
    fake.answer(&parts.blob(), &[moved("/v2/app/near")]);
    fake.answer("near", &[moved(&format!("http://{}/v2/app/far", store.address))]);
    store.answer("far", &[Reply::ok(&parts.layer)]);
    let config = format!("blobs/{}", parts.manifest["config"]["digest"].as_str().unwrap());
    let asks = Reply::new("401 Unauthorized\r\nwww-authenticate: Basic realm=\"x\"", b"");
    fake.answer(&config, &[asks, Reply::ok(parts.config.to_string().as_bytes())]);
    fake.pull_with(&yaml).await.unwrap();
    let near = fake.asked_for("/near");
    let basic = "authorization: basic dgvzdgvyonnly3jlda==";
    assert!(near[0].contains(basic), "{near:?}");
    let far = store.asked_for("/far");
    assert!(!far.is_empty() && far.iter().all(|head| !head.contains("authorization")), "{far:?}");

    // A mirror is told whose image it is asked for.
    let yaml = format!("mirrors: {{'{}': {{endpoint: ['http://{}']}}}}", fake.address, store.address);
    parts.serve(&store);
    fake.asked.lock().unwrap().clear();
    fake.pull_with(&yaml).await.unwrap();
    assert!(fake.asked.lock().unwrap().is_empty());
    let asked = store.asked_for("/v2/app/manifests");
    assert!(
        !asked.is_empty() && asked.iter().all(|h| h.contains(&format!("?ns={}", fake.address))),
        "{asked:?}"
    );
}
