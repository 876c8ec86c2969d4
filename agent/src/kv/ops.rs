//! Changes of what is held, gathered into operations on stretches of blocks.

use fairlead_wire::msg::CacheOp;
use std::collections::VecDeque;

/// Most blocks of one operation, so that operations can be dealt out to messages of bounded size.
pub(crate) const MAX_RUN: usize = 2048;
/// Bytes that an operation counts for beside its hashes.
const OP_BYTES: usize = 64;

/// Operations in the making. Neighbours become one operation.
#[derive(Debug, Default)]
pub struct Ops {
    list: VecDeque<CacheOp>,
    bytes: usize,
}

impl Ops {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What they take in memory and on the wire, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes all operations, in order.
    pub fn take(&mut self) -> Vec<CacheOp> {
        self.bytes = 0;
        std::mem::take(&mut self.list).into()
    }

    /// Takes the first operations: as many as `max_bytes` have room for, and one at least when there is one.
    pub fn take_some(&mut self, max_bytes: usize) -> Vec<CacheOp> {
        let mut some = Vec::new();
        let mut bytes = 0;
        while let Some(op) = self.list.front() {
            let more = op_bytes(op);
            if !some.is_empty() && bytes + more > max_bytes {
                break;
            }
            bytes += more;
            some.extend(self.list.pop_front());
        }
        self.bytes = if self.list.is_empty() { 0 } else { self.bytes.saturating_sub(bytes) };
        some
    }

    /// Forgets all operations.
    pub fn discard(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// Nothing is held any more: what was said before does not matter.
    pub(crate) fn clear(&mut self) {
        self.discard();
        self.list.push_back(CacheOp::Clear);
        self.bytes = OP_BYTES;
    }

    /// Appends a stored block to the last operation when it follows that one's blocks.
    pub(crate) fn extend_store(&mut self, parent: u64, hash: u64) -> bool {
        if let Some(CacheOp::Store { blocks, .. }) = self.list.back_mut()
            && blocks.len() < MAX_RUN
            && blocks.last() == Some(&parent)
        {
            blocks.push(hash);
            self.bytes += 8;
            return true;
        }
        false
    }

    /// Adds a removed block to the last operation when it lies right before or right after that one's blocks.
    pub(crate) fn extend_remove(&mut self, parent: u64, hash: u64) -> bool {
        let Some(CacheOp::Remove { above, blocks }) = self.list.back_mut() else { return false };
        if blocks.len() >= MAX_RUN {
            return false;
        }
        if blocks.last() == Some(&parent) {
            blocks.push(hash);
            self.bytes += 8;
            return true;
        }
        if above.last() == Some(&hash) {
            // What remains above begins where it began; when nothing does, the block is an anchor or a path's first.
            above.pop();
            blocks.insert(0, hash);
            return true;
        }
        false
    }

    pub(crate) fn push(&mut self, op: CacheOp) {
        self.bytes += op_bytes(&op);
        self.list.push_back(op);
    }
}

fn op_bytes(op: &CacheOp) -> usize {
    match op {
        CacheOp::Store { above, blocks } | CacheOp::Remove { above, blocks } => {
            OP_BYTES + 8 * (above.len() + blocks.len())
        }
        CacheOp::Clear => OP_BYTES,
    }
}
