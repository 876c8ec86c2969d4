//! Request heads from clients.

use http::{Method, StatusCode};

use super::fields::{
    Facts, Field, HeadLimits, Kind, MAX_FIELDS, Progress, Span, classify_request, error_counts, field_slots,
    lines_end_in_crlf, trim,
};
use super::{Framing, Parsed, Reject, Version, is_well_formed_request_id};

/// Empty lines tolerated before a request line (old clients send one behind a body).
const MAX_EMPTY_LINES: usize = 4;

/// A client's request head, parsed in place: it keeps ranges of the connection's buffer, not bytes, and is reused from
/// request to request.
///
/// Every method that takes `buf` wants the buffer that was parsed, beginning at the same byte (it may have grown, or
/// been moved in memory). With another buffer the answers are wrong but harmless.
#[derive(Debug)]
pub struct RequestHead {
    pub(super) fields: Vec<Field>,
    pub(super) facts: Facts,
    pub(super) method: Method,
    pub(super) path: Span,
    /// With its question mark; empty where there is none.
    pub(super) query: Span,
    /// Host and port of an absolute-form target; takes the place of `Host`.
    pub(super) authority: Option<Span>,
    pub(super) host: Option<Span>,
    pub(super) request_id: Option<Span>,
    pub(super) version: Version,
    pub(super) framing: Framing,
    pub(super) len: usize,
    progress: Progress,
    request_ids: u32,
    expect_continue: bool,
    upgrade: bool,
    /// Some field is there for the router.
    asks: bool,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestHead {
    /// An empty head; allocates with the first parse.
    pub const fn new() -> Self {
        Self {
            fields: Vec::new(),
            facts: Facts::EMPTY,
            method: Method::GET,
            path: Span::EMPTY,
            query: Span::EMPTY,
            authority: None,
            host: None,
            request_id: None,
            version: Version::Http11,
            framing: Framing::None,
            len: 0,
            progress: Progress::START,
            request_ids: 0,
            expect_continue: false,
            upgrade: false,
            asks: false,
        }
    }

    /// Forgets everything but its memory; call before each request.
    pub fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, ..Self::new() };
    }

    /// Looks for a complete head at the start of `buf`. May be called again and again while the buffer grows; the
    /// outcome depends on the bytes alone, not on how they were split.
    pub fn parse(&mut self, buf: &[u8], limits: &HeadLimits) -> Parsed {
        let mut progress = self.progress;
        let result = begins_like_a_request(buf).and_then(|()| {
            if !progress.made(buf, limits.max_bytes) {
                return Ok(None);
            }
            self.reset();
            self.try_parse(buf, limits)
        });
        self.progress = progress;
        match result {
            Ok(Some(len)) => {
                self.len = len;
                Parsed::Done(len)
            }
            Ok(None) if buf.len() >= limits.max_bytes => {
                Parsed::Bad(too_large("request head is larger than allowed"))
            }
            Ok(None) => Parsed::NeedMore,
            Err(reject) => Parsed::Bad(reject),
        }
    }

    fn try_parse(&mut self, buf: &[u8], limits: &HeadLimits) -> Result<Option<usize>, Reject> {
        let seen = buf.get(..limits.max_bytes).unwrap_or(buf);
        let skipped = empty_lines(seen);
        let head = seen.get(skipped..).unwrap_or(&[]);

        let mut slots = field_slots();
        let slots = slots.get_mut(..limits.max_fields.min(MAX_FIELDS)).unwrap_or_default();
        let mut request = httparse::Request::new(&mut []);
        let len = match request.parse_with_uninit_headers(head, slots) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => {
                let has_error = |lines: &[u8]| {
                    let mut slots = field_slots();
                    let slots = slots.get_mut(..limits.max_fields.min(MAX_FIELDS)).unwrap_or_default();
                    httparse::Request::new(&mut []).parse_with_uninit_headers(lines, slots).is_err()
                };
                let counts = error_counts(head, buf.len() >= limits.max_bytes, has_error);
                return if counts { Err(reject(error, head)) } else { Ok(None) };
            }
        };
        self.version = if request.version == Some(1) { Version::Http11 } else { Version::Http10 };
        self.method = method(request.method.unwrap_or_default())?;
        self.read_target(buf, request.path.unwrap_or_default().as_bytes())?;
        self.fields.reserve(request.headers.len());
        for header in request.headers.iter() {
            let field = Field {
                name: Span::of(buf, header.name.as_bytes()),
                value: Span::of(buf, trim(header.value)),
                kind: classify_request(header.name.as_bytes()),
            };
            self.facts.note(buf, &field)?;
            self.note(buf, &field)?;
            self.fields.push(field);
        }
        if !lines_end_in_crlf(buf, &self.fields, skipped + len) {
            return Err(Reject::bad_request("line does not end in CRLF"));
        }
        self.conclude(buf)?;
        Ok(Some(skipped + len))
    }

    fn read_target(&mut self, buf: &[u8], target: &[u8]) -> Result<(), Reject> {
        const BAD: Reject = Reject::bad_request("request target is not valid");
        if !target.iter().all(|b| matches!(b, b'!'..=b'~') && *b != b'#') {
            return Err(BAD);
        }
        let (authority, rest) = match target {
            [b'/', ..] => (None, target),
            b"*" if self.method == Method::OPTIONS => (None, target),
            _ => {
                let rest = after_scheme(target).ok_or(BAD)?;
                let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
                let (authority, rest) = rest.split_at_checked(end).ok_or(BAD)?;
                if !is_authority(authority) {
                    return Err(BAD);
                }
                (Some(authority), rest)
            }
        };
        let cut = memchr::memchr(b'?', rest).unwrap_or(rest.len());
        let (path, query) = rest.split_at_checked(cut).ok_or(BAD)?;
        self.authority = authority.map(|a| Span::of(buf, a));
        self.path = Span::of(buf, path);
        self.query = Span::of(buf, query);
        Ok(())
    }

    fn note(&mut self, buf: &[u8], field: &Field) -> Result<(), Reject> {
        let value = field.value.get(buf);
        match field.kind {
            Kind::Host => {
                if self.host.replace(field.value).is_some() {
                    return Err(Reject::bad_request("more than one Host field"));
                }
                if !is_authority(value) {
                    return Err(Reject::bad_request("Host is not a host name"));
                }
            }
            Kind::Expect if self.version == Version::Http11 => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Reject::new(StatusCode::EXPECTATION_FAILED, "unknown expectation"));
                }
                self.expect_continue = true;
            }
            Kind::Upgrade => self.upgrade = true,
            Kind::Ask | Kind::Key => self.asks = true,
            Kind::RequestId => {
                self.request_ids += 1;
                if self.request_ids == 1 && is_well_formed_request_id(value) {
                    self.request_id = Some(field.value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn conclude(&mut self, buf: &[u8]) -> Result<(), Reject> {
        let http11 = self.version == Version::Http11;
        if http11 && self.host.is_none() {
            return Err(Reject::bad_request("Host field is missing"));
        }
        self.framing = self.facts.framing(http11)?.unwrap_or(Framing::None);
        self.upgrade &= http11 && self.facts.connection_upgrade;
        self.facts.drop_named(buf, &mut self.fields);
        let named = self.fields.iter().filter(|f| f.kind == Kind::RequestId).count();
        if self.request_ids != 1 || named != 1 {
            self.request_id = None;
        }
        Ok(())
    }

    /// Bytes of the head, from the start of the buffer to the body.
    pub fn head_len(&self) -> usize {
        self.len
    }

    /// The method: GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The client's protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How the body's end is found; never [`Framing::UntilClose`].
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the client wants the connection kept after the answer.
    pub fn keep_alive(&self) -> bool {
        self.facts.persistent(self.version == Version::Http11)
    }

    /// The client waits for [`CONTINUE`](super::CONTINUE) before it sends the body.
    pub fn expect_continue(&self) -> bool {
        self.expect_continue
    }

    /// The client asks for another protocol. Not passed on by [`Self::write_upstream`].
    pub fn upgrade(&self) -> bool {
        self.upgrade
    }

    /// The path in origin form: begins with `/`, or is `*` (OPTIONS). Not percent-decoded.
    pub fn path<'b>(&self, buf: &'b [u8]) -> &'b str {
        if self.path.is_empty() { "/" } else { self.path.str(buf) }
    }

    /// The query with its question mark, or an empty string.
    pub fn query<'b>(&self, buf: &'b [u8]) -> &'b str {
        self.query.str(buf)
    }

    /// Host and port that the request is for: the target's, else the `Host` field's (HTTP/1.0 may have neither).
    pub fn host<'b>(&self, buf: &'b [u8]) -> Option<&'b str> {
        self.authority.or(self.host).map(|s| s.str(buf))
    }

    /// The client's own request id, if it sent one, well-formed and once.
    pub fn request_id<'b>(&self, buf: &'b [u8]) -> Option<&'b str> {
        self.request_id.map(|s| s.str(buf))
    }

    /// Value of the first field of this name (in any case), whether or not it is passed on.
    pub fn header<'b>(&self, buf: &'b [u8], name: &str) -> Option<&'b [u8]> {
        let named = |field: &&Field| field.name.get(buf).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().find(named).map(|field| field.value.get(buf))
    }

    /// The fields that ask something of the router, or name the request's session or user; values trimmed. Most requests
    /// have none.
    pub fn for_router<'b>(&self, buf: &'b [u8]) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        let fields = if self.asks { self.fields.as_slice() } else { &[] };
        let wanted = fields.iter().filter(|field| matches!(field.kind, Kind::Ask | Kind::Key));
        wanted.map(move |field| (field.name.str(buf), field.value.get(buf)))
    }

    /// All fields as the client sent them, in order; values trimmed.
    pub fn headers<'b>(&self, buf: &'b [u8]) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.fields.iter().map(move |f| (f.name.str(buf), f.value.get(buf)))
    }
}

fn too_large(message: &'static str) -> Reject {
    Reject::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message)
}

/// Refuses at the first byte what cannot become a request (TLS, say), so that nobody waits for the end of its line.
fn begins_like_a_request(buf: &[u8]) -> Result<(), Reject> {
    match buf.get(empty_lines(buf)..).unwrap_or(&[]) {
        [] | [b'\r'] => Ok(()),
        [first, ..] if first.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(first) => Ok(()),
        _ => Err(Reject::bad_request("request line expected")),
    }
}

/// How many bytes of tolerated empty lines precede the request line.
fn empty_lines(buf: &[u8]) -> usize {
    buf.chunks_exact(2).take(MAX_EMPTY_LINES).take_while(|pair| *pair == b"\r\n").count() * 2
}

fn method(name: &str) -> Result<Method, Reject> {
    Ok(match name {
        "POST" => Method::POST,
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        "DELETE" => Method::DELETE,
        "OPTIONS" => Method::OPTIONS,
        "CONNECT" | "TRACE" => {
            return Err(Reject::new(StatusCode::METHOD_NOT_ALLOWED, "method is not allowed"));
        }
        _ => return Err(Reject::new(StatusCode::NOT_IMPLEMENTED, "method is not known")),
    })
}

/// What follows `http://` or `https://`.
fn after_scheme(target: &[u8]) -> Option<&[u8]> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let (head, rest) = target.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    })
}

/// Host with optional port. User information is refused: it has no place in requests and serves only to deceive.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', ..] => match memchr::memchr(b']', text) {
            Some(end) => text.split_at(end + 1),
            None => return false,
        },
        _ => text.split_at(memchr::memchr(b':', text).unwrap_or(text.len())),
    };
    let host_ok = match host {
        [b'[', inner @ .., b']'] => {
            !inner.is_empty() && inner.iter().all(|b| b.is_ascii_alphanumeric() || b".:_~%-".contains(b))
        }
        _ => {
            !host.is_empty()
                && host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(b))
        }
    };
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    host_ok && port_ok
}

/// Translates what the parser found wrong.
fn reject(error: httparse::Error, head: &[u8]) -> Reject {
    use httparse::Error as E;
    match error {
        E::TooManyHeaders => too_large("more header fields than allowed"),
        E::Version if names_other_version(head) => {
            Reject::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "HTTP version is not supported")
        }
        E::HeaderName => Reject::bad_request("header line does not begin with a field name and a colon"),
        E::HeaderValue => Reject::bad_request("header field holds a control character"),
        E::NewLine => Reject::bad_request("line does not end in CRLF"),
        E::Token | E::Version | E::Status => Reject::bad_request("request line is not valid"),
    }
}

/// Whether the request line ends in a version of HTTP that is well-formed, so that 505 is the honest answer.
fn names_other_version(head: &[u8]) -> bool {
    let line = head.split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or(head);
    let mut words = line.split(|b| *b == b' ').skip(2);
    let version = words.next().unwrap_or_default();
    words.next().is_none()
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
}
