//! Mutating and validating webhooks: configured by objects, asked over HTTPS. Whatever a webhook does,
//! it costs the writes it is asked about no more than its timeout, and other requests nothing.
//! Upstream counterpart: `k8s.io/apiserver/pkg/admission/plugin/webhook`.

mod hook;
mod review;

use super::expressions::{CONDITIONS_BUDGET, Input, Match, Scope};
use super::matching::{Subject, Version};
use super::versions::{Objects, objects, shown, take_over};
use super::{Admission, Plugin, ready};
use crate::auth::authz::Union;
use crate::proxy::Dialer;
use crate::reader::Reader;
use crate::resources;
use crate::server::ApiServer;
use futures_util::future::{BoxFuture, join_all};
use hook::Hook;
use parking_lot::RwLock;
use review::{Verdict, review, verdict};
use serde_json::Value;
use skeg_api::{Gvr, Kind, Reason, Status, meta, patch};
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// Writes that wait for webhooks at once. The rest of those that the server takes at a time is left
/// to writes about which no webhook is asked.
const WAITING_MAX: usize = 150;

/// Objects that say which webhooks there are are not shown to any: nobody could repair a bad one.
const EXEMPT: &str = "admissionregistration.k8s.io";

/// What both plugins share.
pub struct Shared {
    dialer: Option<Arc<dyn Dialer>>,
    authorizer: Arc<Union>,
    waiting: Semaphore,
}

impl Shared {
    /// Without a dialer this host's own connections are used.
    pub fn new(dialer: Option<Arc<dyn Dialer>>, authorizer: Arc<Union>) -> Arc<Self> {
        Arc::new(Shared { dialer, authorizer, waiting: Semaphore::new(WAITING_MAX) })
    }
}

/// The webhooks of one kind of configuration, compiled anew when one changes.
struct Webhooks {
    reader: Arc<dyn Reader>,
    gvr: Gvr,
    changes: watch::Receiver<u64>,
    /// As of which count of changes.
    compiled: RwLock<(u64, Arc<Vec<Arc<Hook>>>)>,
    shared: Arc<Shared>,
}

/// A webhook and in which version it is asked.
type Asked = (Arc<Hook>, Version);

/// Why a webhook lets a write not pass.
enum Failure {
    /// It could not be asked, or answered nonsense: its policy decides.
    Call(String),
    Status(Status),
}

impl Failure {
    /// The refusal, unless the failure is let pass.
    fn refusal(self, hook: &Hook, a: &Admission<'_>) -> Option<Status> {
        match self {
            Failure::Status(status) => Some(status),
            Failure::Call(why) => {
                let why = format!("failed calling webhook {:?}: {why}", hook.name);
                tracing::warn!(webhook = hook.name, fails_open = hook.ignores_failure, "{why}");
                if hook.ignores_failure {
                    a.audit("failed-open.webhook.admission.k8s.io", &hook.name);
                    return None;
                }
                Some(Status::internal(why))
            }
        }
    }
}

impl Webhooks {
    fn new(reader: Arc<dyn Reader>, gvr: Gvr, shared: Arc<Shared>) -> Self {
        let changes = reader.changes(&gvr);
        // No counter is there yet: the first write compiles.
        Webhooks { reader, gvr, changes, compiled: RwLock::new((u64::MAX, Arc::default())), shared }
    }

    fn current(&self) -> Arc<Vec<Arc<Hook>>> {
        let version = *self.changes.borrow();
        {
            let compiled = self.compiled.read();
            if compiled.0 == version {
                return compiled.1.clone();
            }
        }
        let mut compiled = self.compiled.write();
        // In the order of the configurations' names.
        let found = self.reader.list(&self.gvr, "");
        let mut found: Vec<Value> =
            found.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
        found.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
        let dialer = self.shared.dialer.as_ref();
        let hooks =
            found.iter().flat_map(|configuration| Hook::of(configuration, &compiled.1, dialer)).collect();
        *compiled = (version, Arc::new(hooks));
        compiled.1.clone()
    }

    /// The webhooks that are asked about a write.
    fn asked(&self, a: &Admission<'_>) -> Result<Vec<Asked>, Status> {
        let (hooks, Some(server)) = (self.current(), a.server) else { return Ok(Vec::new()) };
        if hooks.is_empty() || &*a.kind.gvk.group == EXEMPT {
            return Ok(Vec::new());
        }
        let (mut asked, subject) = (Vec::new(), Subject::new(a, server));
        for hook in hooks.iter() {
            asked.extend(hook.matching.matches(&subject)?.map(|version| (hook.clone(), version)));
        }
        Ok(asked)
    }

    /// A place among those who wait for webhooks.
    fn place(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.shared.waiting.try_acquire().map_err(|_| {
            Status::too_many_requests(
                "too many requests wait for admission webhooks, please try again later",
                1,
            )
        })
    }

    /// Whether a webhook's conditions let it be asked about a write as it is now.
    async fn is_wanted(&self, a: &Admission<'_>, hook: &Hook, row: &Kind) -> Result<bool, Status> {
        let Some(server) = a.server.filter(|_| !hook.conditions.is_empty()) else { return Ok(true) };
        let objects = objects(server, a, row).await?;
        let input = Input::new(a, server, &self.shared.authorizer, row, objects);
        let scope = Scope::new(&input, None, &[], CONDITIONS_BUDGET).without_namespace();
        match hook.conditions.look(&scope) {
            Match::Yes => Ok(true),
            Match::No => Ok(false),
            Match::Error(why) if hook.ignores_failure => {
                tracing::debug!(webhook = hook.name, why, "not asked: its conditions fail");
                Ok(false)
            }
            Match::Error(why) => Err(a.forbid(why)),
        }
    }

    async fn mutate(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        let Some(server) = a.server else { return Ok(()) };
        let asked = self.asked(a)?;
        if asked.is_empty() {
            return Ok(());
        }
        let mut place = None;
        let is_again = a.reinvocation.is_again;
        a.reinvocation.webhooks.begin(is_again, a.object.as_deref());
        for (hook, version) in asked {
            let row = version.as_deref().unwrap_or(a.kind);
            if is_again && !a.reinvocation.webhooks.is_due(&hook.uid)
                || !self.is_wanted(a, &hook, row).await?
            {
                continue;
            }
            if place.is_none() {
                place = Some(self.place()?);
            }
            let changed = match change(server, a, &hook, row).await {
                Ok(changed) => changed,
                Err(failure) => match failure.refusal(&hook, a) {
                    Some(status) => return Err(status),
                    None => false,
                },
            };
            if changed {
                a.reinvocation.webhooks.changed();
                a.reinvocation.wanted = true;
            }
            if hook.reinvokes {
                a.reinvocation.webhooks.interested(hook.uid.clone());
            }
        }
        a.reinvocation.webhooks.end(a.object.as_deref());
        Ok(())
    }

    async fn validate(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        let Some(server) = a.server else { return Ok(()) };
        let mut asked = Vec::new();
        for (hook, version) in self.asked(a)? {
            if self.is_wanted(a, &hook, version.as_deref().unwrap_or(a.kind)).await? {
                asked.push((hook, version));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let _place = self.place()?;
        let calls =
            asked.iter().map(|(hook, row)| call(server, a, hook, row.as_deref().unwrap_or(a.kind), false));
        let verdicts = join_all(calls).await;
        let mut refused = None;
        for ((hook, _), result) in asked.iter().zip(verdicts) {
            let status = match result {
                Ok(verdict) => tell(a, verdict).refused,
                Err(failure) => failure.refusal(hook, a),
            };
            refused = refused.or(status);
        }
        refused.map_or(Ok(()), Err)
    }
}

/// Passes on what a webhook tells beside its decision.
fn tell(a: &mut Admission<'_>, mut verdict: Verdict) -> Verdict {
    a.warnings.append(&mut verdict.warnings);
    for (key, value) in &verdict.annotations {
        a.audit(key, value);
    }
    verdict
}

/// Asks one webhook.
async fn call(
    server: &Arc<ApiServer>,
    a: &Admission<'_>,
    hook: &Hook,
    row: &Kind,
    mutating: bool,
) -> Result<Verdict, Failure> {
    if a.dry_run && !hook.is_safe_in_dry_runs {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Status(Status::new(400, Reason::BadRequest, why)));
    }
    let client = hook.client.as_ref().as_ref();
    let client = client.map_err(|why| Failure::Call(format!("could not get REST client: {why}")))?;
    let uid = server.seams().random.uuid();
    let Objects { object, old } = objects(server, a, row).await.map_err(Failure::Status)?;
    let body = review(a, (hook, row), &uid, object.as_deref(), old.as_deref());
    let answer = client.post(server, body, hook.seconds).await;
    let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
    verdict(hook, &uid, &answer, mutating).map_err(Failure::Call)
}

/// Asks a mutating webhook and does what it says. Returns whether the object changed.
async fn change(
    server: &Arc<ApiServer>,
    a: &mut Admission<'_>,
    hook: &Hook,
    row: &Kind,
) -> Result<bool, Failure> {
    let verdict = call(server, a, hook, row, true).await?;
    let verdict = tell(a, verdict);
    if let Some(status) = verdict.refused {
        return Err(Failure::Status(status));
    }
    let Some(document) = verdict.patch else { return Ok(false) };
    // Once a webhook has answered, what it wants is done or the write fails, whatever its policy.
    let document: Value =
        serde_json::from_slice(&document).map_err(|error| Failure::Status(Status::internal(error)))?;
    if document.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    let Some(object) = a.object.as_deref() else {
        return Err(Failure::Status(Status::internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        ))));
    };
    let mut patched = shown(server, a, row, object).await.map_err(Failure::Status)?.into_owned();
    patch::json_patch(&mut patched, &document)
        .map_err(|status| Failure::Status(Status::internal(status.message)))?;
    take_over(server, a, row, patched).await.map_err(Failure::Status)
}

pub struct MutatingAdmissionWebhook(Webhooks);

impl MutatingAdmissionWebhook {
    pub fn new(reader: Arc<dyn Reader>, shared: Arc<Shared>) -> Self {
        MutatingAdmissionWebhook(Webhooks::new(reader, resources::MUTATING_WEBHOOKS.clone(), shared))
    }
}

impl Plugin for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        if self.0.current().is_empty() { ready(Ok(())) } else { Box::pin(self.0.mutate(request)) }
    }
}

pub struct ValidatingAdmissionWebhook(Webhooks);

impl ValidatingAdmissionWebhook {
    pub fn new(reader: Arc<dyn Reader>, shared: Arc<Shared>) -> Self {
        ValidatingAdmissionWebhook(Webhooks::new(reader, resources::VALIDATING_WEBHOOKS.clone(), shared))
    }
}

impl Plugin for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        if self.0.current().is_empty() { ready(Ok(())) } else { Box::pin(self.0.validate(request)) }
    }
}
