//! One client connection: request after request until somebody has had enough.

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fairlead_openai::{Api, ErrorStyle};

use super::answer::{PassedOn, Refusal, Reply};
use super::budget::Share;
use super::carry::Headed;
use super::deadlines::Guard;
use super::forward::{Client, Incoming, Outcome, forward};
use super::routes::{self, Route};
use super::watch::Watch;
use super::{Shard, form, intake, websocket};
use crate::http::form::is_form;
use crate::http::proxy::{self, Proxied};
use crate::http::{Framing, Parsed, RequestHead, Version};
use crate::http2::{Preface, preface};
use crate::runtime::{Direction, Layer, Link, Runtime, Stream};

/// First buffer of a request: head and body of most requests in one read.
const FIRST_READ: usize = 16 * 1024;
/// How long a client may go on sending after it was refused, so that it gets to read why.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes thrown away meanwhile.
const LINGER_BYTES: usize = 64 << 20;

/// A client's connection.
pub struct Conn<R: Runtime> {
    pub(super) shard: Rc<Shard<R>>,
    pub(super) socket: Link<R::Socket>,
    pub(super) guard: Guard<R>,
    pub(super) buf: BytesMut,
    pub(super) watch: Watch<R>,
    pub(super) head: RequestHead,
    /// The client that a load balancer speaks for.
    pub(super) client: Option<Box<str>>,
    served: u64,
    /// HTTP/2 was agreed on while shaking hands.
    pub(super) multiplexed: bool,
}

/// What to do after a step.
pub enum Next {
    /// Go on in HTTP/2, of which the beginning was read.
    Http2,
    /// Wait for the next request.
    KeepAlive,
    /// Close; the client has sent all that it is going to send, or does not matter any more.
    Close,
    /// Close, but let the client read its answer first although it may still be sending.
    Linger,
}

/// What came of waiting for a head.
enum HeadRead {
    /// A whole head of this many bytes.
    Complete(usize),
    /// The beginning of HTTP/2.
    Http2,
    /// Something else than a head.
    Refuse(Refusal),
    /// The client is done, or was idle for too long.
    Close,
}

/// Serves a connection to its end, over TLS if it is to be `secure`. `slot` is its share of the connection limit.
pub async fn serve<R: Runtime>(shard: Rc<Shard<R>>, socket: R::Socket, secure: bool, slot: Share) {
    let link = Link::Plain(socket.clone());
    // The deadline ends the connection itself, whatever comes to stand above it.
    let guard = shard.deadlines.register(link.handle());
    let watch = Watch::new(link.clone());
    let proxied = shard.options.proxy_protocol;
    let (buf, head) = (BytesMut::new(), RequestHead::new());
    let mut conn =
        Conn { shard, socket: link, guard, buf, watch, head, client: None, served: 0, multiplexed: false };
    if proxied && !Box::pin(conn.read_proxied()).await {
        return;
    }
    if secure && !Box::pin(conn.shake_hands(socket)).await {
        return;
    }
    if conn.multiplexed {
        Box::pin(conn.http2()).await;
        return;
    }
    loop {
        match conn.next().await {
            Next::KeepAlive => conn.served += 1,
            Next::Http2 => {
                Box::pin(conn.http2()).await;
                break;
            }
            Next::Close => break,
            Next::Linger => {
                conn.linger().await;
                break;
            }
        }
    }
    drop(slot);
}

/// Serves the one request of a stream of HTTP/2, whose head and what came behind it are in `buf`.
pub async fn serve_stream<R: Runtime>(
    shard: Rc<Shard<R>>,
    stream: Rc<dyn Layer>,
    mut buf: BytesMut,
    client: Option<Box<str>>,
) {
    if buf.len() < buf.capacity() {
        // A body that is here already is read with its head. An error shows again at the next read.
        std::future::poll_fn(|cx| {
            let _ = stream.poll_read(cx, &mut buf);
            Poll::Ready(())
        })
        .await;
    }
    let socket = Link::Layered(stream);
    let guard = shard.deadlines.register(socket.handle());
    let (watch, head) = (Watch::new(socket.clone()), RequestHead::new());
    let mut conn = Conn { shard, socket, guard, buf, watch, head, client, served: 0, multiplexed: false };
    // No lingering: what the client is still sending, it is told to stop.
    conn.next().await;
}

impl<R: Runtime> Conn<R> {
    async fn next(&mut self) -> Next {
        match self.read_head().await {
            HeadRead::Complete(len) => {
                // Boxed, so that a connection between requests holds no space for a request under way.
                Box::pin(self.request(len)).await
            }
            HeadRead::Refuse(refusal) => {
                self.shard.metrics.ended(None, refusal.status);
                let id = self.shard.request_ids.borrow_mut().next_id();
                let reply = self.reply(ErrorStyle::OpenAi, id.as_str(), false);
                let mut out = Vec::new();
                reply.refuse(&refusal, &mut out);
                self.send(out).await;
                Next::Linger
            }
            HeadRead::Http2 => Next::Http2,
            HeadRead::Close => Next::Close,
        }
    }

    /// Reads what a load balancer tells of its client. False: it does not, and the connection is to be closed.
    async fn read_proxied(&mut self) -> bool {
        let time = self.shard.options.timeouts.head;
        self.guard.arm_idle(time);
        self.watch.readable().await;
        self.guard.arm_read(time);
        loop {
            match proxy::parse(&self.buf) {
                Proxied::Done(len, client) => {
                    self.buf.advance(len);
                    self.client = client.map(|client| client.ip().to_string().into());
                    self.guard.clear();
                    return true;
                }
                Proxied::Bad => {
                    tracing::debug!("a connection without a header of the PROXY protocol is closed");
                    return false;
                }
                Proxied::NeedMore => {}
            }
            self.buf.reserve(FIRST_READ);
            let (result, buf) = self.socket.read(std::mem::take(&mut self.buf)).await;
            self.buf = buf;
            if !matches!(result, Ok(count) if count > 0) {
                return false;
            }
        }
    }

    async fn read_head(&mut self) -> HeadRead {
        self.head.reset();
        let timeouts = &self.shard.options.timeouts;
        let (head_time, idle_time) = (timeouts.head, timeouts.idle);
        if self.buf.is_empty() {
            // A connection that waits holds no buffer.
            self.buf = BytesMut::new();
            if self.shard.shared.is_draining() && self.socket.is_quiet() {
                return HeadRead::Close;
            }
            self.guard.arm_idle(if self.served == 0 { head_time } else { idle_time });
            self.watch.readable().await;
        }
        // Where a deadline or a drain has ended the wait, what had arrived by then is still read and served.
        self.guard.arm_read(head_time);
        loop {
            if !self.buf.is_empty() {
                match self.head.parse(&self.buf, &self.shard.options.limits.head) {
                    Parsed::Done(len) => {
                        self.guard.clear();
                        return HeadRead::Complete(len);
                    }
                    Parsed::Bad(reject) => match self.preface() {
                        Preface::Http2 => {
                            self.guard.clear();
                            return HeadRead::Http2;
                        }
                        Preface::NeedMore => {}
                        Preface::No => return HeadRead::Refuse(reject.into()),
                    },
                    Parsed::NeedMore => {}
                }
            }
            let wanted = if self.buf.len() < FIRST_READ {
                FIRST_READ
            } else {
                self.shard.options.limits.head.max_bytes
            };
            self.buf.reserve(wanted.saturating_sub(self.buf.len()).max(1));
            let (result, buf) = self.socket.read(std::mem::take(&mut self.buf)).await;
            self.buf = buf;
            match result {
                Ok(count) if count > 0 => {}
                _ if self.guard.fired() && !self.buf.is_empty() => {
                    return HeadRead::Refuse(Refusal::new(408, "the request head took too long"));
                }
                _ => return HeadRead::Close,
            }
        }
    }

    /// Whether what is no head of HTTP/1 begins HTTP/2 instead. Only the first bytes of a connection may.
    fn preface(&self) -> Preface {
        let may = self.served == 0 && self.shard.options.http2.enabled;
        if may && matches!(self.socket, Link::Plain(_)) { preface(&self.buf) } else { Preface::No }
    }

    async fn request(&mut self, head_len: usize) -> Next {
        let began_us = R::now_us();
        let base_path = self.shard.options.base_path.as_str();
        let path = self.head.route(&self.buf, base_path);
        let style = routes::error_style(path);
        let route = routes::classify(self.head.method(), path);
        let made_id;
        let request_id = match self.head.request_id(&self.buf) {
            Some(id) => id.to_owned(),
            None => {
                made_id = self.shard.request_ids.borrow_mut().next_id();
                made_id.as_str().to_owned()
            }
        };
        let upgradable = if self.head.upgrade() { path.and_then(routes::upgradable) } else { None };
        let head_bytes = self.buf.split_to(head_len).freeze();
        if let Some(api) = upgradable
            && self.head.asks_websocket(&head_bytes)
        {
            // Kept for as long as the connection lasts, so without the room that it was read into.
            let head_bytes = Bytes::copy_from_slice(&head_bytes);
            self.buf = BytesMut::from(&self.buf[..]);
            let headed = Headed { api, head_bytes, request_id: &request_id, style, began_us };
            return Box::pin(websocket::open(self, &headed)).await;
        }
        let api = match route {
            Route::Forward(api) => api,
            local => return self.answer_locally(&local, style, &request_id).await,
        };
        if let Some(encoding) = self.head.header(&head_bytes, "content-encoding")
            && !encoding.eq_ignore_ascii_case(b"identity")
        {
            let refusal = Refusal::new(415, "compressed request bodies cannot be routed");
            return self.refuse(&refusal, style, &request_id, true).await;
        }
        if api == Api::Other && self.head.header(&head_bytes, "content-type").is_some_and(is_form) {
            let headed = Headed { api, head_bytes, request_id: &request_id, style, began_us };
            return Box::pin(form::open(self, &headed)).await;
        }
        let framing = self.head.framing();
        let expects = self.head.expect_continue();
        let (body, held) = match intake::read_body(self, framing, expects).await {
            intake::BodyRead::Complete { body, held } => (body, held),
            intake::BodyRead::Refuse(refusal) => {
                self.shard.metrics.ended(None, refusal.status);
                return self.refuse(&refusal, style, &request_id, true).await;
            }
            intake::BodyRead::Close => return Next::Close,
        };
        // What was read ahead moves out of the request's buffer, which is given back before the answer begins.
        self.buf = if self.buf.is_empty() { BytesMut::new() } else { BytesMut::from(&self.buf[..]) };
        let keep_alive = self.head.keep_alive();
        let outcome = forward(
            &self.shard,
            Client { socket: &self.socket, guard: &self.guard, watch: &mut self.watch },
            Incoming {
                api,
                head: &self.head,
                head_bytes,
                body,
                held,
                request_id: &request_id,
                began_us,
                read_us: R::now_us(),
                keep_alive,
                read_ahead: !self.buf.is_empty(),
                client: self.client.as_deref(),
            },
        )
        .await;
        match outcome {
            Outcome::Answered { keep_alive: true } => Next::KeepAlive,
            Outcome::Answered { keep_alive: false } => Next::Linger,
            Outcome::Refuse(refusal) => self.refuse(&refusal, style, &request_id, false).await,
            Outcome::PassOn(answer) => self.pass_on(&answer, style, &request_id).await,
            Outcome::Left | Outcome::Cut => Next::Close,
        }
    }

    /// Answers a route that needs no engine. A body that came with it is skipped if it is here already; otherwise the
    /// connection ends with the answer.
    async fn answer_locally(&mut self, route: &Route, style: ErrorStyle, request_id: &str) -> Next {
        let unread = match self.head.framing() {
            Framing::None => false,
            Framing::Length(length) if length <= self.buf.len() as u64 => {
                self.buf.advance(length as usize);
                false
            }
            _ => true,
        };
        let reply = self.reply(style, request_id, !unread);
        let keep_alive = reply.keep_alive;
        let mut out = Vec::new();
        routes::answer(route, &self.shard.shared, &reply, &mut out);
        if !self.send(out).await {
            Next::Close
        } else if keep_alive {
            Next::KeepAlive
        } else {
            Next::Linger
        }
    }

    pub(super) async fn refuse(
        &mut self,
        refusal: &Refusal,
        style: ErrorStyle,
        request_id: &str,
        unread: bool,
    ) -> Next {
        let reply = self.reply(style, request_id, !unread);
        let keep_alive = reply.keep_alive;
        let mut out = Vec::new();
        reply.refuse(refusal, &mut out);
        if !self.send(out).await {
            Next::Close
        } else if keep_alive {
            Next::KeepAlive
        } else {
            Next::Linger
        }
    }

    async fn pass_on(&mut self, answer: &PassedOn, style: ErrorStyle, request_id: &str) -> Next {
        let reply = self.reply(style, request_id, true);
        let keep_alive = reply.keep_alive;
        let mut out = Vec::with_capacity(answer.body.len() + FIRST_READ / 16);
        reply.pass_on(answer, &mut out);
        if !self.send(out).await {
            Next::Close
        } else if keep_alive {
            Next::KeepAlive
        } else {
            Next::Linger
        }
    }

    fn reply<'a>(&self, style: ErrorStyle, request_id: &'a str, may_keep: bool) -> Reply<'a> {
        let ended = (self.buf.is_empty() && self.watch.input_ended())
            || self.guard.fired()
            || self.shard.shared.is_draining();
        Reply {
            version: self.head.version(),
            head_only: *self.head.method() == http::Method::HEAD,
            keep_alive: may_keep && !ended && self.head.keep_alive(),
            style,
            request_id,
        }
    }

    /// Sends an answer of our own, without what a probe has sent of it already. Whether the client took it.
    pub(super) async fn send(&mut self, out: Vec<u8>) -> bool {
        let from = self.watch.take_prefix().min(out.len());
        let to = out.len();
        self.guard.arm_write(self.shard.options.timeouts.stall);
        let (result, _) = self.socket.write_range(out, from, to).await;
        self.guard.clear();
        result.is_ok()
    }

    /// Ends our side and reads on for a while: a close with unread bytes would reset the connection and take the
    /// answer away from the client.
    pub(super) async fn linger(&mut self) {
        if self.guard.fired() || self.watch.is_gone() {
            return;
        }
        self.socket.shutdown(Direction::Write);
        self.guard.arm_read(LINGER);
        let mut thrown = 0;
        let mut buf = BytesMut::with_capacity(FIRST_READ);
        while thrown < LINGER_BYTES {
            buf.clear();
            let (result, back) = self.socket.read(buf).await;
            buf = back;
            match result {
                Ok(count) if count > 0 => thrown += count,
                _ => break,
            }
        }
    }
}

impl<R: Runtime> Conn<R> {
    /// Takes `len` bytes from the front of what was read.
    pub(super) fn take_bytes(&mut self, len: usize) -> Bytes {
        self.buf.split_to(len).freeze()
    }

    /// The client's protocol version.
    pub(super) fn version(&self) -> Version {
        self.head.version()
    }
}
