//! What can go wrong on a link, in the terms of its users.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use fairlead_wire::frame::FrameError;
use fairlead_wire::msg::{Refuse, RefuseCode};
use quinn::{ConnectionError, VarInt};

use crate::identity::IdentityError;

/// Why a link ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer sent something that is not a frame; it has been told.
    #[error("the peer sent a bad frame: {0}")]
    Frame(#[source] FrameError),
    /// The peer broke the protocol between frames; it has been told.
    #[error("the peer broke the protocol: {0}")]
    Protocol(Arc<str>),
    /// The peer refused this side.
    #[error("refused by the peer ({:?}): {}", .0.code, .0.reason)]
    Refused(Arc<Refuse>),
    /// The peer closed the link in order.
    #[error("closed by the peer: {0}")]
    Closed(Arc<str>),
    /// This side closed the link.
    #[error("closed by this side")]
    Local,
    /// Nothing was heard from the peer for the idle timeout.
    #[error("nothing heard from the peer")]
    TimedOut,
    /// The peer's address answers, but its process knows nothing of the link: it was restarted.
    #[error("the peer was restarted")]
    Restarted,
    /// Anything else the transport reports, a failed certificate check among it.
    #[error("transport: {0}")]
    Transport(Arc<str>),
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                match refuse_code(close.error_code) {
                    Some(code) => Self::Refused(Arc::new(Refuse { code, reason })),
                    None => Self::Closed(reason.into()),
                }
            }
            ConnectionError::LocallyClosed => Self::Local,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Restarted,
            other => Self::Transport(other.to_string().into()),
        }
    }
}

impl LinkError {
    /// Whether the peer sent what it may not send.
    pub fn is_peers_fault(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Protocol(_))
    }

    /// What to tell a peer whose fault this is; `None` when it is not the peer's.
    pub(crate) fn refusal(&self) -> Option<Refuse> {
        match self {
            Self::Frame(_) | Self::Protocol(_) => {
                Some(Refuse { code: RefuseCode::Malformed, reason: self.to_string() })
            }
            _ => None,
        }
    }
}

pub(crate) const REFUSE_CODES: [RefuseCode; 6] = [
    RefuseCode::Protocol,
    RefuseCode::Identity,
    RefuseCode::Invalid,
    RefuseCode::Malformed,
    RefuseCode::Capacity,
    RefuseCode::Superseded,
];
/// Application close codes of refusals start here; 0 is an orderly end.
const REFUSE_BASE: u32 = 0x100;

/// The close code that repeats a refusal, for a peer that never gets to read the message.
pub(crate) fn close_code(code: RefuseCode) -> VarInt {
    let index = REFUSE_CODES.iter().position(|&known| known == code).unwrap_or(REFUSE_CODES.len());
    VarInt::from_u32(REFUSE_BASE + u32::try_from(index).unwrap_or(0))
}

fn refuse_code(code: VarInt) -> Option<RefuseCode> {
    let index = code.into_inner().checked_sub(u64::from(REFUSE_BASE))?;
    REFUSE_CODES.get(usize::try_from(index).ok()?).copied()
}

/// Why a frame was not queued. The frame comes back.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The lane's queue is at its bound.
    #[error("the lane's queue is full")]
    Full(Bytes),
    /// The link has ended.
    #[error("the link has ended")]
    Closed(Bytes),
}

/// Why no link came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not `host:port`, or its host has no address.
    #[error("address {address:?}: {why}")]
    Resolve {
        /// As given.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// No answer in time.
    #[error("{address}: no answer within {millis} ms")]
    TimedOut {
        /// As given.
        address: String,
        /// The limit.
        millis: u128,
    },
    /// This side's identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The other end is not this cluster's scheduler.
    #[error("{address}: {why}")]
    Untrusted {
        /// Address reached.
        address: SocketAddr,
        /// What its certificate lacks.
        why: String,
    },
    /// The scheduler refused this process.
    #[error("refused by the scheduler ({:?}): {}", .0.code, .0.reason)]
    Refused(Arc<Refuse>),
    /// The connection failed otherwise, a certificate that either side does not trust among it.
    #[error("{address}: {error}")]
    Link {
        /// Address reached.
        address: SocketAddr,
        /// How it ended.
        error: LinkError,
    },
    /// The hello cannot be sent.
    #[error("hello: {0}")]
    Hello(FrameError),
    /// No local socket.
    #[error("local socket: {0}")]
    Socket(#[from] std::io::Error),
}

impl ConnectError {
    /// Whether trying again without a change of configuration is pointless in all likelihood. Callers go on trying
    /// (the scheduler may be the one that is wrong), but say so louder.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Identity(_) | Self::Untrusted { .. } | Self::Hello(_) => true,
            Self::Refused(refuse) => {
                !matches!(refuse.code, RefuseCode::Capacity | RefuseCode::Superseded | RefuseCode::Malformed)
            }
            _ => false,
        }
    }
}

/// Why a listener could not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Only schedulers listen.
    #[error("identity {0}: only a scheduler may listen")]
    Role(String),
    /// The address cannot be bound.
    #[error("{address}: {source}")]
    Bind {
        /// As given.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}
