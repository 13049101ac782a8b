//! `registries.yaml`: mirrors, credentials and TLS settings per registry host, in the form k3s
//! gave it.

use crate::reference::DEFAULT_REGISTRY;
use crate::{Error, Result, io};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, HostConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    endpoint: Vec<String>,
    /// Regular expression → replacement, for the repository name.
    rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostConfig {
    auth: Option<Auth>,
    tls: Option<Tls>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Auth {
    pub username: String,
    pub password: String,
    /// base64 of `username:password`.
    pub auth: String,
    pub identity_token: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

impl Auth {
    /// User and password of `auth`.
    pub fn decoded(&self) -> Option<(String, String)> {
        let decoded = BASE64.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8_lossy(&decoded);
        text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
    }
}

/// One place to ask for an image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    /// `http://127.0.0.1:5000/v2`, without a slash at its end.
    pub base: String,
    pub host: String,
    pub repository: String,
    pub tls: Tls,
    /// The registry this endpoint mirrors, absent for the registry itself.
    pub mirror_of: Option<String>,
}

impl Registries {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(io(format!("read {}", path.display())))?;
        Self::parse(&text).and_then(Self::with_files).map_err(|e| match e {
            Error::Config(why) => Error::Config(format!("{}: {why}", path.display())),
            other => other,
        })
    }

    /// Refuses what names files that cannot be read.
    fn with_files(self) -> Result<Self> {
        for (host, config) in &self.configs {
            let Some(tls) = &config.tls else { continue };
            for (key, file) in
                [("ca_file", &tls.ca_file), ("cert_file", &tls.cert_file), ("key_file", &tls.key_file)]
            {
                if let Some(file) = file
                    && let Err(error) = std::fs::read(file)
                {
                    return Err(Error::Config(format!(
                        "configs.{host:?}.tls.{key}: {}: {error}: name a file that can be read, or leave the key out",
                        file.display()
                    )));
                }
            }
        }
        Ok(self)
    }

    pub fn parse(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let parsed: Registries = serde_saphyr::from_str(text).map_err(|e| {
            Error::Config(e.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter))
        })?;
        for (host, config) in &parsed.configs {
            let Some(auth) = config.auth.as_ref().filter(|auth| !auth.auth.trim().is_empty()) else {
                continue;
            };
            if auth.decoded().is_none() {
                return Err(Error::Config(format!(
                    "configs.{host:?}.auth.auth is not the base64 of `username:password`: make it so, or give `username` and `password` instead"
                )));
            }
        }
        for mirror in parsed.mirrors.values() {
            for endpoint in &mirror.endpoint {
                if split_url(endpoint).is_none() {
                    return Err(Error::Config(format!(
                        "endpoint {endpoint:?} must begin with http:// or https://"
                    )));
                }
            }
            for pattern in mirror.rewrite.keys() {
                regex_lite::Regex::new(pattern)
                    .map_err(|e| Error::Config(format!("rewrite {pattern:?}: {e}")))?;
            }
        }
        Ok(parsed)
    }

    /// Where to look for `registry/repository`, in order: its mirrors, then the registry itself.
    pub(crate) fn endpoints(&self, registry: &str, repository: &str) -> Vec<Endpoint> {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut out: Vec<Endpoint> = Vec::new();
        for url in mirror.map_or(&[][..], |m| &m.endpoint) {
            let Some((scheme, host, path)) = split_url(url) else { continue };
            let path = path.trim_end_matches('/');
            let path = if path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
            out.push(Endpoint {
                base: format!("{scheme}://{host}{path}"),
                host: host.to_owned(),
                repository: mirror.map_or_else(|| repository.to_owned(), |m| m.rewritten(repository)),
                tls: self.tls(host),
                mirror_of: Some(registry.to_owned()),
            });
        }
        let host = if registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { registry };
        let scheme = if is_loopback(host) && self.configs.get(host).is_none_or(|c| c.tls.is_none()) {
            "http"
        } else {
            "https"
        };
        let own = Endpoint {
            base: format!("{scheme}://{host}/v2"),
            host: host.to_owned(),
            repository: repository.to_owned(),
            tls: self.tls(registry),
            mirror_of: None,
        };
        // A mirror entry that names the registry itself (to allow plain HTTP) replaces the default.
        if !out.iter().any(|e| e.host == own.host) {
            out.push(own);
        }
        out
    }

    pub(crate) fn auth(&self, host: &str, registry: &str) -> Option<&Auth> {
        [host, registry].iter().find_map(|name| self.configs.get(*name)).and_then(|c| c.auth.as_ref())
    }

    fn tls(&self, host: &str) -> Tls {
        self.configs.get(host).and_then(|c| c.tls.clone()).unwrap_or_default()
    }
}

impl Mirror {
    fn rewritten(&self, repository: &str) -> String {
        for (pattern, replacement) in &self.rewrite {
            if let Ok(regex) = regex_lite::Regex::new(pattern)
                && regex.is_match(repository)
            {
                return regex.replace(repository, replacement.as_str()).into_owned();
            }
        }
        repository.to_owned()
    }
}

fn split_url(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    (matches!(scheme, "http" | "https") && !host.is_empty()).then_some((scheme, host, path))
}

/// Registries on loopback speak plain HTTP unless TLS is configured for them.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(registries: &Registries, registry: &str, repository: &str) -> Vec<String> {
        registries
            .endpoints(registry, repository)
            .iter()
            .map(|e| format!("{}|{}", e.base, e.repository))
            .collect()
    }

    #[test]
    fn mirrors_come_first_and_loopback_is_plain() {
        let registries = Registries::parse(
            "mirrors:\n  docker.io:\n    endpoint: ['http://127.0.0.1:5000']\n    rewrite:\n      '^library/(.*)': 'own/$1'\n  \
             plain.example:\n    endpoint: ['http://plain.example']\n",
        )
        .unwrap();
        assert_eq!(
            bases(&registries, "docker.io", "library/nginx"),
            ["http://127.0.0.1:5000/v2|own/nginx", "https://registry-1.docker.io/v2|library/nginx"]
        );
        assert_eq!(bases(&registries, "localhost:5000", "a"), ["http://localhost:5000/v2|a"]);
        assert_eq!(bases(&registries, "plain.example", "a"), ["http://plain.example/v2|a"]);
        assert_eq!(bases(&registries, "[::1]:5000", "a"), ["http://[::1]:5000/v2|a"]);
        assert_eq!(bases(&registries, "quay.io", "a"), ["https://quay.io/v2|a"]);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(Registries::parse("mirrors:\n  a:\n    endpoint: ['127.0.0.1:5000']\n").is_err());
        assert!(Registries::parse("mirors: {}\n").is_err());
        let said =
            |text: &str| Registries::parse(text).and_then(Registries::with_files).unwrap_err().to_string();
        for (text, part) in [
            (
                "configs: {r.example: {auth: {auth: '%%%'}}}",
                "configs.\"r.example\".auth.auth is not the base64 of",
            ),
            (
                "configs: {r.example: {auth: {auth: bm9ib2R5}}}",
                "auth.auth is not the base64 of `username:password`",
            ),
            (
                "configs: {r.example: {tls: {ca_file: /no/such.pem}}}",
                "configs.\"r.example\".tls.ca_file: /no/such.pem: No such file",
            ),
            ("configs: {}\nconfigs: {}", "duplicate mapping key"),
        ] {
            let said = said(text);
            assert!(said.contains(part) && !said.contains("DuplicateKeyPolicy"), "{said}");
        }
        let good = "configs: {r.example: {auth: {auth: dTpw}, tls: {ca_file: /dev/null}}}";
        Registries::parse(good).and_then(Registries::with_files).unwrap();
    }
}
