//! HTTP/2 at the edge: the frames are the `h2` crate's, the requests the HTTP/1 handlers'.
//!
//! ```text
//! Link ─▶ Io ─▶ h2 ─┬─▶ Exchange (layer) ─▶ a connection with one request, served like any other
//!                   └─▶ Exchange (layer) ─▶ ...
//! ```
//!
//! One task drives the connection; each stream is a [`Layer`](crate::runtime::Layer) that reads as a request of
//! HTTP/1.1 and takes an answer of HTTP/1.1, so nothing behind it knows the difference, and a connection of HTTP/1 pays
//! nothing. What passes is polled straight into and out of h2's streams: there is no queue between, so whoever does not
//! read stops the other side, by windows here and by TCP there.
//!
//! Left out: HTTP/2 towards engines, extended CONNECT (WebSockets over HTTP/2, RFC 8441), pushes, and trailers, which
//! end here in both directions.

mod answer;
mod exchange;
mod io;
mod request;
#[cfg(test)]
mod tests;

pub use exchange::{Exchange, Tally};
pub use io::Io;
pub use request::{Upload, write_request};

use std::time::Duration;

use h2::server::Builder;

use crate::http::HeadLimits;

/// Bytes of all streams' answers that may wait for a window or the socket, each.
const SEND_BUFFER: usize = 32 << 10;
/// Streams that were reset by this side and whose late frames are still known; those beyond are strangers' frames.
const REMEMBERED: usize = 64;
/// Requests reset by the client before they were looked at; beyond: the connection ends (ENHANCE_YOUR_CALM).
const UNSEEN_RESETS: usize = 32;
/// Streams that may be reset for faults of the client; beyond: the connection ends (ENHANCE_YOUR_CALM).
const FAULTS: usize = 128;

/// What a client sends first that knows without asking that HTTP/2 is spoken.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// GOAWAY for what does not begin with the preface.
pub const NOT_HTTP2: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// How HTTP/2 is spoken with clients.
#[derive(Debug, Clone)]
pub struct Http2Options {
    /// Speak it: to whoever begins with its preface, and over TLS to whoever asks for it.
    pub enabled: bool,
    /// Requests that a connection may have under way; beyond: REFUSED_STREAM, which clients may try again.
    pub max_concurrent_streams: u32,
    /// Bytes of a request's body that may be on their way before they are read.
    pub stream_window: u32,
    /// The same for all requests of a connection together: what it may hold of this process's memory.
    pub connection_window: u32,
    /// Time in which a request that is reset counts as withdrawn at once. A connection whose client withdraws a hundred
    /// so, and most of all that it asks, ends (ENHANCE_YOUR_CALM).
    pub withdrawal: Duration,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            enabled: true,
            max_concurrent_streams: 128,
            stream_window: 256 << 10,
            connection_window: 1 << 20,
            withdrawal: Duration::from_secs(1),
        }
    }
}

/// The largest that windows may be.
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// The least: what every connection begins with.
const MIN_WINDOW: u32 = 65_535;

impl Http2Options {
    /// What h2 is told.
    pub fn builder(&self, limits: &HeadLimits) -> Builder {
        let mut builder = Builder::new();
        let head = u32::try_from(limits.max_bytes).unwrap_or(u32::MAX);
        builder
            .max_concurrent_streams(self.max_concurrent_streams.max(1))
            .initial_window_size(self.stream_window.clamp(MIN_WINDOW, MAX_WINDOW))
            .initial_connection_window_size(self.connection_window.clamp(MIN_WINDOW, MAX_WINDOW))
            .max_header_list_size(head)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(REMEMBERED)
            .max_pending_accept_reset_streams(UNSEEN_RESETS)
            .max_local_error_reset_streams(Some(FAULTS));
        builder
    }
}

/// Whether `bytes` are the beginning of HTTP/2, or may become it.
pub fn preface(bytes: &[u8]) -> Preface {
    // Told by its first line: no request of HTTP/1 has one like it.
    const LINE: usize = 16;
    match bytes.get(..LINE) {
        Some(line) if PREFACE.starts_with(line) => Preface::Http2,
        None if !bytes.is_empty() && PREFACE.starts_with(bytes) => Preface::NeedMore,
        _ => Preface::No,
    }
}

/// See [`preface`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preface {
    /// It is something else.
    No,
    /// More bytes will tell.
    NeedMore,
    /// It is.
    Http2,
}
