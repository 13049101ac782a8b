//! Mutations: merged and patched.

use super::{Spec, changes, define, mutation, mutations, patch, start, with};
use crate::harness::{CONFIG_MAPS, DEPLOYMENTS, config_map, deployment};
use serde_json::{Value, json};

#[tokio::test]
async fn a_policy_mutates_deployments() {
    let server = start().await;
    let policy = mutations(&[
        mutation("Object{spec: Object.spec{replicas: object.spec.replicas + 1}}"),
        mutation("Object{metadata: Object.metadata{annotations: {'seen': string(object.spec.replicas)}}}"),
    ]);
    server.bind("mutating", "more", changes("apps", &["deployments"]), Spec::new(policy)).await;
    let made = server.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    assert_eq!(
        (&made["spec"]["replicas"], &made["metadata"]["annotations"]["seen"]),
        (&json!(4), &json!("4"))
    );
    // Nobody owns what the policy added.
    let owned = made["metadata"]["managedFields"].to_string();
    assert!(owned.contains("f:replicas") && !owned.contains("f:seen"), "{owned}");
    let merge = "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [
        Object.spec.template.spec.containers{name: 'c', imagePullPolicy: 'Never'}, Object.spec.template.spec.containers{name: 'sidecar', image: 'proxy'}]}}}}";
    server
        .bind("mutating", "more", changes("apps", &["deployments"]), Spec::new(mutations(&[mutation(merge)])))
        .await;
    let made = server.post(DEPLOYMENTS, &deployment("merged")).await.expect(201);
    let containers = &made["spec"]["template"]["spec"]["containers"];
    assert_eq!(
        (&containers[0]["image"], &containers[0]["imagePullPolicy"]),
        (&json!("nginx"), &json!("Never"))
    );
    assert_eq!(
        (&containers[1]["name"], &containers[1]["terminationMessagePolicy"]),
        (&json!("sidecar"), &json!("File"))
    );
    server.unbind("mutating", "more").await;
    let made = server.post(DEPLOYMENTS, &deployment("plain")).await.expect(201);
    assert_eq!(made["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn patches_are_made_of_expressions() {
    let server = start().await;
    for (expression, data) in [
        ("[JSONPatch{op: 'add', path: '/data/a', value: 'x'}]", json!({"k": "v", "a": "x"})),
        (
            "[JSONPatch{op: 'test', path: '/data/k', value: 'v'}, JSONPatch{op: 'replace', path: '/data/k', value: 'w'}]",
            json!({"k": "w"}),
        ),
        // A test that does not hold leaves all as it is.
        (
            "[JSONPatch{op: 'remove', path: '/data/k'}, JSONPatch{op: 'test', path: '/data/z', value: 'v'}]",
            json!({"k": "v"}),
        ),
        (
            "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'a/b': 'x'}}, \
              JSONPatch{op: 'move', from: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), path: '/data/moved'}]",
            json!({"k": "v", "moved": "x"}),
        ),
        (
            "has(object.binaryData) ? [] : [JSONPatch{op: 'move', from: '/data/k', path: '/data/moved'}]",
            json!({"moved": "v"}),
        ),
        (
            "[JSONPatch{op: 'add', path: '/data', value: object.data.transformMap(k, v, v + k)}]",
            json!({"k": "vk"}),
        ),
        ("[JSONPatch{op: 'add', path: '/metadata/labels', value: {'a': 'b'}}]", json!({"k": "v"})),
    ] {
        server
            .bind("mutating", "p", changes("", &["configmaps"]), Spec::new(mutations(&[patch(expression)])))
            .await;
        let made = server.try_map("m", json!({"k": "v"})).await.expect(201);
        assert_eq!(made["data"], data, "{expression}");
    }
}

#[tokio::test]
async fn mutations_that_fail_are_told_or_let_pass() {
    let server = start().await;
    let refused = |why: &str| format!("policy 'p' with binding 'p' denied request: {why}");
    for (change, why) in [
        (
            mutation("Object{data: Object.data{a: string(object.nope)}}"),
            "expression 'Object{data: Object.data{a: string(object.nope)}}' resulted in error: no such key: nope",
        ),
        (
            mutation(
                "Object{metadata: Object.metadata{finalizers: ['a/b'], ownerReferences: [Object.metadata.ownerReferences{}]}}",
            ),
            "",
        ),
        (
            mutation("Object{nope: 1}"),
            "error applying patch: failed to convert patch object to typed object: .nope: field not declared in schema",
        ),
        (
            mutation("Object{data: Object.metadata{}}"),
            "type mismatch: unexpected type name \"Object.metadata\", expected \"Object.data\", which matches field name path from root Object type",
        ),
        (
            patch("[JSONPatch{op: 'remove', path: '/data/none'}]"),
            "JSONPath: remove operation does not apply: doc is missing path: \"/data/none\": missing value",
        ),
    ] {
        for (policy, code) in [("Fail", 403), ("Ignore", 201)] {
            let spec = with(mutations(std::slice::from_ref(&change)), &json!({"failurePolicy": policy}));
            server.bind("mutating", "p", changes("", &["configmaps"]), Spec::new(spec)).await;
            let answer = server.try_map("m", json!({})).await;
            assert_eq!(answer.code, code, "{change}: {}", answer.text());
            if code == 403 && !why.is_empty() {
                let told = answer.json();
                assert_eq!((&told["message"], &told["reason"]), (&json!(refused(why)), &json!("Invalid")));
                assert_eq!(told["details"]["causes"], json!([{"message": refused(why)}]));
            }
        }
    }
    let atomic =
        mutation("Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'b'}}}}");
    server.bind("mutating", "p", changes("apps", &["deployments"]), Spec::new(mutations(&[atomic]))).await;
    let told = server.post(DEPLOYMENTS, &deployment("d")).await.expect(403);
    let why = "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector";
    assert_eq!(told["message"], refused(why));
    // What a mutation makes is validated like what a client sends.
    let wrong = mutation("Object{spec: Object.spec{replicas: -1}}");
    server.bind("mutating", "p", changes("apps", &["deployments"]), Spec::new(mutations(&[wrong]))).await;
    server.post(DEPLOYMENTS, &deployment("d")).await.expect(422);
}

#[tokio::test]
async fn policies_see_each_others_changes_once_more_if_they_want_to() {
    let server = start().await;
    let add = |key: &str| {
        patch(&format!("[JSONPatch{{op: 'add', path: '/data/{key}', value: string(object.data.size())}}]"))
    };
    for (policy, data) in [
        ("Never", json!({"k": "v", "a": "1", "b": "2"})),
        // The first sees what the second did.
        ("IfNeeded", json!({"k": "v", "a": "3", "b": "2"})),
    ] {
        let first = with(mutations(&[add("a")]), &json!({"reinvocationPolicy": policy}));
        server.bind("mutating", "a", changes("", &["configmaps"]), Spec::new(first)).await;
        server.bind("mutating", "b", changes("", &["configmaps"]), Spec::new(mutations(&[add("b")]))).await;
        assert_eq!(server.try_map("m", json!({"k": "v"})).await.expect(201)["data"], data, "{policy}");
    }
}

#[tokio::test]
async fn mutations_have_variables_parameters_and_conditions() {
    let server = start().await;
    server.post(CONFIG_MAPS, &config_map("defaults", json!({"color": "red"}))).await.expect(201);
    let policy = with(
        mutations(&[mutation("Object{metadata: Object.metadata{labels: variables.labels}}")]),
        &json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "variables": [{"name": "color", "expression": "params.data.color"}, {"name": "labels", "expression": "{'color': variables.color, 'by': request.userInfo.username}"}],
            "matchConditions": [{"name": "named", "expression": "object.metadata.name != 'skip-me'"}]}),
    );
    let binding =
        json!({"paramRef": {"name": "defaults", "namespace": "default", "parameterNotFoundAction": "Deny"}});
    server.bind("mutating", "p", changes("", &["secrets"]), Spec { policy, binding }).await;
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let made =
        server.post(secrets, &json!({"metadata": {"name": "s", "labels": {"own": "x"}}})).await.expect(201);
    assert_eq!(made["metadata"]["labels"], json!({"own": "x", "color": "red", "by": "tester"}));
    let made = server.post(secrets, &json!({"metadata": {"name": "skip-me"}})).await.expect(201);
    assert_eq!(made["metadata"]["labels"], Value::Null);
    server.delete(&format!("{CONFIG_MAPS}/defaults")).await.expect(200);
    let refused = server.post(secrets, &json!({"metadata": {"name": "t"}})).await.expect(403);
    assert_eq!(
        refused["message"],
        "policy 'p' with binding 'p' denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    );
}

#[tokio::test]
async fn custom_resources_are_changed_within_their_schema() {
    let server = start().await;
    define(&server).await;
    let limits = "/apis/example.com/v1/limits";
    let limit = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Limit", "metadata": {"name": name}, "data": {"max": 1}});
    let policy = mutations(&[
        mutation("Object{data: Object.data{max: object.data.max + 1}}"),
        patch(
            "[JSONPatch{op: 'add', path: '/data/nope', value: 1}, JSONPatch{op: 'add', path: '/metadata/labels', value: {'a': 'b'}}]",
        ),
    ]);
    server.bind("mutating", "p", changes("example.com", &["limits"]), Spec::new(policy)).await;
    let made = server.post(limits, &limit("a")).await.expect(201);
    assert_eq!((&made["data"], &made["metadata"]["labels"]), (&json!({"max": 2}), &json!({"a": "b"})));
    let policy = mutations(&[mutation("Object{data: Object.data{nope: 1}}")]);
    server.bind("mutating", "p", changes("example.com", &["limits"]), Spec::new(policy)).await;
    let refused = server.post(limits, &limit("b")).await.expect(403);
    let why = "error applying patch: failed to convert patch object to typed object: .data.nope: field not declared in schema";
    assert_eq!(refused["message"], format!("policy 'p' with binding 'p' denied request: {why}"));
}
