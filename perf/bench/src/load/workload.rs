//! What is asked: a system prompt that all share and user messages that are nobody else's, or what a trace says.

use super::args::LoadArgs;
use super::bound::InfiniteCache;
use crate::rng::Rng;
use fairlead_sim::trace::{Frame, Trace, Writer};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const WORDS: [&str; 32] = [
    "harbour", "channel", "beacon", "current", "pilot", "ledger", "signal", "anchor", "compass", "voyage",
    "cargo", "weather", "island", "sailor", "engine", "captain", "lantern", "passage", "horizon", "station",
    "measure", "balance", "request", "promise", "pattern", "library", "gateway", "council", "journey",
    "shelter", "village", "evening",
];
/// Bytes of text per token.
const TOKEN_BYTES: usize = 4;

/// Words that depend on `seed`, `tokens` tokens of them.
pub(crate) fn words(seed: u64, tokens: u32) -> String {
    let bytes = tokens as usize * TOKEN_BYTES;
    let mut rng = Rng::new(seed);
    let mut out = String::with_capacity(bytes + 8);
    while out.len() < bytes {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(WORDS[rng.next() as usize % WORDS.len()]);
    }
    out.truncate(bytes);
    out
}

/// What all requests of a run have in common.
#[derive(Debug)]
pub(crate) struct Script {
    /// Everything up to the first message that differs.
    head: String,
    /// Everything after the messages.
    tail: String,
    seed: u64,
    user_tokens: u32,
}

impl Script {
    pub fn new(model: &str, seed: u64, tokens: [u32; 3], stream: bool) -> Self {
        let [system, user_tokens, output] = tokens;
        let mut head = format!("{{\"model\":{},\"messages\":[", Value::from(model));
        if system > 0 {
            let text = words(seed ^ 0x5953, system);
            head.push_str(&format!("{{\"role\":\"system\",\"content\":{}}},", Value::from(text)));
        }
        let tail = if stream {
            format!(
                "],\"max_tokens\":{output},\"stream\":true,\"stream_options\":{{\"include_usage\":true}}}}"
            )
        } else {
            format!("],\"max_tokens\":{output}}}")
        };
        Self { head, tail, seed, user_tokens }
    }
}

/// One conversation: its history grows by what was really answered.
#[derive(Debug)]
pub(crate) struct Session {
    script: Arc<Script>,
    number: u64,
    turn: u32,
    messages: String,
}

impl Session {
    pub fn new(script: &Arc<Script>, number: u64) -> Self {
        Self { script: Arc::clone(script), number, turn: 0, messages: String::new() }
    }

    /// The body of the next turn.
    pub fn ask(&mut self) -> Vec<u8> {
        let seed =
            self.script.seed ^ self.number.wrapping_mul(0x1_0001).wrapping_add(u64::from(self.turn) << 40);
        let mut text = format!("{}.{} ", self.number, self.turn);
        text.push_str(&words(seed, self.script.user_tokens));
        text.truncate(self.script.user_tokens as usize * TOKEN_BYTES);
        self.turn += 1;
        self.push("user", &text);
        let s = &self.script;
        [s.head.as_bytes(), self.messages.as_bytes(), s.tail.as_bytes()].concat()
    }

    /// Adds the answer to the history.
    pub fn answered(&mut self, text: &str) {
        self.push("assistant", text);
    }

    fn push(&mut self, role: &str, text: &str) {
        if !self.messages.is_empty() {
            self.messages.push(',');
        }
        self.messages.push_str(&format!("{{\"role\":\"{role}\",\"content\":{}}}", Value::from(text)));
    }
}

/// Sessions by number, and what each asks.
pub(crate) enum Source {
    /// Made up.
    Script { script: Arc<Script>, turns: u32, think: f64, seed: u64 },
    /// Recorded.
    Trace(Arc<Player>),
}

/// A trace and how it is turned into requests.
#[derive(Debug)]
pub(crate) struct Player {
    pub trace: Trace,
    pub speed: f64,
    out_scale: f64,
    block_tokens: u32,
    token_bytes: u32,
    seed: u64,
    head: String,
    tail: &'static str,
    frame: Frame,
}

impl Player {
    pub fn new(trace: Trace, model: &str, args: &LoadArgs) -> Self {
        let head =
            format!("{{\"model\":{},\"messages\":[{{\"role\":\"user\",\"content\":\"", Value::from(model));
        let tail =
            if args.stream { ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}" } else { "}" };
        Self {
            trace,
            speed: args.speed,
            out_scale: args.out_scale,
            block_tokens: args.trace_block,
            token_bytes: args.token_bytes,
            seed: args.seed,
            head,
            tail,
            frame: if args.bare_template { Frame { before: 0, behind: 0 } } else { Frame::of_sim() },
        }
    }
}

/// One session under way.
pub(crate) enum Dialogue {
    Script { session: Session, rng: Rng, turns: u32, think: f64 },
    Trace { player: Arc<Player>, writer: Writer, talk: usize, next: usize },
}

impl Source {
    pub fn open(&self, number: u64) -> Dialogue {
        match self {
            Self::Script { script, turns, think, seed } => Dialogue::Script {
                session: Session::new(script, number),
                rng: Rng::new(seed ^ number.wrapping_mul(0x0074_6869_6e6b)),
                turns: *turns,
                think: *think,
            },
            Self::Trace(p) => Dialogue::Trace {
                player: Arc::clone(p),
                writer: Writer::new(p.block_tokens, p.token_bytes, p.frame, p.seed),
                talk: usize::try_from(number).unwrap_or(usize::MAX),
                next: 0,
            },
        }
    }
}

impl Dialogue {
    /// The pause before the next turn; `None` after the last.
    pub fn think(&mut self) -> Option<Duration> {
        let seconds = match self {
            Self::Script { session, rng, turns, think } => {
                (session.turn < *turns).then(|| *think * (1.0 + rng.unit() / 2.0))?
            }
            Self::Trace { player, talk, next, .. } => {
                player.trace.talks.get(*talk)?.asks.get(*next)?.think / player.speed
            }
        };
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// The body of the next turn, entered in `cache`.
    pub fn ask(&mut self, model: &str, cache: &mut InfiniteCache) -> Vec<u8> {
        match self {
            Self::Script { session, .. } => {
                let body = session.ask();
                cache.send(model, &body);
                body
            }
            Self::Trace { player, writer, talk, next } => {
                let Some(ask) = player.trace.talks.get(*talk).and_then(|t| t.asks.get(*next)) else {
                    return Vec::new();
                };
                let own = ((*talk as u64) << 24) | *next as u64;
                *next += 1;
                let mut body = Vec::with_capacity(ask.input as usize * player.token_bytes as usize + 256);
                body.extend_from_slice(player.head.as_bytes());
                writer.write(ask, own, &mut body);
                let output = (f64::from(ask.output) * player.out_scale).round().max(1.0) as u32;
                body.extend_from_slice(format!("\"}}],\"max_tokens\":{output}{}", player.tail).as_bytes());
                cache.send_path(writer.path(), player.block_tokens, ask.input);
                body
            }
        }
    }

    /// Adds the answer to the history. A recorded prompt has its own history.
    pub fn answered(&mut self, text: &str) {
        if let Self::Script { session, .. } = self {
            session.answered(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_grows_and_shares_its_system_prompt() {
        let script = Arc::new(Script::new("m", 3, [10, 5, 7], true));
        let mut a = Session::new(&script, 0);
        let mut b = Session::new(&script, 1);
        let first: Value = serde_json::from_slice(&a.ask()).unwrap();
        let other: Value = serde_json::from_slice(&b.ask()).unwrap();
        assert_eq!(first["messages"][0], other["messages"][0]);
        assert_eq!(first["messages"][0]["content"].as_str().unwrap().len(), 40);
        assert_ne!(first["messages"][1], other["messages"][1]);
        a.answered("so \"it\" is");
        let second: Value = serde_json::from_slice(&a.ask()).unwrap();
        assert_eq!(second["messages"].as_array().unwrap().len(), 4);
        assert_eq!(second["messages"][2]["content"], "so \"it\" is");
        assert_eq!(second["max_tokens"], 7);
        assert_eq!(second["stream_options"]["include_usage"], true);
    }
}
