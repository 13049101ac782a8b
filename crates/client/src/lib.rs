//! Typed and dynamic client, informers, keyed work queues, events and leases, over any
//! `tower::Service` that answers API requests. Never links the API server.

mod api;
mod cache;
mod error;
mod informer;
mod lease;
mod queue;
mod recorder;
mod reflector;
mod transport;
mod watch;

pub use api::{
    Api, List, ListOptions, PartialObjectMetadata, PatchKind, Typed, WatchOptions, gvr_of, object_ref, path,
};
pub use cache::{Entry, ObjectKey};
pub use error::{BoxError, Error, Result};
pub use informer::{Change, Informer, Informers, Object, Projection, ProjectionChange, Subscription};
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
pub use lease::{Elector, LeaseKeeper};
pub use queue::{Key, Queue, run_workers};
pub use recorder::{EventType, Recorder};
pub use skeg_api::meta::ObjectRef;
pub use transport::{Body, Client, RawRequest};
pub use watch::{EventKind, WatchEvent, WatchStream};
