//! `pd`.

use super::transfer::Transfers;
use super::{Pair, PairChoice, Pairing};
use crate::fleet::Parts;
use crate::policy::{Candidate, Choice, Decision, Missing, Policy, Reason, least, least_f64};
use crate::rng::Rng;
use crate::settings::{DynamicPdSettings, PdSettings, Settings};

/// AIBrix's scoring of prefill and decode pods, always apart.
///
/// Rule (AIBrix `pd_disaggregation.go`, its defaults): where outstanding prefills differ by more than 16, the prefill
/// target with the fewest; else of those whose requests are at most one standard deviation above the mean the least
/// `(100 − match %)·0.1 + requests / most requests`. Where requests of decode targets differ by 16 or more, the one with
/// the fewest; where their throughput differs by more than 2,048 tokens/s, the slowest; else the least
/// `(running / most running + (1 − throughput / most throughput)) / (free KV share / most free KV share)`, an unknown
/// part counting as 1. Ties are drawn.
///
/// Ours differs: the pair is made within a transfer domain instead of a *roleset* of labels, of those the one with the
/// least `P / max P + D / max D`; and requests are those of all gateways, not of one. AIBrix's *combined* pods are targets
/// that serve whole requests: used where no pair can be made. Without pairs it is `least-request`.
pub(crate) struct Pd {
    settings: PdSettings,
    transfer: DynamicPdSettings,
}

impl Pd {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { settings: settings.pd, transfer: settings.dynamic_pd_split }
    }

    fn prefill(&self, decision: &Decision<'_>, domain: u8, rng: &mut Rng) -> Option<(usize, f64)> {
        let takes = |c: &Candidate| c.parts.has(Parts::PREFILL) && c.domain == domain;
        let side = || decision.candidates.iter().filter(|c| takes(c));
        let (low, high) = spread(side().map(|c| c.prefilling))?;
        if high - low > self.settings.prefill_imbalance {
            return least(decision.candidates, rng, takes, |c| c.prefilling).map(|index| (index, 0.0));
        }
        let most = side().map(|c| c.requests).max()?.max(1) as f64;
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for requests in side().map(|c| c.requests as f64) {
            (n, sum, squares) = (n + 1.0, sum + requests, squares + requests * requests);
        }
        let mean = sum / n;
        let bound = mean + f64::sqrt((squares / n - mean * mean).max(0.0));
        let blocks = f64::from(decision.prompt_blocks().max(1));
        let score = |c: &Candidate| {
            let matched = 100.0 * f64::from(c.cached_blocks) / blocks;
            (100.0 - matched) * 0.1 + c.requests as f64 / most
        };
        let index = least_f64(decision.candidates, rng, |c| {
            // The bound is a sum of rounded numbers.
            (takes(c) && c.requests as f64 <= bound + 1e-6).then(|| score(c))
        })?;
        Some((index, score(&decision.candidates[index])))
    }

    fn decode(&self, decision: &Decision<'_>, prefill: usize, rng: &mut Rng) -> Option<(usize, f64)> {
        let from = &decision.candidates[prefill];
        let takes =
            |c: &Candidate| c.parts.has(Parts::DECODE) && c.domain == from.domain && c.number != from.number;
        let side = || decision.candidates.iter().filter(|c| takes(c));
        let (low, high) = spread(side().map(|c| c.requests))?;
        if high - low >= self.settings.decode_imbalance {
            return least(decision.candidates, rng, takes, |c| c.requests).map(|index| (index, 0.0));
        }
        let throughput = |c: &Candidate| decision.figures(c).generation_tokens_per_s.map(f64::from);
        let free =
            |c: &Candidate| decision.figures(c).kv_usage.map(|used| f64::from(1.0 - used.clamp(0.0, 1.0)));
        let (mut slowest, mut fastest, mut freest) = (f64::INFINITY, 0.0f64, 0.0f64);
        for c in side() {
            if let Some(tokens) = throughput(c) {
                (slowest, fastest) = (slowest.min(tokens), fastest.max(tokens));
            }
            freest = freest.max(free(c).unwrap_or(0.0));
        }
        if fastest - slowest > self.settings.throughput_imbalance {
            let slow = |c: &Candidate| if takes(c) { throughput(c) } else { None };
            return least_f64(decision.candidates, rng, slow).map(|index| (index, 0.0));
        }
        let most = high.max(1) as f64;
        let PdSettings { running_weight, throughput_weight, .. } = self.settings;
        let score = |c: &Candidate| {
            let running = c.requests as f64 / most;
            let lacks = throughput(c).filter(|_| fastest > 0.0).map_or(1.0, |tokens| 1.0 - tokens / fastest);
            let room = free(c).filter(|_| freest > 0.0).map_or(1.0, |free| free / freest);
            (running_weight * running + throughput_weight * lacks) / room.max(1e-3)
        };
        let index = least_f64(decision.candidates, rng, |c| takes(c).then(|| score(c)))?;
        Some((index, score(&decision.candidates[index])))
    }

    fn pair(&self, decision: &Decision<'_>, rng: &mut Rng) -> Option<Pair> {
        let mut best: Option<(Pair, f64)> = None;
        let mut tried = super::Domains::default();
        for c in decision.candidates.iter().filter(|c| c.parts.has(Parts::PREFILL)) {
            if c.domain == 0 || tried.has(c.domain) {
                continue;
            }
            tried.add(c.domain);
            let Some((prefill, p)) = self.prefill(decision, c.domain, rng) else { continue };
            let Some((decode, d)) = self.decode(decision, prefill, rng) else { continue };
            // Scores of one side are of about the same size in all domains: their sum is what the quotients compare.
            if best.is_none_or(|(_, sum)| p + d < sum) {
                best = Some((Pair { prefill, decode }, p + d));
            }
        }
        best.map(|(pair, _)| pair)
    }
}

fn spread(figures: impl Iterator<Item = u64>) -> Option<(u64, u64)> {
    figures.fold(None, |range, n| match range {
        None => Some((n, n)),
        Some((low, high)) => Some((low.min(n), high.max(n))),
    })
}

impl Policy for Pd {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = least(decision.candidates, rng, |_| true, |c| c.requests).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastRequests })
    }

    fn pairing(&self) -> Option<&dyn Pairing> {
        Some(self)
    }
}

impl Pairing for Pd {
    fn pick_pair(
        &self,
        decision: &Decision<'_>,
        _side: &mut Vec<Candidate>,
        rng: &mut Rng,
    ) -> Option<PairChoice> {
        let Some(pair) = self.pair(decision, rng) else {
            let whole = |c: &Candidate| c.parts.has(Parts::WHOLE);
            let index = least(decision.candidates, rng, whole, |c| c.requests)?;
            return Some(PairChoice::Whole { index, reason: Reason::PrefillDown });
        };
        let (from, to) = (&decision.candidates[pair.prefill], &decision.candidates[pair.decode]);
        let transfer_us = Transfers::new(decision, &self.transfer, from).time(decision, from, to);
        let ttft_us = decision.predict(from).ttft + transfer_us + decision.predict(to).step_after;
        Some(PairChoice::Apart { pair, reason: Reason::Remote, ttft_us, transfer_us, missing: None })
    }
}
