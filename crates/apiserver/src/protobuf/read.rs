//! Protobuf to JSON values. Nothing in a body is trusted: lengths, wire types and depth are checked.

use super::table::{Count, Field, TABLE, Type};
use super::{MAGIC, ProtobufError, message_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};
use skeg_api::meta;

/// No sound object nests as deep as this: its JSON would not be read either.
pub(super) const DEPTH_MAX: usize = 96;

/// One encoded field.
enum Wire<'a> {
    Number(u64),
    Bits64(u64),
    Bits32,
    Bytes(&'a [u8]),
    Group,
}

impl Wire<'_> {
    fn wire_type(&self) -> u8 {
        match self {
            Wire::Number(_) => 0,
            Wire::Bits64(_) => 1,
            Wire::Bytes(_) => 2,
            Wire::Group => 3,
            Wire::Bits32 => 5,
        }
    }
}

/// The fields of a message, one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(ProtobufError::Short)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Overflow)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], ProtobufError> {
        let len = isize::try_from(len).map_err(|_| ProtobufError::NegativeLength)?;
        let (taken, rest) = self.0.split_at_checked(len.unsigned_abs()).ok_or(ProtobufError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next field's number and content.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire_type = (key & 7) as u8;
        let number = key >> 3;
        if number == 0 || number > u64::from(u32::MAX >> 3) {
            return Err(ProtobufError::Tag(wire_type));
        }
        let wire = match wire_type {
            0 => Wire::Number(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| ProtobufError::Short)?;
                Wire::Bits64(u64::from_le_bytes(bytes))
            }
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(len)?)
            }
            3 => {
                self.skip_group()?;
                Wire::Group
            }
            4 => return Err(ProtobufError::EndGroup),
            5 => {
                self.take(4)?;
                Wire::Bits32
            }
            other => return Err(ProtobufError::IllegalWireType(other)),
        };
        Ok(Some((number, wire)))
    }

    /// Passes over a group, which no kind has, and those within it.
    fn skip_group(&mut self) -> Result<(), ProtobufError> {
        let mut depth = 1usize;
        while depth > 0 {
            match (self.varint()? & 7) as u8 {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let len = self.varint()?;
                    self.take(len)?;
                }
                3 => depth += 1,
                4 => depth -= 1,
                5 => drop(self.take(4)?),
                other => return Err(ProtobufError::IllegalWireType(other)),
            }
        }
        Ok(())
    }
}

/// `runtime.Unknown`: what a body says of its object.
#[derive(Debug, Default)]
pub struct Envelope<'a> {
    pub version: String,
    pub kind: String,
    raw: &'a [u8],
    is_json: bool,
}

/// Takes the envelope off.
pub fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    if bytes.is_empty() {
        return Err(ProtobufError::Empty);
    }
    let content = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    if content.is_empty() {
        return Err(ProtobufError::NoEnvelope);
    }
    let mut found = Envelope::default();
    let mut reader = Reader(content);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                let mut types = Reader(bytes);
                while let Some((number, wire)) = types.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => found.version = text(bytes, "apiVersion")?,
                        (2, Wire::Bytes(bytes)) => found.kind = text(bytes, "kind")?,
                        (1, wire) => return Err(ProtobufError::WireType("apiVersion", wire.wire_type())),
                        (2, wire) => return Err(ProtobufError::WireType("kind", wire.wire_type())),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => found.raw = bytes,
            (4, Wire::Bytes(bytes)) => found.is_json = bytes == b"application/json",
            (1, wire) => return Err(ProtobufError::WireType("typeMeta", wire.wire_type())),
            (2, wire) => return Err(ProtobufError::WireType("raw", wire.wire_type())),
            (4, wire) => return Err(ProtobufError::WireType("contentType", wire.wire_type())),
            _ => {}
        }
    }
    Ok(found)
}

/// The object in an envelope, with its `apiVersion` and `kind`.
pub fn object(envelope: &Envelope<'_>, depth: usize) -> Result<Value, ProtobufError> {
    let Envelope { version, kind, raw, is_json } = envelope;
    if *is_json {
        return serde_json::from_slice(raw).map_err(|_| ProtobufError::Raw("raw"));
    }
    let message = message_of(version, kind)
        .ok_or_else(|| ProtobufError::Kind { kind: kind.clone(), version: version.clone() })?;
    let mut object = Map::new();
    read(raw, message, &mut object, depth)?;
    object.insert("apiVersion".into(), version.as_str().into());
    object.insert("kind".into(), kind.as_str().into());
    Ok(Value::Object(object))
}

fn text(bytes: &[u8], field: &'static str) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtobufError::Text(field))
}

pub(super) fn read(
    bytes: &[u8],
    message: usize,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::Depth);
    }
    let message = &TABLE.messages[message];
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some(field) = message.by_number(number) else { continue };
        match (field.count, field.of, wire) {
            (Count::One, Type::Message(inner), Wire::Bytes(bytes)) if field.name.is_empty() => {
                read(bytes, inner, out, depth + 1)?;
            }
            // A message that comes in parts is their sum.
            (Count::One, Type::Message(inner), Wire::Bytes(bytes)) => {
                let part = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(part) = part.as_object_mut() {
                    read(bytes, inner, part, depth + 1)?;
                }
            }
            (Count::One, _, wire) => {
                let value = value(field, wire, depth)?;
                if !value.is_null() {
                    out.insert(field.name.to_owned(), value);
                }
            }
            (Count::Repeated, Type::Integer | Type::Boolean, Wire::Bytes(bytes)) => {
                let mut packed = Reader(bytes);
                while !packed.0.is_empty() {
                    let number = Wire::Number(packed.varint()?);
                    push(out, field.name, value(field, number, depth)?);
                }
            }
            (Count::Repeated, _, wire) => push(out, field.name, value(field, wire, depth)?),
            (Count::Map, _, Wire::Bytes(bytes)) => {
                let (key, value) = entry(field, bytes, depth)?;
                let map = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            (Count::Map, _, wire) => return Err(ProtobufError::WireType(field.name, wire.wire_type())),
        }
    }
    Ok(())
}

fn push(out: &mut Map<String, Value>, name: &str, value: Value) {
    if let Some(list) = out.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut() {
        list.push(value);
    }
}

fn entry(field: &Field, bytes: &[u8], depth: usize) -> Result<(String, Value), ProtobufError> {
    let mut key = String::new();
    let mut found = None;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes, field.name)?,
            (2, wire) => found = Some(value(field, wire, depth)?),
            _ => {}
        }
    }
    // An absent value is the zero of its type.
    let found = match found {
        Some(found) => found,
        None if matches!(field.of, Type::Integer | Type::Double | Type::Boolean) => {
            value(field, Wire::Number(0), depth)?
        }
        None => value(field, Wire::Bytes(&[]), depth)?,
    };
    Ok((key, found))
}

fn value(field: &Field, wire: Wire<'_>, depth: usize) -> Result<Value, ProtobufError> {
    let name = field.name;
    Ok(match (field.of, wire) {
        (Type::String, Wire::Bytes(bytes)) => text(bytes, name)?.into(),
        // Negative numbers of either size are sign-extended to 64 bits.
        (Type::Integer, Wire::Number(number)) => (number as i64).into(),
        (Type::Boolean, Wire::Number(number)) => (number != 0).into(),
        (Type::Double, Wire::Bits64(bits)) => double(f64::from_bits(bits)),
        (Type::Double, Wire::Number(0)) => 0.0.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Time, Wire::Bytes(bytes)) => {
            time(name, bytes)?.map_or(Value::Null, |at| meta::format_time(at).into())
        }
        (Type::MicroTime, Wire::Bytes(bytes)) => {
            time(name, bytes)?.map_or(Value::Null, |at| meta::format_micro_time(at).into())
        }
        (Type::Quantity, Wire::Bytes(bytes)) => match first(bytes)? {
            Some(bytes) => text(bytes, name)?.into(),
            None => "0".into(),
        },
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(name, bytes)?,
        (Type::Raw, Wire::Bytes(bytes)) => raw(name, first(bytes)?.unwrap_or_default(), depth)?,
        (Type::List, Wire::Bytes(bytes)) => {
            let mut reader = Reader(bytes);
            let mut list = Vec::new();
            while let Some((number, wire)) = reader.next()? {
                if let (1, Wire::Bytes(bytes)) = (number, wire) {
                    list.push(Value::from(text(bytes, name)?));
                }
            }
            list.into()
        }
        (Type::Message(message), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            read(bytes, message, &mut object, depth + 1)?;
            Value::Object(object)
        }
        (Type::Union(message), Wire::Bytes(bytes)) => union(message, bytes, depth)?,
        (_, wire) => return Err(ProtobufError::WireType(name, wire.wire_type())),
    })
}

/// The last field 1 of a message that has no other.
fn first(bytes: &[u8]) -> Result<Option<&[u8]>, ProtobufError> {
    let mut reader = Reader(bytes);
    let mut found = None;
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            found = Some(bytes);
        }
    }
    Ok(found)
}

/// Whole numbers as JSON writes them, as Go does.
fn double(number: f64) -> Value {
    let whole = number as i64;
    if whole as f64 == number && whole.unsigned_abs() < 1 << 53 {
        return whole.into();
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn int_or_string(name: &'static str, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut string) = (false, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some(part) = reader.next()? {
        match part {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(n)) => number = n as i64,
            (3, Wire::Bytes(bytes)) => string = text(bytes, name)?,
            _ => {}
        }
    }
    Ok(if is_text { string.into() } else { number.into() })
}

/// JSON, or an object in an envelope of its own.
fn raw(name: &'static str, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if bytes.starts_with(MAGIC) {
        return object(&envelope(bytes)?, depth + 1);
    }
    serde_json::from_slice(bytes).map_err(|_| ProtobufError::Raw(name))
}

/// The field that is set: a list before an object before a boolean.
fn union(message: usize, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    let mut parts = Map::new();
    read(bytes, message, &mut parts, depth + 1)?;
    let fields = &TABLE.messages[message].fields;
    let mut of = |wanted: fn(&Field) -> bool| {
        fields.iter().find(|field| wanted(field)).and_then(|field| parts.remove(field.name))
    };
    let has_boolean = fields.iter().any(|field| field.of == Type::Boolean);
    Ok(of(|field| field.count == Count::Repeated)
        .or_else(|| of(|field| field.count == Count::One && field.of != Type::Boolean))
        .or_else(|| of(|field| field.of == Type::Boolean))
        .unwrap_or(if has_boolean { false.into() } else { Value::Null }))
}

/// Seconds and nanoseconds; an empty message is no time.
fn time(field: &'static str, bytes: &[u8]) -> Result<Option<jiff::Timestamp>, ProtobufError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0i64, 0i64);
    let mut reader = Reader(bytes);
    while let Some(part) = reader.next()? {
        match part {
            (1, Wire::Number(number)) => seconds = number as i64,
            (2, Wire::Number(number)) => nanos = number as i64,
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| ProtobufError::Time(field))?;
    jiff::Timestamp::new(seconds, nanos).map(Some).map_err(|_| ProtobufError::Time(field))
}
