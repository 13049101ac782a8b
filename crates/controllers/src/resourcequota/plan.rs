//! What a quota's status is to say, from the objects that it counts.

use jiff::Timestamp;
use serde_json::{Value, json};
use skeg_api::predicates::{Resources, resource_list};
use skeg_api::quantity::Quantity;
use skeg_api::quota;
use std::collections::BTreeSet;

/// The kinds that a quota counts, as (group, resource).
pub(super) fn counted(quota: &Value) -> BTreeSet<(String, String)> {
    let names = quota["spec"]["hard"].as_object().into_iter().flatten().map(|(name, _)| name);
    names
        .filter_map(|name| quota::counted_by(name))
        .map(|(group, resource)| (group.to_owned(), resource.to_owned()))
        .collect()
}

/// Whether a change of a quota asks for a new count.
pub(super) fn is_to_count(old: &Value, new: &Value) -> bool {
    old["spec"] != new["spec"] || old["status"]["hard"] != new["status"]["hard"]
}

/// What a quota is charged for an object; nothing outside of its scopes.
fn charge(quota: &Value, group: &str, resource: &str, object: &Value, now: Timestamp) -> Resources {
    let counted = quota::is_in_scope(quota, group, resource, object);
    if counted { quota::usage(group, resource, object, now) } else { Resources::new() }
}

/// Whether a change of an object changes what the quota is charged.
pub(super) fn is_charged_anew(
    quota: &Value,
    group: &str,
    resource: &str,
    (old, new): (&Value, &Value),
    now: Timestamp,
) -> bool {
    charge(quota, group, resource, old, now) != charge(quota, group, resource, new, now)
}

/// The quota with the status that the objects of each kind it counts make, if it is another. Kinds
/// that are not served have no objects here, and nothing is said of them.
pub(super) fn recounted(
    quota: &Value,
    objects: &[((String, String), Vec<Value>)],
    now: Timestamp,
) -> Option<Value> {
    let hard = resource_list(&quota["spec"]["hard"]);
    let mut used = Resources::new();
    for ((group, resource), objects) in objects {
        let names = hard.keys().filter(|name| quota::counted_by(name) == Some((group, resource)));
        used.extend(names.map(|name| (name.clone(), Quantity::ZERO)));
        for object in objects {
            for (name, amount) in charge(quota, group, resource, object, now) {
                used.entry(name).and_modify(|sum| *sum += amount);
            }
        }
    }
    let (had_hard, had_used) =
        (resource_list(&quota["status"]["hard"]), resource_list(&quota["status"]["used"]));
    if quota["status"].is_object() && had_hard == hard && had_used == used {
        return None;
    }
    let text = |list: &Resources| -> Value {
        list.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string()))).collect()
    };
    let mut new = quota.clone();
    new["status"] = json!({"hard": text(&hard), "used": text(&used)});
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_what_there_is() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let kind = |resource: &str| (String::new(), resource.to_owned());
        let hard = json!({"pods": "4", "requests.cpu": "2", "count/widgets.example.com": "1"});
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
        assert_eq!(
            counted(&quota),
            BTreeSet::from([kind("pods"), ("example.com".to_owned(), "widgets".to_owned())])
        );
        let pod = |phase: &str| {
            json!({"status": {"phase": phase},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m"}}}]}})
        };
        let objects = [(kind("pods"), vec![pod("Running"), pod("Failed"), pod("Pending")])];
        let new = recounted(&quota, &objects, now).unwrap();
        assert_eq!(new["status"]["used"], json!({"pods": "2", "requests.cpu": "600m"}));
        assert_eq!(new["status"]["hard"], hard);
        assert_eq!(recounted(&new, &objects, now), None);
        assert!(is_to_count(&quota, &new) && !is_to_count(&new, &new));
        let change = |old: &str, new: &str| is_charged_anew(&quota, "", "pods", (&pod(old), &pod(new)), now);
        assert!(change("Running", "Succeeded") && !change("Pending", "Running"));
        let mut best = quota.clone();
        best["spec"]["scopes"] = json!(["BestEffort"]);
        assert_eq!(recounted(&best, &objects, now).unwrap()["status"]["used"]["pods"], "0");
    }
}
