//! JSON bytes to protobuf, in one pass and without values in between. What goes in was written by
//! this server: JSON without white space. Lengths are put before messages when these are complete.
//!
//! Every field that JSON has is written, zero or not, and no other: readers take absent ones as
//! zero, as upstream's do.

use super::json::{Json, JsonError};
use super::table::{Count, Field, TABLE, Type};
use super::{MAGIC, META};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

type Result<T = (), E = JsonError> = std::result::Result<T, E>;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(number: u64, wire_type: u64, out: &mut Vec<u8>) {
    varint(number << 3 | wire_type, out);
}

fn bytes(number: u64, content: &[u8], out: &mut Vec<u8>) {
    key(number, 2, out);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

fn number(number: u64, value: u64, out: &mut Vec<u8>) {
    key(number, 0, out);
    varint(value, out);
}

/// Writes a message. Most are short, so that their length has one byte; others move up.
fn message<E>(
    number: u64,
    out: &mut Vec<u8>,
    content: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    key(number, 2, out);
    out.push(0);
    let start = out.len();
    content(out)?;
    let len = out.len() - start;
    if len <= 0x7f {
        out[start - 1] = len as u8;
        return Ok(());
    }
    let (mut digits, mut rest) = (0, len);
    while rest > 0 {
        (digits, rest) = (digits + 1, rest >> 7);
    }
    out.resize(start + len + digits - 1, 0);
    out.copy_within(start..start + len, start + digits - 1);
    for (at, byte) in out[start - 1..start - 1 + digits].iter_mut().enumerate() {
        let more = if at + 1 < digits { 0x80 } else { 0 };
        *byte = (len >> (7 * at)) as u8 & 0x7f | more;
    }
    Ok(())
}

/// `runtime.Unknown` around an object.
pub fn envelope(
    version: &str,
    kind: &str,
    out: &mut Vec<u8>,
    content: impl FnOnce(&mut Vec<u8>) -> Result,
) -> Result {
    out.extend_from_slice(MAGIC);
    message(1, out, |out| {
        bytes(1, version.as_bytes(), out);
        bytes(2, kind.as_bytes(), out);
        Result::Ok(())
    })?;
    message(2, out, content)?;
    // The encoding and type of the content, which upstream writes though they say nothing.
    bytes(3, b"", out);
    bytes(4, b"", out);
    Ok(())
}

/// `metadata` of a list.
pub fn list(json: &[u8], out: &mut Vec<u8>) -> Result {
    let meta = TABLE.by_name.get(format!("{META}.ListMeta").as_str()).copied();
    message(1, out, |out| meta.map_or(Ok(()), |meta| fields(meta, json, out)))
}

/// One of the items of a list.
pub fn item(of: usize, json: &[u8], out: &mut Vec<u8>) -> Result {
    message(2, out, |out| fields(of, json, out))
}

/// `WatchEvent`
pub fn event(kind: &str, object: &[u8], out: &mut Vec<u8>) {
    bytes(1, kind.as_bytes(), out);
    let within = message(2, out, |out| {
        bytes(1, object, out);
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = within;
}

/// The fields of a message, from a JSON object. Those that the message does not have (`apiVersion`
/// and `kind`) are passed over.
pub fn fields(of: usize, json: &[u8], out: &mut Vec<u8>) -> Result {
    let mut json = Json::new(json);
    object(of, &mut json, out)?;
    json.end()
}

fn object(of: usize, json: &mut Json<'_>, out: &mut Vec<u8>) -> Result {
    if json.null() {
        return Ok(());
    }
    let of = &TABLE.messages[of];
    json.members(|name, json| {
        let Some(named) = of.named(name) else { return json.skip().map(drop) };
        let field = &named.field;
        // A message whose fields are its parent's may come in parts: readers add them up.
        match named.within {
            [0, _] => value(field, field.count, json, out),
            [outer, 0] => message(outer, out, |out| value(field, field.count, json, out)),
            [outer, inner] => {
                message(outer, out, |out| message(inner, out, |out| value(field, field.count, json, out)))
            }
        }
    })
}

/// One value, or all of a list or a map.
fn value(field: &Field, count: Count, json: &mut Json<'_>, out: &mut Vec<u8>) -> Result {
    // Absent.
    if json.null() {
        return Ok(());
    }
    match count {
        Count::One => one(field, json, out),
        Count::Repeated => json.elements(|json| element(field, json, out)),
        Count::Map => {
            let value = Field { number: 2, count: Count::One, ..*field };
            json.members(|name, json| {
                message(field.number, out, |out| {
                    bytes(1, name, out);
                    element(&value, json, out)
                })
            })
        }
    }
}

/// One of several: null is the zero of its type.
fn element(field: &Field, json: &mut Json<'_>, out: &mut Vec<u8>) -> Result {
    if !json.null() {
        return one(field, json, out);
    }
    match field.of {
        Type::Integer | Type::Boolean => number(field.number, 0, out),
        Type::Double => double(field.number, 0.0, out),
        _ => bytes(field.number, b"", out),
    }
    Ok(())
}

fn one(field: &Field, json: &mut Json<'_>, out: &mut Vec<u8>) -> Result {
    let at = field.number;
    match field.of {
        Type::String => bytes(at, &json.string()?, out),
        Type::Integer => number(at, json.integer()? as u64, out),
        Type::Boolean => number(at, json.boolean()?.into(), out),
        Type::Double => double(at, json.number()?, out),
        Type::Bytes => {
            let content = STANDARD.decode(json.string()?).map_err(|_| json.wrong("base64"))?;
            bytes(at, &content, out);
        }
        Type::Time | Type::MicroTime => {
            let text = json.string()?;
            let time = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
            let time: jiff::Timestamp = time.ok_or_else(|| json.wrong("a time"))?;
            let nanos = if field.of == Type::Time { 0 } else { time.subsec_nanosecond() / 1000 * 1000 };
            return message(at, out, |out| {
                number(1, time.as_second() as u64, out);
                number(2, i64::from(nanos) as u64, out);
                Ok(())
            });
        }
        Type::Quantity => {
            let text = if json.peek() == Some(b'"') { json.string()? } else { json.skip()?.into() };
            return message(at, out, |out| {
                bytes(1, &text, out);
                Ok(())
            });
        }
        Type::IntOrString => {
            let is_text = json.peek() == Some(b'"');
            let (value, text) = if is_text { (0, json.string()?) } else { (json.integer()?, b"".into()) };
            // All three, as upstream writes them.
            return message(at, out, |out| {
                number(1, is_text.into(), out);
                number(2, value as u64, out);
                bytes(3, &text, out);
                Ok(())
            });
        }
        Type::Raw => {
            let raw = json.skip()?;
            return message(at, out, |out| {
                bytes(1, raw, out);
                Ok(())
            });
        }
        Type::List => {
            return message(at, out, |out| {
                json.elements(|json| {
                    bytes(1, &json.string()?, out);
                    Ok(())
                })
            });
        }
        Type::Message(of) => return message(at, out, |out| object(of, json, out)),
        Type::Union(of) => return message(at, out, |out| union(of, json, out)),
    }
    Ok(())
}

/// The field of a union that a value of this form is.
fn union(of: usize, json: &mut Json<'_>, out: &mut Vec<u8>) -> Result {
    let fields = &TABLE.messages[of].fields;
    let allowed = fields.iter().find(|field| field.of == Type::Boolean);
    let found = match json.peek() {
        Some(b'{') => fields.iter().find(|field| field.count == Count::One && field.of != Type::Boolean),
        Some(b'[') => fields.iter().find(|field| field.count == Count::Repeated),
        _ => allowed,
    };
    let field = found.ok_or_else(|| json.wrong("a member of the union"))?;
    // What a schema describes is also allowed.
    if let (Some(allowed), false) = (allowed, field.of == Type::Boolean) {
        number(allowed.number, 1, out);
    }
    value(field, field.count, json, out)
}

fn double(number: u64, value: f64, out: &mut Vec<u8>) {
    key(number, 1, out);
    out.extend_from_slice(&value.to_le_bytes());
}
