//! Loads the generated table: little-endian arrays after a short header, names borrowed from the
//! embedded bytes. The writer is `cargo xtask codegen`; both sides carry the same version number.
//!
//! Layout, all numbers u32 unless said: magic, version; text length, text; then arrays, each with
//! its count first: texts (start, len); nodes (shape, format, list, map, flags, 3 × 0 as bytes;
//! props start, len; item; definition; merge key; keys start, len; default); props (name start,
//! len; node; flags); definitions (name start, len; node; gvks start, len; unions start, len);
//! gvks (three texts); values (start, len of JSON in the text).

use super::table::{Node, Prop, RawDefinition, Span, Table, Text};
use super::{Format, ListType, MapType, Shape};
use std::borrow::Cow;
use std::sync::OnceLock;

static BYTES: &[u8] = include_bytes!("../../data/schema.bin");
pub(super) const MAGIC: &[u8; 8] = b"skegsch\x01";

/// The table of all built-in types; loaded at the first call.
pub(super) fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| load(BYTES).expect("the embedded schema table is generated and tested"))
}

/// A table of one node that accepts everything.
pub(super) fn any() -> &'static Table {
    static ANY: OnceLock<Table> = OnceLock::new();
    ANY.get_or_init(|| {
        let node = Node { flags: super::table::FLAG_PRESERVE_UNKNOWN, ..Node::default() };
        Table { nodes: vec![node], ..Table::default() }
    })
}

/// Reads the numbers of the table one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, tail) = self.0.split_first_chunk::<4>()?;
        self.0 = tail;
        Some(u32::from_le_bytes(*head))
    }

    fn text(&mut self) -> Option<Text> {
        Some(Text { start: self.u32()?, len: self.u32()? })
    }

    fn span(&mut self) -> Option<Span> {
        Some(Span { start: self.u32()?, len: self.u32()? })
    }

    fn array<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()?;
        // Every element has at least four bytes: a wrong count cannot reserve the memory of the host.
        if count as usize > self.0.len() / 4 {
            return None;
        }
        (0..count).map(|_| read(self)).collect()
    }
}

fn load(bytes: &'static [u8]) -> Option<Table> {
    let mut reader = Reader(bytes);
    if reader.bytes(MAGIC.len())? != MAGIC {
        return None;
    }
    let text_len = reader.u32()? as usize;
    let text = std::str::from_utf8(reader.bytes(text_len)?).ok()?;
    let texts = reader.array(Reader::text)?;
    let nodes = reader.array(node)?;
    let props = reader.array(|r| Some(Prop { name: r.text()?, node: r.u32()?, flags: r.u32()? as u8 }))?;
    let definitions = reader.array(|r| {
        Some(RawDefinition { name: r.text()?, node: r.u32()?, gvks: r.span()?, unions: r.text()? })
    })?;
    let gvks = reader.array(|r| Some([r.text()?, r.text()?, r.text()?]))?;
    let values = reader.array(Reader::text)?;
    let mut table = Table {
        text: Cow::Borrowed(text),
        texts,
        nodes,
        props,
        definitions,
        gvks,
        values: Vec::new(),
        source: Vec::new(),
        source_hash: 0,
    };
    table.values =
        values.into_iter().map(|v| serde_json::from_str(table.text(v)).ok()).collect::<Option<_>>()?;
    Some(table)
}

fn node(reader: &mut Reader<'_>) -> Option<Node> {
    let head = reader.bytes(8)?;
    Some(Node {
        shape: shape(head[0])?,
        format: format(head[1])?,
        list: [ListType::Atomic, ListType::Set, ListType::Map].get(usize::from(head[2])).copied()?,
        map: [MapType::Granular, MapType::Atomic].get(usize::from(head[3])).copied()?,
        flags: head[4],
        props: reader.span()?,
        item: reader.u32()?,
        definition: reader.u32()?,
        merge_key: reader.u32()?,
        keys: reader.span()?,
        default: reader.u32()?,
    })
}

fn shape(number: u8) -> Option<Shape> {
    use Shape::*;
    [Any, Object, Map, Array, String, Integer, Number, Boolean, IntOrString, Quantity]
        .get(usize::from(number))
        .copied()
}

fn format(number: u8) -> Option<Format> {
    use Format::*;
    [None, Int32, Int64, Double, Byte, Time, MicroTime].get(usize::from(number)).copied()
}

#[cfg(test)]
mod tests {
    use super::super::table::NONE;
    use super::*;

    #[test]
    fn the_embedded_table_is_whole() {
        let table = table();
        for node in &table.nodes {
            assert!((node.props.start + node.props.len) as usize <= table.props.len());
            assert!(node.item == NONE || (node.item as usize) < table.nodes.len());
            assert!(node.definition == NONE || (node.definition as usize) < table.definitions.len());
        }
        assert!(table.definitions.len() > 700);
        assert!(table.definitions.is_sorted_by_key(|def| table.text(def.name)));
    }

    #[test]
    fn cut_bytes_are_refused_not_a_panic() {
        for len in (0..BYTES.len()).step_by(997) {
            assert!(load(&BYTES[..len]).is_none());
        }
    }
}
