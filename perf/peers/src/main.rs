//! Our index beside NVIDIA Dynamo's.

mod dynamo;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Parser;
use dynamo::Dynamo;
use fairlead_bench::blocks::Workload;
use fairlead_bench::kit::alloc::Counting;
use fairlead_bench::kit::pin;
use fairlead_bench::kit::sheet::Sheet;
use fairlead_bench::programs::index::measure::{self, Asker};
use fairlead_bench::programs::index::ours::Truth;
use fairlead_bench::programs::index::subject::Subject;
use fairlead_bench::programs::index::{self, Column, Plan};
use fairlead_bench::programs::{Options, present, say};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Our index beside NVIDIA Dynamo's.
#[derive(Parser)]
struct Args {
    /// Fewer blocks and lookups.
    #[arg(long)]
    quick: bool,
    /// Write the rows there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match present("peers", args.json.as_deref(), |sheet| run(&args, sheet)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, sheet: &mut Sheet) -> anyhow::Result<()> {
    let plan = Plan::new(&Options { quick: args.quick, ..Options::default() });
    for targets in [512, 1000] {
        compare(&plan, targets, sheet)?;
    }
    Ok(())
}

fn compare(plan: &Plan, targets: u16, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (load, origin) = index::workload(plan, targets)?;
    let case = format!("{targets} targets");
    say(&format!("{case}: {origin}; {} blocks, {} prompts", load.distinct, load.fill().len()));
    sheet.note(format!(
        "{origin}; {} blocks; distinct prompts; rates per second of processor time",
        load.distinct
    ));
    // Its event thread keeps to its own core, ours needs none.
    let cores = pin::cores();
    pin::pin(&cores, 0);
    let mut dynamo = index::filled(Dynamo::new, &load, &case, Column::Baseline, sheet)?;
    pin::pin(&cores, 1);
    let mut ours = index::filled(|| Truth::new(targets, 2 << 30), &load, &case, Column::Ours, sheet)?;
    let mut asker = Asker::new(&load, 3);
    let wrong = measure::differences(&mut ours.probe(), &mut dynamo.probe(), &mut asker, 3000, targets);
    ensure!(wrong == 0, "{case}: the two indexes answer differently for {wrong} of 3000 prompts");
    for repeat in 0..plan.repeats {
        say(&format!("{case}: repeat {} of {}", repeat + 1, plan.repeats));
        round(&mut ours, &load, plan, &case, repeat as u64, Column::Ours, sheet);
        round(&mut dynamo, &load, plan, &case, repeat as u64, Column::Baseline, sheet);
    }
    Ok(())
}

fn round<S: Subject>(
    subject: &mut S,
    load: &Workload,
    plan: &Plan,
    case: &str,
    seed: u64,
    column: Column,
    sheet: &mut Sheet,
) {
    let mut asker = Asker::new(load, seed);
    let mut probe = subject.probe();
    let rate = measure::lookup_rate(&mut probe, &mut asker, plan.lookups / 4);
    column.enter(sheet, subject, case, index::LOOKUPS, rate);
    let found = measure::latencies(&mut probe, &mut asker, plan.samples / 4, None);
    index::enter(subject, case, "idle", &found, column, sheet);
}
