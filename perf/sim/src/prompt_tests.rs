use super::*;
use serde_json::json;

fn text(api: Api, body: &Value) -> String {
    let ask = parse(api, body.to_string().as_bytes()).unwrap();
    String::from_utf8(ask.prompts[0].clone()).unwrap()
}

#[test]
fn a_further_turn_keeps_the_prefix() {
    let one = json!({"model":"m","messages":[
        {"role":"system","content":"be brief"},{"role":"user","content":"hi"}]});
    let two = json!({"model":"m","messages":[
        {"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"hi"}]},
        {"role":"assistant","content":"hello"},{"role":"user","content":"more"}]});
    let (a, b) = (text(Api::Chat, &one), text(Api::Chat, &two));
    assert!(b.starts_with(&a), "{a}\n{b}");
    let (x, y) = (block_hashes(a.as_bytes(), "m", "", 4), block_hashes(b.as_bytes(), "m", "", 4));
    assert_eq!(x[..], y[..x.len()]);
    assert_eq!(x.len(), a.len() / 16);
}

#[test]
fn the_same_conversation_by_another_route_has_the_same_text() {
    let chat = json!({"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]});
    let messages = json!({"max_tokens":5,"system":"s","messages":[{"role":"user","content":"u"}]});
    let responses = json!({"instructions":"s","input":"u"});
    assert_eq!(text(Api::Chat, &chat), text(Api::Messages, &messages));
    assert_eq!(text(Api::Chat, &chat), text(Api::Responses, &responses));
}

#[test]
fn model_and_salt_part_the_caches() {
    let t = [b'x'; 256];
    let base = block_hashes(&t, "m", "", 16);
    assert_ne!(base[0], block_hashes(&t, "n", "", 16)[0]);
    assert_ne!(base[0], block_hashes(&t, "m", "salt", 16)[0]);
    assert_eq!(base.len(), 4);
}

#[test]
fn tokens_go_there_and_back() {
    for t in ["", "a", "abcd", "hello wörld"] {
        assert_eq!(detokenize(&token_ids(t.as_bytes())), t);
    }
    assert_eq!(count_tokens(b""), 1);
    assert_eq!(count_tokens(b"abcde"), 2);
}

#[test]
fn prompts_come_in_four_forms() {
    for (p, n, first) in [
        (json!("ab"), 1, 2),
        (json!(["ab", "cd"]), 2, 2),
        (json!([1, 2, 3]), 1, 12),
        (json!([[1], [2, 3]]), 2, 4),
    ] {
        let ask = parse(Api::Completions, json!({"prompt": p}).to_string().as_bytes()).unwrap();
        assert_eq!((ask.prompts.len(), ask.prompts[0].len()), (n, first), "{p}");
    }
}

#[test]
fn faults_are_named() {
    for (api, body, param, says) in [
        (Api::Chat, "{", None, "JSON"),
        (Api::Chat, "[]", None, "object"),
        (Api::Chat, "{}", Some("messages"), "required"),
        (Api::Chat, r#"{"messages":[]}"#, Some("messages"), "at least one"),
        (Api::Chat, r#"{"messages":[{"content":"x"}]}"#, Some("messages"), "messages[0].role"),
        (Api::Chat, r#"{"messages":[{"role":"user","content":5}]}"#, Some("messages"), "messages[0].content"),
        (Api::Chat, r#"{"messages":[{"role":"u","content":"x"}],"stream":1}"#, Some("stream"), "boolean"),
        (
            Api::Chat,
            r#"{"messages":[{"role":"u","content":"x"}],"max_tokens":0}"#,
            Some("max_tokens"),
            "at least 1",
        ),
        (Api::Chat, r#"{"messages":[{"role":"u","content":"x"}],"n":0}"#, Some("n"), "between"),
        (Api::Chat, r#"{"messages":[],"stream_options":{}}"#, Some("stream_options"), "stream"),
        (Api::Completions, r#"{"prompt":{}}"#, Some("prompt"), "text"),
        (Api::Completions, r#"{"prompt":[1,-2]}"#, Some("prompt"), "token ids"),
        (Api::Messages, r#"{"messages":[{"role":"user","content":"x"}]}"#, Some("max_tokens"), "required"),
        (Api::Rerank, r#"{"documents":["a"]}"#, Some("query"), "required"),
        (Api::Detokenize, r#"{"tokens":["a"]}"#, Some("tokens"), "ids"),
    ] {
        let e = parse(api, body.as_bytes()).unwrap_err();
        assert_eq!(e.param, param, "{body}");
        assert!(e.message.contains(says), "{body}: {}", e.message);
    }
}
