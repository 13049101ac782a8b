//! Which writes a policy looks at, and with which parameters.

use super::{GROUP, Spec, define, maps, refusal, rule, start, with};
use crate::harness::CONFIG_MAPS;
use serde_json::{Value, json};

#[tokio::test]
async fn rules_selectors_and_conditions_choose() {
    let server = start().await;
    let all = json!({"validations": [{"expression": "false"}]});
    let labelled = |name: &str| json!({"metadata": {"name": name, "labels": {"app": "web"}}});
    let constraints = |more: Value| {
        with(all.clone(), &json!({"matchConstraints": with(json!({"resourceRules": [maps()]}), &more)}))
    };
    let resources = |more: Value| json!({"validationActions": ["Deny"], "matchResources": more});
    let selector = json!({"matchLabels": {"app": "web"}});
    for (policy, binding, plain, web) in [
        (all.clone(), json!({}), 422, 422),
        (constraints(json!({"objectSelector": selector})), json!({}), 201, 422),
        (constraints(json!({"namespaceSelector": selector})), json!({}), 201, 201),
        (
            constraints(json!({"excludeResourceRules": [rule(&["CREATE"], "", "v1", &["configmaps"])]})),
            json!({}),
            201,
            201,
        ),
        (
            constraints(json!({"resourceRules": [with(maps(), &json!({"resourceNames": ["web"]}))]})),
            json!({}),
            201,
            422,
        ),
        (all.clone(), resources(json!({"objectSelector": selector})), 201, 422),
        (
            all.clone(),
            resources(json!({"resourceRules": [rule(&["UPDATE"], "", "v1", &["configmaps"])]})),
            201,
            201,
        ),
        (all.clone(), resources(json!({"excludeResourceRules": [maps()]})), 201, 201),
        (
            with(
                all.clone(),
                &json!({"matchConditions": [{"name": "web", "expression": "object.metadata.name == 'web'"}]}),
            ),
            json!({}),
            201,
            422,
        ),
    ] {
        let told = format!("{policy} {binding}");
        server.bind("validating", "p", json!([maps()]), Spec { policy, binding }).await;
        for (object, code) in [(json!({"metadata": {"name": "plain"}}), plain), (labelled("web"), web)] {
            let answer = server.post(&format!("{CONFIG_MAPS}?dryRun=All"), &object).await;
            assert_eq!(answer.code, code, "{told}: {}", answer.text());
        }
    }
    // A condition that fails is a failure of the policy.
    let failing = |policy: &str| {
        let conditions = json!([{"name": "a", "expression": "object.nope == 1"}]);
        with(all.clone(), &json!({"failurePolicy": policy, "matchConditions": conditions}))
    };
    server.validate("p", failing("Fail")).await;
    let why = "expression 'object.nope == 1' resulted in error: no such key: nope";
    assert_eq!(
        server.try_map("m", json!({})).await.expect(422)["message"],
        refusal("configmaps \"m\"", "p", why)
    );
    server.validate("p", failing("Ignore")).await;
    server.try_map("m", json!({})).await.expect(201);
    // Without a binding nothing is in force; with another there are two.
    server.delete(&format!("{GROUP}/validatingadmissionpolicybindings/p")).await.expect(200);
    server.validate("q", json!({"validations": [{"expression": "false", "message": "q"}]})).await;
    assert_eq!(
        server.try_map("m", json!({})).await.expect(422)["message"],
        refusal("configmaps \"m\"", "q", "q")
    );
}

#[tokio::test]
async fn other_versions_of_the_same_objects_are_seen_as_the_rules_name_them() {
    let server = start().await;
    let policy = |policy: &str| {
        json!({"validations": [{"expression": "object.note == 'told' && object.apiVersion == 'events.k8s.io/v1' && request.kind.group != request.requestKind.group"}],
            "matchConstraints": {"matchPolicy": policy, "resourceRules": [rule(&["CREATE"], "events.k8s.io", "v1", &["events"])]}})
    };
    let event = |message: &str| json!({"metadata": {"name": "e"}, "message": message, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
    for (matching, told, other) in [("Equivalent", 201, 422), ("Exact", 201, 201)] {
        server.bind("validating", "events", json!([]), Spec::new(policy(matching))).await;
        let path = "/api/v1/namespaces/default/events?dryRun=All";
        server.post(path, &event("told")).await.expect(told);
        server.post(path, &event("other")).await.expect(other);
    }
}

#[tokio::test]
async fn bindings_bring_parameters() {
    let server = start().await;
    let policy = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [
        {"expression": "params == null || int(object.data.size) <= int(params.data.max)", "messageExpression": "'more than ' + params.data.max"}]});
    let rules = json!([
        rule(&["CREATE"], "", "v1", &["configmaps", "secrets"]),
        rule(&["CREATE"], "", "v1", &["namespaces"])
    ]);
    let limit = |name: &str, max: &str| json!({"metadata": {"name": name, "labels": {"limit": "yes"}}, "data": {"max": max, "size": "0"}});
    server.post(CONFIG_MAPS, &limit("small", "10")).await.expect(201);
    server.post("/api/v1/namespaces/kube-system/configmaps", &limit("large", "100")).await.expect(201);
    let reference = |reference: Value| json!({"validationActions": ["Deny"], "paramRef": with(json!({"parameterNotFoundAction": "Deny"}), &reference)});
    let missing =
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    for (binding, size, code, why) in [
        (json!({}), "1000", 201, ""),
        (reference(json!({"name": "small"})), "10", 201, ""),
        (reference(json!({"name": "small"})), "11", 422, "more than 10"),
        (reference(json!({"name": "large", "namespace": "kube-system"})), "11", 201, ""),
        (reference(json!({"selector": {"matchLabels": {"limit": "yes"}}})), "11", 422, "more than 10"),
        (reference(json!({"selector": {"matchLabels": {"limit": "no"}}})), "1", 422, missing),
        (reference(json!({"name": "none"})), "1", 422, missing),
        (reference(json!({"name": "none", "parameterNotFoundAction": "Allow"})), "1", 201, ""),
    ] {
        let told = binding.to_string();
        server.bind("validating", "limits", rules.clone(), Spec { policy: policy.clone(), binding }).await;
        let answer = server.try_map("m", json!({"size": size})).await;
        assert_eq!(answer.code, code, "{told}: {}", answer.text());
        if code == 422 {
            assert_eq!(answer.json()["message"], refusal("configmaps \"m\"", "limits", why), "{told}");
        }
    }
    // What cannot be told is let pass, if the policy says so.
    let lenient = with(policy.clone(), &json!({"failurePolicy": "Ignore"}));
    let none = reference(json!({"name": "none"}));
    server.bind("validating", "limits", rules.clone(), Spec { policy: lenient, binding: none }).await;
    server.try_map("m", json!({"size": "1000"})).await.expect(201);
    // The parameters of the moment count, and a second of them is looked at too.
    let both = reference(json!({"selector": {}}));
    server.bind("validating", "limits", rules.clone(), Spec { policy: policy.clone(), binding: both }).await;
    server.put(&format!("{CONFIG_MAPS}/small"), &limit("small", "20")).await.expect(200);
    server.try_map("m", json!({"size": "15"})).await.expect(201);
    server.delete(&format!("{CONFIG_MAPS}/small")).await.expect(200);
    // Kinds that are not there, and references that do not fit.
    let unknown =
        with(policy.clone(), &json!({"paramKind": {"apiVersion": "example.com/v1", "kind": "Limit"}}));
    server.bind("validating", "limits", rules, Spec::new(unknown.clone())).await;
    let refused = server.try_map("m", json!({"size": "1"})).await.expect(422);
    assert_eq!(
        refused["message"],
        "configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'limits' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'"
    );
    define(&server).await;
    let made = json!({"apiVersion": "example.com/v1", "kind": "Limit", "metadata": {"name": "l"}, "data": {"max": 7}});
    server.post("/apis/example.com/v1/limits", &made).await.expect(201);
    let validations = json!([{"expression": "int(object.data.size) <= params.data.max"}]);
    let custom = with(unknown, &json!({"validations": validations}));
    for (binding, size, code) in [
        (reference(json!({"name": "l"})), "7", 201),
        (reference(json!({"name": "l"})), "8", 422),
        (reference(json!({"name": "l", "namespace": "default"})), "7", 422),
    ] {
        server.bind("validating", "limits", json!([maps()]), Spec { policy: custom.clone(), binding }).await;
        server.try_map("m", json!({"size": size})).await.expect(code);
    }
}

#[tokio::test]
async fn nobody_is_locked_out_by_a_policy() {
    let server = start().await;
    let everything = json!([rule(&["*"], "*", "*", &["*/*"])]);
    let policy = json!({"validations": [{"expression": "false"}]});
    server.bind("validating", "all", everything.clone(), Spec::new(policy)).await;
    let mutation = json!({"reinvocationPolicy": "Never", "mutations": [{"patchType": "ApplyConfiguration",
        "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}}]});
    let changes = json!([rule(&["CREATE", "UPDATE"], "*", "*", &["*/*"])]);
    server.bind("mutating", "all", changes, Spec::new(mutation)).await;
    server.try_map("m", json!({})).await.expect(422);
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let asked = server.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await;
    assert_ne!(asked.code, 422, "{}", asked.text());
    let made = server.get(&format!("{GROUP}/validatingadmissionpolicies/all")).await.expect(200);
    assert_eq!(made["metadata"]["labels"], Value::Null);
    // Configurations of webhooks are not of those.
    let path = format!("{GROUP}/validatingwebhookconfigurations");
    server.post(&path, &json!({"metadata": {"name": "w"}, "webhooks": []})).await.expect(422);
    server.unbind("validating", "all").await;
    let made = server.post(&path, &json!({"metadata": {"name": "w"}, "webhooks": []})).await.expect(201);
    assert_eq!(made["metadata"]["labels"], json!({"a": "b"}));
    server.unbind("mutating", "all").await;
}
