//! HTTP request → stored object: authentication, authorization, admission, defaulting,
//! validation, watch cache, discovery, OpenAPI. Knows nothing of containers, nodes' insides or
//! controllers.

pub mod admission;
pub mod aggregator;
pub mod allocate;
pub mod assembly;
pub mod auth;
pub mod bootstrap;
pub mod cache;
mod conditions;
pub mod convert;
mod crds;
pub mod discovery;
mod frames;
pub mod health;
pub mod hooks;
pub mod identity;
pub mod list;
pub mod local;
pub mod metrics;
pub mod negotiate;
pub mod net;
pub mod pki;
pub mod protobuf;
pub mod proxy;
pub mod query;
pub mod reader;
pub mod record;
pub mod registry;
pub mod request;
pub mod resources;
pub mod reviews;
pub mod route;
pub mod server;
pub mod stats;
pub mod table;
pub mod watch;
mod webhook;
mod websocket;

pub use hooks::{Hooks, Seams};
pub use identity::Identity;
pub use local::{Body, BoxError, LocalService};
pub use server::{ApiServer, Config};
