//! Heads of frames.

/// Longest head of a frame, bytes.
const MAX_HEAD: usize = 14;
/// Longest reason in a close frame, bytes: a control frame carries 125, two of them are the code.
const MAX_REASON: usize = 123;
/// Opcode of a close frame; those from 8 up are control frames.
pub(super) const CLOSE: u8 = 8;

/// Why a connection is closed (RFC 6455, 7.4.1): the codes that the gateway itself gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Close {
    /// The gateway shuts down.
    GoingAway = 1001,
    /// Not WebSocket.
    Protocol = 1002,
    /// Text that is not UTF-8.
    NotText = 1007,
    /// Something that the client may not ask for.
    Policy = 1008,
    /// A message that is too big.
    TooBig = 1009,
    /// The engine's or the gateway's fault.
    Internal = 1011,
}

/// The head of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// The message ends with it.
    pub fin: bool,
    /// The three bits kept for extensions.
    pub reserved: u8,
    /// What it is.
    pub opcode: u8,
    /// What its payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// Bytes of its payload.
    pub length: u64,
    /// Bytes of the head.
    pub head: usize,
}

impl FrameHead {
    /// Reads the head at the start of `buf`; `None` while it is not whole.
    pub fn parse(buf: &[u8]) -> Option<Self> {
        let &[first, second, ref rest @ ..] = buf else { return None };
        let (length, wide) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 2),
            127 => (u64::from_be_bytes(*rest.first_chunk()?), 8),
            length => (u64::from(length), 0),
        };
        let masked = second & 0x80 != 0;
        let mask = if masked { Some(*rest.get(wide..)?.first_chunk()?) } else { None };
        Some(Self {
            fin: first & 0x80 != 0,
            reserved: first >> 4 & 7,
            opcode: first & 0xf,
            mask,
            length,
            head: 2 + wide + if masked { 4 } else { 0 },
        })
    }

    /// Whether it is a control frame.
    pub fn is_control(&self) -> bool {
        self.opcode >= CLOSE
    }
}

/// Follows the frames of one direction by their heads, however they are cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// The beginning of a head that was cut.
    part: [u8; MAX_HEAD],
    have: usize,
    /// Bytes of the current payload still to come.
    left: u64,
    closing: bool,
}

impl Frames {
    /// Passes over bytes.
    pub fn track(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let step = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= step as u64;
                bytes = bytes.get(step..).unwrap_or_default();
                continue;
            }
            let taken = if self.have == 0
                && let Some(head) = FrameHead::parse(bytes)
            {
                self.begin(&head);
                head.head
            } else {
                self.put_together(bytes)
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    /// Adds to a head that was cut; how many bytes it takes.
    fn put_together(&mut self, bytes: &[u8]) -> usize {
        let before = self.have;
        for (slot, byte) in self.part.iter_mut().skip(before).zip(bytes) {
            *slot = *byte;
            self.have += 1;
        }
        let Some(head) = self.part.get(..self.have).and_then(FrameHead::parse) else {
            return self.have - before;
        };
        self.have = 0;
        self.begin(&head);
        // What was cut was too little for a head, so it ends in these bytes.
        head.head.saturating_sub(before)
    }

    fn begin(&mut self, head: &FrameHead) {
        self.left = head.length;
        self.closing |= head.opcode == CLOSE;
    }

    /// Whether what has passed ends where a frame does.
    pub fn between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Whether a close frame has passed: nothing more may follow.
    pub fn closed(&self) -> bool {
        self.closing && self.between()
    }
}

/// A close frame as a server sends it. A reason that is too long is cut.
pub fn close_frame(code: Close, reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = reason.get(..end).unwrap_or_default().as_bytes();
    let mut frame = vec![0x80 | CLOSE, 2 + reason.len() as u8];
    frame.extend_from_slice(&(code as u16).to_be_bytes());
    frame.extend_from_slice(reason);
    frame
}
