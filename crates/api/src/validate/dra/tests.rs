use super::*;
use serde_json::json;

fn paths(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|error| format!("{} {}", error.path, error.kind.reason())).collect()
}

fn create(kind: &str, spec: Value) -> Vec<String> {
    let mut object = json!({ "spec": spec });
    let strategy = strategy(kind);
    (strategy.prepare_create)(&mut object);
    paths(&(strategy.validate_create)(&object))
}

fn update(kind: &str, new: Value, old: Value) -> Vec<String> {
    let (mut new, old) = (json!({ "spec": new }), json!({ "spec": old }));
    let strategy = strategy(kind);
    (strategy.prepare_update)(&mut new, &old);
    paths(&(strategy.validate_update)(&new, &old))
}

fn many(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

fn claim_of(devices: Value) -> Value {
    json!({ "devices": devices })
}

#[test]
fn lists_and_texts_are_bounded() {
    let request = |i: usize, of: Value| json!({"name": format!("r{i}"), "exactly": of});
    let exactly = json!({"deviceClassName": "a", "allocationMode": "All"});
    let requests = |count: usize| claim_of(json!({"requests": many(count, |i| request(i, exactly.clone()))}));
    let one = |field: &str, list: Value| {
        let mut exactly = exactly.clone();
        exactly[field] = list;
        claim_of(json!({"requests": [request(0, exactly)]}))
    };
    let sub = |i: usize| json!({"name": format!("s{i}"), "deviceClassName": "a", "allocationMode": "All"});
    let choice =
        |count: usize| claim_of(json!({"requests": [{"name": "a", "firstAvailable": many(count, sub)}]}));
    let selector = |text: &str| json!({"cel": {"expression": text}});
    let selectors = |count: usize| one("selectors", many(count, |_| selector("true")));
    let expression = |bytes: usize| one("selectors", json!([selector(&format!("{:1$}", "true", bytes))]));
    let tolerations = |count: usize| one("tolerations", many(count, |_| json!({"operator": "Exists"})));
    let constraints =
        |count: usize| claim_of(json!({"constraints": many(count, |_| json!({"matchAttribute": "a.io/b"}))}));
    let raw = |text: &str| json!({"opaque": {"driver": "a.io", "parameters": {"a": text}}});
    let configs = |count: usize| claim_of(json!({"config": many(count, |_| raw(""))}));
    let parameters =
        |bytes: usize| claim_of(json!({"config": [raw(&"x".repeat(bytes - r#"{"a":""}"#.len()))]}));
    let first = "spec.devices.requests[0]";
    let exact = |field: &str| format!("{first}.exactly.{field}");
    for (max, path, make) in [
        (32, "spec.devices.requests FieldValueTooMany".into(), &requests as &dyn Fn(usize) -> Value),
        (8, format!("{first}.firstAvailable FieldValueTooMany"), &choice),
        (32, exact("selectors FieldValueTooMany"), &selectors),
        (10 * 1024, exact("selectors[0].cel.expression FieldValueTooLong"), &expression),
        (16, exact("tolerations FieldValueTooMany"), &tolerations),
        (32, "spec.devices.constraints FieldValueTooMany".into(), &constraints),
        (32, "spec.devices.config FieldValueTooMany".into(), &configs),
        (10 * 1024, "spec.devices.config[0].opaque.parameters FieldValueTooLong".into(), &parameters),
    ] {
        assert_eq!(create("ResourceClaim", make(max)), Vec::<String>::new(), "{path}");
        assert_eq!(create("ResourceClaim", make(max + 1)), [path]);
    }
}

fn slice_of(devices: Value) -> Value {
    let pool = json!({"name": "a", "generation": 0, "resourceSliceCount": 1});
    json!({"driver": "a.io", "allNodes": true, "pool": pool, "devices": devices})
}

#[test]
fn slices_are_bounded() {
    let devices = |count: usize| slice_of(many(count, |i| json!({"name": format!("d{i}")})));
    let tainted = |count: usize| {
        let mut slice = devices(count);
        slice["devices"][0]["taints"] = json!([{"key": "a", "effect": "NoSchedule"}]);
        slice
    };
    let one = |field: &str, value: Value| {
        let mut slice = devices(1);
        slice["devices"][0][field] = value;
        slice
    };
    let attributes = |count: usize| {
        let all = (0..count).map(|i| (format!("a{i}"), json!({"int": i})));
        one("attributes", all.collect::<serde_json::Map<_, _>>().into())
    };
    let key = |bytes: usize| one("attributes", json!({"a".repeat(bytes): {"int": 1}}));
    let taints = |count: usize| one("taints", many(count, |_| json!({"key": "a", "effect": "None"})));
    let counters = |count: usize| -> Value {
        let all = (0..count).map(|i| (format!("c{i}"), json!({"value": "1"})));
        all.collect::<serde_json::Map<_, _>>().into()
    };
    let consumed = |count: usize| {
        let set = |i: usize| json!({"counterSet": format!("s{i}"), "counters": counters(32)});
        one("consumesCounters", many(count, set))
    };
    let shared = |sets: usize, count: usize| {
        let mut slice = devices(1);
        slice.as_object_mut().map(|slice| slice.remove("devices"));
        slice["sharedCounters"] =
            many(sets, |i| json!({"name": format!("s{i}"), "counters": counters(count)}));
        slice
    };
    let first = "spec.devices[0]";
    for (max, path, make) in [
        (128, "spec.devices FieldValueTooMany".to_owned(), &devices as &dyn Fn(usize) -> Value),
        (64, "spec.devices FieldValueTooMany".into(), &tainted),
        (32, format!("{first} FieldValueInvalid"), &attributes),
        (32, format!("{first}.attributes[{}] FieldValueTooLong", "a".repeat(33)), &key),
        (16, format!("{first}.taints FieldValueTooMany"), &taints),
        (2, format!("{first}.consumesCounters FieldValueTooMany"), &consumed),
        (8, "spec.sharedCounters FieldValueTooMany".into(), &|count| shared(count, 1)),
        (32, "spec.sharedCounters[0].counters FieldValueTooMany".into(), &|count| shared(1, count)),
    ] {
        assert_eq!(create("ResourceSlice", make(max)), Vec::<String>::new(), "{path}");
        assert_eq!(create("ResourceSlice", make(max + 1)), [path]);
    }
}

#[test]
fn what_was_stored_is_not_asked_for_new_rules() {
    let old = json!({"selectors": [{"cel": {"expression": "self"}}], "config": [{"opaque": {"driver": "a.io",
        "parameters": {"a": "x".repeat(RAW_BYTES_MAX)}}}]});
    let mut new = old.clone();
    new["extendedResourceName"] = "a.io/b".into();
    assert_eq!(update("DeviceClass", new.clone(), old.clone()), Vec::<String>::new());
    new["selectors"] = json!([old["selectors"][0], {"cel": {"expression": "true"}}]);
    new["config"][0]["opaque"]["driver"] = "b.io".into();
    assert_eq!(
        update("DeviceClass", new, old),
        [
            "spec.selectors[0].cel.expression FieldValueInvalid",
            "spec.config[0].opaque.parameters FieldValueTooLong"
        ]
    );
    let wrong = slice_of(json!([{"name": "a", "taints": [{"key": "a b", "effect": "Odd"}]}]));
    assert_eq!(update("ResourceSlice", wrong.clone(), wrong), Vec::<String>::new());
}

#[test]
fn fields_of_features_that_are_off_are_dropped_unless_they_were_there() {
    let device = json!({"name": "a", "attributes": {"b": {"int": 1, "ints": [2]}},
        "nodeAllocatableResourceMappings": {"cpu": {}}});
    let plain = json!({"name": "a", "attributes": {"b": {"int": 1}}});
    let object = |device: &Value| json!({"spec": slice_of(json!([device]))});
    let strategy = strategy("ResourceSlice");
    let mut new = object(&device);
    (strategy.prepare_create)(&mut new);
    assert_eq!(new, object(&plain));
    for (old, kept) in [(&plain, &plain), (&device, &device)] {
        let mut new = object(&device);
        (strategy.prepare_update)(&mut new, &object(old));
        assert_eq!(new, object(kept));
    }
}

#[test]
fn allocations_stay_and_claims_that_go_are_reserved_no_more() {
    let spec = claim_of(json!({"requests": [{"name": "a", "exactly": {"deviceClassName": "a"}}]}));
    let status = |device: &str, users: &[&str]| {
        let user = |uid: &&str| json!({"resource": "pods", "name": "a", "uid": uid});
        let result = json!({"request": "a", "driver": "a.io", "pool": "a", "device": device});
        json!({"metadata": {}, "spec": spec, "status": {"allocation": {"devices": {"results": [result]}},
            "reservedFor": users.iter().map(user).collect::<Vec<_>>()}})
    };
    let check = |new: &Value, old: &Value| paths(&(strategy("ResourceClaim").validate_status)(new, old));
    let old = status("a", &["1"]);
    assert_eq!(check(&status("a", &["1", "2"]), &old), Vec::<String>::new());
    assert_eq!(check(&status("b", &["1"]), &old), ["status.allocation FieldValueInvalid"]);
    let mut gone = status("a", &["1", "2"]);
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(check(&gone, &old), ["status.reservedFor FieldValueForbidden"]);
    assert_eq!(check(&gone, &status("a", &["1", "2", "3"])), Vec::<String>::new());
    let users: Vec<String> = (0..257).map(|uid| uid.to_string()).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    assert_eq!(check(&status("a", &users[1..]), &old), Vec::<String>::new());
    assert_eq!(check(&status("a", &users), &old), ["status.reservedFor FieldValueTooMany"]);
}
