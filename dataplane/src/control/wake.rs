//! The bell's and the timer's descriptors on the control thread's reactor. One of the modules that may use `unsafe`.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::runtime::{Bell, sys};

/// Waits for the bell.
pub(super) struct BellWait(AsyncFd<OwnedFd>);

impl BellWait {
    /// Registers the bell with the current runtime, by a descriptor of its own.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn new(bell: &Bell) -> io::Result<Self> {
        let fd = bell.as_fd().try_clone_to_owned()?;
        register(fd).map(Self)
    }

    /// Returns when the bell was rung. May be dropped at any time; the bell is emptied by `Bell::disarm`.
    pub async fn rung(&self) {
        match self.0.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The reactor is shutting down; so is everything that could ring.
            Err(_) => std::future::pending().await,
        }
    }
}

/// A timer that is exact to some ten microseconds; tokio's own counts in milliseconds, which is as long as a
/// reservation may take to reach the other gateways.
pub(super) struct Timer {
    timer: AsyncFd<OwnedFd>,
    /// The time for which it is set; 0 when it has run out. Most sleeps end early and are for the same time again,
    /// which then costs no system call.
    set_for_us: Cell<u64>,
}

impl Timer {
    /// Registers a timer with the current runtime.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn new() -> io::Result<Self> {
        Ok(Self { timer: register(sys::timerfd()?)?, set_for_us: Cell::new(0) })
    }

    /// Returns at `due_us`. May be dropped at any time.
    pub async fn run_out(&self, due_us: u64, now_us: u64) {
        if due_us <= now_us {
            return;
        }
        if self.set_for_us.get() != due_us {
            let after = Duration::from_micros(due_us - now_us);
            if sys::timerfd_set(self.timer.get_ref(), after).is_err() {
                // Cannot happen with a time within range; the other timer is only less exact.
                return tokio::time::sleep(after).await;
            }
            self.set_for_us.set(due_us);
        }
        loop {
            let Ok(mut guard) = self.timer.readable().await else { return std::future::pending().await };
            // What became readable may be the expiry of an earlier setting, which is forgotten by now.
            if guard.try_io(|timer| sys::timerfd_expired(timer.get_ref())).is_ok() {
                self.set_for_us.set(0);
                return;
            }
        }
    }
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the registration owns the descriptor, which therefore stays open and the same for as long as the
    // registration lives; an `OwnedFd` always names the same descriptor.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}
