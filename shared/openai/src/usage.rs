//! Token counts, read from an answer as its bytes pass by.
//!
//! The finder looks for `"usage"` and reads the object after it. Inside a JSON string the name would be written
//! `\"usage\"`, which does not contain `"usage"`, so generated text cannot forge one. It works alike for a whole JSON
//! answer and for any cutting of a stream, and keeps nothing but the object that it is reading.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::json::{Cursor, Kind, Parsed, Span};
use crate::scan::whole;

const NAME: &[u8] = b"\"usage\"";

/// Bytes of one usage object kept at most; a longer one is passed over.
const MAX_OBJECT: usize = 4096;

static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(NAME));

/// Tokens of one request, as its engine counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the whole prompt, cached ones included.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that came from the engine's cache; `None` if the engine does not tell.
    pub cached_tokens: Option<u64>,
    /// Tokens generated.
    pub completion_tokens: u64,
}

/// Finds where usage objects open, in bytes that arrive in pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seek {
    /// Looking for the name; so many bytes of it ended the last piece.
    Name { matched: usize },
    /// The name was found; before or after its colon.
    Before { colon: bool },
}

impl Default for Seek {
    fn default() -> Self {
        Self::Name { matched: 0 }
    }
}

impl Seek {
    /// The offset in `piece` of the brace that opens the next usage object; the search then begins anew. `None` when
    /// the piece is used up.
    #[inline]
    pub fn next(&mut self, piece: &[u8]) -> Option<usize> {
        let mut rest = piece;
        while let Some(&first) = rest.first() {
            rest = match *self {
                Self::Name { matched: 0 } => match FINDER.find(rest) {
                    Some(at) => {
                        *self = Self::Before { colon: false };
                        &rest[at + NAME.len()..]
                    }
                    None => {
                        *self = Self::Name { matched: begun(rest) };
                        return None;
                    }
                },
                Self::Name { matched } => self.resume(matched, rest),
                Self::Before { colon } => match first {
                    b' ' | b'\t' | b'\r' | b'\n' => &rest[1..],
                    b':' if !colon => {
                        *self = Self::Before { colon: true };
                        &rest[1..]
                    }
                    b'{' if colon => {
                        *self = Self::default();
                        return Some(piece.len() - rest.len());
                    }
                    _ => {
                        *self = Self::default();
                        rest
                    }
                },
            };
        }
        None
    }

    /// Goes on with a name whose beginning ended the last piece. The name's only border is its quote, so that a
    /// mismatch in its middle cannot hide a second beginning before `rest`.
    fn resume<'p>(&mut self, matched: usize, rest: &'p [u8]) -> &'p [u8] {
        let wanted = &NAME[matched..];
        let length = wanted.len().min(rest.len());
        if rest[..length] != wanted[..length] {
            *self = Self::default();
            return rest;
        }
        *self = if length == wanted.len() {
            Self::Before { colon: false }
        } else {
            Self::Name { matched: matched + length }
        };
        &rest[length..]
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Looking for an object.
    #[default]
    Search,
    /// In the object.
    Object { depth: u32, string: bool, escape: bool },
}

/// Finds [`Usage`] in bytes that arrive in pieces. Any cutting gives the same result.
#[derive(Debug, Default)]
pub struct UsageWatch {
    seek: Seek,
    state: State,
    object: Vec<u8>,
    usage: Option<Usage>,
}

impl UsageWatch {
    /// A watch at the start of an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was found so far. Later objects replace earlier ones member by member, except that a zero does not
    /// replace a count.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Reads the next piece.
    #[inline]
    pub fn feed(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while !rest.is_empty() {
            rest = match self.state {
                State::Search => {
                    let Some(at) = self.seek.next(rest) else { return };
                    // Mostly it came in one piece, and is read where it lies.
                    let from = &rest[at..];
                    if let Ok((counts, length)) = read(&from[..from.len().min(MAX_OBJECT)]) {
                        if let Some(counts) = counts {
                            counts.merge_into(&mut self.usage);
                        }
                        rest = &from[length..];
                        continue;
                    }
                    self.object.clear();
                    self.state = State::Object { depth: 0, string: false, escape: false };
                    &rest[at..]
                }
                State::Object { depth, string, escape } => self.object(depth, string, escape, rest),
            };
        }
    }

    fn object<'p>(&mut self, mut depth: u32, mut string: bool, mut escape: bool, rest: &'p [u8]) -> &'p [u8] {
        let room = MAX_OBJECT - self.object.len();
        for (index, &byte) in rest.iter().enumerate() {
            if index == room {
                self.state = State::Search;
                return &rest[index..];
            }
            match byte {
                _ if escape => escape = false,
                b'\\' if string => escape = true,
                b'"' => string = !string,
                b'{' if !string => depth += 1,
                b'}' if !string => {
                    depth -= 1;
                    if depth == 0 {
                        self.state = State::Search;
                        let (last, behind) = rest.split_at(index + 1);
                        self.object.extend_from_slice(last);
                        if let Ok((Some(counts), _)) = read(&self.object) {
                            counts.merge_into(&mut self.usage);
                        }
                        return behind;
                    }
                }
                _ => {}
            }
        }
        self.object.extend_from_slice(rest);
        self.state = State::Object { depth, string, escape };
        &[]
    }
}

/// How many bytes at the end of `piece` begin the name.
#[inline]
fn begun(piece: &[u8]) -> usize {
    let tail = &piece[piece.len().saturating_sub(NAME.len() - 1)..];
    match memchr::memrchr(b'"', tail) {
        Some(at) if NAME.starts_with(&tail[at..]) => tail.len() - at,
        _ => 0,
    }
}

/// The usage of a whole JSON answer, or of the end of one.
pub fn usage_of_json(answer: &[u8]) -> Option<Usage> {
    let mut watch = UsageWatch::new();
    watch.feed(answer);
    watch.usage()
}

/// The members of a usage object that are of interest, in the names of all APIs.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// `prompt_tokens` (OpenAI) or `input_tokens` (Responses, Anthropic)
    prompt: Option<u64>,
    /// `prompt_tokens_details.cached_tokens` or `input_tokens_details.cached_tokens`; part of the prompt
    cached: Option<u64>,
    /// Anthropic's `cache_read_input_tokens`; not part of its `input_tokens`
    read: Option<u64>,
    /// Anthropic's `cache_creation_input_tokens`; not part of its `input_tokens`
    created: Option<u64>,
    completion: Option<u64>,
}

impl Counts {
    fn merge_into(self, usage: &mut Option<Usage>) {
        let into = usage.get_or_insert_default();
        let prompt = self.prompt.map(|prompt| {
            prompt.saturating_add(self.read.unwrap_or(0)).saturating_add(self.created.unwrap_or(0))
        });
        if let Some(prompt) = prompt.filter(|&prompt| prompt > 0) {
            into.prompt_tokens = prompt;
        }
        if let Some(cached) = self.cached.or(self.read) {
            into.cached_tokens = Some(match into.cached_tokens {
                Some(known) if cached == 0 => known,
                _ => cached,
            });
        }
        if let Some(completion) = self.completion.filter(|&completion| completion > 0) {
            into.completion_tokens = completion;
        }
    }
}

/// Reads the usage object that `bytes` begin with, and its length; `None` if it holds no count.
fn read(bytes: &[u8]) -> Parsed<(Option<Counts>, usize)> {
    let mut counts = Counts::default();
    let mut cursor = Cursor::new(bytes);
    cursor.object(0, "an object", |cursor, key, depth| {
        let slot = match key.name {
            b"prompt_tokens" | b"input_tokens" => &mut counts.prompt,
            b"completion_tokens" | b"output_tokens" => &mut counts.completion,
            b"cache_read_input_tokens" => &mut counts.read,
            b"cache_creation_input_tokens" => &mut counts.created,
            b"prompt_tokens_details" | b"input_tokens_details" if cursor.kind()? == Kind::Object => {
                return cursor.object(depth, "an object", |cursor, key, depth| {
                    if key.name == b"cached_tokens" {
                        return count(cursor, depth, &mut counts.cached);
                    }
                    cursor.skip(depth)
                });
            }
            _ => return cursor.skip(depth),
        };
        count(cursor, depth, slot)
    })?;
    Ok(((counts.prompt.is_some() || counts.completion.is_some()).then_some(counts), cursor.at))
}

fn count(cursor: &mut Cursor<'_>, depth: u32, slot: &mut Option<u64>) -> Parsed<()> {
    if cursor.kind()? != Kind::Number {
        return cursor.skip(depth);
    }
    let span: Span = cursor.number()?;
    if let Some(value) = whole(span.of(cursor.body)) {
        *slot = Some(value);
    }
    Ok(())
}
