//! `matches`, `find`, `findAll`, with RE2's syntax.

use regex::{Regex, RegexBuilder};

use super::{int, text};
use crate::context::Context;
use crate::error::Error;
use crate::function::Row;
use crate::value::Value;

/// Bytes that a compiled pattern may take.
const COMPILED_BYTES_MAX: usize = 4 << 20;

pub(crate) const ROWS: &[Row] = &[
    ("matches", "matches", "(string, string) bool", matches),
    ("matches", "matches_string", ".(string, string) bool", matches),
    ("find", "string_find_string", ".(string, string) string", |cx, args| {
        let of = text(args, 0)?;
        work(cx, of, text(args, 1)?)?;
        let found = cx.pattern(text(args, 1)?)?.find(of).map_or("", |found| found.as_str());
        Ok(found.to_owned().into())
    }),
    ("findAll", "string_find_all_string", ".(string, string) list(string)", |cx, args| {
        find_all(cx, args, -1)
    }),
    ("findAll", "string_find_all_string_int", ".(string, string, int) list(string)", |cx, args| {
        find_all(cx, args, int(args, 2)?)
    }),
];

/// Matching takes time in proportion to both.
fn work(cx: &mut Context<'_>, of: &str, pattern: &str) -> Result<(), Error> {
    cx.work((of.len() as u64 / 16 + 1) * (pattern.len() as u64 / 16 + 1))
}

fn matches<'a>(cx: &mut Context<'_>, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let (of, pattern) = (text(args, 0)?, text(args, 1)?);
    work(cx, of, pattern)?;
    Ok(Value::Bool(cx.pattern(pattern)?.is_match(of)))
}

fn find_all<'a>(cx: &mut Context<'_>, args: &[Value<'a>], limit: i64) -> Result<Value<'a>, Error> {
    let (of, pattern) = (text(args, 0)?, text(args, 1)?);
    work(cx, of, pattern)?;
    let regex = cx.pattern(pattern)?;
    let mut found = Vec::new();
    for part in regex.find_iter(of).take(usize::try_from(limit).unwrap_or(usize::MAX)) {
        cx.take(part.len() + size_of::<Value<'_>>())?;
        found.push(part.as_str().to_owned().into());
    }
    Ok(Value::list(found))
}

/// A pattern in RE2's syntax, as schemas of custom resources have them too.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles a pattern, within a bound on its size.
    ///
    /// # Errors
    /// Why it is none, in a message that names it.
    pub fn new(text: &str) -> Result<Self, String> {
        compile(text).map(Self)
    }

    /// Whether it is found anywhere in a text.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// Compiles a pattern of RE2.
///
/// # Errors
/// Why it is none, in a message that names it.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(&translate(pattern)).size_limit(COMPILED_BYTES_MAX).nest_limit(200).build();
    built.map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or(&text);
        let reason = match reason {
            "unopened group" => "unexpected )",
            "unclosed group" => "missing closing )",
            "unclosed character class" => "missing closing ]",
            "repetition operator missing expression" => "missing argument to repetition operator",
            "unrecognized escape sequence" => "invalid escape sequence",
            other => other,
        };
        format!("error parsing regexp: {reason}: `{pattern}`")
    })
}

/// RE2's pattern in the syntax of the `regex` crate: `\d`, `\s`, `\w` and `\b` are of ASCII, `\Q…\E` quotes,
/// and in brackets only `[:name:]` nests.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut class = false;
    // The first character of a class may be a bracket that closes nothing.
    let mut first = false;
    while let Some(c) = chars.next() {
        let was_first = std::mem::take(&mut first);
        match (c, class) {
            ('\\', _) => match chars.next() {
                Some('Q') if !class => {
                    let mut quoted = String::new();
                    while let Some(c) = chars.next() {
                        if c == '\\' && chars.peek() == Some(&'E') {
                            chars.next();
                            break;
                        }
                        quoted.push(c);
                    }
                    out.push_str(&regex::escape(&quoted));
                }
                Some('d') => out.push_str(if class { "0-9" } else { "[0-9]" }),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str(if class { "0-9A-Za-z_" } else { "[0-9A-Za-z_]" }),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str(if class { r"\t\n\f\r " } else { r"[\t\n\f\r ]" }),
                Some('S') => out.push_str(r"[^\t\n\f\r ]"),
                Some('b') if !class => out.push_str(r"(?-u:\b)"),
                Some(c) => {
                    out.push('\\');
                    out.push(c);
                }
                None => out.push('\\'),
            },
            ('[', false) => {
                class = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
                first = true;
            }
            ('[', true) if chars.peek() == Some(&':') => {
                out.push('[');
                while let Some(c) = chars.next() {
                    out.push(c);
                    if c == ':' && chars.peek() == Some(&']') {
                        chars.next();
                        out.push(']');
                        break;
                    }
                }
            }
            (']', true) if was_first => out.push_str("\\]"),
            (']', true) => {
                class = false;
                out.push(']');
            }
            ('[' | '&' | '~', true) => {
                out.push('\\');
                out.push(c);
            }
            (c, _) => out.push(c),
        }
    }
    out
}
