//! An OpenAPI v2 document in the protobuf form that client libraries ask for: gnostic's
//! `openapi.v2.Document`. Tables of field numbers, and one writer over the document's JSON.

use serde_json::Value;

/// A message: its fields by JSON key, and the number of its `vendor_extension`.
struct Message {
    fields: &'static [(&'static str, u32, Type)],
    extensions: u32,
}

enum Type {
    Text,
    Texts,
    Bool,
    Int,
    Double,
    /// Any value, as YAML.
    Any,
    Anys,
    /// A message inside messages of one field each, outermost first.
    One(&'static [u32], &'static Message),
    Many(&'static Message),
    /// A message whose field of that number repeats pairs of name and value, the value again inside
    /// messages of one field each.
    Pairs(u32, &'static [u32], &'static Message),
    /// Names with lists of texts.
    Requirements,
    Parameters,
    /// One type or several.
    Types,
    /// A schema, or a bool.
    SchemaOrBool,
}

use Type::{
    Any, Anys, Bool, Double, Int, Many, One, Pairs, Parameters, Requirements, SchemaOrBool, Text, Texts,
    Types,
};

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, One(&[], &INFO)),
        ("paths", 8, Pairs(2, &[], &PATH)),
        ("definitions", 9, Pairs(1, &[], &SCHEMA)),
        ("security", 12, Requirements),
        ("securityDefinitions", 13, Pairs(1, &[2], &API_KEY)),
    ],
    extensions: 16,
};

static INFO: Message =
    Message { fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], extensions: 7 };

static API_KEY: Message = Message {
    fields: &[("type", 1, Text), ("name", 2, Text), ("in", 3, Text), ("description", 4, Text)],
    extensions: 5,
};

static PATH: Message = Message {
    fields: &[
        ("get", 2, One(&[], &OPERATION)),
        ("put", 3, One(&[], &OPERATION)),
        ("post", 4, One(&[], &OPERATION)),
        ("delete", 5, One(&[], &OPERATION)),
        ("options", 6, One(&[], &OPERATION)),
        ("head", 7, One(&[], &OPERATION)),
        ("patch", 8, One(&[], &OPERATION)),
        ("parameters", 9, Parameters),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Texts),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Parameters),
        ("responses", 9, Pairs(1, &[1], &RESPONSE)),
        ("schemes", 10, Texts),
        ("deprecated", 11, Bool),
    ],
    extensions: 13,
};

static RESPONSE: Message =
    Message { fields: &[("description", 1, Text), ("schema", 2, One(&[1], &SCHEMA))], extensions: 5 };

static BODY: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Bool),
        ("schema", 5, One(&[], &SCHEMA)),
    ],
    extensions: 6,
};

static QUERY: Message = Message {
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("format", 7, Text),
        ("uniqueItems", 20, Bool),
    ],
    extensions: 23,
};

static IN_PATH: Message = Message {
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("uniqueItems", 19, Bool),
    ],
    extensions: 22,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Double),
        ("maximum", 7, Double),
        ("exclusiveMaximum", 8, Bool),
        ("minimum", 9, Double),
        ("exclusiveMinimum", 10, Bool),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Bool),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Texts),
        ("enum", 20, Anys),
        ("additionalProperties", 21, SchemaOrBool),
        ("type", 22, Types),
        ("items", 23, One(&[1], &SCHEMA)),
        ("allOf", 24, Many(&SCHEMA)),
        ("properties", 25, Pairs(1, &[], &SCHEMA)),
        ("readOnly", 27, Bool),
        ("example", 30, Any),
    ],
    extensions: 31,
};

/// The document's bytes. What the tables do not know is left out.
pub fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn message(of: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        if key.starts_with("x-") {
            bytes(&mut out, of.extensions, &pair(key, &any(value)));
        } else if let Some((_, number, kind)) = of.fields.iter().find(|(name, ..)| name == key) {
            field(&mut out, *number, kind, value);
        }
    }
    out
}

fn field(out: &mut Vec<u8>, number: u32, kind: &Type, value: &Value) {
    let list = || value.as_array().into_iter().flatten();
    let pairs = || value.as_object().into_iter().flatten();
    match kind {
        Text => text(out, number, value),
        Texts => list().for_each(|value| text(out, number, value)),
        Bool => integer(out, number, u64::from(value == true)),
        Int => integer(out, number, value.as_u64().unwrap_or(0)),
        Double => {
            const FIXED_64: u64 = 1;
            varint(out, u64::from(number) << 3 | FIXED_64);
            out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_le_bytes());
        }
        Any => bytes(out, number, &any(value)),
        Anys => list().for_each(|value| bytes(out, number, &any(value))),
        One(inside, of) => bytes(out, number, &wrapped(inside, message(of, value))),
        Many(of) => list().for_each(|value| bytes(out, number, &message(of, value))),
        Pairs(at, inside, of) => {
            let mut all = Vec::new();
            for (name, value) in pairs() {
                bytes(&mut all, *at, &pair(name, &wrapped(inside, message(of, value))));
            }
            bytes(out, number, &all);
        }
        Requirements => {
            for (name, scopes) in list().filter_map(Value::as_object).flatten() {
                let mut all = Vec::new();
                field(&mut all, 1, &Texts, scopes);
                bytes(out, number, &wrapped(&[1], pair(name, &all)));
            }
        }
        Parameters => list().for_each(|value| bytes(out, number, &parameter(value))),
        Types => {
            let mut all = Vec::new();
            match value {
                Value::Array(_) => field(&mut all, 1, &Texts, value),
                _ => text(&mut all, 1, value),
            }
            bytes(out, number, &all);
        }
        SchemaOrBool => {
            let mut all = Vec::new();
            match value {
                Value::Bool(allowed) => integer(&mut all, 2, u64::from(*allowed)),
                _ => bytes(&mut all, 1, &message(&SCHEMA, value)),
            }
            bytes(out, number, &all);
        }
    }
}

/// A parameter, by the place it is sent in.
fn parameter(value: &Value) -> Vec<u8> {
    match value["in"].as_str() {
        Some("body") => wrapped(&[1, 1], message(&BODY, value)),
        Some("path") => wrapped(&[1, 2, 4], message(&IN_PATH, value)),
        _ => wrapped(&[1, 2, 3], message(&QUERY, value)),
    }
}

fn wrapped(inside: &[u32], content: Vec<u8>) -> Vec<u8> {
    inside.iter().rev().fold(content, |content, number| {
        let mut out = Vec::new();
        bytes(&mut out, *number, &content);
        out
    })
}

/// A name with a message.
fn pair(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    bytes(&mut out, 2, value);
    out
}

/// JSON is YAML.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 2, format!("{value}\n").as_bytes());
    out
}

fn text(out: &mut Vec<u8>, number: u32, value: &Value) {
    if let Some(value) = value.as_str() {
        bytes(out, number, value.as_bytes());
    }
}

fn integer(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number) << 3);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    const LENGTH_DELIMITED: u64 = 2;
    varint(out, u64::from(number) << 3 | LENGTH_DELIMITED);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn fields_have_their_numbers() {
        let version = [b"\x0a\x03".as_slice(), b"2.0"].concat();
        assert_eq!(encode(&json!({"swagger": "2.0", "unheard-of": 1})), version);
        // ParametersItem.parameter.non_body_parameter.query_parameter_sub_schema
        let parameter = parameter(&json!({"in": "query", "name": "q", "uniqueItems": true}));
        let inner = [b"\x12\x05query".as_slice(), b"\x22\x01q", b"\xa0\x01\x01"].concat();
        assert_eq!(parameter, [b"\x0a\x11\x12\x0f\x1a\x0d".as_slice(), &inner].concat());
        // NamedAny with Any.yaml
        let operation = message(&OPERATION, &json!({"x-a": {"b": 1}}));
        assert_eq!(operation, b"\x6a\x11\x0a\x03x-a\x12\x0a\x12\x08{\"b\":1}\n");
        let object = message(&SCHEMA, &json!({"type": "object", "properties": {"p": {"$ref": "r"}}}));
        let properties = b"\xca\x01\x0a\x0a\x08\x0a\x01p\x12\x03\x0a\x01r";
        let kind = b"\xb2\x01\x08\x0a\x06object";
        assert_eq!(object, [properties.as_slice(), kind].concat());
        assert_eq!(message(&SCHEMA, &json!({"additionalProperties": true})), b"\xaa\x01\x02\x10\x01");
    }

    /// Every key of an object that the tables do not know, by message: what [`encode`] would leave out.
    fn left_out(of: &Message, value: &Value, found: &mut BTreeSet<String>) {
        let all = value.as_object().into_iter().flatten();
        for (key, value) in all.filter(|(key, _)| !key.starts_with("x-")) {
            match of.fields.iter().find(|(name, ..)| name == key) {
                None => drop(found.insert(key.clone())),
                Some((_, _, One(_, of))) => left_out(of, value, found),
                Some((_, _, Many(of))) => {
                    value.as_array().into_iter().flatten().for_each(|value| left_out(of, value, found));
                }
                Some((_, _, Pairs(_, _, of))) => {
                    value.as_object().into_iter().flatten().for_each(|(_, value)| left_out(of, value, found));
                }
                Some((_, _, Parameters)) => value.as_array().into_iter().flatten().for_each(|value| {
                    let of = match value["in"].as_str() {
                        Some("body") => &BODY,
                        Some("path") => &IN_PATH,
                        _ => &QUERY,
                    };
                    left_out(of, value, found);
                }),
                Some((_, _, SchemaOrBool)) => left_out(&SCHEMA, value, found),
                Some(_) => {}
            }
        }
    }

    #[test]
    fn nothing_of_the_document_is_left_out() {
        let kinds = crate::Kinds::new(crate::builtin::builtin());
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 2.5,
            "exclusiveMaximum": true, "multipleOf": 0.5, "enum": [1], "default": 1,
            "anyOf": [{"type": "integer"}], "title": "n"}}});
        let schema = crate::schema::Schema::from_openapi("Widget", &schema).unwrap();
        kinds.insert(crate::Kind::custom(crate::Gvk::new("example.com", "v1", "Widget"), "widgets", schema));
        let (mut text, mut written) = (Vec::new(), Vec::new());
        crate::openapi::v2_document(&kinds.snapshot(), &mut text).unwrap();
        let document: Value = serde_json::from_slice(&text).unwrap();
        let mut found = BTreeSet::new();
        left_out(&DOCUMENT, &document, &mut found);
        assert_eq!(found, BTreeSet::new());
        let double = [b"\x49".as_slice(), &1f64.to_le_bytes()].concat();
        crate::openapi::v2_gnostic(&kinds.snapshot(), &mut written).unwrap();
        assert!(written.windows(double.len()).any(|part| part == double), "the minimum is there");
    }
}
