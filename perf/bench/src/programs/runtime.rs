//! `perf/run runtime`: what the runtimes cost under the seam on which the gateway's shards stand: monoio on io_uring,
//! monoio on epoll, and glommio.
//!
//! The program under test is the [floor] of `perf/run relay`, the same lines on each runtime, as a process of its own on
//! the first core; load and null engine are on the second. 64 connections; processor time of the whole process.
//!
//! - `echo`: requests of 1 KB, answered by the process itself;
//! - `relay`: requests of 1 KB, passed to an engine, and its answer back;
//! - `stream`: streams of 256 tokens, as fast as they come;
//! - `128 streams`: a token every 25 ms in each, so that every token is a read and a write of its own.
//!
//! Each runtime is *ours* in rows of its own, named behind the case; baselines are monoio on epoll, and nginx where it is
//! installed (`perf/setup`) and does the same.

use std::time::Duration;

use crate::kit::clock::sleep_exactly;
use crate::kit::pin::{cores, pin};
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::stats::median;
use crate::proxy::body::Template;
use crate::proxy::engine::{Answer, NullEngine};
use crate::proxy::floor::{self, Base};
use crate::proxy::load::{Load, Window};
use crate::proxy::poll::raise_descriptors;
use crate::proxy::subjects::{Folder, Kind, Setting, Subject, start, start_on};

use super::{Options, say};

const PER_REQUEST: Metric = Metric::new("cpu_us_per_request", "us");
const PER_CHUNK: Metric = Metric::new("cpu_us_per_chunk", "us");

/// The runtimes; the baseline is the second.
const BASES: [Base; 3] = [Base::Uring, Base::Epoll, Base::Glommio];
const BASELINE: Base = Base::Epoll;
/// Connections, but for the paced streams.
const CONNECTIONS: usize = 64;
/// Bytes of a request.
const BODY: usize = 1 << 10;
/// Tokens of a stream that comes as fast as it can.
const TOKENS: u32 = 256;
/// Streams with a time between tokens.
const PACED: usize = 128;
const EVERY: Duration = Duration::from_millis(25);
/// Tokens of a stream that does not end while it is measured.
const ENDLESS: u32 = 1 << 30;
/// Targets.
const TARGETS: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Echo,
    Relay,
    Stream,
    Paced,
}

impl Case {
    const ALL: [Self; 4] = [Self::Echo, Self::Relay, Self::Stream, Self::Paced];

    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Relay => "relay",
            Self::Stream => "stream",
            Self::Paced => "128 streams",
        }
    }
}

/// Whose processor time is measured: a runtime, or nginx.
struct Contender {
    base: Option<Base>,
    subject: Subject,
}

impl Contender {
    fn name(&self) -> &'static str {
        self.base.map_or(Kind::Nginx.name(), Base::name)
    }
}

/// Runs it.
///
/// # Errors
/// monoio on epoll does not start, or a request fails.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    if let Some(played) = floor::played() {
        return played;
    }
    let (rounds, over) =
        if options.quick { (2, Duration::from_millis(600)) } else { (5, Duration::from_millis(2_000)) };
    raise_descriptors();
    let cores = cores();
    let engine = NullEngine::start(TARGETS, &cores, 1)?;
    let folder = Folder::new()?;
    let mut missing = Vec::new();
    let mut of = Vec::new();
    for case in Case::ALL.into_iter().filter(|case| options.wants(case.name())) {
        of.push((case, contenders(case, &engine, &cores, &folder, &mut missing)?));
    }
    pin(&cores, 1);
    sleep_exactly();

    let mut measure = Measure { engine, over, seed: 0, samples: Vec::new() };
    for round in 0..rounds {
        say(&format!("round {} of {rounds}", round + 1));
        for (case, contenders) in &of {
            // Each is the first in turn.
            for n in 0..contenders.len() {
                measure.one(*case, &contenders[(round + n) % contenders.len()])?;
            }
        }
    }
    tell(&measure.samples, sheet);
    missing.into_iter().for_each(|why| sheet.note(why));
    Ok(())
}

fn contenders(
    case: Case,
    engine: &NullEngine,
    cores: &[usize],
    folder: &Folder,
    missing: &mut Vec<String>,
) -> anyhow::Result<Vec<Contender>> {
    let engines = if case == Case::Echo { &[] } else { engine.addrs() };
    engine.answer(Answer::Whole);
    let mut all = Vec::new();
    let mut lacking = |error: anyhow::Error| {
        let why = format!("missing: {error:#}");
        if !missing.contains(&why) {
            say(&why);
            missing.push(why);
        }
    };
    for base in BASES {
        match start_on(base, engines, cores, folder) {
            Ok(subject) => all.push(Contender { base: Some(base), subject }),
            Err(error) if base == BASELINE => return Err(error),
            Err(error) => lacking(error),
        }
    }
    if case != Case::Echo {
        let setting = Setting {
            engines: engines.to_vec(),
            streams: case != Case::Relay,
            connections: PACED,
            index: "256MiB",
            cores: cores.to_vec(),
            seal: None,
            http2: false,
        };
        match start(Kind::Nginx, &setting, folder) {
            Ok(subject) => all.push(Contender { base: None, subject }),
            Err(error) => lacking(error.context(Kind::Nginx.name())),
        }
    }
    Ok(all)
}

struct Sample {
    case: Case,
    base: Option<Base>,
    name: &'static str,
    us: f64,
    /// Tokens that came with one read.
    together: f64,
}

struct Measure {
    engine: NullEngine,
    over: Duration,
    seed: u64,
    samples: Vec<Sample>,
}

impl Measure {
    fn one(&mut self, case: Case, contender: &Contender) -> anyhow::Result<()> {
        let window = self.window(case, &contender.subject)?;
        let streamed = matches!(case, Case::Stream | Case::Paced);
        let count = if streamed { window.tokens } else { window.requests };
        self.samples.push(Sample {
            case,
            base: contender.base,
            name: contender.name(),
            us: window.used * 1e6 / count as f64,
            together: window.tokens as f64 / window.reads.max(1) as f64,
        });
        Ok(())
    }

    fn window(&mut self, case: Case, subject: &Subject) -> anyhow::Result<Window> {
        self.seed += 1;
        let (answer, connections, warm) = match case {
            Case::Echo | Case::Relay => (Answer::Whole, CONNECTIONS, self.over / 3),
            Case::Stream => (Answer::Unpaced { tokens: TOKENS }, CONNECTIONS, self.over / 3),
            Case::Paced => (Answer::Paced { tokens: ENDLESS, every: EVERY }, PACED, 2 * EVERY),
        };
        self.engine.answer(answer);
        let streamed = !matches!(answer, Answer::Whole);
        let mut load = Load::connect(
            &Template::new(subject.addr, BODY, streamed),
            subject.addr,
            connections,
            self.seed,
        )?;
        if case == Case::Paced {
            load.tokens(connections as u64, Duration::from_secs(20))?;
        }
        let window = load.closed(warm, self.over, || subject.process.cpu())?;
        if case != Case::Paced {
            load.settle()?;
        }
        drop(load);
        if case != Case::Echo && subject.kind != Kind::Nginx {
            // nginx keeps its connections.
            self.engine.settle(Duration::from_secs(1));
        }
        Ok(window)
    }
}

/// Rows in the order of cases, a runtime after the other.
fn tell(samples: &[Sample], sheet: &mut Sheet) {
    for case in Case::ALL {
        let metric = if matches!(case, Case::Echo | Case::Relay) { PER_REQUEST } else { PER_CHUNK };
        let of = |base: Option<Base>| samples.iter().filter(move |s| s.case == case && s.base == base);
        for base in BASES {
            let row = format!("{}, {}", case.name(), base.name());
            if of(Some(base)).next().is_none() {
                continue;
            }
            of(Some(base)).for_each(|s| sheet.ours(&row, metric, s.us));
            let others = of(Some(BASELINE)).filter(|_| base != BASELINE).chain(of(None));
            others.for_each(|s| sheet.baseline(&row, metric, s.name, s.us));
        }
        if case == Case::Stream {
            let together: Vec<_> = BASES
                .into_iter()
                .map(Some)
                .chain([None])
                .filter_map(|base| {
                    let reads: Vec<_> = of(base).map(|s| s.together).collect();
                    let name = of(base).next()?.name;
                    Some(format!("{name} {:.2}", median(&reads)))
                })
                .collect();
            if !together.is_empty() {
                sheet.note(format!("stream: tokens that came with one read: {}", together.join(", ")));
            }
        }
    }
}
