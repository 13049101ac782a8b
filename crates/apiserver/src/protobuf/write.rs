//! JSON bytes to protobuf, in one pass and without values in between. What goes in was written by
//! this server. Lengths are put before messages when these are complete.
//!
//! Every field that JSON has is written, zero or not, and no other: readers take absent ones as
//! zero, as upstream's do.

use super::table::{Count, Field, TABLE, Type};
use super::{MAGIC, META};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use skeg_api::Status;
use std::borrow::Cow;
use std::fmt;

/// Why JSON could not be written as protobuf: a fault of the server.
#[derive(Debug, thiserror::Error)]
#[error("encoding in protobuf: {0}")]
pub struct Error(#[from] serde_json::Error);

impl Error {
    pub fn custom(error: serde_json::Error) -> Self {
        Error(error)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::internal(error)
    }
}

type Result<T = (), E = Error> = std::result::Result<T, E>;

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
        Ok::<_, Error>(())
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
    let mut json = serde_json::Deserializer::from_slice(json);
    Ok(Fields { of, out }.deserialize(&mut json)?)
}

/// A string, borrowed unless it has escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(text.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(text.to_owned().into())
    }
}

/// The fields of a message.
struct Fields<'a> {
    of: usize,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let of = &TABLE.messages[self.of];
        while let Some(name) = map.next_key_seed(Text)? {
            let Some(named) = of.named(&name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let mut write = |out: &mut Vec<u8>| {
                map.next_value_seed(Slot {
                    field: &named.field,
                    count: named.field.count,
                    element: false,
                    out,
                })
            };
            // A message whose fields are its parent's may come in parts: readers add them up.
            match named.within {
                [0, _] => write(self.out)?,
                [outer, 0] => message(outer, self.out, write)?,
                [outer, inner] => message(outer, self.out, |out| message(inner, out, write))?,
            }
        }
        Ok(())
    }
}

/// Where a value goes.
struct Slot<'a> {
    field: &'a Field,
    count: Count,
    /// Whether it is one of several, so that nothing is something.
    element: bool,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Slot<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        if self.field.of != Type::Raw || self.count != Count::One {
            return json.deserialize_any(self);
        }
        let raw = <&RawValue>::deserialize(json)?.get();
        match (raw, self.element) {
            ("null", false) => Ok(()),
            ("null", true) => message(self.field.number, self.out, |_| Ok(())),
            _ => message(self.field.number, self.out, |out| {
                bytes(1, raw.as_bytes(), out);
                Ok(())
            }),
        }
    }
}

impl Slot<'_> {
    fn text<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let (number, out) = (self.field.number, self.out);
        match self.field.of {
            Type::String => bytes(number, text.as_bytes(), out),
            Type::Bytes => {
                let content = STANDARD.decode(text).map_err(E::custom)?;
                bytes(number, &content, out);
            }
            Type::Time | Type::MicroTime => {
                let at: jiff::Timestamp = text.parse().map_err(E::custom)?;
                let nanos =
                    if self.field.of == Type::Time { 0 } else { at.subsec_nanosecond() / 1000 * 1000 };
                return message(number, out, |out| {
                    self::number(1, at.as_second() as u64, out);
                    self::number(2, i64::from(nanos) as u64, out);
                    Ok(())
                });
            }
            Type::Quantity => {
                return message(number, out, |out| {
                    bytes(1, text.as_bytes(), out);
                    Ok(())
                });
            }
            Type::IntOrString => return int_or_string(number, 1, 0, text, out),
            _ => return Err(E::custom(format_args!("field {} cannot be a string", self.field.name))),
        }
        Ok(())
    }

    fn integer<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        let (number, out) = (self.field.number, self.out);
        match self.field.of {
            Type::Integer => self::number(number, value as u64, out),
            Type::Double => double(number, value as f64, out),
            Type::IntOrString => return int_or_string(number, 0, value, "", out),
            Type::Quantity => {
                return message(number, out, |out| {
                    bytes(1, value.to_string().as_bytes(), out);
                    Ok(())
                });
            }
            _ => return Err(E::custom(format_args!("field {} cannot be a number", self.field.name))),
        }
        Ok(())
    }
}

fn double(number: u64, value: f64, out: &mut Vec<u8>) {
    key(number, 1, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// All three fields, as upstream writes them.
fn int_or_string<E>(at: u64, kind: u64, value: i64, text: &str, out: &mut Vec<u8>) -> Result<(), E> {
    message(at, out, |out| {
        number(1, kind, out);
        number(2, value as u64, out);
        bytes(3, text.as_bytes(), out);
        Ok(())
    })
}

/// A field of a union by its form.
fn member(union: usize, wanted: impl Fn(&Field) -> bool) -> Option<&'static Field> {
    TABLE.messages[union].fields.iter().find(|field| wanted(field))
}

impl<'de> Visitor<'de> for Slot<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} in field {}", self.count, self.field.of, self.field.name)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        if !self.element {
            return Ok(());
        }
        match self.field.of {
            Type::Integer | Type::Boolean => number(self.field.number, 0, self.out),
            Type::Double => double(self.field.number, 0.0, self.out),
            _ => bytes(self.field.number, b"", self.out),
        }
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.text(text)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        match self.field.of {
            Type::Boolean => number(self.field.number, value.into(), self.out),
            Type::Union(of) if let Some(field) = member(of, |field| field.of == Type::Boolean) => {
                return message(self.field.number, self.out, |out| {
                    number(field.number, value.into(), out);
                    Ok(())
                });
            }
            _ => return Err(E::custom(format_args!("field {} cannot be a boolean", self.field.name))),
        }
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.integer(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.integer(value as i64)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.field.of {
            Type::Double => double(self.field.number, value, self.out),
            Type::Quantity => return self.text(&value.to_string()),
            _ => return self.integer(value as i64),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Slot { field, count, out, .. } = self;
        match (count, field.of) {
            (Count::Repeated, _) => {
                while items
                    .next_element_seed(Slot { field, count: Count::One, element: true, out })?
                    .is_some()
                {}
                Ok(())
            }
            (Count::One, Type::List) => message(field.number, out, |out| {
                while let Some(text) = items.next_element_seed(Text)? {
                    bytes(1, text.as_bytes(), out);
                }
                Ok(())
            }),
            (Count::One, Type::Union(of))
                if let Some(list) = member(of, |field| field.count == Count::Repeated) =>
            {
                message(field.number, out, |out| {
                    while items
                        .next_element_seed(Slot { field: list, count: Count::One, element: true, out })?
                        .is_some()
                    {}
                    Ok(())
                })
            }
            _ => Err(A::Error::custom(format_args!("field {} cannot be a list", field.name))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Slot { field, count, out, .. } = self;
        match (count, field.of) {
            (Count::Map, _) => {
                let value = Field { number: 2, count: Count::One, ..*field };
                while let Some(name) = map.next_key_seed(Text)? {
                    message(field.number, out, |out| {
                        bytes(1, name.as_bytes(), out);
                        map.next_value_seed(Slot { field: &value, count: Count::One, element: true, out })
                    })?;
                }
                Ok(())
            }
            (_, Type::Message(of)) => message(field.number, out, |out| Fields { of, out }.visit_map(map)),
            (_, Type::Union(of))
                if let Some(inner) = member(of, |field| matches!(field.of, Type::Message(_))) =>
            {
                let Type::Message(inner_of) = inner.of else { return Ok(()) };
                message(field.number, out, |out| {
                    // What a schema describes is also allowed.
                    if let Some(allowed) = member(of, |field| field.of == Type::Boolean) {
                        number(allowed.number, 1, out);
                    }
                    message(inner.number, out, |out| Fields { of: inner_of, out }.visit_map(map))
                })
            }
            _ => Err(A::Error::custom(format_args!("field {} cannot be an object", field.name))),
        }
    }
}
