//! What changes the index: in the order in which it came, and never while a snapshot is being encoded.
//!
//! While the index stands still, inputs wait here. Afterwards they are done a bounded amount per [`Truth::tick`], and
//! whatever comes meanwhile queues up behind them. Beyond [`TruthConfig::hold_bytes`](super::TruthConfig) the snapshot is
//! encoded to its end and all inputs are done in one go: nothing that was said is ever left out.

use std::collections::VecDeque;
use std::sync::Arc;

use fairlead_wire::TargetId;
use fairlead_wire::msg::{
    CacheEvents, CacheOp, CacheSource, HashSpace, InstanceInfo, Op, Placement, Recollection, Report,
};

use super::Truth;
use crate::SessionId;

/// Something that changes the index.
pub(super) enum Input {
    /// An agent says what it watches.
    Register { session: SessionId, info: Box<InstanceInfo> },
    /// An agent's report that came while its registration was waiting.
    Report { session: SessionId, report: Report },
    /// An agent says what its engine's cache holds.
    Events { session: SessionId, events: CacheEvents },
    /// A gateway says what it has sent where.
    Place(Vec<Placement>),
    /// A gateway says what it remembers of the epoch before.
    Recollect(Recollection),
    /// Part of what gateways remembered of an instance that has just registered.
    Recall { id: TargetId, path: Vec<u64> },
}

impl Input {
    fn size(&self) -> usize {
        let hashes = match self {
            Self::Register { .. } | Self::Report { .. } => 256,
            Self::Place(items) => items.iter().map(|item| 8 + item.path.len()).sum(),
            Self::Recollect(told) => told.paths.iter().map(|path| 4 + path.len()).sum(),
            Self::Recall { path, .. } => path.len(),
            Self::Events { events, .. } => {
                let of = |op: &CacheOp| match op {
                    CacheOp::Store { above, blocks } | CacheOp::Remove { above, blocks } => {
                        8 + above.len() + blocks.len()
                    }
                    CacheOp::Clear => 1,
                };
                events.ops.iter().map(of).sum()
            }
        };
        64 + hashes * 8
    }
}

/// Inputs that wait.
#[derive(Default)]
pub(super) struct Waiting {
    inputs: VecDeque<(Input, usize)>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, input: Input) {
        let size = input.size();
        self.bytes += size;
        self.inputs.push_back((input, size));
    }

    fn pop(&mut self) -> Option<(Input, usize)> {
        let (input, size) = self.inputs.pop_front()?;
        self.bytes -= size;
        Some((input, size))
    }
}

impl Truth {
    /// Does `input` now, or when its turn comes.
    pub(super) fn take(&mut self, input: Input) {
        if self.building.is_none() && self.waiting.is_empty() {
            return self.enter(input);
        }
        self.waiting.push(input);
        if self.waiting.bytes > self.config.hold_bytes {
            self.stats.holds_cut += 1;
            while self.building.is_some() {
                self.build_chunk();
            }
            while let Some((input, _)) = self.waiting.pop() {
                self.enter(input);
            }
        }
    }

    /// A bounded part of what waits: the snapshot under way first, then the inputs.
    pub(super) fn catch_up(&mut self) {
        if self.building.is_some() {
            return self.build_chunk();
        }
        let mut left = self.config.step_bytes;
        while left > 0
            && let Some((input, size)) = self.waiting.pop()
        {
            left = left.saturating_sub(size);
            self.enter(input);
        }
    }

    /// Whether the index may be changed out of turn.
    pub(super) fn is_caught_up(&self) -> bool {
        self.building.is_none() && self.waiting.is_empty()
    }

    fn enter(&mut self, input: Input) {
        match input {
            Input::Register { session, info } => self.register(session, *info),
            Input::Report { session, report } => self.report(session, report),
            Input::Events { session, events } => self.events(session, events),
            Input::Place(items) => self.place(&items),
            Input::Recollect(told) => self.recollect(told),
            // Its agent may have told what it really holds while this was waiting.
            Input::Recall { id, path } => {
                if !self.is_exact(id) {
                    self.place_one(id, &path);
                }
            }
        }
        self.keep_budget();
    }

    fn place(&mut self, items: &[Placement]) {
        for item in items {
            let id = TargetId::unpack(item.target);
            let Some(target) = self.fleet.get(id) else {
                self.stats.placements_ignored += 1;
                continue;
            };
            self.stats.placements += 1;
            let exact = target.cache != CacheSource::Placements && item.space == HashSpace::Tokens;
            match item.keep {
                // What it holds is known from its engine; the placement says only what is in use.
                None if exact => self.touch(id, &item.path),
                Some(_) if exact => {}
                None => self.place_one(id, &item.path),
                Some(keep) => {
                    for op in self.index.remove_path_tail(id, &item.path, keep) {
                        self.push(Op::Index(op));
                    }
                }
            }
        }
    }

    /// Notes the use of what a target is known to hold of a path.
    fn touch(&mut self, id: TargetId, path: &[u64]) {
        self.reader.lookup(path, &mut self.hits);
        let depth = self.hits.get(id.slot) as usize;
        if depth > 0
            && let Some(op) = self.index.place(id, &path[..depth], self.now_us)
        {
            self.push(Op::Index(op));
        }
    }

    fn recollect(&mut self, told: Recollection) {
        if self.now_us >= self.recollect_until_us {
            self.stats.recollections_dropped += told.paths.len() as u64;
            return;
        }
        let name: Arc<str> = told.instance.as_str().into();
        match self.fleet.instances.get(&name) {
            Some(known) if known.info.incarnation == told.incarnation => {
                let Some(id) = self.rank_of(&name, told.rank) else { return };
                if self.is_exact(id) {
                    // The engine itself says what it holds; a memory of it may be out of date.
                    return;
                }
                for path in &told.paths {
                    self.place_one(id, path);
                }
            }
            // Another incarnation has an empty cache: what was known of the old one is void.
            Some(_) => {}
            None if self.settled => {}
            None => self.recollections.keep(told),
        }
    }

    /// Puts what gateways remember of an instance that has just registered in the queue, and does a first part of it.
    pub(super) fn recall(&mut self, name: &Arc<str>, info: &InstanceInfo) {
        let at_once = self.is_caught_up();
        for rank in 0..info.dp_ranks {
            let Some(id) = self.rank_of(name, rank) else { continue };
            for path in self.recollections.take(name, rank, info.incarnation) {
                self.waiting.push(Input::Recall { id, path });
            }
        }
        if at_once {
            self.catch_up();
        }
    }

    fn rank_of(&self, name: &Arc<str>, rank: u16) -> Option<TargetId> {
        let slot = *self.fleet.instances.get(name)?.slots.get(usize::from(rank))?;
        self.fleet.at(slot).map(|target| target.id)
    }

    fn is_exact(&self, id: TargetId) -> bool {
        self.fleet.get(id).is_some_and(|target| target.cache != CacheSource::Placements)
    }

    fn place_one(&mut self, id: TargetId, path: &[u64]) {
        let Some(op) = self.index.place(id, path, self.now_us) else { return };
        self.push(Op::Index(op));
        self.trim(id);
    }
}
