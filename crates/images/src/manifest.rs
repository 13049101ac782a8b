//! Manifests, indexes and image configurations (OCI image spec 1.1, Docker schema 2) as far as
//! running an image needs them.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// Manifests and configurations are small documents; larger ones are refused.
pub const DOCUMENT_SIZE_MAX: u64 = 8 << 20;
pub const LAYERS_MAX: usize = 500;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// This machine, in Go's names.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.into() }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// A manifest or an index: told apart by what they carry, for registries mislabel them.
#[derive(Clone, Debug, Deserialize)]
pub struct Document {
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

#[derive(Clone, Debug)]
pub struct Manifest {
    pub config: Descriptor,
    /// Bottom first, as manifests list them.
    pub layers: Vec<Descriptor>,
}

impl Document {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::Invalid(format!("manifest: {e}")))
    }

    pub fn into_manifest(self) -> Result<Manifest> {
        let config = self.config.ok_or_else(|| Error::Invalid("manifest without config".into()))?;
        if self.layers.len() > LAYERS_MAX {
            return Err(Error::Invalid(format!("more than {LAYERS_MAX} layers")));
        }
        Ok(Manifest { config, layers: self.layers })
    }
}

/// The index entry for `platform`: same OS and architecture, its variant preferred.
pub fn choose<'a>(manifests: &'a [Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_some_and(|p| p.os == platform.os && p.architecture == platform.architecture)
    };
    let exact = manifests
        .iter()
        .filter(fits)
        .find(|d| d.platform.as_ref().is_some_and(|p| p.variant == platform.variant));
    // An index with a single entry that names no platform is what archive tools write.
    exact.or_else(|| manifests.iter().find(fits)).or(match manifests {
        [one] if one.platform.is_none() => Some(one),
        _ => None,
    })
}

/// What of the image configuration a container needs.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, …
    pub user: String,
    /// `SIGQUIT`, or empty.
    pub stop_signal: String,
    /// `80/tcp`
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub architecture: String,
}

/// The configuration blob: its runtime part and the digests of the uncompressed layers.
pub struct ConfigBlob {
    pub config: ImageConfig,
    pub diff_ids: Vec<String>,
}

impl ConfigBlob {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Blob {
            #[serde(default)]
            architecture: String,
            #[serde(default)]
            config: Option<Inner>,
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default)]
            diff_ids: Vec<String>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct Inner {
            user: Option<String>,
            exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
            env: Option<Vec<String>>,
            entrypoint: Option<Vec<String>>,
            cmd: Option<Vec<String>>,
            volumes: Option<BTreeMap<String, serde_json::Value>>,
            working_dir: Option<String>,
            labels: Option<BTreeMap<String, String>>,
            stop_signal: Option<String>,
        }
        let blob: Blob =
            serde_json::from_slice(bytes).map_err(|e| Error::Invalid(format!("image configuration: {e}")))?;
        if let Some(bad) = blob.rootfs.diff_ids.iter().find(|d| !crate::reference::valid_digest(d)) {
            return Err(Error::Invalid(format!("diff id {bad:?}")));
        }
        let inner = blob.config.unwrap_or_default();
        let config = ImageConfig {
            entrypoint: inner.entrypoint.unwrap_or_default(),
            cmd: inner.cmd.unwrap_or_default(),
            env: inner.env.unwrap_or_default(),
            working_dir: inner.working_dir.unwrap_or_default(),
            user: inner.user.unwrap_or_default(),
            stop_signal: inner.stop_signal.unwrap_or_default(),
            exposed_ports: inner.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: inner.volumes.unwrap_or_default().into_keys().collect(),
            labels: inner.labels.unwrap_or_default(),
            architecture: blob.architecture,
        };
        Ok(ConfigBlob { config, diff_ids: blob.rootfs.diff_ids })
    }
}

/// The chain ids of these layers, bottom first (OCI image spec, "Layer ChainID").
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
        });
    }
    chain
}

pub fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    digest_text(&sha2::Sha256::digest(bytes))
}

pub fn digest_text(hash: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in hash {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digest: &str, arch: &str, variant: &str) -> Descriptor {
        let platform =
            Some(Platform { architecture: arch.into(), os: "linux".into(), variant: variant.into() });
        Descriptor {
            media_type: String::new(),
            digest: digest.into(),
            size: 0,
            platform,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn the_index_is_searched_by_platform() {
        let all = [entry("a", "arm", "v6"), entry("b", "arm", "v7"), entry("c", "amd64", "")];
        let find = |arch: &str, variant: &str| {
            let wanted = Platform { architecture: arch.into(), os: "linux".into(), variant: variant.into() };
            choose(&all, &wanted).map(|d| d.digest.as_str())
        };
        assert_eq!(find("arm", "v7"), Some("b"));
        assert_eq!(find("arm", "v5"), Some("a"));
        assert_eq!(find("amd64", ""), Some("c"));
        assert_eq!(find("riscv64", ""), None);
    }
}
