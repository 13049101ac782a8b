//! Keeps the kinds table in step with the CustomResourceDefinitions: rows come before a definition
//! is told to be established, and go when it is gone; a definition that is deleted takes its
//! objects with it. What a definition's status should say is decided in [`names`].
//! Upstream counterparts: `apiextensions-apiserver/pkg/controller/{status,establish,finalizer}` and
//! `pkg/apiserver/customresource_handler.go`.

mod names;

use crate::cache::{Cache, Entry, Filter, Resource};
use crate::local::{LocalService, send};
use crate::server::ApiServer;
use http::Method;
use names::Names;
use serde_json::{Value, json};
use skeg_api::{Gvr, Kind, Kinds, crd, meta};
use skeg_base::{Backoff, HashMap, new_map};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const STORAGE: &str = "apiextensions.k8s.io/customresourcedefinitions/";
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// What is known of one definition.
struct Known {
    /// The revision that was looked at; 0 to look again.
    revision: u64,
    group: String,
    names: Names,
    /// What the rows were made of.
    made_of: String,
    rows: Vec<Gvr>,
    /// Its objects are being deleted.
    is_emptied: bool,
}

/// The definitions and their rows.
pub struct Definitions {
    kinds: Arc<Kinds>,
    resource: Arc<Resource>,
    known: HashMap<String, Known>,
}

/// What is to be done about one definition, beyond its rows.
struct Work {
    name: String,
    /// The definition with its new status.
    status: Option<Value>,
    /// Its objects are to be deleted.
    empty: bool,
}

impl Definitions {
    /// Reads the stored definitions and adds the rows of those that were established: before the
    /// first request is served.
    pub fn load(kinds: &Arc<Kinds>, cache: &Cache) -> Option<Self> {
        let resource = cache.resource(STORAGE)?;
        let mut definitions = Definitions { kinds: kinds.clone(), resource, known: new_map() };
        let mut added = Vec::new();
        for entry in definitions.entries() {
            let definition = entry.value();
            if crd::is_established(&definition) {
                let (known, mut rows) = known(&definition, 0);
                added.append(&mut rows);
                definitions.known.insert(entry.name().to_owned(), known);
            }
        }
        if !added.is_empty() {
            kinds.replace(&[], added);
        }
        Some(definitions)
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.resource.list(&Filter::default(), None, 0).entries
    }

    /// Looks at all definitions that changed. One change of the table at most.
    fn look(&mut self, now: &str) -> Vec<Work> {
        let entries = self.entries();
        let there: BTreeSet<&str> = entries.iter().map(|entry| entry.name()).collect();
        let gone: Vec<String> =
            self.known.keys().filter(|name| !there.contains(name.as_str())).cloned().collect();
        let (mut old, mut new, mut work) = (Vec::new(), Vec::new(), Vec::new());
        for name in gone {
            if let Some(known) = self.known.remove(&name) {
                self.look_again(&known.group);
                old.extend(known.rows);
            }
        }
        // Those that were first keep their names.
        let mut changed: Vec<_> = entries
            .iter()
            .filter(|entry| self.known.get(entry.name()).is_none_or(|known| known.revision != entry.revision))
            .collect();
        changed.sort_by_key(|entry| entry.revision);
        for entry in changed {
            let definition = entry.value();
            let group = definition["spec"]["group"].as_str().unwrap_or_default();
            let others =
                self.known.iter().filter(|(name, known)| *name != entry.name() && known.group == group);
            let taken: Vec<&Names> = others.map(|(_, known)| &known.names).collect();
            let mut wanted = definition.clone();
            names::settle(&mut wanted, &taken, now);
            let terminating =
                meta::is_deleting(&definition) && meta::finalizers(&definition).any(|f| f == crd::CLEANUP);
            if terminating {
                names::terminating(&mut wanted, now);
            }
            let before = self.known.remove(entry.name());
            let accepted = Names::of(&wanted["status"]["acceptedNames"]);
            if before.as_ref().is_some_and(|before| before.names != accepted) {
                self.look_again(group);
            }
            let mut fresh = Known {
                revision: entry.revision,
                group: group.to_owned(),
                names: accepted,
                made_of: String::new(),
                rows: Vec::new(),
                is_emptied: terminating,
            };
            let was_emptied = before.as_ref().is_some_and(|before| before.is_emptied);
            match before {
                Some(before) if before.made_of == made_of(&wanted) => {
                    (fresh.made_of, fresh.rows) = (before.made_of, before.rows);
                }
                before => {
                    old.extend(before.into_iter().flat_map(|before| before.rows));
                    if crd::is_established(&wanted) {
                        let (made, mut rows) = known(&wanted, entry.revision);
                        (fresh.made_of, fresh.rows) = (made.made_of, made.rows);
                        new.append(&mut rows);
                    }
                }
            }
            self.known.insert(entry.name().to_owned(), fresh);
            work.push(Work {
                name: entry.name().to_owned(),
                status: (wanted["status"] != definition["status"]).then_some(wanted),
                empty: terminating && !was_emptied,
            });
        }
        if !old.is_empty() || !new.is_empty() {
            self.kinds.replace(&old, new);
        }
        work
    }

    /// Names of a group may have become free.
    fn look_again(&mut self, group: &str) {
        self.known.values_mut().filter(|known| known.group == group).for_each(|known| known.revision = 0);
    }

    fn forget(&mut self, name: &str) {
        if let Some(known) = self.known.get_mut(name) {
            (known.revision, known.is_emptied) = (0, false);
        }
    }
}

/// All that the rows of a definition depend on.
fn made_of(definition: &Value) -> String {
    // Equal documents have equal hashes; the documents themselves are large.
    let parts =
        json!([definition["spec"], definition["status"]["acceptedNames"], meta::is_deleting(definition)]);
    let digest = ring::digest::digest(&ring::digest::SHA256, parts.to_string().as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}{}", crd::is_established(definition))
}

fn known(definition: &Value, revision: u64) -> (Known, Vec<skeg_api::Kind>) {
    let accepted = &definition["status"]["acceptedNames"];
    let rows = crd::rows(definition, accepted).unwrap_or_else(|error| {
        tracing::warn!(crd = meta::name(definition), %error, "the schema of a custom resource cannot be compiled");
        Vec::new()
    });
    let known = Known {
        revision,
        group: definition["spec"]["group"].as_str().unwrap_or_default().to_owned(),
        names: Names::of(accepted),
        made_of: made_of(definition),
        rows: rows.iter().map(skeg_api::Kind::gvr).collect(),
        is_emptied: false,
    };
    (known, rows)
}

/// Follows the definitions until the server stops.
pub async fn run(server: Arc<ApiServer>, mut definitions: Definitions) {
    let mut changes = definitions.resource.changes();
    let service = server.loopback();
    let stop = server.tasks().1.clone();
    let (failed, mut failures) = tokio::sync::mpsc::channel::<String>(64);
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
    // Definitions to look at again, once a while has passed.
    let mut again: Vec<String> = Vec::new();
    loop {
        changes.borrow_and_update();
        let now = meta::format_time(server.clock().now_seconds());
        for work in definitions.look(&now) {
            if let Some(definition) = work.status {
                let written = put(&service, &format!("{PATH}/{}/status", work.name), &definition).await;
                if let Err(why) = written {
                    tracing::warn!(crd = work.name, why, "status not written, will be retried");
                    again.push(work.name);
                    continue;
                }
            }
            if work.empty {
                let (own, name, failed) = (server.clone(), work.name, failed.clone());
                server.tasks().0.spawn(async move {
                    if let Err(why) = empty(&own, &name).await {
                        tracing::warn!(crd = name, why, "objects not deleted, will be retried");
                        // Nobody listens any more where the server stops.
                        let _ = failed.send(name).await;
                    }
                });
            }
        }
        if again.is_empty() {
            backoff.reset();
        }
        let pause = if again.is_empty() { Duration::ZERO } else { backoff.next() };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            name = failures.recv() => again.extend(name),
            () = tokio::time::sleep(pause), if !again.is_empty() => {
                again.drain(..).for_each(|name| definitions.forget(&name));
            }
        }
    }
}

/// Deletes the objects of a definition that is being deleted, waits until they are gone, and lets
/// the definition go.
async fn empty(server: &Arc<ApiServer>, name: &str) -> Result<(), String> {
    let service = server.loopback();
    let definition = |server: &ApiServer| server.seams().reader.get(&crate::resources::DEFINITIONS, "", name);
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map_err(|error| error.to_string());
    let Some(bytes) = definition(server) else { return Ok(()) };
    let value = parse(&bytes)?;
    let spec = &value["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&value["status"]["acceptedNames"]["plural"]));
    if crd::is_established(&value) && !delete_objects(server, &service, &group, &plural).await? {
        return Ok(());
    }
    // Another writer may be first: then the newer one is read.
    for _ in 0..WRITES_MAX {
        let Some(bytes) = definition(server) else { return Ok(()) };
        let mut last = parse(&bytes)?;
        let now = meta::format_time(server.clock().now_seconds());
        names::emptied(&mut last, &now);
        match put(&service, &format!("{PATH}/{name}/status"), &last).await {
            Ok(Some(written)) => last = parse(&written)?,
            Ok(None) => continue,
            Err(why) => return Err(why),
        }
        let finalizers = meta::finalizers(&last).filter(|f| *f != crd::CLEANUP).map(str::to_owned).collect();
        meta::set_finalizers(&mut last, finalizers);
        if put(&service, &format!("{PATH}/{name}"), &last).await?.is_some() {
            return Ok(());
        }
    }
    Err("other writers were always first".to_owned())
}

/// Deletes all objects of a kind and waits until they are gone; false where the server stops first.
async fn delete_objects(
    server: &Arc<ApiServer>,
    service: &LocalService,
    group: &str,
    plural: &str,
) -> Result<bool, String> {
    let Some(resource) = server.cache.resource(&format!("{group}/{plural}/")) else { return Ok(true) };
    let mut changes = resource.changes();
    // Namespaces, with the revision at which all their objects were being deleted.
    let mut asked: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let left = resource.list(&Filter::default(), None, 0).entries;
        // Writes under way when the deletion began may come after the first request.
        let is_new = |entry: &Entry| match asked.get(entry.namespace()) {
            None => true,
            Some(revision) => entry.revision > *revision && !meta::is_deleting(&entry.value()),
        };
        let namespaces: BTreeSet<String> =
            left.iter().filter(|entry| is_new(entry)).map(|entry| entry.namespace().to_owned()).collect();
        let snapshot = server.kinds().snapshot();
        // In the stored version no webhook is asked.
        let is_stored = |kind: &&Arc<Kind>| kind.custom.as_ref().is_some_and(|custom| custom.is_storage);
        let own = |kind: &&Arc<Kind>| &*kind.gvk.group == group && &*kind.plural == plural;
        let served = snapshot.iter().filter(own).find(is_stored).or_else(|| snapshot.iter().find(own));
        for namespace in namespaces {
            let Some(kind) = served else {
                // Nobody could remove their finalizers, where no version is served.
                for entry in left.iter().filter(|entry| entry.namespace() == namespace) {
                    let expect = skeg_store::Expect::Present;
                    let write =
                        skeg_store::Write { key: entry.key().clone(), expect, value: None, ttl: None };
                    // Who is first does not matter.
                    let _ = server.cache.store().write(write).await;
                }
                continue;
            };
            let scope = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
            let path = format!("/apis/{group}/{}{scope}/{plural}", kind.gvk.version);
            send(service, Method::DELETE, &path, String::new()).await?;
            asked.insert(namespace, server.cache.revision());
        }
        if resource.count() == 0 {
            return Ok(true);
        }
        tokio::select! {
            biased;
            () = server.tasks().1.cancelled() => return Ok(false),
            changed = changes.changed() => if changed.is_err() { return Ok(false) },
        }
    }
}

/// How often a definition is written against other writers.
const WRITES_MAX: usize = 10;

/// Writes an object; nothing where it changed or went meanwhile.
async fn put(service: &LocalService, path: &str, object: &Value) -> Result<Option<bytes::Bytes>, String> {
    match send(service, Method::PUT, path, object.to_string()).await {
        Ok(body) => Ok(Some(body)),
        Err(why) if why.starts_with("409") || why.starts_with("404") => Ok(None),
        Err(why) => Err(why),
    }
}
