//! Handles by label values, for one thread.

use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;

use crate::family::{Family, MAX_SERIES, Metric, OTHER};

/// One thread's handles of a family, found by label values without locking: for labels that are only known when a
/// request is (model, code, reason).
#[derive(Debug)]
pub struct Local<M: Metric> {
    family: Family<M>,
    hasher: RandomState,
    /// Sorted by hash of the values; equal hashes stand side by side.
    entries: Vec<Entry<M>>,
    other: Option<M>,
}

#[derive(Debug)]
struct Entry<M> {
    hash: u64,
    values: Box<[Box<str>]>,
    handle: M,
}

impl<M: Metric> Local<M> {
    /// An empty table.
    pub fn new(family: &Family<M>) -> Self {
        Self { family: family.clone(), hasher: RandomState::new(), entries: Vec::new(), other: None }
    }

    /// The handle for these values, taken from the family at their first use. When the table is full (clients invent
    /// values), new ones share one handle whose values are all [`OTHER`].
    pub fn get(&mut self, values: &[&str]) -> &M {
        let mut hasher = self.hasher.build_hasher();
        for value in values {
            hasher.write(value.as_bytes());
            hasher.write_u8(0xff);
        }
        let hash = hasher.finish();
        let from = self.entries.partition_point(|e| e.hash < hash);
        let same = |e: &Entry<M>| {
            e.values.len() == values.len() && e.values.iter().zip(values).all(|(a, b)| &**a == *b)
        };
        let found = self
            .entries
            .iter()
            .enumerate()
            .skip(from)
            .take_while(|(_, e)| e.hash == hash)
            .find_map(|(at, e)| same(e).then_some(at));
        let at = match found {
            Some(at) => at,
            None if self.entries.len() < MAX_SERIES => {
                let handle = self.family.handle(values);
                let values = values.iter().map(|v| Box::from(*v)).collect();
                self.entries.insert(from, Entry { hash, values, handle });
                from
            }
            None => usize::MAX,
        };
        match self.entries.get(at) {
            Some(entry) => &entry.handle,
            None => self.other.get_or_insert_with(|| self.family.handle(&vec![OTHER; values.len()])),
        }
    }
}
