//! The chunked transfer coding (RFC 9112 section 7.1), incremental and without copies.

use super::body::{BodyError, Step};

/// The chunk that ends a body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Longest size line: digits, extensions, without CRLF.
const MAX_SIZE_LINE: u32 = 256;
/// Longest trailer section.
const MAX_TRAILERS: u32 = 8 * 1024;
/// Framing bytes tolerated beyond twice the payload plus 16 per chunk, over a whole body.
const MAX_EXCESS: u64 = 16 * 1024;
/// Most filler that [`ChunkedDecoder::inject`] writes to complete a chunk.
const MAX_FILLER: u64 = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the digits of a size.
    Size,
    /// In the extensions behind a size.
    Extension,
    /// Behind the CR of a size line.
    SizeLf,
    Data,
    /// Behind the data of a chunk.
    DataCr,
    DataLf,
    /// At the start of a trailer line or of the empty line that ends the body.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

/// Finds the payload and the end of a chunked body, whatever way the bytes are split.
///
/// The same decoder serves both ways of relaying: take the payload ranges (and frame anew), or forward the consumed
/// bytes raw and only learn where the body ends. Extensions are skipped, trailers checked and skipped.
#[derive(Clone, Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// Data bytes left in this chunk; while in `Size`, the size read so far.
    remaining: u64,
    digits: u8,
    line: u32,
    trailers: u32,
    excess: u64,
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkedDecoder {
    /// A decoder at the first byte of a body.
    pub const fn new() -> Self {
        Self { state: State::Size, remaining: 0, digits: 0, line: 0, trailers: 0, excess: 0 }
    }

    /// The whole body, with its trailers, was seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The last chunk is complete and nothing of the next one's size line was seen.
    pub fn at_chunk_start(&self) -> bool {
        self.state == State::Size && self.digits == 0
    }

    /// Data bytes of the current chunk that have not come yet.
    pub fn announced(&self) -> u64 {
        if self.state == State::Data { self.remaining } else { 0 }
    }

    /// Looks at the next bytes; returns at the first stretch of payload, at the end of the body, or when all bytes are
    /// consumed. After an error it stands where it stood before the call, so that [`inject`](Self::inject) completes
    /// what was forwarded of the steps before.
    pub fn step(&mut self, buf: &[u8]) -> Result<Step, BodyError> {
        let before = self.clone();
        self.advance(buf).inspect_err(|_| *self = before)
    }

    fn advance(&mut self, buf: &[u8]) -> Result<Step, BodyError> {
        let mut at = 0;
        while let Some(&byte) = buf.get(at) {
            match self.state {
                State::Data => {
                    let take = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buf.len() - at);
                    self.remaining -= take as u64;
                    if self.remaining == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Step { payload: at..at + take, consumed: at + take, done: false });
                }
                State::Done => break,
                _ => self.framing_byte(byte)?,
            }
            at += 1;
        }
        Ok(Step { payload: at..at, consumed: at, done: self.state == State::Done })
    }

    fn framing_byte(&mut self, byte: u8) -> Result<(), BodyError> {
        self.state = match self.state {
            State::Size => {
                self.count_line_byte()?;
                match (byte, self.digits) {
                    (b'\r', 1..) => State::SizeLf,
                    (b';', 1..) => State::Extension,
                    _ => {
                        let digit = (byte as char).to_digit(16).ok_or(BodyError::ChunkSize)?;
                        if self.digits == 16 {
                            return Err(BodyError::ChunkTooLarge);
                        }
                        self.digits += 1;
                        self.remaining = self.remaining << 4 | u64::from(digit);
                        State::Size
                    }
                }
            }
            State::Extension => {
                self.count_line_byte()?;
                match byte {
                    b'\r' => State::SizeLf,
                    b'\t' | b' '..=b'~' | 0x80.. => State::Extension,
                    _ => return Err(BodyError::ChunkFraming),
                }
            }
            State::SizeLf => {
                expect(byte, b'\n')?;
                self.end_of_size_line()?
            }
            State::DataCr => {
                expect(byte, b'\r')?;
                State::DataLf
            }
            State::DataLf => {
                expect(byte, b'\n')?;
                State::Size
            }
            State::Trailer => match byte {
                b'\r' => State::EndLf,
                _ => self.trailer_byte(byte, is_token_byte(byte), State::TrailerName)?,
            },
            State::TrailerName => match byte {
                b':' => self.trailer_byte(byte, true, State::TrailerValue)?,
                _ => self.trailer_byte(byte, is_token_byte(byte), State::TrailerName)?,
            },
            State::TrailerValue => match byte {
                b'\r' => self.trailer_byte(byte, true, State::TrailerLf)?,
                _ => {
                    let allowed = matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
                    self.trailer_byte(byte, allowed, State::TrailerValue)?
                }
            },
            State::TrailerLf => {
                expect(byte, b'\n')?;
                State::Trailer
            }
            State::EndLf => {
                expect(byte, b'\n')?;
                State::Done
            }
            State::Data | State::Done => self.state,
        };
        Ok(())
    }

    fn count_line_byte(&mut self) -> Result<(), BodyError> {
        self.line += 1;
        if self.line > MAX_SIZE_LINE { Err(BodyError::ChunkLine) } else { Ok(()) }
    }

    fn end_of_size_line(&mut self) -> Result<State, BodyError> {
        // A body of one-byte chunks with long extensions costs its reader hundreds of bytes per byte.
        let overhead = u64::from(self.line) + 3;
        let allowance = self.remaining.saturating_mul(2).saturating_add(16);
        self.excess = self.excess.saturating_add(overhead).saturating_sub(allowance);
        if self.excess > MAX_EXCESS {
            return Err(BodyError::ChunkOverhead);
        }
        self.line = 0;
        self.digits = 0;
        Ok(if self.remaining == 0 { State::Trailer } else { State::Data })
    }

    fn trailer_byte(&mut self, _byte: u8, allowed: bool, next: State) -> Result<State, BodyError> {
        if !allowed {
            return Err(BodyError::Trailer);
        }
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS { Err(BodyError::TrailersTooLong) } else { Ok(next) }
    }

    /// Writes `payload` into a stream whose raw bytes were forwarded up to where this decoder stands, so that the
    /// receiver sees well-formed chunks although the sender broke off. Afterwards the stream stands at a chunk
    /// boundary: [`LAST_CHUNK`] may follow, or the connection may be closed.
    ///
    /// A chunk that was announced must be filled: where `payload` is shorter, `filler` (say, line feeds in an event
    /// stream) makes up the rest. False, and nothing written, if the body has reached its trailers already or too much
    /// filler would be needed.
    pub fn inject(&mut self, payload: &[u8], filler: u8, out: &mut Vec<u8>) -> bool {
        let length = payload.len() as u64;
        let (prefix, open): (&[u8], Option<u64>) = match self.state {
            State::Size if self.digits == 0 => (b"", None),
            State::Size if self.remaining == 0 => {
                // Zeros were sent: more digits make them the head of any size.
                let room = 16 - u32::from(self.digits);
                if room < 16 && length >> (4 * room) != 0 {
                    return false;
                }
                (b"", None)
            }
            State::Size | State::Extension if self.remaining > 0 => (b"\r\n", Some(self.remaining)),
            State::SizeLf if self.remaining > 0 => (b"\n", Some(self.remaining)),
            State::Data => (b"", Some(self.remaining)),
            State::DataCr => (b"\r\n", None),
            State::DataLf => (b"\n", None),
            _ => return false,
        };
        if open.is_some_and(|open| open.saturating_sub(length) > MAX_FILLER) {
            return false;
        }
        if payload.is_empty() && open.is_none() && self.state == State::Size && self.digits > 0 {
            return false;
        }
        out.extend_from_slice(prefix);
        let mut rest = payload;
        if let Some(open) = open {
            let fits = usize::try_from(open).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at(fits);
            out.extend_from_slice(now);
            let missing = usize::try_from(open).unwrap_or(usize::MAX).saturating_sub(fits);
            out.resize(out.len().saturating_add(missing), filler);
            out.extend_from_slice(b"\r\n");
            rest = later;
        }
        write_chunk(rest, out);
        *self = Self { excess: self.excess, ..Self::new() };
        true
    }
}

fn expect(byte: u8, wanted: u8) -> Result<(), BodyError> {
    if byte == wanted { Ok(()) } else { Err(BodyError::ChunkFraming) }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Writes the size line of a chunk of `len` bytes; the data and CRLF must follow. `len` must not be 0, which would end
/// the body.
pub fn write_chunk_size(len: u64, out: &mut Vec<u8>) {
    let digits = (64 - len.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        let nibble = ((len >> (4 * at)) & 0xf) as u8;
        out.push(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes `data` as one chunk; nothing for empty data.
pub fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    write_chunk_size(data.len() as u64, out);
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}
