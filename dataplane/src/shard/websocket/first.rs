//! Reading the first message.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_openai::event_model;

use crate::http::websocket::{Close, FirstMessage, Taken};
use crate::runtime::{Runtime, Stream as _};
use crate::shard::conn::Conn;
use crate::shard::upstream::READ_SMALL;

/// Longest first message, bytes.
const MAX_MESSAGE: usize = 256 * 1024;
/// How long a client may be silent where only one model is served: engines greet their clients, and some clients wait
/// for that.
const SOLE_WAIT: Duration = Duration::from_millis(250);

/// What came first.
pub enum First {
    /// A message, or nothing, where that is enough.
    Message {
        /// The model that it names.
        model: Option<String>,
        /// What the engine is to get: all that the client has sent, less what was answered.
        early: Bytes,
    },
    /// The client has closed, and was answered.
    Closed,
    /// It is to be closed.
    Refuse(Close, String),
    /// It is gone.
    Gone,
}

/// Reads it.
pub async fn read<R: Runtime>(conn: &mut Conn<R>) -> First {
    let sole = conn.shard.shared.fleet.table().sole_model().is_some();
    if sole && conn.buf.is_empty() && R::within(SOLE_WAIT, conn.watch.readable()).await.is_none() {
        return First::Message { model: None, early: Bytes::new() };
    }
    let patience = conn.shard.options.timeouts.body;
    let deadline_us = R::now_us().saturating_add(patience.as_micros() as u64);
    let mut message = FirstMessage::new(MAX_MESSAGE);
    loop {
        match message.take(&mut conn.buf) {
            Taken::Message(text) => {
                conn.guard.clear();
                return done(text, sole, message, std::mem::take(&mut conn.buf));
            }
            Taken::Reply(pong) => {
                if !conn.send(pong).await {
                    return First::Gone;
                }
            }
            Taken::Closed(reply) => {
                return if conn.send(reply).await { First::Closed } else { First::Gone };
            }
            Taken::Refuse(code, why) => return First::Refuse(code, why.to_owned()),
            Taken::Nothing => {
                conn.buf.reserve(READ_SMALL);
                conn.guard.arm_read_at(deadline_us);
                let (result, buf) = conn.socket.read(std::mem::take(&mut conn.buf)).await;
                conn.buf = buf;
                match result {
                    Ok(count) if count > 0 => {}
                    _ if conn.guard.fired() => {
                        let why = format!("no whole message within {} s", patience.as_secs_f64());
                        return First::Refuse(Close::Policy, why);
                    }
                    _ => return First::Gone,
                }
            }
        }
    }
}

/// What a whole message says. Where only one model is served it may say anything.
fn done(text: bool, sole: bool, message: FirstMessage, after: BytesMut) -> First {
    if text && std::str::from_utf8(message.payload()).is_err() {
        return First::Refuse(Close::NotText, "the first message is not UTF-8".to_owned());
    }
    let named = match event_model(message.payload()) {
        Ok(model) => Ok(model.map(|model| model.into_owned())),
        Err(_) if sole => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    match named {
        Ok(model) => {
            let mut early = message.into_frames();
            early.unsplit(after);
            First::Message { model, early: early.freeze() }
        }
        Err(_) if !text => First::Refuse(
            Close::Policy,
            "name a model: `?model=` in the URL, or in a first message of JSON".to_owned(),
        ),
        Err(error) => First::Refuse(Close::Policy, format!("the first message is no event: {error}")),
    }
}
