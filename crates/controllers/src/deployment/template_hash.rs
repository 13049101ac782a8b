//! The label and name suffix that tell the ReplicaSets of a Deployment apart. Pure.
//! Upstream counterpart: `ComputeHash`. The value differs from upstream's, which hashes a
//! Go-specific rendering; form and alphabet are the same.

use k8s_openapi::api::core::v1::PodTemplateSpec;

pub(crate) const LABEL: &str = "pod-template-hash";

/// Depends on the content of the template and the number of collisions so far, and on nothing
/// else: the same for every version of Skeg.
pub(crate) fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    // A template of plain data always serializes; the fallback only keeps this total.
    let template = serde_json::to_value(template).unwrap_or_default();
    skeg_api::pod::template_hash(&template, collision_count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        let containers = json!([{"name": "c", "image": image}]);
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}});
        serde_json::from_value(template).unwrap()
    }

    #[test]
    fn is_fixed_for_all_time() {
        // Another value here would replace every Pod of every Deployment at an upgrade.
        assert_eq!(template_hash(&template("nginx"), None), EXPECTED);
        assert_ne!(template_hash(&template("nginx"), Some(1)), EXPECTED);
        assert_ne!(template_hash(&template("nginx:2"), None), EXPECTED);
    }

    const EXPECTED: &str = "75d954c8fc";
}
