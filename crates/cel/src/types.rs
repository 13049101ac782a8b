//! Types, as the checker knows them, and how cel-go writes them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The type of an expression or a variable.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Checked when evaluated, not before.
    Dyn,
    /// The type of what is wrong already: fits everywhere, so that one fault is told once.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    /// The type of types.
    Type(Option<Arc<Type>>),
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    /// A declaration's parameter: `A` in `list(A)`.
    Param(char),
    /// A free type of one check.
    Var(u32),
    /// A type that only functions see into: `optional_type(A)`, `kubernetes.URL`.
    Opaque(Arc<str>, Arc<[Type]>),
    /// A type with declared fields.
    Object(Arc<ObjectType>),
}

/// An object's name and fields. Two are the same type if their names are.
#[derive(Debug)]
pub struct ObjectType {
    pub name: String,
    /// By the names that expressions use: escaped as [`escape`] does.
    pub fields: BTreeMap<String, Type>,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The type of optional values.
pub(crate) const OPTIONAL: &str = "optional_type";

impl Type {
    /// `list(item)`.
    pub fn list(item: Type) -> Self {
        Self::List(Arc::new(item))
    }

    /// `map(key, value)`.
    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    /// A type that only functions see into.
    pub fn opaque(name: &str) -> Self {
        Self::Opaque(name.into(), Arc::new([]))
    }

    /// `optional_type(item)`.
    pub fn optional(item: Type) -> Self {
        Self::Opaque(OPTIONAL.into(), Arc::new([item]))
    }

    /// An object of these fields, whose names are escaped already.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (String, Type)>) -> Self {
        Self::Object(Arc::new(ObjectType { name: name.to_owned(), fields: fields.into_iter().collect() }))
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// The type inside an optional.
    pub(crate) fn unwrap_optional(&self) -> Option<&Type> {
        match self {
            Self::Opaque(name, params) if &**name == OPTIONAL => params.first(),
            _ => None,
        }
    }

    /// The types that this one is made of.
    pub(crate) fn parameters(&self) -> Vec<&Type> {
        match self {
            Self::Type(Some(inner)) | Self::List(inner) => vec![inner],
            Self::Map(pair) => vec![&pair.0, &pair.1],
            Self::Opaque(_, params) => params.iter().collect(),
            _ => Vec::new(),
        }
    }

    /// The same type with each leaf replaced by what `replace` gives.
    pub(crate) fn replaced(&self, replace: &mut dyn FnMut(&Type) -> Option<Type>) -> Type {
        if let Some(other) = replace(self) {
            return other;
        }
        match self {
            Self::Type(Some(inner)) => Self::Type(Some(Arc::new(inner.replaced(replace)))),
            Self::List(inner) => Self::list(inner.replaced(replace)),
            Self::Map(pair) => Self::map(pair.0.replaced(replace), pair.1.replaced(replace)),
            Self::Opaque(name, params) if !params.is_empty() => {
                Self::Opaque(name.clone(), params.iter().map(|param| param.replaced(replace)).collect())
            }
            other => other.clone(),
        }
    }

    /// The name that `type(x)` shows, without parameters.
    pub(crate) fn runtime_name(&self) -> String {
        match self {
            Self::Null => "null_type".into(),
            Self::Timestamp => "google.protobuf.Timestamp".into(),
            Self::Duration => "google.protobuf.Duration".into(),
            Self::Type(_) => "type".into(),
            Self::List(_) => "list".into(),
            Self::Map(_) => "map".into(),
            Self::Opaque(name, _) => name.to_string(),
            other => other.to_string(),
        }
    }

    /// Parses `list(A)`, `map(string, int)`, `kubernetes.URL`; one capital letter is a parameter.
    pub(crate) fn parse(text: &str) -> Type {
        let (name, inner) = match text.split_once('(') {
            Some((name, rest)) => (name, split(rest.strip_suffix(')').unwrap_or(rest))),
            None => (text, Vec::new()),
        };
        let mut inner = inner.into_iter().map(Type::parse);
        let mut next = || inner.next().unwrap_or(Type::Dyn);
        match name {
            "dyn" => Type::Dyn,
            "null_type" => Type::Null,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "timestamp" => Type::Timestamp,
            "duration" => Type::Duration,
            "type" if text.len() > name.len() => Type::Type(Some(Arc::new(next()))),
            "type" => Type::Type(None),
            "list" => Type::list(next()),
            "map" => Type::map(next(), next()),
            _ => match name.as_bytes() {
                [letter] if letter.is_ascii_uppercase() => Type::Param(char::from(*letter)),
                _ => Type::Opaque(name.into(), inner.collect()),
            },
        }
    }
}

/// Splits at the commas that are in no brackets.
pub(crate) fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    let last = text[from..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Error => f.write_str("!error!"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::Type(None) => f.write_str("type"),
            Self::Type(Some(inner)) => write!(f, "type({inner})"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(pair) => write!(f, "map({}, {})", pair.0, pair.1),
            Self::Param(letter) => write!(f, "{letter}"),
            Self::Var(number) => write!(f, "_var{number}"),
            Self::Opaque(name, params) if params.is_empty() => f.write_str(name),
            Self::Opaque(name, params) => {
                let inner: Vec<String> = params.iter().map(Type::to_string).collect();
                write!(f, "{name}({})", inner.join(", "))
            }
            Self::Object(object) => f.write_str(&object.name),
        }
    }
}

/// Words that no field may have in an expression, so that a property of that name is escaped.
pub const KEYWORDS: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name by which expressions select the property `name`, if they can: `.` is `__dot__`, `-` is
/// `__dash__`, `/` is `__slash__`, `__` is `__underscores__`, a keyword is `__keyword__`.
pub fn escape(name: &str) -> Option<String> {
    if KEYWORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let width = match c {
            '_' if rest.starts_with("__") => {
                out.push_str("__underscores__");
                2
            }
            '.' => {
                out.push_str("__dot__");
                1
            }
            '-' => {
                out.push_str("__dash__");
                1
            }
            '/' => {
                out.push_str("__slash__");
                1
            }
            c if c.is_ascii_alphanumeric() || c == '_' => {
                out.push(c);
                1
            }
            _ => return None,
        };
        rest = &rest[width..];
    }
    Some(out)
}

/// The property that the escaped name stands for, if it is one.
pub fn unescape(name: &str) -> Option<String> {
    if let Some(word) = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && KEYWORDS.contains(&word)
    {
        return Some(word.to_owned());
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("__") {
        out.push_str(&rest[..at]);
        let (text, after) =
            [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")]
                .iter()
                .find_map(|(escaped, text)| rest[at..].strip_prefix(escaped).map(|after| (*text, after)))?;
        out.push_str(text);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}
