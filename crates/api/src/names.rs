//! What names, labels and addresses must look like. Each `is_*` function returns what is wrong,
//! nothing if all is well; the good path allocates nothing.
//! Upstream counterpart: `apimachinery/pkg/util/validation`.

use crate::field::{FieldError, Path};
use crate::kinds::NameRule;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is wrong with a value; empty if nothing is.
pub type Messages = Vec<String>;

const LABEL_KEY_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const DNS1123_LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_SUBDOMAIN_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035_LABEL_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const LABEL_MAX_BYTES: usize = 63;
const SUBDOMAIN_MAX_BYTES: usize = 253;
const FIELD_MANAGER_MAX_BYTES: usize = 128;
pub const FIELD_IMMUTABLE: &str = "field is immutable";

pub(crate) fn max_len(bytes: usize) -> String {
    format!("must be no more than {bytes} bytes")
}

pub(crate) fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{regex}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

pub fn in_range(value: i64, min: i64, max: i64) -> Messages {
    if (min..=max).contains(&value) {
        Vec::new()
    } else {
        vec![format!("must be between {min} and {max}, inclusive")]
    }
}

/// Ends are from `end`, the middle from `middle`, never empty.
fn framed(value: &str, end: impl Fn(u8) -> bool, middle: impl Fn(u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    match bytes {
        [] => false,
        [one] => end(*one),
        [first, inner @ .., last] => end(*first) && end(*last) && inner.iter().all(|b| middle(*b)),
    }
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn matches_label(value: &str) -> bool {
    framed(value, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn matches_subdomain(value: &str) -> bool {
    value.split('.').all(matches_label)
}

fn matches_label_key_name(value: &str) -> bool {
    framed(
        value,
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'),
    )
}

/// RFC 1123 label: Namespace names, container names.
pub fn is_dns1123_label(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX_BYTES {
        errors.push(max_len(LABEL_MAX_BYTES));
    }
    if !matches_label(value) {
        errors.push(if matches_subdomain(value) {
            "must not contain dots".into()
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
            regex_error(message, DNS1123_LABEL_FMT, &["my-name", "123-abc"])
        });
    }
    errors
}

/// RFC 1123 subdomain: most object names.
pub fn is_dns1123_subdomain(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX_BYTES {
        errors.push(max_len(SUBDOMAIN_MAX_BYTES));
    }
    if !matches_subdomain(value) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        errors.push(regex_error(message, DNS1123_SUBDOMAIN_FMT, &["example.com"]));
    }
    errors
}

/// As [`is_dns1123_subdomain`], with underscores allowed within labels and as their first byte.
pub fn is_dns1123_subdomain_with_underscore(value: &str) -> Messages {
    let label = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label);
        framed(label, lower_alnum, |b| lower_alnum(b) || b == b'-' || b == b'_')
    };
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX_BYTES {
        errors.push(max_len(SUBDOMAIN_MAX_BYTES));
    }
    if !value.split('.').all(label) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
        let regex = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
        errors.push(regex_error(message, regex, &["example.com"]));
    }
    errors
}

/// RFC 1035 label: names of ports, versions and kinds.
pub fn is_dns1035_label(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX_BYTES {
        errors.push(max_len(LABEL_MAX_BYTES));
    }
    if !(matches_label(value) && value.as_bytes()[0].is_ascii_lowercase()) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        errors.push(regex_error(message, DNS1035_LABEL_FMT, &["my-name", "abc-123"]));
    }
    errors
}

/// `*.` and a subdomain.
pub fn is_wildcard_dns1123_subdomain(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX_BYTES {
        errors.push(max_len(SUBDOMAIN_MAX_BYTES));
    }
    if !value.strip_prefix("*.").is_some_and(matches_subdomain) {
        let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        errors.push(regex_error(message, &format!("\\*\\.{DNS1123_SUBDOMAIN_FMT}"), &["*.example.com"]));
    }
    errors
}

/// A label key: a name with an optional DNS prefix before a slash.
pub fn is_qualified_name(value: &str) -> Messages {
    let message = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let mut parts = value.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(is_dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            let what = regex_error(message, LABEL_KEY_FMT, examples);
            return vec![format!(
                "a valid label key {what} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX_BYTES {
        errors.push(format!("name part {}", max_len(LABEL_MAX_BYTES)));
    }
    if !matches_label_key_name(name) {
        errors.push(format!("name part {}", regex_error(message, LABEL_KEY_FMT, examples)));
    }
    errors
}

pub fn is_label_value(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX_BYTES {
        errors.push(max_len(LABEL_MAX_BYTES));
    }
    if !value.is_empty() && !matches_label_key_name(value) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        errors.push(regex_error(message, &format!("({LABEL_KEY_FMT})?"), &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// Fits in one segment of a URL path: the names of RBAC objects.
pub fn is_path_segment_name(value: &str) -> Messages {
    match value {
        "." | ".." => vec![format!("may not be '{value}'")],
        _ => is_path_segment_prefix(value),
    }
}

fn is_path_segment_prefix(value: &str) -> Messages {
    ["/", "%"]
        .iter()
        .filter(|bad| value.contains(**bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// Printable ASCII without `=` (the relaxed rule, locked on since v1.34).
pub fn is_env_var_name(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push("environment variable name must be non-empty".into());
    }
    if value.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        errors.push("a valid environment variable name must consist only of printable ASCII characters other than '='".into());
    }
    errors
}

pub fn is_c_identifier(value: &str) -> Messages {
    let first = value.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if first && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Vec::new();
    }
    let message = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    vec![regex_error(message, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

/// A key of a ConfigMap or Secret.
pub fn is_config_map_key(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX_BYTES {
        errors.push(max_len(SUBDOMAIN_MAX_BYTES));
    }
    if value.is_empty()
        || !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(regex_error(message, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match value {
        "." => errors.push("must not be '.'".into()),
        ".." => errors.push("must not be '..'".into()),
        _ if value.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// An IANA service name: container port names.
pub fn is_port_name(value: &str) -> Messages {
    let mut errors = Vec::new();
    if value.len() > 15 {
        errors.push(max_len(15));
    }
    if value.is_empty() || !value.bytes().all(|b| lower_alnum(b) || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

pub fn is_port_number(port: i64) -> Messages {
    in_range(port, 1, 65535)
}

pub fn is_http_header_name(value: &str) -> Messages {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

pub fn is_percent(value: &str) -> Messages {
    if crate::intstr::is_valid_percent(value) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// An address as upstream's sloppy parser takes it: leading zeros in IPv4 octets are allowed.
pub fn parse_ip(value: &str) -> Option<IpAddr> {
    if let Ok(ip) = value.parse() {
        return Some(ip);
    }
    let mut octets = [0u8; 4];
    let mut parts = value.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|e| if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(e) })
            .ok()?;
    }
    parts.next().is_none().then(|| IpAddr::from(octets))
}

/// The address as given and the prefix length.
pub fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = value.split_once('/')?;
    let address = parse_ip(address)?;
    if bits.is_empty() || bits.len() > 3 || !bits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

/// Forms of addresses that are refused where they are new: other programs may read them as something
/// else (KEP-4858).
const AMBIGUOUS: [&str; 6] = [
    "must not have leading 0s",
    "must not be an IPv4-mapped IPv6 address",
    "must not have leading 0s in IP",
    "must not have leading 0s in prefix length",
    "must not have an IPv4-mapped IPv6 address",
    "must not have bits set beyond the prefix length",
];

/// Lets pass what is ambiguous and was there before, anywhere in the old object.
pub fn keep_ambiguous(errors: &mut Vec<FieldError>, old: &Value) {
    fn holds(object: &Value, text: &str) -> bool {
        match object {
            Value::String(own) => own.split(',').any(|part| part.trim() == text),
            Value::Array(list) => list.iter().any(|item| holds(item, text)),
            Value::Object(fields) => fields.values().any(|field| holds(field, text)),
            _ => false,
        }
    }
    errors.retain(|error| {
        let text = error.value.as_ref().and_then(Value::as_str).unwrap_or_default();
        !(AMBIGUOUS.contains(&error.detail.as_str()) && holds(old, text))
    });
}

fn is_mapped(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

pub fn is_ip(path: &Path, value: &str) -> Vec<FieldError> {
    let why = match (parse_ip(value), value.parse::<IpAddr>()) {
        (None, _) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        (_, Err(_)) => AMBIGUOUS[0],
        (_, Ok(ip)) if is_mapped(&ip) => AMBIGUOUS[1],
        _ => return Vec::new(),
    };
    vec![FieldError::invalid(path.clone(), value, why)]
}

pub fn is_cidr(path: &Path, value: &str) -> Vec<FieldError> {
    let (address, length) = value.split_once('/').unwrap_or_default();
    let why = match (parse_cidr(value), address.parse::<IpAddr>()) {
        (None, _) => "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        (_, Err(_)) => AMBIGUOUS[2],
        _ if length.len() > 1 && length.starts_with('0') => AMBIGUOUS[3],
        (_, Ok(ip)) if is_mapped(&ip) => AMBIGUOUS[4],
        (Some((ip, bits)), _) if has_host_bits(ip, bits) => AMBIGUOUS[5],
        _ => return Vec::new(),
    };
    vec![FieldError::invalid(path.clone(), value, why)]
}

fn has_host_bits(ip: IpAddr, bits: u8) -> bool {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).checked_shl(bits.into()).unwrap_or(0) != 0,
        IpAddr::V6(v6) => u128::from(v6).checked_shl(bits.into()).unwrap_or(0) != 0,
    }
}

/// A domain name with at least two labels; a final dot is allowed.
pub fn is_fully_qualified_domain_name(path: &Path, value: &str) -> Vec<FieldError> {
    if value.is_empty() {
        return vec![FieldError::required(path.clone(), "")];
    }
    let name = value.strip_suffix('.').unwrap_or(value);
    let messages = is_dns1123_subdomain(name);
    if !messages.is_empty() {
        return vec![FieldError::invalid(path.clone(), name, messages.join(","))];
    }
    if !name.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        return vec![FieldError::invalid(path.clone(), name, why)];
    }
    let long = name.split('.').find(|label| !is_dns1123_label(label).is_empty());
    long.map(|label| FieldError::invalid(path.clone(), label, is_dns1123_label(label).join(",")))
        .into_iter()
        .collect()
}

/// Refuses addresses that are never a remote endpoint: unspecified, loopback, link-local.
pub fn is_non_special_ip(path: &Path, value: &str) -> Vec<FieldError> {
    let Some(ip) = parse_ip(value) else {
        return vec![FieldError::invalid(path.clone(), value, "must be a valid IP address")];
    };
    let ip = ip.to_canonical();
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    let why = if ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        format!("may not be unspecified ({value})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()
    } else if link_local_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()
    } else {
        return Vec::new();
    };
    vec![FieldError::invalid(path.clone(), value, why)]
}

/// A warning where an address is not in its one canonical form.
pub fn ip_warning(path: &Path, value: &str) -> Option<String> {
    let ip = parse_ip(value)?;
    match value.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => None,
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => {
            let canonical = v6.to_string();
            (canonical != value).then(|| {
                format!(
                    "{path}: IPv6 address {value:?} should be in RFC 5952 canonical format ({canonical:?})"
                )
            })
        }
        _ => {
            let canonical = ip.to_canonical().to_string();
            Some(format!(
                "{path}: non-standard IP address {value:?} will be considered invalid in a future Kubernetes release: use {canonical:?}"
            ))
        }
    }
}

/// One error for each message.
pub fn invalid_each(path: &Path, value: &str, messages: Messages) -> Vec<FieldError> {
    messages.into_iter().map(|m| FieldError::invalid(path.clone(), value, m)).collect()
}

/// Checks an object's name; `prefix` is set for `generateName`, which may end in a hyphen.
pub fn check_name(rule: NameRule, name: &str, prefix: bool) -> Messages {
    if rule == NameRule::PathSegment {
        return if prefix { is_path_segment_prefix(name) } else { is_path_segment_name(name) };
    }
    let masked;
    let name = if prefix && name.len() > 1 && name.ends_with('-') {
        masked = format!("{}a", &name[..name.len() - 1]);
        &masked
    } else {
        name
    };
    match rule {
        NameRule::Label => is_dns1123_label(name),
        _ => is_dns1123_subdomain(name),
    }
}

/// Keys and values of `metadata.labels` or `matchLabels`.
pub fn validate_labels(labels: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errors.extend(invalid_each(path, key, is_qualified_name(key)));
        if let Some(value) = value.as_str() {
            errors.extend(invalid_each(path, value, is_label_value(value)));
        }
    }
    errors
}

/// The `fieldManager` of a request.
pub fn validate_field_manager(manager: &str, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if manager.len() > FIELD_MANAGER_MAX_BYTES {
        errors.push(FieldError::too_long(path.clone(), FIELD_MANAGER_MAX_BYTES));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        let why = format!("invalid character U+{:04X} (at position {at})", c as u32);
        errors.push(FieldError::invalid(path.clone(), manager, why));
    }
    errors
}

/// Longest base of a generated name: 63 less the random suffix of five.
const GENERATED_BASE_MAX_BYTES: usize = 58;

/// Joins a `generateName` and a random suffix, cutting the base so that the name fits a label.
pub fn generated_name(base: &str, suffix: &str) -> String {
    let mut end = base.len().min(GENERATED_BASE_MAX_BYTES);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &base[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "ab", "a-b", "0a", "1", "a--b"] {
            assert!(is_dns1123_label(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a_b", "ü", &"a".repeat(64)] {
            assert!(!is_dns1123_label(bad).is_empty(), "{bad}");
        }
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert!(is_dns1123_subdomain("a.b-c.1").is_empty());
        for bad in ["", ".", "a..b", "a.", "-.a", "A.b", &"a".repeat(254)] {
            assert!(!is_dns1123_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(
            is_dns1035_label("a1").is_empty()
                && !is_dns1035_label("1a").is_empty()
                && !is_dns1035_label("").is_empty()
        );
        assert!(
            is_wildcard_dns1123_subdomain("*.a.b").is_empty()
                && !is_wildcard_dns1123_subdomain("*").is_empty()
        );
        assert_eq!(
            is_dns1123_subdomain("Web"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
    }

    #[test]
    fn keys_and_values() {
        for good in ["a", "A.b_c-D", "example.com/a", "1"] {
            assert!(is_qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a b", "Example.com/a"] {
            assert!(!is_qualified_name(bad).is_empty(), "{bad}");
        }
        assert_eq!(is_qualified_name("/a"), ["prefix part must be non-empty"]);
        assert!(
            is_label_value("").is_empty()
                && !is_label_value("a b").is_empty()
                && !is_label_value(&"a".repeat(64)).is_empty()
        );
        assert!(
            is_env_var_name("my.var 1").is_empty()
                && !is_env_var_name("a=b").is_empty()
                && !is_env_var_name("").is_empty()
        );
        assert!(
            is_config_map_key(".a").is_empty()
                && !is_config_map_key("..").is_empty()
                && !is_config_map_key("..a").is_empty()
        );
        assert!(
            is_port_name("http-2").is_empty()
                && !is_port_name("a--b").is_empty()
                && !is_port_name("80").is_empty()
        );
        assert!(is_path_segment_name("system:node").is_empty() && !is_path_segment_name("a/b").is_empty());
    }

    #[test]
    fn ambiguous_addresses_may_stay_and_not_come() {
        let path = Path::new("ip");
        let mut errors = is_ip(&path, "010.1.2.3");
        errors.extend(is_cidr(&path, "10.1.2.3/8"));
        errors.extend(is_ip(&path, "x"));
        let old = serde_json::json!({"a": [{"b": "x, 010.1.2.3"}], "c": "10.1.2.3/24"});
        keep_ambiguous(&mut errors, &old);
        let left: Vec<_> = errors.iter().map(|error| error.value.clone().unwrap()).collect();
        assert_eq!(left, ["10.1.2.3/8", "x"]);
        for fine in ["10.0.0.0/8", "0.0.0.0/0", "10.1.2.3/32", "::/0", "fd00::/8"] {
            assert_eq!(is_cidr(&path, fine), [], "{fine}");
        }
    }

    #[test]
    fn addresses() {
        for good in ["1.2.3.4", "010.000.2.3", "::1", "2001:db8::ffff", "::ffff:1.2.3.4"] {
            assert!(parse_ip(good).is_some(), "{good}");
        }
        for bad in ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "a.b.c.d", "1.2.3.-4", ":::"] {
            assert!(parse_ip(bad).is_none(), "{bad}");
        }
        assert!(
            parse_cidr("10.0.0.0/8").is_some()
                && parse_cidr("10.0.0.0/33").is_none()
                && parse_cidr("10.0.0.0").is_none()
        );
        for special in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::1", "fe80::1", "ff02::1"] {
            assert_eq!(is_non_special_ip(&Path::new("ip"), special).len(), 1, "{special}");
        }
        assert!(is_non_special_ip(&Path::new("ip"), "10.0.0.1").is_empty());
        assert!(ip_warning(&Path::new("ip"), "010.0.0.1").unwrap().contains("use \"10.0.0.1\""));
        assert!(ip_warning(&Path::new("ip"), "2001:0db8::1").unwrap().contains("RFC 5952"));
        assert_eq!(ip_warning(&Path::new("ip"), "10.0.0.1"), None);
    }

    #[test]
    fn generated_names_fit_a_label() {
        assert_eq!(generated_name("web-", "abcde"), "web-abcde");
        assert_eq!(generated_name(&"a".repeat(80), "abcde").len(), 63);
    }
}
