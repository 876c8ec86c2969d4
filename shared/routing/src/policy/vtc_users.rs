//! Tokens served to each user lately: what `vtc-basic` keeps.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::sliding::{Scale, SlidingSum};

/// Users that are told apart.
const USERS: usize = 4_096;
/// Places at which a user may stand.
const PLACES: usize = 8;
/// Tokens that the windows tell apart: 268 million fit into one.
const UNIT: f64 = 16.0;
/// How old the least and the greatest of all sums may be, microseconds.
const REFRESH_US: u64 = 250_000;

#[derive(Debug, Default)]
struct Place {
    /// Hash of the user; 0 is nobody.
    user: AtomicU64,
    tokens: SlidingSum,
}

/// A table of users with their tokens over the last window.
///
/// Bounded: each user may stand at eight places of 4,096; when all are taken, the one with the fewest tokens is
/// forgotten. Shards change it side by side: where two settle at one place at once, one of their requests is counted
/// for the other.
#[derive(Debug)]
pub(super) struct Users {
    scale: Scale,
    places: Box<[Place]>,
    /// Least and greatest sum, bits of f32, and when they were found.
    least: AtomicU32,
    most: AtomicU32,
    found_us: AtomicU64,
}

impl Users {
    pub(super) fn new(window_us: u64) -> Self {
        Self {
            scale: Scale { window_us, unit: UNIT },
            places: (0..USERS).map(|_| Place::default()).collect(),
            least: AtomicU32::new(0),
            most: AtomicU32::new(0),
            found_us: AtomicU64::new(0),
        }
    }

    fn places(&self, user: u64) -> impl Iterator<Item = &Place> {
        // The hash is even in all its bits; the low ones begin, the rest is not needed.
        (0..PLACES).map(move |step| &self.places[(user as usize).wrapping_add(step) % USERS])
    }

    /// Tokens of a user over the last window.
    pub(super) fn tokens(&self, user: u64, now_us: u64) -> f64 {
        let user = user.max(1);
        let mut found = self.places(user).filter(|place| place.user.load(Ordering::Relaxed) == user);
        found.next().map_or(0.0, |place| place.tokens.read(&self.scale, now_us))
    }

    /// Adds tokens to a user.
    pub(super) fn add(&self, user: u64, now_us: u64, tokens: f64) {
        let user = user.max(1);
        let mut emptiest: Option<(f64, &Place)> = None;
        for place in self.places(user) {
            let holder = place.user.load(Ordering::Relaxed);
            if holder == user {
                place.tokens.add(&self.scale, now_us, tokens);
                return;
            }
            let sum = if holder == 0 { -1.0 } else { place.tokens.read(&self.scale, now_us) };
            if emptiest.is_none_or(|(least, _)| sum < least) {
                emptiest = Some((sum, place));
            }
        }
        if let Some((_, place)) = emptiest {
            place.user.store(user, Ordering::Relaxed);
            place.tokens.clear();
            place.tokens.add(&self.scale, now_us, tokens);
        }
    }

    /// The least and the greatest sum of all users who had tokens in the last window; zeros where nobody had. Up to a
    /// quarter of a second old, since finding them costs some microseconds.
    pub(super) fn range(&self, now_us: u64) -> (f64, f64) {
        let found = self.found_us.load(Ordering::Relaxed);
        let due = found == 0 || now_us.saturating_sub(found) >= REFRESH_US;
        let now = now_us.max(1);
        if due && self.found_us.compare_exchange(found, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let sums = self.places.iter().filter(|place| place.user.load(Ordering::Relaxed) != 0);
            let sums = sums.map(|place| place.tokens.read(&self.scale, now_us)).filter(|sum| *sum > 0.0);
            let (least, most) =
                sums.fold((f64::INFINITY, 0.0f64), |(least, most), sum| (least.min(sum), most.max(sum)));
            let least = if least.is_finite() { least } else { 0.0 };
            self.least.store((least as f32).to_bits(), Ordering::Relaxed);
            self.most.store((most as f32).to_bits(), Ordering::Relaxed);
        }
        let read = |cell: &AtomicU32| f64::from(f32::from_bits(cell.load(Ordering::Relaxed)));
        (read(&self.least), read(&self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    const WINDOW: u64 = 300_000_000;

    #[test]
    fn tokens_are_kept_by_user_for_a_window() {
        let users = Users::new(WINDOW);
        let start = 10 * WINDOW;
        assert_eq!(users.range(start), (0.0, 0.0));
        users.add(7, start, 1_600.0);
        users.add(7, start, 1_600.0);
        users.add(0, start, 160.0);
        assert_eq!(
            (users.tokens(7, start), users.tokens(0, start), users.tokens(9, start)),
            (3_200.0, 160.0, 0.0)
        );
        assert_eq!(users.range(start + 1), (0.0, 0.0), "found a moment ago");
        assert_eq!(users.range(start + REFRESH_US), (160.0, 3_200.0));
        assert_eq!(users.tokens(7, start + 2 * WINDOW), 0.0);
        assert_eq!(users.range(start + 2 * WINDOW), (0.0, 0.0));
    }

    #[test]
    fn a_full_table_forgets_the_least_served() {
        let users = Users::new(WINDOW);
        let now = 10 * WINDOW;
        // Nine users whose places are the same eight.
        let user = |n: u64| 100 + n * USERS as u64;
        for n in 0..8 {
            users.add(user(n), now, 1_000.0 + 100.0 * n as f64);
        }
        users.add(user(8), now, 5_000.0);
        assert_eq!(users.tokens(user(0), now), 0.0);
        assert!(users.tokens(user(8), now) >= 5_000.0);
        assert!((1..8).all(|n| users.tokens(user(n), now) >= 1_000.0));
        let mut rng = Rng::new(1);
        for _ in 0..20_000 {
            users.add(rng.next_u64(), now, 100.0);
        }
        let (least, most) = users.range(now + REFRESH_US);
        assert!(least > 0.0 && most < 6_000.0, "{least} {most}");
    }
}
