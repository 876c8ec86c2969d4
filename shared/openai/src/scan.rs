//! One pass over a request body: validity, the members that routing needs, and where the prompt lies.

use std::borrow::Cow;
use std::fmt;

use crate::api::Api;
use crate::json::{self, Cursor, Fault, Key, Kind, Longs, Parsed, Span, Text, What};
use crate::place::place;
use crate::steering;

/// Where the parts of the prompt lie in the body; `None` for an absent member or `null`. If a member occurs twice
/// the last one counts, as it does for the engines' parsers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// `tools`
    pub tools: Option<Span>,
    /// `functions`, the older form of `tools`
    pub functions: Option<Span>,
    /// Anthropic's `system`, Responses' `instructions`
    pub system: Option<Span>,
    /// `messages`
    pub messages: Option<Span>,
    /// `prompt`, `input`, or `tokens` of a detokenize request
    pub text: Option<Span>,
    /// `query`, `queries`, `text_1` or `data_1`
    pub query: Option<Span>,
    /// `documents`, `items`, `text_2` or `data_2`
    pub documents: Option<Span>,
}

impl Prompt {
    /// Whether the body holds nothing that could be a prompt.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a request body says, as far as routing is concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan<'b> {
    /// `model`
    pub model: Option<Cow<'b, str>>,
    /// Where the value of `model` lies, with its quotes.
    pub model_span: Option<Span>,
    /// `stream`
    pub stream: bool,
    /// `stream_options.include_usage`
    pub include_usage: bool,
    /// The limit on generated tokens, by whichever name the API gives it. `None` too for a value that is no whole
    /// number; the engine judges those.
    pub max_tokens: Option<u64>,
    /// `n`, the number of answers asked for; as `max_tokens` for odd values
    pub n: Option<u64>,
    /// `cache_salt`
    pub cache_salt: Option<Cow<'b, str>>,
    /// `user`, or Anthropic's `metadata.user_id`
    pub user: Option<Cow<'b, str>>,
    /// A name for the conversation: `session_params.session_id`, else `session_id`, else `prompt_cache_key`
    pub session: Option<Cow<'b, str>>,
    /// `previous_response_id` of the Responses API: part of the prompt lies with whoever gave that response.
    pub previous_response: Option<Cow<'b, str>>,
    /// The first member found that steers an engine (and is not `null`). Requests with one are refused unless
    /// configured otherwise.
    pub steering: Option<&'static str>,
    /// Where the prompt lies.
    pub prompt: Prompt,
    /// Its long strings.
    pub(crate) longs: Longs,
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanError {
    /// Offset of the first byte that is wrong.
    pub offset: usize,
    /// The value it lies in, such as `messages[2].content`; empty for the body itself.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.place.is_empty() { "request body" } else { &self.place };
        write!(f, "{place}: {} (byte {})", self.what, self.offset)
    }
}

impl std::error::Error for ScanError {}

#[cold]
pub(crate) fn refuse(body: &[u8], fault: Fault) -> ScanError {
    ScanError { offset: fault.at, place: place(body, fault.at), what: fault.what.describe() }
}

pub(crate) fn check_utf8(body: &[u8]) -> Parsed<()> {
    if simdutf8::basic::from_utf8(body).is_ok() {
        return Ok(());
    }
    let at = std::str::from_utf8(body).err().map_or(0, |error| error.valid_up_to());
    Err(Fault { at, what: What::Utf8 })
}

pub(crate) fn end(cursor: &mut Cursor<'_>) -> Parsed<()> {
    cursor.ws();
    if cursor.at < cursor.body.len() { Err(cursor.fault(What::Trailing)) } else { Ok(()) }
}

/// Checks that `body` is one JSON value of any kind, by the same rules as [`scan`].
pub fn validate(body: &[u8]) -> Result<(), ScanError> {
    let run = || {
        check_utf8(body)?;
        let mut cursor = Cursor::new(body);
        cursor.skip(0)?;
        end(&mut cursor)
    };
    run().map_err(|fault| refuse(body, fault))
}

/// Reads a request body once. Refused are: anything but one JSON object, invalid UTF-8, containers nested more than
/// [`MAX_DEPTH`](crate::MAX_DEPTH) deep, and known members of a type that the API does not have. Unknown members only
/// have to be valid JSON. Nothing is allocated unless one of the strings returned holds an escape.
pub fn scan(body: &[u8], api: Api) -> Result<Scan<'_>, ScanError> {
    let mut scanner = Scanner { api, out: Scan::default(), ..Scanner::default() };
    scanner.run(body).map_err(|fault| refuse(body, fault))?;
    Ok(scanner.out)
}

/// Ranks of the members that may name a session; a higher one wins whatever their order.
const CACHE_KEY: u8 = 1;
const SESSION_ID: u8 = 2;
const SESSION_PARAMS: u8 = 3;

struct Scanner<'b> {
    api: Api,
    out: Scan<'b>,
    session_rank: u8,
    /// `max_completion_tokens` wins over `max_tokens` whatever their order.
    completion_limit: Option<Option<u64>>,
    token_limit: Option<u64>,
}

impl Default for Scanner<'_> {
    fn default() -> Self {
        Self {
            api: Api::Other,
            out: Scan::default(),
            session_rank: 0,
            completion_limit: None,
            token_limit: None,
        }
    }
}

impl<'b> Scanner<'b> {
    fn run(&mut self, body: &'b [u8]) -> Parsed<()> {
        check_utf8(body)?;
        let mut cursor = Cursor::new(body);
        cursor.object(0, "an object", |cursor, key, depth| self.member(cursor, key, depth))?;
        self.out.longs = cursor.longs;
        self.out.max_tokens = self.completion_limit.flatten().or(self.token_limit);
        end(&mut cursor)
    }

    fn member(&mut self, cursor: &mut Cursor<'b>, key: &Key<'_>, depth: u32) -> Parsed<()> {
        use Api::*;
        let api = self.api;
        match key.name {
            b"model" => {
                let start = cursor.at;
                let text = optional_text(cursor)?;
                self.out.model_span = text.map(|_| Span { start, end: cursor.at });
                self.out.model = text.map(|text| json::decode(cursor.body, text));
            }
            b"stream" => self.out.stream = optional_bool(cursor)?,
            b"stream_options" => {
                self.out.include_usage = false;
                optional_object(cursor, depth, |cursor, key, depth| {
                    if key.name == b"include_usage" {
                        self.out.include_usage = optional_bool(cursor)?;
                        return Ok(());
                    }
                    cursor.skip(depth)
                })?;
            }
            b"max_tokens" | b"max_output_tokens" => self.token_limit = optional_count(cursor)?,
            b"max_completion_tokens" => self.completion_limit = Some(optional_count(cursor)?),
            b"n" => self.out.n = optional_count(cursor)?,
            b"cache_salt" => self.out.cache_salt = string_or_null(cursor)?,
            b"user" => self.out.user = string_or_null(cursor)?,
            b"prompt_cache_key" => self.session(cursor, CACHE_KEY)?,
            b"session_id" => self.session(cursor, SESSION_ID)?,
            b"session_params" if cursor.kind()? == Kind::Object => {
                cursor.object(depth, "an object", |cursor, key, depth| match key.name {
                    b"session_id" => self.session(cursor, SESSION_PARAMS),
                    _ => cursor.skip(depth),
                })?;
            }
            b"metadata" if matches!(api, Messages | CountTokens) => {
                optional_object(cursor, depth, |cursor, key, depth| {
                    if key.name == b"user_id" {
                        self.out.user = string_or_null(cursor)?;
                        return Ok(());
                    }
                    cursor.skip(depth)
                })?;
            }
            b"previous_response_id" if api == Responses => {
                self.out.previous_response = string_or_null(cursor)?;
            }
            b"messages" if api != Responses => {
                let strict = matches!(api, Chat | Messages | CountTokens | Tokenize | Embeddings);
                self.out.prompt.messages = part(cursor, depth, strict.then_some(messages as Check))?;
            }
            b"tools" => {
                let check = (api != Other).then_some(array as Check);
                self.out.prompt.tools = part(cursor, depth, check)?;
            }
            b"functions" if api == Chat => {
                self.out.prompt.functions = part(cursor, depth, Some(array))?;
            }
            b"system" if matches!(api, Messages | CountTokens) => {
                self.out.prompt.system = part(cursor, depth, Some(content))?;
            }
            b"instructions" if api == Responses => {
                self.out.prompt.system = part(cursor, depth, Some(text))?;
            }
            b"prompt" if matches!(api, Completions | Tokenize) => {
                self.out.prompt.text = part(cursor, depth, Some(texts))?;
            }
            b"input" if api == Embeddings => self.out.prompt.text = part(cursor, depth, Some(inputs))?,
            b"input" if api == Responses => self.out.prompt.text = part(cursor, depth, Some(items))?,
            b"tokens" if api == Detokenize => self.out.prompt.text = part(cursor, depth, Some(tokens))?,
            b"query" | b"queries" | b"text_1" | b"data_1" if matches!(api, Rerank | Score) => {
                self.out.prompt.query = part(cursor, depth, Some(compared))?;
            }
            b"documents" | b"items" | b"text_2" | b"data_2" if matches!(api, Rerank | Score) => {
                self.out.prompt.documents = part(cursor, depth, Some(compared))?;
            }
            b"system" | b"instructions" if api == Other => {
                self.out.prompt.system = part(cursor, depth, None)?;
            }
            b"prompt" | b"input" if api == Other => self.out.prompt.text = part(cursor, depth, None)?,
            b"query" if api == Other => self.out.prompt.query = part(cursor, depth, None)?,
            b"documents" if api == Other => self.out.prompt.documents = part(cursor, depth, None)?,
            name => self.other(cursor, name, depth)?,
        }
        Ok(())
    }

    /// Members that only matter if they steer an engine.
    fn other(&mut self, cursor: &mut Cursor<'b>, name: &[u8], depth: u32) -> Parsed<()> {
        if steering::container(name) && cursor.kind()? == Kind::Object {
            return cursor
                .object(depth, "an object", |cursor, key, depth| self.other(cursor, key.name, depth));
        }
        if let Some(found) = steering::member(name)
            && cursor.kind()? != Kind::Null
        {
            self.out.steering.get_or_insert(found);
        }
        cursor.skip(depth)
    }

    fn session(&mut self, cursor: &mut Cursor<'b>, rank: u8) -> Parsed<()> {
        let value = string_or_null(cursor)?;
        if rank >= self.session_rank && value.is_some() {
            self.session_rank = rank;
            self.out.session = value;
        }
        Ok(())
    }
}

pub(crate) fn optional_text(cursor: &mut Cursor<'_>) -> Parsed<Option<Text>> {
    match cursor.kind()? {
        Kind::String => cursor.string().map(Some),
        Kind::Null => cursor.literal("null").map(|()| None),
        _ => Err(cursor.wrong("a string")),
    }
}

fn string_or_null<'b>(cursor: &mut Cursor<'b>) -> Parsed<Option<Cow<'b, str>>> {
    Ok(optional_text(cursor)?.map(|text| json::decode(cursor.body, text)))
}

fn optional_bool(cursor: &mut Cursor<'_>) -> Parsed<bool> {
    match cursor.kind()? {
        Kind::Bool | Kind::Null => Ok(cursor.word()?.unwrap_or(false)),
        _ => Err(cursor.wrong("a boolean")),
    }
}

/// A whole number that fits 64 bits, if it is one.
pub(crate) fn whole(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn optional_count(cursor: &mut Cursor<'_>) -> Parsed<Option<u64>> {
    match cursor.kind()? {
        Kind::Number => Ok(whole(cursor.number()?.of(cursor.body))),
        Kind::Null => cursor.literal("null").map(|()| None),
        _ => Err(cursor.wrong("a number")),
    }
}

fn optional_object<'b>(
    cursor: &mut Cursor<'b>,
    depth: u32,
    member: impl FnMut(&mut Cursor<'b>, &Key<'_>, u32) -> Parsed<()>,
) -> Parsed<()> {
    match cursor.kind()? {
        Kind::Null => cursor.literal("null"),
        _ => cursor.object(depth, "an object", member),
    }
}

/// Reads a value, refusing types that the API does not have there.
type Check = fn(&mut Cursor<'_>, u32) -> Parsed<()>;

/// A part of the prompt: its span unless it is `null`.
fn part(cursor: &mut Cursor<'_>, depth: u32, check: Option<Check>) -> Parsed<Option<Span>> {
    if cursor.kind()? == Kind::Null {
        return cursor.literal("null").map(|()| None);
    }
    let start = cursor.at;
    match check {
        Some(check) => check(cursor, depth)?,
        None => cursor.skip(depth)?,
    }
    Ok(Some(Span { start, end: cursor.at }))
}

fn text(cursor: &mut Cursor<'_>, _depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => cursor.string().map(drop),
        _ => Err(cursor.wrong("a string")),
    }
}

fn array(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::Array => cursor.skip(depth),
        _ => Err(cursor.wrong("an array")),
    }
}

fn messages(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    cursor.array(depth, "an array of messages", |cursor, depth| {
        cursor.object(depth, "a message object", message_member)
    })
}

fn message_member(cursor: &mut Cursor<'_>, key: &Key<'_>, depth: u32) -> Parsed<()> {
    match key.name {
        b"role" => text(cursor, depth),
        b"content" => match cursor.kind()? {
            Kind::Null => cursor.literal("null"),
            _ => content(cursor, depth),
        },
        b"tool_calls" => match cursor.kind()? {
            Kind::Array | Kind::Null => cursor.skip(depth),
            _ => Err(cursor.wrong("an array")),
        },
        _ => cursor.skip(depth),
    }
}

/// A string, or an array of parts.
fn content(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => cursor.string().map(drop),
        Kind::Array => cursor.array(depth, "an array", |cursor, depth| match cursor.kind()? {
            Kind::String => cursor.string().map(drop),
            _ => cursor.object(depth, "a content part (an object)", |cursor, key, depth| match key.name {
                b"type" => text(cursor, depth),
                b"text" => optional_text(cursor).map(drop),
                _ => cursor.skip(depth),
            }),
        }),
        _ => Err(cursor.wrong("a string or an array of parts")),
    }
}

/// A string, strings, token ids, or arrays of token ids.
fn texts(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => cursor.string().map(drop),
        Kind::Array => cursor.array(depth, "an array", |cursor, depth| match cursor.kind()? {
            Kind::String => cursor.string().map(drop),
            Kind::Number => cursor.number().map(drop),
            Kind::Array => tokens(cursor, depth),
            _ => Err(cursor.wrong("a string, a token id or an array of token ids")),
        }),
        _ => Err(cursor.wrong("a string or an array")),
    }
}

fn tokens(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    cursor.array(depth, "an array of token ids", |cursor, _| match cursor.kind()? {
        Kind::Number => cursor.number().map(drop),
        _ => Err(cursor.wrong("a token id")),
    })
}

/// As [`texts`], and objects for inputs that are not text.
fn inputs(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => cursor.string().map(drop),
        Kind::Object => cursor.skip(depth),
        Kind::Array => cursor.array(depth, "an array", |cursor, depth| match cursor.kind()? {
            Kind::Array => tokens(cursor, depth),
            Kind::Bool | Kind::Null => {
                Err(cursor.wrong("a string, a token id, an array of token ids or an object"))
            }
            _ => cursor.skip(depth),
        }),
        _ => Err(cursor.wrong("a string or an array")),
    }
}

/// The `input` of the Responses API: a string or an array of items.
fn items(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::String => cursor.string().map(drop),
        Kind::Array => cursor.array(depth, "an array", |cursor, depth| {
            cursor.object(depth, "an input item (an object)", |cursor, key, depth| match key.name {
                b"type" | b"role" => optional_text(cursor).map(drop),
                b"content" => match cursor.kind()? {
                    Kind::Null => cursor.literal("null"),
                    _ => content(cursor, depth),
                },
                _ => cursor.skip(depth),
            })
        }),
        _ => Err(cursor.wrong("a string or an array of items")),
    }
}

/// What a rerank or score request compares: text, token ids, content parts, or arrays of them.
fn compared(cursor: &mut Cursor<'_>, depth: u32) -> Parsed<()> {
    match cursor.kind()? {
        Kind::Bool | Kind::Number => Err(cursor.wrong("a string, an object or an array")),
        _ => cursor.skip(depth),
    }
}
