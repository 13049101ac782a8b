//! Validations: what they see, what they cost and how they refuse.

use super::{Spec, maps, mutation, mutations, refusal, rule, start, with};
use crate::harness::{CONFIG_MAPS, DEPLOYMENTS, Recorder, config_map, deployment};
use serde_json::{Value, json};

#[tokio::test]
async fn a_policy_validates_deployments() {
    let server = start().await;
    let rules = json!([rule(&["CREATE", "UPDATE"], "apps", "v1", &["deployments"])]);
    let policy = json!({"validations": [
        {"expression": "object.spec.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + string(object.spec.replicas)"},
        {"expression": "request.namespace == 'default'", "reason": "Unauthorized"}]});
    server.bind("validating", "replicas", rules, Spec::new(policy)).await;
    server.post(DEPLOYMENTS, &deployment("fine")).await.expect(201);
    let mut small = deployment("small");
    small["spec"]["replicas"] = 1.into();
    let refused = server.post(DEPLOYMENTS, &small).await.expect(422);
    let message = refusal("deployments.apps \"small\"", "replicas", "wants replicas > 1, got 1");
    assert_eq!((&refused["message"], &refused["reason"]), (&json!(message), &json!("Invalid")));
    let why = message.split_once(": ").unwrap().1;
    assert_eq!(
        refused["details"],
        json!({"name": "small", "group": "apps", "kind": "deployments", "causes": [{"message": why}]})
    );
    // Also where it is changed,
    let one = json!({"spec": {"replicas": 1}});
    server.patch(&format!("{DEPLOYMENTS}/fine"), "merge-patch+json", &one).await.expect(422);
    // and where it is scaled, if the rules say so.
    let scale = format!("{DEPLOYMENTS}/fine/scale");
    server.patch(&scale, "merge-patch+json", &one).await.expect(200);
    let rules = json!([rule(&["*"], "apps", "v1", &["deployments/scale"])]);
    let policy = json!({"validations": [{"expression": "object.kind == 'Scale' && request.kind.kind == 'Scale' && object.spec.replicas > 1"}]});
    server.bind("validating", "replicas", rules.clone(), Spec::new(policy)).await;
    server.patch(&scale, "merge-patch+json", &json!({"spec": {"replicas": 2}})).await.expect(200);
    server.patch(&scale, "merge-patch+json", &one).await.expect(422);
    server
        .bind(
            "mutating",
            "scale",
            json!([rule(&["UPDATE"], "apps", "v1", &["deployments/scale"])]),
            Spec::new(mutations(&[mutation("Object{spec: Object.spec{replicas: 7}}")])),
        )
        .await;
    assert_eq!(server.patch(&scale, "merge-patch+json", &one).await.expect(200)["spec"]["replicas"], 7);
    server.unbind("mutating", "scale").await;
    server.unbind("validating", "replicas").await;
    server.post(DEPLOYMENTS, &small).await.expect(201);
}

#[tokio::test]
async fn variables_are_evaluated_when_they_are_named() {
    let server = start().await;
    let variables = json!([
        {"name": "wrong", "expression": "object.nope.nope"},
        {"name": "replicas", "expression": "object.spec.replicas"},
        {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"},
        {"name": "limits", "expression": "['1', '3'].map(x, int(x))"}]);
    let policy = json!({"variables": variables, "validations": [
        {"expression": "variables.replicas > 1"},
        {"expression": "variables.oddReplicas && variables.replicas in variables.limits", "message": "must be odd"}]});
    let rules = json!([rule(&["*"], "apps", "*", &["deployments"])]);
    server.bind("validating", "odd", rules, Spec::new(policy)).await;
    let with_replicas = |replicas: u64| {
        let mut deployment = deployment("d");
        deployment["spec"]["replicas"] = replicas.into();
        deployment
    };
    server.post(&format!("{DEPLOYMENTS}?dryRun=All"), &with_replicas(3)).await.expect(201);
    for (replicas, why) in
        [(1, "failed expression: variables.replicas > 1"), (2, "must be odd"), (5, "must be odd")]
    {
        let refused = server.post(DEPLOYMENTS, &with_replicas(replicas)).await.expect(422);
        assert_eq!(refused["message"], refusal("deployments.apps \"d\"", "odd", why));
    }
    // One that fails is told by who names it.
    server
        .validate(
            "odd",
            json!({"variables": variables, "validations": [{"expression": "variables.wrong == 1"}]}),
        )
        .await;
    let refused = server.try_map("m", json!({})).await.expect(422);
    let why = "expression 'variables.wrong == 1' resulted in error: composited variable \"wrong\" fails to evaluate: no such key: nope";
    assert_eq!(refused["message"], refusal("configmaps \"m\"", "odd", why));
}

#[tokio::test]
async fn a_refusal_has_the_code_and_the_words_of_its_validation() {
    let server = start().await;
    for (validation, code, reason, why) in [
        (json!({"expression": "false"}), 422, "Invalid", "failed expression: false"),
        (json!({"expression": " false ", "message": " no ", "reason": "Forbidden"}), 403, "Forbidden", "no"),
        (
            json!({"expression": "false", "reason": "Unauthorized"}),
            401,
            "Unauthorized",
            "failed expression: false",
        ),
        (
            json!({"expression": "false", "reason": "RequestEntityTooLarge"}),
            413,
            "RequestEntityTooLarge",
            "failed expression: false",
        ),
        (
            json!({"expression": "false", "message": "no", "messageExpression": "' a' + 'b '"}),
            422,
            "Invalid",
            "ab",
        ),
        // What an expression cannot say, the message does.
        (
            json!({"expression": "false", "message": "no", "messageExpression": "string(object.nope)"}),
            422,
            "Invalid",
            "no",
        ),
        (
            json!({"expression": "false", "message": "no", "messageExpression": "'a\\nb'"}),
            422,
            "Invalid",
            "no",
        ),
        (json!({"expression": "false", "message": "no", "messageExpression": "'  '"}), 422, "Invalid", "no"),
        (
            json!({"expression": "object.nope == 1", "message": "no", "reason": "Forbidden"}),
            422,
            "Invalid",
            "expression 'object.nope == 1' resulted in error: no such key: nope",
        ),
    ] {
        server.validate("p", json!({"validations": [{"expression": "true"}, validation]})).await;
        let refused = server.try_map("m", json!({})).await.expect(code);
        assert_eq!(
            (&refused["reason"], &refused["message"]),
            (&json!(reason), &json!(refusal("configmaps \"m\"", "p", why)))
        );
    }
}

#[tokio::test]
async fn failures_warn_are_recorded_or_let_pass() {
    let server = start().await;
    let wrong =
        |policy: &str| json!({"failurePolicy": policy, "validations": [{"expression": "object.nope == 1"}]});
    let actions = |actions: &[&str]| json!({"validationActions": actions});
    let warn = Spec { policy: wrong("Fail"), binding: actions(&["Warn", "Audit"]) };
    server.bind("validating", "warns", json!([maps()]), warn).await;
    let made = server.try_map("m", json!({})).await;
    assert_eq!(made.warnings().len(), 1);
    assert_eq!(
        made.warnings()[0],
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'warns' with binding 'warns': expression 'object.nope == 1' resulted in error: no such key: nope\""
    );
    made.expect(201);
    let audit = Spec { policy: wrong("Fail"), binding: actions(&["Audit"]) };
    server.bind("validating", "warns", json!([maps()]), audit).await;
    let made = server.try_map("m", json!({})).await;
    assert_eq!(made.warnings(), Vec::<String>::new());
    made.expect(201);
    server.validate("warns", wrong("Ignore")).await;
    server.try_map("m", json!({})).await.expect(201);
    // What is false is refused whatever the policy says of failures.
    server
        .validate("warns", json!({"failurePolicy": "Ignore", "validations": [{"expression": "false"}]}))
        .await;
    server.try_map("m", json!({})).await.expect(422);
    // An annotation that cannot be made is a failure too.
    let annotations =
        |expression: &str| json!({"auditAnnotations": [{"key": "a", "valueExpression": expression}]});
    server.validate("warns", annotations("object.metadata.name == 'm' ? 'it is' : ''")).await;
    server.try_map("m", json!({})).await.expect(201);
    server.try_map("n", json!({})).await.expect(201);
    server.validate("warns", annotations("string(object.nope)")).await;
    server.try_map("m", json!({})).await.expect(422);
}

#[tokio::test]
async fn expressions_see_the_request_and_its_surroundings() {
    let server = start().await;
    server
        .patch(
            "/api/v1/namespaces/default",
            "merge-patch+json",
            &json!({"metadata": {"labels": {"tier": "gold"}}}),
        )
        .await
        .expect(200);
    server.post(CONFIG_MAPS, &config_map("there", json!({"a": "1"}))).await.expect(201);
    for expression in [
        "namespaceObject.metadata.labels.tier == 'gold' && namespaceObject.metadata.name == 'default'",
        "namespaceObject.metadata.creationTimestamp < timestamp('2999-01-01T00:00:00Z')",
        "request.operation == 'UPDATE' && request.kind.kind == 'ConfigMap' && request.resource.resource == 'configmaps'",
        "request.userInfo.username == 'tester' && request.name == 'there'",
        "oldObject.data.a == '1' && object.data.a == '2' && !has(object.spec)",
        "authorizer.group('').resource('pods').namespace('default').check('create').allowed()",
        "authorizer.requestResource.check('update').allowed()",
        "!authorizer.serviceAccount('default', 'nobody').path('/metrics').check('get').allowed()",
        "object.metadata.managedFields.exists(m, m.manager != '') && object.apiVersion == 'v1'",
    ] {
        let rules = json!([rule(&["UPDATE"], "", "v1", &["configmaps"])]);
        for (text, code) in [(expression.to_owned(), 200), (format!("!({expression})"), 422)] {
            let policy = json!({"validations": [{"expression": text}]});
            server.bind("validating", "sees", rules.clone(), Spec::new(policy)).await;
            let change = json!({"data": {"a": "2"}});
            let path = format!("{CONFIG_MAPS}/there?dryRun=All");
            let answer = server.patch(&path, "merge-patch+json", &change).await;
            assert_eq!(answer.code, code, "{text}: {}", answer.text());
        }
    }
    // A delete has an old object alone; a Namespace has none around it.
    let policy = json!({"validations": [{"expression": "object == null && oldObject.data.a != '1'", "message": "kept"}]});
    server
        .bind("validating", "sees", json!([rule(&["DELETE"], "", "v1", &["configmaps"])]), Spec::new(policy))
        .await;
    assert_eq!(
        server.delete(&format!("{CONFIG_MAPS}/there")).await.expect(422)["message"],
        refusal("configmaps \"there\"", "sees", "kept")
    );
    let policy = json!({"validations": [{"expression": "namespaceObject == null", "message": "none"}]});
    server
        .bind(
            "validating",
            "sees",
            json!([rule(&["CREATE"], "", "v1", &["namespaces", "nodes"])]),
            Spec::new(policy),
        )
        .await;
    server.post("/api/v1/namespaces", &json!({"metadata": {"name": "fresh"}})).await.expect(201);
}

#[tokio::test]
async fn evaluation_ends_at_its_budget() {
    let server = start().await;
    let list = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";
    let nested =
        |depth: u32| (0..depth).fold("true".to_owned(), |inner, n| format!("{list}.all(x{n}, {inner})"));
    for (validations, why) in [
        // One expression may cost a million,
        (
            vec![nested(6)],
            format!(
                "expression '{}' resulted in error: operation cancelled: actual cost limit exceeded",
                nested(6)
            ),
        ),
        // and all of a policy ten times that.
        (
            vec![nested(5); 40],
            "validation failed due to running out of cost budget, no further validation rules will be run"
                .to_owned(),
        ),
    ] {
        let validations: Vec<Value> =
            validations.into_iter().map(|text| json!({"expression": text})).collect();
        server.validate("costly", json!({"validations": validations})).await;
        let refused = server.try_map("m", json!({})).await.expect(422);
        assert_eq!(refused["message"], refusal("configmaps \"m\"", "costly", &why));
    }
}

#[tokio::test]
async fn variables_that_name_each_other_stay_within_the_stack() {
    let server = start().await;
    // The most that is taken: two of the deepest, or a chain of many.
    let deep = |inner: &str, depth: usize| format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
    let sum = |inner: &str, depth: usize| format!("{}{inner}{}", "1 + (".repeat(depth), ")".repeat(depth));
    let chain = |length: usize, step: &dyn Fn(usize) -> String| -> Vec<Value> {
        let variable = |n: usize| json!({"name": format!("v{n}"), "expression": if n == 0 { "object.data.size()".into() } else { step(n) }});
        (0..length).map(variable).collect()
    };
    let policy = |variables: Vec<Value>, last: &str| json!({"variables": variables, "validations": [{"expression": format!("dyn(variables.{last}) == 7 || true")}]});
    let lists = |n: usize| deep(&format!("variables.v{}", n - 1), 225);
    let sums = |n: usize| sum(&format!("variables.v{}", n - 1), 110);
    let names = |n: usize| format!("variables.v{}", n - 1);
    for (variables, last) in [(chain(3, &lists), "v2"), (chain(3, &sums), "v2"), (chain(50, &names), "v49")] {
        server.validate("deep", policy(variables, last)).await;
        server.try_map("m", json!({"a": "b"})).await.expect(201);
    }
    for (variables, last) in [(chain(4, &lists), "v3"), (chain(10_000, &names), "v999")] {
        let spec = with(policy(variables, last), &json!({"matchConstraints": {"resourceRules": [maps()]}}));
        let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
        let refused = server.post(path, &json!({"metadata": {"name": "p"}, "spec": spec})).await.expect(422);
        let told = refused["message"].as_str().unwrap();
        assert!(
            told.contains("variables name each other too deeply: more than 500 expressions in each other"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn annotations_and_failures_are_put_on_record() {
    let server = start().await;
    let policy = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "true"}, {"expression": "object.data.a == params.data.a", "message": "no"}],
        "auditAnnotations": [{"key": "max", "valueExpression": "'at most ' + params.data.a"}, {"key": "same", "valueExpression": "' x '"},
            {"key": "none", "valueExpression": "null"}]});
    for (name, max) in [("one", "1"), ("two", "2")] {
        server
            .post("/api/v1/namespaces/kube-system/configmaps", &config_map(name, json!({"a": max})))
            .await
            .expect(201);
    }
    let binding = json!({"validationActions": ["Audit"],
        "paramRef": {"selector": {}, "namespace": "kube-system", "parameterNotFoundAction": "Deny"}});
    server.bind("validating", "told", json!([maps()]), Spec { policy, binding }).await;
    let recorder = Recorder::default();
    {
        let _guard = tracing::subscriber::set_default(recorder.clone());
        server.try_map("m", json!({"a": "2"})).await.expect(201);
    }
    let failure = json!([{"message": "no", "policy": "told", "binding": "told", "expressionIndex": 1, "validationActions": ["Audit"]}]);
    let mut found = recorder.take();
    let (key, first) = found.remove(0);
    assert_eq!(key, "validation.policy.admission.k8s.io/validation_failure");
    assert_eq!(serde_json::from_str::<Value>(&first).unwrap(), failure);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(found, [pair("told/max", "at most 1, at most 2"), pair("told/same", "x")]);
}
