//! Groups and their versions in the order in which they are listed.

use crate::aggregator::Remote;
use crate::bootstrap::api_services::{group_priority, version_priority};
use skeg_api::Kind;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Group, then versions, the preferred one first.
pub(super) type Groups = Vec<(String, Vec<(String, Version)>)>;

/// Who serves a version of a group.
pub(super) enum Version {
    /// This server: the kinds.
    Own(Vec<Arc<Kind>>),
    Other(Arc<Remote>),
}

pub(super) fn groups<'a>(
    kinds: impl Iterator<Item = &'a Arc<Kind>>,
    remotes: impl Iterator<Item = (&'a (String, String), &'a Arc<Remote>)>,
) -> Groups {
    let mut map: BTreeMap<&str, BTreeMap<&str, Version>> = BTreeMap::new();
    for kind in kinds {
        let versions = map.entry(&*kind.gvk.group).or_default();
        let version = versions.entry(&*kind.gvk.version).or_insert_with(|| Version::Own(Vec::new()));
        if let Version::Own(kinds) = version {
            kinds.push(kind.clone());
        }
    }
    for ((group, version), remote) in remotes {
        map.entry(group).or_default().insert(version, Version::Other(remote.clone()));
    }
    let mut groups: Vec<_> = map
        .into_iter()
        .map(|(group, versions)| {
            let (own, place) = group_priority(group);
            let all = versions.values().map(|version| match version {
                Version::Own(_) => own,
                Version::Other(remote) => remote.group_priority,
            });
            let priority = all.max().unwrap_or_default();
            let mut versions: Vec<_> = versions
                .into_iter()
                .map(|(name, version)| {
                    let priority = match &version {
                        Version::Own(_) => version_priority(group, name),
                        Version::Other(remote) => remote.version_priority,
                    };
                    let (stage, major, minor) = version_rank(name);
                    ((-priority, stage, -major, -minor), (name.to_owned(), version))
                })
                .collect();
            versions.sort_by(|(a, (a_name, _)), (b, (b_name, _))| (a, a_name).cmp(&(b, b_name)));
            let versions: Vec<_> = versions.into_iter().map(|(_, version)| version).collect();
            ((-priority, place), (group.to_owned(), versions))
        })
        .collect();
    groups.sort_by(|(a, (a_name, _)), (b, (b_name, _))| (a, a_name).cmp(&(b, b_name)));
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Stable before beta before alpha before names of no such form; then by numbers.
fn version_rank(version: &str) -> (u8, i64, i64) {
    let Some(rest) = version.strip_prefix('v') else { return (3, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else { return (3, 0, 0) };
    let minor = |tail: &str| tail.parse().ok();
    match &rest[digits..] {
        "" => (0, major, 0),
        tail => match (tail.strip_prefix("beta").and_then(minor), tail.strip_prefix("alpha").and_then(minor))
        {
            (Some(minor), _) => (1, major, minor),
            (_, Some(minor)) => (2, major, minor),
            _ => (3, 0, 0),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_upstreams() {
        let mut versions = ["v1alpha1", "v1", "v2beta1", "v10", "foo", "v2", "v1beta2"];
        versions.sort_by_key(|v| {
            let (stage, major, minor) = version_rank(v);
            (stage, -major, -minor)
        });
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }
}
