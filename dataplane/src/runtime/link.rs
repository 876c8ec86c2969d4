//! What a shard reads and writes: a connection of the runtime itself, or a stream that another protocol makes of one.
//!
//! The plain one costs a branch at each operation and nothing else. What is layered above a connection (TLS, a stream
//! of HTTP/2) is a [`Layer`]: it is asked by polling, so no operation of it needs memory of its own, and it keeps
//! whatever is under way below, so that an operation of a layered link may be dropped where one of a plain link may
//! not.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use pin_project_lite::pin_project;

use super::seam::{OutBuf, Stream};
use super::{Direction, Peer};

/// Pieces of a write that are put together before a layer gets them, bytes: one record or frame instead of several.
const JOINED: usize = 16 * 1024;

/// A stream above a connection. All of it belongs to one thread.
///
/// Rules, beside those of [`Stream`]:
///
/// * one task reads, writes and watches at a time, so one waker is enough for all that is pending; when another task
///   goes on with a link, it polls anew;
/// * bytes that [`poll_write`](Self::poll_write) has taken are the layer's: it sends them, whoever polls it next;
/// * [`shutdown`](Self::shutdown) may be called while anything is pending, also from another task and from within a
///   sweep of the deadlines: it wakes what it ends, and calls nothing of the shard's.
pub trait Layer: fmt::Debug {
    /// Appends to `buf`, up to its spare capacity (which is not zero). `Ok(0)` is the end that the peer has made
    /// properly; where its protocol tells a cut from an end, a cut is [`io::ErrorKind::UnexpectedEof`].
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>>;

    /// Takes some of `bytes`, one at least unless they are empty; what it may hold is bounded.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Ready when all that was taken has been handed on.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when a read would not wait: there are bytes, an end, or an error. What the layer's protocol does for itself
    /// below does not count.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// See [`Stream::send_now`]. What the layer has taken it need not have sent.
    fn send_now(&self, bytes: &[u8]) -> io::Result<usize>;

    /// See [`Stream::peer`].
    fn peer(&self) -> Peer;

    /// See [`Stream::is_quiet`].
    fn is_quiet(&self) -> bool;

    /// See [`Stream::has_unread`].
    fn has_unread(&self) -> bool;

    /// See [`Stream::shutdown`].
    fn shutdown(&self, direction: Direction);

    /// See [`Stream::reset_on_close`].
    fn reset_on_close(&self);
}

/// A connection as a shard's code sees it.
#[derive(Clone)]
pub enum Link<S: Stream> {
    /// The runtime's own.
    Plain(S),
    /// Something above one.
    Layered(Rc<dyn Layer>),
}

impl<S: Stream> fmt::Debug for Link<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(socket) => socket.fmt(f),
            Self::Layered(layer) => layer.fmt(f),
        }
    }
}

/// See [`Stream::Handle`].
pub enum LinkHandle<S: Stream> {
    /// Of a plain link.
    Plain(S::Handle),
    /// Of a layered one; what has gone is not shut down.
    Layered(Weak<dyn Layer>),
}

impl<S: Stream> Clone for LinkHandle<S> {
    fn clone(&self) -> Self {
        match self {
            Self::Plain(handle) => Self::Plain(handle.clone()),
            Self::Layered(layer) => Self::Layered(layer.clone()),
        }
    }
}

impl<S: Stream> fmt::Debug for LinkHandle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(handle) => handle.fmt(f),
            Self::Layered(_) => f.write_str("Layered"),
        }
    }
}

impl<S: Stream> Stream for Link<S> {
    type Handle = LinkHandle<S>;

    fn handle(&self) -> LinkHandle<S> {
        match self {
            Self::Plain(socket) => LinkHandle::Plain(socket.handle()),
            Self::Layered(layer) => LinkHandle::Layered(Rc::downgrade(layer)),
        }
    }

    fn shutdown_by(handle: &LinkHandle<S>, direction: Direction) {
        match handle {
            LinkHandle::Plain(handle) => S::shutdown_by(handle, direction),
            LinkHandle::Layered(layer) => {
                if let Some(layer) = layer.upgrade() {
                    layer.shutdown(direction);
                }
            }
        }
    }

    fn read(&self, buf: BytesMut) -> impl Future<Output = (io::Result<usize>, BytesMut)> + use<S> + 'static {
        match self {
            Self::Plain(socket) => Operation::Plain { operation: socket.read(buf) },
            Self::Layered(layer) => Operation::Layered { operation: Read { layer: layer.clone(), buf } },
        }
    }

    fn write_range<B: OutBuf>(
        &self,
        buf: B,
        from: usize,
        to: usize,
    ) -> impl Future<Output = (io::Result<()>, B)> + use<S, B> {
        match self {
            Self::Plain(socket) => Operation::Plain { operation: socket.write_range(buf, from, to) },
            Self::Layered(layer) => {
                Operation::Layered { operation: Write { layer: layer.clone(), buf: Some(buf), from, to } }
            }
        }
    }

    fn write_both(
        &self,
        first: Bytes,
        second: Bytes,
    ) -> impl Future<Output = io::Result<()>> + use<S> + 'static {
        match self {
            Self::Plain(socket) => Operation::Plain { operation: socket.write_both(first, second) },
            Self::Layered(layer) => {
                Operation::Layered { operation: WritePieces::new(layer, vec![first, second]) }
            }
        }
    }

    fn write_pieces(&self, pieces: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + use<S> + 'static {
        match self {
            Self::Plain(socket) => Operation::Plain { operation: socket.write_pieces(pieces) },
            Self::Layered(layer) => Operation::Layered { operation: WritePieces::new(layer, pieces) },
        }
    }

    fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.send_now(bytes),
            Self::Layered(layer) => layer.send_now(bytes),
        }
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + use<S> + 'static {
        match self {
            Self::Plain(socket) => Operation::Plain { operation: socket.readable() },
            Self::Layered(layer) => Operation::Layered { operation: Readable { layer: layer.clone() } },
        }
    }

    fn peer(&self) -> Peer {
        match self {
            Self::Plain(socket) => socket.peer(),
            Self::Layered(layer) => layer.peer(),
        }
    }

    fn is_quiet(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_quiet(),
            Self::Layered(layer) => layer.is_quiet(),
        }
    }

    fn has_unread(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.has_unread(),
            Self::Layered(layer) => layer.has_unread(),
        }
    }

    fn shutdown(&self, direction: Direction) {
        match self {
            Self::Plain(socket) => socket.shutdown(direction),
            Self::Layered(layer) => layer.shutdown(direction),
        }
    }

    fn reset_on_close(&self) {
        match self {
            Self::Plain(socket) => socket.reset_on_close(),
            Self::Layered(layer) => layer.reset_on_close(),
        }
    }
}

pin_project! {
    /// An operation of either kind of link.
    #[project = OperationProject]
    enum Operation<P, L> {
        Plain { #[pin] operation: P },
        Layered { operation: L },
    }
}

impl<P: Future, L: Future<Output = P::Output> + Unpin> Future for Operation<P, L> {
    type Output = P::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<P::Output> {
        match self.project() {
            OperationProject::Plain { operation } => operation.poll(cx),
            OperationProject::Layered { operation } => Pin::new(operation).poll(cx),
        }
    }
}

struct Read {
    layer: Rc<dyn Layer>,
    buf: BytesMut,
}

impl Future for Read {
    type Output = (io::Result<usize>, BytesMut);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { layer, buf } = &mut *self;
        let result = if buf.len() == buf.capacity() {
            // As for a socket: it could be taken for an end.
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        } else {
            ready!(layer.poll_read(cx, buf))
        };
        Poll::Ready((result, std::mem::take(buf)))
    }
}

struct Write<B> {
    layer: Rc<dyn Layer>,
    buf: Option<B>,
    from: usize,
    to: usize,
}

/// The buffer is never pinned.
impl<B> Unpin for Write<B> {}

impl<B: OutBuf> Future for Write<B> {
    type Output = (io::Result<()>, B);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { layer, buf, from, to } = &mut *self;
        let Some(bytes) = buf.as_ref() else { return Poll::Pending };
        let bytes = bytes.as_ref().get(..*to).unwrap_or_default();
        let result = ready!(poll_write_all(&**layer, cx, bytes, from));
        match buf.take() {
            Some(buf) => Poll::Ready((result, buf)),
            None => Poll::Pending,
        }
    }
}

struct WritePieces {
    layer: Rc<dyn Layer>,
    pieces: Vec<Bytes>,
    /// Pieces that were taken, and bytes of the next one.
    taken: (usize, usize),
}

impl WritePieces {
    fn new(layer: &Rc<dyn Layer>, mut pieces: Vec<Bytes>) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        if pieces.len() > 1 && pieces.iter().map(Bytes::len).sum::<usize>() <= JOINED {
            pieces = vec![pieces.concat().into()];
        }
        Self { layer: layer.clone(), pieces, taken: (0, 0) }
    }
}

impl Future for WritePieces {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { layer, pieces, taken: (piece, from) } = &mut *self;
        while let Some(bytes) = pieces.get_mut(*piece) {
            while *from < bytes.len() {
                *from += ready!(layer.poll_write(cx, bytes.get(*from..).unwrap_or_default()))?;
            }
            *bytes = Bytes::new();
            (*piece, *from) = (*piece + 1, 0);
        }
        layer.poll_flush(cx)
    }
}

fn poll_write_all(
    layer: &dyn Layer,
    cx: &mut Context<'_>,
    bytes: &[u8],
    from: &mut usize,
) -> Poll<io::Result<()>> {
    while *from < bytes.len() {
        *from += ready!(layer.poll_write(cx, bytes.get(*from..).unwrap_or_default()))?;
    }
    layer.poll_flush(cx)
}

struct Readable {
    layer: Rc<dyn Layer>,
}

impl Future for Readable {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.layer.poll_readable(cx)
    }
}
