//! Load: engines' reports and the other gateways' reservations in, this gateway's reservations out.

use ahash::{AHashMap, AHashSet};
use fairlead_wire::limits::MAX_TARGETS;
use fairlead_wire::msg::{InFlight, LoadUpdate, PeerLoad, RankLoad};
use fairlead_wire::{Slot, TargetId};

use super::account::foreign;
use super::{EngineView, Replica, ReplicaSink, ReservationSource};

/// Least interval between two samples of this gateway's reservations, microseconds, for each 1,024 targets.
const SAMPLE_US: u64 = 1_000;
/// Targets sampled in turn, beside those at which something is in flight. Of the others a placement tells when a request
/// goes there ([`Replica::place`]); their turn is for those whose placement found no room in the shards' queue.
const IN_TURN: usize = 64;

/// What is known of other parties' load, by the scheduler's packed ids: load may come before the operation that names
/// its target.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    engines: AHashMap<u32, RankLoad>,
    /// By session number.
    gateways: AHashMap<u32, Peer>,
}

/// One other gateway.
#[derive(Debug, Default)]
struct Peer {
    /// By target: version and figures. A zero is kept, so that an older message that arrives late is known to be older.
    entries: AHashMap<u32, (u64, InFlight)>,
    /// Newest full message: nothing older counts, whatever the target.
    full: u64,
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
        for peer in self.gateways.values_mut() {
            peer.entries.remove(&remote);
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
        let Peer { entries, full } = self.gateways.entry(peer.gateway).or_default();
        if peer.version < *full {
            return;
        }
        if peer.full {
            *full = peer.version;
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
        if let Some(peer) = self.gateways.remove(&number) {
            touched.extend(peer.entries.into_keys());
        }
    }

    fn sum(&self, remote: u32) -> InFlight {
        let mut sum = InFlight::default();
        for (_, figures) in self.gateways.values().filter_map(|peer| peer.entries.get(&remote)) {
            sum.requests = sum.requests.saturating_add(figures.requests);
            sum.prefilling = sum.prefilling.saturating_add(figures.prefilling);
            sum.prefill_tokens = sum.prefill_tokens.saturating_add(figures.prefill_tokens);
            sum.prefill_us = sum.prefill_us.saturating_add(figures.prefill_us);
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
            local.peers_history.note(self.now_us, sum.requests);
            self.sink.peer_load(local.id, &sum, self.now_us);
            self.look_again(slot);
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
        let peers = local.peers_history.at(load.taken_us.saturating_add(self.news_age_us()));
        let then = local.own_history.at(load.taken_us).saturating_add(peers);
        let view = EngineView { load, foreign_requests: foreign(&load, then) };
        self.sink.engine_load(local.id, &view);
        if let Some(local) = self.table.get_mut(slot) {
            local.report_us = load.taken_us;
        }
    }

    /// How old news of the other gateways is when it arrives, microseconds: they tell at most once an interval, and it
    /// takes a trip to the scheduler and one from there.
    fn news_age_us(&self) -> u64 {
        let trip = self.link.as_ref().and_then(|link| link.clock.round_trip_us()).unwrap_or(0);
        trip.saturating_add(self.config.load_us)
    }

    /// What is in flight has changed: the engine's report is looked at again if it is so new that the change may speak
    /// of its time.
    fn look_again(&mut self, slot: Slot) {
        let reach_us = 2 * self.news_age_us();
        let recent = |report_us: u64| report_us > 0 && report_us.saturating_add(reach_us) >= self.now_us;
        if self.table.get(slot).is_some_and(|local| recent(local.report_us)) {
            self.show_engine(slot);
        }
    }

    /// Reads this gateway's reservations.
    pub(super) fn sample(&mut self) {
        let now_us = self.now_us;
        self.next_sample_us = now_us + SAMPLE_US * (1 + self.table.len() as u64 / 1_024);
        let mut busy = std::mem::take(&mut self.busy);
        busy.retain(|&slot| {
            // A target that is new in the slot of one that was busy is not on the list by itself.
            let listed = self.table.get(slot).is_some_and(|local| local.listed);
            let stays = listed && self.read_reservations(slot);
            if let Some(local) = self.table.get_mut(slot) {
                local.listed = stays;
            }
            stays
        });
        self.busy = busy;
        let places = self.table.places();
        for _ in 0..IN_TURN.min(places) {
            self.turn = if self.turn + 1 < places { self.turn + 1 } else { 0 };
            let slot = self.turn as Slot;
            if self.table.get(slot).is_some_and(|local| !local.listed) {
                self.sample_one(slot);
            }
        }
        self.loaded = !self.busy.is_empty();
        if let Some(link) = &mut self.link
            && now_us >= link.next_full_us
        {
            link.next_full_us = now_us + link.heartbeat_us;
            link.full_load = true;
        }
    }

    /// Reads this gateway's reservations at one target, and has it read again for as long as something is in flight.
    pub(super) fn sample_one(&mut self, slot: Slot) {
        if !self.read_reservations(slot) {
            return;
        }
        self.loaded = true;
        if let Some(local) = self.table.get_mut(slot)
            && !std::mem::replace(&mut local.listed, true)
        {
            self.busy.push(slot);
        }
    }

    /// Reads this gateway's reservations at one target. Whether something is in flight.
    fn read_reservations(&mut self, slot: Slot) -> bool {
        let now_us = self.now_us;
        let Some(local) = self.table.get_mut(slot) else { return false };
        let changed = local.sample(self.sink.in_flight(local.id), now_us);
        let busy = local.own != InFlight::default();
        self.load_dirty |= local.own != local.told && local.remote.is_some();
        if changed {
            self.look_again(slot);
        }
        busy
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

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(gateway: u32, version: u64, full: bool, targets: &[(u32, u32)]) -> PeerLoad {
        let figures = |&(target, requests)| InFlight { target, requests, ..InFlight::default() };
        PeerLoad { gateway, version, full, targets: targets.iter().map(figures).collect() }
    }

    #[test]
    fn the_newest_figures_win_in_whatever_order_they_come() {
        let sent = [
            peer(1, 1, true, &[(7, 3)]),
            peer(1, 2, false, &[(7, 4), (8, 1)]),
            peer(2, 5, false, &[(7, 10)]),
            peer(1, 3, false, &[(7, 0)]),
            peer(1, 4, true, &[(9, 2)]),
        ];
        // Every order of arrival, by choosing each message once.
        fn orders(left: &[PeerLoad], so_far: &mut Vec<PeerLoad>, check: &mut impl FnMut(&[PeerLoad])) {
            if left.is_empty() {
                return check(so_far);
            }
            for i in 0..left.len() {
                let mut rest = left.to_vec();
                so_far.push(rest.remove(i));
                orders(&rest, so_far, check);
                so_far.pop();
            }
        }
        let mut seen = 0;
        orders(&sent, &mut Vec::new(), &mut |order| {
            let mut peers = Peers::default();
            for message in order {
                peers.gateway(message, &mut AHashSet::new());
            }
            assert_eq!(peers.sum(8).requests, 0, "{order:?}");
            assert_eq!(peers.sum(7).requests, 10, "{order:?}");
            assert_eq!(peers.sum(9).requests, 2, "{order:?}");
            seen += 1;
        });
        assert_eq!(seen, 120);
    }

    #[test]
    fn a_late_message_does_not_undo_a_full_one() {
        let mut peers = Peers::default();
        peers.gateway(&peer(1, 4, true, &[(9, 2)]), &mut AHashSet::new());
        let mut touched = AHashSet::new();
        peers.gateway(&peer(1, 2, false, &[(8, 1)]), &mut touched);
        assert_eq!((peers.sum(8).requests, touched.len()), (0, 0));
        peers.gateway(&peer(1, 5, false, &[(8, 6)]), &mut touched);
        assert_eq!(peers.sum(8).requests, 6);
        peers.end(1, &mut touched);
        assert_eq!((peers.sum(8).requests, peers.sum(9).requests, peers.len()), (0, 0, 0));
    }

    #[test]
    fn an_older_report_is_no_news() {
        let mut peers = Peers::default();
        let load = |taken_us| RankLoad { taken_us, ..RankLoad::default() };
        assert!(peers.engine(1, load(5)));
        assert!(!peers.engine(1, load(4)));
        assert!(peers.engine(1, load(5)));
        peers.forget_target(1);
        assert!(peers.engine(1, load(4)));
    }
}
