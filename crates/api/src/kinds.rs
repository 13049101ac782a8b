//! The kinds table: one row says all that the generic API path needs to know of a kind. The table
//! is open at run time; custom resources are rows like any other.

use crate::crd::{Conversion, Custom};
use crate::field::FieldError;
use crate::gvk::{Gvk, Gvr};
use crate::jsonpath::JsonPath;
use crate::portion::Portion;
use crate::schema::Schema;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Poll, Waker};
use std::time::Duration;

/// The verbs of a resource, in the order discovery shows them.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A subresource of a kind and how the generic path serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `binding`, `eviction`, `token`, `log`, `exec`, …
    pub name: &'static str,
    /// The kind that a request or an answer carries, where it is not the parent's.
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: &'static [&'static str],
}

/// A column of the Table that `kubectl get` prints.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `date`, `boolean`, `number`.
    pub kind: &'static str,
    /// `name` for the name column, otherwise empty.
    pub format: &'static str,
    pub description: String,
    /// 0 in the plain output, 1 only with `-o wide`.
    pub priority: i32,
    pub cell: Cell,
}

/// How a column gets its value.
#[derive(Clone, Debug)]
pub enum Cell {
    /// A dotted path, as `additionalPrinterColumns` has it without the leading dot.
    Path(String),
    /// As custom resources say it.
    JsonPath(Arc<JsonPath>),
    /// Computed from the object; the second argument is the time now (for ages).
    Fn(fn(&Value, jiff::Timestamp) -> Value),
}

/// What a kind does beyond the generic path. Every function is pure. The defaults do nothing.
#[derive(Clone, Copy)]
pub struct Strategy {
    /// Fills defaults, after decoding and again after each patch. Idempotent.
    pub default: fn(&mut Value),
    /// Before create: drop what clients may not set (the generic path already drops `status` of
    /// kinds with a status subresource and sets `metadata.generation`).
    pub prepare_create: fn(&mut Value),
    /// Before update: `(new, old)`. The generic path already keeps status and metadata rules.
    pub prepare_update: fn(&mut Value, &Value),
    /// Before an update of the status subresource: `(new, old)`; the generic path has already
    /// taken everything but `status` (and managed fields) from `old`.
    pub prepare_status: fn(&mut Value, &Value),
    /// Beyond `metadata`, which the generic path validates.
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// What only a new object must satisfy; runs after `validate` on create.
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// `(new, old)`; runs after `validate(new)` on update.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// `(new, old)` for the status subresource.
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    /// Before an update of the subresource `approval`: `(new, old)`, as for `prepare_status`.
    pub prepare_approval: fn(&mut Value, &Value),
    /// `(new, old)` for the subresource `approval`.
    pub validate_approval: fn(&Value, &Value) -> Vec<FieldError>,
    /// Parts that have subresources of their own.
    pub portions: &'static [Portion],
    /// Warnings for a create or update that goes through: `(new, old)`.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// Field-selector keys beyond `metadata.name` and `metadata.namespace`, with their values.
    pub selectable: fn(&Value) -> Vec<(&'static str, String)>,
    /// The keys that `selectable` yields: other keys are answered 400.
    pub selectable_keys: &'static [&'static str],
    /// Metadata fields whose changes `metadata.generation` counts too.
    pub generation_counts: &'static [&'static str],
    /// What a write to `status` cannot set, so that it comes to own none of it.
    pub status_resets: &'static [&'static str],
    /// The status of a new object is what its client says, as that of a Node is.
    pub status_on_create: bool,
    /// An update of an object that does not exist creates it.
    pub create_on_update: bool,
    /// An update must name the resourceVersion that it is based on.
    pub conditional_update: bool,
    /// A delete answers with the object; others answer with a Status.
    pub returns_deleted: bool,
    /// How long an object is kept after its last write.
    pub ttl: Option<Duration>,
    /// What of a write has no effect on this server yet; told with each that goes through.
    pub without_effect: Option<&'static str>,
    /// A finalizer that a delete puts on the object.
    pub delete_finalizer: Option<&'static str>,
    /// What every answer warns of: since when the kind is deprecated, and what takes its place.
    pub deprecated: Option<&'static str>,
}

impl Default for Strategy {
    fn default() -> Self {
        Strategy {
            default: |_| {},
            prepare_create: |_| {},
            prepare_update: |_, _| {},
            prepare_status: |_, _| {},
            validate: |_| Vec::new(),
            validate_create: |_| Vec::new(),
            validate_update: |_, _| Vec::new(),
            validate_status: |_, _| Vec::new(),
            prepare_approval: |_, _| {},
            validate_approval: |_, _| Vec::new(),
            portions: &[],
            warnings: |_, _| Vec::new(),
            selectable: |_| Vec::new(),
            selectable_keys: &[],
            generation_counts: &[],
            status_resets: &["spec"],
            status_on_create: false,
            create_on_update: false,
            conditional_update: false,
            returns_deleted: false,
            ttl: None,
            without_effect: None,
            delete_finalizer: None,
            deprecated: None,
        }
    }
}

impl Strategy {
    /// The part that a subresource changes.
    pub fn portion(&self, subresource: &str) -> Option<&'static Portion> {
        self.portions.iter().find(|portion| portion.name == subresource)
    }
}

/// How names of a kind are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: Namespaces, Services.
    Label,
    /// Anything that fits in a path segment: the RBAC kinds.
    PathSegment,
}

/// One row of the table.
#[derive(Clone)]
pub struct Kind {
    pub gvk: Gvk,
    pub list_kind: Arc<str>,
    pub plural: Arc<str>,
    pub singular: Arc<str>,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: Vec<Subresource>,
    pub name_rule: NameRule,
    /// Whether `metadata.generation` counts changes of the spec (anything but metadata and status).
    pub has_generation: bool,
    /// Storage prefix under `/registry/`, ending in `/`: `pods/`, `apps/deployments/`. Rows that share
    /// one are versions of the same objects (both groups of Events).
    /// Kinds that are not stored (reviews, Binding) have none.
    pub storage: Option<Arc<str>>,
    pub schema: Schema,
    pub columns: Vec<Column>,
    pub strategy: Strategy,
    /// What custom resources have beyond this.
    pub custom: Option<Arc<Custom>>,
}

impl Kind {
    /// A row as a custom resource has it where its definition says no more: of a namespace, with all
    /// verbs and a generation, no status, stored under its group.
    pub fn custom(gvk: Gvk, plural: &str, schema: Schema) -> Kind {
        Kind {
            list_kind: format!("{}List", gvk.kind).into(),
            plural: plural.into(),
            singular: gvk.kind.to_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            verbs: ALL_VERBS,
            subresources: Vec::new(),
            name_rule: NameRule::Subdomain,
            has_generation: true,
            storage: Some(format!("{}/{plural}/", gvk.group).into()),
            schema,
            columns: Vec::new(),
            strategy: Strategy { status_resets: &["metadata", "spec"], ..Strategy::default() },
            custom: Some(Arc::default()),
            gvk,
        }
    }

    pub fn gvr(&self) -> Gvr {
        Gvr {
            group: self.gvk.group.clone(),
            version: self.gvk.version.clone(),
            resource: self.plural.clone(),
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether clients see the kind in this version.
    pub fn is_served(&self) -> bool {
        self.custom.as_ref().is_none_or(|custom| custom.is_served)
    }

    /// The webhook that converts objects between versions of the kind.
    pub fn conversion(&self) -> Option<&Arc<Conversion>> {
        self.custom.as_ref().and_then(|custom| custom.conversion.as_ref())
    }

    /// What every answer warns of.
    pub fn deprecated(&self) -> Option<&str> {
        let custom = self.custom.as_ref().and_then(|custom| custom.deprecated.as_deref());
        custom.or(self.strategy.deprecated)
    }

    /// Fills defaults: those of the kind's code, and of a custom resource those of its schema.
    pub fn default(&self, object: &mut Value) {
        (self.strategy.default)(object);
        if self.custom.is_some() {
            self.schema.fill(object);
        }
    }

    /// Adds what is wrong with an object of a custom resource by its schema; what is as it was in `old`
    /// is let pass. Returns what of that is to be told.
    pub fn check(&self, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) -> Vec<String> {
        match &self.custom {
            Some(custom) => custom.check(&self.schema, new, old, errors),
            None => Vec::new(),
        }
    }

    /// Field-selector keys beyond `metadata.name` and `metadata.namespace`, with their values.
    pub fn selectable(&self, object: &Value) -> Vec<(&'static str, String)> {
        match &self.custom {
            Some(custom) => custom.selectable(object),
            None => (self.strategy.selectable)(object),
        }
    }

    pub fn selectable_keys(&self) -> &[&'static str] {
        match &self.custom {
            Some(custom) => custom.selectable_keys(),
            None => self.strategy.selectable_keys,
        }
    }

    /// The storage key of an object: `/registry/pods/default/web`.
    pub fn key(&self, namespace: &str, name: &str) -> Option<String> {
        let prefix = self.storage.as_deref()?;
        Some(if self.namespaced {
            format!("/registry/{prefix}{namespace}/{name}")
        } else {
            format!("/registry/{prefix}{name}")
        })
    }
}

/// The open table of kinds. Readers take a consistent snapshot; a change bumps the generation and
/// wakes those who wait for one.
#[derive(Default)]
pub struct Kinds {
    current: RwLock<Arc<Snapshot>>,
    /// In the order in which they came, so that a simulated run is repeatable.
    waiting: Mutex<Vec<Waker>>,
}

/// The table at one moment.
#[derive(Default)]
pub struct Snapshot {
    /// Rises with each change, for caches of discovery and OpenAPI.
    pub generation: u64,
    /// How often what is served changed beside the table.
    touched: u64,
    by_gvr: BTreeMap<Gvr, Arc<Kind>>,
    by_gvk: BTreeMap<Gvk, Arc<Kind>>,
}

impl Snapshot {
    pub fn by_gvr(&self, gvr: &Gvr) -> Option<&Arc<Kind>> {
        self.by_gvr.get(gvr).filter(|kind| kind.is_served())
    }

    pub fn by_gvk(&self, gvk: &Gvk) -> Option<&Arc<Kind>> {
        self.by_gvk.get(gvk).filter(|kind| kind.is_served())
    }

    /// All rows that are served, by group, version and resource.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.all().filter(|kind| kind.is_served())
    }

    /// As [`Snapshot::iter`], of one group; looks at no others.
    pub fn of_group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Arc<Kind>> {
        let from_group = self.by_gvr.range(Gvr::new(group, "", "")..).map(|(_, kind)| kind);
        from_group.take_while(move |kind| &*kind.gvk.group == group).filter(|kind| kind.is_served())
    }

    /// The groups with other rows than `before` has; nothing where what is served changed beside the
    /// table, since nobody knows then of which group.
    pub fn groups_other_than(&self, before: &Snapshot) -> Option<BTreeSet<Arc<str>>> {
        let other = |of: &Snapshot, than: &Snapshot| -> Vec<Arc<str>> {
            let is_other = |(gvr, kind): &(&Gvr, &Arc<Kind>)| {
                than.by_gvr.get(gvr).is_none_or(|there| !Arc::ptr_eq(there, kind))
            };
            of.by_gvr.iter().filter(is_other).map(|(gvr, _)| gvr.group.clone()).collect()
        };
        let groups = || other(self, before).into_iter().chain(other(before, self)).collect();
        (self.touched == before.touched).then(groups)
    }

    /// As [`Snapshot::iter`], with the versions of custom resources that are only stored.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.by_gvr.values()
    }
}

impl Kinds {
    pub fn new(rows: impl IntoIterator<Item = Kind>) -> Self {
        let kinds = Kinds::default();
        kinds.change(|now| now.by_gvr.extend(rows.into_iter().map(|kind| (kind.gvr(), Arc::new(kind)))));
        kinds
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the table is another than the one of generation `seen`.
    pub async fn changed(&self, seen: u64) {
        poll_fn(|task| {
            // Held over the look, so that a change comes before it or finds the waker.
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if self.snapshot().generation != seen {
                return Poll::Ready(());
            }
            if !waiting.iter().any(|waker| waker.will_wake(task.waker())) {
                waiting.push(task.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Adds a row or replaces the one of the same group, version and resource.
    pub fn insert(&self, kind: Kind) -> Arc<Kind> {
        let kind = Arc::new(kind);
        self.change(|now| {
            now.by_gvr.insert(kind.gvr(), kind.clone());
        });
        kind
    }

    /// Takes rows away and adds others, as one change.
    pub fn replace(&self, old: &[Gvr], new: Vec<Kind>) {
        self.change(|now| {
            old.iter().for_each(|gvr| drop(now.by_gvr.remove(gvr)));
            now.by_gvr.extend(new.into_iter().map(|kind| (kind.gvr(), Arc::new(kind))));
        });
    }

    /// Says that what is served changed beside the table: what others serve behind this server.
    pub fn touch(&self) {
        self.change(|now| now.touched += 1);
    }

    pub fn remove(&self, gvr: &Gvr) {
        self.replace(std::slice::from_ref(gvr), Vec::new());
    }

    fn change(&self, edit: impl FnOnce(&mut Snapshot)) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut now = Snapshot {
            generation: current.generation + 1,
            touched: current.touched,
            by_gvr: current.by_gvr.clone(),
            by_gvk: BTreeMap::new(),
        };
        edit(&mut now);
        now.by_gvk = now.by_gvr.values().map(|kind| (kind.gvk.clone(), kind.clone())).collect();
        *current = Arc::new(now);
        drop(current);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_change_wakes_who_waits_for_it_once() {
        let (kinds, woken) = (Kinds::default(), Arc::<Woken>::default());
        let waker = Waker::from(woken.clone());
        let mut task = Context::from_waker(&waker);
        let seen = kinds.snapshot().generation;
        let mut wait = pin!(kinds.changed(seen));
        for _ in 0..3 {
            assert!(wait.as_mut().poll(&mut task).is_pending());
        }
        kinds.remove(&Gvr::new("", "v1", "none"));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(wait.poll(&mut task).is_ready());
        // Who comes late does not wait.
        assert!(pin!(kinds.changed(seen)).poll(&mut task).is_ready());
    }

    #[test]
    fn groups_that_changed_are_told_apart() {
        let kind = |group: &str| Kind::custom(Gvk::new(group, "v1", "X"), "xs", Schema::any());
        let kinds = Kinds::new(["a", "b", "b.c", "d"].map(kind));
        let before = kinds.snapshot();
        let changed = || -> Option<Vec<String>> {
            let groups = kinds.snapshot().groups_other_than(&before)?;
            Some(groups.iter().map(|group| group.to_string()).collect())
        };
        assert_eq!(changed(), Some(vec![]));
        kinds.replace(&[Gvr::new("b", "v1", "xs")], vec![kind("e")]);
        kinds.insert(kind("d"));
        assert_eq!(changed().unwrap(), ["b", "d", "e"]);
        let of_group = |group: &'static str| kinds.snapshot().of_group(group).count();
        assert_eq!(["a", "b", "b.c"].map(of_group), [1, 0, 1]);
        kinds.touch();
        assert_eq!(changed(), None, "it may be any");
    }
}
