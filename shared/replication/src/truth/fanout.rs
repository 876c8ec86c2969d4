//! What gateways are sent: operations from the ring, snapshots, load changes.
//!
//! # Snapshots
//! A snapshot speaks of one sequence N, yet a large index cannot be encoded in one go: nobody else would be heard
//! meanwhile. So it is encoded a chunk per [`Truth::tick`], and the index stands still until the last: what would
//! change it waits (`intake`), in order, and is done afterwards; everything else goes on. Chunks are sent as they
//! come. One encoding serves all who need one while the ring still leads from N to the present. At most two are kept:
//! when a third is needed, whoever is still being sent the oldest begins anew with the newest.

use fairlead_wire::msg::Hello;

use super::gateway::{Dirty, Gateway, Stream};
use super::snapshot::{Building, Chunks, Snapshot};
use super::{Output, Truth};
use crate::{Lane, SessionId};
use ahash::AHashMap;

/// A resume that arrives so soon after a snapshot's last chunk was sent before it was received.
const SERVED_US: u64 = 2_000_000;
/// Snapshots kept: one that is being sent, one that is being made.
const MAX_SNAPSHOTS: usize = 2;
/// Cursor of a gateway that has been sent nothing: no ring leads on from there, so that a snapshot is due.
const NOTHING: u64 = u64::MAX;

impl Truth {
    /// The session of a gateway: what it holds decides how it is brought up to date.
    pub(super) fn greet_gateway(&mut self, hello: &Hello) -> Gateway {
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        let held =
            hello.have.filter(|&(epoch, sequence)| epoch == self.log.epoch && self.log.covers(sequence));
        let cursor = match held {
            Some((_, sequence)) => {
                self.stats.resumed += 1;
                sequence
            }
            None => NOTHING,
        };
        let mut dirty = Dirty { refresh: true, since_us: Some(self.now_us), ..Dirty::default() };
        for target in self.fleet.live().filter(|target| target.load.is_some()) {
            dirty.engine(target.id.slot, self.now_us);
        }
        Gateway {
            number,
            stream: Stream { cursor, snapshot: None, served: None },
            dirty,
            version: 0,
            in_flight: AHashMap::new(),
        }
    }

    pub(super) fn resume(&mut self, session: SessionId, epoch: u64, sequence: u64) {
        let now_us = self.now_us;
        let covered = epoch == self.log.epoch && self.log.covers(sequence);
        let newest = self.log.epoch;
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
            (epoch, sequence) < (newest, at) && now_us.saturating_sub(sent_us) < SERVED_US
        });
        if !served {
            gateway.stream.cursor = NOTHING;
        }
    }

    fn start_snapshot(&mut self, session: SessionId) {
        let Some(sequence) = self.take_snapshot() else { return };
        self.stats.snapshots_started += 1;
        self.send_snapshot(session, sequence);
    }

    fn send_snapshot(&mut self, session: SessionId, sequence: u64) {
        if let Some(gateway) = self.gateway_mut(session) {
            gateway.stream = Stream { cursor: sequence, snapshot: Some((sequence, 0)), served: None };
        }
    }

    /// The current snapshot, or a new one when too much has happened since. `None` while one that is too old already
    /// is still being encoded.
    fn take_snapshot(&mut self) -> Option<u64> {
        self.snapshot_used_us = self.now_us;
        let fresh_bytes = (self.log.max_ring_bytes() as u64 / 2).min(self.config.lag_bytes / 2);
        if let Some(snapshot) = self.snapshots.last()
            && self.log.covers(snapshot.sequence)
            && self.log.lag_bytes(snapshot.sequence) <= fresh_bytes
        {
            return Some(snapshot.sequence);
        }
        if self.building.is_some() {
            return None;
        }
        Some(self.begin_snapshot())
    }

    /// Begins to encode the present state; the index stands still until that is done.
    fn begin_snapshot(&mut self) -> u64 {
        self.stats.snapshots_built += 1;
        self.log.flush(self.now_us);
        let sequence = self.log.head;
        self.release_snapshots();
        if self.snapshots.len() >= MAX_SNAPSHOTS {
            let oldest = self.snapshots.remove(0).sequence;
            for session in self.gateways.clone() {
                let on = |gateway: &Gateway| gateway.stream.snapshot.is_some_and(|(at, _)| at == oldest);
                if self.gateway_mut(session).is_some_and(|gateway| on(gateway)) {
                    self.stats.snapshots_started += 1;
                    self.send_snapshot(session, sequence);
                }
            }
        }
        let mut chunks = Chunks::new(self.stamp(), self.settled, self.config.chunk_bytes);
        let mut snapshot = Snapshot { sequence, chunks: Vec::new(), whole: false };
        let mut failed = None;
        for target in self.fleet.live() {
            match chunks.target(target.describe()) {
                Ok(full) => snapshot.chunks.extend(full),
                Err(error) => failed = Some(error),
            }
        }
        self.snapshots.push(snapshot);
        self.building = Some(Building { chunks, cursor: self.index.first_run() });
        if let Some(error) = failed {
            self.give_up_building(&error);
        }
        self.build_chunk();
        sequence
    }

    /// Encodes one more chunk of the snapshot under way.
    pub(super) fn build_chunk(&mut self) {
        let Some(mut building) = self.building.take() else { return };
        let mut runs = self.index.runs_from(building.cursor);
        let mut full = Ok(None);
        for run in runs.by_ref() {
            full = building.chunks.run(run);
            if !matches!(full, Ok(None)) {
                break;
            }
        }
        building.cursor = runs.cursor();
        let chunk = match full {
            Ok(Some(chunk)) => {
                self.building = Some(building);
                Ok(chunk)
            }
            Ok(None) => building.chunks.finish(),
            Err(error) => Err(error),
        };
        match chunk {
            Err(error) => self.give_up_building(&error),
            Ok(chunk) => {
                let whole = self.building.is_none();
                if let Some(snapshot) = self.snapshots.last_mut() {
                    snapshot.chunks.push(chunk);
                    snapshot.whole = whole;
                }
            }
        }
    }

    fn give_up_building(&mut self, error: &fairlead_wire::FrameError) {
        // Every part was checked when it came in. A gateway that gets no last chunk asks again.
        tracing::error!(%error, "snapshot cannot be encoded");
        self.building = None;
        if let Some(snapshot) = self.snapshots.last_mut() {
            snapshot.whole = true;
        }
    }

    /// Frees the snapshots that nobody is being sent, but for the newest: one that nobody has wanted for two
    /// heartbeats only takes memory.
    pub(super) fn release_snapshots(&mut self) {
        let idle = self.now_us.saturating_sub(self.snapshot_used_us) > 2 * self.config.heartbeat_us;
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let newest = snapshots.last().map(|snapshot| snapshot.sequence);
        snapshots.retain(|snapshot| {
            let sent = |gateway: &Gateway| {
                gateway.stream.snapshot.is_some_and(|(sequence, _)| sequence == snapshot.sequence)
            };
            !snapshot.whole || (newest == Some(snapshot.sequence) && !idle) || self.gateway_parts().any(sent)
        });
        self.snapshots = snapshots;
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
        let (sequence, next) = self.gateway_mut(session)?.stream.snapshot?;
        let found = self.snapshots.iter().find(|snapshot| snapshot.sequence == sequence);
        let (bytes, last) = match found {
            Some(snapshot) => {
                (snapshot.chunks.get(next).cloned(), snapshot.whole && next + 1 >= snapshot.chunks.len())
            }
            None => (None, true),
        };
        // The next chunk has yet to be encoded, or there is no room for it.
        if (bytes.is_none() && !last) || !room(session, Lane::Snapshot) {
            return None;
        }
        let stream = &mut self.gateway_mut(session)?.stream;
        stream.snapshot = Some((sequence, next + 1));
        if last {
            stream.served = Some((sequence, now_us));
            stream.snapshot = None;
        }
        send(Lane::Snapshot, bytes?, last)
    }
}
