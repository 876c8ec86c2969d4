//! What targets' work costs, as the control thread knows it: learnt from this gateway's own answers, told by the
//! scheduler for all gateways, and put together for the shards' decisions.
//!
//! A target's learner starts from what all gateways know, where that comes before the first observation. While its own
//! observations of a kind (prefill, decoding) are fewer than [`FEW`], what all know counts alone; from [`MANY`] on its
//! own; between, the logarithms are mixed. So a gateway that has just started decides as the others do, and one with
//! traffic of its own follows what it sees. Told is only what its own observations say, so that nothing is counted for
//! having been heard.

use ahash::AHashMap;
use fairlead_routing::{Constants, Estimate, Learner};
use fairlead_wire::TargetId;
use fairlead_wire::limits::MAX_OBSERVATIONS;
use fairlead_wire::msg::Costs;

use crate::shard::SpeedNote;
use crate::shared::LearntCount;

/// Own observations below which they count for nothing where others have some.
const FEW: u32 = 8;
/// Own observations from which on they alone count.
const MANY: u32 = 64;

/// All that is known, by target.
#[derive(Debug, Default)]
pub(super) struct CostBook {
    targets: AHashMap<TargetId, Known>,
}

#[derive(Debug)]
struct Known {
    learner: Learner,
    shared: Option<Costs>,
    /// Something was learnt since the last look.
    learnt: bool,
    /// What decisions are to be made with may have changed.
    changed: bool,
}

impl Default for Known {
    fn default() -> Self {
        Self { learner: Learner::new(Constants::PRIOR), shared: None, learnt: false, changed: false }
    }
}

/// One target's news.
pub(super) struct CostNews {
    pub target: TargetId,
    /// For the scheduler: what was learnt here, if anything was.
    pub learnt: Option<Costs>,
}

impl CostBook {
    /// An answer has shown something.
    pub fn seen(&mut self, note: &SpeedNote) {
        let known = self.targets.entry(note.target).or_default();
        note.prefill.iter().for_each(|seen| known.learner.prefilled(seen));
        note.decode.iter().for_each(|seen| known.learner.decoded(seen));
        (known.learnt, known.changed) = (true, true);
    }

    /// The scheduler says what all gateways have learnt.
    pub fn told(&mut self, target: TargetId, costs: &Costs) {
        let known = self.targets.entry(target).or_default();
        if known.learner.samples() == 0 {
            known.learner = Learner::new(parts_of(costs, Constants::PRIOR));
        }
        known.shared = Some(*costs);
        known.changed = true;
    }

    /// The target is no more.
    pub fn forget(&mut self, target: TargetId) {
        self.targets.remove(&target);
    }

    /// What decisions are made with, and how much is behind it; the prior, with nothing behind it, of a target that
    /// nobody knows.
    pub fn estimate(&self, target: TargetId) -> Estimate {
        let Some(known) = self.targets.get(&target) else {
            return Estimate { constants: Constants::PRIOR, samples: 0 };
        };
        let shared = known.shared.map_or(0, |costs| costs.prefills.saturating_add(costs.decodes));
        Estimate { constants: known.constants(), samples: known.learner.samples().saturating_add(shared) }
    }

    /// What has changed since the last call.
    pub fn news(&mut self) -> Vec<CostNews> {
        let news = self.targets.iter_mut().filter_map(|(&target, known)| {
            if !std::mem::take(&mut known.changed) {
                return None;
            }
            let learnt = std::mem::take(&mut known.learnt).then(|| known.own()).flatten();
            Some(CostNews { target, learnt })
        });
        news.collect()
    }

    /// How much is behind what is known.
    pub fn counts(&self) -> impl Iterator<Item = (TargetId, LearntCount)> {
        self.targets.iter().map(|(&target, known)| {
            let own = (known.learner.prefills(), known.learner.decodes());
            let shared = known.shared.map_or((0, 0), |costs| (costs.prefills, costs.decodes));
            (target, LearntCount { own, shared })
        })
    }
}

impl Known {
    /// What this gateway itself has learnt; `None` before it has.
    fn own(&self) -> Option<Costs> {
        let (prefills, decodes) = (self.learner.prefills(), self.learner.decodes());
        if prefills == 0 && decodes == 0 {
            return None;
        }
        let Constants { prefill, attention, step, sequence, context, chunk } = self.learner.constants();
        let (prefills, decodes) = (prefills.min(MAX_OBSERVATIONS), decodes.min(MAX_OBSERVATIONS));
        Some(Costs { prefill, attention, step, sequence, context, chunk, prefills, decodes })
    }

    /// What decisions are made with.
    fn constants(&self) -> Constants {
        let own = self.learner.constants();
        let Some(shared) = self.shared else { return own };
        let all = parts_of(&shared, own);
        let weight = |count: u32| (count.saturating_sub(FEW) as f32 / (MANY - FEW) as f32).min(1.0);
        let (prefill, decode) = (weight(self.learner.prefills()), weight(self.learner.decodes()));
        let mix = |own: f32, all: f32, weight: f32| all * (own / all).powf(weight);
        Constants {
            prefill: mix(own.prefill, all.prefill, prefill),
            attention: mix(own.attention, all.attention, prefill),
            chunk: mix(own.chunk, all.chunk, prefill),
            step: mix(own.step, all.step, decode),
            sequence: mix(own.sequence, all.sequence, decode),
            context: mix(own.context, all.context, decode),
        }
    }
}

/// The parts of `costs` that observations stand behind, and of `other` the rest. Numbers far from anything that an
/// engine may cost are replaced as well.
fn parts_of(costs: &Costs, other: Constants) -> Constants {
    let told = [costs.prefill, costs.attention, costs.step, costs.sequence, costs.context, costs.chunk];
    let told = Constants::from_array(told);
    let mut parts = other;
    if costs.prefills > 0 {
        (parts.prefill, parts.attention, parts.chunk) = (told.prefill, told.attention, told.chunk);
    }
    if costs.decodes > 0 {
        (parts.step, parts.sequence, parts.context) = (told.step, told.sequence, told.context);
    }
    parts
}

#[cfg(test)]
mod tests {
    use fairlead_routing::{DecodeSeen, PrefillSeen};

    use super::*;

    const ID: TargetId = TargetId { slot: 3, generation: 1 };

    fn costs(prefill: f32, prefills: u32, step: f32, decodes: u32) -> Costs {
        Costs {
            prefill,
            attention: 0.001,
            step,
            sequence: 30.0,
            context: 0.02,
            chunk: 1_024.0,
            prefills,
            decodes,
        }
    }

    /// An answer of a target whose prompt tokens take 100 µs each, and whose steps take 20 ms.
    fn answer() -> SpeedNote {
        let prefill = PrefillSeen {
            span_us: 4_000 * 100,
            alone: false,
            tokens: 4_000,
            cached: 0,
            batch: 0.0,
            context: 0.0,
        };
        let decode =
            DecodeSeen { span_us: 100 * 20_000, tokens: 100, batch: 1.0, context: 0.0, prefilled: 0.0 };
        SpeedNote { target: ID, prefill: Some(prefill), decode: Some(decode) }
    }

    struct One {
        constants: Constants,
        learnt: Option<Costs>,
    }

    fn one(book: &mut CostBook) -> One {
        let mut news = book.news();
        assert_eq!(news.len(), 1);
        One { constants: book.estimate(ID).constants, learnt: news.remove(0).learnt }
    }

    #[test]
    fn what_all_know_counts_until_there_is_enough_of_ones_own() {
        let mut book = CostBook::default();
        book.told(ID, &costs(50.0, 10, 9_000.0, 0));
        let news = one(&mut book);
        assert_eq!((news.constants.prefill, news.constants.step), (50.0, Constants::PRIOR.step));
        assert!(news.learnt.is_none(), "what was heard is not told");
        assert!(book.news().is_empty());
        for _ in 0..FEW {
            book.seen(&answer());
        }
        let news = one(&mut book);
        assert_eq!(news.constants.prefill, 50.0, "few of its own");
        assert!((news.constants.step / 20_000.0 - 1.0).abs() < 0.1, "nobody else knows");
        let learnt = news.learnt.unwrap();
        assert!(learnt.prefill > 60.0 && (learnt.prefills, learnt.decodes) == (FEW, FEW), "{learnt:?}");
        for _ in FEW..MANY / 2 {
            book.seen(&answer());
        }
        let between = one(&mut book).constants.prefill;
        assert!((52.0..learnt.prefill).contains(&between), "{between}");
        for _ in MANY / 2..MANY {
            book.seen(&answer());
        }
        let news = one(&mut book);
        let learnt = news.learnt.unwrap();
        assert!((news.constants.prefill / learnt.prefill - 1.0).abs() < 1e-5, "its own alone");
        book.told(ID, &costs(10.0, 500, 1_000.0, 500));
        assert_eq!(one(&mut book).constants.prefill, news.constants.prefill);
        let counts: Vec<_> = book.counts().collect();
        assert_eq!(counts, [(ID, LearntCount { own: (MANY, MANY), shared: (500, 500) })]);
        book.forget(ID);
        assert_eq!(book.counts().count(), 0);
    }

    #[test]
    fn numbers_that_no_engine_costs_are_not_believed() {
        let mut book = CostBook::default();
        book.told(ID, &costs(1e9, 10, 1e-9, 10));
        let constants = one(&mut book).constants;
        assert_eq!((constants.prefill, constants.step), (Constants::PRIOR.prefill, Constants::PRIOR.step));
    }

    #[test]
    fn gateways_and_scheduler_take_the_same_for_granted() {
        assert_eq!(
            parts_of(&Costs { prefills: 1, decodes: 1, ..Costs::PRIOR }, Constants::from_array([1.0; 6])),
            Constants::PRIOR
        );
    }

    #[test]
    fn an_answer_that_shows_little_is_no_news_for_the_scheduler() {
        let mut book = CostBook::default();
        book.seen(&SpeedNote { prefill: None, ..answer() });
        let news = one(&mut book);
        assert_eq!(news.constants, Constants::PRIOR);
        assert!(news.learnt.is_none());
    }
}
