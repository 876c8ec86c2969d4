//! KV-cache events as the engines publish them: a numbered batch for each step that changed the cache, over a ZeroMQ
//! PUB socket, with a ROUTER socket from which the last batches can be asked for again.
//!
//! Block hashes are the simulator's own chained hashes; token ids are those of [`crate::prompt::token_ids`].

mod encode;
mod publish;

pub(crate) use encode::Writer;
pub(crate) use publish::{Sockets, run};

use crate::faults::Faults;
use crate::model::CacheChange;
use crate::options::{EngineKind, KvEncoding};
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use tokio::sync::Notify;

/// Most bytes kept for those who ask again; beyond, the oldest batches go.
const MAX_KEPT: usize = 256 << 20;

/// What names the prompt of a sequence apart from its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Token ids of the prompt.
    pub tokens: Vec<u32>,
    /// `cache_salt` of the request, empty for none.
    pub salt: String,
    /// Served name of the adapter, empty for the base model.
    pub lora: String,
}

/// One numbered batch.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub seq: u64,
    pub payload: Bytes,
    /// Never published: only who asks gets it.
    pub withheld: bool,
}

/// The batches of one engine, from the first one that is still kept.
#[derive(Debug)]
pub(crate) struct EventLog {
    ring: Mutex<Ring>,
    work: Notify,
    writer: Writer,
    pub told: Told,
}

/// What the engine tells about its events.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub events: SocketAddr,
    pub replay: Option<SocketAddr>,
    pub topic: String,
    pub kept: usize,
}

#[derive(Debug)]
struct Ring {
    next: u64,
    records: VecDeque<Record>,
    bytes: usize,
    withheld: u64,
}

impl EventLog {
    pub fn new(kind: EngineKind, encoding: KvEncoding, block_tokens: u32, told: Told) -> Self {
        Self {
            ring: Mutex::new(Ring { next: 0, records: VecDeque::new(), bytes: 0, withheld: 0 }),
            work: Notify::new(),
            writer: Writer { kind, encoding, block_tokens },
            told,
        }
    }

    /// Numbers a batch of changes, if there are any, and hands it to the publisher. Faults may hold it back.
    pub fn batch(&self, time: f64, changes: &[CacheChange], faults: &mut Faults) {
        if changes.is_empty() {
            return;
        }
        let payload = Bytes::from(self.writer.batch(time, changes));
        let withheld = faults.take_event_batch();
        let mut ring = crate::engine::lock(&self.ring);
        let seq = ring.next;
        ring.next += 1;
        ring.withheld += u64::from(withheld);
        if !(withheld && faults.forget_events) {
            ring.bytes += payload.len();
            ring.records.push_back(Record { seq, payload, withheld });
        }
        while ring.records.len() > self.told.kept || ring.bytes > MAX_KEPT {
            let Some(old) = ring.records.pop_front() else { break };
            ring.bytes -= old.payload.len();
        }
        drop(ring);
        self.work.notify_one();
    }

    /// Batches numbered so far, and those of them that were held back.
    pub fn counts(&self) -> (u64, u64) {
        let ring = crate::engine::lock(&self.ring);
        (ring.next, ring.withheld)
    }

    /// Up to `most` kept batches from number `from` on, and the number after the last one looked at.
    pub fn since(&self, from: u64, most: usize) -> (Vec<Record>, u64) {
        let ring = crate::engine::lock(&self.ring);
        let start = ring.records.partition_point(|r| r.seq < from);
        let found: Vec<Record> = ring.records.range(start..).take(most).cloned().collect();
        let next = match found.last() {
            Some(last) if found.len() == most => last.seq + 1,
            _ => ring.next,
        };
        (found, next)
    }

    async fn changed(&self) {
        self.work.notified().await;
    }

    /// Whether records are framed without their topic, as engines of the positional form do.
    fn old_framing(&self) -> bool {
        self.writer.encoding == KvEncoding::Array
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
