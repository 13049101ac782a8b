//! Named places where a test makes the program die: `SKEG_FAILPOINT=name` kills the process with
//! SIGKILL's effect (no destructors, no flush) the first time [`hit`] is called with that name,
//! `name:3` the third time. Costs one relaxed load where no failpoint is set.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

struct Armed {
    name: String,
    remaining: AtomicU32,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Dies here when this failpoint is armed.
pub fn hit(name: &str) {
    let armed = ARMED.get_or_init(|| {
        let setting = std::env::var("SKEG_FAILPOINT").ok()?;
        let (name, count) = setting.split_once(':').unwrap_or((&setting, "1"));
        Some(Armed { name: name.to_owned(), remaining: AtomicU32::new(count.parse().unwrap_or(1)) })
    });
    if let Some(armed) = armed
        && armed.name == name
        && armed.remaining.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}
