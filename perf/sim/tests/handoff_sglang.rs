//! SGLang: both legs at once, matched by a room at the prefill engine's bootstrap server.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
#[path = "common/handoff.rs"]
mod handoff;
use common::*;
use fairlead_sim::{Faults, HandoffOptions, SimOptions, State};
use fairlead_wire::msg::{Handoff, ServingRole};
use handoff::*;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

fn roomed(mut body: Value, p: SocketAddr, room: u64) -> Value {
    body["bootstrap_host"] = json!(p.ip().to_string());
    body["bootstrap_port"] = json!(p.port());
    body["bootstrap_room"] = json!(room);
    body
}

#[tokio::test]
async fn both_legs_meet_in_their_room() {
    let (p, d) = pair(Handoff::Sglang);
    let content = prompt("room");
    for (room, stream) in [(1, false), (u64::MAX / 2, true)] {
        let body = roomed(chat(&content, 20, stream), p.addr(), room);
        let (first, second) = tokio::join!(ask(p.addr(), &body), ask(d.addr(), &body));
        assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::OK), "{}", second.text);
        let want = alone(&chat(&content, 20, stream)).await.content();
        assert_eq!(second.content(), want);
        // The prefill side ends after one token, whatever was asked.
        assert_eq!(first.content(), want[..4]);
    }
    let (sent, received) = (idle(&p.control()).await, idle(&d.control()).await);
    assert_eq!((sent.prefill_legs, sent.taken), (2, 2));
    assert_eq!((received.decode_legs, received.refused), (2, 0));
}

#[tokio::test]
async fn rooms_come_in_headers_and_for_batches() {
    let (p, d) = pair(Handoff::Sglang);
    let port = p.addr().port().to_string();
    let headers = [
        ("x-override-bootstrap-host", "127.0.0.1"),
        ("x-override-bootstrap-port", port.as_str()),
        ("x-override-bootstrap-room", "77"),
    ];
    let body = chat("headers", 9, true).to_string();
    let (first, second) =
        tokio::join!(ask_with(p.addr(), CHAT, &body, &headers), ask_with(d.addr(), CHAT, &body, &headers));
    assert_eq!(first.status, StatusCode::OK);
    assert_eq!(second.content(), alone(&chat("headers", 9, true)).await.content());

    let path = "/v1/completions";
    let host = "127.0.0.1";
    let port = p.addr().port();
    let plain = json!({"prompt": ["one", "two"], "n": 1, "max_tokens": 6});
    let mut batch = plain.clone();
    batch["bootstrap_host"] = json!([host, host]);
    batch["bootstrap_port"] = json!([port, port]);
    batch["bootstrap_room"] = json!([5, 9]);
    let several = json!({"prompt": "one", "n": 3, "max_tokens": 6});
    let counted = roomed(several.clone(), p.addr(), 100);
    for (plain, body) in [(plain, batch), (several, counted)] {
        let body = body.to_string();
        let (first, second) =
            tokio::join!(ask_with(p.addr(), path, &body, &[]), ask_with(d.addr(), path, &body, &[]));
        assert_eq!(first.status, StatusCode::OK, "{}", first.text);
        let sim = start(quick());
        let want = ask_with(sim.addr(), path, &plain.to_string(), &[]).await;
        let texts = |said: &Said| -> Vec<Value> {
            said.json()["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect()
        };
        assert_eq!(texts(&second), texts(&want));
    }
    assert_eq!(idle(&p.control()).await.taken, 1 + 2 + 3);
}

#[tokio::test]
async fn requests_without_a_room_are_refused() {
    let (p, d) = pair(Handoff::Sglang);
    for sim in [&p, &d] {
        assert_eq!(ask(sim.addr(), &chat("x", 3, false)).await.status, StatusCode::BAD_REQUEST);
        for (name, value) in [("x-override-bootstrap-room", "seven"), ("x-override-bootstrap-port", "1e3")] {
            let body = roomed(chat("x", 3, false), p.addr(), 1).to_string();
            let said = ask_with(sim.addr(), CHAT, &body, &[(name, value)]).await;
            assert_eq!(said.status, StatusCode::BAD_REQUEST, "{name}");
        }
        idle(&sim.control()).await;
    }
}

#[tokio::test]
async fn a_room_has_one_use() {
    let (p, d) = pair(Handoff::Sglang);
    let body = roomed(chat("one use", 3, false), p.addr(), 4);
    _ = tokio::join!(ask(p.addr(), &body), ask(d.addr(), &body));
    for addr in [p.addr(), d.addr()] {
        assert_eq!(ask(addr, &body).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    // Another prompt in the room is no use either.
    let (a, b) = (roomed(chat("one", 3, false), p.addr(), 5), roomed(chat("two", 3, false), p.addr(), 5));
    let (first, second) = tokio::join!(ask(p.addr(), &a), ask(d.addr(), &b));
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (500, 500));
}

#[tokio::test]
async fn each_side_waits_for_so_long() {
    for role in [ServingRole::Prefill, ServingRole::Decode] {
        let other = start(options(Handoff::Sglang, ServingRole::Prefill));
        let options = options(Handoff::Sglang, role);
        let short = Duration::from_secs(10);
        let transfer = options.transfer.clone().map(|t| HandoffOptions {
            bootstrap_timeout: short,
            waiting_timeout: short,
            ..t
        });
        let sim = start(SimOptions { transfer, ..options });
        let said = ask(sim.addr(), &roomed(chat("waits", 3, false), other.addr(), 3)).await;
        assert_eq!(said.status, StatusCode::INTERNAL_SERVER_ERROR, "{}", said.text);
        idle(&sim.control()).await;
        idle(&other.control()).await;
    }
}

#[tokio::test]
async fn when_one_side_leaves_the_other_notices() {
    let (p, d) = pair(Handoff::Sglang);
    let body = |room| roomed(chat(&prompt("leaves"), 3, false), p.addr(), room);
    // Nobody has come yet.
    let leg = asking(p.addr(), body(1));
    until(&p.control(), "waiting for its room", |s| s.handoff.waiting_for_room == 1).await;
    leg.abort();
    idle(&p.control()).await;
    let leg = asking(d.addr(), body(2));
    until(&p.control(), "awaited", |s| s.handoff.awaited == 1).await;
    leg.abort();
    idle(&p.control()).await;
    idle(&d.control()).await;

    // Both are there, the prompt is being computed; then during the transfer.
    for (room, faults) in [
        (10, Faults { slow: 1e5, ..Faults::default() }),
        (20, Faults { slow_transfer: 1e6, ..Faults::default() }),
    ] {
        p.control().set_faults(faults.clone()).unwrap();
        for decode_leaves in [false, true] {
            let room = room + u64::from(decode_leaves);
            let (first, second) = (asking(p.addr(), body(room)), asking(d.addr(), body(room)));
            let computes = faults.slow > 0.0;
            let step = |s: &State| if computes { s.running } else { s.handoff.sending };
            until(&p.control(), "under way", |s| step(s) == 1).await;
            let (leaves, stays) = if decode_leaves { (second, first) } else { (first, second) };
            leaves.abort();
            assert_eq!(stays.await.unwrap().status, StatusCode::INTERNAL_SERVER_ERROR, "{room}");
            idle(&p.control()).await;
            idle(&d.control()).await;
        }
    }
    assert_eq!(p.control().state().handoff.taken, 0);
}

#[tokio::test]
async fn engines_tell_their_role_and_their_readiness() {
    let (p, d) = pair(Handoff::Sglang);
    for (sim, mode) in [(&p, "prefill"), (&d, "decode")] {
        let (_, info) = get(sim.addr(), "/server_info").await;
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["disaggregation_mode"], mode);
        assert_eq!(info["disaggregation_bootstrap_port"], sim.addr().port());
        assert_eq!(info["disaggregation_transfer_backend"], "mooncake");
    }
    let path = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
    let (status, text) = get(p.addr(), path).await;
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &said["page_size"], &said["dp_size"]), (StatusCode::OK, &json!(16), &json!(1)));
    assert_eq!(said["prefill_http_port"], p.addr().port());
    assert_eq!(get(d.addr(), path).await.0, StatusCode::NOT_FOUND);
    let late =
        SimOptions { startup: Duration::from_secs(3600), ..options(Handoff::Sglang, ServingRole::Prefill) };
    assert_eq!(get(start(late).addr(), path).await.0, StatusCode::SERVICE_UNAVAILABLE);
}
