//! Server-side apply: a configuration is merged into the object, its manager owns from then on
//! what it names, and what it named before and nobody else owns goes.
//! Upstream documents: KEP-555, "Server-Side Apply" of the reference.

use super::diff::{Diff, strip};
use super::entries::{disown, entry, fields, position, put, same_but_entries, take, text};
use super::last_applied;
use super::merge::{merge, prune};
use super::set::{FieldSet, Node, includes, union};
use super::track::{Operation, Tracking};
use super::typed;
use crate::gvk::{GroupVersion, Gvk};
use crate::meta;
use crate::schema::SchemaRef;
use crate::status::{Cause, Details, Reason, Status};
use serde_json::{Map, Value};

/// Owns what an object had before entries were kept.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The request of an apply.
#[derive(Clone, Copy, Debug)]
pub struct Apply<'a> {
    pub tracking: Tracking<'a>,
    /// What the configuration must be.
    pub kind: &'a Gvk,
    /// Take what others own.
    pub force: bool,
}

/// What others own and an apply would change, by their entries.
type Conflicts<'a> = Vec<(&'a Value, FieldSet)>;

/// Applies a configuration to the live object (`None` where there is none yet) and returns the
/// result with its entries. Values are not decoded, nor defaults filled in.
///
/// Errors are upstream's: 400 for another kind or for managedFields in the configuration, 409 for
/// conflicts, 500 without a reason for a configuration that does not fit its type.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    request: &Apply<'_>,
    schema: SchemaRef<'_>,
) -> Result<Value, Status> {
    check(config, request.kind, schema)?;
    let tracking = &request.tracking;
    let mut object = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    let mut entries = take(&mut object);
    if let (Some(live), true) = (live, entries.is_empty()) {
        let all = Diff::between(None, live, schema, tracking.ignored).changed;
        let earlier = Tracking { manager: BEFORE_FIRST_APPLY, ..*tracking };
        entries.push(entry(Operation::Update, &earlier, all));
    }
    let last = position(&entries, Operation::Apply, tracking).map(|at| entries.remove(at));
    let mut claimed = FieldSet::applied(config, schema);
    tracking.ignored.iter().for_each(|path| claimed.exclude(path));

    merge(&mut object, config, schema);
    let before = last.as_ref().and_then(fields);
    if let Some(before) = before.filter(|before| !includes(&claimed.0, before)) {
        let owned = entries.iter().filter_map(fields).fold(claimed.0.clone(), |mut all, fields| {
            union(&mut all, fields);
            all
        });
        prune(&mut object, before, &owned, schema);
    }
    // Only now: what nobody owns must not go either.
    strip(&mut claimed);

    let is_same = live.is_some_and(|live| same_but_entries(&object, live));
    let diff = match live {
        Some(_) if !is_same => Diff::between(live, &object, schema, tracking.ignored),
        _ => Diff::default(),
    };
    let mut conflicts = conflicts(&entries, &diff);
    if !request.force && !conflicts.is_empty() {
        last_applied::allow(&mut conflicts, live, tracking, schema);
        if !conflicts.is_empty() {
            return Err(refusal(conflicts));
        }
    }
    disown(&mut entries, &diff);
    // The time of an entry changes with what it owns, or with a value of that.
    let kept = last.filter(|last| {
        is_same && fields(last) == Some(&claimed.0) && text(last, "apiVersion") == tracking.api_version
    });
    entries.push(kept.unwrap_or_else(|| entry(Operation::Apply, tracking, claimed)));
    put(&mut object, entries);
    last_applied::refresh(&mut object, config, tracking);
    Ok(object)
}

fn check(config: &Value, kind: &Gvk, schema: SchemaRef<'_>) -> Result<(), Status> {
    let version = meta::api_version(config);
    let parsed = GroupVersion::parse(version);
    let own = meta::kind(config);
    let (group, version, own) = match &parsed {
        Some(version) => (&*version.group, &*version.version, own),
        None if version.is_empty() => ("", "", own),
        None => ("", "", ""),
    };
    if (group, version, own) != (&*kind.group, &*kind.version, &*kind.kind) {
        return Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={own}")));
    }
    if meta::metadata(config).and_then(|metadata| metadata.get("managedFields")).is_some_and(Value::is_array)
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    typed::check(config, schema).map_err(|why| {
        let (namespace, name) = (meta::namespace(config), meta::name(config));
        let text = format!(
            "failed to create typed patch object ({namespace}/{name}; {group}/{version}, Kind={own}): {why}"
        );
        Status::new(500, Reason::Empty, text)
    })
}

fn conflicts<'a>(entries: &'a [Value], diff: &Diff) -> Conflicts<'a> {
    if diff.changed.is_empty() {
        return Vec::new();
    }
    let owned = |entry: &'a Value| {
        let fields: &Node = fields(entry)?;
        let both = diff.changed.intersection_with(fields);
        (!both.is_empty()).then_some((entry, both))
    };
    entries.iter().filter_map(owned).collect()
}

/// 409, with a cause for each field.
fn refusal(mut conflicts: Conflicts<'_>) -> Status {
    let key = |entry: &Value| {
        ["manager", "operation", "apiVersion", "subresource"].map(|f| text(entry, f).to_owned())
    };
    conflicts.sort_by_key(|(entry, _)| key(entry));
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for (entry, fields) in conflicts {
        let manager = display_manager(entry);
        lines.push(format!("conflicts with {manager}:"));
        for field in fields.display_paths() {
            lines.push(format!("- {field}"));
            causes.push(Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {manager}"),
                field,
            });
        }
    }
    let text = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n")),
    };
    Status::new(409, Reason::Conflict, text).with_details(Details { causes, ..Details::default() })
}

/// `"kubectl" with subresource "scale" using apps/v1`; who applies has no version.
fn display_manager(entry: &Value) -> String {
    let mut shown = format!("{:?}", text(entry, "manager"));
    let subresource = text(entry, "subresource");
    if !subresource.is_empty() {
        shown += &format!(" with subresource {subresource:?}");
    }
    if text(entry, "operation") == Operation::Update.as_str() {
        shown += &format!(" using {}", text(entry, "apiVersion"));
    }
    shown
}

#[cfg(test)]
mod tests;
