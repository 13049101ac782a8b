//! Publishes the certificate by which Pods know the API server, as ConfigMap `kube-root-ca.crt`
//! in each namespace. Upstream counterpart: `pkg/controller/certificates/rootcacertpublisher`.

use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::serviceaccount::is_active;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skeg_client::{Api, Change, Informer};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
/// Upstream's words: tools show them to users.
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
const WORKERS: usize = 1;

struct Controller {
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    api: Api<ConfigMap>,
    root_ca: String,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let Some(root_ca) = ctx.config.root_ca.clone() else { return };
    let controller = Arc::new(Controller {
        namespaces: ctx.informers.of(),
        maps: ctx.informers.of(),
        api: ctx.client("root-ca-cert-publisher").api(),
        root_ca,
    });
    let queue = ctx.queue::<String>();
    let to = queue.clone();
    controller.namespaces.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            to.add(change.key().name.to_string());
        }
    });
    let to = queue.clone();
    controller.maps.subscribe(move |change| {
        if &*change.key().name == NAME {
            to.add(change.key().namespace.to_string());
        }
    });
    let (namespaces, maps) = (controller.namespaces.clone(), controller.maps.clone());
    let ready = async move {
        namespaces.synced().await;
        maps.synced().await;
    };
    controllers.work("rootcacert", WORKERS, queue, ready, move |namespace| {
        let controller = controller.clone();
        async move { controller.sync(&namespace).await }
    });
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

impl Controller {
    async fn sync(&self, namespace: &str) -> Result<Option<Duration>> {
        if !self.namespaces.get("", namespace).is_some_and(|namespace| is_active(&namespace)) {
            return Ok(None);
        }
        let old = self.maps.get(namespace, NAME);
        let Some(wanted) = plan(namespace, &self.root_ca, old.as_deref()) else { return Ok(None) };
        if old.is_some() {
            ignore_not_found(self.api.update(namespace, NAME, &wanted).await)?;
            return Ok(None);
        }
        match self.api.create(namespace, &wanted).await {
            Ok(_) => Ok(None),
            Err(error)
                if error.is_already_exists() || error.is_not_found() || error.is_namespace_terminating() =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
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
