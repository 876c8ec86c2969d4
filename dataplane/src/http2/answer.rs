//! The answer that a handler writes in words of HTTP/1.1, taken apart again.
//!
//! It is this process's own: it is read without suspicion, but what does not make sense becomes an error all the same.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::http::{BodyReader, Framing};

/// Longest head, bytes: twice what an engine may send, and what is added to it.
pub const HEAD_MOST: usize = 256 * 1024;

/// An answer's head.
#[derive(Debug)]
pub struct Head {
    /// As h2 sends it.
    pub response: Response<()>,
    /// Finds the end of the body; done where there is none.
    pub body: BodyReader,
}

/// Where the head at the start of `bytes` ends.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// Reads the whole head `bytes`. `to_head`: the request was HEAD. `None`: it is none that HTTP/2 can have.
pub fn parse(bytes: Bytes, to_head: bool) -> Option<Head> {
    let first = memchr::memchr(b'\n', &bytes)?;
    let status = StatusCode::from_bytes(bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let mut headers = HeaderMap::with_capacity(12);
    let (mut framing, mut at) = (None, first + 1);
    while let Some(len) = memchr::memchr(b'\n', bytes.get(at..)?) {
        let line = at..(at + len).checked_sub(1)?;
        at += len + 1;
        if line.is_empty() {
            break;
        }
        let colon = memchr::memchr(b':', bytes.get(line.clone())?)?;
        let name = bytes.get(line.start..line.start + colon)?;
        let value = trim(&bytes, line.start + colon + 1, line.end);
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") || name.eq_ignore_ascii_case(b"keep-alive") => {
                continue;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"trailer") => continue,
            16 if name.eq_ignore_ascii_case(b"proxy-connection") => continue,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                framing = Some(Framing::Chunked);
                continue;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = std::str::from_utf8(&value).ok()?.parse().ok()?;
                framing = framing.or(Some(Framing::Length(length)));
            }
            _ => {}
        }
        let name = HeaderName::from_bytes(name).ok()?;
        let mut value = HeaderValue::from_maybe_shared(value).ok()?;
        // Another one each time: not to be compared with all that went before, nor kept for those that follow.
        value.set_sensitive(name.as_str() == "x-request-id");
        headers.try_append(name, value).ok()?;
    }
    let bodiless = to_head
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = if bodiless { Framing::None } else { framing? };
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Some(Head { response, body: BodyReader::new(framing) })
}

fn trim(bytes: &Bytes, from: usize, to: usize) -> Bytes {
    let value = bytes.get(from..to).unwrap_or_default().trim_ascii();
    bytes.slice_ref(value)
}
