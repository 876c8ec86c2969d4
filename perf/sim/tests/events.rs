//! KV events over real sockets.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

mod common;

use bytes::Bytes;
use common::{get, quick, start};
use fairlead_sim::{EngineKind, Faults, Handle, KvEncoding, KvEvents, SimOptions};
use fairlead_tokens::{PieceCache, TokenModel};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

const END: u64 = u64::MAX;

fn sim(kv: KvEvents) -> Handle {
    start(SimOptions { kv_events: Some(kv), ..quick() })
}

async fn ask(sim: &Handle, text: &str) {
    let body = json!({"messages": [{"role": "user", "content": text}], "max_tokens": 2});
    let (status, said) = common::text(sim.addr(), "POST", "/v1/chat/completions", &body).await;
    assert_eq!(status, 200, "{said}");
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.unwrap()
}

/// A subscriber, once its subscription has arrived: of what is published before nothing comes.
async fn subscribe(sim: &Handle) -> SubSocket {
    let mut sub = SubSocket::new();
    sub.connect(&format!("tcp://{}", sim.kv_events_addr().unwrap())).await.unwrap();
    sub.subscribe("").await.unwrap();
    for i in 0.. {
        ask(sim, &format!("{i} {}", "is anybody there? ".repeat(8))).await;
        if tokio::time::timeout(Duration::from_millis(50), sub.recv()).await.is_ok() {
            break;
        }
    }
    sub
}

fn seq(frame: &Bytes) -> u64 {
    u64::from_be_bytes(frame[..].try_into().unwrap())
}

/// Topic, number and payload of the next batch.
async fn batch(sub: &mut SubSocket) -> (Bytes, u64, Bytes) {
    let frames = within(sub.recv()).await.unwrap().into_vec();
    let [topic, number, payload] = frames.try_into().unwrap();
    (topic, seq(&number), payload)
}

async fn replay(sim: &Handle, from: u64) -> Vec<Vec<Bytes>> {
    let mut dealer = DealerSocket::new();
    dealer.connect(&format!("tcp://{}", sim.kv_replay_addr().unwrap())).await.unwrap();
    let frames = vec![Bytes::new(), Bytes::copy_from_slice(&from.to_be_bytes())];
    dealer.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
    let mut all = Vec::new();
    loop {
        let frames = within(dealer.recv()).await.unwrap().into_vec();
        let number = seq(&frames[frames.len() - 2]);
        all.push(frames);
        if number == END {
            return all;
        }
    }
}

#[tokio::test]
async fn batches_come_in_order_and_can_be_asked_for_again() {
    let sim = sim(KvEvents { topic: "kv@here".into(), ..KvEvents::default() });
    let mut sub = subscribe(&sim).await;
    let before = sim.control().state().kv_batches;
    for text in ["a", "b", "c"] {
        ask(&sim, &text.repeat(300)).await;
    }
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(n, _)| n + 1 < sim.control().state().kv_batches) {
        let (topic, n, payload) = batch(&mut sub).await;
        assert_eq!(topic, "kv@here");
        seen.push((n, payload));
    }
    assert!(seen.windows(2).all(|w| w[1].0 == w[0].0 + 1), "no gap");
    assert!(seen.iter().filter(|(n, _)| *n >= before).count() >= 3);

    let told = replay(&sim, seen[0].0).await;
    assert_eq!(told.len(), seen.len() + 1);
    for (frames, (n, payload)) in told.iter().zip(&seen) {
        assert_eq!(frames.len(), 4);
        assert_eq!(
            (&frames[0][..], &frames[1][..], seq(&frames[2]), &frames[3]),
            (&b""[..], &b"kv@here"[..], *n, payload)
        );
    }
    assert_eq!(told.last().unwrap()[1..], [Bytes::new(), Bytes::copy_from_slice(&[0xff; 8]), Bytes::new()]);
    assert_eq!(replay(&sim, END - 1).await.len(), 1);
}

#[tokio::test]
async fn batches_are_lost_on_demand() {
    let sim = sim(KvEvents::default());
    let mut sub = subscribe(&sim).await;
    sim.control().set_faults(Faults { drop_events: 1, ..Faults::default() }).unwrap();
    let lost = sim.control().state().kv_batches;
    ask(&sim, &"x".repeat(200)).await;
    ask(&sim, &"y".repeat(200)).await;
    let (_, n, _) = batch(&mut sub).await;
    assert_eq!((n, sim.control().state().kv_batches_dropped), (lost + 1, 1));
    // Whoever asks gets what was lost.
    assert_eq!(seq(&replay(&sim, lost).await[0][2]), lost);
    sim.control().set_faults(Faults { drop_events: 1, forget_events: true, ..Faults::default() }).unwrap();
    let lost = sim.control().state().kv_batches;
    ask(&sim, &"z".repeat(200)).await;
    assert_eq!(seq(&replay(&sim, lost).await[0][2]), END);
}

async fn told(sim: &Handle, path: &str) -> Value {
    let (status, body) = get(sim.addr(), path).await;
    assert_eq!(status, 200);
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn an_engine_tells_where_its_events_are() {
    let vllm = sim(KvEvents { replay: None, ..KvEvents::default() });
    let sources = told(&vllm, "/kv_event_sources").await;
    assert_eq!(sources["0"]["endpoint"], format!("tcp://{}", vllm.kv_events_addr().unwrap()));
    assert_eq!((&sources["0"]["replay_endpoint"], &sources["0"]["publisher"]), (&json!(null), &json!("zmq")));

    let options = SimOptions { engine: EngineKind::Sglang, kv_events: Some(KvEvents::default()), ..quick() };
    let sglang = start(options);
    let told = told(&sglang, "/server_info").await["kv_events"].clone();
    assert_eq!((&told["endpoint_host"], &told["block_size"]), (&json!("127.0.0.1"), &json!(16)));
    assert_eq!(told["endpoint_port_base"], sglang.kv_events_addr().unwrap().port());
    assert_eq!(told["replay_endpoint_port_base"], sglang.kv_replay_addr().unwrap().port());

    let silent = start(quick());
    assert_eq!(get(silent.addr(), "/kv_event_sources").await.0, 404);
}

#[tokio::test]
async fn the_positional_form_has_its_own_framing() {
    let sim = sim(KvEvents { encoding: KvEncoding::Array, ..KvEvents::default() });
    ask(&sim, &"x".repeat(200)).await;
    let told = replay(&sim, 0).await;
    assert!(told.len() >= 2 && told.iter().all(|frames| frames.len() == 3));
    // [time, [["BlockStored", ... ten members
    let payload = &told[0][2];
    assert_eq!((&payload[..2], &payload[10..12]), (&[0x93, 0xcb][..], &[0x91, 0x9b][..]));
}

#[tokio::test]
async fn tokens_are_those_of_the_tokenizer() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/tokens/tests/data/turns");
    let model = Arc::new(TokenModel::load(folder, None).unwrap());
    let sim = start(SimOptions { tokenizer: Some(Arc::clone(&model)), ..quick() });
    let body = json!({"messages": [{"role": "user", "content": "the router sends every request ".repeat(9)}], "max_tokens": 2});
    let ids = model.encode_chat(body.to_string().as_bytes(), &mut PieceCache::new(1 << 20)).unwrap();
    let mut cached = Vec::new();
    for _ in 0..2 {
        let (status, said) = common::post(sim.addr(), "/v1/chat/completions", &body).await;
        assert_eq!((status.as_u16(), &said["usage"]["prompt_tokens"]), (200, &json!(ids.len())));
        cached.push(said["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert_eq!(cached, [0, (ids.len() as u64 - 1) / 16 * 16]);
    let tokenised = common::post(sim.addr(), "/tokenize", &json!({"messages": body["messages"]})).await.1;
    assert_eq!(tokenised["tokens"], json!(ids));
    // Ids given as such are nothing to tokenise.
    let given =
        common::post(sim.addr(), "/v1/completions", &json!({"prompt": [5, 6, 7], "max_tokens": 1})).await.1;
    assert_eq!(given["usage"]["prompt_tokens"], 3);
}
