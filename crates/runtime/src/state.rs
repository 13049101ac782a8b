//! What is kept on disk about sandboxes, and where. The supervisor writes while it lives; the
//! agent reads what a dead one left behind.

use crate::types::{ContainerStatus, SandboxConfig};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A sandbox as created.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SandboxRecord {
    pub config: SandboxConfig,
    pub created_at_ns: i64,
    /// What happened under another boot id ended with that boot.
    pub boot_id: String,
}

/// The last known state of a container.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ContainerRecord {
    pub status: ContainerStatus,
    pub boot_id: String,
}

/// The places of one instance.
#[derive(Clone, Debug)]
pub struct Layout {
    pub id: String,
    pub run_dir: PathBuf,
    pub data_dir: PathBuf,
}

impl Layout {
    pub fn sandboxes(&self) -> PathBuf {
        self.data_dir.join("sandboxes")
    }

    /// Directories on their way out.
    pub fn trash(&self) -> PathBuf {
        self.data_dir.join("trash")
    }

    pub fn sandbox(&self, uid: &str) -> PathBuf {
        self.sandboxes().join(uid)
    }

    pub fn record(&self, uid: &str) -> PathBuf {
        self.sandbox(uid).join("config.json")
    }

    /// Locked by the supervisor for as long as it lives, from before its first instruction.
    pub fn lock(&self, uid: &str) -> PathBuf {
        self.sandbox(uid).join("lock")
    }

    pub fn supervisor_log(&self, uid: &str) -> PathBuf {
        self.sandbox(uid).join("supervisor.log")
    }

    pub fn containers(&self, uid: &str) -> PathBuf {
        self.sandbox(uid).join("containers")
    }

    pub fn container(&self, uid: &str, id: &str) -> PathBuf {
        self.containers(uid).join(id)
    }

    pub fn socket_name(uid: &str) -> String {
        format!("{uid}.sock")
    }

    pub fn socket(&self, uid: &str) -> PathBuf {
        self.run_dir.join(Self::socket_name(uid))
    }

    pub fn cgroup_root(&self) -> String {
        format!("skeg-{}", self.id)
    }

    pub fn pod_cgroup(&self, uid: &str) -> String {
        format!("skeg-{}/pod{uid}", self.id)
    }

    pub fn shim_cgroup(&self, uid: &str) -> String {
        format!("skeg-{}/pod{uid}/shim", self.id)
    }

    pub fn container_cgroup(&self, uid: &str, id: &str) -> String {
        format!("skeg-{}/pod{uid}/{id}", self.id)
    }
}

/// True for names that stay within one directory and one cgroup level.
pub fn name_is_safe(name: &str) -> bool {
    const NAME_LEN_MAX: usize = 200;
    !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Replaces a file as a whole; `durable` also when the host loses power right after.
pub fn write(path: &Path, value: &impl Serialize, durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if durable {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)?;
    if durable && let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Which boot of this host it is.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, safe) in
            [("0a1b-2c", true), ("a.b_c", true), ("", false), ("..", false), ("a/b", false), (".x", false)]
        {
            assert_eq!(name_is_safe(name), safe, "{name}");
        }
    }

    #[test]
    fn files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write(&path, &1, true).unwrap();
        write(&path, &2, false).unwrap();
        assert_eq!(read::<i32>(&path).unwrap(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
