use super::*;

fn fault(compiler: &Compiler, text: &str, gives: Gives, extra: Extra) -> String {
    compiler.compile(text, gives, extra).program.map_or_else(|fault| fault.message, |_| String::new())
}

#[test]
fn results_have_the_type_that_is_asked_for() {
    let compiler = Compiler::default();
    for (text, gives, extra, told) in [
        ("object.a == 1", BOOL, Extra::Asks, ""),
        ("object.a", BOOL, Extra::Asks, "must evaluate to bool but got dyn"),
        ("1", TEXT, Extra::Nothing, "must evaluate to string but got int"),
        ("null", TEXT_OR_NULL, Extra::Asks, ""),
        ("1", TEXT_OR_NULL, Extra::Asks, "must evaluate to one of [string null_type] but got int"),
        ("Object{metadata: Object.metadata{}}", OBJECT, Extra::Mutates, ""),
        ("[JSONPatch{op: 'test', path: '/a', value: 1}]", PATCH, Extra::Mutates, ""),
        ("{'a': 1}", OBJECT, Extra::Mutates, "must evaluate to Object but got map(string, int)"),
    ] {
        assert_eq!(fault(&compiler, text, gives, extra), told, "{text}");
    }
}

#[test]
fn expressions_know_what_they_may_speak_of() {
    let plain = Compiler::default();
    let undeclared = |what: &str| format!("undeclared reference to '{what}' (in container '')");
    for (text, extra, what) in [
        ("params.a == 1", Extra::Asks, "params"),
        ("variables.a == 1", Extra::Asks, "variables"),
        ("authorizer.path('/').check('get').allowed()", Extra::Nothing, "authorizer"),
        ("Object{} == Object{}", Extra::Asks, "Object"),
    ] {
        let told = fault(&plain, text, Gives::Anything, extra);
        assert!(told.starts_with("compilation failed: ERROR: <input>:1:"), "{told}");
        assert!(told.contains(&undeclared(what)), "{told}");
    }
    for (text, told) in [
        ("request.userInfo.nope == ''", "undefined field 'nope'"),
        ("namespaceObject.metadata.managedFields == []", "undefined field 'managedFields'"),
        ("request.operation == 1", "found no matching overload"),
    ] {
        let found = fault(&plain, text, BOOL, Extra::Asks);
        assert!(found.contains(told), "{found}");
    }
    let mut policy = Compiler::with_variables(true);
    assert!(policy.variable("a", "object.spec.replicas + 1").expression.program.is_ok());
    assert!(policy.variable("b", "['x', params.x]").expression.program.is_ok());
    assert_eq!(fault(&policy, "variables.a == 1 && variables.b[0] == params.x", BOOL, Extra::Asks), "");
    assert!(fault(&policy, "variables.c == 1", BOOL, Extra::Asks).contains("undefined field 'c'"));
    assert!(
        fault(&policy.without_variables(), "variables.a == 1", BOOL, Extra::Asks)
            .contains(&undeclared("variables"))
    );
}
