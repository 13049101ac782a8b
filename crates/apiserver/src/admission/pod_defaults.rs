//! Small plugins that fill in what a new Pod or Node needs: priority, tolerations, taint.
//! Upstream counterparts: `plugin/pkg/admission/{priority,defaulttolerationseconds,nodetaint}`.

use super::{Admission, Operation, Plugin, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skeg_api::{Status, meta};
use std::sync::Arc;

/// How long a Pod stays on a node that is not ready or unreachable.
const TOLERATION_SECONDS: i64 = 300;
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const DEFAULT_PREEMPTION: &str = "PreemptLowerPriority";

/// Resolves a priority class to its number.
pub struct Priority {
    reader: Arc<dyn Reader>,
}

impl Priority {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Priority { reader }
    }

    fn change(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        if !a.is("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = a.object.take() else { return Ok(()) };
        let result = match a.operation {
            Operation::Create => self.resolve(a, &mut pod["spec"]),
            Operation::Update => {
                keep(&mut pod["spec"], a.old);
                Ok(())
            }
            _ => Ok(()),
        };
        a.object = Some(pod);
        result
    }

    fn resolve(&self, a: &Admission<'_>, spec: &mut Value) -> Result<(), Status> {
        let name = spec["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let class = if name.is_empty() {
            self.default_class(None)
        } else {
            let class = self.reader.get_value(&resources::PRIORITY_CLASSES, "", &name);
            Some(class.ok_or_else(|| a.forbid(format!("no PriorityClass with name {name} was found")))?)
        };
        let value = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
        let policy = class
            .as_ref()
            .and_then(|c| c["preemptionPolicy"].as_str())
            .unwrap_or(DEFAULT_PREEMPTION)
            .to_owned();
        if let Some(given) = spec["priority"].as_i64()
            && given != value
        {
            return Err(a.forbid(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name"
            )));
        }
        if let Some(given) = spec["preemptionPolicy"].as_str()
            && given != policy
        {
            return Err(a.forbid(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            )));
        }
        match &class {
            Some(class) => spec["priorityClassName"] = meta::name(class).into(),
            None => {
                if let Some(fields) = spec.as_object_mut() {
                    fields.remove("priorityClassName");
                }
            }
        }
        spec["priority"] = value.into();
        spec["preemptionPolicy"] = policy.into();
        Ok(())
    }

    /// The class for Pods that name none; of several the one with the lowest value.
    fn default_class(&self, except: Option<&str>) -> Option<Arc<Value>> {
        let classes = self.reader.list_values(&resources::PRIORITY_CLASSES, "").into_iter();
        classes
            .filter(|class| class["globalDefault"] == true && except != Some(meta::name(class)))
            .min_by_key(|class| class["value"].as_i64())
    }

    fn check_class(&self, a: &Admission<'_>) -> Result<(), Status> {
        if !a.is("scheduling.k8s.io", "priorityclasses", "") {
            return Ok(());
        }
        // No other class may have such a name.
        if a.operation == Operation::Delete && a.name.starts_with("system-") {
            return Err(a.forbid("this is a system priority class and cannot be deleted"));
        }
        let Some(class) = a.object.as_deref().filter(|class| class["globalDefault"] == true) else {
            return Ok(());
        };
        match self.default_class(Some(meta::name(class))) {
            Some(other) => Err(a.forbid(format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                meta::name(&other)
            ))),
            None => Ok(()),
        }
    }
}

/// An update that leaves the computed fields out keeps them.
fn keep(spec: &mut Value, old: Option<&Value>) {
    for field in ["priority", "preemptionPolicy"] {
        if let Some(value) = old.map(|old| &old["spec"][field]).filter(|value| !value.is_null())
            && spec[field].is_null()
        {
            spec[field] = value.clone();
        }
    }
}

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.change(request))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check_class(request))
    }
}

/// A Pod that says nothing else leaves a broken node after five minutes.
pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if writes
            && request.is("", "pods", "")
            && let Some(pod) = request.object.as_deref_mut()
        {
            tolerate(&mut pod["spec"]);
        }
        ready(Ok(()))
    }
}

fn tolerate(spec: &mut Value) {
    let mut list = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for key in [NOT_READY, UNREACHABLE] {
        let covered = list.iter().any(|toleration| {
            let text = |field: &str| toleration[field].as_str().unwrap_or_default();
            matches!(text("key"), k if k == key || k.is_empty()) && matches!(text("effect"), "NoExecute" | "")
        });
        if !covered {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
    if !list.is_empty() {
        spec["tolerations"] = list.into();
    }
}

/// A new node takes no Pods until it reports ready.
pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        if request.operation == Operation::Create
            && request.is("", "nodes", "")
            && let Some(node) = request.object.as_deref_mut()
        {
            let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            if !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
                taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
                node["spec"]["taints"] = taints.into();
            }
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

    fn run(
        plugin: &dyn Plugin,
        operation: Operation,
        what: (&str, &str, &str),
        object: Value,
    ) -> Result<Value, Status> {
        let (group, name, plural) = what;
        let kind = kind(group, name, plural, plural == "pods");
        let identity = Identity::anonymous();
        let mut case = Case { operation, kind, subresource: "", identity, object: Some(object), old: None };
        case.run(plugin)?;
        Ok(case.object.unwrap())
    }

    const POD: (&str, &str, &str) = ("", "Pod", "pods");

    #[test]
    fn priorities_come_from_classes() {
        let reader = Arc::new(Fake::default());
        let plugin = Priority::new(reader.clone());
        let pod = |spec: Value| json!({"metadata": {"name": "x", "namespace": "a"}, "spec": spec});
        let plain = run(&plugin, Operation::Create, POD, pod(json!({"priorityClassName": ""}))).unwrap();
        assert_eq!(plain["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        let missing =
            run(&plugin, Operation::Create, POD, pod(json!({"priorityClassName": "high"}))).unwrap_err();
        assert_eq!(missing.message, "pods \"x\" is forbidden: no PriorityClass with name high was found");
        reader.put(
            &resources::PRIORITY_CLASSES,
            json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"}),
        );
        reader.put(
            &resources::PRIORITY_CLASSES,
            json!({"metadata": {"name": "std"}, "value": 3, "globalDefault": true}),
        );
        let high = run(&plugin, Operation::Create, POD, pod(json!({"priorityClassName": "high"}))).unwrap();
        assert_eq!(high["spec"]["priority"], 7);
        assert_eq!(high["spec"]["preemptionPolicy"], "Never");
        let std = run(&plugin, Operation::Create, POD, pod(json!({}))).unwrap();
        assert_eq!((&std["spec"]["priorityClassName"], &std["spec"]["priority"]), (&json!("std"), &json!(3)));
        assert_eq!(run(&plugin, Operation::Create, POD, pod(json!({"priority": 9}))).unwrap_err().code, 403);
        let class = ("scheduling.k8s.io", "PriorityClass", "priorityclasses");
        let second = json!({"metadata": {"name": "other"}, "value": 1, "globalDefault": true});
        assert_eq!(run(&plugin, Operation::Create, class, second).unwrap_err().code, 403);
        let same = json!({"metadata": {"name": "std"}, "value": 3, "globalDefault": true});
        assert!(run(&plugin, Operation::Update, class, same).is_ok());
    }

    #[test]
    fn tolerations_and_taints() {
        let pod = json!({"metadata": {"name": "x", "namespace": "a"}, "spec": {"tolerations": [{"key": UNREACHABLE, "operator": "Exists"}]}});
        let pod = run(&DefaultTolerationSeconds, Operation::Create, POD, pod).unwrap();
        let list = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(
            (list.len(), &list[1]["key"], &list[1]["tolerationSeconds"]),
            (2, &json!(NOT_READY), &json!(300))
        );
        let all = json!({"metadata": {"name": "x", "namespace": "a"}, "spec": {"tolerations": [{"operator": "Exists"}]}});
        assert_eq!(run(&DefaultTolerationSeconds, Operation::Create, POD, all.clone()).unwrap(), all);
        let node = json!({"metadata": {"name": "n"}});
        let node = run(&TaintNodesByCondition, Operation::Create, ("", "Node", "nodes"), node).unwrap();
        assert_eq!(node["spec"]["taints"], json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
    }
}
