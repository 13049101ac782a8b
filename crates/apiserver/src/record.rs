//! The stored form of an object: {format, key id, storage version, splice offset, body}. The body
//! is JSON without `metadata.resourceVersion`, which is the revision of the write and so not known
//! before it; it is spliced in on output. The key id is where encryption at rest will plug in.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use skeg_api::decode::{DEPTH_MAX, depth};

/// The layout below. Other numbers are refused, never guessed.
const FORMAT: u8 = 1;
/// The body is plain.
const KEY_NONE: u8 = 0;

/// What is needed to serve a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    pub json: Bytes,
    /// Where in `json` the first field of `metadata` starts.
    pub splice: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("unknown record format {0}")]
    Format(u8),
    #[error("record is encrypted with unknown key {0}")]
    Key(u8),
    #[error("record is cut short")]
    Short,
    #[error("object has no metadata with fields")]
    Metadata,
    #[error("object nests deeper than {DEPTH_MAX} levels, with its managedFields")]
    Deep,
    #[error("object does not encode: {0}")]
    Encode(String),
}

/// Encodes an object, which must have `metadata` with at least one field and no resourceVersion.
pub fn encode(version: &str, object: &Value) -> Result<Bytes, RecordError> {
    let fields = object.as_object().ok_or(RecordError::Metadata)?;
    // The field sets of managers nest a little deeper than the object that was sent.
    if depth(object) > DEPTH_MAX {
        return Err(RecordError::Deep);
    }
    let version_len =
        u8::try_from(version.len()).map_err(|_| RecordError::Encode("storage version is too long".into()))?;
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(&[FORMAT, KEY_NONE, version_len]);
    out.extend_from_slice(version.as_bytes());
    let header = out.len();
    out.extend_from_slice(&[0; 4]);
    let start = out.len();
    let mut splice = None;
    for (i, (key, value)) in fields.iter().enumerate() {
        out.push(if i == 0 { b'{' } else { b',' });
        serde_json::to_writer(&mut out, key).map_err(|e| RecordError::Encode(e.to_string()))?;
        out.push(b':');
        if key == "metadata" && value.as_object().is_some_and(|m| !m.is_empty()) {
            splice = Some(out.len() + 1 - start);
        }
        serde_json::to_writer(&mut out, value).map_err(|e| RecordError::Encode(e.to_string()))?;
    }
    out.push(b'}');
    let splice = splice.and_then(|at| u32::try_from(at).ok()).ok_or(RecordError::Metadata)?;
    out[header..header + 4].copy_from_slice(&splice.to_le_bytes());
    // A copy: shrunk in place it could keep twice the room, and it lives as long as the object.
    Ok(Bytes::copy_from_slice(&out))
}

/// Borrows the body out of a record.
pub fn decode(record: &Bytes) -> Result<Body, RecordError> {
    let [format, key, version_len, ..] = record[..] else { return Err(RecordError::Short) };
    if format != FORMAT {
        return Err(RecordError::Format(format));
    }
    if key != KEY_NONE {
        return Err(RecordError::Key(key));
    }
    let header = 3 + usize::from(version_len);
    let splice = record.get(header..header + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let splice = splice.ok_or(RecordError::Short)?;
    let json = record.slice(header + 4..);
    if json.get(splice as usize).is_none() {
        return Err(RecordError::Short);
    }
    Ok(Body { json, splice })
}

impl Body {
    /// Writes the object as clients see it.
    pub fn write(&self, revision: u64, out: &mut Vec<u8>) {
        let (head, tail) = self.json.split_at(self.splice as usize);
        out.extend_from_slice(head);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(Decimal::new(revision).as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(tail);
    }

    /// The object's metadata alone, as a PartialObjectMetadata; looks at nothing else of it. `None` if the
    /// body is no object.
    pub fn metadata(&self) -> Option<Body> {
        // What is spliced in comes before the first field.
        let metadata = self.json.get((self.splice as usize).checked_sub(1)?..)?;
        let metadata = <&RawValue>::deserialize(&mut serde_json::Deserializer::from_slice(metadata)).ok()?;
        let head = br#"{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":"#;
        let json = [head, metadata.get().as_bytes(), b"}"].concat().into();
        Some(Body { json, splice: head.len() as u32 + 1 })
    }

    /// How many bytes [`Body::write`] writes.
    pub fn len(&self, revision: u64) -> usize {
        self.json.len() + 21 + Decimal::new(revision).as_bytes().len()
    }
}

/// A number as decimal text, without an allocation.
pub struct Decimal([u8; 20], usize);

impl Decimal {
    pub fn new(mut n: u64) -> Self {
        let (mut digits, mut at) = ([0; 20], 20);
        loop {
            at -= 1;
            digits[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                return Decimal(digits, at);
            }
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0[self.1..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_revision_is_spliced_in() {
        let object = json!({"apiVersion": "v1", "data": {"metadata": "x"}, "kind": "ConfigMap", "metadata": {"name": "a"}});
        let record = encode("v1", &object).unwrap();
        let body = decode(&record).unwrap();
        let mut out = Vec::new();
        body.write(1234, &mut out);
        assert_eq!(out.len(), body.len(1234));
        let mut expected = object;
        expected["metadata"]["resourceVersion"] = "1234".into();
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
    }

    #[test]
    fn metadata_is_taken_out_as_it_is() {
        let metadata =
            json!({"annotations": {"a": "}{\"]"}, "managedFields": [{"manager": "m"}], "name": "a"});
        let object =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"metadata": {}}});
        let body = decode(&encode("v1", &object).unwrap()).unwrap();
        let mut out = Vec::new();
        body.metadata().unwrap().write(7, &mut out);
        let mut expected =
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
        expected["metadata"]["resourceVersion"] = "7".into();
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
        assert_eq!(Body { json: Bytes::from_static(b"{"), splice: 0 }.metadata(), None);
        assert_eq!(Body { json: Bytes::from_static(b"{\"a\":{"), splice: 6 }.metadata(), None);
    }

    #[test]
    fn broken_records_are_errors() {
        assert_eq!(decode(&Bytes::from_static(&[1])), Err(RecordError::Short));
        assert_eq!(decode(&Bytes::from_static(&[9, 0, 0, 0])), Err(RecordError::Format(9)));
        assert_eq!(decode(&Bytes::from_static(&[1, 7, 0, 0])), Err(RecordError::Key(7)));
        assert_eq!(
            decode(&Bytes::from_static(&[1, 0, 2, b'v', b'1', 5, 0, 0, 0, b'{'])),
            Err(RecordError::Short)
        );
        assert_eq!(encode("v1", &json!({"kind": "x"})), Err(RecordError::Metadata));
    }

    #[test]
    fn decimals() {
        for n in [0, 7, 10, 1999, u64::MAX] {
            assert_eq!(Decimal::new(n).as_bytes(), n.to_string().as_bytes());
        }
    }
}
