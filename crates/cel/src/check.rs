//! Types of expressions: every node gets one, every call the overloads that it may be.
//!
//! Upstream's counterpart is cel-go's checker: the same unification, the same messages.

use crate::ast::{Comprehension, Expr, Kind, Literal, Tree};
use crate::env::Env;
use crate::function::Overload;
use crate::issue::{Issue, Issues};
use crate::types::{ObjectType, Type};
use crate::unify::Unifier;
use crate::value::Value;

/// What checking finds out, by the ids of nodes.
#[derive(Debug)]
pub(crate) struct Checked {
    pub types: Vec<Type>,
    pub calls: Vec<Vec<&'static Overload>>,
    /// The types that idents name, as values.
    pub constants: Vec<Option<Value<'static>>>,
}

struct Checker<'e> {
    env: &'e Env,
    unifier: Unifier,
    checked: Checked,
    locals: Vec<(std::sync::Arc<str>, Type)>,
    issues: Vec<Issue>,
}

/// Checks `tree`, in which names and selections that turn out to be one name become one.
pub(crate) fn check(env: &Env, text: &str, tree: &mut Tree) -> Result<Checked, Issues> {
    let ids = tree.ids as usize;
    let checked = Checked {
        types: vec![Type::Error; ids],
        calls: std::iter::repeat_with(Vec::new).take(ids).collect(),
        constants: vec![None; ids],
    };
    let mut checker =
        Checker { env, unifier: Unifier::default(), checked, locals: Vec::new(), issues: Vec::new() };
    checker.check(&mut tree.root);
    if !checker.issues.is_empty() {
        return Err(Issues::new(text, checker.issues));
    }
    let Checker { mut checked, unifier, .. } = checker;
    for of in &mut checked.types {
        *of = unifier.substitute(of, true);
    }
    Ok(checked)
}

impl Checker<'_> {
    fn issue(&mut self, at: u32, message: String) {
        self.issues.push(Issue::new(at, message));
    }

    fn type_of(&self, expr: &Expr) -> Type {
        self.unifier.substitute(&self.checked.types[expr.id as usize], false)
    }

    /// A name as a variable or a type.
    fn lookup(&self, name: &str) -> Option<(Type, Option<Value<'static>>)> {
        let (name, global) = match name.strip_prefix('.') {
            Some(name) => (name, true),
            None => (name, false),
        };
        if !global && let Some((_, of)) = self.locals.iter().rev().find(|(local, _)| &**local == name) {
            return Some((of.clone(), None));
        }
        if let Some(of) = self.env.variable(name) {
            return Some((of.clone(), None));
        }
        let named = self.env.named_type(name)?;
        Some((Type::Type(Some(named.clone().into())), Some(Value::Type(named))))
    }

    fn check(&mut self, expr: &mut Expr) -> Type {
        let of = self.check_kind(expr);
        self.checked.types[expr.id as usize] = of.clone();
        of
    }

    fn check_kind(&mut self, expr: &mut Expr) -> Type {
        let (id, at) = (expr.id as usize, expr.at);
        match &mut expr.kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => match self.lookup(name) {
                Some((of, constant)) => {
                    self.checked.constants[id] = constant;
                    of
                }
                None => {
                    let name = name.trim_start_matches('.').to_owned();
                    self.undeclared(at, &name)
                }
            },
            Kind::Select { .. } => self.check_select(expr),
            Kind::Call { .. } => self.check_call(expr),
            Kind::List(items) => {
                let mut item_type = None;
                for (item, optional) in items {
                    let of = self.check(item);
                    let of = if *optional { self.unwrapped(item.at, &of) } else { of };
                    item_type = Some(self.join(item.at, item_type, of));
                }
                Type::list(item_type.unwrap_or_else(|| self.unifier.fresh()))
            }
            Kind::Map(entries) => {
                let mut types: Option<(Type, Type)> = None;
                for entry in entries {
                    let key = self.check(&mut entry.key);
                    let value = self.check(&mut entry.value);
                    let value = if entry.optional { self.unwrapped(entry.value.at, &value) } else { value };
                    let (keys, values) = types.unzip();
                    let key = self.join(entry.key.at, keys, key);
                    types = Some((key, self.join(entry.value.at, values, value)));
                }
                let (key, value) = types.unwrap_or_else(|| (self.unifier.fresh(), self.unifier.fresh()));
                Type::map(key, value)
            }
            Kind::Struct { name, fields } => {
                let object = self.env.structure(name);
                for field in fields {
                    let value = self.check(&mut field.value);
                    let value = if field.optional { self.unwrapped(field.value.at, &value) } else { value };
                    let Some(object) = &object else { continue };
                    let wanted = match object.field(&field.name) {
                        Some(of) => of,
                        None => {
                            self.issue(field.at, format!("undefined field '{}'", field.name));
                            Type::Error
                        }
                    };
                    if !self.unifier.assignable(&wanted, &value) {
                        let value = self.unifier.substitute(&value, true);
                        let name = &field.name;
                        self.issue(
                            field.at,
                            format!(
                                "expected type of field '{name}' is '{wanted}' but provided type is '{value}'"
                            ),
                        );
                    }
                }
                match object {
                    Some(_) => {
                        Type::Object(ObjectType { name: name.to_string(), fields: Default::default() }.into())
                    }
                    None => {
                        let name = name.to_string();
                        self.undeclared(at, &name)
                    }
                }
            }
            Kind::Comprehension(fold) => self.check_fold(fold),
        }
    }

    fn undeclared(&mut self, at: u32, name: &str) -> Type {
        self.issue(at, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    /// The type inside an optional that `?` takes apart.
    fn unwrapped(&mut self, at: u32, of: &Type) -> Type {
        let of = self.unifier.substitute(of, false);
        match of.unwrap_optional() {
            Some(inner) => inner.clone(),
            None if of.is_dyn_or_error() => Type::Dyn,
            None => {
                let of = self.unifier.substitute(&of, true);
                self.issue(at, format!("expected type '{}' but found '{of}'", Type::optional(of.clone())));
                Type::Error
            }
        }
    }

    /// The type of items of one literal, which must be alike.
    fn join(&mut self, at: u32, before: Option<Type>, of: Type) -> Type {
        let Some(before) = before else { return of };
        if self.unifier.assignable(&before, &of) {
            return Unifier::most_general(&before, &of);
        }
        self.mismatch(at, &before, &of);
        Type::Error
    }

    fn mismatch(&mut self, at: u32, wanted: &Type, found: &Type) {
        let (wanted, found) = (self.unifier.substitute(wanted, true), self.unifier.substitute(found, true));
        self.issue(at, format!("expected type '{wanted}' but found '{found}'"));
    }

    fn check_select(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        if let Some(name) = expr.qualified_name()
            && !self.is_local(&name)
            && let Some((of, constant)) = self.lookup(&name)
        {
            self.checked.constants[expr.id as usize] = constant;
            expr.kind = Kind::Ident(name.into());
            return of;
        }
        let Kind::Select { operand, field, test } = &mut expr.kind else { return Type::Error };
        if *test
            && let Some(name) = operand.qualified_name().map(|name| format!("{name}.{field}"))
            && !self.is_local(&name)
            && self.env.variable(&name).is_some()
        {
            // A variable is there.
            self.checked.constants[expr.id as usize] = Some(Value::Bool(true));
            return Type::Bool;
        }
        self.check(operand);
        let of = self.type_of(operand);
        let (field, test) = (field.clone(), *test);
        let result = self.field(at, &of, &field, false);
        if test { Type::Bool } else { result }
    }

    /// Whether a dotted name begins with a variable of a comprehension.
    fn is_local(&self, name: &str) -> bool {
        let root = name.split('.').next().unwrap_or_default();
        self.locals.iter().any(|(local, _)| &**local == root)
    }

    /// The type of a field of a value; of an optional value it is optional.
    fn field(&mut self, at: u32, of: &Type, field: &str, optional: bool) -> Type {
        let (inner, optional) = match of.unwrap_optional() {
            Some(inner) => (self.unifier.substitute(inner, false), true),
            None => (of.clone(), optional),
        };
        let result = match &inner {
            Type::Object(object) => match object.fields.get(field) {
                Some(of) => of.clone(),
                None => match self.env.structure(&object.name).and_then(|made| made.field(field)) {
                    Some(of) => of,
                    None => {
                        self.issue(at, format!("undefined field '{field}'"));
                        return Type::Error;
                    }
                },
            },
            Type::Map(pair) => pair.1.clone(),
            Type::Var(_) => {
                self.unifier.assignable(&Type::Dyn, &inner);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                let shown = self.unifier.substitute(other, true);
                self.issue(at, format!("type '{shown}' does not support field selection"));
                Type::Dyn
            }
        };
        match result.unwrap_optional() {
            None if optional => Type::optional(result),
            _ => result,
        }
    }

    fn check_call(&mut self, expr: &mut Expr) -> Type {
        let (id, at) = (expr.id, expr.at);
        let Kind::Call { function, target, args } = &mut expr.kind else { return Type::Error };
        if &**function == "_?._"
            && let [operand, name] = args.as_mut_slice()
            && let Kind::Literal(Literal::String(field)) = &name.kind
        {
            let field = field.clone();
            self.check(name);
            self.check(operand);
            let of = self.type_of(operand);
            return self.field(at, &of, &field, true);
        }
        for arg in args.iter_mut() {
            self.check(arg);
        }
        let mut overloads = Vec::new();
        if let Some(called) = target {
            // A name with dots may be a function of its own rather than a member.
            if let Some(mut name) = called.qualified_name() {
                name.push('.');
                name.push_str(function);
                if !self.is_local(&name) {
                    overloads = self.env.overloads(name.trim_start_matches('.'));
                }
                if !overloads.is_empty() {
                    *function = name.trim_start_matches('.').into();
                    *target = None;
                }
            }
        }
        if let Some(called) = target {
            self.check(called);
        }
        if overloads.is_empty() {
            overloads = self.env.overloads(function.trim_start_matches('.'));
        }
        if overloads.is_empty() {
            let name = function.trim_start_matches('.').to_owned();
            return self.undeclared(at, &name);
        }
        let member = target.is_some();
        let all: Vec<&Expr> = target.iter().map(|t| &**t).chain(args.iter()).collect();
        let types: Vec<Type> = all.iter().map(|arg| self.type_of(arg)).collect();
        if matches!(&**function, "_&&_" | "_||_") {
            let places: Vec<u32> = all.iter().map(|arg| arg.at).collect();
            let before = self.issues.len();
            for (of, at) in types.iter().zip(places) {
                if !self.unifier.assignable(of, &Type::Bool) {
                    self.mismatch(at, &Type::Bool, of);
                }
            }
            self.checked.calls[id as usize] = overloads;
            return if self.issues.len() == before { Type::Bool } else { Type::Error };
        }
        let name = function.clone();
        self.resolve(id, at, &name, member, overloads, &types)
    }

    fn resolve(
        &mut self,
        id: u32,
        at: u32,
        name: &str,
        member: bool,
        overloads: Vec<&'static Overload>,
        types: &[Type],
    ) -> Type {
        let mut result: Option<Type> = None;
        for overload in overloads {
            if overload.member != member || overload.params.len() != types.len() {
                continue;
            }
            let (params, gives) = self.unifier.instantiate(&overload.params, &overload.result);
            if !self.unifier.all_assignable(types, &params) {
                continue;
            }
            self.checked.calls[id as usize].push(overload);
            let gives = self.unifier.substitute(&gives, false);
            result = Some(match result {
                None => gives,
                Some(before) if before.is_dyn() || before == gives => before,
                Some(_) => Type::Dyn,
            });
        }
        if let Some(result) = result {
            return result;
        }
        let shown: Vec<String> =
            types.iter().map(|of| self.unifier.substitute(of, true).to_string()).collect();
        let signature = match shown.split_first() {
            Some((target, args)) if member => format!("{target}.({})", args.join(", ")),
            _ => format!("({})", shown.join(", ")),
        };
        self.issue(at, format!("found no matching overload for '{name}' applied to '{signature}'"));
        Type::Error
    }

    fn check_fold(&mut self, fold: &mut Comprehension) -> Type {
        self.check(&mut fold.range);
        let accu = self.check(&mut fold.init);
        let range = self.type_of(&fold.range);
        let (first, second) = match &range {
            Type::List(item) if fold.var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Error),
            Type::Map(pair) => (pair.0.clone(), pair.1.clone()),
            Type::Dyn | Type::Error => (Type::Dyn, Type::Dyn),
            Type::Var(_) => {
                self.unifier.assignable(&range, &Type::Dyn);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let other = self.unifier.substitute(other, true);
                self.issue(
                    fold.range.at,
                    format!(
                        "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                    ),
                );
                (Type::Error, Type::Error)
            }
        };
        let scope = self.locals.len();
        self.locals.push((fold.accu.clone(), accu.clone()));
        self.locals.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2.clone(), second));
        }
        let condition = self.check(&mut fold.condition);
        self.assert(fold.condition.at, &Type::Bool, &condition);
        let step = self.check(&mut fold.step);
        self.assert(fold.step.at, &accu, &step);
        self.locals.truncate(scope + 1);
        let result = self.check(&mut fold.result);
        self.locals.truncate(scope);
        self.unifier.substitute(&result, false)
    }

    fn assert(&mut self, at: u32, wanted: &Type, found: &Type) {
        if !self.unifier.assignable(wanted, found) {
            self.mismatch(at, wanted, found);
        }
    }
}
