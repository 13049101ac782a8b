//! Which number is which field: generated data (`cargo xtask codegen`), loaded at the first
//! message. The form of the data is described with its writer, `crates/xtask/src/wire.rs`.

use skeg_base::{HashMap, new_map};
use std::sync::LazyLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    String,
    Integer,
    Boolean,
    Double,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// JSON, as bytes.
    Raw,
    /// A list of strings, in a message of its own because maps hold no lists.
    List,
    Message(usize),
    /// A message of which JSON shows only the one field that is set: a boolean, an object or a list.
    Union(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    One,
    Repeated,
    Map,
}

#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub number: u64,
    /// Empty for a message whose fields are its parent's.
    pub name: &'static str,
    pub count: Count,
    pub of: Type,
}

/// A field as JSON names it.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// The name's first bytes, which tell most names apart at once.
    start: u64,
    pub field: Field,
    /// The numbers of the messages around it that JSON does not show, the outermost first; 0 for none.
    pub within: [u64; 2],
}

pub struct Table {
    pub by_name: HashMap<&'static str, usize>,
    pub messages: Vec<Message>,
}

#[derive(Default)]
pub struct Message {
    pub fields: Vec<Field>,
    /// Sorted by the start of the name, with those of messages that JSON does not show.
    named: Vec<Named>,
}

impl Message {
    pub fn named(&self, name: &[u8]) -> Option<&Named> {
        let start = start(name);
        let from = self.named.partition_point(|named| named.start < start);
        let alike = self.named[from..].iter().take_while(|named| named.start == start);
        alike.into_iter().find(|named| named.field.name.as_bytes() == name)
    }

    pub fn by_number(&self, number: u64) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }
}

pub static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table { by_name: new_map(), messages: Vec::new() };
    for (index, line) in include_str!("../../data/protobuf.tsv").lines().enumerate() {
        let mut parts = line.split('\t');
        table.by_name.insert(parts.next().unwrap_or_default(), index);
        table.messages.push(Message { fields: parts.filter_map(field).collect(), named: Vec::new() });
    }
    for index in 0..table.messages.len() {
        let mut named = Vec::new();
        flatten(&table.messages, index, [0; 2], &mut named);
        named.sort_unstable_by_key(|named| named.start);
        table.messages[index].named = named;
    }
    table
});

fn start(name: &[u8]) -> u64 {
    let mut start = [0; 8];
    let len = name.len().min(8);
    start[..len].copy_from_slice(&name[..len]);
    u64::from_be_bytes(start)
}

fn flatten(messages: &[Message], index: usize, within: [u64; 2], out: &mut Vec<Named>) {
    for field in &messages[index].fields {
        match (field.of, within) {
            (Type::Message(inner), [outer, 0]) if field.name.is_empty() => {
                let within = if outer == 0 { [field.number, 0] } else { [outer, field.number] };
                flatten(messages, inner, within, out);
            }
            _ => out.push(Named { start: start(field.name.as_bytes()), field: *field, within }),
        }
    }
}

fn field(text: &'static str) -> Option<Field> {
    let mut parts = text.splitn(3, ':');
    let (number, name, code) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let (count, code) = match code.split_at_checked(1)? {
        ("*", rest) => (Count::Repeated, rest),
        ("%", rest) => (Count::Map, rest),
        _ => (Count::One, code),
    };
    let of = match code {
        "s" => Type::String,
        "i" => Type::Integer,
        "b" => Type::Boolean,
        "d" => Type::Double,
        "y" => Type::Bytes,
        "T" => Type::Time,
        "M" => Type::MicroTime,
        "Q" => Type::Quantity,
        "I" => Type::IntOrString,
        "R" => Type::Raw,
        "L" => Type::List,
        index => match index.strip_prefix('|') {
            Some(index) => Type::Union(index.parse().ok()?),
            None => Type::Message(index.parse().ok()?),
        },
    };
    Some(Field { number, name, count, of })
}
