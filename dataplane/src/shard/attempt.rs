//! One attempt at one target: send, wait for the answer's head, relay, learn.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_routing::{Plan, TargetEntry};

use super::forward::{Attempts, Outcome};
use super::observe;
use super::relay::{ClientSide, Ended, Observer, Stream, begins_with_failure};
use super::speed::{self, Went};
use super::split::Split;
use super::upstream::{
    Cause, Exchanged, READ_SMALL, ReadResult, Reads, SWITCHED, Upstream, Waited, acquire, exchange, kept,
    unless_gone,
};
use crate::http::{
    BodyReader, ClientBody, ClientHead, OutgoingBody, RequestIdRule, ResponseHead, UpstreamHead,
};
use crate::runtime::{Direction, Link, Runtime, Stream as _, is_local};
use crate::tls::place;

/// Longest explain record in an answer's head, bytes.
const EXPLAIN_HEADER: usize = 2048;

/// How one attempt ended.
pub enum Attempt {
    /// Nothing is left to be tried.
    Done(Outcome),
    /// Other targets may be tried, or the request fails.
    Failed(Failed),
    /// For this cause it was not served, and other targets were found: go on there.
    Elsewhere(Box<Plan>, Cause),
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// What happened.
    pub cause: Cause,
    /// Where.
    pub side: Side,
}

/// Which of an attempt's targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that makes the answer.
    Target,
    /// The one that prefills for it.
    Prefill,
}

impl Attempt {
    /// The target that makes the answer has failed.
    pub fn failed(cause: Cause) -> Self {
        Self::Failed(Failed { cause, side: Side::Target })
    }
}

/// How a connection was used.
pub enum Tried {
    /// The attempt is over.
    Ended(Attempt),
    /// Not a byte came back.
    Silent(Cause),
    /// The engine did not take a hand-off.
    Refused,
}

/// Header lines of a leg, and what goes with them.
pub struct HeadOf<'a> {
    /// Target that it goes to.
    pub target: &'a TargetEntry,
    /// How the body goes.
    pub body: OutgoingBody,
    /// Further lines.
    pub add: &'a [(&'static str, String)],
    /// The request id, where it is not the client's.
    pub id: Option<&'a str>,
    /// The gateway reads the answer itself.
    pub plain: bool,
}

/// The beginning of an answer, as it came.
pub struct Begun {
    /// Its head.
    pub head: Bytes,
    /// What came behind it.
    pub rest: BytesMut,
    /// The whole request went out.
    pub sent: bool,
    /// When that was begun.
    pub sent_us: u64,
}

impl<R: Runtime> Attempts<'_, R> {
    /// One attempt, whole or with a hand-off. Plans are passed by reference: each of these functions' futures would hold
    /// a copy of its own.
    pub(super) async fn attempt(&mut self, plan: &mut Plan) -> Attempt {
        self.prefilled = false;
        self.attempts += 1;
        match plan.prefill.take() {
            None => self.whole(plan).await,
            // Boxed, so that a request that is not split holds no space for one that is.
            Some(prefill) => Box::pin(self.split(plan, prefill)).await,
        }
    }

    /// An attempt at one target, with one more connection where a kept one turns out to be dead.
    pub(super) async fn whole(&mut self, plan: &mut Plan) -> Attempt {
        let mut fresh = false;
        loop {
            let upstream = match self.connect(plan.target(), fresh).await {
                Ok(upstream) => upstream,
                Err(attempt) => return attempt,
            };
            let reused = upstream.reused;
            match self.send_whole(upstream, plan).await {
                Tried::Ended(attempt) => return attempt,
                // A kept connection that ends without a byte was most likely closed while it was idle.
                Tried::Silent(_) if reused && !fresh => fresh = true,
                Tried::Silent(cause) => return Attempt::failed(cause),
                Tried::Refused => return Attempt::failed(Cause::HandoffRefused),
            }
        }
    }

    pub(super) async fn connect(
        &mut self,
        target: &TargetEntry,
        fresh: bool,
    ) -> Result<Upstream<R>, Attempt> {
        if !fresh && let Some(upstream) = kept(self.shard, target) {
            target.cells.connected();
            return Ok(upstream);
        }
        // Boxed, so that a request over a kept connection holds no space for making one.
        match Box::pin(unless_gone(acquire(self.shard, target, true), self.client.watch)).await {
            Waited::Got(Ok(upstream)) => {
                target.cells.connected();
                Ok(upstream)
            }
            Waited::Got(Err(cause)) => Err(Attempt::failed(cause)),
            Waited::Gone => Err(Attempt::Done(Outcome::Left)),
        }
    }

    async fn send_whole(&mut self, upstream: Upstream<R>, plan: &mut Plan) -> Tried {
        let head = {
            let (target, body) = (plan.target(), OutgoingBody::Length(self.request.body.len() as u64));
            self.head_for(&HeadOf { target, body, add: &[], id: None, plain: false })
        };
        let write = pin!(upstream.socket.write_both(Bytes::from(head), self.request.body.clone()));
        let prefill = Duration::from_micros(plan.predicted_ttft_us.into());
        self.try_on(&upstream.socket, write, plan, prefill, None).await
    }

    /// Uses a connection: `write` sends the request. Without a first token to be seen, the prefill is taken to be over
    /// after `prefill`.
    pub(super) async fn try_on<W>(
        &mut self,
        socket: &Link<R::Socket>,
        write: Pin<&mut W>,
        plan: &mut Plan,
        prefill: Duration,
        split: Option<&Split<R>>,
    ) -> Tried
    where
        W: Future<Output = io::Result<()>>,
    {
        let make = |buf: BytesMut| socket.read(buf);
        let mut op = pin!(make(BytesMut::with_capacity(READ_SMALL)));
        let mut reads = Reads::new(op.as_mut(), make);
        let mut answer = self.shard.answers.borrow_mut().pop().unwrap_or_default();
        let hold = self.shard.options.timeouts.head_hold;
        let sent_us = split.map_or_else(R::now_us, Split::began_us);
        let exchanged = {
            let watch = &mut *self.client.watch;
            let head = pin!(exchange::<R, _, _, _, _>(socket, &mut reads, write, &mut answer, watch, hold));
            speed::presuming::<R, _>(&self.prompt, plan, prefill, head).await
        };
        let (head, rest, sent) = match exchanged {
            Exchanged::Answer { head, rest, sent } => (head, rest, sent),
            Exchanged::Switched { .. } => {
                socket.shutdown(Direction::Both);
                return Tried::Ended(Attempt::failed(SWITCHED));
            }
            Exchanged::Gone => return Tried::Ended(Attempt::Done(Outcome::Left)),
            Exchanged::Failed { cause, silent } => {
                socket.shutdown(Direction::Both);
                return if silent { Tried::Silent(cause) } else { Tried::Ended(Attempt::failed(cause)) };
            }
        };
        let status = answer.status().as_u16();
        if let Some(split) = split
            && (split.is_refused_by(status, plan.target()) || begins_with_failure(&answer, &rest))
        {
            socket.shutdown(Direction::Both);
            return Tried::Refused;
        }
        if status == 503
            && let Some(next) = self.elsewhere(&[plan.target()])
        {
            socket.shutdown(Direction::Both);
            return Tried::Ended(Attempt::Elsewhere(Box::new(next), Cause::Busy));
        }
        let begun = Begun { head, rest, sent, sent_us };
        let outcome = self.relay(socket, &mut reads, &answer, begun, plan, split).await;
        self.shard.keep_answer_head(answer);
        Tried::Ended(Attempt::Done(outcome))
    }

    /// Relays an answer. Nothing is retried any more: the body's memory is given back before the first byte goes out.
    pub(super) async fn relay<F, M>(
        &mut self,
        socket: &Link<R::Socket>,
        reads: &mut Reads<'_, F, M>,
        answer: &ResponseHead,
        begun: Begun,
        plan: &mut Plan,
        split: Option<&Split<R>>,
    ) -> Outcome
    where
        F: Future<Output = ReadResult>,
        M: Fn(BytesMut) -> F,
    {
        let Begun { head, rest, sent, sent_us } = begun;
        let Plan { reservation, cached_blocks, predicted_ttft_us, .. } = plan;
        let (cached_blocks, predicted_ttft_us) = (*cached_blocks, *predicted_ttft_us);
        let target = reservation.target().clone();
        self.request.body = Bytes::new();
        self.pieces = Vec::new();
        self.request.head_bytes = Bytes::new();
        self.request.held = None;
        self.prompt.path = Arc::default();

        let mut out = Vec::with_capacity(READ_SMALL);
        let body = self.write_head(answer, &head, &target, split, &mut out);
        drop(head);
        if let Some(split) = split {
            split.answered(answer, !rest.is_empty(), reservation);
        }
        let mut stream = Stream {
            reader: BodyReader::new(answer.framing()),
            body,
            observer: Observer::of(answer),
            correction: split.map(Split::correction),
            api: self.prompt.api,
            request_id: self.request.request_id,
            first_us: 0,
            passed_us: 0,
            last_us: 0,
        };
        let mut side = ClientSide {
            socket: self.client.socket,
            guard: self.client.guard,
            watch: self.client.watch,
            stall: self.shard.options.timeouts.stall,
        };
        let mut seen = None;
        let first_token = |now_us| {
            seen = reservation.first_token(now_us);
            if let Some(split) = split {
                split.first_token(now_us, true);
            }
        };
        let ended = stream.run(&mut side, socket, reads, out, rest, first_token).await;
        let well = stream.went_well(ended) && answer.status().is_success();
        if let Some(split) = split {
            split.over(&self.prompt, well, stream.first_us);
        }
        if well {
            let (usage, events) = (stream.observer.usage(), stream.observer.events());
            let went = Went { seen, first_us: stream.first_us, last_us: stream.last_us, usage, events };
            speed::note(&self.prompt, reservation, &went).into_iter().for_each(|n| self.shard.shared.sped(n));
        }

        let reusable = matches!(ended, Ended::Complete { clean: true }) && sent && answer.keep_alive();
        if reusable && !reads.is_pending() {
            self.shard.pool.put(target.id, socket.clone());
        } else {
            socket.shutdown(Direction::Both);
        }
        observe::answered(
            self.shard,
            &observe::Answered {
                prompt: &self.prompt,
                target: target.id,
                prefill: split.map(Split::prefilled),
                status: answer.status().as_u16(),
                cached_blocks,
                predicted_ttft_us,
                began_us: self.request.began_us,
                read_us: self.request.read_us,
                sent_us,
                first_try: self.tried.is_empty(),
                first_us: stream.first_us,
                passed_us: stream.passed_us,
                last_us: stream.last_us,
                usage: stream.observer.usage(),
                events: stream.observer.events(),
                ended,
            },
        );
        match ended {
            Ended::Complete { .. } => Outcome::Answered { keep_alive: body.keep_alive },
            Ended::ClientGone | Ended::Broken => Outcome::Cut,
        }
    }

    /// Targets that may serve what these did not. Their load is reserved at once.
    pub(super) fn elsewhere(&mut self, than: &[&Arc<TargetEntry>]) -> Option<Plan> {
        let before = self.tried.len();
        self.tried.extend(than.iter().map(|target| Arc::clone(target)));
        let next = if self.may_retry() { self.pick().ok() } else { None };
        if next.is_none() {
            self.tried.truncate(before);
        }
        next
    }

    /// The head of the request for a target.
    pub(super) fn head_for(&self, of: &HeadOf<'_>) -> Vec<u8> {
        let request = &self.request;
        let rank = of.target.rank.to_string();
        let ranked = of.target.info.dp_ranks > 1;
        let more: Vec<(&str, &str)>;
        let only_rank = [("X-data-parallel-rank", rank.as_str())];
        let add = if of.add.is_empty() && request.client.is_none() {
            only_rank.get(..usize::from(ranked)).unwrap_or_default()
        } else {
            let told = of.add.iter().map(|(name, value)| (*name, value.as_str()));
            // Behind what the client may have sent under that name, which counts as the same list.
            let client = request.client.map(|client| ("X-Forwarded-For", client));
            more = told.chain(ranked.then_some(only_rank[0])).chain(client).collect();
            more.as_slice()
        };
        let mut head = Vec::with_capacity(request.head_bytes.len() + 256);
        request.head.write_upstream(
            &request.head_bytes,
            &UpstreamHead {
                base_path: &self.shard.options.base_path,
                host: host(&of.target.address),
                request_id: of.id.map_or(RequestIdRule::KeepOr(request.request_id), RequestIdRule::Set),
                body: of.body,
                plain: of.plain,
                add,
            },
            &mut head,
        );
        head
    }

    fn write_head(
        &mut self,
        answer: &ResponseHead,
        head: &[u8],
        target: &TargetEntry,
        split: Option<&Split<R>>,
        out: &mut Vec<u8>,
    ) -> ClientBody {
        let mut add = [("x-fairlead-instance", &*target.name), ("", ""), ("", ""), ("", "")];
        let mut count = 1;
        let mut tell = |name, value| {
            add[count] = (name, value);
            count += 1;
        };
        // An engine that echoes the id has said it already, unless it got one of ours.
        if split.is_some() || answer.header(head, "x-request-id").is_none() {
            tell("x-request-id", self.request.request_id);
        }
        if let Some(split) = split {
            tell("x-fairlead-prefill-instance", split.prefill_name());
        }
        let why = self.explain.take().map(|explain| explain.to_json(EXPLAIN_HEADER));
        if let Some(why) = &why {
            tell("x-fairlead-explain", why);
        }
        let add = add.get(..count).unwrap_or_default();
        let keep_alive = self.request.keep_alive
            && (self.request.read_ahead || !self.client.watch.input_ended())
            && !self.shard.shared.is_draining();
        let version = self.request.head.version();
        let told = ClientHead { version, keep_alive, own_id: split.is_some(), add };
        let body = answer.write_client(head, &told, out);
        out.drain(..self.client.watch.take_prefix().min(out.len()));
        body
    }
}

/// What an engine is called where the client has not said: a path is no host.
fn host(address: &str) -> &str {
    if is_local(address) { "localhost" } else { place(address) }
}
