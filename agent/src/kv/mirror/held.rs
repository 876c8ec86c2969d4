//! Which routing blocks are held when a page comes or goes, and how that is told.

use fairlead_wire::is_anchor;
use fairlead_wire::limits::MAX_ABOVE;
use fairlead_wire::msg::CacheOp;

use super::super::ops::{MAX_RUN, Ops};
use super::super::pages::PageId;
use super::Mirror;

impl Mirror {
    /// Whether all pages above `id` are held that touch the block which is open where `id` begins.
    fn held_above(&self, id: PageId) -> bool {
        let page = self.pages.at(id);
        if page.start.is_multiple_of(self.config.block_tokens) {
            return true;
        }
        let mut at = page.parent;
        loop {
            let page = self.pages.at(at);
            if !page.blocks.is_empty() {
                return page.tail.is_empty() || page.held;
            }
            if !page.held {
                return false;
            }
            at = page.parent;
        }
    }

    /// A page comes or goes; blocks follow.
    pub(super) fn set_held(&mut self, id: PageId, held: bool, out: &mut Ops) {
        self.pages.at_mut(id).held = held;
        let page = self.pages.at(id);
        if page.dark {
            return;
        }
        let (start, end, blocks) = (page.start, page.end(), page.blocks.len());
        let above = self.held_above(id);
        let straddles = !start.is_multiple_of(self.config.block_tokens);
        for at in 0..blocks {
            if at > 0 || above || !straddles {
                self.count(id, at, held, out);
            }
        }
        if end.is_multiple_of(self.config.block_tokens) || (blocks == 0 && !above) {
            return;
        }
        let mut stack = std::mem::take(&mut self.stack);
        stack.clear();
        stack.extend(self.pages.children(id));
        while let Some(below) = stack.pop() {
            let page = self.pages.at(below);
            if !page.held || page.dark {
                continue;
            }
            if page.blocks.is_empty() {
                stack.extend(self.pages.children(below));
            } else {
                self.count(below, 0, held, out);
            }
        }
        self.stack = stack;
    }

    /// One way more or less in which the block that ends `at` in page `id` is held.
    fn count(&mut self, id: PageId, at: usize, held: bool, out: &mut Ops) {
        let hash = self.pages.at(id).blocks[at];
        if held {
            let count = self.counts.entry(hash).or_default();
            *count += 1;
            if *count == 1 {
                self.tell_stored(id, at, out);
            }
        } else if let Some(count) = self.counts.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&hash);
                self.tell_removed(id, at, out);
            }
        }
    }

    /// The block before the one that ends `at` in page `id`.
    fn before(&self, id: PageId, at: usize) -> Option<(PageId, usize)> {
        if at > 0 {
            return Some((id, at - 1));
        }
        let up = self.pages.at(id).up;
        let page = self.pages.at(up);
        (!page.root).then(|| (up, page.blocks.len() - 1))
    }

    fn hash(&self, (id, at): (PageId, usize)) -> u64 {
        self.pages.at(id).blocks[at]
    }

    /// The blocks before a block, from an anchor or the path's first on. `None` when that would be too many.
    fn above(&self, id: PageId, at: usize) -> Option<Vec<u64>> {
        let mut above = Vec::new();
        let mut place = (id, at);
        while let Some(before) = self.before(place.0, place.1) {
            if above.len() == MAX_ABOVE {
                return None;
            }
            let hash = self.hash(before);
            above.push(hash);
            if is_anchor(hash) {
                break;
            }
            place = before;
        }
        above.reverse();
        Some(above)
    }

    /// Tells that a block is held. Blocks above it that are not held may be unknown to whoever is told: those are told
    /// along with it and taken back.
    pub(super) fn tell_stored(&mut self, id: PageId, at: usize, out: &mut Ops) {
        let hash = self.hash((id, at));
        let before = self.before(id, at);
        if let Some(before) = before
            && out.extend_store(self.hash(before), hash)
        {
            return;
        }
        let mut first = (id, at);
        let mut blocks = vec![hash];
        while let Some(before) = self.before(first.0, first.1) {
            let hash = self.hash(before);
            if self.counts.contains_key(&hash) {
                break;
            }
            blocks.push(hash);
            first = before;
        }
        blocks.reverse();
        let Some(above) = self.above(first.0, first.1) else {
            self.counters.untold += 1;
            return;
        };
        let missing = blocks.len() - 1;
        if missing == 0 {
            out.push(CacheOp::Store { above, blocks });
            return;
        }
        // In pieces that fit a message.
        let mut tell = |above: &[u64], blocks: &[u64], store: bool| {
            let (above, blocks) = (above.to_vec(), blocks.to_vec());
            out.push(if store {
                CacheOp::Store { above, blocks }
            } else {
                CacheOp::Remove { above, blocks }
            });
        };
        let path: Vec<u64> = above.iter().chain(&blocks).copied().collect();
        let skip = above.len();
        for (end, store) in [(path.len(), true), (path.len() - 1, false)] {
            let mut from = skip;
            while from < end {
                let to = (from + MAX_RUN).min(end);
                let anchor = path[..from].iter().rposition(|hash| is_anchor(*hash)).unwrap_or(0);
                if from - anchor > MAX_ABOVE {
                    self.counters.untold += 1;
                    return;
                }
                tell(&path[anchor..from], &path[from..to], store);
                from = to;
            }
        }
    }

    fn tell_removed(&mut self, id: PageId, at: usize, out: &mut Ops) {
        let hash = self.hash((id, at));
        let before = self.before(id, at).map(|before| self.hash(before));
        if out.extend_remove(before.unwrap_or_default(), hash) {
            return;
        }
        let above = if is_anchor(hash) { Some(Vec::new()) } else { self.above(id, at) };
        match above {
            Some(above) => out.push(CacheOp::Remove { above, blocks: vec![hash] }),
            None => self.counters.untold += 1,
        }
    }
}
