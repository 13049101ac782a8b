//! Leases: a node's heartbeat and the election of one leader among several.
//! Upstream counterparts: `k8s.io/component-helpers/apimachinery/lease`,
//! `k8s.io/client-go/tools/leaderelection`.

use crate::api::Api;
use crate::error::{Error, Result};
use crate::transport::Client;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use skeg_base::{Backoff, Clock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Waits between tries to renew a heartbeat.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// Renews one lease for ever: a sign of life.
pub struct LeaseKeeper {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    pub holder: String,
    /// Others may think the holder dead when the lease is older than this. It is renewed four
    /// times as often.
    pub duration: Duration,
    /// Who owns the lease, so that it goes with it; `None` leaves it alone.
    pub owner: Option<OwnerReference>,
    pub clock: Clock,
}

impl LeaseKeeper {
    /// Renews until `cancel` is cancelled.
    pub async fn run(&self, cancel: &CancellationToken) {
        let api = self.client.api::<Lease>();
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut known = None;
        loop {
            let attempt = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                attempt = self.renew(&api, known.take()) => attempt,
            };
            let wait = match attempt {
                Ok(lease) => {
                    known = Some(lease);
                    backoff.reset();
                    self.duration / 4
                }
                // Somebody else wrote it: read it again at once, the first time.
                Err(error) if error.is_conflict() && backoff.failures() == 0 => {
                    backoff.next();
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::debug!(lease = self.name, %error, "heartbeat failed");
                    backoff.next()
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn renew(&self, api: &Api<Lease>, known: Option<Lease>) -> Result<Lease> {
        let found = match known {
            Some(lease) => Some(lease),
            None => api.get_opt(&self.namespace, &self.name).await?,
        };
        let exists = found.is_some();
        let mut lease = found.unwrap_or_else(|| empty(&self.namespace, &self.name));
        if let Some(owner) = &self.owner {
            lease.metadata.owner_references = Some(vec![owner.clone()]);
        }
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.holder.clone());
        spec.lease_duration_seconds = Some(self.duration.as_secs() as i32);
        spec.renew_time = Some(MicroTime(self.clock.now()));
        if exists {
            api.update(&self.namespace, &self.name, &lease).await
        } else {
            api.create(&self.namespace, &lease).await
        }
    }
}

fn empty(namespace: &str, name: &str) -> Lease {
    Lease {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..Default::default()
        },
        spec: None,
    }
}

/// Takes part in the election of a leader. Times of other holders are never compared with the
/// own clock: a lease is dead when it did not change for its duration, as observed here.
pub struct Elector {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    pub identity: String,
    pub clock: Clock,
    pub duration: Duration,
    /// A leader that cannot renew for this long stops leading; shorter than `duration`.
    pub renew_deadline: Duration,
    pub retry: Duration,
}

/// What was last seen of the lease, and since when it has been so.
struct Observed {
    lease: Lease,
    since: Instant,
}

impl Elector {
    /// With upstream's times: 15 s, 10 s, 2 s.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, clock: Clock) -> Self {
        Elector {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            clock,
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }

    /// Waits to become the leader, calls `lead`, and gives the lease back when `lead` or `cancel`
    /// ends. The token given to `lead` is cancelled when leadership is lost; true if it was.
    pub async fn run<F, Fut>(&self, cancel: &CancellationToken, lead: F) -> bool
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        let api = self.client.api::<Lease>();
        let mut observed = None;
        while !self.attempt(&api, &mut observed).await {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return false,
                () = tokio::time::sleep(self.retry) => {}
            }
        }
        let leading = cancel.child_token();
        let lost = {
            let work = lead(leading.clone());
            tokio::pin!(work);
            tokio::select! {
                biased;
                () = &mut work => false,
                lost = self.keep(&api, &mut observed, cancel) => {
                    leading.cancel();
                    work.await;
                    lost
                }
            }
        };
        if !lost && let Some(observed) = observed {
            self.release(&api, observed.lease).await;
        }
        lost
    }

    /// Renews until leadership is lost (true) or `cancel` (false).
    async fn keep(
        &self,
        api: &Api<Lease>,
        observed: &mut Option<Observed>,
        cancel: &CancellationToken,
    ) -> bool {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return false,
                () = tokio::time::sleep(self.retry) => {}
            }
            let deadline = renewed + self.renew_deadline;
            match tokio::time::timeout_at(deadline, self.attempt(api, observed)).await {
                Ok(true) => renewed = Instant::now(),
                _ if Instant::now() >= deadline => return true,
                _ => {}
            }
        }
    }

    /// One try to take or renew the lease; true when this one holds it.
    async fn attempt(&self, api: &Api<Lease>, observed: &mut Option<Observed>) -> bool {
        match self.try_take(api, observed).await {
            Ok(held) => held,
            Err(error) => {
                tracing::debug!(lease = self.name, %error, "election");
                false
            }
        }
    }

    async fn try_take(&self, api: &Api<Lease>, observed: &mut Option<Observed>) -> Result<bool> {
        let Some(mut lease) = api.get_opt(&self.namespace, &self.name).await? else {
            let mut lease = empty(&self.namespace, &self.name);
            self.take(lease.spec.get_or_insert_default(), true);
            let lease = api.create(&self.namespace, &lease).await?;
            *observed = Some(Observed { lease, since: Instant::now() });
            return Ok(true);
        };
        let now = Instant::now();
        let since = match observed {
            Some(known) if known.lease.spec == lease.spec => known.since,
            _ => now,
        };
        *observed = Some(Observed { lease: lease.clone(), since });
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let mine = holder == self.identity;
        let duration = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0) as u64);
        if !holder.is_empty() && !mine && now < since + duration {
            return Ok(false);
        }
        self.take(spec, !mine);
        let lease = match api.update(&self.namespace, &self.name, &lease).await {
            Err(Error::Api(status)) if status.is_conflict() => return Ok(false),
            other => other?,
        };
        *observed = Some(Observed { lease, since: now });
        Ok(true)
    }

    fn take(&self, spec: &mut LeaseSpec, transition: bool) {
        let now = MicroTime(self.clock.now());
        if transition {
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |n| n.saturating_add(1)));
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(self.duration.as_secs() as i32);
        spec.renew_time = Some(now);
    }

    /// Lets the next one lead without waiting for the lease to run out.
    async fn release(&self, api: &Api<Lease>, mut lease: Lease) {
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        let _ = tokio::time::timeout(self.retry, api.update(&self.namespace, &self.name, &lease)).await;
    }
}
