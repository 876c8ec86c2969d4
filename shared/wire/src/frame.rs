//! Frames: a 48-byte little-endian header and an rkyv archive.
//!
//! ```text
//! offset  0  magic u32 "FRL1" | version u16 | kind u16
//!         8  length u32 (of the payload) | flags u32 (0)
//!        16  epoch u64
//!        24  base_seq u64
//!        32  new_seq u64
//!        40  created_us u64 (sender's clock)
//!        48  payload, archive of the body that `kind` names
//! ```
//!
//! The header is a multiple of 16 bytes, so a frame that starts 16-byte aligned has an aligned payload. A receiver
//! reads the header, refuses a length above the kind's limit before it allocates, reads the payload into an aligned
//! buffer, and validates the archive and then the meaning ([`Body::validate`]) before it uses a field. Every failure
//! is a [`FrameError`]; no input panics.

use rkyv::rancor;
use rkyv::util::AlignedVec;

use crate::check::Reason;
use crate::msg::{
    CacheEvents, Delta, Feedback, GatewayLoad, Hello, LoadUpdate, Ping, Placements, Pong, Recollection,
    Refuse, Register, Report, Resume, SnapshotChunk, Welcome,
};
use crate::{PROTOCOL, PROTOCOL_MIN};

/// First four bytes of a frame, "FRL1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"FRL1");

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first four bytes are not the magic.
    #[error("not a frame: it starts with {0:#010x} instead of {MAGIC:#010x}")]
    BadMagic(u32),
    /// The frame's layout is of another protocol version.
    #[error("protocol version {theirs} is not spoken here ({PROTOCOL_MIN} to {ours} are)")]
    Version {
        /// Version in the frame.
        theirs: u16,
        /// Newest version of this build.
        ours: u16,
    },
    /// No such kind.
    #[error("unknown kind of frame {0}")]
    UnknownKind(u16),
    /// The payload is above its kind's limit.
    #[error("{kind:?} of {len} bytes is longer than the {max} allowed")]
    TooLong {
        /// Kind of the frame.
        kind: Kind,
        /// Payload bytes announced or present.
        len: usize,
        /// Limit.
        max: usize,
    },
    /// Fewer bytes than announced.
    #[error("frame cut short: {have} bytes of {want}")]
    Truncated {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        want: usize,
    },
    /// The archive is malformed or a field is out of range.
    #[error("invalid {kind:?}: {why}")]
    Invalid {
        /// Kind of the frame.
        kind: Kind,
        /// What and where, with the value.
        why: String,
    },
}

/// Version of the state that a frame speaks of, and when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Epoch of the scheduler; 0 where it has none.
    pub epoch: u64,
    /// Sequence number before the frame's operations.
    pub base_seq: u64,
    /// Sequence number after them; in frames without operations, the sender's newest.
    pub new_seq: u64,
    /// Sender's clock, microseconds.
    pub created_us: u64,
}

/// Decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Payload bytes.
    pub length: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// See [`Stamp::epoch`].
    pub epoch: u64,
    /// See [`Stamp::base_seq`].
    pub base_seq: u64,
    /// See [`Stamp::new_seq`].
    pub new_seq: u64,
    /// See [`Stamp::created_us`].
    pub created_us: u64,
}

impl Header {
    /// Bytes of an encoded header.
    pub const LEN: usize = 48;

    /// Reads a header and checks magic, version, kind and length.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, FrameError> {
        let magic = u32::from_le_bytes(field(bytes, 0));
        if magic != MAGIC {
            return Err(FrameError::BadMagic(magic));
        }
        let theirs = u16::from_le_bytes(field(bytes, 4));
        if !(PROTOCOL_MIN..=PROTOCOL).contains(&theirs) {
            return Err(FrameError::Version { theirs, ours: PROTOCOL });
        }
        let kind = u16::from_le_bytes(field(bytes, 6));
        let kind = Kind::from_number(kind).ok_or(FrameError::UnknownKind(kind))?;
        let length = u32::from_le_bytes(field(bytes, 8));
        check_len(kind, length as usize)?;
        let flags = u32::from_le_bytes(field(bytes, 12));
        if flags != 0 {
            return Err(FrameError::Invalid { kind, why: format!("flags: {flags:#x} is not 0") });
        }
        Ok(Self {
            kind,
            length,
            flags,
            epoch: u64::from_le_bytes(field(bytes, 16)),
            base_seq: u64::from_le_bytes(field(bytes, 24)),
            new_seq: u64::from_le_bytes(field(bytes, 32)),
            created_us: u64::from_le_bytes(field(bytes, 40)),
        })
    }

    /// Inverse of [`Header::decode`].
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&PROTOCOL.to_le_bytes());
        out[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[8..12].copy_from_slice(&self.length.to_le_bytes());
        out[12..16].copy_from_slice(&self.flags.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.base_seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.new_seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.created_us.to_le_bytes());
        out
    }

    /// The version part of the header.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            epoch: self.epoch,
            base_seq: self.base_seq,
            new_seq: self.new_seq,
            created_us: self.created_us,
        }
    }
}

fn field<const N: usize>(bytes: &[u8; Header::LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn check_len(kind: Kind, len: usize) -> Result<(), FrameError> {
    let max = max_len(kind);
    if len > max { Err(FrameError::TooLong { kind, len, max }) } else { Ok(()) }
}

/// A frame with its payload in aligned memory.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The header; its `length` is the payload's.
    pub header: Header,
    /// Archive of the body.
    pub payload: AlignedVec<16>,
}

impl Frame {
    /// A frame from a header and the payload read after it.
    pub fn new(header: Header, payload: AlignedVec<16>) -> Result<Self, FrameError> {
        if payload.len() != header.length as usize {
            return Err(FrameError::Truncated { have: payload.len(), want: header.length as usize });
        }
        Ok(Self { header, payload })
    }

    /// Reads a frame that fills `bytes` (a datagram).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some((head, rest)) = bytes.split_first_chunk::<{ Header::LEN }>() else {
            return Err(FrameError::Truncated { have: bytes.len(), want: Header::LEN });
        };
        let header = Header::decode(head)?;
        let want = header.length as usize;
        if rest.len() < want {
            return Err(FrameError::Truncated { have: rest.len(), want });
        }
        if rest.len() > want {
            let why = format!("length: {want}, but {} bytes follow the header", rest.len());
            return Err(FrameError::Invalid { kind: header.kind, why });
        }
        let mut payload = AlignedVec::with_capacity(want);
        payload.extend_from_slice(rest);
        Self::new(header, payload)
    }

    /// Header and payload as they travel.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.wire_len());
        out.extend_from_slice(&self.header.encode());
        out.extend_from_slice(&self.payload);
        out
    }

    /// Bytes of the encoded frame.
    pub fn wire_len(&self) -> usize {
        Header::LEN + self.payload.len()
    }

    /// Kind of the payload.
    pub fn kind(&self) -> Kind {
        self.header.kind
    }

    /// The archive, read in place after its structure is validated. Ranges of fields are not checked here.
    pub fn access<T: Body>(&self) -> Result<&T::Archive, FrameError> {
        if self.header.kind != T::KIND {
            let why = format!("kind: expected {:?}", T::KIND);
            return Err(FrameError::Invalid { kind: self.header.kind, why });
        }
        T::access(&self.payload)
    }

    /// The body as an owned value, structure and meaning validated.
    pub fn body<T: Body>(&self) -> Result<T, FrameError> {
        if self.header.kind != T::KIND {
            let why = format!("kind: expected {:?}", T::KIND);
            return Err(FrameError::Invalid { kind: self.header.kind, why });
        }
        let body = T::read(&self.payload)?;
        body.validate().map_err(|reason| FrameError::Invalid { kind: T::KIND, why: reason.0 })?;
        Ok(body)
    }
}

/// A message body: what one [`Kind`] of frame carries.
pub trait Body: Sized {
    /// Kind of the frame.
    const KIND: Kind;
    /// Form in the frame.
    type Archive;

    /// Checks the ranges of all fields; the reason names field and value.
    fn validate(&self) -> Result<(), Reason>;
    /// The archive.
    fn archive(&self) -> Result<AlignedVec<16>, FrameError>;
    /// Validates the archive's structure and lends it.
    fn access(payload: &AlignedVec<16>) -> Result<&Self::Archive, FrameError>;
    /// Validates the archive's structure and copies the value out.
    fn read(payload: &AlignedVec<16>) -> Result<Self, FrameError>;
}

/// Makes a frame. A body that a receiver would refuse is refused here.
pub fn encode<T: Body>(body: &T, stamp: Stamp) -> Result<Frame, FrameError> {
    body.validate().map_err(|reason| FrameError::Invalid { kind: T::KIND, why: reason.0 })?;
    let payload = body.archive()?;
    check_len(T::KIND, payload.len())?;
    let header = Header {
        kind: T::KIND,
        length: payload.len() as u32,
        flags: 0,
        epoch: stamp.epoch,
        base_seq: stamp.base_seq,
        new_seq: stamp.new_seq,
        created_us: stamp.created_us,
    };
    Ok(Frame { header, payload })
}

/// Largest payload of a kind, bytes.
pub const fn max_len(kind: Kind) -> usize {
    match kind {
        Kind::Ping | Kind::Pong | Kind::Resume | Kind::Welcome => 128,
        Kind::Hello | Kind::Refuse => 4 << 10,
        Kind::Register | Kind::Report => 512 << 10,
        Kind::GatewayLoad => 512 << 10,
        Kind::Feedback | Kind::Placements | Kind::LoadUpdate | Kind::Recollection | Kind::CacheEvents => {
            1 << 20
        }
        Kind::Delta => 2 << 20,
        Kind::Snapshot => 4 << 20,
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $number:literal,)+) => {
        /// What a frame carries.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $variant = $number,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)+];

            /// The kind of that number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        /// A decoded message of any kind.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "one at a time is taken from its frame and handled")]
        pub enum Message {
            $($(#[$doc])* $variant($body),)+
        }

        impl Message {
            /// Kind of the frame it travels in.
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$variant(_) => Kind::$variant,)+
                }
            }

            /// Makes a frame of the message.
            pub fn encode(&self, stamp: Stamp) -> Result<Frame, FrameError> {
                match self {
                    $(Self::$variant(body) => encode(body, stamp),)+
                }
            }
        }

        impl Frame {
            /// The message, structure and meaning validated.
            pub fn message(&self) -> Result<Message, FrameError> {
                match self.header.kind {
                    $(Kind::$variant => self.body::<$body>().map(Message::$variant),)+
                }
            }
        }

        $(
            impl From<$body> for Message {
                fn from(body: $body) -> Self {
                    Self::$variant(body)
                }
            }

            impl Body for $body {
                const KIND: Kind = Kind::$variant;
                type Archive = <$body as rkyv::Archive>::Archived;

                fn validate(&self) -> Result<(), Reason> {
                    crate::check::Check::check(self)
                }

                fn archive(&self) -> Result<AlignedVec<16>, FrameError> {
                    rkyv::api::high::to_bytes_in::<_, rancor::Error>(self, AlignedVec::<16>::new())
                        .map_err(|error| invalid(Self::KIND, &error))
                }

                fn access(payload: &AlignedVec<16>) -> Result<&Self::Archive, FrameError> {
                    rkyv::access::<Self::Archive, rancor::Error>(payload)
                        .map_err(|error| invalid(Self::KIND, &error))
                }

                fn read(payload: &AlignedVec<16>) -> Result<Self, FrameError> {
                    rkyv::from_bytes::<Self, rancor::Error>(payload)
                        .map_err(|error| invalid(Self::KIND, &error))
                }
            }
        )+
    };
}

bodies! {
    /// Opens a connection.
    Hello(Hello) = 1,
    /// Accepts it.
    Welcome(Welcome) = 2,
    /// Ends it with a reason.
    Refuse(Refuse) = 3,
    /// Heartbeat and clock probe.
    Ping(Ping) = 4,
    /// Answer to a ping.
    Pong(Pong) = 5,
    /// An instance is there.
    Register(Register) = 6,
    /// State of an engine.
    Report(Report) = 7,
    /// Reservations of a gateway.
    GatewayLoad(GatewayLoad) = 8,
    /// Prompts sent by a gateway.
    Placements(Placements) = 9,
    /// Piece of a snapshot.
    Snapshot(SnapshotChunk) = 10,
    /// Sequenced operations.
    Delta(Delta) = 11,
    /// What a gateway remembers of the last epoch.
    Recollection(Recollection) = 12,
    /// Deltas were missed.
    Resume(Resume) = 13,
    /// Load of engines and of other gateways.
    LoadUpdate(LoadUpdate) = 14,
    /// Changes of an engine's KV cache.
    CacheEvents(CacheEvents) = 15,
    /// What answers showed: cache hits, and what work costs.
    Feedback(Feedback) = 16,
}

fn invalid(kind: Kind, error: &rancor::Error) -> FrameError {
    // The validator's message can span lines; a reason is one line.
    let why = error.to_string();
    FrameError::Invalid { kind, why: why.lines().next().unwrap_or("malformed archive").to_owned() }
}
