//! Real containers on this host: needs root. Each test has an instance of its own and leaves
//! nothing behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod host;
mod isolation;
mod logs;

use host::*;
use skeg_runtime::*;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn failed_and_killed_tests_leave_no_cgroup() {
    let id = std::sync::Mutex::new(String::new());
    let failed = std::thread::scope(|scope| {
        let test = async {
            let host = Host::new("fails").await;
            host.id.clone_into(&mut id.lock().unwrap());
            host.sandbox("u1", |_| ()).await;
            host.run("u1", host.container("c1", &["sleep", "1000"])).await;
            let _idle = host.idle().await;
            assert!(host.id.is_empty(), "this failure is part of the test");
        };
        let run = move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
        };
        scope.spawn(run).join()
    });
    assert!(failed.is_err());
    let id = id.into_inner().unwrap();
    for name in [format!("skeg-{id}"), format!("skeg-{id}-idle")] {
        assert_eq!(walk_cgroups(&name), Vec::<PathBuf>::new());
    }

    let mut dead = std::process::Command::new("/bin/true").spawn().unwrap();
    dead.wait().unwrap();
    let (dead, alive) = (format!("skeg-t{}x", dead.id()), format!("skeg-t{}sweep", std::process::id()));
    let root = cgroup_roots().into_iter().rfind(|root| root.join("cgroup.procs").exists()).unwrap();
    for name in [&dead, &alive] {
        std::fs::create_dir_all(root.join(name).join("podu1/c1")).unwrap();
    }
    sweep();
    assert_eq!(walk_cgroups(&dead), Vec::<PathBuf>::new());
    assert_eq!(walk_cgroups(&alive), [root.join(&alive)], "its process lives");
    remove_cgroups(|name| name == alive);
    assert!(walk_cgroups(&alive).is_empty());
}

#[tokio::test]
async fn exit_codes_and_logs() {
    let host = Host::new("exit").await;
    let status = host.sandbox("u1", |_| ()).await;
    assert!(status.ready);
    let (status, log) = host.script("u1", "c1", "echo out; echo err >&2; printf partial; exit 3").await;
    assert_eq!((status.exit_code, status.signal, status.oom_killed), (Some(3), None, false));
    let lines = std::fs::read_to_string(host.path("logs/c1.log")).unwrap();
    assert!(lines.contains(" stderr F err\n"), "{lines}");
    assert!(lines.contains(" stdout F out\n"), "{lines}");
    assert!(log.contains("partial"), "{log}");

    host.run("u1", host.container("c2", &["sleep", "1000"])).await;
    host.runtime.signal_container("u1", "c2", libc::SIGKILL).await.unwrap();
    let status = host.wait_exit("u1", "c2").await;
    assert_eq!((status.exit_code, status.signal), (Some(137), Some(9)));

    host.run(
        "u1",
        host.container("c3", &["sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"]),
    )
    .await;
    wait_log(&host, "c3", "up").await;
    host.runtime.signal_container("u1", "c3", libc::SIGTERM).await.unwrap();
    assert_eq!(host.wait_exit("u1", "c3").await.exit_code, Some(7));

    host.runtime.remove_container("u1", "c1").await.unwrap();
    host.runtime.remove_container("u1", "c1").await.unwrap();
    assert_eq!(host.runtime.sandbox("u1").await.unwrap().containers.len(), 2);
    assert!(!host.path("data/sandboxes/u1/containers/c1").exists());
    host.finish().await;
}

#[tokio::test]
async fn what_cannot_start() {
    let host = Host::new("cannot").await;
    host.sandbox("u1", |_| ()).await;
    for (id, program, text) in [
        ("c1", "nope", r#"exec: "nope": executable file not found in $PATH"#),
        ("c2", "/nope", r#"exec: "/nope": stat /nope: no such file or directory"#),
        ("c3", "/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
        ("c4", "/etc", r#"exec: "/etc": is a directory"#),
    ] {
        host.runtime.create_container("u1", host.container(id, &[program])).await.unwrap();
        let error = host.runtime.start_container("u1", id).await.unwrap_err();
        assert!(matches!(&error, Error::Start(t) if t == text), "{error}");
        let status = host.wait_exit("u1", id).await;
        assert_eq!((status.exit_code, status.message.as_str()), (Some(128), text));
    }
    let mut config = host.container("c5", &["true"]);
    config.user.must_not_be_root = true;
    let error = host.runtime.create_container("u1", config).await.unwrap_err();
    assert!(
        matches!(&error, Error::Config(t) if t == "container has runAsNonRoot and image will run as root"),
        "{error}"
    );
    let mut config = host.container("c6", &["true"]);
    config.mounts.push(Mount {
        destination: "/x".into(),
        source: MountSource::Bind("/no/such/source".into()),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
    });
    let error = host.runtime.create_container("u1", config).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/source"), "{error}");
    assert_eq!(host.runtime.sandbox("u1").await.unwrap().containers.len(), 4);
    assert!(!host.path("data/sandboxes/u1/containers/c6").exists());
    host.finish().await;
}

#[tokio::test]
async fn confinement() {
    let host = Host::new("conf").await;
    host.sandbox("u1", |_| ()).await;
    let (_, log) = host.script("u1", "c1", "cat /proc/self/status; id; hostname").await;
    for wanted in ["Seccomp:\t2", "NoNewPrivs:\t0", "uid=0(root) gid=0(root)", "pod-host"] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert!(log.contains(&format!("{set}:\t{DEFAULT_CAPABILITY_BITS}")), "{log}");
    }
    assert!(log.contains("CapAmb:\t0000000000000000") && log.contains("CapInh:\t0000000000000000"), "{log}");

    let (_, log) = host
        .script(
            "u1",
            "c2",
            "cat /proc/keys /proc/kcore 2>/dev/null | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | wc -w; \
             echo x > /proc/sys/kernel/hostname || echo ro-proc; mount -t tmpfs x /tmp || echo no-mount; \
             echo > /sys/x || echo ro-sys; ls -l /proc/self/fd | wc -l; ls /dev; ls /proc | grep -c '^[0-9]'",
        )
        .await;
    for wanted in ["ro-proc", "no-mount", "ro-sys", "null", "ptmx", "pts", "shm", "mqueue", "urandom"] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    let first: Vec<&str> = log.lines().filter(|l| l.chars().all(|c| c.is_ascii_digit())).collect();
    assert_eq!(&first[..2], ["0", "0"], "{log}");

    let mut config = host.container("c3", &["sh", "-c", "id; grep -E 'NoNewPrivs|CapEff|Seccomp:' /proc/self/status; echo hi > /x || echo ro; echo out > /dev/stdout; echo $HOME $HOSTNAME"]);
    config.user = User {
        image_user: "web".into(),
        merge_image_groups: true,
        supplemental_groups: vec![77],
        ..User::default()
    };
    config.security.no_new_privileges = true;
    config.security.read_only_root = true;
    host.run("u1", config).await;
    let ended = host.wait_exit("u1", "c3").await;
    assert_eq!(ended.exit_code, Some(0));
    let who = ended.identity.unwrap();
    assert_eq!((who.uid, who.gid, who.groups), (33, 33, vec![77, 50, 33]));
    let log = host.log("c3");
    for wanted in [
        "uid=33(web) gid=33(www) groups=",
        "77",
        "50(extra)",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "Seccomp:\t2",
        "ro\n",
        "out\n",
        "/var/www pod-host",
    ] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }

    let mut config = host.container("c4", &["sh", "-c", "grep -E 'Seccomp:|CapEff' /proc/self/status; mount -t tmpfs x /tmp && echo mounted; ls /dev/vda && echo device"]);
    config.security.privileged = true;
    host.run("u1", config).await;
    assert_eq!(host.wait_exit("u1", "c4").await.exit_code.map(|_| ()), Some(()));
    let log = host.log("c4");
    assert!(log.contains("Seccomp:\t0") && log.contains("mounted"), "{log}");

    // `procMount: Unmasked` shows what is hidden else, and nothing more.
    let script = "mount -t tmpfs x /tmp 2>/dev/null || echo no-mount; grep -c ' /proc/' /proc/mounts; true";
    let mut config = host.container("c5", &["sh", "-c", script]);
    config.security.unmasked_proc = true;
    host.run("u1", config).await;
    host.wait_exit("u1", "c5").await;
    assert_eq!(host.log("c5"), "no-mount\n0\n");
    host.finish().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_should() {
    let host = Host::new("share").await;
    let volume = host.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(host.path("hosts"), "127.0.0.1 localhost\n").unwrap();
    host.sandbox("u1", |_| ()).await;
    let with_volume = |id: &str, script: &str| {
        let mut config = host.container(id, &["sh", "-c", script]);
        for (source, destination, read_only) in
            [(&volume, "/data/deep", false), (&host.path("hosts"), "/etc/hosts", true)]
        {
            config.mounts.push(Mount {
                destination: destination.into(),
                source: MountSource::Bind(source.clone()),
                read_only,
                recursive_read_only: false,
                propagation: Propagation::Private,
            });
        }
        config
    };
    host.run(
        "u1",
        with_volume(
            "a",
            "echo x > /data/deep/f; echo x > /dev/shm/s; echo x > /own; echo up; nc -l -p 8080 -e echo hello",
        ),
    )
    .await;
    wait_log(&host, "a", "up").await;
    host.run("u1", with_volume("b", "cat /data/deep/f /dev/shm/s; ls /own || echo separate; hostname; cat /etc/hosts; \
        echo >> /etc/hosts || echo read-only; ps | wc -l; \
        while ! grep -q 1F90 /proc/net/tcp /proc/net/tcp6; do sleep 0.01; done; readlink /proc/self/ns/ipc; echo | nc 127.0.0.1 8080")).await;
    host.wait_exit("u1", "b").await;
    let log = host.log("b");
    for wanted in ["x\nx\n", "separate", "pod-host", "127.0.0.1 localhost", "read-only", "hello"] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    assert_eq!(std::fs::read_to_string(volume.join("f")).unwrap(), "x\n");
    host.finish().await;
}

/// Others may change what a volume holds between the look at a path and its mount.
#[tokio::test]
async fn a_path_beneath_a_volume_stays_in_it() {
    let host = Host::new("beneath").await;
    let volume = host.path("volume");
    std::fs::create_dir_all(volume.join("in/deep")).unwrap();
    std::fs::write(volume.join("in/deep/f"), "inside\n").unwrap();
    std::os::unix::fs::symlink("in", volume.join("near")).unwrap();
    std::os::unix::fs::symlink("/", volume.join("out")).unwrap();
    host.sandbox("u1", |_| ()).await;
    let with = |id: &str, path: &str| {
        let mut config = host.container(id, &["cat", "/data/f"]);
        config.mounts.push(Mount {
            destination: "/data".into(),
            source: MountSource::BindBeneath { root: volume.clone(), path: path.into() },
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
        });
        config
    };
    host.run("u1", with("a", "near/deep")).await;
    host.wait_exit("u1", "a").await;
    assert_eq!(host.log("a"), "inside\n");
    for (id, path) in [("b", "out"), ("c", "out/etc"), ("d", "in/../../volume")] {
        let error = host.runtime.create_container("u1", with(id, path)).await.unwrap_err();
        assert!(error.to_string().contains(&format!("failed to mount {path} of ")), "{error}");
    }
    host.finish().await;
}

/// The kernel gives a process number out again; its end is the new container's, not the old one's.
#[tokio::test]
async fn a_process_number_used_again_is_the_new_containers() {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    const TRIES: usize = 300;
    let host = Host::new("reuse").await;
    host.sandbox("u1", |_| ()).await;
    let first = host.run("u1", host.container("m", &["cat", "/etc/passwd"])).await;
    let number = first.pid.expect("a running container has a process");
    host.wait_exit("u1", "m").await;
    let mut used = 0;
    // Others on this host start processes too: some tries miss. Ids of both sides of the old one.
    for at in 0..TRIES {
        let id = format!("{}{at}", if at % 2 == 0 { "a" } else { "z" });
        std::fs::write(LAST_PID, (number - 1).to_string()).unwrap();
        let next = host.run("u1", host.container(&id, &["cat", "/etc/passwd"])).await;
        host.wait_exit("u1", &id).await;
        if next.pid == Some(number) {
            used += 1;
        } else {
            host.runtime.remove_container("u1", &id).await.unwrap();
        }
        if used == 4 {
            break;
        }
    }
    assert!(used > 0, "the number never came again");
    host.finish().await;
}

#[tokio::test]
async fn shared_and_host_process_namespaces() {
    let host = Host::new("pids").await;
    host.sandbox("u1", |c| c.share_process_namespace = true).await;
    host.run("u1", host.container("a", &["sleep", "4321"])).await;
    let (_, log) = host.script("u1", "b", "ps; (sleep 3333 &) ; echo done").await;
    assert!(log.contains("sleep 4321") && log.contains("skeg-init"), "{log}");
    let out = host.exec("u1", "a", "ps; true").await;
    assert!(
        !String::from_utf8_lossy(&out.output).contains("sleep 3333"),
        "what a container leaves behind ends"
    );
    // Whoever may trace the first process finds nothing of the host in it.
    let mut tracer = host.container(
        "tracer",
        &["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; echo; wc -c < /proc/1/environ | tr -d 0; ls /proc/1/root | wc -l; \
            grep -E 'Cap|Uid' /proc/1/status; echo x > /proc/1/root/x || echo kept"],
    );
    tracer.security.privileged = true;
    host.run("u1", tracer).await;
    host.wait_exit("u1", "tracer").await;
    let log = host.log("tracer");
    assert!(log.starts_with("skeg-init "), "{log}");
    assert!(
        log.contains("\n0\n") && log.ends_with("kept\n"),
        "an empty root, nothing can be put there: {log}"
    );
    assert_eq!(log.matches("\t0000000000000000\n").count(), 5, "no capability of any kind: {log}");
    assert!(log.contains("Uid:\t65535\t"), "{log}");
    host.sandbox("u2", |c| {
        c.host_pid = true;
        c.host_network = true;
        c.host_ipc = true;
    })
    .await;
    let (_, log) = host
        .script("u2", "c", "for n in pid net ipc; do readlink /proc/self/ns/$n; done; (sleep 3334 &); echo")
        .await;
    for ns in ["pid", "net", "ipc"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{ns}")).unwrap();
        assert!(log.contains(own.to_str().unwrap()), "{ns}: {log}");
    }
    host.finish().await;
}

#[tokio::test]
async fn a_container_joins_the_processes_of_another() {
    let host = Host::new("target").await;
    host.sandbox("u1", |_| ()).await;
    host.run("u1", host.container("a", &["sleep", "4321"])).await;
    host.run("u1", host.container("b", &["sleep", "1234"])).await;
    let joined = |id: &str, script: &str, target: &str| {
        let config = host.container(id, &["sh", "-c", script]);
        ContainerConfig { target: Some(target.to_owned()), ..config }
    };
    let script = "ps; kill -0 1 && echo may signal; ls /proc/1/root/bin/ps; readlink /proc/self/ns/pid; (sleep 3335 &)";
    host.run("u1", joined("c", script, "a")).await;
    assert_eq!(host.wait_exit("u1", "c").await.exit_code, Some(0));
    let log = host.log("c");
    assert!(log.contains("sleep 4321") && !log.contains("sleep 1234"), "{log}");
    assert!(log.contains("may signal"), "{log}");
    let out = host.exec("u1", "a", "readlink /proc/self/ns/pid; ps").await;
    let out = String::from_utf8_lossy(&out.output).into_owned();
    assert!(log.contains(out.lines().next().unwrap()), "{log}{out}");
    assert!(!out.contains("sleep 3335"), "what it leaves behind ends with it: {out}");

    host.run("u1", joined("d", "sleep 1000", "a")).await;
    let out = host.exec("u1", "d", "ps; true").await;
    assert!(String::from_utf8_lossy(&out.output).contains("sleep 4321"), "an exec sees them too: {out:?}");
    host.runtime.signal_container("u1", "a", libc::SIGKILL).await.unwrap();
    assert_eq!(host.wait_exit("u1", "d").await.signal, Some(9), "it ends with the first process of them");
    let gone = host.runtime.create_container("u1", joined("e", "true", "a")).await.unwrap_err();
    assert_eq!(gone.to_string(), "target container a is not running");
    let never = host.runtime.create_container("u1", joined("f", "true", "none")).await.unwrap_err();
    assert!(matches!(never, Error::NoContainer(id) if id == "none"));
    assert_eq!(host.runtime.sandbox("u1").await.unwrap().containers.len(), 4);
    host.finish().await;
}

#[tokio::test]
async fn a_pod_is_resized_while_it_runs() {
    let host = Host::new("resize").await;
    let of = |quota: i64, memory_mib: i64| Resources {
        cpu_quota_us: Some(quota),
        cpu_period_us: Some(100_000),
        memory_limit_bytes: Some(memory_mib << 20),
        ..Resources::default()
    };
    host.sandbox("u1", |c| c.resources = of(10_000, 64)).await;
    let config = ContainerConfig { resources: of(10_000, 64), ..host.container("a", &["sleep", "1000"]) };
    host.run("u1", config).await;
    let read = |group: &str, files: [&str; 2]| {
        let of = |root: PathBuf| {
            let dir = root.join(format!("skeg-{}/podu1/{group}", host.id));
            files.iter().find_map(|file| std::fs::read_to_string(dir.join(file)).ok())
        };
        cgroup_roots().into_iter().find_map(of)
    };
    let memory = |group: &str| -> i64 {
        let text = read(group, ["memory.limit_in_bytes", "memory.max"]).unwrap();
        text.trim().parse::<i64>().unwrap() >> 20
    };
    let quota = |group: &str| read(group, ["cpu.cfs_quota_us", "cpu.max"]).unwrap();
    let room = memory("") - 64;
    host.runtime.update_sandbox("u1", of(30_000, 96)).await.unwrap();
    host.runtime.update_resources("u1", "a", of(30_000, 96)).await.unwrap();
    assert_eq!((memory("") - room, memory("a/")), (96, 96));
    assert!(quota("").starts_with("30000") && quota("a/").starts_with("30000"));
    host.runtime.update_resources("u1", "a", of(5_000, 32)).await.unwrap();
    host.runtime.update_sandbox("u1", of(5_000, 32)).await.unwrap();
    assert_eq!((memory("") - room, memory("a/")), (32, 32));
    assert!(quota("").starts_with("5000") && quota("a/").starts_with("5000"));
    let gone = host.runtime.update_sandbox("none", of(5_000, 32)).await.unwrap_err();
    assert!(matches!(gone, Error::NoSandbox(_)));
    host.finish().await;
}

#[tokio::test]
async fn out_of_memory() {
    let host = Host::new("oom").await;
    // The Pod's own limit is what its containers may have together.
    host.sandbox("u1", |c| c.resources.memory_limit_bytes = Some(32 << 20)).await;
    let of_pod = |file: &str| {
        let group = format!("skeg-{}/podu1/{file}", host.id);
        let read = |root: &str| std::fs::read_to_string(Path::new(root).join(&group)).ok();
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().find_map(read)
    };
    let limit = of_pod("memory.limit_in_bytes").or_else(|| of_pod("memory.max")).unwrap();
    let room = limit.trim().parse::<u64>().unwrap() - (32 << 20);
    assert!(room >= 8 << 20, "the supervisor has room of its own beside them: {room}");
    if let Some(together) = of_pod("memory.oom.group") {
        assert_eq!(together.trim(), "0", "the supervisor is in the Pod's group: it must survive the rest");
    }
    let mut config = host.container("c1", &["sh", "-c", "exec tail -c 100000000 /dev/zero"]);
    config.resources = Resources {
        memory_limit_bytes: Some(32 << 20),
        cpu_shares: Some(102),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        pids_limit: Some(100),
        oom_score_adj: Some(1000),
    };
    host.run("u1", config).await;
    let status = host.wait_exit("u1", "c1").await;
    assert_eq!((status.exit_code, status.oom_killed), (Some(137), true));
    assert!(host.runtime.sandbox("u1").await.unwrap().ready, "the supervisor lives on");
    host.runtime.remove_sandbox("u1").await.unwrap();
    host.sandbox("u1", |_| ()).await;

    let mut config = host.container("c2", &["sh", "-c", "cat /proc/self/oom_score_adj; sleep 1000"]);
    config.resources =
        Resources { memory_limit_bytes: Some(64 << 20), oom_score_adj: Some(500), ..Resources::default() };
    host.run("u1", config).await;
    wait_log(&host, "c2", "500").await;
    let usage = host.runtime.usage("u1", "c2").await.unwrap();
    assert!(usage.memory_bytes > 0 && usage.cpu_ns > 0 && usage.pids >= 1, "{usage:?}");
    let limit = |bytes| Resources { memory_limit_bytes: Some(bytes), ..Resources::default() };
    host.runtime.update_resources("u1", "c2", limit(96 << 20)).await.unwrap();
    host.runtime.update_resources("u1", "c2", limit(48 << 20)).await.unwrap();
    let out = host
        .exec(
            "u1",
            "c2",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true",
        )
        .await;
    assert!(String::from_utf8_lossy(&out.output).contains(&(48 << 20).to_string()), "{out:?}");
    host.finish().await;
}

#[tokio::test]
async fn exec_sessions() {
    let host = Host::new("exec").await;
    host.sandbox("u1", |_| ()).await;
    host.run("u1", host.container("c1", &["sleep", "1000"])).await;
    let out = host.exec("u1", "c1", "echo hi; grep -E 'Seccomp:|CapEff' /proc/self/status; ps; exit 5").await;
    let text = String::from_utf8_lossy(&out.output).into_owned();
    assert_eq!(out.exit_code, 5);
    for wanted in ["hi", "Seccomp:\t2", DEFAULT_CAPABILITY_BITS, "sleep 1000"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let args = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let error = host.runtime.exec_sync("u1", "c1", vec!["nope".into()], TIMEOUT, 10).await.unwrap_err();
    assert_eq!(error.to_string(), r#"exec: "nope": executable file not found in $PATH"#);
    let out = host
        .runtime
        .exec_sync("u1", "c1", args("echo start; sleep 1000"), Duration::from_millis(300), 3)
        .await
        .unwrap();
    assert!(out.timed_out && out.output == b"sta", "{out:?}");
    let out = host.exec("u1", "c1", "sleep 500 & echo left; exit 0").await;
    assert_eq!((out.exit_code, out.output.as_slice()), (0, &b"left\n"[..]));

    // Input, output and errors are separate without a terminal.
    let plain = ExecConfig {
        args: args("cat; echo err >&2; exit 4"),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut session = host.runtime.exec("u1", "c1", plain).await.unwrap();
    let big = vec![b'x'; 300_000];
    let mut stdin = session.stdin.take().unwrap();
    let writer = {
        let big = big.clone();
        tokio::spawn(async move {
            stdin.write_all(&big).await.unwrap();
        })
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    session.stdout.take().unwrap().read_to_end(&mut out).await.unwrap();
    session.stderr.take().unwrap().read_to_end(&mut err).await.unwrap();
    writer.await.unwrap();
    assert_eq!((out.len(), err.as_slice()), (big.len(), &b"err\n"[..]));
    assert_eq!(session.exit.await.unwrap().unwrap(), 4);

    // A terminal.
    let tty = ExecConfig {
        args: args("stty size; read x; stty size; test -t 0 && echo tty $x; exit 6"),
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let mut session = host.runtime.exec("u1", "c1", tty).await.unwrap();
    session.resize.send(TerminalSize { width: 101, height: 33 }).await.unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut text = String::new();
    let mut chunk = [0; 1000];
    let mut sent = false;
    loop {
        let n = tokio::time::timeout(TIMEOUT, stdout.read(&mut chunk)).await.unwrap().unwrap();
        if n == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&chunk[..n]));
        if !sent && text.contains('\n') {
            sent = true;
            stdin.write_all(b"word\n").await.unwrap();
        }
    }
    assert!(text.contains("33 101") && text.contains("tty word"), "{text}");
    assert_eq!(session.exit.await.unwrap().unwrap(), 6);

    // Dropping a session ends its command.
    let idle = ExecConfig {
        args: args("echo on; sleep 2222"),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut session = host.runtime.exec("u1", "c1", idle).await.unwrap();
    session.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).await.unwrap();
    drop(session);
    tokio::time::timeout(TIMEOUT, async {
        while String::from_utf8_lossy(&host.exec("u1", "c1", "ps").await.output).contains("sleep 2222") {}
    })
    .await
    .unwrap();
    host.finish().await;
}

#[tokio::test]
async fn attach_and_port_forward() {
    let host = Host::new("attach").await;
    host.sandbox("u1", |_| ()).await;
    let mut config = host.container("c1", &["sh", "-c", "cat; echo end"]);
    (config.stdin, config.stdin_once) = (true, true);
    host.run("u1", config).await;
    let all = ExecConfig { args: vec![], tty: false, stdin: true, stdout: true, stderr: true };
    let mut session = host.runtime.attach("u1", "c1", all.clone()).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"line\n").await.unwrap();
    let mut got = [0; 5];
    session.stdout.as_mut().unwrap().read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"line\n");
    let big = vec![b'y'; 500_000];
    let writer = tokio::spawn(async move { stdin.write_all(&big).await.unwrap() });
    let mut rest = Vec::new();
    session.stdout.take().unwrap().read_to_end(&mut rest).await.unwrap();
    writer.await.unwrap();
    assert_eq!(rest.len(), 500_000 + 4);
    assert_eq!(session.exit.await.unwrap().unwrap(), 0);
    assert_eq!(host.log("c1").len(), 5 + 500_000 + 4);

    // A session that reads late loses nothing, though the container has ended.
    let mut config =
        host.container("late", &["sh", "-c", "read x; dd if=/dev/zero bs=1000 count=90 2>/dev/null"]);
    (config.stdin, config.stdin_once) = (true, true);
    host.run("u1", config).await;
    let mut session = host.runtime.attach("u1", "late", all).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    host.wait_exit("u1", "late").await;
    let mut rest = Vec::new();
    session.stdout.take().unwrap().read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.len(), 90_000);
    assert_eq!(session.exit.await.unwrap().unwrap(), 0);

    let mut config = host.container("c2", &["sh", "-c", "read x; stty size; echo got $x; read y"]);
    (config.stdin, config.tty) = (true, true);
    host.run("u1", config).await;
    let tty = ExecConfig { args: vec![], tty: true, stdin: true, stdout: true, stderr: false };
    let mut session = host.runtime.attach("u1", "c2", tty).await.unwrap();
    session.resize.send(TerminalSize { width: 90, height: 30 }).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    tokio::time::timeout(TIMEOUT, async {
        // The size is set by another way than the input: ask until it is there.
        stdin.write_all(b"in\n").await.unwrap();
    })
    .await
    .unwrap();
    let mut text = String::new();
    let mut chunk = [0; 1000];
    while !text.contains("got in") {
        let n = tokio::time::timeout(TIMEOUT, session.stdout.as_mut().unwrap().read(&mut chunk))
            .await
            .unwrap()
            .unwrap();
        assert!(n > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    drop(session);
    assert_eq!(host.runtime.sandbox("u1").await.unwrap().containers[2].state, ContainerState::Running);

    host.run("u1", host.container("c3", &["sh", "-c", "echo up; nc -l -p 9000 -e cat"])).await;
    wait_log(&host, "c3", "up").await;
    let mut stream = loop {
        if let Ok(stream) = host.runtime.connect("u1", 9000).await {
            break stream;
        }
    };
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    drop(stream);
    assert!(host.runtime.connect("u1", 9001).await.is_err());
    host.finish().await;
}

#[tokio::test]
async fn agent_restart_leaves_containers_alone() {
    let mut host = Host::new("agent").await;
    let before = host.sandbox("u1", |_| ()).await;
    let running = host.run("u1", host.container("c1", &["sleep", "1000"])).await;
    host.run(
        "u1",
        host.container("c2", &["sh", "-c", "while test ! -e /go; do sleep 0.01; done; echo bye; exit 9"]),
    )
    .await;
    let pid = host.runtime.sandbox("u1").await.unwrap().containers[1].pid.unwrap();
    // The old agent's handle stays forgotten while c2 ends.
    let pidfd = {
        // SAFETY: no memory is involved.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(raw > 0);
        raw as i32
    };
    host.runtime = host.idle().await;
    std::fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    let ended = unsafe { libc::poll(&mut poll, 1, 20_000) };
    assert_eq!(ended, 1);
    let other = host.runtime.clone();
    host.restart().await;
    other.purge().await.unwrap();
    let status = host.wait_exit("u1", "c2").await;
    assert_eq!(status.exit_code, Some(9));
    assert_eq!(host.log("c2"), "bye\n");
    let after = host.runtime.sandbox("u1").await.unwrap();
    assert_eq!((after.supervisor_pid, &after.config), (before.supervisor_pid, &before.config));
    let c1 = after.containers.iter().find(|c| c.id == "c1").unwrap();
    assert_eq!((c1.pid, c1.started_at_ns), (running.pid, running.started_at_ns));
    assert_eq!(host.exec("u1", "c1", "echo still").await.output, b"still\n");
    host.finish().await;
}

/// What agents of other builds meet.
#[tokio::test]
async fn the_protocol_has_a_version() {
    let host = Host::new("proto").await;
    host.sandbox("u1", |_| ()).await;
    let ask = async |frames: &[&str]| -> String {
        let mut stream = tokio::net::UnixStream::connect(host.path("run/u1.sock")).await.unwrap();
        for frame in frames {
            stream.write_u32(frame.len() as u32).await.unwrap();
            stream.write_all(frame.as_bytes()).await.unwrap();
        }
        let mut answer = vec![0; 64 * 1024];
        let n = tokio::time::timeout(TIMEOUT, stream.read(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    let hello =
        |version: u32| format!(r#"{{"seq":1,"request":{{"Hello":{{"version":{version},"new":1}}}}}}"#);
    assert!(ask(&[&hello(1)]).await.contains("pod-host"), "fields it does not know are no reason to refuse");
    let refused = ask(&[&hello(2)]).await;
    assert!(refused.contains("speaks protocol version 1, not 2"), "{refused}");
    assert_eq!(ask(&[r#"{"seq":1,"request":"Shutdown"}"#]).await, "", "nothing before a hello");
    assert_eq!(ask(&["noise"]).await, "");
    assert!(host.runtime.sandbox("u1").await.unwrap().ready);
    host.finish().await;
}

#[tokio::test]
async fn supervisor_death_is_sandbox_death() {
    let mut host = Host::new("death").await;
    let mut events = host.runtime.events();
    for uid in ["u1", "u2"] {
        let status = host.sandbox(uid, |c| c.share_process_namespace = uid == "u2").await;
        host.run(uid, host.container("c1", &["sh", "-c", "sleep 1000 & sleep 1000"])).await;
        // SAFETY: the pid is the supervisor's.
        unsafe { libc::kill(status.supervisor_pid, libc::SIGKILL) };
        let gone = Event::SandboxGone { uid: uid.to_owned() };
        while tokio::time::timeout(TIMEOUT, events.recv()).await.unwrap().unwrap() != gone {}
        let status = host.runtime.sandbox(uid).await.unwrap();
        assert!(!status.ready);
        assert_eq!(status.containers[0].exit_code, Some(137));
    }
    host.restart().await;
    let all = host.runtime.sandboxes().await.unwrap();
    assert_eq!(
        all.iter().map(|s| (s.config.uid.as_str(), s.ready, s.containers.len())).collect::<Vec<_>>(),
        [("u1", false, 1), ("u2", false, 1)]
    );
    host.runtime.remove_container("u1", "c1").await.unwrap();
    host.runtime.remove_sandbox("u1").await.unwrap();
    host.runtime.remove_sandbox("u1").await.unwrap();
    assert!(matches!(host.runtime.sandbox("u1").await, Err(Error::NoSandbox(_))));
    host.sandbox("u1", |_| ()).await;
    host.finish().await;
}

#[tokio::test]
async fn figures() {
    let host = Host::new("figures").await;
    let started = tokio::time::Instant::now();
    host.sandbox("u1", |_| ()).await;
    let sandbox = started.elapsed();
    let mut times = vec![];
    for i in 0..20 {
        let started = tokio::time::Instant::now();
        host.run("u1", host.container(&format!("c{i}"), &["sleep", "1000"])).await;
        times.push(started.elapsed());
    }
    times.sort();
    let status = host.runtime.sandbox("u1").await.unwrap();
    let pss = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", status.supervisor_pid)).unwrap();
    let kb = |key: &str| -> u64 {
        pss.lines().find_map(|l| l.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap()
    };
    eprintln!(
        "sandbox {sandbox:?}, create+start p50 {:?} max {:?}, supervisor anonymous {} kB, private {} kB, PSS {} kB",
        times[10],
        times[19],
        kb("Anonymous:"),
        kb("Private_Dirty:") + kb("Private_Clean:"),
        kb("Pss:")
    );
    let started = tokio::time::Instant::now();
    host.runtime.remove_sandbox("u1").await.unwrap();
    eprintln!("remove of 20 containers {:?}", started.elapsed());
    host.finish().await;
}

/// What the agent that gets killed does, in a process of its own: see [`killed_at_any_moment`].
#[tokio::test]
async fn busy_agent() {
    let Ok(dir) = std::env::var("SKEG_TEST_BUSY_AGENT") else { return };
    let (dir, id) = dir.split_once(':').unwrap();
    let dir = PathBuf::from(dir);
    let runtime = Runtime::open(config(&dir, id)).await.unwrap();
    let blueprint = HostBlueprint { dir: dir.clone() };
    for round in 0.. {
        let uid = format!("p{}", round % 3);
        runtime.remove_sandbox(&uid).await.unwrap();
        runtime.create_sandbox(blueprint.sandbox(&uid)).await.unwrap();
        for name in ["a", "b"] {
            let config = blueprint.container(name, &["sleep", "1000"]);
            runtime.create_container(&uid, config).await.unwrap();
            runtime.start_container(&uid, name).await.unwrap();
        }
        runtime.exec_sync(&uid, "a", vec!["true".to_owned()], TIMEOUT, 10).await.unwrap();
        runtime.remove_container(&uid, "b").await.unwrap();
    }
}

#[tokio::test]
async fn killed_at_any_moment() {
    let mut host = Host::new("kill").await;
    let random = skeg_base::Random::seeded(11);
    let mut alive = 0;
    // How fast this host is decides how long an agent may live.
    let started = tokio::time::Instant::now();
    host.sandbox("p0", |_| ()).await;
    host.run("p0", host.container("a", &["true"])).await;
    let unit_ms = started.elapsed().as_millis() as u64 + 5;
    let idle = host.idle().await;
    let started = tokio::time::Instant::now();
    for _ in 0..25 {
        // On a slow host a few rounds do.
        if alive > 0 && started.elapsed() > TIMEOUT {
            break;
        }
        // One agent at a time: this one lets go while the other works.
        host.runtime = idle.clone();
        let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["busy_agent", "--exact", "--nocapture"])
            .env("SKEG_TEST_BUSY_AGENT", format!("{}:{}", host.dir.path().display(), host.id))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(unit_ms + random.below(8 * unit_ms))).await;
        agent.kill().unwrap();
        let status = agent.wait().unwrap();
        assert_eq!(status.code(), None, "it was killed, it did not fail");
        host.restart().await;
        for sandbox in host.runtime.sandboxes().await.unwrap() {
            if !sandbox.ready {
                host.runtime.remove_sandbox(&sandbox.config.uid).await.unwrap();
                continue;
            }
            for container in sandbox.containers.iter().filter(|c| c.state == ContainerState::Running) {
                // One process per container, and it answers; unless the last wish of the killed
                // agent was its removal, which the supervisor still fulfils.
                let uid = sandbox.config.uid.as_str();
                let args = ["sh", "-c", "ps | grep -c 'sleep 100[0]'"].map(str::to_owned).to_vec();
                match host.runtime.exec_sync(uid, &container.id, args, TIMEOUT, 100).await {
                    Ok(out) if !out.output.is_empty() => {
                        assert_eq!(out.output, b"1\n");
                        alive += 1;
                    }
                    other => {
                        eprintln!("{uid}/{}: exec gave {other:?}", container.id);
                        let gone = |s: &SandboxStatus| {
                            !s.ready
                                || s.containers
                                    .iter()
                                    .all(|c| c.id != container.id || c.state == ContainerState::Exited)
                        };
                        host.wait(uid, gone).await;
                    }
                }
            }
        }
    }
    assert!(alive > 0, "no kill met a running container");
    idle.purge().await.unwrap();
    host.finish().await;
}
