//! A stream's request, as one of HTTP/1.1: its head, and its body with that version's framing.

use std::io::Write as _;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method};

/// Why a request cannot be put into words of HTTP/1.1. The stream is reset as malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Fields that speak of a connection of HTTP/1: a request of HTTP/2 that has one is malformed.
const OF_CONNECTIONS: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Appends the head of `request` and says whether its body goes in chunks: it does when it has one of unknown length.
/// What remains to be judged is judged by the parser of HTTP/1 heads, which reads this next.
pub fn write_request(request: &Parts, bodiless: bool, out: &mut BytesMut) -> Result<bool, Malformed> {
    let uri = &request.uri;
    let authority = uri.authority().map(|authority| authority.as_str());
    let target = match uri.path_and_query() {
        _ if request.method == Method::CONNECT => authority.unwrap_or("*"),
        Some(target) if !target.as_str().is_empty() => target.as_str(),
        _ => "/",
    };
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Malformed("the path holds a character that no path has"));
    }
    // In HTTP/1.1 something else could name another host.
    if !target.starts_with('/') && target != "*" && request.method != Method::CONNECT {
        return Err(Malformed("the path does not begin with a slash"));
    }
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = authority {
        field(b"host", authority.as_bytes(), out);
    }
    let (mut has_length, mut cookie) = (false, Vec::new());
    for (name, value) in &request.headers {
        match name.as_str() {
            // The same thing said twice; another thing is two hosts, and refused as that.
            "host" if authority.is_some_and(|authority| is_same(value, authority)) => {}
            // Only `trailers` may be asked for, and there are none.
            "te" | "trailer" if name != header::TE || value == "trailers" => {}
            "te" => return Err(Malformed("TE asks for something else than trailers")),
            "http2-settings" => {}
            name if OF_CONNECTIONS.contains(&name) => {
                return Err(Malformed("a field of connections of HTTP/1"));
            }
            // Crumbs, which compress better than the whole.
            "cookie" => {
                if !cookie.is_empty() {
                    cookie.extend_from_slice(b"; ");
                }
                cookie.extend_from_slice(value.as_bytes());
            }
            _ => {
                has_length |= name == header::CONTENT_LENGTH;
                write_value(name, value, out)?;
            }
        }
    }
    if !cookie.is_empty() {
        let cookie = HeaderValue::from_maybe_shared(Bytes::from(cookie));
        write_value(&header::COOKIE, &cookie.map_err(|_| UNFIT)?, out)?;
    }
    let chunked = !bodiless && !has_length;
    if chunked {
        field(b"transfer-encoding", b"chunked", out);
    }
    out.extend_from_slice(b"\r\n");
    Ok(chunked)
}

const UNFIT: Malformed = Malformed("a value holds a control character");

fn write_value(name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) -> Result<(), Malformed> {
    // The types rule it out; what would be smuggled through here is worth a second look.
    if memchr::memchr3(b'\r', b'\n', 0, value.as_bytes()).is_some() {
        return Err(UNFIT);
    }
    field(name.as_str().as_bytes(), value.as_bytes(), out);
    Ok(())
}

fn field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn is_same(value: &HeaderValue, authority: &str) -> bool {
    value.as_bytes().eq_ignore_ascii_case(authority.as_bytes())
}

/// A request's body, on its way to whoever reads a connection of HTTP/1.1.
#[derive(Debug)]
pub struct Upload {
    stream: RecvStream,
    chunked: bool,
    /// Framing that goes before the piece.
    lead: Bytes,
    /// What came and was not read. Its window opens as it is.
    piece: Bytes,
    /// A chunk lacks its end.
    open: bool,
    ended: bool,
}

impl Upload {
    /// Of `stream`; in chunks, or as it comes.
    pub fn new(stream: RecvStream, chunked: bool) -> Self {
        let ended = stream.is_end_stream() && !chunked;
        Self { stream, chunked, lead: Bytes::new(), piece: Bytes::new(), open: false, ended }
    }

    /// Whether something is there to be read.
    pub fn has_some(&self) -> bool {
        !self.lead.is_empty() || !self.piece.is_empty()
    }

    /// Ready when there is something to read or all has come; the error of a client that withdrew.
    pub fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.has_some() && !self.ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(piece) => {
                    self.piece = piece?;
                    if self.chunked && !self.piece.is_empty() {
                        self.frame(self.piece.len());
                    }
                }
                None => {
                    self.ended = true;
                    if self.chunked {
                        self.frame(0);
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What goes before a chunk, or is the last one.
    fn frame(&mut self, len: usize) {
        let mut lead = Vec::with_capacity(24);
        if self.open {
            lead.extend_from_slice(b"\r\n");
        }
        // Writing to memory does not fail.
        let _ = write!(lead, "{len:x}\r\n");
        if len == 0 {
            lead.extend_from_slice(b"\r\n");
        }
        self.open = len > 0;
        self.lead = lead.into();
    }

    /// Moves what is there into the spare capacity of `buf`: everything that has come, without waiting for more.
    pub fn take(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Result<usize, h2::Error> {
        let before = buf.len();
        loop {
            move_some(&mut self.lead, buf);
            if self.lead.is_empty() {
                let count = move_some(&mut self.piece, buf);
                if count > 0 {
                    self.stream.flow_control().release_capacity(count)?;
                }
            }
            if self.has_some() || buf.len() == buf.capacity() {
                return Ok(buf.len() - before);
            }
            match self.poll_some(cx) {
                Poll::Ready(Ok(())) if self.has_some() => {}
                Poll::Ready(Err(error)) if buf.len() == before => return Err(error),
                _ => return Ok(buf.len() - before),
            }
        }
    }
}

fn move_some(from: &mut Bytes, buf: &mut BytesMut) -> usize {
    let count = from.len().min(buf.capacity() - buf.len());
    buf.extend_from_slice(from.get(..count).unwrap_or_default());
    from.advance(count);
    count
}
