//! Whether this is still the same engine: a restarted one has an empty cache.

use crate::clock::now_us;

/// Names one life of the engine.
///
/// Where the engine says when it started, the name follows from that time, so that a restarted *agent* finds the name
/// it used before and the knowledge about the cache stays valid. Elsewhere each suspicion of a restart makes a new
/// name: knowledge lost for nothing costs a few cache hits, knowledge kept wrongly costs wrong decisions.
#[derive(Debug, Default)]
pub(crate) struct Incarnation {
    current: Option<u64>,
    started: Option<u64>,
}

impl Incarnation {
    pub fn current(&self) -> u64 {
        self.current.unwrap_or(0)
    }

    /// The engine was seen. `suspect`: something happened that a restart would explain. Gives whether it is a new life.
    pub fn seen(&mut self, started: Option<f64>, suspect: bool) -> bool {
        let started = started.map(f64::to_bits);
        let same = match (self.started, started) {
            (Some(before), Some(now)) => before == now,
            _ => !suspect,
        };
        let known = self.current.is_some();
        if known && same {
            self.started = started.or(self.started);
            return false;
        }
        self.started = started;
        let next = match started {
            Some(bits) => mix(bits),
            None => now_us().max(self.current().wrapping_add(1)),
        };
        self.current = Some(next.max(1));
        known
    }
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
pub(crate) fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::Incarnation;

    #[test]
    fn the_start_time_decides_where_there_is_one() {
        let mut life = Incarnation::default();
        assert!(!life.seen(Some(1000.5), false), "the first is not a change");
        let first = life.current();
        assert!(!life.seen(Some(1000.5), true), "same start, whatever else happened");
        assert_eq!(life.current(), first);
        assert!(life.seen(Some(1001.0), false));
        assert_ne!(life.current(), first);
        let mut other_agent = Incarnation::default();
        other_agent.seen(Some(1000.5), false);
        assert_eq!(other_agent.current(), first, "a restarted agent names the same life the same");
    }

    #[test]
    fn without_a_start_time_suspicion_decides() {
        let mut life = Incarnation::default();
        life.seen(None, true);
        let first = life.current();
        assert_ne!(first, 0);
        assert!(!life.seen(None, false));
        assert_eq!(life.current(), first);
        assert!(life.seen(None, true));
        assert!(life.current() > first);
    }

    #[test]
    fn a_page_that_begins_to_say_when_it_started_is_no_restart() {
        let mut life = Incarnation::default();
        life.seen(None, false);
        let first = life.current();
        assert!(!life.seen(Some(5.0), false));
        assert_eq!(life.current(), first);
        assert!(life.seen(Some(6.0), false));
    }
}
