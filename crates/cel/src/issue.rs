//! What is wrong with an expression, and where: cel-go's way to print it.

use std::fmt;

/// One fault of an expression. `Display` prints the message alone; [`Issues`] prints places too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Offset in the text, in code points; `None` if the fault is of the whole text.
    pub at: Option<u32>,
    pub message: String,
}

impl Issue {
    pub(crate) fn new(at: u32, message: impl Into<String>) -> Self {
        Self { at: Some(at), message: message.into() }
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The faults that refuse an expression, in the order of their places.
///
/// `Display` prints each as cel-go does: `ERROR: <input>:LINE:COLUMN: MESSAGE`, then the line of
/// the text and a mark under the column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Issues {
    text: String,
    pub issues: Vec<Issue>,
    /// Whether the expression is well-formed and of the right types, and no program can be made of it, as
    /// of one with a pattern that is none: then the message says it all.
    pub instantiation: bool,
}

/// More faults than this are counted, not printed.
const PRINTED_MAX: usize = 100;
/// Longer lines are not quoted.
const QUOTED_MAX: usize = 16_384;

impl Issues {
    pub(crate) fn new(text: &str, mut issues: Vec<Issue>) -> Self {
        issues.sort_by_key(|issue| issue.at);
        Self { text: text.to_owned(), issues, instantiation: false }
    }

    pub(crate) fn of_program(message: String) -> Self {
        let issues = vec![Issue { at: None, message }];
        Self { text: String::new(), issues, instantiation: true }
    }

    fn place(&self, at: u32) -> (usize, usize, &str) {
        let mut left = at as usize;
        let mut last = (1, 0, "");
        for (number, line) in self.text.split('\n').enumerate() {
            let length = line.chars().count();
            last = (number + 1, left.min(length), line);
            if left <= length {
                break;
            }
            left -= length + 1;
        }
        last
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().take(PRINTED_MAX).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if self.instantiation {
                f.write_str(&issue.message)?;
                continue;
            }
            let Some(at) = issue.at else {
                write!(f, "ERROR: <input>:-1:0: {}", issue.message)?;
                continue;
            };
            let (line, column, text) = self.place(at);
            write!(f, "ERROR: <input>:{line}:{}: {}", column + 1, issue.message)?;
            if text.len() > QUOTED_MAX {
                continue;
            }
            write!(f, "\n | {}\n | ", text.replace('\t', " "))?;
            let mut chars = text.chars();
            for c in chars.by_ref().take(column) {
                f.write_str(if c.len_utf8() > 1 { "．" } else { "." })?;
            }
            f.write_str(if chars.next().is_some_and(|c| c.len_utf8() > 1) { "＾" } else { "^" })?;
        }
        if self.issues.len() > PRINTED_MAX {
            write!(f, "\n{} more errors were truncated", self.issues.len() - PRINTED_MAX)?;
        }
        Ok(())
    }
}
