//! MessagePack, byte for byte as the engines' encoder (msgspec) writes it.

use crate::model::CacheChange;
use crate::options::{EngineKind, KvEncoding};

/// Writes batches in the form of one engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub kind: EngineKind,
    pub encoding: KvEncoding,
    pub block_tokens: u32,
}

/// The members of one BlockStored.
struct Stored<'a> {
    hashes: &'a [u64],
    parent: Option<u64>,
    tokens: &'a [u32],
    lora: &'a str,
    /// Empty unless the first of these blocks begins a prompt with a salt.
    salt: &'a str,
}

impl Writer {
    /// `[time, [events], rank]`.
    pub fn batch(&self, time: f64, changes: &[CacheChange]) -> Vec<u8> {
        let mut events = Vec::new();
        let mut count = 0;
        for change in changes {
            count += self.change(change, &mut events);
        }
        let mut out = Vec::with_capacity(events.len() + 24);
        array(3, &mut out);
        out.push(0xcb);
        out.extend_from_slice(&time.to_be_bytes());
        array(count, &mut out);
        out.append(&mut events);
        uint(0, &mut out);
        out
    }

    /// Writes a change as one or more events and says how many.
    fn change(&self, change: &CacheChange, out: &mut Vec<u8>) -> usize {
        match change {
            CacheChange::Stored { path, blocks, origin } => {
                let size = self.block_tokens as usize;
                // SGLang writes an event for each page, vLLM one for all blocks of a step.
                let step = match self.kind {
                    EngineKind::Sglang => 1,
                    EngineKind::Vllm => blocks.len().max(1),
                };
                let mut count = 0;
                for from in blocks.clone().step_by(step) {
                    let to = (from + step).min(blocks.end);
                    let (Some(hashes), Some(tokens)) =
                        (path.get(from..to), origin.tokens.get(from * size..to * size))
                    else {
                        continue;
                    };
                    let parent = from.checked_sub(1).and_then(|i| path.get(i)).copied();
                    let keyed = self.kind == EngineKind::Sglang || from == 0;
                    let salt = if keyed { origin.salt.as_str() } else { "" };
                    self.stored(&Stored { hashes, parent, tokens, lora: &origin.lora, salt }, out);
                    count += 1;
                }
                count
            }
            CacheChange::Removed(hash) => {
                self.removed(*hash, out);
                1
            }
            CacheChange::Cleared => {
                match self.encoding {
                    KvEncoding::Array => array(1, out),
                    KvEncoding::Map => {
                        map(1, out);
                        text("type", out);
                    }
                }
                text("AllBlocksCleared", out);
                1
            }
        }
    }

    fn stored(&self, s: &Stored, out: &mut Vec<u8>) {
        let vllm = self.kind == EngineKind::Vllm;
        let fields: &[&str] = match (vllm, self.encoding) {
            (true, KvEncoding::Array) => &[
                "block_hashes",
                "parent",
                "tokens",
                "size",
                "lora_id",
                "medium",
                "lora_name",
                "extra",
                "group",
                "kind",
            ],
            (true, KvEncoding::Map) => &[
                "block_hashes",
                "parent",
                "tokens",
                "size",
                "lora_id",
                "medium",
                "lora_name",
                "extra?",
                "group",
                "kind",
            ],
            (false, KvEncoding::Array) => {
                &["block_hashes", "parent", "tokens", "size", "lora_id", "medium", "meta?"]
            }
            (false, KvEncoding::Map) => {
                &["block_hashes", "parent", "tokens", "size", "lora_id", "medium", "lora?", "salt?"]
            }
        };
        let left_out = |f: &str| match f {
            "extra?" => s.salt.is_empty() && s.lora.is_empty(),
            "meta?" | "salt?" => s.salt.is_empty(),
            "lora?" => s.lora.is_empty(),
            _ => false,
        };
        let count = fields.iter().filter(|f| !left_out(f)).count() + 1;
        match self.encoding {
            KvEncoding::Array => array(count, out),
            KvEncoding::Map => {
                if vllm {
                    // vLLM's encoder reserves the wide header for an event with optional members.
                    out.extend_from_slice(&[0xde, 0, count as u8]);
                } else {
                    map(count, out);
                }
                text("type", out);
            }
        }
        text("BlockStored", out);
        for field in fields.iter().filter(|f| !left_out(f)) {
            let key = match *field {
                "parent" => "parent_block_hash",
                "tokens" => "token_ids",
                "size" => "block_size",
                "extra" | "extra?" => "extra_keys",
                "group" => "group_idx",
                "kind" => "kv_cache_spec_kind",
                "lora?" => "lora_name",
                "salt?" => "cache_salt",
                other => other,
            };
            if self.encoding == KvEncoding::Map {
                text(key, out);
            }
            match *field {
                "block_hashes" => {
                    array(s.hashes.len(), out);
                    s.hashes.iter().for_each(|h| self.hash(*h, out));
                }
                "parent" => match s.parent {
                    Some(h) => self.hash(h, out),
                    None => nil(out),
                },
                "tokens" => {
                    array(s.tokens.len(), out);
                    s.tokens.iter().for_each(|t| uint(u64::from(*t), out));
                }
                "size" => uint(u64::from(self.block_tokens), out),
                "medium" => text("GPU", out),
                "lora_name" | "lora?" if !s.lora.is_empty() => text(s.lora, out),
                "extra" | "extra?" => extra_keys(s, out),
                "group" => uint(0, out),
                "kind" => text("full_attention", out),
                "salt?" => text(s.salt, out),
                "meta?" => {
                    map(1, out);
                    text("cache_salt", out);
                    text(s.salt, out);
                }
                _ => nil(out),
            }
        }
    }

    fn removed(&self, hash: u64, out: &mut Vec<u8>) {
        let vllm = self.kind == EngineKind::Vllm;
        let key = |name: &str, out: &mut Vec<u8>| {
            if self.encoding == KvEncoding::Map {
                text(name, out);
            }
        };
        match self.encoding {
            KvEncoding::Array => array(3 + usize::from(vllm), out),
            KvEncoding::Map => map(3 + usize::from(vllm), out),
        }
        key("type", out);
        text("BlockRemoved", out);
        key("block_hashes", out);
        array(1, out);
        self.hash(hash, out);
        key("medium", out);
        text("GPU", out);
        if vllm {
            key("group_idx", out);
            uint(0, out);
        }
    }

    /// vLLM's hashes are unsigned, SGLang's signed.
    fn hash(&self, hash: u64, out: &mut Vec<u8>) {
        match self.kind {
            EngineKind::Vllm => uint(hash, out),
            EngineKind::Sglang => int(hash.cast_signed(), out),
        }
    }
}

/// One entry a block: the adapter's name for each, the salt for the first of a prompt.
fn extra_keys(s: &Stored, out: &mut Vec<u8>) {
    array(s.hashes.len(), out);
    for i in 0..s.hashes.len() {
        let salt = if i == 0 { s.salt } else { "" };
        let keys = [s.lora, salt];
        let count = keys.iter().filter(|k| !k.is_empty()).count();
        if count == 0 {
            nil(out);
            continue;
        }
        array(count, out);
        keys.iter().filter(|k| !k.is_empty()).for_each(|k| text(k, out));
    }
}

fn nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

fn uint(v: u64, out: &mut Vec<u8>) {
    if let Ok(v) = u8::try_from(v) {
        if v >= 0x80 {
            out.push(0xcc);
        }
        out.push(v);
    } else if let Ok(v) = u16::try_from(v) {
        out.push(0xcd);
        out.extend_from_slice(&v.to_be_bytes());
    } else if let Ok(v) = u32::try_from(v) {
        out.push(0xce);
        out.extend_from_slice(&v.to_be_bytes());
    } else {
        out.push(0xcf);
        out.extend_from_slice(&v.to_be_bytes());
    }
}

fn int(v: i64, out: &mut Vec<u8>) {
    if v >= 0 {
        uint(v.unsigned_abs(), out);
    } else if v >= -32 {
        out.push(v as u8);
    } else if let Ok(v) = i8::try_from(v) {
        out.push(0xd0);
        out.extend_from_slice(&v.to_be_bytes());
    } else if let Ok(v) = i16::try_from(v) {
        out.push(0xd1);
        out.extend_from_slice(&v.to_be_bytes());
    } else if let Ok(v) = i32::try_from(v) {
        out.push(0xd2);
        out.extend_from_slice(&v.to_be_bytes());
    } else {
        out.push(0xd3);
        out.extend_from_slice(&v.to_be_bytes());
    }
}

fn text(s: &str, out: &mut Vec<u8>) {
    match s.len() {
        n @ 0..32 => out.push(0xa0 | n as u8),
        n @ 32..256 => out.extend_from_slice(&[0xd9, n as u8]),
        n @ 256..65_536 => {
            out.push(0xda);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0xdb);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(s.as_bytes());
}

fn array(n: usize, out: &mut Vec<u8>) {
    sized(n, 0x90, 0xdc, out);
}

fn map(n: usize, out: &mut Vec<u8>) {
    sized(n, 0x80, 0xde, out);
}

fn sized(n: usize, fix: u8, wide: u8, out: &mut Vec<u8>) {
    match n {
        0..16 => out.push(fix | n as u8),
        16..65_536 => {
            out.push(wide);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        _ => {
            out.push(wide + 1);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
    }
}
