//! Policies side by side: runs on several threads, the table and the JSON.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::args::{BadReplay, ReplayArgs};
use super::{BadPolicy, Setup, Slo, Summary, Workload, run};

/// The figures of one policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub policy: String,
    /// Means over the runs.
    #[serde(flatten)]
    pub figures: Summary,
    /// Runs.
    pub seeds: u64,
}

/// All policies of a comparison.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// In the order named.
    pub rows: Vec<Row>,
    /// What was played.
    pub case: String,
}

/// Reads the trace and runs every policy with every seed.
///
/// # Errors
/// An option makes no sense, or the trace cannot be read.
pub fn compare(args: &ReplayArgs) -> Result<Comparison, BadReplay> {
    let (policies, slo) = (args.policies()?, args.slo()?);
    let mut setup = args.setup()?;
    let workload = args.workload()?;
    let ended = Arc::new(AtomicU64::new(0));
    setup.progress = Some(ended.clone());
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or_else(cores).max(1);
    let total = (workload.requests.len() * policies.len()) as u64 * args.seeds;
    let over = AtomicBool::new(false);
    let rows = std::thread::scope(|scope| {
        if std::io::stderr().is_terminal() {
            scope.spawn(|| show_progress(&ended, total, &over));
        }
        let rows = run_all(&setup, &workload, &policies, args.seeds, &slo, threads);
        over.store(true, Ordering::Relaxed);
        rows
    })?;
    let case = format!(
        "{}: {} requests at {} x, {} instances, {} gateway{}, state {} ms old",
        args.file().display(),
        workload.requests.len(),
        args.speed,
        setup.pool.len(),
        setup.gateways,
        if setup.gateways == 1 { "" } else { "s" },
        args.state_delay,
    );
    Ok(Comparison { rows, case })
}

/// Every policy with the seeds from 1 on, so many runs at a time.
///
/// # Errors
/// A policy is unknown.
pub fn run_all(
    setup: &Setup,
    workload: &Arc<Workload>,
    policies: &[String],
    seeds: u64,
    slo: &Slo,
    threads: usize,
) -> Result<Vec<Row>, BadPolicy> {
    let jobs: Vec<(usize, u64)> =
        (0..policies.len()).flat_map(|policy| (1..=seeds).map(move |seed| (policy, seed))).collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::<(usize, u64, Result<Summary, BadPolicy>)>::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(&(policy, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let summary =
                        run(setup, workload, &policies[policy], seed).map(|outcome| outcome.summary(slo));
                    done.lock().unwrap_or_else(|e| e.into_inner()).push((policy, seed, summary));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    // So that means do not depend on who was first.
    done.sort_by_key(|(policy, seed, _)| (*policy, *seed));
    let mut rows = Vec::new();
    for (number, policy) in policies.iter().enumerate() {
        let runs = done.iter().filter(|(p, ..)| *p == number).map(|(.., summary)| summary.clone());
        let figures = Summary::mean(&runs.collect::<Result<Vec<_>, _>>()?);
        rows.push(Row { policy: policy.clone(), figures, seeds });
    }
    Ok(rows)
}

fn show_progress(ended: &AtomicU64, total: u64, over: &AtomicBool) {
    let mut err = std::io::stderr();
    while !over.load(Ordering::Relaxed) {
        let done = ended.load(Ordering::Relaxed);
        let _ = write!(err, "\r{done} of {total} requests ({} %)  ", done * 100 / total.max(1));
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = write!(err, "\r{:60}\r", "");
}

impl Comparison {
    /// The form of `--json` files.
    pub fn to_json(&self, machine: &str) -> Value {
        json!({"name": "replay", "machine": machine, "case": self.case, "rows": self.rows})
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.rows.iter().map(|row| row.policy.len()).max().unwrap_or(0).max("policy".len());
        let mut text = format!("{}\n", self.case);
        let _ = writeln!(
            text,
            "{:width$}  requests  TTFT mean     p50     p99 s  TPOT mean    p99 ms  hit ratio  goodput     req/s  failed",
            "policy"
        );
        for Row { policy, figures: s, .. } in &self.rows {
            let _ = writeln!(
                text,
                "{policy:width$}  {:8}  {:9.3} {:7.3} {:9.3}  {:9.1} {:9.1}  {:9.4}  {:7.4}  {:8.2}  {:6}",
                s.requests,
                s.ttft_mean_s,
                s.ttft_p50_s,
                s.ttft_p99_s,
                s.tpot_mean_ms,
                s.tpot_p99_ms,
                s.hit_ratio,
                s.goodput,
                s.throughput_rps,
                s.failed
            );
        }
        f.write_str(text.trim_end())
    }
}
