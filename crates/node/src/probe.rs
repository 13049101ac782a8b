//! The probes of one running container: a task per probe, on tokio's timer wheel. Upstream
//! counterpart: `pkg/kubelet/prober/worker.go`.

use crate::hook::{Found, Place, probe};
use crate::text;
use k8s_openapi::api::core::v1::{Container, Probe};
use skeg_client::{EventType, ObjectRef, Recorder};
use skeg_runtime::PodRuntime;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// A probe crossed its threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub container: String,
    pub id: String,
    pub kind: Kind,
    pub healthy: bool,
}

/// What the tasks need.
#[derive(Clone)]
pub struct Subject {
    pub runtime: Arc<dyn PodRuntime>,
    pub recorder: Recorder,
    pub about: ObjectRef,
    pub field_path: String,
    pub uid: String,
    pub id: String,
    pub container: Container,
    pub pod_ip: String,
}

/// The running probes; dropping it ends them.
pub struct Probes {
    _readiness: JoinSet<()>,
    /// Startup and liveness: those that may restart the container.
    restarting: JoinSet<()>,
    started: watch::Sender<bool>,
}

impl Probes {
    /// Starts the container's probes. Readiness and liveness wait until `started` (see
    /// [`Probes::startup_passed`]); startup probes begin at once.
    pub fn start(
        subject: Subject,
        running_for: Duration,
        started: bool,
        verdicts: mpsc::Sender<Verdict>,
    ) -> Self {
        let (mut readiness, mut restarting) = (JoinSet::new(), JoinSet::new());
        let (sender, receiver) = watch::channel(started);
        let container = &subject.container;
        let all = [
            (Kind::Startup, &container.startup_probe),
            (Kind::Readiness, &container.readiness_probe),
            (Kind::Liveness, &container.liveness_probe),
        ];
        for (kind, spec) in all {
            if let Some(spec) = spec
                && !(kind == Kind::Startup && started)
            {
                let task =
                    run(kind, spec.clone(), subject.clone(), running_for, receiver.clone(), verdicts.clone());
                if kind == Kind::Readiness { &mut readiness } else { &mut restarting }.spawn(task);
            }
        }
        Probes { _readiness: readiness, restarting, started: sender }
    }

    /// Ends all but the readiness probe: whether a container that is being ended still serves is
    /// worth knowing, but nothing restarts it.
    pub fn keep_readiness(&mut self) {
        self.restarting.abort_all();
    }

    pub fn startup_passed(&self) {
        self.started.send_replace(true);
    }
}

async fn run(
    kind: Kind,
    spec: Probe,
    subject: Subject,
    running_for: Duration,
    mut started: watch::Receiver<bool>,
    verdicts: mpsc::Sender<Verdict>,
) {
    let began = tokio::time::Instant::now();
    if kind != Kind::Startup && started.wait_for(|started| *started).await.is_err() {
        return;
    }
    let delay = Duration::from_secs(spec.initial_delay_seconds.unwrap_or(0).max(0) as u64);
    let first = delay.saturating_sub(running_for);
    // The delay counts from the container's start, also for probes that waited for the startup one.
    tokio::time::sleep_until(began + first).await;
    let mut ticks =
        tokio::time::interval(Duration::from_secs(spec.period_seconds.unwrap_or(10).max(1) as u64));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tally = Tally::default();
    loop {
        ticks.tick().await;
        let place = Place {
            runtime: &*subject.runtime,
            uid: &subject.uid,
            id: &subject.id,
            container: &subject.container,
            pod_ip: &subject.pod_ip,
        };
        let found = probe(&place, &spec).await;
        if let Some((reason, message)) = remark(kind, &found) {
            let (about, path) = (&subject.about, &subject.field_path);
            subject.recorder.event_at(about, path, EventType::Warning, reason, &message);
        }
        let Some(healthy) = tally.count(&spec, &found) else { continue };
        let verdict =
            Verdict { container: subject.container.name.clone(), id: subject.id.clone(), kind, healthy };
        if verdicts.send(verdict).await.is_err() {
            return;
        }
        // A startup probe is done once it passed; a container is restarted after either failure.
        if kind == Kind::Startup || kind == Kind::Liveness && !healthy {
            return;
        }
    }
}

/// Results of one probe in a row.
#[derive(Default)]
struct Tally {
    last: Option<bool>,
    length: i32,
    told: Option<bool>,
}

impl Tally {
    /// Counts a result; gives what the probe makes of the container where that is news. What could
    /// not be found out counts for nothing, as upstream has it.
    fn count(&mut self, spec: &Probe, found: &Found) -> Option<bool> {
        let (healthy, threshold) = match found {
            Found::Success | Found::Warning(_) => (true, spec.success_threshold.unwrap_or(1)),
            Found::Failure(_) => (false, spec.failure_threshold.unwrap_or(3)),
            Found::Unknown(_) => return None,
        };
        self.length = if self.last == Some(healthy) { self.length.saturating_add(1) } else { 1 };
        self.last = Some(healthy);
        if self.length < threshold || self.told == Some(healthy) {
            return None;
        }
        self.told = Some(healthy);
        self.told
    }
}

/// Reason and message of the Warning event about a result, as upstream words them.
fn remark(kind: Kind, found: &Found) -> Option<(&'static str, String)> {
    let label = kind.label();
    match found {
        Found::Success => None,
        Found::Warning(what) => Some(("ProbeWarning", format!("{label} probe warning: {what}"))),
        Found::Failure(why) => Some(("Unhealthy", format!("{label} probe failed: {why}"))),
        Found::Unknown(why) => {
            Some(("Unhealthy", format!("{label} probe errored and resulted in unknown state: {why}")))
        }
    }
}

/// The grace that a failed probe asks for, where it has its own.
pub fn grace(container: &Container, kind: Kind) -> Option<i64> {
    let probe = match kind {
        Kind::Startup => &container.startup_probe,
        Kind::Liveness => &container.liveness_probe,
        Kind::Readiness => &None,
    };
    probe.as_ref().and_then(|p| p.termination_grace_period_seconds)
}

/// `Container web failed liveness probe`
pub fn kill_message(container: &Container, kind: Kind) -> String {
    format!(
        "Container {} failed {} probe",
        text(&Some(container.name.clone())),
        kind.label().to_ascii_lowercase()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is told of the results, `+`, `-` and `?`: one of them each, or a dot.
    fn told(spec: serde_json::Value, results: &str) -> String {
        let (spec, mut tally) = (serde_json::from_value(spec).unwrap(), Tally::default());
        let count = |result| match result {
            '+' => Found::Success,
            '-' => Found::Failure(String::new()),
            _ => Found::Unknown(String::new()),
        };
        let verdict = |result| match tally.count(&spec, &count(result)) {
            None => '.',
            Some(true) => '+',
            Some(false) => '-',
        };
        results.chars().map(verdict).collect()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        assert_eq!(told(json!({}), "+++---+-+"), "+....-+..");
        assert_eq!(told(json!({"successThreshold": 3}), "++-+++----"), ".....+..-.");
        assert_eq!(told(json!({"failureThreshold": 1}), "-+-"), "-+-");
    }

    #[test]
    fn what_could_not_be_found_out_counts_for_nothing() {
        let spec = json!({"failureThreshold": 2, "successThreshold": 2});
        assert_eq!(told(spec, "???-?-??+??+"), ".....-.....+");
        let unknown = remark(Kind::Liveness, &Found::Unknown("no such file".into())).unwrap();
        let message = "Liveness probe errored and resulted in unknown state: no such file";
        assert_eq!(unknown, ("Unhealthy", message.to_owned()));
    }
}
