//! Authentication at the network edge: client certificates of the cluster's authority and service
//! account tokens; without either, the anonymous user. Knows nothing of what is asked.
//! Upstream counterpart: `k8s.io/apiserver/pkg/authentication`, `pkg/serviceaccount`.

use super::recent::Recent;
use super::token::{Claims, LEEWAY_S, Reference, Signer};
use super::{Digest, sha256};
use crate::hooks::Certificates;
use crate::identity::Identity;
use crate::pki;
use crate::reader::Reader;
use crate::resources;
use parking_lot::Mutex;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use skeg_api::{Gvr, Status};
use skeg_base::{Clock, Timestamp};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Certificates and tokens that were verified lately, per generation.
const RECENT_MAX: usize = 1024;
/// A bound object stays good for tokens this long after its deletion time.
const DELETED_LEEWAY_S: i64 = 60;
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
pub const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
pub const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Verifies credentials.
pub struct Credentials {
    reader: Arc<dyn Reader>,
    clock: Clock,
    signer: Arc<Signer>,
    issuer: String,
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Mutex<Recent<Digest, (Identity, Timestamp)>>,
    tokens: Mutex<Recent<Digest, Arc<Claims>>>,
}

/// A token that names a user.
pub struct Verified {
    pub identity: Identity,
    /// Of the audiences that were asked for, those the token is for.
    pub audiences: Vec<String>,
}

/// The part of a bound object that counts.
#[derive(Deserialize)]
struct Head {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    deletion_timestamp: Option<Timestamp>,
}

impl Credentials {
    pub fn new(
        reader: Arc<dyn Reader>,
        clock: Clock,
        signer: Arc<Signer>,
        issuer: String,
        verifier: Arc<dyn ClientCertVerifier>,
    ) -> Self {
        let certificates = Mutex::new(Recent::new(RECENT_MAX));
        let tokens = Mutex::new(Recent::new(RECENT_MAX));
        Credentials { reader, clock, signer, issuer, verifier, certificates, tokens }
    }

    /// The audience of tokens for this API server.
    pub fn audience(&self) -> &str {
        &self.issuer
    }

    /// The user of a request with these headers over a connection with this client chain.
    pub fn identify(
        &self,
        headers: &http::HeaderMap,
        certificates: &Certificates,
    ) -> Result<Identity, Status> {
        let mut refused = false;
        if let Some((leaf, digest)) = certificates.leaf() {
            match self.certificate(leaf, digest, &certificates.chain[1..]) {
                Some(identity) => return Ok(identity),
                None => refused = true,
            }
        }
        let token = bearer(headers).map(Cow::Borrowed);
        if let Some(token) = token.or_else(|| crate::websocket::bearer(headers).map(Cow::Owned)) {
            match self.token(&token, &[self.issuer.as_str()]) {
                Ok(verified) => return Ok(verified.identity),
                Err(error) => {
                    tracing::debug!(%error, "bearer token refused");
                    refused = true;
                }
            }
        }
        if refused { Err(Status::unauthorized()) } else { Ok(Identity::anonymous()) }
    }

    fn certificate(
        &self,
        leaf: &CertificateDer<'_>,
        digest: &Digest,
        intermediates: &[CertificateDer<'_>],
    ) -> Option<Identity> {
        let now = self.clock.now();
        if let Some((identity, end)) = self.certificates.lock().get(digest)
            && now < end
        {
            return Some(identity);
        }
        let since_epoch = Duration::from_secs(u64::try_from(now.as_second()).ok()?);
        let verified =
            self.verifier.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(since_epoch));
        if let Err(error) = verified {
            tracing::debug!(%error, "client certificate refused");
            return None;
        }
        let identity = subject(leaf, digest)?;
        let end = pki::not_after(leaf)?;
        self.certificates.lock().insert(*digest, (identity.clone(), end));
        Some(identity)
    }

    /// Verifies a service account token for any of these audiences.
    pub fn token(&self, token: &str, audiences: &[&str]) -> Result<Verified, String> {
        let digest = sha256(token.as_bytes());
        let known = self.tokens.lock().get(&digest);
        let claims = match known {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.signer.verify(token).ok_or("invalid bearer token")?);
                self.tokens.lock().insert(digest, claims.clone());
                claims
            }
        };
        if claims.iss != self.issuer {
            return Err("invalid bearer token".into());
        }
        let now = self.clock.now();
        let second = now.as_second();
        if second > claims.exp + LEEWAY_S {
            self.tokens.lock().remove(&digest);
            return Err("service account token has expired".into());
        }
        if second + LEEWAY_S < claims.nbf {
            return Err("service account token is not valid yet".into());
        }
        let matching = |audience: &&str| claims.aud.iter().any(|a| a == audience);
        let audiences: Vec<String> =
            audiences.iter().copied().filter(|a| matching(a)).map(str::to_owned).collect();
        if audiences.is_empty() {
            return Err(format!("token audiences {:?} is invalid for the target audiences", claims.aud));
        }
        self.bound(&claims, now)?;
        let identity = service_account(&claims);
        Ok(Verified { identity, audiences })
    }

    /// Whether everything that the token is bound to is still there.
    fn bound(&self, claims: &Claims, now: Timestamp) -> Result<(), String> {
        let private = &claims.kubernetes;
        let (namespace, account) = (&private.namespace, &private.serviceaccount);
        if claims.sub != format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{}", account.name) {
            return Err("service account token names another subject".into());
        }
        self.exists(&resources::SERVICE_ACCOUNTS, namespace, account, now)?;
        if let Some(pod) = &private.pod {
            self.exists(&resources::PODS, namespace, pod, now)?;
        }
        if let Some(secret) = &private.secret {
            self.exists(&resources::SECRETS, namespace, secret, now)?;
        }
        // The node of a pod's token says where it ran; only a token bound to the node itself ends
        // with it.
        if let (None, Some(node)) = (&private.pod, &private.node) {
            self.exists(&resources::NODES, "", node, now)?;
        }
        Ok(())
    }

    fn exists(
        &self,
        gvr: &Gvr,
        namespace: &str,
        reference: &Reference,
        now: Timestamp,
    ) -> Result<(), String> {
        let invalid = |why: &str| {
            Err(format!("service account token is bound to {} \"{}\": {why}", gvr.resource, reference.name))
        };
        let Some(bytes) = self.reader.get(gvr, namespace, &reference.name) else {
            return invalid("not found");
        };
        let Ok(Head { metadata }) = serde_json::from_slice(&bytes) else { return invalid("unreadable") };
        if metadata.uid != reference.uid {
            return invalid("it has another uid");
        }
        match metadata.deletion_timestamp {
            Some(deleted) if deleted.as_second() + DELETED_LEEWAY_S < now.as_second() => {
                invalid("it is deleted")
            }
            _ => Ok(()),
        }
    }
}

/// The user that a service account token stands for.
fn service_account(claims: &Claims) -> Identity {
    let private = &claims.kubernetes;
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(key.to_owned(), vec![value.to_owned()]);
        }
    };
    if !claims.jti.is_empty() {
        add(CREDENTIAL_ID, &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &private.pod {
        add(POD_NAME, &pod.name);
        add(POD_UID, &pod.uid);
    }
    if let Some(node) = &private.node {
        add(NODE_NAME, &node.name);
        add(NODE_UID, &node.uid);
    }
    let mut groups = service_account_groups(&private.namespace);
    groups.push("system:authenticated".into());
    Identity::new(claims.sub.clone(), private.serviceaccount.uid.clone(), groups, extra)
}

pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

/// Namespace and name, where a user name is a service account's.
pub fn split_service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// The subject of a certificate: the last common name, every organization.
fn subject(leaf: &[u8], digest: &Digest) -> Option<Identity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    let user = parsed.subject().iter_common_name().last().and_then(text).filter(|user| !user.is_empty())?;
    let mut groups = parsed.subject().iter_organization().map(text).collect::<Option<Vec<_>>>()?;
    groups.push("system:authenticated".into());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")])]);
    Some(Identity::new(user, String::new(), groups, extra))
}

fn bearer(headers: &http::HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_start();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;
    use crate::reader::fake::Fake;
    use serde_json::json;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    struct World {
        _dir: tempfile::TempDir,
        pki: Pki,
        reader: Arc<Fake>,
        signer: Arc<Signer>,
        credentials: Credentials,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), Clock::system()).unwrap();
        let reader = Arc::new(Fake::default());
        reader.put(
            &resources::SERVICE_ACCOUNTS,
            json!({"metadata": {"name": "app", "namespace": "default", "uid": "sa-1"}}),
        );
        let signer = Arc::new(Signer::from_pem(pki.token_key()).unwrap());
        let verifier = pki.client_verifier().unwrap();
        let credentials =
            Credentials::new(reader.clone(), Clock::system(), signer.clone(), ISSUER.into(), verifier);
        World { _dir: dir, pki, reader, signer, credentials }
    }

    #[test]
    fn a_certificate_from_a_request_names_its_user_and_all_groups() {
        let w = world();
        let asked = include_str!("../../../api/testdata/request.pem");
        let asked = skeg_api::csr::Request::parse(asked.as_bytes()).unwrap();
        let identify = |usage: &str| {
            let hour = jiff::SignedDuration::from_hours(1);
            let pem = w.pki.sign_request(&asked, &[usage.to_owned()], hour).unwrap();
            let pair = pki::Pair { certificate: pem, key: String::new() };
            w.credentials.identify(&http::HeaderMap::new(), &Certificates::new(pki::chain_of(&pair).unwrap()))
        };
        let who = identify("client auth").unwrap();
        assert_eq!(
            (who.user(), who.groups()),
            ("jane", &["a", "b", "system:authenticated"].map(str::to_owned)[..])
        );
        assert_eq!(identify("server auth").unwrap_err().code, 401, "a server is no client");
    }

    fn claims() -> Claims {
        let now = Clock::system().now().as_second();
        let mut claims = super::super::token::tests::claims();
        claims.aud = vec![ISSUER.into()];
        claims.iss = ISSUER.into();
        (claims.iat, claims.nbf, claims.exp) = (now, now, now + 3600);
        claims.sub = "system:serviceaccount:default:app".into();
        claims.kubernetes.serviceaccount = Reference { name: "app".into(), uid: "sa-1".into() };
        claims
    }

    fn ask(world: &World, claims: &Claims) -> Result<Identity, u16> {
        let token = world.signer.sign(claims).unwrap();
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        world.credentials.identify(&headers, &Certificates::default()).map_err(|status| status.code)
    }

    #[test]
    fn a_good_token_names_its_account() {
        let world = world();
        for _ in 0..2 {
            let identity = ask(&world, &claims()).unwrap();
            assert_eq!(identity.user(), "system:serviceaccount:default:app");
            assert_eq!(identity.uid(), "sa-1");
            assert_eq!(
                identity.groups(),
                ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]
            );
            assert_eq!(identity.extra()[CREDENTIAL_ID], ["JTI=j"]);
        }
    }

    #[test]
    fn bad_tokens_are_401() {
        let world = world();
        let now = Clock::system().now().as_second();
        type Edit = Box<dyn Fn(&mut Claims)>;
        let edits: Vec<(&str, Edit)> = vec![
            ("expired", Box::new(move |c| c.exp = now - 61)),
            ("not yet", Box::new(move |c| c.nbf = now + 120)),
            ("audience", Box::new(|c| c.aud = vec!["other".into()])),
            ("issuer", Box::new(|c| c.iss = "other".into())),
            ("account uid", Box::new(|c| c.kubernetes.serviceaccount.uid = "sa-0".into())),
            ("account name", Box::new(|c| c.kubernetes.serviceaccount.name = "gone".into())),
            ("subject", Box::new(|c| c.sub = "system:serviceaccount:kube-system:admin".into())),
            ("pod", Box::new(|c| c.kubernetes.pod = Some(Reference { name: "p".into(), uid: "x".into() }))),
            (
                "secret",
                Box::new(|c| c.kubernetes.secret = Some(Reference { name: "p".into(), uid: "x".into() })),
            ),
            ("node", Box::new(|c| c.kubernetes.node = Some(Reference { name: "p".into(), uid: "x".into() }))),
        ];
        for (what, edit) in edits {
            let mut claims = claims();
            edit(&mut claims);
            assert_eq!(ask(&world, &claims).unwrap_err(), 401, "{what}");
        }
        assert!(ask(&world, &claims()).is_ok());
        world.reader.remove(&resources::SERVICE_ACCOUNTS, "default", "app");
        assert_eq!(ask(&world, &claims()).unwrap_err(), 401, "deleted account");
    }

    #[test]
    fn bound_objects_count_until_shortly_after_their_deletion() {
        let world = world();
        let mut claims = claims();
        claims.kubernetes.pod = Some(Reference { name: "p".into(), uid: "x".into() });
        let pod = |deleted: Option<Timestamp>| {
            let deleted = deleted.map(|at| at.to_string());
            json!({"metadata": {"name": "p", "namespace": "default", "uid": "x", "deletionTimestamp": deleted}})
        };
        let now = Clock::system().now();
        // Where the Pod ran is told; that the node is there is not asked.
        claims.kubernetes.node = Some(Reference { name: "n".into(), uid: "y".into() });
        world.reader.put(&resources::PODS, pod(None));
        assert_eq!(ask(&world, &claims).unwrap().extra()[NODE_NAME], ["n"]);
        assert_eq!(ask(&world, &claims).unwrap().extra()[POD_NAME], ["p"]);
        world.reader.put(&resources::PODS, pod(Some(now)));
        assert!(ask(&world, &claims).is_ok());
        world.reader.put(&resources::PODS, pod(Some(now - jiff::SignedDuration::from_secs(62))));
        assert!(ask(&world, &claims).is_err());
    }

    #[test]
    fn certificates_name_user_and_groups_and_foreign_ones_are_401() {
        let world = world();
        let pair = world.pki.issue_client("jane", &["dev", "ops"]).unwrap();
        let chain = Certificates::new(crate::pki::chain_of(&pair).unwrap());
        for _ in 0..2 {
            let identity = world.credentials.identify(&http::HeaderMap::new(), &chain).unwrap();
            assert_eq!(
                (identity.user(), identity.groups().join(",").as_str()),
                ("jane", "dev,ops,system:authenticated")
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let foreign = Pki::open(dir.path(), Clock::system())
            .unwrap()
            .issue_client("jane", &["system:masters"])
            .unwrap();
        let chain = Certificates::new(crate::pki::chain_of(&foreign).unwrap());
        assert_eq!(world.credentials.identify(&http::HeaderMap::new(), &chain).unwrap_err().code, 401);
    }

    #[test]
    fn names_of_accounts_have_two_parts() {
        assert_eq!(split_service_account("system:serviceaccount:a:b"), Some(("a", "b")));
        for other in
            ["jane", "system:serviceaccount:a", "system:serviceaccount::b", "system:serviceaccount:a:"]
        {
            assert_eq!(split_service_account(other), None, "{other}");
        }
        assert_eq!(split_service_account("system:serviceaccount:a:b:c"), None);
    }

    #[test]
    fn without_credentials_the_user_is_anonymous() {
        let world = world();
        assert_eq!(
            world.credentials.identify(&http::HeaderMap::new(), &Certificates::default()).unwrap(),
            Identity::anonymous()
        );
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", "Bearer x".parse().unwrap());
        assert_eq!(world.credentials.identify(&headers, &Certificates::default()).unwrap_err().code, 401);
        headers.insert("authorization", "Basic eDp5".parse().unwrap());
        assert_eq!(
            world.credentials.identify(&headers, &Certificates::default()).unwrap(),
            Identity::anonymous()
        );
        // Names of users in headers of our own or of proxies mean nothing.
        for header in ["x-remote-user", "x-remote-group", "x-skeg-identity"] {
            headers.insert(header, "system:masters".parse().unwrap());
        }
        assert_eq!(
            world.credentials.identify(&headers, &Certificates::default()).unwrap(),
            Identity::anonymous()
        );
    }
}
