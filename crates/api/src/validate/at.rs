//! A value with its path, and a list of errors: what every rule is written with. Paths are built
//! on the way down, once per list or struct; scalars cost nothing unless they are wrong.

use crate::field::{FieldError, Path};
use crate::names::{self, Messages};
use crate::quantity::Quantity;
use serde_json::Value;

static NULL: Value = Value::Null;

/// A value and where it stands in its object.
#[derive(Clone)]
pub(super) struct At<'a> {
    pub value: &'a Value,
    pub path: Path,
}

impl<'a> At<'a> {
    pub fn root(value: &'a Value) -> Self {
        At { value, path: Path::root() }
    }

    pub fn new(value: Option<&'a Value>, path: Path) -> Self {
        At { value: value.unwrap_or(&NULL), path }
    }

    pub fn child(&self, name: &str) -> At<'a> {
        At::new(self.value.get(name), self.path.child(name))
    }

    /// The child, if it is set.
    pub fn get(&self, name: &str) -> Option<At<'a>> {
        let value = self.value.get(name).filter(|v| !v.is_null())?;
        Some(At { value, path: self.path.child(name) })
    }

    /// The path of a child.
    pub fn at(&self, name: &str) -> Path {
        self.path.child(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.value.get(name).is_some_and(|v| !v.is_null())
    }

    /// The items of a child list, each with its path.
    pub fn items(&self, name: &str) -> impl Iterator<Item = At<'a>> + use<'a> {
        let list = self.list(name);
        let path = if list.is_empty() { Path::root() } else { self.path.child(name) };
        list.iter().enumerate().map(move |(i, value)| At { value, path: path.index(i) })
    }

    pub fn list(&self, name: &str) -> &'a [Value] {
        self.value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The entries of a child map.
    pub fn entries(&self, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.value.get(name).and_then(Value::as_object).into_iter().flatten()
    }

    pub fn str(&self, name: &str) -> &'a str {
        self.value.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn strings(&self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.list(name).iter().filter_map(Value::as_str)
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        self.value.get(name).and_then(Value::as_i64)
    }

    pub fn bool(&self, name: &str) -> bool {
        self.value.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn quantity(&self, name: &str) -> Option<Quantity> {
        self.value.get(name).and_then(|v| Quantity::from_value(v).ok())
    }
}

/// The errors found so far.
#[derive(Default)]
pub(super) struct Errors(pub Vec<FieldError>);

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

impl Errors {
    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    pub fn extend(&mut self, errors: Vec<FieldError>) {
        self.0.extend(errors);
    }

    pub fn required(&mut self, path: Path, detail: &str) {
        self.push(FieldError::required(path, detail));
    }

    pub fn invalid(&mut self, path: Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(FieldError::invalid(path, value, detail));
    }

    pub fn forbidden(&mut self, path: Path, detail: impl Into<String>) {
        self.push(FieldError::forbidden(path, detail));
    }

    pub fn duplicate(&mut self, path: Path, value: impl Into<Value>) {
        self.push(FieldError::duplicate(path, value));
    }

    pub fn not_supported(&mut self, path: Path, value: impl Into<Value>, supported: &[&str]) {
        self.push(FieldError::not_supported(path, value, supported));
    }

    /// One error for each message about `value`.
    pub fn each(&mut self, path: &Path, value: &str, messages: Messages) {
        self.extend(names::invalid_each(path, value, messages));
    }

    /// The named string must be set.
    pub fn need(&mut self, at: &At<'_>, name: &str) -> bool {
        if at.str(name).is_empty() {
            self.required(at.at(name), "");
            return false;
        }
        true
    }

    /// The named string must be set and one of `supported`.
    pub fn one_of(&mut self, at: &At<'_>, name: &str, supported: &[&str]) {
        if self.need(at, name) {
            self.optional_one_of(at, name, supported);
        }
    }

    /// The named string, if it is set at all, must be one of `supported`.
    pub fn optional_one_of(&mut self, at: &At<'_>, name: &str, supported: &[&str]) {
        if let Some(value) = at.value.get(name).and_then(Value::as_str)
            && !supported.contains(&value)
        {
            self.not_supported(at.at(name), value, supported);
        }
    }

    /// A number that is set must not be negative.
    pub fn not_negative(&mut self, at: &At<'_>, names: &[&str]) {
        for name in names {
            if let Some(n) = at.int(name).filter(|n| *n < 0) {
                self.invalid(at.at(name), n, NOT_NEGATIVE);
            }
        }
    }

    /// A string that is set must satisfy `check`.
    pub fn checked(&mut self, at: &At<'_>, name: &str, check: fn(&str) -> Messages) {
        let value = at.str(name);
        if !value.is_empty() {
            let messages = check(value);
            if !messages.is_empty() {
                self.each(&at.at(name), value, messages);
            }
        }
    }

    /// A domain, a slash and a path: `acme.io/foo`.
    pub fn domain_prefixed_path(&mut self, at: &At<'_>, name: &str) {
        if !self.need(at, name) {
            return;
        }
        let (value, path) = (at.str(name), at.at(name));
        match value.split_once('/') {
            Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
                self.each(&path, host, names::is_dns1123_subdomain(host));
            }
            _ => self.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        }
    }

    /// A number that is set must be in a range.
    pub fn range(&mut self, at: &At<'_>, name: &str, min: i64, max: i64) {
        if let Some(n) = at.int(name) {
            for message in names::in_range(n, min, max) {
                self.invalid(at.at(name), n, message);
            }
        }
    }

    /// A field must stay as it was; missing and empty strings, lists and maps are alike.
    pub fn immutable(&mut self, new: &At<'_>, old: &At<'_>, name: &str) {
        if !same(new.value.get(name), old.value.get(name)) {
            let value = new.value.get(name).cloned().unwrap_or_default();
            self.invalid(new.at(name), value, names::FIELD_IMMUTABLE);
        }
    }
}

/// Equality as upstream's semantic comparison has it: absent, null and empty are alike, and
/// quantities and numbers compare by value.
pub(super) fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    fn is_empty(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.values().all(is_empty),
            Value::Bool(b) => !b,
            Value::Number(n) => n.as_i64() == Some(0),
        }
    }
    match (a, b) {
        (None, None) => true,
        (Some(a), None) => is_empty(a),
        (None, Some(b)) => is_empty(b),
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            x.iter().all(|(key, value)| same(Some(value), y.get(key)))
                && y.iter().all(|(key, value)| x.contains_key(key) || is_empty(value))
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(Some(x), Some(y)))
        }
        (Some(a), Some(b)) => a == b || is_empty(a) && is_empty(b),
    }
}
