//! What a cluster costs, in counts: they do not depend on the machine's speed.

use super::pod;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[Case { name: "a_pod_takes_few_writes", run: few_writes }];

const PODS: u64 = 10;
const WRITES_A_POD_MAX: u64 = 8;

/// The one global revision counts every write; the server's metrics tell how many were Events.
struct Writes {
    all: u64,
    events: u64,
}

impl Writes {
    fn now(scope: &Scope<'_>) -> Result<Self> {
        let list = scope.kubectl(&["get", "--raw", "/api/v1/pods?limit=1"])?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let revision = list["metadata"]["resourceVersion"].as_str().context("a resourceVersion")?;
        let metrics = scope.kubectl(&["get", "--raw", "/metrics"])?;
        let of_events = |line: &&str| {
            let has = |label: &str| line.contains(label);
            line.starts_with("apiserver_request_total{")
                && has("resource=\"events\"")
                && has("code=\"2")
                && ["POST", "PUT", "PATCH"].iter().any(|verb| has(&format!("verb=\"{verb}\"")))
        };
        let count = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok());
        let events = metrics.lines().filter(of_events).filter_map(count).sum();
        Ok(Writes { all: revision.parse()?, events })
    }
}

/// From a Pod's creation to its being Ready; leases and whatever else is written meanwhile count too.
fn few_writes(scope: &Scope<'_>) -> Result<()> {
    let names: Vec<String> = (0..PODS).map(|n| format!("pod/few-{n}")).collect();
    let before = Writes::now(scope)?;
    for name in &names {
        scope.apply(&pod(name.trim_start_matches("pod/"), &[("main", "sleep 1000")]))?;
    }
    let mut wait = vec!["wait", "--for=condition=Ready", "--timeout=90s"];
    wait.extend(names.iter().map(String::as_str));
    scope.kubectl(&wait)?;
    // Events trail the Pods.
    for name in &names {
        for reason in ["Scheduled", "Pulled", "Created", "Started"] {
            scope.event(name.trim_start_matches("pod/"), reason, "")?;
        }
    }
    let after = Writes::now(scope)?;
    let writes = (after.all - before.all) - (after.events - before.events);
    ensure!(writes >= 2 * PODS, "a Pod is created and bound: {writes} writes cannot be all");
    ensure!(writes <= WRITES_A_POD_MAX * PODS, "{writes} writes for {PODS} Pods, beyond Events");
    Ok(())
}
