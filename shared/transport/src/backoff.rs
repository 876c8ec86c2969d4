//! Pauses between attempts to connect.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// Exponential pauses with jitter: each is drawn evenly from the upper half of a span that doubles up to a cap.
///
/// The cap is low by intention. A fleet that has lost its scheduler must find the new one quickly, and an attempt
/// costs the scheduler one handshake (about a millisecond); the jitter keeps a thousand peers from arriving at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    span: Duration,
    random: u64,
}

impl Backoff {
    /// Pauses that start near `first` and stay below `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let mut seed = [0; 8];
        // Without system randomness a constant still gives correct, merely unjittered between processes, pauses.
        let random = match SystemRandom::new().fill(&mut seed) {
            Ok(()) => u64::from_le_bytes(seed),
            Err(_) => 1,
        };
        Self { first, cap: cap.max(first), span: first, random: random | 1 }
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        let span = self.span;
        self.span = (span * 2).min(self.cap);
        // xorshift64* (Vigna 2016): plenty for spreading attempts over time.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let unit = (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64;
        span.mul_f64(0.5 + unit / 2.0)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.span = self.first;
    }

    /// Sleeps for the next pause.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }
}

impl Default for Backoff {
    /// 50 ms to 1 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_stay_in_the_upper_half() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(1000));
        for round in 0..2 {
            for span in [50, 100, 200, 400, 800, 1000, 1000, 1000] {
                let pause = backoff.next_pause();
                assert!(pause >= Duration::from_millis(span / 2), "round {round} span {span}: {pause:?}");
                assert!(pause <= Duration::from_millis(span), "round {round} span {span}: {pause:?}");
            }
            backoff.reset();
        }
    }

    #[test]
    fn two_backoffs_differ() {
        let draw = |mut backoff: Backoff| [(); 4].map(|()| backoff.next_pause());
        assert_ne!(draw(Backoff::default()), draw(Backoff::default()));
    }
}
