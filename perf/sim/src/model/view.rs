//! What a planner may know of an engine that no gateway can: the true state of its queue.

use std::sync::Arc;

use super::{Model, SeqId, place};

/// A sequence that has no first token yet.
#[derive(Clone, Copy, Debug)]
pub struct Prefilling<'a> {
    /// The sequence.
    pub id: SeqId,
    /// Length of its prompt.
    pub prompt_tokens: u32,
    /// Tokens of it that are computed or came from the cache; `None` while it waits.
    pub computed: Option<u32>,
    /// Chained hashes of the prompt's full blocks.
    pub path: &'a Arc<[u64]>,
}

impl Model {
    /// Sequences past their prompt, and the tokens of context that they have in all.
    pub fn decoding(&self) -> (u32, u64) {
        let paces = self.running.iter().map(|id| &self.seqs.paces[place(*id)]);
        let decoding = paces.filter(|pace| pace.computed >= pace.prompt);
        decoding.fold((0, 0), |(n, context), pace| {
            (n + 1, context + u64::from(pace.prompt) + u64::from(pace.emitted))
        })
    }

    /// The sequences whose prompt is not computed yet, in the order in which their chunks come.
    pub fn prefilling(&self) -> impl Iterator<Item = Prefilling<'_>> {
        let running = self.running.iter().filter(|id| {
            let pace = &self.seqs.paces[place(**id)];
            pace.computed < pace.prompt
        });
        let of = |id: SeqId, waiting: bool| {
            let pace = &self.seqs.paces[place(id)];
            self.seqs.get(id).map(|seq| Prefilling {
                id,
                prompt_tokens: pace.prompt,
                computed: (!waiting).then_some(pace.computed),
                path: &seq.spec.path,
            })
        };
        let running = running.filter_map(move |id| of(*id, false));
        running.chain(self.waiting.iter().filter_map(move |id| of(*id, true)))
    }

    /// Leading blocks of a prompt that would be found in the cache now.
    pub fn cached_blocks(&self, path: &[u64], prompt_tokens: u32) -> u32 {
        self.found(path, prompt_tokens).0 as u32
    }
}
