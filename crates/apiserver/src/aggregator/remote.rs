//! One other server: what its APIService says, the way to it, and what is known of it.

use super::Aggregator;
use crate::local::Body;
use crate::proxy::{connect, relay::endpoint};
use crate::server::ApiServer;
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use serde_json::Value;
use skeg_api::meta;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server said of itself.
#[derive(Clone, Default, PartialEq)]
pub struct Learned {
    /// Its resources, in the form of aggregated discovery; none before its first answer.
    pub resources: Option<Arc<Vec<Value>>>,
    /// Whether that was its last answer.
    pub is_current: bool,
    /// Of `/openapi/v3`, what is of its group and version.
    pub openapi_v3: Option<Value>,
    /// Of `/openapi/v2`, the paths of its group and version, and the definitions.
    pub openapi_v2: Option<Arc<Value>>,
}

pub struct Remote {
    /// Of the APIService.
    pub name: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    pub group_priority: i64,
    pub version_priority: i64,
    pub is_available: bool,
    pub tls: Result<TlsConnector, String>,
    made_of: Value,
    pub learned: Arc<Mutex<Learned>>,
}

/// What of an APIService counts here.
fn made_of(object: &Value) -> Value {
    serde_json::json!([object["metadata"]["uid"], object["spec"], is_available(object)])
}

fn is_available(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Available" && c["status"] == "True")
}

impl Remote {
    pub fn new(object: &Value, tls: Result<TlsConnector, String>, before: Option<&Remote>) -> Self {
        let spec = &object["spec"];
        let text = |at: &str| spec.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let made_of = made_of(object);
        // What was said stays true while only its reachability changes.
        let same = before.filter(|before| before.made_of[0] == made_of[0] && before.made_of[1] == made_of[1]);
        Remote {
            name: meta::name(object).to_owned(),
            group: text("/group"),
            version: text("/version"),
            namespace: text("/service/namespace"),
            service: text("/service/name"),
            port: spec["service"]["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(443),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
            version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
            is_available: is_available(object),
            tls,
            learned: same.map(|before| before.learned.clone()).unwrap_or_default(),
            made_of,
        }
    }

    pub fn is_of(&self, object: &Value) -> bool {
        self.made_of == made_of(object)
    }

    /// The path below which everything of it is.
    pub fn root(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    /// As its certificate names it.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

impl Aggregator {
    /// Sends one request over a connection of its own.
    ///
    /// # Errors
    /// Why the server was not reached.
    pub(super) async fn exchange(
        &self,
        server: &Arc<ApiServer>,
        remote: &Remote,
        tls: &TlsConnector,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, String> {
        let slot =
            self.slots.clone().try_acquire_owned().map_err(|_| "too many requests to other servers")?;
        let (node, address) = endpoint(server.seams(), &remote.namespace, &remote.service, remote.port)
            .map_err(|status| status.message)?;
        let name = ServerName::try_from(remote.host()).map_err(|error| error.to_string())?;
        let open = async {
            let stream = match &self.dialer {
                Some(dialer) => dialer.dial_address(&node, address).await?,
                None => connect(address).await?,
            };
            tls.connect(name, stream).await
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
            Ok(stream) => stream.map_err(|error| format!("dial tcp {address}: {error}"))?,
            Err(_) => return Err(format!("dial tcp {address}: i/o timeout")),
        };
        crate::proxy::exchange(server, slot, stream, request).await.map_err(|error| error.to_string())
    }
}
