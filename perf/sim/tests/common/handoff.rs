//! Legs of hand-offs, as a router sends them.
#![allow(dead_code, clippy::unwrap_used, missing_docs, reason = "each test file uses its part")]

use super::common::{chat, connect, quick, request, start};
use bytes::Bytes;
use fairlead_sim::{Control, EngineKind, Handle, HandoffOptions, HandoffState, SimOptions, State};
use fairlead_wire::msg::{Handoff, ServingRole};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinHandle;

pub const CHAT: &str = "/v1/chat/completions";

/// Far faster than life, with leases that outlast any test.
pub fn options(handoff: Handoff, role: ServingRole) -> SimOptions {
    let long = Duration::from_secs(900_000);
    let transfer = HandoffOptions {
        lease: long,
        bootstrap_timeout: long,
        waiting_timeout: long,
        abort_timeout: long,
        ..HandoffOptions::new(handoff)
    };
    let engine = if handoff == Handoff::Sglang { EngineKind::Sglang } else { EngineKind::Vllm };
    SimOptions { engine, role, transfer: Some(transfer), ..quick() }
}

/// A prefill and a decode engine.
pub fn pair(handoff: Handoff) -> (Handle, Handle) {
    (start(options(handoff, ServingRole::Prefill)), start(options(handoff, ServingRole::Decode)))
}

/// An answer in whole.
pub struct Said {
    pub status: StatusCode,
    pub text: String,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// What was generated, of a chat in one piece or as a stream.
    pub fn content(&self) -> String {
        if self.text.starts_with('{') {
            return self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        }
        let parsed = super::common::events(&self.text).into_iter().filter(|e| e != "[DONE]");
        let parsed = parsed.map(|e| serde_json::from_str::<Value>(&e).unwrap());
        parsed.filter_map(|e| e["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
    }

    pub fn cached(&self) -> u64 {
        self.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    }

    pub fn prompt(&self) -> u64 {
        self.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    }
}

pub async fn send(addr: SocketAddr, request: Request<Full<Bytes>>) -> Said {
    let response = connect(addr).await.send_request(request).await.unwrap();
    let status = response.status();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    Said { status, text: String::from_utf8(text.to_vec()).unwrap() }
}

pub async fn ask(addr: SocketAddr, body: &Value) -> Said {
    send(addr, request("POST", CHAT, body)).await
}

/// With headers, and a body whose bytes are given.
pub async fn ask_with(addr: SocketAddr, path: &str, body: &str, headers: &[(&'static str, &str)]) -> Said {
    let mut r = request("POST", path, &Value::Null);
    for (name, value) in headers {
        r.headers_mut().insert(*name, value.parse().unwrap());
    }
    let (head, _) = r.into_parts();
    send(addr, Request::from_parts(head, Full::new(Bytes::from(body.to_owned())))).await
}

/// In the background; dropping the handle does not end it, aborting it does.
pub fn asking(addr: SocketAddr, body: Value) -> JoinHandle<Said> {
    tokio::spawn(async move { ask(addr, &body).await })
}

/// What one engine alone says.
pub async fn alone(body: &Value) -> Said {
    let sim = start(quick());
    ask(sim.addr(), body).await
}

/// A prompt of some blocks.
pub fn prompt(name: &str) -> String {
    format!("{name}: a question that fills some blocks of the cache ").repeat(20)
}

/// The body of a vLLM prefill leg.
pub fn prefill_leg(content: &str) -> Value {
    let mut body = chat(content, 1, false);
    body["kv_transfer_params"] = json!({"do_remote_decode": true, "do_remote_prefill": false,
        "remote_engine_id": null, "remote_block_ids": null, "remote_host": null, "remote_port": null});
    body
}

/// A body with a member appended, its text as it is.
pub fn with_text(body: &Value, name: &str, text: &str) -> String {
    let mut out = body.to_string();
    out.pop();
    format!("{out},\"{name}\":{text}}}")
}

/// The text of `kv_transfer_params` in an answer of which it is the last member.
pub fn params(answer: &str) -> &str {
    let at = answer.find("\"kv_transfer_params\":").unwrap() + "\"kv_transfer_params\":".len();
    &answer[at..answer.len() - 1]
}

/// Waits until the state satisfies `ok`.
pub async fn until(control: &Control, what: &str, ok: impl Fn(&State) -> bool) -> State {
    for _ in 0..5000 {
        let s = control.state();
        if ok(&s) {
            return s;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never {what}: {:?}", control.state());
}

/// Waits until nothing is under way, and checks that nothing was left.
pub async fn idle(control: &Control) -> HandoffState {
    let s = until(control, "idle", |s| {
        let h = &s.handoff;
        s.in_flight + s.running + s.waiting + s.kv_used == 0
            && h.waiting_for_kv + h.waiting_for_room + h.awaited + h.computing + h.sending == 0
    })
    .await;
    assert_eq!(s.orphaned, 0);
    s.handoff
}
