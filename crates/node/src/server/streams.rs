//! Exec, attach and port-forward: sessions of the runtime carried over WebSocket channels
//! (`v5.channel.k8s.io`, `v4.channel.k8s.io`), SPDY/3.1 streams, or SPDY inside a WebSocket.
//! Upstream counterparts: `k8s.io/kubelet/pkg/cri/streaming`, KEP-4006.

use super::spdy::{self, Outgoing, SpdyStream};
use super::{Answer, Query, plain};
use crate::Context;
use crate::agent::Agent;
use crate::machine;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use skeg_runtime::{ExecConfig, Session, TerminalSize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const BLOCK: usize = 32 << 10;
const MESSAGES_AHEAD: usize = 16;
/// How long a client may take to open the streams it announced.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const TUNNEL_BUFFER: usize = 256 << 10;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How a request wants its connection upgraded.
enum Wanted {
    WebSocket { key: String, protocols: Vec<String> },
    Spdy { protocols: Vec<String> },
}

fn wanted(request: &Request<Incoming>) -> Option<Wanted> {
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let list = |name: &str| -> Vec<String> {
        let values = request.headers().get_all(name).iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
    };
    let upgrade = header(UPGRADE.as_str());
    if upgrade.eq_ignore_ascii_case("websocket") {
        let key = header(SEC_WEBSOCKET_KEY.as_str()).to_owned();
        return Some(Wanted::WebSocket { key, protocols: list(SEC_WEBSOCKET_PROTOCOL.as_str()) });
    }
    upgrade.eq_ignore_ascii_case("SPDY/3.1").then(|| Wanted::Spdy { protocols: list(STREAM_PROTOCOL) })
}

/// Clients take any other close code for an error.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

fn switch(headers: &[(&'static str, &str)]) -> Answer {
    let mut answer =
        Response::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            answer.headers_mut().insert(*name, value);
        }
    }
    answer
}

fn switch_websocket(key: &str, protocol: &str) -> Answer {
    let accept = derive_accept_key(key.as_bytes());
    switch(&[
        (UPGRADE.as_str(), "websocket"),
        (SEC_WEBSOCKET_ACCEPT.as_str(), &accept),
        (SEC_WEBSOCKET_PROTOCOL.as_str(), protocol),
    ])
}

fn chosen<'a>(offered: &[String], known: &[&'a str]) -> Option<&'a str> {
    known.iter().find(|k| offered.iter().any(|o| o == *k)).copied()
}

fn no_protocol(offered: &[String], known: &[&str]) -> Answer {
    let why = format!(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
    );
    plain(StatusCode::FORBIDDEN, why)
}

async fn upgraded(request: Request<Incoming>) -> Option<TokioIo<hyper::upgrade::Upgraded>> {
    match hyper::upgrade::on(request).await {
        Ok(upgraded) => Some(TokioIo::new(upgraded)),
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            None
        }
    }
}

/// A running container of a Pod, by the path's last parts: `[uid/]container`.
#[expect(clippy::result_large_err, reason = "the error is the answer itself")]
fn find(agent: &Agent, ns: &str, pod: &str, rest: &[&str]) -> Result<(String, String, bool), Answer> {
    let worker = agent.find(ns, pod).ok_or_else(|| plain(StatusCode::NOT_FOUND, "pod does not exist"))?;
    let (uid, container) = match rest {
        [uid, container] => (Some(*uid), *container),
        [container] => (None, *container),
        _ => (None, ""),
    };
    if uid.is_some_and(|uid| uid != worker.uid) {
        return Err(plain(StatusCode::NOT_FOUND, "pod does not exist"));
    }
    let object = worker.pod();
    let spec = machine::ephemeral::find_container(machine::spec(&object), container);
    let Some(spec) = spec else {
        return Err(plain(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")));
    };
    let memory = worker.memory();
    match memory.container(container).and_then(|c| c.current.as_ref()).filter(|run| run.is_running()) {
        Some(run) => Ok((worker.uid.clone(), run.id.clone(), spec.tty == Some(true))),
        None => Err(plain(StatusCode::BAD_REQUEST, format!("container {container} is not running"))),
    }
}

pub fn exec(
    agent: &Arc<Agent>,
    ns: &str,
    pod: &str,
    rest: &[&str],
    query: &Query,
    request: Request<Incoming>,
    attach: bool,
) -> Answer {
    let (uid, id, container_tty) = match find(agent, ns, pod, rest) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let flag = |short: &str, long: &str| query.flag(short) || query.flag(long);
    let tty = if attach { container_tty } else { query.flag("tty") };
    let config = ExecConfig {
        args: query.all("command").map(str::to_owned).collect(),
        tty,
        stdin: flag("input", "stdin"),
        stdout: flag("output", "stdout"),
        stderr: flag("error", "stderr") && !tty,
    };
    if !config.stdin && !config.stdout && !config.stderr {
        return plain(StatusCode::BAD_REQUEST, "you must specify at least one of stdin, stdout, stderr");
    }
    if !attach && config.args.is_empty() {
        return plain(StatusCode::BAD_REQUEST, "you must specify at least 1 command for the container");
    }
    let work = Work { ctx: agent.ctx.clone(), uid, id, config, attach };
    match wanted(&request) {
        Some(Wanted::WebSocket { key, protocols }) => {
            let Some(protocol) = chosen(&protocols, &[V5, V4]) else {
                return no_protocol(&protocols, &[V5, V4]);
            };
            tokio::spawn(async move {
                if let Some(io) = upgraded(request).await {
                    exec_websocket(io, work).await;
                }
            });
            switch_websocket(&key, protocol)
        }
        Some(Wanted::Spdy { protocols }) => {
            let Some(protocol) = chosen(&protocols, &[V4]) else { return no_protocol(&protocols, &[V4]) };
            tokio::spawn(async move {
                if let Some(io) = upgraded(request).await {
                    exec_spdy(io, work).await;
                }
            });
            switch(&[(UPGRADE.as_str(), "SPDY/3.1"), (STREAM_PROTOCOL, protocol)])
        }
        None => plain(StatusCode::BAD_REQUEST, "Upgrade request required"),
    }
}

/// Where one output goes.
enum Sink {
    Channel { number: u8, messages: mpsc::Sender<Message> },
    Stream(Outgoing),
}

impl Sink {
    /// False when the client is gone.
    async fn send(&self, data: &[u8]) -> bool {
        match self {
            Sink::Channel { number, messages } => {
                let mut framed = Vec::with_capacity(data.len() + 1);
                framed.push(*number);
                framed.extend(data);
                messages.send(Message::Binary(framed.into())).await.is_ok()
            }
            Sink::Stream(outgoing) => outgoing.send(Bytes::copy_from_slice(data)).await.is_ok(),
        }
    }

    async fn close(self) {
        if let Sink::Stream(outgoing) = self {
            outgoing.close().await;
        }
    }
}

/// The client's side of a session, whatever carries it.
struct Remote {
    stdin: mpsc::Receiver<Bytes>,
    resize: mpsc::Receiver<TerminalSize>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    error: Sink,
}

struct Work {
    ctx: Arc<Context>,
    uid: String,
    id: String,
    config: ExecConfig,
    attach: bool,
}

impl Work {
    /// Runs the session to its end and tells the client how it ended.
    async fn run(self, remote: Remote) {
        let Remote { stdin, resize, stdout, stderr, error } = remote;
        let runtime = &self.ctx.runtime;
        let opened = if self.attach {
            runtime.attach(&self.uid, &self.id, self.config.clone()).await
        } else {
            runtime.exec(&self.uid, &self.id, self.config.clone()).await
        };
        let status = match opened {
            Ok(session) => carry(session, stdin, resize, stdout, stderr, self.attach).await,
            Err(why) => failure(&why.to_string()),
        };
        error.send(status.to_string().as_bytes()).await;
        error.close().await;
    }
}

async fn carry(
    session: Session,
    stdin: mpsc::Receiver<Bytes>,
    resize: mpsc::Receiver<TerminalSize>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    attach: bool,
) -> Value {
    let Session { stdin: input, stdout: output, stderr: errors, resize: sizes, exit } = session;
    let inputs = async {
        tokio::join!(feed(stdin, input), resizes(resize, sizes));
        std::future::pending::<()>().await
    };
    let outputs = async {
        tokio::join!(pump(output, stdout), pump(errors, stderr));
        if attach {
            // The stream's end is the session's; how the container ended is in its status.
            return Ok(0);
        }
        exit.await.unwrap_or_else(|_| Err(skeg_runtime::Error::Other("the session was lost".into())))
    };
    let result = tokio::select! {
        result = outputs => result,
        () = inputs => unreachable!("inputs never end first"),
    };
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}
        }),
        Err(why) => failure(&why.to_string()),
    }
}

fn failure(why: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: error executing command in container: {why}"),
        "details": {"causes": [{"message": format!("error executing command in container: {why}")}]}
    })
}

async fn feed(mut from: mpsc::Receiver<Bytes>, to: Option<Box<dyn AsyncWrite + Send + Unpin>>) {
    let Some(mut to) = to else { return };
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn resizes(mut from: mpsc::Receiver<TerminalSize>, to: mpsc::Sender<TerminalSize>) {
    while let Some(size) = from.recv().await {
        if to.send(size).await.is_err() {
            return;
        }
    }
}

async fn pump(from: Option<Box<dyn AsyncRead + Send + Unpin>>, to: Option<Sink>) {
    let Some(mut from) = from else {
        if let Some(to) = to {
            to.close().await;
        }
        return;
    };
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if let Some(to) = &to
                    && !to.send(&block[..n]).await
                {
                    break;
                }
            }
        }
    }
    if let Some(to) = to {
        to.close().await;
    }
}

fn size(data: &[u8]) -> Option<TerminalSize> {
    let value: Value = serde_json::from_slice(data).ok()?;
    let field = |name: &str| value.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: field("Width")?, height: field("Height")? })
}

async fn exec_websocket(io: TokioIo<hyper::upgrade::Upgraded>, work: Work) {
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let (messages, mut outbox) = mpsc::channel::<Message>(MESSAGES_AHEAD);
    let writer = async move {
        while let Some(message) = outbox.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
        let _ = sink.flush().await;
    };
    let (stdin_sender, stdin) = mpsc::channel(MESSAGES_AHEAD);
    let (resize_sender, resize) = mpsc::channel(MESSAGES_AHEAD);
    let mut stdin_sender = work.config.stdin.then_some(stdin_sender);
    let reader = async move {
        while let Some(Ok(message)) = source.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text.as_str().to_owned()),
                Message::Close(_) => return,
                _ => continue,
            };
            let Some((channel, rest)) = data.split_first() else { continue };
            match (*channel, rest) {
                (STDIN, rest) if !rest.is_empty() => {
                    if let Some(sender) = &stdin_sender
                        && sender.send(data.slice(1..)).await.is_err()
                    {
                        // The command does not read any more; later input is dropped.
                        stdin_sender = None;
                    }
                }
                (RESIZE, rest) => {
                    if let Some(size) = size(rest) {
                        let _ = resize_sender.send(size).await;
                    }
                }
                // v5: the client closed one channel.
                (CLOSE, [STDIN, ..]) => stdin_sender = None,
                _ => {}
            }
        }
    };
    let channel = |number: u8| Sink::Channel { number, messages: messages.clone() };
    let remote = Remote {
        stdin,
        resize,
        stdout: work.config.stdout.then(|| channel(STDOUT)),
        stderr: work.config.stderr.then(|| channel(STDERR)),
        error: channel(ERROR),
    };
    // An empty message tells the client that the streams are there.
    let hello = if work.config.stdout { STDOUT } else { ERROR };
    let _ = messages.send(Message::Binary(vec![hello].into())).await;
    drop(messages);
    let session = async {
        tokio::join!(writer, work.run(remote));
    };
    tokio::pin!(session, reader);
    tokio::select! {
        () = &mut session => {
            // Closing with input unread would reset the connection and lose what was just said.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, reader).await;
        }
        // The client is gone: dropping the session ends it.
        () = &mut reader => {}
    }
}

async fn exec_spdy(io: TokioIo<hyper::upgrade::Upgraded>, work: Work) {
    let (sender, mut streams) = mpsc::channel::<SpdyStream>(8);
    let config = work.config.clone();
    let session = async move {
        let mut expected: Vec<&str> = vec!["error"];
        expected.extend(config.stdin.then_some("stdin"));
        expected.extend(config.stdout.then_some("stdout"));
        expected.extend(config.stderr.then_some("stderr"));
        expected.extend(config.tty.then_some("resize"));
        let mut found: BTreeMap<String, SpdyStream> = BTreeMap::new();
        let collect = async {
            while !expected.iter().all(|kind| found.contains_key(*kind)) {
                let Some(stream) = streams.recv().await else { return false };
                let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
                found.insert(kind, stream);
            }
            true
        };
        if !tokio::time::timeout(STREAMS_TIMEOUT, collect).await.unwrap_or(false) {
            return;
        }
        let nothing = || mpsc::channel(1).1;
        let (stdin, resize) = (found.remove("stdin"), found.remove("resize"));
        let mut output = |kind: &str| found.remove(kind).map(|stream| Sink::Stream(stream.outgoing));
        let (stdout, stderr) = (output("stdout"), output("stderr"));
        let Some(error) = output("error") else { return };
        let (sizes, resize_receiver) = mpsc::channel(MESSAGES_AHEAD);
        let (stdin, _stdin_side) = match stdin {
            Some(stream) => (stream.incoming, Some(stream.outgoing)),
            None => (nothing(), None),
        };
        let sizes = async move {
            let Some(mut stream) = resize else { return };
            while let Some(data) = stream.incoming.recv().await {
                for line in data.split(|b| *b == b'\n') {
                    if let Some(size) = size(line) {
                        let _ = sizes.send(size).await;
                    }
                }
            }
        };
        let remote = Remote { stdin, resize: resize_receiver, stdout, stderr, error };
        let run = work.run(remote);
        tokio::pin!(run, sizes);
        let mut resizing = true;
        loop {
            tokio::select! {
                () = &mut run => return,
                () = &mut sizes, if resizing => resizing = false,
            }
        }
    };
    let serving = spdy::serve(io, sender);
    tokio::pin!(serving, session);
    tokio::select! {
        _ = &mut serving => {}
        () = &mut session => {
            // What is still queued goes out; the client closes the connection when it has it.
            let _ = tokio::time::timeout(STREAMS_TIMEOUT, serving).await;
        }
    }
}

pub fn port_forward(
    agent: &Arc<Agent>,
    ns: &str,
    pod: &str,
    rest: &[&str],
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let Some(worker) = agent.find(ns, pod).filter(|w| rest.first().is_none_or(|uid| *uid == w.uid)) else {
        return plain(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let forward = Forward { ctx: agent.ctx.clone(), uid: worker.uid.clone() };
    match wanted(&request) {
        Some(Wanted::WebSocket { key, protocols }) => {
            let known = [TUNNEL, V5, V4];
            let Some(protocol) = chosen(&protocols, &known) else { return no_protocol(&protocols, &known) };
            let ports: Vec<u16> = query
                .all("port")
                .chain(query.all("ports"))
                .flat_map(|p| p.split(','))
                .filter_map(|p| p.parse().ok())
                .collect();
            if protocol != TUNNEL && ports.is_empty() {
                return plain(StatusCode::BAD_REQUEST, "query parameter \"port\" is required");
            }
            tokio::spawn(async move {
                let Some(io) = upgraded(request).await else { return };
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
                if protocol == TUNNEL {
                    forward.tunnel(socket).await;
                } else {
                    forward.channels(socket, ports).await;
                }
            });
            switch_websocket(&key, protocol)
        }
        Some(Wanted::Spdy { protocols }) => {
            if chosen(&protocols, &[PORT_FORWARD]).is_none() {
                return no_protocol(&protocols, &[PORT_FORWARD]);
            }
            tokio::spawn(async move {
                if let Some(io) = upgraded(request).await {
                    forward.spdy(io).await;
                }
            });
            switch(&[(UPGRADE.as_str(), "SPDY/3.1"), (STREAM_PROTOCOL, PORT_FORWARD)])
        }
        None => plain(StatusCode::BAD_REQUEST, "Upgrade request required"),
    }
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

struct Forward {
    ctx: Arc<Context>,
    uid: String,
}

impl Forward {
    /// SPDY inside a WebSocket: messages are pieces of one byte stream.
    async fn tunnel(self, socket: Socket) {
        let (near, far) = tokio::io::duplex(TUNNEL_BUFFER);
        let (mut sink, mut source) = socket.split();
        let (mut from, mut to) = tokio::io::split(near);
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Binary(data) => match to.write_all(&data).await {
                        Ok(()) => {}
                        Err(_) => return,
                    },
                    Message::Close(_) => return,
                    _ => {}
                }
            }
        };
        let outward = async {
            let mut block = vec![0; BLOCK];
            while let Ok(n) = from.read(&mut block).await {
                if n == 0 || sink.send(Message::Binary(Bytes::copy_from_slice(&block[..n]))).await.is_err() {
                    break;
                }
            }
            let _ = sink.send(goodbye()).await;
        };
        tokio::select! {
            () = inward => {}
            () = outward => {}
            () = self.spdy(far) => {}
        }
    }

    /// Each connection is a pair of streams: errors, then data, with one request id.
    async fn spdy(&self, io: impl AsyncRead + AsyncWrite + Send + 'static) {
        let (sender, mut streams) = mpsc::channel::<SpdyStream>(8);
        let mut forwards = tokio::task::JoinSet::new();
        let accept = async {
            let mut errors: BTreeMap<String, SpdyStream> = BTreeMap::new();
            while let Some(stream) = streams.recv().await {
                let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
                let request = header("requestid");
                match header("streamtype").as_str() {
                    "error" => {
                        errors.insert(request, stream);
                    }
                    "data" => {
                        let port = header("port").parse::<u16>().unwrap_or_default();
                        let error = errors.remove(&request);
                        let error = error.map(|error| Sink::Stream(error.outgoing));
                        let SpdyStream { incoming, outgoing, .. } = stream;
                        let (ctx, uid) = (self.ctx.clone(), self.uid.clone());
                        forwards.spawn(forward_one(ctx, uid, port, incoming, Sink::Stream(outgoing), error));
                    }
                    _ => {}
                }
                while forwards.try_join_next().is_some() {}
            }
        };
        tokio::select! {
            _ = spdy::serve(io, sender) => {}
            () = accept => {}
        }
    }

    /// Two channels a port: data and errors; the first message on each is the port's number.
    async fn channels(self, socket: Socket, ports: Vec<u16>) {
        let (mut sink, mut source) = socket.split();
        let (messages, mut outbox) = mpsc::channel::<Message>(MESSAGES_AHEAD);
        let mut inputs = Vec::new();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, port) in ports.iter().enumerate().take(64) {
            let (sender, input) = mpsc::channel::<Bytes>(MESSAGES_AHEAD);
            inputs.push(sender);
            let number = (2 * n) as u8;
            let data = Sink::Channel { number, messages: messages.clone() };
            let error = Sink::Channel { number: number + 1, messages: messages.clone() };
            let (ctx, uid, port) = (self.ctx.clone(), self.uid.clone(), *port);
            tasks.spawn(async move {
                data.send(&port.to_le_bytes()).await;
                error.send(&port.to_le_bytes()).await;
                forward_one(ctx, uid, port, input, data, Some(error)).await;
            });
        }
        drop(messages);
        let writer = async {
            while let Some(message) = outbox.recv().await {
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            let _ = sink.send(goodbye()).await;
        };
        let reader = async {
            while let Some(Ok(message)) = source.next().await {
                if let Message::Binary(data) = message
                    && let Some(channel) = data.first()
                    && let Some(input) = inputs.get(usize::from(*channel / 2))
                {
                    let _ = input.send(data.slice(1..)).await;
                }
            }
        };
        tokio::select! {
            () = writer => {}
            () = reader => {}
        }
    }
}

/// One connection: from the client to a port of the Pod, until the Pod's side ends. `error` hears why
/// it did not begin or did not end well.
async fn forward_one(
    ctx: Arc<Context>,
    uid: String,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    output: Sink,
    error: Option<Sink>,
) {
    let end = match ctx.runtime.connect(&uid, port).await {
        Ok(stream) => relay(stream, input, output).await.map_err(|why| why.to_string()),
        Err(why) => {
            output.close().await;
            Err(format!("failed to connect to localhost:{port} inside the Pod: {why}"))
        }
    };
    let Some(error) = error else { return };
    if let Err(why) = end {
        let text = format!("error forwarding port {port} to pod {uid}, uid : {why}");
        error.send(text.as_bytes()).await;
    }
    error.close().await;
}

/// Carries bytes between a client and a connection in the Pod; gives how the Pod's side ended.
async fn relay(
    stream: impl AsyncRead + AsyncWrite,
    mut input: mpsc::Receiver<Bytes>,
    output: Sink,
) -> std::io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    // Channels do not close one by one: what the Pod closed is over, whatever the client still has to say.
    let half_open = matches!(output, Sink::Stream(_));
    let inward = async {
        while let Some(bytes) = input.recv().await {
            to.write_all(&bytes).await?;
        }
        // How the connection ended is told where it is read.
        let _ = to.shutdown().await;
        Ok(())
    };
    let outward = async {
        let mut block = vec![0; BLOCK];
        let end = loop {
            match from.read(&mut block).await {
                Ok(n) if n > 0 && output.send(&block[..n]).await => {}
                end => break end.map(drop),
            }
        };
        output.close().await;
        end
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        end = &mut outward => {
            if end.is_ok() && half_open {
                // The Pod may have said all it has to and still listen: what it then refuses is no error.
                let _: std::io::Result<()> = inward.await;
            }
            end
        }
        sent = &mut inward => outward.await.and(sent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn how_the_pods_side_of_a_connection_ends_is_known() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        for reset in [false, true] {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut pod, _) = listener.accept().await.unwrap();
            let (input, receiver) = mpsc::channel(1);
            let (messages, mut outbox) = mpsc::channel(4);
            let relayed = tokio::spawn(relay(stream, receiver, Sink::Channel { number: 4, messages }));
            input.send(Bytes::from_static(b"ask")).await.unwrap();
            let mut asked = [0; 3];
            pod.read_exact(&mut asked).await.unwrap();
            pod.write_all(b"part").await.unwrap();
            assert_eq!(outbox.recv().await, Some(Message::Binary(Bytes::from_static(b"\x04part"))));
            if reset {
                // Unread bytes make a reset of a close.
                input.send(Bytes::from_static(b"more")).await.unwrap();
                pod.peek(&mut asked).await.unwrap();
            }
            drop(pod);
            let end = relayed.await.unwrap().map_err(|why| why.kind());
            assert_eq!(end, if reset { Err(std::io::ErrorKind::ConnectionReset) } else { Ok(()) });
        }
    }
}
