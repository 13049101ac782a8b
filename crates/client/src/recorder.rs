//! Events: what happened to an object, for people to read. Recording never waits and never fails;
//! equal events become one with a count, similar ones are combined, an object that floods is cut.
//! Upstream counterpart: `k8s.io/client-go/tools/record` with its correlator.

use crate::api::{Api, PatchKind};
use crate::error::Error;
use crate::transport::Client;
use parking_lot::Mutex;
use serde_json::json;
use skeg_api::meta::ObjectRef;
use skeg_api::{Gvr, Value};
use skeg_base::{Backoff, Clock, HashMap, HashSet, Timestamp, hash_of, new_map, new_set};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events of one object go through one lane, in order.
const LANES: usize = 4;
/// Beyond this many waiting events per lane, new ones are dropped.
const LANE_LEN_MAX: usize = 256;
/// How often an event is sent again when there is no answer.
const TRIES_MAX: u32 = 5;

/// Distinct messages of otherwise equal events, within the interval, before they are combined.
const SIMILAR_MAX: usize = 10;
const SIMILAR_INTERVAL_S: i64 = 600;
/// Events about one object at once, and the time after which one more is let through.
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL_S: f64 = 300.0;
/// Entries in each of the correlator's tables.
const REMEMBERED_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Records events of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    component: String,
    host: String,
    clock: Clock,
    correlator: Mutex<Correlator>,
    lanes: Vec<mpsc::Sender<Deed>>,
}

impl Recorder {
    /// A recorder that writes through `client` until `cancel` is cancelled. `host` is empty for
    /// components that belong to no node. Call inside a runtime.
    pub fn new(
        client: &Client,
        component: &str,
        host: &str,
        clock: Clock,
        cancel: &CancellationToken,
    ) -> Self {
        let api = client.dynamic(&Gvr::new("", "v1", "events"));
        let lanes = (0..LANES).map(|_| {
            let (sender, receiver) = mpsc::channel(LANE_LEN_MAX);
            tokio::spawn(send_all(api.clone(), receiver, cancel.clone()));
            sender
        });
        Recorder(Arc::new(Inner {
            component: component.to_owned(),
            host: host.to_owned(),
            clock,
            correlator: Mutex::new(Correlator::new()),
            lanes: lanes.collect(),
        }))
    }

    pub fn event(&self, about: &ObjectRef, event_type: EventType, reason: &str, message: &str) {
        self.event_at(about, "", event_type, reason, message);
    }

    /// An event that names what was done or tried: `Binding`.
    pub fn event_of(
        &self,
        action: &str,
        about: &ObjectRef,
        event_type: EventType,
        reason: &str,
        message: &str,
    ) {
        let said = Said { action, ..self.said(about, event_type, reason, message) };
        self.record(&said);
    }

    /// An event about a part of the object: `spec.containers{web}`.
    pub fn event_at(
        &self,
        about: &ObjectRef,
        field_path: &str,
        event_type: EventType,
        reason: &str,
        message: &str,
    ) {
        let said = Said { field_path, ..self.said(about, event_type, reason, message) };
        self.record(&said);
    }

    fn said<'a>(
        &'a self,
        about: &'a ObjectRef,
        event_type: EventType,
        reason: &'a str,
        message: &'a str,
    ) -> Said<'a> {
        Said {
            component: &self.0.component,
            host: &self.0.host,
            about,
            field_path: "",
            action: "",
            event_type: event_type.as_str(),
            reason,
            message,
        }
    }

    fn record(&self, said: &Said<'_>) {
        let inner = &*self.0;
        let Some(deed) = inner.correlator.lock().correlate(said, inner.clock.now()) else { return };
        let lane = hash_of(&(&said.about.namespace, &said.about.name)) as usize % LANES;
        if inner.lanes[lane].try_send(deed).is_err() {
            tracing::debug!(said.reason, said.message, "too many events, one is dropped");
        }
    }
}

/// An event as it is recorded.
struct Said<'a> {
    component: &'a str,
    host: &'a str,
    about: &'a ObjectRef,
    field_path: &'a str,
    action: &'a str,
    event_type: &'a str,
    reason: &'a str,
    message: &'a str,
}

impl Said<'_> {
    fn source_and_object(&self) -> String {
        let about = self.about;
        [
            self.component,
            self.host,
            &about.kind,
            &about.namespace,
            &about.name,
            &about.uid,
            &about.api_version,
        ]
        .join("\u{1f}")
    }

    fn to_value(&self, name: &str, message: &str, count: u32, first: Timestamp, last: Timestamp) -> Value {
        let mut involved = self.about.to_value();
        if !self.field_path.is_empty() {
            involved["fieldPath"] = self.field_path.into();
        }
        let mut source = json!({ "component": self.component });
        if !self.host.is_empty() {
            source["host"] = self.host.into();
        }
        let mut event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": namespace_of(self.about) },
            "involvedObject": involved,
            "reason": self.reason,
            "message": message,
            "source": source,
            "firstTimestamp": seconds(first),
            "lastTimestamp": seconds(last),
            "count": count,
            "type": self.event_type,
            "reportingComponent": self.component,
            "reportingInstance": self.host,
        });
        if !self.action.is_empty() {
            event["action"] = self.action.into();
        }
        event
    }
}

fn namespace_of(about: &ObjectRef) -> &str {
    if about.namespace.is_empty() { "default" } else { &about.namespace }
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What to write for an event.
#[derive(Clone, Debug, PartialEq)]
struct Deed {
    namespace: String,
    name: String,
    event: Value,
    /// The event was written before; this is what changes.
    patch: Option<Value>,
}

/// A table that forgets what was not used for longest.
struct Recent<V> {
    entries: HashMap<String, (u64, V)>,
    order: BTreeMap<u64, String>,
    tick: u64,
}

impl<V> Recent<V> {
    fn new() -> Self {
        Recent { entries: new_map(), order: BTreeMap::new(), tick: 0 }
    }

    fn get_or_insert(&mut self, key: &str, make: impl FnOnce() -> V) -> &mut V {
        self.tick += 1;
        match self.entries.get(key) {
            Some((used, _)) => {
                self.order.remove(used);
            }
            None if self.entries.len() >= REMEMBERED_MAX => {
                if let Some((_, oldest)) = self.order.pop_first() {
                    self.entries.remove(&oldest);
                }
            }
            None => {}
        }
        self.order.insert(self.tick, key.to_owned());
        let entry = self.entries.entry(key.to_owned()).or_insert_with(|| (0, make()));
        entry.0 = self.tick;
        &mut entry.1
    }
}

struct Correlator {
    /// Messages of events that differ in nothing else, and when the last one came.
    similar: Recent<(HashSet<String>, Timestamp)>,
    /// Tokens left for a source and object.
    spam: Recent<(f64, Timestamp)>,
    written: Recent<Written>,
    sequence: u64,
}

struct Written {
    name: String,
    count: u32,
    first: Timestamp,
}

impl Correlator {
    fn new() -> Self {
        Correlator { similar: Recent::new(), spam: Recent::new(), written: Recent::new(), sequence: 0 }
    }

    fn correlate(&mut self, said: &Said<'_>, now: Timestamp) -> Option<Deed> {
        let (key, message) = self.aggregate(said, now);
        self.sequence += 1;
        // Events of the same microsecond need names of their own.
        let unique = now.as_nanosecond() as u64 + self.sequence % 1000;
        let written = self.written.get_or_insert(&key, || Written {
            name: event_name(&said.about.name, unique),
            count: 0,
            first: now,
        });
        written.count += 1;
        let (name, count, first) = (written.name.clone(), written.count, written.first);
        if !self.admit(said, now) {
            return None;
        }
        let patch =
            (count > 1).then(|| json!({ "count": count, "lastTimestamp": seconds(now), "message": message }));
        let event = said.to_value(&name, &message, count, first, now);
        Some(Deed { namespace: namespace_of(said.about).to_owned(), name, event, patch })
    }

    /// The key of the event to count and its message, which may stand for several.
    fn aggregate(&mut self, said: &Said<'_>, now: Timestamp) -> (String, String) {
        let shared = [&said.source_and_object(), said.event_type, said.reason].join("\u{1f}");
        let (messages, last) = self.similar.get_or_insert(&shared, || (new_set(), now));
        if now.as_second() - last.as_second() > SIMILAR_INTERVAL_S {
            messages.clear();
        }
        *last = now;
        if messages.len() < SIMILAR_MAX {
            messages.insert(said.message.to_owned());
        }
        if messages.len() < SIMILAR_MAX {
            return ([&shared, said.field_path, said.message].join("\u{1f}"), said.message.to_owned());
        }
        (shared, format!("(combined from similar events): {}", said.message))
    }

    fn admit(&mut self, said: &Said<'_>, now: Timestamp) -> bool {
        let (tokens, since) = self.spam.get_or_insert(&said.source_and_object(), || (SPAM_BURST, now));
        let elapsed_s = now.duration_since(*since).as_secs_f64();
        *tokens = (*tokens + elapsed_s / SPAM_REFILL_S).min(SPAM_BURST);
        *since = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

/// Unique and short enough for an object name.
fn event_name(object: &str, unique: u64) -> String {
    let object = object.get(..object.len().min(230)).unwrap_or(object);
    format!("{object}.{unique:x}")
}

async fn send_all(api: Api<Value>, mut deeds: mpsc::Receiver<Deed>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            deed = deeds.recv() => match deed {
                Some(deed) => tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    () = send(&api, deed) => {}
                },
                None => return,
            }
        }
    }
}

async fn send(api: &Api<Value>, deed: Deed) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    for _ in 0..TRIES_MAX {
        match write(api, &deed).await {
            Ok(()) => return,
            Err(Error::Transport(_)) => tokio::time::sleep(backoff.next()).await,
            Err(error) => {
                // Also where the namespace is being deleted: the event is lost, as upstream.
                tracing::debug!(event = deed.name, %error, "an event is refused");
                return;
            }
        }
    }
    tracing::debug!(event = deed.name, "an event is lost: no answer");
}

async fn write(api: &Api<Value>, deed: &Deed) -> Result<(), Error> {
    if let Some(patch) = &deed.patch {
        match api.patch(&deed.namespace, &deed.name, PatchKind::Strategic, patch, None).await {
            Ok(_) => return Ok(()),
            // It expired meanwhile, or was never written.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    match api.create(&deed.namespace, &deed.event).await {
        // An earlier try arrived after all.
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> ObjectRef {
        ObjectRef {
            kind: "Pod".into(),
            namespace: "default".into(),
            name: "web".into(),
            ..Default::default()
        }
    }

    fn say<'a>(about: &'a ObjectRef, reason: &'a str, message: &'a str) -> Said<'a> {
        Said {
            component: "test",
            host: "",
            about,
            field_path: "",
            action: "",
            event_type: "Normal",
            reason,
            message,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn equal_events_are_counted() {
        let (mut correlator, about) = (Correlator::new(), about());
        let first = correlator.correlate(&say(&about, "Pulled", "a"), at(0)).unwrap();
        assert_eq!(first.patch, None);
        assert_eq!(first.event["count"], 1);
        let second = correlator.correlate(&say(&about, "Pulled", "a"), at(5)).unwrap();
        assert_eq!(second.name, first.name);
        let patch = second.patch.unwrap();
        assert_eq!(patch["count"], 2);
        assert_eq!(patch["lastTimestamp"], "2023-11-14T22:13:25Z");
        assert_eq!(second.event["firstTimestamp"], first.event["firstTimestamp"]);
        let other = correlator.correlate(&say(&about, "Pulled", "b"), at(5)).unwrap();
        assert_eq!(other.patch, None);
        assert_ne!(other.name, first.name);
    }

    #[test]
    fn similar_events_are_combined() {
        let (mut correlator, about) = (Correlator::new(), about());
        let messages: Vec<_> = (0..12).map(|i| format!("try {i}")).collect();
        let deeds: Vec<_> = messages
            .iter()
            .map(|m| correlator.correlate(&say(&about, "Failed", m), at(1)).unwrap())
            .collect();
        assert_eq!(deeds[8].event["message"], "try 8");
        assert_eq!(deeds[9].event["message"], "(combined from similar events): try 9");
        assert_eq!(deeds[11].name, deeds[9].name);
        assert_eq!(deeds[11].patch.as_ref().unwrap()["count"], 3);
    }

    #[test]
    fn a_flood_is_cut_and_comes_back_slowly() {
        let (mut correlator, about) = (Correlator::new(), about());
        let written =
            (0..40).filter(|_| correlator.correlate(&say(&about, "Flood", "x"), at(0)).is_some()).count();
        assert_eq!(written, 25);
        assert!(correlator.correlate(&say(&about, "Flood", "x"), at(299)).is_none());
        assert!(correlator.correlate(&say(&about, "Flood", "x"), at(301)).is_some());
    }

    #[test]
    fn tables_are_bounded() {
        let mut recent = Recent::new();
        for i in 0..REMEMBERED_MAX + 10 {
            recent.get_or_insert(&i.to_string(), || i);
            recent.get_or_insert("0", || 0);
        }
        assert_eq!(recent.entries.len(), REMEMBERED_MAX);
        assert_eq!(recent.order.len(), REMEMBERED_MAX);
        assert!(recent.entries.contains_key("0"), "what is used stays");
    }
}
