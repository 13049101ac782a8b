//! Certificates for requests of others: the subject and the key are theirs, byte for byte, and what
//! else stands in the certificate is decided here. (`rcgen` keeps one value of each attribute type
//! of a subject, so the certificate is written here.)
//! Upstream counterpart: `pkg/controller/certificates/authority`.

use super::{BACKDATE, PkiError, not_after, serial_number};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rcgen::SigningKey;
use skeg_api::csr;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Certificates of less than this last as long as was asked for, beginning now.
const SHORT: SignedDuration = SignedDuration::from_hours(8);

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// Of a structure, explicit: [0] and [3] of a certificate.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// Kinds of general names: rfc822Name, dNSName, uniformResourceIdentifier, iPAddress.
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY_IDENTIFIER: &[u64] = &[2, 5, 29, 35];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

/// What a usage is in a certificate.
enum Usage {
    /// A bit of keyUsage (RFC 5280, section 4.2.1.3).
    Bit(u8),
    /// A purpose of extKeyUsage.
    Purpose(&'static [u64]),
}

fn usage(name: &str) -> Option<Usage> {
    use Usage::{Bit, Purpose};
    Some(match name {
        "signing" | "digital signature" => Bit(0),
        "content commitment" => Bit(1),
        "key encipherment" => Bit(2),
        "data encipherment" => Bit(3),
        "key agreement" => Bit(4),
        "cert sign" => Bit(5),
        "crl sign" => Bit(6),
        "encipher only" => Bit(7),
        "decipher only" => Bit(8),
        "any" => Purpose(&[2, 5, 29, 37, 0]),
        "server auth" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 1]),
        "client auth" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 2]),
        "code signing" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 3]),
        "email protection" | "s/mime" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 4]),
        "ipsec end system" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 5]),
        "ipsec tunnel" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 6]),
        "ipsec user" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 7]),
        "timestamping" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 8]),
        "ocsp signing" => Purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 9]),
        "microsoft sgc" => Purpose(&[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
        "netscape sgc" => Purpose(&[2, 16, 840, 1, 113_730, 4, 1]),
        _ => return None,
    })
}

impl super::Pki {
    /// Signs a request, as PEM, for as long as `ttl` and no longer than the authority lasts.
    ///
    /// # Errors
    /// If the authority has ended, or a usage is unknown.
    pub fn sign_request(
        &self,
        request: &csr::Request,
        usages: &[String],
        ttl: SignedDuration,
    ) -> Result<String, PkiError> {
        let ca = &self.ca;
        let bad = |why: &str| PkiError::Content { path: "ca.crt".into(), why: why.to_owned() };
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&ca.der).map_err(|_| bad("is no certificate"))?;
        let now = self.clock.now();
        let ca_end = not_after(&ca.der).ok_or_else(|| bad("has no end"))?;
        if now >= ca_end {
            return Err(bad(&format!("the signer has expired: NotAfter={ca_end}")));
        }
        let end = if ttl < SHORT { now + ttl } else { now + ttl - BACKDATE };
        // The authority signs with the algorithm with which it signed itself.
        let algorithm = algorithm(&ca.der).ok_or_else(|| bad("is no certificate"))?;
        let tbs = tlv(
            SEQUENCE,
            &[
                &tlv(VERSION, &[&tlv(INTEGER, &[&[2]])]),
                &tlv(INTEGER, &[&serial_number()?]),
                algorithm,
                parsed.subject().as_raw(),
                &tlv(SEQUENCE, &[&time(now - BACKDATE), &time(end.min(ca_end))]),
                &request.subject,
                &request.public_key,
                &tlv(EXTENSIONS, &[&extensions(request, usages, &ca.params.key_identifier(&ca.key))?]),
            ],
        );
        let signature = ca.key.sign(&tbs)?;
        Ok(pem(&tlv(SEQUENCE, &[&tbs, algorithm, &tlv(BIT_STRING, &[&[0], &signature])])))
    }
}

/// The signature algorithm of a certificate: what follows its first part.
fn algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (_, body) = split(certificate)?;
    let (first, _) = split(body)?;
    let rest = &body[first..];
    let (second, _) = split(rest)?;
    rest.get(..second)
}

/// The length of the first element with its head, and its content.
fn split(der: &[u8]) -> Option<(usize, &[u8])> {
    let first = usize::from(*der.get(1)?);
    let (head, length) = if first < 0x80 {
        (2, first)
    } else {
        let bytes = der.get(2..2 + (first & 0x7f))?;
        (2 + bytes.len(), bytes.iter().fold(0, |all, byte| all << 8 | usize::from(*byte)))
    };
    Some((head + length, der.get(head..head + length)?))
}

fn extensions(request: &csr::Request, usages: &[String], authority: &[u8]) -> Result<Vec<u8>, PkiError> {
    let (mut bits, mut purposes) = (0u16, Vec::new());
    for name in usages {
        match usage(name) {
            Some(Usage::Bit(bit)) => bits |= 0x8000 >> bit,
            Some(Usage::Purpose(oid)) => purposes.push(object_identifier(oid)),
            None => {
                let why = format!("unrecognized usage values: {name:?}");
                return Err(PkiError::Content { path: "request".into(), why });
            }
        }
    }
    purposes.dedup();
    let mut all = Vec::new();
    if bits != 0 {
        let [high, low] = bits.to_be_bytes();
        let used: &[u8] = if low == 0 { &[high] } else { &[high, low] };
        let unused = used.last().map_or(0, |byte| byte.trailing_zeros() as u8);
        all.extend(extension(KEY_USAGE, true, &tlv(BIT_STRING, &[&[unused], used])));
    }
    if !purposes.is_empty() {
        all.extend(extension(EXTENDED_KEY_USAGE, false, &tlv(SEQUENCE, &[&purposes.concat()])));
    }
    all.extend(extension(BASIC_CONSTRAINTS, true, &tlv(SEQUENCE, &[])));
    all.extend(extension(AUTHORITY_KEY_IDENTIFIER, false, &tlv(SEQUENCE, &[&tlv(0x80, &[authority])])));
    let names = alt_names(request);
    if !names.is_empty() {
        // An empty subject is an empty sequence: the names are then all there is.
        let critical = request.subject.len() <= 2;
        all.extend(extension(SUBJECT_ALT_NAME, critical, &tlv(SEQUENCE, &[&names])));
    }
    Ok(tlv(SEQUENCE, &[&all]))
}

fn alt_names(request: &csr::Request) -> Vec<u8> {
    let lists = [(DNS, &request.dns_names), (EMAIL, &request.email_addresses), (URI, &request.uris)];
    let mut names: Vec<u8> = lists
        .into_iter()
        .flat_map(|(tag, list)| list.iter().flat_map(move |name| tlv(tag, &[name.as_bytes()])))
        .collect();
    for ip in &request.ip_addresses {
        names.extend(match ip {
            IpAddr::V4(ip) => tlv(IP, &[&ip.octets()]),
            IpAddr::V6(ip) => tlv(IP, &[&ip.octets()]),
        });
    }
    names
}

fn extension(oid: &[u64], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { tlv(BOOLEAN, &[&[0xff]]) } else { Vec::new() };
    tlv(SEQUENCE, &[&object_identifier(oid), &critical, &tlv(OCTET_STRING, &[value])])
}

/// One element in DER (X.690).
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            // At most eight bytes.
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

fn object_identifier(arcs: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    let (first, rest) = arcs.split_at(2.min(arcs.len()));
    let first: u64 = first.iter().zip([40, 1]).map(|(arc, factor)| arc * factor).sum();
    for arc in std::iter::once(&first).chain(rest) {
        let groups = (1..10).take_while(|n| arc >> (7 * n) != 0).count();
        for n in (0..=groups).rev() {
            let more = if n == 0 { 0 } else { 0x80 };
            out.push((arc >> (7 * n) & 0x7f) as u8 | more);
        }
    }
    tlv(OBJECT_IDENTIFIER, &[&out])
}

/// Years until 2049 have two digits (RFC 5280, section 4.1.2.5).
fn time(at: Timestamp) -> Vec<u8> {
    let long = at.strftime("%Y%m%d%H%M%SZ").to_string();
    if long.as_str() < "2050" {
        tlv(UTC_TIME, &[&long.as_bytes()[2..]])
    } else {
        tlv(GENERALIZED_TIME, &[long.as_bytes()])
    }
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        let _ = writeln!(out, "{}", String::from_utf8_lossy(line));
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Path, Pki, certificate_of};
    use super::*;
    use skeg_base::Clock;

    const REQUEST: &str = include_str!("../../../api/testdata/request.pem");

    fn strings(all: &[&str]) -> Vec<String> {
        all.iter().map(|usage| (*usage).to_owned()).collect()
    }

    #[test]
    fn requests_are_signed_with_their_subject_and_the_signers_usages() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), Clock::system()).unwrap();
        let request = csr::Request::parse(REQUEST.as_bytes()).unwrap();
        let usages = strings(&["client auth", "digital signature", "key encipherment"]);
        let pem = pki.sign_request(&request, &usages, SignedDuration::from_hours(1)).unwrap();
        let der = certificate_of(&pem, Path::new("x")).unwrap();
        let (rest, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(rest.is_empty());
        assert_eq!(parsed.subject().to_string(), "O=a, O=b, CN=jane");
        assert_eq!(parsed.issuer().to_string(), "CN=skeg-ca");
        assert_eq!(parsed.public_key().raw, request.public_key);
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
        assert!(!usage.value.key_cert_sign());
        let purposes = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.client_auth && !purposes.server_auth);
        assert!(!parsed.basic_constraints().unwrap().unwrap().value.ca);
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 4, "{names:?}");
        let (_, ca) = x509_parser::parse_x509_certificate(&pki.ca.der).unwrap();
        parsed.verify_signature(Some(ca.public_key())).unwrap();
        let verifier = pki.client_verifier().unwrap();
        verifier.verify_client_cert(&der, &[], rustls_pki_types::UnixTime::now()).unwrap();
        let lasts = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
        assert_eq!(lasts, 3600 + 300, "short ones are whole");
        assert!(pki.sign_request(&request, &strings(&["odd"]), SHORT).is_err());
    }

    #[test]
    fn nothing_outlasts_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), Clock::system()).unwrap();
        let request = csr::Request::parse(REQUEST.as_bytes()).unwrap();
        let lasts = |hours: i64| {
            let usages = strings(&["server auth"]);
            let pem = pki.sign_request(&request, &usages, SignedDuration::from_hours(hours)).unwrap();
            let der = certificate_of(&pem, Path::new("x")).unwrap();
            not_after(&der).unwrap()
        };
        assert_eq!(lasts(24 * 36500), not_after(&pki.ca.der).unwrap());
        let day = lasts(24).as_second() - Clock::system().now().as_second();
        assert!((24 * 3600 - 310..=24 * 3600 - 300).contains(&day), "{day}");
    }

    #[test]
    fn lengths_and_numbers_are_der() {
        assert_eq!(tlv(4, &[&[0; 200]])[..3], [4, 0x81, 200]);
        assert_eq!(tlv(4, &[&[0; 300]])[..4], [4, 0x82, 1, 44]);
        assert_eq!(
            object_identifier(&[2, 16, 840, 1, 113_730, 4, 1])[2..],
            [0x60, 0x86, 0x48, 1, 0x86, 0xf8, 0x42, 4, 1]
        );
        let late = time("2051-02-03T04:05:06Z".parse().unwrap());
        assert_eq!(&late[2..], b"20510203040506Z");
        assert_eq!(&time("2026-02-03T04:05:06Z".parse().unwrap())[2..], b"260203040506Z");
    }
}
