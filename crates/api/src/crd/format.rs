//! The formats of strings that schemas of custom resources may ask for; others are not checked.
//! Upstream counterpart: `k8s.io/kube-openapi/pkg/validation/strfmt`.

use crate::names;
use base64::Engine as _;
use regex_lite::Regex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Formats that a pattern tells.
static PATTERNS: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
    const UUID: &str = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    [
        ("bsonobjectid", "^(?i)[0-9a-f]{24}$"),
        ("email", "^[^@\\s<>,]+@[^@\\s<>,]+$"),
        ("mac", "^(?i)([0-9a-f]{2}[:-]){5}([0-9a-f]{2})$|^(?i)([0-9a-f]{4}\\.){2}[0-9a-f]{4}$"),
        ("uuid", UUID),
        ("uuid3", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        ("uuid4", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        ("uuid5", "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        ("isbn", "^[0-9][- 0-9]{8,15}[0-9Xx]$"),
        ("isbn10", "^([0-9][- ]?){9}[0-9Xx]$"),
        ("isbn13", "^([0-9][- ]?){12}[0-9]$"),
        ("creditcard", "^[0-9][- 0-9]{11,22}[0-9]$"),
        ("ssn", "^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$"),
        ("hexcolor", "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
        ("rgbcolor", "^rgb\\(\\s*[0-9]{1,3}\\s*,\\s*[0-9]{1,3}\\s*,\\s*[0-9]{1,3}\\s*\\)$"),
        ("date", "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
        ("datetime", "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?([Zz]|[+-][0-9]{2}:?[0-9]{2})$"),
        ("duration", "^(([0-9]*\\.)?[0-9]+\\s*(ns|us|µs|μs|ms|s|m|h|d|w|(nano|micro|milli)s(ec(ond)?)?s?|sec(ond)?s?|min(ute)?s?|hours?|days?|weeks?)\\s*)+$"),
    ]
    .into_iter()
    .filter_map(|(name, pattern)| Some((name, Regex::new(pattern).ok()?)))
    .collect()
});

/// Formats that more than a pattern tells.
const OTHERS: [&str; 10] = [
    "ipv4",
    "ipv6",
    "cidr",
    "hostname",
    "uri",
    "byte",
    "k8s-short-name",
    "k8s-long-name",
    "date-time",
    "password",
];

/// Whether a format is one that values are checked by.
pub fn is_known(format: &str) -> bool {
    OTHERS.contains(&format) || PATTERNS.iter().any(|(name, _)| *name == format)
}

/// Whether a text has a format.
pub(super) fn fits(format: &str, text: &str) -> bool {
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, bits)| {
            let max = match address.parse() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            bits.parse::<u8>().is_ok_and(|bits| bits <= max)
        }),
        "hostname" => names::is_dns1123_subdomain(&text.to_lowercase()).is_empty(),
        "uri" => is_uri(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "k8s-short-name" => names::is_dns1123_label(text).is_empty(),
        "k8s-long-name" => names::is_dns1123_subdomain(text).is_empty(),
        "date" | "date-time" | "datetime" => {
            let name = if format == "date" { "date" } else { "datetime" };
            let real = text.get(..10).is_some_and(|day| day.parse::<jiff::civil::Date>().is_ok());
            real && matches(name, text)
        }
        format => matches(format, text),
    }
}

fn matches(format: &str, text: &str) -> bool {
    PATTERNS.iter().find(|(name, _)| *name == format).is_none_or(|(_, pattern)| pattern.is_match(text))
}

/// Just enough of a URI (RFC 3986): a scheme, or a path that starts at the root.
fn is_uri(text: &str) -> bool {
    let plain = !text.chars().any(|c| c.is_control() || c.is_whitespace());
    let named = text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    });
    plain && (named || text.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("hostname", "a.b", "a_b"),
            ("uri", "https://a/b", "a b"),
            ("byte", "YQ==", "Y"),
            ("date", "2024-02-29", "2023-02-29"),
            ("date-time", "2024-02-29T00:00:00Z", "2024-02-29 00:00"),
            ("duration", "1h30m", "soon"),
            ("email", "a@b", "ab"),
            ("uuid", "00000000-0000-0000-0000-000000000000", "0"),
            ("mac", "00:11:22:33:44:55", "00:11"),
        ] {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(fits("unheard-of", "anything") && !super::is_known("unheard-of") && super::is_known("uuid"));
    }
}
