//! Publishes the certificate by which Pods know the API server, as ConfigMap `kube-root-ca.crt`
//! in each namespace. Upstream counterpart: `pkg/controller/certificates/rootcacertpublisher`.

use crate::context::{ControllerContext, Controllers};
use crate::each_namespace::{Kept, keep};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
/// Upstream's words: tools show them to users.
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let Some(root_ca) = ctx.config.root_ca.clone() else { return };
    let kept = Kept {
        queue: "rootcacert",
        component: "root-ca-cert-publisher",
        name: NAME,
        plan: Box::new(move |namespace, old| plan(namespace, &root_ca, old)),
    };
    keep(ctx, controllers, kept);
}

/// The ConfigMap to write, if what is there differs.
fn plan(namespace: &str, root_ca: &str, old: Option<&ConfigMap>) -> Option<ConfigMap> {
    let data = Some(BTreeMap::from([(FILE.to_owned(), root_ca.to_owned())]));
    let description = (DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
    let Some(old) = old else {
        let metadata = ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(BTreeMap::from([description])),
            ..Default::default()
        };
        return Some(ConfigMap { metadata, data, ..Default::default() });
    };
    let described =
        old.metadata.annotations.as_ref().and_then(|a| a.get(DESCRIPTION)) == Some(&description.1);
    if described && old.data == data {
        return None;
    }
    let mut wanted = ConfigMap { data, ..old.clone() };
    wanted.metadata.annotations.get_or_insert_default().extend([description]);
    Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_put_right() {
        let map = plan("ns", "PEM", None).unwrap();
        assert_eq!(plan("ns", "PEM", Some(&map)), None);
        let other = plan("ns", "NEW", Some(&map)).unwrap();
        assert_eq!(other.data.unwrap()[FILE], "NEW");
        let mut bare = map.clone();
        bare.metadata.annotations = None;
        assert_eq!(plan("ns", "PEM", Some(&bare)), Some(map));
    }
}
