//! Local target slots and what they stand for.
//!
//! A gateway numbers its targets itself and translates the scheduler's ids when it applies an operation. A target is
//! the same target as long as (instance name, rank, engine incarnation) is: through a new epoch it keeps its local
//! slot, and only the translation changes. Until the new scheduler names it, it is *unconfirmed*: it has no remote id,
//! but is picked and counted as before.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_wire::limits::MAX_COUNT;
use fairlead_wire::msg::{InFlight, InstanceInfo};
use fairlead_wire::{Slot, TargetId};

use super::TargetState;
use super::account::History;
use super::costs::LocalCosts;

#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) id: TargetId,
    pub(crate) state: TargetState,
    pub(crate) info: Arc<InstanceInfo>,
    /// Packed id of the scheduler's current epoch.
    pub(crate) remote: Option<u32>,
    /// Comes from this gateway's own configuration, not from a scheduler.
    pub(crate) fixed: bool,
    /// What the scheduler was last told to be in flight here.
    pub(crate) told: InFlight,
    /// What is in flight here now, by this gateway.
    pub(crate) own: InFlight,
    /// On the list of those at which something is in flight.
    pub(crate) listed: bool,
    /// What the others have in flight here.
    pub(crate) peers: InFlight,
    /// This gateway's requests in flight over the last while.
    pub(crate) own_history: History,
    /// The others', by the time at which they became known here.
    pub(crate) peers_history: History,
    /// When the engine's last report was taken, this process's clock; 0 before the first.
    pub(crate) report_us: u64,
    /// What its work costs.
    pub(crate) costs: LocalCosts,
}

impl Local {
    /// Notes what this gateway has in flight here. Whether the number of requests has changed.
    pub(crate) fn sample(&mut self, own: InFlight, now_us: u64) -> bool {
        // Beyond what a message may say lies no real load.
        self.own = InFlight {
            target: 0,
            requests: own.requests.min(1 << 24),
            prefilling: own.prefilling.min(1 << 24),
            prefill_tokens: own.prefill_tokens.min(MAX_COUNT),
            prefill_us: own.prefill_us.min(MAX_COUNT),
            context_tokens: own.context_tokens.min(MAX_COUNT),
        };
        self.own_history.note(now_us, self.own.requests)
    }
}

#[derive(Debug)]
enum Place {
    Free,
    Used(Box<Local>),
    Cooling { since_us: u64 },
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    places: Vec<Place>,
    generations: Vec<u16>,
    by_remote: AHashMap<u32, Slot>,
    by_name: AHashMap<(Arc<str>, u16), Slot>,
    max_targets: usize,
}

impl Table {
    pub(crate) fn new(max_targets: usize) -> Self {
        Self { max_targets, ..Self::default() }
    }

    /// A slot for a new target; `None` when the table is full.
    pub(crate) fn add(
        &mut self,
        state: TargetState,
        info: Arc<InstanceInfo>,
        remote: Option<u32>,
    ) -> Option<TargetId> {
        let free = self.places.iter().position(|place| matches!(place, Place::Free));
        let slot = match free {
            Some(slot) => slot,
            None if self.places.len() < self.max_targets => {
                self.places.push(Place::Free);
                self.generations.push(0);
                self.places.len() - 1
            }
            None => return None,
        };
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        let id = TargetId::new(slot as Slot, self.generations[slot]);
        self.by_name.insert((info.name.as_str().into(), state.rank), id.slot);
        if let Some(remote) = remote {
            self.by_remote.insert(remote, id.slot);
        }
        self.places[slot] = Place::Used(Box::new(Local {
            id,
            state,
            info,
            remote,
            fixed: remote.is_none(),
            told: InFlight::default(),
            own: InFlight::default(),
            listed: false,
            peers: InFlight::default(),
            own_history: History::default(),
            peers_history: History::default(),
            report_us: 0,
            costs: LocalCosts::default(),
        }));
        Some(id)
    }

    /// Ends a target; its slot cools.
    pub(crate) fn remove(&mut self, slot: Slot, now_us: u64) -> Option<Box<Local>> {
        let place = self.places.get_mut(usize::from(slot))?;
        match std::mem::replace(place, Place::Cooling { since_us: now_us }) {
            Place::Used(local) => {
                if let Some(remote) = local.remote {
                    self.by_remote.remove(&remote);
                }
                let key = (Arc::from(local.info.name.as_str()), local.state.rank);
                if self.by_name.get(&key) == Some(&slot) {
                    self.by_name.remove(&key);
                }
                Some(local)
            }
            other => {
                *place = other;
                None
            }
        }
    }

    /// Gives the target its id of the current epoch.
    pub(crate) fn confirm(&mut self, slot: Slot, remote: u32) {
        if let Some(Place::Used(local)) = self.places.get_mut(usize::from(slot)) {
            if let Some(before) = local.remote.replace(remote) {
                self.by_remote.remove(&before);
            }
            local.fixed = false;
            // The new scheduler has been told nothing.
            local.told = InFlight::default();
            self.by_remote.insert(remote, slot);
        }
    }

    /// Forgets all remote ids: another epoch begins.
    pub(crate) fn unconfirm_all(&mut self) {
        self.by_remote.clear();
        for local in self.iter_mut() {
            local.remote = None;
            local.costs.of_before();
        }
    }

    pub(crate) fn by_remote(&self, packed: u32) -> Option<&Local> {
        self.by_remote.get(&packed).and_then(|&slot| self.get(slot))
    }

    pub(crate) fn by_name(&self, name: &str, rank: u16) -> Option<&Local> {
        self.by_name.get(&(Arc::from(name), rank)).and_then(|&slot| self.get(slot))
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Local> {
        match self.places.get(usize::from(slot)) {
            Some(Place::Used(local)) => Some(local),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Local> {
        match self.places.get_mut(usize::from(slot)) {
            Some(Place::Used(local)) => Some(local),
            _ => None,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Local> {
        self.places.iter().filter_map(|place| match place {
            Place::Used(local) => Some(&**local),
            _ => None,
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Local> {
        self.places.iter_mut().filter_map(|place| match place {
            Place::Used(local) => Some(&mut **local),
            _ => None,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Slots that are or were in use.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// Frees slots that have cooled long enough and on which `busy` finds no reservation; returns their ids.
    pub(crate) fn thaw(
        &mut self,
        now_us: u64,
        grace_us: u64,
        busy: impl Fn(TargetId) -> bool,
    ) -> Vec<TargetId> {
        let mut thawed = Vec::new();
        for (slot, place) in self.places.iter_mut().enumerate() {
            let id = TargetId::new(slot as Slot, self.generations[slot]);
            if let Place::Cooling { since_us } = *place
                && now_us.saturating_sub(since_us) >= grace_us
                && !busy(id)
            {
                *place = Place::Free;
                thawed.push(id);
            }
        }
        thawed
    }
}
