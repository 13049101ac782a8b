//! Authorization checks, answered by the host.

use std::collections::BTreeMap;
use std::sync::Arc;

use skeg_cel::{Authorizer, Check, Decision, Env, Limits, Opaque, Type, Value, What};

/// Allows reading Pods, and `/healthz`; says what it was asked.
struct Host;

impl Authorizer for Host {
    fn authorize(&self, check: &Check<'_>) -> Decision {
        let allowed = match check.what {
            What::Path(path) => path == "/healthz",
            What::Resource(of) => of.resource == "pods" && check.verb == "get",
        };
        let who = check.service_account.map_or("user".to_owned(), |(ns, name)| format!("{ns}/{name}"));
        let reason = match check.what {
            What::Path(path) => format!("{who} {} {path}", check.verb),
            What::Resource(of) => format!(
                "{who} {} {}/{}/{} {}/{} {} {}",
                check.verb,
                of.group,
                of.resource,
                of.subresource,
                of.namespace,
                of.name,
                of.field_selector,
                of.label_selector
            ),
        };
        Decision { allowed, reason, error: (check.verb == "fail").then(|| "it failed".into()) }
    }
}

fn evaluate(text: &str) -> (String, u64) {
    let env = Env::new()
        .with("authorizer", Type::opaque("kubernetes.authorization.Authorizer"))
        .with("authorizer.requestResource", Type::opaque("kubernetes.authorization.ResourceCheck"));
    let program = env.compile(text).unwrap_or_else(|issues| panic!("{issues}"));
    let host: Arc<dyn Authorizer> = Arc::new(Host);
    let variables = BTreeMap::from([
        ("authorizer", Value::Opaque(Opaque::authorizer(host.clone()))),
        (
            "authorizer.requestResource",
            Value::Opaque(Opaque::request_resource(host, "apps", "deployments", "scale", "default", "web")),
        ),
    ]);
    let evaluation = program.evaluate(&variables, Limits::default());
    (
        evaluation.value.map_or_else(|error| format!("error: {error}"), |value| value.to_string()),
        evaluation.cost,
    )
}

#[test]
fn checks_ask_the_host() {
    for (text, expected) in [
        ("authorizer.group('').resource('pods').namespace('default').check('get').allowed()", "true"),
        ("authorizer.group('').resource('pods').check('delete').allowed()", "false"),
        ("authorizer.path('/healthz').check('get').allowed()", "true"),
        ("authorizer.path('/healthz').check('get').reason()", "user get /healthz"),
        (
            "authorizer.group('apps').resource('deployments').subresource('scale').namespace('n').name('x')\
             .fieldSelector('a=b').labelSelector('c=d').check('list').reason()",
            "user list apps/deployments/scale n/x a=b c=d",
        ),
        (
            "authorizer.serviceAccount('default', 'robot').group('').resource('pods').check('get').reason()",
            "default/robot get /pods/ / ",
        ),
        ("authorizer.requestResource.check('get').reason()", "user get apps/deployments/scale default/web "),
        ("authorizer.path('/x').check('fail').errored()", "true"),
        ("authorizer.path('/x').check('fail').error()", "it failed"),
        ("authorizer.path('/x').check('get').error()", ""),
        ("authorizer.path('  ').check('get').allowed()", "error: path must not be empty"),
        ("authorizer.group('').resource('').check('get').allowed()", "error: resource must not be empty"),
        (
            "authorizer.serviceAccount('a.b', 'c').path('/').check('get').allowed()",
            "error: Invalid service account namespace",
        ),
        (
            "authorizer.serviceAccount('a', 'C').path('/').check('get').allowed()",
            "error: Invalid service account name",
        ),
    ] {
        assert_eq!(evaluate(text).0.trim_end(), expected.trim_end(), "{text}");
    }
}

#[test]
fn two_checks_fit_into_one_evaluation() {
    let check = "authorizer.path('/x').check('get').allowed()";
    assert_eq!(evaluate(check), ("false".into(), 350_003));
    assert_eq!(evaluate(&format!("{check} || {check}")).0, "false");
    let (outcome, _) = evaluate(&format!("{check} || {check} || {check}"));
    assert_eq!(outcome, "error: operation cancelled: actual cost limit exceeded");
}
