//! The agents: links of their own to the scheduler, all in this process.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;
use fairlead_transport::{Lane, LinkOptions, LinkReceiver, LinkSender, connect};
use fairlead_wire::msg::{
    CacheEvents, CacheOp, EngineKind, Hello, InstanceInfo, ModelInfo, Pong, RankLoad, Register, Report, Role,
    ServingRole,
};
use fairlead_wire::{Body, Message, PROTOCOL, PROTOCOL_MIN, Stamp, encode, is_anchor};
use tokio::runtime::Runtime;
use tokio::time::MissedTickBehavior;

use super::identity;
use crate::kit::clock::machine_us;

/// Blocks of a document.
pub(super) const DOCUMENT: usize = 125;
/// Every so many documents of an agent the gateways note when they see it.
pub(super) const MARK: u64 = 20;
/// Blocks that one message stores, and as many that it removes.
const PIECE: usize = 25;
/// The engines' incarnation.
const INCARNATION: u64 = 1;

/// The blocks of a document: every process knows them.
pub(super) fn document(agent: u64, number: u64) -> Vec<u64> {
    let block = |at: u64| {
        let mut x = (agent << 48 | number << 16 | at).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ x >> 29).max(1)
    };
    (0..DOCUMENT as u64).map(block).collect()
}

/// The blocks right before `at`, from the last anchor or the first block on.
fn above(path: &[u64], at: usize) -> Vec<u64> {
    let from = (0..at).rev().find(|&i| is_anchor(path[i])).unwrap_or(0);
    path[from..at].to_vec()
}

fn frame<T: Body>(body: &T) -> Option<Bytes> {
    let stamp = Stamp { created_us: machine_us(), ..Stamp::default() };
    Some(encode(body, stamp).ok()?.to_bytes().into())
}

/// What a stream has sent.
pub(super) struct Sent {
    pub(super) blocks: u64,
    pub(super) seconds: f64,
}

/// One agent's documents: `oldest..newest` are held; of the newest, `stored` blocks; of the oldest, all but `removed`.
#[derive(Default)]
struct Library {
    oldest: u64,
    newest: u64,
    stored: usize,
    removed: usize,
}

pub(super) struct Agents {
    runtime: Runtime,
    senders: Vec<LinkSender>,
    libraries: Mutex<Vec<Library>>,
    /// When each marked document became whole, by agent and number.
    marks: Mutex<AHashMap<(u64, u64), u64>>,
    sent: AtomicU64,
}

impl Agents {
    /// Connects and registers `count` agents.
    pub(super) fn start(folder: &Path, scheduler: &str, count: usize) -> anyhow::Result<Self> {
        // As an agent runs: one thread.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let identity = identity(folder, "agent")?;
        let mut senders = Vec::new();
        for number in 0..count {
            let name = format!("e{number}");
            let hello = Hello {
                role: Role::Agent,
                name: name.clone(),
                incarnation: INCARNATION,
                protocol_min: PROTOCOL_MIN,
                protocol_max: PROTOCOL,
                software: "benchmark".into(),
                have: None,
            };
            let options = LinkOptions::default();
            let (link, _) = runtime.block_on(connect(scheduler, &identity, &hello, &options))?;
            let (sender, receiver) = link.split();
            runtime.spawn(answer_pings(sender.clone(), receiver));
            let register = Register { instance: instance(&name) };
            if let Some(bytes) = frame(&register) {
                runtime.block_on(sender.send(Lane::Control, bytes))?;
            }
            senders.push(sender);
        }
        let libraries = (0..count).map(|_| Library::default()).collect();
        Ok(Self {
            runtime,
            senders,
            libraries: Mutex::new(libraries),
            marks: Mutex::default(),
            sent: AtomicU64::new(0),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.senders.len()
    }

    /// Sends reports, one agent after the other. Their KV room says when they were sent.
    pub(super) fn report(&self, time: Duration, per_second: u32) {
        let senders = self.senders.clone();
        self.run(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let end = machine_us() + time.as_micros() as u64;
            let mut turn = 0;
            while machine_us() < end {
                ticks.tick().await;
                let taken_us = machine_us();
                let load = RankLoad {
                    taken_us,
                    running: Some(1),
                    waiting: Some(0),
                    kv_total_tokens: Some(taken_us),
                    ..RankLoad::default()
                };
                let report =
                    Report { incarnation: INCARNATION, ready: true, reason: None, ranks: vec![load] };
                if let Some(bytes) = frame(&report) {
                    let _ = senders[turn % senders.len()].try_send(Lane::Control, bytes);
                }
                turn += 1;
            }
        });
    }

    /// Runs where the links' tasks run: nobody has to be woken across threads.
    fn run<T: Send + 'static>(&self, what: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let task = self.runtime.spawn(what);
        self.runtime.block_on(task).ok()
    }

    /// Stores documents until about `blocks` blocks are held.
    pub(super) fn fill(&self, blocks: u64) {
        let mut libraries = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        let each = blocks.div_ceil(self.senders.len() as u64 * DOCUMENT as u64);
        for ((agent, sender), library) in (0u64..).zip(&self.senders).zip(libraries.iter_mut()) {
            for first in (0..each).step_by(32) {
                let numbers = first..(first + 32).min(each);
                let store = |number| CacheOp::Store { above: Vec::new(), blocks: document(agent, number) };
                let events = CacheEvents {
                    incarnation: INCARNATION,
                    rank: 0,
                    partial: false,
                    replace: first == 0,
                    ops: numbers.map(store).collect(),
                };
                if let Some(bytes) = frame(&events) {
                    let _ = self.runtime.block_on(sender.send(Lane::Control, bytes));
                }
            }
            library.newest = each;
        }
    }

    /// Blocks that the agents have said are held.
    pub(super) fn held(&self) -> u64 {
        let libraries = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |library: &Library| {
            (library.newest - library.oldest) * DOCUMENT as u64 + library.stored as u64
                - library.removed as u64
        };
        libraries.iter().map(of).sum()
    }

    /// The first document that no agent has begun.
    pub(super) fn next_document(&self) -> u64 {
        let libraries = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        libraries.iter().map(|library| library.newest + 1).max().unwrap_or(0)
    }

    /// Stores and removes blocks at a rate, half of each, so that as many stay held.
    pub(super) fn stream(&self, time: Duration, per_second: u64) -> Sent {
        let began = machine_us();
        let end = began + time.as_micros() as u64;
        let mut blocks = 0;
        let messages = per_second / (2 * PIECE as u64);
        let mut turn = 0;
        while machine_us() < end {
            // What is due by now; a late start is made up for.
            let due = (machine_us() - began) * messages / 1_000_000;
            while turn < due {
                blocks += self.piece(turn as usize % self.senders.len());
                turn += 1;
            }
            std::thread::sleep(Duration::from_micros(400));
        }
        self.sent.fetch_add(blocks, Ordering::Relaxed);
        Sent { blocks, seconds: (machine_us() - began) as f64 / 1e6 }
    }

    /// One message of one agent; the blocks it speaks of.
    fn piece(&self, which: usize) -> u64 {
        let agent = which as u64;
        let mut libraries = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        let library = &mut libraries[which];
        let path = document(agent, library.newest);
        let (at, to) = (library.stored, library.stored + PIECE);
        let store = CacheOp::Store { above: above(&path, at), blocks: path[at..to].to_vec() };
        library.stored = to;
        let whole = library.stored == DOCUMENT;
        let number = library.newest;
        if whole {
            library.newest += 1;
            library.stored = 0;
        }
        // From the tail, as engines do.
        let path = document(agent, library.oldest);
        let to = DOCUMENT - library.removed;
        let remove =
            CacheOp::Remove { above: above(&path, to - PIECE), blocks: path[to - PIECE..to].to_vec() };
        library.removed += PIECE;
        if library.removed == DOCUMENT {
            library.oldest += 1;
            library.removed = 0;
        }
        drop(libraries);
        let events = CacheEvents {
            incarnation: INCARNATION,
            rank: 0,
            partial: false,
            replace: false,
            ops: vec![store, remove],
        };
        if whole && number.is_multiple_of(MARK) {
            let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
            marks.insert((agent, number), machine_us());
        }
        if let Some(bytes) = frame(&events) {
            // A full lane makes the sender wait: the rate says so.
            let _ = self.runtime.block_on(self.senders[which].send(Lane::Control, bytes));
        }
        2 * PIECE as u64
    }

    /// Microseconds from the send of marked documents to their sight, of a gateway's (agent, document, time).
    pub(super) fn latencies(&self, seen: &[f64]) -> Vec<f64> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |one: &[f64]| {
            let sent = *marks.get(&(one[0] as u64, one[1] as u64))?;
            Some(one[2] - sent as f64)
        };
        seen.chunks_exact(3).filter_map(of).collect()
    }
}

async fn answer_pings(sender: LinkSender, mut receiver: LinkReceiver) {
    while let Ok((_, received)) = receiver.recv().await {
        if let Ok(Message::Ping(ping)) = received.message() {
            let pong = Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us: machine_us() };
            if let Some(bytes) = frame(&pong) {
                let _ = sender.try_send(Lane::Control, bytes);
            }
        }
    }
}

fn instance(name: &str) -> InstanceInfo {
    InstanceInfo {
        name: name.into(),
        address: "127.0.0.1:9".into(),
        host: "benchmark".into(),
        incarnation: INCARNATION,
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: "m".into(), max_model_len: None, parent: None }],
        role: ServingRole::Both,
        transfer: None,
        dp_ranks: 1,
        block_size: None,
        kv_blocks: None,
        max_num_seqs: None,
        labels: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_begin_at_an_anchor_or_at_the_first_block() {
        let path = document(3, 5);
        assert_eq!(path.len(), DOCUMENT);
        assert_ne!(path, document(3, 6));
        assert!(above(&path, 0).is_empty());
        for at in 1..DOCUMENT {
            let above = above(&path, at);
            assert_eq!(above.last(), Some(&path[at - 1]));
            assert!(is_anchor(above[0]) || above[0] == path[0]);
            assert!(above[1..].iter().all(|block| !is_anchor(*block)));
        }
    }
}
