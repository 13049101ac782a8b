//! System call filters: profiles as data, compiled to the kernel's classic filter machine.
//! A filter looks the number up by binary search, so a call costs about ten instructions.

mod default;

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::str::FromStr;

pub use default::runtime_default;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Log,
    Errno(u16),
    Trap,
    Trace(u16),
    KillThread,
    KillProcess,
}

impl Action {
    fn code(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Log => 0x7ffc_0000,
            Action::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Action::Trap => 0x0003_0000,
            Action::KillThread => 0,
            Action::KillProcess => 0x8000_0000,
        }
    }
}

/// How an argument is compared. `MaskedEqual`: `argument & value == value_two`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    MaskedEqual,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arg {
    pub index: u8,
    pub op: Op,
    pub value: u64,
    pub value_two: u64,
}

/// An action for some calls, where all of `args` match.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    pub args: Vec<Arg>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub default: Action,
    pub rules: Vec<Rule>,
}

/// One instruction of a classic filter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQ: u16 = 0x15;
const JUMP_GT: u16 = 0x25;
const JUMP_GE: u16 = 0x35;
const RETURN: u16 = 0x06;

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;
const ENOSYS: u16 = libc::ENOSYS as u16;

const fn op(code: u16, k: u32) -> Insn {
    Insn { code, jt: 0, jf: 0, k }
}

/// A machine whose numbers a process on this host may use.
struct Arch {
    audit: u32,
    number: fn(&str) -> Option<u32>,
    /// From here on the same calls have a second number: those of x32, which no profile names.
    second_from: Option<u32>,
}

#[cfg(target_arch = "x86_64")]
const ARCHS: [Arch; 2] = [
    Arch {
        audit: 0xc000_003e,
        number: |n| syscalls::x86_64::Sysno::from_str(n).ok().map(|s| s.id() as u32),
        second_from: Some(0x4000_0000),
    },
    Arch {
        audit: 0x4000_0003,
        number: |n| syscalls::x86::Sysno::from_str(n).ok().map(|s| s.id() as u32),
        second_from: None,
    },
];
#[cfg(target_arch = "aarch64")]
const ARCHS: [Arch; 2] = [
    Arch {
        audit: 0xc000_00b7,
        number: |n| syscalls::aarch64::Sysno::from_str(n).ok().map(|s| s.id() as u32),
        second_from: None,
    },
    Arch {
        audit: 0x4000_0028,
        number: |n| syscalls::arm::Sysno::from_str(n).ok().map(|s| s.id() as u32),
        second_from: None,
    },
];

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// Behind this argument's comparison: it matched.
    Match,
    /// Behind the whole rule.
    Fail,
}

fn compare(arg: &Arg) -> Vec<(Insn, To, To)> {
    let low = OFFSET_ARGS + 8 * u32::from(arg.index);
    let (value_high, value_low) = ((arg.value >> 32) as u32, arg.value as u32);
    let load = |offset| (op(LOAD, offset), To::Next, To::Next);
    match arg.op {
        Op::Equal => vec![
            load(low + 4),
            (op(JUMP_EQ, value_high), To::Next, To::Fail),
            load(low),
            (op(JUMP_EQ, value_low), To::Match, To::Fail),
        ],
        Op::NotEqual => vec![
            load(low + 4),
            (op(JUMP_EQ, value_high), To::Next, To::Match),
            load(low),
            (op(JUMP_EQ, value_low), To::Fail, To::Match),
        ],
        Op::MaskedEqual => vec![
            load(low + 4),
            (op(AND, value_high), To::Next, To::Next),
            (op(JUMP_EQ, (arg.value_two >> 32) as u32), To::Next, To::Fail),
            load(low),
            (op(AND, value_low), To::Next, To::Next),
            (op(JUMP_EQ, arg.value_two as u32), To::Match, To::Fail),
        ],
        Op::Greater | Op::GreaterEqual => vec![
            load(low + 4),
            (op(JUMP_GT, value_high), To::Match, To::Next),
            (op(JUMP_EQ, value_high), To::Next, To::Fail),
            load(low),
            (op(if arg.op == Op::Greater { JUMP_GT } else { JUMP_GE }, value_low), To::Match, To::Fail),
        ],
        Op::Less | Op::LessEqual => vec![
            load(low + 4),
            (op(JUMP_GT, value_high), To::Fail, To::Next),
            (op(JUMP_EQ, value_high), To::Next, To::Match),
            load(low),
            (op(if arg.op == Op::Less { JUMP_GE } else { JUMP_GT }, value_low), To::Fail, To::Match),
        ],
    }
}

/// The instructions of one rule with conditions; what follows them is tried when it fails.
fn conditional(args: &[Arg], action: Action) -> Vec<Insn> {
    let blocks: Vec<_> = args.iter().map(compare).collect();
    let total = blocks.iter().map(Vec::len).sum::<usize>() + 1;
    let mut out = Vec::with_capacity(total);
    for block in blocks {
        let end = out.len() + block.len();
        for (mut insn, jt, jf) in block {
            let offset = |to: To| match to {
                To::Next => 0,
                To::Match => (end - out.len() - 1) as u8,
                To::Fail => (total - out.len() - 1) as u8,
            };
            (insn.jt, insn.jf) = (offset(jt), offset(jf));
            out.push(insn);
        }
    }
    out.push(op(RETURN, action.code()));
    out
}

/// The code for one number, or a run of numbers.
fn leaf(rules: &[(&[Arg], Action)], default: Action) -> Vec<Insn> {
    let mut out = Vec::new();
    for (args, action) in rules {
        out.extend(conditional(args, *action));
        if args.is_empty() {
            return out;
        }
    }
    out.push(op(RETURN, default.code()));
    out
}

/// Binary search over `(first number, code)`, sorted, the first starting at 0.
fn search(leaves: &[(u32, Vec<Insn>)]) -> Vec<Insn> {
    if let [(_, code)] = leaves {
        return code.clone();
    }
    let (left, right) = leaves.split_at(leaves.len() / 2);
    let (left, pivot) = (search(left), right[0].0);
    let mut out = vec![
        // The short jump steps over the long one when the number lies to the left.
        Insn { code: JUMP_GE, jt: 0, jf: 1, k: pivot },
        op(JUMP, left.len() as u32),
    ];
    out.extend(left);
    out.extend(search(right));
    out
}

fn compile_arch(profile: &Profile, arch: &Arch) -> Vec<Insn> {
    let mut by_number: BTreeMap<u32, Vec<(&[Arg], Action)>> = BTreeMap::new();
    for rule in &profile.rules {
        for name in &rule.names {
            if let Some(number) = (arch.number)(name) {
                by_number.entry(number).or_default().push((&rule.args, rule.action));
            }
        }
    }
    let mut leaves: Vec<(u32, Vec<Insn>)> = vec![(0, leaf(&[], profile.default))];
    let mut push = |from: u32, code: Vec<Insn>| match leaves.last_mut() {
        Some((start, last)) if *start == from => *last = code,
        Some((_, last)) if *last == code => {}
        _ => leaves.push((from, code)),
    };
    let mut next = 0;
    for (number, rules) in &by_number {
        if *number > next {
            push(next, leaf(&[], profile.default));
        }
        push(*number, leaf(rules, profile.default));
        next = number + 1;
    }
    // Calls younger than the profile do not exist for the program: libraries then fall back.
    let unknown = match profile.default {
        Action::Errno(_) => Action::Errno(ENOSYS),
        other => other,
    };
    push(next, leaf(&[], unknown));
    if let Some(from) = arch.second_from {
        push(from, leaf(&[], Action::Errno(ENOSYS)));
    }
    search(&leaves)
}

/// The filter for this host's machine and the older one it also runs.
pub fn compile(profile: &Profile) -> Vec<Insn> {
    let mut out = vec![op(LOAD, OFFSET_ARCH)];
    for arch in &ARCHS {
        let mut code = vec![op(LOAD, OFFSET_NR)];
        code.extend(compile_arch(profile, arch));
        out.push(Insn { code: JUMP_EQ, jt: 1, jf: 0, k: arch.audit });
        out.push(op(JUMP, code.len() as u32));
        out.extend(code);
    }
    out.push(op(RETURN, Action::KillProcess.code()));
    out
}

#[repr(C)]
struct Program {
    len: u16,
    insns: *const Insn,
}

/// Puts the calling process under the filter, for good.
pub fn install(filter: &[Insn]) -> io::Result<()> {
    const SET_MODE_FILTER: libc::c_uint = 1;
    const FILTER_LEN_MAX: usize = 4096;
    if filter.len() > FILTER_LEN_MAX {
        return Err(io::Error::other(format!(
            "the seccomp filter has {} of at most {FILTER_LEN_MAX} instructions",
            filter.len()
        )));
    }
    let program = Program { len: filter.len() as u16, insns: filter.as_ptr() };
    // SAFETY: the program and its instructions are valid for the call; the kernel copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, std::ptr::from_ref(&program)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A profile file in the OCI form, also with the conditions that Docker's form adds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileFile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<RuleFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleFile {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Vec<ArgFile>,
    #[serde(default)]
    includes: Conditions,
    #[serde(default)]
    excludes: Conditions,
}

#[derive(Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArgFile {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

fn parse_action(name: &str, errno: Option<u16>) -> Result<Action, String> {
    let errno = errno.unwrap_or(libc::EPERM as u16);
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(format!("seccomp action {other} is not supported")),
    })
}

fn parse_op(name: &str) -> Result<Op, String> {
    Ok(match name {
        "SCMP_CMP_EQ" => Op::Equal,
        "SCMP_CMP_NE" => Op::NotEqual,
        "SCMP_CMP_LT" => Op::Less,
        "SCMP_CMP_LE" => Op::LessEqual,
        "SCMP_CMP_GT" => Op::Greater,
        "SCMP_CMP_GE" => Op::GreaterEqual,
        "SCMP_CMP_MASKED_EQ" => Op::MaskedEqual,
        other => return Err(format!("seccomp operator {other} is not supported")),
    })
}

/// Reads a profile file for a container with these capabilities.
pub fn parse(json: &str, capabilities: &BTreeSet<String>) -> Result<Profile, String> {
    const ARCH: &str = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    const ARGS_MAX: u8 = 6;
    let file: ProfileFile = serde_json::from_str(json).map_err(|e| format!("seccomp profile: {e}"))?;
    let applies = |rule: &RuleFile| {
        let any_cap = |c: &Conditions| c.caps.iter().any(|cap| capabilities.contains(cap));
        let all_caps = |c: &Conditions| c.caps.iter().all(|cap| capabilities.contains(cap));
        let arch = |c: &Conditions| c.arches.iter().any(|a| a == ARCH);
        all_caps(&rule.includes)
            && (rule.includes.arches.is_empty() || arch(&rule.includes))
            && !any_cap(&rule.excludes)
            && !arch(&rule.excludes)
    };
    let mut rules = Vec::new();
    for rule in file.syscalls.into_iter().filter(applies) {
        let action = parse_action(&rule.action, rule.errno_ret.or(file.default_errno_ret))?;
        let args = rule
            .args
            .iter()
            .map(|a| {
                if a.index >= ARGS_MAX {
                    return Err(format!("seccomp profile: argument index {} is above 5", a.index));
                }
                Ok(Arg { index: a.index, op: parse_op(&a.op)?, value: a.value, value_two: a.value_two })
            })
            .collect::<Result<Vec<_>, String>>()?;
        rules.push(Rule { names: rule.names.into_iter().chain(rule.name).collect(), action, args });
    }
    Ok(Profile { default: parse_action(&file.default_action, file.default_errno_ret)?, rules })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would.
    fn run(filter: &[Insn], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            OFFSET_NR => number,
            OFFSET_ARCH => arch,
            _ => {
                let at = offset - OFFSET_ARGS;
                (args[(at / 8) as usize] >> (at % 8 * 8)) as u32
            }
        };
        let (mut pc, mut a) = (0usize, 0u32);
        loop {
            let i = filter[pc];
            pc += 1;
            let holds = match i.code {
                LOAD => {
                    a = load(i.k);
                    continue;
                }
                AND => {
                    a &= i.k;
                    continue;
                }
                JUMP => {
                    pc += i.k as usize;
                    continue;
                }
                RETURN => return i.k,
                JUMP_EQ => a == i.k,
                JUMP_GT => a > i.k,
                JUMP_GE => a >= i.k,
                other => panic!("unknown instruction {other:#x}"),
            };
            pc += usize::from(if holds { i.jt } else { i.jf });
        }
    }

    const X86_64: u32 = 0xc000_003e;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const NOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;

    fn caps(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn default_profile_decides_as_containers_expect() {
        let plain = compile(&runtime_default(&caps(&[])));
        let admin = compile(&runtime_default(&caps(&["CAP_SYS_ADMIN"])));
        assert!(plain.len() < 1500, "{}", plain.len());
        for (number, args, plain_is, admin_is) in [
            (libc::SYS_read, [0; 6], ALLOW, ALLOW),
            (libc::SYS_mount, [0; 6], EPERM, ALLOW),
            (libc::SYS_unshare, [0; 6], EPERM, ALLOW),
            (libc::SYS_reboot, [0; 6], EPERM, EPERM),
            (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0], ALLOW, ALLOW),
            (libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0], EPERM, ALLOW),
            (libc::SYS_clone3, [0; 6], NOSYS, ALLOW),
            (libc::SYS_personality, [0; 6], ALLOW, ALLOW),
            (libc::SYS_personality, [0x0400_0000, 0, 0, 0, 0, 0], EPERM, EPERM),
            (libc::SYS_socket, [libc::AF_INET as u64, 0, 0, 0, 0, 0], ALLOW, ALLOW),
            (libc::SYS_socket, [libc::AF_VSOCK as u64, 0, 0, 0, 0, 0], EPERM, EPERM),
            (100_000, [0; 6], NOSYS, NOSYS),
        ] {
            assert_eq!(run(&plain, X86_64, number as u32, args), plain_is, "{number} {args:?}");
            assert_eq!(run(&admin, X86_64, number as u32, args), admin_is, "{number} {args:?} as admin");
        }
        // 32-bit programs have the same list under other numbers: mount is 21 there.
        assert_eq!(run(&plain, 0x4000_0003, 3, [0; 6]), ALLOW);
        assert_eq!(run(&plain, 0x4000_0003, 21, [0; 6]), EPERM);
        assert_eq!(run(&plain, 0x1234, 0, [0; 6]), 0x8000_0000);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn operators_compare_64_bits() {
        for (op, value, value_two, matching, failing) in [
            (Op::Equal, 1 << 40, 0, 1u64 << 40, 0u64),
            (Op::NotEqual, 5, 0, 5 | 1 << 33, 5),
            (Op::Greater, 1 << 32, 0, (1 << 32) + 1, 1 << 32),
            (Op::GreaterEqual, 1 << 32, 0, 1 << 32, u64::from(u32::MAX)),
            (Op::Less, 1 << 32, 0, u64::from(u32::MAX), 1 << 32),
            (Op::LessEqual, 1 << 32, 0, 1 << 32, (1 << 32) + 1),
            (Op::MaskedEqual, 0xff00, 0x1200, 0x1_0000_1234, 0x1334),
        ] {
            let profile = Profile {
                default: Action::Errno(1),
                rules: vec![Rule {
                    names: vec!["ioctl".into()],
                    action: Action::Allow,
                    args: vec![Arg { index: 1, op, value, value_two }],
                }],
            };
            let filter = compile(&profile);
            let nr = libc::SYS_ioctl as u32;
            assert_eq!(run(&filter, X86_64, nr, [0, matching, 0, 0, 0, 0]), ALLOW, "{op:?}");
            assert_eq!(run(&filter, X86_64, nr, [0, failing, 0, 0, 0, 0]), EPERM, "{op:?}");
        }
    }

    #[test]
    fn profile_files_are_read() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],
          "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":255,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let profile = parse(json, &caps(&[])).unwrap();
        assert_eq!(profile.default, Action::Errno(38));
        assert_eq!(profile.rules.len(), 2);
        assert_eq!(profile.rules[1].args[0].op, Op::MaskedEqual);
        assert_eq!(parse(json, &caps(&["CAP_SYS_ADMIN"])).unwrap().rules.len(), 3);
        assert!(parse(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, &caps(&[])).is_err());
        let arg = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO",
          "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(parse(arg, &caps(&[])).unwrap_err(), "seccomp profile: argument index 6 is above 5");
    }

    /// The form that Docker gave them.
    #[test]
    fn rules_hold_where_their_conditions_do() {
        let (own, other) = if cfg!(target_arch = "x86_64") { ("amd64", "arm64") } else { ("arm64", "amd64") };
        let json = |conditions: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":38,
                  "syscalls":[{{"name":"mount","action":"SCMP_ACT_ERRNO",{conditions}}}]}}"#
            )
        };
        for (conditions, applies) in [
            (r#""includes":{}"#.to_owned(), true),
            (format!(r#""includes":{{"arches":["{own}"]}}"#), true),
            (format!(r#""includes":{{"arches":["{other}"]}}"#), false),
            (format!(r#""excludes":{{"arches":["{own}"]}}"#), false),
            (format!(r#""excludes":{{"arches":["{other}"]}}"#), true),
            (r#""excludes":{"caps":["CAP_SYS_ADMIN"]}"#.to_owned(), false),
            (r#""excludes":{"caps":["CAP_BPF"]}"#.to_owned(), true),
        ] {
            let profile = parse(&json(&conditions), &caps(&["CAP_SYS_ADMIN"])).unwrap();
            let actions: Vec<_> = profile.rules.iter().map(|rule| rule.action).collect();
            assert_eq!(actions, [Action::Errno(38)][..usize::from(applies)], "{conditions}");
        }
    }

    /// A second table of calls, told by a bit of their number, is no way around a list of what is forbidden.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn forbidden_calls_have_no_second_number() {
        let rule = Rule { names: vec!["mount".into()], action: Action::Errno(1), args: vec![] };
        let filter = compile(&Profile { default: Action::Allow, rules: vec![rule] });
        let mount = libc::SYS_mount as u32;
        assert_eq!(run(&filter, X86_64, mount, [0; 6]), EPERM);
        assert_eq!(run(&filter, X86_64, mount | 0x4000_0000, [0; 6]), NOSYS);
        assert_eq!(run(&filter, X86_64, libc::SYS_read as u32, [0; 6]), ALLOW);
        assert_eq!(run(&filter, X86_64, 100_000, [0; 6]), ALLOW);
    }
}
