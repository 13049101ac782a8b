//! `fieldPath` of a rule: fields and keys of maps, below the schema that the rule stands in.
//! Upstream counterpart: `ValidFieldPath` of `apiextensions-apiserver/pkg/apiserver/schema/cel`.

use crate::field::Path;
use serde_json::Value;

/// The path as errors show it (`.labels['a.b']` is `labels[a.b]`), and the schema that it leads to.
///
/// # Errors
/// Why it leads nowhere in the schema, in upstream's words.
pub fn parse<'a>(text: &str, schema: &'a Value) -> Result<(Path, &'a Value), String> {
    let (mut path, mut at) = (Path::root(), schema);
    let mut tokens = tokens(text).into_iter();
    let ended = || "unexpected end of JSON path".to_owned();
    while let Some(token) = tokens.next() {
        let name = match token {
            "." => tokens.next().ok_or_else(ended)?.to_owned(),
            "[" => {
                let quoted = tokens.next().ok_or_else(ended)?;
                let inner = quoted.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                let inner = inner.ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                let name = unescape(inner)?;
                match tokens.next().ok_or_else(ended)? {
                    "]" => name,
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let nowhere = || "does not refer to a valid field".to_owned();
        let named = at.get("properties").and_then(Value::as_object).filter(|all| !all.is_empty());
        (path, at) = match (named, at.get("additionalProperties")) {
            (Some(all), _) => (path.child(&name), all.get(&name).ok_or_else(nowhere)?),
            (None, Some(values)) if values.is_object() => (path.key(&name), values),
            _ => return Err(nowhere()),
        };
    }
    Ok((path, at))
}

/// Delimiters, quoted strings, and what stands between them.
fn tokens(text: &str) -> Vec<&str> {
    let (mut rest, mut out) = (text, Vec::new());
    while !rest.is_empty() {
        let is_escaped = |at: usize| rest[..at].ends_with('\\');
        let end = if rest.starts_with('\'') {
            rest.match_indices('\'').skip(1).find(|(at, _)| !is_escaped(*at)).map(|(at, _)| at + 1)
        } else {
            rest.find(['.', '[', ']']).map(|at| at.max(1))
        };
        let (token, after) = rest.split_at(end.unwrap_or(rest.len()));
        out.push(token);
        rest = after;
    }
    out
}

fn unescape(text: &str) -> Result<String, String> {
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\x0b',
            Some(c @ ('\'' | '\\')) => c,
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(format!("invalid string literal: invalid escape char \\{other}"));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_fields_and_keys() {
        let schema = json!({"properties": {"a.c": {}, "foo": {"properties": {"b.c": {"additionalProperties": {
            "properties": {"x": {}}}}}}, "list": {"items": {"properties": {"a": {}}}}}});
        for (text, expected) in [
            (".foo", Ok("foo")),
            ("['a.c']", Ok("a.c")),
            (".foo['b.c']['k\\'.1'].x", Ok("foo.b.c[k'.1].x")),
            (".foo['b.c'].any", Ok("foo.b.c[any]")),
            (".a.c", Err("does not refer to a valid field")),
            (".list[0]", Err("expected single quoted string but got 0")),
            (".list['0']", Err("does not refer to a valid field")),
            ("   ", Err("expected [ or . but got:    ")),
            (".", Err("unexpected end of JSON path")),
            ("..", Err("does not refer to a valid field")),
            ("['a.c'", Err("unexpected end of JSON path")),
            ("['a.c'.x", Err("expected ] but got .")),
            ("['a", Err("expected single quoted string but got 'a")),
            ("['\\q']", Err("invalid string literal: invalid escape char \\q")),
        ] {
            let got = parse(text, &schema).map(|(path, _)| path.as_str().to_owned());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{text}");
        }
    }
}
