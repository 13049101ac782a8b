//! `'%s'.format([x])`.

use std::fmt::Write as _;

use super::{list, text};
use crate::context::Context;
use crate::error::Error;
use crate::value::{List, Value};

/// Digits after the point that a clause may ask for.
const PRECISION_MAX: usize = 1_000;

/// The text with its clauses replaced by the arguments.
pub(crate) fn format<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let (pattern, items) = (text(args, 0)?, list(args, 1)?);
    cx.take(pattern.len())?;
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    let mut next = 0;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let wanted: usize = after[..digits].parse().unwrap_or(0);
            if wanted > PRECISION_MAX {
                return Err(Error::new(format!("precision {wanted} exceeds maximum of {PRECISION_MAX}")));
            }
            precision = Some(wanted);
            rest = &after[digits..];
        }
        let clause = rest.chars().next().ok_or_else(|| Error::new("unexpected end of string"))?;
        rest = &rest[clause.len_utf8()..];
        if !"sdfebxXo".contains(clause) {
            return Err(Error::new(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{clause}\""
            )));
        }
        let item = take(items, next)?;
        next += 1;
        let before = out.len();
        show(cx, &mut out, clause, precision, &item)?;
        cx.take(out.len() - before)?;
    }
    out.push_str(rest);
    Ok(out.into())
}

fn take<'a>(items: &List<'a>, at: usize) -> Result<Value<'a>, Error> {
    if at < items.len() { items.get(at) } else { Err(Error::new(format!("index {at} out of range"))) }
}

fn show(
    cx: &mut Context<'_>,
    out: &mut String,
    clause: char,
    precision: Option<usize>,
    item: &Value<'_>,
) -> Result<(), Error> {
    let wrong = |allowed: &str| {
        let name = item.type_of().runtime_name();
        Error::new(format!("error during formatting: {allowed}, was given {name}"))
    };
    let written = match (clause, item) {
        ('s', item) => return show_text(cx, out, item),
        ('d', Value::Int(n)) => write!(out, "{n}"),
        ('d', Value::Uint(n)) => write!(out, "{n}"),
        ('f' | 'e', Value::Double(d)) if !d.is_finite() => out.write_str(if d.is_nan() {
            "NaN"
        } else if *d > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }),
        ('f' | 'e', Value::String(text)) if matches!(&**text, "NaN" | "Infinity" | "-Infinity") => {
            out.write_str(text)
        }
        ('f', Value::Double(d)) => write!(out, "{d:.*}", precision.unwrap_or(6)),
        ('e', Value::Double(d)) => {
            // The way that English writes it: 1.2 × 10³.
            let text = format!("{d:.*e}", precision.unwrap_or(6));
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |digits| ("⁻", digits));
            let raised = |c: char| c.to_digit(10).and_then(|n| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(n as usize));
            let exponent: String = format!("{exponent:0>2}").chars().filter_map(raised).collect();
            write!(out, "{digits}\u{202f}×\u{202f}10{sign}{exponent}")
        }
        ('b', Value::Int(n)) => write!(out, "{}{:b}", minus(*n), n.unsigned_abs()),
        ('b', Value::Uint(n)) => write!(out, "{n:b}"),
        ('b', Value::Bool(b)) => write!(out, "{}", i32::from(*b)),
        ('o', Value::Int(n)) => write!(out, "{}{:o}", minus(*n), n.unsigned_abs()),
        ('o', Value::Uint(n)) => write!(out, "{n:o}"),
        ('x', Value::Int(n)) => write!(out, "{}{:x}", minus(*n), n.unsigned_abs()),
        ('X', Value::Int(n)) => write!(out, "{}{:X}", minus(*n), n.unsigned_abs()),
        ('x', Value::Uint(n)) => write!(out, "{n:x}"),
        ('X', Value::Uint(n)) => write!(out, "{n:X}"),
        ('x' | 'X', Value::String(text)) => return hex(cx, out, clause, text.as_bytes()),
        ('x' | 'X', Value::Bytes(bytes)) => return hex(cx, out, clause, bytes),
        ('d', _) => return Err(wrong("decimal clause can only be used on integers")),
        ('f', _) => return Err(wrong("fixed-point clause can only be used on doubles")),
        ('e', _) => return Err(wrong("scientific clause can only be used on doubles")),
        ('b', _) => return Err(wrong("only integers and bools can be formatted as binary")),
        ('o', _) => return Err(wrong("octal clause can only be used on integers")),
        _ => return Err(wrong("only integers, byte buffers, and strings can be formatted as hex")),
    };
    written.map_err(|_| Error::memory())
}

fn minus(n: i64) -> &'static str {
    if n < 0 { "-" } else { "" }
}

fn hex(cx: &mut Context<'_>, out: &mut String, clause: char, bytes: &[u8]) -> Result<(), Error> {
    cx.take(bytes.len() * 2)?;
    for byte in bytes {
        let digits = if clause == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") };
        out.push_str(&digits);
    }
    Ok(())
}

/// `%s` of anything.
fn show_text(cx: &mut Context<'_>, out: &mut String, item: &Value<'_>) -> Result<(), Error> {
    cx.take(8)?;
    match item {
        Value::String(text) => {
            cx.take(text.len())?;
            out.push_str(text);
        }
        Value::Double(d) if d.is_infinite() => out.push_str(if *d > 0.0 { "Infinity" } else { "-Infinity" }),
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                show_inner(cx, out, &item?)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for key in map.keys() {
                let mut shown = String::new();
                show_inner(cx, &mut shown, &key)?;
                entries.push((shown, map.find(&key)?.unwrap_or(Value::Null)));
            }
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            out.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                out.push_str(key);
                out.push(':');
                show_inner(cx, out, value)?;
            }
            out.push('}');
        }
        Value::Bytes(_)
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::Null
        | Value::Timestamp(_)
        | Value::Duration(_)
        | Value::Type(_) => {
            cx.take(item.size() as usize)?;
            out.push_str(&item.to_string());
        }
        _ => {
            let name = item.type_of().runtime_name();
            return Err(Error::new(format!(
                "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, \
                 maps, lists, types, durations, and timestamps, was given {name}"
            )));
        }
    }
    Ok(())
}

/// A value inside a list or a map, the way an expression writes it.
fn show_inner(cx: &mut Context<'_>, out: &mut String, item: &Value<'_>) -> Result<(), Error> {
    cx.take(16)?;
    match item {
        Value::String(text) => {
            cx.take(text.len())?;
            out.push_str(&format!("{:?}", &**text));
        }
        Value::Bytes(bytes) => {
            cx.take(bytes.len())?;
            out.push_str(&format!("b{:?}", String::from_utf8_lossy(bytes)));
        }
        Value::Double(d) if d.is_finite() => out.push_str(&format!("{d:.6}")),
        Value::Timestamp(_) => out.push_str(&format!("timestamp(\"{item}\")")),
        Value::Duration(_) => out.push_str(&format!("duration(\"{item}\")")),
        item => show_text(cx, out, item)?,
    }
    Ok(())
}
