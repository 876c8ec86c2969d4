//! `perf/run scale`: thousands of streams at a time, and what a request costs with many targets over what it costs with
//! few.
//!
//! Processes and cores are those of `perf/run relay`. All targets are ports of one null engine and stand in the gateway's
//! configuration. The baseline of the request's cost is the same gateway with 8 targets, in turn with it.

use std::time::Duration;

use crate::kit::clock::sleep_exactly;
use crate::kit::pin::{cores, pin};
use crate::kit::sheet::{Metric, Sheet};
use crate::proxy::body::Template;
use crate::proxy::engine::{Answer, NullEngine};
use crate::proxy::load::Load;
use crate::proxy::poll::raise_descriptors;
use crate::proxy::subjects::{Folder, Kind, Setting, start};

use super::{Options, say};

const CPU: Metric = Metric::new("cpu_us_per_request", "us");
const CHUNK: Metric = Metric::new("cpu_us_per_chunk", "us");
const PATH: Metric = Metric::new("token_path_p99_us", "us");
const RATE: Metric = Metric::new("tokens_per_s", "tokens/s");

const FEW: usize = 8;
const MANY: usize = 1_000;
const BODIES: [(&str, usize); 2] = [("1000 targets", 1 << 10), ("1000 targets, 10 KB", 10 << 10)];
const CONNECTIONS: usize = 64;
const STREAMS: usize = 9_500;
const EVERY: Duration = Duration::from_millis(400);

/// Runs it.
///
/// # Errors
/// The gateway is not there or does not start, or a request or stream fails.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (rounds, over) =
        if options.quick { (2, Duration::from_millis(1_500)) } else { (5, Duration::from_millis(4_000)) };
    let descriptors = raise_descriptors();
    let cores = cores();
    let folder = Folder::new()?;
    pin(&cores, 1);
    sleep_exactly();
    let mut seed = 0;
    let mut load = |addr, body, streamed, connections| {
        seed += 1;
        Load::connect(&Template::new(addr, body, streamed), addr, connections, seed)
    };
    let setting = |engine: &NullEngine, connections| Setting {
        seal: None,
        http2: false,
        engines: engine.addrs().to_vec(),
        streams: true,
        connections,
        index: "256MiB",
        cores: cores.clone(),
    };
    {
        let (few, many) = (NullEngine::start(FEW, &cores, 1)?, NullEngine::start(MANY, &cores, 1)?);
        let subjects = [&few, &many].map(|engine| start(Kind::Ours, &setting(engine, CONNECTIONS), &folder));
        let [few_gateway, many_gateway] = subjects;
        let (few_gateway, many_gateway) = (few_gateway?, many_gateway?);
        for round in 0..rounds {
            say(&format!("targets, round {} of {rounds}", round + 1));
            for (case, body) in BODIES {
                for subject in [&many_gateway, &few_gateway] {
                    let mut load = load(subject.addr, body, false, CONNECTIONS)?;
                    // Long enough for a connection to every target.
                    let window = load.closed(over / 2, over, || subject.process.cpu())?;
                    load.settle()?;
                    let us = window.used * 1e6 / window.requests as f64;
                    if std::ptr::eq(subject, &raw const many_gateway) {
                        sheet.ours(case, CPU, us);
                    } else {
                        sheet.baseline(case, CPU, "8 targets", us);
                    }
                }
            }
        }
    }
    if descriptors < 2 * STREAMS as u64 + 100 {
        sheet.note(format!("{STREAMS} streams: left out, this machine allows {descriptors} descriptors"));
        return Ok(());
    }
    let engine = NullEngine::start(FEW, &cores, 1)?;
    engine.answer(Answer::Paced { tokens: 1 << 30, every: EVERY });
    let case = format!("{STREAMS} streams");
    for round in 0..rounds {
        say(&format!("{case}, round {} of {rounds}", round + 1));
        let subject = start(Kind::Ours, &setting(&engine, STREAMS), &folder)?;
        let mut load = load(subject.addr, 1 << 10, true, STREAMS)?;
        load.tokens(STREAMS as u64, Duration::from_secs(20))?;
        let window = load.closed(2 * EVERY, over, || subject.process.cpu())?;
        let offered = STREAMS as f64 / EVERY.as_secs_f64();
        sheet.ours(&case, RATE, window.tokens as f64 / window.seconds);
        sheet.baseline(&case, RATE, "sent by the engine", offered);
        sheet.ours(&case, CHUNK, window.used * 1e6 / window.tokens as f64);
        sheet.ours(&case, PATH, window.paths.value_at_quantile(0.99) as f64 / 1e3);
    }
    Ok(())
}
