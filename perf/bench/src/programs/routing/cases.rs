//! What is compared: traces × loads × gateways, and what may turn the order of policies over.

use std::sync::Arc;

use fairlead_sim::Profile;
use fairlead_sim::replay::{Failure, InstanceSpec, Setup, Workload};

use super::eas;
use super::traces::{Source, Traces};

/// One table.
pub struct Case {
    /// What rows and tables call it.
    pub name: String,
    /// Which part of the comparison it belongs to.
    pub part: Part,
    /// Who serves.
    pub setup: Setup,
    /// What is asked.
    pub workload: Arc<Workload>,
    /// Whether the oracle plans it too.
    pub planned: bool,
    /// The policies compared; `None` for all.
    pub policies: Option<&'static [&'static str]>,
}

/// Parts of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A trace at a load, one gateway or more with state 1 ms old.
    Load {
        /// Which of [`LOADS`].
        load: usize,
        /// Gateways.
        gateways: usize,
    },
    /// Older state behind four gateways.
    Age,
    /// Coding sessions, by starts per second.
    Cliff,
    /// Other engines, other memory, failures.
    Sensitivity,
    /// What gateways believe that engines cost is wrong.
    Belief,
    /// A closed loop of conversations.
    Loop,
}

/// A trace played at a speed.
pub struct Load {
    /// What it is called.
    pub name: &'static str,
    /// The trace.
    pub source: Source,
    /// How many times as fast.
    pub speed: f64,
    /// Cost's mean TTFT may be so many times the oracle's.
    pub over_oracle: Option<f64>,
}

/// The loads: 80 and 90 % of what the best policies bear, as far as the traces have prefixes.
pub const LOADS: [Load; 5] = [
    Load { name: "conversation 3.0", source: Source::Conversation, speed: 3.0, over_oracle: Some(1.05) },
    Load { name: "conversation 3.4", source: Source::Conversation, speed: 3.4, over_oracle: Some(1.05) },
    Load { name: "synthetic 3.0", source: Source::Synthetic, speed: 3.0, over_oracle: Some(1.25) },
    Load { name: "synthetic 4.0", source: Source::Synthetic, speed: 4.0, over_oracle: Some(1.25) },
    Load { name: "azure 15.7", source: Source::Azure, speed: 15.7, over_oracle: None },
];

/// Numbers of gateways compared.
pub const GATEWAYS: [usize; 3] = [1, 2, 4];

/// Age of the state behind the gateways, seconds.
const FRESH: f64 = 0.001;

/// Starts of coding sessions in a second, from where all is well to where little is.
pub const STARTS: [f64; 4] = [0.04, 0.05, 0.06, 0.075];

/// What a closer look compares.
const FEW: &[&str] = &[
    "cost",
    "marginal",
    "prefix-cache",
    "least-request",
    "round-robin",
    "least-queued-tokens",
    "lmetric",
    "dynamo",
    "sglang-cache-aware",
    "llm-d",
];
/// What coding sessions compare: policies that know prefixes or sessions, and two that do not.
const SESSIONS: &[&str] = &[
    "cost",
    "marginal",
    "prefix-cache",
    "least-request",
    "least-queued-tokens",
    "lmetric",
    "dynamo",
    "sglang-cache-aware",
    "llm-d",
    "aibrix-prefix-cache",
    "prefix-cache-preble",
    "session-affinity",
    "consistent-hash",
];
const COST: &[&str] = &["cost", "marginal"];

fn instance() -> InstanceSpec {
    let profile = Profile::h200_8b();
    InstanceSpec { kv_blocks: (profile.kv_tokens / 512) as u32, profile }
}

/// The table of loads and gateways.
///
/// # Errors
/// A trace cannot be read.
pub fn loads(traces: &mut Traces, loads: &[usize], gateways: &[usize]) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &gateways in gateways {
        for &load in loads {
            let Load { name, source, speed, over_oracle } = LOADS[load];
            let workload = traces.play(source, speed)?;
            let mut setup = Setup::new(instance(), 8);
            (setup.gateways, setup.state_delay) = (gateways, FRESH);
            let name = if gateways == 1 { name.to_owned() } else { format!("{name}, {gateways} gateways") };
            let planned = gateways == 1 && over_oracle.is_some();
            let part = Part::Load { load, gateways };
            // What is hopeless behind one gateway is not played behind several.
            let policies = (gateways > 1).then_some(FEW);
            cases.push(Case { name, part, setup, workload, planned, policies });
        }
    }
    Ok(cases)
}

/// Coding sessions on eight instances of 6,000 blocks.
///
/// # Errors
/// The trace cannot be read.
pub fn cliff(traces: &mut Traces, starts: &[f64]) -> anyhow::Result<Vec<Case>> {
    let case = |&starts: &f64| {
        let setup = Setup::new(InstanceSpec { kv_blocks: 6_000, ..instance() }, 8);
        let workload = traces.play(Source::Sessions, starts)?;
        let name = format!("coding sessions, {starts} starts/s");
        Ok(Case { name, part: Part::Cliff, setup, workload, planned: false, policies: Some(SESSIONS) })
    };
    starts.iter().map(case).collect()
}

/// All other parts.
///
/// # Errors
/// A trace cannot be read.
pub fn rest(traces: &mut Traces) -> anyhow::Result<Vec<Case>> {
    let mut cases = ages(traces)?;
    cases.extend(sensitivity(traces)?);
    cases.extend(beliefs(traces)?);
    cases.extend(eas::SHAPES.iter().map(|shape| Case {
        name: format!("closed loop, {}", shape.name),
        part: Part::Loop,
        setup: shape.setup(),
        workload: shape.workload(),
        planned: false,
        policies: Some(FEW),
    }));
    Ok(cases)
}

fn ages(traces: &mut Traces) -> anyhow::Result<Vec<Case>> {
    let workload = traces.play(Source::Conversation, 3.0)?;
    let case = |ms: f64| {
        let mut setup = Setup::new(instance(), 8);
        (setup.gateways, setup.state_delay) = (4, ms / 1e3);
        let name = format!("conversation 3.0, 4 gateways, state {ms} ms old");
        let policies = Some(COST);
        Case { name, part: Part::Age, setup, workload: workload.clone(), planned: false, policies }
    };
    Ok([1.0, 10.0, 100.0, 1_000.0].map(case).into())
}

fn sensitivity(traces: &mut Traces) -> anyhow::Result<Vec<Case>> {
    let pool = |change: &dyn Fn(&mut InstanceSpec)| {
        let mut spec = instance();
        change(&mut spec);
        vec![spec; 8]
    };
    let large = InstanceSpec { profile: Profile::tp4_70b(), kv_blocks: 1_200 };
    let mixed = [vec![instance(); 4], vec![large.clone(); 4]].concat();
    let shapes = [
        ("900 blocks, 4.7 requests/s", 4.7, pool(&|spec| spec.kv_blocks = 900)),
        ("6,000 blocks, 12 requests/s", 12.0, pool(&|spec| spec.kv_blocks = 6_000)),
        ("budget of 512 tokens, 10.9 requests/s", 10.9, pool(&|spec| spec.profile.token_budget = 512)),
        ("budget of 8,192 tokens, 10.9 requests/s", 10.9, pool(&|spec| spec.profile.token_budget = 8_192)),
        ("70B over four cards, 4.4 requests/s", 4.4, vec![large; 8]),
        ("4 × 8B and 4 × 70B, 7 requests/s", 7.0, mixed),
    ];
    let mut cases = Vec::new();
    let mut add = |name: &str, workload: &Arc<Workload>, setup: Setup| {
        let (name, workload) = (name.to_owned(), workload.clone());
        cases.push(Case {
            name,
            part: Part::Sensitivity,
            setup,
            workload,
            planned: false,
            policies: Some(FEW),
        });
    };
    for (name, rate, pool) in shapes {
        let workload = traces.play(Source::Conversation, rate / Source::Conversation.rate(1.0))?;
        add(name, &workload, Setup { pool, ..Setup::new(instance(), 8) });
    }
    // An instance dies in the middle and returns a minute later, empty.
    let workload = traces.play(Source::Conversation, 3.0)?;
    let mut setup = Setup::new(instance(), 8);
    let middle = workload.arrivals(1).coming().iter().map(|(at, _)| *at).fold(0.0, f64::max) / 2.0;
    setup.failures = vec![Failure { instance: 0, at: middle, until: Some(middle + 60.0) }];
    add("an instance dies for 60 s, 10.2 requests/s", &workload, setup);
    Ok(cases)
}

/// Engines whose prefill is dearer or cheaper than the constants that gateways begin with, with learning and without.
fn beliefs(traces: &mut Traces) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, factor, rate) in [("twice as dear", 2.0, 5.1), ("half as dear", 0.5, 18.0)] {
        let workload = traces.play(Source::Conversation, rate / Source::Conversation.rate(1.0))?;
        for learn in [false, true] {
            let mut spec = instance();
            spec.profile.prefill *= factor;
            spec.profile.attention *= factor;
            let knows = if learn { "learnt" } else { "not learnt" };
            let name = format!("prefill {name} as believed, {knows}");
            let setup = Setup { learn, ..Setup::new(spec, 8) };
            let (workload, policies) = (workload.clone(), Some(COST));
            cases.push(Case { name, part: Part::Belief, setup, workload, planned: false, policies });
        }
    }
    Ok(cases)
}
