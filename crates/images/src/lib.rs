//! Container images: pull, verify, unpack, import, list, remove. Owns `<data-dir>/images`.
//! Knows nothing of Kubernetes objects, containers or addresses: the node asks for an image and
//! gets directories that an overlay mount can use as its lower layers.

mod http_client;
mod import;
mod manifest;
mod pull;
mod reference;
mod registries;
mod registry;
mod store;
mod unpack;

pub use manifest::{ImageConfig, Platform};
pub use pull::{LayerPhase, LayerProgress, Progress};
pub use reference::Reference;
pub use registries::Registries;
pub use registry::Credential;
pub use store::{Images, ImagesConfig};

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Why an image operation failed. Callers branch on the variant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no image reference; trying again cannot help.
    #[error("couldn't parse image name \"{0}\": invalid reference format")]
    InvalidReference(String),
    /// The registry does not have it.
    #[error("{0}: not found")]
    NotFound(String),
    /// The registry refuses these credentials, or asks for some.
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Unauthorized(String),
    /// The registry could not be reached or did not answer properly, also after retries.
    #[error("{0}")]
    Network(String),
    /// What came is not what its digest says.
    #[error("digest mismatch of {what}: expected {expected}, got {actual}")]
    DigestMismatch { what: String, expected: String, actual: String },
    /// No manifest for this machine's platform.
    #[error("no match for platform in manifest: {0}")]
    NoPlatform(String),
    /// A manifest, configuration, layer or archive that makes no sense or is unsafe to unpack.
    #[error("invalid image: {0}")]
    Invalid(String),
    #[error("no such image: {0}")]
    NoImage(String),
    #[error("registries configuration: {0}")]
    Config(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl Error {
    /// Tells the file or directory of an error that names a part of it only.
    pub(crate) fn inside(self, path: &Path) -> Error {
        match self {
            Error::Io { what, source } => Error::Io { what: format!("{what} in {}", path.display()), source },
            other => other,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// An image that is present and unpacked on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Digest of the image configuration: `sha256:…`.
    pub id: String,
    /// `docker.io/library/nginx@sha256:…`
    pub repo_digests: Vec<String>,
    /// `docker.io/library/nginx:latest`
    pub tags: Vec<String>,
    /// Bytes of the compressed layers and the configuration, as registries count.
    pub size_bytes: u64,
    /// The unpacked layers, topmost first: overlay lower directories.
    pub layers: Vec<PathBuf>,
    pub config: ImageConfig,
    /// One of its references was imported: that reference resolves locally until it is removed.
    pub pinned: bool,
    /// Those of `tags` and `repo_digests` that are pinned.
    pub pinned_names: BTreeSet<String>,
}
