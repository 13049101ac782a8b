//! Who asks and who may.

pub mod authn;
pub mod authz;
pub mod impersonation;
pub mod node;
pub mod rbac;
pub mod recent;
pub mod token;

pub(crate) use crate::server::forbidden;

/// A SHA-256.
pub type Digest = [u8; 32];

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    out
}
