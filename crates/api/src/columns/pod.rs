//! The columns of Pods: what a Pod is up to, in one word.

use super::{AGE, NAME, NONE, Row, ago, list, number, or, s, text, wide};
use crate::meta;
use jiff::Timestamp;
use serde_json::Value;

pub(super) const COLUMNS: &[Row] = &[
    NAME,
    s("Ready", |o, _| {
        let summary = Summary::of(o);
        format!("{}/{}", summary.ready, summary.total).into()
    }),
    s("Status", |o, _| Summary::of(o).reason.into()),
    s("Restarts", |o, now| restarts(&Summary::of(o), now).into()),
    AGE,
    wide("IP", |o, _| or(text(o, "/status/podIPs/0/ip"), NONE).into()),
    wide("Node", |o, _| or(text(o, "/spec/nodeName"), NONE).into()),
    wide("Nominated Node", |o, _| or(text(o, "/status/nominatedNodeName"), NONE).into()),
    wide("Readiness Gates", |o, _| readiness_gates(o).into()),
];

/// What the plain columns are made of.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Summary {
        let sidecars: Vec<&str> = list(pod, "/spec/initContainers")
            .iter()
            .filter(|container| container["restartPolicy"] == "Always")
            .map(|container| container["name"].as_str().unwrap_or(""))
            .collect();
        let mut summary = Summary {
            reason: or(text(pod, "/status/reason"), text(pod, "/status/phase")).to_owned(),
            ready: 0,
            total: list(pod, "/spec/containers").len() + sidecars.len(),
            restarts: 0,
            last_restart: None,
        };
        let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
        if list(pod, "/status/conditions").iter().any(gated) {
            summary.reason = "SchedulingGated".to_owned();
        }
        let initializing = summary.add_init_containers(pod, &sidecars);
        if !initializing || has_condition(pod, "Initialized") {
            summary.add_containers(pod, &sidecars);
        }
        if meta::is_deleting(pod) {
            if text(pod, "/status/reason") == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount");
        let finished = status.pointer("/lastState/terminated/finishedAt").and_then(meta::time);
        self.last_restart = self.last_restart.max(finished);
    }

    /// Goes on to the first init container that is not done; says whether there is one.
    fn add_init_containers(&mut self, pod: &Value, sidecars: &[&str]) -> bool {
        for (at, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.count_restarts(status);
            let terminated = status.pointer("/state/terminated");
            if terminated.is_some_and(|state| number(state, "/exitCode") == 0) {
                continue;
            }
            if sidecars.contains(&text(status, "/name")) && status["started"] == true {
                self.ready += usize::from(status["ready"] == true);
                continue;
            }
            let waiting = text(status, "/state/waiting/reason");
            self.reason = match terminated {
                Some(state) => format!("Init:{}", ending(state)),
                None if !matches!(waiting, "" | "PodInitializing") => format!("Init:{waiting}"),
                None => format!("Init:{at}/{}", list(pod, "/spec/initContainers").len()),
            };
            return true;
        }
        false
    }

    fn add_containers(&mut self, pod: &Value, sidecars: &[&str]) {
        // Restarts during initialization are over and no longer count.
        (self.restarts, self.last_restart) = (0, None);
        let init = list(pod, "/status/initContainerStatuses").iter();
        init.filter(|status| sidecars.contains(&text(status, "/name")))
            .for_each(|status| self.count_restarts(status));
        let mut has_running = false;
        // Backwards, so that the first container has the last word.
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.count_restarts(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(state) = status.pointer("/state/terminated") {
                self.reason = ending(state);
            } else if status["ready"] == true && status.pointer("/state/running").is_some() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && has_running {
            self.reason = if has_condition(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    list(pod, "/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// How a container ended: its reason, or the signal or exit code.
fn ending(terminated: &Value) -> String {
    match (text(terminated, "/reason"), number(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn restarts(summary: &Summary, now: Timestamp) -> String {
    match summary.last_restart {
        Some(last) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, ago(last, now)),
        _ => summary.restarts.to_string(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let is_true = |gate: &&Value| {
        let conditions = list(pod, "/status/conditions").iter();
        conditions
            .into_iter()
            .find(|c| c["type"] == gate["conditionType"])
            .is_some_and(|c| c["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(is_true).count(), gates.len())
}
