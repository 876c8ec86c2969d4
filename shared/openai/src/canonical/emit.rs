//! Writing tags, text and whole JSON values.

use memchr::memchr;

use crate::json::{Cursor, Fault, Kind, Longs, Parsed, Text, What, escape, text_end};

/// A message; its role follows.
pub(super) const MESSAGE: u8 = b'm';
/// The name of a message's author.
pub(super) const NAME: u8 = b'n';
/// A message's reasoning, which templates render before its content.
pub(super) const REASONING: u8 = b'r';
/// Text content.
pub(super) const CONTENT: u8 = b'c';
/// A part of content other than text; its type follows.
pub(super) const PART: u8 = b'p';
/// A tool call; the function's name follows.
pub(super) const CALL: u8 = b't';
/// A tool definition; its name follows.
pub(super) const DEFINITION: u8 = b'd';
/// A member's name.
pub(super) const KEY: u8 = b'k';
/// A string value.
pub(super) const STRING: u8 = b's';
/// A number, boolean or null, as written.
pub(super) const SCALAR: u8 = b'v';
/// A prompt or input that is plain text.
pub(super) const INPUT: u8 = b'i';
/// Token ids.
pub(super) const TOKENS: u8 = b'#';
/// What a rerank or score request looks for.
pub(super) const QUERY: u8 = b'q';
/// What a rerank or score request looks through.
pub(super) const DOCUMENTS: u8 = b'o';

/// No byte of UTF-8 text has this value.
const MARK: u8 = 0xFF;

/// Pieces of at least this size go to the sink without a copy.
const DIRECT: usize = 256;
const BUFFER: usize = 2048;

/// Gathers small pieces so that the sink sees few large ones. The bytes do not depend on the gathering.
pub(super) struct Out<'b, 's> {
    body: &'b [u8],
    longs: Longs,
    sink: &'s mut dyn FnMut(&[u8]),
    length: usize,
    buffer: [u8; BUFFER],
}

impl<'b, 's> Out<'b, 's> {
    pub fn new(body: &'b [u8], longs: Longs, sink: &'s mut dyn FnMut(&[u8])) -> Self {
        Self { body, longs, sink, length: 0, buffer: [0; BUFFER] }
    }

    pub fn flush(&mut self) {
        if self.length > 0 {
            (self.sink)(&self.buffer[..self.length]);
            self.length = 0;
        }
    }

    #[inline]
    pub fn put(&mut self, piece: &[u8]) {
        if piece.len() >= DIRECT {
            self.flush();
            (self.sink)(piece);
            return;
        }
        if self.length + piece.len() > BUFFER {
            self.flush();
        }
        self.buffer[self.length..self.length + piece.len()].copy_from_slice(piece);
        self.length += piece.len();
    }

    #[inline]
    pub fn tag(&mut self, tag: u8) {
        self.put(&[MARK, tag]);
    }

    pub fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.tag(tag);
        self.put(bytes);
    }

    /// Text, escaped where JSON asks for it and as briefly as it allows, which is how most clients write it: then it is
    /// passed on as it stands.
    #[inline]
    pub fn text(&mut self, text: Text) -> Parsed<()> {
        let bytes = text.span.of(self.body);
        if !text.odd {
            self.put(bytes);
            return Ok(());
        }
        self.odd_text(bytes).map_err(|what| Fault { at: text.span.start, what })
    }

    /// The text of a string; the cursor stands on its opening quote.
    pub fn string(&mut self, cursor: &mut Cursor<'_>) -> Parsed<()> {
        let text = cursor.string()?;
        self.text(text)
    }

    /// Text with escapes that can be written in another way.
    #[cold]
    fn odd_text(&mut self, text: &[u8]) -> Result<(), What> {
        let mut at = 0;
        loop {
            let (end, _) = text_end(text, at);
            self.put(text.get(at..end).unwrap_or_default());
            if end >= text.len() {
                return Ok(());
            }
            let (character, length) = escape(text, end)?;
            self.escaped(character);
            at = end + length;
        }
    }

    fn escaped(&mut self, character: char) {
        let short = match character {
            '"' => b'"',
            '\\' => b'\\',
            '\n' => b'n',
            '\r' => b'r',
            '\t' => b't',
            '\u{8}' => b'b',
            '\u{c}' => b'f',
            '\0'..='\u{1f}' => {
                let code = character as u8;
                let digit = |n: u8| b"0123456789abcdef"[usize::from(n & 15)];
                return self.put(&[b'\\', b'u', b'0', b'0', digit(code >> 4), digit(code)]);
            }
            _ => return self.put(character.encode_utf8(&mut [0; 4]).as_bytes()),
        };
        self.put(&[b'\\', short]);
    }

    pub fn tagged_text(&mut self, tag: u8, text: Text) -> Parsed<()> {
        self.tag(tag);
        self.text(text)
    }

    /// Whether a string's bytes, as written, begin so.
    pub fn begins(&self, text: Text, prefix: &[u8]) -> bool {
        text.span.of(self.body).starts_with(prefix)
    }

    /// Whether a string reads `word`. Only an escaped string costs a decoding.
    pub fn is(&self, text: Text, word: &str) -> bool {
        let bytes = text.span.of(self.body);
        if !text.escaped || memchr(b'\\', bytes).is_none() {
            return bytes == word.as_bytes();
        }
        crate::json::decode(self.body, text) == word
    }

    /// A cursor at a value that was passed over.
    pub fn cursor(&self, at: usize) -> Cursor<'b> {
        Cursor::checked(self.body, at, self.longs)
    }
}

/// A member that never belongs to the prompt: a hint where the engine may end a cached prefix, which clients move
/// from turn to turn.
pub(super) const CACHE_CONTROL: &[u8] = b"cache_control";

/// Any JSON value, in the client's order and without its spacing.
pub(super) fn value(out: &mut Out<'_, '_>, cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => {
            out.tag(STRING);
            out.string(cursor)
        }
        Kind::Object => {
            out.tag(b'{');
            cursor.object(depth, "", |cursor, key, depth| {
                if key.name == CACHE_CONTROL {
                    return cursor.skip(depth);
                }
                out.tagged_text(KEY, key.text)?;
                value(out, cursor, depth)
            })?;
            out.tag(b'}');
            Ok(())
        }
        Kind::Array => {
            out.tag(b'[');
            cursor.array(depth, "", |cursor, depth| value(out, cursor, depth))?;
            out.tag(b']');
            Ok(())
        }
        Kind::Number | Kind::Bool | Kind::Null => {
            let start = cursor.at;
            cursor.skip(depth)?;
            let body = cursor.body;
            out.tagged(SCALAR, body.get(start..cursor.at).unwrap_or_default());
            Ok(())
        }
    }
}
