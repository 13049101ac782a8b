//! Functions as rows of tables: name, overload, signature, what it does.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::error::Error;
use crate::types::{Type, split};
use crate::value::Value;

/// What a function does with arguments that fit its signature; the target of a member is the first.
pub(crate) type Body = for<'a> fn(&mut Context<'_>, &[Value<'a>]) -> Result<Value<'a>, Error>;

/// A row: function, overload, signature, body. The signature is `(string, int) bool`, with a dot
/// before it for members.
pub(crate) type Row = (&'static str, &'static str, &'static str, Body);

/// One way to call a function.
#[derive(Debug)]
pub(crate) struct Overload {
    pub id: &'static str,
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
    pub body: Body,
}

/// The functions of one library.
#[derive(Debug, Default)]
pub(crate) struct Functions(BTreeMap<&'static str, Vec<Overload>>);

impl Functions {
    pub fn new(rows: &[&[Row]]) -> Self {
        let mut functions = Self::default();
        for (name, id, signature, body) in rows.iter().copied().flatten() {
            let (member, signature) = match signature.strip_prefix('.') {
                Some(rest) => (true, rest),
                None => (false, *signature),
            };
            // The result follows the bracket that closes the first one.
            let mut depth = 0;
            let close = signature.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let (params, result) = signature.split_at(close.unwrap_or(0));
            functions.0.entry(name).or_default().push(Overload {
                id,
                member,
                params: split(params.trim_start_matches('(')).into_iter().map(Type::parse).collect(),
                result: Type::parse(result.trim_start_matches(')').trim()),
                body: *body,
            });
        }
        functions
    }

    pub fn get(&self, name: &str) -> &[Overload] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The opaque types that any function takes or gives.
    pub fn types(&self) -> impl Iterator<Item = &Type> {
        let overloads = self.0.values().flatten();
        overloads.flat_map(|overload| overload.params.iter().chain([&overload.result]))
    }
}
