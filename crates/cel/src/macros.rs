//! Calls that are no calls: `has`, the comprehensions, `optMap`, `cel.bind`.
//!
//! Each becomes plain nodes, folded the way cel-go folds them, so that costs are the same.

use std::sync::Arc;

use crate::ast::{ACCUMULATOR, Comprehension, Entry, Expr, Kind, Literal, UNUSED};
use crate::issue::Issue;
use crate::parser::{Parser, Stop};

/// The variable that holds what `optMap` is called on.
const TARGET: &str = "@target";

/// The node for `target.function(args)`: a macro's expansion, or the call itself.
pub(crate) fn expand(
    parser: &mut Parser,
    at: u32,
    target: Option<Expr>,
    function: &str,
    mut args: Vec<Expr>,
) -> Result<Expr, Stop> {
    let flags = parser.macros;
    let Some(target) = target else {
        if function == "has" && args.len() == 1 {
            return has(parser, at, args.remove(0));
        }
        return Ok(parser.node(at, Kind::Call { function: function.into(), target: None, args }));
    };
    let is_cel = matches!(&target.kind, Kind::Ident(name) if &**name == "cel");
    match (function, args.len()) {
        ("bind", 3) if flags.bindings && is_cel => bind(parser, at, args),
        ("all" | "exists" | "exists_one" | "existsOne" | "filter", 2) | ("map", 2 | 3) => {
            fold(parser, at, target, function, args, 1)
        }
        ("all" | "exists" | "exists_one" | "existsOne", 3)
        | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4)
            if flags.two_variables =>
        {
            fold(parser, at, target, function, args, 2)
        }
        ("optMap" | "optFlatMap", 2) if flags.optional => opt_map(parser, at, target, function, args),
        _ => {
            Ok(parser
                .node(at, Kind::Call { function: function.into(), target: Some(Box::new(target)), args }))
        }
    }
}

fn has(parser: &mut Parser, at: u32, arg: Expr) -> Result<Expr, Stop> {
    match arg.kind {
        Kind::Select { operand, field, test: false } => {
            Ok(parser.node(at, Kind::Select { operand, field, test: true }))
        }
        _ => refuse(parser, arg.at, "invalid argument to has() macro"),
    }
}

fn refuse<T>(parser: &mut Parser, at: u32, message: &str) -> Result<T, Stop> {
    parser.issues.push(Issue::new(at, message));
    Err(Stop)
}

/// The name of an iteration variable.
fn variable(parser: &mut Parser, arg: &Expr, message: &str) -> Result<Arc<str>, Stop> {
    match &arg.kind {
        Kind::Ident(name) if &**name == "__result__" => {
            refuse(parser, arg.at, "iteration variable overwrites accumulator variable")
        }
        Kind::Ident(name) if !name.starts_with('.') => Ok(name.clone()),
        _ => refuse(parser, arg.at, message),
    }
}

/// Makes nodes at one place.
struct Make<'p> {
    parser: &'p mut Parser,
    at: u32,
}

impl Make<'_> {
    fn literal(&mut self, literal: Literal) -> Expr {
        self.parser.node(self.at, Kind::Literal(literal))
    }

    fn ident(&mut self, name: &str) -> Expr {
        self.parser.node(self.at, Kind::Ident(name.into()))
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.parser.call(self.at, function, args)
    }

    fn list(&mut self, items: Vec<Expr>) -> Expr {
        self.parser.node(self.at, Kind::List(items.into_iter().map(|item| (item, false)).collect()))
    }

    fn member(&mut self, target: Expr, function: &str, args: Vec<Expr>) -> Expr {
        let kind = Kind::Call { function: function.into(), target: Some(Box::new(target)), args };
        self.parser.node(self.at, kind)
    }
}

fn fold(
    parser: &mut Parser,
    at: u32,
    range: Expr,
    function: &str,
    mut args: Vec<Expr>,
    variables: usize,
) -> Result<Expr, Stop> {
    let message = "argument must be a simple name";
    let var = variable(parser, &args[0], message)?;
    let var2 = match variables {
        2 => Some(variable(parser, &args[1], message)?),
        _ => None,
    };
    if let Some(var2) = &var2
        && *var2 == var
    {
        let message = format!("duplicate variable name: {var}");
        return refuse(parser, args[1].at, &message);
    }
    args.drain(..variables);
    // What is left: a transformation, perhaps a filter before it; or a predicate.
    let Some(body) = args.pop() else { return Err(Stop) };
    let filter = args.pop();
    let mut make = Make { parser, at };
    let (init, condition, step, result) = match function {
        "all" | "exists" => {
            let all = function == "all";
            let init = make.literal(Literal::Bool(all));
            let mut go_on = make.accu();
            if !all {
                go_on = make.call("!_", vec![go_on]);
            }
            let go_on = make.call("@not_strictly_false", vec![go_on]);
            let accu = make.accu();
            let step = make.call(if all { "_&&_" } else { "_||_" }, vec![accu, body]);
            let result = make.accu();
            (init, go_on, step, result)
        }
        "exists_one" | "existsOne" => {
            let init = make.literal(Literal::Int(0));
            let go_on = make.literal(Literal::Bool(true));
            let (accu, one) = (make.accu(), make.literal(Literal::Int(1)));
            let more = make.call("_+_", vec![accu, one]);
            let same = make.accu();
            let step = make.call("_?_:_", vec![body, more, same]);
            let (accu, one) = (make.accu(), make.literal(Literal::Int(1)));
            let result = make.call("_==_", vec![accu, one]);
            (init, go_on, step, result)
        }
        _ => {
            let maps = matches!(function, "transformMap" | "transformMapEntry");
            let init =
                if maps { make.parser.node(at, Kind::Map(Vec::<Entry>::new())) } else { make.list(vec![]) };
            let go_on = make.literal(Literal::Bool(true));
            let accu = make.accu();
            let (filter, mut step) = match function {
                "filter" => {
                    let item = make.ident(&var);
                    let item = make.list(vec![item]);
                    (Some(body), make.call("_+_", vec![accu, item]))
                }
                "transformMap" => {
                    let key = make.ident(&var);
                    (filter, make.call("cel.@mapInsert", vec![accu, key, body]))
                }
                "transformMapEntry" => (filter, make.call("cel.@mapInsert", vec![accu, body])),
                _ => {
                    let item = make.list(vec![body]);
                    (filter, make.call("_+_", vec![accu, item]))
                }
            };
            if let Some(filter) = filter {
                let same = make.accu();
                step = make.call("_?_:_", vec![filter, step, same]);
            }
            let result = make.accu();
            (init, go_on, step, result)
        }
    };
    let accu = ACCUMULATOR.into();
    let fold = Comprehension { range, var, var2, accu, init, condition, step, result };
    Ok(parser.node(at, Kind::Comprehension(Box::new(fold))))
}

fn binding(make: &mut Make<'_>, var: Arc<str>, value: Expr, result: Expr) -> Expr {
    let fold = Comprehension {
        range: make.list(vec![]),
        var: UNUSED.into(),
        var2: None,
        init: value,
        condition: make.literal(Literal::Bool(false)),
        step: make.ident(&var),
        accu: var,
        result,
    };
    make.parser.node(make.at, Kind::Comprehension(Box::new(fold)))
}

fn bind(parser: &mut Parser, at: u32, args: Vec<Expr>) -> Result<Expr, Stop> {
    let var = variable(parser, &args[0], "cel.bind() variable names must be simple identifiers")?;
    let mut args = args.into_iter().skip(1);
    let (Some(value), Some(result)) = (args.next(), args.next()) else { return Err(Stop) };
    Ok(binding(&mut Make { parser, at }, var, value, result))
}

/// `x.optMap(v, f)` is `x.hasValue() ? optional.of(cel.bind(v, x.value(), f)) : optional.none()`
/// with `x` bound too: written out twice, chains of them would grow beyond bounds.
fn opt_map(
    parser: &mut Parser,
    at: u32,
    target: Expr,
    function: &str,
    args: Vec<Expr>,
) -> Result<Expr, Stop> {
    let message = format!("{function}() variable name must be a simple identifier");
    let var = variable(parser, &args[0], &message)?;
    let Some(body) = args.into_iter().nth(1) else { return Err(Stop) };
    let make = &mut Make { parser, at };
    let bound = make.ident(TARGET);
    let has = make.member(bound, "hasValue", vec![]);
    let bound = make.ident(TARGET);
    let value = make.member(bound, "value", vec![]);
    let mut some = binding(make, var, value, body);
    if function == "optMap" {
        some = make.call("optional.of", vec![some]);
    }
    let none = make.call("optional.none", vec![]);
    let choice = make.call("_?_:_", vec![has, some, none]);
    Ok(binding(make, TARGET.into(), target, choice))
}
