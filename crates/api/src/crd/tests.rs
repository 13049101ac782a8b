use super::*;

fn definition() -> Value {
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "selectableFields": [{"jsonPath": ".spec.color"}],
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "color": {"type": "string", "default": "red"}, "n": {"type": "integer", "nullable": true, "default": 1},
                    "deep": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string", "default": "y"}}}}}}}}}},
                {"name": "v2", "served": false, "storage": false, "deprecated": true,
                 "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    default(&mut definition);
    prepare_create(&mut definition);
    definition
}

#[test]
fn a_definition_becomes_rows() {
    let definition = definition();
    assert_eq!(definition["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
    let rows = rows(&definition, &definition["spec"]["names"]).unwrap();
    let [one, two] = rows.as_slice() else { panic!() };
    let names: Vec<&str> = one.subresources.iter().map(|sub| sub.name).collect();
    assert_eq!(names, ["scale", "status"]);
    assert_eq!(
        (&*one.singular, one.short_names.as_slice(), one.namespaced),
        ("widget", &["wd".to_owned()][..], true)
    );
    assert_eq!(one.selectable_keys(), ["spec.color"]);
    assert_eq!(one.selectable(&json!({"spec": {"color": "blue"}})), [("spec.color", "blue".to_owned())]);
    assert!(one.is_served() && !two.is_served());
    assert_eq!(two.deprecated(), Some("example.com/v2 Widget is deprecated"));
    assert_eq!(one.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["Name", "Age"]);
}

#[test]
fn defaults_fill_what_is_missing_or_null() {
    let definition = definition();
    let rows = rows(&definition, &definition["spec"]["names"]).unwrap();
    let mut object = json!({"spec": {"color": null, "n": null, "deep": [{}, {"x": "z"}], "more": 1}});
    let checked = crate::decode::check(&rows[0].schema, &mut object).unwrap();
    assert_eq!(checked.unknown, ["unknown field \"spec.more\""]);
    rows[0].default(&mut object);
    assert_eq!(object, json!({"spec": {"color": "red", "n": null, "deep": [{"x": "y"}, {"x": "z"}]}}));
    let mut none = json!({});
    rows[0].default(&mut none);
    assert_eq!(none, json!({}));
}

#[test]
fn scales_read_numbers_and_texts() {
    let mut definition = definition();
    definition["spec"]["versions"][0]["subresources"]["scale"]["labelSelectorPath"] =
        ".status.selector".into();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let row = rows(&definition, &definition["spec"]["names"]).unwrap().remove(0);
    let told = |object: Value| {
        let mut errors = Vec::new();
        row.check(&object, None, &mut errors);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(told(json!({"spec": {"n": 3}, "status": {"n": 0, "selector": "a=b"}})), [""; 0]);
    assert_eq!(
        told(json!({"spec": {"n": -1}, "status": {"n": "x", "selector": 1}})),
        [
            ".spec.n: Invalid value: -1: should be a non-negative integer",
            ".status.n: Invalid value: 0: .status.n accessor error: x is of the type string, expected int64",
            ".status.selector: Invalid value: \"\": .status.selector accessor error: 1 is of the type int64, expected string"
        ]
    );
    assert_eq!(
        told(json!({"spec": {"n": 3_000_000_000_u32}})),
        [".spec.n: Invalid value: 3000000000: should be less than or equal to 2147483647"]
    );
}

#[test]
fn new_finalizers_without_a_domain_are_told() {
    let definition = definition();
    let row = rows(&definition, &definition["spec"]["names"]).unwrap().remove(0);
    let with = |finalizers: &[&str]| json!({"metadata": {"finalizers": finalizers}});
    let new = with(&["a", "example.com/b", "orphan", "example.com"]);
    let told = row.check(&new, Some(&with(&["a"])), &mut Vec::new());
    let why = "prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers";
    assert_eq!(told, [format!("metadata.finalizers: \"example.com\": {why}")]);
}

proptest::proptest! {
    #[test]
    fn no_schema_and_no_object_panics(schema in crate::decode::tests::any_json(), object in crate::decode::tests::any_json()) {
        let mut odd = definition();
        odd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = schema.clone();
        odd["spec"]["versions"][1] = schema;
        default(&mut odd);
        prepare_create(&mut odd);
        let strategy = crate::validate::strategy_for(GROUP, "v1", "CustomResourceDefinition");
        (strategy.validate)(&odd);
        (strategy.warnings)(&odd, None);
        for row in rows(&odd, &odd["spec"]["names"]).unwrap_or_default() {
            let mut object = json!({"spec": object.clone()});
            let _ = crate::decode::check(&row.schema, &mut object);
            row.default(&mut object);
            let mut again = object.clone();
            row.default(&mut again);
            proptest::prop_assert_eq!(&again, &object);
            row.check(&object, None, &mut Vec::new());
            row.selectable(&object);
            crate::columns::cells(&row, &object, jiff::Timestamp::UNIX_EPOCH);
        }
    }
}
