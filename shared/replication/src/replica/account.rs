//! Load accounting without double counting (house rule: what the gateways have in flight is exact; of an engine's
//! report only what goes beyond it counts, as foreign traffic).
//!
//! A report is old when it arrives. To subtract what the gateways had in flight *then*, each target keeps a short
//! history of that number: one entry per change, at most one per sampling interval. A time before the oldest entry
//! takes the oldest.
//!
//! This gateway's own requests and those of the others have a history each, for news of the others is late: what they
//! had in flight when a report was taken is known here a trip through the scheduler later. So the others' history is
//! asked for that later time, and a report is looked at again when news arrives that may speak of its time.

use fairlead_wire::msg::RankLoad;

const LEN: usize = 64;

/// Requests in flight at one target over the last [`LEN`] changes.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// (time, requests), a ring.
    entries: Vec<(u64, u32)>,
    /// Oldest entry once the ring is full.
    start: usize,
}

impl History {
    /// Notes that `requests` are in flight from `now_us` on. Whether that is a change.
    pub(crate) fn note(&mut self, now_us: u64, requests: u32) -> bool {
        if let Some(last) = self.last_mut() {
            if last.1 == requests {
                return false;
            }
            if last.0 >= now_us {
                last.1 = requests;
                return true;
            }
        }
        if self.entries.len() < LEN {
            self.entries.push((now_us, requests));
        } else {
            self.entries[self.start] = (now_us, requests);
            self.start = (self.start + 1) % LEN;
        }
        true
    }

    /// Requests in flight at a past time.
    pub(crate) fn at(&self, time_us: u64) -> u32 {
        let (newer, older) = self.entries.split_at(self.start);
        // Oldest to newest is `older` then `newer`; look from the newest back.
        let found = newer.iter().rev().chain(older.iter().rev()).find(|(since, _)| *since <= time_us);
        let oldest = older.first().or(newer.first());
        found.or(oldest).map_or(0, |(_, requests)| *requests)
    }

    fn last_mut(&mut self) -> Option<&mut (u64, u32)> {
        let last = if self.start == 0 { self.entries.len().checked_sub(1)? } else { self.start - 1 };
        self.entries.get_mut(last)
    }
}

/// Requests that a report shows beyond what the gateways had in flight at its time.
pub(crate) fn foreign(load: &RankLoad, in_flight_then: u32) -> Option<u32> {
    let reported = match (load.running, load.waiting) {
        (None, None) => return None,
        (running, waiting) => running.unwrap_or(0).saturating_add(waiting.unwrap_or(0)),
    };
    Some(reported.saturating_sub(in_flight_then))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_answers_the_past() {
        let mut history = History::default();
        assert_eq!(history.at(5), 0);
        for (time, requests) in [(10, 1), (20, 1), (30, 4), (30, 5), (40, 2)] {
            history.note(time, requests);
        }
        for (time, want) in [(0, 1), (10, 1), (29, 1), (30, 5), (39, 5), (40, 2), (u64::MAX, 2)] {
            assert_eq!(history.at(time), want, "at {time}");
        }
        for i in 0..1_000u32 {
            history.note(100 + u64::from(i), i);
        }
        assert_eq!(history.entries.len(), LEN);
        assert_eq!(history.at(1_099), 999);
        assert_eq!(history.at(1_050), 950);
        assert_eq!(history.at(0), 1_000 - LEN as u32, "older than all: the oldest");
    }

    #[test]
    fn only_what_goes_beyond_is_foreign() {
        let load = |running, waiting| RankLoad { running, waiting, ..RankLoad::default() };
        for (load, then, want) in [
            (load(None, None), 3, None),
            (load(Some(5), None), 3, Some(2)),
            (load(Some(5), Some(4)), 3, Some(6)),
            (load(Some(1), Some(0)), 3, Some(0)),
            (load(None, Some(2)), 0, Some(2)),
        ] {
            assert_eq!(foreign(&load, then), want);
        }
    }
}
