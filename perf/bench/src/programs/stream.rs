//! `perf/run stream`: what a token of a stream costs on its way from the engine to the client, and how long that is.
//!
//! Processes and cores are those of `perf/run relay`; nginx does not buffer and HAProxy does not delay. Every token is a
//! chunk and a write of its own, with the time of that write in it.
//!
//! - *processor time*: 64 connections, streams of 256 tokens, unpaced: chunks of all streams in turn, as fast as the
//!   engine and the reader on their core go. What comes behind may be read two chunks at a time, so tokens per read are
//!   told beside it, and so is the processor time of the paced cases, where every token is read alone.
//! - *token path*: from the engine's write to the client's read, of streams that are under way together.

use std::time::Duration;

use anyhow::Context as _;

use crate::kit::clock::sleep_exactly;
use crate::kit::pin::{cores, pin};
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::stats::median;
use crate::proxy::body::Template;
use crate::proxy::engine::{Answer, NullEngine};
use crate::proxy::load::{Load, Window};
use crate::proxy::poll::raise_descriptors;
use crate::proxy::subjects::{Folder, Kind, Setting, start, start_all};

use super::{Options, say};

const CPU: Metric = Metric::new("cpu_us_per_chunk", "us");
const PATH_P50: Metric = Metric::new("token_path_p50_us", "us");
const PATH_P99: Metric = Metric::new("token_path_p99_us", "us");

/// Who is measured; the floor tells what nobody can save.
const KINDS: [Kind; 4] = [Kind::Ours, Kind::Nginx, Kind::Haproxy, Kind::Floor];
/// Connections of the unpaced case.
const CONNECTIONS: usize = 64;
/// Tokens of its streams.
const TOKENS: u32 = 256;
/// Bytes of a request.
const BODY: usize = 1 << 10;
/// Targets.
const TARGETS: usize = 8;
/// Streams, and the time between two tokens of each.
const PACED: [(&str, usize, Duration); 5] = [
    ("1 stream", 1, Duration::from_millis(25)),
    ("16 streams", 16, Duration::from_millis(25)),
    ("128 streams", 128, Duration::from_millis(25)),
    ("1000 streams", 1_000, Duration::from_millis(25)),
    ("9500 streams", 9_500, Duration::from_millis(400)),
];
/// Tokens of a stream that does not end while it is measured.
const ENDLESS: u32 = 1 << 30;
/// What counts as a stall, microseconds: the time that a delayed acknowledgement takes.
const STALL_US: f64 = 35_000.0;

/// Runs it.
///
/// # Errors
/// The gateway is not there or does not start, or a stream fails.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (rounds, over) =
        if options.quick { (1, Duration::from_millis(700)) } else { (5, Duration::from_millis(4_000)) };
    let descriptors = raise_descriptors();
    let cores = cores();
    let folder = Folder::new()?;
    let engine = NullEngine::start(TARGETS, &cores, 1)?;
    pin(&cores, 1);
    sleep_exactly();
    let most = PACED.iter().map(|(_, streams, _)| *streams).max().unwrap_or(0);
    let setting = Setting {
        seal: None,
        http2: false,
        engines: engine.addrs().to_vec(),
        streams: true,
        connections: most,
        index: "256MiB",
        cores: cores.clone(),
    };
    let mut missing = Vec::new();
    let mut run = Run { engine, sheet, over, seed: 0, worst: Vec::new(), direct: Vec::new() };
    if options.wants("unpaced") {
        let subjects = start_all(&KINDS, &setting, &folder, &mut missing)?;
        for round in 0..rounds {
            say(&format!("unpaced, round {} of {rounds}", round + 1));
            for subject in &subjects {
                run.unpaced(subject.kind, subject.addr, || subject.process.cpu())?;
            }
        }
    }
    for (case, streams, every) in PACED.into_iter().filter(|(case, _, _)| options.wants(case)) {
        if descriptors < 2 * streams as u64 + 100 {
            run.sheet.note(format!("{case}: left out, this machine allows {descriptors} descriptors"));
            continue;
        }
        for round in 0..rounds {
            say(&format!("{case}, round {} of {rounds}", round + 1));
            run.direct(case, streams, every)?;
            for kind in KINDS.into_iter().filter(|kind| kind.is_chosen()) {
                // A process of its own: what thousands of streams leave behind would sway the next ones.
                let Ok(subject) = start(kind, &setting, &folder) else { continue };
                run.paced(kind, subject.addr, case, streams, every, || subject.process.cpu())?;
            }
        }
    }
    run.notes();
    missing.into_iter().for_each(|why| sheet.note(why));
    Ok(())
}

struct Run<'a> {
    engine: NullEngine,
    sheet: &'a mut Sheet,
    over: Duration,
    seed: u64,
    /// Case, kind, the longest path of a token in microseconds, and the share of those that stalled.
    worst: Vec<(&'static str, Kind, f64, f64)>,
    direct: Vec<(&'static str, f64, f64)>,
}

impl Run<'_> {
    fn put(&mut self, case: &str, kind: Kind, metric: Metric, value: f64) {
        match kind {
            Kind::Ours => self.sheet.ours(case, metric, value),
            other => self.sheet.baseline(case, metric, other.name(), value),
        }
    }

    fn load(&mut self, addr: std::net::SocketAddr, streams: usize) -> anyhow::Result<Load> {
        self.seed += 1;
        Load::connect(&Template::new(addr, BODY, true), addr, streams, self.seed)
    }

    fn unpaced(
        &mut self,
        kind: Kind,
        addr: std::net::SocketAddr,
        probe: impl FnMut() -> f64,
    ) -> anyhow::Result<()> {
        self.engine.answer(Answer::Unpaced { tokens: TOKENS });
        let mut load = self.load(addr, CONNECTIONS)?;
        let window = load.closed(self.over / 3, self.over, probe)?;
        load.settle()?;
        self.put("unpaced", kind, CPU, window.used * 1e6 / window.tokens as f64);
        self.sheet.note(format!("unpaced: {}: {}", kind.name(), rate(&window)));
        Ok(())
    }

    fn paced(
        &mut self,
        kind: Kind,
        addr: std::net::SocketAddr,
        case: &'static str,
        streams: usize,
        every: Duration,
        probe: impl FnMut() -> f64,
    ) -> anyhow::Result<()> {
        let window =
            self.window(addr, streams, every, probe).with_context(|| format!("{}, {case}", kind.name()))?;
        self.put(case, kind, PATH_P50, us(&window, 0.5));
        self.put(case, kind, PATH_P99, us(&window, 0.99));
        if streams >= 128 {
            self.put(case, kind, CPU, window.used * 1e6 / window.tokens as f64);
        }
        let stalled = window.paths.count_between((STALL_US * 1e3) as u64, u64::MAX) as f64;
        self.worst.push((case, kind, us(&window, 1.0), stalled / window.tokens.max(1) as f64));
        Ok(())
    }

    fn direct(&mut self, case: &'static str, streams: usize, every: Duration) -> anyhow::Result<()> {
        let window = self.window(self.engine.addrs()[0], streams, every, || 0.0)?;
        self.direct.push((case, us(&window, 0.5), us(&window, 0.99)));
        Ok(())
    }

    /// Streams under way together: begins to measure when each of them has had its first token.
    fn window(
        &mut self,
        addr: std::net::SocketAddr,
        streams: usize,
        every: Duration,
        probe: impl FnMut() -> f64,
    ) -> anyhow::Result<Window> {
        self.engine.answer(Answer::Paced { tokens: ENDLESS, every });
        let mut load = self.load(addr, streams)?;
        load.tokens(streams as u64, Duration::from_secs(20))?;
        let window = load.closed(2 * every, self.over.max(2 * every), probe)?;
        drop(load);
        self.engine.settle(Duration::from_secs(3));
        Ok(window)
    }

    fn notes(&mut self) {
        for (case, _, _) in PACED {
            let of = |pick: fn(&(&str, f64, f64)) -> f64| {
                median(&self.direct.iter().filter(|(c, _, _)| *c == case).map(pick).collect::<Vec<_>>())
            };
            let (p50, p99) = (of(|d| d.1), of(|d| d.2));
            let worst: Vec<_> = KINDS
                .iter()
                .filter_map(|kind| {
                    let runs = self.worst.iter().filter(|(c, k, _, _)| *c == case && k == kind);
                    let longest = runs.clone().map(|w| w.2).fold(f64::NAN, f64::max);
                    let stalled = runs.map(|w| w.3).fold(f64::NAN, f64::max);
                    longest.is_finite().then(|| {
                        format!("{} {:.1} ms ({:.4} % stalled)", kind.name(), longest / 1e3, 100.0 * stalled)
                    })
                })
                .collect();
            if !worst.is_empty() {
                self.sheet.note(format!(
                    "{case}: straight to the engine p50 {p50:.0} us, p99 {p99:.0} us; longest: {}",
                    worst.join(", ")
                ));
            }
        }
    }
}

fn us(window: &Window, q: f64) -> f64 {
    window.paths.value_at_quantile(q) as f64 / 1e3
}

fn rate(window: &Window) -> String {
    format!(
        "{:.0} tokens/s, {:.2} tokens a read, {:.0} % of its core",
        window.tokens as f64 / window.seconds,
        window.tokens as f64 / window.reads.max(1) as f64,
        100.0 * window.used / window.seconds
    )
}
