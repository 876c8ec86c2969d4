//! Arrays of atomic words behind one atomic pointer: the only `unsafe` of the crate.
//!
//! Block hashes, spilled holders and the hash table are all arrays of `AtomicU64` that the writer replaces as a
//! whole and readers follow under a [`Guard`]. Word 0 of the allocation holds the number of words after it, so that
//! pointer and length cannot be torn apart. Because elements are atomics, the writer may also change words in place.
//!
//! A replaced array goes to the [`Graveyard`] and is freed by [`Graveyard::collect`], which only the writer calls,
//! after a grace period.
#![allow(unsafe_code)]

use std::collections::VecDeque;

use crate::sync::{AtomicPtr, AtomicU64, Grace, Guard, Ordering, Pins};

/// An array that no reader can see yet.
pub(crate) struct Words(Box<[AtomicU64]>);

impl Words {
    /// Takes `values` and fills up to `count` words with `fill`.
    pub(crate) fn new(count: usize, fill: u64, values: impl IntoIterator<Item = u64>) -> Self {
        let head = std::iter::once(count as u64);
        let body = values.into_iter().chain(std::iter::repeat(fill)).take(count);
        // Through an exact vector: collecting a chain straight into a box would reallocate while growing.
        let mut all = Vec::with_capacity(count + 1);
        all.extend(head.chain(body).map(AtomicU64::new));
        Self(all.into_boxed_slice())
    }

    /// Overwrites words from `at` on.
    pub(crate) fn set(&self, at: usize, values: &[u64]) {
        for (word, value) in self.0[at + 1..].iter().zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// Number of words.
    pub(crate) fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// The first word; 0 when there is none.
    pub(crate) fn first(&self) -> u64 {
        self.0.get(1).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Memory of the allocation.
    pub(crate) fn bytes(&self) -> usize {
        Self::bytes_for(self.0.len() - 1)
    }

    /// Memory of an allocation of `count` words.
    pub(crate) const fn bytes_for(count: usize) -> usize {
        (count + 1) * size_of::<u64>()
    }
}

/// A published array, or none.
pub(crate) struct AtomicWords {
    first: AtomicPtr<AtomicU64>,
}

impl AtomicWords {
    pub(crate) fn none() -> Self {
        Self { first: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// The array as it is now; empty when there is none.
    #[inline]
    pub(crate) fn get<'g>(&'g self, _guard: &'g Guard) -> &'g [AtomicU64] {
        let first = self.first.load(Ordering::Acquire);
        if first.is_null() {
            return &[];
        }
        // SAFETY: a non-null pointer comes from `Words` by `replace`, whose store (release) this load (acquire) saw,
        // so the allocation is initialised and word 0 holds the count of the words that follow. It is freed either
        // by `Drop` (which needs `&mut self`, excluded by the borrow in the result) or by the graveyard after every
        // guard that existed when the pointer was replaced is gone; the result does not outlive `_guard`. All access
        // is to atomics, so the writer may store meanwhile.
        unsafe {
            let count = (*first).load(Ordering::Relaxed) as usize;
            std::slice::from_raw_parts(first.add(1), count)
        }
    }

    /// Publishes `new` and buries what was there.
    pub(crate) fn replace(&self, new: Option<Words>, grave: &mut Graveyard) {
        let first = match new {
            Some(words) => Box::into_raw(words.0).cast::<AtomicU64>(),
            None => std::ptr::null_mut(),
        };
        let old = self.first.swap(first, Ordering::AcqRel);
        if !old.is_null() {
            grave.bury_words(Buried(old));
        }
    }
}

impl Drop for AtomicWords {
    fn drop(&mut self) {
        let first = self.first.load(Ordering::Acquire);
        if !first.is_null() {
            // Exclusive access: no borrow of the array is left, and nobody else can bury it.
            drop(Buried(first));
        }
    }
}

/// An array that was unlinked: freed on drop. A raw pointer, because readers may still hold references into it.
struct Buried(*mut AtomicU64);

// SAFETY: the pointer is the only owner of its allocation; the contents are atomics.
unsafe impl Send for Buried {}

impl Buried {
    fn count(&self) -> usize {
        // SAFETY: the allocation lives until this value is dropped, and word 0 is initialised.
        unsafe { (*self.0).load(Ordering::Relaxed) as usize }
    }
}

impl Drop for Buried {
    fn drop(&mut self) {
        let len = self.count() + 1;
        // SAFETY: `self.0` came from `Box::<[AtomicU64]>::into_raw` of `len` words and has this one owner. Whoever
        // drops a `Buried` has made sure that no reader is left: the graveyard by a grace period, `AtomicWords` by
        // exclusive access.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.0, len)) });
    }
}

#[derive(Default)]
struct Batch {
    words: Vec<Buried>,
    cells: Vec<u32>,
    bytes: usize,
}

/// What was unlinked and waits for readers to pass. Owned and drained by the writer alone.
pub(crate) struct Graveyard {
    grace: Grace,
    open: Batch,
    closed: VecDeque<(u64, Batch)>,
    bytes: usize,
}

/// Memory in one batch at which it is closed without being asked.
const BATCH_BYTES: usize = 256 << 10;

impl Graveyard {
    pub(crate) fn new(pins: &Pins) -> Self {
        Self { grace: Grace::new(pins), open: Batch::default(), closed: VecDeque::new(), bytes: 0 }
    }

    fn bury_words(&mut self, words: Buried) {
        let bytes = Words::bytes_for(words.count()) + size_of::<Buried>();
        self.open.words.push(words);
        self.add(bytes);
    }

    /// Buries a cell that holds on to `bytes` of memory; its number comes back from [`Graveyard::collect`].
    pub(crate) fn bury_cell(&mut self, cell: u32, bytes: usize) {
        self.open.cells.push(cell);
        self.add(bytes + size_of::<u32>());
    }

    fn add(&mut self, bytes: usize) {
        self.open.bytes += bytes;
        self.bytes += bytes;
    }

    /// Whether enough has gathered that a collection is due.
    pub(crate) fn is_due(&self) -> bool {
        self.open.bytes >= BATCH_BYTES
    }

    /// Memory held back by the graveyard.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Closes the open batch and frees all batches whose grace period has passed. `cells` takes the cells that may
    /// be used again.
    pub(crate) fn collect(&mut self, cells: &mut Vec<u32>) {
        if self.open.words.is_empty() && self.open.cells.is_empty() {
            if self.closed.is_empty() {
                return;
            }
            self.grace.nudge();
        } else {
            let batch = std::mem::take(&mut self.open);
            let ticket = self.grace.seal();
            self.closed.push_back((ticket, batch));
        }
        let passed = self.grace.passed();
        while self.closed.front().is_some_and(|(ticket, _)| *ticket <= passed) {
            let Some((_, batch)) = self.closed.pop_front() else { break };
            self.bytes -= batch.bytes;
            cells.extend_from_slice(&batch.cells);
        }
    }
}

impl Drop for Graveyard {
    fn drop(&mut self) {
        let rest: Vec<Batch> =
            self.closed.drain(..).map(|(_, batch)| batch).chain([std::mem::take(&mut self.open)]).collect();
        if rest.iter().any(|batch| !batch.words.is_empty()) {
            self.grace.abandon(rest);
        }
    }
}
