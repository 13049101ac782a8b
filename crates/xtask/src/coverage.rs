//! `cargo xtask coverage`: each row of COMPAT.md that claims to hold names tests that ran and
//! passed.

use crate::host::root;
use crate::test::{Outcome, Results};
use anyhow::{Result, bail};
use std::fs;

pub fn coverage() -> Result<()> {
    let results = Results::load()?;
    let compat = fs::read_to_string(root().join("COMPAT.md"))?;
    let rows = rows(&compat);
    let wrong = wrong(&rows, |test| results.outcome(test));
    println!("{} clauses, each with a test that passed, but {}", rows.len(), wrong.len());
    if !wrong.is_empty() {
        bail!("COMPAT.md claims more than the tests show:\n  {}", wrong.join("\n  "));
    }
    if rows.is_empty() {
        bail!("COMPAT.md has no rows");
    }
    Ok(())
}

/// What of the rows does not hold.
fn wrong<'r>(rows: &[(String, Vec<String>)], outcome: impl Fn(&str) -> Option<&'r Outcome>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (clause, tests) in rows {
        if tests.is_empty() {
            wrong.push(format!("{clause}: names no test"));
        }
        for test in tests {
            match outcome(test) {
                Some(Outcome::Passed) => {}
                Some(outcome) => wrong.push(format!("{clause}: {test} {outcome:?}")),
                None => wrong.push(format!("{clause}: {test} did not run")),
            }
        }
    }
    wrong
}

/// The rows `| clause | `test`, `test` | figure |` of every table whose second column is headed
/// `test`.
fn rows(text: &str) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    let mut in_table = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
        if !line.starts_with('|') {
            in_table = false;
        } else if cells.get(1) == Some(&"test") {
            in_table = true;
        } else if in_table && !line.starts_with("|-") && cells.len() >= 2 {
            let tests = cells[1].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            rows.push((cells[0].to_owned(), tests));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_only_if_each_of_its_tests_passed() {
        let text = "| clause | test |\n|---|---|\n| a | `good` |\n| b | `good`, `bad` |\n| c | `gone` |\n| d | none |\n";
        let outcome = |test: &str| match test {
            "good" => Some(&Outcome::Passed),
            "bad" => Some(&Outcome::Failed),
            _ => None,
        };
        let expected = ["b: bad Failed", "c: gone did not run", "d: names no test"];
        assert_eq!(wrong(&rows(text), outcome), expected);
    }

    #[test]
    fn reads_only_tables_of_clauses() {
        let text = "| clause | test | figure |\n|---|---|---|\n| a | `x::y`, `z` | 3 |\n\n| other | table |\n|---|---|\n| b | c |\n";
        assert_eq!(rows(text), [("a".to_owned(), vec!["x::y".to_owned(), "z".to_owned()])]);
    }
}
