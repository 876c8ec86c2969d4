//! WebSocket (RFC 6455) without I/O: as much of it as a relay needs.
//!
//! Frames pass as bytes. Read are the opening handshake, the heads of frames ([`Frames`], which knows when a direction
//! stands between two of them), and, where a client's first message decides where it goes, that message
//! ([`FirstMessage`]). Written are the gateway's own answer to a handshake, pongs while it reads, and close frames.

mod first;
mod frame;
mod handshake;

pub use first::{FirstMessage, Taken};
pub use frame::{Close, FrameHead, Frames, close_frame};
pub use handshake::{Handshake, HandshakeError, VERSION, accept_key, switching};
