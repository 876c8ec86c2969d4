//! Timers and clocks.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::Duration;

use super::sys;

/// Microseconds of the process's monotonic clock: one origin for every thread, so that shards and the control
/// thread may compare their readings.
pub fn now_us() -> u64 {
    static ORIGIN: OnceLock<u64> = OnceLock::new();
    // An hour ahead of zero, so that "some time ago" can be computed at start without saturating.
    const START: u64 = 3_600_000_000;
    let now = sys::monotonic_us();
    START + now.saturating_sub(*ORIGIN.get_or_init(|| now))
}

/// Waits; resolution one millisecond.
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// Runs `future` for at most `limit`; `None` when the time is over, and `future` is then dropped. Only for futures
/// that may be dropped: readiness, timers, notifications. Reads and writes are ended by
/// [`Socket::shutdown`](super::Socket::shutdown) instead.
pub async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = pin!(monoio::time::sleep(limit));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}
