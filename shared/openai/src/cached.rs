//! The count of cached tokens in an answer, corrected as the answer passes by.
//!
//! After a hand-off the decode instance reports the whole prompt as cached, since it came from the prefill instance;
//! what the client pays for is what that one had cached. The digits are overwritten in place, padded with spaces
//! before them, where JSON allows white space: no length changes, so neither does any framing.

use std::ops::Range;

use crate::usage::Seek;

/// Names longer than this are none that is looked for.
const NAME: usize = 24;

/// Digits of the largest count.
const DIGITS: usize = 20;

/// Overwrites `prompt_tokens_details.cached_tokens` and `input_tokens_details.cached_tokens` within `usage` objects of
/// an answer that arrives in pieces, whole JSON or an event stream. Left as they are: `null`, counts with fewer digits
/// than the new one, counts that a piece's end cuts or ends with, and Anthropic's `cache_read_input_tokens`, which
/// other counts of the same object depend on. Memory and time do not depend on how long an object is.
#[derive(Debug)]
pub struct CachedPatch {
    digits: [u8; DIGITS],
    /// Where the new count begins in `digits`.
    first: usize,
    seek: Seek,
    object: Option<Object>,
}

/// Where in a usage object the pieces have got to.
#[derive(Clone, Copy, Debug, Default)]
struct Object {
    depth: u32,
    string: bool,
    escape: bool,
    /// The newest string, as written; `length` exceeds the room if it did not fit.
    name: [u8; NAME],
    length: usize,
    /// A colon came after it: what follows is its value.
    colon: bool,
    /// The object of details is open, at depth 2.
    details: bool,
}

/// What a byte in a usage object means.
enum Step {
    Nothing,
    /// The value of `cached_tokens` begins at the next byte that is no space.
    Count,
    End,
}

impl CachedPatch {
    /// A patch at the start of an answer of whose prompt `cached` tokens were cached.
    pub fn new(cached: u64) -> Self {
        let mut digits = [b'0'; DIGITS];
        let mut first = DIGITS;
        let mut rest = cached;
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            first = at;
            if rest == 0 {
                break;
            }
        }
        Self { digits, first, seek: Seek::default(), object: None }
    }

    /// Corrects the next piece; tells how many counts were overwritten.
    pub fn patch(&mut self, piece: &mut [u8]) -> usize {
        let (mut at, mut patched) = (0, 0);
        while let Some(range) = self.next(piece, &mut at) {
            self.write(&mut piece[range]);
            patched += 1;
        }
        patched
    }

    /// The ranges of the next piece that would be overwritten, for a piece that is shared; [`Self::write`] fills a
    /// copy of each.
    pub fn ranges(&mut self, piece: &[u8], mut each: impl FnMut(Range<usize>)) {
        let mut at = 0;
        while let Some(range) = self.next(piece, &mut at) {
            each(range);
        }
    }

    /// Writes the new count over the digits of an old one. Does nothing where it does not fit.
    pub fn write(&self, old: &mut [u8]) {
        let new = self.digits.get(self.first..).unwrap_or_default();
        let Some(pad) = old.len().checked_sub(new.len()) else { return };
        let (spaces, room) = old.split_at_mut(pad);
        spaces.fill(b' ');
        room.copy_from_slice(new);
    }

    /// Goes on from `at` to the next count that can be overwritten.
    fn next(&mut self, piece: &[u8], at: &mut usize) -> Option<Range<usize>> {
        loop {
            let rest = piece.get(*at..)?;
            let Some(object) = &mut self.object else {
                *at += self.seek.next(rest)?;
                self.object = Some(Object::default());
                continue;
            };
            let &byte = rest.first()?;
            match object.step(byte) {
                Step::Nothing => *at += 1,
                Step::End => {
                    self.object = None;
                    *at += 1;
                }
                Step::Count => {
                    let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                    let ended = matches!(rest.get(length), Some(b',' | b'}' | b' ' | b'\n' | b'\r' | b'\t'));
                    let start = *at;
                    *at += length;
                    if ended && length >= DIGITS - self.first {
                        return Some(start..start + length);
                    }
                }
            }
        }
    }
}

impl Object {
    fn step(&mut self, byte: u8) -> Step {
        if self.string {
            self.in_string(byte);
            return Step::Nothing;
        }
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => return Step::Nothing,
            b'"' => {
                self.string = true;
                self.length = 0;
                self.colon = false;
                return Step::Nothing;
            }
            b':' => {
                self.colon = true;
                return Step::Nothing;
            }
            b'{' | b'[' => {
                let named = matches!(self.name(), b"prompt_tokens_details" | b"input_tokens_details");
                self.details |= byte == b'{' && self.depth == 1 && self.colon && named;
                self.depth = self.depth.saturating_add(1);
            }
            b'}' | b']' => {
                self.depth -= 1;
                self.details &= self.depth >= 2;
                if self.depth == 0 {
                    return Step::End;
                }
            }
            b'0'..=b'9'
                if self.colon && self.details && self.depth == 2 && self.name() == b"cached_tokens" =>
            {
                self.colon = false;
                return Step::Count;
            }
            _ => {}
        }
        self.colon = false;
        Step::Nothing
    }

    fn in_string(&mut self, byte: u8) {
        match byte {
            _ if self.escape => self.escape = false,
            b'\\' => self.escape = true,
            b'"' => {
                self.string = false;
                return;
            }
            _ => {}
        }
        if let Some(slot) = self.name.get_mut(self.length) {
            *slot = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    fn name(&self) -> &[u8] {
        self.name.get(..self.length).unwrap_or_default()
    }
}
