//! What images are pulled from: a real registry, and the server that issues tokens for it.

use crate::cluster::{ends_with_us, free_port, text};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Debian's registry on a loopback port.
pub struct Registry {
    child: Child,
    pub port: u16,
    log: PathBuf,
}

impl Registry {
    /// `auth` is the registry's own setting of that name; empty: everybody may push and pull.
    pub fn start(directory: &Path, auth: &str) -> Result<Self> {
        let port = free_port()?;
        let (config, log) = (directory.join("registry.yml"), directory.join("registry.log"));
        let storage = directory.join("registry");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{accesslog: {{disabled: false}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n{auth}\n",
                storage.display()
            ),
        )?;
        let mut child = ends_with_us(Command::new("docker-registry").arg("serve").arg(&config))
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(Stdio::piped())
            .spawn()
            .context("docker-registry: install Debian's package")?;
        let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
        let registry = Registry { child, port, log };
        let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        ensure!(listens, "the registry does not listen on port {port}");
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(registry)
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A mirror `mirrored.example` in front of it shows that mirrors work.
    pub fn registries_yaml(&self) -> String {
        format!("mirrors:\n  mirrored.example:\n    endpoint: [\"http://{}\"]\n", self.host())
    }

    /// Pushes an OCI archive under a name, with `user:password` where one is asked for.
    pub fn push(&self, archive: &Path, name: &str, credentials: Option<&str>) -> Result<()> {
        let source = format!("oci-archive:{}", archive.display());
        let target = format!("docker://{}/{name}", self.host());
        let credentials = credentials.map(|pair| format!("--dest-creds={pair}"));
        let mut args = vec!["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        args.extend(credentials.as_deref());
        args.extend([source.as_str(), &target]);
        text(&args, &Command::new("skopeo").args(&args).output()?).map(|_| ())
    }

    /// Makes an index of images that were pushed under tags of one repository, with the
    /// architecture that each is said to be for; `name` is `repository:tag`.
    pub fn push_index(&self, name: &str, images: &[(&str, &str)]) -> Result<()> {
        let (repository, tag) = name.split_once(':').context("a name with a tag")?;
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let mut entries = Vec::new();
        for (tag, architecture) in images {
            let path = format!("/v2/{repository}/manifests/{tag}");
            let head = self.send("HEAD", &path, &format!("Accept: {manifest}\r\n"), "")?;
            let field = |name: &str| {
                let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
                let value = line.and_then(|line| line.split_once(": "));
                value.map(|(_, value)| value.trim().to_owned()).with_context(|| format!("{path}: {head}"))
            };
            entries.push(json!({
                "mediaType": manifest, "digest": field("docker-content-digest:")?,
                "size": field("content-length:")?.parse::<u64>()?,
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = "application/vnd.oci.image.index.v1+json";
        let body = json!({"schemaVersion": 2, "mediaType": index, "manifests": entries}).to_string();
        let headers = format!("Content-Type: {index}\r\nContent-Length: {}\r\n", body.len());
        let path = format!("/v2/{repository}/manifests/{tag}");
        let said = self.send("PUT", &path, &headers, &body)?;
        ensure!(said.starts_with("HTTP/1.1 201 "), "{path}: {said}");
        Ok(())
    }

    /// One request, for what skopeo cannot do.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let host = self.host();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// How many blobs of a repository were asked for since the registry started.
    pub fn blob_fetches(&self, repository: &str) -> Result<usize> {
        let log = std::fs::read_to_string(&self.log)?;
        Ok(log.matches(&format!("\"GET /v2/{repository}/blobs/")).count())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Issues the tokens that a registry asks its clients to fetch, to those who know the password
/// (distribution.github.io/distribution/spec/auth/token).
pub struct Tokens {
    port: u16,
    certificate: PathBuf,
    issued: Arc<AtomicUsize>,
}

/// Who the tokens are from, and for which registry.
const ISSUER: &str = "tokens";
const SERVICE: &str = "registry";
const TOKEN_LIFE_S: i64 = 300;

impl Tokens {
    /// `user` is `name:password`. The server ends with the suite.
    pub fn start(directory: &Path, user: &str) -> Result<Self> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let signed = rcgen::CertificateParams::new(vec![ISSUER.to_owned()])?.self_signed(&key)?;
        let certificate = directory.join("tokens.pem");
        std::fs::write(&certificate, signed.pem())?;
        let random = SystemRandom::new();
        let pkcs8 = key.serialize_der();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &random)
            .map_err(|error| anyhow::anyhow!("the key of the tokens: {error}"))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let tokens = Tokens { port: listener.local_addr()?.port(), certificate, issued: Arc::new(0.into()) };
        let issuer = Issuer {
            key,
            random,
            chain: STANDARD.encode(signed.der()),
            credentials: format!("Basic {}", STANDARD.encode(user)),
            issued: tokens.issued.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A client that went away asks again.
                let _ = issuer.answer(stream);
            }
        });
        Ok(tokens)
    }

    /// The setting of a registry that sends its clients here.
    pub fn auth(&self) -> String {
        format!(
            "auth: {{token: {{realm: \"http://127.0.0.1:{}/token\", service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}}}",
            self.port,
            self.certificate.display()
        )
    }

    /// How many tokens were issued.
    pub fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }
}

struct Issuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    chain: String,
    credentials: String,
    issued: Arc<AtomicUsize>,
}

impl Issuer {
    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().context("a request")??;
        let mut knows = false;
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let header = line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
            knows |= header.is_some_and(|(_, value)| value == self.credentials);
        }
        let (status, body) = if knows {
            self.issued.fetch_add(1, Ordering::SeqCst);
            ("200 OK", json!({"token": self.token(&first)?, "expires_in": TOKEN_LIFE_S}))
        } else {
            ("401 Unauthorized", json!({"errors": [{"code": "UNAUTHORIZED"}]}))
        };
        let body = body.to_string();
        let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        Ok(write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{head}\r\n{body}")?)
    }

    /// For what the request line asks: `GET /token?scope=repository:NAME:ACTIONS&… HTTP/1.1`.
    fn token(&self, line: &str) -> Result<String> {
        let target = line.split(' ').nth(1).unwrap_or_default();
        let target = target.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let scopes = target.split(['?', '&']).filter_map(|part| part.strip_prefix("scope="));
        let access = scopes.filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
        });
        let now = skeg_base::Clock::system().now().as_second();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.chain]});
        let claims = json!({
            "iss": ISSUER, "sub": "tester", "aud": SERVICE, "jti": self.issued.load(Ordering::SeqCst).to_string(),
            "iat": now, "nbf": now - 10, "exp": now + TOKEN_LIFE_S, "access": access.collect::<Vec<_>>(),
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|_| anyhow::anyhow!("a token could not be signed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
