//! Which writes a webhook is asked about.

use super::{MUTATING, Reply, VALIDATING, Webhooks, allow, configure, patch, rule, start};
use crate::harness::{CONFIG_MAPS, config_map, deployment};
use serde_json::{Value, json};

#[tokio::test]
async fn rules_and_selectors_choose() {
    let hooks =
        Webhooks::start(|_, _| Reply::Review(json!({"allowed": false, "status": {"message": "no"}}))).await;
    let server = start().await;
    server
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "team", "labels": {"guarded": "yes"}}}))
        .await
        .expect(201);
    let maps = rule(&["CREATE"], "*", "*", &["configmaps", "namespaces"]);
    let selector = json!({"namespaceSelector": {"matchLabels": {"guarded": "yes"}}});
    configure(&server, VALIDATING, "ns", &[hooks.hook("ns", "/", maps, selector)]).await;
    server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(201);
    server.post("/api/v1/namespaces/team/configmaps", &config_map("m", json!({}))).await.expect(400);
    let guarded =
        |value: &str| json!({"metadata": {"name": format!("n-{value}"), "labels": {"guarded": value}}});
    server.post("/api/v1/namespaces", &guarded("yes")).await.expect(400);
    server.post("/api/v1/namespaces", &guarded("no")).await.expect(201);
    server.delete(&format!("{VALIDATING}/ns")).await.expect(200);
    let mut cluster = rule(&["CREATE"], "*", "*", &["*"]);
    cluster["scope"] = "Cluster".into();
    configure(&server, VALIDATING, "scope", &[hooks.hook("scope", "/", cluster, json!({}))]).await;
    server.post(CONFIG_MAPS, &config_map("k", json!({}))).await.expect(201);
    server.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.expect(400);
    server.delete(&format!("{VALIDATING}/scope")).await.expect(200);
    let objects =
        json!({"objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}});
    let updates = rule(&["UPDATE", "DELETE"], "", "v1", &["configmaps"]);
    configure(&server, VALIDATING, "object", &[hooks.hook("object", "/", updates, objects)]).await;
    // The old object counts too, so that nobody gets out by a label.
    let skip = json!({"metadata": {"labels": {"skip": "yes"}}});
    server.patch(&format!("{CONFIG_MAPS}/m"), "merge-patch+json", &skip).await.expect(400);
    server.delete(&format!("{CONFIG_MAPS}/m")).await.expect(400);
}

#[tokio::test]
async fn subresources_and_other_versions_are_matched() {
    let hooks = Webhooks::start(|path, request| match path.split('?').next().unwrap() {
        "/scale" if request["object"]["spec"]["replicas"] == 9 => {
            Reply::Review(json!({"allowed": false, "status": {"message": "too many"}}))
        }
        "/version" => {
            patch(&json!([{"op": "replace", "path": "/spec/targetCPUUtilizationPercentage", "value": 42}]))
        }
        _ => allow(),
    })
    .await;
    let server = start().await;
    let scale = rule(&["UPDATE"], "apps", "v1", &["deployments/scale"]);
    configure(&server, VALIDATING, "scale", &[hooks.hook("scale", "/scale", scale, json!({}))]).await;
    server.post(crate::harness::DEPLOYMENTS, &deployment("d")).await.expect(201);
    let path = format!("{}/d/scale", crate::harness::DEPLOYMENTS);
    let replicas = |n: i64| json!({"spec": {"replicas": n}});
    let refused = server.patch(&path, "merge-patch+json", &replicas(9)).await.expect(400);
    assert_eq!(refused["message"], "admission webhook \"scale.example.com\" denied the request: too many");
    server.patch(&path, "merge-patch+json", &replicas(4)).await.expect(200);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!(asked["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&asked["subResource"], &asked["oldObject"]["spec"]["replicas"]),
        (&json!("scale"), &json!(3))
    );
    // A rule for one version of a kind is asked about the others too, in its own.
    let old = rule(&["CREATE"], "autoscaling", "v1", &["horizontalpodautoscalers"]);
    configure(&server, MUTATING, "version", &[hooks.hook("version", "/version", old.clone(), json!({}))])
        .await;
    let scaler = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"maxReplicas": 5,
        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 7}}}})
    };
    let scalers = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let made = server.post(scalers, &scaler("a")).await.expect(201);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!((&asked["kind"]["version"], &asked["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(asked["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 42);
    assert_eq!(made["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 7);
    server.delete(&format!("{MUTATING}/version")).await.expect(200);
    configure(
        &server,
        MUTATING,
        "exact",
        &[hooks.hook("exact", "/version", old, json!({"matchPolicy": "Exact"}))],
    )
    .await;
    let made = server.post(scalers, &scaler("b")).await.expect(201);
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
}

fn condition(name: &str, expression: &str) -> Value {
    json!({"name": name, "expression": expression})
}

#[tokio::test]
async fn conditions_choose_what_webhooks_are_asked() {
    let hooks = Webhooks::start(|path, _| match path.split('?').next().unwrap() {
        "/change" => patch(&json!([{"op": "add", "path": "/data/changed", "value": "yes"}])),
        _ => Reply::Review(json!({"allowed": false})),
    })
    .await;
    let server = start().await;
    let maps = || rule(&["CREATE", "UPDATE", "DELETE"], "", "v1", &["configmaps"]);
    let hook = |path: &str, more: Value| [hooks.hook("c", path, maps(), more)];
    let skip = condition("skip-me", "object.metadata.name != 'skip-me'");
    let given = json!({"matchConditions": [skip, condition("creates", "request.operation == 'CREATE'")]});
    configure(&server, MUTATING, "m", &hook("/change", given.clone())).await;
    let kept = server.get(&format!("{MUTATING}/m")).await.expect(200);
    assert_eq!(kept["webhooks"][0]["matchConditions"], given["matchConditions"]);
    let make = async |name: &str| server.post(CONFIG_MAPS, &config_map(name, json!({"k": "v"}))).await;
    assert_eq!(make("changed").await.expect(201)["data"], json!({"k": "v", "changed": "yes"}));
    assert_eq!(make("skip-me").await.expect(201)["data"], json!({"k": "v"}));
    assert_eq!(hooks.paths(), ["/change"]);
    // Another condition is in force at once.
    let other =
        json!({"webhooks": hook("/change", json!({"matchConditions": [condition("none", "false")]}))});
    server.patch(&format!("{MUTATING}/m"), "merge-patch+json", &other).await.expect(200);
    let kept = server.get(&format!("{MUTATING}/m")).await.expect(200);
    assert_eq!(kept["webhooks"][0]["matchConditions"], json!([condition("none", "false")]));
    assert_eq!(make("untouched").await.expect(201)["data"], json!({"k": "v"}));
    server.delete(&format!("{MUTATING}/m")).await.expect(200);
    // A validating one sees what mutation made, both objects, who asks, and what they may do.
    for (expression, asked) in [
        ("object.data.k == 'w' && oldObject.data.k == 'v'", true),
        ("object.data.k == 'v'", false),
        (
            "request.userInfo.username == 'tester' && request.name == 'changed' && !has(request.subResource)",
            true,
        ),
        ("'system:masters' in request.userInfo.groups && request.requestKind.kind == 'ConfigMap'", true),
        ("authorizer.requestResource.check('delete').allowed()", true),
        (
            "authorizer.serviceAccount('default', 'default').group('').resource('secrets').check('get').allowed()",
            false,
        ),
        ("request.dryRun == true && request.options.fieldManager == 'me'", true),
        ("namespaceObject == null", true),
        // One that is false counts, whatever the others are.
        ("object.nope == 1", false),
    ] {
        let mut conditions = vec![condition("c", expression)];
        if expression.contains("nope") {
            conditions.push(condition("d", "false"));
        }
        configure(&server, VALIDATING, "v", &hook("/deny", json!({"matchConditions": conditions}))).await;
        let path = format!("{CONFIG_MAPS}/changed?dryRun=All&fieldManager=me");
        let answer = server.patch(&path, "merge-patch+json", &json!({"data": {"k": "w"}})).await;
        assert_eq!(answer.code, if asked { 400 } else { 200 }, "{expression}: {}", answer.text());
        server.delete(&format!("{VALIDATING}/v")).await.expect(200);
    }
}

#[tokio::test]
async fn conditions_that_fail_follow_the_failure_policy() {
    let hooks = Webhooks::start(|_, _| Reply::Review(json!({"allowed": false}))).await;
    let server = start().await;
    // More than the budget, though no condition costs too much for one.
    let costly = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]";
    let costly = (0..4).fold("true".to_owned(), |inner, n| format!("{costly}.all(x{n}, {inner})"));
    let costly: Vec<Value> = (0..60).map(|n| condition(&format!("c{n}"), &costly)).collect();
    let nope = "expression 'object.nope == 1' resulted in error: no such key: nope";
    let twice = json!([condition("a", "object.nope == 1"), condition("b", "object.nope == 1 ")]);
    for (conditions, why) in [
        (json!([condition("a", "object.nope == 1"), condition("b", "true")]), nope.to_owned()),
        (twice, format!("[{nope}, {}]", nope.replace("== 1'", "== 1 '"))),
        (
            costly.into(),
            "validation failed due to running out of cost budget, no further validation rules will be run"
                .to_owned(),
        ),
    ] {
        for (policy, code) in [("Fail", 403), ("Ignore", 201)] {
            for path in [MUTATING, VALIDATING] {
                let more = json!({"matchConditions": conditions, "failurePolicy": policy});
                let hook = hooks.hook("c", "/", rule(&["CREATE"], "", "v1", &["configmaps"]), more);
                configure(&server, path, "c", &[hook]).await;
                let dry = format!("{CONFIG_MAPS}?dryRun=All");
                let told = server.post(&dry, &config_map("m", json!({}))).await.expect(code);
                if code == 403 {
                    assert_eq!(told["message"], format!("configmaps \"m\" is forbidden: {why}"));
                }
                server.delete(&format!("{path}/c")).await.expect(200);
            }
        }
    }
    assert_eq!(hooks.asked(), Vec::<Value>::new());
}

#[tokio::test]
async fn wrong_conditions_are_refused() {
    let hooks = Webhooks::start(|_, _| allow()).await;
    let server = start().await;
    for path in [MUTATING, VALIDATING] {
        let refused = async |conditions: Value| {
            let more = json!({"matchConditions": conditions});
            let hook = hooks.hook("c", "/", rule(&["CREATE"], "", "v1", &["configmaps"]), more);
            let refused =
                server.post(path, &json!({"metadata": {"name": "c"}, "webhooks": [hook]})).await.expect(422);
            let causes = refused["details"]["causes"].as_array().unwrap().iter();
            causes.map(|c| format!("{}: {}", c["field"], c["message"]).replace('"', "")).collect::<Vec<_>>()
        };
        let at = "webhooks[0].matchConditions";
        let found = refused(json!([condition("a", "... [] bad expression")])).await;
        assert!(found[0].starts_with(&format!("{at}[0].expression: Invalid value: \\... [] bad expression\\: compilation failed: ERROR: <input>:1:1: Syntax error:")), "{found:?}");
        assert_eq!(
            refused(json!([condition("a", "1 + 1"), condition("a", "object.a"), condition("", " ")])).await,
            [
                format!("{at}[1].name: Duplicate value: \\a\\"),
                format!("{at}[2].name: Required value"),
                format!("{at}[2].expression: Required value"),
                format!("{at}[0].expression: Invalid value: \\1 + 1\\: must evaluate to bool but got int"),
                format!("{at}[1].expression: Invalid value: \\object.a\\: must evaluate to bool but got dyn"),
            ]
        );
        let found = refused(json!([condition("a", "params.a == 1 && variables.b == 1")])).await;
        for name in ["params", "variables"] {
            assert!(
                found[0].contains(&format!("undeclared reference to '{name}' (in container '')")),
                "{found:?}"
            );
        }
        let many: Vec<Value> = (0..65).map(|n| condition(&format!("c{n}"), "true")).collect();
        assert_eq!(refused(many.into()).await, [format!("{at}: Too many: 65: must have at most 64 items")]);
    }
}
