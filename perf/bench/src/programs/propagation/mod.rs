//! `perf/run propagation`: how long what one process says takes until the shards of another can read it.
//!
//! Every part is a process of its own on real QUIC links over loopback: a scheduler as `fairlead scheduler` runs it,
//! gateways with one shard and their control thread, and this process as the agents. Times are of the system's
//! monotonic clock, which all processes share; they travel inside the figures themselves. A thread of the gateway reads
//! what its shards read, every 10 us or so: that is part of the figures.
//!
//! - *reports*: an engine's load, from the agent's send to the load cell of its target.
//! - *reservations*: of a prompt of less than a block, from the pick in one gateway to the sums of another.
//! - *updates*: 8 agents store and remove 25 blocks a message, with a million blocks held, to 4 gateways; memory of all
//!   processes before and after.
//! - *join*: a gateway that starts beside a million blocks: from its start to its index being whole.
//!
//! The baseline of the reports is the same two hops as lines of JSON over plain TCP, threads that block on their
//! sockets.

mod agents;
mod baseline;
mod child;
mod gateway;

use std::time::Duration;

use anyhow::Context as _;
use fairlead_transport::{Certs, write_certs};

use super::{Options, say};
use crate::kit::clock::machine_us;
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::stats::quantile;

use agents::Agents;
use child::Child;

const REPORT_P50: Metric = Metric::new("report_to_shard_p50_us", "us");
const REPORT_P99: Metric = Metric::new("report_to_shard_p99_us", "us");
const RESERVE_P50: Metric = Metric::new("reservation_to_gateway_p50_us", "us");
const RESERVE_P99: Metric = Metric::new("reservation_to_gateway_p99_us", "us");
const UPDATES: Metric = Metric::new("updates_per_s", "blocks/s");
const UPDATE_P50: Metric = Metric::new("update_to_shard_p50_us", "us");
const UPDATE_P99: Metric = Metric::new("update_to_shard_p99_us", "us");
const GROWTH: Metric = Metric::new("memory_growth_mb", "MB");
const JOIN: Metric = Metric::new("join_s", "s");

const REPORTS: &str = "1000 reports/s";
const RESERVATIONS: &str = "reservations";
const STREAM: &str = "100000 block updates/s, 4 gateways";
const JOIN_IDLE: &str = "join at 1 million blocks";
const JOIN_BUSY: &str = "join at 1 million blocks, 100000 updates/s";

/// Gateways that the stream of updates goes to.
const GATEWAYS: usize = 4;
/// Held while the stream runs.
const HELD: u64 = 1_000_000;

/// Runs it. A process that finds its part in the environment plays that part instead.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    if let Some(part) = child::part() {
        return gateway::play(&part);
    }
    let (seconds, rounds) = if options.quick { (4, 1) } else { (10, 3) };
    let folder = std::env::temp_dir().join(format!("fairlead-propagation-{}", std::process::id()));
    let _cleared = Folder(folder.clone());
    write_certs(&folder, &Certs::default())?;
    let (mut scheduler, address) = Child::scheduler(&folder)?;
    let mut gateways = Vec::new();
    for number in 0..2 {
        gateways.push(Child::gateway(&folder, &format!("g{number}"), &address)?.0);
    }
    let agents = Agents::start(&folder, &address, 8)?;
    for gateway in &mut gateways {
        gateway.ask(&format!("targets {}", agents.count()))?;
    }

    for round in 0..rounds {
        say(&format!("reports, round {}", round + 1));
        let watching = gateways[0].begin(&format!("reports {seconds}"))?;
        agents.report(Duration::from_secs(seconds), 1_000);
        let mut us = gateways[0].numbers(watching)?;
        note(sheet, REPORTS, &mut us, REPORT_P50, REPORT_P99, seconds * 300)?;
        let mut us = baseline::reports(Duration::from_secs(seconds.min(5)), 1_000)?;
        let name = "JSON lines over TCP";
        sheet.baseline(REPORTS, REPORT_P50, name, quantile(&mut us, 0.5));
        sheet.baseline(REPORTS, REPORT_P99, name, quantile(&mut us, 0.99));

        say(&format!("reservations, round {}", round + 1));
        let watching = gateways[1].begin(&format!("reservations {seconds}"))?;
        let reserving = gateways[0].begin(&format!("reserve {seconds}"))?;
        let mut us = gateways[1].numbers(watching)?;
        gateways[0].end(reserving)?;
        note(sheet, RESERVATIONS, &mut us, RESERVE_P50, RESERVE_P99, seconds * 20)?;
    }

    say("filling a million blocks");
    for number in 2..GATEWAYS {
        gateways.push(Child::gateway(&folder, &format!("g{number}"), &address)?.0);
    }
    agents.fill(HELD);
    for gateway in &mut gateways {
        gateway.ask(&format!("blocks {}", agents.held()))?;
    }

    // The first seconds warm up queues and allocators; memory is compared from then on.
    let (warm, seconds) = if options.quick { (2, 10) } else { (5, 60) };
    say(&format!("100,000 block updates/s for {seconds} s"));
    agents.stream(Duration::from_secs(warm), 100_000);
    let before = memory(&mut scheduler, &mut gateways)?;
    let from = agents.next_document();
    let mut watching = Vec::new();
    for gateway in &mut gateways {
        watching.push(gateway.begin(&format!("documents {from} {} {seconds}", agents.count()))?);
    }
    let late = machine_us() + seconds * 500_000;
    let busy = std::thread::scope(|scope| {
        let joining = scope.spawn(|| {
            std::thread::sleep(Duration::from_micros(late.saturating_sub(machine_us())));
            join(&folder, &address, HELD * 98 / 100)
        });
        let sent = agents.stream(Duration::from_secs(seconds), 100_000);
        sheet.ours(STREAM, UPDATES, sent.blocks as f64 / sent.seconds);
        joining.join().map_err(|_| anyhow::anyhow!("the joining gateway's thread"))?
    })?;
    sheet.ours(JOIN_BUSY, JOIN, busy);
    let mut us = Vec::new();
    for (gateway, watching) in gateways.iter_mut().zip(watching) {
        us.extend(agents.latencies(&gateway.numbers(watching)?));
    }
    note(sheet, STREAM, &mut us, UPDATE_P50, UPDATE_P99, 10)?;
    let after = memory(&mut scheduler, &mut gateways)?;
    sheet.ours(STREAM, GROWTH, after.growth_mb(&before));
    sheet.note(format!(
        "Resident memory of the scheduler before and after {seconds} s: {before}; then {after}. The growth leaves out the \
         recent frames kept for resuming gateways, which are bounded by 64 MB."
    ));

    for gateway in &mut gateways {
        gateway.ask(&format!("blocks {}", agents.held()))?;
    }
    for _ in 0..rounds {
        sheet.ours(JOIN_IDLE, JOIN, join(&folder, &address, agents.held())?);
    }
    sheet.note(
        "Every part is a process of its own; figures include the reader's turn of some 10 us and, with fewer cores than \
         processes, the wait for one.",
    );
    Ok(())
}

/// Starts a gateway; seconds until it knows `blocks` blocks.
fn join(folder: &std::path::Path, address: &str, blocks: u64) -> anyhow::Result<f64> {
    let name = format!("late-{}", machine_us());
    let (mut gateway, began_us) = Child::gateway(folder, &name, address)?;
    let whole_us: u64 = gateway.ask(&format!("blocks {blocks}"))?.trim().parse()?;
    Ok(whole_us.saturating_sub(began_us) as f64 / 1e6)
}

/// Bytes of memory.
struct Memory {
    scheduler: f64,
    /// Of it, recent frames kept for resuming gateways.
    ring: f64,
    gateways: f64,
}

impl Memory {
    fn growth_mb(&self, before: &Self) -> f64 {
        let kept = |memory: &Self| memory.scheduler - memory.ring + memory.gateways;
        (kept(self) - kept(before)) / 1e6
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [scheduler, ring, gateways] = [self.scheduler, self.ring, self.gateways].map(|bytes| bytes / 1e6);
        write!(f, "{scheduler:.1} MB ({ring:.1} MB recent frames), of {GATEWAYS} gateways {gateways:.1} MB")
    }
}

fn memory(scheduler: &mut Child, gateways: &mut [Child]) -> anyhow::Result<Memory> {
    let ring = scheduler.ask("ring")?.parse().context("the ring's bytes")?;
    let mut all = Memory { scheduler: scheduler.resident()? as f64, ring, gateways: 0.0 };
    for gateway in gateways {
        all.gateways += gateway.resident()? as f64;
    }
    Ok(all)
}

fn note(
    sheet: &mut Sheet,
    case: &str,
    us: &mut [f64],
    p50: Metric,
    p99: Metric,
    least: u64,
) -> anyhow::Result<()> {
    anyhow::ensure!(us.len() as u64 >= least, "{case}: only {} of {least} were seen", us.len());
    sheet.ours(case, p50, quantile(us, 0.5));
    sheet.ours(case, p99, quantile(us, 0.99));
    Ok(())
}

/// A folder that goes with its owner.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Identity of a part, from the folder that the run has made.
fn identity(folder: &std::path::Path, role: &str) -> anyhow::Result<fairlead_transport::Identity> {
    fairlead_transport::Identity::load(folder.join(role)).with_context(|| format!("the {role}'s identity"))
}
