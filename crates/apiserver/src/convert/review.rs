//! What a conversion webhook is asked and what it answers: `apiextensions.k8s.io` ConversionReview.
//! Upstream counterpart: `apiextensions-apiserver/pkg/apiserver/conversion/webhook_converter.go`.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use skeg_api::crd::Conversion;
use skeg_api::field::{FieldError, Path};
use skeg_api::{decode, meta, names, object_meta};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    kind: &'static str,
    api_version: String,
    request: Request<'a>,
}

#[derive(Serialize)]
struct Request<'a> {
    uid: &'a str,
    #[serde(rename = "desiredAPIVersion")]
    desired: &'a str,
    objects: &'a [&'a Value],
}

fn api_version(conversion: &Conversion) -> String {
    format!("apiextensions.k8s.io/{}", conversion.review)
}

/// The review of objects that are to be of the version `desired`.
pub fn review(conversion: &Conversion, uid: &str, desired: &str, objects: &[&Value]) -> Bytes {
    let request = Request { uid, desired, objects };
    let review = Review { kind: "ConversionReview", api_version: api_version(conversion), request };
    serde_json::to_vec(&review).unwrap_or_default().into()
}

/// The objects of an answer.
///
/// # Errors
/// Why there are none, in upstream's words.
pub fn objects(conversion: &Conversion, uid: &str, answer: &[u8]) -> Result<Vec<Value>, String> {
    let mut review: Value = serde_json::from_slice(answer)
        .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))?;
    let (version, kind) = decode::types(&review)?;
    if kind.is_empty() {
        let shown: String = String::from_utf8_lossy(answer).chars().take(256).collect();
        return Err(format!("Object 'Kind' is missing in '{shown}'"));
    }
    let expected = api_version(conversion);
    if (version, kind) != (&expected, "ConversionReview") {
        let version = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
        return Err(format!(
            "expected webhook response of {expected}, Kind=ConversionReview, got {version}, Kind={kind}"
        ));
    }
    let response = &mut review["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // The older version did not say which request it answers.
    if conversion.review == "v1" && response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    let (status, message) = (text(&response["result"]["status"]), text(&response["result"]["message"]));
    match (status.as_str(), message.is_empty()) {
        ("Success", _) => {}
        (_, false) => return Err(message),
        (status, true) => return Err(format!("response.result.status was '{status}', not 'Success'")),
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// What is wrong with the answer for one object. The parts are upstream's: what is said of, and why.
pub struct Wrong {
    pub what: &'static str,
    pub why: String,
}

/// Checks what became of an object, and gives it back the metadata that no webhook changes: all but
/// labels and annotations.
pub fn settle(original: &Value, converted: &mut Value, desired: &str) -> Result<(), Wrong> {
    let object = |why: String| Wrong { what: "object", why };
    let got = meta::api_version(converted);
    if got != desired {
        return Err(object(format!("invalid groupVersion (expected {desired}, received {got})")));
    }
    let (expected, got) = (meta::kind(original), meta::kind(converted));
    if expected != got {
        return Err(object(format!("invalid kind (expected {expected}, received {got})")));
    }
    for (what, of) in
        [("name", meta::name as fn(&Value) -> &str), ("namespace", meta::namespace), ("UID", meta::uid)]
    {
        let (was, is) = (of(original), of(converted));
        if was != is {
            return Err(object(format!("must have the same {what}: {was} != {is}")));
        }
    }
    metadata(original, converted).map_err(|why| Wrong { what: "metadata", why })
}

fn metadata(original: &Value, converted: &mut Value) -> Result<(), String> {
    let Some(answered) = converted.get_mut("metadata").map(Value::take) else {
        return Err("missing metadata in converted object".to_owned());
    };
    let Value::Object(mut answered) = answered else {
        return Err(format!("invalid metadata of type {} in converted object", go_type(&answered)));
    };
    let mut kept: Map<String, Value> = meta::metadata(original).cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match answered.remove(field) {
            None | Some(Value::Null) => {
                kept.remove(field);
            }
            Some(Value::Object(entries)) => {
                texts(field, &entries, kept.get(field))?;
                kept.insert(field.to_owned(), Value::Object(entries));
            }
            Some(other) => {
                return Err(format!(
                    "invalid metadata.{field} of type {} in converted object",
                    go_type(&other)
                ));
            }
        }
    }
    converted["metadata"] = Value::Object(kept);
    Ok(())
}

/// Labels and annotations that changed must be some.
fn texts(field: &str, entries: &Map<String, Value>, before: Option<&Value>) -> Result<(), String> {
    if let Some((key, value)) = entries.iter().find(|(_, value)| !value.is_string()) {
        let found = go_type(value);
        return Err(format!("metadata.{field}[{key}] must be a string, but is {found} in converted object"));
    }
    if before.and_then(Value::as_object) == Some(entries) {
        return Ok(());
    }
    let (value, path) = (Value::Object(entries.clone()), Path::new("metadata"));
    let errors = match field {
        "labels" => names::validate_labels(Some(&value), &path.child("labels")),
        _ => object_meta::validate_annotations(Some(&value), &path.child("annotation")),
    };
    let told: Vec<String> = errors.iter().map(FieldError::to_string).collect();
    match told.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conversion(review: &'static str) -> Conversion {
        Conversion { definition: "widgets.example.com".into(), client: Value::Null, review }
    }

    fn answered(review: &'static str, answer: &Value) -> Result<Vec<Value>, String> {
        objects(&conversion(review), "u", answer.to_string().as_bytes())
    }

    #[test]
    fn reviews_and_their_answers() {
        let object = json!({"apiVersion": "example.com/v1"});
        let body = review(&conversion("v1"), "u", "example.com/v2", &[&object]);
        assert_eq!(
            serde_json::from_slice::<Value>(&body).unwrap(),
            json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
                "request": {"uid": "u", "desiredAPIVersion": "example.com/v2", "objects": [object]}})
        );
        let with = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        let success = json!({"status": "Success"});
        assert_eq!(
            answered("v1", &with(json!({"uid": "u", "result": success, "convertedObjects": [1]}))),
            Ok(vec![json!(1)])
        );
        assert_eq!(answered("v1", &with(json!({"uid": "u", "result": success}))), Ok(vec![]));
        let old = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1beta1", "response": {"result": success}});
        assert_eq!(answered("v1beta1", &old), Ok(vec![]));
        for (answer, why) in [
            (json!({}), "Object 'Kind' is missing in '{}'"),
            (
                old,
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got apiextensions.k8s.io/v1beta1, Kind=ConversionReview",
            ),
            (
                json!({"kind": "Pod", "apiVersion": "v1"}),
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got /v1, Kind=Pod",
            ),
            (with(Value::Null), "no response provided"),
            (with(json!({"uid": "x", "result": success})), "expected response.uid=\"u\", got \"x\""),
            (with(json!({"uid": "u", "result": {"status": "Failure", "message": "no way"}})), "no way"),
            (with(json!({"uid": "u"})), "response.result.status was '', not 'Success'"),
        ] {
            assert_eq!(answered("v1", &answer), Err(why.to_owned()));
        }
        assert!(
            objects(&conversion("v1"), "u", b"<")
                .unwrap_err()
                .starts_with("couldn't get version/kind; json parse error: ")
        );
    }

    #[test]
    fn only_labels_and_annotations_may_change() {
        let original = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "namespace": "s", "uid": "u",
            "labels": {"a": "b"}, "annotations": {"c": "d"}, "generation": 3, "finalizers": ["f"]}});
        let settled = |change: &dyn Fn(&mut Value)| {
            let mut converted = original.clone();
            converted["apiVersion"] = "g/v2".into();
            change(&mut converted);
            settle(&original, &mut converted, "g/v2")
                .map(|()| converted)
                .map_err(|w| format!("{}: {}", w.what, w.why))
        };
        let fine = settled(&|c| {
            c["metadata"] = json!({"name": "n", "namespace": "s", "uid": "u", "generation": 9, "labels": {"x": "y"}, "odd": 1});
        });
        assert_eq!(
            fine.unwrap()["metadata"],
            json!({"name": "n", "namespace": "s", "uid": "u", "labels": {"x": "y"}, "generation": 3, "finalizers": ["f"]})
        );
        type Change = dyn Fn(&mut Value);
        let bad: [(&Change, &str); 9] = [
            (
                &|c| c["apiVersion"] = "g/v3".into(),
                "object: invalid groupVersion (expected g/v2, received g/v3)",
            ),
            (&|c| c["kind"] = "L".into(), "object: invalid kind (expected K, received L)"),
            (&|c| c["metadata"]["name"] = "m".into(), "object: must have the same name: n != m"),
            (&|c| c["metadata"]["namespace"] = "t".into(), "object: must have the same namespace: s != t"),
            (&|c| c["metadata"]["uid"] = "v".into(), "object: must have the same UID: u != v"),
            (
                &|c| c["metadata"]["labels"] = json!([]),
                "metadata: invalid metadata.labels of type []interface {} in converted object",
            ),
            (
                &|c| c["metadata"]["labels"]["a"] = json!(1),
                "metadata: metadata.labels[a] must be a string, but is int64 in converted object",
            ),
            (
                &|c| c["metadata"]["labels"]["a"] = "b c".into(),
                "metadata: metadata.labels: Invalid value: \"b c\": ",
            ),
            (
                &|c| c["metadata"]["annotations"]["%"] = "x".into(),
                "metadata: metadata.annotation: Invalid value: \"%\": ",
            ),
        ];
        for (change, why) in bad {
            assert!(settled(change).unwrap_err().starts_with(why), "{why}");
        }
    }
}
