//! The rules of a whole schema (`x-kubernetes-validations`), in a tree that has only those branches
//! in which there are some, and their evaluation over an object within one budget.
//! Upstream counterpart: `apiextensions-apiserver/pkg/apiserver/schema/cel/validation.go`.

use super::rule::{Compiler, OUT_OF_BUDGET, Rule, Values, Verdict};
use super::{list, text, texts};
use crate::field::{FieldError, Path};
use serde_json::{Map, Value};
use skeg_cel::{RUNTIME_BUDGET, Schema};
use std::collections::BTreeMap;

/// The word of a schema under which its rules stand.
pub const RULES: &str = "x-kubernetes-validations";

/// The rules at and below one schema.
#[derive(Debug)]
pub struct Validations {
    kind: String,
    schema: Schema,
    rules: Vec<Rule>,
    properties: BTreeMap<String, Validations>,
    additional: Option<Box<Validations>>,
    items: Option<Box<Validations>>,
    /// By which items of a list are the same as before.
    list_keys: Option<Vec<String>>,
    is_atomic: bool,
}

/// Whether there are rules at or below a schema, outside of logic.
pub fn has_rules(schema: &Value) -> bool {
    let below = |field: &str| schema.get(field).is_some_and(has_rules);
    !list(schema, RULES).is_empty()
        || below("items")
        || below("additionalProperties")
        || schema.get("properties").and_then(Value::as_object).is_some_and(|all| all.values().any(has_rules))
}

/// What an evaluation found.
#[derive(Debug, Default)]
pub struct Found {
    pub errors: Vec<FieldError>,
    /// Rules that what is as it was does not follow: told, and let pass.
    pub warnings: Vec<FieldError>,
}

impl Validations {
    /// The rules of a resource's schema; nothing where there are none.
    pub fn of_resource(schema: &Value) -> Option<Self> {
        has_rules(schema).then(|| Self::build(schema, Schema::resource(schema)))
    }

    /// The rules of a schema within another.
    pub fn of(schema: &Value) -> Option<Self> {
        has_rules(schema).then(|| Self::build(schema, Schema::new(schema)))
    }

    fn build(document: &Value, schema: Schema) -> Self {
        let compiler = Compiler::new(&schema);
        let rules = match &compiler {
            Some(compiler) => {
                list(document, RULES).iter().map(|rule| Rule::compile(compiler, document, rule)).collect()
            }
            None => Vec::new(),
        };
        let below = |field: &str| {
            document.get(field).filter(|below| below.is_object()).and_then(Self::of).map(Box::new)
        };
        let properties = document.get("properties").and_then(Value::as_object).into_iter().flatten();
        Validations {
            kind: text(document, "type").to_owned(),
            rules,
            properties: properties.filter_map(|(name, of)| Some((name.clone(), Self::of(of)?))).collect(),
            additional: below("additionalProperties"),
            items: below("items"),
            list_keys: (text(document, "x-kubernetes-list-type") == "map")
                .then(|| texts(document, "x-kubernetes-list-map-keys")),
            is_atomic: text(document, "x-kubernetes-map-type") == "atomic",
            schema,
        }
    }

    /// Evaluates the rules over an object, and over the one that was there before.
    pub fn check(&self, new: &Value, old: Option<&Value>) -> Found {
        let ratchet = Ratchet { current: old.map(|old| (new, old)), parent: None };
        self.run(new, old, ratchet, &Path::root())
    }

    /// Evaluates the rules over a value that is in the schema itself: a default is its own old value,
    /// other values have none.
    pub fn check_constant(&self, value: &Value, old: Option<&Value>, path: &Path) -> Vec<FieldError> {
        self.run(value, old, Ratchet::default(), path).errors
    }

    fn run(&self, new: &Value, old: Option<&Value>, ratchet: Ratchet<'_>, path: &Path) -> Found {
        let mut run = Run { found: Found::default(), left: RUNTIME_BUDGET, has_ended: false };
        self.value(new, old, ratchet, &Place { outer: None, step: Step::Root(path) }, &mut run);
        run.found
    }

    fn value<'v>(
        &'v self,
        new: &'v Value,
        old: Option<&'v Value>,
        ratchet: Ratchet<'v>,
        place: &Place<'_>,
        run: &mut Run,
    ) {
        if new.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        self.rules(new, old, ratchet, place, run);
        match new {
            Value::Array(items) if self.items.is_some() => self.list(items, old, ratchet, place, run),
            Value::Object(fields) => self.fields(fields, old, ratchet, place, run),
            _ => {}
        }
    }

    fn rules(
        &self,
        new: &Value,
        old: Option<&Value>,
        ratchet: Ratchet<'_>,
        place: &Place<'_>,
        run: &mut Run,
    ) {
        let values = Values { schema: &self.schema, kind: &self.kind, new, old };
        let path = || place.path();
        for rule in &self.rules {
            if run.has_ended {
                return;
            }
            if run.left == 0 {
                run.has_ended = true;
                run.found.errors.push(FieldError::invalid(path(), values.kind, OUT_OF_BUDGET));
                return;
            }
            let verdict = rule.evaluate(&values, &path, &mut run.left);
            run.has_ended = matches!(verdict, Verdict::Ends(_) | Verdict::FailsAndEnds(_));
            match verdict {
                Verdict::Holds => {}
                Verdict::Fails(error) | Verdict::FailsAndEnds(error)
                    if !rule.uses_old && ratchet.is_unchanged() =>
                {
                    run.found.warnings.push(error);
                }
                Verdict::Fails(error)
                | Verdict::FailsAndEnds(error)
                | Verdict::Broken(error)
                | Verdict::Ends(error) => run.found.errors.push(error),
            }
        }
    }

    fn fields<'v>(
        &'v self,
        fields: &'v Map<String, Value>,
        old: Option<&'v Value>,
        ratchet: Ratchet<'v>,
        place: &Place<'_>,
        run: &mut Run,
    ) {
        if self.properties.is_empty() && self.additional.is_none() {
            return;
        }
        let before = old.and_then(Value::as_object).filter(|_| !self.is_atomic);
        for (name, value) in fields {
            let (below, step) = match (self.properties.get(name), &self.additional) {
                (Some(below), _) => (below, Step::Field(name)),
                (None, Some(below)) => (&**below, Step::Key(name)),
                (None, None) => continue,
            };
            if run.has_ended {
                return;
            }
            let was = before.and_then(|before| before.get(name));
            let place = Place { outer: Some(place), step };
            below.value(value, was, ratchet.field(name, value, was), &place, run);
        }
    }

    fn list<'v>(
        &'v self,
        items: &'v [Value],
        old: Option<&'v Value>,
        ratchet: Ratchet<'v>,
        place: &Place<'_>,
        run: &mut Run,
    ) {
        let Some(below) = &self.items else { return };
        let before = match (&self.list_keys, old.and_then(Value::as_array)) {
            (Some(keys), Some(before)) => Some((
                keys,
                before.iter().map(|item| (identity(item, keys), item)).collect::<BTreeMap<_, _>>(),
            )),
            _ => None,
        };
        for (index, item) in items.iter().enumerate() {
            if run.has_ended {
                return;
            }
            let was = before.as_ref().and_then(|(keys, before)| before.get(&identity(item, keys)).copied());
            let place = Place { outer: Some(place), step: Step::Index(index) };
            below.value(item, was, ratchet.below(item, was), &place, run);
        }
    }
}

/// What makes an item of a list the same as another.
fn identity(item: &Value, keys: &[String]) -> String {
    keys.iter().map(|key| item.get(key).map(Value::to_string).unwrap_or_default() + "\n").collect()
}

struct Run {
    found: Found,
    /// Of the budget of all rules.
    left: u64,
    has_ended: bool,
}

/// What tells whether the value under a rule is as it was: itself, or where nothing corresponds to it,
/// what is nearest around it. Compared only once a rule fails.
#[derive(Clone, Copy, Default)]
struct Ratchet<'v> {
    current: Option<(&'v Value, &'v Value)>,
    parent: Option<(&'v Value, &'v Value)>,
}

impl<'v> Ratchet<'v> {
    fn is_unchanged(&self) -> bool {
        self.current.or(self.parent).is_some_and(|(new, old)| new == old)
    }

    fn below(self, new: &'v Value, old: Option<&'v Value>) -> Self {
        match self.current {
            Some(_) => Ratchet { current: old.map(|old| (new, old)), parent: self.current },
            None => self,
        }
    }

    fn field(self, name: &str, new: &'v Value, old: Option<&'v Value>) -> Self {
        // These are the same in whatever version both were written.
        if self.parent.is_none() && matches!(name, "apiVersion" | "kind") {
            return Ratchet::default();
        }
        self.below(new, old)
    }
}

/// Where a value stands, on the stack: the path is needed only for errors.
struct Place<'p> {
    outer: Option<&'p Place<'p>>,
    step: Step<'p>,
}

enum Step<'p> {
    Root(&'p Path),
    Field(&'p str),
    Key(&'p str),
    Index(usize),
}

impl Place<'_> {
    fn path(&self) -> Path {
        let outer = self.outer.map(Place::path).unwrap_or_default();
        match self.step {
            Step::Root(path) => path.clone(),
            Step::Field(name) => outer.child(name),
            Step::Key(key) => outer.key(key),
            Step::Index(index) => outer.index(index),
        }
    }
}

#[cfg(test)]
mod tests;
