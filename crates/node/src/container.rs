//! Translates a Pod and its containers into what the runtime makes.

use crate::env::{Facts, Ordered};
use crate::sources::Sources;
use crate::{Context, env, etc, logs, machine, security, text, volumes};
use k8s_openapi::api::core::v1::{Container, Pod};
use skeg_api::expansion::expand;
use skeg_images::Image;
use skeg_runtime::{ContainerConfig, Mount, MountSource, Propagation, SandboxConfig};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
/// The image as the container's status shows it, and its id.
pub const LABEL_IMAGE: &str = "skeg.image";
pub const LABEL_IMAGE_ID: &str = "skeg.image-id";
/// The image as the spec asked for it.
pub const LABEL_ASKED_IMAGE: &str = "skeg.asked-image";
pub const LABEL_STOP_SIGNAL: &str = "skeg.stop-signal";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";
const SIGTERM: i32 = 15;

pub fn sandbox_config(ctx: &Context, pod: &Pod) -> SandboxConfig {
    let spec = machine::spec(pod);
    let shared = spec.security_context.as_ref();
    let host_network = spec.host_network == Some(true);
    let hostname = if host_network {
        ctx.host.hostname.clone()
    } else {
        etc::shown_hostname(pod, spec, &ctx.config.cluster_domain)
    };
    SandboxConfig {
        uid: text(&pod.metadata.uid).to_owned(),
        hostname,
        host_network,
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        sysctls: shared
            .and_then(|s| s.sysctls.as_ref())
            .into_iter()
            .flatten()
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect(),
        resources: security::pod_resources(pod),
        labels: BTreeMap::from([
            (LABEL_POD_NAME.to_owned(), text(&pod.metadata.name).to_owned()),
            (LABEL_POD_NAMESPACE.to_owned(), text(&pod.metadata.namespace).to_owned()),
            (LABEL_POD_UID.to_owned(), text(&pod.metadata.uid).to_owned()),
        ]),
    }
}

/// Everything of a container that is not the Pod's.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub image: &'a Image,
    pub sources: &'a Sources,
    pub pod_ips: &'a [String],
    pub qos_class: &'a str,
    pub attempt: u32,
    pub id: String,
    /// The container whose processes it sees instead of only its own.
    pub target: Option<String>,
}

/// The configuration of one run; the error is `CreateContainerConfigError`'s message.
pub fn container_config(ctx: &Context, inputs: Inputs<'_>) -> Result<ContainerConfig, String> {
    let Inputs { pod, container, image, attempt, .. } = inputs;
    let spec = machine::spec(pod);
    let host_ips: Vec<String> = ctx.config.addresses.iter().map(ToString::to_string).collect();
    let facts = Facts {
        pod,
        pod_ips: inputs.pod_ips,
        host_ips: &host_ips,
        node_name: &ctx.config.name,
        allocatable: &ctx.host.allocatable,
    };
    let services = ctx.services.list(None);
    let own = env::environment(&facts, container, inputs.sources, &services)?;
    let lookup: BTreeMap<&str, &str> = own.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        let words = words.as_deref().unwrap_or_default();
        words.iter().map(|w| expand(w, |name| lookup.get(name).map(|v| (*v).to_owned()))).collect()
    };
    let args = command(&expanded(&container.command), &expanded(&container.args), image);
    let user = security::user(pod, container, &image.config.user)?;
    let profiles = ctx.config.data_dir.join("seccomp");
    let security = security::security(spec, container, ctx.config.seccomp_default, &profiles)?;
    let tty = container.tty == Some(true);
    let mut all = Ordered::default();
    all.set("PATH".into(), DEFAULT_PATH.into());
    if !spec.host_network.unwrap_or(false) {
        all.set("HOSTNAME".into(), etc::shown_hostname(pod, spec, &ctx.config.cluster_domain));
    } else {
        all.set("HOSTNAME".into(), ctx.host.hostname.clone());
    }
    if tty {
        all.set("TERM".into(), "xterm".into());
    }
    for variable in &image.config.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        all.set(name.to_owned(), value.to_owned());
    }
    let mounts = mounts(ctx, &inputs, &lookup)?;
    for (name, value) in &own {
        all.set(name.clone(), value.clone());
    }
    let cwd = [container.working_dir.as_deref(), Some(image.config.working_dir.as_str())];
    let cwd = cwd.into_iter().flatten().find(|d| !d.is_empty()).unwrap_or("/");
    let image_id = image.repo_digests.first().unwrap_or(&image.id);
    let stop_signal = stop_signal(container, image);
    Ok(ContainerConfig {
        id: inputs.id,
        name: container.name.clone(),
        attempt,
        target: inputs.target,
        layers: image.layers.clone(),
        image_volumes: image.config.volumes.iter().map(PathBuf::from).collect(),
        args,
        env: all.list,
        cwd: cwd.to_owned(),
        user,
        mounts,
        devices: Vec::new(),
        resources: security::resources(pod, container, inputs.qos_class, ctx.host.memory_bytes),
        security,
        tty,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        log_path: ctx.log_path(pod, &container.name, attempt),
        log_rotation: Some(logs::ROTATION),
        stop_signal,
        labels: BTreeMap::from([
            (
                LABEL_IMAGE.to_owned(),
                image.tags.first().cloned().unwrap_or_else(|| text(&container.image).to_owned()),
            ),
            (LABEL_IMAGE_ID.to_owned(), image_id.clone()),
            (LABEL_ASKED_IMAGE.to_owned(), text(&container.image).to_owned()),
            (LABEL_STOP_SIGNAL.to_owned(), stop_signal.to_string()),
        ]),
    })
}

/// Docker's rules: a command replaces the entrypoint and the image's arguments.
fn command(command: &[String], args: &[String], image: &Image) -> Vec<String> {
    let (entrypoint, cmd) = (&image.config.entrypoint, &image.config.cmd);
    match (command.is_empty(), args.is_empty()) {
        (true, true) => [&entrypoint[..], &cmd[..]].concat(),
        (true, false) => [&entrypoint[..], args].concat(),
        (false, _) => [command, args].concat(),
    }
}

fn stop_signal(container: &Container, image: &Image) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    [own, Some(image.config.stop_signal.as_str())]
        .into_iter()
        .flatten()
        .find(|s| !s.is_empty())
        .and_then(signal_number)
        .unwrap_or(SIGTERM)
}

/// `SIGQUIT`, `QUIT`, `SIGRTMIN+3` or `3`.
fn signal_number(text: &str) -> Option<i32> {
    let name = text.to_ascii_uppercase();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        let offset: i32 = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return Some(libc::SIGRTMIN() + offset).filter(|n| *n <= libc::SIGRTMAX());
    }
    name.parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

pub fn termination_path(ctx: &Context, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    ctx.pod_dir(text(&pod.metadata.uid))
        .join("containers")
        .join(container)
        .join(format!("{attempt}.termination"))
}

fn mounts(ctx: &Context, inputs: &Inputs<'_>, lookup: &BTreeMap<&str, &str>) -> Result<Vec<Mount>, String> {
    let Inputs { pod, container, .. } = inputs;
    let mut out = Vec::new();
    let mount_at = |destination: &str, source, read_only: bool, propagation: Propagation| Mount {
        destination: destination.into(),
        source,
        read_only,
        recursive_read_only: false,
        propagation,
    };
    let mut mounts: Vec<_> = container.volume_mounts.iter().flatten().collect();
    // Outer mounts first, so that inner ones are not hidden by them.
    mounts.sort_by_key(|m| Path::new(&m.mount_path).components().count());
    for mount in mounts {
        let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(expression), _) if !expression.is_empty() => {
                let unknown = skeg_api::expansion::unknown_references(expression, |n| lookup.contains_key(n));
                if let Some(name) = unknown.first() {
                    return Err(format!("missing value for \"{name}\""));
                }
                Some(expand(expression, |name| lookup.get(name).map(|v| (*v).to_owned())))
            }
            (_, sub_path) => sub_path.clone(),
        };
        let source = volumes::mount_source(ctx, pod, &mount.name, sub_path.as_deref())?;
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        let read_only = mount.read_only == Some(true) || volumes::is_read_only(pod, &mount.name);
        let recursive_read_only = machine::status::is_recursive(mount);
        out.push(Mount {
            recursive_read_only,
            ..mount_at(&mount.mount_path, source, read_only, propagation)
        });
    }
    let bind = |destination: &str, source: PathBuf, read_only: bool, propagation: Propagation| {
        mount_at(destination, MountSource::Bind(source), read_only, propagation)
    };
    if let Some(device) = container.volume_devices.iter().flatten().next() {
        return Err(format!("volume device \"{}\" cannot be attached on this node", device.name));
    }
    let taken = |path: &str, out: &[Mount]| out.iter().any(|m| m.destination == Path::new(path));
    let etc_dir = ctx.pod_dir(text(&pod.metadata.uid)).join("etc");
    for (path, file) in etc_files(ctx, pod, inputs.pod_ips) {
        if !taken(path, &out) {
            let source = etc_dir.join(path.trim_start_matches("/etc/"));
            write_once(&source, &file, &inputs.id).map_err(|e| format!("write {}: {e}", source.display()))?;
            let read_only =
                container.security_context.as_ref().and_then(|s| s.read_only_root_filesystem) == Some(true);
            out.push(bind(path, source, read_only, Propagation::Private));
        }
    }
    let destination = container.termination_message_path.as_deref().unwrap_or(DEFAULT_TERMINATION_PATH);
    if !destination.is_empty() && !taken(destination, &out) {
        let path = termination_path(ctx, pod, &container.name, inputs.attempt);
        let make = || -> std::io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            fs::write(&path, "")?;
            // Whoever the container runs as may write it.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
        };
        make().map_err(|e| format!("create {}: {e}", path.display()))?;
        out.push(bind(destination, path, false, Propagation::Private));
    }
    Ok(out)
}

fn etc_files(ctx: &Context, pod: &Pod, pod_ips: &[String]) -> [(&'static str, String); 3] {
    let spec = machine::spec(pod);
    let host_network = spec.host_network == Some(true);
    let hosts_of_host = host_network.then(|| host_file("/etc/hosts"));
    let domain = &ctx.config.cluster_domain;
    let name = if host_network { ctx.host.hostname.clone() } else { etc::shown_hostname(pod, spec, domain) };
    [
        ("/etc/hosts", etc::hosts(pod, spec, pod_ips, domain, hosts_of_host.as_deref())),
        ("/etc/resolv.conf", etc::resolv_conf(&ctx.config, pod, spec, &host_file("/etc/resolv.conf"))),
        ("/etc/hostname", format!("{name}\n")),
    ]
}

fn host_file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What to tell of DNS configuration that the Pod asks for and does not get.
pub fn dns_limits(ctx: &Context, pod: &Pod) -> Vec<String> {
    etc::dns_limits(&ctx.config, pod, machine::spec(pod), &host_file("/etc/resolv.conf"))
}

/// The containers of a Pod share these files and may change them: whoever comes first makes each, and
/// nobody replaces it. Containers start side by side, so `by` tells their temporary files apart.
fn write_once(path: &Path, content: &str, by: &str) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension(by);
    fs::write(&temporary, content)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    let made = match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    fs::remove_file(&temporary)?;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_start_together_share_one_file() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let path = dir.path().join(format!("{round}/etc/hosts"));
            std::thread::scope(|threads| {
                for by in ["a", "b", "c", "d"] {
                    let path = &path;
                    threads.spawn(move || write_once(path, by, by).unwrap());
                }
            });
            assert_eq!(fs::read_to_string(&path).unwrap().len(), 1);
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        }
    }
    use skeg_images::ImageConfig;

    #[test]
    fn commands_follow_dockers_rules() {
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let config = ImageConfig { entrypoint: list(&["e"]), cmd: list(&["c"]), ..Default::default() };
        let image = Image {
            id: String::new(),
            repo_digests: vec![],
            tags: vec![],
            size_bytes: 0,
            layers: vec![],
            config,
            pinned: false,
            pinned_names: Default::default(),
        };
        for (own, args, expected) in
            [(&[][..], &[][..], "e c"), (&[], &["a"], "e a"), (&["x"], &[], "x"), (&["x"], &["a"], "x a")]
        {
            assert_eq!(command(&list(own), &list(args), &image).join(" "), expected);
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(libc::SIGRTMIN() + 3)),
            ("nope", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
