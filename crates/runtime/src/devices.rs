//! Which devices a container may use: rules, their v1 spelling, and the program that enforces
//! them on cgroup v2.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One allowed device. `None` stands for every number.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub block: bool,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

/// What every container may use: nodes may be made, the harmless ones and terminals be opened.
pub fn default_rules() -> Vec<Rule> {
    let char_rule =
        |major, minor, access: &str| Rule { block: false, major, minor, access: access.to_owned() };
    let mut rules = vec![
        char_rule(None, None, "m"),
        Rule { block: true, major: None, minor: None, access: "m".to_owned() },
    ];
    // null, zero, full, random, urandom, tty, console, ptmx, and all pseudo terminals.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(char_rule(Some(major), Some(minor), "rwm"));
    }
    rules.push(char_rule(Some(136), None, "rwm"));
    rules
}

/// One instruction of the kernel's virtual machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Insn {
    code: u8,
    /// dst in the low, src in the high half.
    registers: u8,
    offset: i16,
    value: i32,
}

const fn insn(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> Insn {
    Insn { code, registers: dst | src << 4, offset, value }
}

const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const LOAD_WORD: u8 = 0x61;
const AND_IMM: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NE: u8 = 0x55;
const EXIT: u8 = 0x95;

const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

/// The program: the first rule that matches allows, else the access is refused.
fn program(rules: &[Rule]) -> Vec<Insn> {
    // r2 = type, r3 = access, r4 = major, r5 = minor of the attempt described by the context in r1.
    let mut out = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(AND_IMM, 2, 0, 0, 0xffff),
        insn(LOAD_WORD, 3, 1, 0, 0),
        insn(SHIFT_RIGHT, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let allowed = rule.access.chars().fold(0, |bits, c| {
            bits | match c {
                'r' => ACCESS_READ,
                'w' => ACCESS_WRITE,
                'm' => ACCESS_MKNOD,
                _ => 0,
            }
        });
        let kind = if rule.block { TYPE_BLOCK } else { TYPE_CHAR };
        let mut block = vec![(JUMP_NE, 2, kind), (MOV_REG, 1, 0), (AND_IMM, 1, !allowed), (JUMP_NE, 1, 0)];
        block.extend(rule.major.map(|major| (JUMP_NE, 4, major as i32)));
        block.extend(rule.minor.map(|minor| (JUMP_NE, 5, minor as i32)));
        let len = block.len() + 2;
        for (i, (code, dst, value)) in block.into_iter().enumerate() {
            // A mismatch jumps behind the rule's last instruction.
            let offset = if code == JUMP_NE { (len - i - 1) as i16 } else { 0 };
            let src = if code == MOV_REG { 3 } else { 0 };
            out.push(insn(code, dst, src, offset, value));
        }
        out.extend([insn(MOV_IMM, 0, 0, 0, 1), insn(EXIT, 0, 0, 0, 0)]);
    }
    out.extend([insn(MOV_IMM, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    out
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn bpf<T>(command: i64, attr: &T) -> io::Result<i64> {
    // SAFETY: `attr` is a prefix of the kernel's union, of the size passed; its pointers are
    // valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Loads the program for `rules` and attaches it to the v2 group.
pub fn attach(group: &File, rules: &[Rule]) -> io::Result<()> {
    const PROG_LOAD: i64 = 5;
    const PROG_ATTACH: i64 = 8;
    const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| io::Error::new(e.kind(), format!("{what} the cgroup device program: {e}"))
    };
    let insns = program(rules);
    let load = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_count: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        expected_attach_type: ATTACH_CGROUP_DEVICE,
        ..LoadAttr::default()
    };
    let fd = bpf(PROG_LOAD, &load).map_err(failed("load"))?;
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attach = AttachAttr {
        target_fd: group.as_raw_fd() as u32,
        attach_bpf_fd: fd.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attach).map(drop).map_err(failed("attach"))
}

/// A device node to make in a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub path: PathBuf,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// Looks a device of the host up, to be made at `container_path`.
pub fn lookup(host_path: &Path, container_path: &Path) -> io::Result<Node> {
    let metadata = std::fs::metadata(host_path)?;
    let kind = metadata.mode() & libc::S_IFMT;
    if kind != libc::S_IFBLK && kind != libc::S_IFCHR {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device node"));
    }
    Ok(Node {
        path: container_path.to_owned(),
        block: kind == libc::S_IFBLK,
        major: libc::major(metadata.rdev()),
        minor: libc::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
    })
}

/// Every device node of the host, for privileged containers.
pub fn host_nodes() -> Vec<Node> {
    const NODES_MAX: usize = 4096;
    // Made anew for each container, or no devices of the host at all.
    const SKIPPED: [&str; 8] = ["pts", "shm", "mqueue", "fd", ".lxc", ".lxd-mounts", ".udev", "console"];
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/dev")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if entry.file_name().to_str().is_none_or(|n| SKIPPED.contains(&n)) || found.len() >= NODES_MAX {
                continue;
            }
            if kind.is_dir() {
                dirs.push(path);
            } else if !kind.is_symlink() {
                found.extend(lookup(&path, &path));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_spelled_for_v1() {
        let spelled: Vec<String> = default_rules().iter().map(Rule::to_string).collect();
        assert_eq!(spelled[0], "c *:* m");
        assert_eq!(spelled[1], "b *:* m");
        assert_eq!(spelled[2], "c 1:3 rwm");
        assert_eq!(spelled.last().unwrap(), "c 136:* rwm");
    }

    /// Runs the program the way the kernel would.
    fn allowed(rules: &[Rule], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let code = program(rules);
        let context = [kind | access << 16, major, minor];
        let mut r = [0i64; 6];
        let mut pc = 0usize;
        loop {
            let i = code[pc];
            let (dst, src) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            pc += 1;
            match i.code {
                LOAD_WORD => r[dst] = context[i.offset as usize / 4].into(),
                AND_IMM => r[dst] &= i64::from(i.value),
                SHIFT_RIGHT => r[dst] >>= i.value,
                MOV_IMM => r[dst] = i.value.into(),
                MOV_REG => r[dst] = r[src],
                JUMP_NE if r[dst] != i64::from(i.value) => pc += i.offset as usize,
                JUMP_NE => {}
                EXIT => return r[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    /// The kernel's verifier takes the program, and a process in the group feels it.
    #[test]
    fn kernel_takes_the_program() {
        let cgroups = crate::cgroup::Cgroups::detect().unwrap();
        let Some(unified) = cgroups.unified() else { return };
        let dir = unified.join(format!("skeg-bpf-test-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let attached = attach(&File::open(&dir).unwrap(), &default_rules());
        let read = |device: &str| {
            let script = format!("echo $$ > {}/cgroup.procs && head -c1 {device} > /dev/null", dir.display());
            std::process::Command::new("sh").args(["-c", &script]).output().unwrap().status.success()
        };
        let (zero, kmsg) = (read("/dev/zero"), read("/dev/kmsg"));
        let removed = (0..1000).any(|_| std::fs::remove_dir(&dir).is_ok());
        attached.unwrap();
        assert!(zero && !kmsg && removed, "{zero} {kmsg} {removed}");
    }

    #[test]
    fn program_allows_what_rules_say() {
        let rules = default_rules();
        let rw = ACCESS_READ | ACCESS_WRITE;
        for (kind, access, major, minor, expected) in [
            (TYPE_CHAR, rw, 1, 3, true),
            (TYPE_CHAR, rw, 1, 1, false),
            (TYPE_CHAR, ACCESS_MKNOD, 1, 1, true),
            (TYPE_CHAR, ACCESS_MKNOD | ACCESS_READ, 1, 1, false),
            (TYPE_BLOCK, ACCESS_MKNOD, 8, 0, true),
            (TYPE_BLOCK, ACCESS_READ, 8, 0, false),
            (TYPE_CHAR, rw, 136, 77, true),
            (TYPE_CHAR, rw, 10, 200, false),
        ] {
            assert_eq!(
                allowed(&rules, kind, access, major, minor),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
    }
}
