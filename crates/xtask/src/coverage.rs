//! `cargo xtask coverage`: each row of COMPAT.md that claims to hold names tests that ran and
//! passed. With `--spec`, what of Kubernetes' conformance behaviours is proven, and what is missing.

use crate::host::root;
use crate::test::{Outcome, Results};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

/// The behaviours of Kubernetes' conformance tests: the name, a tab, and the tests that prove it,
/// or [`OUT_OF_SCOPE`] and why.
const CONFORMANCE: &str = "tests/conformance.tsv";
const OUT_OF_SCOPE: &str = "out of scope: ";

pub fn coverage() -> Result<()> {
    let results = Results::load()?;
    let compat = fs::read_to_string(root().join("COMPAT.md"))?;
    let mut rows = rows(&compat);
    if rows.is_empty() {
        bail!("COMPAT.md has no rows");
    }
    rows.extend(proofs(&fs::read_to_string(root().join(CONFORMANCE))?));
    let wrong = wrong(&rows, |test| results.outcome(test));
    println!("{} clauses, each with a test that passed, but {}", rows.len(), wrong.len());
    if !wrong.is_empty() {
        bail!("COMPAT.md or {CONFORMANCE} claims more than the tests show:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// Fails on a test that COMPAT.md or `tests/conformance.tsv` names and the sources do not have: a
/// wrong name is told before an hour of tests, not after it.
pub fn names() -> Result<()> {
    let compat = fs::read_to_string(root().join("COMPAT.md"))?;
    let table = fs::read_to_string(root().join(CONFORMANCE))?;
    let rows = rows(&compat).into_iter().chain(proofs(&table));
    let mut tests: Vec<String> = rows.flat_map(|(_, tests)| tests).collect();
    let mut sources = String::new();
    read_sources(&root().join("crates"), &mut sources)?;
    tests.retain(|test| !is_named(&sources, test));
    if !tests.is_empty() {
        bail!("no such tests: {}", tests.join(", "));
    }
    Ok(())
}

/// A function of the test's name, or a text that ends in it, as cases have.
fn is_named(sources: &str, test: &str) -> bool {
    let name = test.rsplit("::").next().unwrap_or_default();
    sources.contains(&format!("fn {name}(")) || sources.contains(&format!("{name}\""))
}

fn read_sources(dir: &std::path::Path, out: &mut String) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            read_sources(&path, out)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push_str(&fs::read_to_string(&path)?);
        }
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

/// The behaviours of the table that are not out of scope, each with its tests.
fn proofs(table: &str) -> impl Iterator<Item = (String, Vec<String>)> {
    let rows = table.lines().filter_map(|line| line.split_once('\t'));
    let proven = rows.filter(|(_, proof)| !proof.starts_with(OUT_OF_SCOPE));
    proven.map(|(name, tests)| (name.to_owned(), tests.split(',').map(str::to_owned).collect()))
}

/// Prints each behaviour of the `conformance.yaml` in `SKEG_SPEC_DIR` as proven, out of scope or
/// missing, by the table [`CONFORMANCE`].
///
/// # Errors
/// A behaviour is missing, a test of the table did not pass, or the table names what does not exist.
pub fn spec() -> Result<()> {
    let dir =
        std::env::var("SKEG_SPEC_DIR").context("SKEG_SPEC_DIR must name the folder of conformance.yaml")?;
    let results = Results::load()?;
    let behaviours = behaviours(&fs::read_to_string(std::path::Path::new(&dir).join("conformance.yaml"))?)?;
    let table = fs::read_to_string(root().join(CONFORMANCE))?;
    let (report, wrong) = account(&behaviours, &table, |test| results.outcome(test));
    print!("{report}");
    if !wrong.is_empty() {
        bail!("{} behaviours are not accounted for:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    Ok(())
}

/// The names of the behaviours, without their last tag.
fn behaviours(yaml: &str) -> Result<Vec<String>> {
    let list: serde_json::Value = serde_saphyr::from_str(yaml)?;
    let names = list.as_array().into_iter().flatten().filter_map(|behaviour| behaviour["codename"].as_str());
    Ok(names.map(|name| name.trim_end_matches(" [Conformance]").to_owned()).collect())
}

/// A line for each behaviour, and what of it is wrong.
fn account<'r>(
    behaviours: &[String],
    table: &str,
    outcome: impl Fn(&str) -> Option<&'r Outcome>,
) -> (String, Vec<String>) {
    let mut proofs: BTreeMap<&str, &str> = table.lines().filter_map(|line| line.split_once('\t')).collect();
    let (mut report, mut wrong) = (String::new(), Vec::new());
    for name in behaviours {
        let verdict = match proofs.remove(name.as_str()) {
            Some(proof) if proof.starts_with(OUT_OF_SCOPE) => proof.to_owned(),
            Some(tests) => {
                let failed = tests.split(',').find(|test| outcome(test) != Some(&Outcome::Passed));
                wrong.extend(failed.map(|test| format!("{name}: {test} did not pass")));
                format!("proven by {tests}")
            }
            None => {
                wrong.push(format!("{name}: missing"));
                "missing".to_owned()
            }
        };
        let _ = writeln!(report, "{name}: {verdict}");
    }
    wrong.extend(proofs.keys().map(|name| format!("{name}: no such behaviour")));
    (report, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_behaviour_is_proven_or_told() {
        let yaml = "- testname: a\n  codename: '[sig-cli] a\n    b [Conformance]'\n- codename: '[sig-node] c'\n- codename: '[sig-apps] e [Conformance]'\n";
        let behaviours = behaviours(yaml).unwrap();
        let table = "[sig-cli] a b\tgood,bad\n[sig-apps] e\tout of scope: because\n[sig-apps] f\tgood\n";
        let outcome = |test: &str| (test == "good").then_some(&Outcome::Passed);
        let (report, wrong) = account(&behaviours, table, outcome);
        assert_eq!(
            report,
            "[sig-cli] a b: proven by good,bad\n[sig-node] c: missing\n[sig-apps] e: out of scope: because\n"
        );
        let expected =
            ["[sig-cli] a b: bad did not pass", "[sig-node] c: missing", "[sig-apps] f: no such behaviour"];
        assert_eq!(wrong, expected);
    }

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
    fn a_test_is_a_function_or_a_case() {
        let sources = r#"fn good() {} Case { name: "case", run: x } note("lint::fmt", y)"#;
        for (test, expected) in [
            ("a::good", true),
            ("e2e::case", true),
            ("lint::fmt", true),
            ("a::goo", false),
            ("e2e::cas", false),
        ] {
            assert_eq!(is_named(sources, test), expected, "{test}");
        }
    }

    #[test]
    fn reads_only_tables_of_clauses() {
        let text = "| clause | test | figure |\n|---|---|---|\n| a | `x::y`, `z` | 3 |\n\n| other | table |\n|---|---|\n| b | c |\n";
        assert_eq!(rows(text), [("a".to_owned(), vec!["x::y".to_owned(), "z".to_owned()])]);
    }
}
