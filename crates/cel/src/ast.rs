//! Expressions as trees, macros expanded.

use std::sync::Arc;

/// The variable that a macro accumulates in: no text can name it.
pub(crate) const ACCUMULATOR: &str = "@result";
/// The iteration variable of `cel.bind`, whose range is empty.
pub(crate) const UNUSED: &str = "#unused";

/// A node. Its id is unique in its tree and below [`Tree::ids`].
#[derive(Clone, Debug)]
pub struct Expr {
    pub id: u32,
    /// Where it is told to be, in code points.
    pub at: u32,
    /// Nodes from here to the deepest leaf.
    pub(crate) depth: u32,
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    Literal(Literal),
    Ident(Arc<str>),
    /// `operand.field`, or `has(operand.field)`.
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        test: bool,
    },
    /// Operators too, under cel-go's names: `_+_`, `_[_]`, `_?_:_`, `_?._`.
    Call {
        function: Arc<str>,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Elements, and whether each is optional (`[?x]`).
    List(Vec<(Expr, bool)>),
    Map(Vec<Entry>),
    Struct {
        name: Arc<str>,
        fields: Vec<Field>,
    },
    Comprehension(Box<Comprehension>),
}

/// A literal's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// `key: value`, or `?key: value`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

/// `field: value`, or `?field: value`.
#[derive(Clone, Debug)]
pub struct Field {
    pub at: u32,
    pub name: Arc<str>,
    pub value: Expr,
    pub optional: bool,
}

/// A fold over a list or the keys of a map: what macros become.
#[derive(Clone, Debug)]
pub struct Comprehension {
    pub range: Expr,
    pub var: Arc<str>,
    /// With it, `var` is the index or key and this the value.
    pub var2: Option<Arc<str>>,
    pub accu: Arc<str>,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

impl Comprehension {
    /// Whether it is `cel.bind`.
    pub(crate) fn is_bind(&self) -> bool {
        &*self.accu != ACCUMULATOR
            && matches!(&self.range.kind, Kind::List(items) if items.is_empty())
            && matches!(self.condition.kind, Kind::Literal(Literal::Bool(false)))
    }
}

/// A parsed text.
#[derive(Clone, Debug)]
pub struct Tree {
    pub root: Expr,
    /// One more than the highest id.
    pub ids: u32,
}

impl Expr {
    /// Calls `visit` for each direct child.
    pub(crate) fn children(&self, visit: &mut dyn FnMut(&Expr)) {
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => visit(operand),
            Kind::Call { target, args, .. } => target.iter().map(|t| &**t).chain(args).for_each(visit),
            Kind::List(items) => items.iter().for_each(|(item, _)| visit(item)),
            Kind::Map(entries) => entries.iter().for_each(|entry| {
                visit(&entry.key);
                visit(&entry.value);
            }),
            Kind::Struct { fields, .. } => fields.iter().for_each(|field| visit(&field.value)),
            Kind::Comprehension(c) => {
                [&c.range, &c.init, &c.condition, &c.step, &c.result].into_iter().for_each(visit);
            }
        }
    }

    /// The dotted name that a chain of idents and selections spells.
    pub(crate) fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test: false } => {
                let mut name = operand.qualified_name()?;
                name.push('.');
                name.push_str(field);
                Some(name)
            }
            _ => None,
        }
    }
}
