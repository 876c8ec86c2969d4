//! Models whose prefill side is down: their requests are served whole, which is slow or not what the fleet is made for. Told
//! once when it begins and once when it ends, and counted as long as it lasts.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use fairlead_routing::{Plan, Reason};

/// Models that are kept apart. Those beyond are not shown.
const MODELS: usize = 64;
/// The prefill side is back only when it has been in use for so long, microseconds: while it comes and goes, that is not
/// told each time.
const HOLD_US: u64 = 2_000_000;
/// A model's time is written anew at most this often, so that the shards do not contend for it, microseconds.
const GRAIN_US: u64 = 250_000;

#[derive(Debug)]
struct Entry {
    model: OnceLock<Arc<str>>,
    /// When a request last found no prefill target.
    down_us: AtomicU64,
    on: AtomicBool,
}

/// Which models they are.
#[derive(Debug)]
pub struct PrefillDown {
    entries: Box<[Entry]>,
    /// How many are on: where there are none, a decision pays at most one load.
    on: AtomicUsize,
}

impl Default for PrefillDown {
    fn default() -> Self {
        let entry =
            |_| Entry { model: OnceLock::new(), down_us: AtomicU64::new(0), on: AtomicBool::new(false) };
        Self { entries: (0..MODELS).map(entry).collect(), on: AtomicUsize::new(0) }
    }
}

impl PrefillDown {
    /// A request that could be split has found neither a pair nor a target for the whole of it.
    pub fn no_pair(&self, model: &Arc<str>, now_us: u64) {
        self.down(model, now_us);
    }

    /// Takes a request's first decision into account. (Later ones avoid targets that have failed this request only.)
    pub fn note(&self, model: &Arc<str>, plan: &Plan, now_us: u64) {
        match plan.reason {
            Reason::PrefillDown => self.down(model, now_us),
            _ if self.on.load(Ordering::Relaxed) == 0 => {}
            // Whoever decides between whole and split has seen both sides.
            Reason::Local | Reason::LocalPrefix | Reason::LocalBacklog => self.up(model, now_us),
            _ if plan.prefill.is_some() => self.up(model, now_us),
            _ => {}
        }
    }

    fn down(&self, model: &Arc<str>, now_us: u64) {
        // An entry, once it has its model, keeps it; whoever loses the race for a free one takes it or the next.
        let Some(entry) =
            self.entries.iter().find(|entry| entry.model.get_or_init(|| model.clone()) == model)
        else {
            return;
        };
        if now_us.saturating_sub(entry.down_us.load(Ordering::Relaxed)) >= GRAIN_US {
            entry.down_us.store(now_us, Ordering::Relaxed);
        }
        if entry.on.load(Ordering::Relaxed) || entry.on.swap(true, Ordering::Relaxed) {
            return;
        }
        self.on.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%model, "no prefill target can be used: requests are served whole, where any target does that");
    }

    fn up(&self, model: &Arc<str>, now_us: u64) {
        for entry in &self.entries {
            let Some(of) = entry.model.get() else { return };
            let since = now_us.saturating_sub(entry.down_us.load(Ordering::Relaxed));
            if of == model && since >= HOLD_US && entry.on.swap(false, Ordering::Relaxed) {
                self.on.fetch_sub(1, Ordering::Relaxed);
                tracing::info!(%model, "prefill targets are in use again");
            }
        }
    }

    /// Every model that there has been, and whether it is one now.
    pub fn each(&self, mut tell: impl FnMut(&str, bool)) {
        for entry in &self.entries {
            let Some(model) = entry.model.get() else { return };
            tell(model, entry.on.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(down: &PrefillDown) -> Vec<(String, bool)> {
        let mut all = Vec::new();
        down.each(|model, on| all.push((model.to_owned(), on)));
        all
    }

    #[test]
    fn a_model_is_down_until_its_prefill_side_was_in_use_for_a_while() {
        let down = PrefillDown::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        down.up(&a, 1);
        assert!(shown(&down).is_empty());
        down.down(&a, 5_000_000);
        down.down(&b, 6_000_000);
        let both = |a, b| vec![("a".to_owned(), a), ("b".to_owned(), b)];
        assert_eq!(shown(&down), both(true, true));
        down.up(&a, 6_900_000);
        assert_eq!(shown(&down), both(true, true), "not yet");
        down.up(&a, 7_000_000);
        down.up(&b, 7_000_000);
        assert_eq!(shown(&down), both(false, true));
        down.down(&a, 7_000_001);
        assert_eq!((shown(&down), down.on.load(Ordering::Relaxed)), (both(true, true), 2));
    }
}
