//! What expressions see of a write, and what their evaluation costs.

use super::asker::Asker;
use super::types::NAMESPACE_SCHEMA;
use super::{Expression, Variable};
use crate::admission::versions::Objects;
use crate::admission::{Admission, matching, request};
use crate::auth::authz::Union;
use crate::resources;
use crate::server::ApiServer;
use serde_json::Value;
use skeg_api::Kind;
use skeg_api::schema::Schema;
use skeg_cel::{Activation, Error, Limits, Opaque, Value as Cel};
use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A write in the version that matched.
pub struct Input<'i, 'r> {
    a: &'i Admission<'r>,
    server: &'i Arc<ApiServer>,
    authorizer: &'i Arc<Union>,
    row: &'i Kind,
    objects: Objects<'i>,
    request: OnceCell<Value>,
    namespace: OnceCell<Option<Arc<Value>>>,
}

impl<'i, 'r> Input<'i, 'r> {
    pub fn new(
        a: &'i Admission<'r>,
        server: &'i Arc<ApiServer>,
        authorizer: &'i Arc<Union>,
        row: &'i Kind,
        objects: Objects<'i>,
    ) -> Self {
        Input { a, server, authorizer, row, objects, request: OnceCell::new(), namespace: OnceCell::new() }
    }

    /// The object in the version that matched.
    pub fn object(&self) -> Option<&Value> {
        self.objects.object.as_deref()
    }

    /// The type of what is written: of a subresource's own kind, or of the object.
    pub fn schema(&self) -> Cow<'i, Schema> {
        let own = self.a.kind.subresource(self.a.subresource).and_then(|sub| sub.gvk);
        let own = own.and_then(|(group, version, kind)| Schema::builtin_kind(group, version, kind));
        own.map_or(Cow::Borrowed(&self.row.schema), Cow::Owned)
    }

    fn namespace(&self) -> Option<&Value> {
        let find = || {
            let name = if matching::is_namespace(self.a) { "" } else { self.a.namespace };
            let reader = &self.server.seams().reader;
            if name.is_empty() { None } else { reader.get_value(&resources::NAMESPACES, "", name) }
        };
        self.namespace.get_or_init(find).as_deref()
    }

    fn asker(&self) -> Arc<Asker> {
        Arc::new(Asker { authorizer: self.authorizer.clone(), identity: self.a.identity.clone() })
    }
}

/// All that may be spent is.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfBudget;

impl std::fmt::Display for OutOfBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "validation failed due to running out of cost budget, no further validation rules will be run",
        )
    }
}

/// The variables of a group of expressions that share one budget.
pub struct Scope<'e, 'r> {
    input: &'e Input<'e, 'r>,
    params: Option<&'e Value>,
    variables: &'e [Variable],
    /// What variables turned out to be, each evaluated when it is first named.
    known: RefCell<BTreeMap<&'e str, Result<Cel<'e>, Error>>>,
    spent: Cell<u64>,
    left: Cell<u64>,
    names_namespace: bool,
}

impl<'e, 'r> Scope<'e, 'r> {
    pub fn new(
        input: &'e Input<'e, 'r>,
        params: Option<&'e Value>,
        variables: &'e [Variable],
        budget: u64,
    ) -> Self {
        Scope {
            input,
            params,
            variables,
            known: RefCell::default(),
            spent: Cell::new(0),
            left: Cell::new(budget),
            names_namespace: true,
        }
    }

    /// For conditions of webhooks and policies, whose `namespaceObject` is null.
    #[must_use]
    pub fn without_namespace(self) -> Self {
        Scope { names_namespace: false, ..self }
    }

    pub fn left(&self) -> u64 {
        self.left.get()
    }

    /// Evaluates an expression. An error is told as upstream does.
    ///
    /// # Errors
    /// If there is no more to spend.
    pub fn evaluate(&self, expression: &Expression) -> Result<Result<Cel<'e>, String>, OutOfBudget> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(fault) => return Ok(Err(format!("compilation error: {}", fault.message))),
        };
        self.spent.set(0);
        let left = self.left.get();
        let evaluation = program.evaluate(self, Limits::within(left));
        let cost = evaluation.cost.saturating_add(self.spent.get());
        self.left.set(left.checked_sub(cost).ok_or(OutOfBudget)?);
        let told = |error: Error| format!("expression '{}' resulted in error: {error}", expression.text);
        Ok(evaluation.value.map_err(told))
    }

    fn variable(&self, name: &str) -> Option<Result<Cel<'e>, Error>> {
        // A name of two words, as `object.a`, costs two.
        self.spent.set(self.spent.get().saturating_add(1));
        // The last of a name is what later expressions were compiled with.
        let variable = self.variables.iter().rev().find(|variable| variable.name == name)?;
        if let Some(known) = self.known.borrow().get(name) {
            return Some(known.clone());
        }
        let value = match &variable.expression.program {
            Err(fault) => {
                Err(Error::new(format!("composited variable {name:?} fails to compile: {}", fault.message)))
            }
            Ok(program) => {
                let left = self.left.get().saturating_sub(self.spent.get());
                let evaluation = program.evaluate(self, Limits::within(left));
                self.spent.set(self.spent.get().saturating_add(evaluation.cost));
                evaluation.value.map_err(|error| Error {
                    message: format!("composited variable {name:?} fails to evaluate: {error}"),
                    ..error
                })
            }
        };
        self.known.borrow_mut().insert(&variable.name, value.clone());
        Some(value)
    }
}

impl<'e> Activation<'e> for Scope<'e, '_> {
    fn resolve(&self, name: &str) -> Option<Result<Cel<'e>, Error>> {
        let input = self.input;
        let json = |value: Option<&'e Value>| value.map_or(Cel::Null, Cel::of);
        Some(Ok(match name {
            "object" => json(input.objects.object.as_deref()),
            "oldObject" => json(input.objects.old.as_deref()),
            "params" => json(self.params),
            "request" => {
                let make = || request::of(input.a, input.row);
                Cel::of(input.request.get_or_init(make))
            }
            "namespaceObject" => match input.namespace().filter(|_| self.names_namespace) {
                Some(namespace) => return Some(Cel::typed(namespace, &NAMESPACE_SCHEMA)),
                None => Cel::Null,
            },
            "authorizer" => Cel::Opaque(Opaque::authorizer(input.asker())),
            "authorizer.requestResource" => {
                let a = input.a;
                Cel::Opaque(Opaque::request_resource(
                    input.asker(),
                    &a.kind.gvk.group,
                    &a.kind.plural,
                    a.subresource,
                    a.namespace,
                    a.name,
                ))
            }
            _ => return self.variable(name.strip_prefix("variables.")?),
        }))
    }
}
