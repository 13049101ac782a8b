//! Semantic versions.

use std::cmp::Ordering;
use std::sync::Arc;

use super::text;
use crate::error::Error;
use crate::function::Row;
use crate::opaque::Opaque;
use crate::value::Value;

/// A version; what was built says nothing of its order.
#[derive(Debug)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
}

pub(crate) const ROWS: &[Row] = &[
    ("semver", "string_to_semver", "(string) kubernetes.Semver", |_, args| made(args, false)),
    ("semver", "string_bool_to_semver", "(string, bool) kubernetes.Semver", |_, args| {
        made(args, flag(args)?)
    }),
    ("isSemver", "is_semver_string", "(string) bool", |_, args| {
        Ok(Value::Bool(parse(text(args, 0)?, false).is_ok()))
    }),
    ("isSemver", "is_semver_string_bool", "(string, bool) bool", |_, args| {
        Ok(Value::Bool(parse(text(args, 0)?, flag(args)?).is_ok()))
    }),
    ("isGreaterThan", "semver_is_greater_than", ".(kubernetes.Semver, kubernetes.Semver) bool", |_, args| {
        Ok(Value::Bool(of(args, 0)?.compare(of(args, 1)?).is_gt()))
    }),
    ("isLessThan", "semver_is_less_than", ".(kubernetes.Semver, kubernetes.Semver) bool", |_, args| {
        Ok(Value::Bool(of(args, 0)?.compare(of(args, 1)?).is_lt()))
    }),
    ("compareTo", "semver_compare_to", ".(kubernetes.Semver, kubernetes.Semver) int", |_, args| {
        Ok(Value::Int(of(args, 0)?.compare(of(args, 1)?) as i64))
    }),
    ("major", "semver_major", ".(kubernetes.Semver) int", |_, args| {
        Ok(Value::Int(of(args, 0)?.numbers[0] as i64))
    }),
    ("minor", "semver_minor", ".(kubernetes.Semver) int", |_, args| {
        Ok(Value::Int(of(args, 0)?.numbers[1] as i64))
    }),
    ("patch", "semver_patch", ".(kubernetes.Semver) int", |_, args| {
        Ok(Value::Int(of(args, 0)?.numbers[2] as i64))
    }),
];

fn flag(args: &[Value<'_>]) -> Result<bool, Error> {
    match args.get(1) {
        Some(Value::Bool(flag)) => Ok(*flag),
        _ => Err(Error::no_such_overload()),
    }
}

fn of<'v>(args: &'v [Value<'_>], index: usize) -> Result<&'v Semver, Error> {
    match args.get(index) {
        Some(Value::Opaque(Opaque::Semver(version))) => Ok(version),
        _ => Err(Error::no_such_overload()),
    }
}

fn made<'a>(args: &[Value<'a>], normalize: bool) -> Result<Value<'a>, Error> {
    let version = parse(text(args, 0)?, normalize).map_err(Error::new)?;
    Ok(Value::Opaque(Opaque::Semver(Arc::new(version))))
}

impl Semver {
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        let numbers = self.numbers.cmp(&other.numbers);
        // A version is after those that lead to it.
        let released = self.pre.is_empty().cmp(&other.pre.is_empty());
        let parts = || self.pre.iter().zip(&other.pre).map(|(a, b)| compare_part(a, b));
        let part = || parts().find(|order| order.is_ne()).unwrap_or(self.pre.len().cmp(&other.pre.len()));
        numbers.then(released).then_with(part)
    }
}

fn compare_part(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

fn parse(text: &str, normalize: bool) -> Result<Semver, String> {
    if text.is_empty() && !normalize {
        return Err("Version string empty".into());
    }
    let text = if normalize { normalized(text)? } else { text.to_owned() };
    let mut parts = text.splitn(3, '.');
    let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("No Major.Minor.Patch elements found".into());
    };
    let (rest, build) = rest.split_once('+').map_or((rest, None), |(rest, build)| (rest, Some(build)));
    let (patch, pre) = rest.split_once('-').map_or((rest, None), |(patch, pre)| (patch, Some(pre)));
    let number = |name: &str, digits: &str| -> Result<u64, String> {
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
            return Err(format!("Invalid character(s) found in {name} number {digits:?}"));
        }
        if digits.len() > 1 && digits.starts_with('0') {
            return Err(format!("{} number must not contain leading zeroes {digits:?}", capital(name)));
        }
        digits.parse().map_err(|_| format!("{} number is out of range {digits:?}", capital(name)))
    };
    let numbers = [number("major", major)?, number("minor", minor)?, number("patch", patch)?];
    let word = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    let pre: Vec<String> = pre.into_iter().flat_map(|pre| pre.split('.')).map(str::to_owned).collect();
    for part in &pre {
        if !word(part) {
            return Err(format!("Invalid character(s) found in prerelease {part:?}"));
        }
        if part.len() > 1 && part.starts_with('0') && part.bytes().all(|c| c.is_ascii_digit()) {
            return Err(format!("Numeric PreRelease version must not contain leading zeroes {part:?}"));
        }
    }
    if let Some(part) = build.into_iter().flat_map(|build| build.split('.')).find(|part| !word(part)) {
        return Err(format!("Invalid character(s) found in build meta data {part:?}"));
    }
    Ok(Semver { numbers, pre })
}

fn capital(name: &str) -> String {
    name[..1].to_ascii_uppercase() + &name[1..]
}

/// Without a `v` before it, with three numbers, which begin with no zero.
fn normalized(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text
        .splitn(3, '.')
        .map(|part| {
            let trimmed = part.trim_start_matches('0');
            match part.len() {
                0 | 1 => part.to_owned(),
                _ if trimmed.starts_with(|c: char| c.is_ascii_digit()) => trimmed.to_owned(),
                _ => format!("0{trimmed}"),
            }
        })
        .collect();
    if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".into());
    }
    parts.resize(3, "0".into());
    Ok(parts.join("."))
}
