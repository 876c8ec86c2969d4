//! `POST /sim/kv`: how simulated engines move KV, over their own HTTP port. The decode side asks, the prefill side answers
//! when the KV is there and its transfer has taken its time. Who leaves before closes the connection.

use super::Handover;
use super::client;
use super::leg::Peer;
use super::outbox::Goods;
use crate::engine::Engine;
use crate::http::body::AnswerBody;
use crate::http::route::reply_json;
use crate::model::SeqSpec;
use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// What the decode side asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// The hand-off's name.
    pub kind: String,
    /// The shipment's name.
    pub key: String,
    /// The engine that should have it.
    pub engine_id: Option<String>,
    pub domain: String,
    /// The prompt as the decode side has it.
    pub tokens: u32,
    pub seed: u64,
    pub block: Option<u64>,
    /// Leading tokens that it has already.
    pub have: u32,
    /// How many times as long it makes the transfer take.
    pub slow: f64,
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shipped {
    /// Tokens whose KV is there now.
    pub tokens: u32,
    /// How long the transfer took on the card.
    pub seconds: f64,
    /// What the prefill side's answer told, to be compared with what came back.
    pub opaque: String,
}

#[derive(Deserialize)]
struct Failure {
    error: String,
}

/// The prompt of a sequence, as both sides describe it.
pub(crate) fn goods(spec: &SeqSpec, seed: u64) -> Goods {
    Goods { tokens: spec.prompt_tokens, seed, block: spec.path.last().copied(), opaque: String::new() }
}

/// Answers a request for KV.
pub(crate) async fn answer(engine: &Arc<Engine>, body: &[u8]) -> Response<AnswerBody> {
    let wanted: Wanted = match serde_json::from_slice(body) {
        Ok(w) => w,
        Err(e) => return reply_json(StatusCode::BAD_REQUEST, &json!({"error": e.to_string()})),
    };
    let shipped = match &engine.handover {
        Some(handover) => ship(engine, handover, &wanted).await,
        None => Err("this engine hands nothing over".into()),
    };
    match shipped {
        Ok(shipped) => reply_json(StatusCode::OK, &json!(shipped)),
        Err(error) => reply_json(StatusCode::CONFLICT, &json!({"error": error})),
    }
}

async fn ship(engine: &Engine, handover: &Handover, wanted: &Wanted) -> Result<Shipped, String> {
    let own = handover.options.handoff;
    if wanted.kind != own.as_str() {
        return Err(format!("{} asked for, this engine speaks {}", wanted.kind, own.as_str()));
    }
    if wanted.domain != handover.options.domain {
        return Err(format!("domain {:?} is not {:?}", wanted.domain, handover.options.domain));
    }
    if let Some(id) = wanted.engine_id.as_ref().filter(|id| **id != handover.engine_id) {
        return Err(format!("engine {id:?} is not here, this is {:?}", handover.engine_id));
    }
    let consumer = handover.outbox.claim(&wanted.key, own.is_concurrent())?;
    let goods = consumer.ready().await?;
    if (goods.tokens, goods.seed, goods.block) != (wanted.tokens, wanted.seed, wanted.block) {
        return Err(format!("{:?} is of another prompt ({} tokens)", wanted.key, goods.tokens));
    }
    let missing = goods.tokens.saturating_sub(wanted.have);
    let slow = engine.core().faults.slow_transfers() * wanted.slow.clamp(0.0, 1e6);
    let time = handover.options.transfer(missing).mul_f64(slow);
    tokio::select! {
        () = tokio::time::sleep(handover.scaled(time)) => {}
        why = consumer.broken() => return Err(why),
    }
    consumer.sent();
    handover.tally.sent(missing);
    if own.is_concurrent() {
        handover.moved(time, missing);
    }
    Ok(Shipped { tokens: goods.tokens, seconds: time.as_secs_f64(), opaque: goods.opaque })
}

/// Fetches the KV of a sequence from another engine; returns once it is here.
pub(crate) async fn fetch(
    engine: &Engine,
    handover: &Handover,
    peer: &Peer,
    goods: Goods,
    have: u32,
) -> Result<Shipped, String> {
    let (slow, refused) = {
        let core = engine.core();
        (core.faults.slow_transfers(), core.faults.refuse_kv)
    };
    if refused {
        return Err("refused on demand".into());
    }
    let options = &handover.options;
    let wanted = Wanted {
        kind: options.handoff.as_str().to_owned(),
        key: peer.key.clone(),
        engine_id: peer.engine_id.clone(),
        domain: options.domain.clone(),
        tokens: goods.tokens,
        seed: goods.seed,
        block: goods.block,
        have,
        slow,
    };
    let body = serde_json::to_vec(&wanted).map_err(|e| e.to_string())?;
    let asked = client::post(&peer.addr, "/sim/kv", &[], Bytes::from(body));
    // Where the decode leg may come before the prefill leg has ended, it does not wait for ever.
    let (status, answer) = if options.handoff.is_concurrent() {
        let patience = options.patience();
        let late = |_| format!("no KV for {:?} within {} s", peer.key, patience.as_secs_f64());
        tokio::time::timeout(handover.scaled(patience), asked).await.map_err(late)??
    } else {
        asked.await?
    };
    if status != StatusCode::OK {
        let said = serde_json::from_slice::<Failure>(&answer).map(|f| f.error);
        return Err(said.unwrap_or_else(|_| format!("{} answered {status}", peer.addr)));
    }
    let shipped: Shipped = serde_json::from_slice(&answer).map_err(|e| format!("{}: {e}", peer.addr))?;
    if !options.handoff.is_concurrent() {
        let time = Duration::try_from_secs_f64(shipped.seconds).unwrap_or_default();
        handover.moved(time, shipped.tokens.saturating_sub(have));
    }
    Ok(shipped)
}
