//! A strict JSON cursor that builds nothing: it moves over the bytes, checks them and reports where values lie.
//!
//! It accepts what RFC 8259 accepts, with three limits: containers nest at most [`MAX_DEPTH`] deep, a `\u` escape
//! must not be half a surrogate pair, and the bytes must be UTF-8 (checked once for the whole body before the cursor
//! starts, see `scan`). Numbers are checked for their grammar only, so their size does not matter.
//!
//! Strings are nearly all of a body; `find` goes over their text.

mod find;
mod longs;
mod text;

pub(crate) use find::text_end;
pub(crate) use longs::Longs;
use text::short;
pub(crate) use text::{decode, escape};

/// Containers that may be open at once.
pub const MAX_DEPTH: u32 = 128;

/// Keys longer than this in decoded bytes are none that anybody looks for.
const MAX_KNOWN_KEY: usize = 64;

/// A stretch of the body, in byte offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes of `body` that it names; empty where it does not fit the body.
    pub fn of(self, body: &[u8]) -> &[u8] {
        body.get(self.start..self.end).unwrap_or_default()
    }
}

/// A string's bytes between its quotes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Text {
    pub span: Span,
    /// There are escapes.
    pub escaped: bool,
    /// There are some that can be written in another way, so that its text is not what every client would write.
    pub odd: bool,
}

/// The kinds of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Object => "an object",
            Kind::Array => "an array",
            Kind::String => "a string",
            Kind::Number => "a number",
            Kind::Bool => "a boolean",
            Kind::Null => "null",
        }
    }
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Utf8,
    End,
    Expected(&'static str),
    Type { expected: &'static str, found: Kind },
    Control,
    Escape,
    Surrogate,
    Number,
    Depth,
    Trailing,
}

impl What {
    pub fn describe(self) -> String {
        match self {
            What::Utf8 => "invalid UTF-8".into(),
            What::End => "unexpected end of the body".into(),
            What::Expected(what) => format!("expected {what}"),
            What::Type { expected, found } => format!("expected {expected}, found {}", found.name()),
            What::Control => "raw control character in a string".into(),
            What::Escape => "invalid escape in a string".into(),
            What::Surrogate => "unpaired surrogate in a \\u escape".into(),
            What::Number => "malformed number".into(),
            What::Depth => format!("nested more than {MAX_DEPTH} deep"),
            What::Trailing => "unexpected bytes after the JSON value".into(),
        }
    }
}

/// Something wrong at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub at: usize,
    pub what: What,
}

pub(crate) type Parsed<T> = Result<T, Fault>;

/// A member's name: decoded, for comparing (empty if longer than any known one), and where it lies.
pub(crate) struct Key<'k> {
    pub name: &'k [u8],
    pub text: Text,
}

/// Reads JSON from `at` onwards.
pub(crate) struct Cursor<'b> {
    pub body: &'b [u8],
    pub at: usize,
    checked: bool,
    /// Noted while the body is checked, looked up afterwards.
    pub longs: Longs,
}

impl<'b> Cursor<'b> {
    /// A cursor that checks everything but UTF-8.
    pub fn new(body: &'b [u8]) -> Self {
        Self { body, at: 0, checked: false, longs: Longs::default() }
    }

    /// A cursor over a body that was checked before, with the long strings that were seen then: containers that it skips
    /// are not checked again.
    pub fn checked(body: &'b [u8], at: usize, longs: Longs) -> Self {
        Self { body, at, checked: true, longs }
    }

    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    #[cold]
    pub fn fault(&self, what: What) -> Fault {
        let what =
            if self.at >= self.body.len() && matches!(what, What::Expected(_)) { What::End } else { what };
        Fault { at: self.at.min(self.body.len()), what }
    }

    #[inline]
    pub fn ws(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Skips white space and tells what kind of value begins there.
    #[inline]
    pub fn kind(&mut self) -> Parsed<Kind> {
        self.ws();
        match self.peek() {
            Some(b'"') => Ok(Kind::String),
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            _ => Err(self.fault(What::Expected("a value"))),
        }
    }

    /// The fault of a value of the wrong kind, which the cursor stands before.
    #[cold]
    pub fn wrong(&mut self, expected: &'static str) -> Fault {
        match self.kind() {
            Ok(found) => self.fault(What::Type { expected, found }),
            Err(fault) => fault,
        }
    }

    /// Reads a string; the cursor stands on its opening quote.
    #[inline]
    pub fn string(&mut self) -> Parsed<Text> {
        let start = self.at + 1;
        if self.checked
            && let Some((end, escaped)) = self.longs.find(start)
        {
            self.at = end + 1;
            return Ok(Text { span: Span { start, end }, escaped, odd: false });
        }
        let (end, escaped) = text_end(self.body, start);
        if self.body.get(end) == Some(&b'"') {
            self.at = end + 1;
            if !self.checked {
                self.longs.note(start, end, escaped);
            }
            return Ok(Text { span: Span { start, end }, escaped, odd: false });
        }
        self.odd_string(start, end)
    }

    /// [`string`](Self::string) where something else than a quote ended the text at `at`.
    fn odd_string(&mut self, start: usize, mut at: usize) -> Parsed<Text> {
        loop {
            match self.body.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok(Text { span: Span { start, end: at }, escaped: true, odd: true });
                }
                Some(b'\\') => match escape(self.body, at) {
                    Ok((_, length)) => at += length,
                    Err(what) => return Err(Fault { at, what }),
                },
                Some(_) => return Err(Fault { at, what: What::Control }),
                None => return Err(Fault { at: self.body.len(), what: What::End }),
            }
            at = text_end(self.body, at).0;
        }
    }

    /// Reads a number; the cursor stands on its first byte.
    #[inline]
    pub fn number(&mut self) -> Parsed<Span> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.fault(What::Number)),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Span { start, end: self.at })
    }

    #[inline]
    fn digits(&mut self) -> Parsed<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.fault(What::Number)) } else { Ok(()) }
    }

    pub fn literal(&mut self, word: &'static str) -> Parsed<()> {
        if self.body.get(self.at..).unwrap_or_default().starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.fault(What::Expected("`true`, `false` or `null`")))
        }
    }

    /// Reads `true`, `false` or `null`; the cursor stands on the first letter.
    pub fn word(&mut self) -> Parsed<Option<bool>> {
        match self.peek() {
            Some(b't') => self.literal("true").map(|()| Some(true)),
            Some(b'f') => self.literal("false").map(|()| Some(false)),
            _ => self.literal("null").map(|()| None),
        }
    }

    /// Reads a member's name and the colon after it.
    #[inline]
    fn key(&mut self) -> Parsed<Text> {
        self.ws();
        if self.peek() != Some(b'"') {
            return Err(self.fault(What::Expected("a member name in quotes")));
        }
        let text = self.string()?;
        self.ws();
        if self.peek() != Some(b':') {
            return Err(self.fault(What::Expected("`:`")));
        }
        self.at += 1;
        Ok(text)
    }

    /// Checks and passes over any value. `depth` containers are open around it.
    pub fn skip(&mut self, depth: u32) -> Parsed<()> {
        if self.checked && matches!(self.kind()?, Kind::Object | Kind::Array) {
            return self.skip_container();
        }
        // Bit 0 tells whether the innermost open container is an object; MAX_DEPTH bits suffice.
        let mut objects: u128 = 0;
        let mut open = 0;
        loop {
            self.ws();
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(bracket @ (b'{' | b'[')) => {
                    if depth + open >= MAX_DEPTH {
                        return Err(self.fault(What::Depth));
                    }
                    self.at += 1;
                    self.ws();
                    let object = bracket == b'{';
                    if self.peek() == Some(bracket + 2) {
                        self.at += 1;
                    } else {
                        open += 1;
                        objects = objects << 1 | u128::from(object);
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                }
                Some(b't' | b'f' | b'n') => {
                    self.word()?;
                }
                _ => return Err(self.fault(What::Expected("a value"))),
            }
            loop {
                if open == 0 {
                    return Ok(());
                }
                let object = objects & 1 == 1;
                self.ws();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    _ if object => return Err(self.fault(What::Expected("`,` or `}`"))),
                    _ => return Err(self.fault(What::Expected("`,` or `]`"))),
                }
                self.at += 1;
                open -= 1;
                objects >>= 1;
            }
        }
    }

    /// Passes over a container that is known to be well-formed, by its brackets and strings alone.
    fn skip_container(&mut self) -> Parsed<()> {
        let mut open = 0u32;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => open += 1,
                b'}' | b']' => {
                    open = open.saturating_sub(1);
                    if open == 0 {
                        self.at += 1;
                        return Ok(());
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        Err(self.fault(What::End))
    }

    /// Walks an object's members: `member` is called with the cursor before each value and must read exactly that
    /// value. `depth` containers are open around the object; `member` gets that number plus one.
    #[inline]
    pub fn object(
        &mut self,
        depth: u32,
        expected: &'static str,
        mut member: impl FnMut(&mut Self, &Key<'_>, u32) -> Parsed<()>,
    ) -> Parsed<()> {
        self.open(b'{', depth, expected)?;
        self.ws();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let text = self.key()?;
            let mut decoded = [0; MAX_KNOWN_KEY];
            let name = if text.escaped {
                short(self.body, text, &mut decoded)
            } else {
                self.body.get(text.span.start..text.span.end).unwrap_or_default()
            };
            self.ws();
            member(self, &Key { name, text }, depth + 1)?;
            self.ws();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.fault(What::Expected("`,` or `}`"))),
            }
        }
        self.at += 1;
        Ok(())
    }

    /// Walks an array's elements, as [`Cursor::object`] does members.
    #[inline]
    pub fn array(
        &mut self,
        depth: u32,
        expected: &'static str,
        mut element: impl FnMut(&mut Self, u32) -> Parsed<()>,
    ) -> Parsed<()> {
        self.open(b'[', depth, expected)?;
        self.ws();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.ws();
            element(self, depth + 1)?;
            self.ws();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.fault(What::Expected("`,` or `]`"))),
            }
        }
        self.at += 1;
        Ok(())
    }

    #[inline]
    fn open(&mut self, bracket: u8, depth: u32, expected: &'static str) -> Parsed<()> {
        self.ws();
        if self.peek() != Some(bracket) {
            return Err(self.wrong(expected));
        }
        if depth >= MAX_DEPTH {
            return Err(self.fault(What::Depth));
        }
        self.at += 1;
        Ok(())
    }
}
