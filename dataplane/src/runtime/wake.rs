//! Wakes across threads: anything to a shard, a shard to the control thread.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

use super::sys;

/// Wakes one task of a shard from any thread. Notifications do not add up: one wait takes all that came before.
///
/// Not on the request path (drain, news of the fleet), hence the plain lock around the waker.
#[derive(Debug, Default)]
pub struct Notify {
    raised: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Notify {
    /// Raises the notification and wakes the waiting task.
    pub fn notify(&self) {
        self.raised.store(true, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits for a notification and takes it. One task only. May be dropped at any time.
    pub async fn notified(&self) {
        poll_fn(|cx| {
            if self.raised.swap(false, Ordering::SeqCst) {
                return Poll::Ready(());
            }
            *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            // A notification between the check and the registration has found no waker to wake.
            if self.raised.swap(false, Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Wakes the control thread, and costs one atomic swap when that thread is awake anyway.
///
/// The sleeper calls [`arm`](Self::arm), looks at its queues once more, waits until the descriptor is readable and
/// calls [`disarm`](Self::disarm).
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
    asleep: AtomicBool,
    /// Rings where the sleeper is a task of a simulated process.
    #[cfg(feature = "sim")]
    rung: Notify,
}

impl Bell {
    /// A bell with its event descriptor.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            fd: sys::eventfd()?,
            asleep: AtomicBool::new(false),
            #[cfg(feature = "sim")]
            rung: Notify::default(),
        })
    }

    /// Wakes the sleeper if there is one.
    pub fn ring(&self) {
        // The swap is a full barrier: either this thread sees the sleeper, or the sleeper sees what was queued.
        if self.asleep.swap(false, Ordering::SeqCst) {
            sys::eventfd_ring(&self.fd);
            #[cfg(feature = "sim")]
            self.rung.notify();
        }
    }

    /// Waits until the bell was rung while armed, without its descriptor. May be dropped at any time.
    #[cfg(feature = "sim")]
    pub async fn rung(&self) {
        self.rung.notified().await;
    }

    /// Says that the caller is about to sleep. The queues must be looked at again afterwards.
    pub fn arm(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Says that the caller is awake and empties the descriptor.
    pub fn disarm(&self) {
        // Nobody has rung: there is nothing in the descriptor. A ring whose write is still under way costs one wake
        // more.
        if !self.asleep.swap(false, Ordering::SeqCst) {
            sys::eventfd_drain(&self.fd);
        }
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
