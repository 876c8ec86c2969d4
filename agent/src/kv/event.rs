//! The engines' KV-cache events, as they are written by vLLM and SGLang.
//!
//! A payload is `[time, [events], data-parallel rank or nil]`. An event is a positional array (vLLM up to 0.23, SGLang up
//! to 0.5.19) or a map with a `type` (from then on). Positions and keys that are not known are passed over, fields that
//! are absent have their default: engines add some with every release. Only what an event means nothing without must be
//! there.
//!
//! Decoding borrows from the payload and allocates nothing, whatever lengths the payload claims. An event that makes no
//! sense is an error of its own: those beside it are still read.

use super::msgpack::{Head, Malformed, Reader};

/// Largest page, tokens.
pub const MAX_PAGE: u32 = fairlead_wire::limits::MAX_BLOCK_SIZE;

/// An engine's name for a page and all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageHash<'a> {
    /// An integer; a negative one in two's complement.
    Int(u64),
    /// A digest.
    Bytes(&'a [u8]),
}

impl PageHash<'_> {
    /// The 64 bits by which a page is found again. Of a digest its last eight bytes as a big-endian number, which is also
    /// how vLLM shortens one.
    pub fn key(self) -> u64 {
        match self {
            PageHash::Int(value) => value,
            PageHash::Bytes(digest) => match digest.last_chunk() {
                Some(last) => u64::from_be_bytes(*last),
                None => digest.iter().fold(digest.len() as u64, |key, byte| key << 8 | u64::from(*byte)),
            },
        }
    }
}

/// The hashes of an event's pages.
#[derive(Clone, Copy, Debug)]
pub struct Hashes<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Hashes<'a> {
    fn check(span: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(span);
        let left = reader.array_len("block_hashes")?;
        let all = Self { left, reader };
        for _ in 0..left {
            read_hash(&mut reader, "block_hashes")?.ok_or(Malformed::Type { field: "block_hashes" })?;
        }
        Ok(all)
    }

    /// Number of pages not yet read.
    pub fn len(&self) -> u32 {
        self.left
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl<'a> Iterator for Hashes<'a> {
    type Item = PageHash<'a>;

    fn next(&mut self) -> Option<PageHash<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Checked before.
        read_hash(&mut self.reader, "block_hashes").ok().flatten()
    }
}

fn read_hash<'a>(reader: &mut Reader<'a>, field: &'static str) -> Result<Option<PageHash<'a>>, Malformed> {
    match reader.head()? {
        Head::Nil => Ok(None),
        Head::Int { bits, .. } => Ok(Some(PageHash::Int(bits))),
        Head::Bytes(digest) => Ok(Some(PageHash::Bytes(digest))),
        _ => Err(Malformed::Type { field }),
    }
}

/// The token ids of an event's pages, in order.
///
/// Under EAGLE, SGLang writes each as a pair with the id that follows it; of a pair the first counts.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Tokens<'a> {
    fn check(span: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(span);
        let left = reader.array_len("token_ids")?;
        let all = Self { left, reader };
        for _ in 0..left {
            read_token(&mut reader)?;
        }
        Ok(all)
    }

    /// Number of tokens not yet read.
    pub fn len(&self) -> u32 {
        self.left
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl Iterator for Tokens<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        // Checked before.
        read_token(&mut self.reader).ok()
    }
}

fn read_token(reader: &mut Reader) -> Result<u32, Malformed> {
    const FIELD: &str = "token_ids";
    let mut head = reader.head()?;
    if head == Head::Array(2) {
        head = reader.head()?;
        reader.skip()?;
    }
    match head {
        Head::Int { bits, negative: false } => {
            u32::try_from(bits).map_err(|_| Malformed::Range { field: FIELD, value: bits })
        }
        Head::Int { bits, .. } => Err(Malformed::Range { field: FIELD, value: bits }),
        _ => Err(Malformed::Type { field: FIELD }),
    }
}

/// What distinguishes pages of the same tokens: one entry a page, nil or a list.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtraKeys<'a> {
    span: Option<&'a [u8]>,
}

/// What the extra keys of one page say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra<'a> {
    /// Cache salt of the request.
    pub salt: Option<&'a str>,
    /// The page holds something that token ids do not tell, an image for one.
    pub opaque: bool,
}

impl<'a> ExtraKeys<'a> {
    /// What is said of each page, in order; as many as were written.
    pub fn pages(self, lora: Option<&'a str>) -> impl Iterator<Item = Extra<'a>> {
        let mut reader = Reader::new(self.span.unwrap_or(&[]));
        let pages = match reader.head() {
            Ok(Head::Array(pages)) => pages,
            _ => 0,
        };
        (0..pages).map_while(move |page| {
            let mut keys = Reader::new(reader.skip().ok()?);
            Some(match keys.head().ok()? {
                Head::Array(len) => Self::page(keys, len, lora, page == 0),
                Head::Nil => Extra::default(),
                _ => Extra { salt: None, opaque: true },
            })
        })
    }

    /// `[adapter?, [multi-modal id, offset]..., salt?]`; the salt stands with a prompt's first page alone.
    fn page(mut keys: Reader<'a>, len: u32, lora: Option<&'a str>, first: bool) -> Extra<'a> {
        let mut extra = Extra::default();
        for at in 0..len {
            let Ok(head) = keys.head() else {
                return Extra { salt: None, opaque: true };
            };
            match head {
                Head::Nil => {}
                Head::Text(text) if at == 0 && lora.is_some_and(|lora| lora.as_bytes() == text) => {}
                // An adapter's number, of versions that do not write its name here.
                Head::Int { .. } if at == 0 && lora.is_some() => {}
                Head::Text(text) if first && at + 1 == len => match std::str::from_utf8(text) {
                    Ok(salt) => extra.salt = Some(salt),
                    Err(_) => extra.opaque = true,
                },
                // What follows inside it does not matter any more.
                _ => return Extra { salt: None, opaque: true },
            }
        }
        extra
    }
}

/// Pages were stored, each following the one before it.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Names of the pages.
    pub hashes: Hashes<'a>,
    /// The page before the first; `None` at a prompt's start.
    pub parent: Option<PageHash<'a>>,
    /// Token ids of all pages.
    pub tokens: Tokens<'a>,
    /// Tokens of a page; the last may have fewer.
    pub block_size: u32,
    /// Whether an adapter was used, as far as its number tells.
    pub lora_id: bool,
    /// Name of the adapter.
    pub lora_name: Option<&'a str>,
    /// Where the pages lie; `None` is the GPU.
    pub medium: Option<&'a str>,
    /// Cache salt, where it has a field of its own.
    pub salt: Option<&'a str>,
    /// See [`ExtraKeys`].
    pub extra_keys: ExtraKeys<'a>,
    /// KV group of a hybrid model.
    pub group: Option<u64>,
    /// What the group's layers keep.
    pub kind: Option<&'a str>,
    /// The pages lie somewhere else than in this engine.
    pub remote: bool,
}

/// Pages are gone.
#[derive(Clone, Copy, Debug)]
pub struct Removed<'a> {
    /// Names of the pages.
    pub hashes: Hashes<'a>,
    /// Where they lay; `None` is the GPU.
    pub medium: Option<&'a str>,
    /// KV group of a hybrid model.
    pub group: Option<u64>,
    /// They lay somewhere else than in this engine.
    pub remote: bool,
}

/// One change of an engine's cache.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Pages were stored, or used again.
    Stored(Stored<'a>),
    /// Pages are gone.
    Removed(Removed<'a>),
    /// Nothing is left.
    Cleared,
    /// Of a type that is not known here.
    Other,
}

/// The fields of an event while they are collected.
#[derive(Default)]
struct Fields<'a> {
    hashes: Option<&'a [u8]>,
    parent: Option<PageHash<'a>>,
    tokens: Option<&'a [u8]>,
    block_size: Option<u64>,
    lora_id: bool,
    lora_name: Option<&'a str>,
    medium: Option<&'a str>,
    salt: Option<&'a str>,
    extra_keys: ExtraKeys<'a>,
    group: Option<u64>,
    kind: Option<&'a str>,
    remote: bool,
}

/// Fields of a positional event after its type.
const STORED: [&str; 11] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
];
const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];

impl<'a> Fields<'a> {
    fn read(&mut self, field: &str, span: &'a [u8]) -> Result<(), Malformed> {
        let mut value = Reader::new(span);
        match field {
            "block_hashes" => self.hashes = Some(span),
            "token_ids" => self.tokens = Some(span),
            "parent_block_hash" => self.parent = read_hash(&mut value, "parent_block_hash")?,
            "block_size" => self.block_size = value.whole("block_size")?,
            "lora_id" => self.lora_id = value.head()? != Head::Nil,
            "lora_name" => self.lora_name = value.text("lora_name")?.filter(|name| !name.is_empty()),
            "medium" => self.medium = value.text("medium")?,
            "cache_salt" => self.salt = value.text("cache_salt")?,
            "extra_keys" => self.extra_keys = ExtraKeys { span: Some(span) },
            "group_idx" => self.group = value.whole("group_idx")?,
            "kv_cache_spec_kind" => self.kind = value.text("kv_cache_spec_kind")?,
            "locality" => {
                self.remote =
                    value.text("locality")?.is_some_and(|place| place.eq_ignore_ascii_case("REMOTE"));
            }
            _ => {}
        }
        Ok(())
    }

    fn stored(self) -> Result<Event<'a>, Malformed> {
        let missing = |field| Malformed::Missing { field };
        let hashes = Hashes::check(self.hashes.ok_or(missing("block_hashes"))?)?;
        let tokens = Tokens::check(self.tokens.ok_or(missing("token_ids"))?)?;
        let size = self.block_size.ok_or(missing("block_size"))?;
        let out_of_range = |field, value| Malformed::Range { field, value };
        let block_size = u32::try_from(size)
            .ok()
            .filter(|size| (1..=MAX_PAGE).contains(size))
            .ok_or(out_of_range("block_size", size))?;
        // Only the last page may be short, and none may be empty.
        if u64::from(tokens.len().div_ceil(block_size)) != u64::from(hashes.len()) {
            return Err(out_of_range("token_ids", tokens.len().into()));
        }
        Ok(Event::Stored(Stored {
            hashes,
            parent: self.parent,
            tokens,
            block_size,
            lora_id: self.lora_id,
            lora_name: self.lora_name,
            medium: self.medium,
            salt: self.salt,
            extra_keys: self.extra_keys,
            group: self.group,
            kind: self.kind,
            remote: self.remote,
        }))
    }

    fn removed(self) -> Result<Event<'a>, Malformed> {
        let hashes = self.hashes.ok_or(Malformed::Missing { field: "block_hashes" })?;
        Ok(Event::Removed(Removed {
            hashes: Hashes::check(hashes)?,
            medium: self.medium,
            group: self.group,
            remote: self.remote,
        }))
    }

    fn event(self, tag: &str) -> Result<Event<'a>, Malformed> {
        match tag {
            "BlockStored" => self.stored(),
            "BlockRemoved" => self.removed(),
            "AllBlocksCleared" => Ok(Event::Cleared),
            _ => Ok(Event::Other),
        }
    }
}

fn positional(mut reader: Reader, len: u32) -> Result<Event, Malformed> {
    let missing = Malformed::Missing { field: "type" };
    if len == 0 {
        return Err(missing);
    }
    let tag = reader.text("type")?.ok_or(missing)?;
    let names: &[&str] = match tag {
        "BlockStored" => &STORED,
        "BlockRemoved" => &REMOVED,
        _ => &[],
    };
    let mut fields = Fields::default();
    for at in 1..len as usize {
        let span = reader.skip()?;
        let mut value = Reader::new(span);
        // SGLang appends what it has to add as a map.
        if let Ok(Head::Map(len)) = value.head() {
            read_map(&mut fields, value, len)?;
        } else if let Some(name) = names.get(at - 1) {
            fields.read(name, span)?;
        }
    }
    fields.event(tag)
}

/// Reads a map's entries into fields, and gives the type it names.
fn read_map<'a>(
    fields: &mut Fields<'a>,
    mut reader: Reader<'a>,
    len: u32,
) -> Result<Option<&'a str>, Malformed> {
    let mut tag = None;
    for _ in 0..len {
        let key = reader.skip()?;
        let span = reader.skip()?;
        match Reader::new(key).head()? {
            Head::Text(b"type") => tag = Reader::new(span).text("type")?,
            Head::Text(key) => fields.read(std::str::from_utf8(key).unwrap_or_default(), span)?,
            _ => {}
        }
    }
    Ok(tag)
}

fn decode_event(span: &[u8]) -> Result<Event<'_>, Malformed> {
    let mut reader = Reader::new(span);
    match reader.head()? {
        Head::Array(len) => positional(reader, len),
        Head::Map(len) => {
            let mut fields = Fields::default();
            match read_map(&mut fields, reader, len)? {
                Some(tag) => fields.event(tag),
                None => Err(Malformed::Missing { field: "type" }),
            }
        }
        _ => Err(Malformed::Type { field: "event" }),
    }
}

/// One message of an engine: what changed in one step.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// When, in the engine's clock, seconds.
    pub time: f64,
    /// The data-parallel rank, where it is written.
    pub rank: Option<u64>,
    left: u32,
    events: Reader<'a>,
}

impl<'a> Batch<'a> {
    /// Reads a payload's frame; the events are decoded by [`Batch::events`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let parts = reader.array_len("batch")?;
        if parts < 2 {
            return Err(Malformed::Missing { field: "events" });
        }
        let time = match reader.head()? {
            Head::Float(time) => time,
            Head::Int { bits, .. } => bits as f64,
            _ => return Err(Malformed::Type { field: "ts" }),
        };
        let mut events = Reader::new(reader.skip()?);
        let left = events.array_len("events")?;
        let rank = if parts > 2 { reader.whole("data_parallel_rank")? } else { None };
        Ok(Self { time, rank, left, events })
    }

    /// The events, in order.
    pub fn events(self) -> impl Iterator<Item = Result<Event<'a>, Malformed>> {
        let mut reader = self.events;
        // Cannot end early: the whole list was passed over before.
        (0..self.left).map_while(move |_| Some(decode_event(reader.skip().ok()?)))
    }

    /// Number of events.
    pub fn len(&self) -> u32 {
        self.left
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }
}
