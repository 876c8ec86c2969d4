//! One request through to an engine: decide, try, retry, relay, learn.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_openai::Api;
use fairlead_routing::{Explain, NoPlan, Plan, Reason, TargetEntry};

use super::answer::{PassedOn, Refusal};
use super::attempt::{Attempt, Failed, Side};
use super::budget::Share;
use super::deadlines::Guard;
use super::decide::{Effort, PlacementNote, Prompt, Reading, pick, read_prompt, splits};
use super::failure::{failed, no_plan};
use super::speed;
use super::tokenise::Draft;
use super::upstream::{Cause, Waited, unless_gone};
use super::watch::Watch;
use super::wishes::{self, Wishes};
use super::{Shard, observe, probe, tokenise};
use crate::http::RequestHead;
use crate::routing::{Asked, Routed};
use crate::runtime::{Link, Runtime};

/// Largest body that is scanned on the shard, bytes. Plain text of that size takes some hundred microseconds.
const IN_LINE: usize = 1 << 20;

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
    /// Address of the client, where somebody else speaks for it.
    pub client: Option<&'a str>,
}

/// The client's end.
pub struct Client<'a, R: Runtime> {
    /// Connection.
    pub socket: &'a Link<R::Socket>,
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
    /// Nothing went out yet: this is what an engine said that only prefills.
    PassOn(Box<PassedOn>),
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
    let (tried, attempts, pieces, prefilled) = (Vec::new(), 0, Vec::new(), false);
    let attempts =
        Attempts { shard, client, request, prompt, routed, explain, tried, attempts, pieces, prefilled };
    let outcome = attempts.run(&AsItIs).await;
    match &outcome {
        Outcome::Refuse(refusal) => shard.metrics.ended(Some(&model), refusal.status),
        Outcome::PassOn(answer) => shard.metrics.ended(Some(&model), answer.status.as_u16()),
        Outcome::Left => shard.metrics.ended(Some(&model), observe::CLIENT_LEFT),
        // Counted with its answer.
        Outcome::Answered { .. } | Outcome::Cut => {}
    }
    outcome
}

/// How the request is routed, by what its headers, its body and the configuration say.
pub fn route<'s, R: Runtime>(
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
    let large = request.body.len() > IN_LINE;
    let mut draft = None;
    if !large {
        match read_prompt(&request.body, request.api, &shard.shared, &shard.options, Effort::Shard) {
            Ok(Reading::Ready(prompt)) => return Waited::Got(Ok(prompt)),
            Err(refusal) => return Waited::Got(Err(refusal)),
            Ok(Reading::Parts(parts)) => draft = Some(parts),
            Ok(Reading::Whole) => {}
        }
    }
    // Boxed, so that a request that is read in line holds no space for one that is not.
    Box::pin(read_elsewhere(shard, watch, request, large, draft)).await
}

/// Has the helper thread read the body, or tokenise what of it is in `draft`.
async fn read_elsewhere<R: Runtime>(
    shard: &Rc<Shard<R>>,
    watch: &mut Watch<R>,
    request: &Incoming<'_>,
    large: bool,
    draft: Option<Box<Draft>>,
) -> Waited<Result<Prompt, Refusal>> {
    let (api, tokenising) = (request.api, &shard.options.tokenising);
    let bytes_only =
        |why| ready(read_prompt(&request.body, api, &shard.shared, &shard.options, Effort::BytesOnly(why)));
    if let Some(draft) = draft {
        let reading = tokenise::on_helper(shard, *draft);
        return match unless_gone(R::within(tokenising.deadline, reading), watch).await {
            Waited::Got(Some(Some(prompt))) => Waited::Got(Ok(prompt)),
            Waited::Got(Some(None)) => Waited::Got(bytes_only("helper_busy")),
            Waited::Got(None) => Waited::Got(bytes_only("late")),
            Waited::Gone => Waited::Gone,
        };
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

/// What is done at a target that was picked.
pub trait How<R: Runtime> {
    /// One attempt at `plan`.
    async fn attempt(&self, attempts: &mut Attempts<'_, R>, plan: &mut Plan) -> Attempt;
}

/// The request is sent and its answer relayed.
pub struct AsItIs;

impl<R: Runtime> How<R> for AsItIs {
    async fn attempt(&self, attempts: &mut Attempts<'_, R>, plan: &mut Plan) -> Attempt {
        attempts.attempt(plan).await
    }
}

/// One request and its attempts.
pub struct Attempts<'a, R: Runtime> {
    pub(super) shard: &'a Rc<Shard<R>>,
    pub(super) client: Client<'a, R>,
    pub(super) request: Incoming<'a>,
    pub(super) prompt: Prompt,
    pub(super) routed: Routed<'a>,
    /// Why the last target was picked, where the client wants to know.
    pub(super) explain: Option<Box<Explain>>,
    /// Targets that have failed it.
    pub(super) tried: Vec<Arc<TargetEntry>>,
    /// Attempts made.
    pub(super) attempts: u32,
    /// A decode leg as it goes out, for a second connection. Empty once an answer is relayed.
    pub(super) pieces: Vec<Bytes>,
    /// The last attempt's prefill target has computed the prompt, whatever became of the rest.
    pub(super) prefilled: bool,
}

/// The targets of one attempt, each with the blocks of the prompt that it had before.
struct Placed {
    target: (Arc<TargetEntry>, u32),
    prefill: Option<(Arc<TargetEntry>, u32)>,
}

impl Placed {
    fn of(plan: &Plan) -> Self {
        let target = plan.target().clone();
        match &plan.prefill {
            None => Self { target: (target, plan.cached_blocks), prefill: None },
            Some(leg) => Self {
                target: (target, leg.decode_cached_blocks),
                prefill: Some((leg.reservation.target().clone(), plan.cached_blocks)),
            },
        }
    }
}

impl<R: Runtime> Attempts<'_, R> {
    /// Tries targets until one has served the request or none is left.
    pub async fn run<H: How<R>>(mut self, how: &H) -> Outcome {
        let mut plan = match self.pick() {
            Ok(plan) => plan,
            Err(why) => return Outcome::Refuse(no_plan(why, &self.prompt, None)),
        };
        loop {
            let placed = Placed::of(&plan);
            self.place(&placed);
            let failure = match how.attempt(&mut self, &mut plan).await {
                Attempt::Done(outcome) => return outcome,
                Attempt::Elsewhere(next, cause) => {
                    self.withdraw(&placed);
                    plan = *next;
                    self.shard.metrics.retried(cause);
                    if let Some(outcome) = Box::pin(self.pause()).await {
                        return outcome;
                    }
                    continue;
                }
                Attempt::Failed(failure) => failure,
            };
            // Its load is gone before another target is picked.
            drop(plan);
            self.withdraw(&placed);
            let Failed { cause, side } = failure;
            let at_fault = match (side, placed.prefill) {
                (Side::Prefill, Some((prefill, _))) => prefill,
                _ => placed.target.0,
            };
            self.note_failure(&at_fault, cause);
            self.tried.push(at_fault);
            if !self.may_retry() {
                return Outcome::Refuse(failed(cause));
            }
            plan = match self.pick() {
                Ok(plan) => plan,
                Err(why) => return Outcome::Refuse(no_plan(why, &self.prompt, Some(cause))),
            };
            self.shard.metrics.retried(cause);
            if let Some(outcome) = Box::pin(self.pause()).await {
                return outcome;
            }
        }
    }

    pub(super) fn pick(&mut self) -> Result<Plan, NoPlan> {
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
        let picked = pick(prompt, routed, &self.tried, &shard.shared, &mut scratch, explain, now_us);
        let mut plan = match picked {
            Ok(plan) => plan,
            Err(why) => {
                if why == NoPlan::NoneWhole && self.tried.is_empty() && splits(prompt, &shard.shared) {
                    shard.shared.prefill_down.no_pair(&prompt.model, now_us);
                }
                return Err(why);
            }
        };
        if logged && let Some(explain) = self.explain.as_deref().or(unasked.as_ref()) {
            let (request, why) = (self.request.request_id, explain.to_json(EXPLAIN_LOG));
            tracing::debug!(target: "fairlead::explain", request, model = %prompt.model, "{why}");
        }
        speed::picked(prompt, &mut plan);
        shard.metrics.picked(&plan);
        if self.tried.is_empty() {
            shard.shared.prefill_down.note(&prompt.model, &plan, now_us);
        }
        // Where there was no choice, nobody asked for figures.
        if !matches!(plan.reason, Reason::OnlyCandidate | Reason::Blind) {
            shard.shared.degraded.note(routed.strategy.name(), plan.missing, now_us);
        }
        Ok(plan)
    }

    /// Tells the control thread that the targets get this prompt: after a hand-off both hold it.
    fn place(&self, placed: &Placed) {
        self.tell(&placed.target.0, None);
        if let Some((prefill, _)) = &placed.prefill {
            self.tell(prefill, None);
        }
    }

    /// Tells it that they did not.
    fn withdraw(&self, placed: &Placed) {
        let (target, had) = &placed.target;
        self.tell(target, Some(*had));
        if let Some((prefill, had)) = &placed.prefill
            && !self.prefilled
        {
            self.tell(prefill, Some(*had));
        }
    }

    fn tell(&self, target: &TargetEntry, keep: Option<u32>) {
        // A prompt of less than a block holds nothing, but the other gateways hear of it sooner when the control thread
        // is told.
        if !self.prompt.path.is_empty() || keep.is_none() {
            let (path, space) = (self.prompt.path.clone(), self.prompt.space());
            self.shard.shared.place(PlacementNote { target: target.id, path, space, keep }, R::now_us());
        }
    }

    fn note_failure(&self, target: &Arc<TargetEntry>, cause: Cause) {
        match cause {
            Cause::Refused | Cause::ConnectTimeout | Cause::Untrusted => {
                target.cells.connect_failed(R::now_us());
                probe::begin(self.shard, target);
            }
            // One broken answer or connection is no proof that the next one fails; exhaustion here and overload
            // there are no fault of the target.
            Cause::Died
            | Cause::Broken(_)
            | Cause::PrefillTimeout
            | Cause::HandoffRefused
            | Cause::Exhausted
            | Cause::Busy => {}
        }
        tracing::debug!(target = %target.name, cause = cause.as_str(), "attempt failed");
    }

    /// Whether the number of attempts and the budget allow one more.
    pub(super) fn may_retry(&self) -> bool {
        self.attempts <= self.shard.options.retry.max_retries && self.shard.retries.take(R::now_us())
    }

    /// Backs off; the outcome if the client leaves meanwhile.
    async fn pause(&mut self) -> Option<Outcome> {
        let retries = self.attempts.clamp(1, 8);
        let pause = backoff(self.shard.options.retry.backoff, retries, self.shard.draw());
        match unless_gone(R::sleep(pause), self.client.watch).await {
            Waited::Got(()) => None,
            Waited::Gone => Some(Outcome::Left),
        }
    }
}

/// Doubling pauses with jitter between half and all of each.
fn backoff(base: Duration, retry: u32, draw: u64) -> Duration {
    let whole = base.saturating_mul(1 << (retry - 1)).min(Duration::from_secs(1));
    let half = whole / 2;
    half + Duration::from_nanos(draw % (half.as_nanos() as u64 + 1))
}
