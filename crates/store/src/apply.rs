//! What a write does to a key: the part both engines share.

use crate::{Change, Error, Expect, Record, Result, Revision, VALUE_MAX_BYTES, Write};

/// The change that `write` makes at `revision`, given the record there now.
/// Returns `Conflict` where the expectation does not hold.
pub(crate) fn apply(write: &Write, current: Option<Record>, revision: Revision) -> Result<Change> {
    if let Some(value) = &write.value
        && value.len() > VALUE_MAX_BYTES
    {
        return Err(Error::TooLarge { bytes: value.len() });
    }
    let holds = match (write.expect, &current) {
        (Expect::Absent, None) => write.value.is_some(),
        (Expect::Absent, Some(_)) => false,
        (Expect::Modified(wanted), Some(record)) => record.modified == wanted,
        (Expect::Present, Some(_)) => true,
        (Expect::Modified(_) | Expect::Present, None) => false,
    };
    if !holds {
        return Err(Error::Conflict { current });
    }
    let created = current.as_ref().map_or(revision, |record| record.created);
    Ok(Change { revision, key: write.key.clone(), value: write.value.clone(), created, previous: current })
}

/// The first string that is greater than every string with this prefix; `None` for the empty one.
pub(crate) fn prefix_end(prefix: &str) -> Option<String> {
    // Keys are ASCII paths: the last byte below 0x7f can be raised without leaving UTF-8.
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0x7f {
            end.push(last + 1);
            return String::from_utf8(end).ok();
        }
    }
    None
}
