//! Classes and finalizers of volumes and claims.
//! Upstream counterparts: `plugin/pkg/admission/storage/{storageclass/setdefault,
//! storageobjectinuseprotection,persistentvolume/resize}`.

use super::{Admission, Operation, Plugin, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::predicates::resource_list;
use skeg_api::{Status, meta};
use std::sync::Arc;

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// A claim that names no class gets the default one.
pub struct DefaultStorageClass(pub Arc<dyn Reader>);

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        if request.operation == Operation::Create
            && request.is("", "persistentvolumeclaims", "")
            && let Some(claim) = request.object.as_deref_mut()
            && claim["spec"]["storageClassName"].is_null()
            && meta::annotation(claim, BETA_CLASS).is_none()
            && let Some(class) = default_class(&*self.0)
        {
            claim["spec"]["storageClassName"] = class.into();
        }
        ready(Ok(()))
    }
}

/// Of several defaults the newest, then the first by name.
fn default_class(reader: &dyn Reader) -> Option<String> {
    let classes = reader.list(&resources::STORAGE_CLASSES, "");
    let classes = classes.iter().filter_map(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let defaults =
        classes.filter(|class| DEFAULT_CLASS.iter().any(|key| meta::annotation(class, key) == Some("true")));
    let ordered =
        |class: &Value| (std::cmp::Reverse(meta::creation_timestamp(class)), meta::name(class).to_owned());
    defaults.map(|class| ordered(&class)).min().map(|(_, name)| name)
}

/// Volumes and claims in use outlive their deletion until nobody uses them.
pub struct StorageObjectInUseProtection;

const PROTECTED: [(&str, &str); 2] = [
    ("persistentvolumes", "kubernetes.io/pv-protection"),
    ("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
];

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let own = PROTECTED.iter().find(|(plural, _)| request.is("", plural, ""));
        if let (Operation::Create, Some((_, own)), Some(object)) =
            (request.operation, own, request.object.as_deref_mut())
            && !meta::finalizers(object).any(|finalizer| finalizer == *own)
        {
            let finalizers = meta::finalizers(object).chain([*own]).map(str::to_owned).collect();
            meta::set_finalizers(object, finalizers);
        }
        ready(Ok(()))
    }
}

/// Only claims of a class that says so can grow.
pub struct PersistentVolumeClaimResize(pub Arc<dyn Reader>);

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let result = match (request.operation, request.object.as_deref(), request.old) {
            (Operation::Update, Some(new), Some(old)) if request.is("", "persistentvolumeclaims", "") => {
                let size = |claim: &Value| {
                    resource_list(&claim["spec"]["resources"]["requests"]).get("storage").copied()
                };
                let class = |claim: &Value| {
                    let own =
                        meta::annotation(claim, BETA_CLASS).or(claim["spec"]["storageClassName"].as_str());
                    own.unwrap_or_default().to_owned()
                };
                let name = class(new);
                let grows = !name.is_empty()
                    && name == class(old)
                    && self
                        .0
                        .get_value(&resources::STORAGE_CLASSES, "", &name)
                        .is_some_and(|class| class["allowVolumeExpansion"] == true);
                if size(new) <= size(old) || grows {
                    Ok(())
                } else {
                    Err(request.forbid(
                        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                         support resize",
                    ))
                }
            }
            _ => Ok(()),
        };
        ready(result)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::Identity;
    use crate::reader::fake::Fake;
    use serde_json::json;

    fn write(plugin: &dyn Plugin, old: Option<Value>, spec: Value) -> Result<Value, Status> {
        let mut case = Case {
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            kind: kind("", "PersistentVolumeClaim", "persistentvolumeclaims", true),
            subresource: "",
            identity: Identity::anonymous(),
            object: Some(json!({"metadata": {"name": "c", "namespace": "a"}, "spec": spec})),
            old: old.map(|spec| json!({"metadata": {"name": "c"}, "spec": spec})),
        };
        case.run(plugin)?;
        Ok(case.object.unwrap())
    }

    #[test]
    fn claims_get_the_newest_default_class_and_a_finalizer() {
        let reader = Arc::new(Fake::default());
        for (name, made) in [("a", "2026-01-01T00:00:00Z"), ("b", "2026-01-02T00:00:00Z")] {
            reader.put(
                &resources::STORAGE_CLASSES,
                json!({"metadata": {"name": name, "creationTimestamp": made,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}),
            );
        }
        let plugin = DefaultStorageClass(reader);
        assert_eq!(write(&plugin, None, json!({})).unwrap()["spec"]["storageClassName"], "b");
        assert_eq!(
            write(&plugin, None, json!({"storageClassName": ""})).unwrap()["spec"]["storageClassName"],
            ""
        );
        let made = write(&StorageObjectInUseProtection, None, json!({})).unwrap();
        assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    }

    #[test]
    fn claims_grow_where_their_class_lets_them() {
        let reader = Arc::new(Fake::default());
        let plugin = PersistentVolumeClaimResize(reader.clone());
        let spec =
            |size: &str| json!({"storageClassName": "x", "resources": {"requests": {"storage": size}}});
        assert_eq!(write(&plugin, Some(spec("1Gi")), spec("2Gi")).unwrap_err().code, 403);
        assert!(write(&plugin, Some(spec("1Gi")), spec("1Gi")).is_ok());
        reader.put(
            &resources::STORAGE_CLASSES,
            json!({"metadata": {"name": "x"}, "allowVolumeExpansion": true}),
        );
        assert!(write(&plugin, Some(spec("1Gi")), spec("2Gi")).is_ok());
    }
}
