//! Messages between Fairlead's processes: types, frame layout, protocol version, size limits.
//!
//! Nothing here does I/O. Every message is an rkyv archive inside a frame with a fixed 48-byte header; a receiver
//! validates the archive before it reads a field. Times are microseconds; a time's clock is named in its field.

mod check;
pub mod frame;
mod ids;
pub mod limits;
#[allow(missing_docs, reason = "rkyv derives undocumented public archive types")]
pub mod msg;

pub use check::Reason;
pub use frame::{Body, Frame, FrameError, Header, Kind, Message, Stamp, encode, max_len};
pub use ids::{Slot, TargetId};

/// The protocol version this build speaks. A peer whose range does not contain it is refused with both versions.
pub const PROTOCOL: u16 = 1;
/// The oldest protocol version this build still accepts.
pub const PROTOCOL_MIN: u16 = 1;
