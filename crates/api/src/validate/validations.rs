//! The rules of a definition's schema: each must compile, may use the old value only where there is
//! one, and may not cost too much, alone and with the others.
//! Upstream counterparts: `apiextensions-apiserver/pkg/apis/apiextensions/validation/{validation,cel_validation}.go`.

use super::at::{At, Errors};
use crate::crd::{Compiler, RULES, Rule, Validations, has_rules};
use crate::field::{ErrorKind, FieldError, Path};
use serde_json::Value;
use skeg_cel::{DEFINITION_ESTIMATE_LIMIT, RULE_ESTIMATE_LIMIT, Schema};

/// The most expensive rules that are named where all together cost too much.
const NAMED_MAX: usize = 4;

/// Checks the rules of one schema, whose structure is in order.
pub(super) fn check(schema: &At<'_>, errors: &mut Errors) {
    if !has_rules(schema.value) {
        return;
    }
    let before = errors.0.len();
    let mut walk = Walk { errors, total: 0, expensive: Vec::new() };
    walk.schema(schema, Schema::resource(schema.value), Some(1), None);
    let (total, expensive) = (walk.total, walk.expensive);
    if total > DEFINITION_ESTIMATE_LIMIT {
        for (_, path) in expensive {
            errors.forbidden(
                path,
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
            );
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(schema.path.clone(), over(what, total, DEFINITION_ESTIMATE_LIMIT));
    }
    if errors.0.len() == before {
        constants(schema, errors);
    }
}

struct Walk<'e> {
    errors: &'e mut Errors,
    /// What all rules are estimated to cost.
    total: u64,
    /// The most expensive ones.
    expensive: Vec<(u64, Path)>,
}

impl Walk<'_> {
    /// `cardinality` is how many values of the schema there are at most, where that is known;
    /// `apart` the schema around this one whose values have nothing to do with older ones.
    fn schema(&mut self, at: &At<'_>, schema: Schema, cardinality: Option<u64>, apart: Option<&Path>) {
        if !at.list(RULES).is_empty() {
            self.rules(at, &schema, cardinality, apart);
        }
        let times = |field: &str, is_many: bool| match (is_many, at.int(field)) {
            (false, _) => cardinality,
            (true, Some(max)) => cardinality.map(|known| known.saturating_mul(max.max(0) as u64)),
            (true, None) => None,
        };
        let values = times("maxProperties", at.get("additionalProperties").is_some());
        let is_atomic = at.str("x-kubernetes-map-type") == "atomic";
        let is_keyed = at.str("x-kubernetes-list-type") == "map";
        let fields_apart = apart.or(is_atomic.then_some(&at.path));
        let items_apart = apart.or((!is_keyed).then_some(&at.path));
        let path = at.at("properties");
        for (name, value) in at.entries("properties") {
            self.below(&At { value, path: path.key(name) }, values, fields_apart);
        }
        if let Some(below) = at.get("additionalProperties") {
            self.below(&below, values, fields_apart);
        }
        if let Some(below) = at.get("items") {
            self.below(&below, times("maxItems", true), items_apart);
        }
    }

    fn below(&mut self, at: &At<'_>, cardinality: Option<u64>, apart: Option<&Path>) {
        if has_rules(at.value) {
            self.schema(at, Schema::new(at.value), cardinality, apart);
        }
    }

    fn rules(&mut self, at: &At<'_>, schema: &Schema, cardinality: Option<u64>, apart: Option<&Path>) {
        let Some(compiler) = Compiler::new(schema) else {
            let detail = format!(
                "rule declared on schema that does not support validation rules type: '{}' \
                 x-kubernetes-preserve-unknown-fields: '{}'",
                at.str("type"),
                at.bool("x-kubernetes-preserve-unknown-fields")
            );
            return self.errors.push(FieldError {
                kind: ErrorKind::Internal,
                path: at.at(RULES),
                value: None,
                detail,
            });
        };
        let calls = cardinality.unwrap_or(compiler.cardinality_max);
        for item in at.items(RULES) {
            let rule = Rule::compile(&compiler, at.value, item.value);
            match &rule.program {
                Ok(program) => {
                    let cost = program.estimated_cost().max.saturating_mul(calls);
                    self.cost(item.at("rule"), "estimated rule cost", cost);
                }
                Err(why) => self.errors.push(fault(item.at("rule"), item.value, why)),
            }
            match &rule.message_program {
                Some(Ok(program)) => {
                    let cost = program.estimated_cost().max;
                    self.cost(item.at("messageExpression"), "estimated messageExpression cost", cost);
                }
                Some(Err(why)) => {
                    self.errors.push(fault(item.at("messageExpression"), item.value, why));
                }
                None => {}
            }
            match (rule.uses_old, apart, rule.optional_old) {
                (true, Some(apart), _) => self.errors.invalid(
                    item.at("rule"),
                    item.str("rule"),
                    format!(
                        "oldSelf cannot be used on the uncorrelatable portion of the schema within {apart}"
                    ),
                ),
                (false, _, Some(optional)) => self.errors.invalid(
                    item.at("optionalOldSelf"),
                    optional,
                    "may not be set if oldSelf is not used in rule",
                ),
                _ => {}
            }
        }
        self.examples(at);
    }

    fn cost(&mut self, path: Path, what: &str, cost: u64) {
        if cost > RULE_ESTIMATE_LIMIT {
            self.errors.forbidden(path.clone(), over(what, cost, RULE_ESTIMATE_LIMIT));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= DEFINITION_ESTIMATE_LIMIT / 100 {
            self.expensive.push((cost, path));
            self.expensive.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            self.expensive.truncate(NAMED_MAX);
        }
    }

    /// Values that the schema itself names must follow its rules.
    fn examples(&mut self, at: &At<'_>) {
        let has_some = at.has("example") || !at.list("enum").is_empty();
        if !has_some || !self.errors.0.is_empty() {
            return;
        }
        let Some(rules) = Validations::of(at.value) else { return };
        for example in at.get("example").into_iter().chain(at.items("enum")) {
            self.errors.extend(rules.check_constant(example.value, None, &example.path));
        }
    }
}

/// Defaults must follow the rules too, as values that do not change.
fn constants(at: &At<'_>, errors: &mut Errors) {
    if let Some(default) = at.get("default")
        && let Some(rules) = Validations::of(at.value)
    {
        errors.extend(rules.check_constant(default.value, Some(default.value), &default.path));
    }
    let path = at.at("properties");
    for (name, value) in at.entries("properties") {
        constants(&At { value, path: path.key(name) }, errors);
    }
    for below in ["items", "additionalProperties"].into_iter().filter_map(|field| at.get(field)) {
        constants(&below, errors);
    }
}

/// An error that shows the whole rule, as upstream's do: by the names of Go's struct, in their order.
fn fault(path: Path, rule: &Value, why: &str) -> FieldError {
    let text =
        |field: &str| rule.get(field).filter(|value| value.is_string()).cloned().unwrap_or_else(|| "".into());
    let or_null = |field: &str| rule.get(field).cloned().unwrap_or_default();
    let shown = format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        text("rule"),
        text("message"),
        text("messageExpression"),
        or_null("reason"),
        text("fieldPath"),
        or_null("optionalOldSelf")
    );
    let shown = shown.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    FieldError { kind: ErrorKind::Invalid, path, value: None, detail: format!("{shown}: {why}") }
}

fn over(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        // Not "1.0x".
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, \
         and maxLength where arrays, maps, and strings are declared)"
    )
}

#[cfg(test)]
mod tests;
