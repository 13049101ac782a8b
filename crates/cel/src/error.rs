//! Why an evaluation has no value.

/// An evaluation that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

/// What sort of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The expression has no value for this input; `&&`, `||` and `?:` may get past it.
    Value,
    /// The cost limit is reached.
    Cost,
    /// The caller's interrupt, or a bound on work or memory that no cost accounts for.
    Interrupted,
}

impl Error {
    /// An error of the expression.
    pub fn new(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Value, message: message.into() }
    }

    pub(crate) fn no_such_overload() -> Self {
        Self::new("no such overload")
    }

    pub(crate) fn cost() -> Self {
        let message = "operation cancelled: actual cost limit exceeded".into();
        Self { kind: ErrorKind::Cost, message }
    }

    pub(crate) fn interrupted() -> Self {
        Self { kind: ErrorKind::Interrupted, message: "operation interrupted".into() }
    }

    pub(crate) fn memory() -> Self {
        Self { kind: ErrorKind::Interrupted, message: "operation cancelled: memory limit exceeded".into() }
    }
}
