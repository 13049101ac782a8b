//! The edges between the crates are those that ARCHITECTURE.md allows, and no other.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::process::Command;

/// Each crate and the crates it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("skeg-base", &[]),
    ("skeg-api", &["skeg-cel"]),
    ("skeg-cel", &[]),
    ("skeg-store", &["skeg-base"]),
    ("skeg-apiserver", &["skeg-api", "skeg-cel", "skeg-store", "skeg-base"]),
    ("skeg-client", &["skeg-api", "skeg-base"]),
    ("skeg-controllers", &["skeg-api", "skeg-client", "skeg-base"]),
    ("skeg-scheduler", &["skeg-api", "skeg-client", "skeg-base"]),
    ("skeg-runtime", &["skeg-base"]),
    ("skeg-images", &["skeg-base"]),
    ("skeg-network", &["skeg-base"]),
    ("skeg-fuzz", &["skeg-api", "skeg-apiserver", "skeg-cel", "skeg-store", "skeg-base"]),
    ("skeg-node", &["skeg-api", "skeg-client", "skeg-runtime", "skeg-images", "skeg-network", "skeg-base"]),
];

#[test]
fn crates_depend_only_on_what_they_may() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut checked = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let edges = package["dependencies"].as_array().unwrap().iter().filter(|edge| edge["kind"].is_null());
        for edge in edges.map(|edge| edge["name"].as_str().unwrap()).filter(|edge| edge.starts_with("skeg")) {
            assert_ne!(edge, "skeg-sim", "{name} uses the simulation: nothing may");
            if let Some(allowed) = allowed.get(name) {
                assert!(allowed.contains(&edge), "{name} uses {edge}: that edge is not in ARCHITECTURE.md");
                checked += 1;
            }
        }
    }
    assert!(checked > 15, "only {checked} edges were seen");
}
