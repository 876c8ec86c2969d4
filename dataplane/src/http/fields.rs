//! Header fields of a head: where they lie, what they mean to a relay, and what they say about the body.

use std::mem::MaybeUninit;

use http::StatusCode;

use super::{Framing, Reject};

/// Most header fields a head may have; also the size of the parser's table on the stack.
pub const MAX_FIELDS: usize = 128;

/// Most tokens accepted in all `Connection` fields of a head together. Each costs a pass over the fields.
const MAX_CONNECTION_TOKENS: u32 = 64;

/// Limits of a head. Beyond them a request is answered 431 and a response counts as broken.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes from the first of the start line to the empty line's end, inclusive.
    pub max_bytes: usize,
    /// Header fields; at most [`MAX_FIELDS`].
    pub max_fields: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { max_bytes: 64 * 1024, max_fields: MAX_FIELDS }
    }
}

/// A range of the caller's buffer. Resolving it against a shorter buffer gives an empty slice, never a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    pub fn new(start: usize, end: usize) -> Self {
        // Heads are limited to far less than 4 GiB; saturating keeps a wrong limit harmless.
        Self { start: clamp(start), end: clamp(end) }
    }

    /// The span of `part`, which must be a subslice of `whole`.
    pub fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
        Self::new(start, start + part.len())
    }

    pub fn get<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        buf.get(self.start as usize..self.end as usize).unwrap_or(&[])
    }

    pub fn str<'b>(&self, buf: &'b [u8]) -> &'b str {
        std::str::from_utf8(self.get(buf)).unwrap_or("")
    }

    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What a relay does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// End to end: passed on as it is.
    Forward,
    /// Hop by hop, or steers us or the engines from outside: never passed on.
    Drop,
    /// Asks something of the router: read, and not passed on.
    Ask,
    /// Names a session or a user: read, and passed on.
    Key,
    /// Asks for compression: passed on, except where the gateway itself reads the answer.
    AcceptEncoding,
    Host,
    Length,
    Coding,
    Connection,
    Expect,
    Upgrade,
    Trailer,
    RequestId,
    ContentType,
    ContentEncoding,
}

/// One field. The line it stands on reaches from its name to the next field's name, because folded lines and lines
/// without CRLF are refused: so neighbours that are kept are copied as one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub name: Span,
    pub value: Span,
    pub kind: Kind,
}

pub(super) type FieldSlots<'b> = [MaybeUninit<httparse::Header<'b>>; MAX_FIELDS];

/// An uninitialised table for httparse, which fills what it needs.
pub(super) const fn field_slots<'b>() -> FieldSlots<'b> {
    [const { MaybeUninit::uninit() }; MAX_FIELDS]
}

/// Case-insensitive comparison with a name given in lower case.
fn is(name: &[u8], lower: &str) -> bool {
    name.eq_ignore_ascii_case(lower.as_bytes())
}

/// Whether a name begins with what is given in lower case; `_` counts as `-`, because some servers fold the two.
fn begins_folded(name: &[u8], lower: &str) -> bool {
    name.len() >= lower.len()
        && name.iter().zip(lower.as_bytes()).all(|(have, want)| {
            let have = have.to_ascii_lowercase();
            have == *want || (have == b'_' && *want == b'-')
        })
}

/// Whether a field beginning with `x-` steers: chooses an instance, a data-parallel rank or a peer to pull from. That is
/// the router's to decide, and would let a client send other people's prompts where it likes.
fn is_steering(name: &[u8]) -> bool {
    let begins = |lower| begins_folded(name, lower);
    let is = |lower: &str| name.len() == lower.len() && begins_folded(name, lower);
    // The third letter first: clients send many `x-` fields and few of these.
    match name.get(2).map(u8::to_ascii_lowercase) {
        Some(b'd') => {
            begins("x-data-parallel-")
                || is("x-dynamo-worker-instance-id")
                || is("x-dynamo-prefill-instance-id")
                || is("x-dynamo-dp-rank")
                || is("x-dynamo-prefill-dp-rank")
        }
        Some(b'e') => is("x-encoder-hosts-ports"),
        Some(b'f') => begins("x-fairlead-"),
        Some(b'g') => begins("x-gateway-destination-endpoint"),
        Some(b'k') => is("x-kv-cache-source-host-port"),
        Some(b'o') => begins("x-override-"),
        Some(b'p') => begins("x-prefiller-"),
        // `x_request_id`: not the id that we check, but some servers would take it for one.
        Some(b'r') => is("x-request-id"),
        Some(b's') => is("x-smg-target-worker"),
        _ => false,
    }
}

/// What a field beginning with `x-` asks of the router or tells it.
fn asks_or_tells(name: &[u8]) -> Option<Kind> {
    let one_of = |names: &[&str], kind| names.iter().any(|known| is(name, known)).then_some(kind);
    match name.get(2)?.to_ascii_lowercase() {
        b'a' => one_of(&["x-aibrix-session-key"], Kind::Key),
        b'c' => one_of(&["x-claude-code-session-id"], Kind::Key),
        b'd' => one_of(&["x-dynamo-session-id"], Kind::Key),
        b'f' => one_of(&["x-fairlead-explain"], Kind::Ask),
        b'l' => one_of(&["x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"], Kind::Ask),
        b's' => one_of(&["x-slo-ttft-ms", "x-slo-tpot-ms"], Kind::Ask)
            .or_else(|| one_of(&["x-session-id", "x-smg-routing-key"], Kind::Key)),
        b'u' => one_of(&["x-user-id"], Kind::Key),
        _ => None,
    }
}

/// What a request field is to us.
pub(super) fn classify_request(name: &[u8]) -> Kind {
    match name.first().map(u8::to_ascii_lowercase) {
        Some(b'a') if is(name, "accept-encoding") => Kind::AcceptEncoding,
        Some(b'c') => {
            if is(name, "connection") {
                Kind::Connection
            } else if is(name, "content-length") {
                Kind::Length
            } else if is(name, "config-profile") {
                Kind::Ask
            } else {
                Kind::Forward
            }
        }
        Some(b'e') if is(name, "external-filter") => Kind::Ask,
        Some(b'e') if is(name, "expect") => Kind::Expect,
        Some(b'h') if is(name, "host") => Kind::Host,
        Some(b'h') if is(name, "http2-settings") => Kind::Drop,
        Some(b'k') if is(name, "keep-alive") => Kind::Drop,
        Some(b'p') if begins_folded(name, "proxy-") || begins_folded(name, "prefill-target-pod") => {
            Kind::Drop
        }
        Some(b'r') if is(name, "routing-strategy") => Kind::Ask,
        Some(b't') => {
            if is(name, "transfer-encoding") {
                Kind::Coding
            } else if is(name, "te") || begins_folded(name, "target-pod") {
                Kind::Drop
            } else if is(name, "trailer") {
                Kind::Trailer
            } else {
                Kind::Forward
            }
        }
        Some(b'u') if is(name, "upgrade") => Kind::Upgrade,
        Some(b'u') if is(name, "user") => Kind::Key,
        Some(b'x') => {
            if is(name, "x-request-id") {
                Kind::RequestId
            } else if let Some(kind) = asks_or_tells(name) {
                kind
            } else if is_steering(name) {
                Kind::Drop
            } else {
                Kind::Forward
            }
        }
        _ => Kind::Forward,
    }
}

/// What a response field is to us.
pub(super) fn classify_response(name: &[u8]) -> Kind {
    match name.first().map(u8::to_ascii_lowercase) {
        Some(b'c') => {
            if is(name, "content-length") {
                Kind::Length
            } else if is(name, "content-type") {
                Kind::ContentType
            } else if is(name, "connection") {
                Kind::Connection
            } else if is(name, "content-encoding") {
                Kind::ContentEncoding
            } else {
                Kind::Forward
            }
        }
        Some(b'k') if is(name, "keep-alive") => Kind::Drop,
        Some(b'p') if is(name, "proxy-connection") => Kind::Drop,
        Some(b't') => {
            if is(name, "transfer-encoding") {
                Kind::Coding
            } else if is(name, "trailer") {
                Kind::Trailer
            } else if is(name, "te") {
                Kind::Drop
            } else {
                Kind::Forward
            }
        }
        Some(b'u') if is(name, "upgrade") => Kind::Upgrade,
        // The gateway speaks for itself: an engine cannot forge what it says about a routing decision.
        Some(b'x') if begins_folded(name, "x-fairlead-") => Kind::Drop,
        Some(b'x') if is(name, "x-request-id") => Kind::RequestId,
        _ => Kind::Forward,
    }
}

/// What the framing and connection fields of a head say together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub length: Option<u64>,
    length_text: Span,
    /// The one `Content-Length` line may be copied as it stands.
    pub length_plain: bool,
    coded: bool,
    chunked: bool,
    pub close: bool,
    pub keep_alive: bool,
    pub connection_upgrade: bool,
    /// `Connection` names fields that are to be removed.
    names_fields: bool,
    tokens: u32,
}

impl Facts {
    pub const EMPTY: Self = Self {
        length: None,
        length_text: Span::EMPTY,
        length_plain: false,
        coded: false,
        chunked: false,
        close: false,
        keep_alive: false,
        connection_upgrade: false,
        names_fields: false,
        tokens: 0,
    };

    /// Takes one field into account.
    pub fn note(&mut self, buf: &[u8], field: &Field) -> Result<(), Reject> {
        match field.kind {
            Kind::Length => self.note_length(buf, field.value),
            Kind::Coding => self.note_coding(field.value.get(buf)),
            Kind::Connection => self.note_connection(field.value.get(buf)),
            _ => Ok(()),
        }
    }

    fn note_length(&mut self, buf: &[u8], value: Span) -> Result<(), Reject> {
        let text = value.get(buf);
        let length = parse_length(text)?;
        if self.length.is_some() {
            if self.length_text.get(buf) != text {
                return Err(Reject::bad_request("differing Content-Length fields"));
            }
            self.length_plain = false;
            return Ok(());
        }
        self.length = Some(length);
        self.length_text = value;
        self.length_plain = text.len() == 1 || text.first() != Some(&b'0');
        Ok(())
    }

    fn note_coding(&mut self, value: &[u8]) -> Result<(), Reject> {
        self.coded = true;
        for token in tokens(value) {
            if self.chunked {
                return Err(Reject::bad_request("chunked must be the last transfer coding, once"));
            }
            if !token.eq_ignore_ascii_case(b"chunked") {
                return Err(Reject::new(StatusCode::NOT_IMPLEMENTED, "unknown transfer coding"));
            }
            self.chunked = true;
        }
        Ok(())
    }

    fn note_connection(&mut self, value: &[u8]) -> Result<(), Reject> {
        for token in tokens(value) {
            self.tokens += 1;
            if self.tokens > MAX_CONNECTION_TOKENS {
                return Err(Reject::bad_request("too many options in Connection"));
            }
            if is(token, "close") {
                self.close = true;
            } else if is(token, "keep-alive") {
                self.keep_alive = true;
            } else if is(token, "upgrade") {
                self.connection_upgrade = true;
            } else {
                self.names_fields = true;
            }
        }
        Ok(())
    }

    /// The message is declared to be in chunks.
    pub fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// The framing these fields ask for, or why they cannot be trusted. `None`: neither length nor coding given.
    pub fn framing(&self, http11: bool) -> Result<Option<Framing>, Reject> {
        if self.coded {
            if self.length.is_some() {
                return Err(Reject::bad_request("both Content-Length and Transfer-Encoding"));
            }
            if !http11 {
                return Err(Reject::bad_request("Transfer-Encoding in an HTTP/1.0 message"));
            }
            if !self.chunked {
                return Err(Reject::bad_request("empty Transfer-Encoding"));
            }
            return Ok(Some(Framing::Chunked));
        }
        Ok(self.length.map(Framing::Length))
    }

    /// Whether the sender keeps the connection open after this message.
    pub fn persistent(&self, http11: bool) -> bool {
        !self.close && (http11 || self.keep_alive)
    }

    /// Marks the fields that `Connection` names as not to be passed on. Fields that we interpret ourselves keep their
    /// kind: they are made anew anyway, and a sender must not be able to remove, say, `Host`.
    pub fn drop_named(&self, buf: &[u8], fields: &mut [Field]) {
        if !self.names_fields {
            return;
        }
        for at in 0..fields.len() {
            let Some(field) = fields.get(at) else { break };
            if field.kind != Kind::Connection {
                continue;
            }
            for token in tokens(field.value.get(buf)) {
                for other in fields.iter_mut() {
                    let named = matches!(
                        other.kind,
                        Kind::Forward
                            | Kind::Key
                            | Kind::RequestId
                            | Kind::ContentType
                            | Kind::ContentEncoding
                    ) && other.name.get(buf).eq_ignore_ascii_case(token);
                    if named {
                        other.kind = Kind::Drop;
                    }
                }
            }
        }
    }
}

/// The elements of a comma-separated list, trimmed, empty ones left out.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim).filter(|t| !t.is_empty())
}

pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A `Content-Length` value: digits only, within 64 bits.
fn parse_length(text: &[u8]) -> Result<u64, Reject> {
    const BAD: Reject = Reject::bad_request("Content-Length is not a number of bytes");
    if text.is_empty() {
        return Err(BAD);
    }
    text.iter().try_fold(0u64, |n, b| {
        if !b.is_ascii_digit() {
            return Err(BAD);
        }
        n.checked_mul(10)
            .and_then(|n| n.checked_add(u64::from(b - b'0')))
            .ok_or(Reject::bad_request("Content-Length is too large"))
    })
}

/// Whether every line of a complete head of `fields` ends in CRLF: httparse also takes a bare LF, which other servers do
/// not. A line ends where the next name begins, and nowhere else can a line feed stand.
pub(super) fn lines_end_in_crlf(buf: &[u8], fields: &[Field], end: usize) -> bool {
    let before = |at: usize, what: &[u8]| buf.get(..at).is_some_and(|head| head.ends_with(what));
    before(end, b"\r\n\r\n") && fields.iter().all(|f| before(f.name.start as usize, b"\r\n"))
}

/// Remembers how much of an unfinished head was looked at: it is parsed when a line of it has ended, so that one which
/// arrives byte by byte is parsed once per line, of which there are few.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    scanned: usize,
}

impl Progress {
    pub const START: Self = Self { scanned: 0 };

    /// Whether `buf`, which has grown since the last call, holds the end of a further line or has reached `limit`.
    pub fn made(&mut self, buf: &[u8], limit: usize) -> bool {
        let fresh = buf.get(self.scanned..).unwrap_or(&[]);
        self.scanned = buf.len();
        buf.len() >= limit || memchr::memchr(b'\n', fresh).is_some()
    }
}

/// Whether an error found in `head` counts already. In a line that has not ended it does not, so that the outcome never
/// depends on how the bytes were split.
pub(super) fn error_counts(head: &[u8], at_limit: bool, has_error: impl FnOnce(&[u8]) -> bool) -> bool {
    let end = memchr::memrchr(b'\n', head).map_or(0, |at| at + 1);
    at_limit || end == head.len() || has_error(head.get(..end).unwrap_or(&[]))
}

/// Appends the lines of the fields for which `keep` holds, whole runs at a time. `end` is where the last line ends.
pub(super) fn copy_lines(
    buf: &[u8],
    fields: &[Field],
    end: usize,
    out: &mut Vec<u8>,
    mut keep: impl FnMut(&Field) -> bool,
) {
    let mut run: Option<usize> = None;
    for field in fields {
        let at = field.name.start as usize;
        if keep(field) {
            run.get_or_insert(at);
        } else if let Some(from) = run.take() {
            out.extend_from_slice(buf.get(from..at).unwrap_or(&[]));
        }
    }
    if let Some(from) = run {
        out.extend_from_slice(buf.get(from..end).unwrap_or(&[]));
    }
}
