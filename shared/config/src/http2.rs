//! HTTP/2 with clients.

use crate::schema::{Check, section};
use crate::setting::Size;
use std::time::Duration;

section! {
    /// Clients that begin with HTTP/2's preface are served in it (prior knowledge), and over TLS those that ask for `h2`;
    /// everybody else speaks HTTP/1.1. `timeouts` and the limits on heads and bodies hold for each request of a
    /// connection, `max_connections` counts connections and `max_in_flight` their requests.
    pub struct Http2 {
        /// Serve it. Without it the preface is answered 505, and TLS offers HTTP/1.1 only.
        enabled: bool = true;
        /// Requests that a connection may have under way; clients are told, and a request beyond is refused in a way that
        /// lets them send it again.
        max_concurrent_streams: u32 = 128 => 1, 100_000;
        /// Bytes of a request's body that may be on their way before the gateway has read them.
        stream_window: Size = Size(256 << 10) => Size(65_535), Size::mib(1024);
        /// The same for all requests of a connection together. It bounds what a client may make the gateway hold.
        connection_window: Size = Size::mib(1) => Size(65_535), Size::mib(1024);
        /// A request that its client resets so soon, and before anything of an answer went out, counts as withdrawn. A
        /// connection with more than 100 of these, and more of these than of others, is ended with `ENHANCE_YOUR_CALM`.
        withdrawal: Duration = Duration::from_secs(1) => Duration::ZERO, Duration::from_secs(3600);
    }
}

impl Check for Http2 {}
