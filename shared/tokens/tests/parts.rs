//! A prompt tokenised part by part, with parts taken from a cache, has the ids of the prompt tokenised at once; and
//! nothing that arrives from outside makes a panic.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::OnceLock;

use fairlead_tokens::{EncodeError, LoadError, PieceCache, TokenModel};
use proptest::prelude::*;
use serde_json::{Value, json};

const NAMES: [&str; 3] = ["headers", "parts", "turns"];

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn models() -> &'static [TokenModel] {
    static MODELS: OnceLock<Vec<TokenModel>> = OnceLock::new();
    MODELS.get_or_init(|| NAMES.iter().map(|name| TokenModel::load(folder(name), None).unwrap()).collect())
}

/// Text in which special tokens, white space and letters of many kinds meet.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z ]{0,12}",
        2 => "\\PC{0,6}",
        1 => "[ \\n\\t\\r]{1,5}",
        1 => prop::sample::select(vec![
            "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<end>", "<turn>", "<tool_call>", "</think>", "<s>", "<|im", "'s",
            "12345", "é", "e\u{301}", "\u{0}",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn message() -> impl Strategy<Value = Value> {
    (prop::sample::select(vec!["system", "user", "assistant", "tool"]), text())
        .prop_map(|(role, content)| json!({"role": role, "content": content}))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 1024 }))]

    #[test]
    fn parts_have_the_ids_of_the_whole(
        turns in prop::collection::vec(message(), 1..7),
        cache_bytes in prop_oneof![Just(0usize), 200usize..4000, Just(1 << 20)],
    ) {
        let mut cache = PieceCache::new(cache_bytes);
        for model in models() {
            // Each turn of the conversation, as a client sends it, with one cache for all models.
            for end in 1..=turns.len() {
                let body = serde_json::to_vec(&json!({"messages": &turns[..end]})).unwrap();
                let rendered = model.render_chat(&body).unwrap();
                let whole = model.encode_uncached(&rendered).unwrap();
                prop_assert_eq!(model.encode(&rendered, &mut cache).unwrap(), whole, "{:?}", rendered.text());
            }
            prop_assert!(cache.bytes() <= cache_bytes);
        }
    }

    #[test]
    fn the_next_turn_finds_all_but_itself(first in "[a-z ]{1,200}", answer in "[a-z ]{1,200}", second in "[a-z ]{1,200}") {
        let model = &models()[0];
        let mut cache = PieceCache::new(1 << 20);
        let body = |messages: Value| serde_json::to_vec(&json!({"messages": messages})).unwrap();
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        model.encode_chat(&body(json!([turn("user", &first)])), &mut cache).unwrap();
        let next = body(json!([turn("user", &first), turn("assistant", &answer), turn("user", &second)]));
        let rendered = model.render_chat(&next).unwrap();
        let begun = model.begin(&rendered, &mut cache);
        prop_assert!(begun.missing_bytes() <= answer.len() + second.len() + 4, "{} bytes", begun.missing_bytes());
    }

    #[test]
    fn no_body_makes_a_panic(body in prop::collection::vec(any::<u8>(), 0..200), text in text()) {
        let quoted = Value::from(text);
        let bodies = [
            body,
            format!(r#"{{"messages":[{{"role":{quoted},"content":{quoted}}}]}}"#).into_bytes(),
            format!(r#"{{"messages":[{{"role":"user","content":[{quoted}]}}],"chat_template_kwargs":{{{quoted}:1}},"prompt":{quoted}}}"#)
                .into_bytes(),
        ];
        for body in &bodies {
            for model in models() {
                let _ = model.encode_chat(body, &mut PieceCache::new(0));
                if let Ok(rendered) = model.render_completion(body) {
                    let _ = model.encode(&rendered, &mut PieceCache::new(0));
                }
            }
        }
    }
}

#[test]
fn a_malformed_file_is_named_and_explained() {
    let good = std::fs::read(folder("turns").join("tokenizer.json")).unwrap();
    for cut in (0..good.len()).step_by(good.len() / 40 + 1) {
        let error = TokenModel::from_parts(&good[..cut], None, None).unwrap_err();
        assert!(error.to_string().starts_with("tokenizer.json: "), "{error}");
    }
    for (wrong, says) in [
        ("{}", "tokenizer.json: "),
        ("[]", "tokenizer.json: "),
        (r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a"]}}"#, "tokenizer.json: "),
        (r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"x"}}"#, "x"),
        (r#"{"model":{"type":"Unigram","vocab":[["a",0.0],["b",1e999]],"unk_id":0}}"#, "tokenizer.json: "),
        (
            r#"{"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}}],"pair":[],"special_tokens":{}},
                "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#,
            "<s>",
        ),
        (
            r#"{"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(["},"behavior":"Isolated","invert":false},
                "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#,
            "tokenizer.json: ",
        ),
    ] {
        let error = TokenModel::from_parts(wrong.as_bytes(), None, None).unwrap_err().to_string();
        assert!(error.contains(says), "{wrong}: {error}");
    }
    let missing = TokenModel::load("/no/such/folder/tokenizer.json", None).unwrap_err();
    assert!(matches!(missing, LoadError::Read { .. }), "{missing}");
    let template = TokenModel::from_parts(&good, None, Some("{% for %}")).unwrap_err();
    assert!(matches!(template, LoadError::Template { .. }), "{template}");
    let without = TokenModel::from_parts(&good, None, None).unwrap();
    assert_eq!(without.render_chat(br#"{"messages":[]}"#).unwrap_err(), EncodeError::NoTemplate);
}

#[test]
fn long_runs_and_long_words_end() {
    for model in models() {
        for text in [" ".repeat(60_000), "a".repeat(200_000), "\n \t".repeat(20_000), "é".repeat(50_000)] {
            let ids = model.encode_text(&text, false, &mut PieceCache::new(0)).unwrap();
            assert!(!ids.is_empty());
        }
        let refused = model.encode_text(&" ".repeat(70_000), false, &mut PieceCache::new(0));
        assert!(matches!(refused, Err(EncodeError::Unsupported(_))), "{refused:?}");
    }
}
