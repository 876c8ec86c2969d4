//! A connection as h2 reads and writes it: with borrowed buffers, over operations that own theirs.
//!
//! What h2 writes in one turn of its task is put together and leaves in one system call at the turn's end, whichever
//! streams it belongs to. Buffers are used again while requests are under way, and given back when there are none.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::runtime::{Direction, Link, Op, Stream};

/// First buffer for what comes.
const READ_FIRST: usize = 16 * 1024;
/// Largest buffer: each that is filled is followed by one of twice its size.
const READ_MOST: usize = 64 * 1024;
/// Bytes read in one turn; after these the shard's other tasks have theirs.
const TURN: usize = 128 * 1024;
/// Bytes that wait to be sent; with more, h2 waits.
const OUT_MOST: usize = 64 * 1024;

/// Both directions of a connection. Clones are the same one: h2 has one, its task another.
pub struct Io<S: Stream>(Rc<RefCell<State<S>>>);

impl<S: Stream> Clone for Io<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct State<S: Stream> {
    link: Link<S>,
    /// Read, and not yet taken.
    incoming: BytesMut,
    /// Taken, and not yet sent.
    out: Vec<u8>,
    ready: Op<(), io::Result<()>>,
    read: Op<BytesMut, (io::Result<usize>, BytesMut)>,
    write: Op<Vec<u8>, (io::Result<()>, Vec<u8>)>,
    /// The last read filled its buffer.
    more: bool,
    /// Room for the next one.
    room: usize,
    ended: bool,
    broken: bool,
    /// Bytes that may still be read in this turn.
    allowance: usize,
    /// Reading was put off because nothing was left of it.
    put_off: bool,
}

impl<S: Stream> fmt::Debug for Io<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.borrow().link.fmt(f)
    }
}

impl<S: Stream> Io<S> {
    /// Over `link`, of which `early` was read before.
    pub fn new(link: Link<S>, early: BytesMut) -> Self {
        let (readies, reads, writes) = (link.clone(), link.clone(), link.clone());
        Self(Rc::new(RefCell::new(State {
            link,
            incoming: early,
            out: Vec::new(),
            ready: Op::new(move |()| readies.readable()),
            read: Op::new(move |buf| reads.read(buf)),
            write: Op::new(move |bytes: Vec<u8>| writes.write_all(bytes)),
            more: false,
            room: READ_FIRST,
            ended: false,
            broken: false,
            allowance: TURN,
            put_off: false,
        })))
    }

    /// Begins a turn: so much may be read again.
    pub fn begin_turn(&self) {
        self.0.borrow_mut().allowance = TURN;
    }

    /// Whether reading was put off to a later turn, for which nobody will be woken.
    pub fn take_put_off(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().put_off)
    }

    /// Ends a turn: sends what was written. Ready when all of it has gone.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }

    /// Whether the client does not take what is to be sent.
    pub fn is_blocked(&self) -> bool {
        self.0.borrow().write.is_pending()
    }

    /// Gives back memory that is not in use: nothing is expected soon.
    pub fn rest(&self) {
        let mut state = self.0.borrow_mut();
        if state.incoming.is_empty() {
            state.incoming = BytesMut::new();
            state.room = READ_FIRST;
        }
        if state.out.is_empty() {
            state.out = Vec::new();
        }
    }

    /// Appends a last word.
    pub fn say(&self, bytes: &[u8]) {
        self.0.borrow_mut().out.extend_from_slice(bytes);
    }

    /// Throws away what comes, up to `most` bytes; ready at the end or an error, too.
    pub fn poll_discard(&self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        loop {
            state.incoming.clear();
            state.allowance = TURN;
            match ready!(state.poll_fill(cx)) {
                Ok(true) if state.incoming.len() < *most => *most -= state.incoming.len(),
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<S: Stream> State<S> {
    /// Reads once. `Ok(false)` is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        if !self.read.is_pending() {
            if !self.more {
                if !self.ready.is_pending() {
                    self.ready.start(());
                }
                // An error shows again at the read.
                let _ = ready!(self.ready.poll(cx));
            }
            let mut buf = std::mem::take(&mut self.incoming);
            buf.clear();
            buf.reserve(self.room);
            self.read.start(buf);
        }
        let (result, buf) = ready!(self.read.poll(cx));
        let count = result?;
        self.more = buf.len() == buf.capacity();
        if self.more {
            self.room = (self.room * 2).min(READ_MOST);
        }
        self.ended = count == 0;
        self.incoming = buf;
        Poll::Ready(Ok(!self.ended))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.write.is_pending() {
                let (result, mut spent) = ready!(self.write.poll(cx));
                if let Err(error) = result {
                    return Poll::Ready(Err(self.broke(error)));
                }
                if self.out.capacity() == 0 {
                    spent.clear();
                    self.out = spent;
                }
            }
            if self.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // What a layer takes at once it need not have sent, so that is only for a connection itself.
            if let Link::Plain(socket) = &self.link {
                match socket.send_now(&self.out) {
                    Ok(count) if count >= self.out.len() => {
                        self.out.clear();
                        return Poll::Ready(Ok(()));
                    }
                    Ok(count) => drop(self.out.drain(..count)),
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Poll::Ready(Err(self.broke(error))),
                }
            }
            let out = std::mem::take(&mut self.out);
            self.write.start(out);
        }
    }

    fn broke(&mut self, error: io::Error) -> io::Error {
        self.broken = true;
        self.out = Vec::new();
        error
    }
}

/// Whether a later attempt may succeed.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl<S: Stream> AsyncRead for Io<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        if state.incoming.is_empty() {
            if state.allowance == 0 {
                state.put_off = true;
                return Poll::Pending;
            }
            if !ready!(state.poll_fill(cx))? {
                return Poll::Ready(Ok(()));
            }
            state.allowance = state.allowance.saturating_sub(state.incoming.len());
        }
        let count = buf.remaining().min(state.incoming.len());
        buf.put_slice(state.incoming.get(..count).unwrap_or_default());
        state.incoming.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Io<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.borrow_mut();
        if state.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.out.len() >= OUT_MOST {
            ready!(state.poll_send(cx))?;
        }
        state.out.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        if state.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // What is less goes at the end of the turn.
        if state.out.len() >= OUT_MOST { state.poll_send(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        ready!(state.poll_send(cx))?;
        state.link.shutdown(Direction::Write);
        Poll::Ready(Ok(()))
    }
}
