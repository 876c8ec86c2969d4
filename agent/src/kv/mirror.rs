//! What one rank of an engine holds, in routing blocks.
//!
//! The engine speaks of *pages* (its KV blocks) and names them by hashes of its own; we speak of *routing blocks* and name
//! them by the chained hashes of their token ids. The mirror keeps the engine's pages in a tree as their events tell it,
//! each with the routing blocks that end in it, and so turns stored and removed pages into stored and removed blocks:
//!
//! ```text
//! pages of 48      0────────47 48────────95 96───────143
//! blocks of 64     0─────────────63 64────────────127 …
//! ends in page                   1                  2
//! ```
//!
//! A block is held when each page that it touches is. The same block may end in several pages (two pages that begin alike,
//! a short page and its full successor), so the ways in which it is held are counted. A page's change touches the blocks
//! that end in it, and the one that is still open at its end: that one ends in pages below.
//!
//! | operation | cost |
//! |---|---|
//! | store or remove a page | its blocks, plus the pages between the ends of two blocks |
//! | a change that does not continue the last one | the blocks up to the nearest anchor, 16 on average |
//! | account of everything | everything held |
//!
//! *Copies.* vLLM computes a page anew in some cases and then holds it twice, under one name, and removes it twice. Where
//! the engine's room is known, copies are counted. Some versions tell of a page again when it is merely used again; then
//! the count rises above what there is room for, which cannot happen otherwise before anything is removed, and from then
//! on a page is held or not: what had been removed once is gone.
//!
//! *Bounds.* The bytes of pages, blocks and tables are counted. Above the limit the leaf that was stored longest ago is
//! dropped, with its blocks, until there is room; the rank is *partial* from then on. One event's pages are in memory
//! before that happens. A page that does not say by its token ids alone what it holds (images, an adapter without a name)
//! is *dark*: kept by name so that its successors are known for what they are, and without blocks.

mod held;

use super::event::{Event, PageHash, Removed, Stored};
use super::ops::Ops;
use super::pages::{ENTRY_BYTES, NONE, NewPage, PageId, Pages};
use fairlead_tokens::{BlockHasher, root};
use fairlead_wire::limits::{MAX_BLOCK_TOKENS, MAX_PATH};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Routing block hashes are uniform already.
#[derive(Clone, Copy, Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

type Counts = HashMap<u64, u32, BuildHasherDefault<Uniform>>;

/// How a mirror names and bounds what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorConfig {
    /// Secret of the cluster's block hashes.
    pub seed: u64,
    /// Tokens of a routing block; taken into `1..=`[`MAX_BLOCK_TOKENS`].
    pub block_tokens: u32,
    /// Name of the base model in the hashes.
    pub model: String,
    /// Bound on memory, bytes.
    pub max_bytes: usize,
    /// Pages that the engine has room for, where it stores a page again rather than share one: each copy is then removed
    /// by an event of its own. `None` where a page is held once, however often it is said to be stored.
    pub copies: Option<u64>,
}

/// What has passed through a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Store events applied.
    pub stored: u64,
    /// Remove events applied.
    pub removed: u64,
    /// Clear events applied.
    pub cleared: u64,
    /// Events that are none of ours: another medium, another kind of layer, an unknown type.
    pub ignored: u64,
    /// Store events whose parent is not known.
    pub orphans: u64,
    /// Store events that contradict what is known of a page.
    pub conflicts: u64,
    /// Pages dropped for want of room.
    pub dropped: u64,
    /// Blocks that cannot be told, for want of an anchor before them.
    pub untold: u64,
    /// Times that copies turned out to be pages told of again.
    pub retold: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Mirror {
    config: MirrorConfig,
    pages: Pages,
    /// How many ways a block is held.
    counts: Counts,
    partial: bool,
    /// Copies of all pages.
    copies: u64,
    /// Index of the KV group that is followed, once one is.
    group: Option<Option<u64>>,
    counters: Counters,
    // Memory that is used again.
    tokens: Vec<u32>,
    hashes: Vec<u64>,
    stack: Vec<PageId>,
}

impl Mirror {
    /// An empty mirror. `partial`: the engine may hold more.
    pub fn new(mut config: MirrorConfig, partial: bool) -> Self {
        config.block_tokens = config.block_tokens.clamp(1, MAX_BLOCK_TOKENS);
        Self {
            config,
            pages: Pages::default(),
            counts: Counts::default(),
            partial,
            copies: 0,
            group: None,
            counters: Counters::default(),
            tokens: Vec::new(),
            hashes: Vec::new(),
            stack: Vec::new(),
        }
    }

    /// Whether the engine may hold more than is known.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Says that something was missed.
    pub fn set_partial(&mut self) {
        self.partial = true;
    }

    /// Says that nothing is missing.
    pub fn set_whole(&mut self) {
        self.partial = false;
    }

    /// Routing blocks held.
    pub fn blocks(&self) -> usize {
        self.counts.len()
    }

    /// Pages known.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Memory taken, bytes.
    pub fn bytes(&self) -> usize {
        self.pages.bytes() + self.counts.len() * ENTRY_BYTES
    }

    /// What has passed through.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether a block is held.
    pub fn holds(&self, block: u64) -> bool {
        self.counts.contains_key(&block)
    }

    /// Applies an event; what changes is appended to `out`.
    pub fn apply(&mut self, event: &Event, out: &mut Ops) {
        match event {
            Event::Stored(stored) => self.stored(stored, out),
            Event::Removed(removed) => self.removed(removed, out),
            Event::Cleared => {
                self.counters.cleared += 1;
                self.clear(out);
                // Now it is known what the engine holds: nothing.
                self.partial = false;
            }
            Event::Other => self.counters.ignored += 1,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self, out: &mut Ops) {
        self.pages = Pages::default();
        self.counts = Counts::default();
        self.copies = 0;
        out.clear();
    }

    /// A full account, for somebody who knows nothing.
    pub fn account(&mut self, out: &mut Ops) {
        let mut stack: Vec<PageId> = self.pages.roots().collect();
        while let Some(id) = stack.pop() {
            let page = self.pages.at(id);
            if !page.root && !page.dark {
                for at in 0..page.blocks.len() {
                    if self.counts.contains_key(&self.pages.at(id).blocks[at]) {
                        self.tell_stored(id, at, out);
                    }
                }
            }
            stack.extend(self.pages.children(id));
        }
    }

    /// Whether pages of such layers hold a prompt's whole past, so that any prefix can be used again.
    fn is_ours(
        &mut self,
        medium: Option<&str>,
        kind: Option<&str>,
        group: Option<u64>,
        remote: bool,
    ) -> bool {
        let whole_past =
            matches!(kind, None | Some("full_attention" | "mla_attention" | "sink_full_attention"));
        if remote || !is_gpu(medium) || !whole_past {
            return false;
        }
        // Of several such groups each reports the same tokens under the same names: one speaks for all.
        *self.group.get_or_insert(group) == group
    }

    fn stored(&mut self, event: &Stored, out: &mut Ops) {
        if !self.is_ours(event.medium, event.kind, event.group, event.remote) {
            self.counters.ignored += 1;
            return;
        }
        self.counters.stored += 1;
        let mut extras = event.extra_keys.pages(event.lora_name);
        let mut extra = extras.next();
        let parent = match event.parent {
            Some(hash) => self.pages.find(hash.key()),
            None => {
                let salt = event.salt.or_else(|| extra.and_then(|extra| extra.salt)).unwrap_or("");
                let nameless = event.lora_id && event.lora_name.is_none();
                self.root(event.lora_name.unwrap_or(""), salt, nameless)
            }
        };
        let Some(first) = parent else {
            self.counters.orphans += 1;
            self.partial = true;
            return;
        };
        let mut parent = first;
        let block = self.config.block_tokens;
        let mut dark = self.pages.at(parent).dark;
        // All tokens after the last block that ended before the event, and the blocks that they complete.
        self.tokens.clear();
        self.hashes.clear();
        let from = self.pages.at(parent).end();
        if !dark {
            self.open_tokens(parent);
            self.tokens.extend(event.tokens);
            let mut hasher = BlockHasher::from_root(
                self.config.seed,
                self.last_block(parent),
                4 * block,
                &mut self.hashes,
            );
            hasher.update_tokens(&self.tokens);
        }
        // Position in the prompt of the first of `tokens`; a block's start.
        let base = from - from % block;
        let mut left = event.tokens.len();
        for hash in event.hashes {
            let len = left.min(event.block_size);
            left -= len;
            dark |= extra.is_some_and(|extra| extra.opaque);
            extra = extras.next();
            match self.store_page(hash, parent, len, dark, base, out) {
                Some(id) => parent = id,
                None => {
                    self.counters.conflicts += 1;
                    self.partial = true;
                    break;
                }
            }
        }
        let above = self.pages.at(first);
        if above.root && above.child == NONE {
            // Made for pages that did not come, or that are known elsewhere.
            self.pages.free(first);
        }
        self.forget_copies(out);
        self.trim(out);
    }

    /// The start of a chain. Nameless adapters share a dark one.
    fn root(&mut self, lora: &str, salt: &str, nameless: bool) -> Option<PageId> {
        let hash = match nameless {
            // No chain's root is 0.
            true => 0,
            false => root(self.config.seed, &self.config.model, lora, salt, 4 * self.config.block_tokens),
        };
        self.pages.root(hash).or_else(|| {
            self.pages.add(NewPage {
                key: hash,
                parent: NONE,
                len: 0,
                dark: nameless,
                root: true,
                blocks: Box::new([hash]),
                tail: Box::default(),
            })
        })
    }

    /// Hash of the last block that ends in or before a page.
    fn last_block(&self, id: PageId) -> u64 {
        let page = self.pages.at(id);
        let page = if page.blocks.is_empty() { self.pages.at(page.up) } else { page };
        page.blocks.last().copied().unwrap_or_default()
    }

    /// Collects into `tokens` those between the end of the last block and the end of a page.
    fn open_tokens(&mut self, id: PageId) {
        self.stack.clear();
        let mut at = id;
        loop {
            self.stack.push(at);
            let page = self.pages.at(at);
            if !page.blocks.is_empty() {
                break;
            }
            at = page.parent;
        }
        while let Some(at) = self.stack.pop() {
            self.tokens.extend_from_slice(&self.pages.at(at).tail);
        }
    }

    /// Stores one page below `parent`; `tokens` and `hashes` hold what begins at `base` and reaches beyond it. `None`
    /// when it is known to be another page.
    fn store_page(
        &mut self,
        hash: PageHash,
        parent: PageId,
        len: u32,
        dark: bool,
        base: u32,
        out: &mut Ops,
    ) -> Option<PageId> {
        let key = hash.key();
        if let Some(id) = self.pages.find(key) {
            let page = self.pages.at(id);
            if page.parent != parent || page.len != len {
                return None;
            }
            // Stored twice, or told again because it was used again.
            self.pages.touch(id);
            self.add_copy(id, out);
            return Some(id);
        }
        let block = self.config.block_tokens;
        let start = self.pages.at(parent).end();
        let end = start.checked_add(len)?;
        // No request has a path this long.
        let dark = dark || self.pages.at(parent).dark || end / block > MAX_PATH as u32;
        let (mut blocks, mut tail) = (Box::default(), Box::default());
        if !dark {
            let from = ((start - base) / block) as usize;
            let to = ((end - base) / block) as usize;
            blocks = self.hashes.get(from..to)?.into();
            let tail_start = if to > from { base + to as u32 * block } else { start };
            tail = self.tokens.get((tail_start - base) as usize..(end - base) as usize)?.into();
        }
        let id = self.pages.add(NewPage { key, parent, len, dark, root: false, blocks, tail })?;
        self.add_copy(id, out);
        Some(id)
    }

    fn removed(&mut self, event: &Removed, out: &mut Ops) {
        if event.remote || !is_gpu(event.medium) || self.group.is_some_and(|ours| ours != event.group) {
            self.counters.ignored += 1;
            return;
        }
        self.counters.removed += 1;
        for hash in event.hashes {
            // One that is not known was never held here, as far as we know.
            if let Some(id) = self.pages.find(hash.key()).filter(|id| self.pages.at(*id).held) {
                let page = self.pages.at_mut(id);
                if page.copies > 1 {
                    page.copies -= 1;
                    page.doubtful = true;
                    self.copies -= 1;
                } else {
                    self.drop_page(id, out);
                }
            }
        }
    }

    fn add_copy(&mut self, id: PageId, out: &mut Ops) {
        let page = self.pages.at_mut(id);
        if !page.held {
            page.copies = 1;
            page.doubtful = false;
            self.copies += 1;
            self.set_held(id, true, out);
        } else if self.config.copies.is_some() {
            page.copies = page.copies.saturating_add(1);
            page.doubtful = false;
            self.copies += 1;
        }
    }

    /// More copies than there is room for: pages are told of again without being stored again.
    fn forget_copies(&mut self, out: &mut Ops) {
        if self.config.copies.is_none_or(|room| self.copies <= room) {
            return;
        }
        self.config.copies = None;
        self.counters.retold += 1;
        let gone: Vec<PageId> = self.pages.ids().filter(|id| self.pages.at(*id).doubtful).collect();
        self.copies = 0;
        let ids: Vec<PageId> = self.pages.ids().collect();
        for id in ids {
            let page = self.pages.at_mut(id);
            page.copies = page.copies.min(1);
            page.doubtful = false;
            self.copies += u64::from(page.copies);
        }
        for id in gone {
            // Dropping one may have freed another only where that one was not held.
            if self.pages.at(id).held {
                self.drop_page(id, out);
            }
        }
    }

    fn drop_page(&mut self, id: PageId, out: &mut Ops) {
        let page = self.pages.at_mut(id);
        self.copies -= u64::from(std::mem::take(&mut page.copies));
        page.doubtful = false;
        self.set_held(id, false, out);
        if self.pages.at(id).child == NONE {
            self.pages.free(id);
        }
    }

    /// Makes room.
    fn trim(&mut self, out: &mut Ops) {
        while self.bytes() > self.config.max_bytes {
            let Some(oldest) = self.pages.oldest() else { return };
            self.counters.dropped += 1;
            self.partial = true;
            self.drop_page(oldest, out);
        }
    }
}

fn is_gpu(medium: Option<&str>) -> bool {
    medium.is_none_or(|medium| medium.eq_ignore_ascii_case("GPU"))
}
