//! Streams of exec and attach sessions: pipes and terminals as asynchronous readers and writers,
//! and the task that follows a session to its end.

use crate::protocol::{Message, Reply, Request};
use crate::types::{ExecConfig, TerminalSize};
use crate::wire::Wire;
use crate::{Error, Result, Session, process, sys};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Resizes that wait for the terminal.
const RESIZES_MAX: usize = 8;

/// The output of a command: ends with the stream, or, once the command ended, when nothing is
/// left in it. A process that the command left behind cannot hold the session open.
pub struct OutputReader {
    fd: Arc<AsyncFd<OwnedFd>>,
    ended: CancellationToken,
    wait_end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl OutputReader {
    pub fn new(fd: OwnedFd, ended: &CancellationToken) -> io::Result<OutputReader> {
        Ok(Self::shared(register(fd, Interest::READABLE)?, ended))
    }

    fn shared(fd: Arc<AsyncFd<OwnedFd>>, ended: &CancellationToken) -> OutputReader {
        OutputReader { fd, ended: ended.clone(), wait_end: Box::pin(ended.clone().cancelled_owned()) }
    }
}

/// Hands a descriptor to the runtime's event loop.
fn register(fd: OwnedFd, interest: Interest) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    sys::set_nonblocking(&fd)?;
    // SAFETY: the descriptor is owned by the AsyncFd, which never gives it away or replaces it.
    Ok(Arc::new(unsafe { AsyncFd::register_with_interest(fd, interest) }?))
}

/// Reads; the end of a terminal is an error of its own.
fn read_some(fd: &OwnedFd, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
    match sys::read(fd, buffer.initialize_unfilled()) {
        Ok(n) => {
            buffer.advance(n);
            Ok(())
        }
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(()),
        Err(e) => Err(e),
    }
}

impl AsyncRead for OutputReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended.is_cancelled() {
            let _ = this.wait_end.as_mut().poll(cx);
        }
        loop {
            if this.ended.is_cancelled() {
                return Poll::Ready(match read_some(this.fd.get_ref(), buffer) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    other => other,
                });
            }
            let mut guard = ready!(this.fd.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| read_some(fd.get_ref(), buffer)) {
                return Poll::Ready(result);
            }
        }
    }
}

/// Input of a command. Its shutdown or drop is the input's end, except for a terminal.
pub struct InputWriter(Option<Arc<AsyncFd<OwnedFd>>>);

impl InputWriter {
    pub fn new(fd: OwnedFd) -> io::Result<InputWriter> {
        Ok(InputWriter(Some(register(fd, Interest::WRITABLE)?)))
    }
}

impl AsyncWrite for InputWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(fd) = &self.0 else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        loop {
            let mut guard = ready!(fd.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| sys::write(fd.get_ref(), data)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}

/// The two ends of the pipes of a session.
#[derive(Default)]
struct Pipes {
    ours: [Option<OwnedFd>; 3],
    theirs: Vec<OwnedFd>,
}

fn pipes(config: &ExecConfig) -> io::Result<Pipes> {
    let mut pipes = Pipes::default();
    for (stream, wanted) in [config.stdin, config.stdout, config.stderr].into_iter().enumerate() {
        if wanted {
            let (read, write) = sys::pipe()?;
            let (ours, theirs) = if stream == 0 { (write, read) } else { (read, write) };
            pipes.ours[stream] = Some(ours);
            pipes.theirs.push(theirs);
        }
    }
    Ok(pipes)
}

fn failed(source: io::Error) -> Error {
    Error::Io { what: "session".to_owned(), source }
}

/// Sends the request that opens the session and waits for its answer.
async fn begin(wire: &mut Wire, request: Request, fds: &[OwnedFd]) -> Result<()> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    wire.send(1, request, &fds).await.map_err(failed)?;
    loop {
        match wire.next().await.map_err(failed)? {
            Some(Message::Reply { result: Ok(Reply::Session), .. }) => return Ok(()),
            Some(Message::Reply { result: Err(failure), .. }) => return Err(failure.into()),
            // Until its request is read the connection is like any other, and hears the news.
            Some(_) => {}
            None => return Err(Error::Other("the supervisor hung up".to_owned())),
        }
    }
}

/// Runs a command whose output, both streams, goes into `output`; returns the session.
pub async fn exec_into(mut wire: Wire, id: &str, args: Vec<String>, output: OwnedFd) -> Result<Wire> {
    let config = ExecConfig { args, tty: false, stdin: false, stdout: true, stderr: true };
    let second = output.try_clone().map_err(failed)?;
    begin(&mut wire, Request::Exec { id: id.to_owned(), config }, &[output, second]).await?;
    Ok(wire)
}

/// Waits for the end of a session.
pub async fn exit_code(wire: &mut Wire) -> Result<i32> {
    loop {
        match wire.next().await.map_err(failed)? {
            Some(Message::Exited { code }) => return Ok(code),
            Some(_) => {}
            None => return Err(Error::Other("the supervisor hung up".to_owned())),
        }
    }
}

pub async fn exec(mut wire: Wire, id: &str, config: ExecConfig) -> Result<Session> {
    let ended = CancellationToken::new();
    let tty = config.tty;
    let with_pipes = if tty {
        ExecConfig { stdin: false, stdout: false, stderr: false, ..config.clone() }
    } else {
        config.clone()
    };
    let Pipes { ours, theirs } = pipes(&with_pipes).map_err(failed)?;
    begin(&mut wire, Request::Exec { id: id.to_owned(), config: config.clone() }, &theirs).await?;
    drop(theirs);
    if !tty {
        return session(wire, ours, &ended, None);
    }
    let terminal = wire.take_fd().ok_or_else(|| Error::Other("the terminal did not come".to_owned()))?;
    let terminal = register(terminal, Interest::READABLE | Interest::WRITABLE).map_err(failed)?;
    let mut session = session(wire, [None, None, None], &ended, Some(terminal.clone()))?;
    if config.stdin {
        session.stdin = Some(Box::new(InputWriter(Some(terminal.clone()))));
    }
    if config.stdout {
        session.stdout = Some(Box::new(OutputReader::shared(terminal, &ended)));
    }
    Ok(session)
}

pub async fn attach(mut wire: Wire, id: &str, config: ExecConfig) -> Result<Session> {
    let ended = CancellationToken::new();
    let Pipes { ours, theirs } = pipes(&config).map_err(failed)?;
    begin(&mut wire, Request::Attach { id: id.to_owned(), config }, &theirs).await?;
    drop(theirs);
    session(wire, ours, &ended, None)
}

/// Follows a session that began. With a terminal of its own it resizes that, else it passes
/// resizes on.
fn session(
    mut wire: Wire,
    ours: [Option<OwnedFd>; 3],
    ended: &CancellationToken,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
) -> Result<Session> {
    let [stdin, stdout, stderr] = ours;
    let reader = |fd: Option<OwnedFd>| -> Result<Option<Box<dyn AsyncRead + Send + Unpin>>> {
        fd.map(|fd| OutputReader::new(fd, ended).map(|r| Box::new(r) as _)).transpose().map_err(failed)
    };
    let (resize, mut resizes) = mpsc::channel::<TerminalSize>(RESIZES_MAX);
    let (mut exited, exit) = oneshot::channel();
    let session = Session {
        stdin: stdin
            .map(|fd| InputWriter::new(fd).map(|w| Box::new(w) as Box<dyn AsyncWrite + Send + Unpin>))
            .transpose()
            .map_err(failed)?,
        stdout: reader(stdout)?,
        stderr: reader(stderr)?,
        resize,
        exit,
    };
    let ended = ended.clone();
    tokio::spawn(async move {
        let mut open = true;
        let result = loop {
            tokio::select! {
                message = wire.next() => match message {
                    Ok(Some(Message::Exited { code })) => break Ok(code),
                    Ok(Some(_)) => {}
                    Ok(None) => break Err(Error::Other("the supervisor hung up".to_owned())),
                    Err(e) => break Err(failed(e)),
                },
                // Nobody waits for the end any more: hanging up ends the command.
                () = exited.closed() => return,
                size = resizes.recv(), if open => match (size, &terminal) {
                    (None, _) => open = false,
                    // A terminal that is gone needs no size.
                    (Some(size), Some(terminal)) => drop(process::resize(terminal.get_ref(), size)),
                    (Some(size), None) => {
                        if let Err(e) = wire.send(2, Request::Resize { size }, &[]).await {
                            break Err(failed(e));
                        }
                    }
                },
            }
        };
        ended.cancel();
        let _ = exited.send(result);
    });
    Ok(session)
}
