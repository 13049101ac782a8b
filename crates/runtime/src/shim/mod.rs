//! The supervisor of one Pod: a small single-threaded process that owns the Pod's namespaces,
//! its containers' streams, log files and exit codes, and answers agents over a socket.
//! Whatever happens to agents, it works on; it ends when its sandbox is removed.

mod attach;
mod connections;
mod containers;
mod create;
mod exec;
mod namespaces;
mod poller;
mod start;
mod streams;

use crate::cgroup::Cgroups;
use crate::protocol::{Failure, FailureKind, Reply};
use crate::state::{Layout, SandboxRecord};
use connections::Connection;
use containers::Container;
use poller::{Poller, Source};
pub(crate) use start::with_supervisor;
use start::{report, set_up};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

type Step<T = ()> = Result<T, Failure>;

const CHUNK_LEN: usize = 16 * 1024;

fn other(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Other, text)
}

/// A call to be answered later.
type Pending = (u64, u64);

/// A registered descriptor.
struct Watched {
    fd: OwnedFd,
    token: u64,
}

struct Shim {
    layout: Layout,
    uid: String,
    record: SandboxRecord,
    cgroups: Cgroups,
    poller: Poller,
    listener: UnixListener,
    children: OwnedFd,
    host_mounts: OwnedFd,
    host_pids: OwnedFd,
    pod_pids: Option<OwnedFd>,
    init: Option<i32>,
    shm: Option<OwnedFd>,
    containers: BTreeMap<String, Container>,
    /// Running execs: pid to connection.
    execs: BTreeMap<i32, u64>,
    connections: BTreeMap<u64, Connection>,
    shutdown: Option<Pending>,
    buffer: Box<[u8; CHUNK_LEN]>,
}

/// The arguments of the supervisor program, as the agent passes them.
pub fn arguments(layout: &Layout, uid: &str) -> Vec<OsString> {
    vec![
        "skeg-shim".into(),
        layout.id.clone().into(),
        uid.into(),
        layout.run_dir.clone().into(),
        layout.data_dir.clone().into(),
    ]
}

/// The supervisor program. Standard input is the sandbox's locked file, standard output takes the
/// word that it is ready, or why not.
pub fn main(args: &[OsString]) -> i32 {
    let [id, uid, run_dir, data_dir] = args else { return 2 };
    let text = |s: &OsString| s.to_string_lossy().into_owned();
    let layout = Layout { id: text(id), run_dir: PathBuf::from(run_dir), data_dir: PathBuf::from(data_dir) };
    match set_up(layout, text(uid)) {
        Ok(None) => 0,
        Ok(Some(shim)) => shim.run(),
        Err(failure) => {
            report(failure.text.as_bytes());
            1
        }
    }
}

impl Shim {
    fn run(mut self) -> i32 {
        loop {
            for (token, events) in self.poller.wait() {
                // An earlier event of this batch may have removed the source.
                let Some(source) = self.poller.sources.get(&token).cloned() else { continue };
                match source {
                    Source::Listener => self.accept(),
                    Source::Children => self.reap(),
                    Source::Connection => self.on_connection(token, events),
                    Source::Notes(id) => self.on_notes(&id),
                    Source::ExecNotes(connection) => self.on_exec_notes(connection),
                    Source::Output(id, stream) => self.on_output(&id, stream),
                    Source::Stdin(id) => self.write_stdin(&id),
                    Source::AttachIn(connection) => self.on_attach_in(connection),
                    Source::AttachOut(connection, stream) => self.on_attach_out(connection, stream),
                }
            }
            if let Some((connection, seq)) = self.shutdown
                && self.containers.is_empty()
            {
                // The name goes first: who can connect is served.
                let _ = fs::remove_file(self.layout.socket(&self.uid));
                self.reply(connection, seq, Ok(Reply::Done));
                return 0;
            }
            if self.init == Some(0) {
                // Without the first process of the PID namespace nothing can run in it again.
                return 1;
            }
        }
    }
}
