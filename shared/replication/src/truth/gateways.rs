//! Gateways: what they send, and what they are sent.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use bytes::Bytes;
use fairlead_wire::msg::{EngineLoad, GatewayLoad, Hello, LoadUpdate, Op, PeerLoad, Placement, Recollection};
use fairlead_wire::{TargetId, encode};

use super::gateway::{Dirty, Gateway, Stream};
use super::snapshot::{Builder, Snapshot};
use super::{Output, Part, Truth};
use crate::{Lane, SessionId};

/// Engine loads in one update: about 140 bytes each.
const UPDATE_ENGINES: usize = 1_024;
/// Reservations in one update: about 40 bytes each.
const UPDATE_IN_FLIGHT: usize = 8_192;
/// A resume that arrives so soon after a snapshot's last chunk was sent before it was received.
const SERVED_US: u64 = 2_000_000;

impl Truth {
    /// The session of a gateway: what it holds decides how it is brought up to date.
    pub(super) fn greet_gateway(&mut self, hello: &Hello) -> Gateway {
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        let held =
            hello.have.filter(|&(epoch, sequence)| epoch == self.log.epoch && self.log.covers(sequence));
        let (cursor, snapshot) = match held {
            Some((_, sequence)) => {
                self.stats.resumed += 1;
                (sequence, None)
            }
            None => {
                let snapshot = self.take_snapshot();
                (snapshot.sequence, Some((snapshot, 0)))
            }
        };
        let mut dirty = Dirty { refresh: true, since_us: Some(self.now_us), ..Dirty::default() };
        for target in self.fleet.live().filter(|target| target.load.is_some()) {
            dirty.engine(target.id.slot, self.now_us);
        }
        Gateway {
            number,
            stream: Stream { cursor, snapshot, served: None },
            dirty,
            version: 0,
            in_flight: AHashMap::new(),
        }
    }

    /// The others forget what a gateway had in flight.
    pub(super) fn gateway_gone(&mut self, session: SessionId, gateway: &Gateway) {
        self.gateways.retain(|&other| other != session);
        self.turn = 0;
        let now_us = self.now_us;
        for other in self.gateways.clone() {
            if let Some(other) = self.gateway_mut(other) {
                other.dirty.peers.remove(&gateway.number);
                other.dirty.gone.push(gateway.number);
                // The refresh names everybody who is still there, which says as much in bounded room.
                if other.dirty.gone.len() > 64 {
                    other.dirty.gone.clear();
                    other.dirty.refresh = true;
                }
                other.dirty.touch(now_us);
            }
        }
    }

    pub(super) fn gateway_load(&mut self, session: SessionId, load: &GatewayLoad) {
        let now_us = self.now_us;
        let Some(Part::Gateway(gateway)) = self.sessions.get_mut(&session).map(|entry| &mut entry.part)
        else {
            return;
        };
        let fleet = &self.fleet;
        let changed = gateway.load(load, |packed| fleet.knows(TargetId::unpack(packed)));
        let number = gateway.number;
        if changed.is_empty() {
            return;
        }
        for other in self.gateways.clone() {
            if other != session
                && let Some(other) = self.gateway_mut(other)
            {
                other.dirty.peers.entry(number).or_default().extend(changed.iter().copied());
                other.dirty.touch(now_us);
            }
        }
    }

    pub(super) fn place(&mut self, items: &[Placement]) {
        for item in items {
            let id = TargetId::unpack(item.target);
            if self.fleet.get(id).is_none() {
                self.stats.placements_ignored += 1;
                continue;
            }
            self.stats.placements += 1;
            match item.keep {
                None => self.place_one(id, &item.path),
                Some(keep) => {
                    for op in self.index.remove_path_tail(id, &item.path, keep) {
                        self.push(Op::Index(op));
                    }
                }
            }
        }
        self.keep_budget();
    }

    pub(super) fn recollect(&mut self, told: Recollection) {
        if self.now_us >= self.recollect_until_us {
            self.stats.recollections_dropped += told.paths.len() as u64;
            return;
        }
        let name: Arc<str> = told.instance.as_str().into();
        match self.fleet.instances.get(&name) {
            Some(known) if known.info.incarnation == told.incarnation => {
                for path in &told.paths {
                    self.place_rank(&name, told.rank, path);
                }
                self.keep_budget();
            }
            // Another incarnation has an empty cache: what was known of the old one is void.
            Some(_) => {}
            None if self.settled => {}
            None => self.recollections.keep(told),
        }
    }

    pub(super) fn resume(&mut self, session: SessionId, epoch: u64, sequence: u64) {
        let now_us = self.now_us;
        let covered = epoch == self.log.epoch && self.log.covers(sequence);
        let Some(gateway) = self.gateway_mut(session) else { return };
        if gateway.stream.snapshot.is_some() {
            return;
        }
        if covered {
            gateway.stream.cursor = sequence;
            self.stats.resumed += 1;
            return;
        }
        let served = gateway.stream.served.is_some_and(|(at, sent_us)| {
            (epoch, sequence) < (self.log.epoch, at) && now_us.saturating_sub(sent_us) < SERVED_US
        });
        if !served {
            self.start_snapshot(session);
        }
    }

    fn start_snapshot(&mut self, session: SessionId) {
        let snapshot = self.take_snapshot();
        if let Some(gateway) = self.gateway_mut(session) {
            gateway.stream =
                Stream { cursor: snapshot.sequence, snapshot: Some((snapshot, 0)), served: None };
        }
    }

    /// The current snapshot, or a new one when too much has happened since.
    fn take_snapshot(&mut self) -> Arc<Snapshot> {
        self.stats.snapshots_started += 1;
        self.snapshot_used_us = self.now_us;
        let fresh_bytes = (self.log.max_ring_bytes() as u64 / 2).min(self.config.lag_bytes / 2);
        if let Some(snapshot) = &self.snapshot
            && self.log.covers(snapshot.sequence)
            && self.log.lag_bytes(snapshot.sequence) <= fresh_bytes
        {
            return snapshot.clone();
        }
        self.stats.snapshots_built += 1;
        self.log.flush(self.now_us);
        let mut builder = Builder::new(self.stamp(), self.settled, self.config.chunk_bytes);
        let built = (|| {
            for target in self.fleet.live() {
                builder.target(target.describe())?;
            }
            for run in self.index.snapshot_runs() {
                builder.run(run)?;
            }
            builder.finish()
        })();
        let snapshot = Arc::new(built.unwrap_or_else(|error| {
            // Every part was checked when it came in. A gateway that gets no last chunk asks again.
            tracing::error!(%error, "snapshot cannot be encoded");
            Snapshot { sequence: self.log.head, chunks: Vec::new() }
        }));
        self.snapshot = Some(snapshot.clone());
        snapshot
    }

    pub(super) fn poll_gateway(
        &mut self,
        session: SessionId,
        room: &mut impl FnMut(SessionId, Lane) -> bool,
    ) -> Option<Output> {
        let (now_us, flush_us) = (self.now_us, self.config.flush_us);
        let send = |lane, bytes, last| Some(Output::Send { session, lane, bytes, last });
        let due = |dirty: &Dirty| dirty.since_us.is_some_and(|since| since + flush_us <= now_us);
        if due(&self.gateway_mut(session)?.dirty)
            && room(session, Lane::Load)
            && let Some(bytes) = self.load_update(session)
        {
            return send(Lane::Load, bytes, false);
        }
        let stream = &self.gateway_mut(session)?.stream;
        let (cursor, sending) = (stream.cursor, stream.snapshot.is_some());
        let lags = !self.log.covers(cursor) || self.log.lag_bytes(cursor) > self.config.lag_bytes;
        // A gateway that takes nothing gets nothing new, and a snapshot under way is brought to its end: however slow
        // the gateway, it has a whole state now and then, and no more snapshots are made than are sent.
        if lags && !sending && room(session, Lane::Snapshot) {
            self.start_snapshot(session);
        }
        let cursor = self.gateway_mut(session)?.stream.cursor;
        if let Some(entry) = self.log.next_after(cursor)
            && room(session, Lane::Delta)
        {
            let (bytes, new) = (entry.bytes.clone(), entry.new);
            self.gateway_mut(session)?.stream.cursor = new;
            return send(Lane::Delta, bytes, false);
        }
        let stream = &mut self.gateway_mut(session)?.stream;
        let (snapshot, next) = stream.snapshot.as_mut()?;
        if !room(session, Lane::Snapshot) {
            return None;
        }
        let bytes = snapshot.chunks.get(*next).cloned();
        *next += 1;
        let last = *next >= snapshot.chunks.len();
        if last {
            stream.served = Some((snapshot.sequence, now_us));
            stream.snapshot = None;
        }
        send(Lane::Snapshot, bytes?, last)
    }

    /// The load changes that a gateway has not been told, as many as fit one frame.
    fn load_update(&mut self, session: SessionId) -> Option<Bytes> {
        let mut dirty = std::mem::take(&mut self.gateway_mut(session)?.dirty);
        let mut update = LoadUpdate { gone: std::mem::take(&mut dirty.gone), ..LoadUpdate::default() };
        for slot in dirty.take_engines(UPDATE_ENGINES) {
            if let Some(target) = self.fleet.at(slot)
                && let Some(load) = target.load
            {
                update.engines.push(EngineLoad { target: target.id.pack(), load });
            }
        }
        let own = self.gateway_mut(session)?.number;
        let mut entries = 0;
        if dirty.refresh {
            update.live = Some(self.gateway_parts().map(|gateway| gateway.number).collect());
        }
        for gateway in self.gateway_parts().filter(|gateway| gateway.number != own) {
            if entries >= UPDATE_IN_FLIGHT {
                // What is left goes with the next frame; of a refresh, whole gateways are turned into changes.
                if dirty.refresh {
                    let targets = gateway.in_flight.keys().copied();
                    dirty.peers.entry(gateway.number).or_insert_with(AHashSet::new).extend(targets);
                }
                continue;
            }
            let changed = dirty.peers.remove(&gateway.number);
            let targets = if dirty.refresh {
                gateway.in_flight.values().copied().collect()
            } else {
                changed.into_iter().flatten().map(|target| gateway.in_flight_at(target)).collect::<Vec<_>>()
            };
            if !targets.is_empty() || dirty.refresh {
                entries += targets.len();
                update.gateways.push(PeerLoad {
                    gateway: gateway.number,
                    version: gateway.version,
                    full: dirty.refresh,
                    targets,
                });
            }
        }
        dirty.refresh = false;
        let live: AHashSet<u32> = self.gateway_parts().map(|gateway| gateway.number).collect();
        dirty.peers.retain(|number, _| live.contains(number));
        dirty.since_us = (!dirty.is_empty()).then_some(self.now_us);
        let stamp = self.stamp();
        self.gateway_mut(session)?.dirty = dirty;
        if update == LoadUpdate::default() {
            return None;
        }
        match encode(&update, stamp) {
            Ok(frame) => Some(frame.to_bytes().into()),
            Err(error) => {
                tracing::error!(%error, "load update cannot be encoded");
                None
            }
        }
    }
}
