//! The controllers: one folder each, with a pure `plan.rs` that decides from what is observed and
//! the time, and a thin `mod.rs` that maps events to keys, re-reads, plans and acts.
//!
//! None of them touches sockets, files, the OS clock or its randomness: the simulation runs the
//! same code. All are level-triggered; timers are used only where time itself is the event.
//! Upstream counterpart: `kube-controller-manager`.

mod certificates;
mod context;
mod deployment;
mod discovery;
mod each_namespace;
mod endpoints;
mod endpointslice;
mod error;
mod garbagecollector;
mod meta;
mod namespace;
mod nodelifecycle;
mod owner;
mod owner_index;
mod pod;
mod podgc;
mod pods;
mod replicaset;
mod resourcequota;
mod rootcacert;
mod service;
mod serviceaccount;
mod serviceaccounttoken;
mod volumeprotection;

pub use context::{Clients, Config, ControllerContext, Controllers, Signer};

/// Starts all controllers. Call it inside a runtime; they run until the context is cancelled.
pub fn start(ctx: &ControllerContext) -> Controllers {
    let mut controllers = Controllers::default();
    // Those that need whole objects come first: the garbage collector then shares their informers.
    let pods = pods::Pods::of(ctx.informers.of());
    deployment::start(ctx, &mut controllers, pods.clone());
    replicaset::start(ctx, &mut controllers, &pods);
    endpointslice::start(ctx, &mut controllers, pods.clone());
    endpoints::start(ctx, &mut controllers, pods);
    nodelifecycle::start(ctx, &mut controllers);
    podgc::start(ctx, &mut controllers);
    serviceaccount::start(ctx, &mut controllers);
    serviceaccounttoken::start(ctx, &mut controllers);
    rootcacert::start(ctx, &mut controllers);
    volumeprotection::start(ctx, &mut controllers);
    certificates::start(ctx, &mut controllers);
    let served = discovery::start(ctx, &mut controllers);
    resourcequota::start(ctx, &mut controllers, served.clone());
    namespace::start(ctx, &mut controllers, served.clone());
    garbagecollector::start(ctx, &mut controllers, served);
    controllers
}
