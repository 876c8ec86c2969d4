//! Answer bodies: whole ones, streams that follow the engine token by token, and ones that break on purpose.

use super::conn::ConnControl;
use super::forms::{EventWriter, Usage};
use crate::engine::{SeqState, Visit};
use crate::faults::{Faults, Garbage};
use crate::handoff::Entered;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use serde_json::Value;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Tokens written into one frame at most, so that a stream that has fallen behind is sent in bounded pieces.
const FRAME_TOKENS: usize = 256;

/// How a body breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// Connection reset.
    Reset,
    /// Connection closed in good order.
    Close,
    /// Silence.
    Hang,
}

/// The body of any answer.
pub(crate) enum AnswerBody {
    /// All bytes are there.
    Whole { bytes: Option<Bytes>, visit: Option<Visit> },
    /// Part of the announced bytes, then a break.
    Broken { announced: u64, bytes: Option<Bytes>, breaker: Breaker, visit: Visit },
    /// Tokens as they are made.
    Stream(Box<TokenStream>),
}

impl AnswerBody {
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole { bytes: Some(bytes.into()), visit: None }
    }
}

/// Breaks a body after what was written before it has reached the socket.
pub(crate) struct Breaker {
    how: Break,
    conn: Arc<ConnControl>,
    flushed: bool,
}

impl Breaker {
    pub fn new(how: Break, conn: Arc<ConnControl>) -> Self {
        Self { how, conn, flushed: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.how == Break::Hang {
            return Poll::Pending;
        }
        if !self.flushed {
            // A pending body makes the connection flush.
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.how == Break::Reset {
            self.conn.reset_on_close();
        }
        Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "broken on demand"))))
    }
}

/// Sequences that are in the engine, or will be when another engine has done its part. The error is what the stream
/// ends with.
pub(crate) enum Source {
    Here(Box<Entered>),
    Coming(Pin<Box<dyn Future<Output = Result<Entered, Value>> + Send>>),
}

/// A stream of events that follows its sequences.
pub(crate) struct TokenStream {
    writer: EventWriter,
    source: Source,
    visit: Visit,
    conn: Arc<ConnControl>,
    prompt_tokens: u32,
    answers_per_prompt: usize,
    state: Vec<SeqState>,
    written: Vec<u32>,
    opened: bool,
    ended: bool,
    break_at: Option<(u32, Break)>,
    garbage: bool,
    breaker: Option<Breaker>,
}

impl TokenStream {
    pub fn new(
        writer: EventWriter,
        source: Source,
        visit: Visit,
        conn: Arc<ConnControl>,
        prompt_tokens: u32,
        answers_per_prompt: usize,
        faults: Option<&Faults>,
    ) -> Self {
        let seqs = writer.meta.seqs.len();
        let break_at = faults.and_then(|f| {
            let at = |k: Option<u32>, how| k.map(|k| (k, how));
            at(f.die_after, Break::Reset).or(at(f.cut_after, Break::Close)).or(at(f.hang_after, Break::Hang))
        });
        Self {
            writer,
            source,
            visit,
            conn,
            prompt_tokens,
            answers_per_prompt: answers_per_prompt.max(1),
            state: vec![SeqState::default(); seqs],
            written: vec![0; seqs],
            opened: false,
            ended: false,
            break_at,
            garbage: faults.is_some_and(|f| f.garbage == Some(Garbage::Event)),
            breaker: None,
        }
    }

    /// Begins where sequences have come to already.
    pub fn from(mut self, state: Vec<SeqState>) -> Self {
        self.state = state;
        self
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt: self.prompt_tokens,
            cached: cached_of(&self.state, self.answers_per_prompt),
            completion: self.written.iter().sum(),
        }
    }

    fn tokens_written(&self) -> u32 {
        self.written.iter().sum()
    }

    /// Writes what is new, at most a frame's worth.
    fn fill(&mut self, out: &mut Vec<u8>) {
        let mut room = FRAME_TOKENS;
        if !self.opened && self.state.iter().any(|s| s.emitted > 0 || s.done) {
            self.opened = true;
            let usage = self.usage();
            self.writer.open(out, usage);
        }
        for at in 0..self.state.len() {
            while self.written[at] < self.state[at].emitted && room > 0 && !self.broken() {
                let n = self.written[at];
                self.written[at] += 1;
                room -= 1;
                let last = n + 1 >= self.writer.meta.seqs[at].output;
                let usage = self.usage();
                self.writer.token(out, at, n, last, usage);
                if self.garbage && self.tokens_written() == 2 {
                    out.extend_from_slice(b"data: {\"choices\":[{\"delta\":\xff\xfe\x00 ]]\n\ndata\n\n");
                }
            }
        }
        let all = self.state.iter().zip(&self.written).all(|(s, w)| s.done && *w >= s.emitted);
        if all && !self.broken() {
            self.ended = true;
            if let Source::Here(entered) = &mut self.source {
                entered.after.finished();
            }
            let usage = self.usage();
            self.writer.close(out, usage);
        }
    }

    fn broken(&self) -> bool {
        self.break_at.is_some_and(|(k, _)| self.tokens_written() >= k)
    }

    fn behind(&self) -> bool {
        self.state.iter().zip(&self.written).any(|(s, w)| *w < s.emitted)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            if let Some(b) = &mut self.breaker {
                return b.poll(cx);
            }
            if self.ended {
                self.visit.complete();
                return Poll::Ready(None);
            }
            if let (true, Some((_, how))) = (self.broken(), self.break_at) {
                self.breaker = Some(Breaker::new(how, Arc::clone(&self.conn)));
                continue;
            }
            let mut out = Vec::new();
            let behind = self.behind() || self.state.iter().all(|s| s.done);
            match &mut self.source {
                Source::Coming(coming) => match std::task::ready!(coming.as_mut().poll(cx)) {
                    Ok(entered) => self.source = Source::Here(Box::new(entered)),
                    Err(error) => {
                        self.ended = true;
                        self.writer.failed(&mut out, &error);
                    }
                },
                Source::Here(entered) => {
                    if !behind && entered.ticket.poll_change(cx, &mut self.state).is_pending() {
                        return Poll::Pending;
                    }
                    self.fill(&mut out);
                }
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))));
            }
        }
    }
}

/// Cached prompt tokens of a request: those of the first answer to each prompt.
pub(crate) fn cached_of(state: &[SeqState], answers_per_prompt: usize) -> u32 {
    state.iter().step_by(answers_per_prompt.max(1)).map(|s| s.cached).sum()
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Whole { bytes, visit } => {
                if let Some(v) = visit {
                    v.complete();
                }
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Self::Broken { bytes, breaker, visit, .. } => match bytes.take().filter(|b| !b.is_empty()) {
                Some(b) => Poll::Ready(Some(Ok(Frame::data(b)))),
                None => {
                    visit.complete();
                    breaker.poll(cx)
                }
            },
            Self::Stream(s) => s.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole { bytes: None, .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { bytes, .. } => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Broken { announced, .. } => SizeHint::with_exact(*announced),
            Self::Stream(_) => SizeHint::new(),
        }
    }
}
