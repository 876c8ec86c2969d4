//! Snapshots: the whole state at one sequence, encoded once for all who lag, a chunk at a time.

use bytes::Bytes;
use fairlead_prefix::RunCursor;
use fairlead_wire::msg::{Run, SnapshotChunk, TargetInfo};
use fairlead_wire::{FrameError, Stamp, encode};

/// Size of one run beyond which its holders' holes are left out; well below the frame's limit.
const MAX_RUN_BYTES: usize = 2 << 20;

/// A snapshot, as far as it has been encoded.
pub(crate) struct Snapshot {
    pub(crate) sequence: u64,
    pub(crate) chunks: Vec<Bytes>,
    /// Nothing follows the last chunk.
    pub(crate) whole: bool,
}

/// The encoding that is under way.
pub(crate) struct Building {
    pub(crate) chunks: Chunks,
    /// The index has been encoded up to here.
    pub(crate) cursor: RunCursor,
}

/// Gathers targets and runs into chunks.
pub(crate) struct Chunks {
    stamp: Stamp,
    settled: bool,
    chunk_bytes: usize,
    chunk: SnapshotChunk,
    size: usize,
}

impl Chunks {
    pub(crate) fn new(stamp: Stamp, settled: bool, chunk_bytes: usize) -> Self {
        Self { stamp, settled, chunk_bytes, chunk: empty(0, settled), size: 0 }
    }

    /// Adds a target; the chunk before it, when that is full.
    pub(crate) fn target(&mut self, info: TargetInfo) -> Result<Option<Bytes>, FrameError> {
        let full = self.make_room(size_of_target(&info))?;
        self.chunk.targets.push(info);
        Ok(full)
    }

    /// Adds a run; the chunk before it, when that is full.
    pub(crate) fn run(&mut self, mut run: Run) -> Result<Option<Bytes>, FrameError> {
        let mut size = 48 + run.blocks.len() * 8;
        for holder in &mut run.holders {
            size += 16 + holder.missing.len() * 8;
            if size > MAX_RUN_BYTES {
                // Only a run shot full of holes by many holders comes here. Lookups see what leads, so that travels.
                if let Some((first, _)) = holder.missing.first() {
                    holder.depth = *first;
                }
                size -= holder.missing.len() * 8;
                holder.missing = Vec::new();
            }
        }
        let full = self.make_room(size)?;
        self.chunk.runs.push(run);
        Ok(full)
    }

    /// The last chunk.
    pub(crate) fn finish(mut self) -> Result<Bytes, FrameError> {
        self.chunk.last = true;
        self.close()
    }

    fn make_room(&mut self, size: usize) -> Result<Option<Bytes>, FrameError> {
        let full =
            if self.size > 0 && self.size + size > self.chunk_bytes { Some(self.close()?) } else { None };
        self.size += size;
        Ok(full)
    }

    fn close(&mut self) -> Result<Bytes, FrameError> {
        let next = empty(self.chunk.part + 1, self.settled);
        let chunk = std::mem::replace(&mut self.chunk, next);
        self.size = 0;
        Ok(encode(&chunk, self.stamp)?.to_bytes().into())
    }
}
fn empty(part: u32, settled: bool) -> SnapshotChunk {
    SnapshotChunk { part, last: false, settled, targets: Vec::new(), runs: Vec::new() }
}

/// Rough archived size of a target's description.
pub(super) fn size_of_target(info: &TargetInfo) -> usize {
    let instance = &info.instance;
    let models: usize = instance
        .models
        .iter()
        .map(|model| 48 + model.name.len() + model.parent.as_ref().map_or(0, String::len))
        .sum();
    let labels: usize = instance.labels.iter().map(|(key, value)| 16 + key.len() + value.len()).sum();
    200 + instance.name.len() + instance.address.len() + instance.host.len() + models + labels
}
