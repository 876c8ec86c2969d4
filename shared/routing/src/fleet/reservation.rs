//! Load accounting by guard: reserved at the pick, released when the request ends, in whatever way it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cells::InFlightSums;
use super::decoding::Sums;
use super::recent::Recent;
use super::table::TargetEntry;
use crate::cost::{DecodeSeen, PrefillSeen};

/// Load of one target in this process.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Counters {
    /// Ever reserved.
    total: AtomicU64,
    requests: AtomicU64,
    prefilling: AtomicU64,
    prefill_tokens: AtomicU64,
    prefill_us: AtomicU64,
    context_tokens: AtomicU64,
    /// When the target was last seen to have done all prefill before some point: at a first token, or when a prompt
    /// came to an idle target. Microseconds.
    progress_us: AtomicU64,
    /// Prompt tokens sent lately.
    pub(crate) recent: Recent,
}

impl Counters {
    /// What is in flight now. Each figure is exact by itself; a reader in the middle of a change may see some of the
    /// figures before and some after it.
    #[inline]
    pub fn in_flight(&self) -> InFlightSums {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        InFlightSums {
            requests: read(&self.requests),
            prefilling: read(&self.prefilling),
            prefill_tokens: read(&self.prefill_tokens),
            prefill_us: read(&self.prefill_us),
            context_tokens: read(&self.context_tokens),
        }
    }

    /// Requests ever reserved.
    pub fn requests_total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// When the target's prefill was last seen to advance, microseconds.
    #[inline]
    pub fn progress_us(&self) -> u64 {
        self.progress_us.load(Ordering::Relaxed)
    }

    /// Notes that the target's prefill has advanced; answers when it had before.
    pub(crate) fn progressed(&self, now_us: u64) -> u64 {
        self.progress_us.fetch_max(now_us, Ordering::Relaxed)
    }
}

/// What keeps this process from telling whose prefill it was that took the time before a first token.
#[derive(Debug, Default)]
pub(crate) struct Disturbance {
    /// Counts what happens: news of the others' prompts, own requests that end before their first token.
    count: AtomicU64,
    /// Own requests whose first token nobody will see and whose prefill may not be over.
    unseen: AtomicU64,
}

impl Disturbance {
    /// Something happened.
    pub(crate) fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// What has happened, unless a prefill is under way whose end nobody will see.
    pub(crate) fn count_if_none_unseen(&self) -> Option<u64> {
        (self.unseen.load(Ordering::Relaxed) == 0).then(|| self.count.load(Ordering::Relaxed))
    }
}

/// The part of a request that a reservation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// All of it.
    Whole,
    /// Its prefill; another target decodes.
    Prefill,
    /// Its decoding; another target prefills.
    Decode,
}

/// One request's share of its target's load. Dropping it releases all that is still held.
#[derive(Debug)]
#[must_use = "dropping the guard releases the reservation"]
pub struct Reservation {
    target: Arc<TargetEntry>,
    prompt_tokens: u64,
    prefill_tokens: u64,
    prefill_us: u64,
    prefilled: bool,
    /// Nobody will see its first token.
    unseen: bool,
    /// Which part of a request it is.
    leg: Leg,
    /// A decode leg whose first token has not come.
    incoming: bool,
    sent_us: u64,
    /// The target at the first token.
    first: Sums,
    /// The count of disturbances when it was sent, if its prefill could be told from others' then.
    undisturbed: Option<u64>,
}

impl Reservation {
    /// Reserves on `target`: one request, `uncached` tokens to prefill of `prompt` tokens in all.
    pub fn new(target: Arc<TargetEntry>, prompt: u64, uncached: u64, now_us: u64) -> Self {
        target.cells.counters.recent.note(prompt as f32, now_us);
        Self::to_prefill(target, Leg::Whole, prompt, uncached, now_us)
    }

    /// Reserves a prefill leg: released at the hand-off, to be told by [`Reservation::first_token`] before.
    pub fn prefill_leg(target: Arc<TargetEntry>, prompt: u64, uncached: u64, now_us: u64) -> Self {
        Self::to_prefill(target, Leg::Prefill, prompt, uncached, now_us)
    }

    /// Reserves a decode leg: no prefill, and the prompt as context from now on, though its KV is yet to come.
    pub fn decode_leg(target: Arc<TargetEntry>, prompt: u64, now_us: u64) -> Self {
        let cells = &target.cells;
        cells.counters.recent.note(prompt as f32, now_us);
        cells.counters.total.fetch_add(1, Ordering::Relaxed);
        cells.incoming.requests.fetch_add(1, Ordering::Relaxed);
        cells.incoming.tokens.fetch_add(prompt, Ordering::Relaxed);
        cells.counters.requests.fetch_add(1, Ordering::Relaxed);
        cells.counters.context_tokens.fetch_add(prompt, Ordering::Relaxed);
        Self {
            target,
            prompt_tokens: prompt,
            prefill_tokens: 0,
            prefill_us: 0,
            prefilled: true,
            unseen: false,
            leg: Leg::Decode,
            incoming: true,
            sent_us: now_us,
            first: Sums::default(),
            undisturbed: None,
        }
    }

    fn to_prefill(target: Arc<TargetEntry>, leg: Leg, prompt: u64, uncached: u64, now_us: u64) -> Self {
        let cached = prompt.saturating_sub(uncached);
        let work = target.cells.costs.read().work(uncached as f32, cached as f32);
        let prefill_us = work as u64;
        let counters = &target.cells.counters;
        counters.total.fetch_add(1, Ordering::Relaxed);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        if counters.prefilling.fetch_add(1, Ordering::Relaxed) == 0 {
            counters.progressed(now_us);
        }
        counters.prefill_tokens.fetch_add(uncached, Ordering::Relaxed);
        counters.prefill_us.fetch_add(prefill_us, Ordering::Relaxed);
        let first = Sums::default();
        let (prompt_tokens, prefill_tokens, sent_us) = (prompt, uncached, now_us);
        let undisturbed = target.cells.undisturbed();
        Self {
            target,
            prompt_tokens,
            prefill_tokens,
            prefill_us,
            prefilled: false,
            unseen: false,
            leg,
            incoming: false,
            sent_us,
            first,
            undisturbed,
        }
    }

    /// The target reserved on.
    pub fn target(&self) -> &Arc<TargetEntry> {
        &self.target
    }

    /// Which part of a request it is for.
    pub fn leg(&self) -> Leg {
        self.leg
    }

    /// Uncached prompt tokens reserved at the pick.
    pub fn prefill_tokens(&self) -> u64 {
        self.prefill_tokens
    }

    /// The answer will come whole: nobody will see its first token. Until [`Reservation::presume_prefilled`], others'
    /// first tokens show nothing of the target's speed. To be called right after the pick, once.
    pub fn unseen(&mut self) {
        if !std::mem::replace(&mut self.unseen, true) {
            self.target.cells.disturbance.unseen.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The time is over that the prefill was predicted to take: it counts as done, context being decoded begins. Says
    /// nothing of how far the target has come. Nothing happens if a first token was seen.
    pub fn presume_prefilled(&mut self, now_us: u64) {
        if !std::mem::replace(&mut self.prefilled, true) {
            self.target.cells.decoding.prefilled(self.prefill_tokens, now_us);
            self.prefill_ends();
        }
    }

    /// The first token came: prefill work ends, context being decoded begins. Further calls do nothing. Answers what
    /// that shows of the target's speed: nothing if other gateways had prompts there, requests ended early, or there
    /// are such whose first tokens are not seen, for it cannot be told then whose prefill took the time.
    pub fn first_token(&mut self, now_us: u64) -> Option<PrefillSeen> {
        if self.arrived() {
            let (batch, context) = self.decoding();
            self.first = self.target.cells.decoding.look(now_us, batch, context);
            return None;
        }
        if std::mem::replace(&mut self.prefilled, true) {
            return None;
        }
        let (batch, context) = self.decoding();
        let cells = &self.target.cells;
        cells.decoding.prefilled(self.prefill_tokens, now_us);
        self.first = cells.decoding.look(now_us, batch, context);
        self.prefill_ends();
        let before = cells.counters.progressed(now_us);
        if self.undisturbed.is_none_or(|count| self.target.cells.undisturbed() != Some(count)) {
            return None;
        }
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Some(PrefillSeen {
            span_us: now_us.saturating_sub(before.max(self.sent_us)),
            alone: before <= self.sent_us,
            tokens: narrow(self.prefill_tokens),
            cached: narrow(self.prompt_tokens.saturating_sub(self.prefill_tokens)),
            batch: batch as f32,
            context: context as f32,
        })
    }

    /// The answer is complete, with so many tokens. Answers what that shows of the target's speed, if there was a
    /// first token; the guard still holds its load until it is dropped.
    pub fn last_token(&self, now_us: u64, tokens: u32) -> Option<DecodeSeen> {
        if self.first.at_us == 0 || tokens < 2 {
            return None;
        }
        let (batch, context) = self.decoding();
        let last = self.target.cells.decoding.look(now_us, batch, context);
        let (batch, context, prefilled) = last.since(&self.first);
        let span_us = now_us.saturating_sub(self.first.at_us);
        Some(DecodeSeen { span_us, tokens: tokens - 1, batch, context, prefilled })
    }

    /// A decode leg is no longer on its way; whether it was.
    fn arrived(&mut self) -> bool {
        let incoming = &self.target.cells.incoming;
        if !std::mem::replace(&mut self.incoming, false) {
            return false;
        }
        incoming.requests.fetch_sub(1, Ordering::Relaxed);
        incoming.tokens.fetch_sub(self.prompt_tokens, Ordering::Relaxed);
        true
    }

    /// Releases what counts as not yet prefilled.
    fn prefill_ends(&self) {
        let cells = &self.target.cells;
        cells.counters.context_tokens.fetch_add(self.prompt_tokens, Ordering::Relaxed);
        cells.counters.prefill_tokens.fetch_sub(self.prefill_tokens, Ordering::Relaxed);
        cells.counters.prefill_us.fetch_sub(self.prefill_us, Ordering::Relaxed);
        cells.counters.prefilling.fetch_sub(1, Ordering::Relaxed);
        if self.unseen {
            cells.disturbance.unseen.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Requests decoding at the target, and their prompt tokens. Other gateways' legs on their way count as decoding.
    fn decoding(&self) -> (u64, u64) {
        let own = self.target.cells.counters.in_flight();
        let peers = self.target.cells.peers();
        let incoming = &self.target.cells.incoming;
        let decoding = |sums: &InFlightSums| sums.requests.saturating_sub(sums.prefilling);
        let batch = decoding(&own) + decoding(&peers);
        let context = own.context_tokens.saturating_add(peers.context_tokens);
        let less = |all: u64, part: &AtomicU64| all.saturating_sub(part.load(Ordering::Relaxed));
        (less(batch, &incoming.requests), less(context, &incoming.tokens))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.arrived();
        let counters = &self.target.cells.counters;
        if !self.prefilled {
            // What the target has done for it is not known.
            self.target.cells.disturbance.note();
            self.prefill_ends();
        }
        counters.context_tokens.fetch_sub(self.prompt_tokens, Ordering::Relaxed);
        counters.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests_support::entry;

    #[test]
    fn every_way_to_end_returns_to_zero() {
        let target = entry(0, "a", "m");
        let figures = || {
            let now = target.cells.counters.in_flight();
            (now.requests, now.prefilling, now.prefill_tokens, now.context_tokens)
        };
        let early = Reservation::new(target.clone(), 100, 60, 1);
        let mut late = Reservation::new(target.clone(), 50, 50, 1);
        assert_eq!(figures(), (2, 2, 110, 0));
        assert!(late.first_token(5).is_some());
        assert!(late.first_token(6).is_none());
        assert_eq!(figures(), (2, 1, 60, 50));
        drop(early);
        assert_eq!(figures(), (1, 0, 0, 50));
        drop(late);
        assert_eq!(target.cells.counters.in_flight(), InFlightSums::default());
        assert_eq!(target.cells.counters.requests_total(), 2);
    }

    #[test]
    fn what_a_gateway_sees_is_one_request_s_own_time() {
        let target = entry(0, "a", "m");
        let mut first = Reservation::new(target.clone(), 1_000, 1_000, 100);
        let mut second = Reservation::new(target.clone(), 600, 500, 150);
        let seen = first.first_token(40_100).unwrap();
        assert_eq!((seen.span_us, seen.tokens, seen.cached, seen.batch), (40_000, 1_000, 0, 0.0));
        assert!(seen.alone);
        // Its prefill began when the one before it ended.
        let seen = second.first_token(60_100).unwrap();
        assert_eq!((seen.span_us, seen.tokens, seen.cached, seen.alone), (20_000, 500, 100, false));
        assert_eq!((seen.batch, seen.context), (1.0, 1_000.0));
        let decoded = first.last_token(140_100, 11).unwrap();
        assert_eq!((decoded.span_us, decoded.tokens), (100_000, 10));
        // One decoded for 20 ms, two for 80.
        assert_eq!((decoded.batch, decoded.context, decoded.prefilled), (1.8, 1_480.0, 500.0));
        drop(first);
        // An idle target: its time counts from the sending.
        drop(second);
        let mut third = Reservation::new(target.clone(), 10, 10, 900_000);
        assert_eq!(third.first_token(900_500).unwrap().span_us, 500);
        assert!(third.last_token(900_600, 1).is_none());
    }

    #[test]
    fn a_first_token_shows_nothing_where_others_prefill_may_have_taken_the_time() {
        let target = entry(0, "a", "m");
        let mut now = 0;
        // Sends a request, lets `meanwhile` happen, and says whether its first token shows anything.
        let mut shows = |meanwhile: &mut dyn FnMut()| {
            now += 1_000_000;
            let mut own = Reservation::new(target.clone(), 10, 10, now);
            meanwhile();
            own.first_token(now + 500_000).is_some()
        };
        let peers = |prefilling| {
            let sums = InFlightSums { prefilling, requests: prefilling, ..InFlightSums::default() };
            target.cells.set_peers(sums, 0);
        };
        assert!(shows(&mut || ()));
        assert!(shows(&mut || peers(0)), "the others have nothing there");
        assert!(!shows(&mut || peers(1)));
        assert!(!shows(&mut || ()), "still there");
        assert!(!shows(&mut || peers(0)), "just done");
        assert!(!shows(&mut || (peers(1), peers(0)).1), "come and gone");
        assert!(shows(&mut || ()));
        let mut early = Some(Reservation::new(target.clone(), 10, 10, 1));
        assert!(!shows(&mut || drop(early.take())), "a request that ended early");
        assert!(shows(&mut || ()));
        // An answer that comes whole: until its prefill is presumed to be done, or it has come.
        let mut whole = Reservation::new(target.clone(), 10, 10, 1);
        whole.unseen();
        whole.unseen();
        assert!(!shows(&mut || ()));
        whole.presume_prefilled(1);
        assert_eq!(target.cells.counters.in_flight().prefilling, 0);
        assert_eq!(target.cells.counters.in_flight().context_tokens, 10);
        assert!(shows(&mut || ()));
        assert!(whole.first_token(5).is_none(), "too late");
        drop(whole);
        let mut whole = Some(Reservation::new(target.clone(), 10, 10, 1));
        whole.iter_mut().for_each(Reservation::unseen);
        drop(whole.take());
        assert!(shows(&mut || ()));
        assert_eq!(target.cells.counters.in_flight(), InFlightSums::default());
    }

    #[test]
    fn legs_count_what_each_target_does() {
        let (p, d) = (entry(0, "p", "m"), entry(1, "d", "m"));
        let figures = |target: &TargetEntry| {
            let now = target.cells.counters.in_flight();
            (now.requests, now.prefilling, now.prefill_tokens, now.context_tokens)
        };
        let mut prefill = Reservation::prefill_leg(p.clone(), 100, 60, 1);
        let mut decode = Reservation::decode_leg(d.clone(), 100, 1);
        assert_eq!((figures(&p), figures(&d)), ((1, 1, 60, 0), (1, 0, 0, 100)));
        assert_eq!(decode.decoding(), (0, 0), "on its way");
        let seen = prefill.first_token(2_001).unwrap();
        assert_eq!((seen.span_us, seen.tokens, seen.cached), (2_000, 60, 40));
        drop(prefill);
        assert_eq!(figures(&p), (0, 0, 0, 0));
        assert!(decode.first_token(3_000).is_none(), "its prefill was another's");
        assert_eq!(decode.decoding(), (1, 100));
        assert_eq!(decode.last_token(13_000, 11).unwrap().span_us, 10_000);
        let second = Reservation::decode_leg(d.clone(), 50, 1);
        assert_eq!((figures(&d), decode.decoding()), ((2, 0, 0, 150), (1, 100)));
        drop((second, decode));
        assert_eq!(figures(&d), (0, 0, 0, 0));
        assert_eq!(d.cells.incoming.requests.load(Ordering::Relaxed), 0);
        drop(Reservation::prefill_leg(p.clone(), 100, 60, 1));
        assert_eq!(p.cells.counters.in_flight(), InFlightSums::default());
    }

    #[test]
    fn concurrent_guards_never_go_negative() {
        let target = entry(0, "a", "m");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for i in 0..20_000u64 {
                        let mut guard = Reservation::new(target.clone(), 7, 3, i);
                        if i % 2 == 0 {
                            guard.first_token(i);
                        }
                    }
                });
            }
            for _ in 0..20_000 {
                let now = target.cells.counters.in_flight();
                // Every guard adds before it takes away, so no figure is ever less than nothing.
                let all = [now.requests, now.prefilling, now.prefill_tokens, now.context_tokens];
                assert!(all.iter().all(|&n| n < 1 << 63), "{now:?}");
            }
        });
        assert_eq!(target.cells.counters.in_flight(), InFlightSums::default());
    }
}
