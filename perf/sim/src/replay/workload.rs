//! What is asked of the fleet: the requests of a trace, with their blocks, and when they come.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::events::Origin;
use crate::model::SeqSpec;
use crate::text::mix;
use crate::trace::{Talk, Trace};

/// A request by its place in [`Workload::requests`].
pub type RequestId = u32;

/// How a trace is played.
#[derive(Clone, Debug)]
pub struct Play {
    /// Times of the trace pass so many times as fast, think times too.
    pub speed: f64,
    /// Tokens that one block id of the trace stands for.
    pub block_tokens: u32,
    /// The first so many requests only.
    pub requests: usize,
    /// Coding sessions: how many; more than the trace has play it again as others' sessions. 0 is what it has.
    pub sessions: usize,
    /// Coding sessions that start in a second; the gaps are drawn from an exponential distribution.
    pub starts_per_s: f64,
    /// Requests of a session at most.
    pub max_turns: usize,
    /// Longest think time, seconds.
    pub max_think: f64,
}

impl Default for Play {
    fn default() -> Self {
        Self {
            speed: 1.0,
            block_tokens: 512,
            requests: usize::MAX,
            sessions: 0,
            starts_per_s: 0.075,
            max_turns: 40,
            max_think: 30.0,
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Chained hashes of its whole blocks.
    pub path: Arc<[u64]>,
    /// Prompt, at least one token.
    pub prompt_tokens: u32,
    /// Answer, at least one token.
    pub output_tokens: u32,
    /// A key of the conversation that it belongs to; `None` where the trace tells nothing of prefixes.
    pub session: Option<u64>,
    /// The session's next request, and how many seconds after this one's end it comes.
    pub next: Option<(RequestId, f64)>,
}

impl Request {
    /// What it asks of an engine.
    pub fn spec(&self, origin: Option<Arc<Origin>>) -> SeqSpec {
        SeqSpec {
            path: Arc::clone(&self.path),
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            limited: false,
            origin,
            remote: 0,
        }
    }
}

/// When the first requests of the sessions come.
#[derive(Clone, Debug)]
enum Starts {
    /// At these seconds, ascending; requests without a session are sessions of one.
    Timed(Arc<[(f64, RequestId)]>),
    /// One after the other, so many a second.
    Drawn { first: Vec<RequestId>, per_s: f64 },
}

/// The requests of a trace.
#[derive(Clone, Debug)]
pub struct Workload {
    /// In the order of the trace.
    pub requests: Vec<Request>,
    /// Tokens in a block of a path.
    pub block_tokens: u32,
    starts: Starts,
    /// A request whose path has the block, and where.
    homes: AHashMap<u64, (RequestId, u32)>,
}

impl Workload {
    /// Turns a trace into requests.
    pub fn new(trace: &Trace, play: &Play) -> Self {
        let timed = trace.timed();
        let (mut requests, mut starts) = (Vec::new(), Vec::new());
        let talks = trace.talks.len();
        let wanted = if timed || play.sessions == 0 { talks } else { play.sessions };
        let common: AHashSet<u64> = trace.talks.iter().flat_map(prefix_ids).collect();
        let (mut names, mut sessions) = (Names::default(), Sessions::default());
        for number in 0..wanted {
            if requests.len() >= play.requests {
                break;
            }
            let (talk, copy) = (&trace.talks[number % talks], (number / talks) as u64);
            let name = |id: u64| if copy == 0 || common.contains(&id) { id } else { mix(id ^ mix(copy)) };
            let at = talk.at.unwrap_or(0.0) / play.speed;
            starts.push((at, requests.len() as RequestId));
            let room = play.requests - requests.len();
            let turns = if timed { usize::MAX } else { play.max_turns.max(1) };
            let taken = talk.asks.len().min(turns).min(room);
            let session = (talk.asks.len() > 1 || !timed).then(|| mix(number as u64));
            let mut ids = Vec::new();
            for (turn, ask) in talk.asks[..taken].iter().enumerate() {
                ids.truncate(ask.shared as usize);
                for (first, n) in &ask.fresh {
                    ids.extend((0..u64::from(*n)).map(|i| name(first.wrapping_add(i))));
                }
                let whole = (ask.input / play.block_tokens) as usize;
                let path = names.path(&ids[..whole.min(ids.len())]);
                let next = talk.asks[..taken].get(turn + 1).map(|next| {
                    (requests.len() as RequestId + 1, next.think.min(play.max_think) / play.speed)
                });
                let (prompt_tokens, output_tokens) = (ask.input.max(1), ask.output.max(1));
                let session = session.or_else(|| sessions.of(&path));
                requests.push(Request { path, prompt_tokens, output_tokens, session, next });
            }
        }
        starts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let starts = if timed {
            Starts::Timed(starts.into())
        } else {
            Starts::Drawn {
                first: starts.iter().map(|(_, first)| *first).collect(),
                per_s: play.starts_per_s,
            }
        };
        let mut homes = AHashMap::new();
        for (number, request) in requests.iter().enumerate() {
            for (at, block) in request.path.iter().enumerate() {
                homes.entry(*block).or_insert((number as RequestId, at as u32));
            }
        }
        Self { requests, block_tokens: play.block_tokens, starts, homes }
    }

    /// A path that has the block, and the block's place in it.
    pub fn path_of(&self, block: u64) -> Option<(&Arc<[u64]>, usize)> {
        let (request, at) = self.homes.get(&block)?;
        Some((&self.requests[*request as usize].path, *at as usize))
    }

    /// Arrivals of a run.
    pub fn arrivals(&self, seed: u64) -> Arrivals {
        let timed = match &self.starts {
            Starts::Timed(starts) => starts.clone(),
            Starts::Drawn { first, per_s } => {
                let mut rng = fairlead_routing::Rng::new(mix(seed ^ 0x5e55_1045));
                let mut at = 0.0;
                let mut start = |request: &RequestId| {
                    let now = at;
                    at -= (1.0 - rng.unit()).ln() / per_s;
                    (now, *request)
                };
                first.iter().map(&mut start).collect()
            }
        };
        Arrivals { timed, next: 0, later: BinaryHeap::new() }
    }
}

fn prefix_ids(talk: &Talk) -> impl Iterator<Item = u64> {
    let runs = talk.asks.first().map_or(&[][..], |ask| &ask.fresh);
    let ids = runs.iter().flat_map(|(first, n)| (0..u64::from(*n)).map(|i| first.wrapping_add(i)));
    ids.take(talk.prefix as usize)
}

/// Sessions of traces that name none: a request whose path goes on where the whole path of an earlier one ends is its
/// next turn. The first block alone says nothing: in many traces all have it.
#[derive(Default)]
struct Sessions {
    /// By the last block of a path.
    ends: AHashMap<u64, u64>,
}

impl Sessions {
    fn of(&mut self, path: &[u64]) -> Option<u64> {
        let end = *path.last()?;
        let known = path.iter().skip(1).rev().find_map(|block| self.ends.get(block).copied());
        let session = known.unwrap_or_else(|| mix(self.ends.len() as u64 ^ end));
        self.ends.insert(end, session);
        Some(session)
    }
}

/// Chains ids to hashes; paths of equal ids are one.
#[derive(Default)]
struct Names {
    hashes: Vec<u64>,
}

impl Names {
    fn path(&mut self, ids: &[u64]) -> Arc<[u64]> {
        self.hashes.clear();
        let mut above = 0x6661_6972_6c65_6164;
        for id in ids {
            // Zero names the root of an index.
            above = xxh3_64_with_seed(&id.to_le_bytes(), above).max(1);
            self.hashes.push(above);
        }
        self.hashes.as_slice().into()
    }
}

/// Who comes when. A clone goes on by itself.
#[derive(Clone, Debug)]
pub struct Arrivals {
    timed: Arc<[(f64, RequestId)]>,
    next: usize,
    /// Later requests of sessions: time and request. Times are not negative, so their bits are in their order.
    later: BinaryHeap<Reverse<(u64, RequestId)>>,
}

impl Arrivals {
    /// When the next request comes.
    #[inline]
    pub fn peek(&self) -> Option<f64> {
        let later = self.later.peek().map(|Reverse((at, _))| f64::from_bits(*at));
        match (self.timed.get(self.next).map(|(at, _)| *at), later) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes the next request.
    pub fn pop(&mut self) -> Option<(f64, RequestId)> {
        let timed = self.timed.get(self.next).copied();
        let later = self.later.peek().map(|Reverse((at, _))| f64::from_bits(*at));
        if let Some((at, request)) = timed
            && later.is_none_or(|later| at <= later)
        {
            self.next += 1;
            return Some((at, request));
        }
        self.later.pop().map(|Reverse((at, request))| (f64::from_bits(at), request))
    }

    /// A session's next request comes at `at`.
    pub fn push(&mut self, at: f64, request: RequestId) {
        self.later.push(Reverse((at.max(0.0).to_bits(), request)));
    }

    /// The requests at known times that are still to come: in an open loop all of them.
    pub fn coming(&self) -> &[(f64, RequestId)] {
        &self.timed[self.next..]
    }
}
