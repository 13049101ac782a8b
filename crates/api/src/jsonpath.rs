//! JSONPath as printer columns, selectable fields and scale paths of custom resources use it:
//! fields, indices, slices, wildcards, recursive descent and filters.
//! Upstream counterpart: `k8s.io/client-go/util/jsonpath`.

use serde_json::Value;
use std::cmp::Ordering;

/// The deepest that `..` looks.
const DESCENT_MAX: usize = 64;

/// A path, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    /// Every value below, the value itself included.
    Descend,
    Filter(JsonPath, Option<(Operator, Operand)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Literal(Value),
    Path(JsonPath),
}

const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

impl JsonPath {
    /// Parses `.spec.items[?(@.type=="Ready")].status`. The error says what was not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (steps, rest) = steps(text)?;
        if rest.is_empty() { Ok(JsonPath(steps)) } else { Err(format!("unexpected {rest:?}")) }
    }

    /// A path that leads nowhere.
    pub fn nothing() -> Self {
        JsonPath(vec![Step::Field(String::new())])
    }

    /// All values that the path leads to, in order.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        self.0
            .iter()
            .fold(vec![root], |at, step| at.into_iter().flat_map(|value| apply(step, value)).collect())
    }

    /// The first value that the path leads to.
    pub fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.find(root).into_iter().next()
    }

    /// The names of a path that is fields alone.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None })
            .collect()
    }
}

fn steps(mut rest: &str) -> Result<(Vec<Step>, &str), String> {
    let mut steps = Vec::new();
    loop {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Descend);
            rest = if after.starts_with('[') { after } else { name_step(after, &mut steps)? };
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = if after.is_empty() || after.starts_with('[') {
                after
            } else {
                name_step(after, &mut steps)?
            };
        } else if let Some(after) = rest.strip_prefix('[') {
            rest = bracket(after, &mut steps)?;
        } else {
            return Ok((steps, rest));
        }
    }
}

/// A name up to the next step; a backslash takes what follows as it is.
fn name_step<'a>(text: &'a str, steps: &mut Vec<Step>) -> Result<&'a str, String> {
    let (mut name, mut escaped, mut end) = (String::new(), false, text.len());
    for (at, c) in text.char_indices() {
        if !escaped
            && (matches!(c, '.' | '[' | ')' | ' ') || OPERATORS.iter().any(|(op, _)| op.starts_with(c)))
        {
            end = at;
            break;
        }
        escaped = !escaped && c == '\\';
        if !escaped {
            name.push(c);
        }
    }
    match name.as_str() {
        "" => return Err(format!("a name is missing before {:?}", &text[end..])),
        "*" => steps.push(Step::All),
        _ => steps.push(Step::Field(name)),
    }
    Ok(&text[end..])
}

fn bracket<'a>(text: &'a str, steps: &mut Vec<Step>) -> Result<&'a str, String> {
    let open = || format!("unterminated array in {text:?}");
    if let Some(inner) = text.strip_prefix("?(") {
        let (filter, rest) = filter(inner)?;
        steps.push(filter);
        return rest.trim_start().strip_prefix(")]").ok_or_else(open);
    }
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let (name, rest) = text[1..].split_once(quote).ok_or_else(open)?;
        steps.push(Step::Field(name.to_owned()));
        return rest.strip_prefix(']').ok_or_else(open);
    }
    let (inner, rest) = text.split_once(']').ok_or_else(open)?;
    let number = |text: &str| match text.trim() {
        "" => Ok(None),
        text => text.parse::<i64>().map(Some).map_err(|_| format!("invalid array index {inner:?}")),
    };
    steps.push(match (inner.trim(), inner.split_once(':')) {
        ("*", _) => Step::All,
        (_, Some((from, to))) => Step::Slice(number(from)?, number(to)?),
        _ => Step::Index(number(inner)?.ok_or_else(|| "empty array index".to_owned())?),
    });
    Ok(rest)
}

fn filter(text: &str) -> Result<(Step, &str), String> {
    let inner =
        text.trim_start().strip_prefix('@').ok_or_else(|| format!("a filter must start with @: {text:?}"))?;
    let (path, rest) = steps(inner)?;
    let rest = rest.trim_start();
    let Some((symbol, operator)) = OPERATORS.iter().find(|(symbol, _)| rest.starts_with(symbol)) else {
        return Ok((Step::Filter(JsonPath(path), None), rest));
    };
    let (operand, rest) = operand(rest[symbol.len()..].trim_start())?;
    Ok((Step::Filter(JsonPath(path), Some((*operator, operand))), rest))
}

fn operand(text: &str) -> Result<(Operand, &str), String> {
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let (literal, rest) =
            text[1..].split_once(quote).ok_or_else(|| format!("unterminated text in {text:?}"))?;
        return Ok((Operand::Literal(literal.into()), rest));
    }
    if let Some(inner) = text.strip_prefix('@') {
        let (path, rest) = steps(inner)?;
        return Ok((Operand::Path(JsonPath(path)), rest));
    }
    let end = text.find(')').unwrap_or(text.len());
    let literal =
        serde_json::from_str(text[..end].trim()).map_err(|_| format!("unrecognized value {text:?}"))?;
    Ok((Operand::Literal(literal), &text[end..]))
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn apply<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    // Negative numbers count from the end.
    let place = |at: i64| if at < 0 { at + items.len() as i64 } else { at };
    match step {
        Step::Field(name) => value.get(name.as_str()).into_iter().collect(),
        Step::Index(at) => {
            usize::try_from(place(*at)).ok().and_then(|at| items.get(at)).into_iter().collect()
        }
        Step::Slice(from, to) => {
            let bound =
                |at: Option<i64>, none| at.map_or(none, |at| place(at).clamp(0, items.len() as i64) as usize);
            items.get(bound(*from, 0)..bound(*to, items.len())).unwrap_or_default().iter().collect()
        }
        Step::All => children(value),
        Step::Descend => {
            let mut out = Vec::new();
            descend(value, 0, &mut out);
            out
        }
        Step::Filter(path, test) => {
            children(value).into_iter().filter(|item| holds(item, path, test.as_ref())).collect()
        }
    }
}

fn descend<'a>(value: &'a Value, depth: usize, out: &mut Vec<&'a Value>) {
    out.push(value);
    if depth < DESCENT_MAX {
        children(value).into_iter().for_each(|child| descend(child, depth + 1, out));
    }
}

fn holds(item: &Value, path: &JsonPath, test: Option<&(Operator, Operand)>) -> bool {
    let Some(left) = path.first(item) else { return false };
    let Some((operator, operand)) = test else { return true };
    let right = match operand {
        Operand::Literal(value) => Some(value),
        Operand::Path(path) => path.first(item),
    };
    let order = match (left, right) {
        (Value::Number(a), Some(Value::Number(b))) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Some(Value::String(b))) => Some(a.cmp(b)),
        (a, Some(b)) if a == b => Some(Ordering::Equal),
        _ => None,
    };
    match operator {
        Operator::Equal => order == Some(Ordering::Equal),
        Operator::NotEqual => order != Some(Ordering::Equal),
        Operator::Less => order == Some(Ordering::Less),
        Operator::LessOrEqual => order.is_some_and(Ordering::is_le),
        Operator::Greater => order == Some(Ordering::Greater),
        Operator::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_where_upstreams_do() {
        let object = json!({"metadata": {"labels": {"a.b/c": "x"}}, "spec": {"n": [1, 2, 3], "m": {"k": {"n": 7}}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False", "n": 4}]}});
        for (path, expected) in [
            (".spec.n[0]", json!([1])),
            (".spec.n[-1]", json!([3])),
            (".spec.n[1:]", json!([2, 3])),
            (".spec.n[*]", json!([1, 2, 3])),
            (".spec.m.*.n", json!([7])),
            ("..k.n", json!([7])),
            (".metadata.labels.a\\.b/c", json!(["x"])),
            (".metadata.labels['a.b/c']", json!(["x"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type != 'Ready')].status", json!(["False"])),
            (".status.conditions[?(@.n >= 4)].type", json!(["Other"])),
            (".status.conditions[?(@.n)].type", json!(["Other"])),
            (".status.none", json!([])),
        ] {
            let found = JsonPath::parse(path).unwrap();
            assert_eq!(json!(found.find(&object)), expected, "{path}");
        }
        for wrong in ["spec", ".a[", ".a[x]", ".a[?(b)]", ".a[?(@.b==)]", ".a..", ".a[?(@.b=='c)]", ".a[1"] {
            assert!(JsonPath::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(JsonPath::parse(".spec.replicas").unwrap().fields(), Some(vec!["spec", "replicas"]));
    }
}
