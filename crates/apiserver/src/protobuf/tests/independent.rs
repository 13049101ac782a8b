//! What is written is read by code that was generated from the published definitions, and the
//! other way round.

use super::generate::{Dice, kinds, object};
use super::*;
use k8s_pb::apimachinery::pkg::runtime::Unknown;
use prost::Message;

/// Fields of v1.36 that the generated code does not have.
const NEWER: [(&str, &str); 11] = [
    ("core.v1.PodSpec", "schedulingGroup"),
    ("core.v1.PodStatus", "nodeAllocatableResourceClaimStatuses"),
    ("core.v1.ResourceHealth", "message"),
    ("core.v1.VolumeMountStatus", "volumeStatus"),
    ("resource.v1.Device", "nodeAllocatableResourceMappings"),
    ("resource.v1.DeviceAttribute", "bools"),
    ("resource.v1.DeviceAttribute", "ints"),
    ("resource.v1.DeviceAttribute", "strings"),
    ("resource.v1.DeviceAttribute", "versions"),
    ("storage.v1.CSIDriverSpec", "preventPodSchedulingIfMissing"),
    ("meta.v1.ListMeta", "shardInfo"),
];

/// Reads a message as one type and writes it again.
fn again<M: Message + Default>(raw: &[u8]) -> Vec<u8> {
    M::decode(raw).unwrap().encode_to_vec()
}

/// [`again`] of one type.
type Again = fn(&[u8]) -> Vec<u8>;

/// `again` of the type that the published definitions have for a kind.
fn codec(version: &str, kind: &str) -> Option<Again> {
    use k8s_pb::api::{
        admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates,
        coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac, resource,
        scheduling, storage,
    };
    use k8s_pb::apiextensions_apiserver::pkg::apis::apiextensions;
    use k8s_pb::apimachinery::pkg::apis::meta;
    use k8s_pb::kube_aggregator::pkg::apis::apiregistration;
    macro_rules! types {
        ($($version:literal: $group:ident $module:ident: $($kind:ident)*;)*) => {
            match (version, kind) {
                $($(($version, stringify!($kind)) => Some(again::<$group::$module::$kind>),)*)*
                _ => None,
            }
        };
    }
    types! {
        "v1": core v1: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
            PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount;
        "v1": meta v1: APIGroup APIGroupList APIResourceList APIVersions Status;
        "admissionregistration.k8s.io/v1": admissionregistration v1: MutatingWebhookConfiguration
            ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration;
        "admissionregistration.k8s.io/v1": admissionregistration v1beta1: MutatingAdmissionPolicy
            MutatingAdmissionPolicyBinding;
        "apiextensions.k8s.io/v1": apiextensions v1: CustomResourceDefinition;
        "apiregistration.k8s.io/v1": apiregistration v1: APIService;
        "apps/v1": apps v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
        "authentication.k8s.io/v1": authentication v1: SelfSubjectReview TokenRequest TokenReview;
        "authorization.k8s.io/v1": authorization v1: LocalSubjectAccessReview SelfSubjectAccessReview
            SelfSubjectRulesReview SubjectAccessReview;
        "autoscaling/v1": autoscaling v1: HorizontalPodAutoscaler Scale;
        "autoscaling/v2": autoscaling v2: HorizontalPodAutoscaler;
        "batch/v1": batch v1: CronJob Job;
        "certificates.k8s.io/v1": certificates v1: CertificateSigningRequest;
        "coordination.k8s.io/v1": coordination v1: Lease;
        "discovery.k8s.io/v1": discovery v1: EndpointSlice;
        "events.k8s.io/v1": events v1: Event;
        "flowcontrol.apiserver.k8s.io/v1": flowcontrol v1: FlowSchema PriorityLevelConfiguration;
        "networking.k8s.io/v1": networking v1: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR;
        "node.k8s.io/v1": node v1: RuntimeClass;
        "policy/v1": policy v1: Eviction PodDisruptionBudget;
        "rbac.authorization.k8s.io/v1": rbac v1: ClusterRole ClusterRoleBinding Role RoleBinding;
        "resource.k8s.io/v1": resource v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        "scheduling.k8s.io/v1": scheduling v1: PriorityClass;
        "storage.k8s.io/v1": storage v1: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment
            VolumeAttributesClass;
    }
}

#[test]
fn generated_code_reads_and_writes_the_same_objects() {
    let known =
        |of: &str, name: &str| !NEWER.iter().any(|(t, n)| of.ends_with(&format!(".{t}")) && *n == name);
    let mut dice = Dice(7);
    let mut missing = Vec::new();
    for kind in kinds() {
        let Some(again) = codec(&kind.0, &kind.1) else {
            missing.push(format!("{} {}", kind.0, kind.1));
            continue;
        };
        for _ in 0..40 {
            let object = object(&kind, &mut dice, &known);
            let body = encode(&object).unwrap();
            let mut unknown = Unknown::decode(&body[MAGIC.len()..]).unwrap();
            unknown.raw = Some(again(unknown.raw()));
            let body = [MAGIC, &unknown.encode_to_vec()].concat();
            assert_eq!(to_value(&body).unwrap(), object, "{} {}", kind.0, kind.1);
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}
