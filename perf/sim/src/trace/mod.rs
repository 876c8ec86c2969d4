//! Recorded traffic: who asked when, how long prompts and answers were, and which prompts began alike.
//!
//! Three forms are read, plain or gzipped, told apart by their first line:
//!
//! | form | a line | played |
//! |---|---|---|
//! | Mooncake | `{"timestamp": ms, "input_length", "output_length", "hash_ids": [..]}` | at its times |
//! | coding sessions | `{"s", "tool", "sys", "r": [[t, in, out, think_s, api_s, depth, shared, [[first, count], ..]], ..]}` | a session's next request comes `think_s` after the answer before it |
//! | Azure | csv, `TIMESTAMP,ContextTokens,GeneratedTokens` | at its times |
//!
//! An id names a block of the prompt *and all before it*: equal ids mean equal prefixes. `shared` says how many blocks
//! a request has in common with the session's request before it; the new ones follow in runs. Azure's trace knows no
//! prefixes: no two of its prompts are alike.
//!
//! Many requests of a trace bear the same time, because it was recorded in slots of a few seconds. They are spread
//! evenly up to the next time, over [`SLOT`] at most.

mod text;
mod words;

pub use text::{Frame, Writer};
pub use words::{BARE_TEMPLATE, tokenizer};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

/// Longest slot that requests of equal time are spread over, seconds.
const SLOT: f64 = 3.0;
/// Tokens in a block of a coding session.
const SESSION_BLOCK: u32 = 512;
/// Longest file, bytes after decompression.
const MAX_FILE: u64 = 4 << 30;
/// Longest line, bytes.
const MAX_LINE: u64 = 64 << 20;
/// Longest prompt and answer, tokens.
const MAX_TOKENS: u32 = 4 << 20;
/// Most blocks in a prompt.
const MAX_PATH: u64 = 1 << 20;

/// Why a trace cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read the trace {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// There is nothing to play.
    #[error("{path}: {reason}")]
    Empty {
        /// The file.
        path: String,
        /// Why.
        reason: &'static str,
    },
}

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Prompt, tokens.
    pub input: u32,
    /// Answer, tokens.
    pub output: u32,
    /// Seconds between the answer before it and this request.
    pub think: f64,
    /// Leading blocks in common with the request before it in its session.
    pub shared: u32,
    /// Blocks after these, as runs of consecutive ids.
    pub fresh: Box<[(u64, u32)]>,
}

/// Requests that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Talk {
    /// Seconds from the start of the trace; `None` where sessions start when the player likes.
    pub at: Option<f64>,
    /// Leading blocks, of tools and system prompt, that other sessions have too where theirs are the same; 0 where the
    /// trace does not say.
    pub prefix: u32,
    /// In order; at least one.
    pub asks: Vec<Ask>,
}

/// A trace in memory.
#[derive(Debug)]
pub struct Trace {
    /// In the order of their times.
    pub talks: Vec<Talk>,
    /// Requests left out for their length.
    pub left_out: u64,
}

/// What to take of a trace.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// The first so many requests.
    pub requests: u64,
    /// Those with prompts up to so many tokens.
    pub max_input: u32,
}

impl Trace {
    /// Reads a file.
    pub fn load(path: &Path, take: Take) -> Result<Self, TraceError> {
        let shown = path.display().to_string();
        let failed = |source| TraceError::Read { path: shown.clone(), source };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let zipped = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let plain: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Self::read(BufReader::with_capacity(1 << 16, plain.take(MAX_FILE)), take, &shown)
    }

    fn read(mut from: impl BufRead, take: Take, path: &str) -> Result<Self, TraceError> {
        let mut trace = Self { talks: Vec::new(), left_out: 0 };
        let (mut line, mut number, mut left) = (Vec::new(), 0u64, take.requests);
        let mut epoch = None;
        while left > 0 {
            line.clear();
            let read = (&mut from).take(MAX_LINE).read_until(b'\n', &mut line);
            if read.map_err(|source| TraceError::Read { path: path.to_owned(), source })? == 0 {
                break;
            }
            number += 1;
            let wrong = |reason: String| TraceError::Line { path: path.to_owned(), line: number, reason };
            if line.len() as u64 == MAX_LINE {
                return Err(wrong(format!("is longer than {MAX_LINE} bytes")));
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let talk = if text[0] == b'{' {
                json_line(text).map_err(wrong)?
            } else {
                match csv_line(text, number, &mut epoch).map_err(wrong)? {
                    Some(talk) => talk,
                    None => continue,
                }
            };
            trace.add(talk, take.max_input, &mut left);
        }
        if trace.talks.is_empty() {
            let reason =
                if trace.left_out > 0 { "every request is longer than --max-input" } else { "no requests" };
            return Err(TraceError::Empty { path: path.to_owned(), reason });
        }
        trace.order();
        Ok(trace)
    }

    /// Adds what may be taken of a session. A session ends before its first request that is too long: those after it
    /// build upon it.
    fn add(&mut self, mut talk: Talk, max_input: u32, left: &mut u64) {
        let whole = talk.asks.len();
        let fit = talk.asks.iter().position(|a| a.input > max_input).unwrap_or(whole);
        self.left_out += (whole - fit) as u64;
        talk.asks.truncate(fit.min(usize::try_from(*left).unwrap_or(usize::MAX)));
        *left -= talk.asks.len() as u64;
        if !talk.asks.is_empty() {
            self.talks.push(talk);
        }
    }

    /// Sorts by time, counts from the first, and spreads requests of equal time.
    fn order(&mut self) {
        if !self.timed() {
            return;
        }
        self.talks.sort_by(|a, b| a.at.unwrap_or(0.0).total_cmp(&b.at.unwrap_or(0.0)));
        let times: Vec<f64> = self.talks.iter().map(|t| t.at.unwrap_or(0.0)).collect();
        let first = times[0];
        let mut from = 0;
        while from < times.len() {
            let slot = times[from..].iter().take_while(|t| **t == times[from]).count();
            let room = times.get(from + slot).map_or(SLOT, |next| (next - times[from]).min(SLOT));
            for i in 0..slot {
                self.talks[from + i].at = Some(times[from] - first + room * i as f64 / slot as f64);
            }
            from += slot;
        }
    }

    /// Whether it says when requests come.
    pub fn timed(&self) -> bool {
        self.talks.iter().all(|t| t.at.is_some())
    }

    /// Requests in all.
    pub fn requests(&self) -> u64 {
        self.talks.iter().map(|t| t.asks.len() as u64).sum()
    }

    /// When a request or session comes at a trace played `speed` times as fast.
    pub fn arrival(&self, talk: u64, speed: f64) -> Option<Duration> {
        let at = self.talks.get(usize::try_from(talk).ok()?)?.at?;
        Some(Duration::try_from_secs_f64(at / speed).unwrap_or(Duration::MAX))
    }
}

/// t, in, out, think_s, api_s, depth, shared, runs of new blocks.
type Row = (f64, u32, u32, f64, IgnoredAny, IgnoredAny, u32, Vec<(u64, u32)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Mooncake {
        timestamp: f64,
        input_length: u32,
        output_length: u32,
        #[serde(default)]
        hash_ids: Vec<u64>,
    },
    Session {
        #[serde(default)]
        tool: u32,
        #[serde(default)]
        sys: u32,
        r: Vec<Row>,
    },
}

fn json_line(text: &[u8]) -> Result<Talk, String> {
    let line: Line = serde_json::from_slice(text).map_err(|e| {
        if e.is_data() {
            "is neither a request (timestamp, input_length, output_length, hash_ids) nor a session (r)"
                .to_owned()
        } else {
            e.to_string()
        }
    })?;
    match line {
        Line::Mooncake { timestamp, input_length, output_length, hash_ids } => {
            let at = seconds("timestamp", timestamp / 1e3)?;
            let ask = ask(input_length, output_length, 0.0, 0, runs(&hash_ids))?;
            Ok(Talk { at: Some(at), prefix: 0, asks: vec![ask] })
        }
        Line::Session { tool, sys, r } => {
            let (mut asks, mut path) = (Vec::with_capacity(r.len()), 0u64);
            for (i, (_, input, output, think, _, _, shared, fresh)) in r.into_iter().enumerate() {
                if u64::from(shared) > path {
                    return Err(format!("request {i} shares {shared} blocks, the one before it has {path}"));
                }
                path = u64::from(shared) + fresh.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
                if path > MAX_PATH {
                    return Err(format!("request {i} has {path} blocks, more than {MAX_PATH}"));
                }
                let think = seconds("think_s", think)?;
                asks.push(ask(input, output, think, shared, fresh.into_boxed_slice())?);
            }
            Ok(Talk { at: None, prefix: tool.saturating_add(sys) / SESSION_BLOCK, asks })
        }
    }
}

fn seconds(name: &str, s: f64) -> Result<f64, String> {
    // As far as a Duration since 1970 would go without losing microseconds.
    if (0.0..=1e11).contains(&s) { Ok(s) } else { Err(format!("{name} is out of range")) }
}

fn ask(input: u32, output: u32, think: f64, shared: u32, fresh: Box<[(u64, u32)]>) -> Result<Ask, String> {
    for (what, tokens) in [("prompt", input), ("answer", output)] {
        if tokens > MAX_TOKENS {
            return Err(format!("a {what} of {tokens} tokens, at most {MAX_TOKENS} are played"));
        }
    }
    Ok(Ask { input, output, think, shared, fresh })
}

fn runs(ids: &[u64]) -> Box<[(u64, u32)]> {
    let mut out: Vec<(u64, u32)> = Vec::new();
    for id in ids {
        match out.last_mut() {
            Some((first, n)) if first.checked_add(u64::from(*n)) == Some(*id) => *n += 1,
            _ => out.push((*id, 1)),
        }
    }
    out.into_boxed_slice()
}

/// A line of Azure's csv; `None` for the heading.
fn csv_line(text: &[u8], number: u64, epoch: &mut Option<f64>) -> Result<Option<Talk>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "is not text".to_owned())?;
    let mut fields = text.split(',').map(str::trim);
    let (Some(time), Some(input), Some(output)) = (fields.next(), fields.next(), fields.next()) else {
        return Err("has fewer than the fields TIMESTAMP,ContextTokens,GeneratedTokens".into());
    };
    if number == 1 && time == "TIMESTAMP" {
        return Ok(None);
    }
    let at = instant(time).ok_or_else(|| format!("{time:?} is not a time like 2023-11-16 18:15:46.68"))?;
    let tokens = |s: &str| s.parse::<u32>().map_err(|_| format!("{s:?} is not a number of tokens"));
    let from_first = at - *epoch.get_or_insert(at);
    let ask = ask(tokens(input)?, tokens(output)?, 0.0, 0, Box::default())?;
    Ok(Some(Talk { at: Some(from_first), prefix: 0, asks: vec![ask] }))
}

/// Seconds of `YYYY-MM-DD HH:MM:SS.fff` on a scale of its own.
fn instant(text: &str) -> Option<f64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut d = date.split('-').map(str::parse::<i64>);
    let (y, m, day) = (d.next()?.ok()?, d.next()?.ok()?, d.next()?.ok()?);
    let mut t = time.split(':');
    let (h, min, s) = (t.next()?, t.next()?, t.next()?);
    let clock = h.parse::<u8>().ok()? as f64 * 3600.0 + min.parse::<u8>().ok()? as f64 * 60.0;
    let s =
        s.trim_end_matches('Z').split('+').next()?.parse::<f64>().ok().filter(|s| (0.0..61.0).contains(s))?;
    if !(1970..=9999).contains(&y) || !(1..=12).contains(&m) || !(1..=31).contains(&day) {
        return None;
    }
    // Days by the civil calendar, counted from March (H. Hinnant, "chrono-compatible low-level date algorithms").
    let (y, m) = if m > 2 { (y, m - 3) } else { (y - 1, m + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day;
    Some(days as f64 * 86_400.0 + clock + s)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
