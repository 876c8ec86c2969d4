//! Where long strings end, so that a second look at a body need not search for it again.

/// Shorter ones are not worth an entry, bytes.
const LONG: usize = 512;
/// Strings remembered: the longest.
const MOST: usize = 8;

/// The longest strings of a body without odd escapes: where each begins behind its quote, its length, and whether it has
/// escapes. Meaningless with another body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Longs {
    held: [(u32, u32, bool); MOST],
    count: usize,
}

impl Longs {
    /// Takes note of a string, if it is long.
    #[inline]
    pub fn note(&mut self, start: usize, end: usize, escaped: bool) {
        if end - start >= LONG {
            self.insert(start, end - start, escaped);
        }
    }

    fn insert(&mut self, start: usize, length: usize, escaped: bool) {
        let (Ok(start), Ok(length)) = (u32::try_from(start), u32::try_from(length)) else { return };
        if let Some(free) = self.held.get_mut(self.count) {
            *free = (start, length, escaped);
            self.count += 1;
        } else if let Some(shortest) = self.held.iter_mut().min_by_key(|held| held.1)
            && shortest.1 < length
        {
            *shortest = (start, length, escaped);
        }
    }

    /// End and escapes of the string that begins there, if it was noted.
    #[inline]
    pub fn find(&self, start: usize) -> Option<(usize, bool)> {
        let held = self.held.get(..self.count)?;
        let (_, length, escaped) = held.iter().find(|held| held.0 as usize == start)?;
        Some((start + *length as usize, *escaped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_are_kept() {
        let mut longs = Longs::default();
        longs.note(1, 400, true);
        assert_eq!(longs.find(1), None, "not long");
        for n in 0..20usize {
            longs.note(n * 10_000, n * 10_000 + 600 + n, n % 2 == 0);
        }
        for n in 0..20usize {
            let want = (n >= 12).then_some((n * 10_000 + 600 + n, n % 2 == 0));
            assert_eq!(longs.find(n * 10_000), want, "{n}");
        }
        longs.note(5, 5 + 600, false);
        assert_eq!(longs.find(5), None, "shorter than all that are held");
    }
}
