//! One attempt at one target: connect or reuse, send the request, wait for the head of the answer.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fairlead_routing::TargetEntry;

use super::watch::{Probe, Watch};
use super::{Shard, secure};
use crate::http::{Framing, HeadLimits, Parsed, ResponseHead};
use crate::runtime::{Direction, Link, Runtime, Stream, local_path};
use crate::tls::https_address;

/// Buffer for the head of an answer and for events of a stream.
pub const READ_SMALL: usize = 8 * 1024;

/// What a read operation gives back.
pub type ReadResult = (io::Result<usize>, BytesMut);

/// Why an attempt failed before anything reached the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The target refuses connections or cannot be reached.
    Refused,
    /// Connecting took too long.
    ConnectTimeout,
    /// The connection ended before the answer began.
    Died,
    /// What the engine sent is not HTTP.
    Broken(&'static str),
    /// This machine is out of descriptors or ports: no fault of the target.
    Exhausted,
    /// The engine answered 503.
    Busy,
    /// The prefill, or what was handed over, did not come in time.
    PrefillTimeout,
    /// The engine did not take what another one prefilled.
    HandoffRefused,
    /// The target does not speak TLS, or its certificate is not trusted.
    Untrusted,
}

/// The engine switched protocols though nobody had asked for it.
pub const SWITCHED: Cause = Cause::Broken("the engine switched protocols");

impl Cause {
    /// Fixed name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Died => "died",
            Self::Broken(_) => "broken",
            Self::Exhausted => "exhausted",
            Self::Busy => "busy",
            Self::PrefillTimeout => "prefill_timeout",
            Self::HandoffRefused => "handoff_refused",
            Self::Untrusted => "untrusted",
        }
    }
}

/// A connection to a target.
pub struct Upstream<R: Runtime> {
    /// The connection.
    pub socket: Link<R::Socket>,
    /// It served a request before, so the target may have closed it meanwhile.
    pub reused: bool,
}

/// How waiting for something upstream ended.
pub enum Waited<T> {
    /// It came.
    Got(T),
    /// The client went away first.
    Gone,
}

/// Waits for `future` while the client is watched. `future` must be droppable.
pub async fn unless_gone<R: Runtime, F: Future>(future: F, watch: &mut Watch<R>) -> Waited<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Waited::Got(output));
        }
        watch.poll_gone(cx, Probe::Prefix).map(|()| Waited::Gone)
    })
    .await
}

/// A kept connection to `target`, where there is one.
pub fn kept<R: Runtime>(shard: &Shard<R>, target: &TargetEntry) -> Option<Upstream<R>> {
    shard.pool.take(target.id).map(|socket| Upstream { socket, reused: true })
}

/// A connection to `target`: a kept one where there is one (unless `fresh`), else a new one.
pub async fn acquire<R: Runtime>(
    shard: &Shard<R>,
    target: &TargetEntry,
    fresh: bool,
) -> Result<Upstream<R>, Cause> {
    if !fresh && let Some(upstream) = kept(shard, target) {
        return Ok(upstream);
    }
    let patience = shard.options.timeouts.connect;
    if let Some(address) = https_address(&target.address) {
        // Boxed, so that a connection without TLS holds no space for one with.
        let socket = Box::pin(async {
            let socket = connect(shard, address, patience).await?;
            secure::to_instance(shard, socket, address, patience).await
        });
        return Ok(Upstream { socket: socket.await?, reused: false });
    }
    let socket = connect(shard, &target.address, patience).await?;
    Ok(Upstream { socket: Link::Plain(socket), reused: false })
}

/// A new connection to `address`.
async fn connect<R: Runtime>(
    shard: &Shard<R>,
    address: &str,
    patience: Duration,
) -> Result<R::Socket, Cause> {
    let connected = match address.parse::<SocketAddr>() {
        Ok(addr) => shard.runtime.connect(addr, patience).await,
        Err(_) => match local_path(address) {
            Some(path) => shard.runtime.connect_local(path),
            None => {
                let addr = R::resolve(address).await.ok_or(Cause::Refused)?;
                shard.runtime.connect(addr, patience).await
            }
        },
    };
    match connected {
        Ok(socket) => Ok(socket),
        Err(error) => Err(match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::TimedOut, _) => Cause::ConnectTimeout,
            (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)) => {
                Cause::Exhausted
            }
            _ => Cause::Refused,
        }),
    }
}

/// The reads of one upstream connection: at most one is under way, and it is kept until it ends.
pub struct Reads<'a, F, M> {
    op: Pin<&'a mut F>,
    make: M,
    pending: bool,
}

impl<'a, F, M> Reads<'a, F, M>
where
    F: Future<Output = ReadResult>,
    M: Fn(BytesMut) -> F,
{
    /// Takes over a read that was made by `make`.
    pub fn new(op: Pin<&'a mut F>, make: M) -> Self {
        Self { op, make, pending: true }
    }

    /// Begins the next read.
    pub fn start(&mut self, buf: BytesMut) {
        debug_assert!(!self.pending, "one read at a time");
        self.op.set((self.make)(buf));
        self.pending = true;
    }

    /// Ready with the result of the read under way; never ready without one.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ReadResult> {
        if !self.pending {
            return Poll::Pending;
        }
        let polled = self.op.as_mut().poll(cx);
        self.pending = polled.is_pending();
        polled
    }

    /// Whether a read is under way.
    pub fn is_pending(&self) -> bool {
        self.pending
    }
}

/// How an exchange went up to the head of the answer.
pub enum Exchanged {
    /// The head is complete (in the caller's [`ResponseHead`]); these are the head's bytes and those of the body that
    /// came with it. A read may still be under way.
    Answer {
        /// The head as the engine sent it.
        head: Bytes,
        /// What followed it.
        rest: BytesMut,
        /// The whole request went out, so the connection may be kept.
        sent: bool,
    },
    /// The engine agreed to another protocol: what follows its head is no HTTP. No read is under way.
    Switched {
        /// The head as the engine sent it.
        head: Bytes,
        /// What followed it.
        rest: BytesMut,
        /// The whole request went out.
        sent: bool,
    },
    /// The client went away.
    Gone,
    /// Nothing usable came.
    Failed {
        /// Why.
        cause: Cause,
        /// Not one byte of an answer came.
        silent: bool,
    },
}

/// Whoever waits for an answer, and may leave before it comes.
pub trait Asker {
    /// Ready when it has left. `probe` says what may be sent to find out.
    fn poll_gone(&mut self, cx: &mut Context<'_>, probe: Probe) -> Poll<()>;
}

impl<R: Runtime> Asker for Watch<R> {
    fn poll_gone(&mut self, cx: &mut Context<'_>, probe: Probe) -> Poll<()> {
        Watch::poll_gone(self, cx, probe)
    }
}

/// An asker that never leaves: whoever has enough shuts the connection down.
pub struct Patient;

impl Asker for Patient {
    fn poll_gone(&mut self, _: &mut Context<'_>, _: Probe) -> Poll<()> {
        Poll::Pending
    }
}

/// Has `write` send a request and reads the head of its answer, and then waits up to `hold` for the body's first byte, so that
/// an engine that dies in the middle of its prefill can still be replaced by another.
pub async fn exchange<R, F, M, W, A>(
    socket: &Link<R::Socket>,
    reads: &mut Reads<'_, F, M>,
    mut write: Pin<&mut W>,
    answer: &mut ResponseHead,
    asker: &mut A,
    hold: Duration,
) -> Exchanged
where
    R: Runtime,
    F: Future<Output = ReadResult>,
    M: Fn(BytesMut) -> F,
    W: Future<Output = io::Result<()>>,
    A: Asker,
{
    let limits = HeadLimits::default();
    answer.reset();
    let mut sent = false;
    let mut writing = true;
    let mut silent = true;
    loop {
        let waited = poll_fn(|cx| {
            if writing && let Poll::Ready(result) = write.as_mut().poll(cx) {
                writing = false;
                // A failed write is not the end: an early answer (413, say) may be waiting to be read.
                sent = result.is_ok();
            }
            if let Poll::Ready(result) = reads.poll(cx) {
                return Poll::Ready(Waited::Got(result));
            }
            asker.poll_gone(cx, Probe::Prefix).map(|()| Waited::Gone)
        })
        .await;
        let (result, mut buf) = match waited {
            Waited::Got(read) => read,
            Waited::Gone => {
                socket.shutdown(Direction::Both);
                return Exchanged::Gone;
            }
        };
        match result {
            Ok(0) | Err(_) => return Exchanged::Failed { cause: Cause::Died, silent },
            Ok(_) => silent = false,
        }
        match answer.parse(&buf, false, &limits) {
            Parsed::NeedMore => {
                let room = if buf.len() < READ_SMALL { READ_SMALL } else { limits.max_bytes };
                buf.reserve(room.saturating_sub(buf.len()).max(1));
                reads.start(buf);
            }
            Parsed::Bad(reject) => {
                return Exchanged::Failed { cause: Cause::Broken(reject.message), silent };
            }
            Parsed::Done(len) => {
                let head = buf.split_to(len).freeze();
                if answer.status().as_u16() == 101 {
                    return Exchanged::Switched { head, rest: buf, sent };
                }
                let bodiless = matches!(answer.framing(), Framing::None | Framing::Length(0));
                // An error status is passed on as it is; only a promise of success is worth waiting for its proof.
                if bodiless || buf.has_remaining() || !answer.status().is_success() || hold.is_zero() {
                    return Exchanged::Answer { head, rest: buf, sent };
                }
                let part = Part { head, rest: buf, sent };
                // Boxed, so that an exchange whose answer comes in one piece holds no space for the timer.
                return Box::pin(await_body::<R, _, _, _>(socket, reads, part, answer, asker, hold)).await;
            }
        }
    }
}

/// The head of an answer and what came with it.
struct Part {
    head: Bytes,
    rest: BytesMut,
    sent: bool,
}

/// Holds the head back until the first byte of its body has come, or `hold` is over.
async fn await_body<R, F, M, A>(
    socket: &Link<R::Socket>,
    reads: &mut Reads<'_, F, M>,
    part: Part,
    answer: &ResponseHead,
    asker: &mut A,
    hold: Duration,
) -> Exchanged
where
    R: Runtime,
    F: Future<Output = ReadResult>,
    M: Fn(BytesMut) -> F,
    A: Asker,
{
    let Part { head, mut rest, sent } = part;
    rest.reserve(READ_SMALL);
    reads.start(rest);
    let mut timer = pin!(R::sleep(hold));
    let waited = poll_fn(|cx| {
        if let Poll::Ready(result) = reads.poll(cx) {
            return Poll::Ready(Some(Waited::Got(result)));
        }
        if let Poll::Ready(()) = asker.poll_gone(cx, Probe::Prefix) {
            return Poll::Ready(Some(Waited::Gone));
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await;
    match waited {
        None => Exchanged::Answer { head, rest: BytesMut::new(), sent },
        Some(Waited::Gone) => {
            socket.shutdown(Direction::Both);
            Exchanged::Gone
        }
        Some(Waited::Got((Ok(count), rest))) if count > 0 => Exchanged::Answer { head, rest, sent },
        // An answer that lasts until the close may be empty.
        Some(Waited::Got((Ok(_), rest))) if answer.framing() == Framing::UntilClose => {
            Exchanged::Answer { head, rest, sent }
        }
        Some(Waited::Got(_)) => Exchanged::Failed { cause: Cause::Died, silent: false },
    }
}
