//! Figures of the index on a synthetic fleet: `cargo run --profile fast -p fairlead-prefix --example index [blocks] [targets]`.
//!
//! Groups share a prompt of 40 blocks and ten of 20 below it; each of these has a dozen documents with a tail of 20 to
//! 139 blocks (one in twelve: 1,000), held by one to three targets.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fairlead_prefix::{Config, Hits, Reader, TargetId, Writer, new};
use fairlead_wire::is_anchor;
use fairlead_wire::msg::IndexOp;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

fn chain(last: u64, text: u64) -> u64 {
    Random(last ^ text.wrapping_mul(0x2545_f491_4f6c_dd1d)).next().max(1)
}

fn extend(path: &mut Vec<u64>, text: u64, len: u64) {
    for at in 0..len {
        let last = path.last().copied().unwrap_or(7);
        path.push(chain(last, text << 12 | at));
    }
}

struct Document {
    path: Vec<u64>,
    holders: Vec<u16>,
}

fn documents(blocks: u64, targets: u64) -> Vec<Document> {
    let mut random = Random(42);
    let mut made = 0;
    let mut all = Vec::new();
    let mut text = 1;
    while made < blocks {
        let mut top = Vec::new();
        extend(&mut top, text, 40);
        text += 1;
        made += 40;
        for _ in 0..10 {
            let mut second = top.clone();
            extend(&mut second, text, 20);
            text += 1;
            made += 20;
            for number in 0..12 {
                let mut path = second.clone();
                let len = if number == 11 { 1000 } else { 20 + random.below(120) };
                extend(&mut path, text, len);
                text += 1;
                made += len;
                let holders = (0..=random.below(3)).map(|_| random.below(targets) as u16).collect();
                all.push(Document { path, holders });
            }
        }
    }
    // Order of arrival is not order of content.
    for at in (1..all.len()).rev() {
        all.swap(at, random.below(at as u64 + 1) as usize);
    }
    all
}

/// Time that this thread has run: other processes may be busy meanwhile.
struct Cpu(Duration);

impl Cpu {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Self(Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap()))
    }

    fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn index(targets: u64, locate: bool) -> Writer {
    let (mut writer, _) = new(Config { max_bytes: 4 << 30, max_targets: targets as usize, locate });
    for slot in 0..targets as u16 {
        writer.bind(TargetId::new(slot, 1)).unwrap();
    }
    writer
}

fn queries(documents: &[Document], len: usize, random: &mut Random) -> Vec<Vec<u64>> {
    (0..20_000)
        .map(|at| {
            loop {
                let path = &documents[random.below(documents.len() as u64) as usize].path;
                if len > 200 && path.len() < len {
                    continue;
                }
                let mut query = path[..(len * 3 / 4).min(path.len() * 3 / 4)].to_vec();
                let more = len - query.len();
                extend(&mut query, 1 << 40 | at, more as u64);
                return query;
            }
        })
        .collect()
}

fn lookups(reader: &Reader, queries: &[Vec<u64>], what: &str) {
    let mut hits = Hits::new();
    let mut times = Vec::with_capacity(queries.len());
    let mut sum = 0u64;
    for pass in 0..2 {
        for query in queries {
            let start = Instant::now();
            reader.lookup(query, &mut hits);
            if pass == 1 {
                times.push(start.elapsed().as_nanos() as u64);
            }
            sum += u64::from(hits.matched_blocks);
        }
    }
    let start = Cpu::now();
    for query in queries {
        reader.lookup(query, &mut hits);
    }
    let mean = start.elapsed().as_nanos() as u64 / queries.len() as u64;
    times.sort_unstable();
    println!(
        "lookup {what}: mean {mean} ns, p50 {} p99 {} ns (clock included), mean match {}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        sum / 2 / queries.len() as u64
    );
}

/// Part of a path before `at` from an anchor on.
fn above(path: &[u64], at: usize) -> &[u64] {
    let from = path[..at].iter().rposition(|block| is_anchor(*block)).unwrap_or(0);
    &path[from..at]
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().unwrap());
    let blocks = args.next().unwrap_or(1_000_000);
    let targets = args.next().unwrap_or(512);
    let all = documents(blocks, targets);
    let mut random = Random(7);

    let mut ops: Vec<IndexOp> = Vec::new();
    let mut truth = index(targets, true);
    let (mut named, start) = (0, Cpu::now());
    for (at, document) in all.iter().enumerate() {
        for holder in &document.holders {
            named += document.path.len();
            ops.extend(truth.place(TargetId::new(*holder, 1), &document.path, at as u64 * 100));
        }
    }
    let spent = start.elapsed();
    let sent: usize =
        ops.iter().map(|op| if let IndexOp::Place { blocks, .. } = op { blocks.len() } else { 0 }).sum();
    println!(
        "place: {} requests, {:.1} ns/block named ({named}), {:.1} ns/new block ({sent}), {:.0} ns/request",
        ops.len(),
        spent.as_nanos() as f64 / named as f64,
        spent.as_nanos() as f64 / sent as f64,
        spent.as_nanos() as f64 / ops.len() as f64
    );
    let before = resident();
    let mut replica = index(targets, false);
    let start = Cpu::now();
    for batch in ops.chunks(128) {
        replica.apply_all(batch).unwrap();
    }
    let spent = start.elapsed();
    replica.collect();
    println!(
        "apply: {:.1} ns/new block, {:.1} ns/block named",
        spent.as_nanos() as f64 / sent as f64,
        spent.as_nanos() as f64 / named as f64
    );
    for _ in 0..8 {
        replica.collect();
        truth.collect();
    }
    let after = resident();
    for (name, stats) in [("truth", truth.stats()), ("replica", replica.stats())] {
        println!(
            "{name}: {} blocks, {} runs, {} held, {:.2} bytes/block counted",
            stats.blocks,
            stats.runs,
            stats.held_blocks,
            stats.bytes as f64 / stats.blocks as f64
        );
    }
    println!("replica resident: {:.2} bytes/block", (after - before) as f64 / replica.stats().blocks as f64);
    drop(ops);

    let reader = replica.reader();
    for len in [32, 128, 1000] {
        lookups(&reader, &queries(&all, len, &mut random), &format!("{len} blocks"));
    }

    // Single blocks, as events: many documents at a time lose blocks from the end, and get them back.
    let picked: Vec<&Document> =
        (0..512).map(|_| &all[random.below(all.len() as u64) as usize]).collect::<Vec<_>>();
    let (mut removed, mut stored) = (Vec::new(), Vec::new());
    let (mut spent_remove, mut spent_store) = (Duration::ZERO, Duration::ZERO);
    let depth = 64;
    let (mut removals, mut stores) = (0u64, 0u64);
    let mut now = 1u64 << 30;
    for pass in 0..4 {
        removed.clear();
        stored.clear();
        if pass == 1 {
            (removals, stores, spent_remove, spent_store) = (0, 0, Duration::ZERO, Duration::ZERO);
        }
        let start = Cpu::now();
        for back in 1..=depth {
            for document in &picked {
                let at = document.path.len() - back;
                let target = TargetId::new(document.holders[0], 1);
                removed.extend(truth.remove_blocks(
                    target,
                    above(&document.path, at),
                    &document.path[at..=at],
                ));
                removals += 1;
            }
        }
        spent_remove += start.elapsed();
        let start = Cpu::now();
        for back in (1..=depth).rev() {
            for document in &picked {
                let at = document.path.len() - back;
                let target = TargetId::new(document.holders[0], 1);
                stored.extend(
                    truth.store(target, above(&document.path, at), &document.path[at..=at], now).unwrap(),
                );
                now += 1;
                stores += 1;
            }
        }
        spent_store += start.elapsed();
    }
    println!(
        "truth, single blocks: remove {:.0} ns, store {:.0} ns ({} and {} operations out)",
        spent_remove.as_nanos() as f64 / removals as f64,
        spent_store.as_nanos() as f64 / stores as f64,
        removed.len(),
        stored.len()
    );
    let mut spent = [Duration::ZERO; 2];
    for _ in 0..16 {
        for (spent, ops) in spent.iter_mut().zip([&removed, &stored]) {
            let start = Cpu::now();
            for batch in ops.chunks(128) {
                replica.apply_all(batch).unwrap();
            }
            *spent += start.elapsed();
        }
    }
    let each = |spent: Duration| spent.as_nanos() as f64 / 16.0 / removed.len() as f64;
    println!("replica, single blocks: remove {:.0} ns, store {:.0} ns", each(spent[0]), each(spent[1]));
    // Each answer lengthens a conversation by a block, told as a placement.
    let mut grown: Vec<(u16, Vec<u64>)> =
        picked.iter().map(|document| (document.holders[0], document.path.clone())).collect();
    let mut count = 0u64;
    let mut placed = Vec::new();
    let mut spent = Duration::ZERO;
    for round in 0..32 {
        for (_, path) in &mut grown {
            extend(path, 1 << 41 | round, 1);
        }
        let start = Cpu::now();
        for (holder, path) in &grown {
            placed.extend(truth.place(TargetId::new(*holder, 1), path, now));
            count += 1;
        }
        spent += start.elapsed();
        now += 100_000;
    }
    println!("truth, place longer by one: {:.0} ns", spent.as_nanos() as f64 / count as f64);
    let start = Cpu::now();
    for batch in placed.chunks(128) {
        replica.apply_all(batch).unwrap();
    }
    println!(
        "replica, place longer by one: {:.0} ns",
        start.elapsed().as_nanos() as f64 / placed.len() as f64
    );

    // Lookups beside a writer of a million single blocks a second.
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (stop, done, removed, stored, replica) = (&stop, &done, &removed, &stored, &mut replica);
        scope.spawn(move || {
            let start = Instant::now();
            let mut count = 0u64;
            'all: loop {
                for ops in [removed, stored] {
                    for batch in ops.chunks(128) {
                        replica.apply_all(batch).unwrap();
                        count += batch.len() as u64;
                        done.store(count, Ordering::Relaxed);
                        while start.elapsed().as_micros() < u128::from(count) {
                            std::hint::spin_loop();
                        }
                        if stop.load(Ordering::Relaxed) {
                            break 'all;
                        }
                    }
                }
            }
            println!("writer: {:.2} million/s", count as f64 / start.elapsed().as_micros() as f64);
        });
        for len in [128, 1000] {
            lookups(&reader, &queries(&all, len, &mut random), &format!("{len} blocks beside a writer"));
        }
        stop.store(true, Ordering::Relaxed);
    });
}
