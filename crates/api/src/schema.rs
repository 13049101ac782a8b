//! The schema table: what type each field of each kind has, and how lists and maps of it merge.
//! One table serves decoding, field validation, strategic merge, field tracking and OpenAPI.
//! The built-in part is generated data (`cargo xtask codegen`); schemas of custom resources are
//! compiled at run time into the same form. It knows types only: no defaulting code, no
//! validation rules.
//! Upstream counterpart: the structural part of `kube-openapi` and `structured-merge-diff/schema`.

mod compile;
mod descriptions;
mod embedded;
mod table;

pub use compile::SchemaError;
pub use descriptions::Descriptions;
pub use table::{Definition, Property, SchemaRef};

use std::fmt;
use std::sync::Arc;
use table::Table;

/// How hard the documents of custom resources are compressed.
const SOURCE_LEVEL: i32 = 3;

/// What a value of a type looks like in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Shape {
    /// Any JSON value.
    #[default]
    Any = 0,
    /// An object with named properties.
    Object = 1,
    /// An object with free keys and one type of value.
    Map = 2,
    Array = 3,
    String = 4,
    Integer = 5,
    Number = 6,
    Boolean = 7,
    IntOrString = 8,
    /// A resource quantity: a string or a number.
    Quantity = 9,
}

/// The `format` of a scalar, as far as decoding cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Format {
    #[default]
    None = 0,
    Int32 = 1,
    Int64 = 2,
    Double = 3,
    /// Base64.
    Byte = 4,
    /// RFC 3339, written back in seconds.
    Time = 5,
    /// RFC 3339, written back in microseconds.
    MicroTime = 6,
}

/// `x-kubernetes-list-type`; lists without one are atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ListType {
    #[default]
    Atomic = 0,
    Set = 1,
    Map = 2,
}

/// `x-kubernetes-map-type`; maps and objects without one are granular.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum MapType {
    #[default]
    Granular = 0,
    Atomic = 1,
}

/// `x-kubernetes-patch-strategy`: how a strategic merge patch treats the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    /// Lists merge by the merge key (or as sets) instead of being replaced.
    pub merge: bool,
    /// The value is replaced as a whole.
    pub replace: bool,
    /// Only the keys in the patch survive (unions).
    pub retain_keys: bool,
}

/// A cheap handle on the schema of one type. Clone freely.
#[derive(Clone)]
pub struct Schema {
    table: Handle,
    node: u32,
}

#[derive(Clone)]
enum Handle {
    Static(&'static Table),
    Shared(Arc<Table>),
}

impl Schema {
    /// The schema of a built-in type by its full name: `io.k8s.api.apps.v1.Deployment`.
    pub fn builtin(name: &str) -> Option<Self> {
        let table = embedded::table();
        let node = table.definition(name)?.node;
        Some(Schema { table: Handle::Static(table), node })
    }

    /// The schema of a built-in kind by group, version and kind.
    pub fn builtin_kind(group: &str, version: &str, kind: &str) -> Option<Self> {
        let table = embedded::table();
        let node = table.definition_of_kind(group, version, kind)?.node;
        Some(Schema { table: Handle::Static(table), node })
    }

    /// All built-in definitions, by name.
    pub fn builtin_definitions() -> impl Iterator<Item = Definition<'static>> {
        embedded::table().definitions()
    }

    /// A built-in definition by its full name.
    pub fn builtin_definition(name: &str) -> Option<Definition<'static>> {
        let table = embedded::table();
        table.definition(name).map(|raw| Definition::new(table, raw))
    }

    /// Accepts every JSON value.
    pub fn any() -> Self {
        Schema { table: Handle::Static(embedded::any()), node: 0 }
    }

    /// Compiles an OpenAPI v3 schema (structural, without `$ref`), as a CustomResourceDefinition
    /// carries it. `apiVersion`, `kind` and `metadata` of the root get their built-in types.
    pub fn from_openapi(kind: &str, schema: &serde_json::Value) -> Result<Self, SchemaError> {
        let mut table = compile::compile(kind, schema)?;
        let text = schema.to_string();
        table.source_hash =
            text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
                (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
            });
        table.source = zstd::bulk::compress(text.as_bytes(), SOURCE_LEVEL).unwrap_or_default();
        Ok(Schema { table: Handle::Shared(Arc::new(table)), node: 0 })
    }

    /// The document that a schema of a custom resource was compiled from. It is kept compressed:
    /// few ask for it.
    pub fn source(&self) -> Option<serde_json::Value> {
        match &self.table {
            Handle::Static(_) => None,
            Handle::Shared(table) => {
                serde_json::from_slice(&zstd::stream::decode_all(&table.source[..]).ok()?).ok()
            }
        }
    }

    /// A hash (FNV-1a) of [`Schema::source`]; zero for built-in types.
    pub fn source_hash(&self) -> u128 {
        match &self.table {
            Handle::Static(_) => 0,
            Handle::Shared(table) => table.source_hash,
        }
    }

    /// Fills the defaults that the schema has, at any depth: where a field is missing, or null
    /// without being nullable.
    pub fn fill(&self, value: &mut serde_json::Value) {
        if let Handle::Shared(table) = &self.table
            && table.nodes.iter().any(|node| node.default != table::NONE)
        {
            fill(self.root(), value);
        }
    }

    /// Whether it was compiled at run time, for a custom resource.
    pub fn is_custom(&self) -> bool {
        matches!(self.table, Handle::Shared(_))
    }

    /// The borrowed view that walks are done with.
    pub fn root(&self) -> SchemaRef<'_> {
        let table = match &self.table {
            Handle::Static(table) => table,
            Handle::Shared(table) => &**table,
        };
        SchemaRef::new(table, self.node)
    }
}

fn fill(schema: SchemaRef<'_>, value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            for property in schema.properties() {
                let Some(default) = property.schema.default() else { continue };
                match map.get(property.name) {
                    None => {}
                    Some(Value::Null) if !property.schema.nullable() => {}
                    Some(_) => continue,
                }
                map.insert(property.name.to_owned(), default.clone());
            }
            for (name, child) in map {
                if let Some(below) = schema.child(name) {
                    fill(below, child);
                }
            }
        }
        Value::Array(items) => {
            let Some(item) = schema.items() else { return };
            items.iter_mut().for_each(|value| fill(item, value));
        }
        _ => {}
    }
}

impl Default for Schema {
    fn default() -> Self {
        Self::any()
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schema").field(&self.root().type_name()).finish()
    }
}

#[cfg(test)]
mod tests;
