//! How endpoints are laid out over slices with few writes: each stays where it is, and new ones go
//! where there is room. Pure. Upstream counterpart: `reconcileByPortMapping` in
//! `k8s.io/endpointslice`.

use crate::service::PodPort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Endpoints of one slice; more go to further slices.
pub(crate) const ENDPOINTS_PER_SLICE_MAX: usize = 100;

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    /// Names.
    pub delete: Vec<String>,
}

/// Endpoints by the ports they have in common, and by their identity.
pub(crate) type Groups = BTreeMap<Vec<PodPort>, BTreeMap<String, Endpoint>>;

/// A slice as it should be: the one it was, its ports, its endpoints.
type Assignment<'a> = (Option<&'a EndpointSlice>, Vec<PodPort>, Vec<Endpoint>);

/// Plans the slices of one address family. With `keep_one` there is a slice also for no endpoints.
pub(crate) fn arrange(
    family: &str,
    mut groups: Groups,
    existing: &[Arc<EndpointSlice>],
    keep_one: bool,
    metadata: impl Fn(Option<&EndpointSlice>) -> ObjectMeta,
    plan: &mut Plan,
) {
    // Each endpoint stays in the slice it is in, if the ports are still the same.
    let mut slices: Vec<Assignment<'_>> = Vec::new();
    for slice in existing {
        if slice.metadata.deletion_timestamp.is_some() || slice.address_type != family {
            continue;
        }
        let ports = ports_of(slice);
        let mut wanted = groups.get_mut(&ports);
        let old = slice.endpoints.iter().flatten();
        let kept = old.filter_map(|endpoint| wanted.as_mut()?.remove(&identity(endpoint))).collect();
        slices.push((Some(slice), ports, kept));
    }
    for (ports, new) in groups {
        place(new.into_values().collect(), ports, &mut slices);
    }
    // A Service without endpoints still has one slice, so that a consumer can tell that there are
    // none from that they are not known yet.
    if keep_one && slices.iter().all(|(_, _, endpoints)| endpoints.is_empty()) {
        let placeholder =
            slices.iter().position(|(_, ports, _)| ports.is_empty()).or(slices.len().checked_sub(1));
        let slice = placeholder.and_then(|at| slices.remove(at).0);
        write(family, (slice, Vec::new(), Vec::new()), metadata(slice), plan);
    }
    for assignment in slices {
        match assignment {
            (None, _, endpoints) if endpoints.is_empty() => {}
            (Some(slice), _, endpoints) if endpoints.is_empty() => {
                plan.delete.push(slice.metadata.name.clone().unwrap_or_default());
            }
            used => {
                let metadata = metadata(used.0);
                write(family, used, metadata, plan);
            }
        }
    }
}

/// Puts new endpoints where a write is due anyway, then into the fullest slice with room, then
/// into slices that would go, then into new ones.
fn place(mut new: Vec<Endpoint>, ports: Vec<PodPort>, slices: &mut Vec<Assignment<'_>>) {
    let changed = |(slice, _, endpoints): &Assignment<'_>| {
        slice.is_none_or(|slice| slice.endpoints.as_deref().unwrap_or_default() != endpoints.as_slice())
    };
    let mut order: Vec<usize> = (0..slices.len()).filter(|at| slices[*at].1 == ports).collect();
    order.sort_by_key(|at| (!changed(&slices[*at]), Reverse(slices[*at].2.len())));
    // All that is new fits in the slices to be written, or else in one that is not, or else apart.
    for at in order {
        let room = ENDPOINTS_PER_SLICE_MAX.saturating_sub(slices[at].2.len());
        if changed(&slices[at]) || new.len() <= room {
            let room = room.min(new.len());
            slices[at].2.extend(new.drain(..room));
        }
    }
    while !new.is_empty() {
        let chunk: Vec<_> = new.drain(..new.len().min(ENDPOINTS_PER_SLICE_MAX)).collect();
        match slices.iter_mut().find(|(slice, _, endpoints)| slice.is_some() && endpoints.is_empty()) {
            Some((_, old_ports, endpoints)) => {
                old_ports.clone_from(&ports);
                *endpoints = chunk;
            }
            None => slices.push((None, ports.clone(), chunk)),
        }
    }
}

fn write(family: &str, (old, ports, endpoints): Assignment<'_>, metadata: ObjectMeta, plan: &mut Plan) {
    let mut wanted = EndpointSlice {
        address_type: family.to_owned(),
        metadata,
        endpoints: Some(endpoints),
        ports: Some(ports.into_iter().map(to_port).collect()),
    };
    match old {
        None => plan.create.push(wanted),
        Some(old) => {
            let same = old.metadata.labels == wanted.metadata.labels
                && old.endpoints.as_deref().unwrap_or_default()
                    == wanted.endpoints.as_deref().unwrap_or_default()
                && old.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default();
            if !same {
                wanted.metadata.resource_version.clone_from(&old.metadata.resource_version);
                plan.update.push(wanted);
            }
        }
    }
}

/// What makes two endpoints the same one: its Pod.
pub(crate) fn identity(endpoint: &Endpoint) -> String {
    match endpoint.target_ref.as_ref().and_then(|target| target.uid.as_ref()) {
        Some(uid) => uid.clone(),
        None => endpoint.addresses.join(","),
    }
}

fn to_port(port: PodPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name),
        port: Some(port.port),
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

fn ports_of(slice: &EndpointSlice) -> Vec<PodPort> {
    let port = |port: &EndpointPort| PodPort {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or(0),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<_> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}
