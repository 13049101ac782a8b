//! `testdata/kinds.yaml`: what becomes of a new object of each kind, and how `kubectl get` shows it.

use crate::invalid::{Rows, create};
use serde_json::Value;
use skeg_api::{columns, meta};

const TABLE: &str = include_str!("../../testdata/kinds.yaml");
const CREATED: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-01-01T00:05:00Z";

#[test]
fn new_objects_are_stored_and_shown_as_upstream_does() {
    let (rows, table) = (Rows::new(), serde_saphyr::from_str::<Value>(TABLE).unwrap());
    let (mut differences, mut count) = (Vec::new(), 0);
    for row in table.as_array().unwrap() {
        let kind = rows.of(&row["object"]);
        let mut object = row["object"].clone();
        meta::set(&mut object, "creationTimestamp", CREATED.into());
        skeg_api::decode::check(&kind.schema, &mut object).unwrap();
        let (mut object, errors) = create(&kind, object);
        assert_eq!(errors, [], "{}", row["object"]);
        let names: Vec<String> = kind
            .columns
            .iter()
            .map(|column| {
                let kind = if column.kind == "string" { "" } else { &format!(":{}", column.kind) };
                format!("{}{}{kind}", if column.priority > 0 { "-" } else { "" }, column.name)
            })
            .collect();
        let cells: Vec<String> = columns::cells(&kind, &object, NOW.parse().unwrap())
            .iter()
            .map(|cell| cell.as_str().map_or(cell.to_string(), str::to_owned))
            .collect();
        for field in ["creationTimestamp", "uid"] {
            meta::remove(&mut object, field);
        }
        let found = [object, names.join("|").into(), cells.join("|").into()];
        for (name, found) in ["stored", "columns", "cells"].iter().zip(found) {
            if row[name] != found {
                differences
                    .push(format!("{} {name}\n  expected {}\n  found    {found}", kind.gvk.kind, row[name]));
            }
        }
        count += 1;
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    assert!(count >= 40, "{count}");
}
