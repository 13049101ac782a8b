//! `/healthz`, `/livez`, `/readyz` with their named checks, `/version`, and what tells others how
//! to verify service account tokens. Upstream counterpart: `k8s.io/apiserver/pkg/server/healthz`.

use crate::auth::token::Signer;
use crate::hooks::{Call, Endpoint};
use crate::local::{Body, full};
use crate::negotiate::{self, Output};
use crate::query::Query;
use crate::request::RequestInfo;
use crate::server::ApiServer;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, header};
use parking_lot::RwLock;
use serde_json::{Value, json};
use skeg_api::Status;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Where the store's health is asked; no such record exists.
const PROBE_KEY: &str = "/skeg/health";

/// A further check of readiness that the wiring adds: a name, and whether it is fine.
pub type Check = (&'static str, Box<dyn Fn() -> Result<(), String> + Send + Sync>);

pub struct Health {
    pub signer: Arc<Signer>,
    pub issuer: String,
    /// Checked by `/readyz` and `/healthz`.
    pub more: RwLock<Vec<Check>>,
}

/// What `/version` says.
pub fn version() -> Value {
    let platform = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.0+skeg-", env!("CARGO_PKG_VERSION")), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": platform,
    })
}

impl Endpoint for Health {
    fn handles(&self, info: &RequestInfo) -> bool {
        if info.is_resource() {
            return false;
        }
        let path = info.path.trim_matches('/');
        let first = path.split('/').next().unwrap_or_default();
        matches!(first, "healthz" | "livez" | "readyz")
            || matches!(path, "version" | ".well-known/openid-configuration" | "openid/v1/jwks")
    }

    fn call(&self, call: Call, _request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, Status>> {
        Box::pin(async move {
            if !matches!(call.info.verb, "get" | "head") {
                return Err(Status::unserved());
            }
            match call.info.path.trim_matches('/') {
                "version" => {
                    let output = Output { pretty: true, ..Default::default() };
                    negotiate::respond_value(StatusCode::OK, output, &version())
                }
                "openid/v1/jwks" => {
                    let mut response = negotiate::respond_value(
                        StatusCode::OK,
                        Output::default(),
                        &json!({"keys": [self.signer.jwk()]}),
                    )?;
                    let kind = HeaderValue::from_static("application/jwk-set+json");
                    response.headers_mut().insert(header::CONTENT_TYPE, kind);
                    Ok(response)
                }
                ".well-known/openid-configuration" => {
                    let issuer = &self.issuer;
                    let value = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks"),
                        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                        "id_token_signing_alg_values_supported": ["ES256"]});
                    negotiate::respond_value(StatusCode::OK, Output::default(), &value)
                }
                path => Ok(self.report(&call.server, path, &Query::parse(&call.info.query)).await),
            }
        })
    }
}

impl Health {
    async fn report(&self, server: &ApiServer, path: &str, query: &Query) -> Response<Body> {
        let (endpoint, one) = path.split_once('/').unwrap_or((path, ""));
        let mut results: Vec<(&str, Result<(), String>)> = vec![("ping", Ok(())), ("log", Ok(()))];
        let store = &server.seams().store;
        let asked = tokio::time::timeout(CHECK_TIMEOUT, store.get(PROBE_KEY)).await;
        results.push((
            "store",
            match asked {
                Ok(Ok(_)) => match store.trouble().borrow().as_ref() {
                    // A restart would not mend it.
                    Some(why) if endpoint != "livez" => Err(format!("writes fail: {why}")),
                    _ => Ok(()),
                },
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer in time".to_owned()),
            },
        ));
        if endpoint != "livez" {
            results.extend(self.more.read().iter().map(|(name, check)| (*name, check())));
        }
        if endpoint == "readyz" {
            let stopping = server.is_stopping();
            results.push((
                "shutdown",
                if stopping { Err("process is shutting down".to_owned()) } else { Ok(()) },
            ));
        }
        let verbose = query.get("verbose").is_some();
        let (code, body) = render(endpoint, one, results, query.all("exclude").collect(), verbose);
        let mut response = Response::new(full(body));
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

fn render(
    endpoint: &str,
    one: &str,
    results: Vec<(&str, Result<(), String>)>,
    exclude: BTreeSet<&str>,
    verbose: bool,
) -> (StatusCode, String) {
    if !one.is_empty() {
        return match results.into_iter().find(|(name, _)| *name == one) {
            Some((_, Ok(()))) => (StatusCode::OK, "ok".into()),
            Some((_, Err(error))) => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {error}\n"))
            }
            None => (StatusCode::NOT_FOUND, "404 page not found\n".into()),
        };
    }
    let (mut lines, mut failed) = (String::new(), false);
    for (name, result) in &results {
        match result {
            _ if exclude.contains(name) => lines.push_str(&format!("[+]{name} excluded: ok\n")),
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(error) => {
                failed = true;
                tracing::warn!(check = name, %error, "health check failed");
                lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    let unknown: Vec<String> = exclude
        .iter()
        .filter(|name| results.iter().all(|(n, _)| n != *name))
        .map(|n| format!("{n:?}"))
        .collect();
    if !unknown.is_empty() {
        lines.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            unknown.join(", ")
        ));
    }
    if failed {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{endpoint} check failed\n"));
    }
    (StatusCode::OK, if verbose { format!("{lines}{endpoint} check passed\n") } else { "ok".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_as_upstreams() {
        let good = || vec![("ping", Ok(())), ("store", Ok(()))];
        let bad = || vec![("ping", Ok(())), ("store", Err("x".to_owned()))];
        let none = BTreeSet::new;
        assert_eq!(render("livez", "", good(), none(), false), (StatusCode::OK, "ok".into()));
        let verbose = "[+]ping ok\n[+]store ok\nreadyz check passed\n";
        assert_eq!(render("readyz", "", good(), none(), true).1, verbose);
        let failed = render("readyz", "", bad(), none(), false);
        assert_eq!(failed.0.as_u16(), 500);
        assert_eq!(failed.1, "[+]ping ok\n[-]store failed: reason withheld\nreadyz check failed\n");
        assert_eq!(render("readyz", "", bad(), BTreeSet::from(["store"]), false).0, StatusCode::OK);
        assert_eq!(render("readyz", "ping", bad(), none(), false).1, "ok");
        assert_eq!(render("readyz", "none", bad(), none(), false).0, StatusCode::NOT_FOUND);
    }
}
