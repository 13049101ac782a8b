//! Who may approve and sign certificate requests, and what a client's certificate may not say.
//! Upstream counterpart: `plugin/pkg/admission/certificates`.

use super::{Admission, Operation, Plugin, ready};
use crate::auth::authz::{SUPERUSERS, Union, question};
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::Status;
use skeg_api::csr::{self, CLIENT as CLIENT_SIGNER};
use std::sync::Arc;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";

fn signer(request: &Value) -> &str {
    request["spec"]["signerName"].as_str().unwrap_or_default()
}

/// Whether the user may do this for a signer, or for all of its domain.
fn may(authorizer: &Union, a: &Admission<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer, &format!("{domain}/*")]
        .iter()
        .any(|name| authorizer.allows(&question(a.identity, verb, [GROUP, "signers", "", "", name])))
}

/// Approval needs the verb `approve` for the signer.
pub struct CertificateApproval(pub Arc<Union>);

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let bears = request.operation == Operation::Update && request.is(GROUP, REQUESTS, "approval");
        // The old request decides: nobody can change its signer on the way.
        let refused =
            request.old.filter(|_| bears).map(signer).filter(|name| !may(&self.0, request, "approve", name));
        ready(refused.map_or(Ok(()), |name| {
            Err(request.forbid(format!("user not permitted to approve requests with signerName {name:?}")))
        }))
    }
}

/// Signing needs the verb `sign` for the signer.
pub struct CertificateSigning(pub Arc<Union>);

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let bears = request.operation == Operation::Update && request.is(GROUP, REQUESTS, "status");
        let (new, old) = (request.object.as_deref(), request.old);
        let changes =
            |field: &str| new.zip(old).is_some_and(|(new, old)| new["status"][field] != old["status"][field]);
        let bears = bears && (changes("certificate") || changes("conditions"));
        let refused = old.filter(|_| bears).map(signer).filter(|name| !may(&self.0, request, "sign", name));
        ready(refused.map_or(Ok(()), |name| {
            Err(request.forbid(format!("user not permitted to sign requests with signerName {name:?}")))
        }))
    }
}

/// No certificate for clients makes a superuser.
pub struct CertificateSubjectRestriction;

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let bears = request.operation == Operation::Create && request.is(GROUP, REQUESTS, "");
        let asked = request.object.as_deref().filter(|object| bears && signer(object) == CLIENT_SIGNER);
        let asked =
            asked.map(|object| csr::Request::decode(object["spec"]["request"].as_str().unwrap_or_default()));
        let result = match asked {
            Some(Err(why)) => Err(request.forbid(format!("failed to parse CSR: {why}"))),
            Some(Ok(asked)) if asked.organizations.iter().any(|group| group == SUPERUSERS) => Err(request
                .forbid(format!("use of {CLIENT_SIGNER} signer with {SUPERUSERS} group is not allowed"))),
            _ => Ok(()),
        };
        ready(result)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::auth::rbac::tests::user;
    use crate::reader::fake::Fake;
    use crate::resources;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    fn write(
        plugin: &dyn Plugin,
        who: crate::Identity,
        operation: Operation,
        subresource: &str,
        object: Value,
        old: Option<Value>,
    ) -> Result<(), Status> {
        let kind = kind(GROUP, "CertificateSigningRequest", REQUESTS, false);
        Case { operation, kind, subresource, identity: who, object: Some(object), old }.run(plugin)
    }

    #[test]
    fn approval_and_signing_need_rights_on_the_signer() {
        let reader = Arc::new(Fake::default());
        reader.put(
            &resources::CLUSTER_ROLES,
            json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["approve", "sign"],
            "apiGroups": [GROUP], "resources": ["signers"], "resourceNames": ["example.com/*"]}]}),
        );
        reader.put(
            &resources::CLUSTER_ROLE_BINDINGS,
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "User", "name": "jane"}]}),
        );
        let union = Arc::new(Union::new(reader));
        let request = |signer: &str, certificate: &str| json!({"metadata": {"name": "c"}, "spec": {"signerName": signer}, "status": {"certificate": certificate}});
        let (approval, signing) = (CertificateApproval(union.clone()), CertificateSigning(union));
        for (who, signer, expected) in
            [("jane", "example.com/x", true), ("jane", "other.com/x", false), ("bob", "example.com/x", false)]
        {
            let write = |plugin: &dyn Plugin, subresource: &str| {
                let (new, old) = (request(signer, "new"), request(signer, ""));
                write(plugin, user(who, &[]), Operation::Update, subresource, new, Some(old)).is_ok()
            };
            assert_eq!(
                (write(&approval, "approval"), write(&signing, "status")),
                (expected, expected),
                "{who} {signer}"
            );
        }
        let same = request("other.com/x", "");
        assert!(
            write(&signing, user("bob", &[]), Operation::Update, "status", same.clone(), Some(same)).is_ok()
        );
    }

    #[test]
    fn no_client_certificate_is_for_superusers() {
        let ask = |group: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
            let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
            let object = json!({"metadata": {"name": "c"}, "spec": {"signerName": CLIENT_SIGNER, "request": STANDARD.encode(pem)}});
            write(&CertificateSubjectRestriction, user("jane", &[]), Operation::Create, "", object, None)
        };
        assert!(ask("team").is_ok());
        assert_eq!(
            ask("system:masters").unwrap_err().message,
            "certificatesigningrequests.certificates.k8s.io \"c\" is forbidden: use of kubernetes.io/kube-apiserver-client \
             signer with system:masters group is not allowed"
        );
    }
}
