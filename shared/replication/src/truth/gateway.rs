//! A gateway's session: what it has been sent, what it has in flight, what of the others it has not been told yet.

use ahash::{AHashMap, AHashSet};
use fairlead_wire::limits::MAX_TARGETS;
use fairlead_wire::msg::{GatewayLoad, InFlight};

/// Load changes that a gateway has not been told.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Slots whose engine load changed, a bit each.
    pub(crate) engines: Vec<u64>,
    pub(crate) engines_any: bool,
    /// Packed targets by session number of another gateway.
    pub(crate) peers: AHashMap<u32, AHashSet<u32>>,
    /// Sessions that ended.
    pub(crate) gone: Vec<u32>,
    /// All peers and the list of live sessions are due.
    pub(crate) refresh: bool,
    /// Since when something has been waiting.
    pub(crate) since_us: Option<u64>,
}

impl Dirty {
    pub(crate) fn engine(&mut self, slot: u16, now_us: u64) {
        if self.engines.is_empty() {
            self.engines = vec![0; MAX_TARGETS.div_ceil(64)];
        }
        if let Some(word) = self.engines.get_mut(usize::from(slot) / 64) {
            *word |= 1 << (slot % 64);
            self.engines_any = true;
            self.touch(now_us);
        }
    }

    /// Up to `max` dirty slots, taken.
    pub(crate) fn take_engines(&mut self, max: usize) -> Vec<u16> {
        let mut slots = Vec::new();
        if !self.engines_any {
            return slots;
        }
        for (index, word) in self.engines.iter_mut().enumerate() {
            while *word != 0 {
                if slots.len() == max {
                    return slots;
                }
                slots.push((index * 64) as u16 + word.trailing_zeros() as u16);
                *word &= *word - 1;
            }
        }
        self.engines_any = false;
        slots
    }

    pub(crate) fn touch(&mut self, now_us: u64) {
        self.since_us.get_or_insert(now_us);
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.engines_any && self.peers.is_empty() && self.gone.is_empty() && !self.refresh
    }
}

/// How far a gateway has been brought.
pub(crate) struct Stream {
    /// Sequence up to which it has been sent frames (or the snapshot it is being sent).
    pub(crate) cursor: u64,
    /// Sequence of the snapshot that it is being sent, and its next chunk.
    pub(crate) snapshot: Option<(u64, usize)>,
    /// Sequence and end of the last snapshot sent: a resume for less, soon after, is answered by it already.
    pub(crate) served: Option<(u64, u64)>,
}

pub(crate) struct Gateway {
    /// Names the session to the other gateways.
    pub(crate) number: u32,
    pub(crate) stream: Stream,
    pub(crate) dirty: Dirty,
    /// Version of the newest [`GatewayLoad`].
    pub(crate) version: u64,
    /// What it has in flight, by packed target; zero entries are absent.
    pub(crate) in_flight: AHashMap<u32, InFlight>,
}

impl Gateway {
    /// Takes a load message; returns what has changed, as before and as now.
    pub(crate) fn load(
        &mut self,
        load: &GatewayLoad,
        known: impl Fn(u32) -> bool,
    ) -> Vec<(InFlight, InFlight)> {
        if load.version <= self.version {
            return Vec::new();
        }
        self.version = load.version;
        let mut changed = Vec::new();
        if load.full {
            let listed: AHashSet<u32> = load.targets.iter().map(|entry| entry.target).collect();
            self.in_flight.retain(|target, before| {
                let stays = listed.contains(target);
                if !stays {
                    changed.push((*before, nothing_at(*target)));
                }
                stays
            });
        }
        for entry in &load.targets {
            if !known(entry.target) {
                continue;
            }
            let idle = *entry == nothing_at(entry.target);
            let before = if idle {
                self.in_flight.remove(&entry.target)
            } else {
                self.in_flight.insert(entry.target, *entry)
            };
            let before = before.unwrap_or(nothing_at(entry.target));
            if before != *entry {
                changed.push((before, *entry));
            }
        }
        changed
    }

    pub(crate) fn in_flight_at(&self, target: u32) -> InFlight {
        self.in_flight.get(&target).copied().unwrap_or(nothing_at(target))
    }
}

/// A gateway without requests at a target.
pub(crate) fn nothing_at(target: u32) -> InFlight {
    InFlight { target, ..InFlight::default() }
}
