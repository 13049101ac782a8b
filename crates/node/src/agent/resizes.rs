//! Room for Pods that ask for other sizes than they have, given to one after the other.
//! Upstream counterpart: `pkg/kubelet/allocation/allocation_manager.go`.

use super::Agent;
use crate::machine::resize;
use crate::worker::Worker;
use crate::{admit, machine};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use skeg_client::Change;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often a resize is tried that waits for room, where nothing tells of any: upstream's interval.
const RESIZE_RETRY: Duration = Duration::from_secs(180);

impl Agent {
    /// Who waits for room may have it now.
    pub(super) fn room_changed(&self) {
        if self.waiting.load(Ordering::Acquire) {
            self.resize.notify_one();
        }
    }

    /// Gives Pods the sizes they ask for, one after the other, as far as there is room.
    fn try_resizes(&self) {
        let _turn = self.admission.lock();
        let Some(node) = self.nodes.get("", &self.ctx.config.name) else {
            return self.waiting.store(true, Ordering::Release);
        };
        let counted = |w: &Arc<Worker>| !w.is_gone() && !w.memory().is_over() && admit::counts(&w.pod());
        let workers: Vec<Arc<Worker>> = self.workers().into_iter().filter(counted).collect();
        let mut allocated: Vec<Arc<Pod>> = workers.iter().map(|w| w.allocated_pod()).collect();
        let mut asking = Vec::new();
        for (i, worker) in workers.iter().enumerate() {
            if worker.resizes() && !machine::is_deleting(&worker.pod()) {
                asking.push((i, worker.pod(), worker.pending()));
            } else {
                worker.set_pending(None);
            }
        }
        asking.sort_by_cached_key(|(i, desired, pending)| {
            let pending = pending.as_ref();
            resize::order(&resize::Asking { desired, allocated: &allocated[*i], pending })
        });
        let mut waiting = false;
        for (i, desired, pending) in asking {
            let others = allocated.iter().enumerate().filter(|(other, _)| *other != i);
            match admit::resize(&desired, &node, others.map(|(_, pod)| pod)) {
                Ok(()) => {
                    workers[i].allocate(&desired);
                    allocated[i] = desired;
                }
                Err((reason, message)) => {
                    waiting |= reason == admit::DEFERRED;
                    let since = pending.filter(|p| p.reason == reason).map(|p| p.since);
                    let since = since.unwrap_or_else(|| self.ctx.clock.now());
                    let generation = desired.metadata.generation;
                    workers[i].set_pending(Some(resize::Pending { reason, message, generation, since }));
                }
            }
        }
        self.waiting.store(waiting, Ordering::Release);
    }

    pub(super) async fn follow_resizes(self: Arc<Self>, cancel: CancellationToken) {
        let weak = Arc::downgrade(&self);
        self.nodes.subscribe(move |change: Change<'_, NodeObject>| {
            if let Some(agent) = weak.upgrade().filter(|agent| *change.key().name == *agent.ctx.config.name) {
                agent.room_changed();
            }
        });
        // Before all Pods are known, there only seems to be room.
        tokio::select! {
            () = cancel.cancelled() => return,
            () = async { tokio::join!(self.nodes.synced(), self.ctx.pods.synced()); } => {}
        }
        loop {
            let waits = self.waiting.load(Ordering::Acquire);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.resize.notified() => {}
                () = tokio::time::sleep(RESIZE_RETRY), if waits => {}
            }
            self.try_resizes();
        }
    }
}
