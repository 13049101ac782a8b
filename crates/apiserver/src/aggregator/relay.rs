//! A request passed on: the other server is told who asks by headers that it believes from this
//! server's certificate, and from no other.
//! Upstream counterpart: `kube-aggregator/pkg/apiserver/handler_proxy.go`.

use super::Aggregator;
use super::remote::Remote;
use crate::hooks::Call;
use crate::identity::Identity;
use crate::local::{Body, BoxError, empty, full};
use crate::proxy::relay::{end_to_end, onward_headers};
use crate::proxy::{splice, wants_upgrade};
use crate::server::{REQUEST_TIMEOUT, TIMED_OUT};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use skeg_api::Status;
use std::fmt::Write as _;

const USER: &str = "x-remote-user";
const UID: &str = "x-remote-uid";
const GROUP: &str = "x-remote-group";
const EXTRA: &str = "x-remote-extra-";

/// Replaces whatever a client says of who it is.
pub(super) fn identify(headers: &mut HeaderMap, identity: &Identity) {
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add(USER, identity.user());
    if !identity.uid().is_empty() {
        add(UID, identity.uid());
    }
    for group in identity.groups() {
        add(GROUP, group);
    }
    for (key, values) in identity.extra() {
        let name = format!("{EXTRA}{}", escape(key));
        for value in values {
            add(&name, value);
        }
    }
}

/// A key as part of a header's name: what may not stand in one is in hex.
fn escape(key: &str) -> String {
    let mut out = String::new();
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(byte.to_ascii_lowercase().into());
        } else {
            let _ = write!(out, "%{byte:02x}");
        }
    }
    out
}

/// As upstream answers where there is nothing to pass a request on to.
fn plain(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{text}\n")));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl Aggregator {
    pub(super) async fn relay(
        &self,
        call: &Call,
        remote: &Remote,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        if !remote.is_available {
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "service unavailable"));
        }
        let tls = match &remote.tls {
            Ok(tls) => tls,
            Err(why) => return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, why)),
        };
        let upgrade = wants_upgrade(request.headers());
        let mut headers = onward_headers(&request, upgrade)?;
        identify(&mut headers, &call.identity);
        let host = format!("{}:{}", remote.host(), remote.port);
        headers.insert(header::HOST, host.parse().map_err(Status::internal)?);
        let client = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut onward = Request::new(if upgrade { empty() } else { body });
        *onward.method_mut() = parts.method;
        *onward.version_mut() = Version::HTTP_11;
        *onward.headers_mut() = headers;
        *onward.uri_mut() = target.parse().map_err(|_| Status::bad_request("the path is not a valid URL"))?;
        let exchange = self.exchange(&call.server, remote, tls, onward);
        let answer = if upgrade || call.info.verb == "watch" {
            Ok(exchange.await)
        } else {
            tokio::time::timeout(REQUEST_TIMEOUT, exchange).await
        };
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Err(_) => return Err(Status::timeout(TIMED_OUT)),
            Ok(Err(why)) => {
                tracing::debug!(name = remote.name, why, "another API server was not reached");
                let text = format!("error trying to reach service: {why}");
                return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, &text));
            }
        };
        // Its client would follow with what it has to prove who it is (CVE-2022-3172).
        if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
            let why = "the backend attempted to redirect this request, which is not permitted";
            return Ok(plain(StatusCode::BAD_GATEWAY, why));
        }
        if let Some(client) = client
            && answer.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            let headers = answer.headers().clone();
            return Ok(splice(call, client, answer, headers));
        }
        let (parts, body) = answer.into_parts();
        let mut response = Response::new(body.map_err(BoxError::from).boxed_unsync());
        *response.status_mut() = parts.status;
        *response.headers_mut() = end_to_end(&parts.headers);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_this_server_says_who_asks() {
        let mut headers = HeaderMap::new();
        for name in ["x-remote-user", "x-remote-group", "x-remote-extra-a", "x-remote-uid", "x-other"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("forged"));
        }
        let extra = BTreeMap::from([("example.com/A%".to_owned(), vec!["1".to_owned(), "2".to_owned()])]);
        identify(
            &mut headers,
            &Identity::new("jane".into(), String::new(), vec!["a".into(), "b".into()], extra),
        );
        let all = |name: &str| {
            let values = headers.get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(",")
        };
        assert_eq!(
            (all(USER), all(GROUP), all(UID), all("x-other")),
            ("jane".into(), "a,b".into(), String::new(), "forged".into())
        );
        assert_eq!(all("x-remote-extra-example.com%2fa%25"), "1,2");
        assert!(!headers.contains_key("x-remote-extra-a"));
    }
}
