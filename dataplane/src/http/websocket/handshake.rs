//! The opening handshake.

use data_encoding::BASE64;
use http::Method;
use sha1::{Digest, Sha1};

use super::super::fields::{Kind, tokens};
use super::super::write::write_field;
use super::super::{Framing, RequestHead};

/// The only version of the protocol.
pub const VERSION: &str = "13";
/// What RFC 6455 has a server append to the client's key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a key before they are written in base64.
const KEY_BYTES: usize = 16;

/// A client's opening handshake, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake<'b> {
    /// Its key, in base64.
    pub key: &'b str,
    /// The subprotocol that it offers first.
    pub protocol: Option<&'b str>,
}

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// Another version of the protocol, or none: 426.
    Version,
    /// 400, for this reason.
    Bad(&'static str),
}

impl RequestHead {
    /// Whether the client asks for a WebSocket, in a good way or not.
    pub fn asks_websocket(&self, buf: &[u8]) -> bool {
        self.upgrade() && *self.method() == Method::GET && {
            let asked = self.fields.iter().filter(|field| field.kind == Kind::Upgrade);
            asked.flat_map(|field| tokens(field.value.get(buf))).any(is_websocket)
        }
    }

    /// Reads the opening handshake of a head that [asks](Self::asks_websocket) for a WebSocket.
    ///
    /// # Errors
    /// It is not one of RFC 6455.
    pub fn websocket<'b>(&self, buf: &'b [u8]) -> Result<Handshake<'b>, HandshakeError> {
        let only = |name: &str| {
            let mut values = self.headers(buf).filter(|(n, _)| n.eq_ignore_ascii_case(name));
            match (values.next(), values.next()) {
                (value, None) => Ok(value.map(|(_, value)| value)),
                _ => Err(()),
            }
        };
        if only("sec-websocket-version") != Ok(Some(VERSION.as_bytes())) {
            return Err(HandshakeError::Version);
        }
        if !matches!(self.framing(), Framing::None | Framing::Length(0)) {
            return Err(HandshakeError::Bad("a WebSocket handshake has no body"));
        }
        let key = only("sec-websocket-key").ok().flatten();
        let key = key.ok_or(HandshakeError::Bad("a WebSocket handshake has one Sec-WebSocket-Key"))?;
        let key = std::str::from_utf8(key)
            .ok()
            .filter(|key| BASE64.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == KEY_BYTES));
        let key = key.ok_or(HandshakeError::Bad("Sec-WebSocket-Key is not 16 bytes in base64"))?;
        let offered = self.header(buf, "sec-websocket-protocol").unwrap_or_default();
        let protocol = match tokens(offered).next() {
            Some(name) if name.iter().all(|byte| is_token(*byte)) => std::str::from_utf8(name).ok(),
            Some(_) => return Err(HandshakeError::Bad("Sec-WebSocket-Protocol is not a list of names")),
            None => None,
        };
        Ok(Handshake { key, protocol })
    }

    /// Has the client's offer of WebSocket extensions not passed on.
    pub fn decline_extensions(&mut self, buf: &[u8]) {
        for field in &mut self.fields {
            if field.name.get(buf).eq_ignore_ascii_case(b"sec-websocket-extensions") {
                field.kind = Kind::Drop;
            }
        }
    }
}

fn is_websocket(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"websocket")
}

/// A character of a token (RFC 9110).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The answer to a key: `Sec-WebSocket-Accept`.
pub fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID);
    BASE64.encode(&hash.finalize())
}

/// The gateway's own answer to a handshake: no extensions, the subprotocol offered first.
pub fn switching(handshake: &Handshake<'_>, request_id: &str) -> Vec<u8> {
    let mut out =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n".to_vec();
    write_field("Sec-WebSocket-Accept", &accept_key(handshake.key), &mut out);
    if let Some(protocol) = handshake.protocol {
        write_field("Sec-WebSocket-Protocol", protocol, &mut out);
    }
    write_field("x-request-id", request_id, &mut out);
    out.extend_from_slice(b"\r\n");
    out
}
