//! JSON and YAML into values. Both go through one visitor, which keeps the last of several equal
//! keys, as upstream does, and remembers the path of each duplicate.

use super::order;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// The deepest nesting of a body.
/// (That of `serde_json`, so that both encodings have the same.)
pub const DEPTH_MAX: usize = 127;
/// The most duplicates that one request reports.
pub(super) const DUPLICATES_LEN_MAX: usize = 100;

const TOO_DEEP: &str = "json: exceeded max depth";

/// How deep a value nests: 0 for a scalar, 1 for an array of scalars. What was parsed has at most
/// [`DEPTH_MAX`].
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A parsed body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// One complaint per duplicate key: `duplicate field "spec.replicas"`, or of YAML
    /// `line 3: key "replicas" already set in map`.
    pub duplicates: Vec<String>,
}

/// A body that is no JSON or YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    #[error("couldn't get version/kind; json parse error: {0}")]
    Json(String),
    #[error("error converting YAML to JSON: yaml: {0}")]
    Yaml(String),
    #[error(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {0} into Go value of type \
         map[string]interface {{}}"
    )]
    NoMap(&'static str),
}

/// Parses a JSON document.
pub fn decode_json(bytes: &[u8]) -> Result<Decoded, SyntaxError> {
    match parse_json(bytes) {
        Err(error) => mended(bytes).map_or(Err(error), |mended| parse_json(&mended)),
        parsed => parsed,
    }
}

/// The body with U+FFFD for what is no Unicode, as Go reads it: each byte that is no UTF-8, and each
/// escape of half a surrogate pair. `None` if there is nothing of it.
fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        chunk.invalid().iter().for_each(|_| out.extend_from_slice("\u{fffd}".as_bytes()));
    }
    let unit = |at: usize, out: &[u8]| -> Option<u32> {
        let digits = out.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    while let Some(step) = out[at..].iter().position(|byte| *byte == b'\\') {
        at += step;
        match (unit(at, &out), unit(at + 6, &out)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => at += 12,
            (Some(0xd800..=0xdfff), _) => {
                out[at + 2..at + 6].copy_from_slice(b"fffd");
                at += 6;
            }
            _ => at = (at + 2).min(out.len()),
        }
    }
    (out != bytes).then_some(out)
}

fn parse_json(bytes: &[u8]) -> Result<Decoded, SyntaxError> {
    let duplicates = RefCell::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let build = Build { at: None, depth: 0, duplicates: &duplicates };
    let value = build
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| SyntaxError::Json(go_syntax_error(&error, bytes)))?;
    Ok(Decoded { value, duplicates: duplicates.into_inner() })
}

/// The first document of a stream: what follows is not looked at, as upstream has it.
fn first_document(bytes: &[u8]) -> &[u8] {
    let (mut at, mut begun) = (0, false);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let marks = |mark: &[u8]| {
            line.strip_prefix(mark).is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
        };
        if begun && (marks(b"---") || marks(b"...")) {
            return &bytes[..at];
        }
        let start = line.trim_ascii_start().first();
        begun |= start.is_some_and(|first| !b"#%".contains(first)) && line.trim_ascii() != b"---";
        at += line.len();
    }
    bytes
}

/// Parses the first document of a YAML stream (of which JSON is one kind).
pub fn decode_yaml(bytes: &[u8]) -> Result<Decoded, SyntaxError> {
    let bytes = first_document(bytes);
    let duplicates = RefCell::default();
    let value =
        serde_saphyr::with_deserializer_from_slice_with_options(bytes, yaml_options(), |deserializer| {
            Build { at: None, depth: 0, duplicates: &duplicates }.deserialize(deserializer)
        })
        .map_err(|error| SyntaxError::Yaml(one_line(&error.to_string())))?;
    let duplicates = if duplicates.borrow().is_empty() { Vec::new() } else { order::yaml_duplicates(bytes) };
    Ok(Decoded { value, duplicates })
}

/// Parses the configuration of a server-side apply: YAML, which most clients send as JSON.
pub fn decode_apply(bytes: &[u8]) -> Result<Decoded, SyntaxError> {
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let decoded = match is_json.then(|| decode_json(bytes)) {
        // Duplicates are told in the words of the YAML reader.
        Some(Ok(decoded)) if decoded.duplicates.is_empty() => decoded,
        _ => decode_yaml(bytes)?,
    };
    match decoded.value {
        Value::Object(_) | Value::Null => Ok(decoded),
        other => Err(SyntaxError::NoMap(super::scalar::json_type(&other))),
    }
}

pub(super) fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        with_snippet: false,
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": ")
}

/// Where the visitor is: a list on the stack, from the innermost step outwards.
pub(super) struct Step<'a> {
    pub outer: Option<&'a Step<'a>>,
    pub at: At<'a>,
}

pub(super) enum At<'a> {
    Key(&'a str),
    Index(usize),
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer) = self.outer {
            outer.fmt(f)?;
        }
        match self.at {
            At::Key(key) if self.outer.is_some() => write!(f, ".{key}"),
            At::Key(key) => f.write_str(key),
            At::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// Builds one value.
struct Build<'a> {
    at: Option<&'a Step<'a>>,
    depth: usize,
    duplicates: &'a RefCell<Vec<String>>,
}

impl Build<'_> {
    fn below<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.depth >= DEPTH_MAX { Err(E::custom(TOO_DEEP)) } else { Ok(self.depth + 1) }
    }

    fn note_duplicate(&self, key: &str) {
        let mut duplicates = self.duplicates.borrow_mut();
        let path = Step { outer: self.at, at: At::Key(key) };
        let complaint = format!("duplicate field \"{path}\"");
        if duplicates.len() < DUPLICATES_LEN_MAX && !duplicates.contains(&complaint) {
            duplicates.push(complaint);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("numbers must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut list = Vec::new();
        loop {
            let step = Step { outer: self.at, at: At::Index(list.len()) };
            match items.next_element_seed(Build { at: Some(&step), depth, duplicates: self.duplicates })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let step = Step { outer: self.at, at: At::Key(&key) };
            let value =
                entries.next_value_seed(Build { at: Some(&step), depth, duplicates: self.duplicates })?;
            match map.entry(key) {
                Entry::Vacant(entry) => drop(entry.insert(value)),
                Entry::Occupied(mut entry) => {
                    self.note_duplicate(entry.key());
                    entry.insert(value);
                }
            }
        }
        Ok(Value::Object(map))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Value, E> {
        Err(E::custom("binary values are not supported"))
    }
}

/// The message that Go's decoder has for a syntax error; clients and people know those.
fn go_syntax_error(error: &serde_json::Error, bytes: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let text = error.to_string();
    if text.starts_with(TOO_DEEP) || text.starts_with("recursion limit exceeded") {
        return "exceeded max depth".to_owned();
    }
    let Some(found) = byte_at(bytes, error.line(), error.column()) else { return text };
    let after = match text.split(" at line").next().unwrap_or("") {
        "expected value" => "looking for beginning of value",
        "expected `,` or `}`" => "after object key:value pair",
        "expected `,` or `]`" => "after array element",
        "expected `:`" => "after object key",
        "key must be a string" => "looking for beginning of object key string",
        "trailing comma" if found == b'}' => "looking for beginning of object key string",
        "trailing comma" => "looking for beginning of value",
        "trailing characters" => "after top-level value",
        "expected ident" => "in literal",
        "control character (\\u0000-\\u001F) found while parsing a string" => "in string literal",
        "invalid escape" => "in string escape code",
        "invalid number" => "in numeric literal",
        _ => return text,
    };
    let found = char::from(found);
    format!("invalid character {found:?} {after}")
}

/// The byte that an error names by line and column, both from one.
fn byte_at(bytes: &[u8], line: usize, column: usize) -> Option<u8> {
    let line = bytes.split(|byte| *byte == b'\n').nth(line.checked_sub(1)?)?;
    line.get(column.checked_sub(1)?).copied()
}
