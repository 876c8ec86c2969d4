//! One stream of a connection, as a connection of HTTP/1.1 with one request.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, SendStream};

use super::answer::{self, HEAD_MOST};
use super::request::Upload;
use crate::http::BodyReader;
use crate::runtime::{Direction, Layer, Peer};

/// Bytes of a body handed to h2 in one go: two frames of the size that everybody takes.
const PIECE: usize = 32 * 1024;

/// What the streams of one connection tell its task.
#[derive(Debug)]
pub struct Tally {
    /// Microseconds of the process's clock.
    now_us: fn() -> u64,
    /// Time in which a withdrawal counts as one at once, microseconds.
    haste_us: u64,
    /// Requests being served.
    active: Cell<usize>,
    /// Requests that came.
    asked: Cell<u64>,
    /// Of these, those that the client withdrew before anything of an answer was there.
    withdrawn: Cell<u64>,
    /// Answers that were cut: they are reset when what went before has gone out.
    cut: RefCell<Vec<SendStream<Bytes>>>,
    /// The connection's task.
    waker: RefCell<Option<Waker>>,
}

impl Tally {
    /// Withdrawn requests that nobody minds.
    const TOLERATED: u64 = 100;

    /// Of a connection without requests. A client that withdraws one within `haste` does so at once.
    pub fn new(now_us: fn() -> u64, haste: Duration) -> Self {
        let (active, asked, withdrawn) = Default::default();
        let haste_us = u64::try_from(haste.as_micros()).unwrap_or(u64::MAX);
        let (cut, waker) = Default::default();
        Self { now_us, haste_us, active, asked, withdrawn, cut, waker }
    }

    /// One request more.
    fn begin(&self) {
        self.active.set(self.active.get() + 1);
        self.asked.set(self.asked.get() + 1);
    }

    /// One less. The task hears of the last.
    fn end(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        if self.active.get() == 0 {
            self.wake();
        }
    }

    /// Requests being served.
    pub fn active(&self) -> usize {
        self.active.get()
    }

    /// Whether the client asks only to withdraw.
    pub fn is_abused(&self) -> bool {
        let withdrawn = self.withdrawn.get();
        withdrawn > Self::TOLERATED && withdrawn > self.asked.get() / 2
    }

    /// Who is to be woken.
    pub fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// Answers that were cut before this turn.
    pub fn take_cut(&self) -> Vec<SendStream<Bytes>> {
        std::mem::take(&mut *self.cut.borrow_mut())
    }

    /// Resets them once their bytes have gone out.
    pub fn reset_later(&self, mut cut: Vec<SendStream<Bytes>>) {
        self.cut.borrow_mut().append(&mut cut);
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// The client has withdrawn a request that came at `began_us`.
    fn withdraw(&self, began_us: u64) {
        if (self.now_us)().saturating_sub(began_us) > self.haste_us {
            return;
        }
        self.withdrawn.set(self.withdrawn.get() + 1);
        if self.is_abused() {
            self.wake();
        }
    }
}

/// The stream.
pub struct Exchange {
    state: RefCell<State>,
}

struct State {
    upload: Upload,
    answer: Answer,
    /// The request was HEAD.
    to_head: bool,
    /// Reading was ended from this side.
    deaf: bool,
    /// The client has withdrawn, or the connection has gone.
    gone: bool,
    waker: Option<Waker>,
    tally: Rc<Tally>,
    began_us: u64,
}

/// How far the answer is.
enum Answer {
    /// In its head; what of it came.
    Head(SendResponse<Bytes>, Vec<u8>),
    /// In its body.
    Body(SendStream<Bytes>, BodyReader),
    /// All of it went out.
    Done,
    /// It ends in the middle.
    Cut,
}

impl Exchange {
    /// A request whose head was read already; `upload` is what follows. It is active until it is dropped.
    pub fn new(upload: Upload, respond: SendResponse<Bytes>, to_head: bool, tally: Rc<Tally>) -> Self {
        tally.begin();
        let (answer, began_us) = (Answer::Head(respond, Vec::new()), (tally.now_us)());
        let state = State { upload, answer, to_head, deaf: false, gone: false, waker: None, tally, began_us };
        Self { state: RefCell::new(state) }
    }
}

impl State {
    /// Remembers who waits, for an end that h2 does not tell of.
    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    /// Whether nothing more can be read.
    fn is_over(&self) -> bool {
        self.deaf || self.gone || matches!(self.answer, Answer::Done | Answer::Cut)
    }

    /// Ready when the client has withdrawn.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.answer {
            Answer::Head(respond, _) => respond.poll_reset(cx).is_ready(),
            Answer::Body(stream, _) => stream.poll_reset(cx).is_ready(),
            Answer::Done | Answer::Cut => false,
        };
        self.gone |= reset;
        if reset { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Takes bytes of the head, and sends it when it is whole. The number of bytes taken.
    fn write_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Answer::Head(respond, held) = &mut self.answer else { return Ok(0) };
        let (head, taken) = match answer::head_end(bytes) {
            Some(end) if held.is_empty() => {
                (Bytes::copy_from_slice(bytes.get(..end).unwrap_or_default()), end)
            }
            _ => {
                let before = held.len();
                held.extend_from_slice(bytes);
                let Some(end) = answer::head_end(held) else {
                    return if held.len() <= HEAD_MOST { Ok(bytes.len()) } else { Err(self.cut()) };
                };
                held.truncate(end);
                (std::mem::take(held).into(), end - before)
            }
        };
        let Some(head) = answer::parse(head, self.to_head) else { return Err(self.cut()) };
        if head.response.status().is_informational() {
            return respond.send_informational(head.response).map(|()| taken).map_err(|_| self.lost());
        }
        let whole = head.body.is_done();
        match respond.send_response(head.response, whole) {
            Ok(stream) => {
                self.answer = if whole { Answer::Done } else { Answer::Body(stream, head.body) };
                Ok(taken)
            }
            Err(_) => Err(self.lost()),
        }
    }

    /// Hands on bytes of the body as far as the window goes. The number of bytes taken, framing included.
    fn poll_write_body(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Answer::Body(stream, reader) = &mut self.answer else { return Poll::Ready(Ok(0)) };
        let wanted = bytes.len().min(PIECE);
        let mut room = stream.capacity();
        if room < wanted {
            stream.reserve_capacity(wanted);
            room = stream.capacity();
        }
        let (payload, taken) = loop {
            match gather(reader, bytes, room.min(PIECE)) {
                Ok((payload, taken)) if taken > 0 => break (payload, taken),
                Ok(_) => {}
                Err(()) => return Poll::Ready(Err(self.cut())),
            }
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(more)) => room = more,
                _ => return Poll::Ready(Err(self.lost())),
            }
        };
        let (len, done) = (payload.len(), reader.is_done());
        if (len > 0 || done) && stream.send_data(payload, done).is_err() {
            return Poll::Ready(Err(self.lost()));
        }
        if done {
            self.answer = Answer::Done;
        } else if len < wanted {
            // What was reserved and is not used would be missing elsewhere.
            stream.reserve_capacity(0);
        }
        Poll::Ready(Ok(taken))
    }

    /// Ends the answer in the middle, visibly.
    fn cut(&mut self) -> io::Error {
        match &mut self.answer {
            Answer::Head(respond, _) => respond.send_reset(Reason::INTERNAL_ERROR),
            Answer::Body(stream, _) => stream.send_reset(Reason::INTERNAL_ERROR),
            Answer::Done | Answer::Cut => return io::ErrorKind::BrokenPipe.into(),
        }
        self.answer = Answer::Cut;
        io::ErrorKind::BrokenPipe.into()
    }

    /// The client does not want the rest.
    fn lost(&mut self) -> io::Error {
        self.gone = true;
        io::ErrorKind::BrokenPipe.into()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Payload of `bytes` up to `room` of it, and the number of bytes that it took with its framing.
fn gather(reader: &mut BodyReader, bytes: &[u8], room: usize) -> Result<(Bytes, usize), ()> {
    if reader.remaining().is_some() {
        // No framing: one copy.
        let part = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        let step = reader.step(part).map_err(drop)?;
        return Ok((Bytes::copy_from_slice(part.get(step.payload).unwrap_or_default()), step.consumed));
    }
    let (mut payload, mut at) = (BytesMut::with_capacity(bytes.len().min(room)), 0);
    while at < bytes.len() && !reader.is_done() {
        let left = room - payload.len();
        // Between chunks a byte at a time needs no room.
        let part = match left {
            0 if reader.announced() > 0 => break,
            0 => 1,
            left => left,
        };
        let part = bytes.get(at..bytes.len().min(at + part)).unwrap_or_default();
        let step = reader.step(part).map_err(drop)?;
        payload.extend_from_slice(part.get(step.payload).unwrap_or_default());
        at += step.consumed;
    }
    Ok((payload.freeze(), at))
}

impl Layer for Exchange {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        let mut state = self.state.borrow_mut();
        if state.is_over() {
            return Poll::Ready(if state.gone { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(0) });
        }
        match state.upload.take(cx, buf) {
            Ok(count) if count > 0 => return Poll::Ready(Ok(count)),
            Ok(_) => {}
            Err(_) => {
                state.gone = true;
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        if state.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        state.wait(cx);
        Poll::Pending
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.state.borrow_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = match &state.answer {
            _ if state.gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Answer::Head(..) => Poll::Ready(state.write_head(bytes)),
            Answer::Body(..) => state.poll_write_body(cx, bytes),
            Answer::Done | Answer::Cut => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        if written.is_pending() {
            state.wait(cx);
        }
        written
    }

    fn poll_flush(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was taken is h2's, within the window and the bound of its buffer.
        let cut = self.state.borrow().gone;
        Poll::Ready(if cut { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) })
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        if state.is_over() {
            return Poll::Ready(Ok(()));
        }
        match state.upload.poll_some(cx) {
            Poll::Ready(Ok(())) if state.upload.has_some() => return Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => {
                state.gone = true;
                return Poll::Ready(Ok(()));
            }
            _ => {}
        }
        if state.poll_reset(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        state.wait(cx);
        Poll::Pending
    }

    fn send_now(&self, _bytes: &[u8]) -> io::Result<usize> {
        // Single bytes that find out whether somebody is there: here that is known.
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn peer(&self) -> Peer {
        if self.state.borrow().gone { Peer::Gone } else { Peer::Open }
    }

    fn is_quiet(&self) -> bool {
        let state = self.state.borrow();
        !state.is_over() && !state.upload.has_some()
    }

    fn has_unread(&self) -> bool {
        self.state.borrow().upload.has_some()
    }

    fn shutdown(&self, direction: Direction) {
        let mut state = self.state.borrow_mut();
        if direction != Direction::Write {
            state.deaf = true;
        }
        if direction != Direction::Read {
            state.cut();
        }
        state.wake();
    }

    fn reset_on_close(&self) {
        // An answer that has not ended is reset anyway.
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Answer::Head(..) = state.answer
            && (state.gone || state.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready())
        {
            state.tally.withdraw(state.began_us);
        }
        match std::mem::replace(&mut state.answer, Answer::Done) {
            // What the client was sent of it, it gets.
            Answer::Body(stream, _) if !state.gone => {
                state.tally.reset_later(vec![stream]);
                state.tally.wake();
            }
            Answer::Head(mut respond, _) if !state.gone => respond.send_reset(Reason::INTERNAL_ERROR),
            _ => {}
        }
        state.tally.end();
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange")
    }
}
