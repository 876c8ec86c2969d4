//! `routing`: what the policies are worth on recorded traffic, in simulation, beside a planner that knows the future.

mod bars;
mod cases;
mod eas;
mod measure;
mod mixes;
pub mod oracle;
mod pd;
mod report;
mod traces;

use anyhow::bail;
use fairlead_routing::PolicyName;

use self::cases::{Case, GATEWAYS, LOADS, STARTS};
use self::traces::Traces;
use super::{Options, say};
use crate::kit::sheet::Sheet;

/// What `--quick` compares.
const QUICK: [&str; 8] = [
    "cost",
    "prefix-cache",
    "least-request",
    "lmetric",
    "least-queued-tokens",
    "dynamo",
    "llm-d",
    "marginal",
];

/// Runs it.
///
/// # Errors
/// A trace cannot be read, a file not written, or with `--check` a bar is missed.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let seeds = if options.quick { 1 } else { 3 };
    if options.pd {
        return apart(options, seeds, sheet);
    }
    let mut traces = Traces::new();
    let policies: Vec<String> = if options.quick {
        QUICK.map(str::to_owned).into()
    } else {
        PolicyName::ALL.iter().map(|policy| policy.as_str().to_owned()).collect()
    };
    let cases = chosen(options, &mut traces)?;
    let measured = measure::measure(&cases, &policies, seeds, !options.quick && traces.whole);
    report::rows(&measured, sheet);
    let bars = bars::bars(&measured);
    let (shown, missed) = bars::shown(&bars);
    if !options.check {
        sheet.page(report::terminal(&measured));
    }
    if options.check {
        // A failure prints no table.
        say(&shown);
    } else {
        sheet.page(shown);
    }
    if !traces.whole {
        sheet.note(
            "played: the samples in perf/data, at the rates of the whole traces; these are easier, and no bar is \
             meant for them. FAIRLEAD_TRACES names the folder of the whole ones",
        );
    }
    if options.quick && measured.iter().any(|m| m.case.planned && m.oracle.is_none()) {
        sheet.note("the oracle's plans are made and kept by a run without --quick");
    }
    if let Some(path) = &options.write {
        report::write(path, &report::markdown(&measured, &bars, seeds))?;
    }
    if options.check && missed > 0 {
        bail!("{missed} of {} bars are missed", bars.len());
    }
    if !options.check && options.write.is_none() {
        apart(options, seeds, sheet)?;
    }
    Ok(())
}

/// Prefill and decode apart.
fn apart(options: &Options, seeds: u64, sheet: &mut Sheet) -> anyhow::Result<()> {
    let pd = pd::measure(options.quick, seeds);
    pd.rows(sheet);
    let (shown, missed) = bars::shown(&pd.bars());
    sheet.page(pd.markdown());
    if options.check {
        say(&shown);
    } else {
        sheet.page(shown);
    }
    if let Some(path) = &options.write {
        let picture = path.with_extension("svg");
        let part = report::bars_of("`dynamic-pd-split`", &pd.bars(), seeds) + &pd.markdown();
        let name = picture.file_name().unwrap_or_default().to_string_lossy();
        report::write(path, &format!("{part}\n![goodput through the flip]({name})\n"))?;
        std::fs::write(&picture, pd.plot())?;
    }
    if options.check && missed > 0 {
        bail!("{missed} of {} bars are missed", pd.bars().len());
    }
    Ok(())
}

fn chosen(options: &Options, traces: &mut Traces) -> anyhow::Result<Vec<Case>> {
    let all: Vec<usize> = (0..LOADS.len()).collect();
    if options.quick && !options.check {
        return cases::loads(traces, &[1, 4], &[1]);
    }
    let mut cases = cases::loads(traces, &all, if options.quick { &[1, 4] } else { &GATEWAYS })?;
    cases.extend(cases::cliff(traces, &STARTS)?);
    if !options.check {
        cases.extend(cases::rest(traces)?);
    }
    Ok(cases)
}
