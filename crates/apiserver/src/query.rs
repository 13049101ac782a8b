//! Percent-encoding and the query string.

use std::time::Duration;

/// The parameters of a query, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// As [`Query::get`], with absent and empty alike.
    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A boolean as upstream's conversion reads it: present without a value is true, and so is
    /// all but `false` and `0`.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Decodes `%xx`, and `+` as a space where `plus` says so. What is no valid escape stays as it is.
pub fn decode(text: &str, plus: bool) -> String {
    if !text.bytes().any(|b| b == b'%' || (plus && b == b'+')) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
                continue;
            }
            (b'+', ..) if plus => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A duration as Go writes it: `1m30s`, `500ms`, `0`. Negative ones are not durations here.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let seconds = match &rest[digits..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("30s", Some(30_000)),
            ("1m0.5s", Some(60_500)),
            ("0", Some(0)),
            ("5", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_millis()), expected, "{text}");
        }
    }

    #[test]
    fn decodes() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch&limit=5&x=1+2&bad=%zz&limit=6");
        assert_eq!(query.text("labelSelector"), "a=b,c");
        assert_eq!(query.flag("watch"), Some(true));
        assert_eq!(query.flag("none"), None);
        assert_eq!((query.text("x"), query.text("bad")), ("1 2", "%zz"));
        assert_eq!(query.all("limit").collect::<Vec<_>>(), ["5", "6"]);
    }
}
