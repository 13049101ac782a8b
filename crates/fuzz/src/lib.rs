//! What must hold whatever bytes come: one table of targets, each with the inputs that its mutations
//! start from. `tests/it` runs them with fixed seeds, `cargo xtask fuzz` by coverage.

#![allow(clippy::unwrap_used, reason = "a panic is how a target fails")]

mod mutate;
mod targets;

pub use mutate::Mutator;

/// A reader of foreign bytes, and what it promises.
pub struct Target {
    pub name: &'static str,
    /// Panics where the promise is broken.
    pub run: fn(&[u8]),
    /// Where mutations start. Inputs that broke a promise once stay here.
    pub seeds: &'static [&'static [u8]],
}

pub use targets::TARGETS;

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
