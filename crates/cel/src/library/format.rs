//! Named formats of strings.

use super::text;
use super::url;
use crate::error::Error;
use crate::function::Row;
use crate::opaque::Opaque;
use crate::time;
use crate::value::Value;

/// A format that strings may have.
#[derive(Debug)]
pub struct Format {
    pub(crate) name: &'static str,
    /// The length of upstream's pattern, which its cost is counted by.
    pub(crate) pattern_size: u64,
    faults: fn(&str) -> Vec<String>,
}

static FORMATS: &[Format] = &[
    Format { name: "dns1123Label", pattern_size: 30, faults: |text| label(text, false) },
    Format { name: "dns1123Subdomain", pattern_size: 60, faults: |text| subdomain(text, false) },
    Format { name: "dns1035Label", pattern_size: 30, faults: |text| dns1035(text, false) },
    Format { name: "qualifiedName", pattern_size: 60, faults: qualified_name },
    Format { name: "dns1123LabelPrefix", pattern_size: 30, faults: |text| label(text, true) },
    Format { name: "dns1123SubdomainPrefix", pattern_size: 60, faults: |text| subdomain(text, true) },
    Format { name: "dns1035LabelPrefix", pattern_size: 30, faults: |text| dns1035(text, true) },
    Format { name: "labelValue", pattern_size: 40, faults: label_value },
    Format { name: "uri", pattern_size: 1_010, faults: |text| url::parse(text).err().into_iter().collect() },
    Format {
        name: "uuid",
        pattern_size: 87,
        faults: |text| unless(is_uuid(text), "does not match the UUID format"),
    },
    Format { name: "byte", pattern_size: 96, faults: |text| unless(is_base64(text), "invalid base64") },
    Format {
        name: "date",
        pattern_size: 124,
        faults: |text| unless(time::parse_date(text).is_some(), "invalid date"),
    },
    Format {
        name: "datetime",
        pattern_size: 124,
        faults: |text| unless(time::parse_timestamp(text).is_some(), "invalid datetime"),
    },
];

/// The row of a format that a function names.
macro_rules! named {
    ($name:literal, $index:literal) => {
        ($name, $name, "() kubernetes.NamedFormat", |_, _| {
            Ok(Value::Opaque(Opaque::Format(&FORMATS[$index])))
        })
    };
}

pub(crate) const ROWS: &[Row] = &[
    named!("format.dns1123Label", 0),
    named!("format.dns1123Subdomain", 1),
    named!("format.dns1035Label", 2),
    named!("format.qualifiedName", 3),
    named!("format.dns1123LabelPrefix", 4),
    named!("format.dns1123SubdomainPrefix", 5),
    named!("format.dns1035LabelPrefix", 6),
    named!("format.labelValue", 7),
    named!("format.uri", 8),
    named!("format.uuid", 9),
    named!("format.byte", 10),
    named!("format.date", 11),
    named!("format.datetime", 12),
    ("format.named", "format-named", "(string) optional_type(kubernetes.NamedFormat)", |_, args| {
        let name = text(args, 0)?;
        let found = FORMATS.iter().find(|format| format.name == name);
        Ok(found.map_or(Value::Optional(None), |format| Value::some(Value::Opaque(Opaque::Format(format)))))
    }),
    (
        "validate",
        "format-validate",
        ".(kubernetes.NamedFormat, string) optional_type(list(string))",
        |cx, args| {
            let Value::Opaque(Opaque::Format(format)) = &args[0] else {
                return Err(Error::no_such_overload());
            };
            cx.work(text(args, 1)?.len() as u64 / 4)?;
            let faults = (format.faults)(text(args, 1)?);
            if faults.is_empty() {
                return Ok(Value::Optional(None));
            }
            Ok(Value::some(Value::list(faults.into_iter().map(Value::from).collect())))
        },
    ),
];

fn unless(valid: bool, message: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![message.to_owned()] }
}

fn is_end(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if is_end(*first) && is_end(*last))
        && bytes.iter().all(|c| is_end(*c) || *c == b'-')
}

pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_label_text(text)
}

pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label_text)
}

/// A prefix may end with a dash, for something follows it.
fn stem(text: &str, prefix: bool) -> String {
    match text.strip_suffix('-') {
        Some(stem) if prefix && text.len() > 1 => format!("{stem}a"),
        _ => text.to_owned(),
    }
}

fn too_long(text: &str, max: usize) -> Vec<String> {
    if text.len() > max { vec![format!("must be no more than {max} bytes")] } else { Vec::new() }
}

fn label(text: &str, prefix: bool) -> Vec<String> {
    let text = stem(text, prefix);
    let mut faults = too_long(&text, 63);
    if !is_label_text(&text) {
        faults.push(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
             and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .into(),
        );
    }
    faults
}

fn subdomain(text: &str, prefix: bool) -> Vec<String> {
    let text = stem(text, prefix);
    let mut faults = too_long(&text, 253);
    if !text.split('.').all(is_label_text) {
        faults.push(SUBDOMAIN.into());
    }
    faults
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                         '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                         for validation is \
                         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn dns1035(text: &str, prefix: bool) -> Vec<String> {
    let text = stem(text, prefix);
    let mut faults = too_long(&text, 63);
    if !is_label_text(&text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        faults.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
             validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .into(),
        );
    }
    faults
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(b)) if a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric())
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

fn qualified_name(text: &str) -> Vec<String> {
    const NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                        validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".into());
            } else {
                faults
                    .extend(subdomain(prefix, false).into_iter().map(|fault| format!("prefix part {fault}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else {
        faults.extend(too_long(name, 63).into_iter().map(|fault| format!("name part {fault}")));
    }
    if !is_name(name) {
        faults.push(format!("name part {NAME}"));
    }
    faults
}

fn label_value(text: &str) -> Vec<String> {
    let mut faults = too_long(text, 63);
    if !text.is_empty() && !is_name(text) {
        faults.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
             for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .into(),
        );
    }
    faults
}

fn is_uuid(text: &str) -> bool {
    let digits = text.bytes().filter(|c| *c != b'-');
    digits.clone().count() == 32
        && digits.clone().all(|c| c.is_ascii_hexdigit())
        && text.split('-').count() <= 5
        && !text.starts_with('-')
        && !text.ends_with('-')
        && (!text.contains('-')
            || text.len() == 36 && [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-'))
}

fn is_base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}
