//! Requests for certificates (PKCS #10, RFC 2986): what a CertificateSigningRequest carries, who it
//! is for and what a signer lets through. Signing is elsewhere.
//! Upstream counterpart: `pkg/apis/certificates/helpers.go`, `pkg/controller/certificates/signer`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::net::IpAddr;
use x509_parser::asn1_rs::Any;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::AttributeTypeAndValue;

pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

const NOT_A_REQUEST: &str = "PEM block type must be CERTIFICATE REQUEST";
const NO_REQUEST: &str = "asn1: structure error: no certificate request";
const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
const END: &str = "-----END CERTIFICATE REQUEST-----";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const SIGNATURE: &str = "digital signature";
const ENCIPHERMENT: &str = "key encipherment";
const CLIENT_AUTH: &str = "client auth";
const SERVER_AUTH: &str = "server auth";

/// What a request asks for, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
    pub email_addresses: Vec<String>,
    pub uris: Vec<String>,
    /// The subject in DER, as it was asked for.
    pub subject: Vec<u8>,
    /// The SubjectPublicKeyInfo in DER.
    pub public_key: Vec<u8>,
}

impl Request {
    /// Reads PEM, and checks that who asks holds the key.
    ///
    /// # Errors
    /// Why it is no request, in upstream's words where it has some.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(pem).map_err(|_| NOT_A_REQUEST)?;
        let body = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).ok_or(NOT_A_REQUEST)?.0;
        let packed: String = body.split_whitespace().collect();
        let der = STANDARD.decode(packed).map_err(|_| NOT_A_REQUEST)?;
        let (rest, parsed) = X509CertificationRequest::from_der(&der).map_err(|_| NO_REQUEST.to_owned())?;
        if !rest.is_empty() {
            return Err("asn1: syntax error: trailing data".into());
        }
        parsed.verify_signature().map_err(|error| match error {
            X509Error::SignatureUnsupportedAlgorithm => {
                "x509: cannot verify signature: algorithm unimplemented"
            }
            _ => "x509: verification failure: the signature is not that of the request's key",
        })?;
        Self::of(&parsed)
    }

    /// As [`Request::parse`], of the base64 that `spec.request` is.
    ///
    /// # Errors
    /// Those of [`Request::parse`].
    pub fn decode(request: &str) -> Result<Self, String> {
        Self::parse(&STANDARD.decode(request).map_err(|_| NOT_A_REQUEST)?)
    }

    fn of(parsed: &X509CertificationRequest<'_>) -> Result<Self, String> {
        let info = &parsed.certification_request_info;
        // What ends before its own length says would take in what follows it in a certificate.
        for part in [info.subject.as_raw(), info.subject_pki.raw] {
            if !Any::from_der(part).is_ok_and(|(rest, _)| rest.is_empty()) {
                return Err(NO_REQUEST.to_owned());
            }
        }
        let text = |value: &AttributeTypeAndValue<'_>| {
            let text = value.as_str().map(str::to_owned);
            text.map_err(|_| "x509: the subject has a name that is no text".to_owned())
        };
        let mut request = Request {
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            organizations: info.subject.iter_organization().map(text).collect::<Result<_, _>>()?,
            ..Default::default()
        };
        if let Some(name) = info.subject.iter_common_name().last() {
            request.common_name = text(name)?;
        }
        for extension in parsed.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                request.add_names(&names.general_names)?;
            }
        }
        Ok(request)
    }

    fn add_names(&mut self, names: &[GeneralName<'_>]) -> Result<(), String> {
        for name in names {
            match name {
                GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => self.email_addresses.push((*name).to_owned()),
                GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => self.ip_addresses.push(
                    <[u8; 4]>::try_from(*bytes)
                        .map(IpAddr::from)
                        .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                        .map_err(|_| format!("x509: cannot parse IP address of length {}", bytes.len()))?,
                ),
                // Other kinds of names are not signed.
                _ => {}
            }
        }
        Ok(())
    }
}

fn are(usages: &[String], wanted: &[&str]) -> bool {
    usages.iter().all(|usage| wanted.contains(&usage.as_str()))
        && wanted.iter().all(|wanted| usages.iter().any(|usage| usage == wanted))
}

/// With or without `key encipherment`, which only RSA keys need.
fn expect_usages(usages: &[String], auth: &str) -> Result<(), String> {
    if are(usages, &[SIGNATURE, ENCIPHERMENT, auth]) || are(usages, &[SIGNATURE, auth]) {
        return Ok(());
    }
    let mut all = [SIGNATURE, ENCIPHERMENT, auth];
    all.sort_unstable();
    Err(format!("usages did not match [{}]", all.join(" ")))
}

fn is_for_nodes(request: &Request) -> Result<(), String> {
    if request.organizations == [NODES] {
        Ok(())
    } else {
        Err(format!("subject organization is not {NODES}"))
    }
}

fn names_a_node(request: &Request) -> Result<(), String> {
    if request.common_name.starts_with(NODE_PREFIX) {
        Ok(())
    } else {
        Err(format!("subject common name does not begin with {NODE_PREFIX}"))
    }
}

fn without(list: &[String], what: &str) -> Result<(), String> {
    if list.is_empty() { Ok(()) } else { Err(format!("{what} subjectAltNames are not allowed")) }
}

/// Whether a request may be signed for a node that is a client.
///
/// # Errors
/// Which rule it breaks, in upstream's words.
pub fn kubelet_client(request: &Request, usages: &[String]) -> Result<(), String> {
    is_for_nodes(request)?;
    without(&request.dns_names, "DNS")?;
    without(&request.email_addresses, "Email")?;
    if !request.ip_addresses.is_empty() {
        return Err("IP subjectAltNames are not allowed".into());
    }
    without(&request.uris, "URI")?;
    names_a_node(request)?;
    expect_usages(usages, CLIENT_AUTH)
}

fn kubelet_serving(request: &Request, usages: &[String]) -> Result<(), String> {
    is_for_nodes(request)?;
    if request.dns_names.is_empty() && request.ip_addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    without(&request.email_addresses, "Email")?;
    without(&request.uris, "URI")?;
    expect_usages(usages, SERVER_AUTH)?;
    names_a_node(request)
}

fn client(usages: &[String]) -> Result<(), String> {
    let allowed = [SIGNATURE, ENCIPHERMENT, CLIENT_AUTH];
    if let Some(other) = usages.iter().find(|usage| !allowed.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.iter().any(|usage| usage == CLIENT_AUTH) {
        Ok(())
    } else {
        Err(format!("missing required usage for client certificate: {CLIENT_AUTH}"))
    }
}

/// Whether a signer of this cluster signs a request; nothing for signers that are others'.
pub fn permitted(signer: &str, request: &Request, usages: &[String]) -> Option<Result<(), String>> {
    match signer {
        CLIENT => Some(client(usages)),
        KUBELET_CLIENT => Some(kubelet_client(request, usages)),
        KUBELET_SERVING => Some(kubelet_serving(request, usages)),
        // Whatever was approved, for clients of old.
        LEGACY_UNKNOWN => Some(Ok(())),
        _ => None,
    }
}

/// When the first certificate of some PEM ends, in seconds since 1970.
pub fn not_after(pem: &[u8]) -> Option<i64> {
    let (_, rest) = std::str::from_utf8(pem).ok()?.split_once("-----BEGIN CERTIFICATE-----")?;
    let packed: String = rest.split_once("-----END")?.0.split_whitespace().collect();
    let der = STANDARD.decode(packed).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(organization: &str, name: &str, names: &[&str]) -> Request {
        Request {
            common_name: name.to_owned(),
            organizations: vec![organization.to_owned()],
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn usages(all: &str) -> Vec<String> {
        all.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn each_signer_has_its_rules() {
        let node = request(NODES, "system:node:a", &[]);
        let serving = request(NODES, "system:node:a", &["a"]);
        let both = "digital signature,key encipherment";
        for (signer, request, asked, expected) in [
            (CLIENT, &request("x", "jane", &[]), "client auth", ""),
            (CLIENT, &request("x", "jane", &["a"]), "client auth,key encipherment", ""),
            (CLIENT, &node, both, "missing required usage for client certificate: client auth"),
            (CLIENT, &node, "client auth,any", "invalid usage for client certificate: any"),
            (KUBELET_CLIENT, &node, "client auth,digital signature", ""),
            (KUBELET_CLIENT, &node, &format!("{both},client auth"), ""),
            (
                KUBELET_CLIENT,
                &node,
                &format!("{both},server auth"),
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (KUBELET_CLIENT, &serving, "client auth", "DNS subjectAltNames are not allowed"),
            (
                KUBELET_CLIENT,
                &request("x", "system:node:a", &[]),
                "",
                "subject organization is not system:nodes",
            ),
            (
                KUBELET_CLIENT,
                &request(NODES, "jane", &[]),
                "",
                "subject common name does not begin with system:node:",
            ),
            (KUBELET_SERVING, &serving, "server auth,digital signature", ""),
            (KUBELET_SERVING, &node, "server auth", "DNS or IP subjectAltName is required"),
            (
                KUBELET_SERVING,
                &serving,
                "client auth",
                "usages did not match [digital signature key encipherment server auth]",
            ),
            (LEGACY_UNKNOWN, &request("x", "y", &["z"]), "code signing", ""),
        ] {
            let got = permitted(signer, request, &usages(asked)).unwrap();
            assert_eq!(got.err().unwrap_or_default(), expected, "{signer} {request:?} {asked}");
        }
        assert_eq!(permitted("example.com/x", &node, &[]), None);
    }

    /// Made by `openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256`.
    const PEM: &str = include_str!("../testdata/request.pem");

    /// A subject, and a key, that are longer than what is in them: signed by an Ed25519 key.
    const LONG: [&str; 2] = [
        include_str!("../testdata/request-long-subject.pem"),
        include_str!("../testdata/request-long-key.pem"),
    ];

    #[test]
    fn parts_that_end_before_their_length_are_refused() {
        for pem in LONG {
            assert_eq!(Request::parse(pem.as_bytes()).unwrap_err(), NO_REQUEST);
        }
    }

    #[test]
    fn requests_are_read_and_their_signature_is_checked() {
        let request = Request::parse(PEM.as_bytes()).unwrap();
        assert_eq!(
            (request.common_name.as_str(), request.organizations),
            ("jane", vec!["a".into(), "b".into()])
        );
        assert_eq!(request.dns_names, ["web", "web.default.svc"]);
        assert_eq!(request.ip_addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(request.uris, ["spiffe://cluster/jane"]);
        assert!(!request.public_key.is_empty() && !request.subject.is_empty());
        let mut der =
            STANDARD.decode(PEM.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
        let at = der.windows(4).position(|bytes| bytes == b"jane").unwrap();
        der[at] = b'k';
        let forged = format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(&der));
        assert!(Request::parse(forged.as_bytes()).unwrap_err().contains("verification failure"));
        for (text, why) in [
            ("", NOT_A_REQUEST),
            (&PEM.replace("REQUEST", "X"), NOT_A_REQUEST),
            (&format!("{BEGIN}\nMAA=\n{END}"), "asn1: structure error: no certificate request"),
        ] {
            assert_eq!(Request::parse(text.as_bytes()).unwrap_err(), why);
        }
    }
}
