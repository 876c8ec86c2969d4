//! Real traces: one JSON object a line with `input_length` (tokens) and `hash_ids` (one per 512 tokens, chained).

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::shape::holders;
use super::{BLOCK_TOKENS, LONGEST_LINE, Size, Workload, chain};
use crate::rng::Rng;
use fairlead_sim::text::mix;

/// Tokens of one of the trace's blocks.
const TRACE_BLOCK_TOKENS: u32 = 512;
/// Our blocks in one of the trace's.
const PARTS: usize = (TRACE_BLOCK_TOKENS / BLOCK_TOKENS) as usize;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read the trace: {0}")]
    Io(#[from] std::io::Error),
    /// A line has another form.
    #[error("line {line} of the trace: {error}")]
    Form {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// There is no prompt of a whole block in it.
    #[error("the trace has no prompts")]
    Empty,
}

#[derive(Deserialize)]
struct Line {
    input_length: u32,
    hash_ids: Vec<u64>,
}

pub(super) fn read(path: &Path, size: Size, seed: u64) -> Result<Workload, TraceError> {
    let lines = parse(open(path)?)?;
    if lines.iter().all(|l| l.input_length < BLOCK_TOKENS || l.hash_ids.is_empty()) {
        return Err(TraceError::Empty);
    }
    Ok(build(&lines, size, seed))
}

fn open(path: &Path) -> Result<Box<dyn Read>, TraceError> {
    let file = std::fs::File::open(path)?;
    if path.extension().is_none_or(|e| e != "gz") {
        return Ok(Box::new(file));
    }
    let output = Command::new("gzip").arg("-dc").stdin(Stdio::from(file)).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(std::io::Error::other(said).into());
    }
    Ok(Box::new(std::io::Cursor::new(output.stdout)))
}

fn parse(source: impl Read) -> Result<Vec<Line>, TraceError> {
    let mut reader = BufReader::new(source);
    let mut lines = Vec::new();
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        lines.push(serde_json::from_slice(&text).map_err(|error| TraceError::Form { line, error })?);
    }
    Ok(lines)
}

/// Last use of a trace's block.
struct Known {
    hash: u64,
    /// Who held the prompt that brought it.
    holders: Vec<u16>,
    last: usize,
}

fn build(lines: &[Line], size: Size, seed: u64) -> Workload {
    let mut rng = Rng::new(seed ^ 0x7ace);
    let mut load = Workload::default();
    let mut known: HashMap<(u64, u64), Known> = HashMap::new();
    let mut distinct = 0;
    for round in 0.. {
        known.retain(|(_, id), _| lines.first().is_some_and(|l| l.hash_ids.first() == Some(id)));
        for line in lines {
            if distinct >= size.blocks && load.fill == 0 {
                (load.fill, load.distinct) = (load.requests.len(), distinct);
            }
            if distinct >= size.blocks + size.churn {
                return load.finish();
            }
            // The first block of the trace is its system prompt: the same in every round.
            let round_of = |at: usize| if at == 0 { 0 } else { round };
            let mut path: Vec<u64> = Vec::new();
            let blocks = (line.input_length / BLOCK_TOKENS) as usize;
            let (mut shared, mut talk) = (0, None);
            for (at, id) in line.hash_ids.iter().enumerate() {
                let parts = PARTS.min(blocks.saturating_sub(path.len()));
                let mut content = mix(seed ^ mix(round_of(at)) ^ mix(*id));
                if let Some(k) = known.get(&(round_of(at), *id)).filter(|_| shared == path.len()) {
                    if at > 0 {
                        talk = Some((k.holders.clone(), k.last));
                    }
                    chain(&mut path, parts, &mut content);
                    shared = path.len();
                    debug_assert!(parts < PARTS || path.last() == Some(&k.hash));
                } else {
                    chain(&mut path, parts, &mut content);
                }
            }
            let who = match &talk {
                Some((holders, _)) => holders.clone(),
                None => holders(size.targets, &mut rng),
            };
            distinct += (path.len() - shared) as u64;
            let number = load.push(&path, shared, &who);
            if let Some((_, last)) = talk.filter(|(_, last)| load.requests[*last].len() <= shared) {
                load.requests[last].leaf = false;
            }
            for (at, id) in line.hash_ids.iter().enumerate() {
                if let Some(hash) = path.get(at * PARTS + PARTS - 1) {
                    known.insert(
                        (round_of(at), *id),
                        Known { hash: *hash, holders: who.clone(), last: number },
                    );
                }
            }
        }
    }
    load.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_repeated_under_other_names() {
        let text = "{\"timestamp\": 0, \"input_length\": 1100, \"output_length\": 3, \"hash_ids\": [0, 1, 2]}\n\
                    {\"timestamp\": 1, \"input_length\": 1700, \"output_length\": 3, \"hash_ids\": [0, 1, 3, 4]}\n";
        let lines = parse(text.as_bytes()).unwrap();
        let load = build(&lines, Size { blocks: 40, churn: 0, targets: 9 }, 1);
        let r = load.fill();
        assert_eq!(load.path(&r[0]).len(), 17);
        assert_eq!((r[1].len(), r[1].shared), (26, 16));
        assert_eq!(load.path(&r[0])[..16], load.path(&r[1])[..16]);
        assert_eq!(r[0].holders(), r[1].holders());
        // The second round shares the system prompt alone.
        assert_eq!((r[2].len(), r[2].shared), (17, 8));
        assert!(load.distinct >= 40);
        assert!(matches!(parse("{}\n".as_bytes()), Err(TraceError::Form { line: 1, .. })));
    }
}
