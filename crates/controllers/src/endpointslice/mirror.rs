//! Mirrors Endpoints that someone writes for a Service without selector into EndpointSlices, which
//! is what proxies read. Upstream counterpart: `pkg/controller/endpointslicemirroring`.

use super::layout::{self, Groups, Plan};
use super::{act, plan};
use crate::context::{ControllerContext, Controllers};
use crate::error::Result;
use crate::service::PodPort;
use crate::{meta, owner};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skeg_client::{Api, Change, EventType, Informer, ObjectKey, Recorder, object_ref};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const MIRROR_INDEX: &str = "mirrored-service";
/// Addresses of one subset that are mirrored.
const ADDRESSES_PER_SUBSET_MAX: usize = 1000;
const WORKERS: usize = 5;

struct Controller {
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    api: Api<EndpointSlice>,
    recorder: Recorder,
}

pub(crate) fn start(
    ctx: &ControllerContext,
    controllers: &mut Controllers,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
) {
    let client = ctx.client("endpointslicemirroring-controller");
    let endpoints: Informer<Endpoints> = ctx.informers.of();
    slices.add_index(MIRROR_INDEX, |slice| mirrored(slice).map(|key| key.to_string()).into_iter().collect());
    let queue = ctx.queue::<ObjectKey>();
    let to = queue.clone();
    endpoints.subscribe(move |change| to.add(change.key().clone()));
    let (to, of) = (queue.clone(), endpoints.clone());
    services.subscribe(move |change: Change<'_, Service>| {
        if of.entry(&change.key().namespace, &change.key().name).is_some() {
            to.add(change.key().clone());
        }
    });
    let to = queue.clone();
    slices.subscribe(move |change| {
        if let Some(key) = mirrored(change.object()) {
            to.add(key);
        }
    });
    let recorder = ctx.recorder(&client, "endpoint-slice-mirroring-controller");
    let controller = Arc::new(Controller { services, endpoints, slices, api: client.api(), recorder });
    let of = controller.clone();
    let ready = async move {
        of.services.synced().await;
        of.endpoints.synced().await;
        of.slices.synced().await;
    };
    controllers.work("endpointslicemirroring", WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

/// The Service of a slice that mirrors.
fn mirrored(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(plan::MANAGED_BY).is_some_and(|manager| manager == MANAGER);
    let name = labels.get(plan::SERVICE_NAME).filter(|_| ours)?;
    Some(ObjectKey::new(meta::namespace(&slice.metadata), name))
}

fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let skips =
        endpoints.metadata.labels.as_ref().and_then(|l| l.get(SKIP)).is_some_and(|skip| skip == "true");
    let leads = endpoints.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    let no_selector = service.and_then(|s| s.spec.as_ref()).is_some_and(|spec| spec.selector.is_none());
    !skips && !leads && no_selector && endpoints.metadata.deletion_timestamp.is_none()
}

impl Controller {
    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let service = self.services.get(&key.namespace, &key.name);
        let endpoints = self.endpoints.get(&key.namespace, &key.name);
        let endpoints = endpoints.filter(|endpoints| is_mirrored(endpoints, service.as_deref()));
        let slices = self.slices.by_index(MIRROR_INDEX, &key.to_string());
        let plan = mirror(endpoints.as_deref(), &slices);
        match act(&self.api, &key.namespace, plan).await {
            Ok(newest) => self.slices.wait_for(newest).await,
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) => {
                if let Some(endpoints) = endpoints {
                    let message = format!("Error updating EndpointSlices for Endpoints {key}: {error}");
                    let about = object_ref(&*endpoints);
                    self.recorder.event(&about, EventType::Warning, "FailedToUpdateEndpointSlices", &message);
                }
                return Err(error.into());
            }
        }
        Ok(None)
    }
}

/// The slices that mirror an object; none for one that is not to be mirrored.
fn mirror(endpoints: Option<&Endpoints>, slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    for (family, is_v6) in [("IPv4", false), ("IPv6", true)] {
        let mut groups: Groups = BTreeMap::new();
        for subset in endpoints.iter().flat_map(|endpoints| endpoints.subsets.iter().flatten()) {
            let group = groups.entry(ports(subset)).or_default();
            let ready = subset.addresses.iter().flatten().map(|address| (address, true));
            let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
            for (address, ready) in ready.chain(unready).take(ADDRESSES_PER_SUBSET_MAX) {
                if address.ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == is_v6) {
                    let endpoint = endpoint(address, ready);
                    group.insert(layout::identity(&endpoint), endpoint);
                }
            }
        }
        groups.retain(|_, endpoints| !endpoints.is_empty());
        let metadata = |old: Option<&EndpointSlice>| metadata(endpoints, old);
        layout::arrange(family, groups, slices, false, metadata, &mut plan);
    }
    plan
}

fn ports(subset: &EndpointSubset) -> Vec<PodPort> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| PodPort {
        name: port.name.clone().unwrap_or_default(),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<_> = subset.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        ..Default::default()
    }
}

/// The labels and annotations of the object are passed on, but for those that speak of it alone.
fn metadata(endpoints: Option<&Endpoints>, old: Option<&EndpointSlice>) -> ObjectMeta {
    let source = endpoints.map(|endpoints| endpoints.metadata.clone()).unwrap_or_default();
    let name = meta::name(&source).to_owned();
    let mut labels = source.labels.clone().unwrap_or_default();
    labels.insert(plan::SERVICE_NAME.into(), name.clone());
    labels.insert(plan::MANAGED_BY.into(), MANAGER.into());
    let mut annotations = source.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    let mut metadata = match old {
        Some(old) => old.metadata.clone(),
        None => ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: source.namespace.clone(),
            owner_references: Some(vec![owner::controller_reference("v1", "Endpoints", &source)]),
            ..Default::default()
        },
    };
    metadata.labels = Some(labels);
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_family_and_set_of_ports_has_its_slice() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "e", "annotations": {LAST_APPLIED: "{}"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}],
                "ports": [{"port": 5432}]}],
        }))
        .unwrap();
        let plan = mirror(Some(&endpoints), &[]);
        let told: Vec<_> = plan
            .create
            .iter()
            .map(|slice| (slice.address_type.as_str(), slice.endpoints.as_ref().unwrap().len()))
            .collect();
        assert_eq!(told, [("IPv4", 2), ("IPv6", 1)]);
        assert_eq!(plan.create[0].metadata.annotations, None);
        let named = |(at, slice): (usize, &EndpointSlice)| {
            let mut slice = slice.clone();
            slice.metadata.name = Some(at.to_string());
            Arc::new(slice)
        };
        let slices: Vec<_> = plan.create.iter().enumerate().map(named).collect();
        assert_eq!(mirror(Some(&endpoints), &slices), Plan::default());
        assert_eq!(mirror(None, &slices).delete, ["0", "1"]);
    }

    #[test]
    fn only_endpoints_of_services_without_selector_are_mirrored() {
        let endpoints = |labels| -> Endpoints {
            serde_json::from_value(json!({"metadata": {"name": "x", "labels": labels}})).unwrap()
        };
        let service =
            |spec| -> Service { serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap() };
        assert!(is_mirrored(&endpoints(json!({})), Some(&service(json!({})))));
        assert!(!is_mirrored(&endpoints(json!({})), Some(&service(json!({"selector": {"a": "b"}})))));
        assert!(!is_mirrored(&endpoints(json!({})), None));
        assert!(!is_mirrored(&endpoints(json!({SKIP: "true"})), Some(&service(json!({})))));
    }
}
