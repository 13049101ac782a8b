//! The scheduler: queue, snapshot, filter and score plugins, bind. Decides by pure functions over
//! an immutable snapshot; touches no sockets, files or the OS clock.

mod amounts;
mod framework;
mod plugins;
mod pod_info;
mod preemption;
mod queue;
mod scheduler;
mod snapshot;

pub use amounts::Amounts;
pub use framework::{FitError, NodeVerdict, Placement, Reason, Rejection, explain, schedule};
pub use pod_info::{Candidate, PodInfo};
pub use preemption::Preemption;
pub use queue::{Event, Queue};
pub use scheduler::{Config, Scheduler};
pub use snapshot::{Cache, NodeChange, NodeFacts, NodeInfo, Snapshot};
