//! Cells: what a reader sees of a run, one cache line each, in an arena addressed by 32-bit numbers.

use std::sync::OnceLock;

use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering};
use crate::words::AtomicWords;

/// Holders kept in the cell itself; more go to the spill array.
pub(crate) const INLINE: usize = 3;
/// Cells in one chunk of the arena.
pub(crate) const CHUNK: usize = if cfg!(feature = "shuttle") { 16 } else { 1024 };
/// Memory of one chunk.
pub(crate) const CHUNK_BYTES: usize = CHUNK * size_of::<Cell>();

/// A target's place in a run: slot, number of leading blocks of the run it holds, whether it holds more behind a hole,
/// and the writer's record of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) slot: u16,
    pub(crate) lead: u16,
    pub(crate) behind: bool,
    pub(crate) record: u32,
}

impl Holder {
    /// No holder.
    pub(crate) const NONE: u64 = u64::MAX;
    const BEHIND: u64 = 1 << 47;

    #[inline]
    pub(crate) const fn pack(self) -> u64 {
        let behind = if self.behind { Self::BEHIND } else { 0 };
        (self.slot as u64) << 48 | behind | (self.lead as u64) << 32 | self.record as u64
    }

    #[inline]
    pub(crate) const fn unpack(word: u64) -> Option<Self> {
        if word == Self::NONE {
            return None;
        }
        Some(Self {
            slot: (word >> 48) as u16,
            lead: (word >> 32) as u16 & 0x7fff,
            behind: word & Self::BEHIND != 0,
            record: word as u32,
        })
    }
}

/// A run as readers see it.
///
/// `blocks` may have spare room: only the first `len` words count.
///
/// *Narrow* form (`full` is 0): holders are words ([`Holder`]), the first in the cell, more in the spill array; `used` is
/// the number of positions that have ever been filled; positions below it may be empty.
///
/// *Wide* form, for runs with many holders: the spill array begins with a set of slots, a bit each, and goes on with
/// `used` exceptions, which are words as above. A slot in the set holds the first `full` blocks, unless an exception says
/// how many it holds (none, perhaps). A cell never changes its form while readers may see it. A slot never leaves the
/// set, has at most one exception and keeps it; so each change is one atomic store, except the first entry of a slot
/// with an exception: exception first, then the bit, while readers look at the set first.
#[repr(C, align(64))]
pub(crate) struct Cell {
    head: AtomicU64,
    blocks: AtomicWords,
    spill: AtomicWords,
    len: AtomicU32,
    used: AtomicU32,
    /// The writer's node for this cell; [`Cell::MOVED`] once the run has become part of a longer one.
    node: AtomicU32,
    full: AtomicU32,
    /// In the wide form: words of the set, and the writer's number of the run among the wide ones.
    inline: [AtomicU64; INLINE],
}

#[cfg(not(any(loom, feature = "shuttle")))]
const _: () = assert!(size_of::<Cell>() == 64);

/// Holders of a wide run, as they are read: the set first, then the exceptions.
pub(crate) struct Wide<'g> {
    /// Blocks that a slot of the set holds, exceptions apart.
    pub(crate) full: u32,
    pub(crate) set: &'g [AtomicU64],
    list: &'g [AtomicU64],
    used: &'g AtomicU32,
}

impl<'g> Wide<'g> {
    /// The exceptions. To be called after the set was read.
    #[inline]
    pub(crate) fn exceptions(&self) -> &'g [AtomicU64] {
        let used = self.used.load(Ordering::Acquire) as usize;
        &self.list[..used.min(self.list.len())]
    }

    /// Exceptions for which there is room.
    pub(crate) fn room(&self) -> usize {
        self.list.len()
    }
}

impl Cell {
    /// In the place of the node: what was here is part of a longer run now.
    pub(crate) const MOVED: u32 = u32::MAX;

    pub(crate) fn empty() -> Self {
        Self {
            head: AtomicU64::new(0),
            blocks: AtomicWords::none(),
            spill: AtomicWords::none(),
            len: AtomicU32::new(0),
            used: AtomicU32::new(0),
            node: AtomicU32::new(0),
            full: AtomicU32::new(0),
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
    pub(crate) fn head(&self) -> u64 {
        self.head.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_head(&self, head: u64) {
        self.head.store(head, Ordering::Relaxed);
    }

    /// The holders when the cell has the wide form.
    #[inline]
    pub(crate) fn wide<'g>(&'g self, guard: &'g Guard) -> Option<Wide<'g>> {
        let full = self.full.load(Ordering::Relaxed);
        if full == 0 {
            return None;
        }
        let words = self.inline[0].load(Ordering::Relaxed) as usize;
        let spill = self.spill.get(guard);
        let (set, list) = spill.split_at(words.min(spill.len()));
        Some(Wide { full, set, list, used: &self.used })
    }

    /// Makes the form wide, with a set of `words` words. Before readers see the cell.
    pub(crate) fn set_wide(&self, full: u32, words: usize, number: u32) {
        self.full.store(full, Ordering::Relaxed);
        self.inline[0].store(words as u64, Ordering::Relaxed);
        self.inline[1].store(u64::from(number), Ordering::Relaxed);
    }

    /// Makes the form narrow, without holders. Before readers see the cell.
    pub(crate) fn set_narrow(&self) {
        self.full.store(0, Ordering::Relaxed);
        self.used.store(0, Ordering::Relaxed);
    }

    /// Number among the wide runs.
    pub(crate) fn wide_number(&self) -> Option<u32> {
        (self.full.load(Ordering::Relaxed) != 0).then(|| self.inline[1].load(Ordering::Relaxed) as u32)
    }

    /// The holder positions in use of the narrow form, as two stretches.
    #[inline]
    pub(crate) fn holders<'g>(&'g self, guard: &'g Guard) -> (&'g [AtomicU64], &'g [AtomicU64]) {
        let used = self.used.load(Ordering::Acquire) as usize;
        if used <= INLINE {
            return (&self.inline[..used], &[]);
        }
        let spill = self.spill.get(guard);
        (&self.inline, &spill[..(used - INLINE).min(spill.len())])
    }

    /// One holder position of the narrow form.
    #[inline]
    pub(crate) fn position<'g>(&'g self, position: usize, guard: &'g Guard) -> Option<&'g AtomicU64> {
        match self.inline.get(position) {
            Some(word) => Some(word),
            None => self.spill.get(guard).get(position - INLINE),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.len.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_len(&self, len: u32) {
        self.len.store(len, Ordering::Release);
    }

    #[inline]
    pub(crate) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_used(&self, used: u32) {
        self.used.store(used, Ordering::Release);
    }

    #[inline]
    pub(crate) fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_node(&self, node: u32) {
        self.node.store(node, Ordering::Release);
    }

    /// Whether the run has become part of a longer one. For a reader that misses what came behind it.
    #[inline]
    pub(crate) fn is_moved(&self) -> bool {
        self.node.load(Ordering::Acquire) == Self::MOVED
    }

    #[inline]
    pub(crate) fn blocks(&self) -> &AtomicWords {
        &self.blocks
    }

    #[inline]
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
