//! Watching a client while its request is served.
//!
//! A client that goes away must have its upstream request cancelled at once, and a client that has only closed its
//! sending side must still get its answer. Both begin with the same FIN; only a byte sent to the client tells them
//! apart, because a closed peer answers it with a reset. So a byte is sent that the client gets anyway: the next one
//! of `HTTP/1.1 `, with which every answer begins, or, between two chunks of a body, a leading zero of the next chunk
//! size. Nothing that the client can observe changes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::runtime::{Link, Peer, Runtime, Stream};

/// What every answer begins with, whatever its status.
pub const ANSWER_PREFIX: &[u8] = b"HTTP/1.1 ";

/// Pauses between looks at a client that has sent a FIN, and the last one for all later looks.
const LOOKS_MS: [u64; 8] = [1, 3, 8, 15, 25, 50, 100, 200];
/// Looks between two probes once the pauses have reached their longest: some seconds.
const LOOKS_PER_PROBE: usize = 16;
/// Pause between looks at a client that has sent more bytes than its request; they stay where they are, so
/// readability says nothing about its departure.
const UNREAD_LOOK: Duration = Duration::from_millis(40);

/// Which byte may be sent now to find out whether a half-closed client is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Nothing of the answer was sent: the next byte of its first line.
    Prefix,
    /// The stream stands between two chunks: a leading zero.
    ChunkZero,
    /// None; the next write will tell.
    None,
}

type Wait = Pin<Box<dyn Future<Output = io::Result<()>>>>;

enum State {
    /// Nothing is waited for.
    Resting,
    /// Waiting for readability.
    Armed(Wait),
    /// Looking now and then.
    Looking { timer: Pin<Box<dyn Future<Output = ()>>>, looks: usize },
}

/// Watches one client connection, request after request. It keeps its readiness wait between requests, so the wait
/// that ends with the next request is the one that watched the last.
pub struct Watch<R: Runtime> {
    socket: Link<R::Socket>,
    state: State,
    /// Bytes of [`ANSWER_PREFIX`] that have gone out as probes.
    prefix_sent: usize,
    /// A leading zero stands in front of the next chunk size.
    zero_sent: bool,
    half_closed: bool,
    gone: bool,
    /// The connection speaks another protocol, in which nobody ends one direction only.
    switched: bool,
}

impl<R: Runtime> Watch<R> {
    /// A watch of `socket`.
    pub fn new(socket: Link<R::Socket>) -> Self {
        Self {
            socket,
            state: State::Resting,
            prefix_sent: 0,
            zero_sent: false,
            half_closed: false,
            gone: false,
            switched: false,
        }
    }

    /// Waits until something can be read, the client has closed, or the connection was shut down.
    pub async fn readable(&mut self) {
        let mut wait = match std::mem::replace(&mut self.state, State::Resting) {
            State::Armed(wait) => wait,
            State::Resting | State::Looking { .. } => Box::pin(self.socket.readable()),
        };
        // An error shows again at the read that follows.
        let _ = std::future::poll_fn(|cx| wait.as_mut().poll(cx)).await;
    }

    /// Whether the client has closed its sending side and nothing that it sent before waits to be read: no further
    /// request can come from the socket.
    pub fn input_ended(&self) -> bool {
        self.half_closed && !self.socket.has_unread()
    }

    /// Whether the client was seen to be gone.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// The connection speaks another protocol from now on: the client's FIN is its departure, and no byte is sent to
    /// find out.
    pub fn switch(&mut self) {
        self.switched = true;
    }

    /// Takes the number of bytes that an answer must leave out because they were sent already.
    pub fn take_prefix(&mut self) -> usize {
        std::mem::take(&mut self.prefix_sent)
    }

    /// Tells that bytes of the body have gone out, so that a leading zero may be sent again.
    pub fn chunk_sent(&mut self) {
        self.zero_sent = false;
    }

    /// Ready when the client has gone.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, probe: Probe) -> Poll<()> {
        if self.gone {
            return Poll::Ready(());
        }
        loop {
            let looks = match &mut self.state {
                State::Resting => {
                    self.state = State::Armed(Box::pin(self.socket.readable()));
                    continue;
                }
                State::Armed(wait) => match wait.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(_) => 0,
                },
                State::Looking { timer, looks } => match timer.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => *looks + 1,
                },
            };
            let pause = match self.socket.peer() {
                Peer::HalfClosed if self.switched => {
                    self.gone = true;
                    self.state = State::Resting;
                    return Poll::Ready(());
                }
                Peer::Gone => {
                    self.gone = true;
                    self.state = State::Resting;
                    return Poll::Ready(());
                }
                Peer::Open => UNREAD_LOOK,
                Peer::HalfClosed => {
                    let first = !std::mem::replace(&mut self.half_closed, true);
                    if first || looks % LOOKS_PER_PROBE == 0 {
                        self.send_probe(probe);
                    }
                    Duration::from_millis(LOOKS_MS[looks.min(LOOKS_MS.len() - 1)])
                }
            };
            self.state = State::Looking { timer: Box::pin(R::sleep(pause)), looks };
        }
    }

    /// One byte into an empty send buffer is taken at once; where it is not, the next look decides.
    fn send_probe(&mut self, probe: Probe) {
        match probe {
            Probe::Prefix => {
                if let Some(byte) = ANSWER_PREFIX.get(self.prefix_sent..=self.prefix_sent)
                    && matches!(self.socket.send_now(byte), Ok(1))
                {
                    self.prefix_sent += 1;
                }
            }
            Probe::ChunkZero => {
                if !self.zero_sent && matches!(self.socket.send_now(b"0"), Ok(1)) {
                    self.zero_sent = true;
                }
            }
            Probe::None => {}
        }
    }
}
