//! Trace replay: gateways with the real routing code in front of simulated engines, in virtual time.
//!
//! - [`World`]: engines, arrivals and the clock; tells one [`Event`] after the other and takes requests. Cloneable.
//! - [`Decider`]: where a request goes. [`Gateways`] are one: real fleet views, indexes, overlays and policies, with
//!   news from engines and other gateways after a delay.
//! - [`run`], [`run_with`]: a whole trace, and what became of each request.
//!
//! A run depends on its setup, its workload, the policy and the seed alone.

mod args;
mod cluster;
mod compare;
mod decide;
mod gateway;
mod meter;
mod news;
mod outcome;
mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fairlead_routing::{Settings, Strategy};

pub use args::{BadReplay, ReplayArgs};
pub use cluster::{Engine, Event, InstanceSpec, NotTaken, TransferSpec, World};
pub use compare::{Comparison, Row, compare, run_all};
pub use decide::{Decider, Placing};
pub use gateway::Gateways;
pub use outcome::{Outcome, Record, Slo, Summary, WARM_UP};
pub use workload::{Arrivals, Play, Request, RequestId, Workload};

/// Tries of a request besides the first, as of a gateway by default.
const RETRIES: usize = 2;

/// An instance that dies with its requests and its cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failure {
    /// Which.
    pub instance: usize,
    /// When, seconds.
    pub at: f64,
    /// When it returns, empty; `None` for never.
    pub until: Option<f64>,
}

/// Who serves.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The instances.
    pub pool: Vec<InstanceSpec>,
    /// So many of them only prefill, the rest only decode; `None` where each may do either.
    pub prefillers: Option<usize>,
    /// What it takes to hand KV over.
    pub transfer: TransferSpec,
    /// Whether the scheduler has instances without fixed roles lean to prefill or decode.
    pub leaning: bool,
    /// Gateways.
    pub gateways: usize,
    /// Time until a gateway knows what an engine or another gateway has done, seconds.
    pub state_delay: f64,
    /// Instances that die.
    pub failures: Vec<Failure>,
    /// Settings of the policies.
    pub settings: Settings,
    /// Whether gateways learn what engines cost, or predict with the constants that they start with.
    pub learn: bool,
    /// Objectives that requests bear, for policies that look at them.
    pub told_slo: Option<Slo>,
    /// Requests ended so far, for whoever watches.
    pub progress: Option<Arc<AtomicU64>>,
}

impl Setup {
    /// One gateway with fresh state before so many instances of a kind.
    pub fn new(instance: InstanceSpec, instances: usize) -> Self {
        Self {
            pool: vec![instance; instances],
            prefillers: None,
            transfer: TransferSpec::default(),
            leaning: true,
            gateways: 1,
            state_delay: 0.0,
            failures: Vec::new(),
            settings: Settings::default(),
            learn: true,
            told_slo: None,
            progress: None,
        }
    }
}

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPolicy(String);

/// The policy that a text names, as in a configuration.
fn strategy(text: &str, settings: &Settings) -> Result<Strategy, BadPolicy> {
    Strategy::parse(text, settings).map_err(|error| BadPolicy(error.to_string()))
}

/// Plays a workload through gateways with a policy, named as in a configuration.
///
/// # Errors
/// The policy is unknown.
pub fn run(setup: &Setup, workload: &Arc<Workload>, policy: &str, seed: u64) -> Result<Outcome, BadPolicy> {
    let mut gateways = Gateways::new(setup, workload, policy, seed)?;
    let outcome = run_with(setup, workload, &mut gateways, seed);
    debug_assert_eq!(gateways.in_flight(), Default::default(), "every reservation is released");
    Ok(outcome)
}

/// Plays a workload with somebody else deciding.
pub fn run_with<D: Decider>(setup: &Setup, workload: &Arc<Workload>, decider: &mut D, seed: u64) -> Outcome {
    let world = World::new(workload.clone(), setup.pool.as_slice().into(), &setup.failures, seed)
        .with_transfer(setup.transfer);
    let mut run = Run {
        world,
        decider,
        order: vec![u32::MAX; workload.requests.len()],
        tried: vec![Vec::new(); workload.requests.len()],
        records: Vec::with_capacity(workload.requests.len()),
        progress: setup.progress.as_deref(),
    };
    while run.step() {}
    Outcome { records: run.records }
}

struct Run<'a, D> {
    world: World,
    decider: &'a mut D,
    /// Places in `records`.
    order: Vec<u32>,
    tried: Vec<Vec<usize>>,
    records: Vec<Record>,
    progress: Option<&'a AtomicU64>,
}

impl<D: Decider> Run<'_, D> {
    fn step(&mut self) -> bool {
        let Some(event) = self.world.next() else { return false };
        let now = self.world.now;
        match event {
            Event::Arrival(request) => {
                let asked = &self.world.workload().requests[request as usize];
                self.order[request as usize] = self.records.len() as u32;
                self.records.push(Record {
                    arrival: now,
                    instance: None,
                    prefill: None,
                    cached: 0,
                    prompt: asked.prompt_tokens,
                    output: asked.output_tokens,
                    first: None,
                    end: None,
                });
                self.place(request);
                return true;
            }
            Event::FirstToken { request, cached, .. } => {
                let record = self.record(request);
                record.first = Some(now);
                if record.prefill.is_none() {
                    record.cached = cached;
                }
            }
            Event::Prefilled { request, cached, .. } => self.record(request).cached = cached,
            Event::Finished { request, .. } => {
                self.record(request).end = Some(now);
                self.over(request);
            }
            _ => {}
        }
        self.decider.happened(&event, &mut self.world);
        if let Event::Lost { request, instance, begun } = event {
            if begun {
                self.over(request);
            } else {
                self.tried[request as usize].push(instance);
                self.place(request);
            }
        }
        true
    }

    /// Sends a request, to others when it is not taken.
    fn place(&mut self, request: RequestId) {
        while self.tried[request as usize].len() <= RETRIES {
            let tried = &mut self.tried[request as usize];
            let Some(placing) = self.decider.place(request, tried, &self.world) else { break };
            let (instance, sent) = match placing.prefill {
                None => (placing.decode, self.world.send(request, placing.decode)),
                Some(prefill) => (prefill, self.world.send_apart(request, prefill, placing.decode)),
            };
            let order = self.order[request as usize] as usize;
            self.records[order].instance = Some(placing.decode as u32);
            self.records[order].prefill = placing.prefill.map(|instance| instance as u32);
            let Err(why) = sent else { return };
            self.decider.refused(request, instance, why == NotTaken::Down, &self.world);
            tried.push(instance);
        }
        self.over(request);
    }

    fn over(&mut self, request: RequestId) {
        self.world.over(request);
        if let Some(progress) = self.progress {
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn record(&mut self, request: RequestId) -> &mut Record {
        &mut self.records[self.order[request as usize] as usize]
    }
}
