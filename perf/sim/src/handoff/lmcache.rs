//! LMCache's PD backend: the prefill side pushes what it has computed to the decode side that the request names, and
//! tells the router over ZMQ. The decode leg is the prompt's ids and the first token; it is known by these alone.

use super::Handover;
use super::client;
use super::leg::{Leg, LegError, Params, Prefill, Reply, Request, Source, place};
use super::outbox::Goods;
use crate::engine::{Engine, lock};
use crate::http::body::AnswerBody;
use crate::http::route::reply_json;
use crate::model::SeqSpec;
use crate::prompt::{self, Api};
use crate::text;
use bytes::Bytes;
use fairlead_wire::msg::ServingRole;
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use zeromq::{PushSocket, Socket, SocketSend};

/// Prompts that a decode engine keeps for their legs; the oldest goes first.
const MAX_KEPT: usize = 65_536;
/// Notices that may wait for the router's socket.
const MAX_NOTICES: usize = 4096;
/// Pause before the router's socket is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// `disagg_spec` of a prefill leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receiver {
    pub req_id: String,
    /// Its `host:port`: the first of the ports for initialisation.
    pub addr: String,
    /// Whether the answer tells the first token.
    pub tell_first: bool,
}

/// What is pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivery {
    pub domain: String,
    pub req_id: String,
    pub goods: Goods,
}

/// What a decode engine was given, by the hash of the prompt.
#[derive(Default)]
pub(crate) struct Inbox(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    prompts: HashMap<u64, Goods>,
    order: VecDeque<u64>,
}

impl Inbox {
    fn put(&self, goods: Goods) {
        let mut kept = lock(&self.0);
        if kept.order.len() >= MAX_KEPT
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.prompts.remove(&oldest);
        }
        if kept.prompts.insert(goods.seed, goods.clone()).is_none() {
            kept.order.push_back(goods.seed);
        }
    }

    /// What is kept of a prompt.
    pub fn get(&self, seed: u64) -> Option<Goods> {
        lock(&self.0).prompts.get(&seed).cloned()
    }
}

/// The id of a token of text.
pub(crate) fn token_id(seed: u64, index: u32) -> u32 {
    prompt::token_ids(text::token(seed, index).as_bytes()).first().copied().unwrap_or(0)
}

/// Reads a request.
pub(crate) fn read(
    handover: &Handover,
    request: &Request<'_>,
    params: Option<&Params>,
) -> Result<Leg, LegError> {
    if let Some(spec) = params.and_then(|p| p.0.get("disagg_spec")).filter(|s| !s.is_null()) {
        if handover.role == ServingRole::Decode {
            return Err(LegError::internal("disagg_spec on a receiver"));
        }
        let tell_first = params.is_some_and(|p| p.truth("ret_first_tok"));
        let reply = Reply::Push(receiver(spec, tell_first)?);
        return Ok(Leg::Prefill(Prefill { names: Vec::new(), reply }));
    }
    let ids = match (request.api, request.root.get("prompt")) {
        (Api::Completions, Some(Value::Array(ids))) if handover.role != ServingRole::Prefill => ids,
        _ => return Ok(Leg::Plain),
    };
    let ids: Option<Vec<u32>> =
        ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
    let known = ids.as_deref().and_then(<[u32]>::split_last).and_then(|(last, before)| {
        let seed = prompt::seed(&prompt::id_bytes(before));
        handover.inbox.get(seed).filter(|goods| token_id(goods.seed, 0) == *last)
    });
    Ok(known.map_or(Leg::Plain, |goods| Leg::Decode(Source::Inbox(goods))))
}

fn receiver(spec: &Value, tell_first: bool) -> Result<Receiver, LegError> {
    let missing = |name: &str| LegError::internal(format!("disagg_spec: {name} is missing or wrong"));
    let text = |name: &str| spec.get(name).and_then(Value::as_str).filter(|s| !s.is_empty());
    let port = |name: &str| {
        let ports = spec.get(name).and_then(Value::as_array).filter(|p| !p.is_empty());
        let mut ports = ports?.iter().map(|p| p.as_u64().and_then(|p| u16::try_from(p).ok()));
        let first = ports.next()??;
        ports.all(|p| p.is_some()).then_some(first)
    };
    let host = text("receiver_host").ok_or_else(|| missing("receiver_host"))?;
    let init = port("receiver_init_port").ok_or_else(|| missing("receiver_init_port"))?;
    port("receiver_alloc_port").ok_or_else(|| missing("receiver_alloc_port"))?;
    let req_id = text("req_id").ok_or_else(|| missing("req_id"))?.to_owned();
    Ok(Receiver { req_id, addr: place(host, init), tell_first })
}

/// Pushes the KV of a prompt to its receiver, then has the router told.
pub(crate) async fn push(
    engine: &Engine,
    handover: &Handover,
    receiver: &Receiver,
    goods: Goods,
) -> Result<(), LegError> {
    let (slow, lose) = {
        let core = engine.core();
        (core.faults.slow_transfers(), core.faults.lose_kv)
    };
    let failed = |e: String| LegError::internal(format!("KV push failed: {e}"));
    let tokens = if lose { 0 } else { goods.tokens };
    let time = handover.options.transfer(tokens).mul_f64(slow);
    tokio::time::sleep(handover.scaled(time)).await;
    let delivery = Delivery {
        domain: handover.options.domain.clone(),
        req_id: receiver.req_id.clone(),
        goods: Goods { tokens, ..goods },
    };
    let body = serde_json::to_vec(&delivery).map_err(|e| failed(e.to_string()))?;
    let answered = client::post(&receiver.addr, "/sim/kv/put", &[], Bytes::from(body)).await;
    let (status, answer) = answered.map_err(failed)?;
    if status != StatusCode::OK {
        return Err(failed(String::from_utf8_lossy(&answer).into_owned()));
    }
    handover.tally.sent(tokens);
    if let Some(notices) = &handover.notices
        && notices.try_send(notice(&receiver.req_id)).is_err()
    {
        tracing::warn!(req_id = receiver.req_id, "too many notices wait for the router, one is dropped");
    }
    Ok(())
}

/// Takes what another engine pushes.
pub(crate) fn take(engine: &Arc<Engine>, body: &[u8]) -> Response<AnswerBody> {
    let delivered = serde_json::from_slice::<Delivery>(body).map_err(|e| e.to_string());
    let taken = delivered.and_then(|delivery| {
        let takes = engine.handover.as_ref().filter(|h| h.receives());
        let handover = takes.ok_or_else(|| "this engine receives nothing".to_owned())?;
        if delivery.domain != handover.options.domain {
            return Err(format!("domain {:?} is not {:?}", delivery.domain, handover.options.domain));
        }
        handover.inbox.put(delivery.goods);
        Ok(())
    });
    match taken {
        Ok(()) => reply_json(StatusCode::OK, &json!({})),
        Err(error) => reply_json(StatusCode::CONFLICT, &json!({"error": error})),
    }
}

/// Marks what was pushed as computed elsewhere: all but the first token, which the decode side must compute.
pub(crate) fn found(engine: &Engine, handover: &Handover, goods: &Goods, spec: &mut SeqSpec) {
    // The first token may fill a block that the prompt did not.
    let before = spec.path.len().checked_sub(2).and_then(|at| spec.path.get(at));
    let agrees = goods.block.as_ref() == spec.path.last() || goods.block.as_ref() == before;
    if engine.core().faults.refuse_kv || !agrees || goods.tokens == 0 {
        handover.tally.failed_load();
        return;
    }
    let have = engine.cached_tokens(spec);
    spec.remote = goods.tokens.max(have);
    handover.tally.received(u64::from(goods.tokens.saturating_sub(have)));
}

/// `ProxyNotif` as msgspec writes a tagged struct.
fn notice(req_id: &str) -> Vec<u8> {
    let mut out = vec![0x82];
    for text in ["type", "ProxyNotif", "req_id", req_id] {
        match text.len() {
            n @ ..32 => out.push(0xa0 | n as u8),
            n @ ..256 => out.extend([0xd9, n as u8]),
            n => {
                out.push(0xda);
                out.extend_from_slice(&(n.min(0xffff) as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(&text.as_bytes()[..text.len().min(0xffff)]);
    }
    out
}

/// A queue of notices and its end.
pub(crate) fn notices() -> (mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>) {
    mpsc::channel(MAX_NOTICES)
}

/// Sends notices to the router until the engine stops; one that is not there is tried again.
pub(crate) async fn tell(engine: Arc<Engine>, proxy: SocketAddr, mut notices: mpsc::Receiver<Vec<u8>>) {
    let mut gate = engine.gate.subscribe();
    let telling = async {
        let mut socket = None;
        while let Some(notice) = notices.recv().await {
            loop {
                let open = match &mut socket {
                    Some(open) => open,
                    None => {
                        let mut new = PushSocket::new();
                        if new.connect(&format!("tcp://{proxy}")).await.is_err() {
                            tokio::time::sleep(RETRY).await;
                            continue;
                        }
                        socket.insert(new)
                    }
                };
                match open.send(notice.clone().into()).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::debug!(%error, %proxy, "the router was not told, trying again");
                        socket = None;
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = telling => {}
        _ = gate.wait_for(|g| g.stop) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_a_tagged_map() {
        let mut want = b"\x82\xa4type\xaaProxyNotif\xa6req_id".to_vec();
        want.extend_from_slice(b"\xa17");
        assert_eq!(notice("7"), want);
        assert_eq!(notice(&"x".repeat(40))[24..26], [0xd9, 40]);
    }

    #[test]
    fn a_spec_needs_all_its_members() {
        let whole = json!({"req_id": "r", "receiver_host": "h", "receiver_init_port": [7, 8],
            "receiver_alloc_port": [9, 10]});
        let is = Receiver { req_id: "r".into(), addr: "h:7".into(), tell_first: true };
        assert_eq!(receiver(&whole, true), Ok(is));
        for (name, to) in [
            ("req_id", json!(null)),
            ("receiver_host", json!("")),
            ("receiver_init_port", json!([])),
            ("receiver_init_port", json!(7)),
            ("receiver_alloc_port", json!([9, "x"])),
        ] {
            let mut spec = whole.clone();
            spec[name] = to;
            assert!(receiver(&spec, true).is_err(), "{spec}");
        }
    }
}
