//! The language and its libraries, by tables of expressions.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod authz;
mod compile;
mod cost;
mod estimates;
mod language;
mod libraries;
mod limits;
mod mutation;
mod rules;
mod schema;

use std::collections::BTreeMap;

use skeg_cel::{Env, Limits, Type, Value};

/// Compiles and evaluates with the variable `x`, which is dyn; what comes out in words.
pub fn evaluate(text: &str, x: &serde_json::Value) -> String {
    let env = Env::new().with("x", Type::Dyn).with_bindings();
    let program = match env.compile(text) {
        Ok(program) => program,
        Err(issues) => return format!("does not compile: {issues}"),
    };
    let variables = BTreeMap::from([("x", Value::of(x))]);
    match program.evaluate(&variables, Limits::default()).value {
        Ok(value) => value.to_string(),
        Err(error) => format!("error: {error}"),
    }
}

/// Each expression is true.
pub fn all_true(x: &serde_json::Value, table: &[&str]) {
    let wrong: Vec<String> = table
        .iter()
        .map(|text| (text, evaluate(text, x)))
        .filter(|(_, outcome)| outcome != "true")
        .map(|(text, outcome)| format!("{text}\n    {outcome}"))
        .collect();
    assert!(wrong.is_empty(), "{} of {} are not true:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

/// Each expression fails so when evaluated.
pub fn all_fail(x: &serde_json::Value, table: &[(&str, &str)]) {
    let wrong: Vec<String> = table
        .iter()
        .map(|(text, message)| (text, format!("error: {message}"), evaluate(text, x)))
        .filter(|(_, expected, outcome)| expected != outcome)
        .map(|(text, expected, outcome)| format!("{text}\n    {outcome}\n    expected {expected}"))
        .collect();
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}
