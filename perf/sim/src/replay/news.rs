//! What the gateways know of engines and of each other, and when they get to know it.
//!
//! The scheduler's index is the same in all gateways, and all hear of it after the same time, so there is one writer
//! and every gateway has a reader. News waits in order and is let through before every decision, so it costs no event
//! of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use fairlead_prefix::{Config, Reader, Writer};
use fairlead_routing::{EngineFigures, InFlightSums};
use fairlead_wire::TargetId;
use fairlead_wire::msg::ServingRole;

use super::workload::Workload;
use crate::model::CacheChange;

/// Something that gateways hear of.
#[derive(Debug)]
pub(super) enum News {
    /// An engine's figures at the end of a step.
    Figures { instance: usize, figures: EngineFigures },
    /// What became of its cache in that step.
    Cache { instance: usize, changes: Vec<CacheChange> },
    /// What a gateway has in flight at an instance.
    Peer { gateway: usize, instance: usize, sums: InFlightSums },
    /// The scheduler would rather have an instance play another part.
    Leaning { instance: usize, leaning: ServingRole },
    /// An instance has died, or has come back as a new target.
    Target { instance: usize, id: TargetId, ready: bool },
}

/// News on its way.
#[derive(Debug, Default)]
pub(super) struct Mail {
    queue: VecDeque<(u64, News)>,
    delay_us: u64,
}

impl Mail {
    pub fn new(delay_us: u64) -> Self {
        Self { queue: VecDeque::new(), delay_us }
    }

    pub fn send(&mut self, now_us: u64, news: News) {
        self.queue.push_back((now_us + self.delay_us, news));
    }

    /// The next news that has arrived, and when it did.
    pub fn take(&mut self, now_us: u64) -> Option<(u64, News)> {
        self.queue.front().filter(|(due, _)| *due <= now_us)?;
        self.queue.pop_front()
    }
}

/// The index of what the engines hold.
pub(super) struct Index {
    tree: Writer,
    workload: Arc<Workload>,
}

impl Index {
    /// Room for all blocks of any trace: it is bounded by the engines' caches.
    const BYTES: usize = 2 << 30;

    pub fn new(workload: Arc<Workload>, instances: usize) -> Self {
        let (tree, _) = fairlead_prefix::new(config(instances));
        Self { tree, workload }
    }

    pub fn reader(&self) -> Reader {
        self.tree.reader()
    }

    /// A new tenant of the slot; what the old one held is dropped.
    pub fn bind(&mut self, id: TargetId) {
        // Slots are below the bound that the tree was made for.
        let _ = self.tree.bind(id);
    }

    pub fn drop_target(&mut self, id: TargetId) {
        self.tree.drop_target(id.slot);
    }

    /// Applies what became of a target's cache.
    pub fn apply(&mut self, target: TargetId, changes: &[CacheChange], now_us: u64) {
        let Self { tree, workload } = self;
        // An engine evicts the tail of a path first, block by block; those that follow one another go at once.
        let mut tail: Option<(&[u64], usize)> = None;
        for change in changes {
            if let CacheChange::Removed(block) = change {
                if let Some((path, keep)) = &mut tail
                    && *keep > 0
                    && path[*keep - 1] == *block
                {
                    *keep -= 1;
                    continue;
                }
                remove(tree, target, tail.take());
                tail = workload.path_of(*block).map(|(path, at)| (&path[..=at], at));
                continue;
            }
            remove(tree, target, tail.take());
            match change {
                CacheChange::Stored { path, blocks, .. } => {
                    tree.place(target, &path[..blocks.end], now_us);
                }
                CacheChange::Cleared => tree.clear(target.slot),
                CacheChange::Removed(_) => {}
            }
        }
        remove(tree, target, tail);
    }
}

fn remove(tree: &mut Writer, target: TargetId, tail: Option<(&[u64], usize)>) {
    if let Some((path, keep)) = tail {
        tree.remove_path_tail(target, path, keep as u32);
    }
}

pub(super) fn config(instances: usize) -> Config {
    Config { max_bytes: Index::BYTES, max_targets: instances, locate: false }
}
