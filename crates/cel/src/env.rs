//! What an expression may speak of: variables, functions, types.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::check::check;
use crate::function::{Functions, Overload};
use crate::issue::Issues;
use crate::library;
use crate::parser::{self, Macros};
use crate::program::Program;
use crate::schema::Declared;
use crate::types::Type;

/// Where expressions are compiled. Cheap to make; make one for each set of variables.
#[derive(Clone)]
pub struct Env {
    variables: BTreeMap<String, Variable>,
    functions: Vec<&'static Functions>,
    macros: Macros,
    mutation: bool,
}

#[derive(Clone)]
struct Variable {
    of: Type,
    declared: Option<Arc<Declared>>,
}

impl Default for Env {
    fn default() -> Self {
        Self::new()
    }
}

impl Env {
    /// Upstream's base environment: the language, strings, lists, sets, regex, URLs, quantities, IPs,
    /// formats, versions, images, authorization; no variables.
    pub fn new() -> Self {
        Self {
            variables: BTreeMap::new(),
            functions: vec![&library::BASE],
            macros: Macros { bindings: false, optional: true, two_variables: true },
            mutation: false,
        }
    }

    /// With `cel.bind`, which device selectors have and rules of definitions and policies have not.
    #[must_use]
    pub fn with_bindings(mut self) -> Self {
        self.macros.bindings = true;
        self
    }

    /// With `Object{}`, `JSONPatch{}` and `jsonpatch.escapeKey`, which mutating policies have.
    #[must_use]
    pub fn with_mutation(mut self) -> Self {
        self.mutation = true;
        self.functions.push(&library::MUTATION);
        self
    }

    /// With a variable. A name with dots, such as `variables.x`, is a variable of its own, which selections
    /// name; an object `variables` with the same fields, beside it, says what is wrong with others.
    #[must_use]
    pub fn with(mut self, name: &str, of: Type) -> Self {
        self.variables.insert(name.to_owned(), Variable { of, declared: None });
        self
    }

    /// With a variable of a schema's type, whose sizes bound the estimated cost.
    #[must_use]
    pub fn with_declared(mut self, name: &str, declared: Arc<Declared>) -> Self {
        let of = declared.of.clone();
        self.variables.insert(name.to_owned(), Variable { of, declared: Some(declared) });
        self
    }

    /// With a variable that is an optional of a schema's type, as `oldSelf` is with `optionalOldSelf`.
    #[must_use]
    pub fn with_optional(mut self, name: &str, declared: Arc<Declared>) -> Self {
        let of = Type::optional(declared.of.clone());
        self.variables.insert(name.to_owned(), Variable { of, declared: Some(declared) });
        self
    }

    /// Parses and checks an expression, and estimates its cost.
    ///
    /// # Errors
    /// What is wrong with it, in cel-go's words.
    pub fn compile(&self, text: &str) -> Result<Program, Issues> {
        let mut tree = parser::parse(text, self.macros)?;
        let checked = check(self, text, &mut tree)?;
        Program::new(self, text, tree, checked)
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&Type> {
        self.variables.get(name).map(|variable| &variable.of)
    }

    pub(crate) fn declared(&self, name: &str) -> Option<&Declared> {
        self.variables.get(name)?.declared.as_deref()
    }

    pub(crate) fn overloads(&self, function: &str) -> Vec<&'static Overload> {
        self.functions.iter().flat_map(|functions| functions.get(function)).collect()
    }

    /// The type that a name in an expression stands for.
    pub(crate) fn named_type(&self, name: &str) -> Option<Type> {
        Some(match name {
            "bool" => Type::Bool,
            "bytes" => Type::Bytes,
            "double" => Type::Double,
            "google.protobuf.Duration" => Type::Duration,
            "google.protobuf.Timestamp" => Type::Timestamp,
            "dyn" => Type::Dyn,
            "int" => Type::Int,
            "list" => Type::list(Type::Dyn),
            "map" => Type::map(Type::Dyn, Type::Dyn),
            "null_type" => Type::Null,
            "string" => Type::String,
            "type" => Type::Type(None),
            "uint" => Type::Uint,
            "optional_type" => Type::optional(Type::Dyn),
            _ if name.contains('.') => {
                let mut types = self.functions.iter().flat_map(|functions| functions.types());
                types.find(|of| matches!(of, Type::Opaque(known, _) if &**known == name))?.clone()
            }
            _ => return None,
        })
    }

    /// The structure that `Name{}` makes.
    pub(crate) fn structure(&self, name: &str) -> Option<Structure> {
        match name {
            _ if !self.mutation => None,
            "JSONPatch" => Some(Structure::JsonPatch),
            "Object" => Some(Structure::Object),
            _ => name.strip_prefix("Object.").map(|_| Structure::Object),
        }
    }
}

/// What a mutating policy makes: an operation of a patch, or a part of an object to apply.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Structure {
    JsonPatch,
    Object,
}

impl Structure {
    pub fn field(self, name: &str) -> Option<Type> {
        match (self, name) {
            (Self::JsonPatch, "op" | "path" | "from") => Some(Type::String),
            (Self::JsonPatch, "value") | (Self::Object, _) => Some(Type::Dyn),
            (Self::JsonPatch, _) => None,
        }
    }
}
