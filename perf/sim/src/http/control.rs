//! `/sim/...`: faults at run time, what reached the engine, and KV for other simulated engines.

use super::body::AnswerBody;
use super::route::{reply, reply_json};
use crate::engine::Engine;
use crate::faults::Faults;
use crate::handoff::{kv, lmcache};
use crate::state::State;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Longest control body, bytes.
const MAX_CONTROL: usize = 64 << 10;

/// Answers a control route.
pub(crate) async fn answer(
    engine: &Arc<Engine>,
    path: &str,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let method = request.method().clone();
    match (method, path) {
        (Method::POST, "/sim/control") => control(engine, request).await,
        (Method::POST, "/sim/kv" | "/sim/kv/put") => {
            match Limited::new(request.into_body(), MAX_CONTROL).collect().await {
                Ok(body) if path == "/sim/kv" => kv::answer(engine, &body.to_bytes()).await,
                Ok(body) => lmcache::take(engine, &body.to_bytes()),
                Err(e) => wrong(&e.to_string()),
            }
        }
        (Method::GET, "/sim/state") => match serde_json::to_vec(&State::of(engine)) {
            Ok(v) => reply(StatusCode::OK, "application/json", v),
            Err(e) => wrong(&e.to_string()),
        },
        (Method::GET, "/sim/last-body") => {
            let body = engine.core().traffic.last.as_ref().map(|l| l.body.clone()).unwrap_or_default();
            reply(StatusCode::OK, "application/octet-stream", body)
        }
        _ => {
            let known = ["POST /sim/control", "GET /sim/state", "GET /sim/last-body"];
            reply_json(StatusCode::NOT_FOUND, &json!({"error": "no such control route", "routes": known}))
        }
    }
}

fn wrong(message: &str) -> Response<AnswerBody> {
    reply_json(StatusCode::BAD_REQUEST, &json!({"error": message}))
}

async fn control(engine: &Arc<Engine>, request: Request<Incoming>) -> Response<AnswerBody> {
    let body = match Limited::new(request.into_body(), MAX_CONTROL).collect().await {
        Ok(b) => b.to_bytes(),
        Err(e) => return wrong(&e.to_string()),
    };
    let faults: Faults = match serde_json::from_slice(if body.is_empty() { b"{}" } else { &body }) {
        Ok(f) => f,
        Err(e) => return wrong(&e.to_string()),
    };
    // A refusing engine resets this connection too, so the answer is written first.
    let later = faults.refuse;
    if let Err(e) = faults.validate() {
        return wrong(&e.to_string());
    }
    let shown = json!({"faults": faults});
    if later {
        let engine = Arc::clone(engine);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            apply(&engine, faults);
        });
    } else {
        apply(engine, faults);
    }
    reply_json(StatusCode::OK, &shown)
}

/// Sets faults, with their end if they have one. Needs a runtime's context when they do.
pub(crate) fn apply(engine: &Arc<Engine>, faults: Faults) {
    let ends = faults.for_ms;
    if let Ok(version) = engine.set_faults(faults)
        && let Some(ms) = ends
    {
        let engine = Arc::clone(engine);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            engine.end_faults(version);
        });
    }
}
