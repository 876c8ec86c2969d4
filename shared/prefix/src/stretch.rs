//! Sets of blocks within one run: sorted, disjoint, non-adjacent stretches `(from, len)`.

/// A stretch of a run: first block and number of blocks.
pub(crate) type Stretch = (u32, u32);

/// Adds `[from, from + len)`.
pub(crate) fn add(set: &mut Vec<Stretch>, from: u32, len: u32) {
    if len == 0 {
        return;
    }
    let (mut start, mut end) = (from, from.saturating_add(len));
    set.retain(|&(at, n)| {
        let touches = at <= end && start <= at + n;
        if touches {
            start = start.min(at);
            end = end.max(at + n);
        }
        !touches
    });
    let place = set.partition_point(|&(at, _)| at < start);
    set.insert(place, (start, end - start));
}

/// Removes `[from, from + len)`.
pub(crate) fn remove(set: &mut Vec<Stretch>, from: u32, len: u32) {
    if len == 0 {
        return;
    }
    let end = from.saturating_add(len);
    let mut left = Vec::with_capacity(set.len() + 1);
    for &(at, n) in set.iter() {
        let stop = at + n;
        if at < from {
            left.push((at, stop.min(from) - at));
        }
        if stop > end {
            let begin = at.max(end);
            left.push((begin, stop - begin));
        }
    }
    *set = left;
}

/// Parts below and above `at`, the latter counted from `at`.
pub(crate) fn split(set: &[Stretch], at: u32) -> (Vec<Stretch>, Vec<Stretch>) {
    let below = set.iter().filter(|s| s.0 < at).map(|&(from, len)| (from, len.min(at - from))).collect();
    let above = set
        .iter()
        .filter(|s| s.0 + s.1 > at)
        .map(|&(from, len)| (from.max(at) - at, from + len - from.max(at)))
        .collect();
    (below, above)
}

/// Number of blocks.
pub(crate) fn count(set: &[Stretch]) -> u32 {
    set.iter().map(|s| s.1).sum()
}

/// One past the last block.
pub(crate) fn extent(set: &[Stretch]) -> u32 {
    set.last().map_or(0, |s| s.0 + s.1)
}

/// The stretches missing below the extent.
pub(crate) fn gaps(set: &[Stretch]) -> Vec<Stretch> {
    let mut at = 0;
    let mut gaps = Vec::new();
    for &(from, len) in set {
        if from > at {
            gaps.push((at, from - at));
        }
        at = from + len;
    }
    gaps
}

#[cfg(all(test, not(any(loom, feature = "shuttle"))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(set: &[Stretch]) -> Vec<u32> {
        set.iter().flat_map(|&(from, len)| from..from + len).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0u32..40, 0u32..12), 1..20), at in 0u32..50) {
            let mut set = Vec::new();
            let mut model = std::collections::BTreeSet::new();
            for (adds, from, len) in steps {
                if adds {
                    add(&mut set, from, len);
                    model.extend(from..from + len);
                } else {
                    remove(&mut set, from, len);
                    model.retain(|b| *b < from || *b >= from + len);
                }
                prop_assert_eq!(members(&set), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(set.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "not canonical: {set:?}");
                prop_assert!(set.iter().all(|s| s.1 > 0));
            }
            let (below, above) = split(&set, at);
            prop_assert_eq!(members(&below), model.range(..at).copied().collect::<Vec<_>>());
            prop_assert_eq!(members(&above), model.range(at..).map(|b| b - at).collect::<Vec<_>>());
            prop_assert_eq!(count(&set) as usize, model.len());
            prop_assert_eq!(extent(&set), model.last().map_or(0, |b| b + 1));
            let missing: Vec<u32> = (0..extent(&set)).filter(|b| !model.contains(b)).collect();
            prop_assert_eq!(members(&gaps(&set)), missing);
        }
    }
}
