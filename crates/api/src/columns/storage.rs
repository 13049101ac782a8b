//! Columns of volumes, claims and the group `storage.k8s.io`.

use super::*;

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(super) const CLAIM: &[Row] = &[
    NAME,
    s("Status", |o, _| phase(o).into()),
    s("Volume", |o, _| text(o, "/spec/volumeName").into()),
    s("Capacity", |o, _| if_bound(o, |o| amount(o, "/status/capacity/storage"))),
    s("Access Modes", |o, _| if_bound(o, |o| access_modes(o, "/status/accessModes"))),
    s("StorageClass", |o, _| storage_class(o).into()),
    s("VolumeAttributesClass", |o, _| or(text(o, "/spec/volumeAttributesClassName"), UNSET).into()),
    AGE,
    wide("VolumeMode", |o, _| or(text(o, "/spec/volumeMode"), UNSET).into()),
];

pub(super) const VOLUME: &[Row] = &[
    NAME,
    s("Capacity", |o, _| amount(o, "/spec/capacity/storage").into()),
    s("Access Modes", |o, _| access_modes(o, "/spec/accessModes").into()),
    s("Reclaim Policy", |o, _| text(o, "/spec/persistentVolumeReclaimPolicy").into()),
    s("Status", |o, _| phase(o).into()),
    s("Claim", |o, _| {
        let claim = o.pointer("/spec/claimRef");
        claim.map_or(String::new(), |c| format!("{}/{}", text(c, "/namespace"), text(c, "/name"))).into()
    }),
    s("StorageClass", |o, _| storage_class(o).into()),
    s("VolumeAttributesClass", |o, _| or(text(o, "/spec/volumeAttributesClassName"), UNSET).into()),
    s("Reason", |o, _| text(o, "/status/reason").into()),
    AGE,
    wide("VolumeMode", |o, _| or(text(o, "/spec/volumeMode"), UNSET).into()),
];

pub(super) const CLASS: &[Row] = &[
    s("Name", |o, _| {
        let is_default = DEFAULT_CLASS.iter().any(|key| meta::annotation(o, key) == Some("true"));
        format!("{}{}", meta::name(o), if is_default { " (default)" } else { "" }).into()
    }),
    s("Provisioner", |o, _| text(o, "/provisioner").into()),
    s("ReclaimPolicy", |o, _| or(text(o, "/reclaimPolicy"), "Delete").into()),
    s("VolumeBindingMode", |o, _| or(text(o, "/volumeBindingMode"), "Immediate").into()),
    s("AllowVolumeExpansion", |o, _| flag(o, "/allowVolumeExpansion")),
    AGE,
];

pub(super) const ATTRIBUTES_CLASS: &[Row] =
    &[NAME, s("DriverName", |o, _| text(o, "/driverName").into()), AGE];

pub(super) const ATTACHMENT: &[Row] = &[
    NAME,
    s("Attacher", |o, _| text(o, "/spec/attacher").into()),
    s("PV", |o, _| text(o, "/spec/source/persistentVolumeName").into()),
    s("Node", |o, _| text(o, "/spec/nodeName").into()),
    b("Attached", |o, _| flag(o, "/status/attached")),
    AGE,
];

pub(super) const DRIVER: &[Row] = &[
    NAME,
    b("AttachRequired", |o, _| o.pointer("/spec/attachRequired").cloned().unwrap_or(true.into())),
    b("PodInfoOnMount", |o, _| flag(o, "/spec/podInfoOnMount")),
    b("StorageCapacity", |o, _| flag(o, "/spec/storageCapacity")),
    s("TokenRequests", |o, _| {
        let requests = list(o, "/spec/tokenRequests").iter();
        or(&join(requests.map(|request| text(request, "/audience")), ","), UNSET).into()
    }),
    b("RequiresRepublish", |o, _| flag(o, "/spec/requiresRepublish")),
    s("Modes", |o, _| {
        or(&join(list(o, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str), ","), NONE).into()
    }),
    AGE,
];

pub(super) const CSI_NODE: &[Row] = &[NAME, i("Drivers", |o, _| size(o, "/spec/drivers").into()), AGE];

pub(super) const CAPACITY: &[Row] = &[
    NAME,
    s("StorageClassName", |o, _| text(o, "/storageClassName").into()),
    s("Capacity", |o, _| amount(o, "/capacity").into()),
];

fn phase(object: &Value) -> &str {
    if meta::is_deleting(object) { "Terminating" } else { text(object, "/status/phase") }
}

/// What a claim has only once it has a volume.
fn if_bound(claim: &Value, cell: fn(&Value) -> String) -> Value {
    if text(claim, "/spec/volumeName").is_empty() { "".into() } else { cell(claim).into() }
}

fn amount(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(number) => number.to_string(),
    }
}

/// The short names of access modes, in upstream's order.
fn access_modes(object: &Value, pointer: &str) -> String {
    let modes = list(object, pointer);
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let short = known.iter().filter(|(mode, _)| modes.iter().any(|m| m == mode)).map(|(_, short)| *short);
    join(short, ",")
}

fn storage_class(object: &Value) -> &str {
    meta::annotation(object, BETA_CLASS).unwrap_or_else(|| text(object, "/spec/storageClassName"))
}
