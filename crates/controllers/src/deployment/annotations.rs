//! The annotations by which a Deployment and its ReplicaSets keep revisions and sizes. Pure.
//! Upstream counterpart: `pkg/controller/deployment/util/deployment_util.go`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that stay its own.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// Bytes of `revision-history` kept; the oldest revisions go first.
const REVISION_HISTORY_LEN_MAX: usize = 2000;

pub(crate) fn get<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether that changed anything.
pub(crate) fn set(meta: &mut ObjectMeta, key: &str, value: &str) -> bool {
    if get(meta, key) == Some(value) {
        return false;
    }
    meta.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    true
}

pub(crate) fn number<T: std::str::FromStr>(meta: &ObjectMeta, key: &str) -> Option<T> {
    get(meta, key)?.parse().ok()
}

/// 0 where the set has none.
pub(crate) fn revision(meta: &ObjectMeta) -> i64 {
    number(meta, REVISION).unwrap_or(0)
}

/// Sets `desired-replicas` and `max-replicas`; whether that changed anything.
pub(crate) fn set_sizes(meta: &mut ObjectMeta, desired: i32, max: i32) -> bool {
    let desired = set(meta, DESIRED_REPLICAS, &desired.to_string());
    set(meta, MAX_REPLICAS, &max.to_string()) || desired
}

/// Gives the new ReplicaSet the Deployment's annotations and its revision. A set that had an
/// older revision was rolled back to; the older one goes to its history.
pub(crate) fn set_on_new_set(deployment: &ObjectMeta, set_meta: &mut ObjectMeta, new_revision: i64) -> bool {
    let mut changed = false;
    for (key, value) in deployment.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            changed |= set(set_meta, key, value);
        }
    }
    let old = get(set_meta, REVISION).map(str::to_owned);
    let old_number = match old.as_deref() {
        None | Some("") => 0,
        // Not ours to repair: leave the set as it is.
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            Err(_) => return false,
        },
    };
    if old_number >= new_revision {
        return changed;
    }
    set(set_meta, REVISION, &new_revision.to_string());
    if let Some(old) = old {
        let history = get(set_meta, REVISION_HISTORY).unwrap_or_default();
        let history = extended_history(history, &old, REVISION_HISTORY_LEN_MAX);
        set(set_meta, REVISION_HISTORY, &history);
    }
    true
}

fn extended_history(history: &str, revision: &str, len_max: usize) -> String {
    if history.is_empty() {
        return revision.to_owned();
    }
    let mut revisions: Vec<&str> = history.split(',').collect();
    let mut len = history.len() + revision.len() + 1;
    while len > len_max && !revisions.is_empty() {
        len -= revisions.remove(0).len() + 1;
    }
    if len <= len_max {
        revisions.push(revision);
        return revisions.join(",");
    }
    history.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_keeps_the_newest() {
        assert_eq!(extended_history("", "1", 10), "1");
        assert_eq!(extended_history("1,2", "3", 10), "1,2,3");
        assert_eq!(extended_history("1,2,3", "4", 5), "2,3,4");
    }

    #[test]
    fn a_rollback_moves_the_old_revision_to_the_history() {
        let (mut deployment, mut rs) = (ObjectMeta::default(), ObjectMeta::default());
        set(&mut deployment, "team", "a");
        set(&mut deployment, REVISION, "9");
        assert!(set_on_new_set(&deployment, &mut rs, 1));
        assert_eq!(
            (get(&rs, REVISION), get(&rs, REVISION_HISTORY), get(&rs, "team")),
            (Some("1"), None, Some("a"))
        );
        assert!(!set_on_new_set(&deployment, &mut rs, 1));
        assert!(set_on_new_set(&deployment, &mut rs, 3));
        assert_eq!((get(&rs, REVISION), get(&rs, REVISION_HISTORY)), (Some("3"), Some("1")));
    }
}
