//! Ways to fail on demand.

use crate::handoff::LegKind;
use serde::{Deserialize, Serialize};

/// What an engine does wrong. Everything off is a healthy engine. Faults of answers touch the routes that carry
/// prompts; with `everywhere` also `/health`, `/metrics` and the rest (never `/sim/...`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Gone: the listener is closed, so connects are refused, and every open connection is reset. The engine's work
    /// is aborted.
    pub refuse: bool,
    /// Takes requests and never answers.
    pub hang: bool,
    /// Streams this many tokens, then nothing more, with the connection open.
    pub hang_after: Option<u32>,
    /// Resets the connection after this many tokens; 0 is before the answer's head.
    pub die_after: Option<u32>,
    /// Closes the connection in good order after this many tokens, the answer unfinished; 0 is after the head.
    pub cut_after: Option<u32>,
    /// Sends nonsense.
    pub garbage: Option<Garbage>,
    /// Answers with this status (400 to 599) and an error body.
    pub status: Option<u16>,
    /// `Retry-After` of such answers, seconds.
    pub retry_after: Option<u32>,
    /// Steps take this many times as long; 0 means 1.
    pub slow: f64,
    /// `/health` says 503 and prompts are refused with 503, as before the model is loaded.
    pub unready: bool,
    /// Holds back this many batches of KV events: they are numbered, but not published.
    pub drop_events: u32,
    /// Batches held back cannot be asked for again either.
    pub forget_events: bool,
    /// Lets the answer faults touch only requests that are this part of a hand-off.
    pub legs: Option<LegKind>,
    /// Decode side: KV does not come, as if each transfer failed.
    pub refuse_kv: bool,
    /// Prefill side: what is computed for others is gone at once, as if it had expired.
    pub lose_kv: bool,
    /// KV transfers take this many times as long; 0 means 1.
    pub slow_transfer: f64,
    /// Lets the answer faults touch every route.
    pub everywhere: bool,
    /// How many requests meet the answer faults (hang to status) before all faults end; no number: all of them.
    pub times: Option<u32>,
    /// Ends all faults after this many milliseconds.
    pub for_ms: Option<u64>,
}

/// Where the nonsense is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Garbage {
    /// Instead of a response head.
    Head,
    /// Instead of the body, under a good head.
    Body,
    /// In the middle of a stream: an event that is not JSON, bytes that are not UTF-8.
    Event,
}

/// Why faults were not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadFaults(pub String);

impl Faults {
    /// Refuses values outside their range, naming them.
    pub fn validate(&self) -> Result<(), BadFaults> {
        if let Some(s) = self.status
            && !(400..=599).contains(&s)
        {
            return Err(BadFaults(format!("status: {s} is outside 400..=599")));
        }
        for (name, factor) in [("slow", self.slow), ("slow_transfer", self.slow_transfer)] {
            if !(0.0..=1e6).contains(&factor) {
                return Err(BadFaults(format!("{name}: {factor} is outside 0..=1000000")));
            }
        }
        if self.times == Some(0) {
            return Err(BadFaults("times: 0 would do nothing, use at least 1".into()));
        }
        Ok(())
    }

    /// Whether answers are touched.
    pub fn touches_answers(&self) -> bool {
        self.hang
            || self.hang_after.is_some()
            || self.die_after.is_some()
            || self.cut_after.is_some()
            || self.garbage.is_some()
            || self.status.is_some()
    }

    /// The faults that one request meets, which is that part of a hand-off; counts `times` down.
    pub fn take(&mut self, leg: Option<LegKind>) -> Option<Self> {
        if !self.touches_answers() || (self.legs.is_some() && self.legs != leg) {
            return None;
        }
        let met = self.clone();
        match &mut self.times {
            Some(1) => *self = Self::default(),
            Some(n) => *n -= 1,
            None => {}
        }
        Some(met)
    }

    /// Whether the next batch of KV events is held back; counts down.
    pub(crate) fn take_event_batch(&mut self) -> bool {
        let held_back = self.drop_events > 0;
        self.drop_events = self.drop_events.saturating_sub(1);
        held_back
    }

    /// How much longer transfers take.
    pub(crate) fn slow_transfers(&self) -> f64 {
        if self.slow_transfer > 0.0 { self.slow_transfer } else { 1.0 }
    }

    /// How much longer steps take.
    pub fn slowness(&self) -> f64 {
        if self.slow > 0.0 { self.slow } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_counts_down_to_health() {
        let mut f = Faults { status: Some(500), times: Some(2), ..Faults::default() };
        assert!(f.take(None).is_some() && f.take(None).is_some() && f.take(None).is_none());
        assert_eq!(f, Faults::default());
    }

    #[test]
    fn faults_may_be_for_one_leg() {
        use LegKind::{Decode, Prefill};
        for (legs, leg, met) in [
            (None, None, true),
            (None, Some(Decode), true),
            (Some(Decode), Some(Decode), true),
            (Some(Decode), Some(Prefill), false),
            (Some(Prefill), None, false),
        ] {
            let mut f = Faults { hang: true, legs, ..Faults::default() };
            assert_eq!(f.take(leg).is_some(), met, "{legs:?} {leg:?}");
        }
        assert_eq!(serde_json::from_str::<Faults>(r#"{"legs":"decode"}"#).unwrap().legs, Some(Decode));
    }

    #[test]
    fn ranges_are_checked() {
        for (text, says) in [
            (r#"{"status":200}"#, "status: 200"),
            (r#"{"slow":-1}"#, "slow: -1"),
            (r#"{"slow_transfer":2e9}"#, "slow_transfer: 2000000000"),
            (r#"{"times":0}"#, "times: 0"),
        ] {
            let f: Faults = serde_json::from_str(text).unwrap();
            assert!(f.validate().unwrap_err().to_string().contains(says));
        }
        assert!(serde_json::from_str::<Faults>(r#"{"stauts":500}"#).is_err());
    }
}
