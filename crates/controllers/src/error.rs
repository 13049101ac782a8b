//! Why a pass could not be finished. The key comes back with back-off.

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Client(#[from] skeg_client::Error),
    #[error("{0}")]
    Selector(String),
    #[error("cannot sign: {0}")]
    Signing(String),
    #[error("no cluster of kinds: {0}")]
    Discovery(String),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Passes over the answer that the object is gone.
pub(crate) fn ignore_not_found<T>(result: skeg_client::Result<T>) -> skeg_client::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a write may have happened although it was not confirmed.
pub(crate) fn is_outcome_unknown(error: &skeg_client::Error) -> bool {
    error.code().is_none_or(|code| code >= 500)
}
