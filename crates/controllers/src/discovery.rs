//! Which kinds the server serves, kept up to date. The controllers that work on every kind, even
//! on one registered a moment ago, read it from here.
//! Upstream counterpart: `k8s.io/client-go/discovery`.

use crate::context::{ControllerContext, Controllers};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIGroupList, APIResourceList};
use skeg_api::Gvr;
use skeg_api::kinds::Snapshot;
use skeg_base::{Backoff, Level};
use skeg_client::{Client, RawRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// One resource, in the version its group prefers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub gvr: Gvr,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// All versions it is served in.
    pub versions: Vec<String>,
}

impl Resource {
    pub(crate) fn has(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|own| own == verb))
    }
}

/// All resources served, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// By group and resource name.
    resources: BTreeMap<(String, String), Resource>,
    /// Versions of groups of which nothing was heard this time, and why: another server's may not
    /// be available. What was known of them stays.
    failed: BTreeMap<String, String>,
}

impl Served {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// A resource, where it is served in this version before others.
    pub(crate) fn get(&self, gvr: &Gvr) -> Option<&Resource> {
        let found = self.resources.get(&(gvr.group.to_string(), gvr.resource.to_string()));
        found.filter(|resource| resource.gvr == *gvr)
    }

    /// The resource of a kind, in any of the versions that are served: what an owner reference in
    /// another one means cannot be told.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.iter().find(|resource| {
            &*resource.gvr.group == group
                && resource.kind == kind
                && resource.versions.iter().any(|served| served == version)
        })
    }

    /// Why not all is known, in upstream's words.
    pub(crate) fn failure(&self) -> Option<String> {
        let each = self.failed.iter().map(|(version, why)| format!("{version}: {why}"));
        let each: Vec<_> = each.collect();
        let all = "unable to retrieve the complete list of server APIs";
        (!each.is_empty()).then(|| format!("{all}: {}", each.join(", ")))
    }

    /// Notes that nothing was heard of a version, of which something may be known.
    fn fail(&mut self, group: &str, version: &str, why: String, known: &Served) {
        self.failed.insert(format!("{group}/{version}"), why);
        let of_version =
            known.iter().filter(|known| &*known.gvr.group == group && &*known.gvr.version == version);
        for resource in of_version {
            let key = (group.to_owned(), resource.gvr.resource.to_string());
            self.resources.entry(key).or_insert_with(|| resource.clone());
        }
    }

    /// Adds the resources of one version, unless a preferred version has them already.
    fn add(&mut self, group: &str, version: &str, list: APIResourceList) {
        for found in list.resources {
            if found.name.contains('/') {
                continue;
            }
            let resource = Resource {
                gvr: Gvr::new(group, version, &found.name),
                kind: found.kind,
                namespaced: found.namespaced,
                verbs: found.verbs,
                versions: Vec::new(),
            };
            let resource = self.resources.entry((group.to_owned(), found.name)).or_insert(resource);
            resource.versions.push(version.to_owned());
        }
    }
}

/// Waits until something else is served than `known`.
pub(crate) async fn other_than(known: &Served, level: &Level<Arc<Served>>) -> Arc<Served> {
    level.find(|served| (**served != *known).then(|| served.clone())).await
}

/// Asks for all that is served, or for some groups alone; of the others what is known stays.
async fn fetch(
    client: &Client,
    known: &Served,
    changed: Option<BTreeSet<Arc<str>>>,
) -> skeg_client::Result<Served> {
    let mut served = Served::default();
    let mut groups: Vec<APIGroup> = Vec::new();
    match changed.filter(|changed| !changed.contains("")) {
        Some(changed) => {
            let others = known.resources.iter().filter(|((group, _), _)| !changed.contains(&**group));
            served.resources = others.map(|(key, resource)| (key.clone(), resource.clone())).collect();
            for group in changed {
                match client.json(&RawRequest::get(format!("/apis/{group}"))).await {
                    Ok(group) => groups.push(group),
                    Err(error) if error.code() == Some(404) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        None => {
            served.add("", "v1", client.json(&RawRequest::get("/api/v1")).await?);
            groups = client.json::<APIGroupList>(&RawRequest::get("/apis")).await?.groups;
        }
    }
    for group in groups {
        let preferred = group.preferred_version.map(|preferred| preferred.version);
        let others = group.versions.into_iter().map(|other| other.version);
        let others: Vec<_> = others.filter(|version| Some(version) != preferred.as_ref()).collect();
        for version in preferred.into_iter().chain(others) {
            match client.json(&RawRequest::get(format!("/apis/{}/{version}", group.name))).await {
                Ok(list) => served.add(&group.name, &version, list),
                Err(error) => served.fail(&group.name, &version, error.to_string(), known),
            }
        }
    }
    Ok(served)
}

/// Starts to follow what is served. Nothing is served until the first answer.
pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) -> Arc<Level<Arc<Served>>> {
    let level = Arc::<Level<Arc<Served>>>::default();
    let known = level.clone();
    let client = ctx.client("generic-garbage-collector");
    let kinds = ctx.kinds.clone();
    let (cancel, random) = (ctx.cancel.clone(), ctx.random.clone());
    let follow = async move {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(10));
        // The table of which all is known.
        let mut whole: Option<Arc<Snapshot>> = None;
        loop {
            // Before the look: a change during it is not missed.
            let now = kinds.snapshot();
            let seen = now.generation;
            let before = known.read(Clone::clone);
            let changed = whole.as_ref().and_then(|whole| now.groups_other_than(whole));
            match fetch(&client, &before, changed).await {
                Ok(served) => {
                    let is_whole = served.failed.is_empty();
                    whole = is_whole.then_some(now);
                    if *before != served {
                        known.modify(|old| *old = Arc::new(served));
                    }
                    if is_whole {
                        backoff.reset();
                    } else {
                        let again = random.jitter(backoff.next(), 0.5);
                        let _ = tokio::time::timeout(again, kinds.changed(seen)).await;
                        continue;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot tell which kinds are served, will be retried");
                    tokio::time::sleep(random.jitter(backoff.next(), 0.5)).await;
                    continue;
                }
            }
            kinds.changed(seen).await;
        }
    };
    controllers.0.spawn(async move {
        cancel.run_until_cancelled(follow).await;
    });
    level
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_known_of_a_silent_server_stays() {
        let list: APIResourceList = serde_json::from_value(json!({"groupVersion": "x", "resources": [
            {"name": "widgets", "kind": "Widget", "namespaced": true, "singularName": "", "verbs": ["list"]}]}))
        .unwrap();
        let mut before = Served::default();
        before.add("example.com", "v1", list);
        assert_eq!(before.failure(), None);
        let mut now = Served::default();
        now.fail("example.com", "v1", "no answer".into(), &before);
        assert!(now.of_kind("example.com/v1", "Widget").is_some());
        let why = "unable to retrieve the complete list of server APIs: example.com/v1: no answer";
        assert_eq!(now.failure().as_deref(), Some(why));
    }

    #[test]
    fn preferred_versions_win_and_subresources_are_left_out() {
        let list = |kind: &str| -> APIResourceList {
            serde_json::from_value(json!({"groupVersion": "x", "resources": [
                {"name": "widgets", "kind": kind, "namespaced": true, "singularName": "", "verbs": ["get", "list"]},
                {"name": "widgets/status", "kind": kind, "namespaced": true, "singularName": "", "verbs": ["get"]}]}))
            .unwrap()
        };
        let mut served = Served::default();
        served.add("example.com", "v2", list("Widget"));
        served.add("example.com", "v1", list("Old"));
        let all: Vec<_> = served.iter().collect();
        assert_eq!(all.len(), 1);
        assert_eq!(&*all[0].gvr.version, "v2");
        assert!(all[0].has(&["list"]) && !all[0].has(&["list", "delete"]));
        assert_eq!(served.of_kind("example.com/v1", "Widget"), Some(all[0]));
        assert_eq!(served.of_kind("v1", "Widget"), None);
        assert_eq!(served.of_kind("example.com/v9", "Widget"), None, "what v9 means nobody knows");
    }
}
