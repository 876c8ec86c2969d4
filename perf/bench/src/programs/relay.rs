//! `perf/run relay`: what a chat request costs that is passed to an engine and its answer back: processor time of the
//! whole process, and time added at a low rate.
//!
//! The gateway is the program that ships, as a process of its own with one shard and `prefix-cache`, on the first core;
//! load and null engine are on the second. Beside it, one at a time and in turn: nginx, HAProxy, sglang-router and
//! vllm-router with `cache_aware` where they are installed (`perf/setup`), and the [floor]. No two prompts share a block, so every request is a full
//! scan and hash, a miss, and a new path in the index.
//!
//! With `--tls` the clients speak TLS 1.3 (AES-128-GCM, an ECDSA certificate, connections that are kept) to ours, nginx
//! and HAProxy, and processor time alone is measured.
//!
//! With `--http2` they speak HTTP/2 with prior knowledge, 64 requests under way over 8 connections, and processor time
//! alone is measured.
//!
//! - *processor time*: 64 connections, each of which sends its next request when it has its answer; time of all threads
//!   of the process (for ours that includes the control thread) over requests, in the same window.
//! - *added latency*: 200 requests/s at fixed times, counted from those times; quantile through the process less the
//!   same quantile straight to the engine in the same round.

use std::time::Duration;

use crate::kit::pin::{cores, pin};
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::stats::median;
use crate::proxy::body::Template;
use crate::proxy::engine::{Answer, NullEngine};
use crate::proxy::floor;
use crate::proxy::load::Load;
use crate::proxy::multiplex::{self, Width};
use crate::proxy::poll::raise_descriptors;
use crate::proxy::seal::Seal;
use crate::proxy::subjects::{Folder, Kind, Setting, Subject, start_all};

use super::{Options, say};

const CPU: Metric = Metric::new("cpu_us_per_request", "us");
const ADDED_P50: Metric = Metric::new("added_latency_p50_us", "us");
const ADDED_P99: Metric = Metric::new("added_latency_p99_us", "us");

/// Bodies of requests.
const BODIES: [(&str, usize); 3] = [("1 KB", 1 << 10), ("10 KB", 10 << 10), ("100 KB", 100 << 10)];
/// Who is measured. nginx comes first of the others: the bar is its.
const KINDS: [Kind; 6] = [Kind::Ours, Kind::Nginx, Kind::Haproxy, Kind::Floor, Kind::Sglang, Kind::Vllm];
/// Who is measured with TLS, and with HTTP/2.
const SEALED: [Kind; 3] = [Kind::Ours, Kind::Nginx, Kind::Haproxy];
/// Connections of the closed loop.
const CONNECTIONS: usize = 64;
/// Connections of the closed loop in HTTP/2, with as many requests.
const WIDTH: Width = Width { connections: 8, streams: CONNECTIONS / 8 };
/// Requests a second of the open one.
const RATE: f64 = 200.0;
/// Targets.
const TARGETS: usize = 8;

/// How long and how often.
struct Plan {
    rounds: u64,
    cpu: Duration,
    latency: Duration,
    /// Latency of these alone.
    timed: &'static [Kind],
}

const QUICK: Plan = Plan {
    rounds: 2,
    cpu: Duration::from_millis(350),
    latency: Duration::from_millis(700),
    timed: &[Kind::Ours, Kind::Nginx, Kind::Haproxy, Kind::Floor],
};
const FULL: Plan =
    Plan { rounds: 5, cpu: Duration::from_millis(1000), latency: Duration::from_millis(2500), timed: &KINDS };

/// Runs it.
///
/// # Errors
/// The gateway is not there or does not start, or a request fails.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    if let Some(played) = floor::played() {
        return played;
    }
    let plan = if options.quick { QUICK } else { FULL };
    raise_descriptors();
    let cores = cores();
    let engine = NullEngine::start(TARGETS, &cores, 1)?;
    engine.answer(Answer::Whole);
    let folder = Folder::new()?;
    let seal = options.tls.then(|| Seal::new(folder.path())).transpose()?;
    let setting = Setting {
        engines: engine.addrs().to_vec(),
        streams: false,
        connections: CONNECTIONS,
        index: "256MiB",
        seal: seal.clone(),
        http2: options.http2,
        cores: cores.clone(),
    };
    let kinds: &[Kind] = if options.tls || options.http2 { &SEALED } else { &KINDS };
    let mut missing = Vec::new();
    let subjects = start_all(kinds, &setting, &folder, &mut missing)?;
    pin(&cores, 1);
    crate::kit::clock::sleep_exactly();

    let (http2, direct, control) = (options.http2, Vec::new(), Vec::new());
    let mut measure = Measure { engine, seal, http2, plan, sheet, seed: 0, direct, control };
    for round in 0..measure.plan.rounds {
        say(&format!("round {} of {}", round + 1, measure.plan.rounds));
        for (case, body) in BODIES.into_iter().filter(|(case, _)| options.wants(case)) {
            for subject in &subjects {
                measure.cpu(subject, case, body)?;
            }
            if !options.tls && !options.http2 {
                measure.latency(&subjects, case, body)?;
            }
        }
    }
    let Measure { direct, control, sheet, .. } = measure;
    for (case, _) in BODIES.into_iter().filter(|(case, _)| options.wants(case)) {
        let of = |all: &[(&str, f64)]| {
            median(&all.iter().filter(|(c, _)| *c == case).map(|(_, v)| *v).collect::<Vec<_>>())
        };
        let p50: Vec<_> = direct.iter().map(|(case, p50, _)| (*case, *p50)).collect();
        let p99: Vec<_> = direct.iter().map(|(case, _, p99)| (*case, *p99)).collect();
        if options.tls || options.http2 {
            sheet.note(format!("{case}: of ours {:.2} us/request are not the shard's", of(&control)));
            continue;
        }
        sheet.note(format!(
            "{case}: straight to the engine p50 {:.0} us, p99 {:.0} us; of ours {:.2} us/request are not the shard's",
            of(&p50),
            of(&p99),
            of(&control)
        ));
    }
    missing.into_iter().for_each(|why| sheet.note(why));
    Ok(())
}

struct Measure<'a> {
    engine: NullEngine,
    seal: Option<Seal>,
    http2: bool,
    plan: Plan,
    sheet: &'a mut Sheet,
    seed: u64,
    direct: Vec<(&'static str, f64, f64)>,
    control: Vec<(&'static str, f64)>,
}

impl Measure<'_> {
    fn seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    fn cpu(&mut self, subject: &Subject, case: &'static str, body: usize) -> anyhow::Result<()> {
        let template = Template::new(subject.addr, body, false);
        let seed = self.seed();
        let process = &subject.process;
        let mut others = [0.0; 2];
        let mut asked = 0;
        let probe = || {
            others[asked] =
                process.threads().iter().filter(|(name, _)| !name.contains("shard")).map(|t| t.1).sum();
            asked = 1;
            process.cpu()
        };
        let times = (self.plan.cpu / 3, self.plan.cpu);
        let (requests, used) = if self.http2 {
            let window = multiplex::closed(&template, subject.addr, WIDTH, seed, times, probe)?;
            (window.requests as f64, window.used)
        } else {
            let mut load =
                Load::connect_with(&template, subject.addr, CONNECTIONS, seed, self.seal.as_ref())?;
            let window = load.closed(times.0, times.1, probe)?;
            load.settle()?;
            (window.requests as f64, window.used)
        };
        let us = used * 1e6 / requests;
        if subject.kind == Kind::Ours {
            self.sheet.ours(case, CPU, us);
            self.control.push((case, (others[1] - others[0]) * 1e6 / requests));
        } else {
            self.sheet.baseline(case, CPU, subject.kind.name(), us);
        }
        Ok(())
    }

    fn latency(&mut self, subjects: &[Subject], case: &'static str, body: usize) -> anyhow::Result<()> {
        let addr = self.engine.addrs()[0];
        let (direct50, direct99) = self.at_rate(addr, body)?;
        self.direct.push((case, direct50, direct99));
        for subject in subjects.iter().filter(|s| self.plan.timed.contains(&s.kind)).collect::<Vec<_>>() {
            let (p50, p99) = self.at_rate(subject.addr, body)?;
            for (metric, value) in [(ADDED_P50, p50 - direct50), (ADDED_P99, p99 - direct99)] {
                match subject.kind {
                    Kind::Ours => self.sheet.ours(case, metric, value),
                    other => self.sheet.baseline(case, metric, other.name(), value),
                }
            }
        }
        Ok(())
    }

    fn at_rate(&mut self, addr: std::net::SocketAddr, body: usize) -> anyhow::Result<(f64, f64)> {
        let mut load = Load::connect(&Template::new(addr, body, false), addr, CONNECTIONS, self.seed())?;
        let window = load.open(RATE, Duration::from_millis(100), self.plan.latency, || 0.0)?;
        let us = |q: f64| window.times.value_at_quantile(q) as f64 / 1e3;
        Ok((us(0.5), us(0.99)))
    }
}
