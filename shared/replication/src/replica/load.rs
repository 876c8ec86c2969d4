//! Load: engines' reports and the other gateways' reservations in, this gateway's reservations out.

use ahash::{AHashMap, AHashSet};
use fairlead_wire::limits::{MAX_COUNT, MAX_TARGETS};
use fairlead_wire::msg::{InFlight, LoadUpdate, PeerLoad, RankLoad};
use fairlead_wire::{Slot, TargetId};

use super::account::foreign;
use super::{EngineView, Replica, ReplicaSink, ReservationSource};

/// Least interval between two samples of this gateway's reservations, microseconds, for each 1,024 targets.
const SAMPLE_US: u64 = 1_000;

/// What is known of other parties' load, by the scheduler's packed ids: load may come before the operation that names
/// its target.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    engines: AHashMap<u32, RankLoad>,
    /// By session number, then target: version and figures. A zero is kept, so that an older message that arrives
    /// late is known to be older.
    gateways: AHashMap<u32, AHashMap<u32, (u64, InFlight)>>,
}

impl Peers {
    pub(crate) fn len(&self) -> usize {
        self.gateways.len()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn forget_target(&mut self, remote: u32) {
        self.engines.remove(&remote);
        for entries in self.gateways.values_mut() {
            entries.remove(&remote);
        }
    }

    fn engine(&mut self, remote: u32, load: RankLoad) -> bool {
        match self.engines.get(&remote) {
            Some(before) if before.taken_us > load.taken_us => return false,
            None if self.engines.len() >= 2 * MAX_TARGETS => return false,
            _ => {}
        }
        self.engines.insert(remote, load);
        true
    }

    /// Takes one gateway's figures; returns the targets touched.
    fn gateway(&mut self, peer: &PeerLoad, touched: &mut AHashSet<u32>) {
        let entries = self.gateways.entry(peer.gateway).or_default();
        if peer.full {
            let listed: AHashSet<u32> = peer.targets.iter().map(|entry| entry.target).collect();
            for (target, (version, figures)) in entries.iter_mut() {
                if *version <= peer.version && !listed.contains(target) {
                    (*version, *figures) =
                        (peer.version, InFlight { target: *target, ..InFlight::default() });
                    touched.insert(*target);
                }
            }
        }
        for figures in &peer.targets {
            let crowded = entries.len() >= 2 * MAX_TARGETS;
            match entries.get_mut(&figures.target) {
                Some((version, _)) if *version > peer.version => continue,
                Some(entry) => *entry = (peer.version, *figures),
                None if crowded => continue,
                None => {
                    entries.insert(figures.target, (peer.version, *figures));
                }
            }
            touched.insert(figures.target);
        }
    }

    fn end(&mut self, number: u32, touched: &mut AHashSet<u32>) {
        if let Some(entries) = self.gateways.remove(&number) {
            touched.extend(entries.into_keys());
        }
    }

    fn sum(&self, remote: u32) -> InFlight {
        let mut sum = InFlight::default();
        for (_, figures) in self.gateways.values().filter_map(|entries| entries.get(&remote)) {
            sum.requests = sum.requests.saturating_add(figures.requests);
            sum.prefilling = sum.prefilling.saturating_add(figures.prefilling);
            sum.prefill_tokens = sum.prefill_tokens.saturating_add(figures.prefill_tokens);
            sum.context_tokens = sum.context_tokens.saturating_add(figures.context_tokens);
        }
        sum
    }
}

impl<S: ReplicaSink + ReservationSource> Replica<S> {
    pub(super) fn load_update(&mut self, update: LoadUpdate, created_us: u64) {
        let mut touched = AHashSet::new();
        for number in &update.gone {
            self.peers.end(*number, &mut touched);
        }
        for peer in &update.gateways {
            self.peers.gateway(peer, &mut touched);
        }
        let mut first = false;
        if let Some(live) = &update.live
            && let Some(link) = &mut self.link
            && created_us >= link.live_us
        {
            link.live_us = created_us;
            first = !std::mem::replace(&mut link.peers_known, true);
            let ended: Vec<u32> =
                self.peers.gateways.keys().filter(|number| !live.contains(number)).copied().collect();
            for number in ended {
                self.peers.end(number, &mut touched);
            }
        }
        if first {
            // What was known through an earlier link is replaced as a whole.
            let all: Vec<Slot> = self.table.iter().map(|local| local.id.slot).collect();
            for slot in all {
                self.show_peers(slot);
            }
        } else {
            for remote in touched {
                if let Some(slot) = self.table.by_remote(remote).map(|local| local.id.slot) {
                    self.show_peers(slot);
                }
            }
        }
        for engine in update.engines {
            if self.peers.engine(engine.target, engine.load)
                && let Some(slot) = self.table.by_remote(engine.target).map(|local| local.id.slot)
            {
                self.show_engine(slot);
            }
        }
    }

    /// Shows a target's load when the target has just been named.
    pub(super) fn show_load(&mut self, slot: Slot) {
        if self.link.as_ref().is_some_and(|link| link.peers_known) {
            self.show_peers(slot);
        }
        self.show_engine(slot);
    }

    fn show_peers(&mut self, slot: Slot) {
        let Some(local) = self.table.get_mut(slot) else { return };
        let sum = local.remote.map_or(InFlight::default(), |remote| self.peers.sum(remote));
        let sum = InFlight { target: local.id.pack(), ..sum };
        if sum != local.peers {
            local.peers = sum;
            local.history.note(self.now_us, local.own.requests.saturating_add(sum.requests));
            self.sink.peer_load(local.id, &sum);
        }
    }

    fn show_engine(&mut self, slot: Slot) {
        let Some(local) = self.table.get(slot) else { return };
        let Some(mut load) = local.remote.and_then(|remote| self.peers.engines.get(&remote)).copied() else {
            return;
        };
        let clock = self.link.as_ref().and_then(|link| link.clock.to_local(load.taken_us));
        // Before the first pong the clocks cannot be compared; now is the best bound there is.
        load.taken_us = clock.unwrap_or(self.now_us).min(self.now_us);
        let foreign_requests = foreign(&load, local.history.at(load.taken_us));
        self.sink.engine_load(local.id, &EngineView { load, foreign_requests });
    }

    /// Reads this gateway's reservations.
    pub(super) fn sample(&mut self) {
        let now_us = self.now_us;
        self.next_sample_us = now_us + SAMPLE_US * (1 + self.table.len() as u64 / 1_024);
        for local in self.table.iter_mut() {
            let own = self.sink.in_flight(local.id);
            // Beyond what a message may say lies no real load.
            local.own = InFlight {
                target: 0,
                requests: own.requests.min(1 << 24),
                prefilling: own.prefilling.min(1 << 24),
                prefill_tokens: own.prefill_tokens.min(MAX_COUNT),
                context_tokens: own.context_tokens.min(MAX_COUNT),
            };
            local.history.note(now_us, local.own.requests.saturating_add(local.peers.requests));
            self.load_dirty |= local.own != local.told && local.remote.is_some();
        }
        if let Some(link) = &mut self.link
            && now_us >= link.next_full_us
        {
            link.next_full_us = now_us + link.heartbeat_us;
            link.full_load = true;
        }
    }

    /// Reservations to tell the scheduler; `None` when nothing changed.
    pub(super) fn own_load(&mut self, full: bool) -> Option<Vec<InFlight>> {
        if !full && !self.load_dirty {
            return None;
        }
        self.load_dirty = false;
        let mut targets = Vec::new();
        for local in self.table.iter_mut() {
            let Some(remote) = local.remote else { continue };
            let changed = local.told != local.own;
            if (full && local.own != InFlight::default()) || (!full && changed) {
                targets.push(InFlight { target: remote, ..local.own });
            }
            local.told = local.own;
        }
        (full || !targets.is_empty()).then_some(targets)
    }

    /// The target's id in the linked epoch.
    pub(super) fn remote_of(&self, target: TargetId) -> Option<u32> {
        self.table.get(target.slot).filter(|local| local.id == target)?.remote
    }
}
