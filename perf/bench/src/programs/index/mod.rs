//! `index`: our tree against a hash map of bitsets under a lock, on conversations.

pub mod map;
pub mod measure;
pub mod ours;
pub mod subject;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use fairlead_wire::msg::IndexOp;

use super::{Options, say};
use crate::blocks::{Size, Workload};
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::{alloc, clock, memory, pin};
use map::FlatMap;
use measure::{Asker, LENGTHS, Latencies};
use ours::{Replica, Truth};
use subject::Subject;

/// Memory per block.
pub const BYTES: Metric = Metric::new("bytes_per_block", "bytes");
/// Median lookup.
pub const P50: Metric = Metric::new("lookup_p50_us", "us");
/// 99th percentile.
pub const P99: Metric = Metric::new("lookup_p99_us", "us");
/// Lookups per second and core.
pub const LOOKUPS: Metric = Metric::new("lookups_per_s", "1/s");
/// Changed pairs of target and block per second and core.
pub const UPDATES: Metric = Metric::new("updates_per_s", "1/s");

/// Pairs a second under which latencies are taken.
pub const WRITER_RATE: f64 = 1e6;
/// Sequences that grow in turn where updates come block by block.
const SEQUENCES: usize = 512;
/// Budget of the index, bytes: far above what it may need.
const BUDGET: usize = 2 << 30;
/// Words written between two lookups to empty the caches: 8 MiB, four times the second-level cache.
const SCRUB_WORDS: usize = 1 << 20;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Blocks in the index.
    pub blocks: u64,
    /// Further blocks that come and go.
    pub churn: u64,
    /// Interleaved repeats.
    pub repeats: usize,
    /// Timed lookups of each length, repeat and condition.
    pub samples: usize,
    /// Timed lookups with emptied caches.
    pub cold: usize,
    /// Lookups for the throughput.
    pub lookups: usize,
}

impl Plan {
    /// The plan for these options.
    pub fn new(options: &Options) -> Self {
        if options.quick {
            Self { blocks: 1_000_000, churn: 200_000, repeats: 3, samples: 5_000, cold: 150, lookups: 50_000 }
        } else {
            Self {
                blocks: 10_000_000,
                churn: 1_000_000,
                repeats: 5,
                samples: 20_000,
                cold: 400,
                lookups: 200_000,
            }
        }
    }
}

/// The workload: from the folder that `FAIRLEAD_TRACES` names when it has the conversation trace, else generated.
///
/// # Errors
/// The trace is there and cannot be read.
pub fn workload(plan: &Plan, targets: u16) -> anyhow::Result<(Workload, String)> {
    const NAME: &str = "mooncake_conversation_trace.jsonl";
    let size = Size { blocks: plan.blocks, churn: plan.churn, targets };
    let folder = std::env::var_os("FAIRLEAD_TRACES").map(PathBuf::from);
    let file =
        folder.and_then(|f| [f.join(NAME), f.join(format!("{NAME}.gz"))].into_iter().find(|f| f.exists()));
    match file {
        Some(file) => {
            let load = Workload::from_trace(&file, size, 1).with_context(|| file.display().to_string())?;
            Ok((load, format!("the trace {NAME}, repeated")))
        }
        None => Ok((Workload::generate(size, 1), "conversations drawn with the trace's shape".to_owned())),
    }
}

/// Runs it.
///
/// # Errors
/// The trace cannot be read, or the two indexes answer differently.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let plan = Plan::new(options);
    compare::<8>(&plan, 512, sheet)?;
    compare::<16>(&plan, 1000, sheet)
}

fn compare<const W: usize>(plan: &Plan, targets: u16, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (load, origin) = workload(plan, targets)?;
    let case = format!("{targets} targets");
    say(&format!("{case}: {origin}; {} blocks, {} prompts", load.distinct, load.fill().len()));
    sheet.note(format!(
        "{origin}; {} blocks in {} prompts; distinct prompts; rates per second of processor time",
        load.distinct,
        load.fill().len()
    ));
    pin::pin(&pin::cores(), 1);
    let mut ours = filled(|| Truth::new(targets, BUDGET), &load, &case, Column::Ours, sheet)?;
    let mut map = filled(|| Ok(FlatMap::<W>::default()), &load, &case, Column::Baseline, sheet)?;
    let mut asker = Asker::new(&load, 3);
    replica(plan, &load, targets, &case, sheet)?;
    let wrong = measure::differences(&mut ours.probe(), &mut map.probe(), &mut asker, 3000, targets);
    ensure!(wrong == 0, "{case}: the two indexes answer differently for {wrong} of 3000 prompts");
    let mut scrub = vec![0; SCRUB_WORDS];
    for repeat in 0..plan.repeats {
        say(&format!("{case}: repeat {} of {}", repeat + 1, plan.repeats));
        let seed = 100 + repeat as u64;
        round(&mut ours, &load, plan, &case, seed, Column::Ours, &mut scrub, sheet);
        round(&mut map, &load, plan, &case, seed, Column::Baseline, &mut scrub, sheet);
    }
    let wrong = measure::differences(&mut ours.probe(), &mut map.probe(), &mut asker, 3000, targets);
    ensure!(wrong == 0, "{case}: after churn the two indexes answer differently for {wrong} of 3000 prompts");
    Ok(())
}

/// What a gateway pays: memory of a replica, and applying what the truth sends for the same churn.
fn replica(plan: &Plan, load: &Workload, targets: u16, case: &str, sheet: &mut Sheet) -> anyhow::Result<()> {
    let mut truth = Truth::new(targets, BUDGET)?;
    truth.sent = Some(Vec::new());
    measure::fill(&mut truth, load);
    let ops = truth.sent.replace(Vec::new()).unwrap_or_default();
    let before = alloc::live();
    let mut replica = Replica::new(targets, BUDGET)?;
    replica.apply(&ops)?;
    replica.drain();
    let bytes = (alloc::live() - before) as f64 / load.distinct as f64;
    sheet.ours(&format!("{case}, replica"), BYTES, bytes);
    ensure!(replica.blocks() == load.distinct, "the replica has {} blocks", replica.blocks());
    drop(ops);
    for _ in 0..plan.repeats {
        let mut apply = |kind: &str, pairs: f64, ops: Vec<IndexOp>| {
            let start = clock::thread_cpu();
            replica.apply(&ops)?;
            replica.drain();
            let rate = pairs / (clock::thread_cpu() - start);
            sheet.ours(&format!("{case}, {kind}, replica"), UPDATES, rate);
            anyhow::Ok(())
        };
        measure::churn_rate(&mut truth, load);
        let ops = truth.sent.replace(Vec::new()).unwrap_or_default();
        apply("whole requests", 2.0 * measure::churn_pairs(load) as f64, ops)?;
        measure::single_rate(&mut truth, load, SEQUENCES);
        let ops = truth.sent.replace(Vec::new()).unwrap_or_default();
        apply("single blocks", ops.len() as f64, ops)?;
    }
    let mut asker = Asker::new(load, 4);
    let wrong = measure::differences(&mut truth.probe(), &mut replica.probe(), &mut asker, 1000, targets);
    ensure!(wrong == 0, "{case}: the replica answers differently for {wrong} of 1000 prompts");
    Ok(())
}

/// Where figures of a subject go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Ours.
    Ours,
    /// The baseline.
    Baseline,
}

impl Column {
    /// Enters a sample.
    pub fn enter<S: Subject>(self, sheet: &mut Sheet, subject: &S, case: &str, metric: Metric, value: f64) {
        match self {
            Self::Ours => sheet.ours(case, metric, value),
            Self::Baseline => sheet.baseline(case, metric, subject.name(), value),
        }
    }
}

/// Builds a subject and says what memory it takes.
///
/// # Errors
/// Those of `make`.
pub fn filled<S: Subject>(
    make: impl FnOnce() -> anyhow::Result<S>,
    load: &Workload,
    case: &str,
    column: Column,
    sheet: &mut Sheet,
) -> anyhow::Result<S> {
    let (live, resident) = (alloc::live(), memory::resident());
    let mut subject = make()?;
    measure::fill(&mut subject, load);
    let blocks = load.distinct as f64;
    let live = (alloc::live() - live) as f64 / blocks;
    let resident = (memory::resident().saturating_sub(resident)) as f64 / blocks;
    column.enter(sheet, &subject, case, BYTES, live);
    if let Some(bytes) = subject.accounted() {
        column.enter(sheet, &subject, &format!("{case}, own account"), BYTES, bytes as f64 / blocks);
    }
    column.enter(sheet, &subject, &format!("{case}, resident"), BYTES, resident);
    Ok(subject)
}

/// All measurements of one repeat.
fn round<S: Subject>(
    subject: &mut S,
    load: &Workload,
    plan: &Plan,
    case: &str,
    seed: u64,
    column: Column,
    scrub: &mut [u64],
    sheet: &mut Sheet,
) {
    // The baseline is up to a thousand times slower: fewer samples of it do, and a run ends.
    let plan = &match column {
        Column::Ours => *plan,
        Column::Baseline => Plan { samples: plan.samples / 10, lookups: plan.lookups / 10, ..*plan },
    };
    let mut asker = Asker::new(load, seed);
    let mut probe = subject.probe();
    let rate = measure::lookup_rate(&mut probe, &mut asker, plan.lookups);
    column.enter(sheet, subject, case, LOOKUPS, rate);
    let idle = measure::latencies(&mut probe, &mut asker, plan.samples, None);
    let cold = measure::latencies(&mut probe, &mut asker, plan.cold, Some(scrub));
    drop(probe);
    let (busy, reached) = measure::under_writer(subject, load, WRITER_RATE, |mut probe| {
        measure::latencies(&mut probe, &mut asker, plan.samples, None)
    });
    pin::pin(&pin::cores(), 1);
    if reached < 0.95 * WRITER_RATE {
        sheet.note(format!("{case}: the writer of {} reached {reached:.0} a second only", subject.name()));
    }
    for (condition, found) in [("idle", idle), ("writer at 1M/s", busy), ("cold caches", cold)] {
        enter(subject, case, condition, &found, column, sheet);
    }
    let whole = measure::churn_rate(subject, load);
    column.enter(sheet, subject, &format!("{case}, whole requests"), UPDATES, whole);
    let single = measure::single_rate(subject, load, SEQUENCES);
    column.enter(sheet, subject, &format!("{case}, single blocks"), UPDATES, single);
}

/// Enters quantiles by length.
pub fn enter<S: Subject>(
    subject: &S,
    case: &str,
    condition: &str,
    found: &Latencies,
    column: Column,
    sheet: &mut Sheet,
) {
    for (length, (p50, p99)) in LENGTHS.iter().zip(found) {
        let case = format!("{case}, {length} blocks, {condition}");
        column.enter(sheet, subject, &case, P50, *p50);
        column.enter(sheet, subject, &case, P99, *p99);
    }
}
