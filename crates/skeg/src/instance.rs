//! One cluster on this host: its id, its directories, and which process runs it.

use crate::settings::Settings;
use crate::{UserError, refuse};
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The names of one instance. Several run side by side, told apart by their data directories.
#[derive(Clone, Debug)]
pub struct Instance {
    pub data_dir: PathBuf,
    /// Eight hex digits, a hash of the data directory's path: part of every name that Skeg gives
    /// to things of the host.
    pub id: String,
    /// Sockets and state that a reboot ends.
    pub run_dir: PathBuf,
}

impl Instance {
    pub fn at(data_dir: &Path) -> Result<Self> {
        let absolute = std::path::absolute(data_dir).with_context(|| format!("{}", data_dir.display()))?;
        // The directory may be a link or not exist yet: its parent decides the path.
        let data_dir =
            absolute.canonicalize().or_else(|_| match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => {
                    Ok(parent.canonicalize().unwrap_or_else(|_| parent.to_owned()).join(name))
                }
                _ => Err(UserError(format!(
                    "--data-dir {}: name a directory that is not the root",
                    absolute.display()
                ))),
            })?;
        let hash = skeg_base::hash_of(&data_dir.as_os_str().as_encoded_bytes());
        let id = format!("{:08x}", (hash ^ (hash >> 32)) & 0xffff_ffff);
        let run_dir = PathBuf::from(format!("/run/skeg-{id}"));
        Ok(Instance { data_dir, id, run_dir })
    }

    /// Whether the host has something of it: a bridge, or what its supervisors listen on.
    pub fn is_on_host(&self) -> bool {
        let bridge = Path::new("/sys/class/net").join(skeg_network::bridge_name(&self.id));
        self.run_dir.exists() || bridge.exists()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }

    pub fn log_path(&self) -> PathBuf {
        self.path("skeg.log")
    }

    fn pid_path(&self) -> PathBuf {
        self.path("skeg.pid")
    }

    /// Fails where the data directory holds somebody else's files: nothing is written there, and
    /// above all nothing removed.
    pub fn check_ours(&self) -> Result<()> {
        /// What may be there before the first start has saved its settings.
        const BEFORE_SETTINGS: [&str; 5] =
            ["images", "skeg.log", "skeg.pid", "settings.json.new", "lost+found"];
        if let Ok(meta) = fs::metadata(&self.data_dir)
            && meta.uid() != 0
        {
            refuse!(
                "--data-dir {} belongs to user {}, who could change what is in it: chown it to root, or name another",
                self.data_dir.display(),
                meta.uid()
            );
        }
        let entries = match fs::read_dir(&self.data_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => refuse!("--data-dir {}: {error}: name a directory", self.data_dir.display()),
        };
        let foreign = entries
            .flatten()
            .map(|entry| entry.file_name())
            .find(|name| !BEFORE_SETTINGS.iter().any(|ours| name == ours));
        match foreign {
            Some(name) if !matches!(Settings::load(self), Ok(Some(_))) => refuse!(
                "--data-dir {} holds {}, which is not Skeg's: name an empty directory, or one that `skeg up` made",
                self.data_dir.display(),
                name.display()
            ),
            _ => Ok(()),
        }
    }

    /// Makes the directories, readable by root alone; also those that were there before.
    pub fn create_directories(&self) -> Result<()> {
        let make = |directory: &Path| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
        };
        if let Err(error) = make(&self.data_dir) {
            refuse!(
                "--data-dir {} cannot be made: {error}: name a directory on a disk of this host",
                self.data_dir.display()
            );
        }
        make(&self.run_dir).with_context(|| format!("cannot make {}", self.run_dir.display()))
    }

    /// Claims the instance for this process, until the lock is dropped.
    pub fn claim(&self) -> Result<Claim> {
        let path = self.pid_path();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.rewind()?;
                writeln!(lock, "{}", std::process::id())?;
                Ok(Claim { _lock: lock })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                self.check_stopped()?;
                refuse!("{} is in use by another command: try again", self.data_dir.display())
            }
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Fails where a process runs this instance. One that was killed is waited for.
    pub fn check_stopped(&self) -> Result<()> {
        if let Some(pid) = self.running_pid()? {
            crate::process::wait_if_killed(pid)?;
        }
        match self.running_pid()? {
            None => Ok(()),
            Some(pid) => refuse!(
                "{} is in use by a running cluster (process {pid}): use it, or stop it with `skeg down --data-dir {}`",
                self.data_dir.display(),
                self.data_dir.display()
            ),
        }
    }

    /// The process that runs this instance now.
    pub fn running_pid(&self) -> Result<Option<i32>> {
        let mut file = match File::open(self.pid_path()) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open {}", self.pid_path().display()));
            }
        };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // Whoever holds the lock is alive; without a holder the number is only history.
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err(_) => Ok(text.trim().parse().ok()),
        }
    }

    pub fn kubeconfig(&self) -> Result<String> {
        let path = self.path("kubeconfig");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if Settings::path(self).exists() {
                    refuse!("{} is gone: `skeg down` and `skeg up` write it anew", path.display());
                }
                refuse!("there is no cluster in {}: start one with `skeg up`", self.data_dir.display())
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// Held by the process that runs an instance.
pub struct Claim {
    _lock: Flock<File>,
}
