//! Questions about users that are answered and not stored: access reviews, token reviews, and the
//! tokens that service accounts ask for.
//! Upstream counterpart: `pkg/registry/{authentication,authorization}`,
//! `pkg/registry/core/serviceaccount/storage/token.go`.

use crate::admission::{self, Admission, Operation, Options, Phase};
use crate::auth::authn::Credentials;
use crate::auth::authz::Union;
use crate::auth::node::node_of;
use crate::auth::token::{Claims, Private, Reference, Signer};
use crate::hooks::{Call, Endpoint};
use crate::identity::Identity;
use crate::local::Body;
use crate::negotiate::{self, Offer, Output};
use crate::query::Query;
use crate::registry::{WriteOptions, read_body, warn};
use crate::request::{Attributes, Decision, RequestInfo};
use crate::resources;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use skeg_api::decode;
use skeg_api::field::{FieldError, Path};
use skeg_api::schema::Schema;
use skeg_api::{Gvk, Gvr, Status, meta};
use std::collections::BTreeMap;
use std::sync::Arc;

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const TOKEN_SECONDS_DEFAULT: i64 = 3600;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
/// Tokens of the default volume live this long, though their Pods renew them each hour: programs
/// that read a token once keep working.
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

pub struct Reviews {
    pub credentials: Arc<Credentials>,
    pub authorizer: Arc<Union>,
    pub signer: Arc<Signer>,
    pub issuer: String,
}

/// The reviews, by group, resource and kind.
const REVIEWS: [(&str, &str, &str); 6] = [
    (AUTHENTICATION, "tokenreviews", "TokenReview"),
    (AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview"),
    (AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview"),
    (AUTHORIZATION, "localsubjectaccessreviews", "LocalSubjectAccessReview"),
    (AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    (AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
];

fn is_token(info: &RequestInfo) -> bool {
    info.group.is_empty() && info.resource == "serviceaccounts" && info.subresource == "token"
}

fn review_kind(info: &RequestInfo) -> Option<&'static str> {
    let found =
        REVIEWS.iter().find(|(group, resource, _)| *group == info.group && *resource == info.resource)?;
    Some(found.2)
}

impl Endpoint for Reviews {
    fn handles(&self, info: &RequestInfo) -> bool {
        info.version == "v1" && (is_token(info) || review_kind(info).is_some() && info.subresource.is_empty())
    }

    fn call(&self, call: Call, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, Status>> {
        Box::pin(async move {
            let gvk = match review_kind(&call.info) {
                Some(kind) => Gvk::new(&call.info.group, "v1", kind),
                None => Gvk::new(AUTHENTICATION, "v1", "TokenRequest"),
            };
            let (parts, body) = request.into_parts();
            let output = Output::negotiate(&parts.headers, Offer::PLAIN)?;
            let encoding = negotiate::input(&parts.headers)?;
            let query = Query::parse(&call.info.query);
            let options = WriteOptions::parse(call.info.verb, None, &query, &call.identity, &parts.headers)?;
            let bytes = read_body(body).await?;
            let schema = Schema::builtin_kind(&gvk.group, &gvk.version, &gvk.kind).unwrap_or_default();
            let decoded = decode::decode_object(&bytes, encoding, &gvk, &schema, options.field_validation)?;
            let (mut object, mut warnings) = (decoded.value, decoded.warnings);
            if is_token(&call.info) {
                self.token_request(&call, options.dry_run, &mut object, &mut warnings).await?;
            } else {
                self.review(&call, &gvk.kind, &mut object)?;
            }
            let mut response = negotiate::respond_value(StatusCode::CREATED, output, &object)?;
            warn(response.headers_mut(), &warnings);
            Ok(response)
        })
    }
}

/// Who is asked about, where a review names somebody else.
#[derive(Default, Deserialize)]
#[serde(default)]
struct About {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceQuestion {
    namespace: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    name: String,
    field_selector: Option<SelectorQuestion>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SelectorQuestion {
    raw_selector: String,
    requirements: Vec<Requirement>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl SelectorQuestion {
    /// As a query would carry it. Requirements that are no equality select too much to matter.
    fn query(&self) -> String {
        let mut terms: Vec<String> = Vec::new();
        if !self.raw_selector.is_empty() {
            terms.push(self.raw_selector.clone());
        }
        let equal = self.requirements.iter().filter(|r| r.operator == "In" && r.values.len() == 1);
        terms.extend(equal.map(|r| format!("{}={}", r.key, r.values[0])));
        let escape =
            |text: &str| text.replace('%', "%25").replace('&', "%26").replace('=', "%3D").replace('+', "%2B");
        format!("fieldSelector={}", escape(&terms.join(",")))
    }
}

impl Reviews {
    fn review(&self, call: &Call, kind: &str, object: &mut Value) -> Result<(), Status> {
        match kind {
            "TokenReview" => self.token_review(object)?,
            "SelfSubjectReview" => object["status"] = json!({"userInfo": user_info(&call.identity)}),
            "SelfSubjectRulesReview" => self.rules(call, object)?,
            _ => self.access(call, kind, object)?,
        }
        if object.get("metadata").is_none_or(Value::is_null) {
            object["metadata"] = json!({});
        }
        Ok(())
    }

    fn access(&self, call: &Call, kind: &str, object: &mut Value) -> Result<(), Status> {
        let spec = object["spec"].clone();
        let own = kind == "SelfSubjectAccessReview";
        let local = kind == "LocalSubjectAccessReview";
        let mut errors = check_access(&spec, own, local.then_some(call.info.namespace.as_str()));
        let allowed: &[&str] = if local { &["managedFields", "namespace"] } else { &["managedFields"] };
        let mut given = object["metadata"].as_object().into_iter().flatten();
        if given.any(|(field, value)| !value.is_null() && !allowed.contains(&field.as_str())) {
            let detail = if local { "must be empty except for namespace" } else { "must be empty" };
            errors.push(FieldError::invalid(Path::new("metadata"), object["metadata"].clone(), detail));
        }
        if !errors.is_empty() {
            return Err(Status::invalid(AUTHORIZATION, kind, "", &errors));
        }
        let identity = if own {
            call.identity.clone()
        } else {
            let about: About = serde_json::from_value(spec.clone()).unwrap_or_default();
            Identity::new(about.user, about.uid, about.groups, about.extra)
        };
        let what: ResourceQuestion =
            serde_json::from_value(spec["resourceAttributes"].clone()).unwrap_or_default();
        let query = what.field_selector.as_ref().map(SelectorQuestion::query).unwrap_or_default();
        let path = spec["nonResourceAttributes"]["path"].as_str().unwrap_or_default();
        let asked = if spec["resourceAttributes"].is_null() {
            let verb = spec["nonResourceAttributes"]["verb"].as_str().unwrap_or_default();
            Attributes { path, ..crate::auth::authz::question(&identity, verb, [""; 5]) }
        } else {
            Attributes {
                identity: &identity,
                verb: &what.verb,
                group: &what.group,
                version: &what.version,
                resource: &what.resource,
                subresource: &what.subresource,
                namespace: &what.namespace,
                name: &what.name,
                path: "",
                query: &query,
            }
        };
        let (allowed, denied, reason) = match self.authorizer.decide(&asked) {
            Decision::Allow(reason) => (true, false, reason),
            Decision::Deny(reason) => (false, true, reason),
            Decision::NoOpinion(reason) => (false, false, reason),
        };
        let mut status = json!({"allowed": allowed});
        if denied {
            status["denied"] = true.into();
        }
        if !reason.is_empty() {
            status["reason"] = reason.into();
        }
        object["status"] = status;
        Ok(())
    }

    fn rules(&self, call: &Call, object: &mut Value) -> Result<(), Status> {
        let namespace = object["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let (mut resource, mut other) = (Vec::new(), Vec::new());
        for rule in self.authorizer.rbac.rules_for(&call.identity, namespace) {
            if rule.urls.is_empty() {
                resource.push(json!(rule));
            } else {
                other.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
            }
        }
        let mut status = json!({"resourceRules": resource, "nonResourceRules": other, "incomplete": false});
        if node_of(&call.identity).is_some() {
            status["incomplete"] = true.into();
            status["evaluationError"] = "node authorizer does not support user rule resolution".into();
        }
        object["status"] = status;
        Ok(())
    }

    fn token_review(&self, object: &mut Value) -> Result<(), Status> {
        let token = object["spec"]["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let mut audiences: Vec<&str> =
            object["spec"]["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if audiences.is_empty() {
            audiences.push(self.credentials.audience());
        }
        let status = match self.credentials.token(token, &audiences) {
            Ok(verified) => json!({
                "authenticated": true,
                "user": user_info(&verified.identity),
                "audiences": verified.audiences,
            }),
            Err(error) => json!({"user": {}, "error": error}),
        };
        object["status"] = status;
        Ok(())
    }

    async fn token_request(
        &self,
        call: &Call,
        dry_run: bool,
        request: &mut Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
        let seams = call.server.seams();
        let kind = call.kind.as_ref().ok_or_else(Status::no_route)?;
        for (field, expected, what) in
            [("name", name, "service account name"), ("namespace", namespace, "namespace")]
        {
            match request["metadata"][field].as_str().unwrap_or_default() {
                "" => {}
                given if given == expected => {}
                _ => {
                    return Err(Status::bad_request(format!(
                        "the {field} of the object does not match the {what} sent on the request"
                    )));
                }
            }
        }
        let account = seams.reader.get_value(&resources::SERVICE_ACCOUNTS, namespace, name);
        let account = account.ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
        if !request["spec"].is_object() {
            request["spec"] = json!({});
        }
        if request["spec"]["expirationSeconds"].is_null() {
            request["spec"]["expirationSeconds"] = TOKEN_SECONDS_DEFAULT.into();
        }
        let mut admission = Admission {
            operation: Operation::Create,
            kind,
            subresource: "token",
            namespace,
            name,
            identity: &call.identity,
            object: Some(request),
            old: None,
            dry_run,
            options: Options::None,
            warnings,
            reservations: &mut Vec::new(),
            server: Some(&call.server),
            reinvocation: Default::default(),
        };
        for phase in [Phase::Mutate, Phase::Validate] {
            admission::run(&call.server.hooks().admission, phase, &mut admission).await?;
        }
        let spec = &request["spec"];
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or_default();
        let errors = check_seconds(seconds);
        if !errors.is_empty() {
            return Err(Status::invalid(AUTHENTICATION, "TokenRequest", "", &errors));
        }
        let given = spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut audiences: Vec<String> = given.map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.push(self.issuer.clone());
        }
        let mut private = Private {
            namespace: namespace.to_owned(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference { name: name.to_owned(), uid: meta::uid(&account).to_owned() },
            warnafter: None,
        };
        self.bind(call, &spec["boundObjectRef"], &mut private)?;
        let now = seams.clock.now_seconds();
        let at = now.as_second();
        let mut lifetime = seconds;
        let usual = audiences.len() == 1 && audiences[0] == self.issuer;
        if usual && seconds == crate::admission::service_account::TOKEN_SECONDS && private.pod.is_some() {
            private.warnafter = Some(at + seconds);
            lifetime = EXTENDED_SECONDS;
        }
        let claims = Claims {
            aud: audiences.clone(),
            exp: at + lifetime,
            iat: at,
            iss: self.issuer.clone(),
            jti: seams.random.uuid(),
            kubernetes: private,
            nbf: at,
            sub: format!("system:serviceaccount:{namespace}:{name}"),
        };
        let token = self.signer.sign(&claims).map_err(Status::internal)?;
        let expires = now + jiff::SignedDuration::from_secs(seconds);
        meta::set_name(request, name);
        meta::set_namespace(request, namespace);
        meta::set_creation_timestamp(request, now);
        request["spec"]["audiences"] = json!(audiences);
        if request["spec"].get("boundObjectRef").is_none() {
            request["spec"]["boundObjectRef"] = Value::Null;
        }
        request["status"] = json!({"token": token, "expirationTimestamp": meta::format_time(expires)});
        Ok(())
    }

    /// Fills in what the token is bound to.
    fn bind(&self, call: &Call, bound: &Value, private: &mut Private) -> Result<(), Status> {
        if bound.is_null() {
            return Ok(());
        }
        let text = |field: &str| bound[field].as_str().unwrap_or_default();
        let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
        let reader = &call.server.seams().reader;
        let find = |gvr: &Gvr, namespace: &str| {
            reader.get_value(gvr, namespace, name).ok_or_else(|| Status::not_found("", &gvr.resource, name))
        };
        let namespace = call.info.namespace.as_str();
        let (resource, found) = match (kind, text("apiVersion")) {
            ("Pod", "v1" | "") => {
                let pod = find(&resources::PODS, namespace)?;
                let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
                if account != call.info.name {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        call.info.name
                    )));
                }
                if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
                    let uid =
                        reader.get_value(&resources::NODES, "", node).map(|node| meta::uid(&node).to_owned());
                    private.node = Some(Reference { name: node.to_owned(), uid: uid.unwrap_or_default() });
                }
                private.pod = Some(Reference { name: name.to_owned(), uid: meta::uid(&pod).to_owned() });
                ("pods", pod)
            }
            ("Secret", "v1" | "") => {
                let secret = find(&resources::SECRETS, namespace)?;
                private.secret =
                    Some(Reference { name: name.to_owned(), uid: meta::uid(&secret).to_owned() });
                ("secrets", secret)
            }
            ("Node", "v1" | "") => {
                let node = find(&resources::NODES, "")?;
                private.node = Some(Reference { name: name.to_owned(), uid: meta::uid(&node).to_owned() });
                ("nodes", node)
            }
            (kind, version) => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for object of type {}",
                    skeg_api::GroupVersion::parse(version).map_or_else(
                        || format!("/, Kind={kind}"),
                        |gv| format!("{}/{}, Kind={kind}", gv.group, gv.version)
                    )
                )));
            }
        };
        if !uid.is_empty() && uid != meta::uid(&found) {
            return Err(Status::conflict(
                "",
                resource,
                name,
                format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
                     been deleted and then recreated"
                ),
            ));
        }
        Ok(())
    }
}

fn check_seconds(seconds: i64) -> Vec<FieldError> {
    let path = Path::new("spec").child("expirationSeconds");
    if seconds < TOKEN_SECONDS_MIN {
        vec![FieldError::invalid(path, seconds, "may not specify a duration less than 10 minutes")]
    } else if seconds > TOKEN_SECONDS_MAX {
        vec![FieldError::invalid(path, seconds, "may not specify a duration larger than 2^32 seconds")]
    } else {
        Vec::new()
    }
}

fn check_access(spec: &Value, own: bool, local_namespace: Option<&str>) -> Vec<FieldError> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_null(), other.is_null()) {
        (false, false) => errors.push(FieldError::invalid(
            path.child("nonResourceAttributes"),
            other.clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (true, true) => errors.push(FieldError::invalid(
            path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let empty = |field: &str| match &spec[field] {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    };
    if !own && empty("user") && empty("groups") {
        errors.push(FieldError::invalid(
            path.child("user"),
            "",
            "at least one of user or group must be specified",
        ));
    }
    let attributes = path.child("resourceAttributes");
    check_selector(&resource["fieldSelector"], attributes.child("fieldSelector"), &mut errors);
    check_selector(&resource["labelSelector"], attributes.child("labelSelector"), &mut errors);
    if let Some(namespace) = local_namespace {
        if !other.is_null() {
            let detail = "disallowed on this kind of request";
            errors.push(FieldError::invalid(path.child("nonResourceAttributes"), other.clone(), detail));
        }
        let given = resource["namespace"].as_str().unwrap_or_default();
        if !resource.is_null() && given != namespace {
            let at = path.child("resourceAttributes").child("namespace");
            errors.push(FieldError::invalid(at, given, "must match metadata.namespace"));
        }
    }
    errors
}

/// A selector that is asked about is written in one way, and says which values it means where its
/// operator has some.
fn check_selector(selector: &Value, path: Path, errors: &mut Vec<FieldError>) {
    let given = selector["rawSelector"].as_str().unwrap_or_default();
    let requirements = selector["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    match (given.is_empty(), requirements.is_empty()) {
        (false, false) => {
            let detail = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid(path.child("rawSelector"), given, detail));
        }
        (true, true) if !selector.is_null() => {
            let detail = format!("when {path} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(path.child("requirements"), detail));
        }
        _ => {}
    }
    for (n, requirement) in requirements.iter().enumerate() {
        let path = path.child("requirements").index(n);
        let values = requirement["values"].as_array().is_some_and(|values| !values.is_empty());
        if requirement["key"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(path.child("key"), "must be specified"));
        }
        match (requirement["operator"].as_str().unwrap_or_default(), values) {
            ("In" | "NotIn", false) => errors.push(FieldError::required(
                path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            ("Exists" | "DoesNotExist", true) => errors.push(FieldError::forbidden(
                path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            // Operators that are not known may be a newer server's.
            _ => {}
        }
    }
}

fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user()});
    if !identity.uid().is_empty() {
        info["uid"] = identity.uid().into();
    }
    if !identity.groups().is_empty() {
        info["groups"] = json!(identity.groups());
    }
    if !identity.extra().is_empty() {
        info["extra"] = json!(identity.extra());
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_must_be_complete() {
        let fields = |spec: Value, own, local| {
            check_access(&spec, own, local).iter().map(|e| e.path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(fields(json!({}), true, None), ["spec.resourceAttributes"]);
        assert_eq!(fields(json!({"resourceAttributes": {}}), true, None), [""; 0]);
        assert_eq!(fields(json!({"resourceAttributes": {}}), false, None), ["spec.user"]);
        let both = json!({"resourceAttributes": {}, "nonResourceAttributes": {}, "user": "x"});
        assert_eq!(fields(both, false, None), ["spec.nonResourceAttributes"]);
        let requirements = json!([
            {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["b"]},
            {"operator": "Newer"}, {"key": "a", "operator": "NotIn", "values": ["b"]}
        ]);
        let at = "spec.resourceAttributes.labelSelector";
        for (selector, wrong) in [
            (json!({}), vec![".requirements"]),
            (json!({"rawSelector": "a=b"}), vec![]),
            (
                json!({"rawSelector": "a=b", "requirements": requirements}),
                vec![
                    ".rawSelector",
                    ".requirements[0].values",
                    ".requirements[1].values",
                    ".requirements[2].key",
                ],
            ),
        ] {
            let wrong: Vec<String> = wrong.into_iter().map(|field| format!("{at}{field}")).collect();
            assert_eq!(fields(json!({"resourceAttributes": {"labelSelector": selector}}), true, None), wrong);
        }
        let other = json!({"resourceAttributes": {"namespace": "b"}, "user": "x"});
        assert_eq!(fields(other, false, Some("a")), ["spec.resourceAttributes.namespace"]);
    }

    #[test]
    fn lifetimes_have_bounds() {
        assert_eq!(check_seconds(600), []);
        assert_eq!(
            check_seconds(599)[0].to_string(),
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"
        );
        assert_eq!(check_seconds((1 << 32) + 1).len(), 1);
    }

    #[test]
    fn selectors_in_reviews_read_as_queries() {
        let selector = SelectorQuestion {
            raw_selector: String::new(),
            requirements: vec![Requirement {
                key: "spec.nodeName".into(),
                operator: "In".into(),
                values: vec!["n1".into()],
            }],
        };
        let query = selector.query();
        assert_eq!(Query::parse(&query).text("fieldSelector"), "spec.nodeName=n1");
    }
}
