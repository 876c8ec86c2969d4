//! A model's tokenizer and chat template.

mod added;
mod cache;
mod completion;
mod files;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use kitoken::{Kitoken, SpecialTokenKind};
use serde_json::Value;

use crate::error::{EncodeError, LoadError};
use crate::template::ChatTemplate;
use added::{Cutter, Segment};
pub use cache::{CacheStats, PieceCache};
use files::{Frame, TokenizerConfig, TokenizerFile};

/// Longest text that is tokenised in one piece, bytes: the splitting patterns of some tokenizers take time and steps
/// in proportion to a piece, and give up on very long ones.
const MAX_PIECE: usize = 4 << 20;
/// Longest run of white space in a piece, bytes. Splitting patterns look ahead over such runs, and their library stops
/// after a million steps.
const MAX_BLANK_RUN: usize = 64 << 10;

/// Kinds of added tokens that the tokenizer's library may still find in a text: those matched in normalised text.
const KINDS: &[SpecialTokenKind] =
    &[SpecialTokenKind::Control, SpecialTokenKind::Priority, SpecialTokenKind::Unknown];

/// A tokenizer with its chat template: gives the token ids that an engine computes for the same request.
///
/// Shared by threads; nothing in it changes after loading.
pub struct TokenModel {
    library: Kitoken,
    cutter: Cutter,
    frame: Frame,
    template: Option<ChatTemplate>,
    /// Set for tokenizers that treat text at the very beginning specially: an added token that is put before any
    /// other text, so that the library sees where it stands. Its id is taken off again.
    preceding: Option<String>,
    /// Differs from model to model and from process to process; enters every key of a cache.
    key: u64,
}

impl std::fmt::Debug for TokenModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenModel").field("template", &self.template.is_some()).finish_non_exhaustive()
    }
}

/// A part of a prompt that is tokenised by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Token(u32),
    Text(Range<usize>),
}

/// A prompt as text, cut where special tokens stand.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    text: String,
    units: Vec<Unit>,
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Rendered {
    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parts that are tokenised by themselves.
    pub fn units(&self) -> usize {
        self.units.len()
    }
}

impl TokenModel {
    /// Loads a tokenizer.json, or the one in a folder, with the chat template beside it: `chat_template` (a file, or the
    /// template itself when it contains `{`), else `chat_template.jinja`, else the one in tokenizer_config.json.
    /// Without any template only plain prompts can be encoded.
    ///
    /// # Errors
    /// The file at fault and what is wrong with it. A malformed file never panics.
    pub fn load(path: impl AsRef<Path>, chat_template: Option<&str>) -> Result<Self, LoadError> {
        let (folder, tokenizer) = files::locate(path.as_ref());
        let bytes = files::read(&tokenizer)?;
        let config = match files::read_text_if_any(&folder.join("tokenizer_config.json"))? {
            Some(text) => {
                let json: Value = files::parse(&folder.join("tokenizer_config.json"), text.as_bytes())?;
                TokenizerConfig::from_json(&json)
            }
            None => TokenizerConfig::default(),
        };
        let template = match chat_template {
            Some(source) if source.contains('{') => Some(source.to_owned()),
            Some(file) => {
                let file = Path::new(file);
                let text = files::read_text_if_any(file)?;
                Some(text.ok_or_else(|| files::invalid(file, "no such chat template"))?)
            }
            None => match files::read_text_if_any(&folder.join("chat_template.jinja"))? {
                Some(text) => Some(text),
                None => config.chat_template.clone(),
            },
        };
        Self::build(&tokenizer, &bytes, template, &config)
    }

    /// Like [`load`](Self::load) from contents instead of files; `config` is that of a tokenizer_config.json.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_parts(
        tokenizer: &[u8],
        config: Option<&[u8]>,
        chat_template: Option<&str>,
    ) -> Result<Self, LoadError> {
        let config = match config {
            Some(bytes) => {
                TokenizerConfig::from_json(&files::parse(Path::new("tokenizer_config.json"), bytes)?)
            }
            None => TokenizerConfig::default(),
        };
        let template = chat_template.map(str::to_owned).or_else(|| config.chat_template.clone());
        Self::build(Path::new("tokenizer.json"), tokenizer, template, &config)
    }

    fn build(
        path: &Path,
        bytes: &[u8],
        template: Option<String>,
        config: &TokenizerConfig,
    ) -> Result<Self, LoadError> {
        let file: TokenizerFile = files::parse(path, bytes)?;
        let preceding = file
            .is_positional()
            .then(|| file.added_tokens.iter().find(|token| added::is_raw(token) && !token.rstrip))
            .flatten()
            .map(|token| token.content.clone());
        let library = library(bytes, preceding.is_some()).map_err(|what| files::invalid(path, what))?;
        let frame = file.frame().map_err(|what| files::invalid(path, what))?;
        let cutter = Cutter::new(&file.added_tokens).map_err(|what| files::invalid(path, what))?;
        let template = match template {
            Some(source) => Some(
                ChatTemplate::new(&source, &config.special_tokens)
                    .map_err(|what| LoadError::Template { path: path.to_owned(), what })?,
            ),
            None => None,
        };
        let mut hasher = RandomState::new().build_hasher();
        hasher.write(bytes);
        Ok(Self { library, cutter, frame, template, preceding, key: hasher.finish() })
    }

    /// Whether chats can be encoded.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt that an engine makes of the body of a chat completions request.
    ///
    /// # Errors
    /// The body is not what engines accept, holds something whose tokens only the engine knows, or the template
    /// refuses it.
    pub fn render_chat(&self, body: &[u8]) -> Result<Rendered, EncodeError> {
        let template = self.template.as_ref().ok_or(EncodeError::NoTemplate)?;
        let (text, add_special) = template.render(body)?;
        Ok(self.render_text(text, add_special))
    }

    /// The prompt that an engine makes of the body of a completions request: a text, or token ids.
    ///
    /// # Errors
    /// The body is not what engines accept, or holds something else than one prompt.
    pub fn render_completion(&self, body: &[u8]) -> Result<Rendered, EncodeError> {
        let (prompt, add_special) = completion::read(body)?;
        Ok(match prompt {
            completion::Prompt::Text(text) => self.render_text(text, add_special),
            completion::Prompt::Ids(before) => Rendered { before, ..Rendered::default() },
        })
    }

    /// A prompt that is text already, as in a completions request. With `add_special`, what the tokenizer puts around
    /// a text (often a token for its beginning) is there too.
    pub fn render_text(&self, text: String, add_special: bool) -> Rendered {
        let mut units = Vec::new();
        self.cutter.cut(&text, true, |segment| {
            units.push(match segment {
                Segment::Token(id) => Unit::Token(id),
                Segment::Text(range) => Unit::Text(range),
            });
        });
        let frame = if add_special { self.frame.clone() } else { Frame::default() };
        Rendered { text, units, before: frame.before, after: frame.after }
    }

    /// Token ids of the body of a chat completions request, as an engine computes them.
    ///
    /// # Errors
    /// As [`render_chat`](Self::render_chat), or the tokenizer fails.
    pub fn encode_chat(&self, body: &[u8], cache: &mut PieceCache) -> Result<Vec<u32>, EncodeError> {
        self.encode(&self.render_chat(body)?, cache)
    }

    /// Token ids of a text, as an engine computes them for a completions request (`add_special`).
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_text(
        &self,
        text: &str,
        add_special: bool,
        cache: &mut PieceCache,
    ) -> Result<Vec<u32>, EncodeError> {
        self.encode(&self.render_text(text.to_owned(), add_special), cache)
    }

    /// Token ids of a rendered prompt.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode(&self, rendered: &Rendered, cache: &mut PieceCache) -> Result<Vec<u32>, EncodeError> {
        let mut encoding = self.begin(rendered, cache);
        for (index, text) in encoding.missing(rendered) {
            let ids: Arc<[u32]> = self.encode_piece(text, index.first)?.into();
            cache.insert(index.key, &ids);
            encoding.fill(index, ids);
        }
        Ok(encoding.to_ids())
    }

    /// Token ids without any cache: the plain definition.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_uncached(&self, rendered: &Rendered) -> Result<Vec<u32>, EncodeError> {
        let mut ids = rendered.before.clone();
        ids.extend(self.encode_piece(&rendered.text, true)?);
        ids.extend(&rendered.after);
        Ok(ids)
    }

    /// Looks every part of the prompt up; what is not there is named by [`Encoding::missing`].
    pub fn begin(&self, rendered: &Rendered, cache: &mut PieceCache) -> Encoding {
        let mut slots = Vec::with_capacity(rendered.units.len() + 2);
        if !rendered.before.is_empty() {
            slots.push(Slot::Ids(rendered.before.as_slice().into()));
        }
        let mut missing_bytes = 0;
        for unit in &rendered.units {
            slots.push(match unit {
                Unit::Token(id) => Slot::Token(*id),
                Unit::Text(range) => {
                    let text = rendered.text.get(range.clone()).unwrap_or_default();
                    let first = range.start == 0;
                    let key = cache.key(self.key ^ u64::from(first && self.preceding.is_some()), text);
                    match cache.get(key) {
                        Some(ids) => Slot::Ids(ids),
                        None => {
                            missing_bytes += text.len();
                            Slot::Missing { range: range.clone(), key, first }
                        }
                    }
                }
            });
        }
        if !rendered.after.is_empty() {
            slots.push(Slot::Ids(rendered.after.as_slice().into()));
        }
        Encoding { slots, missing_bytes }
    }

    /// Token ids of a part of a prompt. `first`: nothing stands before it.
    ///
    /// # Errors
    /// The tokenizer fails, or the text is longer than it takes.
    pub fn encode_piece(&self, text: &str, first: bool) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        let mut outcome = Ok(());
        self.cutter.cut(text, false, |segment| match segment {
            Segment::Token(id) => ids.push(id),
            Segment::Text(range) if outcome.is_ok() => {
                let first = first && range.start == 0;
                outcome = self.encode_plain(text.get(range).unwrap_or_default(), first, &mut ids);
            }
            Segment::Text(_) => {}
        });
        outcome.map(|()| ids)
    }

    fn encode_plain(&self, text: &str, first: bool, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        if text.len() > MAX_PIECE || longest_blank_run(text) > MAX_BLANK_RUN {
            return Err(EncodeError::Unsupported("text too long to be tokenised in one piece"));
        }
        // The library panics when a splitting pattern gives up. That costs this request its token mode only.
        let encoded = catch_unwind(AssertUnwindSafe(|| match &self.preceding {
            Some(token) if !first => self
                .library
                .encode(format!("{token}{text}"), KINDS)
                .map(|ids| ids.into_iter().skip(1).collect()),
            _ => self.library.encode(text, KINDS),
        }));
        match encoded {
            Ok(Ok(more)) => {
                ids.extend(more);
                Ok(())
            }
            Ok(Err(error)) => Err(EncodeError::Tokenizer(error.to_string())),
            Err(_) => Err(EncodeError::Tokenizer("a splitting pattern gave up".into())),
        }
    }
}

/// Builds the library's tokenizer, without the added tokens that [`Cutter`] finds, unless `keep_added`.
fn library(bytes: &[u8], keep_added: bool) -> Result<Kitoken, String> {
    let built = catch_unwind(|| {
        let mut definition =
            kitoken::convert::convert_tokenizers(bytes).map_err(|error| error.to_string())?;
        if !keep_added {
            definition
                .specials
                .retain(|special| !special.extract || special.kind == SpecialTokenKind::Unknown);
        }
        Kitoken::from_definition(definition).map_err(|error| error.to_string())
    });
    built.unwrap_or_else(|_| Err("the tokenizer cannot be built".into()))
}

fn longest_blank_run(text: &str) -> usize {
    let mut longest = 0;
    let mut run = 0;
    for byte in text.bytes() {
        // Longer forms of white space count as text here; the library's own bound catches those.
        run = if byte.is_ascii_whitespace() { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

#[derive(Clone, Debug)]
enum Slot {
    Token(u32),
    Ids(Arc<[u32]>),
    Missing { range: Range<usize>, key: u128, first: bool },
}

/// A prompt part of whose tokens are known.
#[derive(Clone, Debug)]
pub struct Encoding {
    slots: Vec<Slot>,
    missing_bytes: usize,
}

/// A part of a prompt that is not tokenised yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingPiece {
    slot: usize,
    /// Its key in caches.
    pub key: u128,
    /// Nothing stands before it.
    pub first: bool,
}

impl Encoding {
    /// Bytes of text that are not tokenised yet.
    pub fn missing_bytes(&self) -> usize {
        self.missing_bytes
    }

    /// The parts that are not tokenised yet, with their text.
    pub fn missing<'r>(&self, rendered: &'r Rendered) -> Vec<(MissingPiece, &'r str)> {
        let texts = self.slots.iter().enumerate().filter_map(|(slot, known)| match known {
            Slot::Missing { range, key, first } => {
                let text = rendered.text.get(range.clone()).unwrap_or_default();
                Some((MissingPiece { slot, key: *key, first: *first }, text))
            }
            Slot::Token(_) | Slot::Ids(_) => None,
        });
        texts.collect()
    }

    /// Adds a part's tokens.
    pub fn fill(&mut self, piece: MissingPiece, ids: Arc<[u32]>) {
        if let Some(slot) = self.slots.get_mut(piece.slot)
            && let Slot::Missing { range, .. } = slot
        {
            self.missing_bytes -= range.len();
            *slot = Slot::Ids(ids);
        }
    }

    /// Calls `each` with the tokens in order. Parts that are still missing are left out.
    pub fn each(&self, mut each: impl FnMut(&[u32])) {
        for slot in &self.slots {
            match slot {
                Slot::Token(id) => each(std::slice::from_ref(id)),
                Slot::Ids(ids) => each(ids),
                Slot::Missing { .. } => {}
            }
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        let mut tokens = 0;
        self.each(|ids| tokens += ids.len());
        tokens
    }

    /// All tokens.
    pub fn to_ids(&self) -> Vec<u32> {
        let mut all = Vec::with_capacity(self.tokens());
        self.each(|ids| all.extend_from_slice(ids));
        all
    }
}
