use super::*;
use crate::decode::decode_apply;
use crate::fieldset::{keep_times, track};
use crate::schema::Schema;
use jiff::Timestamp;
use serde_json::json;

/// An object and those who write it.
struct World {
    group: &'static str,
    kind: &'static str,
    schema: Schema,
    object: Option<Value>,
    second: i64,
    subresource: &'static str,
    ignored: &'static [&'static str],
}

impl World {
    fn new(group: &'static str, kind: &'static str) -> Self {
        let schema = Schema::builtin_kind(group, "v1", kind).unwrap();
        World { group, kind, schema, object: None, second: 0, subresource: "", ignored: &["status"] }
    }

    fn deployments() -> Self {
        World::new("apps", "Deployment")
    }

    fn config_maps() -> Self {
        World::new("", "ConfigMap")
    }

    fn write<T>(&mut self, manager: &str, write: impl FnOnce(&mut Self, Tracking<'_>, &Gvk) -> T) -> T {
        self.second += 1;
        let gvk = Gvk::new(self.group, "v1", self.kind);
        let tracking = Tracking {
            manager,
            api_version: &gvk.api_version(),
            subresource: self.subresource,
            now: Timestamp::from_second(1_767_225_600 + self.second).unwrap(),
            ignored: self.ignored,
        };
        write(self, tracking, &gvk)
    }

    /// Applies what is given beside `apiVersion`, `kind` and the name.
    fn attempt(&mut self, manager: &str, config: Value, force: bool) -> Result<(), Status> {
        self.write(manager, |world, tracking, kind| {
            let mut all =
                json!({"apiVersion": kind.api_version(), "kind": &*kind.kind, "metadata": {"name": "x"}});
            crate::patch::merge_patch(&mut all, config.clone()).unwrap();
            // A merge patch cannot set null.
            for part in ["spec", "data", "metadata"] {
                if let (Some(Value::Object(into)), Some(Value::Object(from))) =
                    (all.get_mut(part), config.get(part))
                {
                    into.extend(
                        from.iter().filter(|(_, v)| v.is_null()).map(|(k, v)| (k.clone(), v.clone())),
                    );
                }
            }
            let request = Apply { tracking, kind, force };
            let object = apply(world.object.as_ref(), &all, &request, world.schema.root())?;
            world.object = Some(object);
            Ok(())
        })
    }

    #[track_caller]
    fn apply(&mut self, manager: &str, config: Value) {
        self.attempt(manager, config, false).unwrap();
    }

    #[track_caller]
    fn refused(&mut self, manager: &str, config: Value) -> String {
        self.attempt(manager, config, false).unwrap_err().message
    }

    fn update(&mut self, manager: &str, change: impl FnOnce(&mut Value)) {
        self.write(manager, |world, tracking, kind| {
            let mut new = world.object.clone().unwrap_or_else(
                || json!({"apiVersion": kind.api_version(), "kind": &*kind.kind, "metadata": {"name": "x"}}),
            );
            change(&mut new);
            track(world.object.as_ref(), &mut new, &tracking, world.schema.root());
            world.object = Some(new);
        });
    }

    fn entries(&self) -> &[Value] {
        let entries = self.object.as_ref().and_then(|object| object.pointer("/metadata/managedFields"));
        entries.and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Manager, operation and fields of each entry.
    fn owners(&self) -> Vec<(String, Value)> {
        let name = |entry: &Value| format!("{} {}", text(entry, "manager"), text(entry, "operation"));
        self.entries().iter().map(|entry| (name(entry), entry["fieldsV1"].clone())).collect()
    }

    #[track_caller]
    fn owned(&self, owner: &str) -> Value {
        self.owners().into_iter().find(|(name, _)| name == owner).map_or(Value::Null, |(_, fields)| fields)
    }

    fn at(&self, pointer: &str) -> Value {
        self.object.as_ref().and_then(|object| object.pointer(pointer)).cloned().unwrap_or_default()
    }
}

#[test]
fn a_manager_owns_what_it_applies() {
    let mut w = World::deployments();
    w.apply(
        "one",
        json!({"metadata": {"labels": {"app": "web"}, "finalizers": ["a/b"]}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "args": ["x"], "resources": {},
                "ports": [{"containerPort": 80}]}]}}}}),
    );
    assert_eq!(
        w.object.as_ref().unwrap()["metadata"]["managedFields"],
        json!([{"manager": "one", "operation": "Apply", "apiVersion": "apps/v1", "time": "2026-01-01T00:00:01Z",
            "fieldsType": "FieldsV1", "fieldsV1": {
                "f:metadata": {"f:labels": {"f:app": {}}, "f:finalizers": {"v:\"a/b\"": {}}},
                "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:spec": {
                    "f:nodeSelector": {}, "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:args": {}, "f:resources": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}}])
    );
}

#[test]
fn conflicts_are_told_as_upstream_tells_them() {
    let mut w = World::deployments();
    w.update("kubectl", |object| {
        object["spec"] =
            json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "a"}]}}})
    });
    let one = w.attempt("one", json!({"spec": {"replicas": 2}}), false).unwrap_err();
    assert_eq!(
        one.message,
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
    assert_eq!((one.code, one.reason), (409, Reason::Conflict));
    assert_eq!(
        one.to_value()["details"],
        json!({"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"kubectl\" using apps/v1", "field": ".spec.replicas"}]})
    );
    w.apply("two", json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x/y"]}}));
    let config = json!({"metadata": {"labels": {"a": "2"}}, "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}}});
    let many = w.attempt("one", config.clone(), false).unwrap_err();
    assert_eq!(
        many.message,
        "Apply failed with 3 conflicts: conflicts with \"kubectl\" using apps/v1:\n- .spec.replicas\n- \
         .spec.template.spec.containers[name=\"c\"].image\nconflicts with \"two\":\n- .metadata.labels.a"
    );
    assert_eq!(many.details.unwrap().causes.len(), 3);
    // Force takes all that is in conflict and nothing else.
    w.attempt("one", config, true).unwrap();
    assert_eq!(w.at("/spec/replicas"), 2);
    assert_eq!(w.owned("two Apply"), json!({"f:metadata": {"f:finalizers": {"v:\"x/y\"": {}}}}));
    assert_eq!(w.owned("kubectl Update")["f:spec"].get("f:replicas"), None);
    // A manager of a subresource is told with that.
    w.subresource = "scale";
    w.update("scaler", |object| object["spec"]["replicas"] = 7.into());
    w.subresource = "";
    let told = w.refused("one", json!({"spec": {"replicas": 2}}));
    assert_eq!(
        told,
        "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn equal_values_are_shared_and_go_with_their_last_owner() {
    let mut w = World::config_maps();
    w.apply("one", json!({"data": {"a": "1", "b": "1"}}));
    w.apply("two", json!({"data": {"a": "1", "c": "1"}}));
    assert_eq!(w.owned("two Apply"), json!({"f:data": {"f:a": {}, "f:c": {}}}));
    assert_eq!(w.entries()[1]["time"], "2026-01-01T00:00:02Z");
    // What only one owned goes, what both owned stays with the other.
    w.apply("one", json!({"data": {}}));
    assert_eq!(w.at("/data"), json!({"a": "1", "c": "1"}));
    assert_eq!(w.owned("one Apply"), json!({"f:data": {}}));
    w.apply("one", json!({}));
    assert_eq!(w.owners(), [("two Apply".to_owned(), json!({"f:data": {"f:a": {}, "f:c": {}}}))]);
    w.apply("two", json!({"metadata": {"labels": {"a": "b"}}}));
    w.apply("two", json!({}));
    assert_eq!((w.owners(), w.at("/data")), (vec![], Value::Null));
    assert_eq!(w.at("/metadata"), json!({"name": "x"}));
    // An update takes what it changes; who applied that no longer removes it.
    w.apply("one", json!({"data": {"a": "1", "b": "1"}}));
    w.update("editor", |object| object["data"]["a"] = "2".into());
    w.apply("one", json!({"data": {"b": "1"}}));
    assert_eq!(w.at("/data"), json!({"a": "2", "b": "1"}));
}

#[test]
fn lists_merge_by_key_and_keep_their_order() {
    let container = |name: &str| json!({"name": name, "image": name});
    let template = |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let names = |w: &World| -> String {
        let containers = w.at("/spec/template/spec/containers");
        containers.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    for (live, config, expected) in [
        ("ab", "a", "ab"),
        ("ab", "ba", "ba"),
        ("ab", "c", "abc"),
        ("abc", "cb", "acb"),
        ("abc", "xcy", "abxcy"),
        ("", "ab", "ab"),
        ("abcde", "1b2ed", "a1bc2ed"),
    ] {
        let mut w = World::deployments();
        let list = |names: &str| -> Value { names.chars().map(|c| container(&c.to_string())).collect() };
        w.update("other", |object| {
            *object = {
                let mut object = object.clone();
                object["spec"] = template(list(live))["spec"].take();
                object
            }
        });
        w.attempt("one", template(list(config)), true).unwrap();
        assert_eq!(names(&w), expected, "{live} with {config}");
    }
    let mut w = World::deployments();
    w.apply("one", template(json!([container("a"), container("b")])));
    w.apply("two", template(json!([{"name": "b", "workingDir": "/"}])));
    // The item stays for its other owner, without what that does not own.
    w.apply("one", template(json!([container("a")])));
    assert_eq!(w.at("/spec/template/spec/containers/1"), json!({"name": "b", "workingDir": "/"}));
    // An item whose owners are gone goes whole, also with what others put into it.
    w.update("editor", |object| object["spec"]["template"]["spec"]["containers"][0]["tty"] = true.into());
    w.apply("one", json!({}));
    assert_eq!(names(&w), "b");
    assert_eq!(w.owned("editor Update"), Value::Null);
}

#[test]
fn keys_that_have_a_default_are_filled_in() {
    let mut w = World::new("", "Service");
    let ports = |ports: Value| json!({"spec": {"ports": ports}});
    w.update("creator", |object| {
        object["spec"] = json!({"ports": [{"port": 80, "protocol": "TCP", "name": "web"}]})
    });
    w.apply("one", ports(json!([{"port": 80, "targetPort": 8080}, {"port": 80, "protocol": "UDP"}])));
    assert_eq!(
        w.at("/spec/ports"),
        json!([{"port": 80, "protocol": "TCP", "name": "web", "targetPort": 8080}, {"port": 80, "protocol": "UDP"}])
    );
    w.apply("one", ports(json!([{"port": 80, "protocol": "UDP"}])));
    assert_eq!(
        w.at("/spec/ports"),
        json!([{"port": 80, "protocol": "TCP", "name": "web"}, {"port": 80, "protocol": "UDP"}])
    );
}

#[test]
fn atomic_values_are_owned_as_a_whole() {
    let mut w = World::deployments();
    let spec =
        |spec: Value| json!({"spec": {"selector": {"matchLabels": {"a": "1"}}, "template": {"spec": spec}}});
    w.apply("one", spec(json!({"nodeSelector": {"a": "1"}, "tolerations": [{"key": "x"}]})));
    w.apply("two", spec(json!({"nodeSelector": {"a": "1"}})));
    let told = w.refused("two", spec(json!({"nodeSelector": {"a": "1", "b": "2"}, "tolerations": []})));
    assert_eq!(
        told,
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.template.spec.nodeSelector\n- .spec.template.spec.tolerations"
    );
    w.attempt("two", spec(json!({"nodeSelector": {"b": "2"}})), true).unwrap();
    assert_eq!(w.at("/spec/template/spec/nodeSelector"), json!({"b": "2"}));
    assert_eq!(
        w.owned("one Apply").pointer("/f:spec/f:template/f:spec"),
        Some(&json!({"f:tolerations": {}}))
    );
}

#[test]
fn unset_null_and_empty_differ() {
    let mut w = World::deployments();
    w.update("editor", |object| {
        object["spec"] = json!({"replicas": 3, "paused": true, "strategy": {"type": "Recreate"}})
    });
    // What is not named is not touched.
    w.apply("one", json!({"spec": {"minReadySeconds": 5}}));
    assert_eq!(w.at("/spec/replicas"), 3);
    // Null is a value of a leaf; of what has parts it names none.
    let told = w.refused("one", json!({"spec": {"replicas": null}}));
    assert_eq!(told, "Apply failed with 1 conflict: conflict with \"editor\" using apps/v1: .spec.replicas");
    w.apply("one", json!({"spec": {"minReadySeconds": 5, "strategy": null}}));
    assert_eq!(w.at("/spec/strategy"), json!({"type": "Recreate"}));
    assert_eq!(w.owned("one Apply"), json!({"f:spec": {"f:minReadySeconds": {}, "f:strategy": {}}}));
    w.attempt("one", json!({"spec": {"replicas": null}}), true).unwrap();
    assert_eq!(w.at("/spec").get("replicas"), Some(&Value::Null));
    assert_eq!(w.owned("one Apply"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(w.at("/spec/minReadySeconds"), Value::Null);
    // An empty map is owned; an empty list that merges by key claims nothing.
    w.apply("two", json!({"metadata": {"annotations": {}, "finalizers": []}, "spec": {"template": {"spec": {"containers": []}}}}));
    assert_eq!(w.owned("two Apply"), json!({"f:metadata": {"f:annotations": {}}}));
}

#[test]
fn what_is_left_without_parts_turns_null() {
    let mut w = World::deployments();
    let context = |context: Value| json!({"spec": {"template": {"spec": {"securityContext": context}}}});
    w.apply("one", context(json!({"runAsUser": 1})));
    w.apply("two", context(json!({})));
    w.apply("one", json!({"spec": {"replicas": 1}}));
    assert_eq!(w.at("/spec/template/spec"), json!({"securityContext": null}));
    assert_eq!(
        w.owned("two Apply"),
        json!({"f:spec": {"f:template": {"f:spec": {"f:securityContext": {}}}}})
    );
}

#[test]
fn times_change_with_what_is_owned() {
    let mut w = World::config_maps();
    w.apply("one", json!({"data": {"a": "1"}}));
    w.apply("two", json!({"data": {"b": "1"}}));
    let before = w.object.clone();
    w.apply("one", json!({"data": {"a": "1"}}));
    assert_eq!(w.object, before, "an apply that changes nothing changes no time");
    w.apply("one", json!({"data": {"a": "2"}}));
    let time = |w: &World, manager: &str| {
        w.entries().iter().find(|e| e["manager"] == manager).unwrap()["time"].clone()
    };
    assert_eq!(
        (time(&w, "one"), time(&w, "two")),
        (json!("2026-01-01T00:00:04Z"), json!("2026-01-01T00:00:02Z"))
    );
    w.apply("two", json!({"data": {"a": "2", "b": "1"}}));
    assert_eq!(
        (time(&w, "one"), time(&w, "two")),
        (json!("2026-01-01T00:00:04Z"), json!("2026-01-01T00:00:05Z"))
    );
    // What decoding makes equal again gets its time back.
    let old = w.object.clone().unwrap();
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = "2027-01-01T00:00:00Z".into();
    keep_times(&mut new, &old);
    assert_eq!(new, old);
    new["metadata"]["managedFields"][0]["time"] = "2027-01-01T00:00:00Z".into();
    new["data"]["a"] = "3".into();
    keep_times(&mut new, &old);
    assert_eq!(new["metadata"]["managedFields"][0]["time"], "2027-01-01T00:00:00Z");
}

#[test]
fn what_was_there_before_belongs_to_before_first_apply() {
    let mut w = World::config_maps();
    w.object = Some(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "uid": "u"}, "data": {"a": "1"}}),
    );
    assert_eq!(
        w.refused("one", json!({"data": {"a": "2"}})),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
    w.apply("one", json!({"data": {"a": "1", "b": "1"}}));
    assert_eq!(w.owned("before-first-apply Update"), json!({"f:data": {".": {}, "f:a": {}}}));
}

#[test]
fn applies_in_another_version_share_an_entry_and_others_are_kept() {
    let mut w = World::deployments();
    w.apply("one", json!({"spec": {"replicas": 1}}));
    let object = w.object.as_mut().unwrap();
    object["metadata"]["managedFields"][0]["apiVersion"] = "apps/v1beta1".into();
    let mut other = object["metadata"]["managedFields"][0].clone();
    other["manager"] = "two".into();
    object["metadata"]["managedFields"].as_array_mut().unwrap().push(other);
    w.apply("one", json!({"spec": {"replicas": 1}}));
    let versions: Vec<&Value> = w.entries().iter().map(|entry| &entry["apiVersion"]).collect();
    assert_eq!(versions, ["apps/v1beta1", "apps/v1"]);
    assert_eq!(w.entries()[0]["manager"], "two");
    let told = w.refused("one", json!({"spec": {"replicas": 2}}));
    assert_eq!(told, "Apply failed with 1 conflict: conflict with \"two\": .spec.replicas");
}

#[test]
fn subresources_own_apart_and_reset_fields_are_nobodys() {
    let mut w = World::deployments();
    w.apply("one", json!({"spec": {"replicas": 1}, "status": {"replicas": 9}}));
    assert_eq!(w.owned("one Apply"), json!({"f:spec": {"f:replicas": {}}}));
    (w.subresource, w.ignored) = ("status", &["spec", "metadata.labels"]);
    w.apply("one", json!({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": {"replicas": 5}, "status": {"observedGeneration": 1}}));
    assert_eq!(w.entries().len(), 2);
    let own = w.entries().iter().find(|entry| entry["subresource"] == "status").unwrap();
    assert_eq!(
        own["fieldsV1"],
        json!({"f:metadata": {"f:annotations": {"f:c": {}}}, "f:status": {"f:observedGeneration": {}}})
    );
}

#[test]
fn client_side_apply_is_taken_over() {
    const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let last = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "1", "b": "1"}});
    let mut w = World::config_maps();
    w.update("kubectl-client-side-apply", |object| {
        object["metadata"]["annotations"] = json!({ ANNOTATION: last.to_string() });
        object["data"] = json!({"a": "1", "b": "1"});
    });
    w.update("other", |object| object["data"]["b"] = "2".into());
    // Only kubectl's own manager inherits, and only what is as the annotation says.
    assert!(
        w.refused("helm", json!({"data": {"a": "3"}}))
            .ends_with("\"kubectl-client-side-apply\" using v1: .data.a")
    );
    assert_eq!(
        w.refused("kubectl", json!({"data": {"a": "3", "b": "3"}})),
        "Apply failed with 1 conflict: conflict with \"other\" using v1: .data.b"
    );
    w.apply("kubectl", json!({"data": {"a": "<3>"}}));
    assert_eq!(w.at("/data"), json!({"a": "<3>", "b": "2"}));
    assert_eq!(w.owned("kubectl Apply"), json!({"f:data": {"f:a": {}}}));
    let annotation = w.object.as_ref().and_then(|object| meta::annotation(object, ANNOTATION)).unwrap();
    assert_eq!(
        annotation,
        "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"\\u003c3\\u003e\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"x\"}}\n"
    );
    // One that would be too large goes.
    w.apply("kubectl", json!({"data": {"a": "x".repeat(300 << 10)}}));
    assert_eq!(w.at("/metadata/annotations").get(ANNOTATION), None);
}

#[test]
fn configurations_that_do_not_fit_are_refused() {
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "ns"}, "spec": spec});
    let typed =
        |why: &str| (500, format!("failed to create typed patch object (ns/x; /v1, Kind=Pod): {why}"));
    let bad = |why: &str| (400, why.to_owned());
    for (config, expected) in [
        (json!({}), bad("invalid object type: /, Kind=")),
        (Value::Null, bad("invalid object type: /, Kind=")),
        (json!({"apiVersion": "v2", "kind": "Pod"}), bad("invalid object type: /v2, Kind=Pod")),
        (
            json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            bad("invalid object type: apps/v1, Kind=Deployment"),
        ),
        (json!({"apiVersion": "a/b/c", "kind": "Pod"}), bad("invalid object type: /, Kind=")),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"managedFields": []}}),
            bad("metadata.managedFields must be nil"),
        ),
        (pod(json!({"foo": 1})), typed(".spec.foo: field not declared in schema")),
        (pod(json!([])), typed(".spec: expected map, got &{[]}")),
        (
            pod(json!({"hostname": 1})),
            typed(".spec.hostname: expected string, got &value.valueUnstructured{Value:1}"),
        ),
        (pod(json!({"priority": "x"})), typed(".spec.priority: expected numeric (int or float), got string")),
        (
            pod(json!({"priority": {"a": 1}})),
            typed(".spec.priority: expected numeric (int or float), got map[string]interface {}"),
        ),
        (pod(json!({"hostIPC": "x"})), typed(".spec.hostIPC: expected boolean, got &{x}")),
        (pod(json!({"containers": "x"})), typed(".spec.containers: expected list, got &{x}")),
        (
            pod(json!({"containers": {"name": "a"}})),
            typed(".spec.containers: expected list, got &{map[name:a]}"),
        ),
        (
            pod(json!({"containers": [{"image": "x"}]})),
            typed(
                ".spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and \
                 doesn't have default values for any key fields)",
            ),
        ),
        (
            pod(json!({"containers": [null]})),
            typed(".spec.containers: element 0: associative list with keys may not have a null element"),
        ),
        (
            pod(json!({"containers": ["a"]})),
            typed(".spec.containers: element 0: associative list with keys may not have non-map elements"),
        ),
        (
            pod(json!({"containers": [{"name": "a"}, {"name": "a"}]})),
            typed(".spec.containers: duplicate entries for key [name=\"a\"]"),
        ),
        (
            pod(
                json!({"containers": [{"name": "a", "foo": 1, "ports": [{"containerPort": 1, "hostPort": "x"}]}], "tolerations": [{"key": 1}]}),
            ),
            typed(
                "errors:\n  .spec.containers[name=\"a\"].foo: field not declared in schema\n  \
                 .spec.tolerations[0].key: expected string, got &value.valueUnstructured{Value:1}",
            ),
        ),
        (
            pod(
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": "x"}], "resources": {"limits": {"cpu": []}}}]}),
            ),
            typed(
                "errors:\n  .spec.containers[name=\"a\"].ports[containerPort=1,protocol=\"TCP\"].hostPort: expected numeric (int or \
                 float), got string\n  .spec.containers[name=\"a\"].resources.limits.cpu: expected any scalar, got &{[]}",
            ),
        ),
    ] {
        let schema = Schema::builtin_kind("", "v1", "Pod").unwrap();
        let tracking = Tracking {
            manager: "m",
            api_version: "v1",
            subresource: "",
            now: Timestamp::UNIX_EPOCH,
            ignored: &[],
        };
        let kind = Gvk::new("", "v1", "Pod");
        let request = Apply { tracking, kind: &kind, force: true };
        let status = apply(None, &config, &request, schema.root()).unwrap_err();
        assert_eq!((status.code, status.message), expected, "{config}");
    }
}

#[test]
fn bodies_are_yaml_and_mostly_json() {
    let json = decode_apply(b" {\"a\": 1}").unwrap();
    assert_eq!((&json.value, json.duplicates.len()), (&json!({"a": 1}), 0));
    assert_eq!(decode_apply(b"a: 1\n").unwrap().value, json!({"a": 1}));
    assert_eq!(decode_apply(b"{a: 1}").unwrap().value, json!({"a": 1}));
    let twice = decode_apply(b"{\"a\": 1,\n\"a\": 2}").unwrap();
    assert_eq!(
        (twice.value, twice.duplicates),
        (json!({"a": 2}), vec!["line 2: key \"a\" already set in map".to_owned()])
    );
    for (body, error) in [
        (
            "[1]",
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            "x",
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go value of type map[string]interface {}",
        ),
    ] {
        assert_eq!(decode_apply(body.as_bytes()).unwrap_err().to_string(), error);
    }
    assert!(
        decode_apply(b"{a: [}").unwrap_err().to_string().starts_with("error converting YAML to JSON: yaml: ")
    );
}
