//! The parts that are not the agents: a scheduler, gateways and the reader of what their shards read.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fairlead_dataplane::{ControlOptions, GatewayOptions, PlacementNote, Shared, start_controlled};
use fairlead_prefix::Hits;
use fairlead_replication::ReplicaConfig;
use fairlead_routing::{Reservation, Rng};
use fairlead_scheduler::{Scheduler, SchedulerOptions};
use fairlead_transport::LinkOptions;
use fairlead_wire::msg::HashSpace;

use super::agents::{DOCUMENT, MARK, document};
use super::child::Part;
use super::identity;
use crate::kit::clock::{machine_us, sleep_exactly};
use crate::kit::memory::resident;

/// Pause between two looks of the reader.
const LOOK: Duration = Duration::from_micros(10);

/// Plays a part until the questions end.
pub(super) fn play(part: &Part) -> anyhow::Result<()> {
    sleep_exactly();
    if part.role == "scheduler" { scheduler(part) } else { gateway(part) }
}

fn answer(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Answers questions with what `of` says, until there are no more.
fn answer_all(mut of: impl FnMut(&[&str]) -> anyhow::Result<String>) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        answer("begun")?;
        answer(&if words == ["resident"] { resident().to_string() } else { of(&words)? })?;
    }
    Ok(())
}

fn scheduler(part: &Part) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let identity = identity(&part.folder, "scheduler")?;
    let mut options = SchedulerOptions::new(([127, 0, 0, 1], 0).into(), identity);
    options.admin = Some(([127, 0, 0, 1], 0).into());
    let handle = runtime.block_on(Scheduler::start(options))?;
    answer(&handle.addr().to_string())?;
    let admin = handle.admin_addr().context("admin pages")?;
    answer_all(|words| match words {
        ["ring"] => ring_bytes(admin),
        _ => anyhow::bail!("a scheduler does not know {words:?}"),
    })
}

/// Bytes of recent frames that the scheduler keeps, as its metrics tell.
fn ring_bytes(admin: SocketAddr) -> anyhow::Result<String> {
    let mut page = TcpStream::connect(admin)?;
    write!(page, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    page.read_to_string(&mut text)?;
    let value = text.lines().find_map(|line| line.strip_prefix("fairlead_scheduler_ring_bytes "));
    Ok(value.context("no figure for the ring")?.trim().to_owned())
}

fn gateway(part: &Part) -> anyhow::Result<()> {
    let began_us = machine_us();
    let control = ControlOptions {
        scheduler: Some((part.scheduler.clone(), identity(&part.folder, "gateway")?)),
        name: part.name.clone(),
        admin: None,
        instances: Vec::new(),
        snapshot_wait: Duration::from_secs(30),
        replica: ReplicaConfig::default(),
        link: LinkOptions::default(),
    };
    let options = GatewayOptions { shards: 1, pin: false, ..GatewayOptions::default() };
    answer(&began_us.to_string())?;
    let running = start_controlled(options, control)?;
    let shared = running.gateway().shared().clone();
    answer_all(|words| {
        let number = |at: usize| -> anyhow::Result<u64> {
            Ok(words.get(at).with_context(|| format!("{words:?}"))?.parse()?)
        };
        Ok(match words.first().copied() {
            Some("targets") => {
                let count = number(1)? as usize;
                look(Duration::from_secs(30), || shared.fleet.table().ready() >= count);
                shared.fleet.table().ready().to_string()
            }
            Some("blocks") => {
                let blocks = number(1)?;
                let held =
                    || shared.fleet.prefixes().iter().map(|index| index.stats().held_blocks).sum::<u64>();
                let whole = look(Duration::from_secs(60), || held() >= blocks);
                anyhow::ensure!(whole, "{} of {blocks} blocks came", held());
                machine_us().to_string()
            }
            Some("reports") => reports(&shared, number(1)?),
            Some("reserve") => reserve(&shared, number(1)?),
            Some("reservations") => reservations(&shared, number(1)?),
            Some("documents") => documents(&shared, number(1)?, number(2)?, number(3)?),
            _ => anyhow::bail!("a gateway does not know {words:?}"),
        })
    })
}

/// Looks until `seen` says so, or time is up.
fn look(limit: Duration, mut seen: impl FnMut() -> bool) -> bool {
    let end = machine_us() + limit.as_micros() as u64;
    while !seen() {
        if machine_us() >= end {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

fn words(numbers: impl IntoIterator<Item = u64>) -> String {
    numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

/// The age of every report when it was first seen.
fn reports(shared: &Arc<Shared>, seconds: u64) -> String {
    let cells: Vec<_> =
        shared.fleet.table().entries.iter().flatten().map(|entry| entry.cells.clone()).collect();
    let mut last: Vec<Option<u64>> = cells.iter().map(|cell| cell.load.read().kv_total_tokens).collect();
    let mut ages = Vec::new();
    // The agents begin a little later than the reader.
    look(Duration::from_millis(seconds * 1000 + 500), || {
        for (cell, last) in cells.iter().zip(&mut last) {
            let sent = cell.load.read().kv_total_tokens;
            if sent.is_some() && sent != *last {
                *last = sent;
                ages.extend(sent.map(|sent| machine_us().saturating_sub(sent)));
            }
        }
        false
    });
    words(ages)
}

/// Makes reservations as a shard does; the uncached tokens say when.
fn reserve(shared: &Arc<Shared>, seconds: u64) -> String {
    let Some(target) = shared.fleet.table().entries.iter().flatten().next().cloned() else {
        return String::new();
    };
    let end = machine_us() + seconds * 1_000_000;
    let mut rng = Rng::new(7);
    let mut made = 0;
    while machine_us() < end {
        let in_flight = shared.in_flight.take(1);
        let held = Reservation::new(target.clone(), 1, machine_us(), 1);
        let path = Arc::default();
        let note = PlacementNote { target: target.id, path, space: HashSpace::Bytes, keep: None };
        shared.place(note, fairlead_dataplane::runtime::now_us());
        made += 1;
        // Both times vary, so that no timer's phase is met again and again.
        std::thread::sleep(Duration::from_micros(3_000 + rng.next_u64() % 3_000));
        drop((held, in_flight));
        std::thread::sleep(Duration::from_micros(3_000 + rng.next_u64() % 5_000));
    }
    made.to_string()
}

/// The age of every reservation of another gateway when it was first seen.
fn reservations(shared: &Arc<Shared>, seconds: u64) -> String {
    let table = shared.fleet.table_full();
    let Some(target) = table.entries.iter().flatten().next() else { return String::new() };
    let mut last = 0;
    let mut ages = Vec::new();
    look(Duration::from_millis(seconds * 1000), || {
        let sums = target.cells.peers();
        if sums.prefill_tokens != last {
            last = sums.prefill_tokens;
            if last != 0 {
                ages.push(machine_us().saturating_sub(last));
            }
        }
        false
    });
    words(ages)
}

/// When each marked document of each agent was first seen whole: agent, document, time.
fn documents(shared: &Arc<Shared>, from: u64, agents: u64, seconds: u64) -> String {
    let first = from.next_multiple_of(MARK);
    let mut next: Vec<(u64, Vec<u64>)> = (0..agents).map(|agent| (first, document(agent, first))).collect();
    let mut hits = Hits::default();
    let mut seen = Vec::new();
    look(Duration::from_millis(seconds * 1000 + 1000), || {
        for (agent, (number, path)) in (0u64..).zip(&mut next) {
            let whole = shared.fleet.prefixes().iter().any(|index| {
                index.lookup(path, &mut hits);
                hits.matched_blocks as usize == DOCUMENT
            });
            if whole {
                seen.extend([agent, *number, machine_us()]);
                *number += MARK;
                *path = document(agent, *number);
            }
        }
        std::thread::sleep(4 * LOOK);
        false
    });
    words(seen)
}
