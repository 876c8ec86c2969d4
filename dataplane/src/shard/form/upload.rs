//! The rest of a form, from the client to the engine: one buffer, read and written in turn.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use fairlead_routing::Plan;
use http::StatusCode;

use crate::http::{BodyReader, Framing, LAST_CHUNK, OutgoingBody, write_chunk, write_chunk_size};
use crate::runtime::{Direction, Link, Runtime, Stream as _};
use crate::shard::answer::Refusal;
use crate::shard::attempt::{Attempt, Begun, HeadOf};
use crate::shard::deadlines::Guard;
use crate::shard::failure::failed;
use crate::shard::forward::{Attempts, How, Outcome};
use crate::shard::intake::{Pace, too_large, too_slow};
use crate::shard::upstream::{Asker, Cause, Exchanged, READ_SMALL, Reads, SWITCHED, exchange};
use crate::shard::watch::{Probe, Watch};

/// Buffer for the pieces.
const PIECE: usize = 64 * 1024;

/// Where the rest comes from.
pub struct Source {
    /// Finds the end.
    pub reader: BodyReader,
    /// Read and not looked at yet.
    pub buf: BytesMut,
}

/// Why the rest did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Left,
    Late,
    TooLarge,
    Framing(&'static str),
}

/// A form whose beginning is held and whose rest is with the client.
pub struct Upload {
    framing: Framing,
    source: RefCell<Option<Source>>,
    /// Bytes behind the form's end, once that was seen.
    rest: RefCell<Option<BytesMut>>,
    held: u64,
    max: u64,
    begun: Cell<bool>,
    reading: Cell<bool>,
    broken: Cell<Option<Broken>>,
}

impl Upload {
    /// Of `held` bytes and what `source` has.
    pub fn new(framing: Framing, source: Source, held: u64, max: u64) -> Self {
        Self {
            framing,
            source: RefCell::new(Some(source)),
            rest: RefCell::default(),
            held,
            max,
            begun: Cell::new(false),
            reading: Cell::new(false),
            broken: Cell::new(None),
        }
    }

    /// What came behind the form's end; `None` while there is more of the form.
    pub fn into_rest(self) -> Option<BytesMut> {
        self.rest.into_inner()
    }

    fn is_whole(&self) -> bool {
        self.rest.borrow().is_some()
    }

    /// Sends the head, what is held, and the rest as it comes.
    async fn send<R: Runtime>(
        &self,
        client: &Link<R::Socket>,
        guard: &Guard<R>,
        engine: &Link<R::Socket>,
        (mut head, held): (Vec<u8>, Bytes),
        mut pace: Pace,
    ) -> io::Result<()> {
        let chunked = self.framing == Framing::Chunked;
        if chunked && !held.is_empty() {
            write_chunk_size(held.len() as u64, &mut head);
            engine.write_pieces(vec![head.into(), held, Bytes::from_static(b"\r\n")]).await?;
        } else {
            engine.write_both(head.into(), held).await?;
        }
        let Some(Source { mut reader, mut buf }) = self.source.borrow_mut().take() else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        };
        self.begun.set(true);
        let mut total = self.held;
        let mut out = Vec::new();
        loop {
            let mut taken = 0;
            while taken < buf.len() && !reader.is_done() {
                let part = buf.get(taken..).unwrap_or_default();
                let step = reader
                    .step(part)
                    .map_err(|_| self.broken(Broken::Framing("the form's chunks are broken")))?;
                let piece = part.get(step.payload).unwrap_or_default();
                total += piece.len() as u64;
                if chunked && !piece.is_empty() {
                    write_chunk(piece, &mut out);
                }
                taken += step.consumed;
            }
            if total.saturating_add(reader.announced()) > self.max {
                return Err(self.broken(Broken::TooLarge));
            }
            if reader.is_done() && chunked {
                out.extend_from_slice(LAST_CHUNK);
            }
            let waits_us = R::now_us();
            if chunked {
                let (result, back) = engine.write_all(std::mem::take(&mut out)).await;
                result?;
                out = back;
                out.clear();
            } else {
                let (result, back) = engine.write_range(buf, 0, taken).await;
                result?;
                buf = back;
            }
            // A slow engine does not make a client late.
            pace.wait(R::now_us().saturating_sub(waits_us));
            let behind = buf.split_off(taken.min(buf.len()));
            if reader.is_done() {
                *self.rest.borrow_mut() = Some(behind);
                return Ok(());
            }
            buf.clear();
            buf.reserve(PIECE);
            self.reading.set(true);
            guard.arm_read_at(pace.deadline_at(R::now_us(), total));
            let (result, back) = client.read(buf).await;
            let late = guard.fired();
            guard.clear();
            self.reading.set(false);
            buf = back;
            match result {
                Ok(count) if count > 0 => {}
                _ => return Err(self.broken(if late { Broken::Late } else { Broken::Left })),
            }
        }
    }

    fn broken(&self, why: Broken) -> io::Error {
        self.broken.set(Some(why));
        io::Error::from(io::ErrorKind::UnexpectedEof)
    }

    /// What the client is told of it.
    fn outcome(&self) -> Outcome {
        match self.broken.get() {
            None | Some(Broken::Left) => Outcome::Left,
            Some(Broken::Late) => Outcome::Refuse(too_slow()),
            Some(Broken::TooLarge) => Outcome::Refuse(too_large(self.max as usize)),
            Some(Broken::Framing(what)) => Outcome::Refuse(Refusal::new(400, what)),
        }
    }
}

/// Whoever is sending: while the client is read, that shows whether it is there.
struct Sender<'a, R: Runtime> {
    upload: &'a Upload,
    watch: &'a mut Watch<R>,
}

impl<R: Runtime> Asker for Sender<'_, R> {
    fn poll_gone(&mut self, cx: &mut Context<'_>, probe: Probe) -> Poll<()> {
        if self.upload.broken.get().is_some() {
            return Poll::Ready(());
        }
        if self.upload.reading.get() {
            return Poll::Pending;
        }
        self.watch.poll_gone(cx, probe)
    }
}

impl<R: Runtime> How<R> for Upload {
    async fn attempt(&self, attempts: &mut Attempts<'_, R>, plan: &mut Plan) -> Attempt {
        attempts.attempts += 1;
        // A kept connection may turn out to be dead when the rest of the form has gone.
        let upstream = match attempts.connect(plan.target(), true).await {
            Ok(upstream) => upstream,
            Err(attempt) => return attempt,
        };
        let socket = &upstream.socket;
        let body = OutgoingBody::like(self.framing);
        let head =
            attempts.head_for(&HeadOf { target: plan.target(), body, add: &[], id: None, plain: false });
        let timeouts = &attempts.shard.options.timeouts;
        let pace = Pace::new(R::now_us(), timeouts.body);
        let (client, guard) = (attempts.client.socket, attempts.client.guard);
        let held = attempts.request.body.clone();
        let make = |buf: BytesMut| socket.read(buf);
        let mut op = pin!(make(BytesMut::with_capacity(READ_SMALL)));
        let mut reads = Reads::new(op.as_mut(), make);
        let write = pin!(self.send::<R>(client, guard, socket, (head, held), pace));
        let mut answer = attempts.shard.answers.borrow_mut().pop().unwrap_or_default();
        let mut sender = Sender { upload: self, watch: &mut *attempts.client.watch };
        let (hold, sent_us) = (timeouts.head_hold, R::now_us());
        let exchanged =
            exchange::<R, _, _, _, _>(socket, &mut reads, write, &mut answer, &mut sender, hold).await;
        guard.clear();
        plan.reservation.presume_prefilled(R::now_us());
        let cause = match exchanged {
            Exchanged::Answer { head, rest, sent } => {
                if answer.status() == StatusCode::SERVICE_UNAVAILABLE
                    && !self.begun.get()
                    && let Some(next) = attempts.elsewhere(&[plan.target()])
                {
                    socket.shutdown(Direction::Both);
                    return Attempt::Elsewhere(Box::new(next), Cause::Busy);
                }
                // Where the next request begins is only known when the form has ended.
                attempts.request.keep_alive &= self.is_whole();
                let begun = Begun { head, rest, sent, sent_us };
                return Attempt::Done(attempts.relay(socket, &mut reads, &answer, begun, plan, None).await);
            }
            Exchanged::Gone => return Attempt::Done(self.outcome()),
            Exchanged::Switched { .. } => SWITCHED,
            Exchanged::Failed { cause, .. } => cause,
        };
        socket.shutdown(Direction::Both);
        // What has left the client's hands cannot be sent again.
        if self.begun.get() { Attempt::Done(Outcome::Refuse(failed(cause))) } else { Attempt::failed(cause) }
    }
}
