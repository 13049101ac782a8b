//! Expressions of webhooks and policies: what they may speak of, how they are compiled and told wrong,
//! what they see of a write and what that may cost. Compiled once a configuration; objects are seen where
//! they are, and what few expressions name is made when one does.
//! Upstream counterparts: `plugin/cel` and `plugin/webhook/matchconditions` of
//! `k8s.io/apiserver/pkg/admission`.

mod asker;
pub mod check;
mod conditions;
mod input;
mod types;

pub use conditions::{Conditions, Match};
pub use input::{Input, OutOfBudget, Scope};
pub use types::VARIABLES;

use skeg_cel::{Declared, Env, Program, Type};
use std::cell::OnceCell;
use std::sync::Arc;

/// The cost of all conditions of one webhook or policy for one write.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;

/// What an expression must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    Anything,
    /// Types, as they are written.
    OneOf(&'static [&'static str]),
}

pub const BOOL: Gives = Gives::OneOf(&["bool"]);
pub const TEXT: Gives = Gives::OneOf(&["string"]);
pub const TEXT_OR_NULL: Gives = Gives::OneOf(&["string", "null_type"]);
pub const PATCH: Gives = Gives::OneOf(&["list(JSONPatch)"]);
pub const OBJECT: Gives = Gives::OneOf(&["Object"]);

/// An expression, compiled or with what is wrong with it.
pub struct Expression {
    pub text: String,
    pub program: Result<Program, Fault>,
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub message: String,
    /// It is well-formed, and no program can be made of it.
    pub is_internal: bool,
}

/// A named expression that later ones use.
pub struct Variable {
    pub name: String,
    pub expression: Expression,
}

/// What the expressions of one configuration may speak of.
#[derive(Default)]
pub struct Compiler {
    pub has_params: bool,
    /// The variables so far; none where there are no variables at all.
    variables: Option<Vec<Known>>,
    /// Of `object`, `oldObject` and of `params`; untyped for evaluation.
    pub object: Option<Arc<Declared>>,
    pub params: Option<Arc<Declared>>,
    /// Made when the first expression of its sort comes.
    envs: [OnceCell<Env>; 3],
}

/// A variable as later expressions see it.
#[derive(Clone)]
struct Known {
    name: String,
    of: Type,
    /// What its evaluation needs of the stack, with all variables that it names.
    depth: u32,
}

/// What one expression may speak of beyond the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    Nothing,
    /// The authorizer,
    Asks,
    /// and `Object{}` and `JSONPatch{}`.
    Mutates,
}

/// The most variables of a policy. Upstream knows no limit but that of an object's size.
pub const VARIABLES_MAX: usize = 1_000;
/// How deep expressions may stand in each other, by way of variables: within the stack of a thread.
const DEPTH_MAX: u32 = 2 * skeg_cel::DEPTH_MAX;
/// What looking up a variable adds to that.
const LOOKUP_DEPTH: u32 = 8;

impl Compiler {
    /// For a policy, whose later expressions may name its variables.
    pub fn with_variables(has_params: bool) -> Self {
        Compiler { has_params, variables: Some(Vec::new()), ..Self::default() }
    }

    /// The same without variables, as match conditions are.
    #[must_use]
    pub fn without_variables(&self) -> Self {
        let (object, params) = (self.object.clone(), self.params.clone());
        Compiler { has_params: self.has_params, object, params, ..Self::default() }
    }

    /// Compiles a variable; what comes later may name it.
    pub fn variable(&mut self, name: &str, text: &str) -> Variable {
        let expression = self.compile(text, Gives::Anything, Extra::Asks);
        let (of, depth) = match &expression.program {
            Ok(program) => (types::of_variable(program.value_type()), self.depth(program)),
            Err(_) => (Type::Dyn, 0),
        };
        if let Some(variables) = &mut self.variables {
            variables.retain(|known| known.name != name);
            variables.push(Known { name: name.to_owned(), of, depth });
        }
        self.envs = Default::default();
        Variable { name: name.to_owned(), expression }
    }

    pub fn compile(&self, text: &str, gives: Gives, extra: Extra) -> Expression {
        let program = self.env(extra).compile(text).map_err(|issues| match issues.instantiation {
            true => Fault { message: format!("program instantiation failed: {issues}"), is_internal: true },
            false => Fault { message: format!("compilation failed: {issues}"), is_internal: false },
        });
        let program = program.and_then(|program| self.fit(program, gives));
        Expression { text: text.to_owned(), program }
    }

    /// Types an expression and asks for none in particular.
    ///
    /// # Errors
    /// The faults, as they are printed.
    pub fn check(&self, text: &str, extra: Extra) -> Result<(), String> {
        self.env(extra).compile(text).map(drop).map_err(|issues| issues.to_string())
    }

    /// The program, if it gives what it must and needs no more of the stack than there is.
    fn fit(&self, program: Program, gives: Gives) -> Result<Program, Fault> {
        let fault = |message: String| Err(Fault { message, is_internal: false });
        let got = match program.value_type() {
            Type::Null => "null_type".to_owned(),
            of => of.to_string(),
        };
        match gives {
            Gives::OneOf([wanted]) if *wanted != got => {
                fault(format!("must evaluate to {wanted} but got {got}"))
            }
            Gives::OneOf(wanted) if !wanted.contains(&got.as_str()) => {
                fault(format!("must evaluate to one of [{}] but got {got}", wanted.join(" ")))
            }
            _ if self.depth(&program) > DEPTH_MAX => fault(format!(
                "variables name each other too deeply: more than {DEPTH_MAX} expressions in each other"
            )),
            _ => Ok(program),
        }
    }

    fn depth(&self, program: &Program) -> u32 {
        let named = program.variables().filter_map(|name| name.strip_prefix("variables."));
        let known = |name: &str| {
            let variables = self.variables.iter().flatten();
            variables.rev().find(|known| known.name == name).map(|known| known.depth + LOOKUP_DEPTH)
        };
        program.depth() + named.filter_map(known).max().unwrap_or_default()
    }

    fn env(&self, extra: Extra) -> &Env {
        self.envs[extra as usize].get_or_init(|| self.make(extra))
    }

    fn make(&self, extra: Extra) -> Env {
        let mut env = Env::new()
            .with("request", types::REQUEST.clone())
            .with("namespaceObject", types::NAMESPACE.clone());
        for name in ["object", "oldObject"] {
            env = declared(env, name, self.object.as_ref());
        }
        if self.has_params {
            env = declared(env, "params", self.params.as_ref());
        }
        if extra != Extra::Nothing {
            env = env
                .with("authorizer", Type::opaque("kubernetes.authorization.Authorizer"))
                .with("authorizer.requestResource", Type::opaque("kubernetes.authorization.ResourceCheck"));
        }
        if let Some(variables) = &self.variables {
            let fields = variables.iter().map(|known| (known.name.clone(), known.of.clone()));
            env = env.with("variables", Type::object(VARIABLES, fields));
            for known in variables {
                env = env.with(&format!("variables.{}", known.name), known.of.clone());
            }
        }
        if extra == Extra::Mutates { env.with_mutation() } else { env }
    }
}

fn declared(env: Env, name: &str, of: Option<&Arc<Declared>>) -> Env {
    match of {
        Some(of) => env.with_declared(name, of.clone()),
        None => env.with(name, Type::Dyn),
    }
}

#[cfg(test)]
mod tests;
