//! The tree of an engine's pages, and the order in which they grow old.

use ahash::AHashMap;

/// Index of a page; [`NONE`] is none.
pub(crate) type PageId = u32;
pub(crate) const NONE: PageId = PageId::MAX;

/// Bytes of an entry in a table of a 64-bit key and a 32-bit value, with the share of empty slots that such a table has
/// after growing.
pub(crate) const ENTRY_BYTES: usize = 2 * (16 + 1) + 2;

/// One page of the engine, or the start of a chain of them (a *root*).
///
/// A page that was removed stays as long as pages hang below it: they are named by the path through it.
#[derive(Debug)]
pub(crate) struct Page {
    pub key: u64,
    pub parent: PageId,
    /// Nearest page before this one in which a routing block ends; the root counts as one.
    pub up: PageId,
    pub child: PageId,
    pub next: PageId,
    pub prev: PageId,
    pub older: PageId,
    pub newer: PageId,
    /// Tokens before the page.
    pub start: u32,
    /// Tokens in it.
    pub len: u32,
    pub held: bool,
    /// Blocks of the engine that hold it.
    pub copies: u32,
    /// One of them was removed since it was last stored.
    pub doubtful: bool,
    /// Its place in the prompt is not told by token ids alone, so it is kept for the sake of its name only.
    pub dark: bool,
    pub root: bool,
    /// Routing blocks that end in the page; of a root the chain's root hash.
    pub blocks: Box<[u64]>,
    /// Tokens after the last of them.
    pub tail: Box<[u32]>,
}

impl Page {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.blocks.len() * 8
            + self.tail.len() * 4
            // Small allocations are rounded up.
            + 16 * usize::from(!self.blocks.is_empty())
            + 16 * usize::from(!self.tail.is_empty())
            + ENTRY_BYTES
    }

    pub fn end(&self) -> u32 {
        self.start + self.len
    }
}

/// What a page to be made knows of itself.
pub(crate) struct NewPage {
    pub key: u64,
    pub parent: PageId,
    pub len: u32,
    pub dark: bool,
    pub root: bool,
    pub blocks: Box<[u64]>,
    pub tail: Box<[u32]>,
}

/// All pages of one rank.
#[derive(Debug)]
pub(crate) struct Pages {
    slots: Vec<Page>,
    free: Vec<PageId>,
    by_key: AHashMap<u64, PageId>,
    roots: AHashMap<u64, PageId>,
    /// Leaves, from the one stored longest ago to the newest.
    oldest: PageId,
    newest: PageId,
    bytes: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: AHashMap::default(),
            roots: AHashMap::default(),
            oldest: NONE,
            newest: NONE,
            bytes: 0,
        }
    }
}

impl Pages {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of pages, those included that were removed and still have some below them.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn at(&self, id: PageId) -> &Page {
        &self.slots[id as usize]
    }

    pub fn at_mut(&mut self, id: PageId) -> &mut Page {
        &mut self.slots[id as usize]
    }

    /// All pages that have a name.
    pub fn ids(&self) -> impl Iterator<Item = PageId> + '_ {
        self.by_key.values().copied()
    }

    pub fn find(&self, key: u64) -> Option<PageId> {
        self.by_key.get(&key).copied()
    }

    pub fn root(&self, hash: u64) -> Option<PageId> {
        self.roots.get(&hash).copied()
    }

    pub fn roots(&self) -> impl Iterator<Item = PageId> + '_ {
        self.roots.values().copied()
    }

    /// The leaf that was stored longest ago.
    pub fn oldest(&self) -> Option<PageId> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Children of a page.
    pub fn children(&self, id: PageId) -> impl Iterator<Item = PageId> + '_ {
        let mut child = self.at(id).child;
        std::iter::from_fn(move || {
            let this = (child != NONE).then_some(child)?;
            child = self.at(this).next;
            Some(this)
        })
    }

    /// Makes a page. `None` when there are as many as can be numbered, or the prompt is longer than can be counted.
    pub fn add(&mut self, new: NewPage) -> Option<PageId> {
        let NewPage { key, parent, len, dark, root, blocks, tail } = new;
        let (start, up, next) = match parent {
            NONE => (0, NONE, NONE),
            parent_id => {
                let parent = self.at(parent_id);
                (parent.end(), if parent.blocks.is_empty() { parent.up } else { parent_id }, parent.child)
            }
        };
        start.checked_add(len)?;
        let page = Page {
            key,
            parent,
            up,
            child: NONE,
            next,
            prev: NONE,
            older: NONE,
            newer: NONE,
            start,
            len,
            held: root,
            copies: 0,
            doubtful: false,
            dark,
            root,
            blocks,
            tail,
        };
        self.bytes += page.bytes();
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = page;
                id
            }
            None => {
                let id = PageId::try_from(self.slots.len()).ok().filter(|id| *id != NONE)?;
                if self.slots.len() == self.slots.capacity() {
                    // Small steps: doubling would take twice the memory that is accounted for.
                    self.slots.reserve_exact((self.slots.len() / 8).max(256));
                }
                self.slots.push(page);
                id
            }
        };
        if root {
            self.roots.insert(key, id);
        } else {
            self.by_key.insert(key, id);
        }
        if parent != NONE {
            if next == NONE {
                self.unlink_age(parent);
            } else {
                self.at_mut(next).prev = id;
            }
            self.at_mut(parent).child = id;
        }
        if !root {
            self.link_newest(id);
        }
        Some(id)
    }

    /// The page is as if just stored.
    pub fn touch(&mut self, id: PageId) {
        if self.at(id).child == NONE && self.newest != id {
            self.unlink_age(id);
            self.link_newest(id);
        }
    }

    /// Frees a page without children, and what above it is neither held nor has other children.
    pub fn free(&mut self, mut id: PageId) {
        loop {
            self.unlink_age(id);
            let page = self.at_mut(id);
            let (key, parent, prev, next, root) = (page.key, page.parent, page.prev, page.next, page.root);
            let bytes = page.bytes();
            page.blocks = Box::default();
            page.tail = Box::default();
            page.held = false;
            self.bytes -= bytes;
            if root {
                self.roots.remove(&key);
            } else {
                self.by_key.remove(&key);
            }
            self.free.push(id);
            if next != NONE {
                self.at_mut(next).prev = prev;
            }
            if prev != NONE {
                self.at_mut(prev).next = next;
            } else if parent != NONE {
                self.at_mut(parent).child = next;
            }
            if parent == NONE || self.at(parent).child != NONE {
                return;
            }
            let above = self.at(parent);
            if above.held && !above.root {
                // What hung below it was older than anything that can be told of it now.
                self.link_oldest(parent);
                return;
            }
            id = parent;
        }
    }

    fn unlink_age(&mut self, id: PageId) {
        let page = self.at_mut(id);
        let (older, newer) = (page.older, page.newer);
        (page.older, page.newer) = (NONE, NONE);
        match older {
            NONE if self.oldest == id => self.oldest = newer,
            NONE => {}
            older => self.at_mut(older).newer = newer,
        }
        match newer {
            NONE if self.newest == id => self.newest = older,
            NONE => {}
            newer => self.at_mut(newer).older = older,
        }
    }

    fn link_newest(&mut self, id: PageId) {
        let last = self.newest;
        self.at_mut(id).older = last;
        match last {
            NONE => self.oldest = id,
            last => self.at_mut(last).newer = id,
        }
        self.newest = id;
    }

    fn link_oldest(&mut self, id: PageId) {
        let first = self.oldest;
        self.at_mut(id).newer = first;
        match first {
            NONE => self.newest = id,
            first => self.at_mut(first).older = id,
        }
        self.oldest = id;
    }
}
