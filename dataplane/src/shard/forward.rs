//! One request through to an engine: decide, try, retry, relay, learn.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_openai::Api;
use fairlead_routing::{Explain, NoPlan, Plan, Reason, TargetEntry};

use super::answer::Refusal;
use super::budget::Share;
use super::deadlines::Guard;
use super::decide::{Effort, PlacementNote, Prompt, Reading, pick, read_prompt};
use super::relay::{ClientSide, Ended, Observer, Stream};
use super::speed::{self, Went};
use super::upstream::{
    Cause, Exchanged, Outgoing, READ_SMALL, Reads, Upstream, Waited, acquire, exchange, unless_gone,
};
use super::watch::Watch;
use super::wishes::{self, Wishes};
use super::{Shard, observe, probe, tokenise};
use crate::http::{
    BodyReader, ClientHead, OutgoingBody, RequestHead, RequestIdRule, ResponseHead, UpstreamHead,
};
use crate::routing::{Asked, Routed};
use crate::runtime::{Direction, Runtime, Stream as _};

/// Largest body that is scanned on the shard, bytes. Plain text of that size takes some hundred microseconds.
const IN_LINE: usize = 1 << 20;

/// Longest explain record in an answer's head, bytes.
const EXPLAIN_HEADER: usize = 2048;
/// Longest one in the log, bytes.
const EXPLAIN_LOG: usize = 4096;

/// A request that was read completely.
pub struct Incoming<'a> {
    /// Its API.
    pub api: Api,
    /// Its parsed head.
    pub head: &'a RequestHead,
    /// The bytes that `head` refers to.
    pub head_bytes: Bytes,
    /// Its body.
    pub body: Bytes,
    /// What the body draws of the process's budget.
    pub held: Option<Share>,
    /// Its id: the client's or ours.
    pub request_id: &'a str,
    /// When its head was complete.
    pub began_us: u64,
    /// When its body was.
    pub read_us: u64,
    /// Whether the client's connection may be kept.
    pub keep_alive: bool,
    /// Whether bytes of a further request were read already.
    pub read_ahead: bool,
}

/// The client's end.
pub struct Client<'a, R: Runtime> {
    /// Connection.
    pub socket: &'a R::Socket,
    /// Deadline.
    pub guard: &'a Guard<R>,
    /// Watch.
    pub watch: &'a mut Watch<R>,
}

/// What is left to do for the connection.
pub enum Outcome {
    /// The answer went out; whether the connection may be kept.
    Answered {
        /// See above.
        keep_alive: bool,
    },
    /// Nothing went out yet: this is the answer.
    Refuse(Refusal),
    /// The client left before anything went out.
    Left,
    /// The answer was cut: the client left, or was told of a failure by the incomplete answer.
    Cut,
}

/// Serves one request.
pub async fn forward<R: Runtime>(
    shard: &Rc<Shard<R>>,
    client: Client<'_, R>,
    request: Incoming<'_>,
) -> Outcome {
    let Some(_in_flight) = shard.shared.in_flight.take(1) else {
        let refusal = Refusal::new(503, "too many requests are in flight").code("overloaded").retry_after(1);
        shard.metrics.ended(None, refusal.status);
        return Outcome::Refuse(refusal);
    };
    let wishes = match Wishes::read(request.head, &request.head_bytes) {
        Ok(wishes) => wishes,
        Err(refusal) => {
            shard.metrics.ended(None, refusal.status);
            return Outcome::Refuse(refusal);
        }
    };
    let mut prompt = match read(shard, client.watch, &request).await {
        Waited::Got(Ok(prompt)) => prompt,
        Waited::Got(Err(refusal)) => {
            shard.metrics.ended(None, refusal.status);
            return Outcome::Refuse(refusal);
        }
        Waited::Gone => {
            shard.metrics.ended(None, observe::CLIENT_LEFT);
            return Outcome::Left;
        }
    };
    let routed = match route(shard, &wishes, &mut prompt) {
        Ok(routed) => routed,
        Err(refusal) => {
            shard.metrics.ended(Some(&prompt.model), refusal.status);
            return Outcome::Refuse(refusal);
        }
    };
    let explain = (wishes.explain && shard.options.routing.explain).then(Box::default);
    shard.retries.request();
    if let Some(how) = prompt.how {
        shard.metrics.tokenised(&prompt.model, how);
    }
    let model = prompt.model.clone();
    let outcome = Attempts { shard, client, request, prompt, routed, explain, tried: Vec::new() }.run().await;
    match &outcome {
        Outcome::Refuse(refusal) => shard.metrics.ended(Some(&model), refusal.status),
        Outcome::Left => shard.metrics.ended(Some(&model), observe::CLIENT_LEFT),
        // Counted with its answer.
        Outcome::Answered { .. } | Outcome::Cut => {}
    }
    outcome
}

/// How the request is routed, by what its headers, its body and the configuration say.
fn route<'s, R: Runtime>(
    shard: &'s Shard<R>,
    wishes: &Wishes<'_>,
    prompt: &mut Prompt,
) -> Result<Routed<'s>, Refusal> {
    let said = &mut prompt.said;
    said.session = wishes.session.or(said.session);
    said.user = wishes.user.or(said.user);
    let asked = Asked { prompt_tokens: prompt.tokens, max_output: said.max_output, ..wishes.asked };
    let (routing, fleet) = (&shard.shared.routing, &shard.shared.fleet);
    routing
        .of(&asked, &prompt.model, fleet, &mut shard.spelt.borrow_mut())
        .map_err(|bad| wishes::refused(&bad))
}

/// Scans and hashes the body: in line, or for a large one on the helper thread, so that the shard's other connections
/// do not wait for it.
async fn read<R: Runtime>(
    shard: &Rc<Shard<R>>,
    watch: &mut Watch<R>,
    request: &Incoming<'_>,
) -> Waited<Result<Prompt, Refusal>> {
    let (api, tokenising) = (request.api, &shard.options.tokenising);
    let bytes_only =
        |why| ready(read_prompt(&request.body, api, &shard.shared, &shard.options, Effort::BytesOnly(why)));
    let large = request.body.len() > IN_LINE;
    if !large {
        match read_prompt(&request.body, api, &shard.shared, &shard.options, Effort::Shard) {
            Ok(Reading::Ready(prompt)) => return Waited::Got(Ok(prompt)),
            Err(refusal) => return Waited::Got(Err(refusal)),
            Ok(Reading::Parts(draft)) => {
                let reading = tokenise::on_helper(shard, *draft);
                return match unless_gone(R::within(tokenising.deadline, reading), watch).await {
                    Waited::Got(Some(Some(prompt))) => Waited::Got(Ok(prompt)),
                    Waited::Got(Some(None)) => Waited::Got(bytes_only("helper_busy")),
                    Waited::Got(None) => Waited::Got(bytes_only("late")),
                    Waited::Gone => Waited::Gone,
                };
            }
            Ok(Reading::Whole) => {}
        }
    }
    let (body, shared, options) = (request.body.clone(), shard.shared.clone(), shard.options.clone());
    let work = move || ready(read_prompt(&body, api, &shared, &options, Effort::Helper));
    if large {
        return match unless_gone(shard.shared.offload.run(work), watch).await {
            Waited::Got(prompt) => Waited::Got(prompt.unwrap_or_else(|| Err(unreadable()))),
            Waited::Gone => Waited::Gone,
        };
    }
    let reading = shard.shared.offload.run_if_room(work);
    match unless_gone(R::within(tokenising.deadline, reading), watch).await {
        Waited::Got(Some(Some(prompt))) => Waited::Got(prompt),
        Waited::Got(Some(None)) => Waited::Got(bytes_only("helper_busy")),
        Waited::Got(None) => Waited::Got(bytes_only("late")),
        Waited::Gone => Waited::Gone,
    }
}

/// A reading that may not be left half done.
fn ready(reading: Result<Reading, Refusal>) -> Result<Prompt, Refusal> {
    match reading? {
        Reading::Ready(prompt) => Ok(prompt),
        Reading::Parts(_) | Reading::Whole => Err(unreadable()),
    }
}

fn unreadable() -> Refusal {
    Refusal::new(500, "the request's body could not be read").code("internal_error")
}

struct Attempts<'a, R: Runtime> {
    shard: &'a Rc<Shard<R>>,
    client: Client<'a, R>,
    request: Incoming<'a>,
    prompt: Prompt,
    routed: Routed<'a>,
    /// Why the last target was picked, where the client wants to know.
    explain: Option<Box<Explain>>,
    tried: Vec<Arc<TargetEntry>>,
}

/// How one attempt ended.
enum Attempt {
    Done(Outcome),
    /// Another target may be tried with this plan, or the request fails for this cause.
    Failed(Cause),
    /// The engine is busy and another target was found: go on there.
    Elsewhere(Box<Plan>),
}

impl<R: Runtime> Attempts<'_, R> {
    async fn run(mut self) -> Outcome {
        let mut plan = match self.pick() {
            Ok(plan) => plan,
            Err(why) => return Outcome::Refuse(no_plan(why, &self.prompt, None)),
        };
        loop {
            let target = plan.target().clone();
            let path_kept = plan.cached_blocks;
            self.place(&target, None);
            let cause = match self.attempt(plan).await {
                Attempt::Done(outcome) => return outcome,
                Attempt::Elsewhere(next) => {
                    self.place(&target, Some(path_kept));
                    plan = *next;
                    self.shard.metrics.retried(Cause::Busy);
                    if let Some(outcome) = self.pause().await {
                        return outcome;
                    }
                    continue;
                }
                Attempt::Failed(cause) => cause,
            };
            self.place(&target, Some(path_kept));
            self.note_failure(&target, cause);
            self.tried.push(target);
            if !self.may_retry() {
                return Outcome::Refuse(failed(cause));
            }
            plan = match self.pick() {
                Ok(plan) => plan,
                Err(why) => return Outcome::Refuse(no_plan(why, &self.prompt, Some(cause))),
            };
            self.shard.metrics.retried(cause);
            if let Some(outcome) = self.pause().await {
                return outcome;
            }
        }
    }

    fn pick(&mut self) -> Result<Plan, NoPlan> {
        let (shard, now_us) = (self.shard, R::now_us());
        let logged = tracing::enabled!(target: "fairlead::explain", tracing::Level::DEBUG)
            && (shard.draw() as f64) < shard.options.routing.explain_sample * 2f64.powi(64);
        let mut unasked = None;
        let explain = match self.explain.as_deref_mut() {
            None if logged => Some(unasked.insert(Explain::default())),
            asked => asked,
        };
        let (prompt, routed) = (&self.prompt, &self.routed);
        let mut scratch = shard.scratch.borrow_mut();
        let mut plan = pick(prompt, routed, &self.tried, &shard.shared, &mut scratch, explain, now_us)?;
        if logged && let Some(explain) = self.explain.as_deref().or(unasked.as_ref()) {
            let (request, why) = (self.request.request_id, explain.to_json(EXPLAIN_LOG));
            tracing::debug!(target: "fairlead::explain", request, model = %prompt.model, "{why}");
        }
        speed::picked(prompt, &mut plan);
        shard.metrics.picked(&plan);
        // Where there was no choice, nobody asked for figures.
        if !matches!(plan.reason, Reason::OnlyCandidate | Reason::Blind) {
            shard.shared.degraded.note(routed.strategy.name(), plan.missing, now_us);
        }
        Ok(plan)
    }

    /// Tells the control thread that the target gets, or did not get, this prompt.
    fn place(&self, target: &TargetEntry, keep: Option<u32>) {
        // A prompt of less than a block holds nothing, but the other gateways hear of it sooner when the control thread
        // is told.
        if !self.prompt.path.is_empty() || keep.is_none() {
            self.shard.shared.place(PlacementNote {
                target: target.id,
                path: self.prompt.path.clone(),
                space: self.prompt.space(),
                keep,
            });
        }
    }

    fn note_failure(&self, target: &Arc<TargetEntry>, cause: Cause) {
        match cause {
            Cause::Refused | Cause::ConnectTimeout => {
                target.cells.connect_failed(R::now_us());
                probe::begin(self.shard, target);
            }
            // One broken answer or connection is no proof that the next one fails; exhaustion here and overload
            // there are no fault of the target.
            Cause::Died | Cause::Broken(_) | Cause::Exhausted | Cause::Busy => {}
        }
        tracing::debug!(target = %target.name, cause = cause.as_str(), "attempt failed");
    }

    /// Whether the number of attempts and the budget allow one more.
    fn may_retry(&self) -> bool {
        self.tried.len() <= self.shard.options.retry.max_retries as usize
            && self.shard.retries.take(R::now_us())
    }

    /// Backs off; the outcome if the client leaves meanwhile.
    async fn pause(&mut self) -> Option<Outcome> {
        let retries = u32::try_from(self.tried.len()).unwrap_or(u32::MAX).clamp(1, 8);
        let pause = backoff(self.shard.options.retry.backoff, retries, self.shard.draw());
        match unless_gone(R::sleep(pause), self.client.watch).await {
            Waited::Got(()) => None,
            Waited::Gone => Some(Outcome::Left),
        }
    }

    async fn attempt(&mut self, plan: Plan) -> Attempt {
        let target = plan.target().clone();
        let upstream = match self.connect(&target, false).await {
            Ok(upstream) => upstream,
            Err(attempt) => return attempt,
        };
        let reused = upstream.reused;
        match self.try_on(upstream, plan).await {
            Tried::Ended(attempt) => attempt,
            Tried::Silent(plan, cause) if reused => {
                // A kept connection that ends without a byte was most likely closed while it was idle.
                let upstream = match self.connect(&target, true).await {
                    Ok(upstream) => upstream,
                    Err(attempt) => return attempt,
                };
                match self.try_on(upstream, *plan).await {
                    Tried::Ended(attempt) => attempt,
                    Tried::Silent(..) => Attempt::Failed(cause),
                }
            }
            Tried::Silent(_, cause) => Attempt::Failed(cause),
        }
    }

    async fn connect(&mut self, target: &TargetEntry, fresh: bool) -> Result<Upstream<R>, Attempt> {
        match unless_gone(acquire(self.shard, target, fresh), self.client.watch).await {
            Waited::Got(Ok(upstream)) => {
                target.cells.connected();
                Ok(upstream)
            }
            Waited::Got(Err(cause)) => Err(Attempt::Failed(cause)),
            Waited::Gone => Err(Attempt::Done(Outcome::Left)),
        }
    }

    async fn try_on(&mut self, upstream: Upstream<R>, mut plan: Plan) -> Tried {
        let Upstream { socket, .. } = upstream;
        let outgoing = self.outgoing(plan.target());
        let make = |buf: BytesMut| socket.read(buf);
        let mut op = pin!(make(BytesMut::with_capacity(READ_SMALL)));
        let mut reads = Reads::new(op.as_mut(), make);
        let mut answer = self.shard.answers.borrow_mut().pop().unwrap_or_default();
        let hold = self.shard.options.timeouts.head_hold;
        let sent_us = R::now_us();
        let exchanged = exchange(&socket, &mut reads, outgoing, &mut answer, self.client.watch, hold);
        let exchanged = speed::presuming::<R, _>(&self.prompt, &mut plan, exchanged).await;
        let (head, rest, sent) = match exchanged {
            Exchanged::Answer { head, rest, sent } => (head, rest, sent),
            Exchanged::Gone => return Tried::Ended(Attempt::Done(Outcome::Left)),
            Exchanged::Failed { cause, silent } => {
                socket.shutdown(Direction::Both);
                return if silent {
                    Tried::Silent(Box::new(plan), cause)
                } else {
                    Tried::Ended(Attempt::Failed(cause))
                };
            }
        };
        if answer.status().as_u16() == 503
            && let Some(next) = self.elsewhere(plan.target())
        {
            socket.shutdown(Direction::Both);
            return Tried::Ended(Attempt::Elsewhere(Box::new(next)));
        }
        let Plan { mut reservation, cached_blocks, predicted_ttft_us, .. } = plan;
        let target = reservation.target().clone();

        // From here on nothing is retried: the body's memory is given back before the first byte goes out.
        self.request.body = Bytes::new();
        self.request.head_bytes = Bytes::new();
        self.request.held = None;
        self.prompt.path = Arc::default();

        let mut out = Vec::with_capacity(READ_SMALL);
        let body = self.write_head(&answer, &head, &target, &mut out);
        drop(head);
        let mut stream = Stream {
            reader: BodyReader::new(answer.framing()),
            body,
            observer: Observer::of(&answer),
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
        let first_token = |now_us| seen = reservation.first_token(now_us);
        let ended = stream.run(&mut side, &socket, &mut reads, out, rest, first_token).await;
        if stream.went_well(ended) && answer.status().is_success() {
            let (usage, events) = (stream.observer.usage(), stream.observer.events());
            let went = Went { seen, first_us: stream.first_us, last_us: stream.last_us, usage, events };
            speed::note(&self.prompt, &mut reservation, &went)
                .into_iter()
                .for_each(|n| self.shard.shared.sped(n));
        }
        drop(reservation);

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
        self.shard.keep_answer_head(answer);
        Tried::Ended(Attempt::Done(match ended {
            Ended::Complete { .. } => Outcome::Answered { keep_alive: body.keep_alive },
            Ended::ClientGone | Ended::Broken => Outcome::Cut,
        }))
    }

    /// A target that may serve what `busy` has no room for. Its load is reserved at once.
    fn elsewhere(&mut self, busy: &Arc<TargetEntry>) -> Option<Plan> {
        self.tried.push(busy.clone());
        let next = if self.may_retry() { self.pick().ok() } else { None };
        if next.is_none() {
            self.tried.pop();
        }
        next
    }

    fn outgoing(&self, target: &TargetEntry) -> Outgoing {
        let request = &self.request;
        let rank = target.rank.to_string();
        let ranked = [("X-data-parallel-rank", rank.as_str())];
        let mut head = Vec::with_capacity(request.head_bytes.len() + 256);
        request.head.write_upstream(
            &request.head_bytes,
            &UpstreamHead {
                base_path: &self.shard.options.base_path,
                host: &target.address,
                request_id: RequestIdRule::KeepOr(request.request_id),
                body: OutgoingBody::Length(request.body.len() as u64),
                add: if target.info.dp_ranks > 1 { &ranked } else { &[] },
            },
            &mut head,
        );
        Outgoing { head, body: request.body.clone() }
    }

    fn write_head(
        &mut self,
        answer: &ResponseHead,
        head: &[u8],
        target: &TargetEntry,
        out: &mut Vec<u8>,
    ) -> crate::http::ClientBody {
        let mut add = [("x-fairlead-instance", &*target.name), ("", ""), ("", "")];
        let mut count = 1;
        // An engine that echoes the id has said it already.
        if answer.header(head, "x-request-id").is_none() {
            add[count] = ("x-request-id", self.request.request_id);
            count += 1;
        }
        let why = self.explain.take().map(|explain| explain.to_json(EXPLAIN_HEADER));
        if let Some(why) = &why {
            add[count] = ("x-fairlead-explain", why);
            count += 1;
        }
        let add = add.get(..count).unwrap_or_default();
        let keep_alive = self.request.keep_alive
            && (self.request.read_ahead || !self.client.watch.input_ended())
            && !self.shard.shared.is_draining();
        let body = answer.write_client(
            head,
            &ClientHead { version: self.request.head.version(), keep_alive, add },
            out,
        );
        out.drain(..self.client.watch.take_prefix().min(out.len()));
        body
    }
}

/// How a connection was used.
enum Tried {
    /// The attempt is over.
    Ended(Attempt),
    /// Not a byte came back.
    Silent(Box<Plan>, Cause),
}

/// The answer for a request that found no target.
fn no_plan(why: NoPlan, prompt: &Prompt, cause: Option<Cause>) -> Refusal {
    match (why, cause) {
        (NoPlan::UnknownModel, None) => {
            // The model was there when the body was read; its last target has just gone.
            Refusal::new(503, format!("no target serves `{}` any more", prompt.model)).retry_after(1)
        }
        (_, Some(cause)) => failed(cause),
        (NoPlan::NoneMatches, None) => {
            Refusal::new(503, format!("no target of `{}` matches the label filter", prompt.model))
                .code("no_matching_target")
        }
        (NoPlan::NoneWhole, None) => Refusal::new(
            503,
            format!(
                "no target of `{}` serves whole requests, and this one cannot be split now",
                prompt.model
            ),
        )
        .code("no_whole_target")
        .retry_after(1),
        (NoPlan::NoneReady | NoPlan::AllTried, None) => {
            Refusal::new(503, format!("no target of `{}` is ready", prompt.model))
                .code("no_ready_target")
                .retry_after(1)
        }
    }
}

/// The answer for a request whose last attempt failed.
fn failed(cause: Cause) -> Refusal {
    match cause {
        Cause::Refused => Refusal::new(502, "the engine cannot be reached").code("upstream_unreachable"),
        Cause::ConnectTimeout => {
            Refusal::new(504, "connecting to the engine took too long").code("upstream_timeout")
        }
        Cause::Died => {
            Refusal::new(502, "the engine closed the connection before it answered").code("upstream_error")
        }
        Cause::Broken(what) => {
            Refusal::new(502, format!("the engine's answer cannot be read: {what}")).code("upstream_error")
        }
        Cause::Exhausted => Refusal::new(503, "the router is out of sockets").retry_after(1),
        Cause::Busy => Refusal::new(503, "the engine is busy").retry_after(1),
    }
}

/// Doubling pauses with jitter between half and all of each.
fn backoff(base: Duration, retry: u32, draw: u64) -> Duration {
    let whole = base.saturating_mul(1 << (retry - 1)).min(Duration::from_secs(1));
    let half = whole / 2;
    half + Duration::from_nanos(draw % (half.as_nanos() as u64 + 1))
}
