//! The scheduler's clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970 as of the scheduler's start, monotonic from there on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    wall_us: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        Self { start: Instant::now(), wall_us: u64::try_from(wall).unwrap_or(0) }
    }

    /// Names this start: two starts within one microsecond are not possible on one port. Never 0.
    pub(crate) fn epoch(&self) -> u64 {
        self.wall_us.max(1)
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.wall_us.saturating_add(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(0))
    }

    /// The instant at which the clock shows `at_us`; now when that has passed.
    pub(crate) fn instant(&self, at_us: u64) -> tokio::time::Instant {
        let since = std::time::Duration::from_micros(at_us.saturating_sub(self.wall_us));
        // A time beyond what an instant can hold is a time that never comes; a day later is looked at again.
        let at = self
            .start
            .checked_add(since)
            .unwrap_or_else(|| self.start + std::time::Duration::from_secs(86_400));
        at.into()
    }
}
