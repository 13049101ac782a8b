//! What is left of a namespace that is being deleted, and what its status says of it. Pure.
//! Upstream counterpart: `pkg/controller/namespace/deletion`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

pub(crate) const FINALIZER: &str = "kubernetes";

/// What a pass found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Remaining {
    /// Objects by `resource.group`.
    pub objects: BTreeMap<String, usize>,
    /// Objects by finalizer.
    pub finalizers: BTreeMap<String, usize>,
    pub discovery_error: Option<String>,
    pub content_errors: Vec<String>,
}

impl Remaining {
    pub(crate) fn is_nothing(&self) -> bool {
        self.objects.is_empty() && self.discovery_error.is_none() && self.content_errors.is_empty()
    }
}

/// Whether the namespace waits for this controller.
pub(crate) fn wants_deletion(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers(namespace).any(|finalizer| finalizer == FINALIZER)
}

fn finalizers(namespace: &Namespace) -> impl Iterator<Item = &str> {
    namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten()).map(String::as_str)
}

/// The namespace without this controller's finalizer, for its `finalize` subresource.
pub(crate) fn finalized(namespace: &Namespace) -> Namespace {
    let left: Vec<String> =
        finalizers(namespace).filter(|own| *own != FINALIZER).map(str::to_owned).collect();
    let mut namespace = namespace.clone();
    namespace.spec.get_or_insert_default().finalizers = Some(left);
    namespace
}

/// The namespace with a status that tells what is left; `None` if it does already.
pub(crate) fn with_status(namespace: &Namespace, remaining: &Remaining, now: Timestamp) -> Option<Namespace> {
    let mut wanted = namespace.clone();
    let status = wanted.status.get_or_insert_default();
    status.phase = Some("Terminating".into());
    let old = status.conditions.take().unwrap_or_default();
    let kept = |condition: &&NamespaceCondition| {
        !described(remaining).iter().any(|(type_, ..)| *type_ == condition.type_)
    };
    let mut conditions: Vec<NamespaceCondition> = old.iter().filter(kept).cloned().collect();
    for (type_, bad, reason, message) in described(remaining) {
        let mut new = NamespaceCondition {
            type_: type_.into(),
            status: if bad { "True" } else { "False" }.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        if let Some(old) = old.iter().find(|old| old.type_ == type_) {
            let same = old.status == new.status && old.reason == new.reason && old.message == new.message;
            if same || old.status == new.status {
                new.last_transition_time.clone_from(&old.last_transition_time);
            }
        }
        conditions.push(new);
    }
    status.conditions = Some(conditions);
    (wanted.status != namespace.status).then_some(wanted)
}

/// Type, whether it is bad, reason, message.
type Described = (&'static str, bool, &'static str, String);

fn described(remaining: &Remaining) -> [Described; 5] {
    let objects: Vec<_> =
        remaining.objects.iter().map(|(what, n)| format!("{what} has {n} resource instances")).collect();
    let finalizers: Vec<_> = remaining
        .finalizers
        .iter()
        .map(|(finalizer, n)| format!("{finalizer} in {n} resource instances"))
        .collect();
    let errors = &remaining.content_errors;
    let or = |bad: bool, yes: (&'static str, String), no: (&'static str, &str)| {
        if bad { (true, yes.0, yes.1) } else { (false, no.0, no.1.to_owned()) }
    };
    let discovery = remaining.discovery_error.clone();
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            or(
                discovery.is_some(),
                (
                    "DiscoveryFailed",
                    format!("Discovery failed for some groups, 1 failing: {}", discovery.unwrap_or_default()),
                ),
                ("ResourcesDiscovered", "All resources successfully discovered"),
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            (false, "ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned()),
        ),
        (
            "NamespaceDeletionContentFailure",
            or(
                !errors.is_empty(),
                (
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        errors.len(),
                        errors.join(", ")
                    ),
                ),
                ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            ),
        ),
        (
            "NamespaceContentRemaining",
            or(
                !objects.is_empty(),
                ("SomeResourcesRemain", format!("Some resources are remaining: {}", objects.join(", "))),
                ("ContentRemoved", "All content successfully removed"),
            ),
        ),
        (
            "NamespaceFinalizersRemaining",
            or(
                !finalizers.is_empty(),
                (
                    "SomeFinalizersRemain",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        finalizers.join(", ")
                    ),
                ),
                ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            ),
        ),
    ];
    rows.map(|(type_, (bad, reason, message))| (type_, bad, reason, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespace() -> Namespace {
        serde_json::from_value(json!({
            "metadata": {"name": "ns", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"finalizers": ["mine", "kubernetes"]}, "status": {"phase": "Terminating"},
        }))
        .unwrap()
    }

    #[test]
    fn the_status_tells_what_is_left() {
        let now: Timestamp = "2026-01-01T00:00:01Z".parse().unwrap();
        let mut remaining = Remaining::default();
        remaining.objects.insert("pods.".into(), 2);
        remaining.finalizers.insert("example.com/x".into(), 1);
        let told = with_status(&namespace(), &remaining, now).unwrap();
        let conditions = told.status.clone().unwrap().conditions.unwrap();
        let text = |at: usize| (conditions[at].status.as_str(), conditions[at].message.as_deref().unwrap());
        assert_eq!(conditions.len(), 5);
        assert_eq!(text(0), ("False", "All resources successfully discovered"));
        assert_eq!(text(3), ("True", "Some resources are remaining: pods. has 2 resource instances"));
        assert_eq!(
            text(4).1,
            "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances"
        );
        assert_eq!(with_status(&told, &remaining, Timestamp::MAX), None, "the time alone is no news");
    }

    #[test]
    fn only_its_own_finalizer_goes() {
        assert!(wants_deletion(&namespace()));
        let finalized = finalized(&namespace());
        assert_eq!(finalized.spec.as_ref().unwrap().finalizers.as_deref(), Some(&["mine".to_owned()][..]));
        assert!(!wants_deletion(&finalized));
    }
}
