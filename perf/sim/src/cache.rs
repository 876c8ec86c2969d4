//! A block cache with the life cycle of an engine's KV cache: blocks of running requests are pinned, blocks of ended
//! requests stay usable until their room is needed, least recently used first, the tail of a prompt before its head.
//!
//! A block is named by the chained hash of the prompt up to and including it, so equal names mean equal prefixes.
//! Blocks without a name (output, the partial last block, prompt not yet computed) are *private*: they take room and
//! can be shared with nobody. All operations cost time proportional to the blocks they name.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    hash: u64,
    refs: u32,
    prev: u32,
    next: u32,
}

/// Names are hashes already: a multiplication spreads them over a table.
#[derive(Clone, Copy, Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, name: u64) {
        // 2^64 over the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4), its high bits brought down.
        let product = (self.0 ^ name).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

/// Named and private blocks of one engine within a fixed number of places.
#[derive(Debug)]
pub struct BlockCache {
    capacity: u32,
    nodes: Vec<Node>,
    spare: Vec<u32>,
    names: HashMap<u64, u32, BuildHasherDefault<Spread>>,
    // Unpinned named blocks, oldest first.
    oldest: u32,
    newest: u32,
    idle: u32,
    private: u32,
    evictions: u64,
    // Names given up since they were last taken, where somebody asked for them.
    evicted: Option<Vec<u64>>,
}

impl BlockCache {
    /// An empty cache with room for `capacity` blocks.
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            nodes: Vec::new(),
            spare: Vec::new(),
            names: HashMap::default(),
            oldest: NIL,
            newest: NIL,
            idle: 0,
            private: 0,
            evictions: 0,
            evicted: None,
        }
    }

    /// Remembers the names given up from now on, for [`Self::take_evicted`].
    pub fn track(&mut self) {
        self.evicted.get_or_insert_default();
    }

    /// Remembers no names from now on.
    pub fn untrack(&mut self) {
        self.evicted = None;
    }

    /// The names given up since the last call, in order. They must be taken after every call that may evict.
    pub fn take_evicted(&mut self) -> impl Iterator<Item = u64> {
        self.evicted.iter_mut().flat_map(|names| names.drain(..))
    }

    /// Names present, in no order.
    pub fn names(&self) -> impl Iterator<Item = u64> {
        self.names.keys().copied()
    }

    /// Places in all.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Places held by running requests.
    pub fn used(&self) -> u32 {
        self.private + (self.names.len() as u32 - self.idle)
    }

    /// Named blocks that could be found again, pinned or not.
    pub fn named(&self) -> u32 {
        self.names.len() as u32
    }

    /// Named blocks given up for room since the start.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How many leading blocks of `path` are present.
    pub fn matched(&self, path: &[u64]) -> usize {
        path.iter().take_while(|h| self.names.contains_key(h)).count()
    }

    /// Pins the first `cached` blocks of `path` (all of which must be present) and takes `fresh` private blocks,
    /// evicting where needed. Returns false, with nothing changed, when there is no room.
    #[must_use]
    pub fn admit(&mut self, path: &[u64], cached: usize, fresh: u32) -> bool {
        let hits = &path[..cached.min(path.len())];
        let idle_hits = hits.iter().filter(|h| self.node(**h).is_some_and(|n| n.refs == 0)).count() as u32;
        let free = self.capacity - self.names.len() as u32 - self.private;
        if fresh > free + self.idle - idle_hits {
            return false;
        }
        for h in hits {
            self.pin(*h);
        }
        for _ in free..fresh {
            self.evict();
        }
        self.private += fresh;
        true
    }

    /// Gives the name `hash` to a private block of the caller, who stays its holder. If another request has named
    /// the same content meanwhile, the two become one, a place is free again, and the answer is false.
    pub fn publish(&mut self, hash: u64) -> bool {
        self.private -= 1;
        if self.names.contains_key(&hash) {
            self.pin(hash);
            return false;
        }
        let node = Node { hash, refs: 1, prev: NIL, next: NIL };
        let at = match self.spare.pop() {
            Some(i) => {
                self.nodes[i as usize] = node;
                i
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.names.insert(hash, at);
        true
    }

    /// Ends a holder's claim on the named blocks of `path` and on `private` nameless ones. The last blocks of the
    /// path become evictable before the first.
    pub fn release(&mut self, path: &[u64], private: u32) {
        self.private -= private;
        for h in path.iter().rev() {
            let Some(&at) = self.names.get(h) else { continue };
            let node = &mut self.nodes[at as usize];
            node.refs = node.refs.saturating_sub(1);
            if node.refs == 0 {
                self.append(at);
            }
        }
    }

    /// Forgets every named block that nobody holds.
    pub fn clear(&mut self) {
        while self.oldest != NIL {
            self.evict();
        }
    }

    fn node(&self, hash: u64) -> Option<&Node> {
        self.names.get(&hash).map(|&i| &self.nodes[i as usize])
    }

    fn pin(&mut self, hash: u64) {
        let Some(&at) = self.names.get(&hash) else { return };
        if self.nodes[at as usize].refs == 0 {
            self.unlink(at);
        }
        self.nodes[at as usize].refs += 1;
    }

    fn append(&mut self, at: u32) {
        let newest = self.newest;
        let node = &mut self.nodes[at as usize];
        node.prev = newest;
        node.next = NIL;
        if newest == NIL {
            self.oldest = at;
        } else {
            self.nodes[newest as usize].next = at;
        }
        self.newest = at;
        self.idle += 1;
    }

    fn unlink(&mut self, at: u32) {
        let (prev, next) = {
            let n = &self.nodes[at as usize];
            (n.prev, n.next)
        };
        match prev {
            NIL => self.oldest = next,
            p => self.nodes[p as usize].next = next,
        }
        match next {
            NIL => self.newest = prev,
            n => self.nodes[n as usize].prev = prev,
        }
        self.idle -= 1;
    }

    fn evict(&mut self) {
        let at = self.oldest;
        if at == NIL {
            return;
        }
        self.unlink(at);
        let hash = self.nodes[at as usize].hash;
        self.names.remove(&hash);
        self.spare.push(at);
        if let Some(evicted) = &mut self.evicted {
            evicted.push(hash);
        }
        self.evictions += 1;
    }
}

impl Clone for BlockCache {
    fn clone(&self) -> Self {
        Self {
            nodes: self.nodes.clone(),
            spare: self.spare.clone(),
            names: self.names.clone(),
            evicted: self.evicted.clone(),
            ..*self
        }
    }

    /// Into the memory that is there: plain copies of three pieces.
    fn clone_from(&mut self, from: &Self) {
        let Self { nodes, spare, names, evicted, .. } = from;
        self.nodes.clone_from(nodes);
        self.spare.clone_from(spare);
        self.names.clone_from(names);
        self.evicted.clone_from(evicted);
        let (nodes, spare) = (std::mem::take(&mut self.nodes), std::mem::take(&mut self.spare));
        let (names, evicted) = (std::mem::take(&mut self.names), self.evicted.take());
        *self = Self { nodes, spare, names, evicted, ..*from };
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
