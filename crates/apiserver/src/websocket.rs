//! Watches and logs over WebSocket, for browsers: what the answer's body carries, as messages. An
//! event each for watches; for logs binary ones, the first of them empty, in the protocols
//! `binary.k8s.io` (also without a name) and `base64.binary.k8s.io`.
//! Upstream counterparts: `endpoints/handlers/watch.go`, `util/wsstream/stream.go`.

use crate::local::{Body, empty};
use crate::request::RequestInfo;
use crate::route;
use crate::server::ApiServer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};

const BEARER: &str = "base64url.bearer.authorization.k8s.io.";
const BASE64: &str = "base64.binary.k8s.io";

fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// The token that a browser, which can set no other header, sends as a protocol beside the one it
/// speaks.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    if !is_wanted(headers) {
        return None;
    }
    let token = protocols(headers).find_map(|protocol| protocol.strip_prefix(BEARER))?;
    protocols(headers).find(|protocol| !protocol.starts_with(BEARER))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

/// How the messages of an answer are made.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Events,
    Binary,
    Base64,
}

/// A request for a WebSocket that is answered as one without, and then carried over.
pub struct Upgrade {
    on: OnUpgrade,
    accept: String,
    protocol: Option<String>,
    form: Form,
}

impl Upgrade {
    /// Takes the upgrade out of a request for a watch or a log.
    pub fn take(request: &mut Request<Body>) -> Option<Self> {
        if request.method() != Method::GET || !is_wanted(request.headers()) {
            return None;
        }
        let info: RequestInfo = route::parse(request.method(), request.uri()).ok()?;
        let is_log = info.resource == "pods" && info.subresource == "log";
        if !is_log && info.verb != "watch" {
            return None;
        }
        let key = request.headers().get(SEC_WEBSOCKET_KEY)?.to_str().ok()?.to_owned();
        let offered = protocols(request.headers()).find(|protocol| !protocol.starts_with(BEARER));
        let protocol = offered.filter(|protocol| !protocol.is_empty()).map(str::to_owned);
        let form = match protocol.as_deref() {
            _ if !is_log => Form::Events,
            Some(BASE64) => Form::Base64,
            _ => Form::Binary,
        };
        let on = request.extensions_mut().remove::<OnUpgrade>()?;
        for name in [UPGRADE, CONNECTION, ACCEPT_ENCODING] {
            request.headers_mut().remove(name);
        }
        Some(Upgrade { on, accept: derive_accept_key(key.as_bytes()), protocol, form })
    }

    /// Switches over and sends on what the answer carries; a refusal stays what it is.
    pub fn answer(self, server: &ApiServer, response: Response<Body>) -> Response<Body> {
        if response.status() != StatusCode::OK {
            return response;
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_json = kind.is_some_and(|kind| kind.starts_with("application/json"));
        let form = if self.form == Form::Events && !is_json { Form::Binary } else { self.form };
        let mut switched = Response::new(empty());
        *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = switched.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let values = [(SEC_WEBSOCKET_ACCEPT, Some(self.accept)), (SEC_WEBSOCKET_PROTOCOL, self.protocol)];
        for (name, value) in values {
            if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
                headers.insert(name, value);
            }
        }
        let (tasks, stop) = server.tasks();
        let (stop, on) = (stop.clone(), self.on);
        tasks.spawn(async move {
            if let Ok(upgraded) = on.await {
                stop.run_until_cancelled(carry(upgraded, response.into_body(), form)).await;
            }
        });
        switched
    }
}

/// Sends until either side ends.
async fn carry(upgraded: Upgraded, body: Body, form: Form) {
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let send = async {
        let mut body = std::pin::pin!(body);
        let mut rest = BytesMut::new();
        if form != Form::Events {
            sink.send(message(Bytes::new(), form)).await?;
        }
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            if form != Form::Events {
                sink.send(message(data, form)).await?;
                continue;
            }
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end + 1).freeze().slice(..end);
                sink.send(message(line, form)).await?;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(normal))).await
    };
    // Pings are answered by reading.
    let hear = async { while let Some(Ok(_)) = source.next().await {} };
    tokio::select! {
        sent = send => if let Err(error) = sent {
            tracing::debug!(%error, "a WebSocket ended");
        },
        () = hear => {}
    }
}

fn message(data: Bytes, form: Form) -> Message {
    match form {
        Form::Binary => Message::Binary(data),
        Form::Base64 => Message::text(STANDARD.encode(&data)),
        Form::Events => Message::text(String::from_utf8_lossy(&data).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_as_a_protocol_beside_another() {
        let headers = |upgrade: &str, offered: &str| {
            let pairs = [(UPGRADE, upgrade), (SEC_WEBSOCKET_PROTOCOL, offered)];
            let pairs = pairs.into_iter().map(|(name, value)| (name, HeaderValue::from_str(value).unwrap()));
            bearer(&pairs.collect())
        };
        let token = format!("{BEARER}YWJj");
        assert_eq!(headers("WebSocket", &format!("{token}, v5.channel.k8s.io")).as_deref(), Some("abc"));
        assert_eq!(headers("h2c", &format!("{token}, v5.channel.k8s.io")), None);
        assert_eq!(headers("websocket", &token), None, "nothing else is spoken");
        assert_eq!(headers("websocket", &format!("{BEARER}YWJ=!, x")), None);
    }
}
