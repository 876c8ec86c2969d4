//! `/v1/realtime`: a small part of OpenAI's realtime API, over WebSocket. The conversation is text; what `response.create`
//! asks for is computed by the engine's model like any other prompt. What is no event of the API is sent back as it came.

use super::body::AnswerBody;
use super::conn::ConnControl;
use super::route::{Answer, before_answer, error};
use crate::engine::{Engine, LastRequest, Visit};
use crate::faults::Faults;
use crate::model::SeqSpec;
use crate::text;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::future::poll_fn;
use std::sync::Arc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Answers the handshake; the connection goes on in a task of its own.
pub(crate) async fn answer(
    engine: &Arc<Engine>,
    conn: &Arc<ConnControl>,
    mut request: Request<Incoming>,
) -> Answer {
    let mut visit = Visit::new(engine);
    let faults = {
        let mut core = engine.core();
        *core.traffic.by_route.entry("realtime").or_default() += 1;
        core.traffic.last =
            Some(LastRequest::of(request.method(), request.uri(), request.headers(), Bytes::new()));
        core.faults.take(None)
    };
    if let Some(f) = &faults
        && let Some(broken) = before_answer(engine, conn, None, f).await?
    {
        visit.complete();
        return Ok(broken);
    }
    let key = request.headers().get(SEC_WEBSOCKET_KEY).cloned();
    let refusal = match (&key, model(engine, request.uri().query().unwrap_or_default())) {
        _ if !engine.ready() => Err((StatusCode::SERVICE_UNAVAILABLE, "the engine is not ready".to_owned())),
        (Some(_), Ok(model)) if asks(request.headers()) => Ok(model),
        (_, Err(model)) => Err((StatusCode::NOT_FOUND, unknown(&model))),
        _ => Err((StatusCode::UPGRADE_REQUIRED, "this route speaks WebSocket".to_owned())),
    };
    let model = match refusal {
        Ok(model) => model,
        Err((status, message)) => {
            visit.complete();
            return Ok(error(engine, None, status, None, &message));
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (engine, conn) = (Arc::clone(engine), Arc::clone(conn));
    tokio::spawn(async move { connection(engine, conn, visit, upgrade, model, faults).await });
    let mut r = Response::new(AnswerBody::whole(Bytes::new()));
    *r.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = r.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = derive_accept_key(key.as_ref().map_or(&[], HeaderValue::as_bytes));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(r)
}

fn asks(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The model of a query, the engine's own where it names none, or a name that it does not serve.
fn model(engine: &Engine, query: &str) -> Result<String, String> {
    let named = query.split('&').find_map(|pair| pair.strip_prefix("model="));
    let name = named.map(|name| name.replace("%2F", "/").replace("%2f", "/"));
    match name.filter(|name| !name.is_empty()) {
        None => Ok(engine.options.models[0].clone()),
        Some(name) if serves(engine, &name) => Ok(name),
        Some(name) => Err(name),
    }
}

fn serves(engine: &Engine, model: &str) -> bool {
    engine.options.models.iter().chain(&engine.options.loras).any(|name| name == model)
}

fn unknown(model: &str) -> String {
    format!("The model `{model}` does not exist.")
}

async fn connection(
    engine: Arc<Engine>,
    conn: Arc<ConnControl>,
    visit: Visit,
    upgrade: OnUpgrade,
    model: String,
    faults: Option<Faults>,
) {
    let mut gate = engine.gate.subscribe();
    let resets = gate.borrow_and_update().resets;
    let serving = async {
        let Ok(io) = upgrade.await else { return };
        let config = WebSocketConfig::default().max_message_size(Some(engine.options.max_body));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await;
        let (engine, conn) = (Arc::clone(&engine), Arc::clone(&conn));
        let mut session = Session { engine, conn, visit, socket, model, faults, heard: Vec::new(), told: 0 };
        if let Err(error) = session.run().await {
            tracing::debug!(%error, "a realtime connection broke off");
        }
    };
    tokio::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => return,
            changed = gate.changed() => {
                if changed.is_err() || gate.borrow_and_update().resets != resets {
                    conn.reset_on_close();
                    return;
                }
            }
        }
    }
}

struct Session {
    engine: Arc<Engine>,
    conn: Arc<ConnControl>,
    visit: Visit,
    socket: WebSocketStream<TokioIo<Upgraded>>,
    model: String,
    faults: Option<Faults>,
    /// The conversation so far.
    heard: Vec<u8>,
    /// Tokens told.
    told: u32,
}

/// Whether the session goes on.
type Goes = Result<bool, Error>;

impl Session {
    async fn run(&mut self) -> Result<(), Error> {
        let created = self.session("session.created");
        self.tell(created).await?;
        while let Some(message) = self.socket.next().await {
            let goes_on = match message? {
                Message::Text(text) => match serde_json::from_str::<Value>(&text) {
                    Ok(event) => self.event(&event, text.as_str()).await?,
                    Err(_) => self.echo(Message::Text(text)).await?,
                },
                message @ Message::Binary(_) => self.echo(message).await?,
                Message::Close(_) => {
                    self.visit.complete();
                    true
                }
                // Pings are answered underneath.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => true,
            };
            if !goes_on {
                break;
            }
            if self.heard.len() > self.engine.options.max_body {
                self.refuse("the conversation is too long").await?;
            }
        }
        Ok(())
    }

    async fn tell(&mut self, event: Value) -> Goes {
        self.socket.send(Message::text(event.to_string())).await?;
        Ok(true)
    }

    async fn echo(&mut self, message: Message) -> Goes {
        self.socket.send(message).await?;
        Ok(true)
    }

    fn id(&self, kind: &str) -> String {
        format!("{kind}_{}", self.engine.new_id())
    }

    fn session(&self, kind: &str) -> Value {
        json!({"type": kind, "event_id": self.id("event"), "session": {
            "id": self.id("sess"), "object": "realtime.session", "model": self.model,
            "output_modalities": ["text"]}})
    }

    async fn event(&mut self, event: &Value, text: &str) -> Goes {
        match event["type"].as_str().unwrap_or_default() {
            "session.update" => {
                let named = event["model"].as_str().or_else(|| event["session"]["model"].as_str());
                if let Some(name) = named {
                    if !serves(&self.engine, name) {
                        return self.refuse(&unknown(name)).await;
                    }
                    self.model = name.to_owned();
                }
                let updated = self.session("session.updated");
                self.tell(updated).await
            }
            "conversation.item.create" => {
                let mut item = event["item"].clone();
                for part in item["content"].as_array().into_iter().flatten() {
                    let said = part["text"].as_str().or_else(|| part["transcript"].as_str());
                    self.heard.extend_from_slice(said.unwrap_or_default().as_bytes());
                }
                if let Some(item) = item.as_object_mut() {
                    let id = self.id("item");
                    item.entry("id").or_insert_with(|| id.into());
                }
                let id = self.id("event");
                self.tell(json!({"type": "conversation.item.created", "event_id": id, "item": item})).await
            }
            "input_audio_buffer.append" => {
                // A second of sound is taken for a word: so many bytes of it are one of text.
                let bytes = event["audio"].as_str().map_or(0, str::len) / 8192 + 1;
                self.heard.extend(std::iter::repeat_n(b'~', bytes));
                Ok(true)
            }
            "input_audio_buffer.commit" => {
                let (id, item) = (self.id("event"), self.id("item"));
                self.tell(json!({"type": "input_audio_buffer.committed", "event_id": id, "item_id": item}))
                    .await
            }
            "response.create" => self.respond(&event["response"]).await,
            _ => self.echo(Message::text(text)).await,
        }
    }

    /// Says why, and closes.
    async fn refuse(&mut self, message: &str) -> Goes {
        let id = self.id("event");
        let error = json!({"type": "invalid_request_error", "message": message});
        self.tell(json!({"type": "error", "event_id": id, "error": error})).await?;
        let reason = message.get(..message.len().min(120)).unwrap_or_default().to_owned();
        self.socket.close(Some(CloseFrame { code: CloseCode::Policy, reason: reason.into() })).await?;
        self.visit.complete();
        Ok(true)
    }

    /// An answer to the conversation, a delta for each token.
    async fn respond(&mut self, asked: &Value) -> Goes {
        let prepared = self.engine.prepare(&self.model, "", &self.heard);
        let limit = asked["max_output_tokens"].as_u64().and_then(|n| u32::try_from(n).ok());
        let output = limit.unwrap_or_else(|| text::natural_length(prepared.seed));
        let spec = SeqSpec {
            path: prepared.path,
            prompt_tokens: prepared.tokens.max(1),
            output_tokens: output.clamp(1, self.engine.options.max_model_len),
            limited: limit.is_some(),
            origin: prepared.origin,
            remote: 0,
        };
        let ticket = match self.engine.submit(&[spec]) {
            Ok(ticket) => ticket,
            Err(refused) => return self.refuse(&refused.to_string()).await,
        };
        let (response, item) = (self.id("resp"), self.id("item"));
        let about = |kind: &str, event: String| {
            json!({"type": kind, "event_id": event, "response_id": response, "item_id": item,
                "output_index": 0, "content_index": 0})
        };
        let begun = json!({"type": "response.created", "event_id": self.id("event"),
            "response": {"id": response, "object": "realtime.response", "status": "in_progress"}});
        self.tell(begun).await?;
        let (mut state, mut written) = (Vec::new(), 0);
        loop {
            poll_fn(|cx| ticket.poll_change(cx, &mut state)).await;
            let Some(now) = state.first().copied() else { return Ok(false) };
            while written < now.emitted {
                if !self.meets_fault().await {
                    return Ok(false);
                }
                let mut delta = about("response.output_text.delta", self.id("event"));
                delta["delta"] = text::token(prepared.seed, written).into();
                self.tell(delta).await?;
                written += 1;
                self.told += 1;
            }
            if now.done {
                let said = text::answer(prepared.seed, written);
                let mut done = about("response.output_text.done", self.id("event"));
                done["text"] = said.as_str().into();
                self.tell(done).await?;
                self.heard.extend_from_slice(said.as_bytes());
                let usage = json!({"total_tokens": prepared.tokens + written, "input_tokens": prepared.tokens,
                    "output_tokens": written, "input_token_details": {"cached_tokens": now.cached}});
                let ended = json!({"type": "response.done", "event_id": self.id("event"),
                    "response": {"id": response, "object": "realtime.response", "status": "completed",
                        "usage": usage}});
                return self.tell(ended).await;
            }
        }
    }

    /// Fails where a fault says so: not to go on is to break off.
    async fn meets_fault(&mut self) -> bool {
        let Some(faults) = &self.faults else { return true };
        let reached = |after: Option<u32>| after.is_some_and(|tokens| self.told >= tokens);
        if reached(faults.die_after) {
            self.conn.reset_on_close();
            return false;
        }
        if reached(faults.hang_after) {
            std::future::pending::<()>().await;
        }
        !reached(faults.cut_after)
    }
}
