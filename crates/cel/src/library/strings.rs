//! The string extension library, version 2. Positions are of characters.

use super::{int, list, text};
use crate::context::Context;
use crate::error::Error;
use crate::function::Row;
use crate::value::Value;

type Outcome<'a> = Result<Value<'a>, Error>;

pub(crate) const ROWS: &[Row] = &[
    ("charAt", "string_char_at_int", ".(string, int) string", |cx, args| {
        let (of, at) = (text(args, 0)?, int(args, 1)?);
        cx.work(of.len() as u64 / 16)?;
        let found = usize::try_from(at).ok().and_then(|at| of.chars().map(Some).chain([None]).nth(at));
        match found {
            Some(Some(c)) => Ok(c.to_string().into()),
            Some(None) => Ok(Value::from("")),
            None => Err(out_of_range(at)),
        }
    }),
    ("indexOf", "string_index_of_string", ".(string, string) int", |cx, args| index_of(cx, args, 0)),
    ("indexOf", "string_index_of_string_int", ".(string, string, int) int", |cx, args| {
        index_of(cx, args, int(args, 2)?)
    }),
    ("lastIndexOf", "string_last_index_of_string", ".(string, string) int", |cx, args| {
        last_index_of(cx, args, None)
    }),
    ("lastIndexOf", "string_last_index_of_string_int", ".(string, string, int) int", |cx, args| {
        last_index_of(cx, args, Some(int(args, 2)?))
    }),
    ("lowerAscii", "string_lower_ascii", ".(string) string", |cx, args| {
        cx.take(text(args, 0)?.len())?;
        Ok(text(args, 0)?.to_ascii_lowercase().into())
    }),
    ("upperAscii", "string_upper_ascii", ".(string) string", |cx, args| {
        cx.take(text(args, 0)?.len())?;
        Ok(text(args, 0)?.to_ascii_uppercase().into())
    }),
    ("replace", "string_replace_string_string", ".(string, string, string) string", |cx, args| {
        replace(cx, args, -1)
    }),
    ("replace", "string_replace_string_string_int", ".(string, string, string, int) string", |cx, args| {
        replace(cx, args, int(args, 3)?)
    }),
    ("split", "string_split_string", ".(string, string) list(string)", |cx, args| split(cx, args, -1)),
    ("split", "string_split_string_int", ".(string, string, int) list(string)", |cx, args| {
        split(cx, args, int(args, 2)?)
    }),
    ("substring", "string_substring_int", ".(string, int) string", |cx, args| substring(cx, args, None)),
    ("substring", "string_substring_int_int", ".(string, int, int) string", |cx, args| {
        substring(cx, args, Some(int(args, 2)?))
    }),
    ("trim", "string_trim", ".(string) string", |cx, args| {
        cx.take(text(args, 0)?.len())?;
        Ok(text(args, 0)?.trim().to_owned().into())
    }),
    ("join", "list_join", ".(list(string)) string", |cx, args| join(cx, args, "")),
    ("join", "list_join_string", ".(list(string), string) string", |cx, args| join(cx, args, text(args, 1)?)),
    ("format", "string_format_list_string", ".(string, list(dyn)) string", super::string_format::format),
    ("strings.quote", "strings_quote", "(string) string", |cx, args| {
        let of = text(args, 0)?;
        cx.take(of.len() * 2 + 2)?;
        let mut out = String::with_capacity(of.len() + 2);
        out.push('"');
        for c in of.chars() {
            match c {
                '\u{7}' => out.push_str("\\a"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{b}' => out.push_str("\\v"),
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                c => out.push(c),
            }
        }
        out.push('"');
        Ok(out.into())
    }),
];

fn out_of_range(at: i64) -> Error {
    Error::new(format!("index out of range: {at}"))
}

/// The byte offset of the character at `at`, which may be the end.
fn offset(of: &str, at: i64) -> Result<usize, Error> {
    let count = usize::try_from(at).map_err(|_| out_of_range(at))?;
    of.char_indices().map(|(at, _)| at).chain([of.len()]).nth(count).ok_or_else(|| out_of_range(at))
}

fn position(of: &str, offset: usize) -> Value<'static> {
    Value::Int(of[..offset].chars().count() as i64)
}

fn index_of<'a>(cx: &mut Context<'_>, args: &[Value<'a>], from: i64) -> Outcome<'a> {
    let (of, wanted) = (text(args, 0)?, text(args, 1)?);
    cx.work(of.len() as u64 / 16)?;
    if wanted.is_empty() && from == 0 {
        return Ok(Value::Int(0));
    }
    let start = offset(of, from)?;
    Ok(of[start..].find(wanted).map_or(Value::Int(-1), |at| position(of, start + at)))
}

fn last_index_of<'a>(cx: &mut Context<'_>, args: &[Value<'a>], last: Option<i64>) -> Outcome<'a> {
    let (of, wanted) = (text(args, 0)?, text(args, 1)?);
    cx.work(of.len() as u64 / 16)?;
    // Where the match may begin at the latest.
    let end = match last {
        Some(last) => (offset(of, last)? + wanted.len()).min(of.len()),
        None => of.len(),
    };
    let mut end = end;
    while !of.is_char_boundary(end) {
        end -= 1;
    }
    Ok(of[..end].rfind(wanted).map_or(Value::Int(-1), |at| position(of, at)))
}

fn replace<'a>(cx: &mut Context<'_>, args: &[Value<'a>], limit: i64) -> Outcome<'a> {
    let (of, old, new) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = of.matches(old).take(limit).count();
    cx.take((of.len() - count * old.len()).saturating_add(count.saturating_mul(new.len())))?;
    Ok(of.replacen(old, new, limit).into())
}

fn split<'a>(cx: &mut Context<'_>, args: &[Value<'a>], limit: i64) -> Outcome<'a> {
    let (of, separator) = (text(args, 0)?, text(args, 1)?);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<&str> = if separator.is_empty() && limit > 1 {
        // Between any two characters; what is over the limit stays together.
        let ends = of.char_indices().map(|(at, _)| at).skip(1).take(limit - 1);
        let mut from = 0;
        let mut parts: Vec<&str> = Vec::new();
        for end in ends {
            parts.push(&of[from..end]);
            from = end;
        }
        parts.extend((!of.is_empty()).then_some(&of[from..]));
        parts
    } else if limit == 0 {
        Vec::new()
    } else {
        of.splitn(limit, separator).collect()
    };
    cx.take(of.len() + parts.len() * size_of::<Value<'_>>())?;
    Ok(Value::list(parts.into_iter().map(|part| part.to_owned().into()).collect()))
}

fn substring<'a>(cx: &mut Context<'_>, args: &[Value<'a>], end: Option<i64>) -> Outcome<'a> {
    let (of, from) = (text(args, 0)?, int(args, 1)?);
    if let Some(end) = end
        && from > end
    {
        return Err(Error::new(format!("invalid substring range. start: {from}, end: {end}")));
    }
    cx.take(of.len())?;
    let start = offset(of, from)?;
    let stop = end.map_or(Ok(of.len()), |end| offset(of, end))?;
    Ok(of[start..stop].to_owned().into())
}

fn join<'a>(cx: &mut Context<'_>, args: &[Value<'a>], separator: &str) -> Outcome<'a> {
    let mut out = String::new();
    for (index, item) in list(args, 0)?.iter().enumerate() {
        let Value::String(item) = item? else { return Err(Error::no_such_overload()) };
        let separator = if index > 0 { separator } else { "" };
        cx.take(item.len() + separator.len())?;
        out.push_str(separator);
        out.push_str(&item);
    }
    Ok(out.into())
}
