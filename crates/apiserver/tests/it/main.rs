//! The API server driven through its in-process service and over TLS.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod access;
mod admission;
mod aggregation;
mod apply;
mod builtin;
mod concurrency;
mod conversions;
mod crd_rules;
mod crds;
mod crud;
mod defaults;
mod equivalence;
mod faults;
mod harness;
mod invalid;
mod kinds;
mod network;
mod policies;
mod portions;
mod protobuf;
mod proxying;
mod spec;
mod tls;
mod watching;
mod webhooks;
mod workloads;
mod writes;
