//! Whether a claim or a volume is used, and what its finalizers are to be.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use skeg_api::meta;

pub(super) const CLAIM: &str = "kubernetes.io/pvc-protection";
pub(super) const VOLUME: &str = "kubernetes.io/pv-protection";

/// The claims that a Pod on a node uses. One that waits for a node will not start any more once its
/// claim is being deleted.
pub(super) fn claims(pod: &Pod) -> Vec<String> {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.node_name.as_ref().is_some_and(|n| !n.is_empty()))
    else {
        return Vec::new();
    };
    let named = spec.volumes.iter().flatten().filter_map(|volume| {
        let claim = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        let own = || format!("{}-{}", crate::meta::name(&pod.metadata), volume.name);
        claim.or_else(|| volume.ephemeral.is_some().then(own))
    });
    named.collect()
}

/// The object with the finalizers that it should have, if they are others.
pub(super) fn protected(object: &Value, finalizer: &str, is_used: bool) -> Option<Value> {
    let has = meta::finalizers(object).any(|own| own == finalizer);
    let others = meta::finalizers(object).filter(|own| *own != finalizer).map(str::to_owned);
    let wanted = match (meta::is_deleting(object), has) {
        (true, true) if !is_used => others.collect(),
        (false, false) => others.chain([finalizer.to_owned()]).collect(),
        _ => return None,
    };
    let mut new = object.clone();
    meta::set_finalizers(&mut new, wanted);
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_used_stays() {
        let object = |deleting: bool, finalizers: Value| {
            let mut object = json!({"metadata": {"name": "c", "finalizers": finalizers}});
            if deleting {
                object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            object
        };
        let left = |object: &Value, used: bool| {
            protected(object, CLAIM, used)
                .map(|new| meta::finalizers(&new).map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(left(&object(true, json!([CLAIM, "x/y"])), false), Some(vec!["x/y".to_owned()]));
        assert_eq!(left(&object(true, json!([CLAIM])), true), None);
        assert_eq!(left(&object(true, json!([])), false), None);
        assert_eq!(left(&object(false, json!([])), false), Some(vec![CLAIM.to_owned()]));
        assert_eq!(left(&object(false, json!([CLAIM])), false), None);
    }

    #[test]
    fn pods_on_nodes_use_claims() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "b", "ephemeral": {}}, {"name": "d", "emptyDir": {}}]}});
        let claims = |pod: &Value| claims(&serde_json::from_value(pod.clone()).unwrap());
        assert_eq!(claims(&pod), Vec::<String>::new());
        pod["spec"]["nodeName"] = "n".into();
        assert_eq!(claims(&pod), ["c", "p-b"]);
    }
}
