//! What all writes share: admission, allocation, validation, field tracking, and the store.

use super::{Context, Part, WriteOptions, Writing};
use crate::admission::{self, Admission, Operation, Options, Phase};
use crate::cache::{Entry, Selectable};
use crate::convert;
use crate::hooks::Reservation;
use crate::record::{self, Body, RecordError};
use crate::request::RequestInfo;
use crate::stats;
use skeg_api::field::FieldError;
use skeg_api::fieldset::{self, Tracking};
use skeg_api::{Status, Value, meta};
use skeg_store::{Error, Expect, Revision, Write};
use std::sync::Arc;

/// An object out of a request.
pub struct Decoded {
    pub value: Value,
    /// Type errors of a custom resource, told with its other validation errors.
    pub invalid: Vec<FieldError>,
    /// It is the result of an apply, with its managedFields.
    pub is_applied: bool,
}

/// Why a record was not written.
pub enum Unstored {
    /// Another writer was first; the cache shows its write by now.
    Raced,
    /// Whether it was written cannot be told.
    Unknown(Status),
    Status(Status),
}

/// What allocators hold for a write; given back unless the write happened.
#[derive(Default)]
pub struct Reservations(Vec<Box<dyn Reservation>>);

impl Reservations {
    pub fn stored(mut self) {
        self.0.drain(..).for_each(|reservation| reservation.finish(true));
    }

    /// After a write that nobody can tell of, what it was to hold may be held: it stays taken, and
    /// what it was to free too, until the next start finds out.
    pub fn unknown(mut self) {
        self.0.drain(..).for_each(std::mem::forget);
    }
}

impl Drop for Reservations {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|reservation| reservation.finish(false));
    }
}

impl<'a> Context<'a> {
    pub(super) fn invalid(&self, name: &str, errors: &[FieldError]) -> Result<(), Status> {
        let gvk = &self.served.kind.gvk;
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&gvk.group, &gvk.kind, name, errors)) }
    }

    pub(super) fn modified(&self, name: &str) -> Status {
        Status::modified(&self.served.kind.gvk.group, &self.served.kind.plural, name)
    }

    pub(super) fn conflict(&self, name: &str, why: String) -> Status {
        Status::conflict(&self.served.kind.gvk.group, &self.served.kind.plural, name, why)
    }

    /// A write that makes an object which does not exist is a create, and must be allowed as one.
    pub(super) fn may_create(&self) -> Result<(), Status> {
        self.server.authorize(self.identity, &RequestInfo { verb: "create", ..self.info.clone() })
    }

    /// Who writes what.
    pub(super) fn tracking<'t>(
        &'t self,
        options: &'t WriteOptions,
        part: Part,
        api_version: &'t str,
    ) -> Tracking<'t> {
        let kind = &self.served.kind;
        Tracking {
            manager: &options.manager,
            api_version,
            subresource: &self.info.subresource,
            now: self.server.clock().now_seconds(),
            ignored: match part {
                Part::Status | Part::Approval => kind.strategy.status_resets,
                Part::Main if kind.has_status() => &["status"],
                _ => &[],
            },
        }
    }

    /// An entry in the version of the request.
    pub(super) async fn decode(&self, entry: &Entry) -> Result<Value, Status> {
        self.shown(entry.value()).await
    }

    /// A stored object in the version of the request.
    pub(super) async fn shown(&self, mut value: Value) -> Result<Value, Status> {
        let served = self.served;
        convert::read(self.server, &served.kind, &served.stored, std::slice::from_mut(&mut value)).await?;
        Ok(value)
    }

    /// Stored objects in the version of the request.
    pub(super) async fn shown_all(&self, entries: &[Arc<Entry>]) -> Result<Vec<Value>, Status> {
        let served = self.served;
        let mut objects: Vec<Value> = entries.iter().map(|entry| entry.value()).collect();
        stats::add(&self.server.stats.translations_total, objects.len() as u64);
        convert::read(self.server, &served.kind, &served.stored, &mut objects).await?;
        Ok(objects)
    }

    /// A record as it is stored.
    pub(super) fn recorded(&self, body: &Body, revision: u64) -> Result<Value, Status> {
        let mut value: Value = serde_json::from_slice(&body.json).map_err(Status::internal)?;
        meta::set_resource_version(&mut value, &revision.to_string());
        Ok(value)
    }

    /// What a write answered with, in the version of the request.
    pub(super) async fn written(&self, body: &Body, revision: u64) -> Result<Value, Status> {
        self.shown(self.recorded(body, revision)?).await
    }

    /// Writes an object, given in the version of the request, and waits until reads show it.
    /// `object` loses its resourceVersion.
    pub(super) async fn store(
        &self,
        key: &Arc<str>,
        expect: Expect,
        object: &mut Value,
    ) -> Result<(Body, u64), Unstored> {
        meta::remove(object, "resourceVersion");
        let mut converted;
        let object = if self.served.native {
            &*object
        } else {
            converted = object.clone();
            convert::write(self.server, &self.served.kind, &self.served.stored, &mut converted).await?;
            &converted
        };
        let stored = &self.served.stored;
        let fail = |error: &dyn std::fmt::Display| Unstored::Status(Status::internal(error));
        let record = record::encode(&stored.gvk.version, object).map_err(|e| match e {
            RecordError::Deep => Unstored::Status(Status::bad_request(e.to_string())),
            _ => fail(&e),
        })?;
        stats::add(&self.server.stats.encodes_total, 1);
        let body = record::decode(&record).map_err(|e| fail(&e))?;
        let cache = &self.server.cache;
        cache.expect(key, &record, Selectable::of(stored, object));
        let write = Write { key: key.clone(), expect, value: Some(record.clone()), ttl: stored.strategy.ttl };
        match cache.store().write(write).await {
            Ok(written) => {
                cache.wait(written.revision.0).await;
                Ok((body, written.revision.0))
            }
            Err(error) => {
                cache.unexpect(key, &record);
                Err(self.unstored(error).await)
            }
        }
    }

    /// Deletes a record; with `exact` only if it is still the one of `entry`.
    pub(super) async fn remove(&self, entry: &Entry, exact: bool) -> Result<u64, Unstored> {
        let expect = if exact { Expect::Modified(Revision(entry.revision)) } else { Expect::Present };
        let write = Write { key: entry.key().clone(), expect, value: None, ttl: None };
        match self.server.cache.store().write(write).await {
            Ok(written) => {
                self.server.cache.wait(written.revision.0).await;
                for allocator in &self.server.hooks().allocators {
                    // Only built-in kinds hold what is allocated.
                    let mut last = entry.value();
                    convert::from_storage(&self.served.kind, &self.served.stored, &mut last);
                    allocator.deleted(&self.served.kind, &last);
                }
                Ok(written.revision.0)
            }
            Err(error) => Err(self.unstored(error).await),
        }
    }

    async fn unstored(&self, error: Error) -> Unstored {
        match error {
            Error::Conflict { current } => {
                // What won the race must be seen by the next read, or a client could read its
                // refusal first and the older state afterwards.
                let seen = current.map_or(0, |current| current.modified.0);
                self.server.cache.wait(seen.max(self.server.cache.store().revision().0)).await;
                Unstored::Raced
            }
            Error::TooLarge { .. } => Unstored::Status(Status::too_large(format!(
                "Request entity too large: limit is {}",
                skeg_store::VALUE_MAX_BYTES
            ))),
            Error::OutcomeUnknown(_) => Unstored::Unknown(Status::timeout(error.to_string())),
            Error::Closed => Unstored::Status(Status::unavailable("the API server is shutting down")),
            error => Unstored::Status(Status::internal(error)),
        }
    }
}

impl Writing<'_> {
    /// Lets the plugins change or refuse a write.
    pub(super) async fn admit(
        &mut self,
        phase: Phase,
        operation: Operation,
        object: Option<&mut Value>,
        old: Option<&Value>,
        name: &str,
    ) -> Result<(), Status> {
        let ctx = self.ctx;
        let mut write = Admission {
            operation,
            kind: &ctx.served.kind,
            subresource: &ctx.info.subresource,
            namespace: &ctx.info.namespace,
            name,
            identity: ctx.identity,
            object,
            old,
            dry_run: self.options.dry_run,
            options: match operation {
                Operation::Delete => Options::Delete(&self.delete),
                _ => Options::Write(&self.options),
            },
            warnings: &mut self.warnings,
            reservations: &mut self.charges.0,
            server: Some(ctx.server),
            reinvocation: Default::default(),
        };
        admission::run(&ctx.server.hooks().admission, phase, &mut write).await
    }

    /// The write happened: what admission reserved is used.
    pub(super) fn charged(&mut self) {
        std::mem::take(&mut self.charges).stored();
    }

    pub(super) async fn allocate(
        &self,
        operation: Operation,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservations, Status> {
        let mut reservations = Reservations::default();
        for allocator in &self.ctx.server.hooks().allocators {
            let begun =
                allocator.begin(operation, &self.ctx.served.kind, new, old, self.options.dry_run).await?;
            reservations.0.extend(begun);
        }
        Ok(reservations)
    }

    /// The one stage that records who set which field. It comes before admission, so that nobody
    /// owns what that adds.
    pub(super) fn track(&self, old: Option<&Value>, new: &mut Value, part: Part) {
        let kind = &self.ctx.served.kind;
        let api_version = kind.gvk.api_version();
        let tracking = self.ctx.tracking(&self.options, part, &api_version);
        fieldset::track(old, new, &tracking, kind.schema.root());
    }
}
