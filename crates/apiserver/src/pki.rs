//! The cluster's keys and certificates on disk: one authority, made at first start, and what it
//! signs. Also the TLS configurations that go with them and kubeconfig files. Knows nothing of
//! requests.

mod issue;
mod serving;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use ring::rand::SecureRandom;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serving::{AskOnly, Serving};
use skeg_base::Clock;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CA_VALID: SignedDuration = SignedDuration::from_hours(24 * 3650);
const LEAF_VALID: SignedDuration = SignedDuration::from_hours(24 * 365);
/// A certificate with less time left than this is made anew.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Certificates begin this much in the past, for peers whose clock is a little late.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
const CA_NAME: &str = "skeg-ca";
/// The authority whose clients speak for others: see [`Pki::front_proxy`].
const FRONT_PROXY_CA_NAME: &str = "skeg-front-proxy-ca";
/// As whom the API server passes requests on to extension API servers.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";
/// More sessions than this are not kept for resumption by id.
const SESSIONS_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("{path}: {why}")]
    Content { path: PathBuf, why: String },
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("a certificate can name at most two groups")]
    Groups,
    #[error("the system gives no randomness")]
    Randomness,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// One authority.
struct Authority {
    pair: Pair,
    key: KeyPair,
    params: CertificateParams,
    der: CertificateDer<'static>,
}

impl Authority {
    /// Reads it, or makes it, and says which.
    fn open(dir: &Path, file: &str, name: &str, now: Timestamp) -> Result<(Self, bool), PkiError> {
        let params = authority_params(name, now)?;
        let (pair, key, made) = match read_pair(dir, file)? {
            Some(pair) => {
                let key = KeyPair::from_pem(&pair.key)?;
                (pair, key, false)
            }
            None => {
                let key = KeyPair::generate()?;
                let pair = Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
                write_pair(dir, file, &pair)?;
                (pair, key, true)
            }
        };
        let der = certificate_of(&pair.certificate, &dir.join(format!("{file}.crt")))?;
        Ok((Authority { pair, key, params, der }, made))
    }

    fn sign(&self, params: &CertificateParams) -> Result<Pair, PkiError> {
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_params(&self.params, &self.key);
        Ok(Pair { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    }

    /// Whether the authority key identifier of a certificate is this authority's.
    fn signed(&self, der: &[u8]) -> bool {
        use x509_parser::extensions::ParsedExtension;
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(der) else { return false };
        let ours = self.params.key_identifier(&self.key);
        parsed.extensions().iter().any(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().is_some_and(|id| id.0 == ours)
            }
            _ => false,
        })
    }
}

/// The authorities and the directory that holds them.
pub struct Pki {
    dir: PathBuf,
    clock: Clock,
    ca: Authority,
    front_proxy: Authority,
    /// PKCS #8 PEM of the key that signs service account tokens.
    token_key: String,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Pki {
    /// Opens the directory, making it and what is missing in it.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, PkiError> {
        make_dir(dir)?;
        let now = clock.now();
        let (ca, made) = Authority::open(dir, "ca", CA_NAME, now)?;
        let (front_proxy, too) = Authority::open(dir, "front-proxy-ca", FRONT_PROXY_CA_NAME, now)?;
        let mut wrote = made || too;
        let token_path = dir.join("service-account.key");
        let token_key = match read(&token_path)? {
            Some(pem) => pem,
            None => {
                let pem = KeyPair::generate()?.serialize_pem();
                write_atomic(&token_path, pem.as_bytes())?;
                wrote = true;
                pem
            }
        };
        if wrote {
            sync_dir(dir)?;
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca.der.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Pki { dir: dir.to_owned(), clock, ca, front_proxy, token_key, roots: Arc::new(roots), provider })
    }

    /// The authority's certificate, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca.pair.certificate
    }

    /// The certificate, as PEM, of the authority whose clients extension API servers believe when
    /// these say for whom they ask. Whoever can have a certificate of the cluster's authority, as
    /// CertificateSigningRequests give out, has none of this one.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy.pair.certificate
    }

    /// The certificate by which extension API servers know this API server.
    pub fn front_proxy(&self) -> Result<Pair, PkiError> {
        self.kept(
            &self.front_proxy,
            FRONT_PROXY_CLIENT,
            |_| true,
            || self.front_proxy.sign(&self.client_params(FRONT_PROXY_CLIENT, &[])?),
        )
    }

    /// PKCS #8 PEM of the key that signs service account tokens.
    pub fn token_key(&self) -> &str {
        &self.token_key
    }

    /// Signs a client certificate: the user is the common name, groups are organizations.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<Pair, PkiError> {
        self.ca.sign(&self.client_params(user, groups)?)
    }

    fn client_params(&self, user: &str, groups: &[&str]) -> Result<CertificateParams, PkiError> {
        let mut params = self.leaf(user, groups)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params)
    }

    /// Signs a serving certificate for these addresses and DNS names.
    pub fn issue_serving(&self, name: &str, groups: &[&str], sans: &[String]) -> Result<Pair, PkiError> {
        let mut params = self.leaf(name, groups)?;
        params.subject_alt_names = CertificateParams::new(sans)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.ca.sign(&params)
    }

    /// A client certificate that is kept on disk as `<file>.crt` and `<file>.key`, made anew when it
    /// is missing, near its end or of another authority.
    pub fn client(&self, file: &str, user: &str, groups: &[&str]) -> Result<Pair, PkiError> {
        self.kept(&self.ca, file, |_| true, || self.issue_client(user, groups))
    }

    /// As [`Pki::client`] for a serving certificate; also made anew when the names changed.
    pub fn serving(
        &self,
        file: &str,
        name: &str,
        groups: &[&str],
        sans: &[String],
    ) -> Result<Pair, PkiError> {
        let mut wanted: Vec<String> = sans.to_vec();
        wanted.sort();
        wanted.dedup();
        self.kept(
            &self.ca,
            file,
            |der| sans_of(der).is_some_and(|sans| sans == wanted),
            || self.issue_serving(name, groups, &wanted),
        )
    }

    fn kept(
        &self,
        authority: &Authority,
        file: &str,
        fits: impl Fn(&[u8]) -> bool,
        issue: impl Fn() -> Result<Pair, PkiError>,
    ) -> Result<Pair, PkiError> {
        if let Some(pair) = read_pair(&self.dir, file)?
            && let Ok(der) = CertificateDer::from_pem_slice(pair.certificate.as_bytes())
            && not_after(&der).is_some_and(|end| end - RENEW_BEFORE > self.clock.now())
            && fits(&der)
            && authority.signed(&der)
        {
            return Ok(pair);
        }
        let pair = issue()?;
        write_pair(&self.dir, file, &pair)?;
        sync_dir(&self.dir)?;
        Ok(pair)
    }

    fn leaf(&self, name: &str, groups: &[&str]) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(name, groups)?;
        params.not_before = offset(self.clock.now() - BACKDATE);
        params.not_after = offset(self.clock.now() + LEAF_VALID);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial_number()?));
        Ok(params)
    }

    /// The server side of TLS with a certificate that renews itself. Any client certificate is let
    /// through the handshake; authentication verifies it with [`Pki::client_verifier`] and answers
    /// 401, as upstream does.
    pub fn server_config(self: &Arc<Self>, sans: Vec<String>) -> Result<rustls::ServerConfig, PkiError> {
        let serving = Serving::new(self.clone(), sans)?;
        let verifier = Arc::new(AskOnly(self.client_verifier()?));
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(serving));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = rustls::crypto::ring::Ticketer::new()?;
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS_MAX);
        Ok(config)
    }

    /// The server side of a node: its certificate, and only clients with a certificate of this
    /// authority.
    pub fn node_server_config(&self, pair: &Pair) -> Result<rustls::ServerConfig, PkiError> {
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(self.client_verifier()?)
            .with_single_cert(chain_of(pair)?, key_of(pair)?)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// The client side of TLS towards servers with certificates of this authority.
    pub fn client_config(&self, pair: Option<&Pair>) -> Result<rustls::ClientConfig, PkiError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let builder = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_webpki_verifier(verifier);
        Ok(match pair {
            Some(pair) => builder.with_client_auth_cert(chain_of(pair)?, key_of(pair)?)?,
            None => builder.with_no_client_auth(),
        })
    }

    /// Verifies client certificates against this authority.
    pub fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()).into())
    }

    fn certified(&self, pair: &Pair) -> Result<CertifiedKey, PkiError> {
        Ok(CertifiedKey::from_der(chain_of(pair)?, key_of(pair)?, &self.provider)?)
    }
}

/// The names of the API server's certificate: loopback, the in-cluster service and what is given.
pub fn apiserver_sans(service_ip: &str, cluster_domain: &str, more: &[String]) -> Vec<String> {
    let mut sans = vec!["127.0.0.1".to_owned(), "::1".into(), "localhost".into(), service_ip.to_owned()];
    let suffixes = ["", ".default", ".default.svc"].map(str::to_owned);
    sans.extend(
        suffixes
            .into_iter()
            .chain([format!(".default.svc.{cluster_domain}")])
            .map(|s| format!("kubernetes{s}")),
    );
    sans.extend(more.iter().cloned());
    sans.sort();
    sans.dedup();
    sans
}

/// A kubeconfig with everything embedded.
pub fn kubeconfig(server: &str, ca_pem: &str, user: &str, pair: &Pair) -> String {
    let encode = |pem: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
    let (ca, certificate, key) = (encode(ca_pem), encode(&pair.certificate), encode(&pair.key));
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: skeg\n  cluster:\n    certificate-authority-data: {ca}\n    \
         server: {server}\ncontexts:\n- name: skeg\n  context:\n    cluster: skeg\n    user: {user}\ncurrent-context: skeg\n\
         preferences: {{}}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    \
         client-key-data: {key}\n"
    )
}

/// Writes a file that only its owner reads, if it does not have this content yet.
pub fn write_private(path: &Path, content: &str) -> Result<(), PkiError> {
    if read(path)?.as_deref() == Some(content) {
        return Ok(());
    }
    write_atomic(path, content.as_bytes())?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn serial_number() -> Result<[u8; 16], PkiError> {
    let mut serial = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut serial).map_err(|_| PkiError::Randomness)?;
    // Positive and of full length.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(serial)
}

fn authority_params(name: &str, now: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = offset(now - BACKDATE);
    params.not_after = offset(now + CA_VALID);
    Ok(params)
}

/// rcgen keeps one value per attribute type, and drops others silently; the second organization is
/// given as the same type by its number.
fn distinguished_name(name: &str, groups: &[&str]) -> Result<DistinguishedName, PkiError> {
    let mut dn = DistinguishedName::new();
    let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    if groups.len() > types.len() {
        return Err(PkiError::Groups);
    }
    for (kind, group) in types.into_iter().zip(groups) {
        dn.push(kind, *group);
    }
    dn.push(DnType::CommonName, name);
    Ok(dn)
}

fn offset(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

pub(crate) fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
}

fn sans_of(der: &[u8]) -> Option<Vec<String>> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = &parsed.subject_alternative_name().ok()??.value.general_names;
    let mut sans: Vec<String> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            },
            _ => None,
        })
        .collect();
    sans.sort();
    Some(sans)
}

fn certificate_of(pem: &str, path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| PkiError::Content { path: path.to_owned(), why: format!("is no certificate: {e:?}") })
}

pub fn chain_of(pair: &Pair) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    Ok(vec![certificate_of(&pair.certificate, Path::new("certificate"))?])
}

pub fn key_of(pair: &Pair) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(pair.key.as_bytes())
        .map_err(|e| PkiError::Content { path: "key".into(), why: format!("is no private key: {e:?}") })
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PkiError::File { path: path.to_owned(), error }),
    }
}

/// Both files, or nothing where either is missing: the key is written first, so a certificate
/// without a key means that somebody removed it, and for the authority that must not be healed by
/// making another.
fn read_pair(dir: &Path, file: &str) -> Result<Option<Pair>, PkiError> {
    let (crt, key) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    match (read(&crt)?, read(&key)?) {
        (Some(certificate), Some(key)) => Ok(Some(Pair { certificate, key })),
        (Some(_), None) if file.ends_with("ca") => {
            Err(PkiError::Content { path: crt, why: "the authority's key is missing".into() })
        }
        _ => Ok(None),
    }
}

fn write_pair(dir: &Path, file: &str, pair: &Pair) -> Result<(), PkiError> {
    write_atomic(&dir.join(format!("{file}.key")), pair.key.as_bytes())?;
    write_atomic(&dir.join(format!("{file}.crt")), pair.certificate.as_bytes())
}

fn write_atomic(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let write = || {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let temporary = PathBuf::from(name);
        // A leftover may have other permissions.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| PkiError::File { path: path.to_owned(), error })
}

fn sync_dir(dir: &Path) -> Result<(), PkiError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| PkiError::File { path: dir.to_owned(), error })
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| PkiError::File { path: dir.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::UnixTime;
    use std::os::unix::fs::PermissionsExt;

    fn subject(pair: &Pair) -> Vec<(String, String)> {
        let der = certificate_of(&pair.certificate, Path::new("x")).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let attributes = parsed.subject().iter_attributes();
        attributes.map(|a| (a.attr_type().to_id_string(), a.as_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn a_second_start_reads_what_the_first_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pki");
        let sans = apiserver_sans("10.96.0.1", "cluster.local", &["host".into()]);
        let first = Pki::open(&path, Clock::system()).unwrap();
        let serving = first.serving("apiserver", "kube-apiserver", &[], &sans).unwrap();
        let second = Pki::open(&path, Clock::system()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.front_proxy_ca_pem(), second.front_proxy_ca_pem());
        assert_ne!(first.ca_pem(), first.front_proxy_ca_pem());
        assert_eq!(first.front_proxy().unwrap().certificate, second.front_proxy().unwrap().certificate);
        assert_eq!(first.token_key(), second.token_key());
        let again = second.serving("apiserver", "kube-apiserver", &[], &sans).unwrap();
        assert_eq!(serving.certificate, again.certificate);
        let mut more = sans.clone();
        more.push("10.9.8.7".into());
        let changed = second.serving("apiserver", "kube-apiserver", &[], &more).unwrap();
        assert_ne!(serving.certificate, changed.certificate);
        for file in fs::read_dir(&path).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_file(path.join("ca.key")).unwrap();
        assert!(Pki::open(&path, Clock::system()).is_err());
    }

    #[test]
    fn certificates_name_the_user_and_all_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(dir.path(), Clock::system()).unwrap());
        let pair = pki.issue_client("jane", &["dev", "ops"]).unwrap();
        let expected = [("2.5.4.10", "dev"), ("2.5.4.10", "ops"), ("2.5.4.3", "jane")];
        assert_eq!(subject(&pair), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert!(matches!(pki.issue_client("jane", &["a", "b", "c"]), Err(PkiError::Groups)));
        let verifier = pki.client_verifier().unwrap();
        let der = certificate_of(&pair.certificate, Path::new("x")).unwrap();
        verifier.verify_client_cert(&der, &[], UnixTime::now()).unwrap();
        // Who speaks for others to extension servers is nobody here.
        let der = certificate_of(&pki.front_proxy().unwrap().certificate, Path::new("x")).unwrap();
        assert!(verifier.verify_client_cert(&der, &[], UnixTime::now()).is_err());
        let other = tempfile::tempdir().unwrap();
        let other = Pki::open(other.path(), Clock::system()).unwrap();
        let foreign = other.issue_client("jane", &["system:masters"]).unwrap();
        let der = certificate_of(&foreign.certificate, Path::new("x")).unwrap();
        assert!(verifier.verify_client_cert(&der, &[], UnixTime::now()).is_err());
        pki.server_config(vec!["localhost".into()]).unwrap();
        pki.client_config(Some(&pair)).unwrap();
    }
}
