//! NVIDIA Dynamo's index behind our benchmark's traits.

use std::sync::Arc;

use anyhow::Context as _;
use dynamo_kv_router::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::indexer::{KvIndexerInterface, SyncIndexer, ThreadPoolIndexer};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent, WorkerWithDpRank,
};
use fairlead_bench::blocks::BLOCK_TOKENS;
use fairlead_bench::programs::index::subject::{Probe, Subject};

type Tree = ConcurrentRadixTreeCompressed;

/// Events handed over before the queue is waited for: it has no bound of its own.
const QUEUE: u64 = 2000;

/// The index with its event thread.
pub struct Dynamo {
    indexer: ThreadPoolIndexer<Tree>,
    runtime: tokio::runtime::Runtime,
    events: u64,
}

impl Dynamo {
    /// An empty index.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().context("runtime")?;
        let indexer = {
            let _entered = runtime.enter();
            ThreadPoolIndexer::new(Tree::new(), 1, BLOCK_TOKENS)
        };
        Ok(Self { indexer, runtime, events: 0 })
    }

    fn send(&mut self, target: u16, data: KvCacheEventData) {
        self.events += 1;
        let event = KvCacheEvent { event_id: self.events, data, dp_rank: 0 };
        self.runtime.block_on(self.indexer.apply_event(RouterEvent::new(u64::from(target), event)));
        if self.events.is_multiple_of(QUEUE) {
            self.drain();
        }
    }

    fn store(&mut self, target: u16, parent: Option<u64>, blocks: &[u64]) {
        let blocks = blocks.iter().map(|block| KvCacheStoredBlockData {
            block_hash: ExternalSequenceBlockHash(*block),
            tokens_hash: LocalBlockHash(*block),
            mm_extra_info: None,
        });
        let parent_hash = parent.map(ExternalSequenceBlockHash);
        let data = KvCacheStoreData { parent_hash, start_position: None, blocks: blocks.collect() };
        self.send(target, KvCacheEventData::Stored(data));
    }

    fn evict(&mut self, target: u16, blocks: &[u64]) {
        // An engine forgets the end of a path first.
        let block_hashes = blocks.iter().rev().map(|block| ExternalSequenceBlockHash(*block)).collect();
        self.send(target, KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }));
    }
}

impl Subject for Dynamo {
    type Probe = DynamoProbe;

    fn name(&self) -> &'static str {
        "dynamo-kv-router 1.6.1"
    }

    fn place(&mut self, target: u16, path: &[u64]) {
        self.store(target, None, path);
    }

    fn append(&mut self, target: u16, above: &[u64], block: u64) {
        self.store(target, above.last().copied(), &[block]);
    }

    fn take(&mut self, target: u16, _above: &[u64], block: u64) {
        self.evict(target, &[block]);
    }

    fn remove(&mut self, target: u16, path: &[u64], keep: usize) {
        self.evict(target, &path[keep.min(path.len())..]);
    }

    fn drain(&mut self) {
        self.runtime.block_on(self.indexer.flush());
    }

    fn probe(&self) -> DynamoProbe {
        let tree = self.indexer.backend_arc();
        DynamoProbe { tree, sequence: Vec::with_capacity(4096), scores: OverlapScores::new() }
    }
}

/// A reader with its answer.
pub struct DynamoProbe {
    tree: Arc<Tree>,
    sequence: Vec<LocalBlockHash>,
    scores: OverlapScores,
}

impl Probe for DynamoProbe {
    fn lookup(&mut self, path: &[u64]) {
        self.sequence.clear();
        self.sequence.extend(path.iter().map(|block| LocalBlockHash(*block)));
        self.scores = self.tree.find_matches(&self.sequence, false);
    }

    fn depth(&self, target: u16) -> u32 {
        let worker = WorkerWithDpRank::from_worker_id(u64::from(target));
        self.scores.scores.get(&worker).copied().unwrap_or(0)
    }
}
