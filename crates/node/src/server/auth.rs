//! Who calls, and whether they may. Upstream counterpart: `pkg/kubelet/server/auth.go`.

use super::{Answer, plain};
use crate::Context;
use http::{HeaderMap, Method, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub user: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
}

/// The subject of a verified certificate: the common name is the user, organizations are groups.
pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
    groups.push("system:authenticated".to_owned());
    Some(Identity { user, uid: None, groups })
}

/// The owner of the bearer token, as the API says.
pub async fn of_token(ctx: &Context, headers: &HeaderMap) -> Result<Identity, Answer> {
    let unauthorized = || plain(StatusCode::UNAUTHORIZED, "Unauthorized");
    let header = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let Some((_, token)) = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
    else {
        return Err(unauthorized());
    };
    let review = TokenReview {
        spec: TokenReviewSpec { token: token.trim().to_owned(), audiences: None },
        ..Default::default()
    };
    let answer = ctx.client.api::<TokenReview>().create("", &review).await.map_err(|error| {
        tracing::warn!(%error, "cannot review a token");
        plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal Error")
    })?;
    let status = answer.status.filter(|s| s.authenticated == Some(true)).ok_or_else(unauthorized)?;
    let user = status.user.unwrap_or_default();
    Ok(Identity {
        user: user.username.unwrap_or_default(),
        uid: user.uid,
        groups: user.groups.unwrap_or_default(),
    })
}

/// Asks the API whether the caller may do this to `nodes/<subresource>`.
pub async fn authorize(ctx: &Context, caller: &Identity, method: &Method, path: &str) -> Result<(), Answer> {
    let verb = verb(method, path);
    let subresources = subresources(path);
    for subresource in subresources {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(caller.user.clone()),
                uid: caller.uid.clone(),
                groups: Some(caller.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some((*subresource).to_owned()),
                    name: Some(ctx.config.name.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        match ctx.client.api::<SubjectAccessReview>().create("", &review).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|s| s.allowed) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot review access");
                return Err(plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal Error"));
            }
        }
    }
    let last = subresources.last().copied().unwrap_or_default();
    let why = format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
        caller.user,
        if subresources.len() > 1 { subresources.join(" ") } else { last.to_owned() }
    );
    Err(plain(StatusCode::FORBIDDEN, why))
}

/// Streams act, whatever the method that opens them.
fn verb(method: &Method, path: &str) -> &'static str {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match (method, first) {
        (_, "exec" | "attach" | "portForward") => "create",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::DELETE, _) => "delete",
        (&Method::PATCH, _) => "patch",
        _ => "get",
    }
}

/// The finest subresource first (KEP-2862), then the one that covers all.
fn subresources(path: &str) -> &'static [&'static str] {
    match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "healthz" => &["healthz", "proxy"],
        "pods" => &["pods", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_map_to_node_subresources() {
        for (method, path, expected) in [
            (Method::GET, "/exec/ns/p/c", ("create", "proxy")),
            (Method::GET, "/containerLogs/ns/p/c", ("get", "proxy")),
            (Method::GET, "/metrics", ("get", "metrics")),
            (Method::GET, "/pods", ("get", "pods")),
        ] {
            assert_eq!((verb(&method, path), subresources(path)[0]), expected, "{path}");
        }
    }
}
