//! The command line: errors with a remedy, flags, images, several instances side by side.

use super::pod;
use crate::cluster::{Cluster, free_port};
use crate::traces::{Instance, Traces};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

pub const CASES: &[Case] = &[
    Case { name: "wrong_use_is_told_with_a_remedy", run: wrong_use },
    Case { name: "only_root_may", run: only_root },
    Case { name: "a_missing_kernel_feature_is_told", run: missing_features },
    Case { name: "somebody_elses_directory_is_left_alone", run: foreign_directory },
    Case { name: "flags_and_settings_take_effect", run: flags_take_effect },
    Case { name: "a_cluster_in_the_foreground", run: foreground },
    Case { name: "a_detached_cluster_inherits_nothing", run: inherits_nothing },
    Case { name: "image_commands", run: image_commands },
    Case { name: "instances_run_side_by_side", run: side_by_side },
    Case { name: "down_leaves_pods_and_up_finds_them", run: down_and_up },
    Case { name: "a_purge_gives_the_host_back", run: purge_gives_back },
    Case { name: "a_data_directory_that_moves_or_goes", run: moved_directory },
    Case { name: "a_full_disk_is_told_and_got_over", run: full_disk },
];

/// The command ends with exit code 2 and one line that has `part`.
fn refused(command: &mut Command, part: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "{command:?} exited with {:?}: {text}", output.status.code());
    ensure!(text.contains(part), "{command:?} said {text:?}, not {part:?}");
    ensure!(text.lines().count() == 1 && text.starts_with("skeg: "), "not one line: {text:?}");
    Ok(())
}

fn wrong_use(scope: &Scope<'_>) -> Result<()> {
    let other = scope.cluster.scratch().join("other");
    let run = |args: &[&str]| {
        let mut command = Command::new(&scope.cluster.skeg);
        command.args(args).arg("--data-dir").arg(&other);
        command
    };
    let view = |path: &str| scope.cluster.kubectl(&["config", "view", "-o", &format!("jsonpath={path}")]);
    let server = view("{.clusters[0].cluster.server}")?;
    let listen = server.trim_start_matches("https://");
    let pods = scope.cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].spec.podCIDR}"])?;
    let services = scope.cluster.flag("--service-cidr")?;
    let port = format!("127.0.0.1:{}", free_port()?);
    let free = ["--pod-cidr=10.252.0.0/16", "--service-cidr=10.253.0.0/24"];
    let config = |name: &str, text: &str| -> Result<String> {
        let path = scope.cluster.scratch().join(name);
        fs::write(&path, text)?;
        Ok(format!("--config={}", path.display()))
    };
    let bad_config = config("bad.yaml", "podCird: 10.9.0.0/16\n")?;
    let ipv6_config = config("ipv6.yaml", "maxPods: 3\npodCidr: fd00::/64\n")?;
    let instance = Instance::at(&other)?;
    let before = Traces::of_instance(&instance)?;
    for (args, part) in [
        (&["up", "--no-such-flag"][..], "unexpected argument '--no-such-flag' found; "),
        (&["up", "--node-nam=x"], "a similar argument exists: '--node-name'"),
        (&["up", "--detach", "--log=json"], "cannot be used with"),
        (&["up", "--log=xml"], "[possible values: json]"),
        (&["up", "--detach", "--pod-cidr=nonsense"], "--pod-cidr"),
        (
            &["up", "--detach", "--pod-cidr=10.9.0.0/16", "--service-cidr=10.9.3.0/24"],
            "choose ranges that do not",
        ),
        (
            &["up", "--detach", "--config=/no/such/file"],
            "--config /no/such/file: the file cannot be read: No such",
        ),
        (&["up", "--detach", &bad_config], "unknown field `podCird`"),
        (&["up", "--detach", &ipv6_config], "\"fd00::/64\": IPv4 only for now: name a range such as"),
        (
            &["up", "--detach", "--pod-cidr=fd00::/64"],
            "IPv4 only for now: name a range such as 10.42.0.0/16; see",
        ),
        (&["image", "list"], "there is no such directory: name a cluster's"),
        (&["image", "remove", "nginx"], "there is no such directory: name a cluster's"),
        (&["image", "pull", "UPPER"], "invalid reference format: name one such as nginx:1.27"),
        (&["image", "import", "/etc/passwd"], "is no archive of an image, or is damaged: make"),
        (&["up", "--detach", "--registries=/no/such/file"], "--registries /no/such/file"),
        (&["up", "--detach", "--max-pods=0"], "must be a number from 1 to"),
        (&["up", "--detach", "--max-pods", "-5"], "must be a number from 1 to"),
        (&["up", "--detach", "--registries=/no/such"], "--registries /no/such: there is no such file"),
        (
            &["up", "--detach", "--listen=192.0.2.1:7777", free[0], free[1]],
            "--listen 192.0.2.1:7777: this host has no such address: name one of its own",
        ),
        (&["up", "--detach", "--listen=127.0.0.1:0"], "name a port"),
        (&["up", "--detach", "--node-name=Not_A_Name"], "--node-name"),
        (
            &["up", "--detach", "--listen", listen, free[0], free[1]],
            "is in use: stop what uses it, or choose another port",
        ),
        (&["up", "--detach", "--listen", &port, "--pod-cidr", &pods, free[1]], "choose another range"),
        (
            &["up", "--detach", "--listen", &port, free[0], "--service-cidr", &services],
            "choose another range",
        ),
        (&["status"], "start one with `skeg up`"),
        (&["kubeconfig"], "start one with `skeg up`"),
        (&["nonsense"], "unrecognized subcommand 'nonsense'"),
    ] {
        refused(&mut run(args), part)?;
        ensure!(!other.exists(), "{args:?} left {}", other.display());
    }
    // What was refused left nothing on the host either.
    before.wait_until_as_before(|| Traces::of_instance(&instance))?;
    let mut nowhere = Command::new(&scope.cluster.skeg);
    nowhere.args(["up", "--detach", "--data-dir=/proc/x", free[0], free[1], "--listen", &port]);
    refused(&mut nowhere, "--data-dir /proc/x cannot be made: No such file or directory")?;
    // Twice on one data directory.
    let mut again = Command::new(&scope.cluster.skeg);
    again.args(["up", "--detach", "--data-dir"]).arg(&scope.cluster.data_dir);
    refused(&mut again, "is in use by a running cluster")?;
    let version = Command::new(&scope.cluster.skeg).arg("version").output()?;
    ensure!(String::from_utf8_lossy(&version.stdout).contains("v1.36"));
    let help = Command::new(&scope.cluster.skeg).args(["up", "--help"]).output()?;
    let help = String::from_utf8_lossy(&help.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(
        help.contains("[default: /var/lib/skeg]") && help.contains("[default: 127.0.0.1:6443]"),
        "{help}"
    );
    Ok(())
}

fn only_root(scope: &Scope<'_>) -> Result<()> {
    // Where nobody else may look, nobody else can start it from.
    let directory = tempfile::Builder::new().prefix("skeg-e2e-binary-").tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let binary = directory.path().join("skeg");
    fs::copy(&scope.cluster.skeg, &binary)?;
    const NOBODY: u32 = 65534;
    for args in [
        &["up"][..],
        &["up", "--detach"],
        &["down", "--purge"],
        &["status"],
        &["kubeconfig"],
        &["image", "list"],
    ] {
        for data in [scope.cluster.data_dir.clone(), directory.path().join("none")] {
            let mut command = Command::new(&binary);
            command.args(args).arg("--data-dir").arg(data).uid(NOBODY).gid(NOBODY);
            refused(&mut command, "run this as root")?;
        }
    }
    ensure!(Command::new(&binary).arg("version").uid(NOBODY).gid(NOBODY).status()?.success(), "version");
    Ok(())
}

/// Each feature is hidden from one start by mounts of its own mount namespace.
fn missing_features(scope: &Scope<'_>) -> Result<()> {
    let scratch = scope.cluster.scratch();
    let tools = |name: &str| -> Result<std::path::PathBuf> {
        let directory = scratch.join(name);
        fs::create_dir_all(&directory)?;
        Ok(directory)
    };
    let (with_nft, without, broken) = (tools("with-nft")?, tools("without")?, tools("broken")?);
    symlink("/usr/sbin/nft", with_nft.join("nft"))?;
    fs::write(broken.join("nft"), "#!/bin/sh\necho 'Error: Operation not supported' >&2\nexit 1\n")?;
    fs::set_permissions(broken.join("nft"), fs::Permissions::from_mode(0o755))?;
    let filesystems = scratch.join("filesystems");
    fs::write(&filesystems, "nodev\ttmpfs\n\text4\n")?;
    let hide_overlay = format!("/bin/mount --bind {} /proc/filesystems", filesystems.display());
    let data = scratch.join("other");
    for (hide, path, part) in [
        (hide_overlay.as_str(), &with_nft, "no overlayfs: use one with CONFIG_OVERLAY_FS"),
        (
            "/bin/mount -t tmpfs none /proc/sys/kernel/seccomp",
            &with_nft,
            "use one with CONFIG_SECCOMP_FILTER",
        ),
        ("/bin/mount -t tmpfs none /sys/fs/cgroup", &with_nft, "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        ("true", &without, "apt-get install nftables"),
        ("true", &broken, "does the kernel have nf_tables with NAT?"),
    ] {
        let script = format!("{hide} && exec \"$@\"");
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--mount", "/bin/sh", "-c", &script, "sh"]).arg(&scope.cluster.skeg);
        command.args(["up", "--detach", "--pod-cidr=10.252.0.0/16", "--service-cidr=10.253.0.0/24"]);
        command.arg(format!("--listen=127.0.0.1:{}", free_port()?)).arg("--data-dir").arg(&data);
        refused(command.env("PATH", path), part)?;
    }
    // The last one was found out late.
    let purge =
        Command::new(&scope.cluster.skeg).args(["down", "--purge", "--data-dir"]).arg(&data).status()?;
    ensure!(purge.success() && !data.exists(), "the purge");
    Ok(())
}

fn foreign_directory(scope: &Scope<'_>) -> Result<()> {
    let directory = scope.cluster.scratch().join("photos");
    fs::create_dir_all(&directory)?;
    let file = directory.join("settings.json");
    fs::write(&file, "{\"editor\": true}")?;
    for args in [&["up", "--detach"][..], &["down", "--purge"], &["image", "list"], &["status"]] {
        let mut command = Command::new(&scope.cluster.skeg);
        command.args(args).arg("--data-dir").arg(&directory);
        refused(&mut command, "which is not Skeg's: name an empty directory")?;
    }
    let left: Vec<_> = fs::read_dir(&directory)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["settings.json"] && fs::read(&file)? == b"{\"editor\": true}", "{left:?}");
    // Whoever owns the directory could change what is in it.
    let theirs = scope.cluster.scratch().join("theirs");
    fs::create_dir_all(&theirs)?;
    std::os::unix::fs::chown(&theirs, Some(65534), None)?;
    let mut command = Command::new(&scope.cluster.skeg);
    command.args(["up", "--detach", "--data-dir"]).arg(&theirs);
    refused(&mut command, "belongs to user 65534")
}

/// Each setting is seen in what it changes; flags win over the file.
fn flags_take_effect(_: &Scope<'_>) -> Result<()> {
    let cluster = Cluster::start_with("nodeName: from-file\nmaxPods: 2\nseccompDefault: false\n")?;
    let scope = Scope { cluster: &cluster, namespace: "default".into() };
    let node = scope.get(&["node", "e2e-node"]).context("--node-name wins over nodeName")?;
    let ready = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    ensure!(ready, "--detach returned before the node was Ready: {}", node["status"]["conditions"]);
    ensure!(node["status"]["capacity"]["pods"] == "2", "maxPods: {}", node["status"]["capacity"]);
    let (pods, services) = (cluster.flag("--pod-cidr")?, cluster.flag("--service-cidr")?);
    ensure!(node["spec"]["podCIDR"] == pods.as_str(), "--pod-cidr {pods}: {}", node["spec"]);
    let prefix = |cidr: &str, bytes: usize| -> String {
        cidr.split('.').take(bytes).map(|byte| format!("{byte}.")).collect()
    };
    let first = scope.jsonpath(&["service", "kubernetes"], "{.spec.clusterIP}")?;
    ensure!(first == prefix(&services, 3) + "1", "--service-cidr {services}: {first}");
    let listen = cluster.flag("--listen")?;
    ensure!(
        cluster.skeg(&["kubeconfig"])?.contains(&format!("server: https://{listen}")),
        "--listen {listen}"
    );
    for name in ["one", "two", "three"] {
        scope.apply(&pod(name, &[("main", "sleep 1000")]))?;
    }
    scope.wait_for("pod/three", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable")?;
    scope.wait_ready("one")?;
    let ip = scope.jsonpath(&["pod", "one"], "{.status.podIP}")?;
    ensure!(ip.starts_with(&prefix(&pods, 2)), "a Pod of {pods} has {ip}");
    let seccomp = scope.exec("one", &["grep", "Seccomp:", "/proc/1/status"])?;
    ensure!(seccomp.split_whitespace().eq(["Seccomp:", "0"]), "seccompDefault: {seccomp}");
    let status = cluster.skeg(&["status"])?;
    ensure!(status.contains("node      e2e-node Ready") && status.contains(&listen), "{status}");
    cluster.stop()
}

/// Without `--detach`: says when it is ready, logs as asked, ends with a signal.
fn foreground(_: &Scope<'_>) -> Result<()> {
    let cluster = Cluster::prepare()?;
    // Secrets are in it: a directory that all may read is closed.
    fs::create_dir(&cluster.data_dir)?;
    fs::set_permissions(&cluster.data_dir, fs::Permissions::from_mode(0o755))?;
    let mut child = crate::cluster::ends_with_us(cluster.up_command().arg("--log=json"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stdout.take().context("piped")?).lines();
    let first = said.next().context("a line")??;
    ensure!(first.starts_with("API ready ") && first.contains(" ms · node Ready "), "{first}");
    let mode = fs::metadata(&cluster.data_dir)?.permissions().mode() & 0o777;
    ensure!(mode == 0o700, "the data directory has mode {mode:o}");
    let pid = i32::try_from(child.id())?;
    // SAFETY: a plain kill(2) of the server that this test started.
    ensure!(unsafe { libc::kill(pid, libc::SIGTERM) } == 0);
    let mut log = String::new();
    child.stderr.take().context("piped")?.read_to_string(&mut log)?;
    ensure!(child.wait()?.success(), "a server that is asked to end ends well: {log}");
    let lines: Vec<Value> =
        log.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("JSON lines")?;
    let messages: Vec<&str> = lines.iter().filter_map(|line| line["fields"]["message"].as_str()).collect();
    ensure!(messages.iter().any(|message| message.contains("SIGTERM")), "{log}");
    ensure!(!cluster.data_dir.join("skeg.log").exists(), "--log=json writes no file");
    cluster.up()?;
    cluster.skeg(&["down"])?;
    let stopped = cluster.skeg(&["status"]).err().context("stopped")?.to_string();
    ensure!(stopped.contains("is stopped: start it with `skeg up`"), "{stopped}");
    let log = fs::read_to_string(cluster.data_dir.join("skeg.log"))?;
    ensure!(log.contains(" INFO ") && log.contains("SIGTERM"), "{log}");
    cluster.stop()
}

/// A lock that the caller's shell holds must not be held by the cluster.
fn inherits_nothing(_: &Scope<'_>) -> Result<()> {
    let cluster = Cluster::prepare()?;
    let lock = fs::File::create(cluster.scratch().join("callers-lock"))?;
    // SAFETY: a plain fcntl(2) of a descriptor of our own: it now passes to what we start.
    ensure!(unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_SETFD, 0) } == 0);
    cluster.up()?;
    let files = fs::read_dir(format!("/proc/{}/fd", cluster.server_pid()?))?;
    for file in files.flatten() {
        let target = fs::read_link(file.path()).unwrap_or_default();
        ensure!(!target.ends_with("callers-lock"), "the server has {} open", target.display());
    }
    cluster.stop()
}

fn image_commands(scope: &Scope<'_>) -> Result<()> {
    let cluster = scope.cluster;
    let registry = cluster.registry.as_ref().context("the registry")?;
    registry.push(&cluster.archive("client"), "team/tool:v1", None)?;
    let reference = format!("{}/team/tool:v1", registry.host());
    let line = |name: &str| -> Result<Option<String>> {
        let list = cluster.skeg(&["image", "list"])?;
        ensure!(list.starts_with("REFERENCE"), "{list}");
        Ok(list.lines().find(|line| line.starts_with(name)).map(str::to_owned))
    };
    // `up` and `image import` made these: they are pinned.
    let pinned = line("docker.io/library/nginx:latest")?.context("the imported image")?;
    ensure!(pinned.ends_with("yes"), "{pinned}");
    // On a terminal a pull shows bars, elsewhere a line. Layers that are here already need none.
    cluster.skeg(&["image", "remove", "docker.io/library/client:latest"])?;
    let mut pull = Command::new("script");
    let words = format!(
        "{} image pull {reference} --data-dir {}",
        cluster.skeg.display(),
        cluster.data_dir.display()
    );
    let output =
        pull.args(["--quiet", "--return", "--command", &words, "/dev/null"]).stdin(Stdio::null()).output()?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && shown.contains("pulled "), "{shown}");
    ensure!(shown.contains("complete") && shown.contains('['), "no bars on a terminal: {shown:?}");
    let pulled = line(&reference)?.context("the pulled image")?;
    ensure!(!pulled.ends_with("yes"), "a pull pins nothing: {pulled}");
    let again = cluster.skeg(&["image", "pull", &reference])?;
    ensure!(again.starts_with("pulled ") && again.lines().count() == 1, "{again}");
    cluster.skeg(&["image", "remove", &reference])?;
    ensure!(line(&reference)?.is_none(), "removed");
    // What is imported is used without a registry until it is removed.
    scope.kubectl(&["run", "offline", "--image=nginx"])?;
    scope.wait_ready("offline")?;
    let events = scope.kubectl(&["events", "--for", "pod/offline"])?;
    ensure!(events.contains("was imported on this machine and is pinned"), "{events}");
    cluster.skeg(&["image", "remove", "docker.io/library/nginx:latest"])?;
    ensure!(line("docker.io/library/nginx:latest")?.is_none(), "removed");
    let gone = |args: &[&str], part: &str| {
        refused(Command::new(&cluster.skeg).args(args).arg("--data-dir").arg(&cluster.data_dir), part)
    };
    gone(&["image", "remove", "docker.io/library/nginx:latest"], "no such image")?;
    gone(
        &["image", "import", "/no/such/archive"],
        "image import /no/such/archive: there is no such file: name an OCI or docker archive",
    )?;
    // What is in a file that is no archive is not shown.
    gone(
        &["image", "import", "/etc/passwd"],
        "invalid image: /etc/passwd is no archive of an image, or is damaged: make",
    )?;
    gone(&["image", "pull", "Not//A//Name"], "invalid reference format")?;
    gone(&["image", "pull", &format!("{}/none/such:1", registry.host())], "")?;
    let imported = cluster.skeg(&["image", "import", &cluster.archive("nginx").to_string_lossy()])?;
    ensure!(imported.contains("imported docker.io/library/nginx:latest"), "{imported}");
    Ok(())
}

fn side_by_side(scope: &Scope<'_>) -> Result<()> {
    let second = Cluster::start()?;
    let here = scope.cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.uid}"])?;
    let there = second.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.uid}"])?;
    ensure!(here != there, "two clusters");
    for cluster in [scope.cluster, &second] {
        cluster.kubectl(&["run", "box", "--image=nginx"])?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"])?;
    }
    second.stop()?;
    let alive = scope.cluster.kubectl(&["get", "pod", "box", "-o", "jsonpath={.status.phase}"])?;
    ensure!(alive == "Running", "the first cluster is untouched: {alive}");
    Ok(())
}

fn down_and_up(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["run", "box", "--image=nginx"])?;
    scope.wait_ready("box")?;
    let id = scope.jsonpath(&["pod", "box"], "{.status.containerStatuses[0].containerID}")?;
    let status = scope.cluster.skeg(&["status"])?;
    ensure!(status.contains("running"), "{status}");
    scope.cluster.skeg(&["down"])?;
    scope.cluster.up()?;
    let again = scope.jsonpath(&["pod", "box"], "{.status.containerStatuses[0].containerID}")?;
    ensure!(id == again, "{id} became {again}");
    let kubeconfig = scope.cluster.skeg(&["kubeconfig"])?;
    ensure!(kubeconfig.contains("certificate-authority-data"), "{kubeconfig}");
    Ok(())
}

/// On a host of its own, as far as the cluster can see: one that does not forward packets, and where
/// the data directory is a mount point.
fn purge_gives_back(scope: &Scope<'_>) -> Result<()> {
    const SCRIPT: &str = r#"
        set -e
        mount -t tmpfs none /run
        mount -t tmpfs none "$2"
        ip link set lo up
        echo 0 > /proc/sys/net/ipv4/ip_forward
        "$1" up --detach --data-dir "$2" > /dev/null
        echo "up: $(cat /proc/sys/net/ipv4/ip_forward)"
        # A purge that cannot be finished can be, once what was in its way is gone.
        mkdir "$2/images/held"
        mount -t tmpfs none "$2/images/held"
        if "$1" down --purge --data-dir "$2" > /dev/null; then exit 3; fi
        umount "$2/images/held"
        "$1" down --purge --data-dir "$2" > /dev/null
        echo "purged: $(cat /proc/sys/net/ipv4/ip_forward) $(ls -A "$2" | wc -l) files"
        umount "$2"
    "#;
    let directory = scope.cluster.scratch().join("mounted");
    fs::create_dir_all(&directory)?;
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--mount", "--net", "/bin/sh", "-c", SCRIPT, "sh"]).arg(&scope.cluster.skeg).arg(directory);
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}{errors}");
    ensure!(said == "up: 1\npurged: 0 0 files\n", "{said}{errors}");
    Ok(())
}

/// What the host has of it is named after its path: it goes by the path at which it came.
fn moved_directory(_: &Scope<'_>) -> Result<()> {
    let mut cluster = Cluster::prepare()?;
    let (first, second) = (cluster.data_dir.clone(), cluster.scratch().join("moved"));
    let (was, is) = (Instance::at(&first)?, Instance::at(&second)?);
    let nothing = Traces::of_instance(&was)?;
    cluster.up()?;
    silent_readers(&cluster)?;
    cluster.skeg(&["down"])?;
    fs::rename(&first, &second)?;
    cluster.data_dir.clone_from(&second);
    refused(&mut cluster.up_command(), &format!("was at {} when the cluster ran last", first.display()))?;
    let purge = |at: &std::path::Path| -> Result<bool> {
        let output = Command::new(&cluster.skeg).args(["down", "--purge", "--data-dir"]).arg(at).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).contains("removed the Pods, links"))
    };
    let is_gone = |instance: &Instance| nothing.wait_until_as_before(|| Traces::of_instance(instance));
    ensure!(purge(&first)? && !purge(&first)?, "what is gone is removed once");
    is_gone(&was)?;
    cluster.up()?;
    cluster.skeg(&["down"])?;
    fs::remove_dir_all(&second)?;
    ensure!(purge(&second)?, "without its directory");
    is_gone(&is)?;
    // A purge of a moved one takes along what it left under its former name.
    cluster.up()?;
    cluster.skeg(&["down"])?;
    fs::rename(&second, &first)?;
    ensure!(purge(&first)?);
    is_gone(&is)?;
    is_gone(&was)
}

/// Whoever reads may stop, and what is written to be full.
fn silent_readers(cluster: &Cluster) -> Result<()> {
    let status = || {
        let mut command = Command::new(&cluster.skeg);
        command.args(["status", "--data-dir"]).arg(&cluster.data_dir).stderr(Stdio::piped());
        command
    };
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = status().stdout(writer).spawn()?.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(141) && said.is_empty(), "{:?} {said}", output.status);
    let full = fs::File::options().write(true).open("/dev/full")?;
    let output = status().stdout(full).spawn()?.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1) && said.starts_with("skeg: cannot write to standard output"),
        "{said}"
    );
    Ok(())
}

/// A mount that ends with its case.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}

fn full_disk(scope: &Scope<'_>) -> Result<()> {
    let disk = scope.cluster.scratch().join("disk");
    fs::create_dir(&disk)?;
    ensure!(
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "disk"]).arg(&disk).status()?.success()
    );
    // Unmounted after the cluster that is on it is gone.
    let disk = Mounted(disk);
    let mut cluster = Cluster::prepare()?;
    cluster.data_dir = disk.0.join("data");
    cluster.up()?;
    let filler = disk.0.join("filler");
    // Until nothing more fits, and what the store has in reserve is used up.
    let mut file = fs::File::create(&filler)?;
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let large = cluster.scratch().join("large");
    fs::write(&large, vec![b'x'; 900_000])?;
    let from_file = format!("--from-file={}", large.display());
    let refusal =
        (0..40).find_map(|n| cluster.kubectl(&["create", "configmap", &format!("c{n}"), &from_file]).err());
    let refusal = refusal.context("writes fail")?.to_string();
    ensure!(refusal.contains("disk is full"), "{refusal}");
    let ready = cluster.kubectl(&["get", "--raw", "/readyz?verbose"]).err().context("not ready")?.to_string();
    ensure!(ready.contains("[-]store failed"), "{ready}");
    cluster.kubectl(&["get", "--raw", "/livez"])?;
    // Killed, for an end in order would move the WAL and make room.
    cluster.kill()?;
    // The node may be Ready before something is written; waited for in vain it is not.
    if let Err(told) = cluster.up() {
        let told = told.to_string();
        ensure!(
            told.contains("cannot write, so its node is not Ready") && told.contains("make room"),
            "{told}"
        );
    }
    ensure!(
        cluster.kubectl(&["get", "configmap", "c0", "-o", "name"])?.contains("c0"),
        "what is stored is read"
    );
    drop(file);
    fs::remove_file(&filler)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=90s"])?;
    cluster.kubectl(&["create", "configmap", "again", &from_file])?;
    cluster.kubectl(&["get", "--raw", "/readyz"])?;
    cluster.stop()
}
