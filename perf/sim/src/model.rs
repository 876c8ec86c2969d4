//! Step-level continuous batching with chunked prefill, without a clock or a socket of its own: the caller says when
//! a step begins and ends, so the same code runs in real, scaled and virtual time.
//!
//! A step gives every running sequence its next token or its next chunk of prompt, in the order of admission, then
//! admits waiting sequences first come first served, all within one token budget. At admission the whole room of a
//! sequence is taken, output included, so nothing is ever preempted. A prefix can be found once it has been computed;
//! output never enters the cache.

mod view;

pub use view::Prefilling;

use crate::cache::BlockCache;
use crate::events::Origin;
use crate::profile::{Profile, StepWork};
use crate::stats::Stats;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Limits and sizes of an engine.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Step costs, token budget and running limit.
    pub profile: Profile,
    /// Tokens in a KV block.
    pub block_tokens: u32,
    /// KV blocks.
    pub kv_blocks: u32,
    /// Sequences that may wait; one more is refused.
    pub max_waiting: u32,
    /// Whether prompts share blocks.
    pub prefix_caching: bool,
    /// Whether changes of the cache are kept for [`Model::take_changes`].
    pub track: bool,
    /// Whether blocks found in the cache are told again as stored, as some engines do.
    pub tell_reused: bool,
    /// Whether only first tokens and ends are told, and [`Model::stats`] has sums and counts alone: for replays, where
    /// each token would cost entries that nobody reads.
    pub sparse: bool,
}

/// Name of a sequence inside one engine: never used twice. Its lower 32 bits are the sequence's place among those
/// that wait or run: a small number, free again after its end.
pub type SeqId = u64;

/// What a sequence asks for.
#[derive(Clone, Debug)]
pub struct SeqSpec {
    /// Chained hashes of the prompt's full blocks.
    pub path: Arc<[u64]>,
    /// Length of the prompt, at least 1.
    pub prompt_tokens: u32,
    /// Tokens to make; 0 for work that ends with the prompt (embeddings).
    pub output_tokens: u32,
    /// Whether that number is the request's limit rather than where the answer ends by itself.
    pub limited: bool,
    /// What the blocks are made of; needed where changes are tracked.
    pub origin: Option<Arc<Origin>>,
    /// Leading prompt tokens whose KV has come from another instance. The last token is computed here all the same, for
    /// its output.
    pub remote: u32,
}

/// A change of what a prompt can find in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheChange {
    /// Blocks of a prompt are there, those before them were before.
    Stored {
        /// The prompt's blocks.
        path: Arc<[u64]>,
        /// Which of them.
        blocks: Range<usize>,
        /// What they are made of.
        origin: Arc<Origin>,
    },
    /// A block is gone.
    Removed(u64),
    /// All are gone.
    Cleared,
}

/// Why a sequence was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("{waiting} requests are waiting already")]
    QueueFull {
        /// Sequences waiting.
        waiting: usize,
    },
    /// The sequence could never fit.
    #[error("needs {needed} KV blocks, the engine has {capacity}")]
    TooLarge {
        /// Blocks for prompt and output.
        needed: u64,
        /// Blocks there are.
        capacity: u32,
    },
}

/// What one step did for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The sequence.
    pub id: SeqId,
    /// Tokens made so far.
    pub emitted: u32,
    /// Prompt tokens that came from the cache.
    pub cached: u32,
    /// Whether it has ended.
    pub finished: bool,
}

/// What a step reads of a sequence, apart from the rest, so that a batch is few cache lines.
#[derive(Clone, Copy, Debug)]
struct Pace {
    id: SeqId,
    prompt: u32,
    output: u32,
    computed: u32,
    emitted: u32,
}

#[derive(Clone, Debug)]
struct Seq {
    spec: SeqSpec,
    running: bool,
    held: usize,
    private: u32,
    cached: u32,
    arrived: f64,
    admitted: f64,
    first_token: f64,
    last_token: f64,
}

/// The sequences that wait or run, by place. The upper half of an id counts how often its place was taken.
#[derive(Debug, Default)]
struct Seqs {
    paces: Vec<Pace>,
    rest: Vec<Option<Seq>>,
    spare: Vec<u32>,
}

impl Seqs {
    fn insert(&mut self, seq: Seq) -> SeqId {
        let (prompt, output) = (seq.spec.prompt_tokens, seq.spec.output_tokens);
        let at = self.spare.pop().unwrap_or(self.rest.len() as u32);
        let before = self.paces.get(at as usize).map_or(0, |pace| pace.id >> 32);
        let id = (before + 1) << 32 | SeqId::from(at);
        let pace = Pace { id, prompt, output, computed: 0, emitted: 0 };
        if at as usize == self.rest.len() {
            self.paces.push(pace);
            self.rest.push(Some(seq));
        } else {
            self.paces[at as usize] = pace;
            self.rest[at as usize] = Some(seq);
        }
        id
    }

    fn has(&self, id: SeqId) -> bool {
        let at = place(id);
        self.paces.get(at).is_some_and(|pace| pace.id == id) && self.rest[at].is_some()
    }

    fn get(&self, id: SeqId) -> Option<&Seq> {
        if self.has(id) { self.rest[place(id)].as_ref() } else { None }
    }

    fn remove(&mut self, id: SeqId) -> Option<Seq> {
        if !self.has(id) {
            return None;
        }
        self.spare.push(place(id) as u32);
        self.rest[place(id)].take()
    }
}

/// The place of a sequence.
#[inline]
fn place(id: SeqId) -> usize {
    (id & 0xffff_ffff) as usize
}

#[derive(Clone, Copy, Debug)]
struct Part {
    id: SeqId,
    chunk: u32,
}

/// The state of one engine's scheduler and cache. A clone goes on by itself.
#[derive(Debug)]
pub struct Model {
    options: ModelOptions,
    cache: BlockCache,
    seqs: Seqs,
    waiting: VecDeque<SeqId>,
    running: Vec<SeqId>,
    step: Vec<Part>,
    /// How many steps of that form are under way, one after the other.
    times: u32,
    stats: Stats,
    changes: Vec<CacheChange>,
}

impl Model {
    /// An idle engine.
    pub fn new(options: ModelOptions) -> Self {
        let stats = if options.sparse { Stats::silent() } else { Stats::new() };
        let mut cache = BlockCache::new(options.kv_blocks);
        if options.track {
            cache.track();
        }
        Self {
            options,
            cache,
            seqs: Seqs::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            step: Vec::new(),
            times: 1,
            stats,
            changes: Vec::new(),
        }
    }

    /// Its sizes.
    pub fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// Its cache.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Drops every cached prefix that no running sequence holds.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
        if self.cache.named() > 0 {
            self.note_evicted();
        } else if self.options.track {
            self.cache.take_evicted().for_each(drop);
            self.changes.push(CacheChange::Cleared);
        }
    }

    /// What became of the cache since the last call, in order; always nothing unless tracked. To be called after
    /// each step.
    pub fn take_changes(&mut self) -> Vec<CacheChange> {
        std::mem::take(&mut self.changes)
    }

    /// Keeps no changes from now on, as in a copy that is only tried out.
    pub fn untrack(&mut self) {
        self.options.track = false;
        self.cache.untrack();
        self.changes = Vec::new();
    }

    /// The sequences here: those that run, then those that wait, each in order of arrival.
    pub fn ids(&self) -> impl Iterator<Item = SeqId> {
        self.running.iter().chain(&self.waiting).copied()
    }

    fn note_evicted(&mut self) {
        self.changes.extend(self.cache.take_evicted().map(CacheChange::Removed));
    }

    /// Its counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Its counters, to add what only the caller knows.
    pub fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences not yet admitted.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens whose place in the cache is taken by running sequences.
    pub fn used_tokens(&self) -> u64 {
        u64::from(self.cache.used()) * u64::from(self.options.block_tokens)
    }

    /// Prompt tokens of waiting sequences that would have to be computed.
    pub fn waiting_uncached_tokens(&self) -> u64 {
        self.waiting
            .iter()
            .filter_map(|id| self.seqs.get(*id))
            .map(|s| u64::from(s.spec.prompt_tokens - self.lookup(&s.spec).1))
            .sum()
    }

    /// Whether `count` more sequences of this form would be taken.
    pub fn check(&self, spec: &SeqSpec, count: usize) -> Result<(), Refused> {
        let needed = self.blocks_for(spec);
        if needed > u64::from(self.options.kv_blocks) {
            return Err(Refused::TooLarge { needed, capacity: self.options.kv_blocks });
        }
        if self.waiting.len() + count > self.options.max_waiting as usize {
            return Err(Refused::QueueFull { waiting: self.waiting.len() });
        }
        Ok(())
    }

    /// Enters a sequence at the end of the queue.
    pub fn submit(&mut self, spec: SeqSpec, now: f64) -> Result<SeqId, Refused> {
        self.check(&spec, 1)?;
        let seq = Seq {
            spec,
            running: false,
            held: 0,
            private: 0,
            cached: 0,
            arrived: now,
            admitted: now,
            first_token: now,
            last_token: now,
        };
        let id = self.seqs.insert(seq);
        self.waiting.push_back(id);
        Ok(id)
    }

    /// Ends a sequence early. Returns whether there was one.
    pub fn abort(&mut self, id: SeqId) -> bool {
        let Some(seq) = self.seqs.remove(id) else { return false };
        if seq.running {
            self.cache.release(&seq.spec.path[..seq.held], seq.private);
            self.running.retain(|r| *r != id);
        } else {
            self.waiting.retain(|w| *w != id);
        }
        self.stats.aborted += 1;
        true
    }

    /// Composes the next step and says how many seconds it takes; `None` when there is nothing to do.
    pub fn begin_step(&mut self, now: f64) -> Option<f64> {
        self.compose(now).map(|work| self.options.profile.step_seconds(&work))
    }

    /// As [`Self::begin_step`]; where the step makes one token of every running sequence and nothing else, more of
    /// them are begun at once: as many as end by `until`, up to the one that ends a sequence. For
    /// [`ModelOptions::sparse`], and callers who enter nothing before `until`.
    pub fn begin_steps(&mut self, now: f64, until: f64) -> Option<f64> {
        let work = self.compose(now)?;
        let (profile, n) = (&self.options.profile, self.running.len());
        let seconds = profile.step_seconds(&work);
        if work.prefill_tokens > 0 || self.step.len() < n {
            return Some(seconds);
        }
        let left = self.running.iter().map(|id| &self.seqs.paces[place(*id)]);
        let most = left.map(|pace| pace.output.saturating_sub(pace.emitted)).min().unwrap_or(1);
        // Each step has one token of context more for each sequence: k steps take k·seconds + k·(k - 1)·more.
        let more = profile.decode_context * n as f64 / 2.0;
        let (linear, room) = (seconds - more, (until - now).clamp(0.0, 1e9));
        let times = 2.0 * room / (linear + (linear * linear + 4.0 * more * room).sqrt());
        self.times = (times as u32).min(most).max(1);
        let times = f64::from(self.times);
        Some(times * (linear + times * more))
    }

    fn compose(&mut self, now: f64) -> Option<StepWork> {
        self.step.clear();
        self.times = 1;
        let mut budget = self.options.profile.token_budget;
        let mut work = StepWork::default();
        for &id in &self.running {
            if budget == 0 {
                break;
            }
            let part = plan(&self.seqs.paces[place(id)], &mut budget, &mut work);
            self.step.push(part);
        }
        while budget > 0 && self.running.len() < self.options.profile.max_running as usize {
            let Some(&id) = self.waiting.front() else { break };
            let Some(seq) = self.seqs.get(id) else {
                self.waiting.pop_front();
                continue;
            };
            let (blocks, tokens) = self.lookup(&seq.spec);
            let fresh = self.blocks_for(&seq.spec) as u32 - blocks as u32;
            if !self.cache.admit(&seq.spec.path, blocks, fresh) {
                break;
            }
            self.changes.extend(self.cache.take_evicted().map(CacheChange::Removed));
            if blocks > 0
                && self.options.track
                && self.options.tell_reused
                && let Some(origin) = seq.spec.origin.clone()
            {
                let path = Arc::clone(&seq.spec.path);
                self.changes.push(CacheChange::Stored { path, blocks: 0..blocks, origin });
            }
            self.waiting.pop_front();
            let Some(seq) = &mut self.seqs.rest[place(id)] else { break };
            let pace = &mut self.seqs.paces[place(id)];
            seq.running = true;
            seq.held = blocks;
            seq.private = fresh;
            pace.computed = tokens.max(seq.spec.remote.min(seq.spec.prompt_tokens.saturating_sub(1)));
            seq.cached = pace.computed;
            if pace.computed > tokens {
                publish(seq, pace.computed, &self.options, &mut self.cache, &mut self.changes);
            }
            seq.admitted = now;
            self.stats.admitted(seq.spec.prompt_tokens, tokens, now - seq.arrived);
            self.running.push(id);
            let part = plan(pace, &mut budget, &mut work);
            self.step.push(part);
        }
        (!self.step.is_empty()).then_some(work)
    }

    /// Applies the step begun last and appends what became of each of its sequences to `out`; with
    /// [`ModelOptions::sparse`], of those alone that have their first token or have ended. Sequences aborted meanwhile
    /// are passed over.
    pub fn end_step(&mut self, now: f64, out: &mut Vec<Progress>) {
        let step = std::mem::take(&mut self.step);
        let (sparse, times) = (self.options.sparse, self.times);
        let (mut tokens, mut made, mut ended) = (0u64, 0u64, false);
        for part in &step {
            let at = place(part.id);
            let pace = &mut self.seqs.paces[at];
            // The place may be free, or another's, after an abort.
            if pace.id != part.id {
                continue;
            }
            let decoding = pace.computed >= pace.prompt;
            if decoding && sparse && pace.emitted + times < pace.output {
                pace.emitted += times;
                made += u64::from(times);
                continue;
            }
            let Some(seq) = &mut self.seqs.rest[at] else { continue };
            tokens += u64::from(part.chunk);
            if !decoding {
                pace.computed += part.chunk;
                let computed = pace.computed;
                publish(seq, computed, &self.options, &mut self.cache, &mut self.changes);
                if pace.computed < pace.prompt {
                    continue;
                }
                self.stats.prefilled(pace.prompt, seq.cached);
                seq.first_token = now;
                if pace.output > 0 {
                    pace.emitted = 1;
                    made += 1;
                    self.stats.first_token(now - seq.arrived);
                }
            } else {
                pace.emitted += times;
                made += u64::from(times);
                self.stats.next_token(now - seq.last_token);
            }
            seq.last_token = now;
            let emitted = pace.emitted;
            let finished = emitted >= pace.output;
            out.push(Progress { id: part.id, emitted, cached: seq.cached, finished });
            if finished {
                ended = true;
                self.cache.release(&seq.spec.path[..seq.held], seq.private);
                self.stats.finished(&seq.spec, emitted, [seq.arrived, seq.admitted, seq.first_token, now]);
                self.seqs.remove(part.id);
            }
        }
        if ended {
            let seqs = &self.seqs;
            self.running.retain(|id| seqs.has(*id));
        }
        self.stats.step(tokens, made);
        self.step = step;
        self.step.clear();
    }

    fn blocks_for(&self, spec: &SeqSpec) -> u64 {
        (u64::from(spec.prompt_tokens) + u64::from(spec.output_tokens))
            .div_ceil(u64::from(self.options.block_tokens))
    }

    /// Blocks and tokens of the prompt found in the cache. The last token is always computed, for its output.
    fn lookup(&self, spec: &SeqSpec) -> (usize, u32) {
        self.found(&spec.path, spec.prompt_tokens)
    }

    fn found(&self, path: &[u64], prompt_tokens: u32) -> (usize, u32) {
        if !self.options.prefix_caching {
            return (0, 0);
        }
        let most = (prompt_tokens.saturating_sub(1) / self.options.block_tokens) as usize;
        let blocks = self.cache.matched(&path[..most.min(path.len())]);
        (blocks, blocks as u32 * self.options.block_tokens)
    }
}

/// Names the blocks of a prompt that have been computed whole.
fn publish(
    seq: &mut Seq,
    computed: u32,
    options: &ModelOptions,
    cache: &mut BlockCache,
    changes: &mut Vec<CacheChange>,
) {
    if !options.prefix_caching {
        return;
    }
    let path = &seq.spec.path;
    let full = ((computed / options.block_tokens) as usize).min(path.len());
    for at in seq.held..full.max(seq.held) {
        let new = cache.publish(path[at]);
        seq.private -= 1;
        seq.held += 1;
        if let Some(origin) = seq.spec.origin.as_ref().filter(|_| new && options.track) {
            stored(changes, path, at, origin);
        }
    }
}

/// Notes that a block was stored, together with the one before it where that was stored just before.
fn stored(changes: &mut Vec<CacheChange>, path: &Arc<[u64]>, at: usize, origin: &Arc<Origin>) {
    if let Some(CacheChange::Stored { path: last, blocks, .. }) = changes.last_mut()
        && blocks.end == at
        && Arc::ptr_eq(last, path)
    {
        blocks.end += 1;
        return;
    }
    let (path, origin) = (Arc::clone(path), Arc::clone(origin));
    changes.push(CacheChange::Stored { path, blocks: at..at + 1, origin });
}

fn plan(pace: &Pace, budget: &mut u32, work: &mut StepWork) -> Part {
    work.sequences += 1;
    let left = pace.prompt.saturating_sub(pace.computed);
    if left == 0 {
        *budget -= 1;
        work.decode_context += u64::from(pace.prompt) + u64::from(pace.emitted);
        return Part { id: pace.id, chunk: 1 };
    }
    let chunk = left.min(*budget);
    *budget -= chunk;
    work.prefill_tokens += u64::from(chunk);
    work.attended += f64::from(chunk) * (f64::from(pace.computed) + f64::from(chunk) / 2.0);
    Part { id: pace.id, chunk }
}

impl Clone for Seqs {
    fn clone(&self) -> Self {
        Self { paces: self.paces.clone(), rest: self.rest.clone(), spare: self.spare.clone() }
    }

    fn clone_from(&mut self, from: &Self) {
        let Self { paces, rest, spare } = from;
        self.paces.clone_from(paces);
        self.rest.clone_from(rest);
        self.spare.clone_from(spare);
    }
}

impl Clone for Model {
    fn clone(&self) -> Self {
        Self {
            options: self.options.clone(),
            cache: self.cache.clone(),
            seqs: self.seqs.clone(),
            waiting: self.waiting.clone(),
            running: self.running.clone(),
            step: self.step.clone(),
            times: self.times,
            stats: self.stats.clone(),
            changes: self.changes.clone(),
        }
    }

    /// Into the memory that is there: who tries out what a decision leads to copies engines all the time.
    fn clone_from(&mut self, from: &Self) {
        let Self { options, cache, seqs, waiting, running, step, times, stats, changes } = from;
        self.options.clone_from(options);
        self.cache.clone_from(cache);
        self.seqs.clone_from(seqs);
        self.waiting.clone_from(waiting);
        self.running.clone_from(running);
        self.step.clone_from(step);
        self.times = *times;
        self.stats.clone_from(stats);
        self.changes.clone_from(changes);
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
