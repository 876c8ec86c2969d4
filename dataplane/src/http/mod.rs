//! HTTP/1.1 without I/O: the codec between sockets and the relay.
//!
//! Nothing here reads, writes, waits or keeps time. The caller owns the buffers; the codec says what lies in them
//! (as ranges, never as copies) and writes heads into buffers that the caller reuses. Five parts:
//!
//! - [`RequestHead`]: a client's request head, parsed in place and strictly, and the head that goes to an engine.
//! - [`ResponseHead`]: an engine's response head, and the head that goes to the client.
//! - [`BodyReader`]: where a body's payload lies and where it ends ([`ChunkedDecoder`] for chunked bodies).
//! - [`Answer`] and friends: the responses which the gateway makes itself.
//! - [`websocket`]: handshakes, heads of frames and close frames of connections that become WebSockets.
//!
//! Strictness is deliberate: whatever two HTTP implementations could read differently (two lengths, folded lines,
//! bare line feeds, unknown transfer codings) is refused and the connection closed, because the gateway sits between
//! clients that do not trust each other and engines that trust everything.
//!
//! Sources: RFC 9110 (semantics), RFC 9112 (HTTP/1.1).

mod body;
mod chunked;
mod fields;
pub mod form;
pub mod proxy;
mod request;
mod request_id;
mod response;
mod upstream;
pub mod websocket;
mod write;

#[cfg(test)]
mod tests;

pub use body::{BodyError, BodyReader, Step};
pub use chunked::{ChunkedDecoder, LAST_CHUNK, write_chunk, write_chunk_size};
pub use fields::{HeadLimits, MAX_FIELDS};
pub use request::RequestHead;
pub use request_id::{RequestId, RequestIds, is_well_formed_request_id};
pub use response::{ClientBody, ClientHead, Relay, ResponseHead};
pub use upstream::{OutgoingBody, RequestIdRule, UpstreamHead, strip_base_path};
pub use write::{Answer, CONTINUE, status_line};

use http::StatusCode;

/// Protocol version of one message. Anything else is refused with 505.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0: no chunked bodies, connections close unless asked otherwise.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How the end of a message's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body follows the head.
    None,
    /// Exactly this many bytes follow.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// Everything up to the end of the connection (responses only).
    UntilClose,
}

/// Why a head is refused. The connection must be closed after the answer: where the next message would begin is not
/// known for certain any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Status for the client (for an engine's response: always 502).
    pub status: StatusCode,
    /// What is wrong, fit for the client's eyes.
    pub message: &'static str,
}

impl Reject {
    pub(crate) const fn new(status: StatusCode, message: &'static str) -> Self {
        Self { status, message }
    }

    pub(crate) const fn bad_request(message: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

/// Outcome of looking for a head at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The head is not complete; call again when the buffer has grown (same start, more bytes).
    NeedMore,
    /// The head is complete and takes this many bytes of the buffer; the body begins behind them.
    Done(usize),
    /// The bytes cannot be accepted.
    Bad(Reject),
}
