//! Sends many like requests in batches that double in size, so that a failure which would hit all
//! of them, such as a quota, hits few. Upstream counterpart: `slowStartBatch`.

use futures_util::future::join_all;

const FIRST_BATCH: usize = 1;

/// Calls `send` up to `count` times. After a batch with a failure there is no other: the first
/// failure comes back with the number of calls that succeeded.
pub(crate) async fn slow_start<E, Fut>(count: usize, send: impl Fn() -> Fut) -> (usize, Option<E>)
where
    Fut: Future<Output = Result<(), E>>,
{
    let (mut done, mut batch) = (0, FIRST_BATCH.min(count));
    while batch > 0 {
        let mut failure = None;
        for result in join_all((0..batch).map(|_| send())).await {
            match result {
                Ok(()) => done += 1,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if failure.is_some() {
            return (done, failure);
        }
        batch = (2 * batch).min(count - done);
    }
    (done, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn doubles_until_a_failure() {
        let sent = Cell::new(0);
        let send = |fail_at: usize| {
            let sent = &sent;
            move || async move {
                sent.set(sent.get() + 1);
                if sent.get() >= fail_at { Err(sent.get()) } else { Ok(()) }
            }
        };
        assert_eq!(slow_start(30, send(99)).await, (30, None));
        sent.set(0);
        assert_eq!(slow_start(30, send(1)).await, (0, Some(1)));
        sent.set(0);
        assert_eq!(slow_start(30, send(5)).await, (4, Some(5)));
        assert_eq!(sent.get(), 7, "1, 2 and 4, then no more");
    }
}
