//! Placements of this gateway that the truth has not confirmed: entered at once, so that the next request of the same
//! conversation finds them, and taken out when the truth says the same, when the request failed, or when they are too
//! old.
//!
//! Entries of one target share blocks (turns of one conversation), so it is [counted](Cover) how many entries cover a
//! block, which leaves the tree with the last. While the gateway is cut off, entries do not age: they are all that is known of what
//! was sent meanwhile. The bytes are bounded; beyond, the oldest entries go.
//!
//! A gateway that never has a scheduler asks for none of that: its placements are [remembered](Overlay::remember) in the
//! tree without an entry, and the least recently used ones make room.

use std::collections::VecDeque;

use ahash::AHashMap;
use fairlead_prefix::Writer;
use fairlead_wire::msg::HashSpace;
use fairlead_wire::{Slot, TargetId};

use super::cover::Cover;

/// Bytes charged per covered block: its part of the tree, of a run and of the entry's path. (Less is needed where runs are
/// long.)
const BLOCK_BYTES: usize = 56;
/// Bytes charged per entry, with the run that it begins and the one that it cuts.
const ENTRY_BYTES: usize = 256;

/// A placement.
#[derive(Debug)]
pub struct Entry {
    /// Where the prompt was sent.
    pub target: TargetId,
    /// Its blocks.
    pub path: Box<[u64]>,
    /// What they are made of.
    pub space: HashSpace,
    expires_us: u64,
    /// `expires_us` when it was put where it is in the order.
    placed_us: u64,
}

/// See the module's documentation.
pub struct Overlay {
    /// What readers look up.
    pub tree: Writer,
    entries: AHashMap<u64, Entry>,
    order: VecDeque<u64>,
    next_id: u64,
    cover: Cover,
    /// The entry that ends with a block of a target.
    ends: AHashMap<(Slot, u64), u64>,
    bytes: usize,
    max_bytes: usize,
    keep_us: u64,
    /// Entries given up for want of room.
    pub crowded: u64,
}

impl Overlay {
    /// An empty overlay in `tree`, whose targets the caller binds; entries count for `keep_us` microseconds.
    pub fn new(tree: Writer, max_bytes: usize, keep_us: u64) -> Self {
        Self {
            tree,
            entries: AHashMap::new(),
            order: VecDeque::new(),
            next_id: 0,
            cover: Cover::default(),
            ends: AHashMap::new(),
            bytes: 0,
            max_bytes,
            keep_us,
            crowded: 0,
        }
    }

    /// A prompt has been sent to a target.
    pub fn add(&mut self, target: TargetId, space: HashSpace, path: &[u64], now_us: u64) {
        let Some(&end) = path.last() else { return };
        let size = size_of_entry(path);
        if size > self.max_bytes {
            self.crowded += 1;
            return;
        }
        if let Some(&known) = self.ends.get(&(target.slot, end)) {
            if let Some(entry) = self.entries.get_mut(&known) {
                entry.expires_us = now_us + self.keep_us;
            }
            return;
        }
        // A longer path of the same conversation stands for its shorter ones.
        let mut shorter: Vec<u64> = Vec::new();
        self.cover.add(target.slot, path, |block| {
            shorter.extend(self.ends.get(&(target.slot, block)).copied());
        });
        self.tree.place(target, path, now_us);
        let id = self.next_id;
        self.next_id += 1;
        self.ends.insert((target.slot, end), id);
        self.order.push_back(id);
        self.bytes += size;
        let expires_us = now_us + self.keep_us;
        let entry = Entry { target, path: path.into(), space, expires_us, placed_us: expires_us };
        self.entries.insert(id, entry);
        for id in shorter {
            self.remove(id);
        }
        while self.bytes > self.max_bytes {
            let Some(oldest) = self.order.front().copied() else { break };
            self.crowded += 1;
            self.remove(oldest);
            self.trim();
        }
    }

    /// A prompt has been sent to a target, and nobody will ever confirm it.
    pub fn remember(&mut self, target: TargetId, path: &[u64], now_us: u64) {
        // Where it is refused for want of room, there is some after the next look at the budget.
        self.tree.place(target, path, now_us);
    }

    /// The request behind a path that was remembered has failed: of it the target holds `keep` blocks.
    pub fn forget(&mut self, target: TargetId, path: &[u64], keep: u32) {
        self.tree.remove_path_tail(target, path, keep);
    }

    /// Has what was remembered longest ago make room.
    pub fn make_room(&mut self, now_us: u64) {
        self.tree.evict_to_budget(now_us);
    }

    /// The truth says that the target holds the path that ends with `end`.
    pub fn confirm(&mut self, slot: Slot, end: u64) {
        if let Some(&id) = self.ends.get(&(slot, end)) {
            self.remove(id);
        }
    }

    /// Takes out what `held` says the truth has, among the oldest `limit` entries. For confirmations that do not name
    /// the path's end: the blocks were there, only the holder was new.
    pub fn confirm_by(&mut self, limit: usize, mut held: impl FnMut(TargetId, &[u64]) -> bool) {
        let done: Vec<u64> = self
            .ids()
            .take(limit)
            .filter(|id| self.get(*id).is_some_and(|entry| held(entry.target, &entry.path)))
            .collect();
        for id in done {
            self.remove(id);
        }
        self.trim();
    }

    /// The request of that placement failed. Whether there was such a placement.
    pub fn withdraw(&mut self, target: TargetId, path: &[u64]) -> bool {
        let id = path.last().and_then(|&end| self.ends.get(&(target.slot, end)).copied());
        id.is_some_and(|id| self.remove(id))
    }

    /// Takes out what is too old.
    pub fn expire(&mut self, now_us: u64) {
        self.trim();
        while let Some(id) = self.order.front().copied() {
            match self.entries.get_mut(&id) {
                // Renewed since it was put here: it goes to the back, lest one that is renewed again and again hold up
                // all behind it.
                Some(entry) if entry.expires_us > entry.placed_us => {
                    entry.placed_us = entry.expires_us;
                    self.order.rotate_left(1);
                }
                Some(entry) if entry.expires_us > now_us => break,
                Some(_) => {
                    self.remove(id);
                }
                None => {}
            }
            self.trim();
        }
    }

    /// Gives every entry its full time: they have just been sent again.
    pub fn renew(&mut self, now_us: u64) {
        for entry in self.entries.values_mut() {
            entry.expires_us = now_us + self.keep_us;
        }
    }

    /// Forgets a target that is gone.
    pub fn drop_target(&mut self, slot: Slot) {
        let gone: Vec<u64> =
            self.ids().filter(|id| self.get(*id).is_some_and(|e| e.target.slot == slot)).collect();
        for id in gone {
            self.remove(id);
        }
        self.tree.drop_target(slot);
    }

    /// Entries, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.order.iter().copied()
    }

    /// The entry of that number.
    pub fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.remove(&id) else { return false };
        let slot = entry.target.slot;
        self.bytes -= size_of_entry(&entry.path);
        if let Some(end) = entry.path.last() {
            self.ends.remove(&(slot, *end));
        }
        // Every entry that covers a block covers all before it, so what stays is a leading part.
        let keep = self.cover.remove(slot, &entry.path);
        self.tree.remove_path_tail(entry.target, &entry.path, keep);
        true
    }

    /// Drops leading order numbers whose entries are gone, and all of them when they outnumber the entries.
    fn trim(&mut self) {
        while self.order.front().is_some_and(|id| !self.entries.contains_key(id)) {
            self.order.pop_front();
        }
        if self.order.len() > 2 * self.entries.len() + 64 {
            self.order.retain(|id| self.entries.contains_key(id));
        }
    }
}

fn size_of_entry(path: &[u64]) -> usize {
    ENTRY_BYTES + path.len() * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use fairlead_prefix::{Config, Hits, Reader};

    use super::*;

    const A: TargetId = TargetId::new(1, 1);
    const B: TargetId = TargetId::new(2, 1);

    fn overlay(max_bytes: usize) -> (Overlay, Reader) {
        let (mut tree, reader) =
            fairlead_prefix::new(Config { max_bytes: 1 << 20, max_targets: 8, locate: false });
        tree.bind(A).unwrap();
        tree.bind(B).unwrap();
        (Overlay::new(tree, max_bytes, 5_000), reader)
    }

    fn depth(reader: &Reader, target: TargetId, path: &[u64]) -> u32 {
        let mut hits = Hits::default();
        reader.lookup(path, &mut hits);
        hits.get(target.slot)
    }

    #[test]
    fn shared_blocks_stay_until_the_last_entry_goes() {
        let (mut overlay, reader) = overlay(1 << 20);
        overlay.add(A, HashSpace::Bytes, &[1, 2, 3], 0);
        overlay.add(A, HashSpace::Bytes, &[1, 2, 4], 0);
        overlay.add(B, HashSpace::Bytes, &[1, 2], 0);
        assert_eq!(overlay.len(), 3);
        assert!(overlay.withdraw(A, &[1, 2, 3]));
        assert!(!overlay.withdraw(A, &[1, 2, 3]));
        assert_eq!(depth(&reader, A, &[1, 2, 3]), 2);
        assert_eq!(depth(&reader, A, &[1, 2, 4]), 3);
        overlay.confirm(A.slot, 4);
        assert_eq!(depth(&reader, A, &[1, 2, 4]), 0);
        assert_eq!(depth(&reader, B, &[1, 2, 4]), 2);
        overlay.drop_target(B.slot);
        assert_eq!((overlay.len(), overlay.bytes(), overlay.cover.len()), (0, 0, 0));
    }

    #[test]
    fn a_longer_turn_replaces_the_shorter() {
        let (mut overlay, reader) = overlay(1 << 20);
        overlay.add(A, HashSpace::Bytes, &[1, 2], 0);
        overlay.add(A, HashSpace::Bytes, &[1, 2, 3, 4], 1_000);
        assert_eq!(overlay.len(), 1);
        assert_eq!(depth(&reader, A, &[1, 2, 3, 4]), 4);
        overlay.expire(5_500);
        assert_eq!(depth(&reader, A, &[1, 2, 3, 4]), 4);
        overlay.expire(6_000);
        assert_eq!((depth(&reader, A, &[1, 2, 3, 4]), overlay.bytes()), (0, 0));
    }

    #[test]
    fn an_entry_that_is_renewed_for_ever_holds_up_no_other() {
        let (mut overlay, reader) = overlay(1 << 20);
        overlay.add(A, HashSpace::Bytes, &[1], 0);
        overlay.add(A, HashSpace::Bytes, &[2], 100);
        for now in (1_000..20_000).step_by(1_000) {
            overlay.add(A, HashSpace::Bytes, &[1], now);
            overlay.expire(now);
        }
        assert_eq!(overlay.len(), 1);
        assert_eq!((depth(&reader, A, &[1]), depth(&reader, A, &[2])), (1, 0));
        overlay.renew(30_000);
        overlay.expire(34_000);
        assert_eq!((overlay.len(), overlay.order.len()), (1, 1));
        overlay.expire(35_500);
        assert_eq!((overlay.len(), overlay.order.len()), (0, 0));
    }

    #[test]
    fn what_is_remembered_needs_no_entry_and_the_least_used_goes() {
        let (mut overlay, reader) = overlay(1 << 20);
        let path = |n: u64| (1..=40).map(|block| n * 100 + block).collect::<Vec<u64>>();
        let second = 1_000_000;
        overlay.remember(A, &path(1), second);
        overlay.remember(A, &path(2), second);
        overlay.forget(A, &path(2), 7);
        assert_eq!((depth(&reader, A, &path(1)), depth(&reader, A, &path(2))), (40, 7));
        assert_eq!((overlay.len(), overlay.bytes()), (0, 0));
        for n in 3..6_000 {
            overlay.remember(A, &path(n), n * second);
            // Asked for again and again.
            overlay.remember(A, &path(1), n * second);
            if n % 10 == 0 {
                overlay.make_room(n * second);
                overlay.tree.collect();
            }
        }
        assert_eq!((depth(&reader, A, &path(1)), depth(&reader, A, &path(5_999))), (40, 40));
        assert_eq!(depth(&reader, A, &path(3)), 0);
        assert!(overlay.tree.stats().bytes <= 1 << 20);
    }

    #[test]
    fn bytes_are_bounded_and_the_oldest_go() {
        let (mut overlay, reader) = overlay(10 * size_of_entry(&[0; 4]));
        for i in 0..1_000u64 {
            let path: Vec<u64> = (1..=4).map(|b| i * 10 + b).collect();
            overlay.add(A, HashSpace::Bytes, &path, i);
            assert!(overlay.bytes() <= 10 * size_of_entry(&path));
        }
        assert_eq!((overlay.len(), overlay.crowded), (10, 990));
        assert!(overlay.order.len() < 100);
        assert_eq!(depth(&reader, A, &[9_991]), 1);
        assert_eq!(depth(&reader, A, &[9_001]), 0);
        overlay.add(A, HashSpace::Bytes, &vec![7; 1_000], 0);
        assert_eq!(overlay.len(), 10, "too large for the overlay at all");
    }
}
