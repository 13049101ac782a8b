//! An answer to a create follows a sync of the store's log: seen from outside, by the system calls
//! of the server.

use crate::http::{Connection, Endpoint, request};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub const CASES: &[Case] = &[Case { name: "each_create_is_synced_before_its_answer", run: each_is_synced }];

const CREATES: usize = 200;
/// The calls that sync a file, and those that move bytes over a socket.
const CALLS: &str = "trace=fdatasync,read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg";

fn each_is_synced(scope: &Scope<'_>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let trace = scope.cluster.scratch().join("strace");
    let endpoint = Endpoint::from_kubeconfig(&scope.cluster.kubeconfig())?;
    runtime.block_on(async {
        let mut connection = endpoint.connect().await?;
        let maps = "/api/v1/namespaces/default/configmaps";
        let list = request("GET", &format!("{maps}?limit=1"), "", b"");
        // What the handshake leaves to send has gone before the trace begins.
        answered(&mut connection, &list, 200).await?;
        let socket = format!("->127.0.0.1:{}]>", connection.port()?);

        let strace = Strace::attach(scope.cluster.server_pid()?, &trace)?;
        for n in 0..CREATES {
            let map =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("synced-{n}")}});
            answered(&mut connection, &request("POST", maps, "", map.to_string().as_bytes()), 201).await?;
        }
        let creates = strace.end(&socket, &trace)?;
        ensure!(creates.len() == CREATES, "{} answers were seen, of {CREATES} creates", creates.len());
        let unsynced = creates.iter().filter(|synced| !**synced).count();
        ensure!(unsynced == 0, "{unsynced} of {CREATES} creates were answered before a sync");

        // The control: reads sync nothing, and the trace must say so of their answers. This is
        // what a store that syncs nothing would look like.
        let strace = Strace::attach(scope.cluster.server_pid()?, &trace)?;
        for _ in 0..CREATES {
            answered(&mut connection, &list, 200).await?;
        }
        let reads = strace.end(&socket, &trace)?;
        ensure!(reads.len() == CREATES, "{} answers were seen, of {CREATES} reads", reads.len());
        ensure!(reads.contains(&false), "answers to reads count as synced: the check sees nothing");
        Ok(())
    })
}

async fn answered(connection: &mut Connection, request: &[u8], expected: u16) -> Result<()> {
    let (code, body) = connection.send(request).await?;
    ensure!(code == expected, "{code}: {}", String::from_utf8_lossy(&body));
    Ok(())
}

/// A tracer that is attached to every thread of the server.
struct Strace(Child);

impl Strace {
    fn attach(pid: i32, to: &Path) -> Result<Self> {
        let mut child = Command::new("strace")
            .args(["-f", "-yy", "-s", "0", "-e", CALLS, "-e", "signal=none", "-p", &pid.to_string(), "-o"])
            .arg(to)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("strace: install Debian's package")?;
        let mut said = BufReader::new(child.stderr.take().context("piped")?);
        let strace = Strace(child);
        let mut line = String::new();
        while !line.contains(" attached") {
            line.clear();
            ensure!(said.read_line(&mut line)? > 0, "strace ended without attaching to {pid}");
        }
        // It may say more, which nobody needs to know: reading on keeps it from waiting.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(strace)
    }

    /// Detaches, and tells of each answer on a socket whether it followed a sync.
    fn end(mut self, socket: &str, trace: &Path) -> Result<Vec<bool>> {
        self.stop()?;
        Ok(answers(&std::fs::read_to_string(trace)?, socket))
    }

    fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id())?;
        // SAFETY: a plain kill(2) of the tracer that this test started and has not waited for.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.stop();
        }
    }
}

/// Of each answer on the socket: whether a sync of the store's log began after the request had
/// been read, and was done before the answer was written. A call that lasts has two lines, of its
/// begin and its end; a thread that is told something by another one comes after it in a trace.
fn answers(trace: &str, socket: &str) -> Vec<bool> {
    let mut answers = Vec::new();
    // Threads that read from the socket, or sync, and have not come to the end of it.
    let (mut reading, mut syncing) = (BTreeSet::new(), BTreeSet::new());
    let (mut asked, mut synced) = (false, false);
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ').map(|(thread, call)| (thread, call.trim_start()))
        else {
            continue;
        };
        let begins = !call.starts_with("<... ");
        let ended = !call.ends_with("<unfinished ...>");
        let name = call.trim_start_matches("<... ").split(['(', ' ']).next().unwrap_or_default();
        let result = call.rsplit_once(" = ").filter(|_| ended).map(|(_, result)| result);
        match name {
            "fdatasync" => {
                if begins && asked && call.contains("store.db-wal>") {
                    syncing.insert(thread);
                }
                if ended {
                    synced |= syncing.remove(thread) && result == Some("0");
                }
            }
            "read" | "readv" | "recvfrom" | "recvmsg" => {
                if begins && call.contains(socket) {
                    reading.insert(thread);
                }
                let read = |result: &str| result.parse::<u64>().is_ok_and(|bytes| bytes > 0);
                if ended && reading.remove(thread) && result.is_some_and(read) {
                    // What is under way already may have begun before the write was there.
                    syncing.clear();
                    (asked, synced) = (true, false);
                }
            }
            "write" | "writev" | "sendto" | "sendmsg" if begins && asked && call.contains(socket) => {
                answers.push(synced);
                asked = false;
            }
            _ => {}
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::answers;

    const SOCKET: &str = "->127.0.0.1:50000]>";
    const ASK: &str =
        "10 recvfrom(9<TCP:[127.0.0.1:6443->127.0.0.1:50000]>, \"\"..., 4096, 0, NULL, NULL) = 300";
    const ANSWER: &str =
        "10 sendto(9<TCP:[127.0.0.1:6443->127.0.0.1:50000]>, \"\"..., 500, MSG_NOSIGNAL, NULL, 0) = 500";
    const SYNC: &str = "11 fdatasync(5</d/store.db-wal>) = 0";

    #[track_caller]
    fn check(lines: &[&str], expected: &[bool]) {
        assert_eq!(answers(&lines.join("\n"), SOCKET), expected);
    }

    #[test]
    fn an_answer_counts_only_with_a_whole_sync_of_its_own() {
        check(&[ASK, SYNC, ANSWER, ASK, SYNC, ANSWER], &[true, true]);
        // A store that syncs nothing, or is late, or does it once for two that came one by one.
        check(&[ASK, ANSWER], &[false]);
        check(&[ASK, ANSWER, SYNC], &[false]);
        check(&[ASK, SYNC, ANSWER, ASK, ANSWER], &[true, false]);
        check(&[SYNC, ASK, ANSWER], &[false]);
        // Another file; a sync that failed.
        check(&[ASK, "11 fdatasync(6</d/image>) = 0", ANSWER], &[false]);
        check(&[ASK, "11 fdatasync(5</d/store.db-wal>) = -1 EIO (Input/output error)", ANSWER], &[false]);
        // Reads without bytes ask for nothing; other sockets do not count.
        check(
            &[
                "10 recvfrom(9<TCP:[127.0.0.1:6443->127.0.0.1:50000]>, 0x1, 4096, 0, NULL, NULL) = -1 EAGAIN (x)",
                ANSWER,
            ],
            &[],
        );
        check(&[ASK, SYNC, &ANSWER.replace("50000", "50001"), ANSWER], &[true]);
    }

    #[test]
    fn calls_in_two_lines_are_put_together() {
        let (begin, end) =
            ("11 fdatasync(5</d/store.db-wal> <unfinished ...>", "11 <... fdatasync resumed>) = 0");
        check(&[ASK, begin, end, ANSWER], &[true]);
        check(&[ASK, begin, ANSWER, end], &[false]);
        check(&[begin, ASK, end, ANSWER], &[false]);
        let (asks, asked) = (
            "10 recvfrom(9<TCP:[127.0.0.1:6443->127.0.0.1:50000]>,  <unfinished ...>",
            "10 <... recvfrom resumed>\"\"..., 4096, 0, NULL, NULL) = 300",
        );
        check(&[asks, begin, asked, end, ANSWER], &[false]);
        check(&[asks, asked, begin, end, ANSWER], &[true]);
        check(
            &[
                ASK,
                begin,
                end,
                &ANSWER.replace(" = 500", " <unfinished ...>"),
                "10 <... sendto resumed>) = 500",
            ],
            &[true],
        );
    }
}
