//! Request bodies in protobuf: turned into JSON at the door, so that nothing behind knows of them.
//! Which number is which field is generated data (`cargo xtask codegen`). Answers are JSON, which
//! every client that sends protobuf also accepts.
//! Upstream counterpart: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};
use skeg_api::{GroupVersion, meta};
use skeg_base::{HashMap, new_map};
use std::sync::LazyLock;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What precedes the envelope.
const MAGIC: &[u8] = b"k8s\0";
/// No type nests as deep as this; schemas of custom resources, which do, are sent as JSON.
const DEPTH_MAX: usize = 64;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    String,
    Integer,
    Boolean,
    Double,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// JSON, as bytes.
    Raw,
    /// A list of strings, in a message of its own because maps hold no lists.
    List,
    Message(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Count {
    One,
    Repeated,
    Map,
}

struct Field {
    number: u64,
    /// Empty for a message whose fields are its parent's.
    name: &'static str,
    count: Count,
    of: Type,
}

struct Table {
    by_name: HashMap<&'static str, usize>,
    messages: Vec<Vec<Field>>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table { by_name: new_map(), messages: Vec::new() };
    for (index, line) in include_str!("../data/protobuf.tsv").lines().enumerate() {
        let mut parts = line.split('\t');
        table.by_name.insert(parts.next().unwrap_or_default(), index);
        table.messages.push(parts.filter_map(field).collect());
    }
    table
});

fn field(text: &'static str) -> Option<Field> {
    let mut parts = text.splitn(3, ':');
    let (number, name, code) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let (count, code) = match code.split_at_checked(1)? {
        ("*", rest) => (Count::Repeated, rest),
        ("%", rest) => (Count::Map, rest),
        _ => (Count::One, code),
    };
    let of = match code {
        "s" => Type::String,
        "i" => Type::Integer,
        "b" => Type::Boolean,
        "d" => Type::Double,
        "y" => Type::Bytes,
        "T" => Type::Time,
        "M" => Type::MicroTime,
        "Q" => Type::Quantity,
        "I" => Type::IntOrString,
        "R" => Type::Raw,
        "L" => Type::List,
        index => Type::Message(index.parse().ok()?),
    };
    Some(Field { number, name, count, of })
}

/// Why a body could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("proto: unexpected end of input")]
    Short,
    #[error("proto: wrong wireType for field {0}")]
    WireType(&'static str),
    #[error("proto: illegal tag or wire type")]
    Tag,
    #[error("proto: field {0} contains invalid UTF-8")]
    Text(&'static str),
    #[error("proto: field {0} is no JSON")]
    Raw(&'static str),
    #[error("proto: field {0} is no time")]
    Time(&'static str),
    #[error("proto: nested too deep")]
    Depth,
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Kind { kind: String, version: String },
}

/// One encoded field.
enum Wire<'a> {
    Number(u64),
    Bits64(u64),
    Bits32,
    Bytes(&'a [u8]),
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
        Err(ProtobufError::Tag)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], ProtobufError> {
        let len = usize::try_from(len).map_err(|_| ProtobufError::Short)?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(ProtobufError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Number(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| ProtobufError::Short)?;
                Wire::Bits64(u64::from_le_bytes(bytes))
            }
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Wire::Bits32
            }
            _ => return Err(ProtobufError::Tag),
        };
        match key >> 3 {
            0 => Err(ProtobufError::Tag),
            number => Ok(Some((number, wire))),
        }
    }
}

/// The object in a body: the envelope is taken off, and its kind becomes the object's.
pub fn to_value(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut envelope = Reader(bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?);
    let (mut version, mut kind, mut raw, mut content) =
        (String::new(), String::new(), &[][..], String::new());
    while let Some((number, wire)) = envelope.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                let mut meta = Reader(bytes);
                while let Some((number, wire)) = meta.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => version = text(bytes, "apiVersion")?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (4, Wire::Bytes(bytes)) => content = text(bytes, "contentType")?,
            _ => {}
        }
    }
    if content == "application/json" {
        return serde_json::from_slice(raw).map_err(|_| ProtobufError::Raw("raw"));
    }
    let message = message_of(&version, &kind)
        .ok_or(ProtobufError::Kind { kind: kind.clone(), version: version.clone() })?;
    let mut object = Map::new();
    read(raw, message, &mut object, 0)?;
    object.insert("apiVersion".into(), version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn message_of(version: &str, kind: &str) -> Option<usize> {
    let gv = GroupVersion::parse(version)?;
    let own = match &*gv.group {
        "" => format!("io.k8s.api.core.{}.{kind}", gv.version),
        "apiregistration.k8s.io" => {
            format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{}.{kind}", gv.version)
        }
        group => format!("io.k8s.api.{}.{}.{kind}", group.split('.').next()?, gv.version),
    };
    let find = |name: &str| TABLE.by_name.get(name).copied();
    // Options belong to every group.
    let is_common = kind.ends_with("Options") || (version == "v1" && kind == "Status");
    find(&own).or_else(|| if is_common { find(&format!("{META}.{kind}")) } else { None })
}

fn text(bytes: &[u8], field: &'static str) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtobufError::Text(field))
}

fn read(
    bytes: &[u8],
    message: usize,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::Depth);
    }
    let fields = &TABLE.messages[message];
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        match (field.count, wire) {
            (Count::One, Wire::Bytes(bytes)) if field.name.is_empty() => {
                let Type::Message(inner) = field.of else { return Err(ProtobufError::Tag) };
                read(bytes, inner, out, depth + 1)?;
            }
            // A message that comes in parts is their sum.
            (Count::One, Wire::Bytes(bytes)) if matches!(field.of, Type::Message(_)) => {
                let Type::Message(inner) = field.of else { return Err(ProtobufError::Tag) };
                let part = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(part) = part.as_object_mut() {
                    read(bytes, inner, part, depth + 1)?;
                }
            }
            (Count::One, wire) => {
                let value = value(field, wire, depth)?;
                if !value.is_null() {
                    out.insert(field.name.to_owned(), value);
                }
            }
            (Count::Repeated, Wire::Bytes(bytes)) if field.of == Type::Integer => {
                let mut packed = Reader(bytes);
                while !packed.0.is_empty() {
                    let number = packed.varint()? as i64;
                    push(out, field.name, number.into());
                }
            }
            (Count::Repeated, wire) => {
                let value = value(field, wire, depth)?;
                push(out, field.name, value);
            }
            (Count::Map, Wire::Bytes(bytes)) => {
                let (key, value) = entry(field, bytes, depth)?;
                let map = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            (Count::Map, _) => return Err(ProtobufError::WireType(field.name)),
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
        (Type::Double, Wire::Bits64(bits)) => {
            Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number)
        }
        (Type::Double, Wire::Number(0)) => 0.0.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Time, Wire::Bytes(bytes)) => {
            time(name, bytes)?.map_or(Value::Null, |at| meta::format_time(at).into())
        }
        (Type::MicroTime, Wire::Bytes(bytes)) => {
            time(name, bytes)?.map_or(Value::Null, |at| meta::format_micro_time(at).into())
        }
        (Type::Quantity, Wire::Bytes(bytes)) => {
            let mut reader = Reader(bytes);
            let mut quantity = String::from("0");
            while let Some((number, wire)) = reader.next()? {
                if let (1, Wire::Bytes(bytes)) = (number, wire) {
                    quantity = text(bytes, name)?;
                }
            }
            quantity.into()
        }
        (Type::IntOrString, Wire::Bytes(bytes)) => {
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
            if is_text { string.into() } else { number.into() }
        }
        (Type::Raw, Wire::Bytes(bytes)) => {
            let mut reader = Reader(bytes);
            let mut found = Value::Null;
            while let Some((number, wire)) = reader.next()? {
                if let (1, Wire::Bytes(bytes)) = (number, wire)
                    && !bytes.is_empty()
                {
                    found = serde_json::from_slice(bytes).map_err(|_| ProtobufError::Raw(name))?;
                }
            }
            found
        }
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
        _ => return Err(ProtobufError::WireType(name)),
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use skeg_api::decode::check as check_schema;
    use skeg_api::schema::Schema;
    use std::collections::BTreeSet;

    fn varint(mut value: u64, out: &mut Vec<u8>) {
        while value > 0x7f {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn number(n: u64, value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        varint(n << 3, &mut out);
        varint(value, &mut out);
        out
    }

    fn bytes(n: u64, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut out = number(n, content.len() as u64);
        out[0] |= 2;
        out.extend(content);
        out
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = bytes(1, &[&bytes(1, &[version.as_bytes()]), &bytes(2, &[kind.as_bytes()])]);
        [MAGIC, &types, &bytes(2, &[raw])].concat()
    }

    fn check(version: &str, kind: &str, raw: &[u8], mut expected: Value) {
        expected["apiVersion"] = version.into();
        expected["kind"] = kind.into();
        assert_eq!(to_value(&envelope(version, kind, raw)).unwrap(), expected);
    }

    #[test]
    fn objects_become_json() {
        let meta = bytes(
            1,
            &[&bytes(1, &[b"x"]), &bytes(8, &[]), &bytes(11, &[&bytes(1, &[b"k"]), &bytes(2, &[b"v"])])],
        );
        let expected = json!({"metadata": {"name": "x", "labels": {"k": "v"}}, "data": {"a": "b"}, "binaryData": {"c": "AQI="}});
        let data = bytes(2, &[&bytes(1, &[b"a"]), &bytes(2, &[b"b"])]);
        let binary = bytes(3, &[&bytes(1, &[b"c"]), &bytes(2, &[&[1, 2]])]);
        check("v1", "ConfigMap", &[meta, data, binary].concat(), expected);
        let time = bytes(9, &[&number(1, 1_767_225_600)]);
        check(
            "v1",
            "Namespace",
            &bytes(1, &[&time]),
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        );
        let port = [number(3, 80), bytes(4, &[&number(1, 1), &bytes(3, &[b"http"])])].concat();
        let port = bytes(1, &[&port]);
        let expected = json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}], "clusterIP": "None"}});
        check("v1", "Service", &bytes(2, &[&port, &bytes(3, &[b"None"])]), expected);
        check("policy/v1", "DeleteOptions", &number(1, 5), json!({"gracePeriodSeconds": 5}));
        let extra = bytes(5, &[&bytes(1, &[b"k"]), &bytes(2, &[&bytes(1, &[b"v"])])]);
        let review = bytes(2, &[&bytes(3, &[b"jane"]), &extra]);
        let expected = json!({"spec": {"user": "jane", "extra": {"k": ["v"]}}});
        check("authorization.k8s.io/v1", "SubjectAccessReview", &review, expected);
    }

    #[test]
    fn embedded_messages_are_their_parents_fields() {
        // spec.volumes[0].volumeSource.secret.secretName
        let source = bytes(2, &[&bytes(6, &[&bytes(1, &[b"s"])])]);
        let volume = bytes(1, &[&bytes(1, &[b"v"]), &source]);
        check(
            "v1",
            "Pod",
            &bytes(2, &[&volume]),
            json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
        );
    }

    #[test]
    fn zeroes_that_go_always_writes_are_gone_after_the_check() {
        let decoded = |version: &str, kind: &str, raw: &[u8]| {
            let mut value = to_value(&envelope(version, kind, raw)).unwrap();
            let gv = GroupVersion::parse(version).unwrap();
            let schema = Schema::builtin_kind(&gv.group, &gv.version, kind).unwrap();
            assert!(check_schema(&schema, &mut value).unwrap().unknown.is_empty());
            value
        };
        // Deployment: replicas is a pointer and stays, minReadySeconds and paused do not.
        let meta =
            bytes(1, &[&bytes(1, &[b"d"]), &bytes(2, &[]), &bytes(3, &[]), &number(7, 0), &bytes(8, &[])]);
        let template =
            bytes(3, &[&bytes(1, &[&bytes(1, &[])]), &bytes(2, &[&bytes(10, &[]), &number(11, 0)])]);
        let spec = [number(1, 0), template, bytes(4, &[&bytes(1, &[])]), number(5, 0), number(7, 0)].concat();
        assert_eq!(
            decoded("apps/v1", "Deployment", &[meta, bytes(2, &[&spec])].concat()),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
                   "spec": {"replicas": 0, "strategy": {}, "template": {"metadata": {}, "spec": {}}}})
        );
        // TokenRequest: a reference of which only the name is set.
        let spec =
            [bytes(1, &[b"aud"]), bytes(3, &[&bytes(1, &[]), &bytes(3, &[b"p"])]), number(4, 600)].concat();
        assert_eq!(
            decoded("authentication.k8s.io/v1", "TokenRequest", &bytes(2, &[&spec])),
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                   "spec": {"audiences": ["aud"], "boundObjectRef": {"name": "p"}, "expirationSeconds": 600}})
        );
        let attributes =
            bytes(1, &[&bytes(1, &[b"ns"]), &bytes(2, &[b"get"]), &bytes(3, &[]), &bytes(5, &[b"pods"])]);
        let status = bytes(3, &[&number(1, 0), &bytes(2, &[]), &number(4, 0)]);
        assert_eq!(
            decoded(
                "authorization.k8s.io/v1",
                "SelfSubjectAccessReview",
                &[bytes(2, &[&attributes]), status].concat()
            ),
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                   "spec": {"resourceAttributes": {"namespace": "ns", "verb": "get", "resource": "pods"}},
                   "status": {"allowed": false}})
        );
        // Pod: the handler of a probe and the source of a volume are embedded.
        let port = bytes(2, &[&number(1, 0), &number(2, 80), &bytes(3, &[])]);
        let get = bytes(2, &[&bytes(1, &[b"/"]), &port, &bytes(3, &[])]);
        let probe = bytes(10, &[&bytes(1, &[&get]), &number(2, 0), &number(3, 5)]);
        let limit = bytes(1, &[&bytes(1, &[b"cpu"]), &bytes(2, &[&bytes(1, &[b"100m"])])]);
        let secret = bytes(4, &[&bytes(1, &[&bytes(1, &[b"s"])]), &bytes(2, &[b"k"])]);
        let env = bytes(7, &[&bytes(1, &[b"E"]), &bytes(2, &[]), &bytes(3, &[&secret])]);
        let container = bytes(2, &[&bytes(1, &[b"c"]), &env, &bytes(8, &[&limit]), &probe, &number(16, 0)]);
        let volume = bytes(1, &[&bytes(1, &[b"v"]), &bytes(2, &[&bytes(2, &[&bytes(1, &[])])])]);
        assert_eq!(
            decoded("v1", "Pod", &bytes(2, &[&volume, &container])),
            json!({"apiVersion": "v1", "kind": "Pod", "spec": {
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{
                    "name": "c",
                    "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                    "resources": {"limits": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "timeoutSeconds": 5},
                }],
            }})
        );
    }

    #[test]
    fn messages_in_parts_are_their_sum() {
        let raw = [bytes(1, &[&bytes(1, &[b"x"])]), bytes(1, &[&bytes(3, &[b"y"])])].concat();
        check("v1", "Namespace", &raw, json!({"metadata": {"name": "x", "namespace": "y"}}));
    }

    #[test]
    fn unknown_numbers_are_skipped_and_times_are_bounded() {
        let meta = bytes(1, &[&bytes(1, &[b"x"]), &bytes(999, &[b"?"]), &number(998, 1)]);
        check("v1", "Namespace", &meta, json!({"metadata": {"name": "x"}}));
        for time in [number(1, i64::MAX as u64), number(2, u64::from(u32::MAX))] {
            let raw = bytes(1, &[&bytes(9, &[&time])]);
            let error = ProtobufError::Time("deletionTimestamp");
            assert_eq!(to_value(&envelope("v1", "Namespace", &raw)), Err(error));
        }
    }

    /// Fields that the schema knows and the table does not, (message, field): the crate that the
    /// numbers are from is one API level behind.
    const NOT_IN_TABLE: &[(&str, &str)] = &[
        ("io.k8s.api.core.v1.PodSpec", "schedulingGroup"),
        ("io.k8s.api.core.v1.PodStatus", "nodeAllocatableResourceClaimStatuses"),
        ("io.k8s.api.core.v1.ResourceHealth", "message"),
        ("io.k8s.api.core.v1.VolumeMountStatus", "volumeStatus"),
        ("io.k8s.api.storage.v1.CSIDriverSpec", "preventPodSchedulingIfMissing"),
        ("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", "shardInfo"),
    ];
    /// Fields that the table knows and the schema does not.
    const NOT_IN_SCHEMA: &[(&str, &str)] = &[];

    #[test]
    fn the_table_names_what_the_schema_names() {
        fn names(message: usize, out: &mut BTreeSet<&'static str>) {
            for field in &TABLE.messages[message] {
                match field.of {
                    Type::Message(inner) if field.name.is_empty() => names(inner, out),
                    _ => drop(out.insert(field.name)),
                }
            }
        }
        let (mut absent, mut unknown) = (Vec::new(), Vec::new());
        for (message, index) in &TABLE.by_name {
            let Some(schema) = Schema::builtin(message) else { continue };
            let mut own = BTreeSet::new();
            names(*index, &mut own);
            let of_schema: BTreeSet<String> =
                schema.root().properties().map(|property| property.name.to_owned()).collect();
            let is_type = |name: &str| matches!(name, "apiVersion" | "kind");
            let missing = of_schema.iter().filter(|name| !is_type(name) && !own.contains(name.as_str()));
            absent.extend(missing.map(|name| ((*message).to_owned(), name.clone())));
            let more = own.iter().filter(|name| !of_schema.contains(**name));
            unknown.extend(more.map(|name| ((*message).to_owned(), (*name).to_owned())));
        }
        absent.sort_unstable();
        unknown.sort_unstable();
        let owned = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(message, field)| ((*message).to_owned(), (*field).to_owned())).collect()
        };
        assert_eq!((absent, unknown), (owned(NOT_IN_TABLE), owned(NOT_IN_SCHEMA)));
    }

    #[test]
    fn every_reference_in_the_table_exists() {
        assert!(TABLE.messages.len() > 300);
        for fields in &TABLE.messages {
            for field in fields {
                assert!(
                    !matches!(field.of, Type::Message(index) if index >= TABLE.messages.len()),
                    "{}",
                    field.name
                );
            }
        }
        for row in skeg_api::builtin::builtin() {
            let (version, kind) = (row.gvk.api_version(), &row.gvk.kind);
            assert!(message_of(&version, kind).is_some(), "{version} {kind}");
        }
    }

    #[test]
    fn broken_bodies_are_errors() {
        let good = envelope("v1", "ConfigMap", &bytes(2, &[&bytes(1, &[b"a"]), &bytes(2, &[b"b"])]));
        for len in 0..good.len() {
            // Cut anywhere: an error or less content, never a panic.
            let _ = to_value(&good[..len]);
        }
        assert_eq!(to_value(b"{}"), Err(ProtobufError::Magic));
        assert!(matches!(to_value(&envelope("v1", "Nothing", &[])), Err(ProtobufError::Kind { .. })));
        assert_eq!(to_value(&envelope("v1", "ConfigMap", &[0x0a, 0x7f])), Err(ProtobufError::Short));
        assert_eq!(
            to_value(&envelope("v1", "ConfigMap", &[0x08, 1])),
            Err(ProtobufError::WireType("metadata"))
        );
        assert_eq!(to_value(&envelope("v1", "ConfigMap", &[0x0f])), Err(ProtobufError::Tag));
        assert_eq!(
            to_value(&envelope("v1", "ConfigMap", &bytes(1, &[&bytes(1, &[&[0xff]])]))),
            Err(ProtobufError::Text("name"))
        );
    }

    #[test]
    fn nesting_is_bounded() {
        assert_eq!(read(&[], 0, &mut Map::new(), DEPTH_MAX + 1), Err(ProtobufError::Depth));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            raw in proptest::collection::vec(any::<u8>(), 0..256),
            which in any::<prop::sample::Index>(),
        ) {
            let rows = skeg_api::builtin::builtin();
            let gvk = &which.get(&rows).gvk;
            let _ = to_value(&raw);
            let _ = to_value(&[MAGIC, &raw].concat());
            let _ = to_value(&envelope(&gvk.api_version(), &gvk.kind, &raw));
        }

        /// Sound fields of small numbers, nested now and then, so that the walk gets deep.
        #[test]
        fn random_fields_never_panic(
            fields in proptest::collection::vec(
                (1u64..40, 0u8..3, proptest::collection::vec(any::<u8>(), 0..6)),
                0..24,
            ),
            which in any::<prop::sample::Index>(),
        ) {
            let mut raw = Vec::new();
            for (at, form, content) in &fields {
                match form {
                    0 => raw.extend(number(*at, content.len() as u64)),
                    1 => raw.extend(bytes(*at, &[content])),
                    _ => raw = bytes(*at, &[&raw]),
                }
            }
            let rows = skeg_api::builtin::builtin();
            let gvk = &which.get(&rows).gvk;
            let _ = to_value(&envelope(&gvk.api_version(), &gvk.kind, &raw));
        }
    }
}
