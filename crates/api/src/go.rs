//! JSON values as Go writes them: its numbers, and the words of its `fmt`, for messages.

use serde_json::{Map, Number, Value};

/// Above this Go writes numbers with an exponent.
const WHOLE_MAX: f64 = 1e21;

/// Takes the fraction from numbers that have none, as Go writes them: `1.0` is `1`.
pub(crate) fn whole_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Number(number) if number.is_f64() => {
            let Some(float) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < WHOLE_MAX) else {
                return;
            };
            // Those beyond 64 bits keep their form: no number here has more.
            if float.abs() < 2f64.powi(63) {
                *number = (float as i64).into();
            } else if (0.0..2f64.powi(64)).contains(&float) {
                *number = (float as u64).into();
            }
        }
        _ => {}
    }
}

/// As `%v` prints it: `map[a:[1 2]]`.
pub(crate) fn value(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "<nil>".into(),
        Value::Array(items) => list(items),
        Value::Object(fields) => map(fields),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => float(number),
    }
}

pub(crate) fn map(map: &Map<String, Value>) -> String {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_unstable();
    let fields: Vec<String> = keys.iter().map(|key| format!("{key}:{}", value(&map[*key]))).collect();
    format!("map[{}]", fields.join(" "))
}

pub(crate) fn list(items: &[Value]) -> String {
    format!("[{}]", items.iter().map(value).collect::<Vec<_>>().join(" "))
}

/// As `%#v` prints it: `map[string]interface {}{"a":1}`.
pub(crate) fn syntax(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Null => "interface {}(nil)".into(),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let fields: Vec<String> =
                map.iter().map(|(key, value)| format!("{key:?}:{}", syntax(value))).collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => float(number),
    }
}

/// As `%T` names its type.
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Null => "<nil>",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
    }
}

/// Fractions as the shortest `%g`; whole numbers have all their digits.
fn float(number: &Number) -> String {
    let exact = number.to_string();
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return exact };
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return exact };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => float.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers_have_no_fraction() {
        let mut all: Value = serde_json::from_str(
            r#"{"a": [1.0, -3e2, 0.0, 1.5, 1e19, 1e20, 1e21, 9223372036854775807, 7, "1.0"]}"#,
        )
        .unwrap();
        super::whole_numbers(&mut all);
        let whole = r#"{"a":[1,-300,0,1.5,10000000000000000000,1e20,1e21,9223372036854775807,7,"1.0"]}"#;
        assert_eq!(serde_json::from_str::<Value>(whole).unwrap(), all);
        assert_eq!(all["a"][4].as_u64(), Some(10_000_000_000_000_000_000));
    }

    #[test]
    fn values_read_as_in_go() {
        let all = json!({"b": [1, "x", null, true], "a": {"c": 0.5}});
        assert_eq!(value(&all), "map[a:map[c:0.5] b:[1 x <nil> true]]");
        assert_eq!(
            syntax(&all),
            "map[string]interface {}{\"a\":map[string]interface {}{\"c\":0.5}, \"b\":[]interface {}{1, \"x\", interface {}(nil), true}}"
        );
        assert_eq!(
            (type_of(&json!(1)), type_of(&json!(0.5)), type_of(&all)),
            ("int64", "float64", "map[string]interface {}")
        );
        assert_eq!(value(&json!(1e30)), "1e+30");
    }
}
