//! Requests that one target prefills and another decodes.
//!
//! The prefill leg is a task of its own ([`leg`]); the decode leg is an attempt like any other, with a few more eyes on
//! it. While no byte has gone to the client, a leg that fails is a reason to try another pair, and the target at fault is
//! the one that is avoided. A hand-off that the decode side refuses is served there without it.

mod leg;

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use bytes::Bytes;
use fairlead_openai::Usage;
use fairlead_routing::{Parts, Plan, PrefillPlan, Reservation, TargetEntry};
use fairlead_wire::TargetId;
use fairlead_wire::msg::Handoff;

use super::Shard;
use super::attempt::{Attempt, Failed, HeadOf, Side, Tried};
use super::decide::{self, Prompt};
use super::forward::{Attempts, Outcome};
use super::relay::Correction;
use super::speed;
use super::upstream::{Cause, Waited, unless_gone};
use crate::handoff::{Deal, Fresh, Leg, Order, PushPeer, Request, told};
use crate::http::{OutgoingBody, ResponseHead};
use crate::runtime::{Runtime, Stream as _};

use leg::{Done, End, Line, PrefillLeg};

/// Targets that are remembered; at the bound all are forgotten, which costs each of them one request that is not sent at
/// once, and one more line in the log.
const REMEMBERED: usize = 4096;

/// What prefill targets that push have told of themselves, and which hand-offs were complained about.
#[derive(Default)]
pub struct PushPeers {
    /// With the incarnation of the engine that told it.
    told: RefCell<AHashMap<TargetId, (u64, PushPeer)>>,
    complained: RefCell<AHashSet<TargetId>>,
}

impl PushPeers {
    fn get(&self, target: &TargetEntry) -> Option<PushPeer> {
        let told = self.told.borrow();
        let (incarnation, peer) = told.get(&target.id)?;
        (*incarnation == target.info.incarnation).then(|| peer.clone())
    }

    fn put(&self, target: &TargetEntry, peer: PushPeer) {
        let mut told = self.told.borrow_mut();
        if told.len() >= REMEMBERED {
            told.clear();
        }
        told.insert(target.id, (target.info.incarnation, peer));
    }

    fn forget(&self, target: &TargetEntry) {
        self.told.borrow_mut().remove(&target.id);
    }

    /// Says once that a target's hand-off cannot be spoken.
    fn complain(&self, target: &TargetEntry, handoff: Handoff, why: &str) {
        let mut complained = self.complained.borrow_mut();
        if complained.len() >= REMEMBERED {
            complained.clear();
        }
        if complained.insert(target.id) {
            tracing::warn!(target = %target.name, handoff = handoff.as_str(), why, "requests are not split: no hand-off");
        }
    }
}

/// One hand-off under way, from both sides. Dropping it gives up what is left of the prefill leg and counts the outcome.
pub struct Split<R: Runtime> {
    shard: Rc<Shard<R>>,
    model: Arc<str>,
    handoff: Handoff,
    order: Order,
    leg: Rc<PrefillLeg<R>>,
    decode: Arc<TargetEntry>,
    began_us: u64,
    /// When the prefill leg ended, if the decode leg began after that.
    prefilled_us: Option<u64>,
    transfer_us: f32,
    step_us: f32,
    /// The decode leg's connection, until its first token.
    line: RefCell<Option<Line<R>>>,
    arrived: Cell<bool>,
    outcome: Cell<&'static str>,
    ended_well: Cell<bool>,
}

impl<R: Runtime> Drop for Split<R> {
    fn drop(&mut self) {
        if self.ended_well.get() {
            self.leg.finish()
        } else {
            self.leg.give_up()
        }
        self.shard.metrics.handed_over(self.handoff, self.outcome.get());
    }
}

impl<R: Runtime> Split<R> {
    /// When the first leg was sent, microseconds.
    pub fn began_us(&self) -> u64 {
        self.began_us
    }

    /// Name of the target that prefills.
    pub fn prefill_name(&self) -> &str {
        &self.leg.target().name
    }

    /// The target that prefills, with the tokens as it counted them.
    pub fn prefilled(&self) -> (TargetId, Option<Usage>) {
        (self.leg.target().id, self.leg.usage())
    }

    /// What corrects the usage in the decode leg's answer.
    pub fn correction(&self) -> Correction<'_> {
        Correction::new(&self.leg.cached)
    }

    /// Whether an answer of the decode leg means that it did not take the hand-off: an error that is none of load,
    /// although the prefill side took the same request.
    pub fn is_refused_by(&self, status: u16, decode: &TargetEntry) -> bool {
        let alone = decode.parts.has(Parts::WHOLE);
        match status {
            429 | 503 => self.leg.has_failed(),
            // Where it cannot serve the request by itself, what it says of the request is all there is.
            400..500 => alone || self.leg.has_failed(),
            500.. => true,
            _ => false,
        }
    }

    /// The decode leg has an answer. One that comes in one piece has its first token with its first byte.
    pub fn answered(&self, answer: &ResponseHead, has_body: bool, reservation: &mut Reservation) {
        if answer.status().is_success() {
            if has_body && !answer.is_event_stream() {
                let now_us = R::now_us();
                reservation.first_token(now_us);
                self.first_token(now_us, false);
            }
        } else {
            self.outcome.set("decode_failed");
            self.settle();
        }
    }

    /// The decode leg's first token has come, or `exactly` then or some time before.
    pub fn first_token(&self, now_us: u64, exactly: bool) {
        if self.arrived.replace(true) {
            return;
        }
        self.outcome.set("ok");
        self.settle();
        self.leg.arrived(now_us);
        if exactly {
            self.learn(now_us);
        }
    }

    /// The answer is over.
    pub fn over(&self, prompt: &Prompt, well: bool, first_us: u64) {
        if well {
            if !self.arrived.get() && first_us != 0 {
                self.first_token(first_us, false);
            }
            if !prompt.stream && speed::sees_first_token(prompt) {
                self.learn(first_us);
            }
        } else if !self.arrived.get() && self.leg.has_failed() {
            self.outcome.set("prefill_failed");
        } else if !self.arrived.get() && first_us == 0 {
            self.outcome.set("decode_failed");
        }
        self.ended_well.set(well);
        self.settle();
    }

    fn settle(&self) {
        self.line.borrow().iter().for_each(Line::settle);
    }

    fn learn(&self, first_us: u64) {
        let Some(prefilled_us) = self.prefilled_us else { return };
        let took_us = first_us.saturating_sub(prefilled_us);
        self.shard.metrics.handoff_took(took_us);
        let table = self.shard.shared.fleet.table();
        if let Some(model) = table.model(&self.model) {
            model.cells.transfer.learn(self.transfer_us, took_us as f32 - self.step_us);
        }
    }
}

impl<R: Runtime> Attempts<'_, R> {
    /// An attempt at two targets.
    pub(super) async fn split(&mut self, plan: &mut Plan, prefill: PrefillPlan) -> Attempt {
        let PrefillPlan { reservation, handoff, decode_cached_blocks, transfer_us, step_us } = prefill;
        let prefill = reservation.target().clone();
        let peers = &self.shard.push_peers;
        let push_peer = if handoff == Handoff::NixlPush { peers.get(&prefill) } else { None };
        let fresh = Fresh {
            id: self.shard.request_ids.borrow_mut().next_id(),
            number: self.shard.draw(),
            push_peer: push_peer.as_ref(),
        };
        let body = self.request.body.clone();
        let request = Request { api: self.prompt.api, body: &body };
        let deal = match Deal::new(&prefill, plan.target(), &fresh) {
            Ok(deal) => deal,
            Err(why) => {
                peers.complain(&prefill, handoff, why);
                return self.without(plan, decode_cached_blocks, handoff).await;
            }
        };
        let order = deal.order();
        let mut split = Split {
            shard: self.shard.clone(),
            model: self.prompt.model.clone(),
            handoff,
            order,
            leg: PrefillLeg::new(reservation),
            decode: plan.target().clone(),
            began_us: R::now_us(),
            prefilled_us: None,
            transfer_us,
            step_us,
            line: RefCell::default(),
            arrived: Cell::new(false),
            outcome: Cell::new("cancelled"),
            ended_well: Cell::new(false),
        };
        tracing::debug!(
            request = self.request.request_id, id = deal.id(), handoff = handoff.as_str(),
            prefill = %prefill.name, decode = %plan.target().name, "split"
        );
        if order != Order::DecodeOnly {
            // A body that repeats its members too often for them to be told apart.
            let Some(leg) = deal.prefill_leg(&request) else {
                return self.alone(plan, decode_cached_blocks, split).await;
            };
            split.leg.start(self.shard, self.leg(&prefill, leg, true));
        }
        let mut said = None;
        if order == Order::Sequential {
            if let Waited::Gone = unless_gone(split.leg.ended(), self.client.watch).await {
                return Attempt::Done(Outcome::Left);
            }
            let Done { at_us, answer } = match split.leg.take_end() {
                Some(End::Done(done)) => done,
                end => return self.prefill_failed(&split, end),
            };
            split.prefilled_us = Some(at_us);
            self.prefilled = true;
            if deal.wants_told() {
                let Some(params) = told(&answer) else {
                    if fairlead_openai::validate(&answer).is_err() {
                        let broken = End::Failed(Cause::Broken("the answer to a prefill is not JSON"));
                        self.prefilled = false;
                        return self.prefill_failed(&split, Some(broken));
                    }
                    // Nothing is kept there for anybody.
                    peers.complain(&prefill, handoff, "the prefill target's answers hand nothing over");
                    return self.alone(plan, decode_cached_blocks, split).await;
                };
                if handoff == Handoff::NixlPush
                    && let Some(peer) = PushPeer::of(&params)
                {
                    peers.put(&prefill, peer);
                }
                said = Some(params);
            }
        }
        let Some(leg) = deal.decode_leg(&request, said) else {
            return self.alone(plan, decode_cached_blocks, split).await;
        };
        drop(body);
        self.decode(plan, decode_cached_blocks, split, leg).await
    }

    /// The decode leg.
    async fn decode(&mut self, plan: &mut Plan, cached_blocks: u32, split: Split<R>, leg: Leg) -> Attempt {
        let target = plan.target().clone();
        self.pieces = self.leg(&target, leg, false);
        let expected = match split.prefilled_us {
            Some(_) => split.transfer_us + split.step_us,
            None => plan.predicted_ttft_us as f32,
        };
        let expected = Duration::from_micros(expected.max(0.0) as u64);
        let mut fresh = false;
        loop {
            let upstream = match self.connect(&target, fresh).await {
                Ok(upstream) => upstream,
                Err(Attempt::Failed(Failed { cause, .. })) => return self.decode_failed(&split, cause),
                Err(left) => return left,
            };
            // From here on a prefill leg that fails ends this connection; it may have failed before.
            split.leg.waited_for(&upstream.socket);
            if split.leg.has_failed() {
                return self.decode_failed(&split, Cause::Died);
            }
            let deadline = self.shard.options.timeouts.prefill;
            *split.line.borrow_mut() = Some(Line::new(self.shard, upstream.socket.clone(), deadline));
            let write = pin!(upstream.socket.write_pieces(self.pieces.clone()));
            match self.try_on(&upstream.socket, write, plan, expected, Some(&split)).await {
                Tried::Ended(Attempt::Failed(Failed { cause, .. })) => {
                    return self.decode_failed(&split, cause);
                }
                Tried::Ended(Attempt::Elsewhere(next, cause)) => {
                    split.outcome.set("decode_failed");
                    self.prefilled |= matches!(split.leg.take_end(), Some(End::Done(_)));
                    return Attempt::Elsewhere(next, cause);
                }
                Tried::Ended(done) => return done,
                Tried::Silent(cause) => {
                    let late = split.line.borrow().as_ref().is_some_and(Line::is_late);
                    if !upstream.reused || fresh || late || split.leg.has_failed() {
                        return self.decode_failed(&split, cause);
                    }
                    fresh = true;
                }
                Tried::Refused => {
                    if split.leg.has_failed() {
                        return self.decode_failed(&split, Cause::Died);
                    }
                    tracing::debug!(target = %target.name, handoff = split.handoff.as_str(), "hand-off refused");
                    return self.alone(plan, cached_blocks, split).await;
                }
            }
        }
    }

    /// The decode leg has failed before anything went to the client: on its own, or since the prefill leg had.
    fn decode_failed(&mut self, split: &Split<R>, cause: Cause) -> Attempt {
        let late = split.line.borrow().as_ref().is_some_and(Line::is_late);
        let cause = if late { Cause::PrefillTimeout } else { cause };
        if split.handoff == Handoff::NixlPush {
            self.shard.push_peers.forget(split.leg.target());
        }
        let end = split.leg.take_end();
        match &end {
            Some(End::Failed(_) | End::Refused(_)) => return self.prefill_failed(split, end),
            Some(End::Done(_)) => self.prefilled = true,
            // Both wait for the prefill side, which has not answered.
            None if late && split.order == Order::Concurrent => {
                return self.prefill_failed(split, Some(End::Failed(cause)));
            }
            None => {}
        }
        split.outcome.set("decode_failed");
        Attempt::failed(cause)
    }

    /// The prefill leg has: another pair, another target for what one is too busy for, or the engine's own words.
    fn prefill_failed(&mut self, split: &Split<R>, end: Option<End>) -> Attempt {
        let target = split.leg.target();
        if split.handoff == Handoff::NixlPush {
            self.shard.push_peers.forget(target);
        }
        let refused = match end {
            Some(End::Refused(refused)) => refused,
            Some(End::Failed(cause)) => {
                split.outcome.set("prefill_failed");
                return Attempt::Failed(Failed { cause, side: Side::Prefill });
            }
            Some(End::Done(_)) | None => {
                split.outcome.set("prefill_failed");
                return Attempt::Failed(Failed { cause: Cause::Died, side: Side::Prefill });
            }
        };
        let status = refused.status.as_u16();
        // What is wrong with a request is no failure of the hand-off.
        if !(400..500).contains(&status) {
            split.outcome.set("prefill_failed");
        }
        let next = match status {
            503 => self.elsewhere(&[target]).map(|next| (next, Cause::Busy)),
            500.. if split.order == Order::Concurrent => {
                self.other_pair(split, target).map(|next| (next, Cause::HandoffRefused))
            }
            _ => None,
        };
        if let Some((next, cause)) = next {
            return Attempt::Elsewhere(Box::new(next), cause);
        }
        let mut refused = refused;
        refused.add.push(("x-fairlead-prefill-instance", target.name.to_string()));
        Attempt::Done(Outcome::PassOn(Box::new(refused)))
    }

    /// Another pair for one of which an engine has told a failure. Of two engines that talk to each other it may be the
    /// other that has failed: both are avoided, if that leaves any.
    fn other_pair(&mut self, split: &Split<R>, told: &Arc<TargetEntry>) -> Option<Plan> {
        self.elsewhere(&[split.leg.target(), &split.decode]).or_else(|| self.elsewhere(&[told]))
    }

    /// The decode target serves the request by itself, if it can: what was arranged does not work.
    async fn alone(&mut self, plan: &mut Plan, cached_blocks: u32, split: Split<R>) -> Attempt {
        if split.handoff == Handoff::NixlPush {
            self.shard.push_peers.forget(split.leg.target());
        }
        self.prefilled |= matches!(split.leg.take_end(), Some(End::Done(_)));
        if !plan.target().parts.has(Parts::WHOLE) {
            split.outcome.set("decode_failed");
            return match self.other_pair(&split, plan.target()) {
                Some(next) => Attempt::Elsewhere(Box::new(next), Cause::HandoffRefused),
                None => Attempt::failed(Cause::HandoffRefused),
            };
        }
        split.outcome.set("refused_local");
        // Ends the prefill leg, if it has not ended.
        drop(split);
        self.make_whole(plan, cached_blocks);
        self.whole(plan).await
    }

    /// The same where the legs cannot even be written.
    async fn without(&mut self, plan: &mut Plan, cached_blocks: u32, handoff: Handoff) -> Attempt {
        if !plan.target().parts.has(Parts::WHOLE) {
            self.shard.metrics.handed_over(handoff, "prefill_failed");
            return Attempt::Failed(Failed { cause: Cause::HandoffRefused, side: Side::Prefill });
        }
        self.shard.metrics.handed_over(handoff, "refused_local");
        self.make_whole(plan, cached_blocks);
        self.whole(plan).await
    }

    /// Makes a plan one of a request that its decode target serves by itself, `cached_blocks` of which it holds.
    fn make_whole(&self, plan: &mut Plan, cached_blocks: u32) {
        let target = plan.target().clone();
        let (prompt, uncached) =
            (self.prompt.tokens, decide::uncached(&self.prompt, &self.routed, cached_blocks));
        let cached = prompt.saturating_sub(uncached);
        let predicted = target.cells.costs.read().work(uncached as f32, cached as f32);
        plan.reservation = Reservation::new(target, prompt.into(), uncached.into(), R::now_us());
        plan.cached_blocks = cached_blocks;
        plan.predicted_ttft_us = predicted as u32;
        speed::picked(&self.prompt, plan);
    }

    /// A leg as it goes out.
    fn leg(&self, target: &TargetEntry, leg: Leg, plain: bool) -> Vec<Bytes> {
        let Leg { add, id, body } = leg;
        let head = self.head_for(&HeadOf {
            target,
            body: OutgoingBody::Length(body.len() as u64),
            add: &add,
            id: id.as_deref(),
            plain,
        });
        let mut pieces = vec![Bytes::from(head)];
        pieces.extend(body.into_pieces());
        pieces
    }
}
