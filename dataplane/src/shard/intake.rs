//! Reading a request's body.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::answer::Refusal;
use super::budget::Share;
use super::conn::Conn;
use crate::http::{BodyReader, CONTINUE, Framing, Version};
use crate::runtime::{Runtime, Stream};

/// Bodies that lie in the first buffer are bounded by the number of connections and not counted.
const UNCOUNTED: usize = 16 * 1024;
/// Room is made for bodies up to this size at once; a longer one gets room as it arrives, so that announcing a large
/// body costs nothing.
const EAGER: usize = 1 << 20;
/// Longest pieces in which a chunked body is read.
const PIECE: usize = 64 * 1024;
/// A body must come in at this rate on average, beyond the allowance of the deadline.
const BYTES_PER_SECOND: u64 = 8 * 1024;

/// What came of reading a body.
pub enum BodyRead {
    /// All of it.
    Complete {
        /// The payload.
        body: Bytes,
        /// What it draws of the process's budget.
        held: Option<Share>,
    },
    /// It is refused; bytes of it may still be on their way.
    Refuse(Refusal),
    /// The client went away in the middle.
    Close,
}

/// Reads the body that follows the head just taken out of the connection's buffer.
pub async fn read_body<R: Runtime>(conn: &mut Conn<R>, framing: Framing, expects: bool) -> BodyRead {
    match framing {
        Framing::None | Framing::Length(0) | Framing::UntilClose => {
            BodyRead::Complete { body: Bytes::new(), held: None }
        }
        Framing::Length(length) => {
            let max = conn.shard.options.limits.max_body;
            match usize::try_from(length).ok().filter(|&length| length <= max) {
                Some(length) if length <= conn.buf.len() => {
                    BodyRead::Complete { body: conn.take_bytes(length), held: None }
                }
                Some(length) => plain(conn, length, expects).await,
                None => BodyRead::Refuse(too_large(max)),
            }
        }
        Framing::Chunked => chunked(conn, expects).await,
    }
}

pub fn too_large(max: usize) -> Refusal {
    Refusal::new(413, format!("the request body is larger than {max} bytes")).code("request_too_large")
}

pub fn over_budget() -> Refusal {
    Refusal::new(503, "too many request bodies are in flight").code("overloaded").retry_after(1)
}

pub fn too_slow() -> Refusal {
    Refusal::new(408, "the request body took too long")
}

/// Tells a waiting client to go on. False: it is gone.
pub async fn tell_to_continue<R: Runtime>(conn: &mut Conn<R>, expects: bool) -> bool {
    if !expects || !conn.buf.is_empty() || conn.version() == Version::Http10 {
        return true;
    }
    conn.guard.arm_write(conn.shard.options.timeouts.body);
    let (result, _) = conn.socket.write_all(CONTINUE).await;
    conn.guard.clear();
    result.is_ok()
}

async fn plain<R: Runtime>(conn: &mut Conn<R>, length: usize, expects: bool) -> BodyRead {
    let mut held = None;
    if length > UNCOUNTED {
        match conn.shard.shared.body_bytes.take(UNCOUNTED) {
            Some(share) => held = Some(share),
            None => return BodyRead::Refuse(over_budget()),
        }
    }
    if !tell_to_continue(conn, expects).await {
        return BodyRead::Close;
    }
    let pace = Pace::new(R::now_us(), conn.shard.options.timeouts.body);
    while conn.buf.len() < length {
        let have = conn.buf.len();
        if conn.buf.capacity() == have {
            let target = if length <= EAGER { length } else { (have * 2).clamp(EAGER, length) };
            conn.buf.reserve(target - have);
        }
        // Counted is what has come, with room for the next bytes: whoever only announces a body keeps nobody out.
        // (Room that was made and not written to is no memory yet.)
        let counted = (have + PIECE).min(length);
        if let Some(share) = &mut held
            && have > 0
            && counted > share.amount()
            && !share.grow(counted - share.amount())
        {
            return BodyRead::Refuse(over_budget());
        }
        match fill(conn, &pace, have as u64).await {
            Filled::Some => {}
            Filled::Late => return BodyRead::Refuse(too_slow()),
            Filled::End => return BodyRead::Close,
        }
    }
    if let Some(share) = &mut held
        && length > share.amount()
        && !share.grow(length - share.amount())
    {
        return BodyRead::Refuse(over_budget());
    }
    conn.guard.clear();
    BodyRead::Complete { body: conn.take_bytes(length), held }
}

async fn chunked<R: Runtime>(conn: &mut Conn<R>, expects: bool) -> BodyRead {
    if !tell_to_continue(conn, expects).await {
        return BodyRead::Close;
    }
    let max = conn.shard.options.limits.max_body;
    let pace = Pace::new(R::now_us(), conn.shard.options.timeouts.body);
    let mut reader = BodyReader::new(Framing::Chunked);
    let mut body = BytesMut::new();
    let mut held: Option<Share> = None;
    loop {
        while !conn.buf.is_empty() && !reader.is_done() {
            let step = match reader.step(&conn.buf) {
                Ok(step) => step,
                Err(error) => return BodyRead::Refuse(Refusal::new(400, error.to_string())),
            };
            let piece = conn.buf.get(step.payload).unwrap_or(&[]);
            let total = body.len() + piece.len();
            if (total as u64).saturating_add(reader.announced()) > max as u64 {
                return BodyRead::Refuse(too_large(max));
            }
            if total > UNCOUNTED && total > body.capacity() {
                // Doubling, as the buffer itself grows.
                let target = (body.capacity() * 2).max(total).min(max);
                let share = match &mut held {
                    Some(share) => share,
                    None => match conn.shard.shared.body_bytes.take(0) {
                        Some(share) => held.insert(share),
                        None => return BodyRead::Refuse(over_budget()),
                    },
                };
                if target > share.amount() && !share.grow(target - share.amount()) {
                    return BodyRead::Refuse(over_budget());
                }
                body.reserve(target - body.len());
            }
            body.extend_from_slice(piece);
            conn.buf.advance(step.consumed);
        }
        if reader.is_done() {
            conn.guard.clear();
            return BodyRead::Complete { body: body.freeze(), held };
        }
        conn.buf.clear();
        conn.buf.reserve(PIECE);
        match fill(conn, &pace, body.len() as u64).await {
            Filled::Some => {}
            Filled::Late => return BodyRead::Refuse(too_slow()),
            Filled::End => return BodyRead::Close,
        }
    }
}

enum Filled {
    Some,
    Late,
    End,
}

async fn fill<R: Runtime>(conn: &mut Conn<R>, pace: &Pace, received: u64) -> Filled {
    conn.guard.arm_read_at(pace.deadline_at(R::now_us(), received));
    let (result, buf) = conn.socket.read(std::mem::take(&mut conn.buf)).await;
    conn.buf = buf;
    match result {
        Ok(count) if count > 0 => Filled::Some,
        _ if conn.guard.fired() => Filled::Late,
        _ => Filled::End,
    }
}

/// How long the next bytes of a body may take.
pub struct Pace {
    began_us: u64,
    allowance_us: u64,
}

impl Pace {
    /// For a body that begins now.
    pub fn new(began_us: u64, allowance: Duration) -> Self {
        Self { began_us, allowance_us: allowance.as_micros() as u64 }
    }

    /// The allowance from now, but not beyond what the average rate grants.
    pub fn deadline_at(&self, now_us: u64, received: u64) -> u64 {
        let earned = received.saturating_mul(1_000_000) / BYTES_PER_SECOND;
        let whole = self.began_us.saturating_add(self.allowance_us).saturating_add(earned);
        now_us.saturating_add(self.allowance_us).min(whole)
    }

    /// Time in which nothing was read.
    pub fn wait(&mut self, us: u64) {
        self.began_us = self.began_us.saturating_add(us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dripping_body_does_not_earn_the_allowance_again() {
        let pace = Pace { began_us: 0, allowance_us: 1_000_000 };
        assert_eq!(pace.deadline_at(0, 0), 1_000_000);
        assert_eq!(pace.deadline_at(900_000, 1), 1_000_122);
        // A fast sender has earned more than it may use: silence is bounded by the allowance.
        assert_eq!(pace.deadline_at(10_000, 1 << 20), 1_010_000);
    }
}
