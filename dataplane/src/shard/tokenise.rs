//! Prompts as token ids: rendered and tokenised on the shard where that is little work, on the helper thread otherwise.
//!
//! Each thread has a cache of its own of tokenised parts of prompts, so no lock is taken. A prompt is cut where special
//! tokens stand, so of a conversation's next turn only what is new is tokenised.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fairlead_openai::{Api, Scan};
use fairlead_routing::ModelEntry;
use fairlead_tokens::{BlockHasher, Encoding, MissingPiece, PieceCache, Rendered, root};

use super::Shard;
use super::decide::{Effort, Prompt, Reading, Said, Tokenised};
use crate::options::GatewayOptions;
use crate::runtime::Runtime;
use crate::shared::Shared;
use crate::token_mode::TokenMode;

thread_local! {
    static CACHE: RefCell<PieceCache> = RefCell::new(PieceCache::new(0));
}

/// A prompt of which parts are not tokenised yet.
pub struct Draft {
    prompt: Prompt,
    mode: Arc<TokenMode>,
    block: u32,
    seed: u64,
    root: u64,
    max_blocks: u32,
    rendered: Rendered,
    encoding: Encoding,
}

/// This thread's cache.
fn with_cache<T>(options: &GatewayOptions, work: impl FnOnce(&mut PieceCache) -> T) -> T {
    CACHE.with_borrow_mut(|cache| {
        let bytes = options.tokenising.cache_bytes;
        if cache.max_bytes() != bytes {
            *cache = PieceCache::new(bytes);
        }
        work(cache)
    })
}

/// Reads a body of a model by its token ids. Otherwise the reason why its bytes are to be taken, where the model has a
/// tokenizer at all.
pub fn read(
    body: &[u8],
    scan: &Scan<'_>,
    api: Api,
    entry: &ModelEntry,
    shared: &Shared,
    options: &GatewayOptions,
    effort: Effort,
) -> Result<Reading, Option<&'static str>> {
    let (base, adapter) = &entry.hash_names;
    let mode = shared.token_models.of(&entry.name, base).ok_or(None)?;
    if let Effort::BytesOnly(why) = effort {
        return Err(Some(why));
    }
    if !matches!(api, Api::Chat | Api::Completions) {
        return Err(Some("api"));
    }
    if !mode.is_on() {
        return Err(Some("off"));
    }
    if effort == Effort::Shard && body.len() > options.tokenising.in_line_body {
        return Ok(Reading::Whole);
    }
    let rendered =
        if api == Api::Chat { mode.model().render_chat(body) } else { mode.model().render_completion(body) };
    let rendered = rendered.map_err(|error| {
        tracing::debug!(model = mode.name(), %error, "a prompt is routed by its bytes");
        Some(error.reason())
    })?;
    let block = shared.block_tokens.load(Ordering::Relaxed);
    let salt = scan.cache_salt.as_deref().unwrap_or("");
    let seed = shared.cluster_seed.load(Ordering::Relaxed);
    let prompt = Prompt {
        api,
        model: entry.name.clone(),
        stream: scan.stream,
        said: Said::of(scan, body),
        path: Arc::default(),
        bytes: 0,
        tokens: 0,
        tokenised: None,
        how: None,
    };
    let encoding = with_cache(options, |cache| mode.model().begin(&rendered, cache));
    let mut draft = Draft {
        prompt,
        mode: mode.clone(),
        block,
        seed,
        root: root(seed, base, adapter, salt, block.saturating_mul(4)),
        max_blocks: options.max_blocks,
        rendered,
        encoding,
    };
    if effort == Effort::Shard && draft.encoding.missing_bytes() > options.tokenising.in_line_text {
        return Ok(Reading::Parts(Box::new(draft)));
    }
    for (piece, text) in draft.encoding.missing(&draft.rendered) {
        let ids = mode.model().encode_piece(text, piece.first).map_err(|error| Some(error.reason()))?;
        let ids: Arc<[u32]> = ids.into();
        with_cache(options, |cache| cache.insert(piece.key, &ids));
        draft.encoding.fill(piece, ids);
    }
    Ok(Reading::Ready(draft.finish(if effort == Effort::Shard { "shard" } else { "helper" })))
}

impl Draft {
    fn finish(mut self, how: &'static str) -> Prompt {
        let tokens = self.encoding.tokens();
        let mut path =
            Vec::with_capacity((tokens / self.block.max(1) as usize).min(self.max_blocks as usize));
        let mut hasher =
            BlockHasher::from_root(self.seed, self.root, self.block.saturating_mul(4), &mut path)
                .max_blocks(self.max_blocks);
        self.encoding.each(|ids| hasher.update_tokens(ids));
        hasher.finish();
        self.prompt.path = Arc::new(path);
        self.prompt.tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        self.prompt.tokenised = Some(Tokenised { mode: self.mode, block: self.block });
        self.prompt.how = Some(how);
        self.prompt
    }
}

type Encoded = Vec<(MissingPiece, Arc<[u32]>)>;

/// Has the missing parts tokenised on the helper thread. `None` when it has no room or fails. What comes after the
/// caller has given up still goes into this shard's cache, for the conversation's next turn.
pub async fn on_helper<R: Runtime>(shard: &Rc<Shard<R>>, mut draft: Draft) -> Option<Prompt> {
    let model = draft.mode.model().clone();
    let parts: Vec<(MissingPiece, String)> = draft
        .encoding
        .missing(&draft.rendered)
        .into_iter()
        .map(|(piece, text)| (piece, text.to_owned()))
        .collect();
    let work = move || -> Option<Encoded> {
        let encode = |(piece, text): (MissingPiece, String)| {
            let ids = model.encode_piece(&text, piece.first).ok()?;
            Some((piece, ids.into()))
        };
        parts.into_iter().map(encode).collect()
    };
    let done = Rc::new(RefCell::new(None));
    let notify = Rc::new(crate::runtime::Notify::default());
    let (task_done, task_notify, task_shard) = (done.clone(), notify.clone(), shard.clone());
    R::spawn(async move {
        let encoded = task_shard.shared.offload.run_if_room(work).await.flatten();
        if let Some(encoded) = &encoded {
            with_cache(&task_shard.options, |cache| {
                encoded.iter().for_each(|(piece, ids)| cache.insert(piece.key, ids));
            });
        }
        *task_done.borrow_mut() = encoded;
        task_notify.notify();
    });
    notify.notified().await;
    let encoded: Encoded = done.borrow_mut().take()?;
    for (piece, ids) in encoded {
        draft.encoding.fill(piece, ids);
    }
    Some(draft.finish("helper"))
}
