//! The Common Expression Language, as Kubernetes v1.36 speaks it.
//!
//! ```text
//! let env = Env::new().with_declared("self", schema.declare("self"));
//! let program = env.compile("self.replicas <= self.maxReplicas")?;   // cel-go's messages
//! program.estimated_cost().max                                       // before it runs
//! let variables = BTreeMap::from([("self", Value::typed(&object, &schema)?)]);
//! let evaluation = program.evaluate(&variables, Limits::within(budget));
//! budget -= evaluation.cost;
//! ```
//!
//! A program is compiled once and evaluated by any thread. Objects are borrowed, not copied: a value is a
//! view of their JSON, with the schema that says what it means. Whatever the text or the object, compiling
//! and evaluating take bounded time and memory: the text and its depth are limited, costs are counted as
//! upstream counts them, and what they do not count (comparing deep objects, copying) has bounds of its own.
//!
//! This crate knows no Kubernetes kind, reads no clock and does no IO. Upstream's counterparts are cel-go
//! and `k8s.io/apiserver/pkg/cel`.

mod ast;
mod check;
mod context;
mod env;
mod equality;
mod error;
mod estimate;
mod eval;
mod function;
mod issue;
mod lexer;
mod library;
mod macros;
mod number;
mod opaque;
mod parser;
mod program;
mod schema;
mod time;
mod types;
mod unify;
mod value;

pub use context::{
    DEFINITION_ESTIMATE_LIMIT, Limits, MESSAGE_BYTES_MAX, PER_CALL_LIMIT, RULE_ESTIMATE_LIMIT, RUNTIME_BUDGET,
};
pub use env::Env;
pub use error::{Error, ErrorKind};
pub use estimate::Cost;
pub use eval::Activation;
pub use issue::{Issue, Issues};
pub use library::authz::{Authorizer, Check, Decision, ResourceCheck, What};
pub use library::regex::Pattern;
pub use opaque::Opaque;
pub use parser::{DEPTH_MAX, TEXT_MAX};
pub use program::{Evaluation, Program};
pub use schema::{Declared, Schema};
pub use time::Timestamp;
pub use types::{KEYWORDS, ObjectType, Type, escape, unescape};
pub use value::{Key, List, Map, Struct, Text, Value};
