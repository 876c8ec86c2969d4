//! The traces that the cases play, and at which rates.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use fairlead_sim::replay::{Play, Workload};
use fairlead_sim::trace::{Take, Trace};

/// A recorded trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Mooncake's conversations.
    Conversation,
    /// Mooncake's synthetic trace: much is asked again.
    Synthetic,
    /// Azure's conversations of 2023: lengths alone, no prompt begins like another.
    Azure,
    /// Sessions of coding agents.
    Sessions,
}

impl Source {
    /// Beginning of the file's name, and what the whole trace has: requests, and seconds between first and last.
    const fn file(self) -> (&'static str, f64, f64) {
        match self {
            Self::Conversation => ("mooncake_conversation_", 12_031.0, 3_537.0),
            Self::Synthetic => ("mooncake_synthetic_", 3_993.0, 1_022.0),
            Self::Azure => ("azure_llm_2023_conv", 19_366.0, 3_502.0),
            Self::Sessions => ("claude_code_sessions_", 0.0, 1.0),
        }
    }

    /// Requests per second of the whole trace played at a speed.
    pub fn rate(self, speed: f64) -> f64 {
        let (_, requests, seconds) = self.file();
        speed * requests / seconds
    }
}

/// The traces read so far.
pub struct Traces {
    folder: PathBuf,
    /// Whether these are the whole traces rather than the samples.
    pub whole: bool,
    read: HashMap<Source, Arc<Trace>>,
    made: Vec<((Source, u64), Arc<Workload>)>,
}

/// Sessions of coding agents in a run.
const SESSIONS: usize = 300;

impl Traces {
    /// Those in the folder that `FAIRLEAD_TRACES` names, else the samples in `perf/data`.
    pub fn new() -> Self {
        let folder = std::env::var_os("FAIRLEAD_TRACES").map(PathBuf::from);
        let samples = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
        Self {
            whole: folder.is_some(),
            folder: folder.unwrap_or_else(samples),
            read: HashMap::new(),
            made: Vec::new(),
        }
    }

    /// A trace at the rate of the whole one played so many times as fast; a sample is played faster, to the same rate.
    /// Of sessions, so many start in a second.
    ///
    /// # Errors
    /// The trace cannot be found or read.
    pub fn play(&mut self, source: Source, speed: f64) -> anyhow::Result<Arc<Workload>> {
        let key = (source, speed.to_bits());
        if let Some((_, made)) = self.made.iter().find(|(made, _)| *made == key) {
            return Ok(made.clone());
        }
        let trace = self.trace(source)?;
        let play = if source == Source::Sessions {
            Play { sessions: SESSIONS, starts_per_s: speed, ..Play::default() }
        } else {
            let speed = if self.whole { speed } else { source.rate(speed) / natural_rate(&trace) };
            Play { speed, ..Play::default() }
        };
        let workload = Arc::new(Workload::new(&trace, &play));
        self.made.push((key, workload.clone()));
        Ok(workload)
    }

    fn trace(&mut self, source: Source) -> anyhow::Result<Arc<Trace>> {
        if let Some(trace) = self.read.get(&source) {
            return Ok(trace.clone());
        }
        let (prefix, requests, _) = source.file();
        let path = find(&self.folder, prefix)?;
        let trace = Arc::new(Trace::load(&path, Take { requests: u64::MAX, max_input: u32::MAX })?);
        if self.whole && source != Source::Sessions {
            let found = trace.requests();
            ensure!(found as f64 == requests, "{} has {found} requests, not {requests}", path.display());
        }
        self.read.insert(source, trace.clone());
        Ok(trace)
    }
}

fn natural_rate(trace: &Trace) -> f64 {
    let times = || trace.talks.iter().filter_map(|talk| talk.at);
    let seconds = times().fold(0.0, f64::max) - times().fold(f64::INFINITY, f64::min);
    trace.requests() as f64 / seconds.max(1e-3)
}

/// The file in a folder whose name begins so; the shortest name counts.
fn find(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let begins = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with(prefix))
    };
    let found = entries.flatten().map(|entry| entry.path()).filter(begins);
    found
        .min_by_key(|path| (path.as_os_str().len(), path.clone()))
        .with_context(|| format!("no trace `{prefix}*` in {}", folder.display()))
}
