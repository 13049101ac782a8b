//! A compiled expression.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ast::{Expr, Kind, Literal, Tree};
use crate::check::Checked;
use crate::context::{Context, Limits};
use crate::env::Env;
use crate::error::Error;
use crate::estimate::{Cost, estimate};
use crate::eval::{Activation, Evaluator, Nothing};
use crate::function::Overload;
use crate::issue::{Issue, Issues};
use crate::library;
use crate::types::Type;
use crate::value::{List, Value};

/// An expression that can be evaluated, by any number of threads at once.
#[derive(Debug)]
pub struct Program {
    pub(crate) root: Expr,
    pub(crate) calls: Vec<Vec<&'static Overload>>,
    /// Values of nodes that have the same one each time.
    pub(crate) constants: Vec<Option<Value<'static>>>,
    of: Type,
    cost: Cost,
    names: BTreeSet<Arc<str>>,
    depth: u32,
}

/// What an evaluation gave, and what it cost.
#[derive(Debug)]
pub struct Evaluation<'a> {
    pub value: Result<Value<'a>, Error>,
    pub cost: u64,
}

impl Program {
    pub(crate) fn new(env: &Env, text: &str, tree: Tree, checked: Checked) -> Result<Self, Issues> {
        let (mut issues, mut pattern) = (Vec::new(), None);
        validate(&tree.root, &mut issues, &mut pattern);
        if !issues.is_empty() {
            return Err(Issues::new(text, issues));
        }
        if let Some(message) = pattern {
            return Err(Issues::of_program(message));
        }
        let cost = estimate(env, &tree, &checked);
        let mut names = BTreeSet::new();
        collect_names(&tree.root, &mut names);
        let depth = depth(&tree.root);
        let of = checked.types[tree.root.id as usize].clone();
        let Checked { calls, mut constants, .. } = checked;
        fold_constants(&tree.root, &mut constants, &calls);
        Ok(Self { root: tree.root, calls, constants, of, cost, names, depth })
    }

    /// The type of its value.
    pub fn value_type(&self) -> &Type {
        &self.of
    }

    /// The least and the most that an evaluation is estimated to cost.
    pub fn estimated_cost(&self) -> Cost {
        self.cost
    }

    /// Whether it names a variable, as a rule with `oldSelf` does.
    pub fn names(&self, variable: &str) -> bool {
        self.names.contains(variable)
    }

    /// The variables that it names.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// How many expressions stand in each other: what an evaluation needs of the stack.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Evaluates within limits.
    pub fn evaluate<'a>(&self, variables: &dyn Activation<'a>, limits: Limits<'_>) -> Evaluation<'a> {
        let mut evaluator = Evaluator::new(self, variables, Context::new(limits));
        let value = evaluator.eval(&self.root);
        Evaluation { value, cost: evaluator.cost() }
    }
}

/// Evaluates once what is the same each time (literals of lists and maps, conversions of literals), from the
/// leaves up; returns whether `expr` is such.
fn fold_constants(
    expr: &Expr,
    constants: &mut Vec<Option<Value<'static>>>,
    calls: &[Vec<&'static Overload>],
) -> bool {
    let mut all = true;
    expr.children(&mut |child| all &= fold_constants(child, constants, calls));
    if constants[expr.id as usize].is_some() {
        return true;
    }
    let foldable = match &expr.kind {
        Kind::Literal(_) => return true,
        Kind::List(items) => all && items.iter().all(|(_, optional)| !optional),
        Kind::Map(entries) => all && entries.iter().all(|entry| !entry.optional),
        Kind::Call { function, target: None, args } => {
            let conversion = matches!(
                &**function,
                "bool"
                    | "bytes"
                    | "double"
                    | "duration"
                    | "dyn"
                    | "int"
                    | "string"
                    | "timestamp"
                    | "type"
                    | "uint"
            );
            all && conversion && args.len() == 1
        }
        _ => false,
    };
    if foldable {
        let mut evaluator = Evaluator::of(constants, calls, &Nothing, Context::new(Limits::default()));
        constants[expr.id as usize] = evaluator.eval(expr).ok();
    }
    constants[expr.id as usize].is_some()
}

/// Literals that can be no pattern, timestamp or duration are told when compiling.
fn validate(expr: &Expr, issues: &mut Vec<Issue>, pattern: &mut Option<String>) {
    expr.children(&mut |child| validate(child, issues, pattern));
    let Kind::Call { function, target, args } = &expr.kind else { return };
    let count = args.len() + usize::from(target.is_some());
    let arg = if matches!(&**function, "find" | "findAll") { args.first() } else { args.last() };
    let Some(arg) = arg else { return };
    let Kind::Literal(Literal::String(text)) = &arg.kind else { return };
    let valid = match (&**function, count) {
        ("matches", 2) => library::regex::compile(text).is_ok(),
        ("find", 2) | ("findAll", 2 | 3) => {
            *pattern = pattern.take().or(library::regex::compile(text).err());
            true
        }
        ("duration", 1) => crate::time::parse_duration(text).is_some(),
        ("timestamp", 1) => crate::time::parse_timestamp(text).is_some(),
        _ => true,
    };
    if !valid {
        issues.push(Issue::new(arg.at, format!("invalid {function} argument")));
    }
}

fn depth(expr: &Expr) -> u32 {
    let mut below = 0;
    expr.children(&mut |child| below = below.max(depth(child)));
    below + 1
}

fn collect_names(expr: &Expr, names: &mut BTreeSet<Arc<str>>) {
    if let Kind::Ident(name) = &expr.kind {
        names.insert(name.clone());
    }
    expr.children(&mut |child| collect_names(child, names));
}

/// Whether a constant list is one that a membership test looks up rather than walks.
pub(crate) fn is_set(value: &Value<'_>) -> bool {
    let Value::List(List::Made(items, None)) = value else { return false };
    let simple = |item: &Value<'_>| {
        matches!(
            item,
            Value::Bool(_)
                | Value::Int(_)
                | Value::Uint(_)
                | Value::Double(_)
                | Value::String(_)
                | Value::Bytes(_)
        )
    };
    items.iter().all(simple)
        && items.windows(2).all(|pair| std::mem::discriminant(&pair[0]) == std::mem::discriminant(&pair[1]))
}
