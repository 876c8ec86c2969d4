//! The constants of a target's cost and what follows from them.

use std::sync::atomic::{AtomicU32, Ordering};

/// Costs of a target's work, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Constants {
    /// One uncached prompt token.
    pub prefill: f32,
    /// One uncached prompt token, for each token of context before it.
    pub attention: f32,
    /// A decode step by itself.
    pub step: f32,
    /// One sequence in a decode step.
    pub sequence: f32,
    /// One token of context of a decoding sequence, in a decode step.
    pub context: f32,
    /// Prompt tokens that a step takes while prompts wait, tokens.
    pub chunk: f32,
}

/// How many constants there are.
pub(crate) const CONSTANTS: usize = 6;

impl Constants {
    /// Before anything was observed: a model of some 8 billion parameters on one current data-centre GPU. Wrong for
    /// most engines by some factor; what policies compare stays in proportion, and observation mends it.
    pub const PRIOR: Self = Self {
        prefill: 33.3,
        attention: 33.3 / 30_700.0,
        step: 6_000.0,
        sequence: 30.0,
        context: 0.02,
        chunk: 1_024.0,
    };

    /// As numbers in the order of the fields.
    pub const fn to_array(self) -> [f32; CONSTANTS] {
        [self.prefill, self.attention, self.step, self.sequence, self.context, self.chunk]
    }

    /// From numbers in the order of the fields; those that are not numbers, or far from anything that an engine may
    /// cost, are replaced by the prior's.
    pub fn from_array(numbers: [f32; CONSTANTS]) -> Self {
        let prior = Self::PRIOR.to_array();
        let sane = |i: usize| {
            let (number, prior) = (numbers[i], prior[i]);
            if number >= prior * 1e-4 && number <= prior * 1e4 { number } else { prior }
        };
        Self {
            prefill: sane(0),
            attention: sane(1),
            step: sane(2),
            sequence: sane(3),
            context: sane(4),
            chunk: sane(5),
        }
    }

    /// Prefill work of `uncached` tokens behind `cached` ones, without the steps' own costs.
    #[inline]
    pub fn work(&self, uncached: f32, cached: f32) -> f32 {
        uncached * self.prefill + uncached * (cached + uncached * 0.5) * self.attention
    }

    /// A decode step of `batch` sequences with `context` tokens in all.
    #[inline]
    pub fn decode_step(&self, batch: f32, context: f32) -> f32 {
        self.step + self.sequence * batch + self.context * context
    }

    /// Time in which `work` µs of prefill, `tokens` tokens, are done beside decoding whose step takes `step` µs.
    #[inline]
    pub fn prefill_time(&self, work: f32, tokens: f32, step: f32) -> f32 {
        work + (tokens / self.chunk).max(1.0) * step
    }

    /// Share of the time that goes into prefill work while prompts wait, beside decode steps of `step` µs.
    #[inline]
    pub fn prefill_share(&self, step: f32) -> f32 {
        let work = self.prefill * self.chunk;
        work / (work + step)
    }
}

impl Default for Constants {
    fn default() -> Self {
        Self::PRIOR
    }
}

/// Constants that one thread replaces and others read: each number by itself, since a mixture of two versions is as
/// good as either.
#[derive(Debug)]
pub struct CostCell([AtomicU32; CONSTANTS]);

impl CostCell {
    /// Replaces the constants.
    pub fn store(&self, constants: &Constants) {
        for (cell, number) in self.0.iter().zip(constants.to_array()) {
            cell.store(number.to_bits(), Ordering::Relaxed);
        }
    }

    /// The constants.
    #[inline]
    pub fn read(&self) -> Constants {
        let number = |i: usize| f32::from_bits(self.0[i].load(Ordering::Relaxed));
        Constants {
            prefill: number(0),
            attention: number(1),
            step: number(2),
            sequence: number(3),
            context: number(4),
            chunk: number(5),
        }
    }
}

impl Default for CostCell {
    fn default() -> Self {
        Self(Constants::PRIOR.to_array().map(|number| AtomicU32::new(number.to_bits())))
    }
}
