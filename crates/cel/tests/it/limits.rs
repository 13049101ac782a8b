//! Whatever the text, compiling and evaluating end, soon and without a panic.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use serde_json::json;
use skeg_cel::{Env, ErrorKind, Limits, Type, Value};

fn env() -> Env {
    Env::new().with("x", Type::Dyn).with_bindings().with_mutation()
}

/// Compiles and evaluates on a stack of the size that a worker's thread has.
fn run(text: String, limits: Limits<'static>) -> Result<String, String> {
    let body = move || {
        let program = env().compile(&text).map_err(|issues| issues.to_string())?;
        let x = json!({"s": "text", "l": [1, 2, 3], "m": {"a": {"b": 1}}, "n": null});
        let variables = BTreeMap::from([("x", Value::of(&x))]);
        let value = program.evaluate(&variables, limits).value;
        value.map(|value| value.type_of().to_string()).map_err(|error| error.message)
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(body).unwrap().join().unwrap()
}

fn small() -> Limits<'static> {
    Limits { cost: 10_000, memory_bytes: 1 << 20, work: 1_000_000, interrupt: None }
}

#[test]
fn deep_texts_are_refused() {
    let deep = "ERROR: <input>:-1:0: expression recursion limit exceeded: 250";
    for (open, inner, close) in [
        ("(", "1", ")"),
        ("[", "1", "]"),
        ("{1: ", "1", "}"),
        ("f(", "1", ")"),
        ("x[", "1", "]"),
        ("true ? 1 : ", "1", ""),
        ("1 + (", "1", ")"),
        ("x.all(y, ", "true", ")"),
        ("Object{a: ", "1", "}"),
    ] {
        let text = format!("{}{inner}{}", open.repeat(5_000), close.repeat(5_000));
        assert_eq!(run(text, small()).unwrap_err(), deep, "{open}");
    }
    for chain in ["1 + ", "x.", "1 == ", "1 * "] {
        let text = format!("{}x", chain.repeat(5_000));
        assert_eq!(run(text, small()).unwrap_err(), deep, "{chain}");
    }
    // Chains of && and || are balanced, and signs cancel each other out.
    assert_eq!(run(format!("{}true", "true && ".repeat(5_000)), small()).unwrap(), "bool");
    assert_eq!(run(format!("{}true", "!".repeat(50_000)), small()).unwrap(), "bool");
}

#[test]
fn the_deepest_allowed_texts_fit_the_stack() {
    let limits = Limits { cost: u64::MAX, ..Limits::default() };
    for (open, inner, close) in [
        ("(", "1", ")"),
        ("[", "1", "]"),
        ("dyn(", "1", ")"),
        ("x.l.all(y, ", "true", ")"),
        ("cel.bind(y, x, ", "true", ")"),
        ("{'a': ", "1", "}"),
    ] {
        let fits =
            |count: usize| run(format!("{}{inner}{}", open.repeat(count), close.repeat(count)), limits);
        let most = (1..250)
            .rev()
            .find(|count| !fits(*count).is_err_and(|message| message.contains("recursion limit")));
        assert!(most.unwrap() > 50, "{open}: {most:?}");
    }
}

#[test]
fn wide_texts_compile() {
    for (before, part, after) in [
        ("[", "[],", "]"),
        ("[", "{},", "]"),
        ("[", "x.l,", "]"),
        ("[", "optional.none(),", "]"),
        ("x.a.b.c.d.e", " || x.a.b.c.d.e", ""),
        ("[]", " == [] && []", " == []"),
        ("x.l", ".map(y, [y])", ""),
        ("optional.of([])", ".optMap(y, [y])", ""),
    ] {
        let count = (99_000 / part.len()).min(if part.starts_with('.') { 40 } else { usize::MAX });
        let outcome = run(format!("{before}{}{after}", part.repeat(count)), small());
        assert!(!outcome.is_err_and(|message| message.starts_with("ERROR")), "{part}");
    }
}

#[test]
fn long_texts_are_refused() {
    let message = run("1".repeat(100_001), small()).unwrap_err();
    assert_eq!(
        message,
        "ERROR: <input>:-1:0: expression code point size exceeds limit: size: 100001, limit 100000"
    );
}

#[test]
fn values_that_grow_beyond_bounds_end_the_evaluation() {
    let memory = "operation cancelled: memory limit exceeded";
    let doubling = |value: &str| {
        let binds: String = (0..40).map(|n| format!("cel.bind(v{}, v{n} + v{n}, ", n + 1)).collect();
        format!("cel.bind(v0, {value}, {binds} v40 == v40{}", ")".repeat(41))
    };
    let free = Limits { cost: u64::MAX, ..Limits::default() };
    assert_eq!(run(doubling("[1]"), free).unwrap_err(), memory);
    assert_eq!(run(doubling("'abcdefgh'"), free).unwrap_err(), memory);
    assert_eq!(run(doubling("b'abcdefgh'"), free).unwrap_err(), memory);
    let long = "a".repeat(30_000);
    assert_eq!(run(format!("'{long}'.replace('a', '{long}').size() > 0"), free).unwrap_err(), memory);
    // Types that double with each binding are not written out.
    let binds: String =
        (0..100).map(|n| format!("cel.bind(v{}, [{{'a': v{n}, 'b': v{n}}}], ", n + 1)).collect();
    let text = format!("cel.bind(v0, [1], {binds} true{}", ")".repeat(101));
    assert_eq!(run(text, Limits::default()).unwrap(), "bool");
}

#[test]
fn work_without_a_cost_is_bounded() {
    let deep = json!((0..2_000).map(|n| json!({"a": [n, {"b": "text"}]})).collect::<Vec<_>>());
    let x = json!({"a": deep, "b": deep, "l": (0..1_000).collect::<Vec<_>>()});
    let program = env().compile("x.l.all(i, {'v': x.a} == {'v': x.b})").unwrap();
    let variables = BTreeMap::from([("x", Value::of(&x))]);
    let limits = Limits { work: 1_000_000, ..Limits::default() };
    let error = program.evaluate(&variables, limits).value.unwrap_err();
    assert_eq!((error.kind, &*error.message), (ErrorKind::Interrupted, "operation interrupted"));
}

#[test]
fn the_caller_may_interrupt() {
    let x = json!({"l": (0..1_000).collect::<Vec<_>>()});
    let program = env().compile("x.l.all(i, x.l.all(j, true))").unwrap();
    let variables = BTreeMap::from([("x", Value::of(&x))]);
    let asked = AtomicU32::new(0);
    let interrupt = || asked.fetch_add(1, Ordering::Relaxed) == 2;
    let limits = Limits { interrupt: Some(&interrupt), ..Limits::default() };
    let error = program.evaluate(&variables, limits).value.unwrap_err();
    assert_eq!((error.kind, asked.into_inner()), (ErrorKind::Interrupted, 3));
}

/// Parts of expressions, put together at random.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "x",
        ".",
        "l",
        "m",
        "s",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        "+",
        "-",
        "*",
        "/",
        "%",
        "==",
        "!=",
        "<",
        ">=",
        "&&",
        "||",
        "!",
        "?",
        ":",
        "in",
        "1",
        "2u",
        "1.5",
        "'a'",
        "b'a'",
        "true",
        "null",
        "all",
        "exists",
        "map",
        "filter",
        "size",
        "has",
        "optMap",
        "i",
        "cel.bind",
        "matches",
        "'['",
        "format",
        "'%s'",
        "timestamp",
        "0",
        "Object",
        "type",
        "join",
        "split",
        "''",
        "_?._",
        "ip",
        "\\",
        "\"",
        "é",
        "\n",
        "transformMap",
        "//",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Expressions that parse, nested at random.
fn expressions() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "1",
        "-9223372036854775808",
        "2u",
        "1.5",
        "'aé'",
        "b'x'",
        "true",
        "null",
        "x",
        "x.l",
        "x.s",
        "x.m.a",
        "[]",
        "{}",
        "x.n",
        "duration('1h')",
        "timestamp(0)",
        "optional.none()",
        "quantity('1')",
        "i",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(5, 40, 3, |inner| {
        let binary = prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "<", ">=", "&&", "||", "in"]);
        let macros = prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter", "optMap"]);
        let functions = prop::sample::select(vec![
            "size",
            "string",
            "int",
            "uint",
            "double",
            "type",
            "dyn",
            "bool",
            "bytes",
            "isIP",
            "isURL",
            "isSemver",
            "isQuantity",
            "isImage",
            "optional.of",
            "strings.quote",
            "duration",
            "timestamp",
        ]);
        let members = prop::sample::select(vec![
            "size()",
            "sum()",
            "min()",
            "isSorted()",
            "split('')",
            "trim()",
            "join('-')",
            "value()",
            "getHours()",
            "orValue(1)",
            "charAt(0)",
            "substring(1)",
            "indexOf('a')",
            "replace('', 'b')",
            "find('.')",
            "format([1])",
            "m",
            "?m",
            "foo",
        ]);
        prop_oneof![
            (inner.clone(), binary, inner.clone()).prop_map(|(a, op, b)| format!("dyn({a}) {op} dyn({b})")),
            (inner.clone(), macros, inner.clone())
                .prop_map(|(a, name, b)| format!("dyn({a}).{name}(i, {b})")),
            (functions, inner.clone()).prop_map(|(name, a)| format!("{name}(dyn({a}))")),
            (inner.clone(), members).prop_map(|(a, member)| format!("dyn({a}).{member}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("dyn({a})[{b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[dyn({a}), dyn({b})]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{dyn({a}): dyn({b})}}")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("(dyn({a}) ? dyn({b}) : dyn({c}))")),
        ]
    })
    .prop_map(|text| format!("cel.bind(i, 1, {text})"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_pieces_neither_panic_nor_hang(text in pieces()) {
        let _ = run(text, small());
    }

    #[test]
    fn random_text_neither_panics_nor_hangs(text in "\\PC{0,60}") {
        let _ = run(text, small());
    }

    #[test]
    fn random_expressions_evaluate_and_stay_within_their_estimate(text in expressions()) {
        let program = env().compile(&text);
        if let Ok(program) = program {
            let x = json!({"s": "text", "l": [1, 2, 3], "m": {"a": {"b": 1}}, "n": null});
            let variables = BTreeMap::from([("x", Value::of(&x))]);
            let evaluation = program.evaluate(&variables, Limits { work: 10_000_000, ..Limits::default() });
            prop_assert!(evaluation.cost <= program.estimated_cost().max.max(1_000), "{text}: {evaluation:?}");
        }
    }
}
