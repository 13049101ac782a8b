//! An instance of one test, and what is left of it.

use futures_util::FutureExt;
use skeg_runtime::*;
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub const TIMEOUT: Duration = Duration::from_secs(20);

pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
pub const DEFAULT_CAPABILITY_BITS: &str = "00000000a80425fb";

pub struct Host {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub runtime: Arc<Runtime>,
}

/// Configurations for the files under a directory.
pub struct HostBlueprint {
    pub dir: PathBuf,
}

impl HostBlueprint {
    pub fn sandbox(&self, uid: &str) -> SandboxConfig {
        SandboxConfig {
            uid: uid.to_owned(),
            hostname: "pod-host".to_owned(),
            host_network: false,
            host_pid: false,
            host_ipc: false,
            share_process_namespace: false,
            sysctls: BTreeMap::new(),
            resources: Resources::default(),
            labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        }
    }

    pub fn container(&self, id: &str, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            id: id.to_owned(),
            name: id.to_owned(),
            attempt: 0,
            target: None,
            layers: vec![self.dir.join("layer")],
            image_volumes: vec![],
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/".to_owned(),
            user: User::default(),
            mounts: vec![],
            devices: vec![],
            resources: Resources::default(),
            security: Security {
                privileged: false,
                capabilities: DEFAULT_CAPABILITIES.iter().map(|c| format!("CAP_{c}")).collect(),
                no_new_privileges: false,
                seccomp: Seccomp::RuntimeDefault,
                read_only_root: false,
                unmasked_proc: false,
            },
            tty: false,
            stdin: false,
            stdin_once: false,
            log_path: self.dir.join(format!("logs/{id}.log")),
            log_rotation: None,
            stop_signal: libc::SIGTERM,
            labels: BTreeMap::new(),
        }
    }
}

pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|p| p.exists())
}

pub fn config(dir: &Path, id: &str) -> RuntimeConfig {
    RuntimeConfig {
        id: id.to_owned(),
        run_dir: dir.join("run"),
        data_dir: dir.join("data"),
        exe: PathBuf::from(env!("CARGO_BIN_EXE_skeg-runtime-helper")),
    }
}

impl Host {
    pub async fn new(name: &str) -> Host {
        // SAFETY: always succeeds.
        assert_eq!(unsafe { libc::geteuid() }, 0, "these tests need root");
        sweep();
        let dir = tempfile::tempdir().unwrap();
        let id = format!("t{}{name}", std::process::id());
        let layer = dir.path().join("layer");
        for sub in ["bin", "etc", "tmp"] {
            std::fs::create_dir_all(layer.join(sub)).unwrap();
        }
        std::fs::copy(busybox().expect("busybox-static is installed"), layer.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "ls", "sleep", "echo", "id", "hostname", "mount", "tail", "dd", "grep", "nc",
            "ipcs", "stty", "ps", "true", "head", "kill", "wc", "tr", "test", "readlink", "env", "yes",
            "seq", "sed",
        ] {
            symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            layer.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(layer.join("etc/group"), "root:x:0:\nwww:x:33:\nextra:x:50:web\n").unwrap();
        let runtime = Runtime::open(config(dir.path(), &id)).await.unwrap();
        Host { dir, id, runtime }
    }

    /// Another instance, to have no agent here for a while.
    pub async fn idle(&self) -> Arc<Runtime> {
        Runtime::open(config(&self.path("idle"), &format!("{}-idle", self.id))).await.unwrap()
    }

    /// Forgets everything known and opens again, as a restarted agent does.
    pub async fn restart(&mut self) {
        self.runtime = Runtime::open(config(self.dir.path(), &self.id)).await.unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn sandbox(&self, uid: &str, change: impl FnOnce(&mut SandboxConfig)) -> SandboxStatus {
        let mut config = self.blueprint().sandbox(uid);
        change(&mut config);
        self.runtime.create_sandbox(config).await.unwrap()
    }

    pub fn blueprint(&self) -> HostBlueprint {
        HostBlueprint { dir: self.dir.path().to_owned() }
    }

    pub fn container(&self, id: &str, args: &[&str]) -> ContainerConfig {
        self.blueprint().container(id, args)
    }

    pub async fn run(&self, uid: &str, config: ContainerConfig) -> ContainerStatus {
        let id = config.id.clone();
        let created = self.runtime.create_container(uid, config).await.unwrap();
        assert_eq!(created.state, ContainerState::Created);
        let started = self.runtime.start_container(uid, &id).await.unwrap();
        assert!(started.started_at_ns.is_some());
        started
    }

    pub async fn wait_exit(&self, uid: &str, id: &str) -> ContainerStatus {
        self.wait(uid, |s| s.containers.iter().any(|c| c.id == id && c.state == ContainerState::Exited))
            .await
            .containers
            .into_iter()
            .find(|c| c.id == id)
            .unwrap()
    }

    pub async fn wait(&self, uid: &str, wanted: impl Fn(&SandboxStatus) -> bool) -> SandboxStatus {
        let mut events = self.runtime.events();
        tokio::time::timeout(TIMEOUT, async {
            loop {
                let status = self.runtime.sandbox(uid).await.unwrap();
                if wanted(&status) {
                    return status;
                }
                events.recv().await.unwrap();
            }
        })
        .await
        .unwrap_or_else(|_| {
            panic!(
                "not reached in time: {:?}",
                self.runtime.sandboxes().now_or_never().map(|all| all.unwrap_or_default())
            )
        })
    }

    /// Runs a shell script to its end: exit status and log texts.
    pub async fn script(&self, uid: &str, id: &str, script: &str) -> (ContainerStatus, String) {
        self.run(uid, self.container(id, &["sh", "-c", script])).await;
        let status = self.wait_exit(uid, id).await;
        (status, self.log(id))
    }

    pub fn log(&self, id: &str) -> String {
        log_text(&self.path(&format!("logs/{id}.log")))
    }

    pub async fn exec(&self, uid: &str, id: &str, script: &str) -> ExecOutput {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        self.runtime.exec_sync(uid, id, args, TIMEOUT, 64 * 1024).await.unwrap()
    }

    /// Removes the instance and checks that nothing of it is left.
    pub async fn finish(&self) {
        self.runtime.purge().await.unwrap();
        let cgroups = walk_cgroups(&format!("skeg-{}", self.id));
        assert!(cgroups.is_empty(), "{cgroups:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(dir), "{mounts}");
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            assert!(!line.contains(dir), "{line}");
        }
        assert_eq!(std::fs::read_dir(self.path("data")).unwrap().count(), 0);
    }
}

impl Drop for Host {
    /// A failed test leaves nothing running and no group either.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let config = config(self.dir.path(), &self.id);
            let purge = async move { Runtime::open(config).await?.purge().await };
            let purge = move || {
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(purge)
            };
            if let Ok(Err(e)) = std::thread::spawn(purge).join() {
                eprintln!("purge: {e}");
            }
            let idle = format!("skeg-{}-", self.id);
            remove_cgroups(|name| name.starts_with(&idle));
        }
    }
}

/// Removes the groups of tests whose process is dead: one that was killed could not.
pub fn sweep() {
    remove_cgroups(|name| {
        let pid = name
            .strip_prefix("skeg-t")
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
}

/// Removes instances' groups that hold no process.
pub fn remove_cgroups(chosen: impl Fn(&str) -> bool) {
    fn remove(dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        // Others sweep too, and a group with processes stays.
        let _ = std::fs::remove_dir(dir);
    }
    for root in cgroup_roots() {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(&chosen) {
                remove(&entry.path());
            }
        }
    }
}

/// The texts of a CRI log.
pub fn log_text(path: &Path) -> String {
    let mut text = String::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        let mut fields = line.splitn(4, ' ');
        let (_, _, tag, rest) = (fields.next(), fields.next(), fields.next(), fields.next());
        text.push_str(rest.unwrap_or_default());
        if tag == Some("F") {
            text.push('\n');
        }
    }
    text
}

pub fn cgroup_roots() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()));
    roots
}

pub fn walk_cgroups(name: &str) -> Vec<PathBuf> {
    cgroup_roots().into_iter().map(|root| root.join(name)).filter(|dir| dir.exists()).collect()
}

pub async fn wait_log(host: &Host, id: &str, text: &str) {
    tokio::time::timeout(TIMEOUT, async {
        while !host.log(id).contains(text) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{text:?} appears in the log of {id}: {}", host.log(id)));
}
