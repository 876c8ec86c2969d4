//! A shard's listener on glommio.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::Poll;

use futures_io::AsyncRead;
use glommio::net::TcpStream;

use super::socket::{GlommioSocket, adopt};
use crate::runtime::seam::Acceptor;
use crate::runtime::sys;

/// A listener that is waited for without taking a connection. glommio's own accept is an operation of the ring: given up,
/// it may have taken a connection that nobody serves.
pub struct GlommioListener {
    inner: TcpListener,
    /// The wait under way. glommio asks the ring about a stream's readiness as soon as it has one, and does not look at
    /// the stream before the answer: so a second descriptor of the listener in a stream's clothes is a wait for it.
    waiting: RefCell<Option<TcpStream>>,
}

impl GlommioListener {
    /// Registers the listener with this thread's runtime.
    ///
    /// # Errors
    /// Its blocking mode cannot be set.
    pub fn from_std(inner: TcpListener) -> io::Result<Self> {
        inner.set_nonblocking(true)?;
        Ok(Self { inner, waiting: RefCell::new(None) })
    }
}

impl Acceptor for GlommioListener {
    type Socket = GlommioSocket;

    async fn ready(&self) -> io::Result<()> {
        if self.waiting.borrow().is_none() {
            let second = adopt(self.inner.try_clone()?.into());
            self.waiting.replace(Some(second));
        }
        poll_fn(|cx| {
            let mut waiting = self.waiting.borrow_mut();
            let Some(stream) = waiting.as_mut() else { return Poll::Ready(()) };
            let Poll::Ready(_) = Pin::new(stream).poll_read(cx, &mut []) else { return Poll::Pending };
            // The read that follows readiness fails, as a listener has no bytes. Each wait takes a stream of its own.
            *waiting = None;
            Poll::Ready(())
        })
        .await;
        Ok(())
    }

    fn take(&self) -> io::Result<Option<GlommioSocket>> {
        let accepted = sys::accept(self.inner.as_raw_fd(), true)?;
        Ok(accepted.map(|stream| GlommioSocket::new(stream.into())))
    }
}

impl Drop for GlommioListener {
    /// Ends listening at once: the ring may hold the wait's descriptor for a while.
    fn drop(&mut self) {
        sys::shutdown(self.inner.as_raw_fd(), sys::Direction::Read);
    }
}
