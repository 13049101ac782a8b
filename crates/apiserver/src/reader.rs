//! Reading current objects from the watch cache, for the parts of the API server that decide by
//! them (authorization, admission, allocation).

use bytes::Bytes;
use skeg_api::{Gvr, Value};
use std::sync::Arc;
use tokio::sync::watch;

/// Reads of the cache. Each is a moment's truth: at least as new as every write acknowledged to
/// this process before the call.
pub trait Reader: Send + Sync + 'static {
    /// The object's JSON with its resourceVersion, if it exists. Group, version and resource name
    /// the kind; `namespace` is empty for cluster-scoped kinds.
    fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Bytes>;

    /// All objects of a kind, in one namespace or (empty) all.
    fn list(&self, gvr: &Gvr, namespace: &str) -> Vec<Bytes>;

    /// A counter that rises with each change of the kind: for compiled views such as RBAC's.
    fn changes(&self, gvr: &Gvr) -> watch::Receiver<u64>;

    /// The names of all objects of a cluster-scoped kind with the revisions of their last changes, and
    /// the revision at which these are all: for those who then look at what changed after it alone.
    fn revisions(&self, gvr: &Gvr) -> (Vec<(String, u64)>, u64);

    fn get_value(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Arc<Value>> {
        serde_json::from_slice(&self.get(gvr, namespace, name)?).ok().map(Arc::new)
    }

    fn list_values(&self, gvr: &Gvr, namespace: &str) -> Vec<Arc<Value>> {
        let found = self.list(gvr, namespace);
        found.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok().map(Arc::new)).collect()
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use skeg_api::meta;
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// With the revisions of their last changes.
    type Objects = BTreeMap<(String, String), (Bytes, u64)>;
    type Stored = (Objects, Option<watch::Sender<u64>>);

    /// Objects that a test puts there.
    #[derive(Default)]
    pub struct Fake {
        kinds: Mutex<BTreeMap<Gvr, Stored>>,
        /// How many objects were read.
        pub read: AtomicUsize,
    }

    impl Fake {
        pub fn put(&self, gvr: &Gvr, object: Value) {
            let key = (meta::namespace(&object).to_owned(), meta::name(&object).to_owned());
            self.change(gvr, |objects, revision| {
                objects.insert(key, (object.to_string().into(), revision));
            });
        }

        pub fn remove(&self, gvr: &Gvr, namespace: &str, name: &str) {
            self.change(gvr, |objects, _| {
                objects.remove(&(namespace.to_owned(), name.to_owned()));
            });
        }

        fn change(&self, gvr: &Gvr, edit: impl FnOnce(&mut Objects, u64)) {
            let mut all = self.kinds.lock().unwrap();
            let (objects, sender) = all.entry(gvr.clone()).or_default();
            let sender = sender.get_or_insert_with(|| watch::Sender::new(0));
            edit(objects, *sender.borrow() + 1);
            sender.send_modify(|n| *n += 1);
        }
    }

    impl Reader for Fake {
        fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Bytes> {
            let all = self.kinds.lock().unwrap();
            let (bytes, _) = all.get(gvr)?.0.get(&(namespace.to_owned(), name.to_owned()))?;
            self.read.fetch_add(1, Ordering::Relaxed);
            Some(bytes.clone())
        }

        fn list(&self, gvr: &Gvr, namespace: &str) -> Vec<Bytes> {
            let all = self.kinds.lock().unwrap();
            let Some((objects, _)) = all.get(gvr) else { return Vec::new() };
            let wanted = objects.iter().filter(|((ns, _), _)| namespace.is_empty() || ns == namespace);
            let found: Vec<_> = wanted.map(|(_, (bytes, _))| bytes.clone()).collect();
            self.read.fetch_add(found.len(), Ordering::Relaxed);
            found
        }

        fn revisions(&self, gvr: &Gvr) -> (Vec<(String, u64)>, u64) {
            let all = self.kinds.lock().unwrap();
            let Some((objects, sender)) = all.get(gvr) else { return Default::default() };
            let each = objects.iter().map(|((_, name), (_, revision))| (name.clone(), *revision));
            (each.collect(), sender.as_ref().map_or(0, |sender| *sender.borrow()))
        }

        fn changes(&self, gvr: &Gvr) -> watch::Receiver<u64> {
            let mut all = self.kinds.lock().unwrap();
            all.entry(gvr.clone()).or_default().1.get_or_insert_with(|| watch::Sender::new(0)).subscribe()
        }
    }
}
