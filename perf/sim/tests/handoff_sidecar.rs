//! llm-d's sidecar: the decode engine sends the prefill leg to the engine that a header names.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
#[path = "common/handoff.rs"]
mod handoff;
use common::*;
use fairlead_sim::{Faults, LegKind};
use fairlead_wire::msg::Handoff;
use handoff::*;
use hyper::StatusCode;
use serde_json::{Value, json};

const HEADER: &str = "x-prefiller-host-port";

#[tokio::test]
async fn the_header_names_who_prefills() {
    let (p, d) = pair(Handoff::Sidecar);
    let content = prompt("sidecar");
    let at = p.addr().to_string();
    for stream in [false, true] {
        let mut body = chat(&content, 12, stream);
        body["max_completion_tokens"] = json!(12);
        let said = ask_with(d.addr(), CHAT, &body.to_string(), &[(HEADER, &at)]).await;
        assert_eq!(said.status, StatusCode::OK, "{}", said.text);
        assert_eq!(said.content(), alone(&chat(&content, 12, stream)).await.content());
    }
    let (sent, received) = (idle(&p.control()).await, idle(&d.control()).await);
    assert_eq!((sent.prefill_legs, sent.taken, received.decode_legs), (2, 2, 2));
    let leg: Value = serde_json::from_slice(&p.control().last_body()).unwrap();
    assert_eq!((&leg["stream"], &leg["max_tokens"]), (&json!(false), &json!(1)));
    assert_eq!((&leg["max_completion_tokens"], &leg["stream_options"]), (&json!(1), &Value::Null));
    assert_eq!(leg["kv_transfer_params"]["do_remote_decode"], true);
    // Without the header it does it all.
    assert_eq!(ask(d.addr(), &chat("alone", 3, false)).await.status, StatusCode::OK);
    assert_eq!(idle(&d.control()).await.plain, 1);
}

#[tokio::test]
async fn an_unwell_prefiller_is_passed_over() {
    let (p, d) = pair(Handoff::Sidecar);
    let body = chat(&prompt("unwell"), 5, false).to_string();
    let at = p.addr().to_string();
    for (status, is) in [(503, StatusCode::OK), (404, StatusCode::NOT_FOUND)] {
        p.control().set_faults(Faults { status: Some(status), ..Faults::default() }).unwrap();
        let said = ask_with(d.addr(), CHAT, &body, &[(HEADER, &at)]).await;
        assert_eq!(said.status, is, "{}", said.text);
    }
    for (at, is) in [("127.0.0.1:1", StatusCode::OK), ("nowhere", StatusCode::BAD_REQUEST)] {
        assert_eq!(ask_with(d.addr(), CHAT, &body, &[(HEADER, at)]).await.status, is);
    }
    assert_eq!(idle(&d.control()).await.refused, 3);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_prefill_leg_too() {
    let (p, d) = pair(Handoff::Sidecar);
    p.control().set_faults(Faults { hang: true, legs: Some(LegKind::Prefill), ..Faults::default() }).unwrap();
    let (addr, at) = (d.addr(), p.addr().to_string());
    let body = chat("leaves", 5, true).to_string();
    let leg = tokio::spawn(async move { ask_with(addr, CHAT, &body, &[(HEADER, &at)]).await });
    until(&p.control(), "prefilling", |s| s.in_flight == 1).await;
    leg.abort();
    idle(&p.control()).await;
    idle(&d.control()).await;
}
