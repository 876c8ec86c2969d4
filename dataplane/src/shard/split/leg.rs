//! The prefill leg of a hand-off: a task of its own, which owns the connection and, until the prompt is computed, the
//! reservation.
//!
//! Whoever waits for the hand-off holds the leg. Neither side waits for the other's deadline: a leg that fails ends the
//! decode leg's connection, so that its read ends at once, and a leg that is given up ends its own.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_openai::{SseWatch, Usage, usage_of_json};
use fairlead_routing::{Reservation, TargetEntry};

use super::super::Shard;
use super::super::answer::PassedOn;
use super::super::deadlines::Guard;
use super::super::speed;
use super::super::upstream::{
    Cause, Exchanged, Patient, READ_SMALL, ReadResult, Reads, SWITCHED, acquire, exchange,
};
use crate::http::{BodyReader, ResponseHead};
use crate::runtime::{Direction, Either, Link, Notify, Runtime, Stream as _, either};

/// Longest answer of a prefill leg, bytes. A long one is one with the ids of a long prompt.
const MAX_ANSWER: usize = 4 << 20;
/// How long a leg may go on when the decode leg has ended well.
const GRACE: Duration = Duration::from_secs(1);

/// How a prefill leg ended.
pub enum End {
    /// The prompt is computed.
    Done(Done),
    /// The engine answered that it will not.
    Refused(PassedOn),
    /// No usable answer came.
    Failed(Cause),
}

/// A prefill leg that did its work.
pub struct Done {
    /// When its answer was complete, microseconds.
    pub at_us: u64,
    /// The answer.
    pub answer: Bytes,
}

/// A connection in use, and its deadline. In this order, since the deadline may not outlive the connection.
pub struct Line<R: Runtime> {
    deadline: Guard<R>,
    socket: Link<R::Socket>,
}

impl<R: Runtime> Line<R> {
    /// Ends the connection `after` from now.
    pub fn new(shard: &Shard<R>, socket: Link<R::Socket>, after: Duration) -> Self {
        let deadline = shard.deadlines.register(socket.handle());
        deadline.arm_write(after);
        Self { deadline, socket }
    }

    /// It may last.
    pub fn settle(&self) {
        self.deadline.clear();
    }

    /// Whether the deadline has ended it.
    pub fn is_late(&self) -> bool {
        self.deadline.fired()
    }

    /// Ends it.
    pub fn cut(&self) {
        self.socket.shutdown(Direction::Both);
    }
}

/// What the task and those who wait for it share.
pub struct PrefillLeg<R: Runtime> {
    target: Arc<TargetEntry>,
    reservation: RefCell<Option<Reservation>>,
    line: RefCell<Option<Line<R>>>,
    /// The decode leg's connection, while it waits for this leg.
    decode: RefCell<Option<Link<R::Socket>>>,
    end: RefCell<Option<End>>,
    usage: Cell<Option<Usage>>,
    /// Cached tokens of the prompt, once they are known.
    pub cached: Cell<Option<u64>>,
    given_up: Cell<bool>,
    ended: Notify,
    left: Notify,
}

impl<R: Runtime> PrefillLeg<R> {
    /// A leg that has not begun.
    pub fn new(reservation: Reservation) -> Rc<Self> {
        Rc::new(Self {
            target: reservation.target().clone(),
            reservation: RefCell::new(Some(reservation)),
            line: RefCell::default(),
            decode: RefCell::default(),
            end: RefCell::default(),
            usage: Cell::default(),
            cached: Cell::default(),
            given_up: Cell::default(),
            ended: Notify::default(),
            left: Notify::default(),
        })
    }

    /// Target that prefills.
    pub fn target(&self) -> &Arc<TargetEntry> {
        &self.target
    }

    /// Tokens as the target counted them, once it has answered.
    pub fn usage(&self) -> Option<Usage> {
        self.usage.get()
    }

    /// Sends `pieces` in a task of its own.
    pub fn start(self: &Rc<Self>, shard: &Rc<Shard<R>>, pieces: Vec<Bytes>) {
        let (leg, shard) = (self.clone(), shard.clone());
        R::spawn(async move {
            let end = leg.run(&shard, pieces).await;
            leg.conclude(&shard, end);
        });
    }

    /// Waits for its end. May be dropped at any time.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// How it ended, once.
    pub fn take_end(&self) -> Option<End> {
        self.end.take()
    }

    /// Whether it failed, or its engine refused.
    pub fn has_failed(&self) -> bool {
        matches!(*self.end.borrow(), Some(End::Failed(_) | End::Refused(_)))
    }

    /// The decode leg waits at `socket`: its connection ends when this leg fails.
    pub fn waited_for(&self, socket: &Link<R::Socket>) {
        *self.decode.borrow_mut() = Some(socket.clone());
    }

    /// What was handed over has arrived. A prefill side that has not answered by then is taken to be done.
    pub fn arrived(&self, now_us: u64) {
        self.decode.take();
        if let Some(mut reservation) = self.reservation.take() {
            reservation.presume_prefilled(now_us);
        }
    }

    /// The decode leg has ended well; this one gets a little more time for the rest of its answer.
    pub fn finish(&self) {
        match &*self.line.borrow() {
            Some(line) if self.reservation.borrow().is_none() => line.deadline.arm_write(GRACE),
            _ => self.give_up(),
        }
    }

    /// Nobody waits any more: ends the connection and releases the reservation at once.
    pub fn give_up(&self) {
        self.given_up.set(true);
        self.decode.take();
        drop(self.reservation.take());
        if let Some(line) = &*self.line.borrow() {
            line.cut();
        }
        self.left.notify();
    }

    fn conclude(&self, shard: &Shard<R>, end: End) {
        let now_us = R::now_us();
        // Taken before anything else happens, so that no end leaves it reserved.
        let reservation = self.reservation.take();
        match &end {
            End::Done(done) => {
                let usage = usage_of_json(&done.answer);
                self.usage.set(usage);
                self.cached.set(usage.and_then(|usage| usage.cached_tokens));
                if let Some(mut reservation) = reservation {
                    speed::prefilled(&mut reservation, now_us, usage)
                        .into_iter()
                        .for_each(|note| shard.shared.sped(note));
                }
                self.decode.take();
            }
            End::Refused(_) | End::Failed(_) => drop(reservation),
        }
        let failed = !matches!(end, End::Done(_));
        *self.end.borrow_mut() = Some(end);
        self.ended.notify();
        if failed && let Some(decode) = self.decode.take() {
            decode.shutdown(Direction::Both);
        }
    }

    async fn run(&self, shard: &Shard<R>, pieces: Vec<Bytes>) -> End {
        let mut fresh = false;
        loop {
            let connecting = acquire(shard, &self.target, fresh);
            let upstream = match either(connecting, self.left.notified()).await {
                Either::First(Ok(upstream)) => upstream,
                Either::First(Err(cause)) => return End::Failed(cause),
                Either::Second(()) => return End::Failed(Cause::Died),
            };
            self.target.cells.connected();
            if self.given_up.get() {
                return End::Failed(Cause::Died);
            }
            match self.ask(shard, upstream.socket, pieces.clone()).await {
                Asked::End(end) => return end,
                // A kept connection that ends without a byte was most likely closed while it was idle.
                Asked::Silent(_) if upstream.reused && !self.given_up.get() => fresh = true,
                Asked::Silent(cause) => return End::Failed(cause),
            }
        }
    }

    /// Asks on one connection.
    async fn ask(&self, shard: &Shard<R>, socket: Link<R::Socket>, pieces: Vec<Bytes>) -> Asked {
        let line = Line::new(shard, socket.clone(), shard.options.timeouts.prefill);
        *self.line.borrow_mut() = Some(line);
        let asked = self.ask_on(shard, &socket, pieces).await;
        // The deadline goes before the connection may be used by others.
        let late = self.line.take().is_some_and(|line| line.is_late());
        match asked {
            Ok((end, reusable)) => {
                if reusable && !late {
                    shard.pool.put(self.target.id, socket);
                } else {
                    socket.shutdown(Direction::Both);
                }
                Asked::End(end)
            }
            Err((cause, silent)) => {
                socket.shutdown(Direction::Both);
                match (late, silent) {
                    (true, _) => Asked::End(End::Failed(Cause::PrefillTimeout)),
                    (false, true) => Asked::Silent(cause),
                    (false, false) => Asked::End(End::Failed(cause)),
                }
            }
        }
    }

    /// The answer, and whether the connection may be used again; or why there is none, and whether not a byte came.
    async fn ask_on(
        &self,
        shard: &Shard<R>,
        socket: &Link<R::Socket>,
        pieces: Vec<Bytes>,
    ) -> Result<(End, bool), (Cause, bool)> {
        let make = |buf: BytesMut| socket.read(buf);
        let mut op = pin!(make(BytesMut::with_capacity(READ_SMALL)));
        let mut reads = Reads::new(op.as_mut(), make);
        let mut answer = shard.answers.borrow_mut().pop().unwrap_or_default();
        let write = pin!(socket.write_pieces(pieces));
        let exchanged =
            exchange::<R, _, _, _, _>(socket, &mut reads, write, &mut answer, &mut Patient, Duration::ZERO)
                .await;
        let (head, rest, sent) = match exchanged {
            Exchanged::Answer { head, rest, sent } => (head, rest, sent),
            Exchanged::Switched { .. } => return Err((SWITCHED, false)),
            Exchanged::Failed { cause, silent } => return Err((cause, silent)),
            Exchanged::Gone => return Err((Cause::Died, false)),
        };
        let whole = read_whole(&mut reads, &answer, rest).await.map_err(|cause| (cause, false))?;
        let reusable = sent && whole.clean && answer.keep_alive() && !reads.is_pending();
        let end = if !answer.status().is_success() {
            End::Refused(passed_on(&answer, &head, whole.body))
        } else if answer.is_encoded() {
            return Err((Cause::Broken("the answer to a prefill is compressed"), false));
        } else if answer.is_event_stream() && tells_of_failure(&whole.body) {
            return Err((Cause::Broken("a stream that tells of a failure"), false));
        } else {
            End::Done(Done { at_us: R::now_us(), answer: whole.body })
        };
        shard.keep_answer_head(answer);
        Ok((end, reusable))
    }
}

/// Whether a stream of events ended with an error. (SGLang's prefill side streams where the client asked for it.)
fn tells_of_failure(events: &[u8]) -> bool {
    let mut watch = SseWatch::new();
    watch.feed(events);
    watch.finish();
    watch.failed
}

enum Asked {
    End(End),
    /// Not a byte came back.
    Silent(Cause),
}

/// A body that was read to its end.
struct Whole {
    body: Bytes,
    /// Nothing came behind it.
    clean: bool,
}

async fn read_whole<F, M>(
    reads: &mut Reads<'_, F, M>,
    answer: &ResponseHead,
    mut burst: BytesMut,
) -> Result<Whole, Cause>
where
    F: Future<Output = ReadResult>,
    M: Fn(BytesMut) -> F,
{
    let mut reader = BodyReader::new(answer.framing());
    let mut body = BytesMut::new();
    loop {
        let mut at = 0;
        while at < burst.len() && !reader.is_done() {
            let rest = burst.get(at..).unwrap_or_default();
            let step = reader.step(rest).map_err(|_| Cause::Broken("the body of a prefill answer"))?;
            let payload = rest.get(step.payload).unwrap_or_default();
            if body.len() + payload.len() > MAX_ANSWER {
                return Err(Cause::Broken("the answer to a prefill is too large"));
            }
            body.extend_from_slice(payload);
            at += step.consumed;
        }
        if reader.is_done() {
            return Ok(Whole { body: body.freeze(), clean: at == burst.len() });
        }
        if !reads.is_pending() {
            burst.clear();
            burst.reserve(READ_SMALL);
            reads.start(burst);
        }
        match poll_fn(|cx| reads.poll(cx)).await {
            (Ok(count), buf) if count > 0 => burst = buf,
            (Ok(_), _) if reader.end_of_input().is_ok() => {
                return Ok(Whole { body: body.freeze(), clean: false });
            }
            _ => return Err(Cause::Died),
        }
    }
}

fn passed_on(answer: &ResponseHead, head: &[u8], body: Bytes) -> PassedOn {
    let text = |name: &str| {
        let value = answer.header(head, name)?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    };
    let add = ["Retry-After", "Content-Encoding"];
    PassedOn {
        status: answer.status(),
        content_type: text("content-type").unwrap_or_else(|| "application/octet-stream".to_owned()),
        add: add.into_iter().filter_map(|name| Some((name, text(name)?))).collect(),
        body,
    }
}
