//! Time, randomness, ids, back-off, hash maps and failpoints: the few things that every part of
//! Skeg needs and that the simulation must own; behind the feature `tls`, what two clients share that
//! may not know each other. Knows nothing of Kubernetes.

mod backoff;
mod clock;
pub mod failpoint;
mod hash;
mod level;
mod random;
#[cfg(feature = "tls")]
pub mod tls;

pub use backoff::Backoff;
pub use clock::Clock;
pub use hash::{HashMap, HashSet, hash_of, new_map, new_set, set_hash_seed};
pub use jiff::Timestamp;
pub use level::Level;
pub use random::Random;
