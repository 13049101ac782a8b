//! What mutating policies make patches with.

use super::text;
use crate::function::Row;

pub(crate) const ROWS: &[Row] =
    &[("jsonpatch.escapeKey", "string_escape_jsonpatch_key", "(string) string", |cx, args| {
        cx.take(2 * text(args, 0)?.len())?;
        Ok(text(args, 0)?.replace('~', "~0").replace('/', "~1").into())
    })];
