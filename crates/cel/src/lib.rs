//! The Common Expression Language, as Kubernetes v1.36 speaks it.

mod ast;
mod issue;
mod lexer;
mod macros;
mod parser;

pub use issue::{Issue, Issues};
