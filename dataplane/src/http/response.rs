//! Response heads from engines, and the heads that clients get.

use http::StatusCode;

use super::fields::{
    Facts, Field, HeadLimits, Kind, MAX_FIELDS, Progress, Span, classify_response, copy_lines, error_counts,
    field_slots, lines_end_in_crlf, trim,
};
use super::write::write_field;
use super::{Framing, Parsed, Reject, Version};

/// An engine's response head, parsed in place like a [`RequestHead`](super::RequestHead) and as strictly: what is
/// ambiguous counts as a broken engine (502). Interim responses (1xx, except 101) before it are skipped.
#[derive(Debug)]
pub struct ResponseHead {
    fields: Vec<Field>,
    facts: Facts,
    /// From the status code to the end of the line.
    status_line: Span,
    status: StatusCode,
    version: Version,
    framing: Framing,
    keep_alive: bool,
    event_stream: bool,
    encoded: bool,
    len: usize,
    /// Where the current head begins, behind the interim ones.
    start: usize,
    progress: Progress,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self::new()
    }
}

impl ResponseHead {
    /// An empty head; allocates with the first parse.
    pub const fn new() -> Self {
        Self {
            fields: Vec::new(),
            facts: Facts::EMPTY,
            status_line: Span::EMPTY,
            status: StatusCode::OK,
            version: Version::Http11,
            framing: Framing::None,
            keep_alive: false,
            event_stream: false,
            encoded: false,
            len: 0,
            start: 0,
            progress: Progress::START,
        }
    }

    /// Forgets everything but its memory; call before each response.
    pub fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, ..Self::new() };
    }

    /// Looks for a complete final head at the start of `buf`, which grows from call to call. `to_head`: the request was
    /// HEAD, so no body follows whatever the fields say. The limit covers interim responses too.
    pub fn parse(&mut self, buf: &[u8], to_head: bool, limits: &HeadLimits) -> Parsed {
        loop {
            let (start, mut progress) = (self.start, self.progress);
            let rest = buf.get(start..).unwrap_or(&[]);
            let limit = limits.max_bytes.saturating_sub(start);
            let result = begins_like_a_response(rest).and_then(|()| {
                if !progress.made(rest, limit) {
                    return Ok(None);
                }
                self.reset();
                self.start = start;
                let head = rest.get(..limit).unwrap_or(rest);
                self.try_parse(buf, head, to_head, limits)
            });
            self.progress = progress;
            match result {
                Ok(Some(len))
                    if self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS =>
                {
                    self.start = start + len;
                    self.progress = Progress::START;
                }
                Ok(Some(len)) => {
                    self.len = start + len;
                    return Parsed::Done(self.len);
                }
                Ok(None) if buf.len() >= limits.max_bytes => {
                    return Parsed::Bad(broken("response head is larger than allowed"));
                }
                Ok(None) => return Parsed::NeedMore,
                Err(reject) => return Parsed::Bad(broken(reject.message)),
            }
        }
    }

    fn try_parse(
        &mut self,
        buf: &[u8],
        head: &[u8],
        to_head: bool,
        limits: &HeadLimits,
    ) -> Result<Option<usize>, Reject> {
        let mut slots = field_slots();
        let slots = slots.get_mut(..limits.max_fields.min(MAX_FIELDS)).unwrap_or_default();
        let mut response = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, head, slots);
        let len = match parsed {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => {
                let has_error = |lines: &[u8]| {
                    let mut slots = field_slots();
                    let slots = slots.get_mut(..limits.max_fields.min(MAX_FIELDS)).unwrap_or_default();
                    httparse::ParserConfig::default()
                        .parse_response_with_uninit_headers(
                            &mut httparse::Response::new(&mut []),
                            lines,
                            slots,
                        )
                        .is_err()
                };
                if !error_counts(head, buf.len() >= limits.max_bytes, has_error) {
                    return Ok(None);
                }
                return Err(broken(match error {
                    httparse::Error::TooManyHeaders => "response has more header fields than allowed",
                    _ => "response head is not valid HTTP/1.1",
                }));
            }
        };
        let lines = head.get(..len).unwrap_or(head);
        let code = response.code.unwrap_or_default();
        self.status = StatusCode::from_u16(code)
            .ok()
            .filter(|s| s.as_u16() < 600)
            .ok_or(broken("response status is out of range"))?;
        self.version = if response.version == Some(1) { Version::Http11 } else { Version::Http10 };
        let line_end = memchr::memchr(b'\r', lines).unwrap_or(lines.len());
        self.status_line = Span::of(buf, lines.get("HTTP/1.1 ".len()..line_end).unwrap_or(&[]));
        self.fields.reserve(response.headers.len());
        for header in response.headers.iter() {
            let field = Field {
                name: Span::of(buf, header.name.as_bytes()),
                value: Span::of(buf, trim(header.value)),
                kind: classify_response(header.name.as_bytes()),
            };
            self.facts.note(buf, &field)?;
            match field.kind {
                Kind::ContentType => self.event_stream = is_event_stream(field.value.get(buf)),
                Kind::ContentEncoding => {
                    self.encoded |= !field.value.get(buf).eq_ignore_ascii_case(b"identity");
                }
                _ => {}
            }
            self.fields.push(field);
        }
        if !lines_end_in_crlf(buf, &self.fields, self.start + len) {
            return Err(broken("line of the response head does not end in CRLF"));
        }
        let http11 = self.version == Version::Http11;
        let declared = self.facts.framing(http11)?;
        self.framing = if to_head || bodiless(self.status) {
            Framing::None
        } else {
            declared.unwrap_or(Framing::UntilClose)
        };
        self.keep_alive = self.facts.persistent(http11) && self.framing != Framing::UntilClose;
        self.facts.drop_named(buf, &mut self.fields);
        Ok(Some(len))
    }

    /// Bytes from the start of the buffer to the body, interim responses included.
    pub fn head_len(&self) -> usize {
        self.len
    }

    /// Status of the final response, or 101: broken too, unless the request asked for an upgrade.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The engine's protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How the body's end is found.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the connection to the engine may serve another request once the body has ended.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// The body is a stream of server-sent events.
    pub fn is_event_stream(&self) -> bool {
        self.event_stream
    }

    /// The body is compressed, so that what it says cannot be read in passing.
    pub fn is_encoded(&self) -> bool {
        self.encoded
    }

    /// Value of the first field of this name (in any case).
    pub fn header<'b>(&self, buf: &'b [u8], name: &str) -> Option<&'b [u8]> {
        let named = |field: &&Field| field.name.get(buf).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().find(named).map(|field| field.value.get(buf))
    }

    /// All fields as the engine sent them, in order; values trimmed.
    pub fn headers<'b>(&self, buf: &'b [u8]) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.fields.iter().map(move |f| (f.name.str(buf), f.value.get(buf)))
    }

    /// Appends the head for the client and says how the body is to be relayed.
    pub fn write_client(&self, buf: &[u8], head: &ClientHead<'_>, out: &mut Vec<u8>) -> ClientBody {
        let http11 = head.version == Version::Http11;
        let relay = match (self.framing, http11) {
            (Framing::None, _) => Relay::None,
            (Framing::Length(n), _) => Relay::Length(n),
            (Framing::Chunked, true) => Relay::Raw,
            (Framing::Chunked, false) => Relay::Dechunk,
            (Framing::UntilClose, true) => Relay::Chunk,
            (Framing::UntilClose, false) => Relay::UntilClose,
        };
        let keep_alive = head.keep_alive && !matches!(relay, Relay::Dechunk | Relay::UntilClose);
        // A HEAD or 304 response tells how a body would have been framed.
        let describes = self.framing == Framing::None && !no_framing_fields(self.status);
        let keep_length = matches!(self.framing, Framing::Length(_)) || describes;
        let chunked =
            matches!(relay, Relay::Raw | Relay::Chunk) || (describes && self.facts.is_chunked() && http11);

        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status_line.get(buf));
        if self.status_line.end - self.status_line.start == 3 {
            out.push(b' ');
        }
        out.extend_from_slice(b"\r\n");
        let mut lengths = 0;
        copy_lines(buf, &self.fields, self.len.saturating_sub(2), out, |field| match field.kind {
            Kind::Length => {
                lengths += 1;
                keep_length && lengths == 1
            }
            Kind::Trailer => relay == Relay::Raw,
            Kind::RequestId => !head.own_id,
            Kind::Drop | Kind::Coding | Kind::Connection | Kind::Upgrade => false,
            Kind::Forward
            | Kind::Ask
            | Kind::Key
            | Kind::Host
            | Kind::Expect
            | Kind::AcceptEncoding
            | Kind::ContentType
            | Kind::ContentEncoding => true,
        });
        if chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if !keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if !http11 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        for (name, value) in head.add {
            write_field(name, value, out);
        }
        out.extend_from_slice(b"\r\n");
        ClientBody { relay, keep_alive }
    }
}

/// What the gateway decides about the head for the client.
#[derive(Clone, Copy, Debug)]
pub struct ClientHead<'a> {
    /// The client's protocol version.
    pub version: Version,
    /// Keep the client's connection, if the framing allows it.
    pub keep_alive: bool,
    /// Leave out the request id that the engine tells: it is not the client's.
    pub own_id: bool,
    /// Further fields, written as they are (`x-fairlead-instance`, ...); names and values must be valid.
    pub add: &'a [(&'a str, &'a str)],
}

/// How the body goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relay {
    /// There is none.
    None,
    /// This many bytes, as they come.
    Length(u64),
    /// Chunked in, chunked out: the raw bytes unchanged; a [`BodyReader`](super::BodyReader) tells where they end.
    Raw,
    /// Chunked in, payload out, then close (HTTP/1.0 client).
    Dechunk,
    /// Until-close in, chunks out ([`write_chunk`](super::write_chunk), at the end
    /// [`LAST_CHUNK`](super::LAST_CHUNK)).
    Chunk,
    /// Until-close in and out.
    UntilClose,
}

/// How to go on behind a head written by [`ResponseHead::write_client`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientBody {
    /// How the body goes to the client.
    pub relay: Relay,
    /// Whether the client's connection stays open afterwards, as the head has told it.
    pub keep_alive: bool,
}

const fn broken(message: &'static str) -> Reject {
    Reject::new(StatusCode::BAD_GATEWAY, message)
}

/// Refuses what cannot become a response at its first bytes. (httparse would skip empty lines; an engine that sends
/// some is out of step.)
fn begins_like_a_response(bytes: &[u8]) -> Result<(), Reject> {
    let wanted = b"HTTP/1.";
    if bytes.iter().zip(wanted).all(|(have, want)| have == want) {
        Ok(())
    } else {
        Err(broken("response does not begin with a status line of HTTP/1"))
    }
}

/// Statuses that never have a body.
fn bodiless(status: StatusCode) -> bool {
    no_framing_fields(status) || status == StatusCode::NOT_MODIFIED
}

/// Statuses that may not even speak of one.
fn no_framing_fields(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT
}

fn is_event_stream(value: &[u8]) -> bool {
    let media = value.split(|b| *b == b';').next().unwrap_or(value);
    trim(media).eq_ignore_ascii_case(b"text/event-stream")
}
