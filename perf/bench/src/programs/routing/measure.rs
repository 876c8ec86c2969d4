//! Runs of cases, several at a time, and the oracle's plans, which are kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use fairlead_sim::replay::{Slo, Summary, run, run_with};
use serde_json::Value;

use super::cases::Case;
use super::oracle::{Base, Oracle};
use crate::programs::say;

/// Changes whenever the oracle decides otherwise.
const VERSION: u32 = 1;
/// What the oracle is called among policies.
pub const ORACLE: &str = "oracle";

/// What became of a case.
pub struct Measured<'c> {
    /// The case.
    pub case: &'c Case,
    /// Figures of each seed, by policy, in the order of the policies.
    pub runs: Vec<(String, Vec<Summary>)>,
    /// The oracle's figures.
    pub oracle: Option<Summary>,
}

impl Measured<'_> {
    /// Means over the seeds of a policy.
    pub fn mean(&self, policy: &str) -> Option<Summary> {
        self.runs.iter().find(|(name, _)| name == policy).map(|(_, runs)| Summary::mean(runs))
    }

    /// Means over the seeds of every policy.
    pub fn means(&self) -> impl Iterator<Item = (&str, Summary)> {
        self.runs.iter().map(|(name, runs)| (name.as_str(), Summary::mean(runs)))
    }
}

enum Job {
    Run { case: usize, policy: usize, seed: u64 },
    Plan { case: usize, key: String },
}

enum Done {
    Ran { case: usize, policy: usize, seed: u64, figures: Result<Summary, String> },
    Planned { case: usize, key: String, figures: Summary },
}

/// Plays every case with its policies and the seeds from 1 on. The oracle's plans are taken from earlier runs; those that
/// are not there are made if `plan` says so.
pub fn measure<'c>(cases: &'c [Case], policies: &[String], seeds: u64, plan: bool) -> Vec<Measured<'c>> {
    let mut kept = Kept::load();
    let mut measured: Vec<Measured<'c>> = Vec::new();
    let (mut jobs, mut plans) = (Vec::new(), Vec::new());
    for (number, case) in cases.iter().enumerate() {
        let chosen = |name: &&String| case.policies.is_none_or(|few| few.contains(&name.as_str()));
        let names: Vec<String> = policies.iter().filter(chosen).cloned().collect();
        for policy in 0..names.len() {
            jobs.extend((1..=seeds).map(|seed| Job::Run { case: number, policy, seed }));
        }
        let key = case.planned.then(|| key(case));
        let oracle = key.as_ref().and_then(|key| kept.get(key));
        if let Some(key) = key.filter(|_| plan && oracle.is_none()) {
            plans.push(Job::Plan { case: number, key });
        }
        let runs = names.into_iter().map(|name| (name, Vec::new())).collect();
        measured.push(Measured { case, runs, oracle });
    }
    // The long ones first.
    plans.append(&mut jobs);
    let mut done = work(&plans, &measured, |done| {
        if let Done::Planned { key, figures, .. } = done {
            kept.put(key, figures);
        }
    });
    done.sort_by_key(|done| match done {
        Done::Ran { case, policy, seed, .. } => (*case, *policy, *seed),
        Done::Planned { case, .. } => (*case, usize::MAX, 0),
    });
    for done in done {
        match done {
            Done::Ran { case, policy, figures: Ok(figures), .. } => {
                measured[case].runs[policy].1.push(figures)
            }
            Done::Ran { case, policy, seed, figures: Err(error) } => {
                say(&format!(
                    "{}, {}, seed {seed}: {error}",
                    cases[case].name, measured[case].runs[policy].0
                ));
            }
            Done::Planned { case, figures, .. } => measured[case].oracle = Some(figures),
        }
    }
    for measured in &mut measured {
        measured.runs.retain(|(_, runs)| !runs.is_empty());
    }
    measured
}

/// Does the jobs on as many threads as this process may use.
fn work(jobs: &[Job], cases: &[Measured<'_>], tell: impl FnMut(&Done) + Send) -> Vec<Done> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Vec::new(), tell));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ended = job.run(cases);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    (done.1)(&ended);
                    done.0.push(ended);
                    if done.0.len().is_multiple_of(100) {
                        say(&format!("{} of {} runs", done.0.len(), jobs.len()));
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).0
}

impl Job {
    fn run(&self, cases: &[Measured<'_>]) -> Done {
        match self {
            Self::Run { case, policy, seed } => {
                let Measured { case: played, runs, .. } = &cases[*case];
                let outcome = run(&played.setup, &played.workload, &runs[*policy].0, *seed);
                let figures = outcome.map(|o| o.summary(&Slo::default())).map_err(|error| error.to_string());
                Done::Ran { case: *case, policy: *policy, seed: *seed, figures }
            }
            Self::Plan { case, key } => {
                let Case { name, setup, workload, .. } = cases[*case].case;
                say(&format!("{name}: the oracle plans (some minutes; kept for the next time)"));
                let outcome = run_with(setup, workload, &mut Oracle::new(workload), 1);
                Done::Planned { case: *case, key: key.clone(), figures: outcome.summary(&Slo::default()) }
            }
        }
    }
}

/// What an oracle's plan depends on: the case, and the engines' and the base policy's code as far as the figures of a
/// short run with the latter show it.
fn key(case: &Case) -> String {
    let Case { name, setup, workload, .. } = case;
    let figures = run_with(setup, workload, &mut Base::new(workload), 1).summary(&Slo::default());
    let print = figures.ttft_mean_s.to_bits() ^ figures.tpot_mean_ms.to_bits().rotate_left(17);
    format!("{name}, {} requests, version {VERSION}, {print:016x}", workload.requests.len())
}

/// The oracle's figures of earlier runs, in a file beside the build's.
struct Kept {
    path: Option<PathBuf>,
    figures: BTreeMap<String, Value>,
}

impl Kept {
    fn load() -> Self {
        let exe = std::env::current_exe().ok();
        let path = exe.and_then(|exe| Some(exe.parent()?.parent()?.join("routing-oracle.json")));
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let figures = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Self { path, figures }
    }

    fn get(&self, key: &str) -> Option<Summary> {
        serde_json::from_value(self.figures.get(key)?.clone()).ok()
    }

    /// A file that cannot be written costs the next run time, no more.
    fn put(&mut self, key: &str, figures: &Summary) {
        let Ok(value) = serde_json::to_value(figures) else { return };
        self.figures.insert(key.to_owned(), value);
        if let (Some(path), Ok(text)) = (&self.path, serde_json::to_string_pretty(&self.figures)) {
            let _ = std::fs::write(path, text + "\n");
        }
    }
}
