//! Cells: what a reader sees of a run, one cache line each, in an arena addressed by 32-bit numbers.

use std::sync::OnceLock;

use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering};
use crate::words::AtomicWords;

/// Holders kept in the cell itself; more go to the spill array.
pub(crate) const INLINE: usize = 4;
/// Cells in one chunk of the arena.
pub(crate) const CHUNK: usize = 1024;
/// Memory of one chunk.
pub(crate) const CHUNK_BYTES: usize = CHUNK * size_of::<Cell>();

/// A target's place in a run: slot, number of leading blocks of the run it holds, and the writer's record of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) slot: u16,
    pub(crate) lead: u16,
    pub(crate) record: u32,
}

impl Holder {
    /// No holder.
    pub(crate) const NONE: u64 = u64::MAX;

    #[inline]
    pub(crate) const fn pack(self) -> u64 {
        (self.slot as u64) << 48 | (self.lead as u64) << 32 | self.record as u64
    }

    #[inline]
    pub(crate) const fn unpack(word: u64) -> Option<Self> {
        if word == Self::NONE {
            return None;
        }
        Some(Self { slot: (word >> 48) as u16, lead: (word >> 32) as u16, record: word as u32 })
    }
}

/// A run as readers see it.
///
/// `blocks` may have spare room: only the first `len` words count. `used` is the number of holder positions that have
/// ever been filled; positions below it may be empty.
#[repr(C, align(64))]
pub(crate) struct Cell {
    blocks: AtomicWords,
    spill: AtomicWords,
    len: AtomicU32,
    used: AtomicU32,
    /// The writer's node for this cell; readers do not look.
    node: AtomicU32,
    inline: [AtomicU64; INLINE],
}

impl Cell {
    pub(crate) fn empty() -> Self {
        Self {
            blocks: AtomicWords::none(),
            spill: AtomicWords::none(),
            len: AtomicU32::new(0),
            used: AtomicU32::new(0),
            node: AtomicU32::new(0),
            inline: std::array::from_fn(|_| AtomicU64::new(Holder::NONE)),
        }
    }

    /// The block hashes.
    #[inline]
    pub(crate) fn run<'g>(&'g self, guard: &'g Guard) -> &'g [AtomicU64] {
        // Length first: a longer array is published before the length that needs it.
        let len = self.len.load(Ordering::Acquire) as usize;
        let blocks = self.blocks.get(guard);
        &blocks[..len.min(blocks.len())]
    }

    /// Name of the run: its first block.
    #[inline]
    pub(crate) fn head(&self, guard: &Guard) -> u64 {
        self.blocks.get(guard).first().map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The holder positions in use, as two stretches.
    #[inline]
    pub(crate) fn holders<'g>(&'g self, guard: &'g Guard) -> (&'g [AtomicU64], &'g [AtomicU64]) {
        let used = self.used.load(Ordering::Acquire) as usize;
        if used <= INLINE {
            return (&self.inline[..used], &[]);
        }
        let spill = self.spill.get(guard);
        (&self.inline, &spill[..(used - INLINE).min(spill.len())])
    }

    /// One holder position.
    pub(crate) fn position<'g>(&'g self, position: usize, guard: &'g Guard) -> Option<&'g AtomicU64> {
        match self.inline.get(position) {
            Some(word) => Some(word),
            None => self.spill.get(guard).get(position - INLINE),
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn set_len(&self, len: u32) {
        self.len.store(len, Ordering::Release);
    }

    pub(crate) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn set_used(&self, used: u32) {
        self.used.store(used, Ordering::Release);
    }

    pub(crate) fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    pub(crate) fn set_node(&self, node: u32) {
        self.node.store(node, Ordering::Relaxed);
    }

    pub(crate) fn blocks(&self) -> &AtomicWords {
        &self.blocks
    }

    pub(crate) fn spill(&self) -> &AtomicWords {
        &self.spill
    }
}

/// The arena. Chunks are added and never move; cells are used again once readers have passed.
pub(crate) struct Cells {
    chunks: Box<[OnceLock<Box<[Cell]>>]>,
}

impl Cells {
    /// Room for the directory of `limit` cells.
    pub(crate) fn new(limit: usize) -> Self {
        Self { chunks: (0..limit.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    /// The cell of that number, when its chunk exists.
    #[inline]
    pub(crate) fn get(&self, cell: u32) -> Option<&Cell> {
        self.chunks.get(cell as usize / CHUNK)?.get()?.get(cell as usize % CHUNK)
    }

    /// Adds chunk `index`; `false` when the directory is full.
    pub(crate) fn add_chunk(&self, index: usize) -> bool {
        match self.chunks.get(index) {
            Some(chunk) => {
                chunk.get_or_init(|| (0..CHUNK).map(|_| Cell::empty()).collect());
                true
            }
            None => false,
        }
    }

    /// Memory of the directory.
    pub(crate) fn directory_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.chunks)
    }
}
