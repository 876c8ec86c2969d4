//! Prompts as the token ids of a real tokenizer.
//!
//! Chats go through the model's chat template as engines do it. Prompts of the other routes are the text that
//! [`crate::prompt`] writes, tokenised.

use crate::engine::lock;
use crate::prompt::{BadRequest, id_bytes};
use fairlead_tokens::{EncodeError, PieceCache, TokenModel};
use std::sync::{Arc, Mutex};

/// Bytes of tokenised pieces kept.
const MAX_CACHE: usize = 32 << 20;

/// A tokenizer and what it has tokenised lately.
pub struct Tokeniser {
    model: Arc<TokenModel>,
    cache: Mutex<PieceCache>,
}

impl std::fmt::Debug for Tokeniser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokeniser").finish_non_exhaustive()
    }
}

impl Tokeniser {
    /// For one engine.
    pub fn new(model: Arc<TokenModel>) -> Self {
        Self { model, cache: Mutex::new(PieceCache::new(MAX_CACHE)) }
    }

    /// The ids of a chat request's prompt, as bytes.
    pub(crate) fn chat(&self, body: &[u8]) -> Result<Vec<u8>, BadRequest> {
        self.model.encode_chat(body, &mut lock(&self.cache)).map(|ids| id_bytes(&ids)).map_err(refused)
    }

    /// The ids of a text, as bytes; with `special`, what a tokenizer puts around one is there too.
    pub(crate) fn text(&self, text: &str, special: bool) -> Result<Vec<u8>, BadRequest> {
        let ids = self.model.encode_text(text, special, &mut lock(&self.cache));
        ids.map(|ids| id_bytes(&ids)).map_err(refused)
    }
}

fn refused(e: EncodeError) -> BadRequest {
    BadRequest { message: e.to_string(), param: Some("messages") }
}
