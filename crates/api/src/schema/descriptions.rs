//! The descriptions that `kubectl explain` shows: compressed until someone asks for OpenAPI, and
//! not kept afterwards unless the caller keeps them.

use std::io::Read;

static COMPRESSED: &[u8] = include_bytes!("../../data/descriptions.zst");

/// The most that the descriptions may unpack to.
const UNPACKED_LEN_MAX: u64 = 16 << 20;

/// One text for each definition and each property of the built-in table, by index.
pub struct Descriptions {
    text: String,
    definitions: Vec<(u32, u32)>,
    properties: Vec<(u32, u32)>,
}

impl Descriptions {
    /// Unpacks the texts: about a megabyte and a few milliseconds.
    pub fn load() -> Self {
        Self::unpack().expect("the embedded descriptions are generated and tested")
    }

    /// For who reads types and not texts.
    pub fn none() -> Self {
        Descriptions { text: String::new(), definitions: Vec::new(), properties: Vec::new() }
    }

    /// Lines end with a zero byte: the definitions first, then the properties, after their counts.
    fn unpack() -> Option<Self> {
        let mut text = String::new();
        let decoder = zstd::stream::read::Decoder::new(COMPRESSED).ok()?;
        decoder.take(UNPACKED_LEN_MAX).read_to_string(&mut text).ok()?;
        let (head, _) = text.split_once('\0')?;
        let (definitions, properties) = head.split_once(' ')?;
        let (definitions, properties): (usize, usize) = (definitions.parse().ok()?, properties.parse().ok()?);
        let mut spans = Vec::with_capacity(definitions + properties);
        let mut start = head.len() + 1;
        while let Some(len) = text[start..].find('\0') {
            spans.push((start as u32, (start + len) as u32));
            start += len + 1;
        }
        if spans.len() != definitions + properties {
            return None;
        }
        let properties = spans.split_off(definitions);
        Some(Descriptions { text, definitions: spans, properties })
    }

    fn at(&self, span: Option<&(u32, u32)>) -> &str {
        span.map_or("", |(start, end)| &self.text[*start as usize..*end as usize])
    }

    /// The description of a definition; empty where there is none.
    pub fn definition(&self, index: usize) -> &str {
        self.at(self.definitions.get(index))
    }

    /// The description of a property; empty where there is none.
    pub fn property(&self, index: usize) -> &str {
        self.at(self.properties.get(index))
    }
}
