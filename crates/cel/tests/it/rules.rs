//! Rules of custom resources, over the data that upstream tests its own with.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use skeg_cel::{Env, Limits, Schema, Value};

fn evaluate(schema: &Schema, object: &Json, rule: &str) -> String {
    let env = Env::new().with_declared("self", schema.declare("selfType").unwrap().into());
    let program = match env.compile(rule) {
        Ok(program) => program,
        Err(issues) => return issues.to_string(),
    };
    let variables = BTreeMap::from([("self", Value::typed(object, schema).unwrap())]);
    match program.evaluate(&variables, Limits::default()).value {
        Ok(value) => value.to_string(),
        Err(error) => error.message,
    }
}

/// Rules that hold, and rules that are refused or fail with a message.
fn check(properties: Json, object: Json, holds: &[&str], fails: &[(&str, &str)]) {
    let schema = Schema::new(&json!({"type": "object", "properties": properties}));
    let mut wrong = Vec::new();
    for rule in holds {
        let outcome = evaluate(&schema, &object, rule);
        if outcome != "true" {
            wrong.push(format!("{rule}: {outcome}"));
        }
    }
    for (rule, message) in fails {
        let outcome = evaluate(&schema, &object, rule);
        if !outcome.contains(message) {
            wrong.push(format!("{rule}: {outcome}\n    expected {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn strings_and_times() {
    check(
        json!({
            "s": {"type": "string"}, "b": {"type": "string", "format": "byte"},
            "d": {"type": "string", "format": "duration"}, "day": {"type": "string", "format": "date"},
            "t": {"type": "string", "format": "date-time"}, "text": {"type": "string"},
            "n": {"type": "number"}, "i": {"type": "integer"}
        }),
        json!({"s": "Rook takes 👑", "b": "QUI=", "d": "1h2m3s4ms", "day": "1997-07-16",
            "t": "2011-08-18T19:03:37.010000000+01:00", "text": "2011-08-18T19:03:37.01+01:00", "n": 10.49, "i": 10}),
        &[
            "size(self.s) == 12 && self.s.charAt(11) == '👑' && self.s.endsWith('👑')",
            "self.s.substring(5) == 'takes 👑' && self.s.split(' ', 2) == ['Rook', 'takes 👑']",
            "self.s.replace(' ', 'x', 1) == 'Rookxtakes 👑' && self.s.upperAscii() == 'ROOK TAKES 👑'",
            "self.b == b'AB' && self.b == bytes('AB') && size(self.b) == 2",
            "self.d == duration('1h2m') + duration('3s4ms') && self.d.getMinutes() == 62",
            "self.d.getMilliseconds() == 3723004 && string(self.d) == '3723.004s'",
            "self.day == timestamp('1997-07-16T00:00:00.000Z') && self.day.getMonth() == 06",
            "self.t == timestamp('2011-08-18T00:00:00.000+01:00') + duration('19h3m37s10ms')",
            "self.t.getHours('01:00') == 19 && self.t.getMilliseconds('01:00') == 10 && self.t.getHours('UTC') == 18",
            // A timestamp is shown with the offset that it was written with, and read in UTC.
            "string(self.t) == self.text && timestamp(self.text) == self.t && self.t.getHours() == 18",
            "string(timestamp('2020-01-01T00:00:00-08:30') + duration('1s')) == '2020-01-01T00:00:01-08:30'",
            "string(timestamp('9999-12-31T23:59:59.5Z')) == '9999-12-31T23:59:59.5Z'",
            "string(self.n) == '10.49' && int(self.n) == self.i && double(self.i) < self.n",
        ],
        &[
            ("self.s.matches(')')", "invalid matches argument"),
            ("self.s.find(')') == ''", "error parsing regexp: unexpected ): `)`"),
            ("self.s.findAll(')', 1) == []", "error parsing regexp: unexpected ): `)`"),
        ],
    );
}

#[test]
fn lists_of_every_type() {
    let of = json!({"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string"}}});
    let keyed = json!({"type": "array", "items": of, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]});
    let odd = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k!", "k."],
        "items": {"type": "object", "properties": {"k!": {"type": "string"}, "k.": {"type": "string"}}}});
    let set = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"});
    check(
        json!({
            "a": set, "b": set, "maps": {"type": "array", "items": keyed}, "odd": {"type": "array", "items": odd},
            "plain": {"type": "array", "items": {"type": "integer"}},
            "null": {"type": "array", "items": {"type": "string", "nullable": true}}
        }),
        json!({
            "a": ["a", "b", "c"], "b": ["a", "c", "b"],
            "maps": [
                [{"k": "a", "v": "1"}, {"k": "b", "v": "2"}], [{"k": "b", "v": "2"}, {"k": "a", "v": "1"}],
                [{"k": "b", "v": "3"}, {"k": "a", "v": "1"}], [{"k": "c", "v": "4"}]
            ],
            "odd": [
                [{"k!": "a", "k.": "1"}, {"k!": "b", "k.": "2"}], [{"k!": "b", "k.": "2"}, {"k!": "a", "k.": "1"}],
                [{"k!": "b", "k.": "2"}, {"k!": "c", "k.": "1"}], [{"k!": "b", "k.": "2"}, {"k!": "a", "k.": "3"}]
            ],
            "plain": [1, 1, 2, 2, 3, 3, 4, 5], "null": [null, "x"]
        }),
        &[
            "self.a == ['c', 'b', 'a'] && self.a == self.b && 'a' in self.a && !('x' in self.a)",
            "self.a + self.b == ['a', 'b', 'c'] && self.a + ['c', 'd'] == ['a', 'b', 'c', 'd']",
            "self.maps[0] == self.maps[1] && self.maps[0] != self.maps[2]",
            "self.maps[0] + self.maps[2] == self.maps[2] && self.maps[2] + self.maps[0] == self.maps[0]",
            "self.maps[0] == [self.maps[0][1], self.maps[0][0]]",
            "self.maps[2] + [self.maps[0][0], self.maps[0][1]] == self.maps[0]",
            "size(self.maps[0] + [self.maps[3][0]]) == 3",
            "self.odd[0] == self.odd[1] && self.odd[0] != self.odd[2] && self.odd[0] != self.odd[3]",
            "self.odd[0][0].k__dot__ == '1'",
            "size(self.plain.filter(e, e % 2 == 0)) == 3 && !self.plain.exists_one(e, e == 2)",
            "self.plain.map(e, e * 20).filter(e, e > 50).exists(e, e == 60)",
            "type(self.__null__[0]) == null_type && self.__null__.size() == 2",
            "self.maps[0].exists(m, m.k == 'a' && m.v == '1') && self.maps[0].indexOf(self.maps[1][0]) == 1",
        ],
        &[
            ("self.maps[0] == {'k': 'a', 'v': '1'}", "no matching overload for '_==_'"),
            ("self.maps[0][0] == {'k': 'a', 'v': '1'}", "no matching overload for '_==_'"),
            ("self.odd[0][0].k! == '1'", "Syntax error: mismatched input '!' expecting <EOF>"),
            ("self.plain[100] == 0", "index out of bounds: 100"),
            ("['a', 'b'].sum() == 'c'", "found no matching overload for 'sum' applied to 'list(string).()"),
            (
                "[[1], [2]].min() == [1]",
                "found no matching overload for 'min' applied to 'list(list(int)).()",
            ),
        ],
    );
}

#[test]
fn objects_maps_and_absence() {
    let number = json!({"type": "integer"});
    let open = json!({"x-kubernetes-preserve-unknown-fields": true});
    let unknown = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"known": number}});
    check(
        json!({
            "a": {"type": "object", "properties": {"b": number, "c": number, "d": {"type": "integer", "nullable": true}}},
            "deep": {"type": "object", "properties": {
                "b1": {"type": "object", "properties": {"c1": number}},
                "d2": {"type": "object", "properties": {"e2": number}}
            }},
            "map": {"type": "object", "additionalProperties": number},
            "u": {"type": "array", "items": unknown}, "any": open, "anys": {"type": "array", "items": open},
            "ios": {"x-kubernetes-int-or-string": true, "nullable": true}, "s": {"type": "string", "nullable": true},
            "bad": {"type": "object", "properties": {"x": number}}, "list": {"type": "array", "items": number}
        }),
        json!({
            "a": {"b": 1, "d": null}, "deep": {"b1": {"c1": 4}}, "map": {"b": 1, "d": 2, "@": 3, "👑": 4},
            "u": [{"known": 1, "unknown": "a"}, {"known": 1, "unknown": "b"}, {"known": 1, "unknown": "b"},
                  {"known": 1}, {"known": 1}, {"known": 2}],
            "any": 1, "anys": [1], "ios": null, "bad": [], "list": {}
        }),
        &[
            "has(self.a.b) && !has(self.a.c) && !has(self.a.d) && has(self.deep.b1.c1) && !has(self.deep.d2)",
            "!(has(self.deep.d2) && has(self.deep.d2.e2))",
            "!('a' in self.map) && 'b' in self.map && !has(self.map.a) && has(self.map.b)",
            "self.map.exists_one(k, self.map[k] == 2) && self.map.map(k, self.map[k]).exists(v, v == 1)",
            "self.map['@'] == 3 && self.map['👑'] == 4",
            "self.u[0] != self.u[1] && self.u[1] == self.u[2] && self.u[0] != self.u[3] && self.u[3] == self.u[4]",
            "self.u[4] != self.u[5] && self.u[0].known == 1",
            "!has(self.ios) && !has(self.s)",
            "type(self) == type(self) && type(self.a) == type(self.deep)",
        ],
        &[
            ("has(self.a.z)", "undefined field 'z'"),
            ("self.a['b'] == 1", "no matching overload for '_[_]'"),
            ("has(self.deep.d2.e2)", "no such key: d2"),
            ("self.map['c'] == 1", "no such key: c"),
            ("has(self.u[0].unknown)", "undefined field 'unknown'"),
            ("has(self.any)", "undefined field 'any'"),
            ("has(self.anys)", "undefined field 'anys'"),
            ("type(self.ios) == int", "no such key"),
            ("self.s == null", "no matching overload for '_==_' applied to '(string, null)"),
            ("has(self.bad)", "invalid data, expected a map for the provided schema with type=object"),
            ("has(self.list)", "invalid data, expected an array for the provided schema with type=array"),
            (
                "string(type(self.a)).endsWith('a')",
                "found no matching overload for 'string' applied to '(type",
            ),
            ("self == 201", "found no matching overload for '_==_' applied to '(selfType, int)'"),
        ],
    );
}

#[test]
fn int_or_string() {
    let either = json!({"x-kubernetes-int-or-string": true});
    check(
        json!({"s": either, "i": either, "current": {"type": "integer"}}),
        json!({"s": "50%", "i": 1, "current": 5}),
        &[
            "self.s == '50%' && self.s != 1 && (self.s == 1 || self.s == '50%')",
            "type(self.s) == string && self.s.matches(r'(\\d+(\\.\\d+)?%)')",
            "type(self.i) == int ? self.i == 1 : self.i == '25%'",
            "self.s != ['anything'] && self.i != 'some string'",
            "type(self.s) == int ? self.current <= self.s : double(self.current) / 10.0 >= double(self.s.replace('%', '')) / 100.0",
        ],
        &[],
    );
}

#[test]
fn every_word_can_be_a_property() {
    let words = [
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
    let plain = [
        "int",
        "uint",
        "double",
        "bool",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "self",
        "getDate",
        "all",
        "size",
        "_true",
        "underscore_underscore",
    ];
    let odd = [
        ("dot.dot", "dot__dot__dot"),
        ("dash-dash", "dash__dash__dash"),
        ("slash/slash", "slash__slash__slash"),
        ("double__double", "double__underscores__double"),
    ];
    let names = || words.iter().chain(&plain).copied().chain(odd.iter().map(|(name, _)| *name));
    let properties: serde_json::Map<_, _> =
        names().map(|name| (name.to_owned(), json!({"type": "integer"}))).collect();
    let object: serde_json::Map<_, _> =
        names().enumerate().map(|(n, name)| (name.to_owned(), json!(n))).collect();
    let shown = words
        .iter()
        .map(|word| format!("__{word}__"))
        .chain(plain.iter().map(|name| (*name).to_owned()))
        .chain(odd.iter().map(|(_, shown)| (*shown).to_owned()));
    let rules: Vec<String> = shown.enumerate().map(|(n, name)| format!("self.{name} == {n}")).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    check(
        properties.into(),
        object.into(),
        &rules,
        &[
            ("self.true == 1", "Syntax error: no viable alternative at input '.true'"),
            ("self.__illegal__ == 301", "undefined field '__illegal__'"),
        ],
    );
}
