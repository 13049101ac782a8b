//! ConfigMaps and Secrets that a Pod refers to, from the informer or, when that does not have
//! them (yet), from the API.

use crate::{Context, text};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret, VolumeProjection};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names of one namespace's ConfigMaps and Secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// The referred objects; `None` where there is none.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

impl Sources {
    pub fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name)?.as_deref()
    }

    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)?.as_deref()
    }
}

impl References {
    pub fn of_container(container: &Container) -> Self {
        let mut out = References::default();
        for from in container.env_from.iter().flatten() {
            out.config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            out.secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            out.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            out.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
        out
    }

    pub fn of_volumes(spec: &PodSpec) -> Self {
        let mut out = References::default();
        for volume in spec.volumes.iter().flatten() {
            out.config_maps.extend(volume.config_map.as_ref().map(|v| v.name.clone()));
            out.secrets.extend(volume.secret.as_ref().and_then(|v| v.secret_name.clone()));
            let projections = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            for VolumeProjection { config_map, secret, .. } in projections {
                out.config_maps.extend(config_map.as_ref().map(|v| v.name.clone()));
                out.secrets.extend(secret.as_ref().map(|v| v.name.clone()));
            }
        }
        out
    }

    /// Everything a Pod refers to in any way.
    pub fn of_pod(spec: &PodSpec) -> Self {
        let mut out = Self::of_volumes(spec);
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let ephemeral: Vec<Container> = ephemeral.map(crate::machine::ephemeral::as_container).collect();
        for container in crate::machine::all_containers(spec).chain(&ephemeral) {
            let own = Self::of_container(container);
            out.config_maps.extend(own.config_maps);
            out.secrets.extend(own.secrets);
        }
        out.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|r| r.name.clone()));
        out
    }

    pub async fn fetch(&self, ctx: &Context, pod: &Pod) -> skeg_client::Result<Sources> {
        let ns = text(&pod.metadata.namespace);
        let mut out = Sources::default();
        for name in &self.config_maps {
            let found = match ctx.config_maps.get(ns, name) {
                Some(found) => Some(found),
                None => ctx.client.api::<ConfigMap>().get_opt(ns, name).await?.map(Arc::new),
            };
            out.config_maps.insert(name.clone(), found);
        }
        for name in &self.secrets {
            let found = match ctx.secrets.get(ns, name) {
                Some(found) => Some(found),
                None => ctx.client.api::<Secret>().get_opt(ns, name).await?.map(Arc::new),
            };
            out.secrets.insert(name.clone(), found);
        }
        Ok(out)
    }
}
