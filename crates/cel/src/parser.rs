//! Tokens into a tree, by descent that is bounded: text over [`TEXT_MAX`] or nested deeper than
//! [`DEPTH_MAX`] is refused, as cel-go refuses it.

use std::sync::Arc;

use crate::ast::{Entry, Expr, Field, Kind, Literal, Tree};
use crate::issue::{Issue, Issues};
use crate::lexer::{self, Token, TokenKind};
use crate::macros;

/// Code points of a text.
pub const TEXT_MAX: usize = 100_000;
/// Nested expressions.
pub const DEPTH_MAX: u32 = 250;
/// Syntax errors after which the rest of the text is not looked at.
const ERRORS_MAX: usize = 100;

/// Words that no variable or function may have.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "package",
    "namespace",
    "null",
    "return",
    "true",
    "var",
    "void",
    "while",
];

/// Which macros there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Macros {
    /// `cel.bind`.
    pub bindings: bool,
    /// `optMap`, `optFlatMap`, and the optional syntax.
    pub optional: bool,
    /// Comprehensions of two variables.
    pub two_variables: bool,
}

pub(crate) struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depth: u32,
    ids: u32,
    pub macros: Macros,
    pub issues: Vec<Issue>,
}

/// Parsing cannot go on; the issue is told already.
pub(crate) struct Stop;
type Parsed<T = Expr> = Result<T, Stop>;

/// The tree of `text`.
pub(crate) fn parse(text: &str, macros: Macros) -> Result<Tree, Issues> {
    let size = text.chars().count();
    if size > TEXT_MAX {
        let message = format!("expression code point size exceeds limit: size: {size}, limit {TEXT_MAX}");
        return Err(Issues::new("", vec![Issue { at: None, message }]));
    }
    let mut issues = Vec::new();
    let tokens = lexer::tokens(text, &mut issues);
    let mut parser = Parser { tokens, next: 0, depth: 0, ids: 1, macros, issues };
    let root = parser.whole();
    match root {
        Ok(root) if parser.issues.is_empty() => Ok(Tree { root, ids: parser.ids }),
        _ => {
            parser.issues.truncate(ERRORS_MAX);
            Err(Issues::new(text, parser.issues))
        }
    }
}

impl Parser {
    fn whole(&mut self) -> Parsed {
        let root = self.expr()?;
        if self.peek().kind != TokenKind::End {
            let last = self.tokens.len() - 2 == self.next;
            let what = if last { "extraneous" } else { "mismatched" };
            let shown = self.shown();
            return self.stop(format!("Syntax error: {what} input '{shown}' expecting <EOF>"));
        }
        Ok(root)
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn at(&self) -> u32 {
        self.peek().at
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek().kind, TokenKind::Sign(s) if s == sign)
    }

    fn eat(&mut self, sign: &str) -> bool {
        let is = self.is(sign);
        self.next += usize::from(is);
        is
    }

    fn shown(&self) -> String {
        match &self.peek().kind {
            TokenKind::End => "<EOF>".into(),
            TokenKind::Ident(name) | TokenKind::Int(name) => name.to_string(),
            TokenKind::Sign(sign) => (*sign).into(),
            TokenKind::Literal(Literal::String(text)) => format!("{text:?}"),
            TokenKind::Literal(Literal::Double(value)) => value.to_string(),
            TokenKind::Literal(Literal::Uint(value)) => format!("{value}u"),
            TokenKind::Literal(_) => "literal".into(),
        }
    }

    fn stop<T>(&mut self, message: String) -> Parsed<T> {
        let at = self.at();
        self.issues.push(Issue::new(at, message));
        Err(Stop)
    }

    fn expect(&mut self, sign: &str) -> Parsed<u32> {
        let at = self.at();
        if self.eat(sign) {
            return Ok(at);
        }
        let shown = self.shown();
        self.stop(format!("Syntax error: mismatched input '{shown}' expecting '{sign}'"))
    }

    /// A new node. Deeper trees than the bound end the parsing.
    pub fn node(&mut self, at: u32, kind: Kind) -> Expr {
        let mut node = Expr { id: self.ids, at, depth: 0, kind };
        self.ids += 1;
        let mut depth = 0;
        node.children(&mut |child| depth = depth.max(child.depth));
        node.depth = depth + 1;
        node
    }

    fn checked(&mut self, node: Expr) -> Parsed {
        if node.depth <= DEPTH_MAX { Ok(node) } else { self.too_deep() }
    }

    fn too_deep<T>(&mut self) -> Parsed<T> {
        self.issues
            .push(Issue { at: None, message: format!("expression recursion limit exceeded: {DEPTH_MAX}") });
        Err(Stop)
    }

    pub fn call(&mut self, at: u32, function: &str, args: Vec<Expr>) -> Expr {
        self.node(at, Kind::Call { function: function.into(), target: None, args })
    }

    fn expr(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.too_deep();
        }
        let expr = self.conditional();
        self.depth -= 1;
        expr
    }

    fn conditional(&mut self) -> Parsed {
        let condition = self.binary(0)?;
        if !self.is("?") {
            return Ok(condition);
        }
        let at = self.expect("?")?;
        let yes = self.binary(0)?;
        self.expect(":")?;
        let no = self.expr()?;
        let node = self.call(at, "_?_:_", vec![condition, yes, no]);
        self.checked(node)
    }

    /// Operators that bind at least as much as `level`. Chains group to the left, but those of `||` and
    /// `&&` are balanced.
    fn binary(&mut self, level: u8) -> Parsed {
        let mut left = self.unary()?;
        while let Some((sign, function, binds)) = self.operator().filter(|(_, _, binds)| *binds >= level) {
            let mut places = vec![self.at()];
            self.next += 1;
            let mut terms = vec![left, self.binary(binds + 1)?];
            while binds <= AND && self.is(sign) {
                places.push(self.at());
                self.next += 1;
                terms.push(self.binary(binds + 1)?);
            }
            let node = self.balanced(function, &mut terms.into_iter(), &places);
            left = self.checked(node)?;
        }
        Ok(left)
    }

    /// The operator that is next.
    fn operator(&self) -> Option<(&'static str, &'static str, u8)> {
        let TokenKind::Sign(next) = self.peek().kind else { return None };
        OPERATORS.iter().find(|(sign, ..)| *sign == next).copied()
    }

    fn balanced(&mut self, function: &str, terms: &mut std::vec::IntoIter<Expr>, places: &[u32]) -> Expr {
        if places.is_empty() {
            return terms.next().expect("there is one more term than there are places");
        }
        let middle = places.len() / 2;
        let left = self.balanced(function, terms, &places[..middle]);
        let right = self.balanced(function, terms, &places[middle + 1..]);
        self.call(places[middle], function, vec![left, right])
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        let (sign, function) = if self.is("!") {
            ("!", "!_")
        } else if self.is("-") {
            if let Some(literal) = self.negative() {
                return self.member(literal);
            }
            ("-", "-_")
        } else {
            let primary = self.primary()?;
            return self.member(primary);
        };
        let mut odd = false;
        while self.is(sign) && !(sign == "-" && odd && self.is_number(1)) {
            self.next += 1;
            odd = !odd;
        }
        let operand = match self.negative() {
            Some(literal) => literal,
            None => self.primary()?,
        };
        let operand = self.member(operand)?;
        if !odd {
            return Ok(operand);
        }
        let node = self.call(at, function, vec![operand]);
        self.checked(node)
    }

    fn is_number(&self, ahead: usize) -> bool {
        matches!(
            self.tokens.get(self.next + ahead).map(|token| &token.kind),
            Some(TokenKind::Int(_) | TokenKind::Literal(Literal::Double(_)))
        )
    }

    /// A number with its minus sign.
    fn negative(&mut self) -> Option<Expr> {
        if !self.is("-") || !self.is_number(1) {
            return None;
        }
        let at = self.at();
        self.next += 1;
        let literal = match self.peek().kind.clone() {
            TokenKind::Int(digits) => self.int(at, &format!("-{digits}")),
            TokenKind::Literal(Literal::Double(value)) => Literal::Double(-value),
            _ => return None,
        };
        self.next += 1;
        Some(self.node(at, Kind::Literal(literal)))
    }

    fn int(&mut self, at: u32, text: &str) -> Literal {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let value = match digits.strip_prefix("0x") {
            Some(digits) => i128::from_str_radix(digits, 16),
            None => digits.parse(),
        };
        match value.ok().map(|v| if negative { -v } else { v }).and_then(|v| i64::try_from(v).ok()) {
            Some(value) => Literal::Int(value),
            None => {
                self.issues.push(Issue::new(at, "invalid int literal"));
                Literal::Int(0)
            }
        }
    }

    /// What follows an expression: selections, calls of members, indices.
    fn member(&mut self, mut expr: Expr) -> Parsed {
        loop {
            let at = self.at();
            if self.eat(".") {
                let optional = self.optional_sign()?;
                let name = self.ident()?;
                if !optional && self.is("(") {
                    let open = self.at();
                    self.next += 1;
                    let args = self.list_of_args()?;
                    expr = macros::expand(self, open, Some(expr), &name, args)?;
                } else if optional {
                    let field = self.node(at, Kind::Literal(Literal::String(name)));
                    expr = self.call(at, "_?._", vec![expr, field]);
                } else {
                    expr = self.node(at, Kind::Select { operand: Box::new(expr), field: name, test: false });
                }
            } else if self.eat("[") {
                let optional = self.optional_sign()?;
                let index = self.expr()?;
                self.expect("]")?;
                expr = self.call(at, if optional { "_[?_]" } else { "_[_]" }, vec![expr, index]);
            } else if self.is("{")
                && let Some(name) = expr.qualified_name()
            {
                self.next += 1;
                expr = self.fields(at, name.into())?;
            } else {
                return Ok(expr);
            }
            expr = self.checked(expr)?;
        }
    }

    /// The `?` of optional syntax.
    fn optional_sign(&mut self) -> Parsed<bool> {
        if self.is("?") && !self.macros.optional {
            return self.stop("unsupported syntax '?'".into());
        }
        Ok(self.eat("?"))
    }

    fn ident(&mut self) -> Parsed<Arc<str>> {
        if let TokenKind::Ident(name) = self.peek().kind.clone() {
            self.next += 1;
            return Ok(name);
        }
        let shown = self.shown();
        self.stop(format!("Syntax error: no viable alternative at input '.{shown}'"))
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        match self.peek().kind.clone() {
            TokenKind::Literal(literal) => {
                self.next += 1;
                Ok(self.node(at, Kind::Literal(literal)))
            }
            TokenKind::Int(digits) => {
                self.next += 1;
                let literal = self.int(at, &digits);
                Ok(self.node(at, Kind::Literal(literal)))
            }
            TokenKind::Ident(name) => {
                self.next += 1;
                self.name(at, &name, &name)
            }
            TokenKind::Sign("true" | "false") => {
                let value = self.is("true");
                self.next += 1;
                Ok(self.node(at, Kind::Literal(Literal::Bool(value))))
            }
            TokenKind::Sign("null") => {
                self.next += 1;
                Ok(self.node(at, Kind::Literal(Literal::Null)))
            }
            TokenKind::Sign("(") => {
                self.next += 1;
                let expr = self.expr()?;
                self.expect(")")?;
                Ok(expr)
            }
            TokenKind::Sign("[") => {
                self.next += 1;
                self.list(at)
            }
            TokenKind::Sign("{") => {
                self.next += 1;
                self.map(at)
            }
            TokenKind::Sign(".") if matches!(self.tokens[self.next + 1].kind, TokenKind::Ident(_)) => {
                self.next += 1;
                let name = self.ident()?;
                self.name(at, &name, &format!(".{name}"))
            }
            _ => {
                let shown = self.shown();
                self.stop(format!(
                    "Syntax error: mismatched input '{shown}' expecting {{'[', '{{', '(', '.', '-', '!', \
                     'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}"
                ))
            }
        }
    }

    /// An identifier, or a call of a global function.
    fn name(&mut self, at: u32, name: &str, full: &str) -> Parsed {
        if RESERVED.contains(&name) {
            self.issues.push(Issue::new(at, format!("reserved identifier: {name}")));
        }
        if !self.is("(") {
            return Ok(self.node(at, Kind::Ident(full.into())));
        }
        let open = self.at();
        self.next += 1;
        let args = self.list_of_args()?;
        let node = macros::expand(self, open, None, full, args)?;
        self.checked(node)
    }

    /// Expressions up to `)`.
    fn list_of_args(&mut self) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        if self.eat(")") {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if !self.eat(",") {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn list(&mut self, at: u32) -> Parsed {
        let mut items = Vec::new();
        while !self.eat("]") {
            let optional = self.optional_sign()?;
            items.push((self.expr()?, optional));
            if !self.eat(",") {
                self.expect("]")?;
                break;
            }
        }
        let node = self.node(at, Kind::List(items));
        self.checked(node)
    }

    fn map(&mut self, at: u32) -> Parsed {
        let mut entries = Vec::new();
        while !self.eat("}") {
            let optional = self.optional_sign()?;
            let key = self.expr()?;
            self.expect(":")?;
            entries.push(Entry { key, value: self.expr()?, optional });
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        let node = self.node(at, Kind::Map(entries));
        self.checked(node)
    }

    fn fields(&mut self, at: u32, name: Arc<str>) -> Parsed {
        let mut fields = Vec::new();
        while !self.eat("}") {
            let optional = self.optional_sign()?;
            let field = self.ident()?;
            let place = self.expect(":")?;
            fields.push(Field { at: place, name: field, value: self.expr()?, optional });
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(self.node(at, Kind::Struct { name, fields }))
    }
}

/// How much `&&` binds.
const AND: u8 = 1;

/// Signs, functions, and how much they bind.
const OPERATORS: &[(&str, &str, u8)] = &[
    ("||", "_||_", 0),
    ("&&", "_&&_", AND),
    ("==", "_==_", 2),
    ("!=", "_!=_", 2),
    ("<", "_<_", 2),
    ("<=", "_<=_", 2),
    (">", "_>_", 2),
    (">=", "_>=_", 2),
    ("in", "@in", 2),
    ("+", "_+_", 3),
    ("-", "_-_", 3),
    ("*", "_*_", 4),
    ("/", "_/_", 4),
    ("%", "_%_", 4),
];
