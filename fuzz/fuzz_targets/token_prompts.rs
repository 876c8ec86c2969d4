//! Request bodies through chat templates and tokenizers, and tokenizer files themselves: errors, never a panic; parts
//! and whole have the same ids.

#![no_main]

use std::sync::OnceLock;

use fairlead_tokens::{PieceCache, TokenModel};
use libfuzzer_sys::fuzz_target;

macro_rules! data {
    ($name:literal) => {
        (
            include_bytes!(concat!("../../shared/tokens/tests/data/", $name, "/tokenizer.json")),
            include_bytes!(concat!("../../shared/tokens/tests/data/", $name, "/tokenizer_config.json")),
        )
    };
}

fn models() -> &'static [TokenModel] {
    static MODELS: OnceLock<Vec<TokenModel>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let load = |tokenizer: &[u8], config: &[u8]| TokenModel::from_parts(tokenizer, Some(config), None);
        let (headers, parts, turns) = (data!("headers"), data!("parts"), data!("turns"));
        [load(headers.0, headers.1), load(parts.0, parts.1), load(turns.0, turns.1)]
            .into_iter()
            .flatten()
            .collect()
    })
}

/// The tokenizer's library panics on some files and texts, which the crate turns into errors: only a panic that gets
/// out of it is a finding, and not each one that libFuzzer's hook would see.
fn quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

fuzz_target!(init: quiet(), |data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else { return };
    if kind % 8 == 0 {
        let _ = TokenModel::from_parts(body, Some(body), None);
        return;
    }
    let models = models();
    let model = &models[usize::from(kind) % models.len()];
    let mut cache = PieceCache::new(4096);
    for rendered in [model.render_chat(body), model.render_completion(body)].into_iter().flatten() {
        let parts = model.encode(&rendered, &mut cache);
        let again = model.encode(&rendered, &mut cache);
        assert_eq!(parts, again);
        if let Ok(whole) = model.encode_uncached(&rendered) {
            assert_eq!(parts.as_deref(), Ok(&whole[..]));
        }
    }
    let text = String::from_utf8_lossy(body).into_owned();
    let rendered = model.render_text(text, kind % 2 == 0);
    if let Ok(whole) = model.encode_uncached(&rendered) {
        assert_eq!(model.encode(&rendered, &mut cache).as_deref(), Ok(&whole[..]));
    }
});
