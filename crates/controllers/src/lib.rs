//! The controllers: one folder each, with a pure `plan.rs` that decides from what is observed and
//! the time, and a thin `mod.rs` that maps events to keys, re-reads, plans and acts.
//!
//! None of them touches sockets, files, the OS clock or its randomness: the simulation runs the
//! same code. All are level-triggered; timers are used only where time itself is the event.
//! Upstream counterpart: `kube-controller-manager`.

mod context;
mod deployment;
mod endpoints;
mod endpointslice;
mod error;
mod meta;
mod owner;
mod owner_index;
mod pod;
mod replicaset;
mod service;

pub use context::{Clients, Config, ControllerContext, Controllers};

/// Starts all controllers. Call it inside a runtime; they run until the context is cancelled.
pub fn start(ctx: &ControllerContext) -> Controllers {
    let mut controllers = Controllers::default();
    deployment::start(ctx, &mut controllers);
    replicaset::start(ctx, &mut controllers);
    controllers
}
