//! What can go wrong with a request.

use skeg_api::{Reason, Status};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("{0}")]
    Api(Status),
    /// No answer: the outcome of a write is unknown.
    #[error("no answer from the API server")]
    Transport(#[source] BoxError),
    /// The answer is not what was asked for.
    #[error("cannot decode the answer to {what}")]
    Decode { what: String, source: serde_json::Error },
}

impl Error {
    /// The refusal, where there is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Api(status) => Some(status),
            _ => None,
        }
    }

    pub fn reason(&self) -> Option<Reason> {
        self.status().map(|s| s.reason)
    }

    pub fn code(&self) -> Option<u16> {
        self.status().map(|s| s.code)
    }

    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(Status::is_conflict)
    }

    /// 410: what was asked for is compacted away.
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// Whether a namespace that is being deleted refused a create.
    pub fn is_namespace_terminating(&self) -> bool {
        self.status()
            .and_then(|s| s.details.as_ref())
            .is_some_and(|d| d.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Error::Api(status)
    }
}
