//! `weighted`: a sum of scores.

use std::cell::Cell;

use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::registry::{PolicyName, UnknownPolicy};
use crate::rng::Rng;
use crate::score::{OfPolicy, Scorer, ScorerName, Spread, sane};
use crate::settings::Settings;
use crate::strategy::StrategyError;

/// Most parts of a sum.
pub(crate) const MOST_PARTS: usize = 16;
/// Greatest weight of a part.
pub(crate) const MOST_WEIGHT: u32 = 1_000_000;

/// The greatest weighted sum of scores.
///
/// Rule: every part scores every candidate from 0 to 1. A policy's score is its value, set between the least and the
/// greatest among the candidates, least is best; a scorer has its own formula. A candidate for which a part has no
/// figure scores 0 there. The greatest `Σ weight·score` wins; ties are drawn. Where no part scores anybody, the policy
/// passes to `least-request`; where only some parts do, the others are reported as missing.
///
/// Inputs: those of its parts. Written `name:weight,name:weight`; weights are whole numbers up to 1,000,000, 1 where
/// none is given; at most 16 parts, each name once.
///
/// Source: AIBrix's header `routing-strategy: prefix-cache:2,least-request:1`; scorers as in llm-d. Ours differs: a part
/// uses its policy's measure alone, without that policy's gates, fallbacks and counts of its own.
pub(crate) struct Weighted {
    parts: Vec<Part>,
}

/// A scorer and what its score counts.
pub(crate) struct Part {
    pub(crate) weight: f64,
    pub(crate) scorer: Box<dyn Scorer>,
}

type Spreads = [Spread; MOST_PARTS];

thread_local! {
    /// Measures of the decision under way, kept for the next one: at most parts × targets numbers.
    static SHEET: Cell<Vec<f64>> = const { Cell::new(Vec::new()) };
}

/// The measures of all candidates by all parts, taken once.
struct Sheet<'w> {
    parts: &'w [Part],
    candidates: usize,
    /// Part by part; what is unknown is not a number.
    measures: Vec<f64>,
    spreads: Spreads,
}

impl<'w> Sheet<'w> {
    fn new(weighted: &'w Weighted, decision: &Decision<'_>) -> Self {
        let parts = &*weighted.parts;
        let candidates = decision.candidates.len();
        let mut measures = SHEET.take();
        measures.clear();
        measures.resize(parts.len() * candidates, f64::NAN);
        let mut spreads = [Spread::NONE; MOST_PARTS];
        for (part, (Part { scorer, .. }, spread)) in parts.iter().zip(&mut spreads).enumerate() {
            let row = &mut measures[part * candidates..][..candidates];
            scorer.measures(decision, &mut |index, measure| {
                if let (Some(measure), Some(cell)) = (sane(measure), row.get_mut(index)) {
                    spread.add(measure);
                    *cell = measure;
                }
            });
        }
        Self { parts, candidates, measures, spreads }
    }

    /// The first part that nobody has a measure for.
    fn unscored(&self) -> Option<Missing> {
        let unscored = self.parts.iter().zip(&self.spreads).find(|(_, spread)| spread.is_none());
        unscored.map(|(part, _)| Missing(part.scorer.figure()))
    }

    fn total(&self, index: usize) -> f64 {
        let mut total = 0.0;
        for (part, (Part { weight, scorer }, spread)) in self.parts.iter().zip(&self.spreads).enumerate() {
            let measure = self.measures[part * self.candidates + index];
            // Also what a formula makes of a measure that it did not expect is no score.
            let score = if measure.is_nan() { 0.0 } else { scorer.score(measure, spread) };
            total += weight * if score.is_nan() { 0.0 } else { score.clamp(0.0, 1.0) };
        }
        total
    }
}

impl Drop for Sheet<'_> {
    fn drop(&mut self) {
        SHEET.set(std::mem::take(&mut self.measures));
    }
}

impl Weighted {
    /// At most [`MOST_PARTS`] parts count.
    pub(crate) fn new(mut parts: Vec<Part>) -> Self {
        parts.truncate(MOST_PARTS);
        Self { parts }
    }

    /// The sum that a text describes, and the text as it is usually written.
    ///
    /// # Errors
    /// A name is unknown, stands twice or cannot be a part; a weight is no whole number up to 1,000,000 or all are 0;
    /// there are too many parts.
    pub(crate) fn parse(text: &str, settings: &Settings) -> Result<(String, Self), StrategyError> {
        let mut parts = Vec::new();
        let mut names: Vec<&'static str> = Vec::new();
        let mut label = String::new();
        let mut sum = 0;
        for part in text.split(',') {
            let (name, weight) = part.split_once(':').unwrap_or((part, "1"));
            let (name, weight) = (name.trim(), weight.trim());
            let (name, scorer) = scorer(name, settings)?;
            // `parse` alone would take a sign.
            let digits = !weight.is_empty() && weight.bytes().all(|byte| byte.is_ascii_digit());
            let number: Option<u32> = weight.parse().ok().filter(|number| digits && *number <= MOST_WEIGHT);
            let Some(number) = number else {
                return Err(StrategyError::Weight { name, weight: weight.chars().take(32).collect() });
            };
            if names.contains(&name) {
                return Err(StrategyError::Twice(name));
            }
            if parts.len() == MOST_PARTS {
                return Err(StrategyError::TooMany);
            }
            names.push(name);
            sum += number;
            let comma = if label.is_empty() { "" } else { "," };
            label.push_str(&format!("{comma}{name}:{number}"));
            parts.push(Part { weight: f64::from(number), scorer });
        }
        if sum == 0 {
            return Err(StrategyError::NoWeight);
        }
        // What has no weight decides nothing.
        parts.retain(|part: &Part| part.weight > 0.0);
        Ok((label, Self::new(parts)))
    }

    fn weight(&self) -> f64 {
        self.parts.iter().map(|part| part.weight).sum()
    }

    /// The first part that nobody has a measure for.
    pub(crate) fn unscored(&self, decision: &Decision<'_>) -> Option<Missing> {
        let scores = |scorer: &dyn Scorer| {
            decision.candidates.iter().any(|candidate| sane(scorer.measure(decision, candidate)).is_some())
        };
        let unscored = self.parts.iter().find(|part| !scores(&*part.scorer));
        unscored.map(|part| Missing(part.scorer.figure()))
    }
}

/// The scorer of that name: a policy's, or one of its own.
fn scorer(name: &str, settings: &Settings) -> Result<(&'static str, Box<dyn Scorer>), StrategyError> {
    let unknown = match name.parse::<PolicyName>() {
        Ok(policy) if is_exclusive(policy) => return Err(StrategyError::Exclusive(policy.as_str())),
        Ok(policy) => {
            let build = policy.build(settings);
            let scorer = build.map(|build| Box::new(OfPolicy::new(policy, build)) as Box<dyn Scorer>);
            return scorer
                .map(|scorer| (policy.as_str(), scorer))
                .ok_or(StrategyError::Exclusive(policy.as_str()));
        }
        Err(unknown) => unknown,
    };
    match ScorerName::find(name) {
        Some(scorer) => Ok((scorer.as_str(), scorer.build(settings))),
        None => {
            let scorers = ScorerName::ALL.iter().map(|scorer| scorer.as_str());
            let known = std::iter::once(unknown.known.as_str()).chain(scorers).collect::<Vec<_>>().join(", ");
            Err(UnknownPolicy { known, ..unknown }.into())
        }
    }
}

/// Whether a policy decides as a whole or not at all: those that place prefill and decode, those that keep limits, those
/// that charge users for what they pick, and sums themselves.
fn is_exclusive(policy: PolicyName) -> bool {
    let name = policy.as_str();
    name == "pd"
        || name.ends_with("pd-split")
        || name.starts_with("slo")
        || matches!(policy, PolicyName::LlmD | PolicyName::VtcBasic)
}

impl Policy for Weighted {
    fn wants_prefix(&self) -> bool {
        self.parts.iter().any(|part| part.scorer.wants_prefix())
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let sheet = Sheet::new(self, decision);
        if sheet.spreads.iter().take(self.parts.len()).all(Spread::is_none) {
            return Err(sheet.unscored());
        }
        let (mut index, mut best, mut ties) = (0, f64::NEG_INFINITY, 0);
        for at in 0..decision.candidates.len() {
            let total = sheet.total(at);
            if total > best {
                (index, best, ties) = (at, total, 1);
            } else if total == best {
                // The n-th of equals takes the place with probability 1/n: an even draw in one pass.
                ties += 1;
                if rng.below(ties) == 0 {
                    index = at;
                }
            }
        }
        let candidate = decision.candidates.get(index).ok_or(None)?;
        for (Part { scorer, .. }, spread) in self.parts.iter().zip(&sheet.spreads) {
            scorer.picked(decision, candidate, spread);
        }
        Ok(Choice { index, reason: Reason::HighestScore })
    }

    /// What is missing to the greatest possible sum.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let index = decision.candidates.iter().position(|one| one.number == candidate.number)?;
        Some(self.weight() - Sheet::new(self, decision).total(index))
    }

    fn values(&self, decision: &Decision<'_>, tell: &mut dyn FnMut(usize, Option<f64>)) {
        let (sheet, weight) = (Sheet::new(self, decision), self.weight());
        for index in 0..decision.candidates.len() {
            tell(index, Some(weight - sheet.total(index)));
        }
    }

    fn missing(&self, decision: &Decision<'_>) -> Option<Missing> {
        self.unscored(decision)
    }
}
