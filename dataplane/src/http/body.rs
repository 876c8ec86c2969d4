//! Bodies: where the payload lies in what has arrived, and where the body ends.

use std::ops::Range;

use thiserror::Error;

use super::{ChunkedDecoder, Framing};

/// One step through the bytes of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where payload lies in the bytes that were given; may be empty.
    pub payload: Range<usize>,
    /// How many of the given bytes belong to the body so far (payload and framing). At least 1 while the body is not
    /// done and bytes were given.
    pub consumed: usize,
    /// The body is complete; what follows `consumed` belongs to the next message.
    pub done: bool,
}

/// Why a body cannot be read on. The connection it came from must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// A chunk size is missing or holds something other than hexadecimal digits.
    #[error("chunk size is not a hexadecimal number")]
    ChunkSize,
    /// A chunk size does not fit 64 bits.
    #[error("chunk size is too large")]
    ChunkTooLarge,
    /// A chunk-size line with its extensions is longer than allowed.
    #[error("chunk extension is too long")]
    ChunkLine,
    /// A control character, a bare CR or a bare LF in the framing, or chunk data longer than announced.
    #[error("chunk framing is broken")]
    ChunkFraming,
    /// The framing outweighs the payload so far that it can only be meant to cost us.
    #[error("chunks carry far more framing than data")]
    ChunkOverhead,
    /// The trailer section is longer than allowed.
    #[error("trailers are too long")]
    TrailersTooLong,
    /// A trailer line is not a header field.
    #[error("trailer is not a header field")]
    Trailer,
    /// The connection ended before the body did.
    #[error("connection ended in the middle of the body")]
    Truncated,
}

/// Finds payload and end of a body of any framing, without copying.
///
/// ```text
/// while !reader.is_done() && pos < buf.len() {
///     let step = reader.step(&buf[pos..])?;
///     use(&buf[pos..][step.payload]);
///     pos += step.consumed;
/// }
/// ```
#[derive(Clone, Debug)]
pub struct BodyReader {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Done,
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
}

impl BodyReader {
    /// A reader at the first byte behind the head.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::Chunked(ChunkedDecoder::new()),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Looks at the next bytes. Returns after the first stretch of payload, so call it until all is consumed or done.
    pub fn step(&mut self, buf: &[u8]) -> Result<Step, BodyError> {
        match &mut self.state {
            State::Done => Ok(Step { payload: 0..0, consumed: 0, done: true }),
            State::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                *left -= take as u64;
                let done = *left == 0;
                if done {
                    self.state = State::Done;
                }
                Ok(Step { payload: 0..take, consumed: take, done })
            }
            State::Chunked(decoder) => {
                let step = decoder.step(buf)?;
                if step.done {
                    self.state = State::Done;
                }
                Ok(step)
            }
            State::UntilClose => Ok(Step { payload: 0..buf.len(), consumed: buf.len(), done: false }),
        }
    }

    /// Bytes of payload that the sender has announced and not sent yet; those of the current chunk in a chunked body.
    pub fn announced(&self) -> u64 {
        match &self.state {
            State::Length(left) => *left,
            State::Chunked(decoder) => decoder.announced(),
            State::Done | State::UntilClose => 0,
        }
    }

    /// Passes over bytes that are relayed raw: how many of them belong to the body (payload and framing).
    pub fn track(&mut self, buf: &[u8]) -> Result<usize, BodyError> {
        let mut pos = 0;
        while pos < buf.len() && !self.is_done() {
            pos += self.step(buf.get(pos..).unwrap_or(&[]))?.consumed;
        }
        Ok(pos)
    }

    /// Tells the reader that the connection has ended. Right for bodies that are done or end with the connection.
    pub fn end_of_input(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            State::Length(_) | State::Chunked(_) => Err(BodyError::Truncated),
        }
    }

    /// The whole body was seen.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Bytes still to come, where the framing tells.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(n) => Some(n),
            State::Chunked(_) | State::UntilClose => None,
        }
    }

    /// The decoder of a chunked body that is not done, for [`ChunkedDecoder::inject`].
    pub fn chunked_mut(&mut self) -> Option<&mut ChunkedDecoder> {
        match &mut self.state {
            State::Chunked(decoder) => Some(decoder),
            _ => None,
        }
    }
}
