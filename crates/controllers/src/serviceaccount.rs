//! Keeps a ServiceAccount `default` in each namespace, which Pods use that name none.
//! Upstream counterpart: `pkg/controller/serviceaccount`.

use crate::context::{ControllerContext, Controllers};
use crate::each_namespace::{Kept, keep};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

const NAME: &str = "default";

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let kept = Kept {
        queue: "serviceaccount",
        component: "service-account-controller",
        name: NAME,
        plan: Box::new(plan),
    };
    keep(ctx, controllers, kept);
}

/// An account that is there may look as its users like.
fn plan(namespace: &str, old: Option<&ServiceAccount>) -> Option<ServiceAccount> {
    if old.is_some() {
        return None;
    }
    let metadata =
        ObjectMeta { name: Some(NAME.into()), namespace: Some(namespace.to_owned()), ..Default::default() };
    Some(ServiceAccount { metadata, ..Default::default() })
}
