//! URLs, as Go's `net/url` takes them apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::text;
use crate::context::Context;
use crate::error::Error;
use crate::function::Row;
use crate::opaque::Opaque;
use crate::value::{Key, Map, Text, Value};

/// A URL's parts.
#[derive(Debug)]
pub struct Url {
    pub(crate) text: String,
    scheme: String,
    host: String,
    escaped_path: String,
    query: String,
}

pub(crate) const ROWS: &[Row] = &[
    ("url", "string_to_url", "(string) kubernetes.URL", |cx, args| {
        cx.take(2 * text(args, 0)?.len())?;
        let url = parse(text(args, 0)?);
        let url =
            url.map_err(|why| Error::new(format!("URL parse error during conversion from string: {why}")))?;
        Ok(Value::Opaque(Opaque::Url(Arc::new(url))))
    }),
    ("isURL", "is_url_string", "(string) bool", |_, args| Ok(Value::Bool(parse(text(args, 0)?).is_ok()))),
    ("getScheme", "url_get_scheme", ".(kubernetes.URL) string", |_, args| {
        Ok(of(args)?.scheme.clone().into())
    }),
    ("getHost", "url_get_host", ".(kubernetes.URL) string", |_, args| Ok(of(args)?.host.clone().into())),
    ("getHostname", "url_get_hostname", ".(kubernetes.URL) string", |_, args| {
        Ok(split_port(&of(args)?.host).0.trim_matches(['[', ']']).to_owned().into())
    }),
    ("getPort", "url_get_port", ".(kubernetes.URL) string", |_, args| {
        Ok(split_port(&of(args)?.host).1.to_owned().into())
    }),
    ("getEscapedPath", "url_get_escaped_path", ".(kubernetes.URL) string", |_, args| {
        Ok(of(args)?.escaped_path.clone().into())
    }),
    ("getQuery", "url_get_query", ".(kubernetes.URL) map(string, list(string))", |cx, args| {
        query(cx, of(args)?)
    }),
];

fn of<'v>(args: &'v [Value<'_>]) -> Result<&'v Url, Error> {
    match args.first() {
        Some(Value::Opaque(Opaque::Url(url))) => Ok(url),
        _ => Err(Error::no_such_overload()),
    }
}

/// Whether a text is a URI, by the rules of the OpenAPI format `uri`; else why not.
pub(crate) fn parse(text: &str) -> Result<Url, String> {
    let fail = |why: &str| Err(format!("parse {text:?}: {why}"));
    if text.is_empty() {
        return fail("empty url");
    }
    if text.chars().any(|c| c.is_ascii_control()) {
        return fail("net/url: invalid control character in URL");
    }
    let (scheme, rest) = match split_scheme(text) {
        Ok(parts) => parts,
        Err(why) => return fail(why),
    };
    if !rest.starts_with('/') {
        if scheme.is_empty() {
            return fail("invalid URI for request");
        }
        // What has a scheme and no slash is opaque.
        return Ok(Url {
            text: text.into(),
            scheme,
            host: String::new(),
            escaped_path: String::new(),
            query: rest.split_once('?').map_or("", |(_, query)| query).into(),
        });
    }
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.strip_prefix("//") {
        Some(after) if !scheme.is_empty() || !rest.starts_with("///") => {
            after.split_at(after.find('/').unwrap_or(after.len()))
        }
        _ => ("", rest),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Err(why) = check_host(host) {
        return fail(&why);
    }
    let escaped_path = match escape_path(path) {
        Ok(path) => path,
        Err(why) => return fail(&why),
    };
    Ok(Url { text: text.into(), scheme, host: host.into(), escaped_path, query: query.into() })
}

fn split_scheme(text: &str) -> Result<(String, &str), &'static str> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err("missing protocol scheme"),
            ':' => return Ok((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            _ => break,
        }
    }
    Ok((String::new(), text))
}

fn check_host(host: &str) -> Result<(), String> {
    let port = if let Some(inside) = host.strip_prefix('[') {
        let (_, after) = inside.split_once(']').ok_or("missing ']' in host")?;
        after
    } else {
        host.find(':').map_or("", |at| &host[at..])
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !port.is_empty() && (digits.len() == port.len() || !digits.bytes().all(|c| c.is_ascii_digit())) {
        return Err(format!("invalid port {port:?} after host"));
    }
    match host.chars().find(|c| matches!(c, ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')) {
        Some(c) => Err(format!("invalid character {:?} in host name", c.to_string())),
        None => Ok(()),
    }
}

/// A path with what must be escaped escaped, and nothing else.
fn escape_path(path: &str) -> Result<String, String> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'%' => {
                let digits = bytes.get(at + 1..at + 3).unwrap_or_default();
                if digits.len() < 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
                    let end = path.len().min(at + 3);
                    let shown = path.get(at..end).unwrap_or("%");
                    return Err(format!("invalid URL escape {shown:?}"));
                }
                out.push('%');
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(*byte)),
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@'
            | b'!' | b'\'' | b'(' | b')' | b'*' | b'[' | b']' => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out)
}

/// A host and its port.
fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            byte => out.push(byte),
        }
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

fn query<'a>(cx: &mut Context<'_>, url: &Url) -> Result<Value<'a>, Error> {
    let mut found: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        cx.take(pair.len() + 2 * size_of::<Value<'_>>())?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(key), Some(value)) = (unescape(key), unescape(value)) else { continue };
        found.entry(key).or_default().push(value.into());
    }
    let entries =
        found.into_iter().map(|(key, values)| (Key::String(Text::Shared(key.into())), Value::list(values)));
    Ok(Value::Map(Map::Made(Arc::new(entries.collect()))))
}
