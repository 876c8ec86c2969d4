//! QUIC transport: identities, framing, reconnect.
//!
//! One connection per pair of processes, opened by gateway or agent to the scheduler, mutually authenticated
//! (TLS 1.3, no resumption, no 0-RTT). A [`Link`] is that connection after the hello has been accepted. Its traffic
//! runs in [`Lane`]s, so that a long snapshot never stands in front of a heartbeat:
//!
//! ```text
//!  lane       stream                                     priority
//!  Control    the client's first bidirectional stream       3
//!  Load       one unidirectional stream, or datagrams       2
//!  Delta      one unidirectional stream                     1
//!  Snapshot   one unidirectional stream per snapshot        0
//! ```
//!
//! A unidirectional stream begins with one byte that names its lane; after it, as on the control stream, come frames
//! ([`fairlead_wire::frame`]) back to back. A frame's length is checked against the limit of its kind before memory is
//! taken for it. Whoever receives a malformed frame answers with `Refuse` and closes.
//!
//! What is bounded, and what happens at the bound: each lane's send queue (frames and bytes; `try_send` says
//! [`SendError::Full`], `send` waits), what was received and not yet taken (frames and bytes; the streams' readers
//! stop, and with them, through QUIC's windows, the peer), links per listener and handshakes under way (further
//! clients are refused), time for a handshake.

mod backoff;
mod certs;
mod codec;
mod connect;
mod error;
mod files;
mod identity;
mod inbound;
mod link;
mod listen;
mod outbound;
mod refusals;
mod tls;

pub use backoff::Backoff;
pub use certs::{Certs, Written, write_certs};
pub use connect::connect;
pub use error::{ConnectError, LinkError, ListenError, SendError};
pub use identity::{ANY_NAME, Authority, Identity, IdentityError, NAME_MAX, Peer, SCHEDULER_HOST, role_str};
pub use link::{Lane, Link, LinkReceiver, LinkSender, LinkStats};
pub use listen::{Accepted, Listener, listen};
pub use refusals::Refusals;
pub use tls::LinkOptions;

#[cfg(test)]
mod tests;
