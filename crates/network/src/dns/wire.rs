//! DNS messages as bytes: reads one question, writes answers to it. Everything else in a message
//! is passed on untouched to the servers that understand it.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const HEADER_LEN: usize = 12;
/// Without EDNS an answer over UDP is no longer.
const UDP_LEN_MIN: usize = 512;
/// What passes every network unfragmented.
const UDP_LEN_MAX: usize = 1232;

pub const TYPE_A: u16 = 1;
pub const TYPE_NS: u16 = 2;
pub const TYPE_CNAME: u16 = 5;
pub const TYPE_SOA: u16 = 6;
pub const TYPE_PTR: u16 = 12;
pub const TYPE_TXT: u16 = 16;
pub const TYPE_AAAA: u16 = 28;
pub const TYPE_SRV: u16 = 33;
const TYPE_OPT: u16 = 41;
pub const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// The one question of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    id: u16,
    recursion_desired: bool,
    /// Lower case, without the last dot.
    pub name: String,
    pub kind: u16,
    /// The question as it came, to be repeated in the answer.
    question: Vec<u8>,
    edns: bool,
    pub udp_len_max: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(String),
    Ptr(String),
    Ns(String),
    /// Of the zone that the record is named after.
    Soa,
    /// At most 255 bytes.
    Txt(&'static str),
    Srv {
        port: u16,
        target: String,
    },
}

/// A record that answers; its name may differ from the question's in the additional part.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub name: String,
    pub data: Data,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Reads a query. Err: the code to refuse it with, where it can be answered at all.
pub fn parse(message: &[u8]) -> Result<Query, Option<Code>> {
    const RESPONSE: u16 = 0x8000;
    const OPCODE: u16 = 0x7800;
    const RECURSION_DESIRED: u16 = 0x0100;
    let header = |at| u16_at(message, at).ok_or(None);
    let (id, flags, questions) = (header(0)?, header(2)?, header(4)?);
    let (answers, authorities, additionals) = (header(6)?, header(8)?, header(10)?);
    if flags & RESPONSE != 0 || message.len() < HEADER_LEN {
        return Err(None);
    }
    if flags & OPCODE != 0 {
        return Err(Some(Code::NotImplemented));
    }
    if questions != 1 || answers != 0 || authorities != 0 {
        return Err(Some(Code::FormatError));
    }
    let malformed = || Some(Code::FormatError);
    let (mut name, mut at) = (String::new(), HEADER_LEN);
    loop {
        let len = usize::from(*message.get(at).ok_or_else(malformed)?);
        at += 1;
        if len == 0 {
            break;
        }
        // A question needs no compression.
        if len > 63 || name.len() + len > 255 {
            return Err(malformed());
        }
        let label = message.get(at..at + len).ok_or_else(malformed)?;
        at += len;
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    let kind = u16_at(message, at).ok_or_else(malformed)?;
    let end = at + 4;
    let question = message.get(HEADER_LEN..end).ok_or_else(malformed)?.to_vec();
    // The option record comes first where there is one: root name, type, size.
    let edns = additionals > 0 && message.get(end) == Some(&0) && u16_at(message, end + 1) == Some(TYPE_OPT);
    let udp_len_max = match u16_at(message, end + 3) {
        Some(size) if edns => usize::from(size).clamp(UDP_LEN_MIN, UDP_LEN_MAX),
        _ => UDP_LEN_MIN,
    };
    Ok(Query {
        id,
        recursion_desired: flags & RECURSION_DESIRED != 0,
        name,
        kind,
        question,
        edns,
        udp_len_max,
    })
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|l| !l.is_empty() && l.len() <= 63) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
}

/// A question of our own, under the id of the query that it helps to answer.
pub fn ask(id_of: &Query, name: &str, kind: u16) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    put_name(&mut out, name);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    const RECURSION_DESIRED: u16 = 0x0100;
    header(&mut out, id_of.id, RECURSION_DESIRED, [1, 0, 0, 0]);
    out
}

/// The name at `at` and where what follows it begins. Pointers only lead backwards, so it ends.
fn name_at(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut name, mut end, mut limit) = (String::new(), None, message.len());
    loop {
        let len = usize::from(*message.get(at)?);
        if len & 0xc0 == 0xc0 {
            let target = usize::from(u16_at(message, at)? & 0x3fff);
            end = end.or(Some(at + 2));
            if target >= limit.min(at) {
                return None;
            }
            (at, limit) = (target, target);
            continue;
        }
        at += 1;
        if len == 0 {
            return Some((name, end.unwrap_or(at)));
        }
        let label = message.get(at..at + len)?;
        at += len;
        if len > 63 || name.len() + len > 255 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
}

/// The addresses and aliases that another server answered with; None when it makes no sense.
pub fn answers(message: &[u8]) -> Option<Vec<Record>> {
    let (questions, count) = (u16_at(message, 4)?, u16_at(message, 6)?);
    let mut at = HEADER_LEN;
    for _ in 0..questions {
        at = name_at(message, at)?.1 + 4;
    }
    let mut out = Vec::new();
    for _ in 0..count {
        let (name, after) = name_at(message, at)?;
        let (kind, len) = (u16_at(message, after)?, usize::from(u16_at(message, after + 8)?));
        let start = after + 10;
        let bytes = message.get(start..start + len)?;
        at = start + len;
        let data = match kind {
            TYPE_A => Data::A(<[u8; 4]>::try_from(bytes).ok()?.into()),
            TYPE_AAAA => Data::Aaaa(<[u8; 16]>::try_from(bytes).ok()?.into()),
            TYPE_CNAME => Data::Cname(name_at(message, start)?.0),
            _ => continue,
        };
        out.push(Record { name, data });
    }
    Some(out)
}

fn put_record(out: &mut Vec<u8>, question: &str, name: &str, kind: u16, ttl_s: u32, data: &[u8]) {
    if name == question {
        // Points to the question's name.
        out.extend_from_slice(&[0xc0, HEADER_LEN as u8]);
    } else {
        put_name(out, name);
    }
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&ttl_s.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// The name server of a zone, as CoreDNS names itself.
pub fn name_server(zone: &str) -> String {
    format!("ns.dns.{zone}")
}

fn record(out: &mut Vec<u8>, question: &str, record: &Record, ttl_s: u32) {
    let name = |target: &str| {
        let mut data = Vec::new();
        put_name(&mut data, target);
        data
    };
    let (kind, data) = match &record.data {
        Data::A(address) => (TYPE_A, address.octets().to_vec()),
        Data::Aaaa(address) => (TYPE_AAAA, address.octets().to_vec()),
        Data::Ptr(target) => (TYPE_PTR, name(target)),
        Data::Cname(target) => (TYPE_CNAME, name(target)),
        Data::Ns(target) => (TYPE_NS, name(target)),
        Data::Soa => {
            let mut data = name(&name_server(&record.name));
            put_name(&mut data, &format!("hostmaster.{}", record.name));
            // The last of them is how long an absence may be remembered.
            for word in [1u32, 7200, 1800, 86_400, ttl_s] {
                data.extend_from_slice(&word.to_be_bytes());
            }
            (TYPE_SOA, data)
        }
        Data::Txt(text) => (TYPE_TXT, [&[text.len() as u8], text.as_bytes()].concat()),
        Data::Srv { port, target } => {
            let mut data = Vec::new();
            for word in [0u16, 100, *port] {
                data.extend_from_slice(&word.to_be_bytes());
            }
            put_name(&mut data, target);
            (TYPE_SRV, data)
        }
    };
    put_record(out, question, &record.name, kind, ttl_s, &data);
}

/// What is answered with authority over `zone`.
pub struct Answer<'a> {
    pub code: Code,
    pub answers: Vec<Record>,
    pub additionals: Vec<Record>,
    pub zone: &'a str,
    pub ttl_s: u32,
}

/// The answer as bytes, at most `len_max` of them: records that do not fit make it truncated.
pub fn write(query: &Query, answer: &Answer<'_>, len_max: usize) -> Vec<u8> {
    const OPTION_LEN: usize = 11;
    let room = len_max - if query.edns { OPTION_LEN } else { 0 };
    let mut out = vec![0; HEADER_LEN];
    out.extend_from_slice(&query.question);
    let (mut truncated, mut counts) = (false, [1u16, 0, 0, 0]);
    let mut add = |out: &mut Vec<u8>, section: usize, bytes: Vec<u8>| {
        let fits = out.len() + bytes.len() <= room;
        if fits {
            out.extend(bytes);
            counts[section] += 1;
        }
        fits
    };
    for answer_record in &answer.answers {
        let mut bytes = Vec::new();
        record(&mut bytes, &query.name, answer_record, answer.ttl_s);
        if !add(&mut out, 1, bytes) {
            truncated = true;
            break;
        }
    }
    if answer.answers.is_empty() {
        let authority = Record { name: answer.zone.to_owned(), data: Data::Soa };
        let mut bytes = Vec::new();
        record(&mut bytes, &query.name, &authority, answer.ttl_s);
        add(&mut out, 2, bytes);
    }
    for additional in answer.additionals.iter().filter(|_| !truncated) {
        let mut bytes = Vec::new();
        record(&mut bytes, &query.name, additional, answer.ttl_s);
        add(&mut out, 3, bytes);
    }
    if query.edns {
        counts[3] += 1;
        out.push(0);
        for word in [TYPE_OPT, UDP_LEN_MAX as u16, 0, 0, 0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
    let flags =
        0x8480 | u16::from(query.recursion_desired) << 8 | u16::from(truncated) << 9 | answer.code as u16;
    header(&mut out, query.id, flags, counts);
    out
}

fn header(out: &mut [u8], id: u16, flags: u16, counts: [u16; 4]) {
    for (i, word) in [id, flags].into_iter().chain(counts).enumerate() {
        out[2 * i..2 * i + 2].copy_from_slice(&word.to_be_bytes());
    }
}

/// A bare refusal of `message`.
pub fn refuse(message: &[u8], code: Code) -> Vec<u8> {
    let mut out = message.get(..HEADER_LEN).unwrap_or(&[0; HEADER_LEN]).to_vec();
    let id = u16_at(message, 0).unwrap_or(0);
    header(&mut out, id, 0x8080 | u16_at(message, 2).unwrap_or(0) & 0x7900 | code as u16, [0; 4]);
    out
}

pub const REVERSE_ZONE: &str = "in-addr.arpa";

/// The address that a name like `4.3.2.1.in-addr.arpa` asks about.
pub fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let mut parts = name.strip_suffix(REVERSE_ZONE)?.strip_suffix('.')?.split('.').map(str::parse::<u8>);
    let mut next = || parts.next()?.ok();
    let octets = [next()?, next()?, next()?, next()?];
    parts.next().is_none().then(|| Ipv4Addr::new(octets[3], octets[2], octets[1], octets[0]))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A query as a resolver library sends it.
    pub fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
        put_name(&mut out, name);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&CLASS_IN.to_be_bytes());
        if let Some(size) = edns {
            out.push(0);
            for word in [TYPE_OPT, size, 0, 0, 0] {
                out.extend_from_slice(&word.to_be_bytes());
            }
        }
        out
    }

    #[test]
    fn queries_are_read() {
        let parsed = parse(&query("Web.Default.svc", TYPE_A, Some(4096))).unwrap();
        assert_eq!(
            (parsed.name.as_str(), parsed.kind, parsed.udp_len_max),
            ("web.default.svc", TYPE_A, 1232)
        );
        assert_eq!(parse(&query("x", TYPE_SRV, None)).unwrap().udp_len_max, 512);
        assert_eq!(parse(&[0; 5]), Err(None));
        let mut two = query("x", 1, None);
        two[5] = 2;
        assert_eq!(parse(&two), Err(Some(Code::FormatError)));
        let mut cut = query("longer.name", 1, None);
        cut.truncate(20);
        assert_eq!(parse(&cut), Err(Some(Code::FormatError)));
        for len in 0..60 {
            let mut any = query("a.b.c", 1, Some(512));
            any.resize(len, 0xc0);
            let _ = parse(&any);
        }
    }

    #[test]
    fn answers_that_do_not_fit_are_truncated() {
        let parsed = parse(&query("many", TYPE_A, None)).unwrap();
        let answers: Vec<Record> = (0..100)
            .map(|i| Record { name: "many".into(), data: Data::A(Ipv4Addr::new(10, 0, 0, i)) })
            .collect();
        let answer = Answer { code: Code::NoError, answers, additionals: vec![], zone: "z", ttl_s: 5 };
        let small = write(&parsed, &answer, 512);
        assert!(small.len() <= 512 && small[2] & 2 != 0);
        let all = write(&parsed, &answer, 65_535);
        assert_eq!((all[2] & 2, u16_at(&all, 6)), (0, Some(100)));
        assert_eq!(all.len(), HEADER_LEN + 6 + 4 + 100 * 16);
    }

    #[test]
    fn reverse_names() {
        assert_eq!(reverse_address("4.3.2.1.in-addr.arpa"), Some(Ipv4Addr::new(1, 2, 3, 4)));
        assert_eq!(reverse_address("3.2.1.in-addr.arpa"), None);
        assert_eq!(reverse_address("x.4.3.2.1.in-addr.arpa"), None);
    }
}
