//! A TLS session over a connection, as a [`Layer`].
//!
//! The layer owns whatever is under way below it, so its own operations may be dropped. It holds no buffer while nothing
//! comes: what waits for the peer waits for readiness first, and what was read or encrypted gives its memory back as
//! soon as it has been passed on.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;

use super::session::{Session, Side, Sink};
use crate::runtime::{Direction, Layer, Op, Peer, Stream};

/// Least room for a read, bytes.
const READ_LEAST: usize = 4 * 1024;
/// Room for a read that is not told how much is wanted.
const READ_FIRST: usize = 16 * 1024 + 512;
/// Most room for a read.
const READ_MOST: usize = 64 * 1024 + 512;
/// Bytes encrypted in one go; those before must have gone.
const WRITE_MOST: usize = 64 * 1024;
/// Unfinished records and messages of the handshake that are kept; a peer that needs more is cut off.
const INCOMING_MOST: usize = 128 * 1024;
/// Reads in a row whose records hold nothing for whoever reads. Tickets and the like are few; a peer that goes on with
/// empty records would hold the shard.
const FRUITLESS_MOST: u32 = 64;
/// Bytes in front of a record's fragment.
const HEADER: usize = 5;
/// The first byte of a handshake record.
const HANDSHAKE: u8 = 0x16;

/// Why a handshake failed.
#[derive(Debug)]
pub enum Failure {
    /// The connection ended or broke.
    Io(io::Error),
    /// The other side's fault, or ours in its eyes.
    Tls(rustls::Error),
    /// What came looks like HTTP without TLS.
    Plaintext,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::Plaintext => f.write_str("the peer does not speak TLS"),
        }
    }
}

impl Failure {
    /// Fixed name for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Io(_) => "closed",
            Self::Plaintext => "not_tls",
            Self::Tls(error) => match error {
                rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                    "certificate"
                }
                rustls::Error::AlertReceived(_) => "alert",
                rustls::Error::PeerIncompatible(_) => "incompatible",
                _ => "protocol",
            },
        }
    }
}

/// How the peer's direction has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By a notice: nothing is missing.
    Clean,
    /// Without one: something may be.
    Cut,
    /// By an error.
    Broken(io::ErrorKind),
}

/// A connection with TLS on it.
pub struct Tls<S: Stream, C: Side> {
    socket: S,
    state: RefCell<State<S, C>>,
}

struct State<S: Stream, C: Side> {
    socket: S,
    session: Session<C>,
    /// Records that have not been worked off: none, or the beginning of one.
    incoming: BytesMut,
    /// Records that are to be sent.
    out: Vec<u8>,
    read: Op<BytesMut, (io::Result<usize>, BytesMut)>,
    write: Op<Vec<u8>, (io::Result<()>, Vec<u8>)>,
    ready: Op<(), io::Result<()>>,
    ended: Option<End>,
    /// Reads with whole records since something came.
    fruitless: u32,
    /// Nothing more can be sent.
    deaf: bool,
    /// The notice was encrypted, or must not be.
    closing: bool,
    /// A FIN is to follow what is in `out`.
    fin: bool,
}

impl<S: Stream, C: Side> Tls<S, C> {
    /// TLS over `socket`, of which `early` was read before.
    pub fn new(socket: S, side: C, early: BytesMut) -> Self {
        let (reads, writes, readies) = (socket.clone(), socket.clone(), socket.clone());
        let state = State {
            socket: socket.clone(),
            session: Session::new(side),
            incoming: early,
            out: Vec::new(),
            read: Op::new(move |buf| reads.read(buf)),
            write: Op::new(move |bytes: Vec<u8>| writes.write_all(bytes)),
            ready: Op::new(move |()| readies.readable()),
            ended: None,
            fruitless: 0,
            deaf: false,
            closing: false,
            fin: false,
        };
        Self { socket, state: RefCell::new(state) }
    }

    /// Shakes hands.
    pub async fn handshake(&self) -> Result<(), Failure> {
        std::future::poll_fn(|cx| self.state.borrow_mut().poll_handshake(cx)).await
    }

    /// Whether the session goes on from an earlier one.
    pub fn is_resumed(&self) -> bool {
        self.state.borrow().session.is_resumed()
    }

    /// Whether both sides want this protocol.
    pub fn speaks(&self, protocol: &[u8]) -> bool {
        self.state.borrow().session.alpn() == Some(protocol)
    }
}

impl<S: Stream, C: Side> State<S, C> {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if let Some(first) = self.incoming.first()
                && *first != HANDSHAKE
                && first.is_ascii_uppercase()
            {
                return Poll::Ready(Err(Failure::Plaintext));
            }
            if let Err(error) = self.session.advance(&mut self.incoming, &mut self.out, &mut Sink::Leave) {
                // The alert fits any socket buffer.
                self.send_out_now();
                self.broken();
                return Poll::Ready(Err(Failure::Tls(error)));
            }
            if self.incoming.is_empty() {
                self.incoming = BytesMut::new();
            }
            ready!(self.poll_out(cx)).map_err(Failure::Io)?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_fill(cx, READ_LEAST, self.incoming.is_empty())).map_err(Failure::Io)? == 0 {
                return Poll::Ready(Err(Failure::Io(io::Error::from(io::ErrorKind::UnexpectedEof))));
            }
        }
    }

    /// The session is of no use any more.
    fn broken(&mut self) {
        self.ended = Some(End::Broken(io::ErrorKind::InvalidData));
        (self.deaf, self.closing) = (true, true);
    }

    /// Reads once, after the connection has become readable where the wait may be long.
    fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize, patient: bool) -> Poll<io::Result<usize>> {
        if !self.read.is_pending() {
            if patient || self.ready.is_pending() {
                if !self.ready.is_pending() {
                    self.ready.start(());
                }
                // An error shows again at the read.
                let _ = ready!(self.ready.poll(cx));
            }
            if self.incoming.len() > INCOMING_MOST {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::InvalidData)));
            }
            let buf = if self.holds_message() {
                // The session remembers places in it.
                BytesMut::new()
            } else {
                std::mem::take(&mut self.incoming)
            };
            let mut buf = buf;
            let missing = record_len(&buf).map_or(0, |whole| whole.saturating_sub(buf.len()));
            buf.reserve(room.clamp(READ_LEAST, READ_MOST).saturating_sub(buf.len()).max(missing).max(HEADER));
            self.read.start(buf);
        }
        let (result, buf) = ready!(self.read.poll(cx));
        if self.incoming.is_empty() {
            self.incoming = buf;
        } else {
            self.incoming.extend_from_slice(&buf);
        }
        Poll::Ready(result)
    }

    /// Whether the session has not done with a whole record: it waits for the rest of a message.
    fn holds_message(&self) -> bool {
        record_len(&self.incoming).is_some_and(|whole| whole <= self.incoming.len())
    }

    /// Makes progress until something can be read; with a `sink` for it, until something was. `Ok(false)` is the end.
    fn poll_plain(&mut self, cx: &mut Context<'_>, sink: &mut Sink<'_>) -> Poll<io::Result<bool>> {
        loop {
            let busy = self.read.is_pending() || self.ready.is_pending();
            if let Some(end) = self.ended
                && (busy || !self.session.has_plain())
            {
                return Poll::Ready(match end {
                    End::Clean => Ok(false),
                    End::Cut => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    End::Broken(kind) => Err(io::Error::from(kind)),
                });
            }
            let mut progress = false;
            if !busy {
                let before = self.incoming.len();
                match self.session.advance(&mut self.incoming, &mut self.out, sink) {
                    Ok(readable) => progress = readable,
                    Err(error) => {
                        tracing::debug!(%error, "a TLS connection broke");
                        self.send_out_now();
                        self.broken();
                        continue;
                    }
                }
                self.fruitless = match progress {
                    true => 0,
                    false => self.fruitless + u32::from(self.incoming.len() < before),
                };
                if self.incoming.is_empty() {
                    self.incoming = BytesMut::new();
                }
                if self.fruitless > FRUITLESS_MOST {
                    self.broken();
                }
                if self.session.closed && self.ended.is_none() {
                    self.ended = Some(End::Clean);
                }
            }
            // Replies to the peer's messages, and what was left behind, leave in passing; an error shows at a write.
            if !self.out.is_empty() || self.write.is_pending() || self.fin {
                let _ = self.poll_out(cx);
            }
            if progress {
                return Poll::Ready(Ok(true));
            }
            if self.ended.is_some() {
                continue;
            }
            let (room, patient) = match sink {
                Sink::Into(buf) => (buf.capacity() - buf.len() + HEADER + 64, false),
                _ => (READ_FIRST, self.incoming.is_empty()),
            };
            match ready!(self.poll_fill(cx, room, patient)) {
                Ok(0) => self.ended = Some(End::Cut),
                Ok(_) => {}
                Err(error) => self.ended = Some(End::Broken(error.kind())),
            }
        }
    }

    /// Sends what is to be sent.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.write.is_pending() {
                let (result, _) = ready!(self.write.poll(cx));
                if let Err(error) = result {
                    self.deaf = true;
                    self.out = Vec::new();
                    return Poll::Ready(Err(error));
                }
            } else if self.out.is_empty() {
                if std::mem::take(&mut self.fin) {
                    self.socket.shutdown(Direction::Write);
                }
                return Poll::Ready(Ok(()));
            } else {
                let bytes = std::mem::take(&mut self.out);
                self.write.start(bytes);
            }
        }
    }

    /// Sends what the socket takes at once of what is to be sent. Whether that was all.
    fn send_out_now(&mut self) -> bool {
        if self.write.is_pending() {
            return false;
        }
        match self.socket.send_now(&self.out) {
            Ok(count) if count >= self.out.len() => self.out = Vec::new(),
            Ok(count) => {
                self.out.drain(..count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.deaf = true;
                self.out = Vec::new();
            }
        }
        self.out.is_empty()
    }

    /// Encrypts `bytes` for the socket.
    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.deaf || self.closing {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        // While a read is under way nothing whole waits in `incoming`, which that read has taken along.
        match self.session.encrypt(bytes, &mut self.incoming, &mut self.out) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.deaf = true;
                Err(io::Error::from(io::ErrorKind::BrokenPipe))
            }
            Err(error) => {
                tracing::debug!(%error, "a TLS connection broke");
                self.broken();
                Err(io::Error::from(io::ErrorKind::InvalidData))
            }
        }
    }

    /// Tells the peer that nothing more comes, behind what is under way. Only once, and not in the middle of a fault.
    fn notify_close(&mut self) {
        if std::mem::replace(&mut self.closing, true) || self.deaf || self.session.is_handshaking() {
            return;
        }
        if self.session.close(&mut self.incoming, &mut self.out).is_err() {
            self.broken();
        }
    }
}

/// Length of the record that `bytes` begin with, once its header is there.
fn record_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER)?;
    Some(HEADER + (usize::from(*header.get(3)?) << 8 | usize::from(*header.get(4)?)))
}

impl<S: Stream, C: Side> Layer for Tls<S, C> {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        let mut state = self.state.borrow_mut();
        let stored = state.session.take_stored(buf);
        if stored > 0 {
            return Poll::Ready(Ok(stored));
        }
        let before = buf.len();
        loop {
            if !ready!(state.poll_plain(cx, &mut Sink::Into(buf)))? {
                return Poll::Ready(Ok(0));
            }
            let count = buf.len() - before + state.session.take_stored(buf);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.state.borrow_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(state.poll_out(cx))?;
        let part = bytes.get(..WRITE_MOST).unwrap_or(bytes);
        state.encrypt(part)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        if state.deaf {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::BrokenPipe)));
        }
        state.poll_out(cx)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        if state.session.has_plain() {
            return Poll::Ready(Ok(()));
        }
        state.poll_plain(cx, &mut Sink::Leave).map_ok(|_| ())
    }

    fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        if state.write.is_pending() || !state.out.is_empty() {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        }
        let part = bytes.get(..WRITE_MOST).unwrap_or(bytes);
        state.encrypt(part)?;
        // What does not fit now goes with the next operation.
        state.send_out_now();
        if state.deaf { Err(io::Error::from(io::ErrorKind::BrokenPipe)) } else { Ok(part.len()) }
    }

    fn peer(&self) -> Peer {
        let state = self.state.borrow();
        match (self.socket.peer(), state.ended) {
            (Peer::Gone, _) | (_, Some(End::Broken(_))) => Peer::Gone,
            (Peer::HalfClosed, _) | (_, Some(_)) => Peer::HalfClosed,
            (Peer::Open, None) => Peer::Open,
        }
    }

    fn is_quiet(&self) -> bool {
        let state = self.state.borrow();
        let nothing = state.ended.is_none()
            && !state.deaf
            && !state.session.has_plain()
            && state.incoming.is_empty()
            && !state.read.is_pending();
        nothing && self.socket.is_quiet()
    }

    fn has_unread(&self) -> bool {
        let state = self.state.borrow();
        state.session.has_plain()
            || (state.ended.is_none() && (!state.incoming.is_empty() || self.socket.has_unread()))
    }

    fn shutdown(&self, direction: Direction) {
        let mut state = self.state.borrow_mut();
        match direction {
            Direction::Read => self.socket.shutdown(Direction::Read),
            Direction::Write => {
                state.notify_close();
                if state.send_out_now() {
                    self.socket.shutdown(Direction::Write);
                } else {
                    // It follows what is under way, which reading sends on.
                    state.fin = true;
                }
            }
            Direction::Both => {
                if !state.write.is_pending() && state.out.is_empty() {
                    state.notify_close();
                    state.send_out_now();
                }
                (state.deaf, state.closing) = (true, true);
                self.socket.shutdown(Direction::Both);
            }
        }
    }

    fn reset_on_close(&self) {
        // Whoever is reset shall not have been told that all is well.
        self.state.borrow_mut().closing = true;
        self.socket.reset_on_close();
    }
}

impl<S: Stream, C: Side> Drop for Tls<S, C> {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        // Where reading was ended, it may have been this side that did it.
        let broken = matches!(state.ended, Some(End::Broken(_)));
        if !broken && !state.write.is_pending() && state.out.is_empty() {
            state.notify_close();
            state.send_out_now();
        }
    }
}

impl<S: Stream, C: Side> fmt::Debug for Tls<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("over", &self.socket).finish_non_exhaustive()
    }
}
