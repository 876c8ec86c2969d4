//! Added tokens: what is matched in a text before the tokenizer's model sees it.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;

/// An entry of `added_tokens` in a tokenizer.json.
#[derive(Clone, Debug, Deserialize)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Matches only between characters that are not part of words.
    #[serde(default)]
    pub single_word: bool,
    /// Takes the white space before it.
    #[serde(default)]
    pub lstrip: bool,
    /// Takes the white space after it.
    #[serde(default)]
    pub rstrip: bool,
    /// Matched in the normalised text instead of the raw one.
    #[serde(default)]
    pub normalized: bool,
    /// A control token, as opposed to a word that was added to the vocabulary.
    #[serde(default)]
    pub special: bool,
}

/// A stretch of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// An added token.
    Token(u32),
    /// Text between added tokens, never empty.
    Text(Range<usize>),
}

/// Finds added tokens, the leftmost and among those the longest, as the `tokenizers` library does for tokens that are
/// matched in raw text.
#[derive(Debug)]
pub struct Cutter {
    finder: Option<AhoCorasick>,
    tokens: Vec<AddedToken>,
}

impl Cutter {
    /// A finder of those of `added` that are matched in raw text; the others belong to the tokenizer's model.
    ///
    /// # Errors
    /// The tokens are too many or too long.
    pub fn new(added: &[AddedToken]) -> Result<Self, String> {
        let tokens: Vec<_> =
            added.iter().filter(|token| is_raw(token)).filter(|t| !t.content.is_empty()).cloned().collect();
        if tokens.is_empty() {
            return Ok(Self { finder: None, tokens });
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.content))
            .map_err(|error| error.to_string())?;
        Ok(Self { finder: Some(finder), tokens })
    }

    /// Calls `each` with the stretches of `text` in order. With `special_only`, tokens that are words stay in the
    /// text around them.
    pub fn cut(&self, text: &str, special_only: bool, mut each: impl FnMut(Segment)) {
        let mut done = 0;
        if let Some(finder) = &self.finder {
            for found in finder.find_iter(text) {
                let Some(token) = self.tokens.get(found.pattern().as_usize()) else { continue };
                if (special_only && !token.special) || found.start() < done {
                    continue;
                }
                let mut start = found.start();
                let mut end = found.end();
                if token.lstrip {
                    let before = text.get(done..start).unwrap_or_default();
                    start = done + before.trim_end().len();
                }
                if token.rstrip {
                    let after = text.get(end..).unwrap_or_default();
                    end += after.len() - after.trim_start().len();
                }
                if start > done {
                    each(Segment::Text(done..start));
                }
                each(Segment::Token(token.id));
                done = end;
            }
        }
        if text.len() > done {
            each(Segment::Text(done..text.len()));
        }
    }
}

/// Whether the token is matched in raw text by its bytes alone.
pub fn is_raw(token: &AddedToken) -> bool {
    !token.normalized && !token.single_word
}
