//! Hand-offs by content: a store that engines share, and LMCache's PD backend.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;
#[path = "common/handoff.rs"]
mod handoff;
use common::*;
use fairlead_sim::{Faults, HandoffOptions, SimOptions};
use fairlead_wire::msg::{Handoff, ServingRole};
use handoff::*;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use zeromq::{PullSocket, Socket, SocketRecv};

/// An engine whose store has that name, or is in that folder.
fn shared(role: ServingRole, name: &str, store: Option<PathBuf>) -> fairlead_sim::Handle {
    let options = options(Handoff::SharedStore, role);
    let transfer = options.transfer.clone();
    let transfer = transfer.map(|t| HandoffOptions { domain: name.into(), store, ..t });
    start(SimOptions { transfer, ..options })
}

#[tokio::test]
async fn prompts_are_found_by_their_blocks() {
    let dir = std::env::temp_dir().join(format!("fairlead-handoff-{}", std::process::id()));
    for store in [None, Some(dir.clone())] {
        let p = shared(ServingRole::Prefill, "found", store.clone());
        let d = shared(ServingRole::Decode, "found", store.clone());
        let content = prompt("store");
        assert_eq!(ask(p.addr(), &chat(&content, 1, false)).await.cached(), 0);
        let said = ask(d.addr(), &chat(&content, 12, false)).await;
        assert_eq!(said.content(), alone(&chat(&content, 12, false)).await.content());
        assert_eq!(said.cached(), said.prompt() / 16 * 16);
        let (sent, received) = (idle(&p.control()).await, idle(&d.control()).await);
        assert_eq!((sent.prefill_legs, received.decode_legs), (1, 1));
        assert_eq!(received.tokens_received, said.cached());
        // A decode engine puts nothing in.
        let other = prompt("other");
        ask(d.addr(), &chat(&other, 1, false)).await;
        let third = shared(ServingRole::Decode, "found", store.clone());
        assert_eq!(ask(third.addr(), &chat(&other, 1, false)).await.cached(), 0);
        // One that does both does, and its own cache comes first.
        let both = shared(ServingRole::Both, "found", store.clone());
        ask(both.addr(), &chat(&other, 1, false)).await;
        assert_eq!(idle(&both.control()).await.plain, 1);
        let mut several = chat(&other, 4, false);
        several["n"] = json!(2);
        let said = ask(third.addr(), &several).await;
        assert_eq!(said.cached(), (said.prompt() - 1) / 16 * 16);
        assert_eq!(idle(&third.control()).await.tokens_received, 0);
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn what_is_lost_or_elsewhere_is_computed() {
    let p = shared(ServingRole::Prefill, "lost", None);
    let d = shared(ServingRole::Decode, "lost", None);
    let elsewhere = shared(ServingRole::Decode, "elsewhere", None);
    let content = prompt("lost");
    p.control().set_faults(Faults { lose_kv: true, ..Faults::default() }).unwrap();
    ask(p.addr(), &chat(&content, 1, false)).await;
    assert_eq!(ask(d.addr(), &chat(&content, 3, false)).await.cached(), 0);
    p.control().heal();
    ask(p.addr(), &chat(&content, 1, false)).await;
    assert_eq!(ask(elsewhere.addr(), &chat(&content, 3, false)).await.cached(), 0);
    d.control().set_faults(Faults { refuse_kv: true, ..Faults::default() }).unwrap();
    d.control().clear_cache();
    assert_eq!(ask(d.addr(), &chat(&content, 3, false)).await.cached(), 0);
    // The client leaves while its blocks are on their way.
    d.control().set_faults(Faults { slow_transfer: 1e6, ..Faults::default() }).unwrap();
    d.control().clear_cache();
    let leg = asking(d.addr(), chat(&content, 3, false));
    until(&d.control(), "waiting", |s| s.handoff.waiting_for_kv == 1).await;
    leg.abort();
    idle(&d.control()).await;
}

/// The router's side of LMCache's notices: a PULL socket, and where it is.
async fn router() -> (PullSocket, SocketAddr) {
    let mut socket = PullSocket::new();
    let bound = socket.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    (socket, bound.strip_prefix("tcp://").unwrap().parse().unwrap())
}

fn lmcache(role: ServingRole, proxy: Option<SocketAddr>) -> fairlead_sim::Handle {
    let options = options(Handoff::LmcachePd, role);
    let transfer = options.transfer.clone().map(|t| HandoffOptions { lmcache_proxy: proxy, ..t });
    start(SimOptions { transfer, ..options })
}

/// The prefill leg of a prompt in ids.
fn push_leg(ids: &Value, d: SocketAddr, req_id: &str) -> Value {
    json!({"prompt": ids, "max_tokens": 1, "stream": false, "kv_transfer_params": {"ret_first_tok": true,
        "disagg_spec": {"req_id": req_id, "receiver_host": d.ip().to_string(),
            "receiver_init_port": [d.port()], "receiver_alloc_port": [d.port()]}}})
}

const COMPLETIONS: &str = "/v1/completions";

#[tokio::test]
async fn lmcache_pushes_and_tells_the_router() {
    let (mut socket, proxy) = router().await;
    let p = lmcache(ServingRole::Prefill, Some(proxy));
    let d = lmcache(ServingRole::Decode, None);
    for (number, stream) in [false, true].into_iter().enumerate() {
        let content = prompt(&format!("lmcache {number}"));
        let want = alone(&chat(&content, 12, false)).await.content();
        let talk = json!({"messages": chat(&content, 1, false)["messages"]});
        let (_, ids) = post(p.addr(), "/tokenize", &talk).await;
        let req_id = format!("r{number}");
        let leg = push_leg(&ids["tokens"], d.addr(), &req_id);
        let (status, first) = post(p.addr(), COMPLETIONS, &leg).await;
        assert_eq!(status, StatusCode::OK, "{first}");
        let notice = socket.recv().await.unwrap();
        let told = notice.get(0).unwrap();
        assert_eq!(told[..], [b"\x82\xa4type\xaaProxyNotif\xa6req_id\xa2", req_id.as_bytes()].concat());

        let mut prompt = ids["tokens"].as_array().unwrap().clone();
        prompt.push(first["kv_transfer_params"]["first_tok"].clone());
        let body = json!({"prompt": prompt, "max_tokens": 11, "stream": stream});
        let (_, second) = text(d.addr(), "POST", COMPLETIONS, &body).await;
        let parsed: Vec<Value> = match stream {
            true => events(&second).iter().filter_map(|e| serde_json::from_str(e).ok()).collect(),
            false => vec![serde_json::from_str(&second).unwrap()],
        };
        let said = parsed.iter().filter_map(|v| v["choices"][0]["text"].as_str());
        let said: String = first["choices"][0]["text"].as_str().into_iter().chain(said).collect();
        assert_eq!(said, want);
        if !stream {
            assert_eq!(parsed[0]["usage"]["prompt_tokens"], prompt.len());
            assert_eq!(parsed[0]["usage"]["prompt_tokens_details"]["cached_tokens"], prompt.len() - 1);
        }
    }
    let (sent, received) = (idle(&p.control()).await, idle(&d.control()).await);
    assert_eq!((sent.prefill_legs, received.decode_legs, received.refused), (2, 2, 0));
    assert_eq!(sent.tokens_sent, received.tokens_received);
}

#[tokio::test]
async fn lmcache_legs_that_are_wrong_fail_or_are_computed() {
    let (_socket, proxy) = router().await;
    let p = lmcache(ServingRole::Prefill, Some(proxy));
    let d = lmcache(ServingRole::Decode, None);
    let ids = json!((0..100).collect::<Vec<u32>>());
    let right = push_leg(&ids, d.addr(), "r");
    for (what, at, body) in [
        ("a receiver that is none", p.addr(), push_leg(&ids, p.addr(), "r")),
        ("no req_id", p.addr(), push_leg(&ids, d.addr(), "")),
        ("pushed by a receiver", d.addr(), right.clone()),
    ] {
        let (status, said) = post(at, COMPLETIONS, &body).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{what}: {said}");
    }
    let cached = async |last: u64| {
        let mut prompt = ids.as_array().unwrap().clone();
        prompt.push(json!(last));
        d.control().clear_cache();
        let (_, said) = post(d.addr(), COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 3})).await;
        said["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let (_, first) = post(p.addr(), COMPLETIONS, &right).await;
    let token = first["kv_transfer_params"]["first_tok"].as_u64().unwrap();
    // Another token than the first is another prompt.
    assert_eq!(cached(token + 1).await, 0);
    assert_eq!(cached(token).await, 100);
    d.control().set_faults(Faults { refuse_kv: true, ..Faults::default() }).unwrap();
    assert_eq!(cached(token).await, 0);
    d.control().heal();
    p.control().set_faults(Faults { lose_kv: true, ..Faults::default() }).unwrap();
    post(p.addr(), COMPLETIONS, &right).await;
    assert_eq!(cached(token).await, 0);
    assert_eq!(idle(&d.control()).await.refused, 2);

    // The client leaves during the push.
    p.control().set_faults(Faults { slow_transfer: 1e6, ..Faults::default() }).unwrap();
    let at = p.addr();
    let leg = tokio::spawn(async move { post(at, COMPLETIONS, &right).await });
    until(&p.control(), "pushing", |s| s.in_flight == 1 && s.running == 0 && s.handoff.prefill_legs > 3)
        .await;
    leg.abort();
    idle(&p.control()).await;
}
