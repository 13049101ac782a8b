//! Field paths and field errors, as validation reports them.
//! Upstream counterpart: `k8s.io/apimachinery/pkg/util/validation/field`.

use crate::status::Cause;
use serde_json::Value;
use std::fmt;

/// The path of a field: `spec.containers[0].image`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The root: errors about the whole object.
    pub fn root() -> Self {
        Path(String::new())
    }

    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Path(name.to_owned()) } else { Path(format!("{}.{name}", self.0)) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
}

impl ErrorKind {
    /// The machine-readable reason in a Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            ErrorKind::Internal => "InternalError",
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub path: Path,
    /// The offending value, where the kind of error shows it.
    pub value: Option<Value>,
    pub detail: String,
}

impl FieldError {
    pub fn required(path: Path, detail: impl Into<String>) -> Self {
        FieldError { kind: ErrorKind::Required, path, value: None, detail: detail.into() }
    }

    pub fn invalid(path: Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        FieldError { kind: ErrorKind::Invalid, path, value: Some(value.into()), detail: detail.into() }
    }

    pub fn not_supported(path: Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|v| format!("\"{v}\"")).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        FieldError { kind: ErrorKind::NotSupported, path, value: Some(value.into()), detail }
    }

    pub fn duplicate(path: Path, value: impl Into<Value>) -> Self {
        FieldError { kind: ErrorKind::Duplicate, path, value: Some(value.into()), detail: String::new() }
    }

    pub fn forbidden(path: Path, detail: impl Into<String>) -> Self {
        FieldError { kind: ErrorKind::Forbidden, path, value: None, detail: detail.into() }
    }

    pub fn not_found(path: Path, value: impl Into<Value>) -> Self {
        FieldError { kind: ErrorKind::NotFound, path, value: Some(value.into()), detail: String::new() }
    }

    pub fn too_long(path: Path, max_bytes: usize) -> Self {
        let detail = format!("may not be more than {max_bytes} bytes");
        FieldError { kind: ErrorKind::TooLong, path, value: None, detail }
    }

    pub fn too_many(path: Path, actual: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} items");
        FieldError { kind: ErrorKind::TooMany, path, value: Some(actual.into()), detail }
    }

    /// The message without the path, as a Status cause carries it.
    pub fn message(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if let Some(value) = &self.value {
            match value {
                Value::String(s) => {
                    text.push_str(": ");
                    text.push_str(&quoted(s));
                }
                other => text.push_str(&format!(": {other}")),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }

    pub fn cause(&self) -> Cause {
        Cause { reason: self.kind.reason().into(), message: self.message(), field: self.path.to_string() }
    }
}

/// A string as Go's `%q` shows it: what cannot be printed as `\x00`, `\u200b` or `\U000e0001`.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\'' => out.push(c),
            _ => {
                let shown = c.escape_debug().to_string();
                let is_printable = c != '\0' && !shown.starts_with("\\u");
                out.push_str(&match c as u32 {
                    _ if is_printable => shown,
                    code @ ..0x80 => format!("\\x{code:02x}"),
                    code @ ..=0xffff => format!("\\u{code:04x}"),
                    code => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push('"');
    out
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_in_go() {
        for (text, shown) in [
            ("it's \"x\"", r#""it's \"x\"""#),
            ("a\\b\n\t\r", r#""a\\b\n\t\r""#),
            ("\0\u{1b}\u{7f}\u{7}", r#""\x00\x1b\x7f\a""#),
            ("é日\u{200b}\u{e0001}", r#""é日\u200b\U000e0001""#),
        ] {
            assert_eq!(quoted(text), shown);
        }
    }

    #[test]
    fn paths_and_messages_read_as_upstreams() {
        let path = Path::new("spec").child("containers").index(0).child("image");
        assert_eq!(FieldError::required(path, "").to_string(), "spec.containers[0].image: Required value");
        let path = Path::new("spec").child("type");
        assert_eq!(
            FieldError::not_supported(path, "x", &["A", "B"]).to_string(),
            "spec.type: Unsupported value: \"x\": supported values: \"A\", \"B\""
        );
    }
}
