//! TLS at the edge and to instances: rustls without I/O, on the shard that owns the connection.
//!
//! ```text
//! Link::Layered ─▶ Tls (layer) ─▶ Session (records in, records out) ─▶ rustls
//!                   └─▶ the runtime's socket
//! ```
//!
//! [`Edge`] has what clients are shown, [`Trust`] what instances must show. Files are read at the start and by the
//! control thread, never by a shard.

mod edge;
mod files;
mod layer;
mod session;
#[cfg(test)]
mod tests;
mod trust;

pub use edge::{Edge, TlsOptions};
pub use files::TlsError;
pub use layer::{Failure, Tls};
pub use trust::{Trust, UpstreamTls, https_address, place};

/// HTTP/2, as ALPN names it.
pub const H2: &[u8] = b"h2";
/// HTTP/1.1, as ALPN names it.
pub const HTTP_1: &[u8] = b"http/1.1";
