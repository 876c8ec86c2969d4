//! A connection of HTTP/2: one task that moves its frames, and one for each request.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::{Connection, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request};

use super::conn::{Conn, serve_stream};
use super::deadlines::Guard;
use super::{Counted, Shard};
use crate::http2::{Exchange, Io, NOT_HTTP2, Tally, Upload, write_request};
use crate::runtime::Runtime;

/// Room for a request's head.
const HEAD_ROOM: usize = 1024;
/// Most room that is made for a body together with its head; a longer one gets its room as it is read.
const BODY_ROOM: usize = 16 * 1024;
/// Pause of a connection whose client sends faster than it is worked off, so that others get their turn.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a client may take to hear that the connection ends.
const PARTING: Duration = Duration::from_secs(2);
/// Bytes thrown away meanwhile.
const PARTING_BYTES: usize = 16 << 20;

/// How far a connection is.
enum Phase<R: Runtime> {
    Beginning(Handshake<Io<R::Socket>, Bytes>),
    Open(Connection<Io<R::Socket>, Bytes>),
}

/// What its deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// The client is to begin.
    Beginning,
    /// No request is under way.
    Idle,
    /// The same, and no further one is wanted.
    Parting,
    /// Requests are under way, each with its own deadlines.
    Busy,
    /// The client does not take what it is sent.
    Blocked,
}

/// One connection.
struct Multiplexed<'a, R: Runtime> {
    shard: &'a Rc<Shard<R>>,
    guard: &'a Guard<R>,
    client: Option<&'a str>,
    io: Io<R::Socket>,
    phase: Phase<R>,
    tally: Rc<Tally>,
    waits: Option<Waits>,
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
    parting: bool,
}

impl<R: Runtime> Conn<R> {
    /// Serves the connection in HTTP/2 to its end.
    pub(super) async fn http2(&mut self) {
        let options = &self.shard.options;
        let io = Io::new(self.socket.clone(), std::mem::take(&mut self.buf));
        let beginning = options.http2.builder(&options.limits.head).handshake(io.clone());
        let tally = Rc::new(Tally::new(R::now_us, options.http2.withdrawal));
        let shard = self.shard.clone();
        let farewell = shard.goaways.wait();
        let mut connection = Multiplexed {
            shard: &self.shard,
            guard: &self.guard,
            client: self.client.as_deref(),
            io: io.clone(),
            phase: Phase::Beginning(beginning),
            tally,
            waits: None,
            pause: None,
            parting: false,
        };
        let ended = std::future::poll_fn(|cx| {
            let leave = farewell.is_said(cx);
            connection.poll(cx, leave)
        })
        .await;
        // Streams that are left learn of the end.
        drop(connection);
        if let Err(error) = &ended {
            tracing::debug!(%error, "a connection of HTTP/2 ended");
            if error.is_io() {
                return;
            }
        }
        // A close with unread bytes would be a reset, which takes the last frames away from the client.
        self.guard.arm_write(PARTING);
        let parted = std::future::poll_fn(|cx| {
            let mut io = io.clone();
            tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut io), cx)
        });
        if parted.await.is_ok() && !self.guard.fired() {
            let mut most = PARTING_BYTES;
            std::future::poll_fn(|cx| io.poll_discard(cx, &mut most)).await;
        }
    }
}

impl<R: Runtime> Multiplexed<'_, R> {
    /// One turn: reads, starts what requests came, and sends what was written.
    fn poll(&mut self, cx: &mut Context<'_>, leave: bool) -> Poll<Result<(), h2::Error>> {
        let paused = match &mut self.pause {
            Some(pause) => pause.as_mut().poll(cx).is_pending(),
            None => false,
        };
        if !paused {
            self.pause = None;
            self.io.begin_turn();
        }
        self.tally.watch(cx);
        let cut = self.tally.take_cut();
        let mut ended = self.poll_frames(cx, leave);
        let mut sent = self.io.poll_send(cx);
        if !cut.is_empty() && ended.is_pending() {
            if matches!(sent, Poll::Ready(Ok(()))) {
                for mut stream in cut {
                    stream.send_reset(Reason::INTERNAL_ERROR);
                }
                ended = self.poll_frames(cx, leave);
                sent = self.io.poll_send(cx);
            } else {
                self.tally.reset_later(cut);
            }
        }
        if ended.is_ready() {
            return ended;
        }
        if let Poll::Ready(Err(error)) = sent {
            tracing::debug!(%error, "a connection of HTTP/2 broke");
            return Poll::Ready(Ok(()));
        }
        self.arm();
        if self.io.take_put_off() && self.pause.is_none() {
            let mut pause: Pin<Box<dyn Future<Output = ()>>> = Box::pin(R::sleep(PAUSE));
            // It has just begun.
            let _ = pause.as_mut().poll(cx);
            self.pause = Some(pause);
        }
        Poll::Pending
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>, leave: bool) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.phase {
                Phase::Beginning(handshake) => match Pin::new(handshake).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(connection)) => self.phase = Phase::Open(connection),
                    Poll::Ready(Err(error)) => {
                        if !error.is_io() {
                            self.io.say(NOT_HTTP2);
                        }
                        return Poll::Ready(Err(error));
                    }
                },
                Phase::Open(connection) => {
                    if leave && !std::mem::replace(&mut self.parting, true) {
                        connection.graceful_shutdown();
                    }
                    if self.guard.fired() && matches!(self.waits, Some(Waits::Idle | Waits::Parting)) {
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                    } else if self.tally.is_abused() {
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    }
                    match connection.poll_accept(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                        Poll::Ready(Some(Ok((request, respond)))) => self.start(request, respond),
                    }
                }
            }
        }
    }

    /// Has a request served by a task of its own.
    fn start(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (head, body) = request.into_parts();
        let length = head.headers.get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0usize);
        let mut buf = BytesMut::with_capacity(HEAD_ROOM + length.min(BODY_ROOM));
        let chunked = match write_request(&head, body.is_end_stream(), &mut buf) {
            Ok(chunked) => chunked,
            Err(malformed) => {
                tracing::debug!(why = malformed.0, "a malformed request of HTTP/2");
                respond.send_reset(Reason::PROTOCOL_ERROR);
                return;
            }
        };
        let to_head = head.method == Method::HEAD;
        let stream = Exchange::new(Upload::new(body, chunked), respond, to_head, self.tally.clone());
        let (shard, client) = (self.shard.clone(), self.client.map(Box::from));
        let counted = Counted::new(&shard);
        let stream = Rc::new(stream);
        R::spawn(async move {
            serve_stream(shard, stream, buf, client).await;
            drop(counted);
        });
    }

    /// Sets the deadline that fits.
    fn arm(&mut self) {
        let waits = if self.io.is_blocked() {
            Waits::Blocked
        } else if matches!(self.phase, Phase::Beginning(_)) {
            Waits::Beginning
        } else if self.tally.active() > 0 {
            Waits::Busy
        } else if self.parting {
            Waits::Parting
        } else {
            Waits::Idle
        };
        if self.waits.replace(waits) == Some(waits) {
            return;
        }
        let timeouts = &self.shard.options.timeouts;
        match waits {
            Waits::Beginning => self.guard.arm_read(timeouts.head),
            Waits::Idle => {
                self.io.rest();
                self.guard.arm_read(timeouts.idle);
            }
            Waits::Parting => self.guard.arm_read(PARTING),
            Waits::Busy => self.guard.clear(),
            Waits::Blocked => self.guard.arm_write(timeouts.stall),
        }
    }
}
