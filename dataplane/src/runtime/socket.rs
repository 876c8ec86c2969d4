//! One TCP connection of a shard.
//!
//! A connection is read, written and watched at the same time by one task, so every operation takes `&self` and
//! gives back a future that owns what it needs. Rules that follow from the completion-based driver:
//!
//! * a read or write future that was polled once is either polled to its end or given up together with the
//!   connection; dropping it alone may lose bytes that the kernel has already moved;
//! * [`Socket::readable`] moves no bytes and may be dropped at any time;
//! * on io_uring nothing is tried by a plain system call first: what many connections do goes to the kernel together
//!   (tried first, reads and writes cost as much);
//! * a pending operation is ended from outside by [`Socket::shutdown`], never by dropping it.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::TcpStream;

use super::gather::{Gather, Pieces, Vectored};
use super::sys::{self, Direction, Peer};

/// A connected TCP stream, shared by the operations of one task.
#[derive(Clone)]
pub struct Socket {
    inner: Rc<UnsafeCell<TcpStream>>,
    fd: RawFd,
}

impl Socket {
    /// Registers a connected stream with this thread's runtime. The stream's blocking mode must be the one the
    /// driver expects (non-blocking for epoll, blocking for io_uring).
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<Self> {
        let stream = TcpStream::from_std(stream)?;
        let fd = stream.as_raw_fd();
        Ok(Self { inner: Rc::new(UnsafeCell::new(stream)), fd })
    }

    /// The descriptor, valid while this value lives.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Reads once and appends to `buf`, up to its spare capacity. `Ok(0)` is the end of the stream; a buffer
    /// without spare room is an error, so that it cannot be taken for an end.
    pub fn read(&self, buf: BytesMut) -> impl Future<Output = (io::Result<usize>, BytesMut)> + use<> {
        let this = self.clone();
        async move {
            let start = buf.len();
            if start == buf.capacity() {
                return (Err(io::Error::from(io::ErrorKind::InvalidInput)), buf);
            }
            let (result, slice) = {
                // SAFETY: see `stream`.
                let stream = unsafe { this.stream() };
                stream.read(buf.slice_mut(start..)).await
            };
            (result, slice.into_inner())
        }
    }

    /// Writes the bytes `from..to` of `buf` and gives the buffer back, so that it can be filled again.
    pub fn write_range<B: IoBuf>(
        &self,
        buf: B,
        from: usize,
        to: usize,
    ) -> impl Future<Output = (io::Result<()>, B)> + use<B> {
        let this = self.clone();
        async move {
            let (mut from, mut buf) = (from, buf);
            while from < to {
                let (result, slice) = {
                    // SAFETY: see `stream`.
                    let stream = unsafe { this.stream() };
                    stream.write(buf.slice(from..to)).await
                };
                buf = slice.into_inner();
                match result {
                    Ok(0) => return (Err(io::Error::from(io::ErrorKind::WriteZero)), buf),
                    Ok(count) => from += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return (Err(error), buf),
                }
            }
            (Ok(()), buf)
        }
    }

    /// Writes all of `buf` and gives it back.
    pub fn write_all<B: IoBuf>(&self, buf: B) -> impl Future<Output = (io::Result<()>, B)> + use<B> {
        let end = buf.bytes_init();
        self.write_range(buf, 0, end)
    }

    /// Sends what fits without waiting; the number of bytes that went out. For single bytes and last words.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        sys::send_now(self.fd, bytes)
    }

    /// Writes `first` and then `second`, in one system call where the socket takes both.
    pub fn write_both(&self, first: Bytes, second: Bytes) -> impl Future<Output = io::Result<()>> + use<> {
        self.write_vectored(Gather::new(first, second))
    }

    /// Writes all of `pieces` in their order, in one system call where the socket takes them.
    pub fn write_pieces(&self, pieces: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + use<> {
        self.write_vectored(Pieces::new(pieces))
    }

    fn write_vectored<V: Vectored + 'static>(&self, out: V) -> impl Future<Output = io::Result<()>> + use<V> {
        let this = self.clone();
        async move {
            let mut out = out;
            while !out.is_written() {
                let (result, back) = {
                    // SAFETY: see `stream`.
                    let stream = unsafe { this.stream() };
                    stream.writev(out).await
                };
                out = back;
                match result {
                    Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                    Ok(count) => out.advance(count),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        }
    }

    /// Completes when there is something to read, at the peer's FIN and at an error. Holds no buffer.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + use<> {
        let this = self.clone();
        async move {
            // SAFETY: see `stream`; only a shared reference is made.
            let stream = unsafe { &*this.inner.get() };
            stream.readable(false).await
        }
    }

    /// Completes when the socket takes bytes, and at an error.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + use<> {
        let this = self.clone();
        async move {
            // SAFETY: see `stream`; only a shared reference is made.
            let stream = unsafe { &*this.inner.get() };
            stream.writable(false).await
        }
    }

    /// What the kernel knows of the other end.
    pub fn peer(&self) -> Peer {
        sys::peer_state(self.fd)
    }

    /// Whether nothing has arrived and nothing was closed: a kept connection that is not quiet is not reused.
    pub fn is_quiet(&self) -> bool {
        sys::is_quiet(self.fd)
    }

    /// Whether bytes have arrived that nobody has read.
    pub fn has_unread(&self) -> bool {
        sys::has_unread(self.fd)
    }

    /// Ends directions; pending operations in them complete by themselves.
    pub fn shutdown(&self, direction: Direction) {
        sys::shutdown(self.fd, direction);
    }

    /// Turns the coming close into a reset.
    pub fn reset_on_close(&self) {
        sys::reset_on_close(self.fd);
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> io::Result<std::net::SocketAddr> {
        // SAFETY: see `stream`; only a shared reference is made.
        unsafe { &*self.inner.get() }.peer_addr()
    }

    /// Whether `TCP_NODELAY` is set.
    pub fn nodelay(&self) -> io::Result<bool> {
        // SAFETY: see `stream`; only a shared reference is made.
        unsafe { &*self.inner.get() }.nodelay()
    }

    /// A mutable reference for the start of an operation.
    ///
    /// # Safety
    /// The value never leaves its thread. monoio's read and write methods use the reference only to clone the
    /// shared descriptor while they build the operation; the operation then owns its descriptor and its buffer.
    /// This is the ground on which monoio's own `into_split` stands; here it is kept inside one module.
    #[expect(
        clippy::mut_from_ref,
        reason = "the cell is what makes concurrent operations on one socket possible"
    )]
    unsafe fn stream(&self) -> &mut TcpStream {
        // SAFETY: the caller follows the rule above.
        unsafe { &mut *self.inner.get() }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("fd", &self.fd).finish()
    }
}
