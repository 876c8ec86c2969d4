//! The radix-tree prefix index: which target holds which blocks, for one writer and any number of readers.
//!
//! # Storage
//!
//! A *block* is a chained hash: equal hashes mean equal prefixes. The tree is path-compressed: a *run* is a stretch of
//! up to [`MAX_RUN`] consecutive blocks, named by the hash of its first block. Because a hash stands for a whole
//! prefix, no run keeps a map of its children: one open-addressing table over all runs finds the next one with one
//! probe. A reader sees a run as one 64-byte cell with an array of block hashes and the run's *holders*, in one of two
//! forms:
//! - *narrow*, up to 16 holders: target slot and number of leading blocks of the run that the target holds, a word each;
//! - *wide*: a set of slots, a bit each, who hold the usual number of leading blocks, and a short list of exceptions. A
//!   prompt that thousands of targets hold takes a kilobyte or two, and a lookup takes over the set as a whole.
//!
//! In both, a removal from the tail of a run is one atomic store. What a target holds of a run behind a hole is kept by
//! the writer alone; readers do not need it, since a lookup counts leading blocks. Data-parallel ranks are targets of
//! their own.
//!
//! The writer also keeps, out of the readers' sight: parents and children, the order of last use of all runs (in ticks of
//! a quarter second), and for each slot what it holds: narrow runs in a list in order of last use, wide ones in a set. So
//! clearing or dropping a target costs time proportional to what it holds. With [`Config::locate`] it also knows where
//! the anchors stand (one block in sixteen), so that [`Writer::store`] and [`Writer::remove_blocks`] find any block by
//! the few before it.
//!
//! Runs change shape only by operations, and only by rules that look at the runs themselves (never at times, forms or
//! memory), so that two indexes which have applied the same operations have the same runs under the same names, also
//! when one of them started from a snapshot of the other:
//! - a path that leaves a run in its middle splits it (or cuts it short, where nobody holds the rest);
//! - blocks behind a run without children extend it, up to [`MAX_RUN`]; otherwise they become a child;
//! - a run without holders and children is unlinked, and its parent looked at next;
//! - a run without children, of which at least half at the end is held by nobody, is cut to what is held;
//! - a run from which something was taken, or below which a run was unlinked, and that has one child, is merged with it,
//!   unless the whole would be longer than [`MAX_RUN`]. Where one operation ends holdings of many runs, this comes after
//!   all unlinking and cutting, by name, so that the order in which runs are visited does not matter.
//!
//! # Concurrency
//!
//! One [`Writer`]; any number of [`Reader`]s, which take a crossbeam-epoch pin for one lookup and never wait.
//!
//! | operation | touches, in order | what a reader may see meanwhile |
//! |---|---|---|
//! | place | new runs (without holders), then the target's lead in every run from the root down | a shorter leading part |
//! | store | new runs (without holders), then the target's lead in the runs of the stored blocks | each run before or after |
//! | extend a run | words behind its end, or a longer copy; then its length | the old length |
//! | split | cell and table slot of the rest; cell of the front; table slot of the front | the old run, whole, as it was at the split |
//! | merge | cell of the whole; its table slot; marks on both old cells; then the name of the rest goes | the old runs, as they were; who misses the rest sees the mark on the front and looks again |
//! | remove, clear, drop | the target's lead in each run | each run before or after |
//! | first entry in a wide run, not the usual lead | the exception, then the slot's bit (readers look at the bits first) | nothing, then all |
//! | change of form, cut | new cell, then the table slot | the old cell, as it was |
//! | unlink | the table slot | the old run, as it was |
//! | table growth | a new table, then one pointer | the old table, until the next probe |
//!
//! So every block that a lookup counts was held at some moment between the call's start and end, and where a target is
//! only placed on (nothing stored behind a hole), so was the whole depth: places go from the root down, lookups too,
//! and the content of an unlinked run is frozen. Depths of different targets may be of different moments. A target
//! whose holdings nobody touches is always seen in full, whatever happens to the shape of the tree around it. A lookup
//! that has to look again does so at most 15 times, each time because the writer has merged what it was looking at; if
//! that were ever not enough, it answers what it has found, which may be less than is held.
//!
//! # Reclamation
//!
//! Replaced arrays and cells go to a graveyard; [`Writer::collect`] (also called by the writer itself whenever enough
//! has gathered) starts a grace period for them and frees those whose period has passed. Readers never free. Only
//! when the writer is dropped while readers still look is the remaining garbage left to crossbeam's collector.
//!
//! Memory is bounded by [`Config::max_bytes`], everything counted: cells, hashes, holders, tables, records; garbage that
//! waits for readers may take a quarter of that on top. At either bound the truth refuses to grow (`place` and `store`
//! mark only what is there already; counted) until [`Writer::evict_to_budget`] has made room; a replica answers
//! [`ApplyError::Full`], for only the truth evicts. A run that cannot take the wide form for want of room stays narrow.
//!
//! # Not supported
//!
//! Several writers; the time of last use of each holder of a wide run (a target that must hold less loses these last);
//! giving back cells and records, which are kept for reuse until the index is dropped; paths whose hashes are not chained
//! (they do no harm, but lookups of them mean nothing).

mod cells;
mod hits;
mod reader;
pub mod reference;
mod stretch;
mod sync;
mod table;
mod words;
mod writer;

pub use fairlead_wire::{Slot, TargetId};
pub use hits::{Hits, MAX_TARGETS};
pub use reader::{Reader, Stats};
pub use writer::{ApplyError, BindError, RunCursor, Runs, StoreError, Writer};

/// Longest run, blocks.
pub const MAX_RUN: usize = 4096;

/// Bounds of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Memory, everything counted except garbage (at most a quarter on top), bytes. Less than [`Config::MIN_BYTES`] counts as that.
    pub max_bytes: usize,
    /// Slots, at most [`MAX_TARGETS`].
    pub max_targets: usize,
    /// Whether the writer keeps a table of anchors ([`fairlead_wire::is_anchor`]), which [`Writer::store`] and
    /// [`Writer::remove_blocks`] need: about a byte a block. Only the scheduler's index does.
    pub locate: bool,
}

impl Config {
    /// Least memory with which an index works.
    pub const MIN_BYTES: usize = 512 << 10;
}

impl Default for Config {
    fn default() -> Self {
        Self { max_bytes: 256 << 20, max_targets: MAX_TARGETS, locate: false }
    }
}

/// An empty index.
pub fn new(config: Config) -> (Writer, Reader) {
    let writer = Writer::new(config);
    let reader = writer.reader();
    (writer, reader)
}
