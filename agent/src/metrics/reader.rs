//! Lines from chunks, figures from lines.

use super::names::{Field, Pick, pick};
use super::sample::Sample;
use memchr::memchr;

/// Longest line read, bytes; a longer one is skipped. vLLM's `cache_config_info` has about 2 KB.
pub const MAX_LINE: usize = 16 * 1024;

/// How names of figures of vLLM's NIXL connector begin: that there are any is all that is read of them.
const NIXL: &[u8] = b"vllm:nixl_";

/// Reads a page chunk by chunk. How the page is cut makes no difference to the result.
#[derive(Debug, Default)]
pub struct Reader {
    /// Start of a line whose end has not arrived; at most [`MAX_LINE`] bytes.
    carry: Vec<u8>,
    /// The current line is longer than [`MAX_LINE`].
    skipping: bool,
    sample: Sample,
}

impl Reader {
    /// A reader at the start of a page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes back to the start of a page.
    pub fn reset(&mut self) {
        self.carry.clear();
        self.skipping = false;
        self.sample.clear();
    }

    /// The next bytes of the page.
    pub fn feed(&mut self, mut chunk: &[u8]) {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            chunk = rest;
            if self.skipping {
                self.skipping = false;
            } else if self.carry.is_empty() {
                read_line(line, &mut self.sample);
            } else if self.carry.len() + line.len() <= MAX_LINE {
                self.carry.extend_from_slice(line);
                read_line(&self.carry, &mut self.sample);
            }
            self.carry.clear();
        }
        if self.skipping || chunk.is_empty() {
            return;
        }
        if self.carry.len() + chunk.len() > MAX_LINE {
            self.carry.clear();
            self.skipping = true;
        } else {
            self.carry.extend_from_slice(chunk);
        }
    }

    /// The page is at its end: reads a last line without newline and gives the figures.
    pub fn finish(&mut self) -> &Sample {
        if !self.carry.is_empty() {
            read_line(&self.carry, &mut self.sample);
            self.carry.clear();
        }
        &self.sample
    }
}

/// Reads one line of the text format: `name{label="value",...} number [timestamp]`.
fn read_line(line: &[u8], sample: &mut Sample) {
    if line.len() > MAX_LINE || !matches!(line.first(), Some(b'v' | b's' | b'p' | b'e' | b'k')) {
        return;
    }
    let end = line.iter().position(|b| matches!(b, b'{' | b' ' | b'\t')).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.starts_with(NIXL) {
        sample.nixl();
        return;
    }
    let Some((kind, picked)) = pick(name) else { return };
    let rest = trim_start(rest);
    let mut rank = Rank::None;
    let mut config: [Option<f64>; 3] = [None; 3];
    let value = match rest.strip_prefix(b"{") {
        None => rest,
        Some(labels) => {
            let after = each_label(labels, |label, value| match label {
                b"engine" | b"dp_rank" => rank = Rank::read(value),
                b"block_size" => config[0] = whole(value),
                b"num_gpu_blocks" => config[1] = whole(value),
                b"kv_cache_size_tokens" => config[2] = whole(value),
                _ => {}
            });
            match after {
                Some(after) => after,
                None => return,
            }
        }
    };
    let Some(rank) = rank.number() else { return };
    let number = number(value);
    if let Some(kind) = kind {
        sample.family(kind);
    }
    match picked {
        Pick::Value(field) => sample.put(rank, field, number),
        Pick::CacheConfig => {
            for (field, value) in [Field::BlockSize, Field::KvBlocks, Field::KvTokens].into_iter().zip(config)
            {
                // "None" says that the engine has no such figure, which is what an absent label says.
                if let Some(value) = value {
                    sample.put(rank, field, Some(value));
                }
            }
        }
        Pick::ProcessStart => {
            if let Some(seconds) = number {
                sample.put_process_start(seconds);
            }
        }
        Pick::CounterStart => {
            if let Some(seconds) = number {
                sample.put_counter_start(seconds);
            }
        }
    }
}

/// The rank label of a series.
enum Rank {
    /// Absent, or present to say that there is none.
    None,
    /// A rank.
    Number(u16),
    /// Not a rank: the series cannot be placed.
    Garbage,
}

impl Rank {
    fn read(value: &[u8]) -> Self {
        match value {
            b"" | b"None" => Rank::None,
            _ => std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse().ok())
                .map_or(Rank::Garbage, Rank::Number),
        }
    }

    fn number(self) -> Option<Option<u16>> {
        match self {
            Rank::None => Some(None),
            Rank::Number(rank) => Some(Some(rank)),
            Rank::Garbage => None,
        }
    }
}

/// Calls `found` with each label's name and raw value (escapes untouched; no value read here has any) and gives
/// what follows the closing brace; `None` when the labels are malformed.
fn each_label<'l>(mut rest: &'l [u8], mut found: impl FnMut(&'l [u8], &'l [u8])) -> Option<&'l [u8]> {
    loop {
        rest = trim_start(rest);
        match rest.first()? {
            b'}' => return Some(&rest[1..]),
            b',' => {
                rest = &rest[1..];
                continue;
            }
            _ => {}
        }
        let equals = memchr(b'=', rest)?;
        let name = trim_end(&rest[..equals]);
        let quoted = trim_start(&rest[equals + 1..]).strip_prefix(b"\"")?;
        let mut end = 0;
        loop {
            match *quoted.get(end)? {
                b'"' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
        }
        found(name, &quoted[..end]);
        rest = &quoted[end + 1..];
    }
}

/// The sample's value: a finite number of at least zero, else unknown.
fn number(rest: &[u8]) -> Option<f64> {
    let rest = trim_start(rest);
    let end = rest.iter().position(|b| b.is_ascii_whitespace()).unwrap_or(rest.len());
    let value: f64 = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then(|| value.abs())
}

/// A label value that is a whole number of at least 1.
fn whole(value: &[u8]) -> Option<f64> {
    let value: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (value > 0).then_some(value as f64)
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let skip = bytes.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    &bytes[skip..]
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    let skip = bytes.iter().rev().take_while(|b| matches!(b, b' ' | b'\t')).count();
    &bytes[..bytes.len() - skip]
}
