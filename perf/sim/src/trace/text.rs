//! Prompts for block ids: equal ids give equal text, different ids different text.
//!
//! A block of `n` tokens is `n · token_bytes` bytes of four-byte words: its id spelt in the first words after the
//! third, words that follow from the id before and after. Words cost a shift each, so a prompt of 12,000 tokens takes
//! some 20 µs and nothing needs to be kept.
//!
//! The chat template's own bytes count: they stand where the block's would, so that the prompt as an engine sees it
//! has the length of the trace and its blocks begin where the trace's do.

use super::Ask;
use crate::prompt::{self, Api};
use crate::text::{mix, word};

/// Bytes of a word.
const WORD: usize = 4;
/// Words with which an id is told apart for certain: 64 bits, 6 in each.
const ID_WORDS: u32 = 11;
/// Words before them, which a template may cover.
const LEAD: u32 = 3;

/// How many bytes a chat template of one user message puts before and behind it, as simulated engines count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes before the message.
    pub before: usize,
    /// Bytes behind it.
    pub behind: usize,
}

impl Frame {
    /// That of simulated engines.
    pub fn of_sim() -> Self {
        const MARK: &[u8] = b"\x01";
        let body = br#"{"messages":[{"role":"user","content":"\u0001"}]}"#;
        let text = prompt::parse(Api::Chat, body).ok().and_then(|mut a| a.prompts.pop()).unwrap_or_default();
        let before = text.iter().position(|b| [*b] == MARK).unwrap_or(0);
        Self { before, behind: text.len().saturating_sub(before + 1) }
    }
}

/// Writes the requests of one session.
#[derive(Debug)]
pub struct Writer {
    /// Tokens in a block of the trace.
    pub block_tokens: u32,
    /// Bytes of text per token.
    pub token_bytes: u32,
    /// What the engine's template adds.
    pub frame: Frame,
    /// Keeps the texts of runs with different seeds apart.
    pub seed: u64,
    path: Vec<u64>,
}

impl Writer {
    /// A writer for one session.
    pub fn new(block_tokens: u32, token_bytes: u32, frame: Frame, seed: u64) -> Self {
        Self { block_tokens, token_bytes, frame, seed, path: Vec::new() }
    }

    /// The ids of the request last written.
    pub fn path(&self) -> &[u64] {
        &self.path
    }

    /// Appends the message of a request, which must follow the one written before it in its session. What of the
    /// prompt no block covers is text of `own` alone.
    pub fn write(&mut self, ask: &Ask, own: u64, out: &mut Vec<u8>) {
        self.path.truncate(ask.shared as usize);
        for (first, n) in &ask.fresh {
            self.path.extend((0..u64::from(*n)).map(|i| first.wrapping_add(i)));
        }
        let whole = ask.input as usize * self.token_bytes as usize;
        let block = self.block_tokens as usize * self.token_bytes as usize;
        // At least a word, so that no message is empty.
        let end = whole.saturating_sub(self.frame.behind).max(self.frame.before + WORD);
        let (mut at, mut skip) = (0, self.frame.before);
        out.reserve(end - skip);
        for id in &self.path {
            if at >= end {
                break;
            }
            words(mix(*id ^ mix(self.seed)), skip.min(block), block.min(end - at), out);
            skip = skip.saturating_sub(block);
            at += block;
        }
        if at < end {
            words(mix(own ^ mix(!self.seed)), skip, end - at, out);
        }
    }
}

/// Bytes `from..to` of a block's text.
fn words(name: u64, from: usize, to: usize, out: &mut Vec<u8>) {
    let start = out.len();
    let (mut index, mut left, mut bits) = (0u32, 0u32, 0u64);
    let aligned = from / WORD;
    let mut written = 0;
    while written < to.saturating_sub(aligned * WORD) {
        let n = if (LEAD..LEAD + ID_WORDS).contains(&index) {
            name >> (6 * (index - LEAD))
        } else {
            if left == 0 {
                bits = mix(name ^ (u64::from(index) << 20));
                left = 10;
            }
            left -= 1;
            bits >>= 6;
            bits
        };
        if index as usize >= aligned {
            out.extend_from_slice(word(n & 63));
            written += WORD;
        }
        index += 1;
    }
    let excess = written.saturating_sub(to.saturating_sub(aligned * WORD));
    out.truncate(out.len() - excess);
    // The bytes of the first word that the template covers.
    let cut = (from - aligned * WORD).min(out.len() - start);
    out.drain(start..start + cut);
}
