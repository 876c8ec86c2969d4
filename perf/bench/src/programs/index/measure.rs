//! The measurements, the same for every index.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::subject::{Probe, Subject};
use crate::blocks::{Request, SYSTEM_BLOCKS, Workload, chain};
use crate::kit::clock::thread_cpu;
use crate::kit::{pin, stats};
use crate::rng::Rng;

/// Prompts asked for, blocks.
pub const LENGTHS: [usize; 3] = [32, 128, 1000];
/// Core of the reader, and of the writer.
const READER: usize = 1;
const WRITER: usize = 0;
/// Prompts made at once for the throughput of lookups: few enough to stay in the first two caches, as a prompt that
/// was hashed just now does.
const BATCH: usize = 32;

/// Draws prompts: three quarters of one that the index knows, then blocks that it does not.
pub struct Asker<'w> {
    load: &'w Workload,
    by_length: [Vec<&'w Request>; LENGTHS.len()],
    rng: Rng,
    content: u64,
}

impl<'w> Asker<'w> {
    /// Prompts of the fill.
    pub fn new(load: &'w Workload, seed: u64) -> Self {
        let enough = |n: &usize| load.fill().iter().filter(|r| r.len() * 4 >= n * 3).collect();
        Self {
            load,
            by_length: std::array::from_fn(|i| enough(&LENGTHS[i])),
            rng: Rng::new(seed),
            content: 1 << 60,
        }
    }

    /// Another prompt of `LENGTHS[length]` blocks, appended to `path`.
    pub fn ask(&mut self, length: usize, path: &mut Vec<u64>) {
        let known = &self.by_length[length];
        let blocks = LENGTHS[length];
        let mut keep = 0;
        if !known.is_empty() {
            let request = known[(self.rng.next() % known.len() as u64) as usize];
            keep = blocks * 3 / 4;
            path.extend_from_slice(&self.load.path(request)[..keep]);
        }
        chain(path, blocks - keep, &mut self.content);
    }
}

/// Median and 99th percentile of lookups by length, microseconds.
pub type Latencies = [(f64, f64); LENGTHS.len()];

/// Times single lookups of distinct prompts, the lengths in turn. With `scrub`, the first two caches are filled with
/// other data before each.
pub fn latencies<P: Probe>(
    probe: &mut P,
    asker: &mut Asker<'_>,
    samples: usize,
    scrub: Option<&mut [u64]>,
) -> Latencies {
    let mut times: [Vec<f64>; LENGTHS.len()] = std::array::from_fn(|_| Vec::with_capacity(samples));
    let mut path = Vec::with_capacity(2048);
    let mut scrub = scrub;
    for turn in 0..samples * LENGTHS.len() {
        let length = turn % LENGTHS.len();
        if let Some(memory) = &mut scrub {
            for line in memory.chunks_mut(8) {
                line[0] = line[0].wrapping_add(1);
            }
        }
        path.clear();
        asker.ask(length, &mut path);
        let start = Instant::now();
        probe.lookup(&path);
        times[length].push(start.elapsed().as_nanos() as f64 / 1000.0);
    }
    times.map(|mut t| (stats::quantile(&mut t, 0.5), stats::quantile(&mut t, 0.99)))
}

/// Lookups of 128 blocks per second of processor time, back to back.
pub fn lookup_rate<P: Probe>(probe: &mut P, asker: &mut Asker<'_>, lookups: usize) -> f64 {
    let mut path = Vec::new();
    let mut used = 0.0;
    let mut done = 0;
    while done < lookups {
        path.clear();
        for _ in 0..BATCH {
            asker.ask(1, &mut path);
        }
        let start = thread_cpu();
        for prompt in path.chunks(LENGTHS[1]) {
            probe.lookup(prompt);
        }
        used += thread_cpu() - start;
        done += BATCH;
    }
    done as f64 / used
}

/// Enters the fill.
pub fn fill<S: Subject>(subject: &mut S, load: &Workload) {
    for request in load.fill() {
        for target in request.holders() {
            subject.place(*target, load.path(request));
        }
    }
    subject.drain();
}

/// Pairs of target and block that one cycle of the churn enters; as many are removed.
pub fn churn_pairs(load: &Workload) -> u64 {
    load.churn().iter().map(|r| (r.len() - r.shared as usize) as u64 * r.holders().len() as u64).sum()
}

/// One cycle of the churn by whole requests: all are entered, then all are removed again, newest first. Returns
/// pairs of target and block per second of processor time, draining included.
pub fn churn_rate<S: Subject>(subject: &mut S, load: &Workload) -> f64 {
    let start = thread_cpu();
    for request in load.churn() {
        place(subject, load, request);
    }
    for request in load.churn().iter().rev() {
        remove(subject, load, request);
    }
    subject.drain();
    2.0 * churn_pairs(load) as f64 / (thread_cpu() - start)
}

fn place<S: Subject>(subject: &mut S, load: &Workload, request: &Request) {
    for target in request.holders() {
        subject.place(*target, load.path(request));
    }
}

fn remove<S: Subject>(subject: &mut S, load: &Workload, request: &Request) {
    for target in request.holders() {
        subject.remove(*target, load.path(request), (request.shared as usize).max(SYSTEM_BLOCKS));
    }
}

/// The churn block by block: that many sequences grow in turn by one block each, as engines' events come in; then
/// they shrink in the same way. Returns blocks per second of processor time, draining included.
pub fn single_rate<S: Subject>(subject: &mut S, load: &Workload, sequences: usize) -> f64 {
    let mut blocks = 0u64;
    let start = thread_cpu();
    for group in load.churn().chunks(sequences) {
        let new = |r: &Request| r.len() - r.shared as usize;
        let longest = group.iter().map(new).max().unwrap_or(0);
        let steps = (0..longest).map(|step| (step, true)).chain((0..longest).map(|step| (step, false)));
        for (step, grows) in steps {
            for request in group.iter().filter(|r| step < new(r)) {
                let path = load.path(request);
                let target = request.holders()[0];
                blocks += 1;
                if grows {
                    let at = request.shared as usize + step;
                    subject.append(target, &path[..at], path[at]);
                } else {
                    let at = path.len() - 1 - step;
                    subject.take(target, &path[..at], path[at]);
                }
            }
        }
    }
    subject.drain();
    blocks as f64 / (thread_cpu() - start)
}

/// Runs `read` on the reader's core while the churn goes on at `rate` pairs a second on the writer's. Returns what
/// `read` returned and the rate that was reached.
pub fn under_writer<S: Subject, T: Send>(
    subject: &mut S,
    load: &Workload,
    rate: f64,
    read: impl FnOnce(S::Probe) -> T + Send,
) -> (T, f64) {
    let cores = pin::cores();
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let probe = subject.probe();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            pin::pin(&cores, READER);
            // The writer is at its pace when the first lookup is timed.
            while done.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let from = (Instant::now(), done.load(Ordering::Relaxed));
            let result = read(probe);
            let reached = (done.load(Ordering::Relaxed) - from.1) as f64 / from.0.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            (result, reached)
        });
        let stopped = || stop.load(Ordering::Relaxed);
        pin::pin(&cores, WRITER);
        let start = Instant::now();
        let mut pairs = 0u64;
        let mut pace = |request: &Request| {
            pairs += (request.len() - request.shared as usize) as u64 * request.holders().len() as u64;
            done.store(pairs, Ordering::Relaxed);
            let ahead = pairs as f64 / rate - start.elapsed().as_secs_f64();
            if ahead > 1e-3 {
                std::thread::sleep(Duration::from_secs_f64(ahead));
            }
        };
        while !stopped() && !load.churn().is_empty() {
            // A cycle is always finished, so that the index is then as it was.
            for request in load.churn() {
                place(subject, load, request);
                if !stopped() {
                    pace(request);
                }
            }
            for request in load.churn().iter().rev() {
                remove(subject, load, request);
                if !stopped() {
                    pace(request);
                }
            }
            subject.drain();
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Asks both the same prompts; the number of prompts for which the answers differ for some target.
pub fn differences<A: Probe, B: Probe>(
    a: &mut A,
    b: &mut B,
    asker: &mut Asker<'_>,
    prompts: usize,
    targets: u16,
) -> usize {
    let mut path = Vec::new();
    (0..prompts)
        .filter(|n| {
            path.clear();
            asker.ask(n % LENGTHS.len(), &mut path);
            a.lookup(&path);
            b.lookup(&path);
            (0..targets).any(|t| a.depth(t) != b.depth(t))
        })
        .count()
}
