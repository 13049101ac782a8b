//! Webhooks that cannot be asked, or answer what no answer is.

use super::{MUTATING, Reply, VALIDATING, Webhooks, allow, configure, rule, start};
use crate::harness::{CONFIG_MAPS, Server, config_map};
use crate::tls::Certificate;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

#[tokio::test]
async fn webhooks_that_fail_are_told_or_ignored() {
    let hooks = Webhooks::start(|path, _| match path.split('?').next().unwrap() {
        "/hang" => Reply::Hang,
        "/error" => Reply::Raw(500, "broken".into()),
        "/missing" => Reply::Raw(404, "".into()),
        "/garbage" => Reply::Raw(200, "<html>".into()),
        "/kindless" => Reply::Raw(200, "{}".into()),
        "/huge" => Reply::Raw(200, vec![b' '; 4 << 20].into()),
        "/uid" => Reply::Review(json!({"allowed": true, "uid": "x"})),
        "/empty" => Reply::Raw(
            200,
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}).to_string().into(),
        ),
        "/untyped" => Reply::Review(json!({"allowed": true, "patch": "W10="})),
        "/patch" => Reply::Review(json!({"allowed": true, "patch": "W10=", "patchType": "JSONPatch"})),
        _ => allow(),
    })
    .await;
    let server = start().await;
    let (url, port) = (format!("https://{}", hooks.address), hooks.address.port());
    let maps = || rule(&["CREATE"], "", "v1", &["configmaps"]);
    let at = |path: &str| {
        hooks.hook("x", path, maps(), json!({"timeoutSeconds": if path == "/hang" { 1 } else { 10 }}))
    };
    let mut untrusted = at("/ok");
    untrusted["clientConfig"]["caBundle"] = Webhooks::start(|_, _| allow()).await.bundle.into();
    let mut bundle = at("/ok");
    bundle["clientConfig"]["caBundle"] = STANDARD.encode("nonsense").into();
    let mut closed = at("/ok");
    closed["clientConfig"]["url"] = "https://127.0.0.1:1/ok".into();
    let mut service = at("/ok");
    service["clientConfig"] =
        json!({"caBundle": hooks.bundle, "service": {"namespace": "default", "name": "none"}});
    let both = [MUTATING, VALIDATING];
    let cases: Vec<(Value, &[&str], String)> = vec![
        (at("/hang"), &both, format!("failed to call webhook: Post \"{url}/hang?timeout=1s\": context deadline exceeded")),
        (at("/error"), &both, "failed to call webhook: an error on the server (\"broken\") has prevented the request from succeeding".into()),
        (at("/missing"), &both, "failed to call webhook: the server could not find the requested resource".into()),
        (at("/garbage"), &both, "failed to call webhook: couldn't get version/kind; json parse error: ".into()),
        (at("/kindless"), &both, "failed to call webhook: Object 'Kind' is missing in '{}'".into()),
        (at("/huge"), &both, format!("failed to call webhook: Post \"{url}/huge?timeout=10s\": length limit exceeded")),
        (at("/uid"), &both, "received invalid webhook response: expected response.uid=".into()),
        (at("/empty"), &both, "received invalid webhook response: webhook response was absent".into()),
        (at("/untyped"), &[MUTATING], "received invalid webhook response: webhook returned response.patch but not response.patchType".into()),
        (at("/patch"), &[VALIDATING], "received invalid webhook response: validating webhook may not return response.patch".into()),
        (untrusted, &both, format!("failed to call webhook: Post \"{url}/ok?timeout=10s\": tls: failed to verify certificate: ")),
        (bundle, &both, "could not get REST client: unable to load root certificates: unable to parse bytes as PEM block".into()),
        (closed, &both, "failed to call webhook: Post \"https://127.0.0.1:1/ok?timeout=10s\": dial tcp 127.0.0.1:1: connect: connection refused".into()),
        (service, &both, "failed to call webhook: Post \"https://none.default.svc:443/?timeout=10s\": service \"none\" not found".into()),
    ];
    assert!(port > 0);
    for (mut hook, paths, expected) in cases {
        for path in paths {
            configure(&server, path, "x", std::slice::from_ref(&hook)).await;
            let failed = server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(500);
            let message = failed["message"].as_str().unwrap();
            let expected =
                format!("Internal error occurred: failed calling webhook \"x.example.com\": {expected}");
            assert!(message.starts_with(&expected), "{message}\n{expected}");
            server.delete(&format!("{path}/x")).await.expect(200);
            // The hanging one would only take its time again.
            if !expected.contains("deadline") {
                hook["failurePolicy"] = "Ignore".into();
                configure(&server, path, "x", std::slice::from_ref(&hook)).await;
                server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(201);
                server.delete(&format!("{CONFIG_MAPS}/m")).await.expect(200);
                server.delete(&format!("{path}/x")).await.expect(200);
                hook["failurePolicy"] = "Fail".into();
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_is_believed_that_the_bundle_has_or_vouches_for() {
    let server = start().await;
    let of = |names: &[&str]| Webhooks::start_as(Certificate::self_signed(names), |_, _| allow());
    let (named, other) = (of(&["127.0.0.1"]).await, of(&["elsewhere.example.com"]).await);
    let strange = Webhooks::start(|_, _| allow()).await;
    let hook = |hooks: &Webhooks, bundle: &str| {
        let maps = rule(&["CREATE"], "", "v1", &["configmaps"]);
        let mut hook = hooks.hook("x", "/", maps, json!({}));
        hook["clientConfig"]["caBundle"] = bundle.into();
        hook
    };
    configure(&server, VALIDATING, "x", &[hook(&named, &named.bundle)]).await;
    server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(201);
    for (hook, why) in [
        (
            hook(&named, &other.bundle),
            "certificate of an authority: serve another, or name this one in the bundle",
        ),
        (hook(&strange, &other.bundle), "certificate signed by unknown authority"),
        (hook(&other, &other.bundle), "certificate is valid for elsewhere.example.com, not 127.0.0.1"),
    ] {
        server.delete(&format!("{VALIDATING}/x")).await.expect(200);
        configure(&server, VALIDATING, "x", &[hook]).await;
        let failed = server.post(CONFIG_MAPS, &config_map("n", json!({}))).await.expect(500);
        let message = failed["message"].as_str().unwrap();
        assert!(message.ends_with(&format!("tls: failed to verify certificate: x509: {why}")), "{message}");
    }
}

#[tokio::test]
async fn a_webhook_cannot_make_something_else_of_an_object() {
    let replace = |path: &str, value: &str| {
        let patch = json!([{"op": "replace", "path": path, "value": value}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
    };
    let hooks = Webhooks::start(move |path, _| {
        Reply::Review(match path.split('?').next().unwrap() {
            "/kind" => replace("/kind", "Secret"),
            "/version" => replace("/apiVersion", "v2"),
            "/namespace" => replace("/metadata/namespace", "kube-system"),
            _ => replace("/metadata/name", "other"),
        })
    })
    .await;
    let server = start().await;
    server.post(CONFIG_MAPS, &config_map("kept", json!({}))).await.expect(201);
    for (path, code, part) in [
        ("/kind", 500, "v1, Kind=Secret, which is no v1, Kind=ConfigMap"),
        ("/version", 500, "v2, Kind=ConfigMap, which is no v1, Kind=ConfigMap"),
        (
            "/namespace",
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        ("/name", 422, "metadata.name: Invalid value: \"other\": field is immutable"),
    ] {
        let maps = rule(&["CREATE", "UPDATE"], "", "v1", &["configmaps"]);
        configure(&server, MUTATING, "x", &[hooks.hook("x", path, maps, json!({}))]).await;
        if path != "/name" {
            let refused = server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(code);
            assert!(refused["message"].as_str().unwrap().contains(part), "{refused}");
        }
        let changed = config_map("kept", json!({"a": "b"}));
        let refused = server.put(&format!("{CONFIG_MAPS}/kept"), &changed).await.expect(code);
        assert!(refused["message"].as_str().unwrap().contains(part), "{refused}");
        server.delete(&format!("{MUTATING}/x")).await.expect(200);
    }
    let list = server.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn a_webhook_that_hangs_holds_up_nobody_else() {
    let hooks = Webhooks::start(|_, _| Reply::Hang).await;
    let server = start().await;
    let all = json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]});
    let selector = json!({"objectSelector": {"matchLabels": {"slow": "yes"}}, "timeoutSeconds": 30});
    configure(&server, VALIDATING, "hang", &[hooks.hook("hang", "/", all, selector)]).await;
    let mut slow = config_map("slow", json!({}));
    slow["metadata"]["labels"] = json!({"slow": "yes"});
    let arrived = hooks.arrived.clone();
    let stuck = {
        let (api, service) = (server.api.clone(), server.service.clone());
        tokio::spawn(async move { Server { api, service }.post(CONFIG_MAPS, &slow).await.code })
    };
    arrived.notified().await;
    for n in 0..20 {
        server.post(CONFIG_MAPS, &config_map(&format!("m{n}"), json!({}))).await.expect(201);
    }
    server.get(CONFIG_MAPS).await.expect(200);
    assert!(!stuck.is_finished());
    // The configuration itself is shown to no webhook, or nobody could take it away.
    server.delete(&format!("{VALIDATING}/hang")).await.expect(200);
    stuck.abort();
}
