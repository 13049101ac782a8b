//! Requests for certificates, and certificates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use skeg_api::csr::{self, Request};

/// PEM, or else what a request for a certificate is made of: the length of its subject, that, and
/// its attributes.
pub const SEEDS: &[&[u8]] = &[
    include_bytes!("../../../api/testdata/request.pem"),
    b"/1\x150\x13\x06\x03U\x04\x0a\x0c\x0csystem:nodes1\x160\x14\x06\x03U\x04\x03\x0c\x0dsystem:node:a0/\x06\x09*\x86H\x86\xf7\x0d\x01\x09\x0e1\x220 0\x1e\x06\x03U\x1d\x11\x04\x170\x15\x82\x03web\x87\x04\x0a\x00\x00\x01\x86\x03a:b\x81\x03a@b",
    // The subject is longer than what is in it.
    b"\x111\x0d0\x0b\x06\x03U\x04\x03\x0c\x04jane\x05\x00",
];

/// `Ed25519` in an AlgorithmIdentifier.
const ALGORITHM: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70";

/// DER: a tag, the length, and the content.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = (content.len() as u32).to_be_bytes();
    let length = match content.len() {
        0..0x80 => &length[3..],
        0x80..0x100 => &[0x81, length[3]][..],
        _ => &[0x82, length[2], length[3]][..],
    };
    [&[tag], length, &content].concat()
}

/// Signs, so that what is behind the check of the signature is reached.
fn signed(subject: &[u8], attributes: &[u8]) -> String {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public = tlv(0x30, &[ALGORITHM, &tlv(3, &[&[0], key.public_key().as_ref()])]);
    let info = tlv(0x30, &[b"\x02\x01\0", subject, &public, &tlv(0xa0, &[attributes])]);
    let signature = tlv(3, &[&[0], key.sign(&info).as_ref()]);
    let body = STANDARD.encode(tlv(0x30, &[&info, ALGORITHM, &signature]));
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

/// Each is refused with a reason or taken apart; every signer has an answer to what is asked for.
pub fn certificate(data: &[u8]) {
    csr::not_after(data);
    let (read, subject) = match data.split_first() {
        None | Some((b'-', _)) => (Request::parse(data), None),
        Some((length, rest)) => {
            let (subject, attributes) = rest.split_at(rest.len().min((*length).into()));
            let subject = tlv(0x30, &[subject]);
            (Request::parse(signed(&subject, attributes).as_bytes()), Some(subject))
        }
    };
    let request = match read {
        Ok(request) => request,
        Err(why) => {
            return assert!(!why.is_empty() && !why.contains("verification failure") || subject.is_none());
        }
    };
    assert!(subject.is_none_or(|subject| subject == request.subject));
    for signer in [csr::CLIENT, csr::KUBELET_CLIENT, csr::KUBELET_SERVING, csr::LEGACY_UNKNOWN] {
        assert!(csr::permitted(signer, &request, &["client auth".to_owned()]).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_reach_what_is_behind_the_signature() {
        let (length, rest) = SEEDS[1].split_first().unwrap();
        let (subject, attributes) = rest.split_at((*length).into());
        let request = Request::parse(signed(&tlv(0x30, &[subject]), attributes).as_bytes()).unwrap();
        assert_eq!((request.common_name.as_str(), request.dns_names.len()), ("system:node:a", 1));
        assert_eq!((request.uris.len(), request.ip_addresses.len()), (1, 1));
    }
}
