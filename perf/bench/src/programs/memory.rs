//! `perf/run memory`: what a stream takes after its first byte, what a connection takes that waits for its next request,
//! and whether many requests leave anything behind.
//!
//! Memory is what the process has of its own (private pages), so buffers of sockets, which are the kernel's, are not in
//! it. Every figure is of a process started for it, less what it had after its first hundred requests, over the number of
//! streams or connections. Beside ours: nginx (unbuffered) and HAProxy.

use std::time::Duration;

use crate::kit::clock::sleep_exactly;
use crate::kit::pin::{cores, pin};
use crate::kit::sheet::{Metric, Sheet};
use crate::proxy::body::Template;
use crate::proxy::engine::{Answer, NullEngine};
use crate::proxy::load::Load;
use crate::proxy::poll::raise_descriptors;
use crate::proxy::subjects::{Folder, Kind, Setting, Subject, start, start_all};

use super::{Options, say};

const STREAM: Metric = Metric::new("bytes_per_stream", "bytes");
const IDLE: Metric = Metric::new("bytes_per_idle_connection", "bytes");
const GROWTH: Metric = Metric::new("memory_growth_mb", "MB");

const KINDS: [Kind; 3] = [Kind::Ours, Kind::Nginx, Kind::Haproxy];
const TARGETS: usize = 8;
/// Bytes of a request.
const BODY: usize = 4 << 10;
/// Time between two tokens of a stream.
const EVERY: Duration = Duration::from_millis(200);
/// Longer than a gateway keeps a connection to an engine that nobody uses.
const REST: Duration = Duration::from_millis(2_600);
/// Requests under way at a time where they are to leave idle connections.
const TOGETHER: usize = 8;

/// Runs it.
///
/// # Errors
/// The gateway is not there or does not start, or a request fails.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (streams, rounds, requests) =
        if options.quick { (1_000, 1, 200_000) } else { (4_000, 3, 1_000_000u64) };
    raise_descriptors();
    let cores = cores();
    let engine = NullEngine::start(TARGETS, &cores, 1)?;
    let folder = Folder::new()?;
    let setting = Setting {
        seal: None,
        http2: false,
        engines: engine.addrs().to_vec(),
        streams: true,
        connections: streams,
        // Small, so that it is full long before the last request.
        index: "8MiB",
        cores: cores.clone(),
    };
    let mut missing = Vec::new();
    drop(start_all(&KINDS, &setting, &folder, &mut missing)?);
    pin(&cores, 1);
    sleep_exactly();
    let mut run = Run { engine, seed: 0 };
    for round in 0..rounds {
        for kind in KINDS.into_iter().filter(|kind| kind.is_chosen()) {
            say(&format!("{}, round {} of {rounds}", kind.name(), round + 1));
            let mut put = |case: &str, metric, value| match kind {
                Kind::Ours => sheet.ours(case, metric, value),
                other => sheet.baseline(case, metric, other.name(), value),
            };
            let Ok(subject) = start(kind, &setting, &folder) else { continue };
            put(&format!("{streams} streams"), STREAM, run.streams(&subject, streams)?);
            let subject = start(kind, &setting, &folder)?;
            put(&format!("{streams} connections"), IDLE, run.idle(&subject, streams)?);
        }
    }
    say(&format!("{requests} requests"));
    let subject = start(Kind::Ours, &setting, &folder)?;
    let (early, late) = run.many(&subject, requests)?;
    sheet.ours(&format!("{requests} requests"), GROWTH, (late - early) / 1e6);
    sheet.note(format!(
        "{requests} requests with distinct prompts, index bounded at {}: {:.1} MB after a quarter of them, {:.1} MB after \
         all",
        setting.index,
        early / 1e6,
        late / 1e6
    ));
    missing.into_iter().for_each(|why| sheet.note(why));
    Ok(())
}

struct Run {
    engine: NullEngine,
    seed: u64,
}

impl Run {
    fn load(&mut self, subject: &Subject, connections: usize, streamed: bool) -> anyhow::Result<Load> {
        self.seed += 1;
        Load::connect(&Template::new(subject.addr, BODY, streamed), subject.addr, connections, self.seed)
    }

    /// Memory after the first requests.
    fn start(&mut self, subject: &Subject) -> anyhow::Result<f64> {
        self.engine.answer(Answer::Whole);
        self.load(subject, 1, false)?.count(100)?;
        std::thread::sleep(REST);
        Ok(subject.process.memory())
    }

    fn streams(&mut self, subject: &Subject, streams: usize) -> anyhow::Result<f64> {
        let before = self.start(subject)?;
        self.engine.answer(Answer::Paced { tokens: 1 << 30, every: EVERY });
        let mut load = self.load(subject, streams, true)?;
        load.tokens(streams as u64, Duration::from_secs(20))?;
        load.closed(2 * EVERY, 4 * EVERY, || 0.0)?;
        Ok((subject.process.memory() - before) / streams as f64)
    }

    fn idle(&mut self, subject: &Subject, connections: usize) -> anyhow::Result<f64> {
        let before = self.start(subject)?;
        let mut load = self.load(subject, connections, false)?;
        load.each(TOGETHER)?;
        std::thread::sleep(REST);
        Ok((subject.process.memory() - before) / connections as f64)
    }

    /// Memory after a quarter of so many requests, and after all of them.
    fn many(&mut self, subject: &Subject, requests: u64) -> anyhow::Result<(f64, f64)> {
        self.engine.answer(Answer::Whole);
        let mut load = self.load(subject, 64, false)?;
        load.count(requests / 4)?;
        std::thread::sleep(REST);
        let early = subject.process.memory();
        load.count(requests - requests / 4)?;
        std::thread::sleep(REST);
        Ok((early, subject.process.memory()))
    }
}
