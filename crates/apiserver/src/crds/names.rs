//! The status of a definition: which of its names are accepted, whether it is established, and how
//! its deletion goes on. Pure.
//! Upstream counterpart: `apiextensions-apiserver/pkg/controller/status/naming_controller.go`.

use serde_json::{Value, json};
use skeg_api::crd::{has_odd_authority, is_established};
use skeg_api::meta;
use std::collections::BTreeSet;

/// Annotation and condition of groups that are Kubernetes' own.
const APPROVED: &str = "api-approved.kubernetes.io";
const CONFORMANT: &str = "KubernetesAPIApprovalPolicyConformant";

/// The names that a definition holds in its group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Names {
    pub fn of(names: &Value) -> Self {
        let text = |field: &str| names[field].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
        let short = names["shortNames"].as_array().into_iter().flatten();
        let short = short.filter_map(Value::as_str).map(str::to_owned);
        Names {
            resources: [text("plural"), text("singular")].into_iter().flatten().chain(short).collect(),
            kinds: [text("kind"), text("listKind")].into_iter().flatten().collect(),
        }
    }
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn set(definition: &mut Value, kind: &str, (status, reason, message): (&str, &str, &str), now: &str) {
    let was = condition(definition, kind);
    if was.is_some_and(|was| was["status"] == status && was["reason"] == reason && was["message"] == message)
    {
        return;
    }
    let since = was.filter(|was| was["status"] == status).map(|was| was["lastTransitionTime"].clone());
    let fresh = json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| now.into())});
    if !definition["status"]["conditions"].is_array() {
        definition["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = definition["status"]["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(there) => *there = fresh,
        None => conditions.push(fresh),
    }
}

/// Accepts the names that no other definition of the group holds.
pub fn settle(definition: &mut Value, taken: &[&Names], now: &str) {
    let spec = definition["spec"]["names"].clone();
    let mut accepted = definition["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let in_use = |name: &str, is_kind: bool| {
        taken
            .iter()
            .any(|names| if is_kind { names.kinds.contains(name) } else { names.resources.contains(name) })
    };
    let mut conflict: Option<(&str, String)> = None;
    for (field, is_kind, reason) in [
        ("plural", false, "PluralConflict"),
        ("singular", false, "SingularConflict"),
        ("shortNames", false, "ShortNamesConflict"),
        ("kind", true, "KindConflict"),
        ("listKind", true, "ListKindConflict"),
    ] {
        let wanted = spec.get(field).cloned().unwrap_or_default();
        let held = accepted.get(field).cloned().unwrap_or_default();
        let names: Vec<&str> = match &wanted {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            name => name.as_str().into_iter().collect(),
        };
        let clashes: Vec<&str> = names.into_iter().filter(|name| in_use(name, is_kind)).collect();
        if wanted != held && !clashes.is_empty() {
            let each: Vec<String> =
                clashes.iter().map(|name| format!("{name:?} is already in use")).collect();
            conflict = Some((reason, each.join(", ")));
        } else if let Some(fields) = accepted.as_object_mut() {
            match wanted.is_null() {
                true => drop(fields.remove(field)),
                false => drop(fields.insert(field.to_owned(), wanted)),
            }
        }
    }
    if let Some(fields) = accepted.as_object_mut() {
        match spec.get("categories") {
            Some(categories) => drop(fields.insert("categories".into(), categories.clone())),
            None => drop(fields.remove("categories")),
        }
    }
    if !definition["status"].is_object() {
        definition["status"] = json!({"storedVersions": []});
    }
    definition["status"]["acceptedNames"] = accepted;
    match &conflict {
        Some((reason, message)) => set(definition, "NamesAccepted", ("False", reason, message), now),
        None => set(definition, "NamesAccepted", ("True", "NoConflicts", "no conflicts found"), now),
    }
    // Once established, a definition stays so.
    if !is_established(definition) {
        let told = match conflict {
            None if has_odd_authority(definition) => {
                ("False", "InvalidCABundle", "The conversion webhook CABundle is invalid")
            }
            None => ("True", "InitialNamesAccepted", "the initial names have been accepted"),
            Some(_) => ("False", "NotAccepted", "not all names are accepted"),
        };
        set(definition, "Established", told, now);
    }
    if let Some(text) = meta::annotation(definition, APPROVED).map(str::to_owned) {
        let group = definition["spec"]["group"].as_str().unwrap_or_default();
        let own = ["k8s.io", "kubernetes.io"]
            .iter()
            .any(|own| group == *own || group.ends_with(&format!(".{own}")));
        if own && text.starts_with("unapproved") {
            let why = format!("not approved: {text:?}");
            set(definition, CONFORMANT, ("False", "UnapprovedAnnotation", &why), now);
        } else if own {
            let why = format!("approved in {text}");
            set(definition, CONFORMANT, ("True", "ApprovedAnnotation", &why), now);
        }
    }
}

/// The deletion of the objects is under way.
pub fn terminating(definition: &mut Value, now: &str) {
    let done =
        condition(definition, "Terminating").is_some_and(|was| was["reason"] == "InstanceDeletionCompleted");
    if !done {
        let told = ("True", "InstanceDeletionInProgress", "CustomResource deletion is in progress");
        set(definition, "Terminating", told, now);
    }
}

/// All objects are gone.
pub fn emptied(definition: &mut Value, now: &str) {
    let told = ("False", "InstanceDeletionCompleted", "removed all instances");
    set(definition, "Terminating", told, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"metadata": {"name": format!("{plural}.example.com")}, "spec": {"group": "example.com", "names":
            {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    #[test]
    fn names_that_are_taken_are_not_accepted() {
        let mut first = definition("widgets", "Widget", &["wd"]);
        settle(&mut first, &[], "t1");
        assert!(is_established(&first));
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        let taken = Names::of(&first["status"]["acceptedNames"]);
        let mut second = definition("others", "Widget", &["wd"]);
        settle(&mut second, &[&taken], "t2");
        let conditions = &second["status"]["conditions"];
        assert_eq!(conditions[0]["reason"], "ListKindConflict");
        assert_eq!(
            conditions[1],
            json!({"type": "Established", "status": "False", "reason": "NotAccepted",
            "message": "not all names are accepted", "lastTransitionTime": "t2"})
        );
        assert_eq!(second["status"]["acceptedNames"], json!({"plural": "others"}));
        settle(&mut second, &[], "t3");
        assert!(is_established(&second));
        let before = second.clone();
        settle(&mut second, &[&taken], "t4");
        assert_eq!(second, before, "who has a name keeps it");
        let mut odd = definition("odds", "Odd", &[]);
        odd["spec"]["conversion"] =
            json!({"strategy": "Webhook", "webhook": {"clientConfig": {"caBundle": "bm9uZQ=="}}});
        settle(&mut odd, &[], "t5");
        assert_eq!(odd["status"]["conditions"][1]["reason"], "InvalidCABundle");
        assert!(!is_established(&odd));
        odd["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"] = "".into();
        settle(&mut odd, &[], "t6");
        assert!(is_established(&odd));
    }
}
