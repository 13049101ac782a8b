//! Pods that wait for a Node: ready to be tried, held back for a while, or waiting for something
//! to change. Upstream counterpart: `pkg/scheduler/backend/queue`, with its queueing hints.
//!
//! Plain data driven by calls; knows no tasks and no API. Bounded by the Pods in the cluster.

use crate::framework::{filter, pre_filter_of};
use crate::plugins::PLUGINS;
use crate::pod_info::{Candidate, PodInfo};
use crate::snapshot::Snapshot;
use skeg_base::{HashMap, new_map};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A Pod is tried again after this even if nothing happened that should help it.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// Something that may let a Pod be scheduled that could not be before.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A Node is new or changed.
    Node(&'a str),
    /// A Pod left a Node or takes less of it.
    PodGone { node: &'a str },
    /// A Pod came to a Node, or its labels changed.
    PodCame,
    /// A Namespace's labels changed.
    Namespace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// By priority, then by time.
    Active(Reverse<i32>, u64),
    /// After a failure of ours: not before its time.
    ErrorBackoff(Instant, u64),
    /// May be tried before its time when nothing else is to do.
    Backoff(Instant, u64),
    Unschedulable(Instant, u64),
    Gated,
    /// Taken by [`Queue::pop`].
    InFlight,
}

#[derive(Debug)]
struct Waiting {
    candidate: Candidate,
    attempts: u32,
    /// When the last attempt failed.
    failed_at: Option<Instant>,
    rejected_by: BTreeSet<&'static str>,
    place: Place,
}

pub struct Queue {
    pods: HashMap<Arc<str>, Waiting>,
    active: BTreeMap<(Reverse<i32>, u64), Arc<str>>,
    error_backoff: BTreeMap<(Instant, u64), Arc<str>>,
    backoff: BTreeMap<(Instant, u64), Arc<str>>,
    unschedulable: BTreeMap<(Instant, u64), Arc<str>>,
    sequence: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Queue {
            pods: new_map(),
            active: BTreeMap::new(),
            error_backoff: BTreeMap::new(),
            backoff: BTreeMap::new(),
            unschedulable: BTreeMap::new(),
            sequence: 0,
        }
    }
}

fn is_gated(candidate: &Candidate) -> bool {
    let gates = candidate.pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    gates.is_some_and(|gates| !gates.is_empty())
}

impl Queue {
    /// A new Pod, or a new state of one that waits.
    pub fn set(&mut self, candidate: Candidate, now: Instant) {
        let uid = candidate.info.uid.clone();
        let Some(known) = self.pods.get_mut(&uid) else {
            let place =
                if is_gated(&candidate) { Place::Gated } else { self.next_active(candidate.info.priority) };
            let waiting =
                Waiting { candidate, attempts: 0, failed_at: None, rejected_by: BTreeSet::new(), place };
            self.pods.insert(uid.clone(), waiting);
            return self.file(uid, place);
        };
        let changed = known.candidate.pod.spec != candidate.pod.spec
            || known.candidate.info.labels != candidate.info.labels;
        let gated = is_gated(&candidate);
        known.candidate = candidate;
        match known.place {
            Place::Gated if !gated => self.activate(&uid),
            Place::Unschedulable(..) if changed => self.release(&uid, now),
            _ => {}
        }
    }

    /// The Pod is gone, has a Node, or is being deleted.
    pub fn remove(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.remove(uid) {
            self.unfile(waiting.place);
        }
    }

    /// The Pod to try next. It stays known until [`Queue::remove`].
    pub fn pop(&mut self, now: Instant) -> Option<Candidate> {
        self.flush(now);
        let uid = match self.active.pop_first() {
            Some((_, uid)) => uid,
            // Better early than idle.
            None => self.backoff.pop_first()?.1,
        };
        let waiting = self.pods.get_mut(&uid)?;
        waiting.place = Place::InFlight;
        waiting.attempts = waiting.attempts.saturating_add(1);
        Some(waiting.candidate.clone())
    }

    /// No Node can take the Pod, by the verdicts of these plugins.
    pub fn unschedulable(&mut self, uid: &str, rejected_by: BTreeSet<&'static str>, now: Instant) {
        let sequence = self.next_sequence();
        self.fail(uid, rejected_by, now, |_| Place::Unschedulable(now, sequence));
    }

    /// The attempt failed for a reason that is not the Pod's.
    pub fn failed(&mut self, uid: &str, now: Instant) {
        let sequence = self.next_sequence();
        self.fail(uid, BTreeSet::new(), now, |attempts| {
            Place::ErrorBackoff(now + back_off(attempts), sequence)
        });
    }

    fn fail(
        &mut self,
        uid: &str,
        rejected_by: BTreeSet<&'static str>,
        now: Instant,
        place: impl FnOnce(u32) -> Place,
    ) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        // Taken over by something else meanwhile.
        if waiting.place != Place::InFlight {
            return;
        }
        waiting.rejected_by = rejected_by;
        waiting.failed_at = Some(now);
        waiting.place = place(waiting.attempts);
        let (uid, place) = (waiting.candidate.info.uid.clone(), waiting.place);
        self.file(uid, place);
    }

    /// Releases the Pods that the event may help.
    pub fn happened(&mut self, event: Event<'_>, snapshot: &Snapshot, now: Instant) {
        let helped: Vec<Arc<str>> = self
            .unschedulable
            .values()
            .filter(|uid| {
                self.pods.get(*uid).is_some_and(|w| may_help(event, &w.candidate, &w.rejected_by, snapshot))
            })
            .cloned()
            .collect();
        for uid in helped {
            self.release(&uid, now);
        }
    }

    /// Tries a Pod again after its back-off, whatever was against it.
    pub fn retry(&mut self, uid: &Arc<str>, now: Instant) {
        if self.pods.get(uid).is_some_and(|w| matches!(w.place, Place::Unschedulable(..))) {
            self.release(uid, now);
        }
    }

    /// When there is something to do without an event.
    pub fn next_due(&self) -> Option<Instant> {
        let error = self.error_backoff.first_key_value().map(|((at, _), _)| *at);
        let stale = self.unschedulable.first_key_value().map(|((at, _), _)| *at + UNSCHEDULABLE_MAX);
        error.into_iter().chain(stale).min()
    }

    /// The newest known state of a waiting Pod.
    pub fn candidate(&self, uid: &str) -> Option<&Candidate> {
        self.pods.get(uid).map(|waiting| &waiting.candidate)
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn flush(&mut self, now: Instant) {
        while let Some(entry) = self.error_backoff.first_entry()
            && entry.key().0 <= now
        {
            let uid = entry.remove();
            self.activate_unfiled(&uid);
        }
        while let Some(entry) = self.unschedulable.first_entry()
            && entry.key().0 + UNSCHEDULABLE_MAX <= now
        {
            let uid = entry.get().clone();
            self.release(&uid, now);
        }
    }

    /// To be tried again, when its back-off is over.
    fn release(&mut self, uid: &Arc<str>, now: Instant) {
        let Some(waiting) = self.pods.get(uid) else { return };
        let until = waiting.failed_at.map(|at| at + back_off(waiting.attempts));
        match until.filter(|until| *until > now) {
            None => self.activate(uid),
            Some(until) => {
                let place = Place::Backoff(until, self.next_sequence());
                self.refile(uid, place);
            }
        }
    }

    fn activate(&mut self, uid: &Arc<str>) {
        if let Some(waiting) = self.pods.get(uid) {
            self.unfile(waiting.place);
            self.activate_unfiled(uid);
        }
    }

    fn activate_unfiled(&mut self, uid: &Arc<str>) {
        let Some(priority) = self.pods.get(uid).map(|w| w.candidate.info.priority) else { return };
        let place = self.next_active(priority);
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.place = place;
        }
        self.file(uid.clone(), place);
    }

    fn refile(&mut self, uid: &Arc<str>, place: Place) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let old = std::mem::replace(&mut waiting.place, place);
        self.unfile(old);
        self.file(uid.clone(), place);
    }

    fn next_active(&mut self, priority: i32) -> Place {
        Place::Active(Reverse(priority), self.next_sequence())
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn file(&mut self, uid: Arc<str>, place: Place) {
        match place {
            Place::Active(priority, n) => self.active.insert((priority, n), uid),
            Place::ErrorBackoff(at, n) => self.error_backoff.insert((at, n), uid),
            Place::Backoff(at, n) => self.backoff.insert((at, n), uid),
            Place::Unschedulable(at, n) => self.unschedulable.insert((at, n), uid),
            Place::Gated | Place::InFlight => None,
        };
    }

    fn unfile(&mut self, place: Place) {
        match place {
            Place::Active(priority, n) => self.active.remove(&(priority, n)),
            Place::ErrorBackoff(at, n) => self.error_backoff.remove(&(at, n)),
            Place::Backoff(at, n) => self.backoff.remove(&(at, n)),
            Place::Unschedulable(at, n) => self.unschedulable.remove(&(at, n)),
            Place::Gated | Place::InFlight => None,
        };
    }
}

/// Doubles with each attempt.
fn back_off(attempts: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

/// Whether an event may turn the verdict on a Pod. Rather once too often than once too few.
fn may_help(
    event: Event<'_>,
    pod: &Candidate,
    rejected_by: &BTreeSet<&'static str>,
    snapshot: &Snapshot,
) -> bool {
    // Nobody was against it: there were no Nodes, or the reason is not known.
    if rejected_by.is_empty() {
        return true;
    }
    let looks_around = PLUGINS.iter().any(|plugin| plugin.looks_around && rejected_by.contains(plugin.name));
    match event {
        Event::Node(name) => looks_around || fits_now(name, pod, snapshot),
        Event::PodGone { node } => {
            let crowded = rejected_by.contains("NodeResourcesFit") || rejected_by.contains("NodePorts");
            looks_around || (crowded && fits_now(node, pod, snapshot))
        }
        Event::PodCame => looks_around,
        Event::Namespace => rejected_by.contains("InterPodAffinity"),
    }
}

/// By the plugins that look at the Node alone.
fn fits_now(node: &str, pod: &Candidate, snapshot: &Snapshot) -> bool {
    let Some(node) = snapshot.node(node) else { return false };
    let plugins = PLUGINS.iter().filter(|plugin| !plugin.looks_around);
    pre_filter_of(plugins, pod, snapshot).is_ok_and(|filters| filter(&filters, node).is_ok())
}

/// Whether two states of a counted Pod differ in what rules about other Pods look at.
pub(crate) fn looks_different(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels != new.labels || old.terminating != new.terminating
}
