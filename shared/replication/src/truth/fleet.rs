//! Instances and their target slots.
//!
//! A slot is live, cooling or free. It cools after its target is gone until no gateway reports a reservation on it and
//! a grace has passed; only then does it take a new target, with the next generation.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{CacheSource, InstanceInfo, RankLoad, ServingRole, TargetInfo};

use super::capacity::Capacity;
use super::costs::Known;
use crate::SessionId;

/// A live target.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) id: TargetId,
    pub(crate) rank: u16,
    pub(crate) ready: bool,
    pub(crate) info: Arc<InstanceInfo>,
    /// Last report, `taken_us` in the scheduler's clock.
    pub(crate) load: Option<RankLoad>,
    /// Where the index learns what it holds.
    pub(crate) cache: CacheSource,
    /// The agent's session that told its last KV-cache events.
    pub(crate) events_from: Option<SessionId>,
    /// Events could not be entered, or holdings were trimmed, since the last full dump.
    pub(crate) incomplete: bool,
    /// How much it is believed to hold by placements.
    pub(crate) capacity: Capacity,
    /// What its work costs.
    pub(crate) costs: Known,
    /// The pool that it is in, by number.
    pub(crate) pool: Option<u16>,
    /// The part that it should rather play.
    pub(crate) leaning: ServingRole,
}

impl Target {
    /// KV room of the engine, tokens, if it tells.
    pub(crate) fn kv_tokens(&self) -> Option<u64> {
        let blocks = self.info.kv_blocks.zip(self.info.block_size);
        let told = blocks.map(|(blocks, size)| blocks.saturating_mul(u64::from(size)));
        told.or(self.load.and_then(|load| load.kv_total_tokens)).filter(|tokens| *tokens > 0)
    }

    pub(crate) fn describe(&self) -> TargetInfo {
        TargetInfo {
            target: self.id.pack(),
            rank: self.rank,
            ready: self.ready,
            cache: self.cache,
            costs: self.costs.told(),
            leaning: self.leaning,
            instance: (*self.info).clone(),
        }
    }
}

#[derive(Debug)]
enum Slot {
    Free,
    Live(Box<Target>),
    Cooling { since_us: u64 },
}

/// A registered instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) info: Arc<InstanceInfo>,
    /// Slots by rank.
    pub(crate) slots: Vec<u16>,
    /// Whether its targets may be picked.
    pub(crate) ready: bool,
    /// The agent that speaks for it.
    pub(crate) agent: Option<SessionId>,
    /// Since when it does.
    pub(crate) agent_since_us: u64,
    /// Since when no agent does.
    pub(crate) orphaned_us: u64,
}

impl Instance {
    /// Whether `info` speaks of this same start of the engine.
    pub(crate) fn is(&self, info: &InstanceInfo) -> bool {
        self.info.incarnation == info.incarnation && self.info.dp_ranks == info.dp_ranks
    }
}

#[derive(Debug, Default)]
pub(crate) struct Fleet {
    slots: Vec<Slot>,
    generations: Vec<u16>,
    pub(crate) instances: AHashMap<Arc<str>, Instance>,
    max_targets: usize,
}

impl Fleet {
    pub(crate) fn new(max_targets: usize) -> Self {
        Self { max_targets, ..Self::default() }
    }

    /// Takes `count` slots for the ranks of an instance, of which so much is known, or none when there are not enough.
    pub(crate) fn admit(
        &mut self,
        info: &Arc<InstanceInfo>,
        count: u16,
        costs: &Known,
    ) -> Option<Vec<TargetId>> {
        let mut free: Vec<u16> = Vec::with_capacity(count.into());
        for (slot, state) in self.slots.iter().enumerate() {
            if free.len() == usize::from(count) {
                break;
            }
            if matches!(state, Slot::Free) {
                free.push(slot as u16);
            }
        }
        let missing = usize::from(count) - free.len();
        if self.slots.len() + missing > self.max_targets {
            return None;
        }
        for _ in 0..missing {
            free.push(self.slots.len() as u16);
            self.slots.push(Slot::Free);
            self.generations.push(0);
        }
        let ids = free.iter().enumerate().map(|(rank, &slot)| {
            let generation = &mut self.generations[usize::from(slot)];
            *generation = generation.wrapping_add(1);
            let id = TargetId::new(slot, *generation);
            let target = Target {
                id,
                rank: rank as u16,
                ready: true,
                info: info.clone(),
                load: None,
                cache: CacheSource::Placements,
                events_from: None,
                incomplete: false,
                capacity: Capacity::default(),
                costs: costs.clone(),
                pool: None,
                leaning: ServingRole::Both,
            };
            self.slots[usize::from(slot)] = Slot::Live(Box::new(target));
            id
        });
        Some(ids.collect())
    }

    /// Ends a target; its slot cools.
    pub(crate) fn retire(&mut self, slot: u16, now_us: u64) -> Option<Target> {
        let state = self.slots.get_mut(usize::from(slot))?;
        match std::mem::replace(state, Slot::Cooling { since_us: now_us }) {
            Slot::Live(target) => Some(*target),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Frees the slots that have cooled for `grace_us` and on which `busy` finds no reservation.
    pub(crate) fn thaw(&mut self, now_us: u64, grace_us: u64, busy: impl Fn(TargetId) -> bool) {
        for (slot, state) in self.slots.iter_mut().enumerate() {
            if let Slot::Cooling { since_us } = *state
                && now_us.saturating_sub(since_us) >= grace_us
                && !busy(TargetId::new(slot as u16, self.generations[slot]))
            {
                *state = Slot::Free;
            }
        }
    }

    /// The target of that id, if it is live.
    pub(crate) fn get(&self, id: TargetId) -> Option<&Target> {
        self.at(id.slot).filter(|target| target.id == id)
    }

    /// See [`Fleet::get`].
    pub(crate) fn get_mut(&mut self, id: TargetId) -> Option<&mut Target> {
        self.at_mut(id.slot).filter(|target| target.id == id)
    }

    /// Whether the id names the present or last tenant of its slot.
    pub(crate) fn knows(&self, id: TargetId) -> bool {
        match self.slots.get(usize::from(id.slot)) {
            Some(Slot::Live(_) | Slot::Cooling { .. }) => {
                self.generations[usize::from(id.slot)] == id.generation
            }
            _ => false,
        }
    }

    /// The live target of a slot.
    pub(crate) fn at(&self, slot: u16) -> Option<&Target> {
        match self.slots.get(usize::from(slot)) {
            Some(Slot::Live(target)) => Some(target),
            _ => None,
        }
    }

    pub(crate) fn at_mut(&mut self, slot: u16) -> Option<&mut Target> {
        match self.slots.get_mut(usize::from(slot)) {
            Some(Slot::Live(target)) => Some(target),
            _ => None,
        }
    }

    /// See [`Fleet::live`].
    pub(crate) fn live_mut(&mut self) -> impl Iterator<Item = &mut Target> {
        self.slots.iter_mut().filter_map(|slot| match slot {
            Slot::Live(target) => Some(&mut **target),
            _ => None,
        })
    }

    /// All live targets, by slot.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Target> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Live(target) => Some(&**target),
            _ => None,
        })
    }
}
