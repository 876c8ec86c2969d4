//! A connection on glommio.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;

use crate::runtime::gather::{Gather, Pieces, Vectored};
use crate::runtime::seam::{OutBuf, Stream};
use crate::runtime::sys::{self, Direction, Peer};

/// Bytes that one read moves at most.
const READ: usize = 64 << 10;

thread_local! {
    /// Where glommio reads to: it wants initialised memory, which the spare room of a buffer is not, and clearing that
    /// for each read would cost more than copying what came.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Gives `fd` to glommio.
pub fn adopt(fd: OwnedFd) -> TcpStream {
    // SAFETY: the descriptor is owned and given away; what kind of stream socket it is makes no difference to the
    // calls that are made on it.
    unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) }
}

/// A connected stream, shared by the operations of one task: glommio keeps one waker for each direction.
#[derive(Clone)]
pub struct GlommioSocket {
    inner: Rc<Inner>,
}

struct Inner {
    stream: RefCell<TcpStream>,
    fd: RawFd,
    /// The error (of the system) that ended a wait for bytes: the kernel tells it once, and it is the reader's.
    failed: Cell<Option<i32>>,
}

impl GlommioSocket {
    /// Registers a stream, whatever its blocking mode, with this thread's runtime.
    pub fn new(fd: OwnedFd) -> Self {
        let raw = fd.as_raw_fd();
        let stream = RefCell::new(adopt(fd));
        Self { inner: Rc::new(Inner { stream, fd: raw, failed: Cell::new(None) }) }
    }

    /// Whether `TCP_NODELAY` is set.
    ///
    /// # Errors
    /// The system's.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.inner.stream.borrow().nodelay().map_err(io::Error::from)
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.inner.stream.borrow_mut()).poll_read(cx, buf)
    }

    /// Sends what fits; waits until something does.
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.inner.stream.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_append(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        if let Some(code) = self.inner.failed.take() {
            return Poll::Ready(Err(io::Error::from_raw_os_error(code)));
        }
        let room = (buf.capacity() - buf.len()).min(READ);
        SCRATCH.with_borrow_mut(|scratch| {
            let scratch = &mut scratch[..room];
            self.poll_read(cx, scratch).map_ok(|count| {
                buf.extend_from_slice(&scratch[..count]);
                count
            })
        })
    }

    /// Writes all of `out`, in one system call where the socket takes it.
    async fn write_vectored(&self, mut out: impl Vectored) -> io::Result<()> {
        while !out.is_written() {
            let sent = match sys::send_vectored(self.inner.fd, &out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll_fn(|cx| self.poll_write(cx, out.first())).await
                }
                sent => sent,
            };
            match sent {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => out.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Stream for GlommioSocket {
    type Handle = RawFd;

    fn handle(&self) -> RawFd {
        self.inner.fd
    }

    fn shutdown_by(fd: &RawFd, direction: Direction) {
        sys::shutdown(*fd, direction);
    }

    fn read(&self, buf: BytesMut) -> impl Future<Output = (io::Result<usize>, BytesMut)> + use<> + 'static {
        let this = self.clone();
        async move {
            let mut buf = buf;
            if buf.len() == buf.capacity() {
                return (Err(io::Error::from(io::ErrorKind::InvalidInput)), buf);
            }
            let result = poll_fn(|cx| this.poll_append(cx, &mut buf)).await;
            (result, buf)
        }
    }

    fn write_range<B: OutBuf>(
        &self,
        buf: B,
        from: usize,
        to: usize,
    ) -> impl Future<Output = (io::Result<()>, B)> + use<B> {
        let this = self.clone();
        async move {
            let mut from = from;
            while from < to {
                let Some(rest) = buf.as_ref().get(from..to) else {
                    return (Err(io::Error::from(io::ErrorKind::InvalidInput)), buf);
                };
                match poll_fn(|cx| this.poll_write(cx, rest)).await {
                    Ok(0) => return (Err(io::Error::from(io::ErrorKind::WriteZero)), buf),
                    Ok(count) => from += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return (Err(error), buf),
                }
            }
            (Ok(()), buf)
        }
    }

    fn write_both(
        &self,
        first: Bytes,
        second: Bytes,
    ) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let this = self.clone();
        async move { this.write_vectored(Gather::new(first, second)).await }
    }

    fn write_pieces(&self, pieces: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let this = self.clone();
        async move { this.write_vectored(Pieces::new(pieces)).await }
    }

    fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        sys::send_now(self.inner.fd, bytes)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        let this = self.clone();
        async move {
            // A read of no bytes waits until there are some, and takes none of them; but an error it takes.
            let result = poll_fn(|cx| {
                if this.inner.failed.get().is_some() {
                    Poll::Ready(Ok(0))
                } else {
                    this.poll_read(cx, &mut [])
                }
            })
            .await;
            if let Err(error) = result {
                this.inner.failed.set(Some(error.raw_os_error().unwrap_or(libc::EIO)));
            }
            Ok(())
        }
    }

    fn peer(&self) -> Peer {
        if self.inner.failed.get().is_some() { Peer::Gone } else { sys::peer_state(self.inner.fd) }
    }

    fn is_quiet(&self) -> bool {
        self.inner.failed.get().is_none() && sys::is_quiet(self.inner.fd)
    }

    fn has_unread(&self) -> bool {
        sys::has_unread(self.inner.fd)
    }

    fn reset_on_close(&self) {
        sys::reset_on_close(self.inner.fd);
    }
}

impl std::fmt::Debug for GlommioSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GlommioSocket").field("fd", &self.inner.fd).finish()
    }
}
