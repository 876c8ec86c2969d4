//! The options of `fairlead load`.

use fairlead_sim::trace::{Take, Trace};
use std::path::PathBuf;

/// Load on an OpenAI-compatible endpoint.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Base URL of the endpoint, http only; repeat to send requests to several in turn
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: Vec<String>,
    /// Play recorded traffic: Mooncake's or coding sessions (JSON lines) or Azure's (csv), plain or gzipped
    #[arg(long, help_heading = "Recorded traffic", value_name = "FILE", conflicts_with_all =
        ["conversations", "turns", "think", "system_tokens", "user_tokens", "output_tokens"])]
    pub trace: Option<PathBuf>,
    /// Times (and think times) of the trace pass this many times as fast
    #[arg(
        long,
        help_heading = "Recorded traffic",
        requires = "trace",
        default_value_t = 1.0,
        value_name = "FACTOR"
    )]
    pub speed: f64,
    /// Answers have this many times the length that the trace says, at least 1 token
    #[arg(
        long,
        help_heading = "Recorded traffic",
        requires = "trace",
        default_value_t = 1.0,
        value_name = "FACTOR"
    )]
    pub out_scale: f64,
    /// Share of the trace's requests, from the first on, that only warm the caches and are left out of the figures
    #[arg(
        long,
        help_heading = "Recorded traffic",
        requires = "trace",
        default_value_t = 0.1,
        value_name = "SHARE"
    )]
    pub warm_up: f64,
    /// Leave out the trace's requests with longer prompts, tokens; of a session also what follows
    #[arg(long, help_heading = "Recorded traffic", requires = "trace", default_value_t = u32::MAX, hide_default_value = true, value_name = "TOKENS")]
    pub max_input: u32,
    /// Tokens that one block id of the trace stands for
    #[arg(
        long,
        help_heading = "Recorded traffic",
        requires = "trace",
        default_value_t = 512,
        value_name = "TOKENS"
    )]
    pub trace_block: u32,
    /// Bytes of text for each prompt token of the trace; simulated engines count 4 as one
    #[arg(
        long,
        help_heading = "Recorded traffic",
        requires = "trace",
        default_value_t = 4,
        value_name = "BYTES"
    )]
    pub token_bytes: u32,
    /// The engines' chat template adds nothing to a message; without this it adds what simulated engines' does
    #[arg(long, help_heading = "Recorded traffic", requires = "trace")]
    pub bare_template: bool,
    /// Closed loop: this many requests (or conversations) at any time; a trace's own times do not count then
    #[arg(long, conflicts_with = "rate")]
    pub concurrency: Option<u32>,
    /// Open loop: requests per second, Poisson arrivals; conversations start at this rate divided by their turns
    #[arg(long)]
    pub rate: Option<f64>,
    /// Seconds after which no request starts
    #[arg(long)]
    pub duration: Option<f64>,
    /// Requests after which no request starts; of a trace the first so many
    #[arg(long)]
    pub requests: Option<u64>,
    /// Conversations after which none starts
    #[arg(long)]
    pub conversations: Option<u64>,
    /// Turns of a conversation [default: 6 with --conversations, else 1]
    #[arg(long)]
    pub turns: Option<u32>,
    /// Seconds between an answer and the next turn, at least; up to half as much again is added at random
    #[arg(long, default_value_t = 0.0)]
    pub think: f64,
    /// Tokens of the system prompt that all requests share
    #[arg(long, default_value_t = 256)]
    pub system_tokens: u32,
    /// Tokens of each user message
    #[arg(long, default_value_t = 64)]
    pub user_tokens: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64)]
    pub output_tokens: u32,
    /// Model [default: the first of /v1/models]
    #[arg(long)]
    pub model: Option<String>,
    /// Streamed answers
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub stream: bool,
    /// Seed of texts and arrivals
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Further request header, "name: value"; repeat for more
    #[arg(long = "header")]
    pub headers: Vec<String>,
    /// Seconds that a request may take
    #[arg(long, default_value_t = 600.0)]
    pub timeout: f64,
    /// Seconds to wait at the end for answers under way
    #[arg(long, default_value_t = 60.0)]
    pub drain: f64,
    /// Requests in flight at most in an open loop; what would be more is counted as not sent
    #[arg(long, default_value_t = 20_000)]
    pub max_in_flight: usize,
    /// Tokens in a block of the bound's cache
    #[arg(long, default_value_t = 16)]
    pub block_tokens: u32,
    /// Write the results to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Exit with an error when a request failed
    #[arg(long)]
    pub fail_on_error: bool,
}

/// An option outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{option}: {reason}")]
pub struct BadArgs {
    /// The option.
    pub option: &'static str,
    /// Its value and what is allowed.
    pub reason: String,
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arrivals {
    /// So many at any time.
    Closed(u32),
    /// So many sessions per second.
    Open(f64),
    /// When the trace says.
    Recorded,
}

/// The options, checked and completed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub arrivals: Arrivals,
    pub sessions: Option<u64>,
    pub turns: u32,
}

/// Longest time option, seconds.
const DAY: f64 = 86_400.0;
/// Concurrency when neither it nor a rate is given.
const DEFAULT_CONCURRENCY: u32 = 32;
/// Sessions of a trace at any time when nothing else is said.
const DEFAULT_SESSIONS: u32 = 8;
/// Seconds over which conversations start when no rate is given.
const DEFAULT_SPREAD: f64 = 60.0;

impl LoadArgs {
    /// Checks ranges and works out what is not given.
    pub(crate) fn plan(&self) -> Result<Plan, BadArgs> {
        self.check()?;
        let bad = |option, reason: String| Err(BadArgs { option, reason });
        let turns = self.turns.unwrap_or(if self.conversations.is_some() { 6 } else { 1 });
        if !(1..=10_000).contains(&turns) {
            return bad("turns", format!("{turns} is not between 1 and 10000"));
        }
        let by_requests = self.requests.map(|r| r.div_ceil(u64::from(turns)));
        let sessions = match (self.conversations, by_requests) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if sessions.is_none() && self.duration.is_none() {
            return bad("duration", "give --duration, --requests or --conversations".into());
        }
        let arrivals = match (self.rate, self.concurrency, self.conversations) {
            (Some(r), _, _) => Arrivals::Open(r / f64::from(turns)),
            (_, Some(c), _) => Arrivals::Closed(c),
            (_, _, Some(n)) => {
                // With an end given, conversations start early enough to come to theirs.
                let length = f64::from(turns - 1) * self.think * 1.5;
                let spread = self.duration.map_or(DEFAULT_SPREAD, |d| (d - length).max(d / 4.0));
                Arrivals::Open(n as f64 / spread)
            }
            _ => Arrivals::Closed(DEFAULT_CONCURRENCY),
        };
        Ok(Plan { arrivals, sessions, turns })
    }

    /// The same for a trace.
    pub(crate) fn plan_trace(&self, trace: &Trace) -> Result<Plan, BadArgs> {
        self.check()?;
        let arrivals = match (trace.timed(), self.rate, self.concurrency) {
            (true, None, None) => Arrivals::Recorded,
            (true, None, Some(c)) => Arrivals::Closed(c),
            (true, Some(_), _) => {
                return Err(BadArgs {
                    option: "rate",
                    reason: "this trace has times of its own; use --speed".into(),
                });
            }
            (false, Some(r), _) => Arrivals::Open(r),
            (false, None, c) => Arrivals::Closed(c.unwrap_or(DEFAULT_SESSIONS)),
        };
        Ok(Plan { arrivals, sessions: Some(trace.talks.len() as u64), turns: 1 })
    }

    /// What to read of the trace.
    pub(crate) fn take(&self) -> Take {
        Take { requests: self.requests.unwrap_or(u64::MAX), max_input: self.max_input }
    }

    fn check(&self) -> Result<(), BadArgs> {
        let bad = |option, reason: String| Err(BadArgs { option, reason });
        for (option, v, least) in [
            ("duration", self.duration.unwrap_or(1.0), f64::MIN_POSITIVE),
            ("think", self.think, 0.0),
            ("timeout", self.timeout, f64::MIN_POSITIVE),
            ("drain", self.drain, 0.0),
        ] {
            if !(least..=DAY).contains(&v) {
                return bad(option, format!("{v} is not between 0 and {DAY} seconds"));
            }
        }
        if let Some(r) = self.rate
            && !(1e-4..=1e6).contains(&r)
        {
            return bad("rate", format!("{r} is not between 0.0001 and 1000000"));
        }
        if let Some(c) = self.concurrency
            && !(1..=100_000).contains(&c)
        {
            return bad("concurrency", format!("{c} is not between 1 and 100000"));
        }
        for (option, v) in [
            ("system-tokens", self.system_tokens),
            ("user-tokens", self.user_tokens),
            ("output-tokens", self.output_tokens),
        ] {
            if v > 1_000_000 || (v == 0 && option != "system-tokens") {
                return bad(option, format!("{v} is not between 1 and 1000000"));
            }
        }
        if self.block_tokens == 0 {
            return bad("block-tokens", "must be at least 1".into());
        }
        if self.max_in_flight == 0 {
            return bad("max-in-flight", "must be at least 1".into());
        }
        for (option, v, least, most) in [
            ("speed", self.speed, 1e-3, 1e6),
            ("out-scale", self.out_scale, 0.0, 1e3),
            ("warm-up", self.warm_up, 0.0, 0.9),
        ] {
            if !(least..=most).contains(&v) {
                return bad(option, format!("{v} is not between {least} and {most}"));
            }
        }
        for (option, v, most) in
            [("trace-block", self.trace_block, 65_536), ("token-bytes", self.token_bytes, 64)]
        {
            if !(1..=most).contains(&v) {
                return bad(option, format!("{v} is not between 1 and {most}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn plan(line: &str) -> Result<Plan, BadArgs> {
        Cli::parse_from(std::iter::once("load").chain(line.split_whitespace())).load.plan()
    }

    #[test]
    fn arrivals_follow_from_what_is_given() {
        for (line, arrivals, sessions, turns) in [
            ("--duration 5", Arrivals::Closed(32), None, 1),
            ("--duration 5 --concurrency 256", Arrivals::Closed(256), None, 1),
            ("--requests 100 --rate 50", Arrivals::Open(50.0), Some(100), 1),
            ("--requests 100 --rate 50 --turns 5", Arrivals::Open(10.0), Some(20), 5),
            ("--conversations 120", Arrivals::Open(2.0), Some(120), 6),
            ("--conversations 120 --rate 12 --turns 4", Arrivals::Open(3.0), Some(120), 4),
            ("--conversations 9 --concurrency 3 --stream false", Arrivals::Closed(3), Some(9), 6),
        ] {
            let p = plan(line).unwrap();
            assert_eq!((p.arrivals, p.sessions, p.turns), (arrivals, sessions, turns), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, option) in [
            ("", "duration"),
            ("--duration 0", "duration"),
            ("--duration 1 --rate 0", "rate"),
            ("--duration 1 --concurrency 0", "concurrency"),
            ("--duration 1 --user-tokens 0", "user-tokens"),
            ("--duration 1 --turns 0", "turns"),
            ("--duration 1 --think=-1", "think"),
            ("--trace x --warm-up 1", "warm-up"),
            ("--trace x --speed 0", "speed"),
            ("--trace x --token-bytes 0", "token-bytes"),
        ] {
            assert_eq!(plan(line).unwrap_err().option, option, "{line}");
        }
    }
}
