//! Other forms of an object: Table rows for printing, metadata alone, other versions. Made from
//! an entry on demand, never kept.
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/handlers/response.go`.

use crate::cache::Entry;
use crate::convert;
use crate::list::ListMeta;
use crate::negotiate::Form;
use crate::query::Query;
use crate::route::Served;
use crate::stats::{self, Stats};
use serde_json::{Map, Value, json};
use skeg_api::kinds::{Cell, Column, Kind};
use skeg_api::{Status, columns, meta};
use skeg_base::Clock;
use std::sync::Arc;

/// What of each object a Table row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

/// Turns entries of one kind into one form.
#[derive(Clone)]
pub struct Renderer {
    served: Arc<Served>,
    form: Form,
    include: Include,
    headers: bool,
    clock: Clock,
    stats: Arc<Stats>,
}

impl Renderer {
    pub fn new(
        served: Arc<Served>,
        form: Form,
        query: &Query,
        clock: Clock,
        stats: Arc<Stats>,
    ) -> Result<Self, Status> {
        let include = match query.text("includeObject") {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::None,
            "Object" => Include::Object,
            other => {
                return Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}")));
            }
        };
        Ok(Renderer { served, form, include, headers: true, clock, stats })
    }

    /// Column definitions are told once in a watch.
    pub fn drop_headers(&mut self) {
        self.headers = false;
    }

    /// The object whole, in the version asked for.
    pub fn whole(&self, entry: &Entry, revision: u64) -> Value {
        let mut object = entry.value();
        meta::set_resource_version(&mut object, &revision.to_string());
        convert::from_storage(&self.served.kind, &self.served.stored, &mut object);
        stats::add(&self.stats.translations_total, 1);
        object
    }

    /// One object in the form asked for.
    pub fn one(&self, entry: &Entry, revision: u64) -> Value {
        self.value(self.whole(entry, revision), revision)
    }

    /// As [`Renderer::one`], from an object that is decoded already.
    pub fn value(&self, object: Value, revision: u64) -> Value {
        self.value_of(&self.served.kind, object, revision)
    }

    /// As [`Renderer::value`], of a kind that a subresource carries.
    pub fn value_of(&self, kind: &Kind, object: Value, revision: u64) -> Value {
        match self.form {
            Form::Whole => object,
            Form::Metadata => partial(object),
            Form::Table => {
                let list = ListMeta { revision, ..Default::default() };
                self.table(kind, &list, [object])
            }
        }
    }

    /// A list in the form asked for.
    pub fn list(&self, list: &ListMeta, entries: &[Arc<Entry>]) -> Value {
        self.values(list, entries.iter().map(|entry| self.whole(entry, entry.revision)))
    }

    /// As [`Renderer::list`], from objects that are decoded already.
    pub fn values(&self, list: &ListMeta, objects: impl IntoIterator<Item = Value>) -> Value {
        let objects = objects.into_iter();
        let mut metadata = Vec::new();
        list.write(&mut metadata);
        let metadata: Value = serde_json::from_slice(&metadata).unwrap_or_default();
        let kind = &self.served.kind;
        match self.form {
            Form::Whole => json!({
                "apiVersion": kind.gvk.api_version(), "kind": *kind.list_kind, "metadata": metadata,
                "items": objects.collect::<Vec<_>>(),
            }),
            Form::Metadata => json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": metadata,
                "items": objects.map(partial).collect::<Vec<_>>(),
            }),
            Form::Table => self.table(kind, list, objects),
        }
    }

    fn table(&self, kind: &Kind, list: &ListMeta, objects: impl IntoIterator<Item = Value>) -> Value {
        let mut metadata = Vec::new();
        list.write(&mut metadata);
        let plain = kind.columns.is_empty().then(|| Kind { columns: default_columns(), ..kind.clone() });
        let kind = plain.as_ref().unwrap_or(kind);
        let definitions = if self.headers { columns::definitions(&kind.columns) } else { json!([]) };
        let now = self.clock.now();
        let rows: Vec<Value> = objects
            .into_iter()
            .map(|object| {
                let mut row = json!({"cells": columns::cells(kind, &object, now)});
                if let Some(conditions) = columns::row_conditions(kind, &object) {
                    row["conditions"] = conditions;
                }
                row["object"] = match self.include {
                    Include::None => Value::Null,
                    Include::Metadata => partial(object),
                    Include::Object => object,
                };
                row
            })
            .collect();
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1",
            "metadata": serde_json::from_slice::<Value>(&metadata).unwrap_or_default(),
            "columnDefinitions": definitions, "rows": rows,
        })
    }

    /// The object of a bookmark.
    pub fn bookmark(&self, revision: u64, initial_events_end: bool) -> Value {
        let kind = &self.served.kind;
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), revision.to_string().into());
        metadata.insert("creationTimestamp".into(), Value::Null);
        if initial_events_end {
            metadata.insert("annotations".into(), json!({"k8s.io/initial-events-end": "true"}));
        }
        match self.form {
            Form::Whole => {
                json!({"kind": *kind.gvk.kind, "apiVersion": kind.gvk.api_version(), "metadata": metadata})
            }
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Table => {
                metadata.remove("creationTimestamp");
                json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                    "columnDefinitions": [], "rows": [],
                })
            }
        }
    }
}

fn partial(mut object: Value) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// Name and time of creation, for kinds without columns of their own.
fn default_columns() -> Vec<Column> {
    let column = |name: &str, kind, format, path: &str| Column {
        name: name.into(),
        kind,
        format,
        description: String::new(),
        priority: 0,
        cell: Cell::Path(path.into()),
    };
    vec![
        column("Name", "string", "name", "metadata.name"),
        // A plain time, as upstream's default columns have it.
        column("Created At", "string", "", "metadata.creationTimestamp"),
    ]
}
