//! Requests of which nothing but the model is known: WebSockets and forms.

use std::sync::Arc;

use bytes::Bytes;
use fairlead_openai::{Api, ErrorStyle};

use super::answer::Refusal;
use super::budget::Share;
use super::conn::Conn;
use super::decide::{Prompt, fleet_unknown, unknown_model};
use super::forward::{Attempts, Client, How, Incoming, Outcome, route};
use super::observe;
use super::wishes::Wishes;
use crate::runtime::Runtime;
use crate::shared::Shared;

/// A request whose head was read. The head itself is the connection's.
pub struct Headed<'a> {
    /// The API of its path.
    pub api: Api,
    /// The head's bytes.
    pub head_bytes: Bytes,
    /// Its id.
    pub request_id: &'a str,
    /// Shape of errors.
    pub style: ErrorStyle,
    /// When its head was complete.
    pub began_us: u64,
}

/// What was read of its body.
#[derive(Default)]
pub struct Part {
    /// The payload, whole or its beginning.
    pub body: Bytes,
    /// What it draws of the process's budget.
    pub held: Option<Share>,
    /// Whether bytes of a further request were read already.
    pub read_ahead: bool,
}

/// What the decision gets for a request that names this model, or none: then the only one is meant. Nothing of a prompt is
/// seen, and nothing of it can be handed over, whatever the path's API.
pub fn prompt_of(
    name: Option<&str>,
    shared: &Shared,
    missing: impl FnOnce() -> Refusal,
) -> Result<Prompt, Refusal> {
    let table = shared.fleet.table();
    let entry = match name {
        Some(name) => table.model(name).ok_or_else(|| unknown_model(name, &table, shared))?,
        None => table.sole_model().ok_or_else(|| {
            if !shared.is_fleet_known() {
                return fleet_unknown();
            }
            missing().code("missing_required_parameter").param("model")
        })?,
    };
    Ok(Prompt::unseen(Api::Other, Arc::clone(&entry.name)))
}

/// Picks a target and serves the request there.
pub async fn carry<R: Runtime, H: How<R>>(
    conn: &mut Conn<R>,
    headed: &Headed<'_>,
    mut prompt: Prompt,
    part: Part,
    how: &H,
) -> Outcome {
    let shard = conn.shard.clone();
    let Some(_in_flight) = shard.shared.in_flight.take(1) else {
        let refusal = Refusal::new(503, "too many requests are in flight").code("overloaded").retry_after(1);
        shard.metrics.ended(None, refusal.status);
        return Outcome::Refuse(refusal);
    };
    let asked = Wishes::read(&conn.head, &headed.head_bytes);
    let asked = asked.and_then(|wishes| Ok((route(&shard, &wishes, &mut prompt)?, wishes.explain)));
    let (routed, explain) = match asked {
        Ok(asked) => asked,
        Err(refusal) => {
            shard.metrics.ended(Some(&prompt.model), refusal.status);
            return Outcome::Refuse(refusal);
        }
    };
    shard.retries.request();
    let model = prompt.model.clone();
    let attempts = Attempts {
        shard: &shard,
        client: Client { socket: &conn.socket, guard: &conn.guard, watch: &mut conn.watch },
        request: Incoming {
            api: headed.api,
            head: &conn.head,
            head_bytes: headed.head_bytes.clone(),
            body: part.body,
            held: part.held,
            request_id: headed.request_id,
            began_us: headed.began_us,
            read_us: R::now_us(),
            keep_alive: conn.head.keep_alive(),
            read_ahead: part.read_ahead,
            client: conn.client.as_deref(),
        },
        prompt,
        routed,
        explain: (explain && shard.options.routing.explain).then(Box::default),
        tried: Vec::new(),
        attempts: 0,
        pieces: Vec::new(),
        prefilled: false,
    };
    let outcome = attempts.run(how).await;
    match &outcome {
        Outcome::Refuse(refusal) => shard.metrics.ended(Some(&model), refusal.status),
        Outcome::Left => shard.metrics.ended(Some(&model), observe::CLIENT_LEFT),
        // Counted where it was served.
        Outcome::PassOn(_) | Outcome::Answered { .. } | Outcome::Cut => {}
    }
    outcome
}
