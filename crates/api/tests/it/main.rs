//! Tests of the crate through its public face.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod apply;
mod definitions;
mod invalid;
mod robust;
mod stored;
