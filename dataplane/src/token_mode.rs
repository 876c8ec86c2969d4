//! Which models have a tokenizer, and whether its ids are those of the engines.
//!
//! A wrong tokenizer or template makes prompts look new that an engine holds, for as long as nobody notices. Every answer
//! that tells the number of its prompt's tokens is compared with the number computed here, and where an engine reports
//! each change of its cache, so is the number of cached tokens. When most of the last answers differ, the model's
//! prompts are routed by their bytes from then on: the operator is told once, and `fairlead_token_mode` shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ahash::AHashMap;
use fairlead_tokens::TokenModel;

/// Answers looked back at.
const WINDOW: u32 = 32;
/// Answers without which nothing is judged.
const ENOUGH: u32 = 8;

/// Tokenizers by model.
#[derive(Clone, Debug, Default)]
pub struct TokenModels {
    by_name: AHashMap<String, Arc<TokenMode>>,
    others: Option<Arc<TokenMode>>,
}

impl TokenModels {
    /// Adds the tokenizer of a model, or of all models that have none of their own (`None`). A later one replaces an
    /// earlier one of the same name.
    pub fn add(&mut self, name: Option<&str>, model: Arc<TokenModel>) {
        let mode = Arc::new(TokenMode::new(name.unwrap_or("*"), model));
        match name {
            Some(name) => {
                self.by_name.insert(name.to_owned(), mode);
            }
            None => self.others = Some(mode),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.others.is_none()
    }

    /// The tokenizer of a model; an adapter has its base model's unless it has its own.
    pub fn of(&self, name: &str, base: &str) -> Option<&Arc<TokenMode>> {
        self.by_name.get(name).or_else(|| self.by_name.get(base)).or(self.others.as_ref())
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<TokenMode>> {
        self.by_name.values().chain(&self.others)
    }
}

/// A model's tokenizer, and how well it does.
#[derive(Debug)]
pub struct TokenMode {
    name: String,
    model: Arc<TokenModel>,
    prompts: Record,
    cached: Record,
    off: AtomicBool,
}

/// What an answer showed.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Tokens of the prompt, as computed here.
    pub computed: u64,
    /// As the engine counted them.
    pub counted: u64,
    /// Cached tokens as predicted and as reported, when the target's cache is known exactly.
    pub cached: Option<(u64, u64)>,
    /// Tokens in a block.
    pub block: u32,
}

impl TokenMode {
    fn new(name: &str, model: Arc<TokenModel>) -> Self {
        Self {
            name: name.to_owned(),
            model,
            prompts: Record::default(),
            cached: Record::default(),
            off: AtomicBool::new(false),
        }
    }

    /// Name of the model; `*` for the tokenizer of all that have none of their own.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tokenizer.
    pub fn model(&self) -> &Arc<TokenModel> {
        &self.model
    }

    /// Whether prompts are routed by their token ids.
    pub fn is_on(&self) -> bool {
        !self.off.load(Ordering::Relaxed)
    }

    /// Takes an answer into account. The answer with which byte mode takes over is reported.
    pub fn compare(&self, seen: &Compared) {
        let differs = seen.computed != seen.counted;
        let (wrong, of) = self.prompts.push(differs);
        if differs && of >= ENOUGH && wrong * 2 > of && self.turn_off() {
            tracing::error!(
                model = self.name,
                answers = of,
                differing = wrong,
                computed = seen.computed,
                engine = seen.counted,
                "the tokenizer or chat template is not the engines': prompts have another number of tokens there; \
                 routing this model by bytes from now on"
            );
        }
        // Cached at the engine and unknown here. (The other way round, an engine has evicted a moment ago.)
        let Some((predicted, reported)) =
            seen.cached.filter(|(predicted, reported)| predicted + reported > 0)
        else {
            return;
        };
        let unknown = !differs && reported > predicted + 2 * u64::from(seen.block);
        let (wrong, of) = self.cached.push(unknown);
        if unknown && of >= WINDOW / 2 && wrong * 2 > of && self.turn_off() {
            tracing::error!(
                model = self.name,
                answers = of,
                differing = wrong,
                predicted,
                engine = reported,
                "engines have cached what is not known here: the tokenizer, the chat template or the model's name is \
                 another there; routing this model by bytes from now on"
            );
        }
    }

    /// Whether this call did it.
    fn turn_off(&self) -> bool {
        !self.off.swap(true, Ordering::Relaxed)
    }
}

/// The last answers: one bit each, set where it differed, and how many there were.
#[derive(Debug, Default)]
struct Record(AtomicU64);

impl Record {
    /// Adds an answer; how many of how many differed. A race between shards may lose one answer.
    fn push(&self, differs: bool) -> (u32, u32) {
        let before = self.0.load(Ordering::Relaxed);
        let count = (before >> WINDOW).min(u64::from(WINDOW) - 1) + 1;
        let bits = (before << 1 | u64::from(differs)) & u64::from(u32::MAX);
        self.0.store(count << WINDOW | bits, Ordering::Relaxed);
        (bits.count_ones(), count as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode() -> TokenMode {
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/tokens/tests/data/parts");
        TokenMode::new("m", Arc::new(TokenModel::load(data, None).unwrap()))
    }

    fn answer(computed: u64, counted: u64, cached: Option<(u64, u64)>) -> Compared {
        Compared { computed, counted, cached, block: 64 }
    }

    #[test]
    fn a_wrong_template_is_found_out_and_odd_answers_are_not() {
        let wrong = mode();
        for n in 0..ENOUGH {
            assert!(wrong.is_on(), "after {n} answers");
            wrong.compare(&answer(100, 104, None));
        }
        assert!(!wrong.is_on());
        let right = mode();
        for n in 0..200 {
            right.compare(&answer(100, if n % 3 == 0 { 90 } else { 100 }, Some((640, 640))));
        }
        assert!(right.is_on());
    }

    #[test]
    fn a_cache_that_is_never_known_is_found_out() {
        let wrong = mode();
        for _ in 0..WINDOW {
            wrong.compare(&answer(1000, 1000, Some((0, 900))));
        }
        assert!(!wrong.is_on());
        let right = mode();
        for n in 0..200 {
            // New prompts, small differences, and predictions that an eviction has overtaken.
            let cached = [(0, 0), (640, 700), (640, 0)][n % 3];
            right.compare(&answer(1000, 1000, Some(cached)));
        }
        assert!(right.is_on());
    }

    #[test]
    fn adapters_have_their_base_models_tokenizer() {
        let model = mode().model;
        let mut models = TokenModels::default();
        assert!(models.is_empty() && models.of("a", "a").is_none());
        models.add(Some("base"), model.clone());
        assert_eq!(models.of("lora", "base").unwrap().name(), "base");
        assert!(models.of("other", "other").is_none());
        models.add(None, model.clone());
        models.add(Some("lora"), model);
        assert_eq!(models.of("lora", "base").unwrap().name(), "lora");
        assert_eq!(models.of("other", "other").unwrap().name(), "*");
        assert_eq!(models.all().count(), 3);
    }
}
