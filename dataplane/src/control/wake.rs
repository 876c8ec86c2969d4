//! The bell's descriptor on the control thread's reactor. One of the modules that may use `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::runtime::Bell;

/// Waits for the bell.
pub(super) struct BellWait(AsyncFd<OwnedFd>);

impl BellWait {
    /// Registers the bell with the current runtime, by a descriptor of its own.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn new(bell: &Bell) -> io::Result<Self> {
        let fd = bell.as_fd().try_clone_to_owned()?;
        // SAFETY: the registration owns the descriptor, which therefore stays open and the same for as long as the
        // registration lives; an `OwnedFd` always names the same descriptor.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(registered.map_err(|error| error.into_parts().1)?))
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
