//! Microseconds for reports.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970 as of this process's first call, monotonic from there on: all agents of a process share
/// it, and a stepped wall clock does not move it.
pub(crate) fn now_us() -> u64 {
    static START: OnceLock<(Instant, u64)> = OnceLock::new();
    let (start, wall) = START.get_or_init(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        (Instant::now(), u64::try_from(wall).unwrap_or(0))
    });
    wall.saturating_add(u64::try_from(start.elapsed().as_micros()).unwrap_or(0))
}
