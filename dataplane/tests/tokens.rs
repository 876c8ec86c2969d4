//! Token mode: prompts are routed by the token ids that the engines compute, and by bytes where that cannot be.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use fairlead_dataplane::runtime::Driver;
use fairlead_dataplane::{GatewayOptions, PlacementNote, TokenModels};
use fairlead_tokens::{BlockHasher, PieceCache, TokenModel};
use fairlead_wire::msg::HashSpace;

const BLOCK: u32 = 8;

fn model(name: &str, template: Option<&str>) -> Arc<TokenModel> {
    let data = format!("{}/../shared/tokens/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    Arc::new(TokenModel::load(data, template).unwrap())
}

/// An engine that counts a chat's tokens with its own tokenizer.
fn engine(model: Arc<TokenModel>) -> Engine {
    Engine::start(move |conn, request| {
        let mut cache = PieceCache::new(0);
        let tokens = match request.line().contains("chat") {
            true => model.encode_chat(&request.body, &mut cache).map_or(1, |ids| ids.len()),
            false => 3,
        };
        conn.ok(&format!(
            r#"{{"choices":[],"usage":{{"prompt_tokens":{tokens},"completion_tokens":1,"prompt_tokens_details":{{"cached_tokens":0}}}}}}"#
        ));
        Then::Keep
    })
}

fn rig(engine: &Engine, model: &Arc<TokenModel>, adjust: impl FnOnce(&mut GatewayOptions)) -> Rig {
    let rig = Rig::with(Driver::Epoll, &[engine], |options| {
        let mut models = TokenModels::default();
        models.add(Some("m"), model.clone());
        options.token_models = models;
        adjust(options);
    });
    rig.gateway.shared().block_tokens.store(BLOCK, std::sync::atomic::Ordering::Relaxed);
    rig
}

fn note(rig: &Rig) -> PlacementNote {
    let note = rig.gateway.shared().next_placement();
    note.expect("each request places its prompt")
}

fn path_of(ids: &[u32], model: &str, salt: &str) -> Vec<u64> {
    let mut path = Vec::new();
    BlockHasher::new(0, model, "", salt, 4 * BLOCK, &mut path).update_tokens(ids);
    path
}

fn scrape(rig: &Rig, line: &str) -> bool {
    rig.gateway.shared().registry().encode().lines().any(|one| one == line)
}

#[test]
fn chats_are_hashed_by_the_engines_token_ids() {
    let model = model("headers", None);
    let engine = engine(model.clone());
    let rig = rig(&engine, &model, |_| {});
    let body = r#"{"messages":[{"role":"system","content":"You are a router of requests, and of nothing else."},
        {"role":"user","content":"Grüße <|eot_id|>\nwhich way?"}],"cache_salt":"pepper","model":"m"}"#;
    assert_eq!(rig.ask(post("/v1/chat/completions", body)).status, 200);
    let placed = note(&rig);
    let ids = model.encode_chat(body.as_bytes(), &mut PieceCache::new(0)).unwrap();
    assert!(placed.path.len() > 3, "{} blocks", placed.path.len());
    assert_eq!(placed.space, HashSpace::Tokens);
    assert_eq!(*placed.path, path_of(&ids, "m", "pepper"));
    assert!(scrape(&rig, r#"fairlead_tokenised_prompts_total{model="m",how="shard"} 1"#));
    rig.assert_settled();
}

#[test]
fn completions_take_text_and_token_ids() {
    let model = model("headers", None);
    let engine = engine(model.clone());
    let rig = rig(&engine, &model, |_| {});
    let text = "the router sends every request to an engine that already holds its prefix in the cache";
    let ids = model.encode_text(text, true, &mut PieceCache::new(0)).unwrap();
    for body in
        [format!(r#"{{"model":"m","prompt":"{text}"}}"#), format!(r#"{{"model":"m","prompt":{ids:?}}}"#)]
    {
        assert_eq!(rig.ask(post("/v1/completions", &body)).status, 200);
        let placed = note(&rig);
        assert_eq!((placed.space, &*placed.path), (HashSpace::Tokens, &path_of(&ids, "m", "")), "{body}");
    }
}

#[test]
fn what_has_no_tokens_is_routed_by_bytes() {
    let model = model("parts", None);
    let engine = engine(model.clone());
    let rig = rig(&engine, &model, |_| {});
    let long = "x".repeat(600);
    let image = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"{long}"}},{{"type":"image_url","image_url":{{"url":"u"}}}}]}}]}}"#
    );
    let refused = format!(r#"{{"model":"m","messages":[{{"role":"stranger","content":"{long}"}}]}}"#);
    for (path, body, how) in [
        ("/v1/chat/completions", image, "unsupported"),
        ("/v1/chat/completions", refused, "template"),
        ("/v1/embeddings", format!(r#"{{"model":"m","input":"{long}"}}"#), "api"),
    ] {
        assert_eq!(rig.ask(post(path, &body)).status, 200);
        assert_eq!(note(&rig).space, HashSpace::Bytes, "{how}");
        let line = format!(r#"fairlead_tokenised_prompts_total{{model="m",how="{how}"}} 1"#);
        assert!(scrape(&rig, &line), "{how}");
    }
}

#[test]
fn long_texts_go_to_the_helper_and_the_next_turn_stays_on_the_shard() {
    let model = model("headers", None);
    let engine = engine(model.clone());
    let rig = rig(&engine, &model, |options| options.tokenising.deadline = PATIENCE);
    let first = "word and word ".repeat(1_000);
    let turn =
        |more: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{first}"}}{more}]}}"#);
    let second = turn(r#",{"role":"assistant","content":"yes"},{"role":"user","content":"and then?"}"#);
    for (body, how) in [(turn(""), "helper"), (second, "shard")] {
        assert_eq!(rig.ask(post("/v1/chat/completions", &body)).status, 200);
        let ids = model.encode_chat(body.as_bytes(), &mut PieceCache::new(0)).unwrap();
        assert_eq!(*note(&rig).path, path_of(&ids, "m", ""));
        let line = format!(r#"fairlead_tokenised_prompts_total{{model="m",how="{how}"}} 1"#);
        assert!(scrape(&rig, &line), "{how}");
    }
    // A long body is read by the helper altogether.
    let body = turn(&format!(r#",{{"role":"user","content":"{}"}}"#, "more of it ".repeat(8_000)));
    assert_eq!(rig.ask(post("/v1/chat/completions", &body)).status, 200);
    let ids = model.encode_chat(body.as_bytes(), &mut PieceCache::new(0)).unwrap();
    assert_eq!(*note(&rig).path, path_of(&ids, "m", ""));
    assert!(scrape(&rig, r#"fairlead_tokenised_prompts_total{model="m",how="helper"} 2"#));
    rig.assert_settled();
}

#[test]
fn who_waits_too_long_is_routed_by_bytes() {
    let model = model("headers", None);
    let engine = engine(model.clone());
    let rig = rig(&engine, &model, |options| options.tokenising.deadline = Duration::ZERO);
    let body = chat_body(&"word and word ".repeat(1_000));
    assert_eq!(rig.ask(post("/v1/chat/completions", &body)).status, 200);
    assert_eq!(note(&rig).space, HashSpace::Bytes);
    assert!(scrape(&rig, r#"fairlead_tokenised_prompts_total{model="m",how="late"} 1"#));
    // What came too late is there for the next turn.
    eventually("the helper's work is kept", || {
        assert_eq!(rig.ask(post("/v1/chat/completions", &body)).status, 200);
        note(&rig).space == HashSpace::Tokens
    });
}

#[test]
fn a_wrong_template_is_noticed_and_bytes_take_over() {
    let right = model("headers", None);
    let wrong = model("headers", Some("{% for m in messages %}{{ m.content }}{% endfor %}"));
    let engine = engine(right.clone());
    let rig = rig(&engine, &wrong, |_| {});
    let ask = |n: usize| {
        let text = format!("request {n} of some more words than one block of tokens holds, and then a few");
        assert_eq!(rig.ask(chat(&text)).status, 200);
        rig.assert_settled();
    };
    let on = || rig.gateway.shared().token_models.all().all(|mode| mode.is_on());
    assert!(on());
    for n in 0..8 {
        ask(n);
        assert_eq!(note(&rig).space, HashSpace::Tokens, "{n}");
    }
    eventually("the mismatch is noticed", || !on());
    ask(9);
    // Shorter than a block of bytes, so nothing is placed.
    let body = chat_body(&"long enough to fill a block of bytes ".repeat(10));
    assert_eq!(rig.ask(post("/v1/chat/completions", &body)).status, 200);
    assert_eq!(note(&rig).space, HashSpace::Bytes);
    assert!(scrape(&rig, r#"fairlead_tokenised_prompts_total{model="m",how="off"} 2"#));
}
