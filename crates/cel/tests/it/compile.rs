//! Expressions that are refused, in cel-go's words.

use skeg_cel::{Env, Type};

fn env() -> Env {
    let spec = Type::object(
        "selfType.spec",
        [
            ("replicas".into(), Type::Int),
            ("name".into(), Type::String),
            ("tags".into(), Type::list(Type::String)),
        ],
    );
    let object = Type::object(
        "selfType",
        [("spec".into(), spec), ("labels".into(), Type::map(Type::String, Type::String))],
    );
    Env::new().with("self", object).with("x", Type::Dyn)
}

fn refused(text: &str) -> String {
    match env().compile(text) {
        Ok(program) => format!("compiles as {}", program.value_type()),
        Err(issues) => issues.to_string(),
    }
}

#[test]
fn faults_are_told_with_their_places() {
    for (text, expected) in [
        ("y", "ERROR: <input>:1:1: undeclared reference to 'y' (in container '')\n | y\n | ^"),
        (
            "self.spec.nope == 1",
            "ERROR: <input>:1:10: undefined field 'nope'\n | self.spec.nope == 1\n | .........^",
        ),
        (
            "self.spec.replicas == 'a'",
            "ERROR: <input>:1:20: found no matching overload for '_==_' applied to '(int, string)'\n \
             | self.spec.replicas == 'a'\n | ...................^",
        ),
        (
            "self.spec.name + 1",
            "ERROR: <input>:1:16: found no matching overload for '_+_' applied to '(string, int)'\n \
             | self.spec.name + 1\n | ...............^",
        ),
        (
            "self.spec.name.startsWith(1)",
            "ERROR: <input>:1:26: found no matching overload for 'startsWith' applied to 'string.(int)'\n \
             | self.spec.name.startsWith(1)\n | .........................^",
        ),
        (
            "self.spec.name.size",
            "ERROR: <input>:1:15: type 'string' does not support field selection\n | self.spec.name.size\n \
             | ..............^",
        ),
        (
            "nope(1)",
            "ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ....^",
        ),
        (
            "self.spec.nope()",
            "ERROR: <input>:1:15: undeclared reference to 'nope' (in container '')\n | self.spec.nope()\n \
             | ..............^",
        ),
        ("1 && true", "ERROR: <input>:1:1: expected type 'bool' but found 'int'\n | 1 && true\n | ^"),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        (
            "self.spec.replicas.all(i, true)",
            "ERROR: <input>:1:10: expression of type 'int' cannot be range of a comprehension (must be list, map, \
             or dynamic)\n | self.spec.replicas.all(i, true)\n | .........^",
        ),
        (
            "self.spec.tags.all(1, true)",
            "ERROR: <input>:1:20: argument must be a simple name\n | self.spec.tags.all(1, true)\n \
             | ...................^",
        ),
        ("has(self)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(self)\n | ....^"),
        (
            "'é' == 'ü' && y",
            "ERROR: <input>:1:15: undeclared reference to 'y' (in container '')\n | 'é' == 'ü' && y\n \
             | .．......．.....^",
        ),
        ("true &&\n\ty", "ERROR: <input>:2:2: undeclared reference to 'y' (in container '')\n |  y\n | .^"),
        (
            "y + z",
            "ERROR: <input>:1:1: undeclared reference to 'y' (in container '')\n | y + z\n | ^\n\
             ERROR: <input>:1:5: undeclared reference to 'z' (in container '')\n | y + z\n | ....^",
        ),
        ("if", "ERROR: <input>:1:1: reserved identifier: if\n | if\n | ^"),
        ("9223372036854775808", "ERROR: <input>:1:1: invalid int literal\n | 9223372036854775808\n | ^"),
        (
            "self.spec.name.matches('[')",
            "ERROR: <input>:1:24: invalid matches argument\n | self.spec.name.matches('[')\n \
             | .......................^",
        ),
        (
            "duration('1') == duration('1s')",
            "ERROR: <input>:1:10: invalid duration argument\n | duration('1') == duration('1s')\n | .........^",
        ),
        (
            "timestamp('x') == timestamp(0)",
            "ERROR: <input>:1:11: invalid timestamp argument\n | timestamp('x') == timestamp(0)\n | ..........^",
        ),
        (
            "1 +",
            "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', \
             'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 +\n | ...^",
        ),
        ("1 2", "ERROR: <input>:1:3: Syntax error: extraneous input '2' expecting <EOF>\n | 1 2\n | ..^"),
        (
            "Object{}",
            "ERROR: <input>:1:7: undeclared reference to 'Object' (in container '')\n | Object{}\n | ......^",
        ),
        (
            "cel.bind(a, 1, a)",
            "ERROR: <input>:1:1: undeclared reference to 'cel' (in container '')\n \
          | cel.bind(a, 1, a)\n | ^\n\
          ERROR: <input>:1:9: undeclared reference to 'bind' (in container '')\n | cel.bind(a, 1, a)\n | ........^\n\
          ERROR: <input>:1:10: undeclared reference to 'a' (in container '')\n | cel.bind(a, 1, a)\n | .........^\n\
          ERROR: <input>:1:16: undeclared reference to 'a' (in container '')\n | cel.bind(a, 1, a)\n \
          | ...............^",
        ),
    ] {
        assert_eq!(refused(text), expected, "{text}");
    }
}

#[test]
fn types_of_expressions() {
    for (text, expected) in [
        ("self.spec.replicas + 1", "int"),
        ("self.spec.tags", "list(string)"),
        ("self.spec.tags.map(t, size(t))", "list(int)"),
        ("self.labels", "map(string, string)"),
        ("self.labels['a']", "string"),
        ("self.labels.a", "string"),
        ("self.labels[?'a']", "optional_type(string)"),
        ("self.?spec.replicas", "optional_type(int)"),
        ("self.?spec.replicas.orValue(1)", "int"),
        ("x.anything.at.all", "dyn"),
        ("x + 1", "int"),
        ("x + x", "dyn"),
        ("x == 'a'", "bool"),
        ("x ? 1 : 2", "int"),
        ("true ? x : 1", "dyn"),
        ("[]", "list(dyn)"),
        ("{}", "map(dyn, dyn)"),
        ("[] + [1]", "list(int)"),
        ("{'a': [1]}", "map(string, list(int))"),
        ("[1].transformMap(i, v, string(v))", "map(int, string)"),
        ("type(1)", "type(int)"),
        ("timestamp(0)", "timestamp"),
        ("null", "null"),
        ("self", "selfType"),
        ("ip('::1')", "net.IP"),
        ("format.named('uri')", "optional_type(kubernetes.NamedFormat)"),
        ("[1].sum()", "int"),
        ("self.spec.tags.max()", "string"),
        ("optional.none().orValue(1)", "int"),
        ("optional.of(1).optMap(v, string(v))", "optional_type(string)"),
    ] {
        match env().compile(text) {
            Ok(program) => assert_eq!(program.value_type().to_string(), expected, "{text}"),
            Err(issues) => panic!("{text}: {issues}"),
        }
    }
}

#[test]
fn names_that_a_rule_uses_are_known() {
    let env = env().with("oldSelf", Type::Dyn);
    assert!(env.compile("self.spec.replicas == oldSelf.spec.replicas").unwrap().names("oldSelf"));
    assert!(!env.compile("self.spec.name == 'oldSelf'").unwrap().names("oldSelf"));
}

#[test]
fn variables_may_have_names_with_dots() {
    let env = Env::new()
        .with("variables", Type::object("variables", [("a".into(), Type::Int)]))
        .with("variables.a", Type::Int);
    assert_eq!(env.compile("variables.a + 1").unwrap().value_type(), &Type::Int);
    assert!(env.compile("variables.a + 1").unwrap().names("variables.a"));
    let program = env.compile("[variables.a, 1].size() > 1").unwrap();
    assert_eq!((program.variables().collect::<Vec<_>>(), program.depth()), (vec!["variables.a"], 4));
    assert_eq!(
        env.compile("variables.b").unwrap_err().issues[0].message,
        "undefined field 'b'",
        "the object says what there is"
    );
    let variables = std::collections::BTreeMap::from([("variables.a", skeg_cel::Value::Int(1))]);
    for text in ["variables.a == 1", "has(variables.a)", "[1].all(i, i == variables.a)"] {
        let value = env.compile(text).unwrap().evaluate(&variables, skeg_cel::Limits::default()).value;
        assert!(matches!(value, Ok(skeg_cel::Value::Bool(true))), "{text}: {value:?}");
    }
}
