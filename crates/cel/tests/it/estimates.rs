//! Estimates of rules of definitions, whose numbers decide which definitions upstream takes.

use serde_json::{Value as Json, json};
use skeg_cel::{Env, Schema};

/// A schema with or without the bound that a row sets.
type Make = fn(Option<u64>) -> Json;

fn bounded(mut schema: Json, keyword: &str, max: Option<u64>) -> Json {
    if let Some(max) = max {
        schema[keyword] = json!(max);
    }
    schema
}

fn simple(of: &str) -> Json {
    match of {
        "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
        "duration" | "date" | "date-time" | "byte" => json!({"type": "string", "format": of}),
        of => json!({"type": of}),
    }
}

macro_rules! list {
    ($of:literal) => {
        |max| bounded(json!({"type": "array", "items": simple($of)}), "maxItems", max)
    };
}

macro_rules! map {
    ($of:literal) => {
        |max| bounded(json!({"type": "object", "additionalProperties": simple($of)}), "maxProperties", max)
    };
}

const TEXT: Make = |max| bounded(simple("string"), "maxLength", max);
const TEXTS: Make = |max| {
    bounded(json!({"type": "array", "items": bounded(simple("string"), "maxLength", max)}), "maxItems", max)
};
const OBJECT: fn() -> Json = || {
    json!({"type": "object", "required": ["required"],
        "properties": {"required": {"type": "string"}, "optional": {"type": "string"}}})
};
const MAP_OF_OBJECTS: Make =
    |max| bounded(json!({"type": "object", "additionalProperties": OBJECT()}), "maxProperties", max);
const LIST_OF_LISTS: Make = |max| {
    bounded(
        json!({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
        "maxItems",
        max,
    )
};
const LIST_OF_MAPS: Make = |max| {
    let map = json!({"type": "object", "additionalProperties": {"type": "number"}});
    bounded(json!({"type": "array", "items": map}), "maxItems", max)
};

fn estimate(schema: &Json, rule: &str) -> u64 {
    let declared = std::sync::Arc::new(Schema::new(schema).declare("self").unwrap());
    let env = Env::new().with_declared("self", declared.clone()).with_declared("oldSelf", declared);
    env.compile(rule).unwrap_or_else(|issues| panic!("{issues}")).estimated_cost().max
}

#[test]
fn rules_have_upstreams_estimates() {
    let rows: &[(Make, &str, u64, u64, u64)] = &[
        // Schema, rule, estimate without a bound, bound, estimate with it.
        (list!("number"), "self.all(x, true)", 4_718_591, 10, 32),
        (list!("string"), "self.all(x, true)", 3_145_727, 20, 62),
        (list!("boolean"), "self.all(x, true)", 1_887_437, 5, 17),
        (list!("duration"), "self.all(x, true)", 2_359_295, 5, 17),
        (list!("date"), "self.all(x, true)", 725_936, 15, 47),
        (list!("date-time"), "self.all(x, true)", 428_963, 25, 77),
        (list!("int-or-string"), "self.all(x, true)", 4_718_591, 10, 32),
        (LIST_OF_LISTS, "self.all(x, true)", 3_145_727, 100, 302),
        (map!("number"), "self.all(x, true)", 1_348_169, 10, 32),
        (map!("string"), "self.all(x, true)", 1_179_647, 3, 11),
        (map!("boolean"), "self.all(x, true)", 943_718, 100, 302),
        (map!("int-or-string"), "self.all(x, true)", 1_348_169, 15, 47),
        (map!("duration"), "self.all(x, true)", 1_048_577, 5, 17),
        (map!("date"), "self.all(x, true)", 524_288, 10, 32),
        (map!("date-time"), "self.all(x, true)", 349_526, 25, 77),
        (MAP_OF_OBJECTS, "self.all(x, true)", 428_963, 20, 62),
        (TEXT, "self.contains('test')", 314_574, 10, 5),
        (TEXT, "self.startsWith('test')", 2, 15, 2),
        (TEXT, "self.endsWith('test')", 2, 30, 2),
        (TEXT, "size(self + \"hello\") > size(\"hello\")", 314_578, 4, 7),
        (TEXT, "self.matches(\"x\")", 314_574, 50, 22),
        (TEXT, "\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, 10, 7),
        (TEXT, "self.matches(\"\")", 1, 100, 1),
        (TEXT, "self == \"x\"", 2, 0, 1),
        (TEXT, "self.find('[0-9]+') == ''", 629_147, 10, 11),
        (TEXT, "self.lowerAscii() == 'lower!'", 314_575, 10, 6),
        (|max| bounded(simple("byte"), "maxLength", max), "self == b\"x\"", 2, 0, 1),
        (list!("number"), "self[1] == 0.0", 2, 5_000, 2),
        (list!("string"), "self[1] == self[1]", 314_577, 8, 314_577),
        (list!("number"), "self.all(x, self.all(y, true))", 7_421_701_914_624, 10, 352),
        (list!("number"), "self.all(x, x == 0.0)", 6_291_454, 3 * 1024 * 2048, 25_165_826),
        (list!("int-or-string"), "self[0] == 5", 3, 10, 3),
        (list!("boolean"), "self[0] == false", 2, 25, 2),
        (LIST_OF_LISTS, "self[0][0] == -1.0", 3, 51, 3),
        (LIST_OF_MAPS, "self.all(x, x.y == 25.2)", 6_291_452, 12, 74),
        (LIST_OF_MAPS, "self[0].x > 2.0", 4, 3_000, 4),
        (list!("duration"), "self[0].getHours() == 2", 4, 525, 4),
        (list!("date"), "self[2].getDayOfMonth() == 13", 4, 42, 4),
        (list!("date-time"), "self[2].getMinutes() == 45", 4, 99, 4),
        (map!("number"), "self[\"x\"] == 0.0", 2, 0, 2),
        (map!("integer"), "oldSelf.size() == self.size()", 5, 10, 5),
        (map!("date-time"), "self[\"a\"] == self[\"b\"]", 8, 7, 8),
        (map!("duration"), "self[\"c\"] == self[\"d\"]", 8, 42, 8),
        (
            |max| {
                let of = bounded(simple("string"), "maxLength", max);
                bounded(json!({"type": "object", "additionalProperties": of}), "maxProperties", max)
            },
            "self.all(x, x.contains(self[x]))",
            2_752_507,
            10,
            72,
        ),
        (
            |max| {
                let inner = bounded(OBJECT(), "maxProperties", max);
                let map =
                    bounded(json!({"type": "object", "additionalProperties": inner}), "maxProperties", max);
                bounded(json!({"type": "array", "items": map}), "maxItems", max)
            },
            "self.all(x, x[\"y\"].required == \"z\")",
            7_340_027,
            10,
            72,
        ),
        (TEXTS, "self.join(' ') == 'aa bb'", 329_853_068_905, 10, 43),
        (TEXTS, "self.isSorted() == true", 329_854_432_052, 10, 52),
        (
            |max| {
                json!({"type": "object", "properties": {
                    "str": bounded(simple("string"), "maxLength", max),
                    "before": {"type": "string", "maxLength": 2}, "after": {"type": "string", "maxLength": 4}
                }})
            },
            "self.str.replace(self.before, self.after) == 'does not matter'",
            629_154,
            4,
            12,
        ),
        (
            |max| {
                let of = bounded(simple("string"), "maxLength", max);
                json!({"type": "object", "properties": {"str": of, "separator": of}})
            },
            "self.str.split(self.separator) == []",
            629_160,
            10,
            22,
        ),
        (
            |max| bounded(json!({"type": "string", "enum": ["A", "B", "C", "LongValue"]}), "maxLength", max),
            "self.contains('A')",
            2,
            1_000,
            401,
        ),
    ];
    let mut wrong = Vec::new();
    for (make, rule, without, bound, with) in rows {
        let found = (estimate(&make(None), rule), estimate(&make(Some(*bound)), rule));
        if found != (*without, *with) {
            wrong.push(format!("{rule}: {found:?}, expected {:?} at {bound}", (without, with)));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
