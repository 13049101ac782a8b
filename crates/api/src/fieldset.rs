//! Who set which field: the sets in `metadata.managedFields` and how writes move ownership.
//! Upstream counterparts: `structured-merge-diff` and `apimachinery/pkg/util/managedfields`; KEP-555.
//!
//! [`FieldSet`] is the set itself, kept in its JSON form. [`Diff`] is what a write changed.
//! [`track`] rewrites the entries after a create, update or patch; [`apply`] is server-side apply,
//! which builds on the same parts; [`configure`] is a merge that nobody comes to own; [`scale`] shows entries through the `scale` subresource.

mod apply;
mod configure;
mod diff;
mod entries;
mod last_applied;
mod merge;
pub mod scale;
mod set;
mod track;
mod typed;

pub use apply::{Apply, apply};
pub use configure::configure;
pub use diff::Diff;
pub use entries::keep_times;
pub use set::FieldSet;
pub use track::{Operation, Tracking, manager_name, track};
