//! Reading answers: as little of them as shows where they end and when their tokens were made.

use memchr::memmem;

/// Stands before the time in each token.
pub const MARK: &[u8] = b"\"at\":\"";
/// Digits of the time, nanoseconds of the system's monotonic clock.
pub const STAMP: usize = 20;
/// Ends a body in chunks.
pub const LAST: &[u8] = b"\r\n0\r\n\r\n";
/// Longest head, bytes.
const HEAD: usize = 16 << 10;

/// What one read showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// More is to come.
    More,
    /// The answer is complete.
    Complete,
    /// It is not what it should be: no answer, not the status 200, or one without a length.
    Bad,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Head,
    Length(usize),
    Chunks,
}

/// An answer, or the rest of a request, so far.
#[derive(Debug, Default)]
pub struct Reply {
    place: Place,
    head: Vec<u8>,
    /// The last bytes of what came: an end or a time may be cut.
    tail: Vec<u8>,
}

impl Reply {
    /// Takes the next bytes of an answer.
    pub fn feed(&mut self, bytes: &[u8]) -> Seen {
        self.feed_if(bytes, |head| head.get(9..12) == Some(b"200"))
    }

    /// Takes the next bytes of a message whose head is `fit`.
    pub fn feed_if(&mut self, bytes: &[u8], fit: impl FnMut(&[u8]) -> bool) -> Seen {
        match self.place {
            Place::Head => self.head(bytes, fit),
            Place::Length(left) => self.length(bytes, left),
            Place::Chunks => self.chunks(bytes),
        }
    }

    fn head(&mut self, bytes: &[u8], mut fit: impl FnMut(&[u8]) -> bool) -> Seen {
        let kept = self.head.len();
        let whole = if kept == 0 {
            bytes
        } else {
            self.head.extend_from_slice(bytes);
            &self.head
        };
        let Some(end) = memmem::find(whole, b"\r\n\r\n") else {
            if kept == 0 {
                self.head.extend_from_slice(bytes);
            }
            return if self.head.len() > HEAD { Seen::Bad } else { Seen::More };
        };
        let (head, body_at) = (&whole[..end + 2], (end + 4).saturating_sub(kept));
        if !fit(head) {
            return Seen::Bad;
        }
        let length = field(head, b"content-length").and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
        let chunked = field(head, b"transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked"));
        let bodiless = head.starts_with(b"GET ");
        self.head.clear();
        let body = bytes.get(body_at..).unwrap_or_default();
        match (chunked, length) {
            (true, _) => {
                self.place = Place::Chunks;
                // The end of an empty body follows the head's own line end.
                self.tail.extend_from_slice(b"\r\n");
                self.chunks(body)
            }
            (false, Some(length)) => self.length(body, length),
            (false, None) if bodiless => Seen::Complete,
            (false, None) => Seen::Bad,
        }
    }

    fn length(&mut self, bytes: &[u8], left: usize) -> Seen {
        match left.checked_sub(bytes.len()) {
            Some(0) => {
                self.place = Place::Head;
                Seen::Complete
            }
            Some(left) => {
                self.place = Place::Length(left);
                Seen::More
            }
            None => Seen::Bad,
        }
    }

    fn chunks(&mut self, bytes: &[u8]) -> Seen {
        let ended = if bytes.len() >= LAST.len() {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - LAST.len()..]);
            bytes.ends_with(LAST)
        } else {
            self.tail.extend_from_slice(bytes);
            let more = self.tail.len().saturating_sub(LAST.len());
            self.tail.drain(..more);
            self.tail == LAST
        };
        if !ended {
            return Seen::More;
        }
        self.tail.clear();
        self.place = Place::Head;
        Seen::Complete
    }
}

/// The value of a header field, whose name is given in small letters.
pub fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|&b| b == b'\n').find_map(|line| {
        let (key, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        key.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}

/// Finds the times in a stream, also where a read cuts them.
#[derive(Debug, Default)]
pub struct Stamps {
    /// What was not searched to its end.
    bytes: Vec<u8>,
}

impl Stamps {
    /// Calls `each` with every time in the next bytes.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(u64)) {
        const WHOLE: usize = MARK.len() + STAMP;
        self.bytes.extend_from_slice(bytes);
        // The beginning of a mark may stand at the end.
        let mut keep_from = self.bytes.len().saturating_sub(MARK.len() - 1);
        for at in memmem::find_iter(&self.bytes, MARK) {
            match self.bytes.get(at + MARK.len()..at + WHOLE) {
                Some(digits) => {
                    each(number(digits));
                    keep_from = keep_from.max(at + WHOLE);
                }
                None => keep_from = at,
            }
        }
        self.bytes.drain(..keep_from);
    }
}

fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0u64, |n, d| n.wrapping_mul(10).wrapping_add(u64::from(d.wrapping_sub(b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_ends_at_the_same_byte() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let empty = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        let length = "HTTP/1.1 200 OK\r\ncontent-length:  5 \r\n\r\nhello";
        for text in [chunked, empty, length] {
            for size in 1..text.len() + 1 {
                let mut reply = Reply::default();
                // Twice: an answer leaves nothing behind.
                for _ in 0..2 {
                    let mut pieces = text.as_bytes().chunks(size).peekable();
                    while let Some(piece) = pieces.next() {
                        let expected = if pieces.peek().is_some() { Seen::More } else { Seen::Complete };
                        assert_eq!(reply.feed(piece), expected, "{text:?} by {size}");
                    }
                }
            }
        }
        let bad = |text: &str| Reply::default().feed(text.as_bytes()) == Seen::Bad;
        assert!(bad("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"));
        assert!(bad("HTTP/1.1 200 OK\r\n\r\n"));
        assert!(bad("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"));
    }

    #[test]
    fn any_split_shows_the_same_times() {
        let at = |n: u64| format!("data: {{\"at\":\"{n:020}\",\"x\":\"at\"}}\n\n");
        let text = format!("{}{}{}", at(1), at(22), at(18_446_744_073_709_551_615));
        for size in 1..text.len() + 1 {
            let (mut stamps, mut seen) = (Stamps::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                stamps.feed(piece, |n| seen.push(n));
            }
            assert_eq!(seen, [1, 22, u64::MAX], "by {size}");
        }
    }
}
