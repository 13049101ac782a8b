//! A value that tasks wait on. Its waiters wake in the order in which they came, so that a
//! simulated run is repeatable; tokio's watch channel shuffles them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A value, and those who wait for what it becomes. Only its latest state can be seen.
#[derive(Debug, Default)]
pub struct Level<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Level<T> {
    pub fn new(value: T) -> Self {
        Level { value: Mutex::new(value), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the value; `look` must not touch this level.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock())
    }

    /// Changes the value and lets everyone who waits look again.
    pub fn modify(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Waits until `look` finds what it looks for.
    pub async fn find<R>(&self, mut look: impl FnMut(&T) -> Option<R>) -> R {
        loop {
            // Made before the look: no change after it is missed.
            let changed = self.changed.notified();
            if let Some(found) = self.read(&mut look) {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn waiters_wake_in_the_order_in_which_they_came() {
        let level = Arc::new(Level::new(0));
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..40)
            .map(|n| {
                let (level, order) = (level.clone(), order.clone());
                tokio::spawn(async move {
                    let found = level.find(|value| (*value > 1).then_some(*value)).await;
                    order.lock().unwrap().push(n);
                    found
                })
            })
            .collect();
        tokio::task::yield_now().await;
        level.modify(|value| *value = 1);
        tokio::task::yield_now().await;
        level.modify(|value| *value = 2);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), 2);
        }
        assert_eq!(*order.lock().unwrap(), (0..40).collect::<Vec<_>>());
        assert_eq!(level.find(|value| Some(*value)).await, 2);
    }
}
