//! The Accept header (RFC 9110, section 12.5.1), read as loosely as upstream reads it: a quality
//! that is no number is 0, and 0 is the last choice rather than none.
//! Upstream counterpart: `github.com/munnerz/goautoneg`.

/// One media range with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Clause<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: f32,
    /// `a=b;c=d`
    parameters: &'a str,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (range, parameters) = text.split_once(';').unwrap_or((text, ""));
        let (kind, subtype) = match range.split_once('/') {
            Some((kind, subtype)) => (kind.trim(), subtype.trim()),
            None if range.trim() == "*" => ("*", "*"),
            None => return None,
        };
        if subtype.contains('/') {
            return None;
        }
        let mut clause = Clause { kind, subtype, quality: 1.0, parameters };
        if let Some(quality) = clause.parameter("q") {
            clause.quality = quality.parse().unwrap_or(0.0);
        }
        Some(clause)
    }

    /// Whether a media type is in the range.
    pub fn takes(&self, media_type: &str) -> bool {
        let (kind, subtype) = media_type.split_once('/').unwrap_or((media_type, ""));
        match (self.kind, self.subtype) {
            ("*", "*") => true,
            (own, "*") => own == kind,
            (own, own_subtype) => own == kind && own_subtype == subtype,
        }
    }

    /// A parameter; the last of a name counts.
    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        let all = self.parameters.split(';').filter_map(|part| part.split_once('='));
        all.filter(|(own, value)| own.trim() == name && !value.is_empty() && !value.contains('='))
            .map(|(_, value)| value.trim())
            .next_back()
    }

    fn precedes(&self, other: &Self) -> bool {
        self.quality > other.quality
            || self.kind != "*" && other.kind == "*"
            || self.subtype != "*" && other.subtype == "*"
    }
}

/// The ranges of a header, the preferred first: by quality, with wildcards behind what is named.
/// Equals keep their order.
pub fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = Vec::new();
    // The rule is no order (a wildcard may be behind what it has more quality than), so that the way
    // of sorting is part of it: by insertion.
    for clause in header.split(',').filter_map(Clause::parse) {
        let at = clauses.iter().rposition(|before| !clause.precedes(before)).map_or(0, |at| at + 1);
        clauses.insert(at, clause);
    }
    clauses
}
