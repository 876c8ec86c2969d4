//! Mapping of a peer's clock to ours, measured with pings.
//!
//! A pong tells the peer's clock at some moment between the ping's departure and the pong's arrival; halfway is the
//! best guess and half the round trip bounds its error. Of the last eight samples the one with the shortest round trip
//! counts, so that a delayed packet does not move the mapping.

use fairlead_wire::msg::{Ping, Pong};

const SAMPLES: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Sample {
    round_trip_us: u64,
    /// Peer's clock less ours.
    offset_us: i64,
}

/// The measured difference of two clocks. One per connection.
#[derive(Clone, Debug, Default)]
pub struct ClockMap {
    samples: Vec<Sample>,
    next: usize,
    outstanding: Option<Ping>,
    last_id: u64,
}

impl ClockMap {
    /// The next ping to send.
    pub fn ping(&mut self, now_us: u64) -> Ping {
        self.last_id += 1;
        let ping = Ping { id: self.last_id, sent_us: now_us };
        self.outstanding = Some(ping);
        ping
    }

    /// Takes the answer. One that does not belong to the last ping is ignored.
    pub fn pong(&mut self, pong: &Pong, now_us: u64) {
        let Some(ping) = self.outstanding else { return };
        if pong.id != ping.id || pong.ping_sent_us != ping.sent_us || now_us < ping.sent_us {
            return;
        }
        self.outstanding = None;
        let round_trip_us = now_us - ping.sent_us;
        let middle = ping.sent_us + round_trip_us / 2;
        let sample = Sample { round_trip_us, offset_us: pong.received_us.wrapping_sub(middle).cast_signed() };
        if self.samples.len() < SAMPLES {
            self.samples.push(sample);
        } else {
            self.samples[self.next] = sample;
            self.next = (self.next + 1) % SAMPLES;
        }
    }

    /// A time of the peer's clock in ours; `None` before the first pong.
    pub fn to_local(&self, theirs_us: u64) -> Option<u64> {
        let best = self.samples.iter().min_by_key(|sample| sample.round_trip_us)?;
        Some(theirs_us.saturating_add_signed(best.offset_us.saturating_neg()))
    }

    /// Shortest round trip among the recent pings, microseconds.
    pub fn round_trip_us(&self) -> Option<u64> {
        self.samples.iter().map(|sample| sample.round_trip_us).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_round_trip_counts() {
        let mut map = ClockMap::default();
        assert_eq!(map.to_local(5), None);
        // The peer is 1,000,000 ahead; delays (to, from) in microseconds.
        for (start, to, from) in [(0, 40, 10), (1_000, 5, 5), (2_000, 900, 0)] {
            let ping = map.ping(start);
            let received_us = start + to + 1_000_000;
            map.pong(&Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us }, start + to + from);
        }
        assert_eq!(map.to_local(1_000_500), Some(500));
        assert_eq!(map.round_trip_us(), Some(10));
    }

    #[test]
    fn a_peer_behind_and_foreign_pongs() {
        let mut map = ClockMap::default();
        let ping = map.ping(5_000_000);
        map.pong(&Pong { id: ping.id + 1, ping_sent_us: ping.sent_us, received_us: 0 }, 5_000_000);
        map.pong(&Pong { id: ping.id, ping_sent_us: 1, received_us: 0 }, 5_000_000);
        map.pong(&Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us: 0 }, 4_000_000);
        assert_eq!(map.to_local(1), None);
        map.pong(&Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us: 10 }, 5_000_020);
        assert_eq!(map.to_local(110), Some(5_000_110));
        // Extreme values saturate instead of wrapping.
        assert_eq!(map.to_local(u64::MAX), Some(u64::MAX));
    }
}
