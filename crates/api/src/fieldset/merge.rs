//! What an apply does to the object: the configuration is merged into it, then what its manager
//! applied before and does not name any more goes.

use super::set::{
    Node, child_schema, field_element, granular, is_member, is_named, item_element, item_schema, merges,
};
use crate::schema::SchemaRef;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Merges a configuration into the live value. Leaves are replaced; null and the empty map or
/// list replace only what has no parts itself.
pub(super) fn merge(live: &mut Value, config: &Value, schema: SchemaRef<'_>) {
    match (&mut *live, config) {
        (Value::Object(have), Value::Object(wanted)) if granular(schema) => {
            for (name, value) in wanted {
                match have.get_mut(name) {
                    Some(slot) => merge(slot, value, child_schema(schema, name)),
                    None => {
                        have.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(have), Value::Array(wanted)) if merges(schema) => {
            if have != wanted {
                merge_items(have, wanted, schema);
            }
        }
        (Value::Object(have), Value::Null) if granular(schema) && !have.is_empty() => {}
        (Value::Array(have), Value::Null) if merges(schema) && !have.is_empty() => {}
        _ => live.clone_from(config),
    }
}

/// Items of both sides are merged. The order is that of the configuration; items that only the
/// live list has stay behind what they followed.
fn merge_items(live: &mut Vec<Value>, config: &[Value], schema: SchemaRef<'_>) {
    // Items that lack their keys belong to nobody, and no configuration names them.
    let elements =
        |items: &[Value]| items.iter().map(|item| item_element(item, schema).unwrap_or_default()).collect();
    let (have, wanted): (Vec<String>, Vec<String>) = (elements(live), elements(config));
    let named: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    // Where each element is; items that share theirs are replaced as one.
    let mut places: BTreeMap<&str, Option<usize>> = BTreeMap::new();
    for (at, element) in have.iter().enumerate() {
        places.entry(element).and_modify(|place| *place = None).or_insert(Some(at));
    }
    let mut old: Vec<Value> = std::mem::take(live);
    let mut shared = wanted.iter().filter(|element| places.contains_key(element.as_str())).peekable();
    let (mut l, mut r) = (0, 0);
    while l < have.len() || r < wanted.len() {
        if let Some(element) = have.get(l) {
            if !named.contains(element.as_str()) {
                live.push(old[l].take());
                l += 1;
                continue;
            }
            // It had its turn, or has it later.
            if shared.peek() != Some(&element) {
                l += 1;
                continue;
            }
        }
        let Some(element) = wanted.get(r) else { break };
        live.push(match places.get(element.as_str()) {
            Some(Some(at)) => {
                let mut item = old[*at].take();
                merge(&mut item, &config[r], item_schema(schema));
                item
            }
            _ => config[r].clone(),
        });
        shared.next_if_eq(&element);
        r += 1;
    }
}

/// Removes what is in `last` and not in `owned`, with all that is below it. A named field counts
/// as in a set that has something below it. What loses its last part turns null.
pub(super) fn prune(object: &mut Value, last: &Node, owned: &Node, schema: SchemaRef<'_>) {
    Pruning { last, owned: Some(owned), was_applied: false, is_loose: false }.value(object, schema);
}

#[derive(Clone, Copy)]
struct Pruning<'a> {
    last: &'a Node,
    owned: Option<&'a Node>,
    /// Whether this place or one above it was applied.
    was_applied: bool,
    /// Whether this place or one above it, at or below one that was applied, has no owner left.
    is_loose: bool,
}

impl<'a> Pruning<'a> {
    fn value(self, value: &mut Value, schema: SchemaRef<'_>) {
        match value {
            Value::Object(map) if granular(schema) => {
                map.retain(|name, child| {
                    self.keep(&field_element(name), is_named(schema, name), child, child_schema(schema, name))
                });
                if map.is_empty() {
                    *value = Value::Null;
                }
            }
            Value::Array(items) if merges(schema) => {
                items.retain_mut(|item| match item_element(item, schema) {
                    Ok(element) => self.keep(&element, false, item, item_schema(schema)),
                    Err(_) => true,
                });
                if items.is_empty() {
                    *value = Value::Null;
                }
            }
            _ => {}
        }
    }

    fn keep(self, element: &str, is_named: bool, child: &mut Value, schema: SchemaRef<'_>) -> bool {
        let Some(last) = self.last.get(element).and_then(Value::as_object) else { return true };
        let owned = self.owned.and_then(|owned| owned.get(element)).and_then(Value::as_object);
        let is_in = |node: &Node| is_named || is_member(node);
        let was_applied = self.was_applied || is_in(last);
        let is_loose = self.is_loose || was_applied && !owned.is_some_and(is_in);
        if is_in(last) && is_loose {
            return false;
        }
        Pruning { last, owned, was_applied, is_loose }.value(child, schema);
        true
    }
}
