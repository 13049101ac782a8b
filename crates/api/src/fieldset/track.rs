//! Rewrites `metadata.managedFields` after a write that is no server-side apply: what the write
//! changed belongs to its manager from now on, what it removed belongs to nobody.

use super::diff::Diff;
use super::entries::{decode, disown, entry, fields, fields_mut, position, put, sort, text};
use super::set::{FieldSet, union};
use crate::meta;
use crate::schema::SchemaRef;
use jiff::Timestamp;
use serde_json::Value;

/// Update entries beyond this are merged, oldest first.
const UPDATE_MANAGERS_MAX: usize = 10;
const OLD_UPDATES_MANAGER: &str = "ancient-changes";
const MANAGER_NAME_MAX_BYTES: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who writes what, when.
#[derive(Clone, Copy, Debug)]
pub struct Tracking<'a> {
    pub manager: &'a str,
    /// The version of the request: `apps/v1`.
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub now: Timestamp,
    /// Fields that this write cannot set: `status` where it is a subresource and the request is
    /// for the object; `spec`, or also `metadata.labels`, for a request to `status`.
    pub ignored: &'a [&'a str],
}

/// The manager of a request: its `fieldManager`, else the first part of its `User-Agent`.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let mut name = String::new();
    for c in user_agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()) {
        if name.len() + c.len_utf8() > MANAGER_NAME_MAX_BYTES {
            break;
        }
        name.push(c);
    }
    name
}

/// Sets `metadata.managedFields` of `new`, which replaces `old` (`None` on create).
///
/// A request may replace the entries, or clear them with `[]`; from then on nothing is tracked
/// until an apply. A request to a subresource may not touch them.
pub fn track(old: Option<&Value>, new: &mut Value, request: &Tracking<'_>, schema: SchemaRef<'_>) {
    let sent = meta::remove(new, "managedFields");
    let base = base_entries(old, sent, request);
    if base.is_empty() && old.is_some() {
        return;
    }
    let diff = Diff::between(old, new, schema, request.ignored);
    put(new, if diff.is_empty() { base } else { updated(base, diff, request) });
}

/// The entries to start from: those that the request sent if they are usable, else the old ones.
fn base_entries(old: Option<&Value>, sent: Option<Value>, request: &Tracking<'_>) -> Vec<Value> {
    let had = old.and_then(|old| meta::metadata(old)?.get("managedFields")?.as_array());
    let had = || had.cloned().unwrap_or_default();
    if !request.subresource.is_empty() {
        return had();
    }
    match sent {
        Some(Value::Array(sent)) => {
            if sent.is_empty() || matches!(sent.as_slice(), [Value::Object(only)] if only.is_empty()) {
                return Vec::new();
            }
            let same =
                old.and_then(|old| meta::metadata(old)?.get("managedFields")?.as_array()) == Some(&sent);
            if same { sent } else { decode(sent).unwrap_or_else(had) }
        }
        _ => had(),
    }
}

fn updated(mut entries: Vec<Value>, diff: Diff, request: &Tracking<'_>) -> Vec<Value> {
    disown(&mut entries, &diff);
    if !diff.changed.is_empty() {
        take_over(&mut entries, diff.changed, request);
    }
    cap_update_managers(&mut entries);
    entries
}

/// Adds what was changed to the manager's own entry.
fn take_over(entries: &mut Vec<Value>, changed: FieldSet, request: &Tracking<'_>) {
    match position(entries, Operation::Update, request) {
        Some(own) => {
            let own = &mut entries[own];
            own["time"] = meta::format_time(request.now).into();
            if let Some(fields) = fields_mut(own) {
                union(fields, &changed.0);
            }
        }
        None => entries.push(entry(Operation::Update, request, changed)),
    }
}

/// Merges the oldest update entries of each version into one named `ancient-changes`.
fn cap_update_managers(entries: &mut Vec<Value>) {
    entries.retain(|entry| fields(entry).is_some_and(|fields| !fields.is_empty()));
    let is_update = |entry: &Value| text(entry, "operation") == "Update";
    let mut count = entries.iter().filter(|e| is_update(e)).count();
    if count <= UPDATE_MANAGERS_MAX {
        return;
    }
    sort(entries);
    // A version's bucket, or its first entry, which turns into the bucket when a second one comes.
    let is_bucket =
        |(_, entry): &(usize, &Value)| is_update(entry) && text(entry, "manager") == OLD_UPDATES_MANAGER;
    let buckets = entries.iter().enumerate().filter(is_bucket);
    let mut first_of_version: Vec<(String, usize)> =
        buckets.map(|(i, entry)| (text(entry, "apiVersion").to_owned(), i)).collect();
    let mut merged = Vec::new();
    for i in 0..entries.len() {
        if count <= UPDATE_MANAGERS_MAX {
            break;
        }
        if !is_update(&entries[i]) || first_of_version.iter().any(|(_, bucket)| *bucket == i) {
            continue;
        }
        let version = text(&entries[i], "apiVersion").to_owned();
        let Some((_, bucket)) = first_of_version.iter().find(|(v, _)| *v == version) else {
            first_of_version.push((version, i));
            continue;
        };
        let (bucket, time) = (*bucket, entries[i].get("time").cloned());
        let Some(Value::Object(fields)) = entries[i].get_mut("fieldsV1").map(Value::take) else { continue };
        if let Some(into) = fields_mut(&mut entries[bucket]) {
            union(into, &fields);
        }
        entries[bucket]["manager"] = OLD_UPDATES_MANAGER.into();
        if let Some(map) = entries[bucket].as_object_mut() {
            map.remove("subresource");
            map.extend(time.map(|time| ("time".to_owned(), time)));
        }
        merged.push(i);
        count -= 1;
    }
    for i in merged.into_iter().rev() {
        entries.remove(i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;
    use serde_json::json;

    const CONFIG_MAP: &str = "io.k8s.api.core.v1.ConfigMap";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn write(old: Option<&Value>, mut new: Value, manager: &str, second: i64) -> Value {
        let schema = Schema::builtin(CONFIG_MAP).unwrap();
        let request =
            Tracking { manager, api_version: "v1", subresource: "", now: at(second), ignored: &["status"] };
        track(old, &mut new, &request, schema.root());
        new
    }

    fn owners(object: &Value) -> Vec<(String, Value)> {
        let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        entries
            .into_iter()
            .map(|e| (e["manager"].as_str().unwrap().to_owned(), e["fieldsV1"].clone()))
            .collect()
    }

    fn with_data(object: &Value, data: Value) -> Value {
        let mut object = object.clone();
        object["data"] = data;
        object
    }

    #[test]
    fn ownership_moves_with_changes() {
        let created = write(None, json!({"metadata": {"name": "c"}, "data": {"a": "1", "b": "1"}}), "one", 0);
        assert_eq!(
            created["metadata"]["managedFields"],
            json!([{"manager": "one", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {".": {}, "f:a": {}, "f:b": {}}}}])
        );
        let changed = write(Some(&created), with_data(&created, json!({"a": "2", "c": "1"})), "two", 1);
        assert_eq!(
            owners(&changed),
            [
                ("one".to_owned(), json!({"f:data": {}})),
                ("two".to_owned(), json!({"f:data": {"f:a": {}, "f:c": {}}}))
            ]
        );
        let same = write(Some(&changed), changed.clone(), "three", 2);
        assert_eq!(same, changed, "a write that changes nothing changes no entry");
        let back = write(Some(&changed), with_data(&changed, json!({"a": "3", "c": "1"})), "two", 5);
        assert_eq!(back["metadata"]["managedFields"][1]["time"], "2026-01-01T00:00:05Z");
        let gone = write(Some(&back), json!({"metadata": {"name": "c"}}), "one", 6);
        assert_eq!(gone, json!({"metadata": {"name": "c"}}));
    }

    #[test]
    fn clients_may_leave_out_replace_or_clear_the_entries() {
        let created = write(None, json!({"metadata": {"name": "c"}, "data": {"a": "1"}}), "one", 0);
        let mut forgetful = created.clone();
        meta::remove(&mut forgetful, "managedFields");
        assert_eq!(write(Some(&created), forgetful, "two", 1), created);
        let mut cleared = created.clone();
        cleared["metadata"]["managedFields"] = json!([]);
        let cleared = write(Some(&created), cleared, "two", 1);
        assert_eq!(owners(&cleared), []);
        assert_eq!(owners(&write(Some(&cleared), with_data(&cleared, json!({"a": "2"})), "two", 2)), []);
        let mut renamed = created.clone();
        renamed["metadata"]["managedFields"][0]["manager"] = "other".into();
        assert_eq!(owners(&write(Some(&created), renamed, "two", 1))[0].0, "other");
        let mut broken = created.clone();
        broken["metadata"]["managedFields"][0]["fieldsV1"] = json!({"odd": {}});
        assert_eq!(owners(&write(Some(&created), broken, "two", 1)), owners(&created));
    }

    #[test]
    fn subresources_have_entries_of_their_own() {
        let schema = Schema::builtin_kind("", "v1", "Pod").unwrap();
        let spec =
            Tracking { manager: "m", api_version: "v1", subresource: "", now: at(0), ignored: &["status"] };
        let mut pod = json!({"spec": {"nodeName": "n"}, "status": {"phase": "Pending"}});
        track(None, &mut pod, &spec, schema.root());
        assert_eq!(owners(&pod), [("m".to_owned(), json!({"f:spec": {"f:nodeName": {}}}))]);
        let mut running = pod.clone();
        running["status"]["phase"] = "Running".into();
        running["metadata"]["managedFields"] = json!([]);
        let status = Tracking { subresource: "status", ignored: &["spec"], ..spec };
        track(Some(&pod), &mut running, &status, schema.root());
        assert_eq!(owners(&running)[1], ("m".to_owned(), json!({"f:status": {"f:phase": {}}})));
        assert_eq!(running["metadata"]["managedFields"][1]["subresource"], "status");
    }

    #[test]
    fn old_updates_are_merged() {
        let mut object = write(None, json!({"metadata": {"name": "c"}, "data": {"k0": "x"}}), "m0", 0);
        for i in 1..15 {
            let mut data = object["data"].clone();
            data[format!("k{i}")] = "x".into();
            object = write(Some(&object), with_data(&object, data), &format!("m{i}"), i);
        }
        let owners = owners(&object);
        assert_eq!(owners.len(), UPDATE_MANAGERS_MAX);
        assert_eq!(owners[0].0, "ancient-changes");
        let all =
            owners.iter().fold(FieldSet::new(), |all, (_, f)| all.union(&FieldSet::from_value(f).unwrap()));
        assert_eq!(all.paths().len(), 16, "no field lost its owner");
    }

    /// Within one second entries are ordered by name, which puts others before the bucket.
    #[test]
    fn a_version_has_one_bucket() {
        let mut object = write(None, json!({"metadata": {"name": "c"}, "data": {"k": "x"}}), "agent", 0);
        for i in 0..25 {
            let mut data = object["data"].clone();
            data[format!("k{i}")] = "x".into();
            object = write(Some(&object), with_data(&object, data), &format!("agent{i}"), 0);
        }
        let owners = owners(&object);
        assert_eq!(owners.len(), UPDATE_MANAGERS_MAX);
        let buckets = owners.iter().filter(|(name, _)| name == "ancient-changes");
        assert_eq!(buckets.count(), 1, "{owners:?}");
    }

    #[test]
    fn manager_names() {
        assert_eq!(manager_name("", "kubectl/v1.36 (linux/amd64)"), "kubectl");
        assert_eq!(manager_name("x", "kubectl/v1.36"), "x");
        assert_eq!(manager_name("", &"é".repeat(100)).len(), 128);
    }
}
