//! CertificateSigningRequests: approves what nodes ask for as clients, signs what is approved and
//! one of the cluster's signers lets through, and deletes what is done with.
//! Upstream counterpart: `pkg/controller/certificates/{approver,signer,cleaner}`.

mod plan;

use crate::context::{ControllerContext, Controllers, Signer};
use crate::error::{Error, Result, ignore_not_found};
use crate::meta;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use plan::{Permission, Verdict};
use skeg_base::Clock;
use skeg_client::{Api, Change, Informer};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 1;
/// What nobody may have approved yet is asked for again: rights come later, too.
const ASK_AGAIN: Duration = Duration::from_secs(30);

struct Controller {
    requests: Informer<CertificateSigningRequest>,
    api: Api<CertificateSigningRequest>,
    reviews: Api<SubjectAccessReview>,
    signer: Signer,
    /// The longest that a certificate lasts, and how long one does that says nothing.
    longest: Duration,
    clock: Clock,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let Some(signer) = ctx.config.signer.clone() else { return };
    let client = ctx.client("certificate-controller");
    let controller = Arc::new(Controller {
        requests: ctx.informers.of(),
        api: client.api(),
        reviews: client.api(),
        signer,
        longest: ctx.config.cluster_signing_duration,
        clock: ctx.clock,
    });
    let queue = ctx.queue::<String>();
    let to = queue.clone();
    controller.requests.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            to.add(change.key().name.to_string());
        }
    });
    let requests = controller.requests.clone();
    let ready = async move { requests.synced().await };
    controllers.work("certificates", WORKERS, queue, ready, move |name| {
        let controller = controller.clone();
        async move { controller.sync(&name).await }
    });
}

impl Controller {
    async fn sync(&self, name: &str) -> Result<Option<Duration>> {
        let Some(request) = self.requests.get("", name) else { return Ok(None) };
        let left = plan::left(&request, self.clock.now());
        if left == Some(Duration::ZERO) {
            let options = meta::delete_options(meta::uid(&request.metadata));
            return match self.api.delete("", name, &options).await {
                Err(error) if error.is_conflict() => Ok(None),
                other => ignore_not_found(other).map(|()| None).map_err(Error::from),
            };
        }
        let asks = plan::permissions(&request);
        if !asks.is_empty() {
            let approved = self.approve(&request, &asks).await?;
            let again = if approved { left } else { Some(left.unwrap_or(ASK_AGAIN).min(ASK_AGAIN)) };
            return Ok(again);
        }
        match plan::verdict(&request) {
            Verdict::Nothing => {}
            Verdict::Refuse(why) => self.fail(&request, why).await?,
            Verdict::Sign(asked) => self.sign(&request, &asked).await?,
        }
        Ok(left)
    }

    /// Approves a request whose sender has one of these permissions.
    async fn approve(&self, request: &CertificateSigningRequest, asks: &[Permission]) -> Result<bool> {
        for ask in asks {
            let review = self.reviews.create("", &review(request, ask.subresource)).await?;
            if !review.status.is_some_and(|status| status.allowed) {
                continue;
            }
            let approved = self.with_condition(request, "Approved", "AutoApproved", ask.message.to_owned());
            let name = meta::name(&request.metadata);
            let written =
                self.api.update_subresource::<_, CertificateSigningRequest>("", name, "approval", &approved);
            ignore_not_found(written.await)?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn fail(&self, request: &CertificateSigningRequest, why: String) -> Result<()> {
        let failed = self.with_condition(request, "Failed", "SignerValidationFailure", why);
        Ok(ignore_not_found(self.api.update_status("", meta::name(&request.metadata), &failed).await)?)
    }

    async fn sign(&self, request: &CertificateSigningRequest, asked: &skeg_api::csr::Request) -> Result<()> {
        let usages = request.spec.usages.as_deref().unwrap_or_default();
        let lasts = plan::duration(request.spec.expiration_seconds, self.longest);
        let certificate = self.signer.sign(asked, usages, lasts).map_err(Error::Signing)?;
        let mut signed = request.clone();
        status(&mut signed).certificate = Some(ByteString(certificate.into_bytes()));
        ignore_not_found(self.api.update_status("", meta::name(&request.metadata), &signed).await)?;
        tracing::info!(kind = "CertificateSigningRequest", name = meta::name(&request.metadata), "signed");
        Ok(())
    }

    fn with_condition(
        &self,
        request: &CertificateSigningRequest,
        kind: &str,
        reason: &str,
        message: String,
    ) -> CertificateSigningRequest {
        let now = Some(Time(self.clock.now_seconds()));
        let mut request = request.clone();
        status(&mut request).conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: now.clone(),
            last_transition_time: now,
        });
        request
    }
}

fn status(request: &mut CertificateSigningRequest) -> &mut CertificateSigningRequestStatus {
    request.status.get_or_insert_default()
}

/// Asks whether who sent the request may have it approved by itself.
fn review(request: &CertificateSigningRequest, subresource: &str) -> SubjectAccessReview {
    let spec = &request.spec;
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.to_owned()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    }
}
