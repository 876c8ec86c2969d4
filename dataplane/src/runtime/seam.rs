//! What a shard asks of a runtime, as traits: chosen by type, so that the real one costs nothing.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use monoio::buf::IoBuf;

use super::{Direction, Peer};

/// A buffer that may be written: owned by the operation for as long as it lasts.
pub trait OutBuf: IoBuf + AsRef<[u8]> {}

impl<B: IoBuf + AsRef<[u8]>> OutBuf for B {}

/// A runtime with its sockets, timers, clock and tasks. The value only says how to connect; everything else belongs to
/// the calling thread.
pub trait Runtime: Copy + 'static {
    /// A connection.
    type Socket: Stream;
    /// A shard's listener.
    type Listener: Acceptor<Socket = Self::Socket>;

    /// Microseconds of the process's monotonic clock: one origin for every thread.
    fn now_us() -> u64;

    /// Waits. May be dropped at any time.
    fn sleep(duration: Duration) -> impl Future<Output = ()> + use<Self> + 'static;

    /// Starts a task on this thread.
    fn spawn(future: impl Future<Output = ()> + 'static);

    /// Connects within `timeout`. May be dropped at any time: the attempt is then abandoned.
    ///
    /// # Errors
    /// Refused, unreachable, out of descriptors or ports, or [`io::ErrorKind::TimedOut`].
    fn connect(
        self,
        addr: SocketAddr,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<Self::Socket>> + use<Self>;

    /// Connects to a Unix socket of this machine, which either takes the connection at once or refuses it.
    ///
    /// # Errors
    /// Nobody listens at `path`, or the runtime has no such sockets.
    fn connect_local(self, path: &str) -> io::Result<Self::Socket>;

    /// The first address of `host:port`; `None` when it has none. May be dropped at any time.
    fn resolve(name: &str) -> impl Future<Output = Option<SocketAddr>>;

    /// Runs `future` for at most `limit`; `None` when the time is over, and `future` is then dropped. Only for futures
    /// that may be dropped: readiness, timers, notifications. Reads and writes are ended by [`Stream::shutdown`]
    /// instead.
    fn within<F: Future>(limit: Duration, future: F) -> impl Future<Output = Option<F::Output>> {
        async move {
            let mut future = pin!(future);
            let mut timer = pin!(Self::sleep(limit));
            poll_fn(|cx| {
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Poll::Ready(Some(output));
                }
                timer.as_mut().poll(cx).map(|()| None)
            })
            .await
        }
    }
}

/// One connection. It is read, written and watched at the same time by one task, so every operation takes `&self` and
/// gives back a future that owns what it needs. The rules of [`Socket`](super::Socket) hold for every runtime.
pub trait Stream: Clone + fmt::Debug + 'static {
    /// Names the connection for [`Stream::shutdown_by`] while it lives.
    type Handle: Clone + fmt::Debug + 'static;

    /// See [`Stream::Handle`].
    fn handle(&self) -> Self::Handle;

    /// [`Stream::shutdown`] of a connection that its owner keeps alive.
    fn shutdown_by(handle: &Self::Handle, direction: Direction);

    /// Reads once and appends to `buf`, up to its spare capacity. `Ok(0)` is the end of the stream; a buffer without
    /// spare room is an error.
    fn read(
        &self,
        buf: BytesMut,
    ) -> impl Future<Output = (io::Result<usize>, BytesMut)> + use<Self> + 'static;

    /// Writes the bytes `from..to` of `buf` and gives the buffer back.
    fn write_range<B: OutBuf>(
        &self,
        buf: B,
        from: usize,
        to: usize,
    ) -> impl Future<Output = (io::Result<()>, B)> + use<Self, B>;

    /// Writes all of `buf` and gives it back.
    fn write_all<B: OutBuf>(&self, buf: B) -> impl Future<Output = (io::Result<()>, B)> + use<Self, B> {
        let end = buf.bytes_init();
        self.write_range(buf, 0, end)
    }

    /// Writes `first` and then `second`, together where the connection takes both.
    fn write_both(
        &self,
        first: Bytes,
        second: Bytes,
    ) -> impl Future<Output = io::Result<()>> + use<Self> + 'static;

    /// Writes all of `pieces` in their order, together where the connection takes them.
    fn write_pieces(&self, pieces: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + use<Self> + 'static;

    /// Sends what fits without waiting; the number of bytes that went out.
    ///
    /// # Errors
    /// Nothing fits, or the connection has ended.
    fn send_now(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Completes when there is something to read, at the peer's FIN and at an error. Holds no buffer. May be dropped at
    /// any time.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + use<Self> + 'static;

    /// What is known of the other end.
    fn peer(&self) -> Peer;

    /// Whether nothing has arrived and nothing was closed.
    fn is_quiet(&self) -> bool;

    /// Whether bytes have arrived that nobody has read.
    fn has_unread(&self) -> bool;

    /// Ends directions; pending operations in them complete by themselves.
    fn shutdown(&self, direction: Direction) {
        Self::shutdown_by(&self.handle(), direction);
    }

    /// Turns the coming close into a reset.
    fn reset_on_close(&self);
}

/// A shard's listener. Waiting is separate from taking a connection, so that waiting can be given up.
pub trait Acceptor: 'static {
    /// What is accepted.
    type Socket: Stream;

    /// Waits until a connection may be waiting. May be dropped at any time.
    fn ready(&self) -> impl Future<Output = io::Result<()>>;

    /// Takes one waiting connection, `None` when there is none.
    ///
    /// # Errors
    /// Among others: descriptors are exhausted.
    fn take(&self) -> io::Result<Option<Self::Socket>>;
}

/// The first of two futures to end; the other is dropped, so both must be droppable.
pub async fn either<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let mut a = pin!(a);
    let mut b = pin!(b);
    poll_fn(|cx| {
        if let Poll::Ready(output) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::First(output));
        }
        b.as_mut().poll(cx).map(Either::Second)
    })
    .await
}

/// Which of two futures ended.
#[derive(Debug)]
pub enum Either<A, B> {
    /// The first.
    First(A),
    /// The second.
    Second(B),
}
