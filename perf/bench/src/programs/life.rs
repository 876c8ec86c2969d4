//! Life against replay: the same first requests of a trace through a live gateway, scheduler, agents and simulated engines,
//! in real time, and through the replay, in virtual time. Engines compute at the speed of their profile in both.
//!
//! What gateways know is made comparable: prompts are routed by tokens, engines tell what their caches hold, and blocks
//! have the trace's size. First, requests come one at a time to one engine: there tokens and hits must agree exactly.

mod fleet;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use clap::Parser;
use fairlead_sim::replay::{Play, Record, ReplayArgs, Setup, Slo, Summary, Workload, run as replay};
use fairlead_sim::trace::{Take, Trace};

use super::{Options, say};
use crate::kit::sheet::{Metric, Sheet};
use crate::load::{LoadArgs, Report, run as load};
use fleet::Fleet;

/// Tokens in a block: of the trace, of the engines' caches and of the gateway's knowledge.
const BLOCK: u32 = 512;
/// Blocks of each engine.
const KV_BLOCKS: u32 = 3_000;
/// Engines.
const ENGINES: usize = 8;
/// Times of the trace pass so many times as fast.
const SPEED: f64 = 3.0;
/// Time until the gateway of the replay knows what engines have done, seconds: about what `perf/run propagation` shows.
const STATE_DELAY: f64 = 0.001;
/// Runs of the replay: at speeds that differ by this share from one to the next. What becomes of a request hangs by
/// every decision before it, so a run is one draw of many, and seeds draw little with a single gateway.
const RUNS: u32 = 9;
const APART: f64 = 0.0005;

#[derive(Parser)]
struct Load {
    #[command(flatten)]
    args: LoadArgs,
}

#[derive(Parser)]
struct Replay {
    #[command(flatten)]
    args: ReplayArgs,
}

/// Runs the comparison.
///
/// # Errors
/// The fleet does not start, the trace cannot be read, or one request at a time finds something else in the cache than
/// in the replay.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (requests, alone) = if options.quick { (250, 100) } else { (2_000, 300) };
    let policies: &[&str] = if options.quick { &["cost"] } else { &["cost", "prefix-cache"] };
    let named = Replay::try_parse_from(["replay", "--trace", "mooncake_conv", "--policy", "cost"])?.args;
    let file = named.file();
    one_at_a_time(&file, alone, sheet)?;
    for policy in policies {
        side_by_side(&file, requests, policy, sheet)?;
    }
    let delay = STATE_DELAY * 1e3;
    sheet.note(format!("baseline: means over {RUNS} replays, speeds {APART} apart, {delay} ms state delay"));
    sheet.note(format!("trace: {}", file.file_name().unwrap_or_default().display()));
    Ok(())
}

/// The first so many requests of a trace.
fn trace(file: &Path, requests: u64) -> anyhow::Result<Trace> {
    Ok(Trace::load(file, Take { requests, max_input: u32::MAX })?)
}

fn workload(trace: &Trace, speed: f64) -> Arc<Workload> {
    Arc::new(Workload::new(trace, &Play { speed, block_tokens: BLOCK, ..Play::default() }))
}

fn setup(engines: usize) -> anyhow::Result<Setup> {
    let (n, blocks) = (engines.to_string(), KV_BLOCKS.to_string());
    let line = ["replay", "--trace", "x", "--policy", "cost", "--instances", &n, "--kv-blocks", &blocks];
    let mut setup = Replay::try_parse_from(line)?.args.setup()?;
    setup.state_delay = STATE_DELAY;
    Ok(setup)
}

/// Plays the first so many requests of a trace on a live fleet.
fn live(fleet: &Fleet, file: &Path, requests: u64, further: &[&str]) -> anyhow::Result<Report> {
    let (url, file) = (fleet.url(), file.to_str().context("the trace's name is not UTF-8")?);
    let requests = requests.to_string();
    let line = ["load", "--url", &url, "--trace", file, "--requests", &requests, "--bare-template"];
    let args = Load::try_parse_from(line.into_iter().chain(further.iter().copied()))?.args;
    let report = fleet.block_on(load(&args))?;
    ensure!(report.failed() == 0 && report.unfinished == 0, "requests failed: {report}");
    Ok(report)
}

/// One request at a time to one engine, which takes no time in life.
///
/// # Errors
/// The answers tell other numbers of prompt or cached tokens than the replay.
pub fn one_at_a_time(file: &Path, requests: u64, sheet: &mut Sheet) -> anyhow::Result<()> {
    const CASE: &str = "1 engine, one request at a time";
    /// Between two requests of the replay, seconds: more than any takes.
    const GAP: f64 = 1_000.0;
    let mut trace = trace(file, requests)?;
    for (number, talk) in trace.talks.iter_mut().enumerate() {
        talk.at = Some(number as f64 * GAP);
    }
    let records = replay(&setup(1)?, &workload(&trace, 1.0), "cost", 1)?.records;
    let sum = |of: fn(&Record) -> u32| records.iter().map(|r| u64::from(of(r))).sum::<u64>();
    let expected = (sum(|r| r.prompt), sum(|r| r.cached));
    say("one request at a time ...");
    let fleet = Fleet::start(1, "cost", 1e6, KV_BLOCKS, BLOCK)?;
    let further = ["--concurrency", "1", "--out-scale", "0", "--warm-up", "0"];
    let report = live(&fleet, file, requests, &further)?;
    for (name, ours, replayed) in [
        ("prompt_tokens", report.prompt_tokens, expected.0),
        ("cached_tokens", report.cached_tokens, expected.1),
    ] {
        let metric = Metric::new(name, "tokens");
        sheet.ours(CASE, metric, ours as f64);
        sheet.baseline(CASE, metric, "replay", replayed as f64);
    }
    let seen = (report.prompt_tokens, report.cached_tokens);
    ensure!(
        seen == expected,
        "prompt and cached tokens one at a time: {seen:?} live, {expected:?} in replay"
    );
    Ok(())
}

/// The first so many requests as they come, live and in the replay.
///
/// # Errors
/// The fleet does not start, or a request fails.
pub fn side_by_side(file: &Path, requests: u64, policy: &str, sheet: &mut Sheet) -> anyhow::Result<()> {
    let trace = trace(file, requests)?;
    let setup = setup(ENGINES)?;
    let mut runs = Vec::new();
    for number in 0..RUNS {
        let speed = SPEED * (1.0 + APART * (f64::from(number) - f64::from(RUNS / 2)));
        runs.push(replay(&setup, &workload(&trace, speed), policy, 1)?.summary(&Slo::default()));
    }
    let replayed = Summary::mean(&runs);
    let range = |of: fn(&Summary) -> f64| {
        let ends = runs.iter().map(of).fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        format!("{:.3} to {:.3}", ends.0, ends.1)
    };

    say(&format!("{policy}: {} requests in real time ...", trace.requests()));
    let fleet = Fleet::start(ENGINES, policy, 1.0, KV_BLOCKS, BLOCK)?;
    let used = fleet.used();
    let report = live(&fleet, file, requests, &["--speed", &SPEED.to_string()])?;
    let used = fleet.used().since(&used);
    let hits = report.hit_ratio.context("answers told no usage")?;
    let case = format!("{policy}, {} requests", trace.requests());
    for (name, unit, ours, replayed) in [
        ("ttft_mean_s", "s", report.ttft_s.mean, replayed.ttft_mean_s),
        ("ttft_p50_s", "s", report.ttft_s.p50, replayed.ttft_p50_s),
        ("ttft_p99_s", "s", report.ttft_s.p99, replayed.ttft_p99_s),
        ("tpot_mean_ms", "ms", report.tpot_ms.mean, replayed.tpot_mean_ms),
        ("hit_ratio", "", hits, replayed.hit_ratio),
        ("goodput", "", report.goodput.unwrap_or(0.0), replayed.goodput),
    ] {
        let metric = Metric::new(name, unit);
        sheet.ours(&case, metric, ours);
        sheet.baseline(&case, metric, "replay", replayed);
    }
    let mut note = format!("{policy}: ");
    let apart = 100.0 * (report.ttft_s.mean / replayed.ttft_mean_s - 1.0);
    let points = 100.0 * (hits - replayed.hit_ratio);
    write!(
        note,
        "mean TTFT {apart:+.1} % (10 wanted), hits {points:+.2} points (3 wanted); this process took "
    )?;
    write!(note, "{:.1} % of the processors, all took {:.1} %; ", 100.0 * used.own, 100.0 * used.all)?;
    write!(note, "engines' steps {:.3} s behind in all; ", fleet.behind())?;
    write!(note, "sent late p50 {:.1} ms, p99 {:.1}", report.send_lag_ms.p50, report.send_lag_ms.p99)?;
    sheet.note(note);
    sheet.note(format!(
        "{policy}: the replays' TTFT mean {} s, p50 {} s; hits {}",
        range(|s| s.ttft_mean_s),
        range(|s| s.ttft_p50_s),
        range(|s| s.hit_ratio)
    ));
    Ok(())
}
