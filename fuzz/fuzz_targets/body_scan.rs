//! Any bytes as a request body: the scan judges them as the plain check does, its spans are values, and the canonical
//! prompt hashes alike however it is handed over.
#![no_main]

use fairlead_openai::{Api, canonical, scan, validate};
use fairlead_tokens::{BlockHasher, hash_blocks, root};
use libfuzzer_sys::fuzz_target;

const APIS: [Api; 11] = [
    Api::Chat,
    Api::Completions,
    Api::Embeddings,
    Api::Responses,
    Api::Messages,
    Api::CountTokens,
    Api::Rerank,
    Api::Score,
    Api::Tokenize,
    Api::Detokenize,
    Api::Other,
];

const BLOCK: u32 = 16;

fuzz_target!(|body: &[u8]| {
    let valid = validate(body);
    if let Err(error) = &valid {
        assert!(error.offset <= body.len());
        assert!(error.place.len() < 1024);
    }
    for api in APIS {
        let found = match scan(body, api) {
            Ok(found) => found,
            Err(error) => {
                assert!(error.offset <= body.len());
                continue;
            }
        };
        assert!(valid.is_ok());
        let prompt = &found.prompt;
        for span in [
            found.model_span,
            prompt.tools,
            prompt.functions,
            prompt.system,
            prompt.messages,
            prompt.text,
            prompt.query,
            prompt.documents,
        ] {
            if let Some(span) = span {
                assert!(validate(span.of(body)).is_ok());
            }
        }
        let mut whole = Vec::new();
        canonical(body, &found, api, &mut |piece: &[u8]| whole.extend_from_slice(piece));
        let mut hashes = Vec::new();
        let mut hasher = BlockHasher::new(1, "model", "", "", BLOCK, &mut hashes);
        canonical(body, &found, api, &mut |piece: &[u8]| hasher.update(piece));
        assert_eq!(hasher.finish().bytes, whole.len() as u64);
        assert_eq!(hashes, hash_blocks(1, root(1, "model", "", "", BLOCK), BLOCK, &whole));
    }
});
