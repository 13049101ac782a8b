//! Costs: estimated before, counted while evaluating.

use std::collections::BTreeMap;

use serde_json::json;
use skeg_cel::{Cost, Env, ErrorKind, Limits, Schema, Type, Value};

/// The estimate and the count of an expression over a small object.
fn costs(text: &str) -> (Cost, u64) {
    let schema = Schema::new(&json!({"type": "object", "properties": {
        "n": {"type": "integer"},
        "s": {"type": "string", "maxLength": 10},
        "free": {"type": "string"},
        "enum": {"type": "string", "enum": ["a", "abc"]},
        "list": {"type": "array", "maxItems": 5, "items": {"type": "integer"}},
        "words": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 3}},
        "open": {"type": "array", "items": {"type": "integer"}},
        "map": {"type": "object", "maxProperties": 4, "additionalProperties": {"type": "string", "maxLength": 2}},
        "when": {"type": "string", "format": "date-time"}
    }}));
    let object = json!({"n": 1, "s": "0123456789", "free": "abc", "enum": "a", "list": [1, 2, 3],
        "words": ["a", "b"], "open": [1], "map": {"k": "v"}, "when": "2024-01-01T00:00:00Z"});
    let env = Env::new().with_declared("self", schema.declare("self").unwrap().into());
    let program = env.compile(text).unwrap_or_else(|issues| panic!("{issues}"));
    let variables = BTreeMap::from([("self", Value::typed(&object, &schema).unwrap())]);
    let evaluation = program.evaluate(&variables, Limits::default());
    assert!(evaluation.value.is_ok(), "{text}: {:?}", evaluation.value);
    (program.estimated_cost(), evaluation.cost)
}

#[test]
fn costs_are_those_of_upstreams_model() {
    let mut wrong = Vec::new();
    for (text, min, max, counted) in [
        // Constants are free; a name and a selection cost one each.
        ("true", 0, 0, 0),
        ("self.n > 1", 3, 3, 3),
        ("1 + 1 == 2", 2, 2, 2),
        ("has(self.n)", 1, 1, 1),
        ("has(self.n) && self.n > 0", 1, 4, 4),
        ("self.n > 5 ? true : self.n > 2", 3, 6, 6),
        // A tenth for each character, rounded up.
        ("self.s == 'abc'", 3, 3, 3),
        ("self.s.startsWith('abc')", 3, 3, 3),
        ("self.s.contains('ab')", 2, 6, 3),
        ("self.s + self.s == 'a'", 5, 13, 7),
        // Patterns: a quarter for each of their characters, times the text.
        ("self.s.matches('^[0-9]*$')", 4, 12, 6),
        ("self.s.lowerAscii() == 'x'", 3, 7, 4),
        // Lists and maps that are written cost ten and thirty, where they are made.
        ("[1, 2, 3].size() == 3", 12, 12, 2),
        ("{'a': 1}.size() == 1", 32, 32, 2),
        ("[self.n].size() == 1", 14, 14, 14),
        ("self.n in [1, 2, 3]", 15, 15, 2),
        ("self.n in self.list", 4, 9, 7),
        ("self.list[0] == 1", 3, 3, 4),
        ("self.map['k'] == 'v'", 4, 4, 4),
        // Macros: each round costs its condition, its body and the accumulator.
        ("self.list.all(i, i > 0)", 3, 28, 18),
        ("self.list.exists(i, i == 2)", 3, 28, 18),
        ("self.list.map(i, i).size() > 0", 15, 80, 44),
        ("self.words.all(w, w.size() < 5)", 3, 33, 15),
        ("self.map.all(k, k != '')", 3, 19, 7),
        // Lengths that nothing bounds are those of the largest request.
        ("self.free == self.free", 5, 314_577, 5),
        ("self.open.all(i, i > 0)", 3, 3 + 5 * 1_572_863, 8),
        ("self.enum == 'a'", 3, 3, 3),
        ("self.list.sum() == 1 || true", 3, 8, 6),
        ("self.when.getFullYear() == 2024", 4, 4, 4),
        ("self.words.join(',') == 'a,b'", 3, 10, 4),
        ("isQuantity('100k') && quantity('100k').isGreaterThan(quantity('1'))", 1, 4, 4),
    ] {
        let (estimate, cost) = costs(text);
        let found = (estimate.min, estimate.max, cost);
        if found != (min, max, counted) {
            wrong.push(format!("{text}: {found:?}, expected {:?}", (min, max, counted)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn evaluations_cost_what_they_cost_upstream() {
    let x = json!({
        "key": "v", "list": ["v"], "text": "a".repeat(500), "idc": "idc", "empty": [], "one": [{}],
        "n": 1, "a": false, "b": true, "map": {"val": {"n": 0}}, "val1": "val1", "val2": "val2222222"
    });
    // The costs are those of cel-go's tests, whose variables are here fields of one: one more for each.
    for (text, counted) in [
        ("x", 1),
        ("x['key']", 2),
        ("x.list[0]", 3),
        ("x['ke' + 'y']", 3),
        ("x.list[3 - 3]", 4),
        ("has(x.key)", 1),
        ("x.empty.all(y, true)", 2 + 1),
        ("x.empty.all(y, y.all(z, true))", 2 + 1),
        ("x.text.matches('[0-9]')", 103 + 1),
        ("'123'.matches('[0-9]')", 2),
        ("false || false", 0),
        ("x.a || x.a || x.a || x.a", 4 + 4),
        ("x.b && x.b && x.b && x.b", 4 + 4),
        ("1 < 2", 1),
        ("true ? 1 : 2", 0),
        ("size('123')", 1),
        ("'12345678901234567890' == '123456789012345678901234567890'", 2),
        ("bytes(x.text)", 51 + 1),
        ("x.text.contains(x.text)", 2_502 + 2),
        ("x.idc.startsWith(x.text)", 3 + 2),
        ("x.idc.endsWith(x.text)", 3 + 2),
        ("(x.n > 2 ? x.list : x.one).all(y, true)", 6 + 2),
        ("true ? false : 1 > 3", 0),
        ("false ? false : 1 > 3", 1),
        ("x.map.all(k, x.map[k].n > 3)", 9 + 2),
        ("(x.empty + x.empty).all(y, true)", 4 + 2),
        ("'abcdefg'.contains(x.val1 + x.val2)", 6 + 2),
        ("(1 > 2 ? 5 : 3) > 1", 2),
        ("(1 > 2 || 2 > 1) == true", 3),
    ] {
        let program = Env::new().with("x", Type::Dyn).compile(text).unwrap();
        let variables = BTreeMap::from([("x", Value::of(&x))]);
        let evaluation = program.evaluate(&variables, Limits::default());
        assert!(evaluation.value.is_ok(), "{text}: {evaluation:?}");
        assert_eq!(evaluation.cost, counted, "{text}");
    }
}

#[test]
fn counts_stay_within_estimates() {
    for text in [
        "self.list.all(i, self.words.exists(w, w.size() == i))",
        "self.words.map(w, w + self.s).all(t, t.contains('a') || t.size() > 0)",
        "self.s.split('').map(c, c.upperAscii()).join('-') != ''",
        "self.map.all(k, self.map[k].startsWith('v'))",
        "self.list.filter(i, i > 1).map(i, i * 2).sum() == 10",
        "self.s.replace('0', 'zero') != self.s.substring(2)",
        "self.words == ['a', 'b'] && self.s.find('[0-9]+') == self.s",
    ] {
        let (estimate, cost) = costs(text);
        assert!(cost <= estimate.max, "{text}: {cost} of {estimate:?}");
    }
}

#[test]
fn a_rule_without_bounds_is_over_the_limit() {
    let schema =
        Schema::new(&json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}}));
    let env = Env::new().with_declared("self", schema.declare("self").unwrap().into());
    let program = env.compile("self.all(x, x.all(y, y.contains('a')))").unwrap();
    assert!(program.estimated_cost().max > skeg_cel::RULE_ESTIMATE_LIMIT);
    assert_eq!(schema.declare("self").unwrap().cardinality_max(), 3 * 1024 * 1024 / 3);
}

#[test]
fn evaluation_stops_at_its_limit() {
    let env = Env::new().with("x", Type::Dyn);
    let x = json!((0..1000).collect::<Vec<_>>());
    let variables = BTreeMap::from([("x", Value::of(&x))]);
    let program = env.compile("x.all(i, x.all(j, i + j >= 0))").unwrap();
    let evaluation = program.evaluate(&variables, Limits { cost: 10_000, ..Limits::default() });
    let error = evaluation.value.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cost);
    assert_eq!(error.message, "operation cancelled: actual cost limit exceeded");
    assert!(evaluation.cost > 10_000 && evaluation.cost < 10_100, "{}", evaluation.cost);
    // A limit is no error that an operator gets past.
    let program = env.compile("true || false ? x.all(i, x.all(j, i + j >= 0)) || true : true").unwrap();
    let evaluation = program.evaluate(&variables, Limits { cost: 10_000, ..Limits::default() });
    assert_eq!(evaluation.value.unwrap_err().kind, ErrorKind::Cost);
}
