//! Streams of server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>): what has happened
//! lately, then what happens, until the reader leaves or the host stops.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, unfold};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// A comment this often, so that a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What can be sent.
pub(super) trait Sendable: Serialize + Send + Sync + 'static {
    /// The name of the event.
    fn name(&self) -> &str;
    /// Its number, if it has one.
    fn number(&self) -> Option<u64>;
}

/// `before`, then everything from `live` that `wanted` lets through.
pub(super) fn stream<T: Sendable>(
    before: Vec<Arc<T>>,
    live: Receiver<Arc<T>>,
    wanted: impl Fn(&T) -> bool + Send + Sync + 'static,
    (stop, place): (CancellationToken, OwnedSemaphorePermit),
) -> BoxStream<'static, Bytes> {
    let wanted = Arc::new(wanted);
    // So that the reader knows that it is connected.
    let first = VecDeque::from_iter([Bytes::from_static(b": connected\n\n")]);
    let queued = before.iter().fold(first, |mut queue, item| {
        queue.push_back(event(item.as_ref()));
        queue
    });
    // Of its own, so that what isn't wanted doesn't put it off.
    let mut alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    unfold((queued, live, alive), move |(mut queued, mut live, mut alive)| {
        // Given back with the stream.
        let _place = &place;
        let (stop, wanted) = (stop.clone(), Arc::clone(&wanted));
        async move {
            if let Some(bytes) = queued.pop_front() {
                return Some((bytes, (queued, live, alive)));
            }
            loop {
                let bytes = tokio::select! {
                    () = stop.cancelled() => return None,
                    _ = alive.tick() => Bytes::from_static(b": still here\n\n"),
                    received = live.recv() => match received {
                        Ok(item) if wanted(&item) => event(item.as_ref()),
                        Ok(_) => continue,
                        Err(RecvError::Lagged(n)) => Bytes::from(format!(": {n} were left out, because this reader is too slow\n\n")),
                        Err(RecvError::Closed) => return None,
                    },
                };
                return Some((bytes, (queued, live, alive)));
            }
        }
    })
    .boxed()
}

/// JSON has no line ends of its own, so one `data` line is enough.
fn event<T: Sendable>(item: &T) -> Bytes {
    let mut text = format!("event: {}\n", item.name());
    if let Some(number) = item.number() {
        text += &format!("id: {number}\n");
    }
    // Serialising strings and numbers into memory can't fail.
    text += &format!("data: {}\n\n", serde_json::to_string(item).unwrap_or_default());
    Bytes::from(text)
}
