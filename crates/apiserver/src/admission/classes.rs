//! What classes and nodes give to the objects that name them: Ingress and runtime classes, topology
//! labels, tolerations of extended resources.
//! Upstream counterparts: `plugin/pkg/admission/{network/defaultingressclass,runtimeclass,
//! podtopologylabels,extendedresourcetoleration}`.

use super::{Admission, Operation, Plugin, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skeg_api::predicates::resource_list;
use skeg_api::{Status, meta};
use std::sync::Arc;

/// An Ingress that names no class gets the default one.
pub struct DefaultIngressClass(pub Arc<dyn Reader>);

impl DefaultIngressClass {
    fn change(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        if a.operation != Operation::Create || !a.is("networking.k8s.io", "ingresses", "") {
            return Ok(());
        }
        let Some(ingress) = a.object.as_deref() else { return Ok(()) };
        if !ingress["spec"]["ingressClassName"].is_null()
            || meta::annotation(ingress, "kubernetes.io/ingress.class").is_some()
        {
            return Ok(());
        }
        let classes = self.0.list(&resources::INGRESS_CLASSES, "");
        let classes = classes.iter().filter_map(|bytes| serde_json::from_slice::<Value>(bytes).ok());
        let key = "ingressclass.kubernetes.io/is-default-class";
        let mut defaults: Vec<Value> =
            classes.filter(|class| meta::annotation(class, key) == Some("true")).collect();
        // Of several the newest, then the first by name.
        defaults.sort_by_key(|class| {
            (std::cmp::Reverse(meta::creation_timestamp(class)), meta::name(class).to_owned())
        });
        if let (Some(class), Some(ingress)) = (defaults.first(), a.object.as_deref_mut()) {
            ingress["spec"]["ingressClassName"] = meta::name(class).into();
        }
        Ok(())
    }
}

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.change(request))
    }
}

/// A Pod's runtime class must be there; it says what the Pod costs beyond its containers and where
/// it can run.
pub struct RuntimeClass(pub Arc<dyn Reader>);

impl RuntimeClass {
    /// The class of a new Pod, if it names one.
    fn class(&self, a: &Admission<'_>) -> Result<Option<Arc<Value>>, Status> {
        let name = a.object.as_deref().and_then(|pod| pod["spec"]["runtimeClassName"].as_str());
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
        let class = self.0.get_value(&resources::RUNTIME_CLASSES, "", name);
        class.map(Some).ok_or_else(|| a.forbid(format!("pod rejected: RuntimeClass {name:?} not found")))
    }

    fn change(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        if a.operation != Operation::Create || !a.is("", "pods", "") {
            return Ok(());
        }
        let Some(class) = self.class(a)? else { return Ok(()) };
        let Some(pod) = a.object.take() else { return Ok(()) };
        let result = set_overhead(a, &class["overhead"]["podFixed"], &mut pod["spec"])
            .and_then(|()| set_scheduling(a, &class["scheduling"], &mut pod["spec"]));
        a.object = Some(pod);
        result
    }

    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        if a.operation != Operation::Create || !a.is("", "pods", "") {
            return Ok(());
        }
        let class = self.class(a)?;
        let given = a.object.as_deref().map_or(&Value::Null, |pod| &pod["spec"]["overhead"]);
        match class
            .as_ref()
            .map(|class| &class["overhead"]["podFixed"])
            .filter(|overhead| !overhead.is_null())
        {
            Some(fixed) if resource_list(fixed) != resource_list(given) => Err(other_overhead(a)),
            None if !given.is_null() => Err(a.forbid(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}

fn other_overhead(a: &Admission<'_>) -> Status {
    a.forbid("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
}

fn set_overhead(a: &Admission<'_>, fixed: &Value, spec: &mut Value) -> Result<(), Status> {
    if fixed.is_null() {
        return Ok(());
    }
    if !spec["overhead"].is_null() && resource_list(&spec["overhead"]) != resource_list(fixed) {
        return Err(other_overhead(a));
    }
    spec["overhead"] = fixed.clone();
    Ok(())
}

fn set_scheduling(a: &Admission<'_>, scheduling: &Value, spec: &mut Value) -> Result<(), Status> {
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = &spec["nodeSelector"][key];
        if !own.is_null() && own != value {
            let (wanted, own) = (value.as_str().unwrap_or_default(), own.as_str().unwrap_or_default());
            return Err(a.forbid(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {own}"
            )));
        }
        if !spec["nodeSelector"].is_object() {
            spec["nodeSelector"] = json!({});
        }
        spec["nodeSelector"][key] = value.clone();
    }
    let added = scheduling["tolerations"].as_array().into_iter().flatten();
    add_tolerations(spec, added.cloned());
    Ok(())
}

fn add_tolerations(spec: &mut Value, added: impl Iterator<Item = Value>) {
    let mut list = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let had = list.len();
    for toleration in added {
        if !list.contains(&toleration) {
            list.push(toleration);
        }
    }
    if list.len() > had {
        spec["tolerations"] = list.into();
    }
}

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.change(request))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check(request))
    }
}

/// A Pod that is bound gets its node's zone and region as labels.
pub struct PodTopologyLabels(pub Arc<dyn Reader>);

const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let binding = request.is("", "pods", "binding");
        let bears = request.operation == Operation::Create && (binding || request.is("", "pods", ""));
        let Some(object) = request.object.as_deref_mut().filter(|_| bears) else { return ready(Ok(())) };
        let node = match binding {
            true if object["target"]["kind"] == "Node" => &object["target"]["name"],
            true => &Value::Null,
            false => &object["spec"]["nodeName"],
        };
        let node = node
            .as_str()
            .filter(|node| !node.is_empty())
            .and_then(|node| self.0.get_value(&resources::NODES, "", node));
        for key in TOPOLOGY {
            if let Some(value) = node.as_ref().and_then(|node| meta::label(node, key))
                && meta::label(object, key).is_none()
            {
                meta::set_label(object, key, value);
            }
        }
        ready(Ok(()))
    }
}

/// A Pod that asks for an extended resource tolerates the taint of nodes that are kept for it.
pub struct ExtendedResourceToleration;

impl Plugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let bears =
            matches!(request.operation, Operation::Create | Operation::Update) && request.is("", "pods", "");
        if let Some(pod) = request.object.as_deref_mut().filter(|_| bears) {
            let mut names = std::collections::BTreeSet::new();
            for list in ["initContainers", "containers"] {
                for container in pod["spec"][list].as_array().into_iter().flatten() {
                    names.extend(resource_list(&container["resources"]["requests"]).into_keys());
                }
            }
            let extended = names.into_iter().filter(|name| skeg_api::validate::is_extended_resource(name));
            add_tolerations(
                &mut pod["spec"],
                extended.map(|name| json!({"key": name, "operator": "Exists"})),
            );
        }
        ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::Identity;
    use crate::reader::fake::Fake;

    fn create(
        plugin: &dyn Plugin,
        what: (&str, &str, &str),
        subresource: &str,
        object: Value,
    ) -> Result<Value, Status> {
        let (group, name, plural) = what;
        let (kind, identity) = (kind(group, name, plural, true), Identity::anonymous());
        let mut case = Case {
            operation: Operation::Create,
            kind,
            subresource,
            identity,
            object: Some(object),
            old: None,
        };
        case.run(plugin)?;
        Ok(case.object.unwrap())
    }

    const POD: (&str, &str, &str) = ("", "Pod", "pods");

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec})
    }

    #[test]
    fn ingresses_get_the_default_class() {
        let reader = Arc::new(Fake::default());
        let ingress = ("networking.k8s.io", "Ingress", "ingresses");
        let plugin = DefaultIngressClass(reader.clone());
        let plain = create(&plugin, ingress, "", pod(json!({}))).unwrap();
        assert_eq!(plain["spec"], json!({}));
        reader.put(
            &resources::INGRESS_CLASSES,
            json!({"metadata": {"name": "web",
            "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}}),
        );
        assert_eq!(create(&plugin, ingress, "", pod(json!({}))).unwrap()["spec"]["ingressClassName"], "web");
        let named = pod(json!({"ingressClassName": "x"}));
        assert_eq!(create(&plugin, ingress, "", named.clone()).unwrap(), named);
    }

    #[test]
    fn runtime_classes_bring_overhead_and_scheduling() {
        let reader = Arc::new(Fake::default());
        let plugin = RuntimeClass(reader.clone());
        let run = |spec: Value| create(&plugin, POD, "", pod(spec));
        assert_eq!(
            run(json!({"runtimeClassName": "vm"})).unwrap_err().message,
            "pods \"p\" is forbidden: pod rejected: RuntimeClass \"vm\" not found"
        );
        reader.put(&resources::RUNTIME_CLASSES, json!({"metadata": {"name": "vm"}, "handler": "vm",
            "overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}}));
        let made = run(json!({"runtimeClassName": "vm", "nodeSelector": {"a": "b"}})).unwrap();
        assert_eq!(
            made["spec"],
            json!({"runtimeClassName": "vm", "overhead": {"cpu": "250m"},
            "nodeSelector": {"a": "b", "vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]})
        );
        for (spec, why) in [
            (
                json!({"overhead": {"cpu": "1"}}),
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ),
            (
                json!({"runtimeClassName": "vm", "overhead": {"cpu": "1"}}),
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ),
            (
                json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
                "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no",
            ),
        ] {
            assert_eq!(run(spec).unwrap_err().message, format!("pods \"p\" is forbidden: {why}"));
        }
    }

    #[test]
    fn bound_pods_get_labels_of_their_node_and_extended_resources_their_toleration() {
        let reader = Arc::new(Fake::default());
        reader.put(
            &resources::NODES,
            json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z", "x": "y"}}}),
        );
        let plugin = PodTopologyLabels(reader);
        let binding =
            json!({"metadata": {"name": "p", "namespace": "a"}, "target": {"kind": "Node", "name": "n"}});
        let bound = create(&plugin, POD, "binding", binding).unwrap();
        assert_eq!(bound["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
        let placed = create(&plugin, POD, "", pod(json!({"nodeName": "n"}))).unwrap();
        assert_eq!(placed["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
        let asks = pod(json!({"containers": [{"resources": {"requests": {"cpu": "1", "a.io/gpu": "1"}}}]}));
        let made = create(&ExtendedResourceToleration, POD, "", asks).unwrap();
        assert_eq!(made["spec"]["tolerations"], json!([{"key": "a.io/gpu", "operator": "Exists"}]));
    }
}
