//! WebSockets: one request that becomes a connection of its own, counted as load until it ends.
//!
//! A client that names its model in the query (`?model=`) shakes hands with the engine: its head is forwarded, the engine's
//! 101 comes back, and bytes pass both ways from then on. One that does not is answered by the gateway, and its first
//! message says where it goes; the gateway then shakes hands with that engine itself and passes the message on.

mod duplex;
mod farewell;
mod first;

pub use farewell::Farewells;

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use fairlead_routing::Plan;
use http::StatusCode;

use super::answer::Refusal;
use super::attempt::{Attempt, Begun, HeadOf};
use super::carry::{Headed, Part, carry, prompt_of};
use super::conn::{Conn, Next};
use super::decide::{Prompt, fleet_unknown};
use super::forward::{Attempts, Client, How, Outcome};
use super::routes::decode;
use super::upstream::{Cause, Exchanged, READ_SMALL, Reads, exchange};
use super::{Shard, observe};
use crate::http::websocket::{Close, Handshake, HandshakeError, VERSION, accept_key, close_frame, switching};
use crate::http::{ClientHead, OutgoingBody, ResponseHead};
use crate::runtime::{Direction, Link, Runtime, Stream as _};
use crate::shared::Shared;

use duplex::{Duplex, End, Over, PARTING};
use first::First;

/// Longest explain record in a handshake's answer, bytes.
const EXPLAIN: usize = 2048;

/// Serves a request that asks for a WebSocket.
pub async fn open<R: Runtime>(conn: &mut Conn<R>, headed: &Headed<'_>) -> Next {
    let head_bytes = headed.head_bytes.clone();
    let handshake = match conn.head.websocket(&head_bytes) {
        Ok(handshake) => handshake,
        Err(error) => return refuse(conn, headed, &wrong(error)).await,
    };
    let named = match named_model(conn.head.query(&head_bytes)) {
        Ok(named) => named,
        Err(refusal) => return refuse(conn, headed, &refusal).await,
    };
    match named {
        Some(name) => match prompt(Some(&name), &conn.shard.shared) {
            Ok(prompt) => shake(conn, headed, prompt).await,
            Err(refusal) => refuse(conn, headed, &refusal).await,
        },
        None if conn.shard.shared.fleet.table().model_names().is_empty() => {
            refuse(conn, headed, &no_models(&conn.shard.shared)).await
        }
        None => {
            conn.head.decline_extensions(&head_bytes);
            answered_here(conn, headed, handshake).await
        }
    }
}

/// The engine answers the handshake, whatever it says.
async fn shake<R: Runtime>(conn: &mut Conn<R>, headed: &Headed<'_>, prompt: Prompt) -> Next {
    // Whoever is refused may have sent its next request already.
    let early = conn.buf.split().freeze();
    let outcome = carry(conn, headed, prompt, early_part(early.clone()), &Upgrade { answered: None }).await;
    conn.buf = BytesMut::from(&early[..]);
    match outcome {
        Outcome::Answered { keep_alive: true } => Next::KeepAlive,
        Outcome::Answered { keep_alive: false } => Next::Linger,
        Outcome::Refuse(refusal) => conn.refuse(&refusal, headed.style, headed.request_id, false).await,
        Outcome::PassOn(_) | Outcome::Left | Outcome::Cut => Next::Close,
    }
}

/// The gateway answers the handshake; the first message says where the connection goes.
async fn answered_here<R: Runtime>(
    conn: &mut Conn<R>,
    headed: &Headed<'_>,
    handshake: Handshake<'_>,
) -> Next {
    if !conn.send(switching(&handshake, headed.request_id)).await {
        conn.shard.metrics.ended(None, observe::CLIENT_LEFT);
        return Next::Close;
    }
    conn.watch.switch();
    let (name, early) = match first::read(conn).await {
        First::Message { model, early } => (model, early),
        First::Closed => {
            conn.shard.metrics.ended(None, StatusCode::SWITCHING_PROTOCOLS.as_u16());
            return Next::Linger;
        }
        First::Refuse(code, why) => {
            conn.shard.metrics.ended(None, StatusCode::BAD_REQUEST.as_u16());
            return close(conn, code, &why).await;
        }
        First::Gone => {
            conn.shard.metrics.ended(None, observe::CLIENT_LEFT);
            return Next::Close;
        }
    };
    let prompt = match prompt(name.as_deref(), &conn.shard.shared) {
        Ok(prompt) => prompt,
        Err(refusal) => {
            conn.shard.metrics.ended(None, refusal.status);
            return close(conn, close_code(&refusal), &refusal.message).await;
        }
    };
    let upgrade = Upgrade { answered: Some(handshake) };
    match carry(conn, headed, prompt, early_part(early), &upgrade).await {
        Outcome::Answered { .. } => Next::Linger,
        Outcome::Refuse(refusal) => close(conn, close_code(&refusal), &refusal.message).await,
        Outcome::PassOn(_) | Outcome::Left | Outcome::Cut => Next::Close,
    }
}

/// What the client has sent behind its handshake.
fn early_part(early: Bytes) -> Part {
    Part { read_ahead: !early.is_empty(), body: early, held: None }
}

async fn refuse<R: Runtime>(conn: &mut Conn<R>, headed: &Headed<'_>, refusal: &Refusal) -> Next {
    conn.shard.metrics.ended(None, refusal.status);
    // What follows may be frames of a client that did not wait.
    conn.refuse(refusal, headed.style, headed.request_id, true).await
}

/// Closes a connection of which no frame is under way.
async fn close<R: Runtime>(conn: &mut Conn<R>, code: Close, why: &str) -> Next {
    if conn.send(close_frame(code, why)).await { Next::Linger } else { Next::Close }
}

fn wrong(error: HandshakeError) -> Refusal {
    match error {
        HandshakeError::Version => {
            Refusal::new(426, "only version 13 of the WebSocket protocol is spoken here")
                .fields(&[("Upgrade", "websocket"), ("Sec-WebSocket-Version", VERSION)])
        }
        HandshakeError::Bad(what) => Refusal::new(400, what),
    }
}

/// What an error is after the handshake.
fn close_code(refusal: &Refusal) -> Close {
    if (400..500).contains(&refusal.status) { Close::Policy } else { Close::Internal }
}

fn no_models(shared: &Shared) -> Refusal {
    if shared.is_fleet_known() {
        Refusal::new(503, "no models are available").code("no_ready_target").retry_after(1)
    } else {
        fleet_unknown()
    }
}

/// The model that a query names.
fn named_model(query: &str) -> Result<Option<String>, Refusal> {
    let mut found: Option<String> = None;
    for pair in query.trim_start_matches('?').split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name) != "model" {
            continue;
        }
        let value = decode(&value.replace('+', " "));
        if found.as_ref().is_some_and(|have| *have != value) {
            return Err(Refusal::new(400, "the query names more than one `model`").param("model"));
        }
        found = Some(value);
    }
    Ok(found.filter(|name| !name.is_empty()))
}

/// What the decision gets.
fn prompt(name: Option<&str>, shared: &Shared) -> Result<Prompt, Refusal> {
    prompt_of(name, shared, || {
        Refusal::new(
            400,
            "name a model: `?model=` in the URL, or `model` or `session.model` in the first message",
        )
    })
}

/// A handshake with the engine that was picked.
struct Upgrade<'a> {
    /// The client's handshake, where the gateway has answered it.
    answered: Option<Handshake<'a>>,
}

impl<R: Runtime> How<R> for Upgrade<'_> {
    async fn attempt(&self, attempts: &mut Attempts<'_, R>, plan: &mut Plan) -> Attempt {
        attempts.attempts += 1;
        let upstream = match attempts.connect(plan.target(), true).await {
            Ok(upstream) => upstream,
            Err(attempt) => return attempt,
        };
        let socket = &upstream.socket;
        let asks = [("Connection", "Upgrade".to_owned()), ("Upgrade", "websocket".to_owned())];
        let plain = self.answered.is_some();
        let head = attempts.head_for(&HeadOf {
            target: plan.target(),
            body: OutgoingBody::None,
            add: &asks,
            id: None,
            plain,
        });
        let make = |buf: BytesMut| socket.read(buf);
        let mut op = pin!(make(BytesMut::with_capacity(READ_SMALL)));
        let mut reads = Reads::new(op.as_mut(), make);
        let write = pin!(socket.write_both(Bytes::from(head), Bytes::new()));
        let mut answer = attempts.shard.answers.borrow_mut().pop().unwrap_or_default();
        let (watch, hold) = (&mut *attempts.client.watch, attempts.shard.options.timeouts.head_hold);
        let sent_us = R::now_us();
        match exchange::<R, _, _, _, _>(socket, &mut reads, write, &mut answer, watch, hold).await {
            Exchanged::Switched { head, rest, sent } => match self.fault(&answer, &head, sent) {
                None => self.switched(attempts, socket, plan, &answer, (head, rest)).await,
                Some(what) => {
                    socket.shutdown(Direction::Both);
                    Attempt::failed(Cause::Broken(what))
                }
            },
            Exchanged::Answer { head, rest, sent } => {
                if answer.status() == StatusCode::SERVICE_UNAVAILABLE
                    && let Some(next) = attempts.elsewhere(&[plan.target()])
                {
                    socket.shutdown(Direction::Both);
                    return Attempt::Elsewhere(Box::new(next), Cause::Busy);
                }
                if plain {
                    socket.shutdown(Direction::Both);
                    return Attempt::Done(Outcome::Refuse(no_switch(answer.status())));
                }
                let begun = Begun { head, rest, sent, sent_us };
                Attempt::Done(attempts.relay(socket, &mut reads, &answer, begun, plan, None).await)
            }
            Exchanged::Gone => Attempt::Done(Outcome::Left),
            Exchanged::Failed { cause, .. } => {
                socket.shutdown(Direction::Both);
                Attempt::failed(cause)
            }
        }
    }
}

/// The engine refused a handshake of the gateway's own.
fn no_switch(status: StatusCode) -> Refusal {
    let code = if status.is_client_error() || status.is_server_error() { status.as_u16() } else { 502 };
    Refusal::new(code, format!("the engine refused the connection: {status}")).code("upstream_error")
}

impl Upgrade<'_> {
    /// What is wrong with an engine's 101.
    fn fault(&self, answer: &ResponseHead, head: &[u8], sent: bool) -> Option<&'static str> {
        let value = |name| answer.header(head, name);
        if !sent || !value("upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket")) {
            return Some("the engine switched to another protocol");
        }
        // A client that shakes hands with the engine checks the rest itself.
        let handshake = self.answered.as_ref()?;
        if value("sec-websocket-accept") != Some(accept_key(handshake.key).as_bytes()) {
            return Some("the engine's Sec-WebSocket-Accept is wrong");
        }
        if value("sec-websocket-extensions").is_some() {
            return Some("the engine uses an extension that was not offered");
        }
        let chosen = value("sec-websocket-protocol");
        if chosen.is_some() && chosen != handshake.protocol.map(str::as_bytes) {
            return Some("the engine speaks another subprotocol than the client was told");
        }
        None
    }

    /// Both sides speak WebSocket: relays to the end.
    async fn switched<R: Runtime>(
        &self,
        attempts: &mut Attempts<'_, R>,
        engine: &Link<R::Socket>,
        plan: &mut Plan,
        answer: &ResponseHead,
        (head, rest): (Bytes, BytesMut),
    ) -> Attempt {
        plan.reservation.presume_prefilled(R::now_us());
        let shard = attempts.shard;
        let mut greeting = Vec::new();
        if self.answered.is_none() {
            attempts.write_switching(answer, &head, plan, &mut greeting);
        }
        drop(head);
        let frames_at = greeting.len();
        greeting.extend_from_slice(&rest);
        drop(rest);
        let early = std::mem::take(&mut attempts.request.body);
        attempts.request.head_bytes = Bytes::new();
        attempts.client.watch.switch();
        let both = Duplex {
            client: attempts.client.socket,
            guard: attempts.client.guard,
            watch: &mut *attempts.client.watch,
            engine,
            farewells: &shard.farewells,
            stall: shard.options.timeouts.stall,
        };
        let over = both.run(early, greeting, frames_at).await;
        engine.shutdown(Direction::Both);
        let left = over.end == End::Client && !over.up.closed() && !over.down.closed();
        let status = if left { observe::CLIENT_LEFT } else { StatusCode::SWITCHING_PROTOCOLS.as_u16() };
        shard.metrics.ended(Some(&attempts.prompt.model), status);
        let outcome = last_word(shard, &attempts.client, &over).await;
        attempts.client.guard.set_parting(false);
        Attempt::Done(outcome)
    }
}

/// Tells the client why it ends, where it does not know and may be told.
async fn last_word<R: Runtime>(shard: &Shard<R>, client: &Client<'_, R>, over: &Over) -> Outcome {
    let (code, why, patience) = match over.end {
        End::Client => return Outcome::Cut,
        // A close, or the end after one, is the engine's to make.
        _ if over.down.closed() => return Outcome::Answered { keep_alive: false },
        End::Engine if over.up.closed() => return Outcome::Answered { keep_alive: false },
        End::Engine => (Close::Internal, "the engine closed the connection", shard.options.timeouts.stall),
        End::Shard => (Close::GoingAway, "the gateway is shutting down", PARTING),
    };
    if !over.down.between() {
        client.socket.reset_on_close();
        return Outcome::Cut;
    }
    client.guard.arm_write(patience);
    let (written, _) = client.socket.write_all(close_frame(code, why)).await;
    client.guard.clear();
    if written.is_ok() { Outcome::Answered { keep_alive: false } } else { Outcome::Cut }
}

impl<R: Runtime> Attempts<'_, R> {
    /// The engine's 101 as the client gets it.
    fn write_switching(&mut self, answer: &ResponseHead, head: &[u8], plan: &Plan, out: &mut Vec<u8>) {
        let why = self.explain.take().map(|explain| explain.to_json(EXPLAIN));
        let name = plan.target().name.clone();
        let mut add =
            vec![("Connection", "Upgrade"), ("Upgrade", "websocket"), ("x-fairlead-instance", &*name)];
        if answer.header(head, "x-request-id").is_none() {
            add.push(("x-request-id", self.request.request_id));
        }
        if let Some(why) = &why {
            add.push(("x-fairlead-explain", why));
        }
        let version = self.request.head.version();
        answer.write_client(head, &ClientHead { version, keep_alive: true, own_id: false, add: &add }, out);
        out.drain(..self.client.watch.take_prefix().min(out.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_in_queries() {
        for (query, want) in [
            ("", None),
            ("?", None),
            ("?model=", None),
            ("?model=m", Some("m")),
            ("?a=b&model=org%2Fname&c", Some("org/name")),
            ("?model=a+b", Some("a b")),
            ("?models=m", None),
            ("?m%6fdel=m", Some("m")),
            ("?model=m&model=m", Some("m")),
        ] {
            assert_eq!(named_model(query).unwrap().as_deref(), want, "{query}");
        }
        assert_eq!(named_model("?model=a&model=b").unwrap_err().status, 400);
    }
}
