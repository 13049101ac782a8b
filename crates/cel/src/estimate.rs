//! What an expression costs at least and at most, before it runs.
//!
//! Upstream's counterpart is the coster of cel-go's checker with the API server's estimator; limits on
//! the rules of definitions are in its numbers, so they are kept to the letter.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{ACCUMULATOR, Comprehension, Expr, Kind, Literal, Tree};
use crate::check::Checked;
use crate::env::Env;
use crate::library::cost::{CHECK_COST, REGEX_FACTOR, STRING_FACTOR};
use crate::schema::{Declared, Parts};
use crate::types::Type;

/// The least and the most of a cost, or of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub min: u64,
    pub max: u64,
}

/// Sizes and costs are ranges alike.
type Size = Cost;

impl Cost {
    pub(crate) const UNKNOWN: Self = Self { min: 0, max: u64::MAX };

    pub(crate) fn fixed(n: u64) -> Self {
        Self { min: n, max: n }
    }

    pub(crate) fn add(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    pub(crate) fn multiply(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// Rounded up.
    pub(crate) fn scale(self, factor: f64) -> Self {
        // A float beyond the range becomes the end of the range.
        let scale = |n: u64| (n as f64 * factor).ceil() as u64;
        Self { min: scale(self.min), max: scale(self.max) }
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// The sizes of keys or indices and of values of a list or map.
#[derive(Clone, Copy, Debug)]
struct Entries {
    of_list: bool,
    key: Size,
    value: Size,
}

type Path = Arc<Vec<Arc<str>>>;

/// What is known of a variable of a comprehension or a binding.
#[derive(Clone, Default)]
struct Local {
    path: Option<Path>,
    size: Option<Size>,
    entries: Option<Entries>,
}

struct Estimator<'e> {
    env: &'e Env,
    checked: &'e Checked,
    paths: BTreeMap<u32, Path>,
    sizes: BTreeMap<u32, Size>,
    entries: BTreeMap<u32, Entries>,
    locals: Vec<(Arc<str>, Local)>,
}

const ONE: Cost = Cost { min: 1, max: 1 };
const NONE: Cost = Cost { min: 0, max: 0 };
const LIST_COST: Cost = Cost { min: 10, max: 10 };
const MAP_COST: Cost = Cost { min: 30, max: 30 };
const STRUCT_COST: Cost = Cost { min: 40, max: 40 };
/// The longest pattern of a named format.
const FORMAT_PATTERN_MAX: f64 = 128.0;
/// The longest name of a format.
const FORMAT_NAME_MAX: u64 = 64;

pub(crate) fn estimate(env: &Env, tree: &Tree, checked: &Checked) -> Cost {
    let mut estimator = Estimator {
        env,
        checked,
        paths: BTreeMap::new(),
        sizes: BTreeMap::new(),
        entries: BTreeMap::new(),
        locals: Vec::new(),
    };
    estimator.cost(&tree.root)
}

impl Estimator<'_> {
    fn of(&self, expr: &Expr) -> &Type {
        &self.checked.types[expr.id as usize]
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|(local, _)| &**local == name).map(|(_, local)| local)
    }

    fn path(&self, expr: &Expr) -> Option<Path> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned()
    }

    fn extended(path: Option<Path>, step: &str) -> Path {
        let mut steps = path.map_or_else(Vec::new, |path| (*path).clone());
        steps.push(step.into());
        Arc::new(steps)
    }

    /// The declared size of what a path leads to.
    fn declared_size(&self, path: &[Arc<str>]) -> Option<Size> {
        let (root, steps) = path.split_first()?;
        let mut at: &Declared = self.env.declared(root)?;
        for step in steps {
            at = match (&**step, &at.parts) {
                ("@items", Parts::Items(inner))
                | ("@values", Parts::Values(inner) | Parts::Named(inner, _)) => inner,
                ("@keys", Parts::Named(_, max)) => return Some(Size { min: 0, max: *max }),
                // Leaves of whatever name are alike.
                (_, Parts::Named(inner, _)) if inner.of.is_dyn() => inner,
                // Keys are strings of which nothing is known but that they are.
                ("@keys", Parts::Values(_)) => return Some(NONE),
                (name, Parts::Fields(fields)) => fields.get(name)?,
                _ => return None,
            };
        }
        Some(Size { min: 0, max: at.max_elements })
    }

    fn size(&self, expr: &Expr) -> Option<Size> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        let literal = match &expr.kind {
            Kind::Literal(Literal::String(text)) => Some(text.chars().count()),
            Kind::Literal(Literal::Bytes(bytes)) => Some(bytes.len()),
            Kind::Literal(_) => Some(1),
            Kind::List(items) => Some(items.len()),
            Kind::Map(entries) => Some(entries.len()),
            _ => None,
        };
        if let Some(size) = literal {
            return Some(Size::fixed(size as u64));
        }
        let path = self.path(expr).filter(|path| path.first().is_none_or(|root| &**root != ACCUMULATOR));
        if let Some(size) = path.and_then(|path| self.declared_size(&path)) {
            return Some(size);
        }
        if is_scalar(self.of(expr)) {
            return Some(ONE);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.size,
            _ => None,
        }
    }

    fn size_or_unknown(&self, expr: &Expr) -> Size {
        self.size(expr).unwrap_or(Size::UNKNOWN)
    }

    fn entry_sizes(&self, expr: &Expr) -> Option<Entries> {
        self.entries.get(&expr.id).copied().or_else(|| match &expr.kind {
            Kind::Ident(name) => self.local(name)?.entries,
            _ => None,
        })
    }

    fn set_size(&mut self, expr: &Expr, size: Option<Size>) {
        if let Some(size) = size {
            self.sizes.insert(expr.id, size);
        }
    }

    fn set_entries(&mut self, expr: &Expr, entries: Option<Entries>) {
        if let Some(entries) = entries {
            self.entries.insert(expr.id, entries);
        }
    }

    fn cost(&mut self, expr: &Expr) -> Cost {
        match &expr.kind {
            Kind::Literal(_) => NONE,
            Kind::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => Some(Arc::new(vec![name.trim_start_matches('.').into()])),
                };
                if let Some(path) = path {
                    self.paths.insert(expr.id, path);
                }
                ONE
            }
            Kind::Select { operand, test: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let mut sum = self.cost(operand);
                if matches!(self.of(operand), Type::Map(_) | Type::Object(_) | Type::Param(_)) {
                    sum = sum.add(ONE);
                }
                let path = Self::extended(self.path(operand), field);
                self.paths.insert(expr.id, path);
                sum
            }
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => {
                let mut sum = LIST_COST;
                let mut size = if items.is_empty() { NONE } else { Size { min: u64::MAX, max: 0 } };
                for (item, _) in items {
                    sum = sum.add(self.cost(item));
                    size = size.union(self.size_or_unknown(item));
                }
                self.set_entries(expr, Some(Entries { of_list: true, key: ONE, value: size }));
                sum
            }
            Kind::Map(entries) => {
                let mut sum = MAP_COST;
                let nothing = if entries.is_empty() { NONE } else { Size { min: u64::MAX, max: 0 } };
                let (mut keys, mut values) = (nothing, nothing);
                for entry in entries {
                    sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
                    keys = keys.union(self.size_or_unknown(&entry.key));
                    values = values.union(self.size_or_unknown(&entry.value));
                }
                self.set_entries(expr, Some(Entries { of_list: false, key: keys, value: values }));
                sum
            }
            Kind::Struct { fields, .. } => {
                fields.iter().fold(STRUCT_COST, |sum, field| sum.add(self.cost(&field.value)))
            }
            Kind::Comprehension(fold) if fold.is_bind() => self.bind(expr, fold),
            Kind::Comprehension(fold) => self.fold(expr, fold),
        }
    }

    fn push_bound(&mut self, name: &Arc<str>, value: &Expr) {
        let local =
            Local { path: self.path(value), size: self.size(value), entries: self.entry_sizes(value) };
        self.locals.push((name.clone(), local));
    }

    fn bind(&mut self, expr: &Expr, fold: &Comprehension) -> Cost {
        let sum = self.cost(&fold.range).add(self.cost(&fold.init));
        self.push_bound(&fold.accu, &fold.init);
        let sum = sum.add(self.cost(&fold.result));
        let (size, entries) = (self.size(&fold.result), self.entry_sizes(&fold.result));
        self.locals.pop();
        self.set_size(expr, size);
        self.set_entries(expr, entries);
        sum
    }

    fn fold(&mut self, expr: &Expr, fold: &Comprehension) -> Cost {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        let scope = self.locals.len();
        self.push_bound(&fold.accu, &fold.init);
        let entries = self.entry_sizes(&fold.range);
        let path = self.path(&fold.range);
        let of_list =
            entries.map_or(matches!(self.of(&fold.range), Type::List(_)), |entries| entries.of_list);
        let local = |step: &str, size: Option<Size>| Local {
            path: Some(Self::extended(path.clone(), step)),
            size,
            entries: None,
        };
        let key = local(if of_list { "@indices" } else { "@keys" }, entries.map(|entries| entries.key));
        let value = local(if of_list { "@items" } else { "@values" }, entries.map(|entries| entries.value));
        match &fold.var2 {
            Some(var2) => {
                self.locals.push((fold.var.clone(), key));
                self.locals.push((var2.clone(), value));
            }
            None => self.locals.push((fold.var.clone(), if of_list { value } else { key })),
        }
        let each = self.cost(&fold.condition).add(self.cost(&fold.step));
        let step_entries = self.entry_sizes(&fold.step);
        self.locals.truncate(scope + 1);
        sum = sum.add(self.cost(&fold.result));
        self.locals.truncate(scope);
        let count = self.size_or_unknown(&fold.range);
        sum = sum.add(count.multiply(each));
        match &fold.init.kind {
            Kind::Literal(_) => {
                let size = self.size(&fold.init);
                self.set_size(expr, size);
            }
            Kind::List(_) | Kind::Map(_) => {
                self.set_size(expr, Some(count));
                self.set_entries(expr, step_entries);
            }
            _ => {}
        }
        sum
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Cost {
        if function == "dyn"
            && let [arg] = args
        {
            let cost = self.cost(arg);
            let (size, entries) = (self.size(arg), self.entry_sizes(arg));
            self.set_size(expr, size);
            self.set_entries(expr, entries);
            return cost.add(ONE);
        }
        let arg_costs: Vec<Cost> = args.iter().map(|arg| self.cost(arg)).collect();
        let mut overloads: Vec<&str> =
            self.checked.calls[expr.id as usize].iter().map(|overload| overload.id).collect();
        if function == "_?._" {
            overloads.push("select_optional_field");
        }
        if overloads.is_empty() {
            return NONE;
        }
        let mut sum = NONE;
        if let Some(target) = target {
            sum = self.cost(target);
        }
        let mut all = Cost { min: u64::MAX, max: 0 };
        let mut result_size: Option<Size> = None;
        for overload in overloads {
            let (cost, size) = self.overload(expr, function, overload, target, args, &arg_costs);
            all = all.union(cost);
            if let Some(size) = size {
                result_size = Some(result_size.map_or(size, |before| before.union(size)));
            }
            let step = match overload {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let (Some(step), Some(of)) = (step, args.first()) {
                result_size = self.entry_sizes(of).map(|entries| entries.value);
                let path = Self::extended(self.path(of), step);
                self.paths.insert(expr.id, path);
            }
            if result_size.is_none() {
                result_size = self.size(expr);
            }
        }
        self.set_size(expr, result_size);
        sum.add(all)
    }

    /// The cost of one overload with its arguments, and the size of its result.
    fn overload(
        &mut self,
        expr: &Expr,
        function: &str,
        overload: &str,
        target: Option<&Expr>,
        args: &[Expr],
        costs: &[Cost],
    ) -> (Cost, Option<Size>) {
        let all = costs.iter().fold(NONE, |sum, cost| sum.add(*cost));
        if let Some((cost, size)) = self.library(function, overload, target, args) {
            return (cost.add(all), size);
        }
        let size = |index: usize| args.get(index).map_or(Size::UNKNOWN, |arg| self.size_or_unknown(arg));
        match overload {
            "logical_or" | "logical_and" => {
                (Cost { min: costs[0].min, max: costs[0].add(costs[1]).max }, None)
            }
            "conditional" => {
                let (yes, no) = (self.entry_sizes(&args[1]), self.entry_sizes(&args[2]));
                let result = size(1).union(size(2));
                self.set_entries(expr, union_entries(yes, no));
                (costs[0].add(costs[1].union(costs[2])), Some(result))
            }
            "add_string" | "add_bytes" | "add_list" => {
                let result = size(0).add(size(1));
                let entries = union_entries(self.entry_sizes(&args[0]), self.entry_sizes(&args[1]));
                self.set_entries(expr, entries);
                let cost = if overload == "add_list" { ONE } else { result.scale(STRING_FACTOR) };
                (cost.add(all), Some(result))
            }
            "string_to_bytes" => {
                let result = Size { min: size(0).min, max: size(0).max.saturating_mul(4) };
                (size(0).scale(STRING_FACTOR).add(all), Some(result))
            }
            "bytes_to_string" => {
                (size(0).scale(STRING_FACTOR).add(all), Some(Size { min: size(0).min / 4, max: size(0).max }))
            }
            "strings_quote" => {
                let result = Size {
                    min: size(0).min.saturating_add(2),
                    max: size(0).max.saturating_mul(2).saturating_add(2),
                };
                (size(0).scale(STRING_FACTOR).add(all), Some(result))
            }
            "string_format_list_string" => {
                let of = target.map_or(Size::UNKNOWN, |target| self.size_or_unknown(target));
                (of.scale(STRING_FACTOR).add(all), None)
            }
            "starts_with_string" | "ends_with_string" => (size(0).scale(STRING_FACTOR).add(all), None),
            "in_list" => (size(1).add(all), None),
            "matches_string" | "contains_string" if target.is_some() => {
                let of = target.map_or(Size::UNKNOWN, |target| self.size_or_unknown(target));
                let cost = if overload == "matches_string" {
                    of.add(ONE).scale(STRING_FACTOR).multiply(size(0).scale(REGEX_FACTOR))
                } else {
                    of.scale(STRING_FACTOR).multiply(size(0).scale(STRING_FACTOR))
                };
                (cost.add(all), None)
            }
            "less_string"
            | "greater_string"
            | "less_equals_string"
            | "greater_equals_string"
            | "less_bytes"
            | "greater_bytes"
            | "less_equals_bytes"
            | "greater_equals_bytes"
            | "equals"
            | "not_equals" => {
                let max = size(0).max.min(size(1).max);
                (Cost { min: max.min(1), max }.scale(STRING_FACTOR).add(all), None)
            }
            _ => (ONE.add(all), None),
        }
    }

    /// The estimates of the API server's libraries, without the costs of arguments.
    fn library(
        &self,
        function: &str,
        overload: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Option<(Cost, Option<Size>)> {
        let size = |index: usize| args.get(index).map_or(Size::UNKNOWN, |arg| self.size_or_unknown(arg));
        let plain = |cost: Cost| Some((cost, None));
        match function {
            "check" => plain(Cost::fixed(CHECK_COST)),
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery" => plain(ONE),
            "fieldSelector" | "labelSelector" if args.len() == 1 => {
                let parse = size(0).scale(STRING_FACTOR);
                plain(LIST_COST.add(parse).add(size(0).scale(0.5).scale(50.0)))
            }
            "url" | "jsonpatch.escapeKey" if args.len() == 1 => {
                Some((size(0).scale(STRING_FACTOR), Some(size(0))))
            }
            "sets.contains" | "sets.intersects" => plain(size(0).multiply(size(1)).add(ONE)),
            "sets.equivalent" => plain(size(0).multiply(size(1)).scale(2.0).add(ONE)),
            "_==_" if args.len() == 2 && self.of(&args[0]) == self.of(&args[1]) => match self.of(&args[0]) {
                Type::Opaque(name, _) if &**name == "kubernetes.NamedFormat" => {
                    plain(Cost { min: 1, max: FORMAT_NAME_MAX }.scale(STRING_FACTOR))
                }
                Type::Opaque(name, _) if &**name == "kubernetes.URL" => {
                    let max = self.size(&args[1]).map_or(1, |size| size.max);
                    plain(Cost { min: 1, max }.scale(STRING_FACTOR))
                }
                Type::Opaque(name, _) if name.starts_with("net.") || name.starts_with("kubernetes.") => {
                    plain(ONE)
                }
                _ => None,
            },
            _ => self.member(function, overload, target?, args),
        }
    }

    /// The estimates of members.
    fn member(
        &self,
        function: &str,
        overload: &str,
        target: &Expr,
        args: &[Expr],
    ) -> Option<(Cost, Option<Size>)> {
        let of = self.size_or_unknown(target);
        let size = |index: usize| args.get(index).map_or(Size::UNKNOWN, |arg| self.size_or_unknown(arg));
        let plain = |cost: Cost| Some((cost, None));
        match function {
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => match self.item(target) {
                Some((item, item_size)) => {
                    let mut each = ONE;
                    if matches!(item, Type::String | Type::Bytes) {
                        each = each.add(item_size.scale(STRING_FACTOR));
                    }
                    plain(of.multiply(each))
                }
                None => plain(of.scale(STRING_FACTOR)),
            },
            "lowerAscii" | "upperAscii" | "substring" | "trim" => Some((of.scale(STRING_FACTOR), Some(of))),
            "replace" if args.len() >= 2 => {
                Some((of.scale(2.0 * STRING_FACTOR), Some(replaced_size(of, size(0), size(1)))))
            }
            "split" => {
                let max = match args.get(1).map(|arg| &arg.kind) {
                    Some(Kind::Literal(Literal::Int(n))) => *n as u64,
                    _ => of.max,
                };
                Some((of.scale(2.0 * STRING_FACTOR), Some(Size { min: 0, max })))
            }
            "join" => {
                let mut result = self.item(target).map_or(NONE, |(_, item)| of.multiply(item));
                if !args.is_empty() {
                    let between = Size { min: of.min.saturating_sub(1), max: of.max.saturating_sub(1) };
                    result = result.add(size(0).multiply(between));
                }
                Some((result.scale(STRING_FACTOR), Some(result)))
            }
            "find" | "findAll" if !args.is_empty() => {
                let cost = of.add(ONE).scale(STRING_FACTOR).multiply(size(0).scale(REGEX_FACTOR));
                Some((cost, Some(Size { min: 0, max: of.max })))
            }
            "ip" => plain(ONE),
            "containsIP" | "containsCIDR" if !args.is_empty() => {
                let bytes = Size { min: 4, max: 16 };
                let mut cost = bytes.add(bytes).scale(STRING_FACTOR);
                if function == "containsCIDR" {
                    cost = cost.add(bytes.scale(STRING_FACTOR)).add(ONE);
                }
                if overload.ends_with("_string") {
                    cost = cost.add(size(0).scale(STRING_FACTOR));
                }
                plain(cost)
            }
            "validate" => plain(size(0).scale(STRING_FACTOR).scale(FORMAT_PATTERN_MAX * REGEX_FACTOR)),
            _ => None,
        }
    }

    /// The type and size of the items of a list, where it is one.
    fn item(&self, list: &Expr) -> Option<(Type, Size)> {
        let of = self.of(list);
        let item = (*of.parameters().first()?).clone();
        let path = self.path(list).filter(|path| path.first().is_none_or(|root| &**root != ACCUMULATOR));
        let size = path.and_then(|path| self.declared_size(&Self::extended(Some(path), "@items")));
        Some((item, size.unwrap_or(Size::UNKNOWN)))
    }
}

fn union_entries(a: Option<Entries>, b: Option<Entries>) -> Option<Entries> {
    let (a, b) = (a?, b?);
    Some(Entries { of_list: a.of_list, key: a.key.union(b.key), value: a.value.union(b.value) })
}

fn is_scalar(of: &Type) -> bool {
    match of {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        other => other.unwrap_optional().is_some_and(is_scalar),
    }
}

/// How long a text gets whose parts are replaced.
fn replaced_size(of: Size, old: Size, new: Size) -> Size {
    let parts = |whole: u64, part: u64| (whole as f64 / part as f64).ceil() as u64;
    // The longest: the shortest parts are replaced as often as there can be.
    let (max_count, max_kept) = if old.min == 0 {
        (of.max.saturating_add(1), of.max)
    } else if new.max <= old.min {
        (0, of.max)
    } else {
        (parts(of.max, old.min), 0)
    };
    let (min_count, min_kept) = if old.max == 0 {
        (of.min.saturating_add(1), of.min)
    } else if old.max <= new.min {
        (0, of.min)
    } else {
        (parts(of.min, old.max), 0)
    };
    let count = Size { min: min_count, max: max_count };
    count.multiply(new).add(Size { min: min_kept, max: max_kept })
}
