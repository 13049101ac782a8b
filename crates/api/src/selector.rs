//! Label selectors and field selectors: text and object forms, and matching.
//! Upstream counterparts: `apimachinery/pkg/labels`, `apimachinery/pkg/fields`.

use crate::field::{FieldError, Path};
use crate::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Typed;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// Why a selector was refused, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// Anything that has labels.
pub trait Labels {
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

/// Few labels: a slice is searched faster than a map.
impl<K: AsRef<str>, V: AsRef<str>> Labels for [(K, V)] {
    fn label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| k.as_ref() == key).map(|(_, v)| v.as_ref())
    }
}

impl<L: Labels + ?Sized> Labels for Option<&L> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref()?.label(key)
    }
}

/// A whole object: the labels in its metadata.
impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        crate::meta::label(self, key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without duplicates.
    pub values: Vec<String>,
}

impl Requirement {
    /// Checks key, operator and values against each other.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        use Operator::*;
        let mut errors = Vec::new();
        errors.extend(check_key(key, &Path::new("key")));
        let path = Path::new("values");
        let count = match operator {
            In | NotIn if values.is_empty() => Some("for 'in', 'notin' operators, values set can't be empty"),
            Equals | DoubleEquals | NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Exists | DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            GreaterThan | LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(why) = count {
            errors.push(FieldError::invalid(path.clone(), values.clone(), why));
        }
        for (i, value) in values.iter().enumerate() {
            if matches!(operator, GreaterThan | LessThan) && value.parse::<i64>().is_err() {
                let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(path.index(i), value.as_str(), why));
            }
            let messages = names::is_label_value(value);
            if !messages.is_empty() {
                errors.push(FieldError::invalid(path.index(i).key(key), value.as_str(), messages.join("; ")));
            }
        }
        aggregate(&errors)?;
        values.sort_unstable();
        values.dedup();
        Ok(Requirement { key: key.to_owned(), operator, values })
    }

    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        use Operator::*;
        let value = labels.label(&self.key);
        match self.operator {
            In | Equals | DoubleEquals => value.is_some_and(|v| self.has(v)),
            NotIn | NotEquals => value.is_none_or(|v| !self.has(v)),
            Exists => value.is_some(),
            DoesNotExist => value.is_none(),
            GreaterThan | LessThan => {
                let numbers = value
                    .and_then(|v| v.parse::<i64>().ok())
                    .zip(self.values.first().and_then(|v| v.parse().ok()));
                numbers.is_some_and(
                    |(have, want): (i64, i64)| {
                        if self.operator == GreaterThan { have > want } else { have < want }
                    },
                )
            }
        }
    }

    fn has(&self, value: &str) -> bool {
        self.values.iter().any(|v| v == value)
    }
}

fn check_key(key: &str, path: &Path) -> Option<FieldError> {
    let messages = names::is_qualified_name(key);
    (!messages.is_empty()).then(|| FieldError::invalid(path.clone(), key, messages.join("; ")))
}

fn aggregate(errors: &[FieldError]) -> Result<(), SelectorError> {
    match errors {
        [] => Ok(()),
        [one] => Err(SelectorError(one.to_string())),
        many => Err(SelectorError(format!(
            "[{}]",
            many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Operator::*;
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            In => write!(f, "{key} in ({values})"),
            NotIn => write!(f, "{key} notin ({values})"),
            Equals => write!(f, "{key}={values}"),
            DoubleEquals => write!(f, "{key}=={values}"),
            NotEquals => write!(f, "{key}!={values}"),
            Exists => f.write_str(key),
            DoesNotExist => write!(f, "!{key}"),
            GreaterThan => write!(f, "{key}>{values}"),
            LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// All requirements must hold. Without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    /// What an absent LabelSelector object means.
    pub fn nothing() -> Self {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// The conjunction of `key=value` for a plain map, such as a Service's selector.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements = labels
            .into_iter()
            .map(|(key, value)| Requirement {
                key: key.to_owned(),
                operator: Operator::Equals,
                values: vec![value.to_owned()],
            })
            .collect();
        LabelSelector { requirements, nothing: false }
    }

    /// Parses the text of a `labelSelector` parameter.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser::new(text).parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a `LabelSelector` object; `None` selects nothing, an empty one everything.
    pub fn from_object(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(text("key"), set_operator(text("operator"))?, values)?);
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// As [`LabelSelector::from_object`], from the typed form.
    pub fn from_typed(selector: Option<&Typed>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(
                &expression.key,
                set_operator(&expression.operator)?,
                values,
            )?);
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    #[inline]
    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether it was made to select nothing.
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn add(&mut self, requirement: Requirement) {
        self.requirements.push(requirement);
        self.requirements.sort_by(|a, b| a.key.cmp(&b.key));
    }
}

fn set_operator(name: &str) -> Result<Operator, SelectorError> {
    match name {
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        _ => Err(SelectorError(format!("{name:?} is not a valid label selector operator"))),
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    CloseParen,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    GreaterThan,
    Identifier,
    In,
    LessThan,
    NotEquals,
    NotIn,
    OpenParen,
}

/// Where words are plain values, `in` and `notin` are no operators.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Values,
    KeyAndOperator,
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        let mut rest = text;
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            let (token, len) = match rest.as_bytes() {
                [] => break,
                [b')', ..] => (Token::CloseParen, 1),
                [b'(', ..] => (Token::OpenParen, 1),
                [b',', ..] => (Token::Comma, 1),
                [b'!', b'=', ..] => (Token::NotEquals, 2),
                [b'!', ..] => (Token::Not, 1),
                [b'=', b'=', ..] => (Token::DoubleEquals, 2),
                [b'=', ..] => (Token::Equals, 1),
                [b'>', ..] => (Token::GreaterThan, 1),
                [b'<', ..] => (Token::LessThan, 1),
                _ => {
                    let special = |c: char| " \t\r\n=!(),><".contains(c);
                    let len = rest.find(special).unwrap_or(rest.len());
                    let token = match &rest[..len] {
                        "in" => Token::In,
                        "notin" => Token::NotIn,
                        _ => Token::Identifier,
                    };
                    (token, len)
                }
            };
            tokens.push((token, &rest[..len]));
            rest = &rest[len..];
        }
        Parser { tokens, at: 0 }
    }

    fn lookahead(&self, context: Context) -> (Token, &'a str) {
        let (token, text) = self.tokens.get(self.at).copied().unwrap_or((Token::End, ""));
        match token {
            Token::In | Token::NotIn if context == Context::Values => (Token::Identifier, text),
            _ => (token, text),
        }
    }

    fn consume(&mut self, context: Context) -> (Token, &'a str) {
        let token = self.lookahead(context);
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let fail = |message: String| Err(SelectorError(message));
        let mut requirements = Vec::new();
        loop {
            match self.lookahead(Context::Values) {
                (Token::Identifier | Token::Not, _) => {
                    let requirement = self
                        .requirement()
                        .map_err(|e| SelectorError(format!("unable to parse requirement: {}", e.0)))?;
                    requirements.push(requirement);
                    match self.consume(Context::Values) {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => {
                            let (next, text) = self.lookahead(Context::Values);
                            if !matches!(next, Token::Identifier | Token::Not) {
                                return fail(format!("found '{text}', expected: identifier after ','"));
                            }
                        }
                        (_, text) => {
                            return fail(format!("found '{text}', expected: ',' or 'end of string'"));
                        }
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, text) => {
                    return fail(format!("found '{text}', expected: !, identifier, or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.consume(Context::Values);
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.consume(Context::Values);
        }
        if token != Token::Identifier {
            return Err(SelectorError(format!("found '{key}', expected: identifier")));
        }
        if let Some(error) = check_key(key, &Path::root()) {
            return Err(SelectorError(error.to_string()));
        }
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.lookahead(Context::Values).0, Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let (token, text) = self.consume(Context::KeyAndOperator);
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::GreaterThan => Operator::GreaterThan,
            Token::LessThan => Operator::LessThan,
            _ => {
                return Err(SelectorError(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<Vec<String>, SelectorError> {
        if matches!(self.lookahead(Context::Values).0, Token::End | Token::Comma) {
            return Ok(vec![String::new()]);
        }
        match self.consume(Context::Values) {
            (Token::Identifier, text) => Ok(vec![text.to_owned()]),
            (_, text) => Err(SelectorError(format!("found '{text}', expected: identifier"))),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let fail = |message: String| Err(SelectorError(message));
        match self.consume(Context::Values) {
            (Token::OpenParen, _) => {}
            (_, text) => return fail(format!("found '{text}' expected: '('")),
        }
        match self.lookahead(Context::Values) {
            (Token::Identifier | Token::Comma, first) => {
                let values = self.identifiers()?;
                match self.consume(Context::Values) {
                    (Token::CloseParen, _) => Ok(values),
                    _ => fail(format!("found '{first}', expected: ')'")),
                }
            }
            (Token::CloseParen, _) => {
                self.at += 1;
                Ok(Vec::new())
            }
            (_, text) => fail(format!("found '{text}', expected: ',', ')' or identifier")),
        }
    }

    /// `a,b`, where an empty place between commas is the empty value.
    fn identifiers(&mut self) -> Result<Vec<String>, SelectorError> {
        let mut values: Vec<String> = Vec::new();
        loop {
            match self.consume(Context::Values) {
                (Token::Identifier, text) => {
                    values.push(text.to_owned());
                    match self.lookahead(Context::Values) {
                        (Token::Comma, _) => {}
                        (Token::CloseParen, _) => return Ok(values),
                        (_, text) => {
                            return Err(SelectorError(format!("found '{text}', expected: ',' or ')'")));
                        }
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.lookahead(Context::Values).0 {
                        Token::CloseParen => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.at += 1;
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                (_, text) => {
                    return Err(SelectorError(format!("found '{text}', expected: ',', or identifier")));
                }
            }
        }
    }
}

/// One condition of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    /// `=` or `==`; otherwise `!=`.
    pub equal: bool,
    pub value: String,
}

/// All requirements must hold; a field that an object lacks is the empty string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Parses the text of a `fieldSelector` parameter. Which fields exist is the kind's matter.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let at = term.match_indices(['!', '=']).find_map(|(i, _)| {
                ["!=", "==", "="].into_iter().find(|op| term[i..].starts_with(op)).map(|op| (i, op))
            });
            let Some((at, operator)) = at else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            requirements.push(FieldRequirement {
                field: term[..at].to_owned(),
                equal: operator != "!=",
                value: unescape(&term[at + operator.len()..])?,
            });
        }
        Ok(FieldSelector { requirements })
    }

    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| (lookup(&r.field).unwrap_or_default() == r.value) == r.equal)
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The one value that the selector asks of a field, if it does: lets a list become a get.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }

    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|r| r.field.as_str())
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: \\{c}"
                    )));
                }
                None => {
                    return Err(SelectorError("invalid field selector: invalid escape sequence: \\".into()));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {}",
                    c as u32
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            let (comma, operator) = (if i > 0 { "," } else { "" }, if r.equal { "=" } else { "!=" });
            write!(f, "{comma}{}{operator}{value}", r.field)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(text: &str) -> LabelSelector {
        LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn text_round_trips_in_upstreams_form() {
        for (input, output) in [
            ("", ""),
            ("a=b", "a=b"),
            ("a==b", "a==b"),
            (" a = b , c ", "a=b,c"),
            ("b=1,a=2", "a=2,b=1"),
            ("a in (c,b,b)", "a in (b,c)"),
            ("a notin (x)", "a notin (x)"),
            ("!a", "!a"),
            ("! a", "!a"),
            ("a!=b", "a!=b"),
            ("a>1,b<2", "a>1,b<2"),
            ("a=", "a="),
            ("a=,b", "a=,b"),
            ("a in (,)", "a in ()"),
            ("a in (b,)", "a in (,b)"),
            ("in in (in)", "in in (in)"),
            ("example.com/a in (x, y)", "example.com/a in (x,y)"),
        ] {
            assert_eq!(parse(input).to_string(), output, "{input}");
        }
    }

    #[test]
    fn errors_are_upstreams() {
        for (input, message) in [
            ("a=b,", "found '', expected: identifier after ','"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("a=(", "unable to parse requirement: found '(', expected: identifier"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            ),
        ] {
            assert_eq!(LabelSelector::parse(input).unwrap_err().0, message, "{input}");
        }
        assert!(LabelSelector::parse("-a").unwrap_err().0.starts_with(
            "unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist"
        ));
        assert!(LabelSelector::parse("a=b@c").unwrap_err().0.starts_with(
            "unable to parse requirement: values[0][a]: Invalid value: \"b@c\": a valid label must be"
        ));
    }

    #[test]
    fn matching() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("n", "5")].map(|(k, v)| (k.into(), v.into())).into();
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app=db", false),
            ("app!=db", true),
            ("other!=db", true),
            ("app in (web,db)", true),
            ("app notin (web)", false),
            ("other notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("n>4", true),
            ("n<5", false),
            ("app>4", false),
            ("other>4", false),
        ] {
            assert_eq!(parse(selector).matches(&labels), expected, "{selector}");
        }
        assert!(!LabelSelector::nothing().matches(&labels));
        assert!(parse("app=web").matches(&[("app", "web")][..]));
        assert!(!parse("app=web").matches(&None::<&Map<String, Value>>));
        assert!(parse("app=web").matches(&json!({"metadata": {"labels": {"app": "web"}}})));
    }

    #[test]
    fn selector_objects() {
        let object = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d"]}, {"key": "e", "operator": "DoesNotExist"}]});
        let selector = LabelSelector::from_object(Some(&object)).unwrap();
        assert_eq!(selector.to_string(), "a=b,c in (d),!e");
        let typed: Typed = serde_json::from_value(object).unwrap();
        assert_eq!(LabelSelector::from_typed(Some(&typed)).unwrap(), selector);
        assert!(LabelSelector::from_object(None).unwrap().is_nothing());
        assert!(LabelSelector::from_object(Some(&json!({}))).unwrap().is_everything());
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        assert_eq!(
            LabelSelector::from_object(Some(&bad)).unwrap_err().0,
            "\"Near\" is not a valid label selector operator"
        );
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse("spec.nodeName=a,metadata.name!=b,x==c\\,d").unwrap();
        assert_eq!(selector.to_string(), "metadata.name!=b,spec.nodeName=a,x=c\\,d");
        assert_eq!(selector.exact("x"), Some("c,d"));
        assert!(selector.matches(|f| match f {
            "spec.nodeName" => Some("a"),
            "x" => Some("c,d"),
            _ => None,
        }));
        assert!(FieldSelector::parse("").unwrap().is_everything());
        assert_eq!(FieldSelector::parse("a").unwrap_err().0, "invalid selector: 'a'; can't understand 'a'");
        assert!(FieldSelector::parse("a=b=c").is_err());
        assert!(FieldSelector::parse("a=\\x").is_err());
        assert!(FieldSelector::parse("spec.unschedulable!=").unwrap().matches(|_| Some("true")));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z0-9 ,=!()<>/.\\\\-]{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        #[test]
        fn printed_selectors_parse_to_themselves(terms in proptest::collection::vec(("[a-z]{1,5}", 0usize..6, "[a-z0-9]{1,5}"), 0..5)) {
            let text: Vec<String> = terms.iter().map(|(k, op, v)| match op {
                0 => format!("{k}={v}"), 1 => format!("{k}!={v}"), 2 => format!("{k} in ({v},x)"),
                3 => format!("{k} notin ({v})"), 4 => k.clone(), _ => format!("!{k}"),
            }).collect();
            let once = parse(&text.join(","));
            prop_assert_eq!(parse(&once.to_string()), once);
        }

        #[test]
        fn field_values_survive_escaping(value in "[a-z,=\\\\]{0,10}") {
            let selector = FieldSelector { requirements: vec![FieldRequirement { field: "f".into(), equal: true, value }] };
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
