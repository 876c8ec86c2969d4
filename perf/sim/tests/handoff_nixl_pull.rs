//! NIXL pull: the prefill leg first, its parameters go to the decode leg as they came.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
#[path = "common/handoff.rs"]
mod handoff;
use common::*;
use fairlead_sim::{Faults, HandoffOptions, LegKind, OnKvFailure, SimOptions};
use fairlead_wire::msg::{Handoff, ServingRole};
use handoff::*;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

fn nixl(role: ServingRole) -> SimOptions {
    options(Handoff::NixlPull, role)
}

/// Runs the prefill leg and gives the decode leg's body.
async fn prefilled(p: &fairlead_sim::Handle, content: &str, output: u32, stream: bool) -> String {
    let said = ask(p.addr(), &prefill_leg(content)).await;
    assert_eq!(said.status, StatusCode::OK, "{}", said.text);
    with_text(&chat(content, output, stream), "kv_transfer_params", params(&said.text))
}

#[tokio::test]
async fn what_the_prefill_side_computed_is_decoded_elsewhere() {
    let (p, d) = pair(Handoff::NixlPull);
    let content = prompt("pull");
    for (turn, stream) in [false, true].into_iter().enumerate() {
        let want = alone(&chat(&content, 20, stream)).await;
        let first = ask(p.addr(), &prefill_leg(&content)).await;
        let told: Value = serde_json::from_str(params(&first.text)).unwrap();
        for (name, is) in [
            ("do_remote_prefill", json!(true)),
            ("do_remote_decode", json!(false)),
            ("remote_host", json!("127.0.0.1")),
            ("remote_port", json!(p.addr().port())),
            ("remote_num_tokens", json!(first.prompt())),
            ("transfer_mode", json!("pull")),
        ] {
            assert_eq!(told[name], is, "{name}");
        }
        // The prefill side tells what it had itself.
        assert_eq!(first.cached(), if turn == 0 { 0 } else { (first.prompt() - 1) / 16 * 16 });
        let body = with_text(&chat(&content, 20, stream), "kv_transfer_params", params(&first.text));
        let second = ask_with(d.addr(), CHAT, &body, &[("x-request-id", "r")]).await;
        assert_eq!((second.status, second.content()), (StatusCode::OK, want.content()), "{}", second.text);
        if !stream {
            assert_eq!(second.cached(), second.prompt() - 1);
        }
    }
    let (sent, received) = (idle(&p.control()).await, idle(&d.control()).await);
    assert_eq!((sent.prefill_legs, sent.taken, sent.ready), (2, 2, 0));
    assert_eq!((received.decode_legs, received.refused), (2, 0));
    // The second time the decode side had all blocks but the last, which is not full.
    assert!(
        sent.tokens_sent < 2 * received.tokens_received + 16 && sent.tokens_sent == received.tokens_received
    );
    let (_, page) = get(d.addr(), "/metrics").await;
    assert_eq!(metric(&page, "vllm:nixl_xfer_time_seconds_count"), Some(2.0));
    assert_eq!(metric(&page, "vllm:nixl_num_failed_transfers_total"), Some(0.0));
}

#[tokio::test]
async fn other_ends_than_one_token_keep_the_kv_too() {
    let (p, d) = pair(Handoff::NixlPull);
    let mut leg = prefill_leg("twenty");
    leg["max_tokens"] = json!(20);
    let said = ask(p.addr(), &leg).await;
    assert_eq!(said.json()["usage"]["completion_tokens"], 20);
    let body = with_text(&chat("twenty", 20, false), "kv_transfer_params", params(&said.text));
    assert_eq!(ask_with(d.addr(), CHAT, &body, &[]).await.content(), said.content());
    // A stream tells no parameters, so what it keeps can only expire.
    leg["stream"] = json!(true);
    let said = ask(p.addr(), &leg).await;
    assert!(!said.text.contains("kv_transfer_params"));
    assert_eq!(idle(&p.control()).await.ready, 1);
}

#[tokio::test]
async fn without_parameters_every_role_serves_by_itself() {
    for role in [ServingRole::Prefill, ServingRole::Decode, ServingRole::Both] {
        let sim = start(nixl(role));
        let said = ask(sim.addr(), &chat("by itself", 9, false)).await;
        assert_eq!(said.content(), alone(&chat("by itself", 9, false)).await.content());
        let state = idle(&sim.control()).await;
        assert_eq!((state.plain, state.prefill_legs, state.decode_legs), (1, 0, 0));
    }
}

#[tokio::test]
async fn a_wrong_decode_leg_fails() {
    let (p, d) = pair(Handoff::NixlPull);
    let other = start(nixl(ServingRole::Prefill));
    let content = prompt("wrong");
    type Edit = fn(&str, &fairlead_sim::Handle) -> String;
    let edits: [(&str, Edit); 7] = [
        ("engine id", |b, _| b.replacen("\"remote_engine_id\": \"", "\"remote_engine_id\": \"x", 1)),
        ("request id", |b, _| b.replacen("\"remote_request_id\": \"", "\"remote_request_id\": \"x", 1)),
        ("no blocks", |b, _| b.replacen("\"remote_block_ids\"", "\"remote_blocks\"", 1)),
        ("not verbatim", |b, _| b.replacen("1.50, 2e+3 ,{ }", "1.5,2000,{}", 1)),
        ("another prompt", |b, _| b.replacen("wrong: a", "wrung: a", 1)),
        ("another engine", |b, other| {
            let (head, rest) = b.split_once("\"remote_port\": ").unwrap();
            let rest = rest.split_once(',').unwrap().1;
            format!("{head}\"remote_port\": {},{rest}", other.addr().port())
        }),
        ("nobody there", |b, _| b.replacen("\"remote_port\": ", "\"remote_port\": 1, \"was\": ", 1)),
    ];
    for (what, edit) in edits {
        let right = prefilled(&p, &content, 5, false).await;
        let wrong = edit(&right, &other);
        assert_ne!(right, wrong, "{what}");
        let said = ask_with(d.addr(), CHAT, &wrong, &[]).await;
        assert_eq!(said.status, StatusCode::INTERNAL_SERVER_ERROR, "{what}: {}", said.text);
        assert_eq!(said.json()["error"]["code"], 500);
    }
    let elsewhere = nixl(ServingRole::Decode);
    let transfer = elsewhere.transfer.clone().map(|t| HandoffOptions { domain: "elsewhere".into(), ..t });
    let elsewhere = start(SimOptions { transfer, ..elsewhere });
    let right = prefilled(&p, &content, 5, false).await;
    assert!(ask_with(elsewhere.addr(), CHAT, &right, &[]).await.text.contains("domain"));
    // Under the head that was sent already, a stream ends with an error.
    let right = prefilled(&p, &content, 5, true).await;
    let said = ask_with(d.addr(), CHAT, &edits[0].1(&right, &other), &[]).await;
    let events = events(&said.text);
    assert_eq!((said.status, events.len()), (StatusCode::OK, 2), "{}", said.text);
    assert_eq!(serde_json::from_str::<Value>(&events[0]).unwrap()["error"]["code"], 500);
    idle(&d.control()).await;
}

#[tokio::test]
async fn a_shipment_has_one_consumer() {
    let (p, d) = pair(Handoff::NixlPull);
    let body = prefilled(&p, "once", 5, false).await;
    assert_eq!(ask_with(d.addr(), CHAT, &body, &[]).await.status, StatusCode::OK);
    let again = ask_with(d.addr(), CHAT, &body, &[]).await;
    assert_eq!(again.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(again.text.contains("taken already"), "{}", again.text);
    for several in ["{\"n\":2,", "{\"n\":3,\"temperature\":1,"] {
        for (addr, body) in [(p.addr(), prefill_leg("once").to_string()), (d.addr(), body.clone())] {
            let body = body.replacen('{', several, 1);
            assert_eq!(ask_with(addr, CHAT, &body, &[]).await.status, StatusCode::BAD_REQUEST);
        }
    }
}

#[tokio::test]
async fn kv_that_is_not_fetched_in_time_is_gone() {
    let options = nixl(ServingRole::Prefill);
    // At this speed no time at all.
    let transfer = options.transfer.clone().map(|t| HandoffOptions { lease: Duration::from_millis(1), ..t });
    let p = start(SimOptions { transfer, ..options });
    let d = start(nixl(ServingRole::Decode));
    let body = prefilled(&p, "late", 5, false).await;
    until(&p.control(), "expired", |s| s.handoff.expired == 1).await;
    let said = ask_with(d.addr(), CHAT, &body, &[]).await;
    assert!(said.text.contains("expired"), "{}", said.text);
    let (_, page) = get(p.addr(), "/metrics").await;
    assert_eq!(metric(&page, "vllm:nixl_num_kv_expired_reqs_total"), Some(1.0));
}

#[tokio::test]
async fn a_decode_side_may_compute_what_did_not_come() {
    let p = start(nixl(ServingRole::Prefill));
    let options = nixl(ServingRole::Decode);
    let transfer =
        options.transfer.clone().map(|t| HandoffOptions { on_failure: OnKvFailure::Recompute, ..t });
    let d = start(SimOptions { transfer, ..options });
    d.control().set_faults(Faults { refuse_kv: true, ..Faults::default() }).unwrap();
    let content = prompt("again");
    let body = prefilled(&p, &content, 5, false).await;
    let said = ask_with(d.addr(), CHAT, &body, &[]).await;
    assert_eq!((said.status, said.cached()), (StatusCode::OK, 0));
    assert_eq!(said.content(), alone(&chat(&content, 5, false)).await.content());
    assert_eq!(idle(&d.control()).await.refused, 1);
    assert_eq!(idle(&p.control()).await.ready, 1);
}

#[tokio::test]
async fn faults_touch_the_legs_that_they_name() {
    let (p, d) = pair(Handoff::NixlPull);
    let fault = |f: Faults| Faults { legs: Some(LegKind::Decode), ..f };
    d.control().set_faults(fault(Faults { status: Some(503), ..Faults::default() })).unwrap();
    let body = prefilled(&p, "faults", 5, false).await;
    assert_eq!(ask_with(d.addr(), CHAT, &body, &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask(d.addr(), &chat("faults", 5, false)).await.status, StatusCode::OK);
    d.control().heal();

    p.control().set_faults(Faults { lose_kv: true, ..Faults::default() }).unwrap();
    let body = prefilled(&p, "faults", 5, false).await;
    let said = ask_with(d.addr(), CHAT, &body, &[]).await;
    assert!(said.text.contains("is lost"), "{}", said.text);
    assert_eq!(idle(&p.control()).await.lost, 1);
}

#[tokio::test]
async fn a_client_that_leaves_frees_everything() {
    let (p, d) = pair(Handoff::NixlPull);
    // Before the prefill has ended.
    p.control().set_faults(Faults { slow: 1e5, ..Faults::default() }).unwrap();
    let leg = asking(p.addr(), prefill_leg(&prompt("leaves")));
    until(&p.control(), "computing", |s| s.handoff.computing == 1).await;
    leg.abort();
    let state = idle(&p.control()).await;
    assert_eq!((state.failed, state.ready), (1, 0));
    p.control().heal();

    // During the transfer, in one piece and as a stream.
    p.control().set_faults(Faults { slow_transfer: 1e6, ..Faults::default() }).unwrap();
    for stream in [false, true] {
        let body = prefilled(&p, &prompt("leaves"), 5, stream).await;
        let at = d.addr();
        let leg = tokio::spawn(async move { ask_with(at, CHAT, &body, &[]).await.status });
        until(&p.control(), "sending", |s| s.handoff.sending == 1).await;
        until(&d.control(), "waiting", |s| s.handoff.waiting_for_kv == 1).await;
        let (_, page) = get(d.addr(), "/metrics").await;
        assert_eq!(metric(&page, "vllm:num_requests_waiting"), Some(1.0));
        leg.abort();
        idle(&d.control()).await;
        idle(&p.control()).await;
    }
    assert_eq!(p.control().state().handoff.failed, 3);
}

#[tokio::test]
async fn an_engine_tells_how_it_hands_over() {
    let (p, d) = pair(Handoff::NixlPull);
    let mut ids = Vec::new();
    for (sim, role) in [(&p, "kv_producer"), (&d, "kv_consumer")] {
        let (status, text) = get(sim.addr(), "/server_info?config_format=json").await;
        assert_eq!(status, StatusCode::OK);
        let said: Value = serde_json::from_str(&text).unwrap();
        let transfer = &said["vllm_config"]["kv_transfer_config"];
        assert_eq!(
            (&transfer["kv_connector"], &transfer["kv_role"]),
            (&json!("NixlConnector"), &json!(role))
        );
        let (_, text) = get(sim.addr(), "/server_info").await;
        assert!(serde_json::from_str::<Value>(&text).unwrap()["vllm_config"].is_string());
        ids.push(transfer["engine_id"].as_str().unwrap().to_owned());
    }
    assert_ne!(ids[0], ids[1]);
    assert_eq!(get(start(quick()).addr(), "/server_info").await.0, StatusCode::NOT_FOUND);
    let wrong = ask_with(p.addr(), CHAT, "{\"messages\":[],\"kv_transfer_params\":3}", &[]).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
}
