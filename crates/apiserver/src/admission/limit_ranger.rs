//! LimitRanges of a namespace: defaults for containers, bounds for containers, Pods and claims.
//! Upstream counterpart: `plugin/pkg/admission/limitranger`.

use super::{Admission, Operation, Plugin, aggregate, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skeg_api::k8s_openapi::api::core::v1::Pod;
use skeg_api::predicates::{Resources, pod_limits, pod_requests, resource_list};
use skeg_api::quantity::Quantity;
use skeg_api::{Status, meta};
use std::sync::Arc;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger {
    reader: Arc<dyn Reader>,
}

impl LimitRanger {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        LimitRanger { reader }
    }

    /// The LimitRanges that bear on a write. What containers ask changes only when a Pod is resized.
    fn ranges(&self, a: &Admission<'_>) -> Vec<Arc<Value>> {
        let bears = match a.operation {
            Operation::Create => a.is("", "pods", "") || a.is("", "persistentvolumeclaims", ""),
            Operation::Update => {
                is_resize(a)
                    || a.is("", "persistentvolumeclaims", "") && !a.old.is_some_and(meta::is_deleting)
            }
            _ => false,
        };
        if bears { self.reader.list_values(&resources::LIMIT_RANGES, a.namespace) } else { Vec::new() }
    }

    fn change(&self, a: &mut Admission<'_>) {
        let ranges = self.ranges(a);
        let pods = a.is("", "pods", "") || is_resize(a);
        if let Some(pod) = a.object.as_deref_mut().filter(|_| pods) {
            ranges.iter().for_each(|range| set_defaults(range, pod));
        }
    }

    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        let Some(object) = a.object.as_deref() else { return Ok(()) };
        for range in self.ranges(a) {
            let errors = if a.is("", "pods", "") || is_resize(a) {
                pod(&range, object)
            } else {
                claim(&range, object)
            };
            if !errors.is_empty() {
                return Err(a.forbid(aggregate(errors)));
            }
        }
        Ok(())
    }
}

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        self.change(request);
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check(request))
    }
}

fn is_resize(a: &Admission<'_>) -> bool {
    a.is("", "pods", "resize")
}

fn limits<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = range["spec"]["limits"].as_array().into_iter().flatten();
    all.filter(move |limit| limit["type"] == kind)
}

/// Fills what containers leave out, and says so in an annotation.
fn set_defaults(range: &Value, pod: &mut Value) {
    let mut done = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (default, field, said) in
                [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
            {
                let mut set = Vec::new();
                for (resource, amount) in
                    limits(range, "Container").flat_map(|limit| limit[default].as_object()).flatten()
                {
                    if container["resources"][field][resource].is_null() {
                        if !container["resources"].is_object() {
                            container["resources"] = json!({});
                        }
                        if !container["resources"][field].is_object() {
                            container["resources"][field] = json!({});
                        }
                        container["resources"][field][resource] = amount.clone();
                        set.push(resource.as_str());
                    }
                }
                if !set.is_empty() {
                    set.sort_unstable();
                    done.push(format!("{} {said} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !done.is_empty() {
        meta::set_annotation(pod, ANNOTATION, &format!("LimitRanger plugin set: {}", done.join("; ")));
    }
}

fn pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in limits(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let resources = &container["resources"];
                let (requests, limits) =
                    (resource_list(&resources["requests"]), resource_list(&resources["limits"]));
                bounds(limit, &requests, &limits, &mut errors);
            }
        }
    }
    if limits(range, "Pod").next().is_some() {
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap_or_default();
        let (requests, sums) = (pod_requests(&typed), pod_limits(&typed));
        limits(range, "Pod").for_each(|limit| bounds(limit, &requests, &sums, &mut errors));
    }
    errors
}

fn bounds(limit: &Value, requests: &Resources, limits: &Resources, errors: &mut Vec<String>) {
    let kind = limit["type"].as_str().unwrap_or_default();
    let of = |name: &String| (requests.get(name).copied(), limits.get(name).copied());
    for (name, least) in resource_list(&limit["min"]) {
        let (request, limit) = of(&name);
        errors.extend(minimum(kind, &name, least, request, limit));
    }
    for (name, most) in resource_list(&limit["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        errors.extend(match of(&name) {
            (_, None) => Some(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if limit > most => Some(format!("{head}, but limit is {limit}")),
            (Some(request), _) if request > most => Some(format!("{head}, but request is {request}")),
            _ => None,
        });
    }
    for (name, most) in resource_list(&limit["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        let set = |amount: Option<Quantity>| amount.filter(|amount| !amount.is_zero());
        let (request, limit) = of(&name);
        errors.extend(match (set(request), set(limit)) {
            (None, _) => Some(format!("{head}, but no request is specified or request is 0")),
            (_, None) => Some(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.as_f64() / request.as_f64();
                (ratio > most.as_f64()).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
            }
        });
    }
}

fn minimum(
    kind: &str,
    name: &str,
    least: Quantity,
    request: Option<Quantity>,
    limit: Option<Quantity>,
) -> Option<String> {
    let head = format!("minimum {name} usage per {kind} is {least}");
    match (request, limit) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(request), _) if request < least => Some(format!("{head}, but request is {request}")),
        (_, Some(limit)) if limit < least => Some(format!("{head}, but limit is {limit}")),
        _ => None,
    }
}

fn claim(range: &Value, claim: &Value) -> Vec<String> {
    let requests = resource_list(&claim["spec"]["resources"]["requests"]);
    let (kind, mut errors) = ("PersistentVolumeClaim", Vec::new());
    for limit in limits(range, kind) {
        for (name, least) in resource_list(&limit["min"]) {
            errors.extend(minimum(kind, &name, least, requests.get(&name).copied(), None));
        }
        for (name, most) in resource_list(&limit["max"]) {
            let head = format!("maximum {name} usage per {kind} is {most}");
            errors.extend(match requests.get(&name) {
                None => Some(format!("{head}.  No request is specified")),
                Some(request) if *request > most => Some(format!("{head}, but request is {request}")),
                Some(_) => None,
            });
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::Identity;
    use crate::reader::fake::Fake;

    fn write(limits: Value, kind_name: &str, plural: &str, object: Value) -> Result<Value, Status> {
        let reader = Arc::new(Fake::default());
        reader.put(
            &resources::LIMIT_RANGES,
            json!({"metadata": {"name": "l", "namespace": "a"}, "spec": {"limits": limits}}),
        );
        let mut case = Case {
            operation: Operation::Create,
            kind: kind("", kind_name, plural, true),
            subresource: "",
            identity: Identity::anonymous(),
            object: Some(object),
            old: None,
        };
        case.run(&LimitRanger::new(reader))?;
        Ok(case.object.unwrap())
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn containers_get_defaults() {
        let limits = json!([{"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}]);
        let made = write(limits, "Pod", "pods", pod(json!({"limits": {"memory": "2Gi"}}))).unwrap();
        assert_eq!(
            made["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m", "memory": "2Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            meta::annotation(&made, ANNOTATION),
            Some("LimitRanger plugin set: cpu request for container c; cpu limit for container c")
        );
    }

    #[test]
    fn bounds_are_told_in_upstreams_words() {
        for (limit, resources, expected) in [
            (
                json!({"min": {"cpu": "100m"}}),
                json!({}),
                "minimum cpu usage per Container is 100m.  No request is specified",
            ),
            (
                json!({"min": {"cpu": "100m"}}),
                json!({"requests": {"cpu": "50m"}}),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                json!({"max": {"memory": "1Gi"}}),
                json!({}),
                "maximum memory usage per Container is 1Gi.  No limit is specified",
            ),
            (
                json!({"max": {"memory": "1Gi"}}),
                json!({"limits": {"memory": "2Gi"}}),
                "maximum memory usage per Container is 1Gi, but limit is 2Gi",
            ),
            (
                json!({"maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                json!({"min": {"cpu": "1"}, "max": {"cpu": "2"}}),
                json!({}),
                "[minimum cpu usage per Container is 1.  No request is specified, maximum cpu usage per Container is 2.  No limit is specified]",
            ),
        ] {
            let mut limit = limit;
            limit["type"] = "Container".into();
            let status = write(json!([limit]), "Pod", "pods", pod(resources)).unwrap_err();
            assert_eq!(status.message, format!("pods \"p\" is forbidden: {expected}"));
        }
        let fits = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}});
        let limits = json!([{"type": "Pod", "min": {"cpu": "500m"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "2"}}]);
        assert!(write(limits.clone(), "Pod", "pods", pod(fits)).is_ok());
        let much = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}});
        assert_eq!(write(limits, "Pod", "pods", pod(much)).unwrap_err().code, 403);
        let limits = json!([{"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]);
        let claim = json!({"metadata": {"name": "c", "namespace": "a"}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        assert_eq!(
            write(limits, "PersistentVolumeClaim", "persistentvolumeclaims", claim).unwrap_err().message,
            "persistentvolumeclaims \"c\" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"
        );
    }
}
