//! What the language's specification says.

use crate::{all_fail, all_true};
use serde_json::json;

fn x() -> serde_json::Value {
    json!({
        "name": "web", "n": 3, "f": 1.5, "yes": true, "nothing": null,
        "list": [1, 2, 3], "words": ["a", "b"], "map": {"k": "v", "a.b": 1},
        "nested": {"deep": {"leaf": 7}}, "mixed": [1, "1", true, null, 2.0],
        "big": 9_223_372_036_854_775_807_i64,
    })
}

#[test]
fn literals_and_operators() {
    all_true(
        &x(),
        &[
            "1 + 2 * 3 == 7",
            "(1 + 2) * 3 == 9",
            "7 / 2 == 3 && -7 / 2 == -3 && -7 % 3 == -1",
            "7u / 2u == 3u && 7u % 4u == 3u",
            "0x10 == 16 && 0xFu == 15u && -0x10 == -16",
            "1.5e3 == 1500.0 && .5 == 0.5 && 1e-2 == 0.01",
            "1.0 / 0.0 > 1e300",
            "-9223372036854775808 < 0",
            "!false && !!true && - -1 == 1",
            "'a' + \"b\" == 'ab'",
            "b'ab' + b'\\x63' == b'abc'",
            "[1] + [2, 3] == [1, 2, 3]",
            "r'\\d' == '\\\\d' && '\\u00e9' == 'é' && '\\U0001f600' == '😀' && '\\101' == 'A'",
            "'''a\nb''' == 'a\\nb'",
            "\"it's\" == 'it\\'s'",
            "b'é' == b'\\xc3\\xa9'",
            "true ? 1 == 1 : false",
            "1 < 2 && 2 <= 2 && 'a' < 'b' && b'a' < b'b' && false < true",
            "{'a': 1, 'b': 2,}['b'] == 2",
            "{dyn(1): 'x', dyn(true): 'y'}[1] == 'x'",
            "1 in [1, 2] && !('z' in ['a']) && 'k' in {'k': 1}",
            "[1, 2, 3,][2] == 3",
            "1 + 1 // a comment\n == 2",
            "!(1 == 2) || false && true",
            "2 in x.list && 'web' in [x.name]",
        ],
    );
}

#[test]
fn numbers_of_different_types() {
    all_true(
        &x(),
        &[
            "1 < 1.5 && 2u > 1 && 1.0 <= 1u && 3 >= 2u",
            "dyn(1) == dyn(1.0) && dyn(1u) == dyn(1)",
            "dyn(9223372036854775807) < dyn(9223372036854775807u) || true",
            "9223372036854775807 < 9223372036854775808.0",
            "-1 < 0u",
            "x.n == 3 && x.n == 3.0 && x.f == 1.5",
            "dyn(1) != dyn('1') && dyn(null) != dyn(0)",
            "{1: 'a'}[dyn(1.0)] == 'a' && dyn(1u) in {1: 'a'}",
            "[1, 2][dyn(1.0)] == 2",
            "!(double('NaN') == double('NaN')) && double('NaN') != 1.0 && !(double('NaN') < 1.0)",
            "dyn([dyn(1), 2.0]) == dyn([dyn(1.0), 2])",
        ],
    );
}

#[test]
fn overflow_and_division() {
    all_fail(
        &x(),
        &[
            ("x.big + 1 == 0", "integer overflow"),
            ("-9223372036854775808 - 1 == 0", "integer overflow"),
            ("x.big * 2 == 0", "integer overflow"),
            ("-(-9223372036854775808) == 0", "integer overflow"),
            ("18446744073709551615u + 1u == 0u", "unsigned integer overflow"),
            ("0u - 1u == 0u", "unsigned integer overflow"),
            ("1 / 0 == 1", "division by zero"),
            ("1u / 0u == 1u", "division by zero"),
            ("1 % 0 == 1", "modulus by zero"),
            ("int(1e300) == 0", "integer overflow"),
            ("uint(-1) == 0u", "unsigned integer overflow"),
            ("int(18446744073709551615u) == 0", "integer overflow"),
            ("duration('2562047h') + duration('2562047h') == duration('1s')", "duration overflow"),
            ("timestamp('9999-12-31T23:59:59Z') + duration('1s') == timestamp(0)", "timestamp overflow"),
        ],
    );
}

#[test]
fn errors_that_do_not_matter_are_absorbed() {
    all_true(
        &x(),
        &[
            "true || 1 / 0 == 1",
            "1 / 0 == 1 || true",
            "!(false && 1 / 0 == 1)",
            "!(1 / 0 == 1 && false)",
            "true ? true : 1 / 0 == 1",
            "[1, 0].exists(i, 1 / i == 1)",
            "[0, 1].exists(i, 1 / i == 1)",
            "![0, 2].all(i, 1 / i == 1)",
            "x.missing == 1 || true",
        ],
    );
    all_fail(
        &x(),
        &[
            ("1 / 0 == 1 || false", "division by zero"),
            ("1 / 0 == 1 && true", "division by zero"),
            ("(1 / 0 == 1) ? true : true", "division by zero"),
            ("[0, 2].exists(i, 1 / i == 1)", "division by zero"),
            ("[0, 1].exists_one(i, 1 / i == 1)", "division by zero"),
            ("x.missing == 1", "no such key: missing"),
            ("x.list[3] == 1", "index out of bounds: 3"),
            ("x.list[-1] == 1", "index out of bounds: -1"),
            ("x.map['nope'] == 'v'", "no such key: nope"),
            ("x.name.first == 1", "no such overload"),
            ("x.name + 1 == 1", "no such overload: _+_(string, int)"),
            ("x.name && true", "no such overload"),
        ],
    );
}

#[test]
fn has_and_macros() {
    all_true(
        &x(),
        &[
            "has(x.name) && !has(x.missing) && has(x.nested.deep.leaf) && !has(x.nested.none)",
            "has(x.nothing)",
            "[1, 2, 3].all(i, i > 0) && ![1, 2].all(i, i > 1)",
            "[1, 2, 3].exists(i, i == 2) && ![1].exists(i, i == 2)",
            "[1, 2, 2].exists_one(i, i == 1) && ![1, 2, 2].exists_one(i, i == 2)",
            "[1, 2].existsOne(i, i == 1)",
            "[1, 2, 3].map(i, i * 2) == [2, 4, 6]",
            "[1, 2, 3].map(i, i > 1, i * 2) == [4, 6]",
            "[1, 2, 3].filter(i, i != 2) == [1, 3]",
            "{'a': 1, 'b': 2}.all(k, k in ['a', 'b'])",
            "{'a': 1, 'b': 2}.map(k, k + '!') == ['a!', 'b!']",
            "x.words.map(w, x.list.map(i, w + string(i))) == [['a1', 'a2', 'a3'], ['b1', 'b2', 'b3']]",
            "[].all(i, false) && ![].exists(i, true)",
            "x.map.exists(k, k == 'a.b')",
            "[[1], [2]].all(l, l.all(i, i > 0))",
            "[1, 2].map(i, [i, i]) == [[1, 1], [2, 2]]",
        ],
    );
}

#[test]
fn comprehensions_of_two_variables() {
    all_true(
        &x(),
        &[
            "[1, 2, 3].all(i, v, v == i + 1)",
            "{'a': 1, 'b': 2}.exists(k, v, k == 'b' && v == 2)",
            "[5, 6].existsOne(i, v, i == 1 && v == 6)",
            "[5, 6].exists_one(i, v, v > 5)",
            "[1, 2, 3].transformList(i, v, i * v) == [0, 2, 6]",
            "[1, 2, 3].transformList(i, v, i > 0, i * v) == [2, 6]",
            "{'a': 1, 'b': 2}.transformList(k, v, k + string(v)) == ['a1', 'b2']",
            "{'a': 1, 'b': 2}.transformMap(k, v, v + 1) == {'a': 2, 'b': 3}",
            "{'a': 1, 'b': 2}.transformMap(k, v, k == 'a', v + 1) == {'a': 2}",
            "['x', 'y'].transformMap(i, v, v) == {0: 'x', 1: 'y'}",
            "{'a': 'b'}.transformMapEntry(k, v, {v: k}) == {'b': 'a'}",
        ],
    );
    all_fail(
        &x(),
        &[("['a', 'a'].transformMapEntry(i, v, {v: i}) == {}", "insert failed: key a already exists")],
    );
}

#[test]
fn bindings() {
    all_true(
        &x(),
        &[
            "cel.bind(a, 1 + 1, a * a == 4)",
            "cel.bind(a, [1, 2], cel.bind(b, a + a, b.size() == 4))",
            "cel.bind(unused, 1 / 0, true)",
        ],
    );
    all_fail(&x(), &[("cel.bind(a, 1 / 0, a == 1)", "division by zero")]);
}

#[test]
fn optional_values() {
    all_true(
        &x(),
        &[
            "optional.of(1).hasValue() && !optional.none().hasValue()",
            "optional.of(1).value() == 1 && optional.none().orValue(2) == 2",
            "optional.none().or(optional.of(3)).value() == 3",
            "optional.ofNonZeroValue('').orValue('x') == 'x' && optional.ofNonZeroValue(5).value() == 5",
            "x.?name.orValue('none') == 'web' && x.?missing.orValue('none') == 'none'",
            "x.?missing.deeper.orValue(1) == 1 && x.?nested.deep.leaf.value() == 7",
            "x.nested.?deep.?leaf.value() == 7 && !x.?nested.?nope.?leaf.hasValue()",
            "x.map[?'k'].value() == 'v' && !x.map[?'z'].hasValue()",
            "x.list[?0].value() == 1 && !x.list[?9].hasValue()",
            "[?x.?name, ?x.?missing, 'z'] == ['web', 'z']",
            "{?'a': x.?name, ?'b': x.?missing} == {'a': 'web'}",
            "optional.of(2).optMap(v, v * 2).value() == 4",
            "!optional.none().optMap(v, v).hasValue()",
            "optional.of({'a': 1}).optFlatMap(m, m.?a).value() == 1",
            "optional.of(1) == optional.of(1) && optional.of(1) != optional.none()",
            "has(x.?nested.deep) && !has(x.?missing.deep)",
            "x.?missing.orValue([]).all(i, false)",
        ],
    );
    all_fail(&x(), &[("optional.none().value() == 1", "optional.none() dereference")]);
}

#[test]
fn conversions() {
    all_true(
        &x(),
        &[
            "int('42') == 42 && int(3.9) == 3 && int(-3.9) == -3 && int(5u) == 5",
            "uint('42') == 42u && uint(3.9) == 3u",
            "double('1.5') == 1.5 && double(2) == 2.0",
            "string(1) == '1' && string(1u) == '1' && string(true) == 'true' && string(b'ab') == 'ab'",
            "string(1.5) == '1.5' && string(1000000.0) == '1e+06' && string(0.0001) == '0.0001'",
            "string(0.00001) == '1e-05' && string(123456.0) == '123456' && string(2.0) == '2'",
            "bytes('é') == b'\\xc3\\xa9'",
            "bool('true') && !bool('f')",
            "type(1) == int && type('') == string && type(null) == null_type && type([]) == list",
            "type({}) == map && type(1u) == uint && type(1.0) == double && type(b'') == bytes",
            "type(type(1)) == type && type(timestamp(0)) == google.protobuf.Timestamp",
            "type(x.n) == int && type(x.f) == double",
            "dyn(1) + 1 == 2",
            "string(duration('90m')) == '5400s' && string(duration('1.5s')) == '1.5s'",
            "string(timestamp('2023-01-02T03:04:05.5Z')) == '2023-01-02T03:04:05.5Z'",
            "int(timestamp('1970-01-01T00:01:00Z')) == 60 && timestamp(60) == timestamp('1970-01-01T00:01:00Z')",
            "int('-5') == -5",
        ],
    );
    all_fail(
        &x(),
        &[
            ("int('x') == 1", "type conversion error from 'string' to 'int'"),
            ("bool('x')", "type conversion error from 'string' to 'bool'"),
            ("double('') == 1.0", "type conversion error from 'string' to 'double'"),
            ("string(b'\\xff') == ''", "invalid UTF-8 in bytes, cannot convert to string"),
            (
                "duration(x.name) == duration('1s')",
                "type conversion error from 'string' to 'google.protobuf.Duration'",
            ),
        ],
    );
}

#[test]
fn time() {
    all_true(
        &x(),
        &[
            "duration('1h30m') == duration('90m') && duration('-1.5h') == duration('-90m')",
            "duration('1h').getMinutes() == 60 && duration('90s').getSeconds() == 90",
            "duration('1500ms').getMilliseconds() == 1500 && duration('25h').getHours() == 25",
            "timestamp('2024-02-29T12:30:15.250Z').getFullYear() == 2024",
            "timestamp('2024-02-29T12:30:15.250Z').getMonth() == 1",
            "timestamp('2024-02-29T12:30:15.250Z').getDate() == 29",
            "timestamp('2024-02-29T12:30:15.250Z').getDayOfMonth() == 28",
            "timestamp('2024-02-29T12:30:15.250Z').getDayOfYear() == 59",
            "timestamp('2024-02-29T12:30:15.250Z').getDayOfWeek() == 4",
            "timestamp('2024-02-29T12:30:15.250Z').getHours() == 12",
            "timestamp('2024-02-29T12:30:15.250Z').getMinutes() == 30",
            "timestamp('2024-02-29T12:30:15.250Z').getSeconds() == 15",
            "timestamp('2024-02-29T12:30:15.250Z').getMilliseconds() == 250",
            "timestamp('2024-02-29T23:30:00Z').getHours('+02:00') == 1",
            "timestamp('2024-02-29T23:30:00Z').getDate('America/New_York') == 29",
            "timestamp('2024-07-01T12:00:00Z').getHours('Europe/Berlin') == 14",
            "timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')",
            "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
            "timestamp('2024-01-01T01:00:00+01:00') == timestamp('2024-01-01T00:00:00Z')",
            "timestamp('2024-01-01T00:00:00Z') < timestamp('2024-01-01T00:00:01Z')",
        ],
    );
}
