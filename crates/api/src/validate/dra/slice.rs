//! What devices a driver has to give.

use super::{
    At, BTreeSet, DOMAIN_BYTES_MAX, EFFECTS, Errors, FieldError, ID_BYTES_MAX, driver, label, list, name_of,
    own_text, pool_name, qualified_name, same, set,
};
use crate::names;
use crate::quantity::Quantity;
use crate::validate::affinity;
use regex_lite::Regex;
use serde_json::Value;
use std::sync::LazyLock;

const DEVICES_MAX: usize = 128;
/// Where devices have taints or share counters.
const COMPLEX_DEVICES_MAX: usize = 64;
/// Attributes and capacities of a device together.
pub(super) const ATTRIBUTES_MAX: usize = 32;
pub(super) const ATTRIBUTE_BYTES_MAX: usize = 64;
const TAINTS_MAX: usize = 16;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const CONSUMED_SETS_MAX: usize = 2;
const BINDING_CONDITIONS_MAX: usize = 4;
const VALID_VALUES_MAX: usize = 10;
/// Keys are shown up to this length.
const KEY_SHOWN_MAX: usize = DOMAIN_BYTES_MAX + 1 + ID_BYTES_MAX;
const COUNTER_SHOWN_MAX: usize = 63;
const ONE_VALUE: &str = "exactly one value must be specified";

/// Fields of attributes and of devices that features have which are off: DRAListTypeAttributes,
/// DRANodeAllocatableResources.
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];
const NODE_RESOURCES: &str = "nodeAllocatableResourceMappings";

/// What semver.org says a version is.
static VERSION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let (number, part) = (r"(0|[1-9][0-9]*)", r"(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)");
    let (before, build) = (format!(r"(-{part}(\.{part})*)?"), r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?");
    Regex::new(&format!(r"^{number}\.{number}\.{number}{before}{build}$")).ok()
});

/// Drops fields of features that are off, unless the slice had some.
pub(super) fn drop_disabled(new: &mut Value, old: &Value) {
    let devices = |slice: &Value| slice["spec"]["devices"].as_array().cloned().unwrap_or_default();
    let had = devices(old);
    let has_lists = had.iter().filter_map(|device| device["attributes"].as_object()).any(|attributes| {
        attributes.values().any(|value| LISTS.iter().any(|field| value.get(field).is_some()))
    });
    let has_resources = had.iter().any(|device| device.get(NODE_RESOURCES).is_some());
    let devices = new.get_mut("spec").and_then(|spec| spec.get_mut("devices")).and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten().filter_map(Value::as_object_mut) {
        if !has_resources {
            device.remove(NODE_RESOURCES);
        }
        let attributes = device.get_mut("attributes").and_then(Value::as_object_mut);
        let values = attributes.into_iter().flat_map(|all| all.values_mut());
        for value in values.filter(|_| !has_lists).filter_map(Value::as_object_mut) {
            value.retain(|field, _| !LISTS.contains(&field.as_str()));
        }
    }
}

pub(super) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(new).child("spec"), Errors::default());
    let had = old.map(|old| At::root(old).child("spec"));
    driver(&spec, &mut errors);
    let pool = spec.child("pool");
    pool_name(&pool, "name", &mut errors);
    let count = pool.int("resourceSliceCount").unwrap_or(0);
    if count <= 0 {
        errors.invalid(pool.at("resourceSliceCount"), count, "must be greater than zero");
    }
    if let Some(generation) = pool.int("generation").filter(|generation| *generation < 0) {
        errors.invalid(pool.at("generation"), generation, "must be greater than or equal to zero");
    }
    if let Some(had) = &had {
        errors.immutable(&pool, &had.child("pool"), "name");
        errors.immutable(&spec, had, "driver");
        errors.immutable(&spec, had, "nodeName");
    }
    let places = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let many = format!("{one}, but multiple fields are set");
    place(&spec, &places, "must be either unset or set to a non-empty string", [one, &many], &mut errors);
    if spec.has("sharedCounters") && spec.has("devices") {
        errors.invalid(spec.path.clone(), "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let is_complex =
        |at: &At<'_>| ["taints", "consumesCounters"].iter().any(|field| !at.list(field).is_empty());
    let max = if spec.items("devices").any(|at| is_complex(&at)) { COMPLEX_DEVICES_MAX } else { DEVICES_MAX };
    let is_placed = spec.bool("perDeviceNodeSelection");
    set(&spec, "devices", max, name_of, &mut errors, |at, errors| {
        let before = had
            .as_ref()
            .and_then(|had| had.list("devices").iter().find(|device| device["name"] == at.str("name")));
        device(at, before, errors);
        if is_placed {
            let one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` \
                       is set to true in the ResourceSlice spec";
            place(at, &places[..3], "must not be empty", [one, one], errors);
        } else if places[..3].iter().any(|field| at.has(field)) {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true \
                       in the ResourceSlice spec";
            errors.invalid(at.path.clone(), Value::Null, why);
        }
    });
    set(&spec, "sharedCounters", COUNTER_SETS_MAX, name_of, &mut errors, |at, errors| {
        counters(at, "name", errors);
    });
    errors.0
}

/// Where devices are: one of the fields says it. `why` is told of none and of several.
fn place(at: &At<'_>, fields: &[&str], empty: &str, why: [&str; 2], errors: &mut Errors) {
    let mut chosen = Vec::new();
    for field in fields.iter().filter(|field| at.has(field)) {
        let path = at.at(field);
        match &at.value[*field] {
            Value::Bool(false) => errors.invalid(path, false, "must be either unset or set to true"),
            Value::String(name) if name.is_empty() => errors.invalid(path, "", empty),
            value => {
                chosen.push(format!("`{field}`"));
                if let Some(name) = value.as_str() {
                    errors.each(&path, name, names::is_dns1123_subdomain(name));
                }
            }
        }
    }
    if let Some(selector) = at.get("nodeSelector") {
        affinity::node_selector(&selector, errors);
        let terms = selector.list("nodeSelectorTerms");
        // Selectors of one term are easy to merge.
        if terms.len() != 1 && fields.len() == 4 {
            let why = "must have exactly one node selector term";
            errors.invalid(selector.at("nodeSelectorTerms"), terms, why);
        }
    }
    match chosen.len() {
        0 => errors.required(at.path.clone(), why[0]),
        1 => {}
        _ => errors.invalid(at.path.clone(), format!("{{{}}}", chosen.join(", ")), why[1]),
    }
}

/// A named set of counters, or what a device takes of it.
fn counters(at: &At<'_>, name: &str, errors: &mut Errors) {
    if errors.need(at, name) {
        label(at, name, errors);
    }
    let count = at.entries("counters").count();
    if count == 0 {
        errors.required(at.at("counters"), "");
    } else if count > COUNTERS_MAX {
        errors.push(FieldError::too_many(at.at("counters"), count, COUNTERS_MAX));
    } else {
        for (key, _) in at.entries("counters") {
            let path = at.at("counters").key(&shown(key, COUNTER_SHOWN_MAX));
            errors.each(&path, key, names::is_dns1123_label(key));
        }
    }
}

/// A key, without its middle where it is long.
fn shown(key: &str, max: usize) -> String {
    if key.len() <= max {
        return key.to_owned();
    }
    let (left, bytes) = (max - "...".len(), key.as_bytes());
    let (head, tail) = (&bytes[..left.div_ceil(2)], &bytes[bytes.len() - left / 2..]);
    format!("{}...{}", String::from_utf8_lossy(head), String::from_utf8_lossy(tail))
}

fn device(at: &At<'_>, before: Option<&Value>, errors: &mut Errors) {
    label(at, "name", errors);
    let count = at.entries("attributes").count() + at.entries("capacity").count();
    if count > ATTRIBUTES_MAX {
        let why = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.invalid(at.path.clone(), count, why);
    }
    let entries = |field: &'static str| {
        let path = at.at(field);
        at.entries(field)
            .map(move |(name, value)| (name, At { value, path: path.key(&shown(name, KEY_SHOWN_MAX)) }))
    };
    for (name, value) in entries("attributes") {
        qualified_name(name, &value.path, errors);
        attribute(&value, errors);
    }
    // What was stored once is let be.
    let is_new = |field: &str| before.is_none_or(|old| !same(at.value.get(field), old.get(field)));
    for (name, capacity) in entries("capacity").filter(|_| is_new("capacity")) {
        qualified_name(name, &capacity.path, errors);
        match capacity.get("requestPolicy") {
            Some(policy) if at.bool("allowMultipleAllocations") => {
                request_policy(&policy, capacity.quantity("value").unwrap_or_default(), errors);
            }
            Some(policy) => errors.forbidden(policy.path, "allowMultipleAllocations must be true"),
            None => {}
        }
    }
    if is_new("taints") {
        for taint in list(at, "taints", TAINTS_MAX, errors) {
            let key = taint.str("key");
            errors.each(&taint.at("key"), key, names::is_qualified_name(key));
            errors.checked(&taint, "value", names::is_label_value);
            errors.one_of(&taint, "effect", EFFECTS);
        }
    }
    let counter_set = |at: &At<'_>| at.str("counterSet").to_owned();
    set(at, "consumesCounters", CONSUMED_SETS_MAX, counter_set, errors, |at, errors| {
        counters(at, "counterSet", errors);
    });
    binding_conditions(at, errors);
}

fn attribute(at: &At<'_>, errors: &mut Errors) {
    let mut text = |at: At<'_>, is_version: bool| {
        let value = own_text(&at);
        if is_version && !VERSION.as_ref().is_some_and(|version| version.is_match(value)) {
            let why = "must be a string compatible with semver.org spec 2.0.0";
            errors.invalid(at.path.clone(), value, why);
        }
        if value.len() > ATTRIBUTE_BYTES_MAX {
            errors.push(FieldError::too_long(at.path, ATTRIBUTE_BYTES_MAX));
        }
    };
    for (one, many) in [("string", "strings"), ("version", "versions")] {
        at.get(one).into_iter().chain(at.items(many)).for_each(|at| text(at, one == "version"));
    }
    match at.value.as_object().map_or(0, |fields| fields.values().filter(|value| !value.is_null()).count()) {
        0 => errors.invalid(at.path.clone(), "", ONE_VALUE),
        1 => {}
        _ => errors.invalid(at.path.clone(), at.value.clone(), ONE_VALUE),
    }
}

/// How much of a capacity a request may take: one of several amounts, or one in a range.
fn request_policy(policy: &At<'_>, capacity: Quantity, errors: &mut Errors) {
    let default = policy.quantity("default").filter(|_| policy.has("default"));
    let values = policy.list("validValues");
    let needs = |field: &str| format!("required when {field} is defined");
    match (values.is_empty(), policy.get("validRange"), default) {
        (false, Some(_), _) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            errors.forbidden(policy.path.clone(), why);
        }
        (false, None, None) => errors.required(policy.at("default"), &needs("validValues")),
        (true, Some(_), None) => errors.required(policy.at("default"), &needs("validRange")),
        (false, None, Some(default)) => valid_values(policy, default, capacity, errors),
        (true, Some(range), Some(default)) => valid_range(&range, default, capacity, errors),
        (true, None, _) => {}
    }
}

fn valid_values(policy: &At<'_>, default: Quantity, capacity: Quantity, errors: &mut Errors) {
    let amount = |at: &At<'_>| Quantity::from_value(at.value).unwrap_or_default();
    let amounts: Vec<Quantity> = policy.items("validValues").map(|at| amount(&at)).collect();
    let path = policy.at("validValues");
    for (i, pair) in amounts.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
        let why = "values must be sorted in ascending order";
        errors.invalid(path.index(i + 1), pair[1].to_string(), why);
    }
    let key = |at: &At<'_>| amount(at).units().to_string();
    set(policy, "validValues", VALID_VALUES_MAX, key, errors, |at, errors| {
        if amount(at) > capacity {
            let why = format!("option is larger than capacity value: {capacity}");
            errors.invalid(at.path.clone(), amount(at).to_string(), why);
        }
    });
    if !amounts.contains(&default) {
        let why = "default value is not valid according to the requestPolicy";
        errors.invalid(path, default.to_string(), why);
    }
}

fn valid_range(range: &At<'_>, default: Quantity, capacity: Quantity, errors: &mut Errors) {
    let given = |field: &str| range.quantity(field).filter(|_| range.has(field));
    let Some(min) = given("min") else {
        errors.required(range.at("min"), "required when validRange is defined");
        return;
    };
    let max = given("max");
    let mut wrong = |is_wrong: bool, field: &str, value: Quantity, why: String| {
        if is_wrong {
            errors.invalid(range.at(field), value.to_string(), why);
        }
    };
    wrong(min > capacity, "min", min, format!("min is larger than capacity value: {capacity}"));
    wrong(default < min, "default", default, format!("default is less than min: {min}"));
    if let Some(max) = max {
        wrong(min > max, "max", min, format!("min is larger than max: {max}"));
        wrong(max > capacity, "max", max, format!("max is larger than capacity value: {capacity}"));
        wrong(default > max, "default", default, format!("default is more than max: {max}"));
    }
    let Some(step) = given("step") else { return };
    if step.units() <= 0 {
        wrong(true, "step", step, "must be greater than zero".into());
        return;
    }
    let added = min + step;
    let why = format!("one step {added} is larger than capacity value: {capacity}");
    wrong(added > capacity, "step", step, why);
    for value in [Some(default), max].into_iter().flatten() {
        let off = value.units().saturating_sub(min.units()) % step.units() != 0;
        wrong(off, "step", value, format!("value is not a multiple of a given step ({step}) from ({min})"));
    }
}

/// Conditions that a Pod's binding waits for, and those that end it.
pub(super) fn binding_conditions(at: &At<'_>, errors: &mut Errors) {
    let lists = ["bindingConditions", "bindingFailureConditions"];
    for field in lists {
        for name in list(at, field, BINDING_CONDITIONS_MAX, errors) {
            errors.each(&name.path, own_text(&name), names::is_qualified_name(own_text(&name)));
        }
    }
    for (field, other) in [(lists[0], None), (lists[1], Some(lists[0]))] {
        let (others, mut seen) = (other.map_or(&[][..], |other| at.list(other)), BTreeSet::new());
        for name in at.items(field) {
            if !seen.insert(own_text(&name)) {
                errors.duplicate(name.path.clone(), own_text(&name));
            }
            if others.contains(name.value) {
                let why = "bindingFailureConditions must not overlap with bindingConditions";
                errors.invalid(name.path.clone(), own_text(&name), why);
            }
        }
    }
    for (missing, given) in [(lists[0], lists[1]), (lists[1], lists[0])] {
        if at.list(missing).is_empty() && !at.list(given).is_empty() {
            let why = format!("{missing} are required to use {given}");
            errors.invalid(at.at(missing), at.list(missing), why);
        }
    }
}
