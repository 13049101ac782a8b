//! The APIService of each group and version that this server itself serves, and where in lists of
//! groups each stands. They come and go with the kinds table; one whose label somebody takes away
//! is that somebody's.
//! Upstream counterpart: `kube-aggregator/pkg/controllers/autoregister`, `pkg/controlplane/apiserver/aggregator.go`.

use super::{Wanted, replaced, write};
use crate::resources;
use crate::server::ApiServer;
use serde_json::{Value, json};
use skeg_api::kinds::Snapshot;
use skeg_api::{Kind, meta};
use skeg_base::Backoff;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Its own APIServices name a server that does not register itself.
const OWN_GROUP: &str = "apiregistration.k8s.io";

/// Groups in the order in which upstream lists them, and the priority that gives them their place.
const GROUPS: [(&str, i64); 21] = [
    ("", 18_000),
    (OWN_GROUP, 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("admissionregistration.k8s.io", 16_700),
    ("apiextensions.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("resource.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
];
/// Those of custom resources.
const CUSTOM_GROUP: i64 = 1_000;
const CUSTOM_VERSION: i64 = 100;

/// The priority of a group, and its place among those of the same.
pub(crate) fn group_priority(group: &str) -> (i64, usize) {
    let known = GROUPS.iter().position(|(known, _)| *known == group);
    known.map_or((CUSTOM_GROUP, GROUPS.len()), |place| (GROUPS[place].1, place))
}

pub(crate) fn version_priority(group: &str, version: &str) -> i64 {
    match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        _ if group_priority(group).1 < GROUPS.len() => 15,
        _ => CUSTOM_VERSION,
    }
}

/// Upstream's condition of an APIService that this server serves.
pub(crate) fn local_condition() -> Value {
    json!({"type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available", "lastTransitionTime": null})
}

/// By name, those that are to be there for a state of the kinds table: a row of each one's group and
/// version.
fn all(snapshot: &Snapshot) -> BTreeMap<String, &Arc<Kind>> {
    let mut rows = BTreeMap::new();
    for kind in snapshot.iter().filter(|kind| &*kind.gvk.group != OWN_GROUP) {
        rows.entry((&*kind.gvk.group, &*kind.gvk.version)).or_insert(kind);
    }
    rows.into_iter().map(|((group, version), kind)| (format!("{version}.{group}"), kind)).collect()
}

fn wanted(name: &str, kind: &Kind) -> Wanted {
    let (group, version) = (&*kind.gvk.group, &*kind.gvk.version);
    let managed = if kind.schema.is_custom() { "true" } else { "onstart" };
    let mut spec = json!({"version": version, "groupPriorityMinimum": group_priority(group).0,
        "versionPriority": version_priority(group, version)});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name, "labels": {MANAGED: managed}},
        "spec": spec, "status": {"conditions": [local_condition()]}});
    Wanted { gvr: &resources::API_SERVICES, object, reconcile }
}

/// What is to be there for a state of the kinds table.
pub(super) fn all_wanted(snapshot: &Snapshot) -> Vec<Wanted> {
    all(snapshot).into_iter().map(|(name, kind)| wanted(&name, kind)).collect()
}

fn managed(object: &Value) -> Option<&str> {
    object["metadata"]["labels"][MANAGED].as_str()
}

fn reconcile(existing: &Value, default: &Value) -> Option<Value> {
    managed(existing)?;
    replaced(existing, default, &[&["spec"]])
}

/// Follows the kinds table and what is done to the objects, until the server stops.
pub async fn run(server: Arc<ApiServer>) {
    let seams = server.seams();
    let mut changes = seams.reader.changes(&resources::API_SERVICES);
    let (_, stop) = server.tasks();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    // The revision up to which all is as it is to be.
    let mut settled = 0;
    loop {
        changes.borrow_and_update();
        let snapshot = seams.kinds.snapshot();
        let again = match settle(&server, &snapshot, settled).await {
            Ok(revision) => {
                settled = revision;
                backoff.reset();
                None
            }
            Err(error) => {
                tracing::warn!(%error, "cannot register APIServices, will be retried");
                Some(backoff.next())
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = seams.kinds.changed(snapshot.generation) => {}
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

/// Looks at those that changed after a revision, and at those that are to come or to go; returns the
/// revision up to which all is as it is to be.
async fn settle(
    server: &Arc<ApiServer>,
    snapshot: &Snapshot,
    settled: u64,
) -> Result<u64, super::BootstrapError> {
    let seams = server.seams();
    let (there, newest) = seams.reader.revisions(&resources::API_SERVICES);
    let there: BTreeMap<String, u64> = there.into_iter().collect();
    let all = all(snapshot);
    let read = |name: &str| seams.reader.get_value(&resources::API_SERVICES, "", name);
    let service = server.loopback();
    for object in there.keys().filter(|name| !all.contains_key(*name)).filter_map(|name| read(name)) {
        if managed(&object) != Some("true") || meta::is_deleting(&object) {
            continue;
        }
        let path = format!("{PATH}/{}", meta::name(&object));
        // What was taken over meanwhile is not deleted.
        let options = json!({"preconditions": {"resourceVersion": meta::resource_version(&object)}});
        if let Err(why) = crate::local::send(&service, http::Method::DELETE, &path, options.to_string()).await
        {
            tracing::debug!(name = meta::name(&object), why, "APIService not deleted");
        }
    }
    let is_settled = |name: &String| there.get(name).is_some_and(|revision| *revision <= settled);
    let mut wanted: Vec<Wanted> =
        all.iter().filter(|(name, _)| !is_settled(name)).map(|(name, kind)| wanted(name, kind)).collect();
    wanted.retain(|wanted| {
        let existing = read(meta::name(&wanted.object));
        existing.is_none_or(|existing| reconcile(&existing, &wanted.object).is_some())
    });
    if !wanted.is_empty() {
        write(&*seams.store, &seams.kinds, seams.clock, &seams.random, &wanted).await?;
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_api::{Kinds, builtin};

    #[test]
    fn each_group_and_version_has_one_that_is_valid() {
        let kinds = Kinds::new(builtin::builtin());
        let snapshot = kinds.snapshot();
        let row = snapshot.by_gvr(&resources::API_SERVICES).unwrap();
        let all = all_wanted(&snapshot);
        for Wanted { object, .. } in &all {
            let mut errors = Vec::new();
            row.check(object, None, &mut errors);
            assert_eq!(errors, [], "{object}");
            assert!(object["spec"]["groupPriorityMinimum"].as_i64() > Some(16_000), "{object}");
        }
        let names: Vec<&str> = all.iter().map(|wanted| meta::name(&wanted.object)).collect();
        assert!(names.contains(&"v1.") && names.contains(&"v2.autoscaling") && names.contains(&"v1.apps"));
        assert!(!names.iter().any(|name| name.contains(OWN_GROUP)));
    }

    #[test]
    fn what_is_changed_comes_back_unless_it_was_taken_over() {
        let kinds = Kinds::new(builtin::builtin());
        let default = all_wanted(&kinds.snapshot()).remove(0).object;
        let mut mine = default.clone();
        mine["spec"]["versionPriority"] = 7.into();
        assert_eq!(reconcile(&mine, &default).unwrap()["spec"], default["spec"]);
        mine["metadata"]["labels"] = json!({});
        assert_eq!(reconcile(&mine, &default), None);
    }
}
