//! What a container finds of its surroundings, and what it does not.

use crate::host::*;
use skeg_runtime::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

const DESCRIPTORS: &str = "echo $(ls /proc/self/fd)";
/// Those below the real-time ones: two of these are the C library's own.
const SIGNALS: &str = "grep -E 'Sig(Ign|Blk)' /proc/self/status | sed 's/:.*\\(.......\\)$/:\t\\1/'";

#[tokio::test]
async fn nothing_of_the_supervisor_is_handed_down() {
    let host = Host::new("handed").await;
    host.sandbox("u1", |_| ()).await;
    let script = format!("{DESCRIPTORS}; {SIGNALS}; echo up; sleep 1000");
    let mut config = host.container("c1", &["sh", "-c", &script]);
    config.resources.oom_score_adj = Some(500);
    host.run("u1", config).await;
    wait_log(&host, "c1", "up").await;
    // The fourth is of `ls` itself.
    let wanted = "0 1 2 3\nSigBlk:\t0000000\nSigIgn:\t0000000\n";
    assert_eq!(host.log("c1"), format!("{wanted}up\n"));
    let script = format!(
        "{DESCRIPTORS}; {SIGNALS}; cat /proc/self/oom_score_adj; \
         test $(readlink /proc/1/ns/cgroup) = $(readlink /proc/self/ns/cgroup) && echo same"
    );
    let out = host.exec("u1", "c1", &script).await;
    assert_eq!(String::from_utf8_lossy(&out.output), format!("{wanted}500\nsame\n"));
    let mode = |path: &str| std::fs::metadata(host.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("run/u1.sock"), mode("logs/c1.log")), (0o600, 0o640));
    host.finish().await;
}

#[tokio::test]
async fn kernel_trees_are_masked_and_write_protected() {
    let host = Host::new("masked").await;
    host.sandbox("u1", |_| ()).await;
    let (_, mounts) = host.script("u1", "c1", "cat /proc/mounts").await;
    let options = |path: &str| -> Vec<&str> {
        let line = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(path));
        line.and_then(|line| line.split(' ').nth(3)).unwrap_or_default().split(',').collect()
    };
    for path in ["bus", "fs", "irq", "sys", "sysrq-trigger"].map(|name| format!("/proc/{name}")) {
        assert!(!Path::new(&path).exists() || options(&path).contains(&"ro"), "{path}: {mounts}");
    }
    for path in [
        "/proc/asound",
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ] {
        assert!(!Path::new(path).exists() || options(path) != [""], "{path}: {mounts}");
    }
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(options("/proc").contains(&option), "{option}: {mounts}");
    }

    // A link in the image does not lead the masks elsewhere, and no volume lies over them.
    let layer = host.path("linked");
    std::fs::create_dir_all(layer.join("tmp")).unwrap();
    symlink("tmp", layer.join("proc")).unwrap();
    let mut config = host.container("c2", &["true"]);
    config.layers.insert(0, layer);
    let error = host.runtime.create_container("u1", config).await.unwrap_err();
    assert_eq!(error.to_string(), "/proc must be mounted on an ordinary directory");
    let mut config = host.container("c3", &["true"]);
    config.mounts.push(tmpfs("/proc/self", None, false));
    let error = host.runtime.create_container("u1", config).await.unwrap_err();
    assert_eq!(error.to_string(), "/proc/self cannot be mounted because it is inside /proc");

    // Nor by a link: neither of the image nor of a volume.
    let layer = host.path("way");
    std::fs::create_dir_all(&layer).unwrap();
    symlink("/proc/sys", layer.join("way")).unwrap();
    std::fs::create_dir_all(host.path("volume")).unwrap();
    symlink("/proc/self", host.path("volume/there")).unwrap();
    let mut config = host.container("c4", &["true"]);
    config.layers.insert(0, layer);
    let mut by_image = config.clone();
    by_image.image_volumes = vec!["/way".into()];
    let error = host.runtime.create_container("u1", by_image).await.unwrap_err();
    assert_eq!(error.to_string(), "/proc/sys cannot be mounted because it is inside /proc");
    for link in ["/way/kernel", "/volume/there"] {
        let mut config = config.clone();
        let volume =
            Mount { source: MountSource::Bind(host.path("volume")), ..tmpfs("/volume", None, false) };
        config.mounts = vec![volume, tmpfs(link, None, false)];
        let error = host.runtime.create_container("u1", config).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{link} cannot be mounted because it is inside /proc"));
    }
    host.finish().await;
}

fn tmpfs(destination: &str, size_bytes: Option<u64>, read_only: bool) -> Mount {
    Mount {
        destination: destination.into(),
        source: MountSource::Tmpfs { size_bytes },
        read_only,
        recursive_read_only: false,
        propagation: Propagation::Private,
    }
}

#[tokio::test]
async fn mounts_lie_over_each_other_by_their_depth() {
    let host = Host::new("depth").await;
    host.sandbox("u1", |_| ()).await;
    let script = "echo x > /data/deep/f && cat /data/deep/f; (echo x > /data/f) 2>/dev/null || echo read-only; cat /proc/mounts";
    let mut config = host.container("c1", &["sh", "-c", script]);
    // The deeper one is named first.
    config.mounts = vec![tmpfs("/data/deep", Some(1 << 20), false), tmpfs("/shallow", None, true)];
    std::fs::create_dir_all(host.path("volume/deep")).unwrap();
    let volume = MountSource::Bind(host.path("volume"));
    config.mounts.push(Mount { source: volume, ..tmpfs("/data", None, true) });
    host.run("u1", config).await;
    host.wait_exit("u1", "c1").await;
    let log = host.log("c1");
    assert!(log.starts_with("x\nread-only\n"), "{log}");
    let line = |path: &str| log.lines().find(|l| l.contains(&format!(" {path} "))).unwrap_or_default();
    assert!(line("/data/deep").contains("size=1024k") && line("/shallow").contains(" ro,"), "{log}");
    host.finish().await;
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| if e.path().is_dir() { bytes_below(&e.path()) } else { e.metadata().unwrap().len() })
        .sum()
}

#[tokio::test]
async fn an_images_volumes_are_the_containers_own() {
    use std::os::unix::fs::{MetadataExt, lchown};
    let mut host = Host::new("volumes").await;
    host.sandbox("u1", |_| ()).await;
    let (layer, outside) = (host.path("with-volumes"), host.path("outside"));
    let data = layer.join("data");
    std::fs::create_dir_all(data.join("sub")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    std::fs::write(data.join("sub/f"), "of the image\n").unwrap();
    std::fs::hard_link(data.join("sub/f"), data.join("again")).unwrap();
    std::fs::write(data.join("own"), "").unwrap();
    lchown(data.join("own"), Some(33), Some(50)).unwrap();
    std::fs::set_permissions(data.join("own"), std::fs::Permissions::from_mode(0o4750)).unwrap();
    symlink(&outside, data.join("link")).unwrap();
    lchown(&data, Some(33), Some(33)).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o2770)).unwrap();
    let times = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::from_secs(86400));
    std::fs::File::open(data.join("sub/f")).unwrap().set_times(times).unwrap();
    // A file capability (capabilities(7)): it stands for every attribute and is the first to go.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(
        data.join("own"),
        "security.capability",
        &capability,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    // A link of the image that leads out of it, and one to where something is mounted.
    symlink(&outside, layer.join("out")).unwrap();
    symlink("run", layer.join("alias")).unwrap();
    std::fs::create_dir(layer.join("run")).unwrap();

    let script = "cat /data/sub/f; busybox stat -c '%a %u %g' /data /data/own /data/sub /new/deep; \
        busybox stat -c %h /data/again; busybox stat -c %Y /data/sub/f; readlink /data/link; \
        echo x >> /data/sub/f && echo x > /new/deep/x && echo x > /relative/x && echo written; \
        (echo x > /elsewhere) 2>/dev/null || echo read-only; \
        cat /run/x; ls /out /run; echo up; sleep 1000";
    let make = |id: &str| {
        let mut config = host.container(id, &["busybox", "sh", "-c", script]);
        config.layers.insert(0, layer.clone());
        config.security.read_only_root = true;
        config.image_volumes =
            ["/data", "/data/", "/new/deep", "/", "..", "relative", "/x/../data/.", "/out", "/alias/mounted"]
                .map(Into::into)
                .to_vec();
        config.mounts = vec![tmpfs("/run/mounted", None, false)];
        config
    };
    host.run("u1", make("c1")).await;
    wait_log(&host, "c1", "up").await;
    let log = host.log("c1");
    let wanted = format!(
        "of the image\n2770 33 33\n4750 33 50\n755 0 0\n755 0 0\n2\n86400\n{}\nwritten\nread-only\n",
        outside.display()
    );
    assert!(log.starts_with(&wanted), "{log}");
    assert!(log.ends_with("/out:\n\n/run:\nmounted\nup\n"), "nothing of the host is seen: {log}");
    let dir = host.path("data/sandboxes/u1/containers/c1/volumes");
    let copied = |name: &str| dir.join("0").join(name);
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(copied("own"), "security.capability", &mut value).unwrap();
    assert_eq!(value[..len], capability);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4, "data, new, relative and out");
    assert_eq!(std::fs::read_to_string(data.join("sub/f")).unwrap(), "of the image\n");
    let out = host.exec("u1", "c1", "cat /proc/mounts").await;
    let mounts = String::from_utf8_lossy(&out.output).into_owned();
    let at = |path: &str| mounts.lines().filter(|l| l.split(' ').nth(1) == Some(path)).collect::<Vec<_>>();
    assert!(at("/run/mounted").len() == 1 && at("/run/mounted")[0].starts_with("tmpfs "), "{mounts}");
    // They count, and so does what comes later.
    let counted = || host.runtime.writable_dirs("u1", "c1").iter().map(|dir| bytes_below(dir)).sum::<u64>();
    let before = counted();
    host.exec("u1", "c1", "head -c 100000 /dev/zero > /new/deep/big").await;
    assert!(counted() >= before + 100_000, "{before}");

    // Another container begins anew; this one goes on where an agent's restart left it.
    host.run("u1", make("c2")).await;
    wait_log(&host, "c2", "up").await;
    assert!(host.log("c2").starts_with(&wanted), "{}", host.log("c2"));
    host.restart().await;
    let out = host.exec("u1", "c1", "cat /data/sub/f /new/deep/x && echo y > /data/y").await;
    assert_eq!(String::from_utf8_lossy(&out.output), "of the image\nx\nx\n");
    assert_eq!(std::fs::metadata(copied("y")).unwrap().uid(), 0);
    host.runtime.remove_container("u1", "c1").await.unwrap();
    assert!(!dir.exists());

    // A file is no volume.
    let mut config = host.container("c3", &["true"]);
    config.image_volumes = vec!["/etc/passwd".into()];
    let error = host.runtime.create_container("u1", config).await.unwrap_err();
    assert_eq!(error.to_string(), "make the image's volume /etc/passwd: not a directory");
    host.finish().await;
}

#[tokio::test]
async fn everyone_may_use_the_common_devices() {
    let host = Host::new("devices").await;
    host.sandbox("u1", |_| ()).await;
    let (_, log) = host.script("u1", "c1", "ls -l /dev/null /dev/zero /dev/tty").await;
    assert_eq!(log.matches("crw-rw-rw-").count(), 3, "{log}");
    host.finish().await;
}

#[tokio::test]
async fn programs_find_what_they_expect() {
    let host = Host::new("expect").await;
    host.sandbox("u1", |_| ()).await;
    // A variable that is set but empty is no home.
    let mut config = host.container("c1", &["sh", "-c", "echo $PATH $HOME ${TERM-no-term}"]);
    config.env = vec![("HOME".to_owned(), String::new())];
    host.run("u1", config).await;
    host.wait_exit("u1", "c1").await;
    assert_eq!(
        host.log("c1"),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root no-term\n"
    );

    // A terminal is its user's.
    let script =
        "echo $TERM; test -c /dev/console && echo console; : < $(readlink /proc/self/fd/0) && echo own";
    let mut config = host.container("c2", &["sh", "-c", script]);
    config.tty = true;
    config.user.uid = Some(33);
    host.run("u1", config).await;
    host.wait_exit("u1", "c2").await;
    assert_eq!(host.log("c2").replace('\r', ""), "xterm\nconsole\nown\n");

    // A directory that only others may enter.
    let closed = host.path("layer/closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut config = host.container("c3", &["true"]);
    config.cwd = "/closed".to_owned();
    config.security.capabilities.clear();
    config.user.uid = Some(33);
    let error = match host.runtime.create_container("u1", config).await {
        Ok(_) => host.runtime.start_container("u1", "c3").await.unwrap_err(),
        Err(error) => error,
    };
    let text = "chdir to cwd (\"/closed\") set in config.json failed: permission denied";
    assert_eq!(error.to_string(), text);
    host.finish().await;
}
