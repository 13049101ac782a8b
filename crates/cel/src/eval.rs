//! Evaluation, with costs counted as cel-go counts them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{ACCUMULATOR, Comprehension, Entry, Expr, Field, Kind, Literal};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::function::Overload;
use crate::library::{collections, cost};
use crate::program::{Program, is_set};
use crate::value::{Key, Map, Struct, Text, Value};

/// The variables of an evaluation.
pub trait Activation<'a> {
    /// The value of a variable; none if there is none of that name. It may be made only when asked for.
    fn resolve(&self, name: &str) -> Option<Result<Value<'a>, Error>>;
}

/// Variables by name.
impl<'a> Activation<'a> for BTreeMap<&str, Value<'a>> {
    fn resolve(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        self.get(name).cloned().map(Ok)
    }
}

/// No variables.
pub(crate) struct Nothing;

impl<'a> Activation<'a> for Nothing {
    fn resolve(&self, _: &str) -> Option<Result<Value<'a>, Error>> {
        None
    }
}

type Outcome<'a> = Result<Value<'a>, Error>;

pub(crate) struct Evaluator<'p, 'i, 'a> {
    constants: &'p [Option<Value<'static>>],
    calls: &'p [Vec<&'static Overload>],
    variables: &'p dyn Activation<'a>,
    cx: Context<'i>,
    /// Variables of comprehensions and bindings. One may hold an error, which whoever names it gets.
    locals: Vec<(Arc<str>, Outcome<'a>)>,
}

const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
const STRUCT_COST: u64 = 40;

impl<'p, 'i, 'a> Evaluator<'p, 'i, 'a> {
    pub fn new(program: &'p Program, variables: &'p dyn Activation<'a>, cx: Context<'i>) -> Self {
        Self::of(&program.constants, &program.calls, variables, cx)
    }

    pub fn of(
        constants: &'p [Option<Value<'static>>],
        calls: &'p [Vec<&'static Overload>],
        variables: &'p dyn Activation<'a>,
        cx: Context<'i>,
    ) -> Self {
        Self { constants, calls, variables, cx, locals: Vec::new() }
    }

    pub fn cost(&self) -> u64 {
        self.cx.cost
    }

    pub fn eval(&mut self, expr: &Expr) -> Outcome<'a> {
        if let Some(value) = &self.constants[expr.id as usize] {
            return Ok(value.clone());
        }
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal.value()),
            Kind::Ident(name) => self.ident(name),
            Kind::Select { operand, field, test: false } => self.select(operand, field),
            Kind::Select { operand, field, test: true } => self.has(operand, field),
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.structure(name, fields),
            Kind::Comprehension(fold) => self.fold(fold),
        }
    }

    #[inline(never)]
    fn ident(&mut self, name: &str) -> Outcome<'a> {
        let name = name.trim_start_matches('.');
        self.cx.spend(1)?;
        if let Some((_, value)) = self.locals.iter().rev().find(|(local, _)| &**local == name) {
            return value.clone();
        }
        self.variables
            .resolve(name)
            .unwrap_or_else(|| Err(Error::new(format!("no such attribute(s): {name}"))))
    }

    /// What a selection adds to the cost of its operand: one for the field, and one more for the
    /// selection itself where the operand is no chain of names.
    fn spend_selection(&mut self, operand: &Expr) -> Result<(), Error> {
        let chain = is_attribute(operand)
            || matches!(&operand.kind, Kind::Call { function, .. } if &**function == "_?_:_");
        self.cx.spend(if chain { 1 } else { 2 })
    }

    /// A branch of a condition, or an index: a chain of names there costs one less, for it is
    /// resolved with what it is part of.
    fn eval_part(&mut self, expr: &Expr) -> Outcome<'a> {
        let value = self.eval(expr);
        if is_attribute(expr) && self.constants[expr.id as usize].is_none() {
            self.cx.cost = self.cx.cost.saturating_sub(1);
        }
        value
    }

    #[inline(never)]
    fn select(&mut self, operand: &Expr, field: &Arc<str>) -> Outcome<'a> {
        let of = self.eval(operand)?;
        self.spend_selection(operand)?;
        let name = Value::String(Text::Shared(field.clone()));
        match &of {
            Value::Optional(Some(inner)) => optional(collections::find(inner, &name)?),
            Value::Optional(None) => Ok(of),
            Value::Map(_) | Value::Struct(_) => collections::index(&of, &name),
            _ => Err(Error::no_such_overload()),
        }
    }

    #[inline(never)]
    fn has(&mut self, operand: &Expr, field: &Arc<str>) -> Outcome<'a> {
        let of = self.eval(operand)?;
        let name = Value::String(Text::Shared(field.clone()));
        let found = match &of {
            Value::Optional(Some(inner)) => collections::find(inner, &name)?,
            Value::Optional(None) => None,
            Value::Map(_) | Value::Struct(_) => collections::find(&of, &name)?,
            _ => return Err(Error::no_such_overload()),
        };
        Ok(Value::Bool(found.is_some()))
    }

    #[inline(never)]
    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Outcome<'a> {
        match (function, target, args) {
            ("_&&_", None, [a, b]) => self.logical(a, b, false),
            ("_||_", None, [a, b]) => self.logical(a, b, true),
            ("_?_:_", None, [condition, yes, no]) => match self.eval(condition)? {
                Value::Bool(true) => self.eval_part(yes),
                Value::Bool(false) => self.eval_part(no),
                _ => Err(Error::no_such_overload()),
            },
            ("@not_strictly_false", None, [arg]) => {
                let value = self.eval(arg);
                self.cx.spend(1)?;
                match value {
                    Ok(Value::Bool(b)) => Ok(Value::Bool(b)),
                    Err(error) if error.kind != ErrorKind::Value => Err(error),
                    _ => Ok(Value::Bool(true)),
                }
            }
            ("_[_]" | "_[?_]" | "_?._", None, [of, at]) => self.index(of, at, function != "_[_]"),
            ("or" | "orValue", Some(target), [other]) => match self.eval(target)? {
                Value::Optional(Some(value)) if function == "orValue" => Ok((*value).clone()),
                Value::Optional(None) => self.eval(other),
                some @ Value::Optional(_) => Ok(some),
                _ => Err(Error::no_such_overload()),
            },
            ("_+_", None, [accu, more]) if is_accumulator(accu) && matches!(more.kind, Kind::List(_)) => {
                self.cx.spend(1)?;
                let more = self.eval(more)?;
                self.cx.spend(1)?;
                let accu = self.take_accumulator()?;
                collections::append(&mut self.cx, accu, more)
            }
            ("cel.@mapInsert", None, [accu, rest @ ..]) => {
                self.cx.spend(1)?;
                let mut values = Vec::with_capacity(rest.len());
                for arg in rest {
                    values.push(self.eval(arg)?);
                }
                self.cx.spend(1)?;
                debug_assert!(is_accumulator(accu), "only macros call it");
                let accu = self.take_accumulator()?;
                collections::insert(&mut self.cx, accu, &values)
            }
            ("@in", None, [item, set]) if self.constants[set.id as usize].as_ref().is_some_and(is_set) => {
                let item = self.eval(item)?;
                let Some(Value::List(set)) = &self.constants[set.id as usize] else {
                    return Err(Error::no_such_overload());
                };
                for other in set.iter() {
                    if crate::equality::equal(&mut self.cx, &item, &other?)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            _ => self.apply(expr, function, target, args),
        }
    }

    /// A function of values.
    #[inline(never)]
    fn apply(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Outcome<'a> {
        let mut values = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.eval(arg)?);
        }
        let overloads = &self.calls[expr.id as usize];
        let fitting = overloads.iter().find(|overload| {
            overload.params.len() == values.len()
                && overload.params.iter().zip(&values).all(|(p, v)| v.fits(p))
        });
        let Some(overload) = fitting else {
            let types: Vec<String> = values.iter().map(|value| value.type_of().runtime_name()).collect();
            return Err(Error::new(format!("no such overload: {function}({})", types.join(", "))));
        };
        let cost = cost::of_call(&mut self.cx, function, overload.id, &values)?;
        self.cx.spend(cost)?;
        let value = (overload.body)(&mut self.cx, &values)?;
        self.cx.spend(cost::of_result(function, &value))?;
        Ok(value)
    }

    /// `&&` and `||`: either side alone decides, and an error counts only if neither does.
    #[inline(never)]
    fn logical(&mut self, a: &Expr, b: &Expr, decides: bool) -> Outcome<'a> {
        let first = self.eval(a);
        match &first {
            Ok(Value::Bool(value)) if *value == decides => return first,
            Err(error) if error.kind != ErrorKind::Value => return first,
            _ => {}
        }
        let second = self.eval(b);
        match &second {
            Ok(Value::Bool(value)) if *value == decides => return second,
            Err(error) if error.kind != ErrorKind::Value => return second,
            _ => {}
        }
        match (first, second) {
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decides)),
            (Err(error), _) | (Ok(Value::Bool(_)), Err(error)) => Err(error),
            _ => Err(Error::no_such_overload()),
        }
    }

    #[inline(never)]
    fn index(&mut self, of: &Expr, at: &Expr, wants_optional: bool) -> Outcome<'a> {
        let value = self.eval(of)?;
        self.spend_selection(of)?;
        let at_value = self.eval_part(at)?;
        match &value {
            Value::Optional(Some(inner)) => optional(collections::find(inner, &at_value)?),
            Value::Optional(None) => Ok(value),
            _ if wants_optional => optional(collections::find(&value, &at_value)?),
            _ => collections::index(&value, &at_value),
        }
    }

    #[inline(never)]
    fn list(&mut self, items: &[(Expr, bool)]) -> Outcome<'a> {
        let mut out = Vec::with_capacity(items.len());
        for (item, is_optional) in items {
            match (self.eval(item)?, is_optional) {
                (value, false) => out.push(value),
                (Value::Optional(Some(value)), true) => out.push((*value).clone()),
                (Value::Optional(None), true) => {}
                (other, true) => return Err(not_optional(&other)),
            }
        }
        self.cx.spend(LIST_COST)?;
        self.cx.take(out.len() * size_of::<Value<'_>>())?;
        Ok(Value::list(out))
    }

    #[inline(never)]
    fn map(&mut self, entries: &[Entry]) -> Outcome<'a> {
        let mut out = BTreeMap::new();
        for entry in entries {
            let key = self.eval(&entry.key)?;
            let value = match (self.eval(&entry.value)?, entry.optional) {
                (value, false) => value,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                (Value::Optional(None), true) => continue,
                (other, true) => return Err(not_optional(&other)),
            };
            let made = match &key {
                Value::Double(_) => None,
                key => Key::of(key),
            };
            let made = made.ok_or_else(|| Error::new(format!("unsupported key type: {}", key.type_of())))?;
            out.insert(made, value);
        }
        self.cx.spend(MAP_COST)?;
        self.cx.take(out.len() * 2 * size_of::<Value<'_>>())?;
        Ok(Value::Map(Map::Made(Arc::new(out))))
    }

    #[inline(never)]
    fn structure(&mut self, name: &Arc<str>, fields: &[Field]) -> Outcome<'a> {
        let mut out = BTreeMap::new();
        for field in fields {
            let value = match (self.eval(&field.value)?, field.optional) {
                (value, false) => value,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                (Value::Optional(None), true) => continue,
                (other, true) => return Err(not_optional(&other)),
            };
            out.insert(field.name.clone(), value);
        }
        self.cx.spend(STRUCT_COST)?;
        self.cx.take(out.len() * 2 * size_of::<Value<'_>>())?;
        Ok(Value::Struct(Arc::new(Struct { name: name.clone(), fields: out })))
    }

    #[inline(never)]
    fn fold(&mut self, fold: &Comprehension) -> Outcome<'a> {
        let scope = self.locals.len();
        let outcome = if fold.is_bind() {
            let value = self.eval(&fold.init);
            match value {
                Err(error) if error.kind != ErrorKind::Value => Err(error),
                value => {
                    self.locals.push((fold.accu.clone(), value));
                    self.eval(&fold.result)
                }
            }
        } else {
            self.iterate(fold, scope)
        };
        self.locals.truncate(scope);
        outcome
    }

    fn iterate(&mut self, fold: &Comprehension, scope: usize) -> Outcome<'a> {
        let range = self.eval(&fold.range)?;
        let keys = match &range {
            Value::List(_) => None,
            Value::Map(map) => {
                self.cx.work(map.len() as u64)?;
                Some(map.keys())
            }
            _ => {
                return Err(Error::new(format!(
                    "got '{}', expected iterable type",
                    range.type_of().runtime_name()
                )));
            }
        };
        let init = self.eval(&fold.init)?;
        self.locals.push((fold.accu.clone(), Ok(init)));
        let mut at = 0;
        loop {
            let (first, second) = match (&range, &keys) {
                (Value::List(list), _) if at < list.len() => (Ok(Value::Int(at as i64)), list.get(at)),
                (Value::Map(map), Some(keys)) if at < keys.len() => {
                    let value = match fold.var2 {
                        Some(_) => map.find(&keys[at]).map(|value| value.unwrap_or(Value::Null)),
                        None => Ok(keys[at].clone()),
                    };
                    (Ok(keys[at].clone()), value)
                }
                _ => break,
            };
            at += 1;
            self.cx.work(100)?;
            match &fold.var2 {
                Some(var2) => {
                    self.locals.push((fold.var.clone(), first));
                    self.locals.push((var2.clone(), second));
                }
                None => self.locals.push((fold.var.clone(), second)),
            }
            let go_on = self.eval(&fold.condition)?;
            if matches!(go_on, Value::Bool(false)) {
                self.locals.truncate(scope + 1);
                break;
            }
            let step = self.eval(&fold.step);
            self.locals.truncate(scope + 1);
            if let Err(error) = &step
                && error.kind != ErrorKind::Value
            {
                return step;
            }
            self.locals[scope].1 = step;
        }
        self.eval(&fold.result)
    }

    /// The accumulator's value, which the step is about to replace: taken rather than copied, so that a
    /// list grows in place.
    fn take_accumulator(&mut self) -> Outcome<'a> {
        let accu = self.locals.iter_mut().rev().find(|(local, _)| &**local == ACCUMULATOR);
        let Some((_, value)) = accu else { return Err(Error::no_such_overload()) };
        // The error that a step ended with stays, for the steps after it.
        if value.is_err() {
            return value.clone();
        }
        std::mem::replace(value, Ok(Value::Null))
    }
}

/// Whether an expression is a chain of a name, selections and indices.
fn is_attribute(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Ident(_) | Kind::Select { test: false, .. } => true,
        Kind::Call { function, .. } => matches!(&**function, "_[_]" | "_?._" | "_[?_]"),
        _ => false,
    }
}

fn is_accumulator(expr: &Expr) -> bool {
    matches!(&expr.kind, Kind::Ident(name) if &**name == ACCUMULATOR)
}

fn optional<'a>(found: Option<Value<'a>>) -> Outcome<'a> {
    Ok(Value::Optional(found.map(Arc::new)))
}

fn not_optional(value: &Value<'_>) -> Error {
    Error::new(format!(
        "cannot initialize optional entry from non-optional value of type {}",
        value.type_of()
    ))
}

impl Literal {
    fn value<'a>(&self) -> Value<'a> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(n) => Value::Int(*n),
            Self::Uint(n) => Value::Uint(*n),
            Self::Double(d) => Value::Double(*d),
            Self::String(text) => Value::String(Text::Shared(text.clone())),
            Self::Bytes(bytes) => Value::Bytes(bytes.clone()),
        }
    }
}
