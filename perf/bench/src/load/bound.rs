//! The hit ratio of one cache without limits.

use ahash::RandomState;
use fairlead_sim::prompt::{self, Api};
use std::collections::HashSet;

/// Blocks remembered at most (about 150 MB); a load with more has no bound.
const MAX_BLOCKS: usize = 8 << 20;

/// Remembers every block ever sent, in the order of sending, and counts which tokens it had seen.
#[derive(Debug)]
pub struct InfiniteCache {
    block_tokens: u32,
    seen: HashSet<u64, RandomState>,
    matched: u64,
    total: u64,
    full: bool,
    counting: bool,
}

impl InfiniteCache {
    /// An empty cache with blocks of so many tokens.
    pub fn new(block_tokens: u32) -> Self {
        Self { block_tokens, seen: HashSet::default(), matched: 0, total: 0, full: false, counting: true }
    }

    /// Counts a chat request as it is sent: the leading blocks seen before, never the last token, which an engine
    /// always computes.
    pub fn send(&mut self, model: &str, body: &[u8]) {
        let Ok(ask) = prompt::parse(Api::Chat, body) else { return };
        for text in &ask.prompts {
            self.send_prompt(model, &ask.salt, text);
        }
    }

    /// Whether what is sent from now on is counted, or only remembered.
    pub fn count(&mut self, counting: bool) {
        self.counting = counting;
    }

    fn send_prompt(&mut self, model: &str, salt: &str, text: &[u8]) {
        let path = prompt::block_hashes(text, model, salt, self.block_tokens);
        self.send_path(&path, self.block_tokens, prompt::count_tokens(text));
    }

    /// Counts a prompt whose blocks of `block_tokens` tokens have these names.
    pub fn send_path(&mut self, path: &[u64], block_tokens: u32, tokens: u32) {
        if self.counting {
            let most = (tokens.saturating_sub(1) / block_tokens.max(1)) as usize;
            let hit = path[..most.min(path.len())].iter().take_while(|h| self.seen.contains(h)).count();
            self.matched += hit as u64 * u64::from(block_tokens);
            self.total += u64::from(tokens);
        }
        if self.seen.len() + path.len() > MAX_BLOCKS {
            self.full = true;
        } else {
            self.seen.extend(path.iter());
        }
    }

    /// Share of the tokens sent that had been seen; `None` when nothing was sent or there was too much to remember.
    pub fn ratio(&self) -> Option<f64> {
        (self.total > 0 && !self.full).then(|| self.matched as f64 / self.total as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(messages: &[&str]) -> Vec<u8> {
        let m: Vec<_> = messages.iter().map(|t| json!({"role": "user", "content": t})).collect();
        json!({"messages": m}).to_string().into_bytes()
    }

    #[test]
    fn only_what_was_sent_before_counts() {
        let mut c = InfiniteCache::new(16);
        assert_eq!(c.ratio(), None);
        let long = "x".repeat(1000);
        c.send("m", &body(&[&long]));
        assert_eq!(c.ratio(), Some(0.0));
        c.send("m", &body(&[&long, "more"]));
        let (matched, total) = (c.matched, c.total);
        // Of the 16 whole blocks the last reaches past the message, where the two part.
        assert_eq!(matched, 240);
        c.send("other", &body(&[&long]));
        assert_eq!(c.matched, matched);
        assert!(c.total > total);
    }
}
