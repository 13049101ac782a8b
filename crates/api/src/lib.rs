//! Kubernetes objects as data: the kinds table, schemas, selectors, quantities, patches, field
//! sets, validation and `Status` errors. Pure: no IO, no clock, no randomness; all that anyone
//! waits for here is a change of the kinds table.

pub mod autoscaling;
pub mod builtin;
pub mod columns;
pub mod crd;
pub mod cron;
pub mod csr;
pub mod decode;
pub mod defaults;
pub mod expansion;
pub mod field;
pub mod fieldset;
mod go;
pub mod gvk;
pub mod intstr;
pub mod jsonpath;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod object_meta;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod portion;
pub mod predicates;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;
pub mod validate;

pub use gvk::{GroupVersion, Gvk, Gvr};
pub use k8s_openapi;
pub use kinds::{Kind, Kinds};
pub use serde_json::Value;
pub use status::{Reason, Status};
