//! The running watches of one engine.

use crate::{Change, Revision, WatchItem};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Batches a watch may lag behind before it is cut. The reader then resumes from its revision.
pub(crate) const WATCH_BACKLOG_MAX: usize = 4096;

struct Subscriber {
    prefix: String,
    sender: mpsc::Sender<WatchItem>,
}

#[derive(Default)]
pub(crate) struct Hub(Vec<Subscriber>);

impl Hub {
    pub fn add(&mut self, prefix: &str, sender: mpsc::Sender<WatchItem>) {
        self.0.push(Subscriber { prefix: prefix.to_owned(), sender });
    }

    /// Hands one batch, in revision order, to every watch. A watch that cannot take it is cut:
    /// its channel closes after what it already holds.
    pub fn publish(&mut self, changes: &Arc<[Change]>, newest: Revision) {
        self.0.retain(|subscriber| {
            let matches = |change: &&Change| change.key.starts_with(&subscriber.prefix);
            let item = if changes.iter().all(|change| matches(&change)) {
                WatchItem::Changes(changes.clone())
            } else {
                let matching: Arc<[Change]> = changes.iter().filter(matches).cloned().collect();
                if matching.is_empty() { WatchItem::Progress(newest) } else { WatchItem::Changes(matching) }
            };
            // A batch that ends with other keys: who waits for its last revision is told so.
            let behind = match &item {
                WatchItem::Changes(sent) => sent.last().is_some_and(|change| change.revision < newest),
                _ => false,
            };
            match subscriber.sender.try_send(item) {
                Ok(()) => {
                    if behind {
                        let _ = subscriber.sender.try_send(WatchItem::Progress(newest));
                    }
                    true
                }
                // Progress is only a hint: a full channel may miss it.
                Err(mpsc::error::TrySendError::Full(WatchItem::Progress(_))) => true,
                Err(_) => false,
            }
        });
    }
}
