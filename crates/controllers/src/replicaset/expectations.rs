//! What a ReplicaSet has done and its informer has not yet shown. A pass that acted on a cache
//! that misses its own writes would create or delete twice. Every creation and deletion is known
//! by uid, so an unrelated event can never clear an expectation. Pure.
//! Upstream counterpart: `UIDTrackingControllerExpectations`.

use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// After this long an expectation no longer holds back a pass: its event must have been lost.
pub(crate) const TIMEOUT: SignedDuration = SignedDuration::from_mins(5);

/// The expectations of all sets, by the set's uid.
#[derive(Debug, Default)]
pub(crate) struct Expectations(BTreeMap<String, Pending>);

#[derive(Debug, Default)]
struct Pending {
    /// Creations whose answer is outstanding.
    in_flight: usize,
    /// Uids the informer showed while a creation was in flight: its event may overtake its answer.
    seen: BTreeSet<String>,
    created: BTreeSet<String>,
    deleting: BTreeSet<String>,
    /// A creation was not answered: it may have happened or not.
    in_doubt: bool,
    since: Option<Timestamp>,
}

impl Pending {
    fn is_fulfilled(&self) -> bool {
        self.in_flight == 0 && self.created.is_empty() && self.deleting.is_empty() && !self.in_doubt
    }
}

impl Expectations {
    /// How long the set must still wait; `None` if it may act.
    pub(crate) fn wait(&self, key: &str, now: Timestamp) -> Option<SignedDuration> {
        let pending = self.0.get(key).filter(|pending| !pending.is_fulfilled())?;
        let left = TIMEOUT - now.duration_since(pending.since?);
        left.is_positive().then_some(left)
    }

    /// A creation is about to be sent.
    pub(crate) fn creating(&mut self, key: &str, now: Timestamp) {
        let pending = self.at(key, now);
        pending.in_flight += 1;
    }

    /// A creation was answered: with the uid of the new Pod, or without one if it failed.
    pub(crate) fn created(&mut self, key: &str, uid: Option<&str>) {
        let Some(pending) = self.0.get_mut(key) else { return };
        pending.in_flight = pending.in_flight.saturating_sub(1);
        if let Some(uid) = uid
            && !pending.seen.contains(uid)
        {
            pending.created.insert(uid.to_owned());
        }
        self.tidy(key);
    }

    /// A creation was not answered. Until the server was asked, nothing may be done.
    pub(crate) fn doubt(&mut self, key: &str, now: Timestamp) {
        self.at(key, now).in_doubt = true;
    }

    pub(crate) fn is_in_doubt(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|pending| pending.in_doubt)
    }

    /// Deletions are about to be sent.
    pub(crate) fn deleting<'a>(
        &mut self,
        key: &str,
        uids: impl IntoIterator<Item = &'a str>,
        now: Timestamp,
    ) {
        let pending = self.at(key, now);
        pending.deleting.extend(uids.into_iter().map(str::to_owned));
        self.tidy(key);
    }

    /// A deletion failed, so no event will come.
    pub(crate) fn not_deleted(&mut self, key: &str, uid: &str) {
        self.observed_deletion(key, uid);
    }

    /// The informer showed a Pod of the set for the first time.
    pub(crate) fn observed_creation(&mut self, key: &str, uid: &str) {
        let Some(pending) = self.0.get_mut(key) else { return };
        pending.created.remove(uid);
        if pending.in_flight > 0 {
            pending.seen.insert(uid.to_owned());
        }
        self.tidy(key);
    }

    /// The informer showed that a Pod is going or gone.
    pub(crate) fn observed_deletion(&mut self, key: &str, uid: &str) {
        let Some(pending) = self.0.get_mut(key) else { return };
        pending.deleting.remove(uid);
        // A Pod that went before its creation was seen will not be seen.
        pending.created.remove(uid);
        if pending.in_flight > 0 {
            pending.seen.insert(uid.to_owned());
        }
        self.tidy(key);
    }

    /// The set is gone, or its state was read anew from the server.
    pub(crate) fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }

    fn at(&mut self, key: &str, now: Timestamp) -> &mut Pending {
        let pending = self.0.entry(key.to_owned()).or_default();
        pending.since = Some(now);
        pending
    }

    fn tidy(&mut self, key: &str) {
        if self.0.get(key).is_some_and(Pending::is_fulfilled) {
            self.0.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_creation_is_expected_until_its_own_event() {
        let mut expectations = Expectations::default();
        expectations.creating("a", NOW);
        assert!(expectations.wait("a", NOW).is_some());
        expectations.created("a", Some("u1"));
        expectations.observed_creation("a", "other");
        expectations.observed_creation("b", "u1");
        assert!(expectations.wait("a", NOW).is_some());
        expectations.observed_creation("a", "u1");
        assert!(expectations.wait("a", NOW).is_none());
    }

    #[test]
    fn an_event_may_overtake_its_answer() {
        let mut expectations = Expectations::default();
        expectations.creating("a", NOW);
        expectations.creating("a", NOW);
        expectations.observed_creation("a", "u1");
        expectations.created("a", Some("u1"));
        assert!(expectations.wait("a", NOW).is_some(), "the second is still in flight");
        expectations.created("a", None);
        assert!(expectations.wait("a", NOW).is_none());
        assert!(expectations.0.is_empty());
    }

    #[test]
    fn a_deletion_is_expected_by_uid() {
        let mut expectations = Expectations::default();
        expectations.deleting("a", ["u1", "u2"], NOW);
        expectations.observed_deletion("a", "u1");
        expectations.observed_deletion("a", "u1");
        assert!(expectations.wait("a", NOW).is_some());
        expectations.not_deleted("a", "u2");
        assert!(expectations.wait("a", NOW).is_none());
    }

    #[test]
    fn a_lost_event_holds_back_for_a_bounded_time() {
        let mut expectations = Expectations::default();
        expectations.creating("a", NOW);
        expectations.created("a", Some("u1"));
        assert_eq!(expectations.wait("a", NOW), Some(TIMEOUT));
        assert_eq!(expectations.wait("a", NOW + TIMEOUT), None);
    }
}
