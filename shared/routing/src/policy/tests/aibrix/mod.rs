//! Policies of AIBrix: each documented rule by a table.

mod figures;
mod load;
mod slo;
mod vtc;

use std::sync::Arc;

use fairlead_wire::msg::InstanceInfo;

use crate::fleet::tests_support::{empty_fleet, entry};
use crate::policy::{Candidate, Decision, Missing, Reason};
use crate::{
    EngineFigures, Fleet, Mode, ModelCells, Picked, PlanRequest, PolicyName, Rng, Settings, Slo, Strategy,
    TargetEntry,
};

/// A decision under test.
struct Scene {
    fleet: Fleet,
    targets: Vec<Arc<TargetEntry>>,
    candidates: Vec<Candidate>,
    model: ModelCells,
    strategy: Strategy,
    path: Vec<u64>,
    prompt_tokens: u32,
    max_output: Option<u32>,
    session: Option<u64>,
    user: Option<u64>,
    slo: Slo,
    now_us: u64,
    rng: Rng,
}

impl Scene {
    fn new(policy: PolicyName, candidates: &[Candidate]) -> Self {
        Self::with(policy, &Settings::default(), candidates)
    }

    fn with(policy: PolicyName, settings: &Settings, candidates: &[Candidate]) -> Self {
        let number = |(number, c): (usize, &Candidate)| Candidate { number: number as u32, ..*c };
        Self {
            fleet: empty_fleet(),
            targets: (0..candidates.len()).map(|i| entry(i as u16, &format!("t{i}"), "m")).collect(),
            candidates: candidates.iter().enumerate().map(number).collect(),
            model: ModelCells::default(),
            strategy: Strategy::new(policy, settings),
            path: Vec::new(),
            prompt_tokens: 0,
            max_output: None,
            session: None,
            user: None,
            slo: Slo::default(),
            now_us: 1_000_000,
            rng: Rng::new(7),
        }
    }

    /// Idle targets whose engines report these figures.
    fn reporting(policy: PolicyName, figures: &[EngineFigures]) -> Self {
        let scene = Self::new(policy, &vec![Candidate::default(); figures.len()]);
        for (target, figures) in scene.targets.iter().zip(figures) {
            target.cells.load.store(figures);
        }
        scene
    }

    /// A prompt of so many blocks of 64 tokens.
    fn prompt(self, blocks: u64) -> Self {
        Self { path: (1..=blocks).collect(), prompt_tokens: blocks as u32 * 64, ..self }
    }

    /// Changes a target's description.
    fn described(mut self, target: usize, change: impl FnOnce(&mut InstanceInfo)) -> Self {
        let mut entry = self.targets[target].clone_for_test();
        change(Arc::make_mut(&mut entry.info));
        self.targets[target] = Arc::new(entry);
        self
    }

    fn decide<T>(&mut self, decide: impl FnOnce(&Decision<'_>, &mut Rng) -> T) -> T {
        let request = PlanRequest {
            path: &self.path,
            prompt_tokens: self.prompt_tokens,
            block_tokens: 64,
            max_output: self.max_output,
            session: self.session,
            user: self.user,
            slo: self.slo,
            now_us: self.now_us,
            ..PlanRequest::new("m", &self.strategy)
        };
        let decision = Decision {
            request: &request,
            candidates: &self.candidates,
            targets: &self.targets,
            model: &self.model,
            fleet: &self.fleet,
        };
        decide(&decision, &mut self.rng)
    }

    /// What the strategy decides, fallbacks included.
    fn picked(&mut self) -> Picked {
        self.decide(|decision, rng| decision.request.strategy.pick(decision, rng))
    }

    /// What the policy itself decides.
    fn pick(&mut self) -> Result<(usize, Reason), Option<Missing>> {
        self.decide(|decision, rng| {
            let choice = decision.request.strategy.policy().pick(decision, rng)?;
            Ok((choice.index, choice.reason))
        })
    }

    /// How often each candidate is picked in so many decisions.
    fn counts(&mut self, decisions: usize) -> Vec<usize> {
        let mut counts = vec![0; self.candidates.len()];
        for _ in 0..decisions {
            counts[self.picked().choice.index] += 1;
        }
        counts
    }

    fn values(&mut self) -> Vec<Option<f64>> {
        let mut values = vec![None; self.candidates.len()];
        let one_by_one: Vec<_> = self.decide(|decision, _| {
            let policy = decision.request.strategy.policy();
            policy.values(decision, &mut |index, value| values[index] = value);
            decision.candidates.iter().map(|c| policy.value(decision, c)).collect()
        });
        assert_eq!(values, one_by_one, "values in one go and one by one");
        values
    }
}

/// A candidate with that many requests in flight and cached blocks.
fn busy(requests: u64, cached_blocks: u32) -> Candidate {
    Candidate { requests, cached_blocks, ..Candidate::default() }
}

/// Whether all were picked about equally often.
fn even(counts: &[usize]) -> bool {
    let mean = counts.iter().sum::<usize>() / counts.len();
    counts.iter().all(|count| (mean * 8 / 10..mean * 12 / 10).contains(count))
}
