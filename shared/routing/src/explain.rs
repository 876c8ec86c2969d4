//! Why a target was picked, for those who ask.
//!
//! A record is made between the pick and the reservation, so that it shows what the policy saw. Decisions that nobody
//! asks about pay one comparison for it.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::fleet::Mode;
use crate::policy::{Decision, Missing, Policy, Reason};
use crate::registry::PolicyName;
use crate::strategy::Picked;

/// Most candidates in a record.
const LISTED: usize = 8;

/// What a decision saw and why it fell as it did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explain {
    /// The strategy asked for, as it was asked for.
    pub asked: Box<str>,
    /// The policy that decided: the strategy's own or a fallback.
    pub policy: PolicyName,
    /// Why this target.
    pub reason: Option<Reason>,
    /// The figure for want of which the policy asked for passed.
    pub missing: Option<Missing>,
    /// How far the replicated state was trusted.
    pub mode: Mode,
    /// Age of the replicated state, microseconds, where the host has set it: [`plan_explained`](crate::plan_explained)
    /// knows no clock but the request's and leaves it alone.
    pub state_age_us: Option<u64>,
    /// Age of the picked target's engine report, microseconds; `None` where its engine has reported nothing.
    pub report_age_us: Option<u64>,
    /// Tokens of the prompt, as far as known.
    pub prompt_tokens: u32,
    /// The target of the prefill leg, where that is another than the one picked.
    pub prefill: Option<Arc<str>>,
    /// What handing over is predicted to take, microseconds.
    pub transfer_us: Option<f32>,
    /// Targets that were eligible.
    pub eligible: usize,
    /// The eight best of them, best first by the policy's measure (by predicted time to first token where the policy
    /// has none), the picked one always among them.
    pub candidates: Vec<Explained>,
    /// Index of the picked one in `candidates`.
    pub chosen: usize,
}

/// A candidate as the decision saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// Name of the target.
    pub name: Arc<str>,
    /// Leading blocks of the prompt that it holds.
    pub cached_blocks: u32,
    /// The tokens that those stand for.
    pub cached_tokens: u32,
    /// Requests in flight there.
    pub requests: u64,
    /// Uncached prompt tokens still to be prefilled there.
    pub queued_tokens: u64,
    /// Predicted time to the first token, microseconds.
    pub ttft_us: f32,
    /// The policy's measure, least is best; `None` where it has none or lacks a figure.
    pub value: Option<f64>,
}

impl Explain {
    /// The target picked; `None` in a record that no decision has filled.
    pub fn picked(&self) -> Option<&Explained> {
        self.candidates.get(self.chosen)
    }

    /// Fills the record anew; `policy` is the code that decided, where there was a choice.
    pub(crate) fn fill(
        &mut self,
        decision: &Decision<'_>,
        picked: &Picked,
        policy: Option<&dyn Policy>,
        mode: Mode,
    ) {
        let request = decision.request;
        let chosen = &decision.candidates[picked.choice.index];
        let taken_us = decision.figures(chosen).taken_us;
        *self = Self {
            asked: request.strategy.label().into(),
            policy: picked.policy,
            reason: Some(picked.choice.reason),
            missing: picked.missing,
            mode,
            state_age_us: None,
            report_age_us: (taken_us != 0).then(|| request.now_us.saturating_sub(taken_us)),
            prompt_tokens: request.prompt_tokens,
            prefill: None,
            transfer_us: None,
            eligible: decision.candidates.len(),
            candidates: Vec::with_capacity(LISTED),
            chosen: 0,
        };
        let mut best: Vec<(Rank, usize)> = Vec::with_capacity(LISTED + 1);
        let mut of_chosen = None;
        let mut rank = |index: usize, value: Option<f64>| {
            let rank = Rank::new(value, decision.predict(&decision.candidates[index]).ttft);
            if index == picked.choice.index {
                of_chosen = Some(rank);
            }
            if best.len() == LISTED && best.last().is_some_and(|(last, _)| !rank.is_before(last)) {
                return;
            }
            let at = best.partition_point(|(other, _)| !rank.is_before(other));
            best.insert(at, (rank, index));
            best.truncate(LISTED);
        };
        match policy {
            Some(policy) => policy.values(decision, &mut rank),
            None => (0..decision.candidates.len()).for_each(|index| rank(index, None)),
        }
        if let Some(rank) = of_chosen
            && !best.iter().any(|(_, index)| *index == picked.choice.index)
        {
            best.truncate(LISTED - 1);
            best.push((rank, picked.choice.index));
        }
        for (rank, index) in best {
            let candidate = &decision.candidates[index];
            if index == picked.choice.index {
                self.chosen = self.candidates.len();
            }
            self.candidates.push(Explained {
                name: decision.target(candidate).name.clone(),
                cached_blocks: candidate.cached_blocks,
                cached_tokens: request.tokens_of(candidate.cached_blocks),
                requests: candidate.requests,
                queued_tokens: candidate.queued_tokens,
                ttft_us: rank.ttft,
                value: rank.value,
            });
        }
    }

    /// The record as one line of JSON in ASCII, fit for a header. Candidates are left out from the last until it has at
    /// most `limit` bytes; what remains without any (bounded by the lengths of names) is not shortened further.
    pub fn to_json(&self, limit: usize) -> String {
        let mut shown = self.candidates.len();
        loop {
            let text = self.json(shown);
            if text.len() <= limit || shown == 0 {
                return text;
            }
            shown -= 1;
        }
    }

    fn json(&self, shown: usize) -> String {
        let mut out = String::with_capacity(256 + 160 * shown);
        // Writing to a string cannot fail, here and below.
        let _ = write!(out, "{{\"policy\":\"{}\",\"asked\":", self.policy);
        string(&mut out, &self.asked);
        let _ = write!(out, ",\"reason\":\"{}\",\"chosen\":", self.reason.map_or("", Reason::as_str));
        string(&mut out, self.picked().map_or("", |picked| &picked.name));
        if let Some(prefill) = &self.prefill {
            out.push_str(",\"prefill\":");
            string(&mut out, prefill);
        }
        if let Some(transfer) = self.transfer_us {
            out.push_str(",\"transfer_ms\":");
            number(&mut out, f64::from(transfer) / 1e3);
        }
        if let Some(Missing(figure)) = self.missing {
            out.push_str(",\"missing\":");
            string(&mut out, figure);
        }
        let _ = write!(out, ",\"mode\":\"{}\"", self.mode.as_str());
        for (name, age) in [("state_age_ms", self.state_age_us), ("report_age_ms", self.report_age_us)] {
            if let Some(age) = age {
                let _ = write!(out, ",\"{name}\":");
                number(&mut out, age as f64 / 1e3);
            }
        }
        if let Some(picked) = self.picked() {
            out.push_str(",\"predicted_ttft_ms\":");
            number(&mut out, f64::from(picked.ttft_us) / 1e3);
        }
        let _ = write!(out, ",\"prompt_tokens\":{},\"eligible\":{}", self.prompt_tokens, self.eligible);
        out.push_str(",\"candidates\":[");
        for (at, candidate) in self.candidates.iter().take(shown).enumerate() {
            out.push_str(if at == 0 { "{\"name\":" } else { ",{\"name\":" });
            string(&mut out, &candidate.name);
            let _ = write!(
                out,
                ",\"cached_blocks\":{},\"cached_tokens\":{},\"requests\":{},\"queued_tokens\":{},\"ttft_ms\":",
                candidate.cached_blocks, candidate.cached_tokens, candidate.requests, candidate.queued_tokens,
            );
            number(&mut out, f64::from(candidate.ttft_us) / 1e3);
            if let Some(value) = candidate.value {
                out.push_str(",\"value\":");
                number(&mut out, value);
            }
            out.push('}');
        }
        out.push_str("]}");
        out
    }
}

/// Where a candidate stands among the others.
#[derive(Clone, Copy)]
struct Rank {
    value: Option<f64>,
    ttft: f32,
}

impl Rank {
    fn new(value: Option<f64>, ttft: f32) -> Self {
        Self { value: value.filter(|value| !value.is_nan()), ttft }
    }

    /// What has no measure comes last.
    fn is_before(&self, other: &Self) -> bool {
        let by_value = match (self.value, other.value) {
            (Some(own), Some(others)) => own.total_cmp(&others),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => std::cmp::Ordering::Equal,
        };
        by_value.then(self.ttft.total_cmp(&other.ttft)).is_lt()
    }
}

/// A JSON number of at most about twelve characters; what JSON has no number for is null.
fn number(out: &mut String, value: f64) {
    let size = value.abs();
    let _ = if !value.is_finite() {
        write!(out, "null")
    } else if value.fract() == 0.0 && size < 1e12 {
        write!(out, "{}", value as i64)
    } else if (1e-2..1e9).contains(&size) {
        write!(out, "{value:.3}")
    } else {
        write!(out, "{value:.3e}")
    };
}

/// A JSON string in ASCII: it may become a header's value.
fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests_support::{empty_fleet, entry};
    use crate::{PlanRequest, Reservation, Scratch, Settings, Strategy, plan_explained};

    fn explained(policy: PolicyName, busy: &[u64]) -> (Explain, String) {
        let fleet = empty_fleet();
        let entries: Vec<_> = (0..busy.len()).map(|i| entry(i as u16, &format!("t{i}"), "m")).collect();
        fleet.publish(entries.iter().cloned().map(Some).collect());
        let held: Vec<_> = entries
            .iter()
            .zip(busy)
            .flat_map(|(entry, count)| (0..*count).map(|_| Reservation::new(entry.clone(), 10, 10, 1)))
            .collect();
        let strategy = Strategy::new(policy, &Settings::default());
        let request = PlanRequest { prompt_tokens: 100, now_us: 5, ..PlanRequest::new("m", &strategy) };
        let mut explain = Explain::default();
        let plan = plan_explained(&request, &fleet, &mut Scratch::new(3), &mut explain).unwrap();
        drop(held);
        let name = plan.target().name.to_string();
        (explain, name)
    }

    #[test]
    fn the_best_are_listed_first_and_the_picked_one_is_named() {
        let busy = [9, 3, 7, 1, 8, 2, 6, 4, 5, 10, 11];
        let (explain, picked) = explained(PolicyName::LeastRequest, &busy);
        let names: Vec<_> = explain.candidates.iter().map(|c| &*c.name).collect();
        assert_eq!(names, ["t3", "t5", "t1", "t7", "t8", "t6", "t2", "t4"]);
        assert_eq!((picked.as_str(), explain.picked().map(|c| c.requests)), ("t3", Some(1)));
        assert_eq!((explain.eligible, explain.reason), (11, Some(Reason::LeastRequests)));
        assert_eq!(explain.candidates[2].value, Some(3.0));
        assert_eq!((explain.candidates[2].requests, explain.candidates[2].queued_tokens), (3, 30));
    }

    #[test]
    fn a_policy_without_a_measure_lists_by_prediction_and_still_shows_its_pick() {
        let busy: Vec<u64> = (0..40).collect();
        for _ in 0..20 {
            let (explain, picked) = explained(PolicyName::Random, &busy);
            assert_eq!(explain.candidates.len(), 8);
            assert_eq!(explain.picked().map(|c| &*c.name), Some(picked.as_str()));
            assert!(explain.candidates.iter().all(|c| c.value.is_none()));
        }
    }

    #[test]
    fn json_is_one_bounded_line_of_ascii() {
        let (mut explain, _) = explained(PolicyName::LeastRequest, &[2, 1, 0]);
        explain.state_age_us = Some(1_500);
        let text = explain.to_json(2048);
        let head = "{\"policy\":\"least-request\",\"asked\":\"least-request\",\"reason\":\"least_requests\",\
                    \"chosen\":\"t2\",\"mode\":\"fresh\",\"state_age_ms\":1.500,\"predicted_ttft_ms\":";
        assert!(text.starts_with(head), "{text}");
        assert!(
            text.contains(",\"prompt_tokens\":100,\"eligible\":3,\"candidates\":[{\"name\":\"t2\","),
            "{text}"
        );
        explain.candidates[1].name = "a\"\\\r\n\u{e9}\u{1f980}".into();
        explain.candidates[1].value = Some(f64::INFINITY);
        let text = explain.to_json(2048);
        assert!(text.contains(r#""a\"\\\u000d\u000a\u00e9\ud83e\udd80""#), "{text}");
        assert!(text.contains("\"value\":null"), "{text}");
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        for limit in [0, 300, 400, 500] {
            let short = explain.to_json(limit);
            assert!(short.len() <= limit.max(260) && short.ends_with("]}"), "{short}");
        }
    }

    #[test]
    fn numbers_stay_short() {
        for (value, text) in [
            (0.0, "0"),
            (-3.0, "-3"),
            (1234.5678, "1234.568"),
            (1e-9, "1.000e-9"),
            (1.5e300, "1.500e300"),
            (f64::NAN, "null"),
        ] {
            let mut out = String::new();
            number(&mut out, value);
            assert_eq!(out, text);
        }
    }
}
