//! The body of an answer, from the engine to the client.
//!
//! One read, one write: what a read brought goes out before the next read begins, so a client that does not take its
//! bytes stops the engine's stream being read, and a stream holds one buffer. Chunked bodies pass as they are; the
//! decoder only tells where they end.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::task::Poll;

use bytes::BytesMut;
use fairlead_openai::{Api, CachedPatch, SseWatch, Usage, UsageWatch};

use super::answer::broken_event;
use super::deadlines::Guard;
use super::upstream::{READ_SMALL, ReadResult, Reads, Waited};
use super::watch::{Probe, Watch};
use crate::http::{BodyReader, ClientBody, LAST_CHUNK, Relay, ResponseHead, write_chunk};
use crate::runtime::{Direction, Link, OutBuf, Runtime, Stream as _};

/// Buffer for bodies that fill a small one: fewer turns per byte.
const READ_LARGE: usize = 64 * 1024;

/// What passes by, read over the relay's shoulder.
pub enum Observer {
    /// An event stream.
    Events(SseWatch),
    /// One JSON document.
    Document(UsageWatch),
    /// A compressed stream: that something comes is all that can be seen.
    Sealed,
    /// Compressed or of no interest.
    Blind,
}

impl Observer {
    /// The observer for an answer.
    pub fn of(answer: &ResponseHead) -> Self {
        if !answer.status().is_success() {
            Self::Blind
        } else if answer.is_encoded() {
            if answer.is_event_stream() { Self::Sealed } else { Self::Blind }
        } else if answer.is_event_stream() {
            Self::Events(SseWatch::new())
        } else {
            Self::Document(UsageWatch::new())
        }
    }

    fn feed(&mut self, piece: &[u8]) {
        match self {
            Self::Events(watch) => watch.feed(piece),
            Self::Document(watch) => watch.feed(piece),
            Self::Sealed | Self::Blind => {}
        }
    }

    /// Token counts seen.
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Self::Events(watch) => watch.usage,
            Self::Document(watch) => watch.usage(),
            Self::Sealed | Self::Blind => None,
        }
    }

    /// Events seen.
    pub fn events(&self) -> u64 {
        match self {
            Self::Events(watch) => watch.events,
            _ => 0,
        }
    }

    /// Whether a token has come.
    fn has_begun(&self) -> bool {
        match self {
            Self::Events(watch) => watch.begun,
            Self::Sealed => true,
            Self::Document(_) | Self::Blind => false,
        }
    }

    fn is_done(&self) -> bool {
        matches!(self, Self::Events(watch) if watch.done)
    }
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Wholly relayed. `clean`: nothing came behind the end, so the engine's connection may be kept.
    Complete {
        /// See above.
        clean: bool,
    },
    /// The client went away or did not take its bytes.
    ClientGone,
    /// The engine broke off; the client was told as far as the form of the answer allows.
    Broken,
}

/// Whether a stream of events tells of a failure before it has any token. `rest` is what came behind its head.
pub fn begins_with_failure(answer: &ResponseHead, rest: &[u8]) -> bool {
    if !answer.status().is_success() || !answer.is_event_stream() || answer.is_encoded() {
        return false;
    }
    let (mut reader, mut watch, mut at) = (BodyReader::new(answer.framing()), SseWatch::new(), 0);
    while at < rest.len() && !reader.is_done() && !watch.begun {
        let part = rest.get(at..).unwrap_or_default();
        let Ok(step) = reader.step(part) else { return false };
        watch.feed(part.get(step.payload).unwrap_or_default());
        at += step.consumed;
    }
    watch.failed && !watch.begun
}

/// Everything about the client that a relay needs.
pub struct ClientSide<'a, R: Runtime> {
    /// The client's connection.
    pub socket: &'a Link<R::Socket>,
    /// Its deadline.
    pub guard: &'a Guard<R>,
    /// Its watch.
    pub watch: &'a mut Watch<R>,
    /// Longest time that a write may take.
    pub stall: std::time::Duration,
}

impl<R: Runtime> ClientSide<'_, R> {
    /// Writes `from..to` of `buf`; `None` when the client does not take it.
    pub async fn write<B: OutBuf>(&mut self, buf: B, from: usize, to: usize) -> Option<B> {
        self.guard.arm_write(self.stall);
        let (result, buf) = self.socket.write_range(buf, from, to).await;
        self.guard.clear();
        result.ok().map(|()| buf)
    }
}

/// Puts the prefill target's count of cached tokens in the place of the decode target's, to which the whole prompt came
/// from outside. What passes before that count is known stays as it is.
pub struct Correction<'a> {
    cached: &'a Cell<Option<u64>>,
    patch: Option<CachedPatch>,
}

impl<'a> Correction<'a> {
    /// By the count in `cached`, once it is there.
    pub fn new(cached: &'a Cell<Option<u64>>) -> Self {
        Self { cached, patch: None }
    }

    fn apply(&mut self, payload: &mut [u8]) {
        if self.patch.is_none() {
            self.patch = self.cached.get().map(CachedPatch::new);
        }
        if let Some(patch) = &mut self.patch {
            patch.patch(payload);
        }
    }
}

/// One body on its way.
pub struct Stream<'a> {
    /// Finds the end.
    pub reader: BodyReader,
    /// How it goes out.
    pub body: ClientBody,
    /// Reads along.
    pub observer: Observer,
    /// Corrects the usage that passes; only after a hand-off.
    pub correction: Option<Correction<'a>>,
    /// The API, for the form of an error event.
    pub api: Api,
    /// The request's id, for an error event.
    pub request_id: &'a str,
    /// When the first byte of the body came; 0 before.
    pub first_us: u64,
    /// When it had been handed to the client's socket; 0 before.
    pub passed_us: u64,
    /// When the last bytes came.
    pub last_us: u64,
}

impl Stream<'_> {
    /// Relays. `out` holds the head for the client, `burst` what came behind the engine's head. `on_first` is called
    /// when the first token of a stream has come, with that time.
    pub async fn run<R, F, M>(
        &mut self,
        client: &mut ClientSide<'_, R>,
        upstream: &Link<R::Socket>,
        reads: &mut Reads<'_, F, M>,
        mut out: Vec<u8>,
        mut burst: BytesMut,
        on_first: impl FnOnce(u64),
    ) -> Ended
    where
        R: Runtime,
        F: Future<Output = ReadResult>,
        M: Fn(BytesMut) -> F,
    {
        let mut on_first = Some(on_first);
        loop {
            if !burst.is_empty() {
                self.last_us = R::now_us();
                if self.first_us == 0 {
                    self.first_us = self.last_us;
                }
            }
            let raw = match self.take(&mut burst, &mut out) {
                Ok(raw) => raw,
                Err(()) => return Box::pin(self.broken(client, out)).await,
            };
            if self.first_us != 0
                && self.observer.has_begun()
                && let Some(on_first) = on_first.take()
            {
                on_first(self.last_us);
            }
            let excess = self.reader.is_done() && raw.consumed < burst.len();
            if self.reader.is_done() && self.body.relay == Relay::Chunk {
                out.extend_from_slice(LAST_CHUNK);
            }
            // A small burst joins what must go before it (a head); a large one follows in a write of its own.
            let mut passed = raw.pass;
            if passed > 0 && !out.is_empty() && passed <= READ_SMALL * 2 {
                out.extend_from_slice(burst.get(..passed).unwrap_or(&[]));
                passed = 0;
            }
            if !out.is_empty() {
                let len = out.len();
                match client.write(std::mem::take(&mut out), 0, len).await {
                    Some(back) => out = back,
                    None => return gone::<R>(upstream),
                }
                out.clear();
            }
            let filled = burst.len() >= burst.capacity();
            if passed > 0 {
                match client.write(burst, 0, passed).await {
                    Some(back) => burst = back,
                    None => return gone::<R>(upstream),
                }
            }
            if raw.consumed > 0 {
                client.watch.chunk_sent();
                if self.passed_us == 0 {
                    self.passed_us = R::now_us();
                }
            }
            if self.reader.is_done() {
                return Ended::Complete { clean: !excess };
            }
            if self.passes() {
                // It was for the head.
                out = Vec::new();
            }
            if !reads.is_pending() {
                burst.clear();
                let wanted = if filled && burst.capacity() >= READ_SMALL { READ_LARGE } else { READ_SMALL };
                if wanted > READ_SMALL && burst.capacity() < wanted {
                    burst = BytesMut::with_capacity(wanted);
                } else {
                    burst.reserve(READ_SMALL);
                }
                reads.start(burst);
            }
            let probe = self.probe();
            let waited = poll_fn(|cx| {
                if let Poll::Ready(result) = reads.poll(cx) {
                    return Poll::Ready(Waited::Got(result));
                }
                client.watch.poll_gone(cx, probe).map(|()| Waited::Gone)
            })
            .await;
            match waited {
                Waited::Gone => return gone::<R>(upstream),
                Waited::Got((Ok(count), buf)) if count > 0 => burst = buf,
                Waited::Got((result, _)) => {
                    if result.is_ok() && self.reader.end_of_input().is_ok() {
                        return Box::pin(self.closed(client, upstream, out)).await;
                    }
                    return Box::pin(self.broken(client, out)).await;
                }
            }
        }
    }

    /// Whether the answer came to its end without telling of a failure.
    pub fn went_well(&self, ended: Ended) -> bool {
        let failed = matches!(&self.observer, Observer::Events(watch) if watch.failed);
        matches!(ended, Ended::Complete { .. }) && !failed
    }

    /// Looks at what came: corrects it where need be, feeds the observer, puts what must be framed anew into `out`, and says how many bytes
    /// belong to the body and how many of them pass as they are.
    fn take(&mut self, burst: &mut [u8], out: &mut Vec<u8>) -> Result<Taken, ()> {
        let mut consumed = 0;
        while consumed < burst.len() && !self.reader.is_done() {
            let rest = burst.get(consumed..).unwrap_or(&[]);
            let Ok(step) = self.reader.step(rest) else {
                // What came before the fault was in order and goes out with what tells the client of it.
                if self.passes() {
                    out.extend_from_slice(burst.get(..consumed).unwrap_or(&[]));
                }
                return Err(());
            };
            let payload = consumed + step.payload.start..consumed + step.payload.end;
            if let Some(correction) = &mut self.correction
                && matches!(self.observer, Observer::Events(_) | Observer::Document(_))
                && let Some(payload) = burst.get_mut(payload.clone())
            {
                correction.apply(payload);
            }
            let payload = burst.get(payload).unwrap_or(&[]);
            self.observer.feed(payload);
            match self.body.relay {
                Relay::Dechunk => out.extend_from_slice(payload),
                Relay::Chunk => write_chunk(payload, out),
                Relay::Raw | Relay::Length(_) | Relay::UntilClose | Relay::None => {}
            }
            consumed += step.consumed;
        }
        Ok(Taken { consumed, pass: if self.passes() { consumed } else { 0 } })
    }

    fn passes(&self) -> bool {
        matches!(self.body.relay, Relay::Raw | Relay::Length(_) | Relay::UntilClose)
    }

    fn probe(&mut self) -> Probe {
        match self.body.relay {
            Relay::Chunk => Probe::ChunkZero,
            Relay::Raw if self.reader.chunked_mut().is_some_and(|chunks| chunks.at_chunk_start()) => {
                Probe::ChunkZero
            }
            _ => Probe::None,
        }
    }

    /// The engine ended a body that lasts until the close.
    async fn closed<R: Runtime>(
        &mut self,
        client: &mut ClientSide<'_, R>,
        upstream: &Link<R::Socket>,
        mut out: Vec<u8>,
    ) -> Ended {
        if self.body.relay == Relay::Chunk {
            out.extend_from_slice(LAST_CHUNK);
        }
        let len = out.len();
        if len > 0 && client.write(out, 0, len).await.is_none() {
            return gone::<R>(upstream);
        }
        Ended::Complete { clean: false }
    }

    /// The engine broke off in the middle. An event stream gets an error event, and an end of its framing but no
    /// `[DONE]`; any other body is left visibly incomplete. `out` may hold bytes that were still to go.
    async fn broken<R: Runtime>(&mut self, client: &mut ClientSide<'_, R>, mut out: Vec<u8>) -> Ended {
        let finished = self.observer.is_done();
        let event = match &self.observer {
            Observer::Events(_) if finished => Some(Vec::new()),
            Observer::Events(watch) => {
                let mut event = watch.separator().to_vec();
                event.extend_from_slice(&broken_event(self.api, self.request_id, watch.events));
                Some(event)
            }
            _ => None,
        };
        let mut whole = false;
        if let Some(event) = event {
            match self.body.relay {
                Relay::Raw => {
                    if let Some(chunks) = self.reader.chunked_mut()
                        && chunks.inject(&event, b'\n', &mut out)
                    {
                        out.extend_from_slice(LAST_CHUNK);
                        whole = true;
                    }
                }
                Relay::Chunk => {
                    write_chunk(&event, &mut out);
                    out.extend_from_slice(LAST_CHUNK);
                    whole = true;
                }
                Relay::Dechunk | Relay::UntilClose => {
                    out.extend_from_slice(&event);
                    whole = true;
                }
                Relay::Length(_) | Relay::None => {}
            }
        }
        let len = out.len();
        if len > 0 && client.write(out, 0, len).await.is_none() {
            return Ended::ClientGone;
        }
        if !whole && matches!(self.body.relay, Relay::Dechunk | Relay::UntilClose) {
            // The close would look like a proper end.
            client.socket.reset_on_close();
        }
        if finished && whole { Ended::Complete { clean: false } } else { Ended::Broken }
    }
}

/// Part of a burst.
struct Taken {
    /// Bytes that belong to the body.
    consumed: usize,
    /// Of these, bytes that go to the client as they are.
    pass: usize,
}

fn gone<R: Runtime>(upstream: &Link<R::Socket>) -> Ended {
    upstream.shutdown(Direction::Both);
    Ended::ClientGone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, Parsed};

    fn head(text: &str) -> ResponseHead {
        let mut head = ResponseHead::new();
        assert_eq!(head.parse(text.as_bytes(), false, &HeadLimits::default()), Parsed::Done(text.len()));
        head
    }

    #[test]
    fn a_failure_before_any_token_shows_in_the_first_bytes() {
        let chunked = |status: &str| {
            head(&format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            ))
        };
        let error = "data: {\"error\": {\"message\":\"m\"}}\n\n";
        let token = "data: {\"choices\":[]}\n\n";
        let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len());
        for (rest, fails) in [
            (chunk(error), true),
            (format!("{}{}", chunk(error), chunk("data: [DONE]\n\n")), true),
            (chunk(token), false),
            (format!("{}{}", chunk(token), chunk(error)), false),
            (chunk(&error[..20]), false),
            (String::new(), false),
            ("zz\r\n".to_owned(), false),
        ] {
            assert_eq!(begins_with_failure(&chunked("200 OK"), rest.as_bytes()), fails, "{rest}");
        }
        assert!(!begins_with_failure(&chunked("500 Oops"), chunk(error).as_bytes()));
        let plain = head("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n");
        assert!(!begins_with_failure(&plain, error.as_bytes()));
    }

    #[test]
    fn a_count_is_corrected_from_when_it_is_known() {
        let cached = Cell::new(None);
        let mut correction = Correction::new(&cached);
        let usage = || *b"{\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":40}}}";
        let mut piece = usage();
        correction.apply(&mut piece);
        assert_eq!(piece, usage());
        cached.set(Some(7));
        correction.apply(&mut piece);
        assert!(piece.ends_with(b"\"cached_tokens\": 7}}}"));
    }
}
