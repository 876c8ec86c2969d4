//! What clients of an engine see.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
use common::*;
use fairlead_sim::{EngineKind, SimOptions};
use http_body_util::BodyExt;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn chat_in_one_piece_and_as_a_stream_say_the_same() {
    let sim = start(quick());
    let (status, whole) = post(sim.addr(), "/v1/chat/completions", &chat("hello there", 20, false)).await;
    assert_eq!(status, StatusCode::OK);
    let said = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], 20);
    assert_eq!(said.len(), 80);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");

    let (status, stream) =
        text(sim.addr(), "POST", "/v1/chat/completions", &chat("hello there", 20, true)).await;
    assert_eq!(status, StatusCode::OK);
    let events = events(&stream);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let streamed: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, said);
    // Role, a chunk per token, usage.
    assert_eq!(chunks.len(), 22);
    assert_eq!(chunks[20]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[21]["usage"]["completion_tokens"], 20);
    assert_eq!(chunks[21]["choices"], json!([]));
    let state = sim.control().state();
    assert_eq!((state.in_flight, state.completed, state.aborted, state.orphaned), (0, 2, 0, 0));
}

#[tokio::test]
async fn without_a_limit_the_answer_ends_by_itself() {
    let sim = start(quick());
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    let (_, a) = post(sim.addr(), "/v1/chat/completions", &body).await;
    assert_eq!(a["choices"][0]["finish_reason"], "stop");
    assert!((16..=128).contains(&a["usage"]["completion_tokens"].as_u64().unwrap()));
}

#[tokio::test]
async fn the_second_turn_is_cached() {
    let sim = start(quick());
    let first = "a question that fills some blocks of the cache ".repeat(20);
    let (_, a) = post(sim.addr(), "/v1/chat/completions", &chat(&first, 8, false)).await;
    assert_eq!(a["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let prompt = a["usage"]["prompt_tokens"].as_u64().unwrap();
    let second = json!({"model": "sim-8b", "max_tokens": 8, "messages": [
        {"role": "user", "content": first},
        a["choices"][0]["message"],
        {"role": "user", "content": "and then?"}]});
    let (_, b) = post(sim.addr(), "/v1/chat/completions", &second).await;
    let cached = b["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached, prompt / 16 * 16);
    let (_, page) = get(sim.addr(), "/metrics").await;
    let sent = (prompt + b["usage"]["prompt_tokens"].as_u64().unwrap()) as f64;
    assert_eq!(metric(&page, "vllm:prefix_cache_hits_total"), Some(cached as f64));
    assert_eq!(metric(&page, "vllm:prefix_cache_queries_total"), Some(sent));
    assert_eq!(metric(&page, "vllm:prompt_tokens_total"), Some(sent));
    assert_eq!(metric(&page, "vllm:generation_tokens_total"), Some(16.0));
    // Another salt shares nothing.
    let mut salted = second.clone();
    salted["cache_salt"] = json!("other");
    let (_, c) = post(sim.addr(), "/v1/chat/completions", &salted).await;
    assert_eq!(c["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn every_route_answers_in_its_form() {
    let sim = start(quick());
    let at = sim.addr();
    let (_, v) = post(at, "/v1/completions", &json!({"prompt": ["ab", "cd"], "n": 2, "max_tokens": 3})).await;
    assert_eq!(v["choices"].as_array().unwrap().len(), 4);
    assert_eq!(v["usage"]["completion_tokens"], 12);
    assert_eq!(v["choices"][3]["index"], 3);
    let (_, v) = post(at, "/v1/embeddings", &json!({"input": ["a", "b"], "dimensions": 8})).await;
    assert_eq!(v["data"][1]["embedding"].as_array().unwrap().len(), 8);
    let (_, v) =
        post(at, "/v1/embeddings", &json!({"input": "a", "encoding_format": "base64", "dimensions": 3}))
            .await;
    assert_eq!(v["data"][0]["embedding"].as_str().unwrap().len(), 16);
    let (_, v) =
        post(at, "/v1/rerank", &json!({"query": "q", "documents": ["a", "b", "c"], "top_n": 2})).await;
    assert_eq!(v["results"].as_array().unwrap().len(), 2);
    let (_, v) = post(at, "/v1/score", &json!({"text_1": "q", "text_2": ["a", "b"]})).await;
    assert_eq!(v["data"].as_array().unwrap().len(), 2);
    let (_, v) = post(at, "/tokenize", &json!({"prompt": "hello world"})).await;
    assert_eq!(v["count"], 3);
    let (_, back) = post(at, "/detokenize", &json!({"tokens": v["tokens"]})).await;
    assert_eq!(back["prompt"], "hello world");
    let messages =
        json!({"model": "sim-8b", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]});
    let (_, v) = post(at, "/v1/messages", &messages).await;
    assert_eq!((&v["type"], &v["usage"]["output_tokens"]), (&json!("message"), &json!(4)));
    let input = v["usage"]["input_tokens"].clone();
    let (_, v) = post(at, "/v1/messages/count_tokens", &messages).await;
    assert_eq!(v["input_tokens"], input);
    let (_, v) =
        post(at, "/v1/responses", &json!({"model": "sim-8b", "input": "hi", "max_output_tokens": 4})).await;
    assert_eq!(v["output"][0]["content"][0]["text"].as_str().unwrap().len(), 16);
    let (_, v) = get(at, "/v1/models").await;
    assert!(v.contains("\"sim-8b\""));
    assert_eq!(get(at, "/version").await.1, r#"{"version":"0.32.0"}"#);
    assert_eq!(get(at, "/nothing").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn messages_and_responses_stream_their_own_events() {
    let sim = start(quick());
    let ask = json!({"max_tokens": 3, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let (_, stream) = text(sim.addr(), "POST", "/v1/messages", &ask).await;
    let kinds: Vec<String> = events(&stream)
        .iter()
        .map(|e| serde_json::from_str::<Value>(e).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let ask = json!({"input": "hi", "max_output_tokens": 2, "stream": true});
    let (_, stream) = text(sim.addr(), "POST", "/v1/responses", &ask).await;
    let events: Vec<Value> = events(&stream).iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert!(events.iter().enumerate().all(|(i, e)| e["sequence_number"] == i));
    assert_eq!(events[0]["type"], "response.created");
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["usage"]["output_tokens"], 2);
}

#[tokio::test]
async fn bad_requests_get_the_engine_s_errors() {
    let sim = start(SimOptions { max_model_len: 100, ..quick() });
    let at = sim.addr();
    let unknown = json!({"model": "nope", "messages": [{"role": "user", "content": "x"}]});
    let (status, v) = post(at, "/v1/chat/completions", &unknown).await;
    assert_eq!((status, &v["error"]["code"]), (StatusCode::NOT_FOUND, &json!(404)));
    assert!(v["error"]["message"].as_str().unwrap().contains("`nope`"));
    let (status, v) = post(
        at,
        "/v1/messages",
        &json!({"max_tokens": 1, "model": "nope", "messages": [{"role": "user", "content": "x"}]}),
    )
    .await;
    assert_eq!((status, &v["error"]["type"]), (StatusCode::NOT_FOUND, &json!("not_found_error")));
    let (status, v) = post(at, "/v1/chat/completions", &chat(&"long ".repeat(200), 5, false)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(v["error"]["message"].as_str().unwrap().contains("maximum context length is 100"));
    let (status, _) = post(at, "/v1/chat/completions", &json!([])).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(text(at, "GET", "/v1/chat/completions", &Value::Null).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let state = sim.control().state();
    assert_eq!((state.in_flight, state.refused), (0, 4));
}

#[tokio::test]
async fn requests_share_steps() {
    let sim = start(quick());
    let at = sim.addr();
    let mut all = tokio::task::JoinSet::new();
    for i in 0..32 {
        all.spawn(async move {
            post(at, "/v1/chat/completions", &chat(&format!("question {i}"), 64, false)).await.0
        });
    }
    while let Some(status) = all.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    let state = sim.control().state();
    assert_eq!(state.generation_tokens, 32 * 64);
    assert!(state.steps < 32 * 64, "{} steps", state.steps);
}

#[tokio::test]
async fn a_full_queue_is_refused_with_503() {
    let sim = start(SimOptions { max_waiting: 1, ..quick() });
    let (status, v) =
        post(sim.addr(), "/v1/completions", &json!({"prompt": ["a", "b"], "max_tokens": 1})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{v}");
    assert_eq!(sim.control().state().refused, 1);
}

#[tokio::test]
async fn health_is_503_until_ready() {
    let sim = start(SimOptions { startup: Duration::from_secs(3600), ..quick() });
    assert_eq!(get(sim.addr(), "/health").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _) = post(sim.addr(), "/v1/chat/completions", &chat("x", 1, false)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let ready = start(quick());
    assert_eq!(get(ready.addr(), "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn pages_carry_the_names_of_their_engine() {
    let vllm = start(quick());
    let (_, page) = get(vllm.addr(), "/metrics").await;
    assert!(metric(&page, "process_start_time_seconds").unwrap() > 1e9);
    for name in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total"]
    {
        assert_eq!(metric(&page, &format!("vllm:{name}")), Some(0.0), "{name}");
    }
    assert!(page.contains("num_gpu_blocks=\"96000\""));
    let old = start(SimOptions { legacy_metrics: true, ..quick() });
    let (_, page) = get(old.addr(), "/metrics").await;
    assert_eq!(metric(&page, "vllm:gpu_cache_usage_perc"), Some(0.0));
    assert_eq!(metric(&page, "vllm:kv_cache_usage_perc"), None);
    let sglang = start(SimOptions { engine: EngineKind::Sglang, ..quick() });
    post(sglang.addr(), "/v1/chat/completions", &chat("x", 5, false)).await;
    let (_, page) = get(sglang.addr(), "/metrics").await;
    assert_eq!(metric(&page, "sglang:generation_tokens_total"), Some(5.0));
    assert_eq!(metric(&page, "sglang:token_usage"), Some(0.0));
    assert_eq!(metric(&page, "sglang:max_total_num_tokens"), Some(1_536_000.0));
    for path in ["/server_info", "/get_model_info", "/health_generate", "/v1/loads"] {
        assert_eq!(get(sglang.addr(), path).await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn the_page_shows_what_runs() {
    let sim = start(SimOptions::default());
    let r = try_post(sim.addr(), "/v1/chat/completions", &chat("x", 100_000, true)).await.unwrap();
    let mut body = r.into_body();
    body.frame().await.unwrap().unwrap();
    let (_, page) = get(sim.addr(), "/metrics").await;
    assert_eq!(metric(&page, "vllm:num_requests_running"), Some(1.0));
    let usage = metric(&page, "vllm:kv_cache_usage_perc").unwrap();
    assert!((usage - 6251.0 / 96_000.0).abs() < 1e-3, "{usage}");
}

#[tokio::test]
async fn what_arrived_can_be_seen() {
    let sim = start(quick());
    let mut r = request("POST", "/v1/chat/completions?a=1", &chat("x", 1, false));
    r.headers_mut().insert("x-custom", "kept".parse().unwrap());
    connect(sim.addr()).await.send_request(r).await.unwrap().into_body().collect().await.unwrap();
    let (_, state) = get(sim.addr(), "/sim/state").await;
    let state: fairlead_sim::State = serde_json::from_str(&state).unwrap();
    let last = state.last.unwrap();
    assert_eq!(last.target, "/v1/chat/completions?a=1");
    assert_eq!(last.header("x-custom"), Some("kept"));
    assert_eq!(last.body, chat("x", 1, false).to_string());
    assert_eq!(get(sim.addr(), "/sim/last-body").await.1, last.body);
    assert_eq!(state.by_route["chat"], 1);
}
