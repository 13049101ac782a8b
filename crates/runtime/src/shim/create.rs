//! A container from the call that creates it to the program that runs.

use super::containers::Container;
use super::poller::Source;
use super::streams::watch_output;
use super::{Shim, Step, Watched, other};
use crate::log::{LogFile, Partial};
use crate::process::{Child, Creation, NOTE_LEN_MAX, Note, START, Stdio};
use crate::protocol::{Context, Failure, FailureKind, Message, Reply};
use crate::sys::Fork;
use crate::types::{ContainerConfig, ContainerState, ContainerStatus};
use crate::{devices, process, state, sys};
use std::os::fd::{AsRawFd, OwnedFd};
use std::{fs, io};

impl Shim {
    pub(super) fn create(&mut self, token: u64, seq: u64, config: ContainerConfig) -> Step {
        let id = config.id.clone();
        if !state::name_is_safe(&id) || id == "shim" {
            return Err(other(format!("{id:?} is not a container id")));
        }
        if self.shutdown.is_some() {
            return Err(other("the sandbox is being removed"));
        }
        if self.containers.contains_key(&id) {
            return Err(other(format!("container {id} exists")));
        }
        let made = self.spawn(&config);
        match made {
            Ok(mut container) => {
                container.creating = Some((token, seq));
                self.containers.insert(id, container);
                Ok(())
            }
            Err(failure) => {
                self.clean_up(&id);
                Err(failure)
            }
        }
    }

    /// The process whose PID namespace the container joins, where it has one to itself.
    fn target_of(&self, config: &ContainerConfig) -> Step<Option<&OwnedFd>> {
        let Some(id) = &config.target else { return Ok(None) };
        let target = self.containers.get(id).ok_or_else(|| Failure::no_container(id))?;
        if target.status.state != ContainerState::Running {
            return Err(other(format!("target container {id} is not running")));
        }
        let is_apart = self.pod_pids.is_none() && !self.record.config.host_pid;
        Ok(is_apart.then_some(&target.pidfd))
    }

    /// Makes groups and streams and forks the child that becomes the container.
    fn spawn(&mut self, config: &ContainerConfig) -> Step<Container> {
        let dir = self.layout.container(&self.uid, &config.id);
        fs::create_dir_all(&dir).at(|| format!("create {}", dir.display()))?;
        let log = LogFile::open(&config.log_path, config.log_rotation)
            .at(|| format!("open the log file {}", config.log_path.display()))?;
        let (nodes, rules) = devices_of(config)?;
        let group = self.group(&config.id);
        self.cgroups.create(&group)?;
        self.cgroups.set(&group, &config.resources)?;
        self.cgroups.kill_as_one(&group)?;
        self.cgroups.set_devices(&group, rules.as_deref())?;
        let into = self.cgroups.open(&group)?;

        let (notes, child_notes) = sys::message_pair().at(|| "socketpair".into())?;
        let pipe = || sys::pipe().at(|| "pipe".into());
        let (mut stdin, mut outputs) = (None, [None, None]);
        let stdio = if config.tty {
            Stdio::Terminal
        } else {
            let child_stdin = match config.stdin {
                true => {
                    let (read, write) = pipe()?;
                    stdin = Some(write);
                    Some(read)
                }
                false => None,
            };
            let (out, child_out) = pipe()?;
            let (err, child_err) = pipe()?;
            outputs = [Some(out), Some(err)];
            Stdio::Pipes([child_stdin, Some(child_out), Some(child_err)])
        };

        let mut namespaces = 0;
        let target = self.target_of(config)?;
        if let Some(pids) = target.or(self.pod_pids.as_ref()) {
            sys::setns(pids, libc::CLONE_NEWPID).at(|| "enter the PID namespace to share".into())?;
        } else if !self.record.config.host_pid {
            namespaces = libc::CLONE_NEWPID;
        }
        let entered = target.is_some() || self.pod_pids.is_some();
        // SAFETY: single-threaded; the child ends in exec or _exit.
        let fork = unsafe { sys::clone3(namespaces, into.as_ref()) };
        if let Ok(Fork::Child) = fork {
            let child = Child {
                config,
                cgroups: &self.cgroups,
                cgroup: &group,
                hostname: &self.record.config.hostname,
                notes: child_notes,
                stdio,
            };
            let creation = Creation {
                dir: &dir,
                host_mounts: &self.host_mounts,
                shm: self.shm.as_ref(),
                oom_score_adj: config.resources.oom_score_adj,
                nodes: &nodes,
            };
            process::run_first(child, &creation)
        }
        if entered {
            sys::setns(&self.host_pids, libc::CLONE_NEWPID).at(|| "leave the shared PID namespace".into())?;
        }
        let Fork::Parent { pid, pidfd } = fork.at(|| "fork the container's process".into())? else {
            return Err(other("unreachable: the child does not return"));
        };
        drop(stdio);
        drop(child_notes);

        sys::set_nonblocking(&notes)?;
        let notes_token = self.poller.add(&notes, libc::EPOLLIN, Source::Notes(config.id.clone()))?;
        let mut container = Container {
            config: config.clone(),
            status: ContainerStatus {
                id: config.id.clone(),
                name: config.name.clone(),
                attempt: config.attempt,
                state: ContainerState::Created,
                pid: Some(pid),
                created_at_ns: sys::realtime_ns(),
                started_at_ns: None,
                finished_at_ns: None,
                exit_code: None,
                signal: None,
                oom_killed: false,
                message: String::new(),
                log_path: config.log_path.clone(),
                labels: config.labels.clone(),
                identity: None,
            },
            pid,
            pidfd,
            notes: Some(Watched { fd: notes, token: notes_token }),
            creating: None,
            starting: None,
            removing: Vec::new(),
            warnings: Vec::new(),
            outputs: [None, None],
            partials: [Partial::default(), Partial::default()],
            log,
            terminal: None,
            stdin: None,
            stdin_buffer: Vec::new(),
            stdin_token: None,
            stdin_ends: false,
        };
        for (stream, output) in outputs.into_iter().enumerate() {
            if let Some(fd) = output {
                container.outputs[stream] = Some(watch_output(&mut self.poller, &config.id, stream, fd)?);
            }
        }
        if let Some(stdin) = stdin {
            sys::set_nonblocking(&stdin)?;
            container.stdin = Some(stdin);
        }
        Ok(container)
    }

    /// Hears what the child has to tell.
    pub(super) fn on_notes(&mut self, id: &str) {
        let mut text = [0; NOTE_LEN_MAX];
        loop {
            let Some(container) = self.containers.get_mut(id) else { return };
            let Some(notes) = &container.notes else { return };
            let mut fds = Vec::new();
            let received = sys::receive_with_fds(notes.fd.as_raw_fd(), &mut text, &mut fds);
            let note = match received {
                Ok(n) if n > 0 => serde_json::from_slice::<Note>(&text[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                _ => {
                    if let Some(notes) = container.notes.take() {
                        self.poller.remove(&notes.fd, notes.token);
                    }
                    return self.notes_ended(id);
                }
            };
            match note {
                Ok(Note::Warning(text)) => container.warnings.push(text),
                Ok(Note::Identity(identity)) => container.status.identity = Some(identity),
                Ok(Note::Terminal) => {
                    if let Err(e) = self.take_terminal(id, fds.pop()) {
                        eprintln!("container {id}: terminal: {}", e.text);
                    }
                }
                Ok(Note::Ready) => self.created(id),
                Ok(Note::Failed(failure)) => self.failed(id, failure),
                Err(e) => self.failed(id, other(e.to_string())),
            }
        }
    }

    fn take_terminal(&mut self, id: &str, terminal: Option<OwnedFd>) -> Step {
        let Some(terminal) = terminal else { return Err(other("no descriptor came")) };
        sys::set_nonblocking(&terminal)?;
        let output = watch_output(&mut self.poller, id, 0, terminal.try_clone()?)?;
        let container = self.get(id)?;
        container.outputs[0] = Some(output);
        container.stdin = if container.config.stdin { Some(terminal.try_clone()?) } else { None };
        container.terminal = Some(terminal);
        Ok(())
    }

    fn created(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((token, seq)) = container.creating.take() else { return };
        let (status, warnings) = (container.status.clone(), std::mem::take(&mut container.warnings));
        self.save(id, false);
        self.broadcast(&Message::Changed { status: status.clone() });
        self.reply(token, seq, Ok(Reply::Container { status: Box::new(status), warnings }));
    }

    /// The child could not become the container.
    fn failed(&mut self, id: &str, failure: Failure) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some((token, seq)) = container.creating.take() {
            self.forget(id);
            self.reply(token, seq, Err(failure));
        } else if let Some((token, seq)) = container.starting.take() {
            container.status.message.clone_from(&failure.text);
            // What runtimes report for a program that could not be started.
            const START_FAILED: i32 = 128;
            self.ended(id, START_FAILED, None);
            self.reply(token, seq, Err(failure));
        }
    }

    /// The channel's end: the program runs, or the child died on the way.
    fn notes_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.creating.is_some() {
            return self.failed(id, other("the container's process died while it was set up"));
        }
        let Some((token, seq)) = container.starting.take() else { return };
        container.status.state = ContainerState::Running;
        container.status.started_at_ns = Some(sys::realtime_ns());
        let status = container.status.clone();
        self.save(id, false);
        self.broadcast(&Message::Changed { status: status.clone() });
        self.reply(token, seq, Ok(Reply::Container { status: Box::new(status), warnings: Vec::new() }));
    }

    pub(super) fn start(&mut self, token: u64, seq: u64, id: &str) -> Step {
        let container = self.get(id)?;
        if container.creating.is_some() || container.status.state != ContainerState::Created {
            return Err(other(format!("container {id} is not in the state created")));
        }
        let Some(notes) = &container.notes else {
            return Err(Failure::new(FailureKind::Start, "the container's process died before its start"));
        };
        if container.starting.is_some() {
            return Err(other(format!("container {id} is being started")));
        }
        sys::send_with_fds(notes.fd.as_raw_fd(), &[START], &[]).at(|| "start".into())?;
        container.starting = Some((token, seq));
        Ok(())
    }
}

/// The device nodes of a container and the rules for its group (None: every device).
fn devices_of(config: &ContainerConfig) -> Step<(Vec<devices::Node>, Option<Vec<devices::Rule>>)> {
    let mut nodes = if config.security.privileged { devices::host_nodes() } else { Vec::new() };
    let mut rules = devices::default_rules();
    for device in &config.devices {
        let node = devices::lookup(&device.host_path, &device.container_path)
            .at(|| format!("device {}", device.host_path.display()))?;
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        rules.push(devices::Rule {
            block: node.block,
            major: Some(node.major),
            minor: Some(node.minor),
            access: access.to_owned(),
        });
        nodes.push(node);
    }
    Ok((nodes, (!config.security.privileged).then_some(rules)))
}
