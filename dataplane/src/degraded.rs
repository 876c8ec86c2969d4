//! Policies that have to do without a figure, because no target reports it: told once, counted as long as it lasts.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use fairlead_routing::{Missing, PolicyName};

/// Pairs of policy and figure that are kept apart; more than there are. Those beyond are not shown.
const PAIRS: usize = 128;
/// A policy that decides for two models, of which one lacks a figure, is degraded: recovered it is only when its
/// decisions have had all figures for so long, microseconds.
const HOLD_US: u64 = 2_000_000;
/// A pair's time is written anew at most this often, so that the shards do not contend for it, microseconds.
const GRAIN_US: u64 = 250_000;

#[derive(Debug)]
struct Pair {
    key: OnceLock<(PolicyName, &'static str)>,
    /// When the figure was last missing.
    missing_us: AtomicU64,
    on: AtomicBool,
}

/// Which policies lack which figures.
#[derive(Debug)]
pub struct Degraded {
    pairs: Box<[Pair]>,
    /// How many are on: where there are none, a decision pays one load.
    on: AtomicUsize,
}

impl Default for Degraded {
    fn default() -> Self {
        let pair =
            |_| Pair { key: OnceLock::new(), missing_us: AtomicU64::new(0), on: AtomicBool::new(false) };
        Self { pairs: (0..PAIRS).map(pair).collect(), on: AtomicUsize::new(0) }
    }
}

impl Degraded {
    /// Takes a decision into account: `policy` was asked and lacked `missing`, or had all that it needs.
    pub fn note(&self, policy: PolicyName, missing: Option<Missing>, now_us: u64) {
        match missing {
            Some(Missing(figure)) => self.missing(policy, figure, now_us),
            None if self.on.load(Ordering::Relaxed) == 0 => {}
            None => self.complete(policy, now_us),
        }
    }

    fn missing(&self, policy: PolicyName, figure: &'static str, now_us: u64) {
        // A pair, once it has its key, keeps it; whoever loses the race for a free one takes it or the next.
        let mut first = false;
        let pair = self.pairs.iter().find(|pair| {
            *pair.key.get_or_init(|| {
                first = true;
                (policy, figure)
            }) == (policy, figure)
        });
        let Some(pair) = pair else { return };
        if now_us.saturating_sub(pair.missing_us.load(Ordering::Relaxed)) >= GRAIN_US {
            pair.missing_us.store(now_us, Ordering::Relaxed);
        }
        if pair.on.load(Ordering::Relaxed) || pair.on.swap(true, Ordering::Relaxed) {
            return;
        }
        self.on.fetch_add(1, Ordering::Relaxed);
        if first {
            tracing::warn!(%policy, figure, "no target reports a figure that the policy needs: its fallback decides");
        } else {
            tracing::info!(%policy, figure, "no target reports a figure that the policy needs, again");
        }
    }

    fn complete(&self, policy: PolicyName, now_us: u64) {
        for pair in &self.pairs {
            let Some((of, figure)) = pair.key.get() else { return };
            let since = now_us.saturating_sub(pair.missing_us.load(Ordering::Relaxed));
            if *of == policy && since >= HOLD_US && pair.on.swap(false, Ordering::Relaxed) {
                self.on.fetch_sub(1, Ordering::Relaxed);
                tracing::info!(%policy, figure, "targets report what the policy needs again");
            }
        }
    }

    /// Every pair there has been, and whether it is one now.
    pub fn each(&self, mut tell: impl FnMut(PolicyName, &'static str, bool)) {
        for pair in &self.pairs {
            let Some((policy, figure)) = pair.key.get() else { return };
            tell(*policy, figure, pair.on.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PolicyName = PolicyName::LeastRequest;
    const B: PolicyName = PolicyName::Random;

    fn shown(degraded: &Degraded) -> Vec<(PolicyName, &'static str, bool)> {
        let mut all = Vec::new();
        degraded.each(|policy, figure, on| all.push((policy, figure, on)));
        all
    }

    #[test]
    fn a_policy_is_degraded_until_it_has_had_its_figures_for_a_while() {
        let degraded = Degraded::default();
        degraded.note(A, None, 1);
        assert!(shown(&degraded).is_empty());
        degraded.note(A, Some(Missing("x")), 5_000_000);
        degraded.note(B, Some(Missing("x")), 5_000_000);
        degraded.note(A, None, 6_000_000);
        assert_eq!(shown(&degraded), [(A, "x", true), (B, "x", true)], "another model's requests");
        degraded.note(A, Some(Missing("x")), 6_500_000);
        degraded.note(A, None, 7_500_000);
        assert_eq!(shown(&degraded), [(A, "x", true), (B, "x", true)]);
        degraded.note(A, None, 8_500_000);
        assert_eq!(shown(&degraded), [(A, "x", false), (B, "x", true)]);
        degraded.note(A, Some(Missing("x")), 9_000_000);
        assert_eq!(shown(&degraded), [(A, "x", true), (B, "x", true)], "again");
    }

    #[test]
    fn what_finds_no_room_is_left_out() {
        let degraded = Degraded::default();
        let figures: Vec<&'static str> =
            (0..PAIRS + 3).map(|n| &*Box::leak(n.to_string().into_boxed_str())).collect();
        for figure in &figures {
            degraded.note(A, Some(Missing(figure)), 1);
        }
        let all = shown(&degraded);
        assert_eq!((all.len(), all[PAIRS - 1]), (PAIRS, (A, figures[PAIRS - 1], true)));
    }
}
