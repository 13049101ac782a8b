//! The same binary on Debian's own kernel with pure cgroup v2, in QEMU (software emulation).

use super::{deployment, pod};
use crate::cluster::{Cluster, free_port, head};
use crate::{Case, Scope};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Needs no cluster of the host's.
pub const CASES: &[Case] = &[Case { name: "cgroup2_guest", run: cgroup2_guest }];

/// How long the emulated machine may take for one command.
const PATIENCE: Duration = Duration::from_secs(120);

/// A booted machine with a shell on its serial line.
struct Guest {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    port: u16,
}

impl Guest {
    fn boot() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let port = free_port()?;
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"])
            .args(["-kernel", &variable("SKEG_GUEST_KERNEL")?, "-initrd", &variable("SKEG_GUEST_INITRD")?])
            .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"])
            .args(["-nic", &format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:6443")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("qemu-system-x86_64")?;
        let (input, output) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut guest = Guest { child, input, lines, port };
        guest.until("GUEST-READY")?;
        guest.run("stty -echo; PS1=")?;
        // What the kernel has to say must not get among the answers.
        guest.run("dmesg -n 1")?;
        Ok(guest)
    }

    /// The lines up to one that is `end`.
    fn until(&mut self, end: &str) -> Result<Vec<String>> {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.trim() == end => return Ok(seen),
                Ok(line) => seen.push(line),
                Err(_) => bail!("the guest did not say {end}; its last lines:\n{}", seen.join("\n")),
            }
        }
    }

    /// Runs a command in the guest's shell; fails where it does.
    fn run(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}; echo \"EXIT-\"$?; echo END-\"OF-COMMAND\"")?;
        self.input.flush()?;
        let mut lines = self.until("END-OF-COMMAND")?;
        let exit = lines.iter().rposition(|line| line.starts_with("EXIT-")).context("an exit code")?;
        let code = lines[exit].clone();
        lines.truncate(exit);
        let text = lines.join("\n");
        ensure!(code == "EXIT-0", "`{command}` in the guest: {code}\n{}", head(&text, 4000));
        Ok(text)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cgroup2_guest(_: &Scope<'_>) -> Result<()> {
    let mut guest = Guest::boot()?;
    let controllers = guest.run("cat /sys/fs/cgroup/cgroup.controllers")?;
    ensure!(["cpu", "memory", "pids"].iter().all(|name| controllers.contains(name)), "{controllers}");
    guest.run("/skeg up --detach --listen 10.0.2.15:6443 --node-name guest || { cat /var/lib/skeg/skeg.log; false; }")?;
    guest.run("/skeg image import /images/nginx.tar && /skeg image import /images/busybox.tar")?;
    let kubeconfig =
        guest.run("/skeg kubeconfig")?.replace("10.0.2.15:6443", &format!("127.0.0.1:{}", guest.port));
    let directory = tempfile::tempdir()?;
    let path: PathBuf = directory.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig)?;
    let cluster = Cluster::foreign(&path)?;
    let scope = Scope { cluster: &cluster, namespace: "default".into() };

    scope.apply(&deployment("web", 3))?;
    scope.rolled_out("web").inspect_err(|_| {
        for command in ["tail -n 40 /var/lib/skeg/skeg.log", "dmesg | tail -n 20"] {
            eprintln!("--- guest: {command}\n{}", guest.run(command).unwrap_or_default());
        }
    })?;
    let mut limited = pod("limited", &[("main", "sleep 1000")]);
    limited["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
    scope.apply(&limited)?;
    scope.wait_ready("limited")?;
    let group = guest.run("find /sys/fs/cgroup -path '*/skeg-*/pod*' -name memory.max -exec grep -lx 67108864 {} + | head -n 1 | xargs dirname")?;
    let limits = guest.run(&format!("cat {group}/memory.max {group}/cpu.max"))?;
    ensure!(limits == "67108864\n50000 100000", "{limits}");
    ensure!(scope.exec("limited", &["echo", "hello"])?.trim() == "hello");
    for (cpu, memory, quota, bytes) in
        [("800m", "96Mi", 80_000, 96 << 20), ("300m", "32Mi", 30_000, 32 << 20)]
    {
        let sizes =
            json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
        super::resize::resize(&scope, "limited", &[("main", sizes.clone())])?;
        super::resize::resized(&scope, "limited", &[("main", sizes)])?;
        let limits = guest.run(&format!("cat {group}/memory.max {group}/cpu.max {group}/../cpu.max"))?;
        ensure!(limits == format!("{bytes}\n{quota} 100000\n{quota} 100000"), "{limits}");
    }

    let mut hungry = pod("hungry", &[("main", "exec tail /dev/zero")]);
    hungry["spec"]["restartPolicy"] = "Never".into();
    hungry["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    scope.apply(&hungry)?;
    scope.wait_for("pod/hungry", "{.status.phase}=Failed")?;
    let ended =
        scope.get(&["pod", "hungry"])?["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{ended}");

    scope.kubectl(&["delete", "deployment,pod", "--all", "--timeout=90s"])?;
    scope.kubectl(&["wait", "--for=delete", "pod", "--all", "--timeout=90s"])?;
    let left = guest.run("ls -d /sys/fs/cgroup/skeg-*/pod* 2>/dev/null | wc -l")?;
    ensure!(left.trim() == "0", "{left} Pod cgroups are left");
    guest.run("/skeg down --purge")?;
    let left = guest.run("ls -d /sys/fs/cgroup/skeg* /var/lib/skeg /run/skeg* 2>/dev/null | wc -l; ip link | grep -c skeg; nft list tables | grep -c skeg; true")?;
    ensure!(left.split_whitespace().all(|count| count == "0"), "left behind: {left}");
    Ok(())
}
