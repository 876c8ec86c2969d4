//! Responses that the gateway makes itself.

use http::StatusCode;

use super::Version;

/// The interim response to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A response made by the gateway: an error, or an answer of its own routes.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Status.
    pub status: StatusCode,
    /// `Content-Type`; empty: none.
    pub content_type: &'a str,
    /// The whole body.
    pub body: &'a [u8],
    /// Send the head only, as HEAD demands.
    pub head_only: bool,
    /// The client's protocol version (what it is told about keeping the connection depends on it).
    pub version: Version,
    /// Whether the connection stays open.
    pub keep_alive: bool,
    /// Further fields (`Retry-After`, `x-request-id`, `Allow`, ...); names and values must be valid.
    pub add: &'a [(&'a str, &'a str)],
}

impl Answer<'_> {
    /// Appends the whole response.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_status_line(self.status, out);
        if !self.content_type.is_empty() {
            write_field("Content-Type", self.content_type, out);
        }
        if self.status != StatusCode::NO_CONTENT {
            write_length(self.body.len() as u64, out);
        }
        if !self.keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if self.version == Version::Http10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        for (name, value) in self.add {
            write_field(name, value, out);
        }
        out.extend_from_slice(b"\r\n");
        if !self.head_only {
            out.extend_from_slice(self.body);
        }
    }
}

macro_rules! status_lines {
    ($($code:literal $reason:literal),* $(,)?) => {
        /// The status line with its CRLF, for the statuses that the gateway itself gives.
        pub fn status_line(status: StatusCode) -> Option<&'static [u8]> {
            match status.as_u16() {
                $($code => Some(concat!("HTTP/1.1 ", $code, " ", $reason, "\r\n").as_bytes()),)*
                _ => None,
            }
        }
    };
}

status_lines! {
    200 "OK", 204 "No Content",
    400 "Bad Request", 401 "Unauthorized", 403 "Forbidden", 404 "Not Found", 405 "Method Not Allowed",
    408 "Request Timeout", 411 "Length Required", 413 "Content Too Large", 414 "URI Too Long",
    415 "Unsupported Media Type", 417 "Expectation Failed", 422 "Unprocessable Content", 429 "Too Many Requests",
    431 "Request Header Fields Too Large", 499 "Client Closed Request",
    500 "Internal Server Error", 501 "Not Implemented", 502 "Bad Gateway", 503 "Service Unavailable",
    504 "Gateway Timeout", 505 "HTTP Version Not Supported", 529 "Overloaded",
}

fn write_status_line(status: StatusCode, out: &mut Vec<u8>) {
    if let Some(line) = status_line(status) {
        out.extend_from_slice(line);
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends one field.
pub(super) fn write_field(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a `Content-Length` field.
pub(super) fn write_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    write_number(length, out);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal digits.
fn write_number(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (n % 10) as u8;
        at -= 1;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or(&[]));
}
