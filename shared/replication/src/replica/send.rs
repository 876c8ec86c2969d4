//! What a gateway sends.

use bytes::Bytes;
use fairlead_wire::msg::{GatewayLoad, Placement, Placements, Recollection, Resume};
use fairlead_wire::{Body, Stamp, TargetId, encode};

use super::{Replica, ReplicaSink, ReservationSource};
use crate::Lane;

/// Placements gathered into one message, bytes.
const BATCH_BYTES: usize = 64 << 10;
/// Recollected paths in one message, bytes; one path may go beyond.
const RECOLLECT_BYTES: usize = 256 << 10;
/// Interval at which an unanswered resume is repeated, microseconds.
const RESUME_US: u64 = 1_000_000;

/// A frame to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// In which order.
    pub lane: Lane,
    /// Header and payload.
    pub bytes: Bytes,
}

impl<S: ReplicaSink + ReservationSource> Replica<S> {
    /// What to send next; `None` when there is nothing, or no lane has room for it.
    pub fn poll(&mut self, mut room: impl FnMut(Lane) -> bool) -> Option<Outgoing> {
        let now_us = self.now_us;
        self.link.as_ref()?;
        if room(Lane::Control)
            && let Some(bytes) = self.poll_control(now_us)
        {
            return Some(Outgoing { lane: Lane::Control, bytes });
        }
        if room(Lane::Delta)
            && let Some(bytes) = self.poll_placements()
        {
            return Some(Outgoing { lane: Lane::Delta, bytes });
        }
        if room(Lane::Snapshot)
            && let Some(bytes) = self.poll_recollections()
        {
            return Some(Outgoing { lane: Lane::Snapshot, bytes });
        }
        None
    }

    fn poll_control(&mut self, now_us: u64) -> Option<Bytes> {
        let held =
            if self.synced() { self.held.map_or(u64::MAX, |(_, sequence)| sequence) } else { u64::MAX };
        let link = self.link.as_mut()?;
        if let Some(pong) = link.pongs.pop_front() {
            return self.frame(&pong);
        }
        if now_us >= link.next_ping_us {
            link.next_ping_us = now_us + link.heartbeat_us;
            let ping = link.clock.ping(now_us);
            return self.frame(&ping);
        }
        if link.resume && now_us >= link.next_resume_us && self.loading.is_none() {
            link.resume = false;
            link.next_resume_us = now_us + RESUME_US;
            let resume = Resume { epoch: link.epoch, sequence: held };
            self.stats.resumes += 1;
            return self.frame(&resume);
        }
        if now_us >= link.next_load_us && (link.full_load || self.load_dirty) {
            let full = std::mem::take(&mut link.full_load);
            link.next_load_us = now_us + self.config.load_us;
            if let Some(targets) = self.own_load(full) {
                self.load_version += 1;
                return self.frame(&GatewayLoad { version: self.load_version, full, targets });
            }
        }
        if let Some(feedback) = self.feedback_due(now_us) {
            return self.frame(&feedback);
        }
        None
    }

    /// Puts a placement on its way.
    pub(super) fn enqueue(&mut self, placement: Placement) {
        if self.link.is_none() {
            // With the next link, what the overlay holds is sent again.
            return;
        }
        self.queue_bytes += size_of(&placement);
        self.queue.push_back(placement);
        while self.queue_bytes > self.config.queue_bytes {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.queue_bytes -= size_of(&oldest);
            self.stats.placements_dropped += 1;
        }
    }

    fn poll_placements(&mut self) -> Option<Bytes> {
        let mut items = Vec::new();
        let mut size = 0;
        while size < BATCH_BYTES
            && let Some(placement) = self.queue.pop_front()
        {
            self.queue_bytes -= size_of(&placement);
            size += size_of(&placement);
            items.push(placement);
        }
        while size < BATCH_BYTES
            && let Some(id) = self.resend.pop_front()
        {
            let Some(entry) = self.overlay.get(id) else { continue };
            // A target that the new scheduler has not named yet comes round again when it has.
            let Some(remote) = self.remote_of(entry.target) else { continue };
            let placement =
                Placement { target: remote, path: entry.path.to_vec(), keep: None, space: entry.space };
            size += size_of(&placement);
            items.push(placement);
        }
        if items.is_empty() {
            return None;
        }
        self.stats.placements_sent += items.len() as u64;
        self.frame(&Placements { items })
    }

    fn poll_recollections(&mut self) -> Option<Bytes> {
        while self.recollections.is_empty() {
            let id = self.recollect.pop_front()?;
            self.remember(id);
        }
        self.recollections.pop_front()
    }

    /// Encodes what the old epoch's tree says that a target holds.
    fn remember(&mut self, id: TargetId) {
        let follows = self.synced();
        let tree = match (self.base, follows) {
            (true, _) => 1 - self.live,
            (false, false) => self.live,
            // The old tree is no more.
            (false, true) => return,
        };
        let Some(local) = self.table.get(id.slot).filter(|local| local.id == id) else { return };
        let info = local.info.clone();
        let rank = local.state.rank;
        let mut paths = self.trees[tree].paths_of(id.slot).into_iter().peekable();
        while paths.peek().is_some() {
            let mut size = 0;
            let mut some = Vec::new();
            while let Some(path) = paths.next_if(|_| size < RECOLLECT_BYTES) {
                size += 16 + path.len() * 8;
                some.push(path);
            }
            let told = Recollection {
                instance: info.name.clone(),
                rank,
                incarnation: info.incarnation,
                paths: some,
                last: self.recollect.is_empty() && paths.peek().is_none(),
            };
            if let Some(bytes) = self.frame(&told) {
                self.recollections.push_back(bytes);
            }
        }
    }

    fn frame<T: Body>(&self, body: &T) -> Option<Bytes> {
        let (epoch, sequence) = self.held.unwrap_or((0, 0));
        let stamp = Stamp { epoch, base_seq: sequence, new_seq: sequence, created_us: self.now_us };
        match encode(body, stamp) {
            Ok(frame) => Some(frame.to_bytes().into()),
            Err(error) => {
                tracing::error!(%error, "frame cannot be encoded");
                None
            }
        }
    }
}

fn size_of(placement: &Placement) -> usize {
    32 + placement.path.len() * 8
}
