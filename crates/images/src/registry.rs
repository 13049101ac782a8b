//! The registry side of a pull: OCI distribution API v2, with basic and token authentication,
//! redirects, bounded retries and errors told apart.

use crate::http_client::{HttpClient, client};
use crate::manifest::{ACCEPT, DOCUMENT_SIZE_MAX, Descriptor, digest_of};
use crate::registries::{Endpoint, Registries, Tls};
use crate::{Error, Reference, Result, io};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{
    ACCEPT as ACCEPT_HEADER, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use skeg_base::Backoff;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const TRIES_MAX: u32 = 4;
const REDIRECTS_MAX: u32 = 5;
/// A peer that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const WRITE_BUFFER: usize = 256 << 10;

/// Who to be at a registry, as a `.dockerconfigjson` entry says it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Credential {
    /// The entry's key: a host, `host/path`, or `https://index.docker.io/v1/`. `*.host` patterns
    /// match one label.
    pub server: String,
    pub username: String,
    pub password: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// The Secret that it is of, as `namespace/name/uid`; empty for the host's own.
    pub secret: String,
}

impl Credential {
    /// Whether it is meant for this image, as upstream's credential provider matches.
    pub(crate) fn is_for(&self, reference: &Reference) -> bool {
        let server = self.server.trim_start_matches("https://").trim_start_matches("http://");
        let (host, path) = server.split_once('/').unwrap_or((server, ""));
        let host =
            if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
        let path =
            path.trim_end_matches('/').trim_end_matches("v1").trim_end_matches("v2").trim_end_matches('/');
        let same_host = match host.split_once(':').is_some() == reference.registry.contains(':') {
            true => {
                let (a, b): (Vec<_>, Vec<_>) =
                    (host.split('.').collect(), reference.registry.split('.').collect());
                a.len() == b.len()
                    && a.iter().zip(b).all(|(pattern, part)| *pattern == "*" || *pattern == part)
            }
            false => false,
        };
        same_host
            && (path.is_empty()
                || reference.repository == path
                || reference.repository.starts_with(&format!("{path}/")))
    }

    /// What tells it from others: its Secret, and its content, which another Secret may have too.
    pub(crate) fn holders(&self) -> [String; 2] {
        let parts = [&self.username, &self.password, &self.identity_token].map(String::as_str);
        [format!("secret:{}", self.secret), digest_of(parts.join("\0").as_bytes())]
    }
}

/// Talks to registries; keeps connections and tokens.
pub struct Registry {
    registries: Registries,
    clients: Mutex<BTreeMap<Tls, HttpClient>>,
    /// `endpoint base + scope + credential` → header value. Bounded: cleared when full.
    tokens: Mutex<BTreeMap<String, String>>,
}

const TOKENS_MAX: usize = 256;

/// A place that answered for an image, and who we are there.
#[derive(Clone)]
pub struct Source {
    endpoint: Endpoint,
    credential: Option<Credential>,
}

impl Source {
    /// Who may use what came from there without asking: everybody (`None`) where nobody's Secret was
    /// needed.
    pub(crate) fn holders(&self) -> Option<BTreeSet<String>> {
        let credential = self.credential.as_ref().filter(|credential| !credential.secret.is_empty())?;
        Some(credential.holders().into())
    }
}

impl Registry {
    pub fn new(registries: Registries) -> Self {
        Registry { registries, clients: Mutex::default(), tokens: Mutex::default() }
    }

    /// Finds the first endpoint and credential that know the reference; gives the digest of its
    /// manifest.
    pub async fn locate(
        &self,
        reference: &Reference,
        credentials: &[Credential],
    ) -> Result<(Source, Option<String>)> {
        let mut last = Error::NotFound(reference.to_string());
        for endpoint in self.registries.endpoints(&reference.registry, &reference.repository) {
            let mut tries: Vec<Option<Credential>> =
                credentials.iter().filter(|c| c.is_for(reference)).cloned().map(Some).collect();
            let configured = self.registries.auth(&endpoint.host, &reference.registry).map(|auth| {
                let mut credential = Credential {
                    server: endpoint.host.clone(),
                    username: auth.username.clone(),
                    password: auth.password.clone(),
                    identity_token: auth.identity_token.clone(),
                    secret: String::new(),
                };
                if let Some((user, password)) = auth.decoded() {
                    (credential.username, credential.password) = (user, password);
                }
                credential
            });
            tries.extend(configured.map(Some));
            if tries.is_empty() {
                tries.push(None);
            }
            for credential in tries {
                let source = Source { endpoint: endpoint.clone(), credential };
                let path = format!("manifests/{}", reference.target());
                match self.request(&source, Method::HEAD, &path, None).await {
                    Ok(response) => {
                        let digest =
                            response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
                        return Ok((
                            source,
                            digest.filter(|d| crate::reference::valid_digest(d)).map(str::to_owned),
                        ));
                    }
                    // What the registry itself says is more telling than a mirror's answer, and a
                    // refusal more than an absence.
                    Err(error) => last = error,
                }
            }
        }
        Err(match last {
            Error::NotFound(_) => Error::NotFound(reference.to_string()),
            Error::Unauthorized(why) => Error::Unauthorized(format!("{reference}: {why}")),
            other => other,
        })
    }

    pub async fn manifest(&self, source: &Source, target: &str) -> Result<Bytes> {
        self.document(source, &format!("manifests/{target}")).await
    }

    pub async fn config(&self, source: &Source, digest: &str) -> Result<Bytes> {
        self.document(source, &format!("blobs/{digest}")).await
    }

    async fn document(&self, source: &Source, path: &str) -> Result<Bytes> {
        let mut backoff = retries();
        loop {
            let result = async {
                let response = self.request(source, Method::GET, path, None).await?;
                let body = http_body_util::Limited::new(response.into_body(), DOCUMENT_SIZE_MAX as usize);
                let body =
                    tokio::time::timeout(SILENCE_MAX, body.collect()).await.map_err(|_| silent(source))?;
                Ok(body.map_err(|e| network(source, &e))?.to_bytes())
            };
            match result.await {
                Err(Error::Network(_)) if backoff.failures() + 1 < TRIES_MAX => {
                    tokio::time::sleep(backoff.next()).await
                }
                other => return other,
            }
        }
    }

    /// Downloads a blob into `to`, verified, resuming where a connection broke off.
    pub async fn blob(
        &self,
        source: &Source,
        blob: &Descriptor,
        to: &Path,
        progress: impl Fn(u64),
    ) -> Result<()> {
        let file = tokio::fs::File::create(to).await.map_err(io(format!("create {}", to.display())))?;
        let mut file = tokio::io::BufWriter::with_capacity(WRITE_BUFFER, file);
        let (mut hash, mut done) = (Sha256::new(), 0u64);
        let mut backoff = retries();
        loop {
            match self.blob_part(source, blob, &mut file, &mut hash, &mut done, &progress).await {
                Ok(()) => break,
                Err(Error::Network(why)) if backoff.failures() + 1 < TRIES_MAX => {
                    tracing::debug!(blob.digest, done, why, "resuming a blob");
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(error) => return Err(error.inside(to)),
            }
        }
        file.flush().await.map_err(io(format!("write {}", to.display())))?;
        let actual = crate::manifest::digest_text(&hash.finalize());
        if actual == blob.digest {
            return Ok(());
        }
        Err(Error::DigestMismatch { what: "blob".into(), expected: blob.digest.clone(), actual })
    }

    async fn blob_part(
        &self,
        source: &Source,
        blob: &Descriptor,
        file: &mut (impl tokio::io::AsyncWrite + Unpin),
        hash: &mut Sha256,
        done: &mut u64,
        progress: &impl Fn(u64),
    ) -> Result<()> {
        let range = (*done > 0).then(|| format!("bytes={done}-"));
        let response =
            self.request(source, Method::GET, &format!("blobs/{}", blob.digest), range.as_deref()).await?;
        // A server that ignores the range sends everything again: skip what is here already.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { *done };
        let mut body = response.into_body();
        loop {
            let frame = tokio::time::timeout(SILENCE_MAX, body.frame()).await.map_err(|_| silent(source))?;
            let Some(frame) = frame else { return Ok(()) };
            let Ok(mut data) = frame.map_err(|e| network(source, &e))?.into_data() else { continue };
            let drop = skip.min(data.len() as u64);
            skip -= drop;
            let data = data.split_off(drop as usize);
            if *done + data.len() as u64 > blob.size {
                // Not to be found out only once the disk is full.
                let why = format!("{} is longer than the {} bytes of its descriptor", blob.digest, blob.size);
                return Err(Error::Invalid(why));
            }
            hash.update(&data);
            file.write_all(&data).await.map_err(io("write blob"))?;
            *done += data.len() as u64;
            progress(*done);
        }
    }

    /// One request, answered with success, following redirects and answering one challenge.
    async fn request(
        &self,
        source: &Source,
        method: Method,
        path: &str,
        range: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let endpoint = &source.endpoint;
        let mut url = format!("{}/{}/{path}", endpoint.base, endpoint.repository);
        if let Some(registry) = &endpoint.mirror_of {
            url = format!("{url}?ns={registry}");
        }
        let token_key = format!("{}|{}|{:?}", endpoint.base, endpoint.repository, source.credential);
        let mut authorization = self.tokens.lock().get(&token_key).cloned();
        let mut challenged = false;
        let mut redirects = 0;
        loop {
            let own = url.starts_with(&endpoint.base);
            let response = self
                .send(source, &method, &url, authorization.as_deref().filter(|_| own), range, None)
                .await?;
            let status = response.status();
            match status {
                _ if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if !challenged && own => {
                    challenged = true;
                    let challenges: Vec<String> = response
                        .headers()
                        .get_all(WWW_AUTHENTICATE)
                        .iter()
                        .filter_map(|v| v.to_str().ok().map(str::to_owned))
                        .collect();
                    let Some(header) = self.answer(source, &challenges).await? else {
                        return Err(Error::Unauthorized("authorization required".into()));
                    };
                    let mut tokens = self.tokens.lock();
                    if tokens.len() >= TOKENS_MAX {
                        tokens.clear();
                    }
                    tokens.insert(token_key.clone(), header.clone());
                    authorization = Some(header);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    self.tokens.lock().remove(&token_key);
                    return Err(Error::Unauthorized(format!("{} answered {status}", endpoint.host)));
                }
                StatusCode::NOT_FOUND => return Err(Error::NotFound(url)),
                _ if status.is_redirection() && redirects < REDIRECTS_MAX => {
                    redirects += 1;
                    let location =
                        response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
                    url = joined(&url, location)
                        .ok_or_else(|| network(source, &"redirect without a usable location"))?;
                }
                _ => return Err(network(source, &format!("unexpected status {status} from {method} {url}"))),
            }
        }
    }

    async fn send(
        &self,
        source: &Source,
        method: &Method,
        url: &str,
        authorization: Option<&str>,
        range: Option<&str>,
        form: Option<String>,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(USER_AGENT, concat!("skeg/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT_HEADER, format!("{ACCEPT}, */*"));
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(value) = range {
            request = request.header(RANGE, value);
        }
        if form.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request.body(Full::from(form.unwrap_or_default())).map_err(|e| network(source, &e))?;
        let http = self.client(&source.endpoint.tls)?;
        let answer =
            tokio::time::timeout(SILENCE_MAX, http.request(request)).await.map_err(|_| silent(source))?;
        answer.map_err(|e| network(source, &with_causes(&e)))
    }

    fn client(&self, tls: &Tls) -> Result<HttpClient> {
        let mut clients = self.clients.lock();
        if let Some(found) = clients.get(tls) {
            return Ok(found.clone());
        }
        let made = client(tls)?;
        clients.insert(tls.clone(), made.clone());
        Ok(made)
    }

    /// The `Authorization` value that answers these challenges, if we have one.
    async fn answer(&self, source: &Source, challenges: &[String]) -> Result<Option<String>> {
        let basic = source.credential.as_ref().filter(|c| !c.username.is_empty());
        for challenge in challenges {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let parameters = parameters(rest);
                return self.token(source, &parameters).await.map(|token| Some(format!("Bearer {token}")));
            }
            if scheme.eq_ignore_ascii_case("basic") {
                return Ok(basic.map(basic_header));
            }
        }
        Ok(None)
    }

    /// Fetches a token (distribution spec, "Token Authentication"; with a refresh token "OAuth2 Token
    /// Authentication").
    async fn token(&self, source: &Source, parameters: &BTreeMap<String, String>) -> Result<String> {
        let realm =
            parameters.get("realm").ok_or_else(|| network(source, &"bearer challenge without realm"))?;
        let mut query = Vec::new();
        if let Some(service) = parameters.get("service") {
            query.push(format!("service={}", escape(service)));
        }
        let scope = format!("repository:{}:pull", source.endpoint.repository);
        query.push(format!("scope={}", escape(parameters.get("scope").unwrap_or(&scope))));
        let credential = source.credential.as_ref();
        let response = match credential.map(|c| &c.identity_token).filter(|token| !token.is_empty()) {
            // A refresh token is given up in a form, never in an address that servers log.
            Some(refresh) => {
                query.push("grant_type=refresh_token".to_owned());
                query.push("client_id=skeg".to_owned());
                query.push(format!("refresh_token={}", escape(refresh)));
                self.send(source, &Method::POST, realm, None, None, Some(query.join("&"))).await?
            }
            None => {
                let joint = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{joint}{}", query.join("&"));
                let basic = credential.filter(|c| !c.username.is_empty()).map(basic_header);
                self.send(source, &Method::GET, &url, basic.as_deref(), None, None).await?
            }
        };
        let status = response.status();
        if !status.is_success() {
            let why = format!("failed to fetch a token: {realm} answered {status}");
            return Err(if status.is_server_error() {
                network(source, &why)
            } else {
                Error::Unauthorized(why)
            });
        }
        let body = http_body_util::Limited::new(response.into_body(), DOCUMENT_SIZE_MAX as usize);
        let body = body.collect().await.map_err(|e| network(source, &e))?.to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&body).map_err(|e| network(source, &e))?;
        let token = value.get("token").or_else(|| value.get("access_token")).and_then(|t| t.as_str());
        token.map(str::to_owned).ok_or_else(|| network(source, &"token answer without token"))
    }
}

fn retries() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}

fn network(source: &Source, why: &dyn std::fmt::Display) -> Error {
    Error::Network(format!("{}: {why}", source.endpoint.host))
}

fn silent(source: &Source) -> Error {
    network(source, &"timed out waiting for data")
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn basic_header(c: &Credential) -> String {
    format!("Basic {}", BASE64.encode(format!("{}:{}", c.username, c.password)))
}

/// `realm="…",service="…"` of a challenge.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.find(',').map_or((after, ""), |at| after.split_at(at)),
        };
        out.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        rest = next.trim_start_matches([',', ' ']);
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn joined(from: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let base: Uri = from.parse().ok()?;
    location.starts_with('/').then(|| {
        format!(
            "{}://{}{location}",
            base.scheme_str().unwrap_or("https"),
            base.authority().map_or("", |a| a.as_str())
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let found = parameters(
            r#"realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(found["realm"], "https://auth.docker.io/token");
        assert_eq!(found["scope"], "repository:a/b:pull,push");
    }

    #[test]
    fn credentials_match_as_upstreams() {
        let image = Reference::parse("registry.example.com/team/app").unwrap();
        for (server, matches) in [
            ("registry.example.com", true),
            ("https://registry.example.com/v1/", true),
            ("registry.example.com/team", true),
            ("registry.example.com/te", false),
            ("*.example.com", true),
            ("example.com", false),
            ("registry.example.com:443", false),
        ] {
            let credential = Credential { server: server.into(), ..Default::default() };
            assert_eq!(credential.is_for(&image), matches, "{server}");
        }
        let hub = Credential { server: "https://index.docker.io/v1/".into(), ..Default::default() };
        assert!(hub.is_for(&Reference::parse("nginx").unwrap()));
    }
}
