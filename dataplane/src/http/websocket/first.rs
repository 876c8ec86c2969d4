//! The first message of a client whose handshake did not say where it is to go.

use bytes::BytesMut;

use super::frame::{CLOSE, Close, FrameHead};

/// Longest payload of a control frame, bytes.
const MAX_CONTROL: u64 = 125;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Puts the first message together. What it is made of is kept as it came, for the engine; control frames on the way are
/// answered here.
#[derive(Debug)]
pub struct FirstMessage {
    max: usize,
    raw: BytesMut,
    payload: Vec<u8>,
    text: Option<bool>,
}

/// What came of looking at bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// More bytes are needed.
    Nothing,
    /// This is to be sent to the client; then look again.
    Reply(Vec<u8>),
    /// The message is complete. `true`: it is text.
    Message(bool),
    /// The client has closed; this is the answer.
    Closed(Vec<u8>),
    /// The client is to be closed.
    Refuse(Close, &'static str),
}

impl FirstMessage {
    /// For a message of at most `max` bytes, frame heads included.
    pub fn new(max: usize) -> Self {
        Self { max, raw: BytesMut::new(), payload: Vec::new(), text: None }
    }

    /// Takes whole frames from the front of `buf`.
    pub fn take(&mut self, buf: &mut BytesMut) -> Taken {
        loop {
            let Some(head) = FrameHead::parse(buf) else { return Taken::Nothing };
            let Some(mask) = head.mask else {
                return Taken::Refuse(Close::Protocol, "a client's frames are masked");
            };
            if let Some(what) = self.fault(&head) {
                return Taken::Refuse(Close::Protocol, what);
            }
            let length = usize::try_from(head.length).unwrap_or(usize::MAX);
            let whole = length.saturating_add(head.head);
            if self.raw.len().saturating_add(whole) > self.max {
                return Taken::Refuse(Close::TooBig, "the first message is too big");
            }
            if buf.len() < whole {
                return Taken::Nothing;
            }
            let frame = buf.split_to(whole);
            let masked = frame.get(head.head..).unwrap_or_default();
            let plain = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
            if head.is_control() {
                let payload: Vec<u8> = plain.collect();
                match head.opcode {
                    PING => return Taken::Reply(echo(PONG, &payload)),
                    CLOSE => return Taken::Closed(echo(CLOSE, payload.get(..2).unwrap_or_default())),
                    _ => continue,
                }
            }
            self.payload.extend(plain);
            self.raw.extend_from_slice(&frame);
            let text = *self.text.get_or_insert(head.opcode == TEXT);
            if head.fin {
                return Taken::Message(text);
            }
        }
    }

    /// What is wrong with a frame at this place.
    fn fault(&self, head: &FrameHead) -> Option<&'static str> {
        if head.reserved != 0 {
            return Some("a frame of an extension that was not agreed on");
        }
        match head.opcode {
            CLOSE | PING | PONG if !head.fin || head.length > MAX_CONTROL => Some("a control frame too long"),
            CLOSE | PING | PONG => None,
            TEXT | BINARY if self.text.is_none() => None,
            CONTINUATION if self.text.is_some() => None,
            TEXT | BINARY => Some("a message within another"),
            CONTINUATION => Some("the continuation of nothing"),
            _ => Some("a frame of an unknown kind"),
        }
    }

    /// What the message says.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Its frames, as they came.
    pub fn into_frames(self) -> BytesMut {
        self.raw
    }
}

/// A control frame as a server sends it.
fn echo(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode, payload.len() as u8];
    frame.extend_from_slice(payload);
    frame
}
