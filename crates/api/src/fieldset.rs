//! Who set which field: the sets in `metadata.managedFields` and how writes move ownership.
//! Upstream counterparts: `structured-merge-diff` and `apimachinery/pkg/util/managedfields`.
//!
//! [`FieldSet`] is the set itself, kept in its JSON form. [`Diff`] is what a write changed.
//! [`track`] rewrites the entries after a create, update or patch; server-side apply builds on
//! the same three parts.

mod diff;
mod set;
mod track;

pub use diff::Diff;
pub use set::FieldSet;
pub use track::{Operation, Tracking, manager_name, track};
