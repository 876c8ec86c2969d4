//! The sequenced log: operations gathered into frames, recent frames kept in a ring bounded in bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use fairlead_wire::limits::MAX_ITEMS;
use fairlead_wire::msg::{Delta, IndexOp, Op};
use fairlead_wire::{Stamp, encode};

/// An encoded frame of operations.
pub(crate) struct Entry {
    base: u64,
    pub(crate) new: u64,
    pub(crate) bytes: Bytes,
    /// Bytes ever logged, this frame included: differences are lag.
    end_offset: u64,
}

pub(crate) struct Log {
    pub(crate) epoch: u64,
    /// Sequence after the last frame made.
    pub(crate) head: u64,
    pending: Vec<Op>,
    pending_bytes: usize,
    pending_since: u64,
    ring: VecDeque<Entry>,
    ring_bytes: usize,
    offset: u64,
    flush_us: u64,
    batch_bytes: usize,
    max_ring_bytes: usize,
    pub(crate) frames: u64,
}

impl Log {
    pub(crate) fn new(epoch: u64, flush_us: u64, batch_bytes: usize, max_ring_bytes: usize) -> Self {
        Self {
            epoch,
            head: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            pending_since: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            offset: 0,
            flush_us,
            batch_bytes,
            max_ring_bytes,
            frames: 0,
        }
    }

    /// Adds an operation; makes a frame at once when the batch is full.
    pub(crate) fn push(&mut self, op: Op, now_us: u64) {
        if self.pending.is_empty() {
            self.pending_since = now_us;
        }
        self.pending_bytes += size_of_op(&op);
        self.pending.push(op);
        if self.pending_bytes >= self.batch_bytes || self.pending.len() >= MAX_ITEMS {
            self.flush(now_us);
        }
    }

    /// When the pending operations are due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        (!self.pending.is_empty()).then(|| self.pending_since + self.flush_us)
    }

    /// Makes a frame of what is pending.
    pub(crate) fn flush(&mut self, now_us: u64) {
        if self.pending.is_empty() {
            return;
        }
        let base = self.head;
        self.head += self.pending.len() as u64;
        let ops = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let stamp = Stamp { epoch: self.epoch, base_seq: base, new_seq: self.head, created_us: now_us };
        let bytes = match encode(&Delta { ops }, stamp) {
            Ok(frame) => Bytes::from(frame.to_bytes()),
            Err(error) => {
                // Nobody can be told these operations, so everybody must be told the state: an empty ring forces a
                // snapshot.
                tracing::error!(%error, base, head = self.head, "operations cannot be encoded");
                self.ring.clear();
                self.ring_bytes = 0;
                return;
            }
        };
        self.frames += 1;
        self.offset += bytes.len() as u64;
        self.ring_bytes += bytes.len();
        self.ring.push_back(Entry { base, new: self.head, bytes, end_offset: self.offset });
        while self.ring_bytes > self.max_ring_bytes {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.bytes.len();
        }
    }

    /// Whether a receiver at `sequence` can be brought up to date from the ring.
    pub(crate) fn covers(&self, sequence: u64) -> bool {
        sequence == self.head || self.next_after(sequence).is_some()
    }

    /// The frame that starts at `sequence`.
    pub(crate) fn next_after(&self, sequence: u64) -> Option<&Entry> {
        let at = self.ring.partition_point(|entry| entry.base < sequence);
        self.ring.get(at).filter(|entry| entry.base == sequence)
    }

    /// Bytes of frames that a receiver at `sequence` has not been sent.
    pub(crate) fn lag_bytes(&self, sequence: u64) -> u64 {
        match self.next_after(sequence) {
            Some(entry) => self.offset - entry.end_offset + entry.bytes.len() as u64,
            None => 0,
        }
    }

    pub(crate) fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    pub(crate) fn max_ring_bytes(&self) -> usize {
        self.max_ring_bytes
    }
}

/// Rough archived size: batches and chunks are cut by it, the frame's limit is checked exactly.
fn size_of_op(op: &Op) -> usize {
    match op {
        Op::Target(info) => super::snapshot::size_of_target(info),
        Op::Index(IndexOp::Place { blocks, .. } | IndexOp::Store { blocks, .. }) => 48 + blocks.len() * 8,
        Op::Index(_) | Op::TargetGone { .. } | Op::EpochSettled | Op::Costs(_) => 48,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(target: u32) -> Op {
        Op::TargetGone { target }
    }

    #[test]
    fn frames_are_contiguous_and_the_ring_is_bounded() {
        let mut log = Log::new(1, 200, 1 << 10, 4 << 10);
        assert_eq!(log.deadline(), None);
        log.push(gone(0), 1_000);
        log.push(gone(1), 1_100);
        assert_eq!(log.deadline(), Some(1_200));
        assert!(log.covers(0));
        log.flush(1_200);
        assert_eq!((log.head, log.deadline()), (2, None));
        assert_eq!(log.next_after(0).map(|entry| entry.new), Some(2));
        assert!(log.next_after(1).is_none() && log.covers(2) && !log.covers(3));
        for i in 0..1_000 {
            log.push(gone(i % 4_096), 2_000);
        }
        log.flush(2_000);
        assert!(log.ring_bytes() <= 4 << 10);
        assert!(!log.covers(0), "evicted");
        let mut at = log.ring.front().map(|entry| entry.base).unwrap();
        assert!(log.lag_bytes(at) == log.ring_bytes() as u64);
        while let Some(entry) = log.next_after(at) {
            at = entry.new;
        }
        assert_eq!(at, log.head);
    }
}
