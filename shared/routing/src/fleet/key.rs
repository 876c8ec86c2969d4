//! Keys of targets: what hashing policies bind sessions and prompts to.

/// A target's key: follows from its name alone, so that every gateway, and every start of it, has the same (FNV-1a,
/// then mixed so that names which differ in their last digit differ in all bits).
pub fn name_key(name: &str) -> u64 {
    text_key(name.as_bytes())
}

/// The same of any text: a session's or a user's key, equal in all gateways.
pub fn text_key(text: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(text.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// Weight of a target for a key: the target with the greatest weight is the key's own, the next one takes over where
/// that one is gone, and no other key moves (rendezvous hashing: Thaler and Ravishankar, 1998).
#[inline]
pub fn rendezvous(key: u64, target_key: u64) -> u64 {
    mix(key ^ target_key)
}

/// The finaliser of MurmurHash3 with Stafford's constants (variant 13): a bijection without visible structure.
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_over_targets_and_only_those_of_a_lost_target_move() {
        let targets: Vec<u64> = (0..10).map(|i| name_key(&format!("engine-{i}"))).collect();
        let owner = |key: u64, targets: &[u64]| {
            targets.iter().copied().max_by_key(|target| rendezvous(key, *target)).unwrap()
        };
        let mut owned = std::collections::HashMap::new();
        for key in 0..10_000u64 {
            *owned.entry(owner(key, &targets)).or_insert(0) += 1;
        }
        assert!(owned.len() == 10 && owned.values().all(|n| (880..1120).contains(n)), "{owned:?}");
        let (lost, rest) = targets.split_first().unwrap();
        for key in 0..10_000 {
            let before = owner(key, &targets);
            assert!(before == *lost || owner(key, rest) == before);
        }
    }

    #[test]
    fn a_key_is_the_same_in_every_build() {
        assert_eq!(name_key("engine-1"), 0xa8fa_40d4_9ce7_7067);
    }
}
