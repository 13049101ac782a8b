//! Who asks and who may.

pub mod authn;
pub mod authz;
pub mod impersonation;
pub mod node;
pub mod rbac;
pub mod recent;
pub mod token;

pub(crate) use crate::server::forbidden;
