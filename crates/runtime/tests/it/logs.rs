//! Who bounds a container's log: the supervisor, also while no agent lives.

use super::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MIB: u64 = 1 << 20;

/// Waits until the process ended.
async fn wait_pid(pid: i32) {
    // SAFETY: no memory is involved; the new descriptor is owned by nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) };
    let ended = tokio::task::spawn_blocking(move || {
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, 60_000) }
    });
    assert_eq!(ended.await.unwrap(), 1, "it ends in time");
}

#[tokio::test]
async fn logs_are_bounded_without_an_agent() {
    let mut host = Host::new("logs").await;
    host.sandbox("u1", |_| ()).await;
    // Lines of 100 bytes with a number each: 110 MiB with the time stamps.
    let script = r#"while test ! -e /go; do sleep 0.01; done
        awk 'BEGIN { for (i = 1; i <= 800000; i++) printf "%099d\n", i }'; echo done"#;
    let mut config = host.container("c1", &["sh", "-c", script]);
    config.log_rotation = Some(LogRotation { bytes_max: 10 * MIB, files_max: 5 });
    let pid = host.run("u1", config).await.pid.unwrap();
    // The agent is gone: another instance's takes its place.
    let idle = host.idle().await;
    host.runtime = idle.clone();
    std::fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    wait_pid(pid).await;
    host.restart().await;
    host.wait_exit("u1", "c1").await;

    let path = host.path("logs/c1.log");
    let mut files = rotated_logs(&path).unwrap();
    files.push(path);
    assert_eq!(files.len(), 5);
    let sizes: Vec<u64> = files.iter().map(|f| f.metadata().unwrap().len()).collect();
    assert!(sizes.iter().all(|s| *s <= 10 * MIB), "{sizes:?}");
    assert!(sizes[..4].iter().all(|s| *s > 9 * MIB), "{sizes:?}");
    assert_eq!(std::fs::read_dir(host.path("logs")).unwrap().count(), 5);
    // What is kept is the end, whole and in order.
    let text: String = files.iter().map(|f| log_text(f)).collect();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"done"));
    let numbers: Vec<u64> = lines[..lines.len() - 1].iter().map(|l| l.parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&800_000));
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1));
    idle.purge().await.unwrap();
    host.finish().await;
}

/// The rest of a log after the file was renamed, which agents once did.
#[tokio::test]
async fn an_older_agent_rotates_itself() {
    let host = Host::new("oldlogs").await;
    host.sandbox("u1", |_| ()).await;
    let mut config = serde_json::to_value(
        host.container("c1", &["sh", "-c", "echo a; while test ! -e /go; do sleep 0.01; done; echo b"]),
    )
    .unwrap();
    config.as_object_mut().unwrap().remove("log_rotation").unwrap();
    let mut stream = tokio::net::UnixStream::connect(host.path("run/u1.sock")).await.unwrap();
    let requests = [
        serde_json::json!({"Hello": {"version": 1}}),
        serde_json::json!({"Create": {"config": config}}),
        serde_json::json!({"Start": {"id": "c1"}}),
        serde_json::json!({"ReopenLog": {"id": "c1"}}),
    ];
    for (seq, request) in requests.iter().enumerate() {
        if seq == 3 {
            wait_log(&host, "c1", "a\n").await;
            std::fs::rename(host.path("logs/c1.log"), host.path("logs/c1.log.old")).unwrap();
        }
        let frame = serde_json::to_vec(&serde_json::json!({"seq": seq, "request": request})).unwrap();
        stream.write_u32(frame.len() as u32).await.unwrap();
        stream.write_all(&frame).await.unwrap();
        // News come between; the answer is the one with this number.
        loop {
            let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
            stream.read_exact(&mut answer).await.unwrap();
            let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            if answer["Reply"]["seq"] == seq {
                assert!(answer["Reply"]["result"]["Ok"] != serde_json::Value::Null, "{answer}");
                break;
            }
        }
    }
    let pid = host.wait("u1", |s| s.containers.iter().any(|c| c.pid.is_some())).await.containers[0].pid;
    std::fs::write(format!("/proc/{}/root/go", pid.unwrap()), "").unwrap();
    host.wait_exit("u1", "c1").await;
    assert_eq!(log_text(&host.path("logs/c1.log.old")), "a\n");
    assert_eq!(host.log("c1"), "b\n");
    host.finish().await;
}
