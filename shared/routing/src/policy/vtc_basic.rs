//! `vtc-basic`.

use super::vtc_users::Users;
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::rng::Rng;
use crate::settings::{Settings, VtcBasicSettings};

/// Users who were served little go to the least loaded targets, users who were served much to the next ones.
///
/// ```text
/// score   = fairness_weight · |rank − min(tokens / bucket, candidates − 1)|
///         + utilization_weight · min(requests / full, 1) + noise · (a draw from 0 to 1)
/// bucket  = max(least_bucket, (least + greatest tokens of any user) / 2)
/// tokens  = Σ over the user's requests of the last window_s: input_weight · prompt + output_weight · 1.5 · prompt
/// ```
///
/// `rank` is the target's place in the order of requests in flight, fewest first, equal ones in an order drawn anew.
/// The least score wins. An answer's length is estimated at the pick, and never above what the request allows.
///
/// Inputs: the hash of the request's user, requests in flight, and what this policy itself has counted for 4,096
/// users (beyond that the least served are forgotten); each gateway counts its own. A request of no user goes to
/// `least-request`. It is no part of a weighted sum, where nobody would be charged. Defaults: 5
/// minutes, 1 and 2 (input, output), bucket 1,000, full 100, weights 1 and 1, noise 0.1.
///
/// Source: AIBrix `vtc-basic`, after VTC (Sheng et al., arXiv 2401.00588). Ours differs: the original's place in the
/// list is one of a list shuffled at each request, which makes fairness a draw, and the formula of its documentation
/// has the same fairness for every target, which makes it nothing; in the order of load it does what is promised, the
/// least served getting the best chance. A request of no user goes to the least loaded target, not a random one. As
/// the original it is no VTC: without a queue no bound of service is kept.
pub(crate) struct VtcBasic {
    settings: VtcBasicSettings,
    users: Users,
}

impl VtcBasic {
    pub(crate) fn new(settings: &Settings) -> Self {
        let settings = settings.vtc_basic;
        Self { settings, users: Users::new((settings.window_s * 1e6) as u64) }
    }

    /// The place at which the user's requests belong.
    fn place(&self, decision: &Decision<'_>, user: u64) -> f64 {
        let now_us = decision.request.now_us;
        let tokens = self.users.tokens(user, now_us);
        let (least, most) = self.users.range(now_us);
        let bucket = self.settings.least_bucket.max((least + most.max(tokens)) / 2.0);
        (tokens / bucket).min((decision.candidates.len() - 1) as f64)
    }

    fn score(&self, rank: usize, place: f64, candidate: &Candidate) -> f64 {
        let s = &self.settings;
        let utilization = (candidate.requests as f64 / s.full).min(1.0);
        s.fairness_weight * (rank as f64 - place).abs() + s.utilization_weight * utilization
    }

    fn served(&self, decision: &Decision<'_>) -> f64 {
        let prompt = f64::from(decision.request.prompt_tokens);
        let answer = (1.5 * prompt).min(decision.request.max_output.map_or(f64::INFINITY, f64::from));
        self.settings.input_weight * prompt + self.settings.output_weight * answer
    }
}

impl Policy for VtcBasic {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let user = decision.request.user.ok_or(None)?;
        let candidates = decision.candidates;
        let place = self.place(decision, user);
        // Candidates in the order of their ranks; equal numbers of requests in an order of this draw.
        let draw = rng.next_u64();
        let key =
            |(index, c): (usize, &Candidate)| (c.requests, Rng::new(draw ^ index as u64).next_u64(), index);
        let mut last = None;
        let mut best: Option<(f64, usize)> = None;
        // Beyond the place both terms only grow, so that two ranks after it nothing better can come but by the noise.
        for rank in 0..candidates.len().min(place.ceil() as usize + 3) {
            let later = |key: &(u64, u64, usize)| last.is_none_or(|last| *key > last);
            let Some(next) = candidates.iter().enumerate().map(key).filter(later).min() else { break };
            last = Some(next);
            let (_, _, index) = next;
            let score = self.score(rank, place, &candidates[index]) + self.settings.noise * rng.unit();
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, index));
            }
        }
        let (_, index) = best.ok_or(None)?;
        self.users.add(user, decision.request.now_us, self.served(decision));
        Ok(Choice { index, reason: Reason::LeastCost })
    }

    /// The score without its noise; candidates with equal requests have equal ranks.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let place = self.place(decision, decision.request.user?);
        let rank = decision.candidates.iter().filter(|c| c.requests < candidate.requests).count();
        Some(self.score(rank, place, candidate))
    }
}
