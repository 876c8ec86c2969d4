//! A planner that knows the future: the yardstick of routing quality. It cannot be built, only compared with.

use std::iter::Peekable;

use fairlead_sim::model::Progress;
use fairlead_sim::replay::{Decider, Engine, RequestId, Workload, World};

/// How far it looks, seconds.
const HORIZON: f64 = 12.0;

/// For each request tries every instance in a copy of the cluster, plays the true arrivals of the next seconds there
/// with their true lengths, and takes the instance with the least sum of times to the first token.
///
/// Later requests of a trial go where the [base policy](Base) sends them. Those that have no first token at the end
/// count with what they have waited and are predicted to wait yet.
pub struct Oracle {
    base: Base,
    trial: Trial,
    order: Vec<(f64, usize)>,
}

impl Oracle {
    /// A planner for a workload that comes at known times.
    pub fn new(workload: &Workload) -> Self {
        Self { base: Base::new(workload), trial: Trial::new(workload), order: Vec::new() }
    }
}

impl Decider for Oracle {
    fn decide(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<usize> {
        let mut order = std::mem::take(&mut self.order);
        self.base.costs(request, tried, world, &mut order);
        // Good ones first, so that the others are given up early.
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut best, mut least) = (None, f64::INFINITY);
        for (_, instance) in &order {
            if order.len() == 1 {
                best = Some(*instance);
                break;
            }
            if let Some(sum) = self.trial.play(&mut self.base, request, *instance, world, least) {
                (best, least) = (Some(*instance), sum);
            }
        }
        self.order = order;
        if let Some(instance) = best {
            self.base.expect(request, &world.engines[instance], world.workload());
        }
        best
    }
}

/// One instance tried: the engines go on by themselves from one arrival to the next.
struct Trial {
    engines: Vec<Engine>,
    /// When the step under way ends, by instance; never where there is none.
    ends: Vec<f64>,
    /// By request: when it came, while it counts and has no first token; else not a number.
    came: Vec<f64>,
    counted: Vec<RequestId>,
    /// Sum of the times to the first tokens made.
    begun: f64,
    /// Requests that count and have none.
    open: u32,
    /// Sum of the times at which those came.
    open_came: f64,
    progress: Vec<Progress>,
}

impl Trial {
    fn new(workload: &Workload) -> Self {
        Self {
            engines: Vec::new(),
            ends: Vec::new(),
            came: vec![f64::NAN; workload.requests.len()],
            counted: Vec::new(),
            begun: 0.0,
            open: 0,
            open_came: 0.0,
            progress: Vec::new(),
        }
    }

    /// Puts everything back to how the world is.
    fn reset(&mut self, world: &World) {
        self.engines.clone_from(&world.engines);
        self.engines.iter_mut().for_each(|engine| engine.model.untrack());
        self.ends.clear();
        self.ends.resize(world.engines.len(), f64::INFINITY);
        for (at, instance) in world.step_ends() {
            self.ends[instance] = at;
        }
        for request in self.counted.drain(..) {
            self.came[request as usize] = f64::NAN;
        }
        (self.begun, self.open, self.open_came) = (0.0, 0, 0.0);
    }

    /// Sum of times to the first token when the request goes to the instance; `None` where that is not less than
    /// `most`, or where the instance does not take it.
    fn play(
        &mut self,
        base: &mut Base,
        request: RequestId,
        instance: usize,
        world: &World,
        most: f64,
    ) -> Option<f64> {
        self.reset(world);
        let (workload, until) = (world.workload(), world.now + HORIZON);
        let mut coming = world.arrivals.coming().iter().take_while(|(at, _)| *at <= until).peekable();
        let next = |coming: &mut Peekable<_>| coming.peek().map_or(until, |(at, _): &&(f64, RequestId)| *at);
        let first = next(&mut coming);
        if !self.send(base, request, instance, workload, world.now, first) {
            return None;
        }
        self.advance(first);
        while let Some((now, request)) = coming.next() {
            // What is to come can only add to it.
            if self.so_far(*now) >= most {
                return None;
            }
            let next = next(&mut coming);
            if let Some(instance) = base.choose(*request, &self.engines, workload) {
                self.send(base, *request, instance, workload, *now, next);
            }
            self.advance(next);
        }
        let mut sum = self.so_far(until);
        if self.open > 0 {
            for engine in &self.engines {
                base.waits(engine, |request, seconds| {
                    if !self.came[request as usize].is_nan() {
                        sum += seconds;
                    }
                });
            }
        }
        (sum < most).then_some(sum)
    }

    /// Lets the engines go on; nothing comes before `until`.
    fn advance(&mut self, until: f64) {
        let Self { engines, ends, came, progress, .. } = self;
        for (engine, end) in engines.iter_mut().zip(ends) {
            while *end <= until {
                let now = *end;
                engine.model.end_step(now, progress);
                for told in progress.drain(..).filter(|told| told.emitted <= 1) {
                    let came = std::mem::replace(&mut came[engine.request(told.id) as usize], f64::NAN);
                    if !came.is_nan() {
                        self.begun += now - came;
                        self.open -= 1;
                        self.open_came -= came;
                    }
                }
                *end = engine.model.begin_steps(now, until).map_or(f64::INFINITY, |seconds| now + seconds);
            }
        }
    }

    /// Hands a request to an instance; nothing else comes before `until`.
    fn send(
        &mut self,
        base: &mut Base,
        request: RequestId,
        instance: usize,
        workload: &Workload,
        now: f64,
        until: f64,
    ) -> bool {
        let (engine, end) = (&mut self.engines[instance], &mut self.ends[instance]);
        base.expect(request, engine, workload);
        let taken = engine.submit(request, workload.requests[request as usize].spec(None), now).is_ok();
        if taken {
            self.came[request as usize] = now;
            self.counted.push(request);
            self.open += 1;
            self.open_came += now;
            if *end == f64::INFINITY {
                *end = engine.model.begin_steps(now, until).map_or(f64::INFINITY, |seconds| now + seconds);
            }
        }
        taken
    }

    fn so_far(&self, now: f64) -> f64 {
        self.begun + f64::from(self.open) * now - self.open_came
    }
}

/// The policy `marginal` on the true state: queues, caches and constants are read from the engines themselves.
pub struct Base {
    /// By request: prompt tokens expected in the cache of the instance that it was sent to.
    expected: Vec<u32>,
}

/// Weights of `marginal`.
const OWN_PREFILL: f64 = 4.0;
const DECODE_STEP: f64 = 120.0;
const DISTURBANCE: f64 = 0.1;

impl Base {
    /// For a workload.
    pub fn new(workload: &Workload) -> Self {
        Self { expected: vec![0; workload.requests.len()] }
    }

    /// The instance of least cost.
    fn choose(&self, request: RequestId, engines: &[Engine], workload: &Workload) -> Option<usize> {
        let costs = engines.iter().enumerate().filter(|(_, engine)| engine.up);
        let costs = costs.map(|(instance, engine)| (self.cost(request, engine, workload), instance));
        costs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, instance)| instance)
    }

    fn costs(&self, request: RequestId, tried: &[usize], world: &World, out: &mut Vec<(f64, usize)>) {
        out.clear();
        let able = |(instance, engine): &(usize, &Engine)| engine.up && !tried.contains(instance);
        let cost =
            |(instance, engine): (usize, &Engine)| (self.cost(request, engine, world.workload()), instance);
        out.extend(world.engines.iter().enumerate().filter(able).map(cost));
    }

    /// Notes what a request is expected to find where it goes.
    fn expect(&mut self, request: RequestId, engine: &Engine, workload: &Workload) {
        self.expected[request as usize] = cached(request, engine, workload);
    }

    fn cost(&self, request: RequestId, engine: &Engine, workload: &Workload) -> f64 {
        let prompt = workload.requests[request as usize].prompt_tokens;
        let cached = cached(request, engine, workload);
        let uncached = f64::from(prompt - cached);
        let own = work(engine, prompt - cached, cached);
        let profile = &engine.model.options().profile;
        let (batch, context) = engine.model.decoding();
        let queue = self.queue(engine);
        let step = step(engine, batch, context);
        let step_after = step + profile.per_sequence + profile.decode_context * f64::from(prompt);
        let ttft = time(engine, queue.work + own, queue.tokens + uncached, batch, step);
        ttft + OWN_PREFILL * own + DECODE_STEP * step_after + DISTURBANCE * f64::from(batch) * own
    }

    /// What is to be prefilled, those that wait included.
    fn queue(&self, engine: &Engine) -> Queue {
        let mut queue = Queue::default();
        for prefill in engine.model.prefilling() {
            let computed =
                prefill.computed.unwrap_or_else(|| self.expected[engine.request(prefill.id) as usize]);
            queue.work += work(engine, prefill.prompt_tokens - computed, computed);
            queue.tokens += f64::from(prefill.prompt_tokens - computed);
        }
        queue
    }

    /// Predicted seconds until each first token that is not made yet.
    fn waits(&self, engine: &Engine, mut tell: impl FnMut(RequestId, f64)) {
        let (batch, context) = engine.model.decoding();
        let step = step(engine, batch, context);
        let mut queue = Queue::default();
        for prefill in engine.model.prefilling() {
            let request = engine.request(prefill.id);
            let computed = prefill.computed.unwrap_or(self.expected[request as usize]);
            queue.work += work(engine, prefill.prompt_tokens - computed, computed);
            queue.tokens += f64::from(prefill.prompt_tokens - computed);
            tell(request, time(engine, queue.work, queue.tokens, batch, step));
        }
    }
}

impl Decider for Base {
    fn decide(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<usize> {
        let mut costs = Vec::new();
        self.costs(request, tried, world, &mut costs);
        let (_, instance) = costs.into_iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
        self.expect(request, &world.engines[instance], world.workload());
        Some(instance)
    }
}

#[derive(Default)]
struct Queue {
    /// Seconds, the steps' own costs apart.
    work: f64,
    tokens: f64,
}

/// Prompt tokens that a request will find at an engine: what is cached, and what a request before it in the queue
/// will have computed when its turn comes.
fn cached(request: RequestId, engine: &Engine, workload: &Workload) -> u32 {
    let asked = &workload.requests[request as usize];
    let block = workload.block_tokens;
    let most = ((asked.prompt_tokens.saturating_sub(1) / block) as usize).min(asked.path.len());
    let mut found = engine.model.cached_blocks(&asked.path, asked.prompt_tokens) as usize;
    for before in engine.model.prefilling() {
        // Equal blocks at one place mean equal blocks before.
        let same = |at: usize| at < most && before.path.get(at) == Some(&asked.path[at]);
        while same(found) {
            found += 1;
        }
    }
    found as u32 * block
}

/// Seconds of prefill work of `uncached` tokens behind `cached` ones.
fn work(engine: &Engine, uncached: u32, cached: u32) -> f64 {
    let profile = &engine.model.options().profile;
    let (uncached, cached) = (f64::from(uncached), f64::from(cached));
    uncached * (profile.prefill + profile.attention * (cached + uncached / 2.0))
}

/// Seconds of a step that only decodes.
fn step(engine: &Engine, batch: u32, context: u64) -> f64 {
    let profile = &engine.model.options().profile;
    profile.base + profile.per_sequence * f64::from(batch) + profile.decode_context * context as f64
}

/// Seconds until so much prefill is done beside decoding.
fn time(engine: &Engine, work: f64, tokens: f64, batch: u32, step: f64) -> f64 {
    let chunk = f64::from(engine.model.options().profile.token_budget.saturating_sub(batch).max(1));
    work + (tokens / chunk).max(1.0) * step
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use fairlead_sim::Profile;
    use fairlead_sim::replay::{InstanceSpec, Play, Setup, Slo, run_with};
    use fairlead_sim::trace::{Take, Trace};

    use super::*;

    fn sample() -> (Setup, Arc<Workload>) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mooncake_synthetic_sample.jsonl");
        let trace = Trace::load(&path, Take { requests: 80, max_input: u32::MAX }).unwrap();
        let workload = Workload::new(&trace, &Play { speed: 40.0, ..Play::default() });
        let spec = InstanceSpec { profile: Profile::h200_8b(), kv_blocks: 400 };
        (Setup::new(spec, 3), Arc::new(workload))
    }

    #[test]
    fn who_knows_the_future_waits_less_and_plans_the_same_again() {
        let (setup, workload) = sample();
        let greedy = run_with(&setup, &workload, &mut Base::new(&workload), 1);
        let planned = run_with(&setup, &workload, &mut Oracle::new(&workload), 1);
        let mean = |outcome: &fairlead_sim::replay::Outcome| outcome.summary(&Slo::default()).ttft_mean_s;
        assert!(mean(&planned) < mean(&greedy), "{} {}", mean(&planned), mean(&greedy));
        assert_eq!(planned, run_with(&setup, &workload, &mut Oracle::new(&workload), 1));
    }

    /// Says after each decision what a trial of it comes to.
    struct Told(Oracle, Vec<(RequestId, f64)>);

    impl Decider for Told {
        fn decide(&mut self, request: RequestId, _: &[usize], world: &World) -> Option<usize> {
            let instance = self.0.base.choose(request, &world.engines, world.workload())?;
            let sum = self.0.trial.play(&mut self.0.base, request, instance, world, f64::INFINITY)?;
            self.0.base.expect(request, &world.engines[instance], world.workload());
            self.1.push((request, sum));
            Some(instance)
        }
    }

    #[test]
    fn a_trial_comes_to_what_then_happens() {
        let (setup, workload) = sample();
        let mut told = Told(Oracle::new(&workload), Vec::new());
        let outcome = run_with(&setup, &workload, &mut told, 1);
        // Requests are numbered in the order in which they come; all of a window have begun where the next pause is.
        let mut checked = 0;
        for (request, sum) in told.1 {
            let from = outcome.records[request as usize].arrival;
            let window = || outcome.records.iter().filter(|r| (from..=from + HORIZON).contains(&r.arrival));
            if window().all(|r| r.first.is_some_and(|first| first <= from + HORIZON)) {
                let happened: f64 = window().filter(|r| r.arrival >= from).filter_map(|r| r.ttft()).sum();
                assert!((happened - sum).abs() < 1e-6, "{request}: {happened} {sum}");
                checked += 1;
            }
        }
        assert!(checked > 10, "{checked}");
    }

    #[test]
    fn a_trial_without_hope_is_given_up() {
        let (setup, workload) = sample();
        struct Check(Oracle);
        impl Decider for Check {
            fn decide(&mut self, request: RequestId, _: &[usize], world: &World) -> Option<usize> {
                let Oracle { base, trial, .. } = &mut self.0;
                let sum = trial.play(base, request, 0, world, f64::INFINITY)?;
                assert_eq!(trial.play(base, request, 0, world, sum), None);
                assert_eq!(trial.play(base, request, 0, world, sum + 1e-9), Some(sum));
                Some(request as usize % 3)
            }
        }
        run_with(&setup, &workload, &mut Check(Oracle::new(&workload)), 1);
    }
}
