//! Multipart forms: audio, images and files, routed by the form's `model` field and never held whole.
//!
//! The body is held until the model is known, within a bound; then the rest passes from the client to the engine piece by
//! piece. Until the first of these pieces has left, another target may still be tried.

mod upload;

use bytes::{Buf, BytesMut};

use super::answer::Refusal;
use super::budget::Share;
use super::carry::{Headed, Part, carry, prompt_of};
use super::conn::{Conn, Next};
use super::forward::{AsItIs, Outcome};
use super::intake::{Pace, over_budget, tell_to_continue, too_large, too_slow};
use crate::http::form::{FormScan, Found};
use crate::http::{BodyReader, Framing};
use crate::runtime::{Runtime, Stream as _};

use upload::{Source, Upload};

/// Held where only one model is served: whatever the form names, the engine will judge it.
const SOLE_HELD: usize = 64 * 1024;
/// Bytes that are bounded by the number of connections and not counted.
const UNCOUNTED: usize = 16 * 1024;
/// Longest pieces in which a body is read.
const PIECE: usize = 64 * 1024;

/// A form's beginning.
struct Form {
    reader: BodyReader,
    body: BytesMut,
    held: Option<Share>,
}

/// What came of looking for the model.
enum Named {
    Model(Option<String>),
    Refuse(Refusal),
    Gone,
}

/// Serves a form.
pub async fn open<R: Runtime>(conn: &mut Conn<R>, headed: &Headed<'_>) -> Next {
    let framing = conn.head.framing();
    let max = conn.shard.options.limits.max_body;
    let content_type = conn.head.header(&headed.head_bytes, "content-type").unwrap_or_default();
    let scan = FormScan::new(content_type);
    let too_long = matches!(framing, Framing::Length(length) if length > max as u64);
    let scan = match scan {
        _ if too_long => return refuse(conn, headed, &too_large(max)).await,
        None => {
            let refusal = Refusal::new(400, "`Content-Type` names no boundary of the form's parts");
            return refuse(conn, headed, &refusal).await;
        }
        Some(scan) => scan,
    };
    let expects = conn.head.expect_continue();
    if !tell_to_continue(conn, expects).await {
        return Next::Close;
    }
    let mut form = Form { reader: BodyReader::new(framing), body: BytesMut::new(), held: None };
    let name = match form.find_model(conn, scan).await {
        Named::Model(name) => name,
        Named::Refuse(refusal) => return refuse(conn, headed, &refusal).await,
        Named::Gone => return Next::Close,
    };
    let whole = form.reader.is_done();
    let prompt = prompt_of(name.as_deref(), &conn.shard.shared, || {
        let held = form.body.len();
        Refusal::new(
            400,
            if whole {
                "the form has no field `model`".to_owned()
            } else {
                format!("the form names no `model` in its first {held} bytes: put that field before the file")
            },
        )
    });
    let prompt = match prompt {
        Ok(prompt) => prompt,
        Err(refusal) => return refuse(conn, headed, &refusal).await,
    };
    let Form { reader, body, held } = form;
    let mut part = Part { body: body.freeze(), held, read_ahead: false };
    let (outcome, rest_unread) = if whole {
        part.read_ahead = !conn.buf.is_empty();
        (carry(conn, headed, prompt, part, &AsItIs).await, false)
    } else {
        let source = Source { reader, buf: std::mem::take(&mut conn.buf) };
        let upload = Upload::new(framing, source, part.body.len() as u64, max as u64);
        let outcome = carry(conn, headed, prompt, part, &upload).await;
        let rest = upload.into_rest();
        let unread = rest.is_none();
        conn.buf = rest.unwrap_or_default();
        (outcome, unread)
    };
    match outcome {
        Outcome::Answered { keep_alive: true } => Next::KeepAlive,
        Outcome::Answered { keep_alive: false } => Next::Linger,
        Outcome::Refuse(refusal) => conn.refuse(&refusal, headed.style, headed.request_id, rest_unread).await,
        Outcome::PassOn(_) | Outcome::Left | Outcome::Cut => Next::Close,
    }
}

async fn refuse<R: Runtime>(conn: &mut Conn<R>, headed: &Headed<'_>, refusal: &Refusal) -> Next {
    conn.shard.metrics.ended(None, refusal.status);
    conn.refuse(refusal, headed.style, headed.request_id, true).await
}

impl Form {
    /// Reads until the model is named, the form has ended, or enough is held.
    async fn find_model<R: Runtime>(&mut self, conn: &mut Conn<R>, mut scan: FormScan) -> Named {
        let limits = &conn.shard.options.limits;
        let (mut most, max) = (limits.form_held, limits.max_body);
        if conn.shard.shared.fleet.table().sole_model().is_some() {
            most = most.min(SOLE_HELD);
        }
        let patience = conn.shard.options.timeouts.body;
        let pace = Pace::new(R::now_us(), patience);
        loop {
            if let Err(refusal) = self.take(conn, most, max) {
                return Named::Refuse(refusal);
            }
            match scan.look(&self.body) {
                Found::Model(name) => return Named::Model(Some(name).filter(|name| !name.is_empty())),
                Found::End => return Named::Model(None),
                Found::Bad(what) => return Named::Refuse(Refusal::new(400, what)),
                Found::Nothing if self.reader.is_done() => {
                    return Named::Refuse(Refusal::new(400, "the form has no end"));
                }
                Found::Nothing if self.body.len() >= most => return Named::Model(None),
                Found::Nothing => {}
            }
            conn.buf.reserve(PIECE);
            conn.guard.arm_read_at(pace.deadline_at(R::now_us(), self.body.len() as u64));
            let (result, buf) = conn.socket.read(std::mem::take(&mut conn.buf)).await;
            conn.buf = buf;
            match result {
                Ok(count) if count > 0 => conn.guard.clear(),
                _ if conn.guard.fired() => return Named::Refuse(too_slow()),
                _ => return Named::Gone,
            }
        }
    }

    /// Takes payload out of what was read, up to `most` bytes in all.
    fn take<R: Runtime>(&mut self, conn: &mut Conn<R>, most: usize, max: usize) -> Result<(), Refusal> {
        while !conn.buf.is_empty() && !self.reader.is_done() && self.body.len() < most {
            let step = self.reader.step(&conn.buf);
            let step = step.map_err(|error| Refusal::new(400, error.to_string()))?;
            let piece = conn.buf.get(step.payload).unwrap_or_default();
            let total = self.body.len() + piece.len();
            if (total as u64).saturating_add(self.reader.announced()) > max as u64 {
                return Err(too_large(max));
            }
            if total > UNCOUNTED && total > self.body.capacity() {
                // Doubling, as the buffer itself grows.
                let room = (self.body.capacity() * 2).max(total);
                let held = match &mut self.held {
                    Some(held) => held,
                    None => self.held.insert(conn.shard.shared.body_bytes.take(0).ok_or_else(over_budget)?),
                };
                if room > held.amount() && !held.grow(room - held.amount()) {
                    return Err(over_budget());
                }
                self.body.reserve(room - self.body.len());
            }
            self.body.extend_from_slice(piece);
            conn.buf.advance(step.consumed);
        }
        Ok(())
    }
}
