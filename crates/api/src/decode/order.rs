//! A second reading of a body that drew complaints: in the order of the document, with lines.
//! Only bodies with unknown or duplicate fields pay for it.

use super::parse::{At, DUPLICATES_LEN_MAX, Step, yaml_options};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::collections::BTreeSet;
use std::fmt;

/// The complaints about a JSON body as one decoder makes them in passing: unknown fields are not
/// looked into, and are never duplicates.
pub(super) fn json_complaints(bytes: &[u8], unknown: Vec<String>) -> Vec<String> {
    let mut trace = Trace { unknown: unknown.into_iter().collect(), has_lines: false, found: Vec::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    // The body parsed before: an error can only repeat itself, after what was found.
    let _ = Follow { at: None, trace: &mut trace }.deserialize(&mut deserializer);
    trace.found
}

/// The complaints about a YAML body, by line.
pub(super) fn yaml_duplicates(bytes: &[u8]) -> Vec<String> {
    let mut trace = Trace { unknown: BTreeSet::new(), has_lines: true, found: Vec::new() };
    let _ = serde_saphyr::with_deserializer_from_slice_with_options(bytes, yaml_options(), |deserializer| {
        Follow { at: None, trace: &mut trace }.deserialize(deserializer)
    });
    trace.found
}

struct Trace {
    /// `unknown field "spec.foo"`
    unknown: BTreeSet<String>,
    /// Whether keys know their lines, which only the YAML reader can tell.
    has_lines: bool,
    found: Vec<String>,
}

impl Trace {
    fn note(&mut self, complaint: String) {
        if self.found.len() < DUPLICATES_LEN_MAX && !self.found.contains(&complaint) {
            self.found.push(complaint);
        }
    }
}

struct Follow<'a> {
    at: Option<&'a Step<'a>>,
    trace: &'a mut Trace,
}

impl<'de> DeserializeSeed<'de> for Follow<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Follow<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i128<E>(self, _: i128) -> Result<(), E> {
        Ok(())
    }

    fn visit_u128<E>(self, _: u128) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0.. {
            let step = Step { outer: self.at, at: At::Index(index) };
            if items.next_element_seed(Follow { at: Some(&step), trace: &mut *self.trace })?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        loop {
            let (key, line) = if self.trace.has_lines {
                match entries.next_key::<Spanned<String>>()? {
                    Some(key) => (key.value, key.referenced.line()),
                    None => break,
                }
            } else {
                match entries.next_key::<String>()? {
                    Some(key) => (key, 0),
                    None => break,
                }
            };
            let step = Step { outer: self.at, at: At::Key(&key) };
            let unknown = format!("unknown field \"{step}\"");
            if self.trace.unknown.contains(&unknown) {
                self.trace.note(unknown);
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            if seen.contains(&key) {
                self.trace.note(match self.trace.has_lines {
                    true => format!("line {line}: key {key:?} already set in map"),
                    false => format!("duplicate field \"{step}\""),
                });
            }
            entries.next_value_seed(Follow { at: Some(&step), trace: &mut *self.trace })?;
            seen.insert(key);
        }
        Ok(())
    }
}
