//! Whether the host forwarded packets before an instance made it do so. The note is in the run
//! directory: a reboot ends it together with what it is about.

use anyhow::{Context, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
const NOTE: &str = "ip_forward";

/// Notes the host's setting, where an instance is about to change it.
pub fn note(run_dir: &Path) -> Result<()> {
    note_of(Path::new(SWITCH), run_dir)
}

/// Sets what was noted, as an instance goes. Where another one has a bridge it gets the note.
pub fn give_back(run_dir: &Path) -> Result<()> {
    let has_bridge = |id: &str| nix::net::if_::if_nametoindex(skeg_network::bridge_name(id).as_str()).is_ok();
    give_back_to(Path::new(SWITCH), run_dir, has_bridge)
}

fn note_of(switch: &Path, run_dir: &Path) -> Result<()> {
    let note = run_dir.join(NOTE);
    let now = fs::read_to_string(switch).with_context(|| format!("{}", switch.display()))?;
    if now.trim() != "1" && !note.exists() {
        fs::write(&note, now).with_context(|| format!("{}", note.display()))?;
    }
    Ok(())
}

fn give_back_to(switch: &Path, run_dir: &Path, has_bridge: impl Fn(&str) -> bool) -> Result<()> {
    let note = run_dir.join(NOTE);
    let before = match fs::read(&note) {
        Ok(before) => before,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("{}", note.display())),
    };
    let beside = run_dir.parent().unwrap_or(run_dir);
    let other =
        fs::read_dir(beside).with_context(|| format!("{}", beside.display()))?.flatten().find(|entry| {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix("skeg-"));
            entry.path() != run_dir && id.is_some_and(&has_bridge)
        });
    match other {
        Some(other) => {
            fs::rename(&note, other.path().join(NOTE)).with_context(|| format!("{}", note.display()))
        }
        None => fs::write(switch, before).with_context(|| format!("{}", switch.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_instance_gives_the_setting_back() {
        let dir = tempfile::tempdir().unwrap();
        let switch = dir.path().join("switch");
        let run = |id: &str| {
            let path = dir.path().join(format!("skeg-{id}"));
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (first, second, idle) = (run("1"), run("2"), run("0"));
        let up = |run_dir: &Path| {
            note_of(&switch, run_dir).unwrap();
            fs::write(&switch, "1\n").unwrap();
        };
        let now = || fs::read_to_string(&switch).unwrap();
        fs::write(&switch, "0\n").unwrap();
        up(&first);
        up(&second);
        up(&first);
        give_back_to(&switch, &first, |id| id == "2").unwrap();
        assert_eq!(now(), "1\n", "the second one needs it");
        fs::remove_dir_all(&first).unwrap();
        give_back_to(&switch, &second, |id| id == "2").unwrap();
        assert_eq!(now(), "0\n");
        // A host that forwarded before goes on with it.
        fs::write(&switch, "1\n").unwrap();
        up(&idle);
        give_back_to(&switch, &idle, |_| false).unwrap();
        assert_eq!(now(), "1\n");
    }
}
