//! Any cutting of a prompt gives the chain of the plain definition.

use fairlead_tokens::{BlockHasher, MAX_BLOCK_BYTES, hash_blocks, root};
use proptest::prelude::*;

fn chain(block: u32, pieces: &[&[u8]]) -> (Vec<u64>, u64) {
    let mut out = Vec::new();
    let mut hasher = BlockHasher::new(7, "m", "", "", block, &mut out);
    for piece in pieces {
        hasher.update(piece);
    }
    let size = hasher.finish();
    assert_eq!(size.blocks as usize, out.len());
    (out, size.bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn pieces_do_not_matter(
        prompt in proptest::collection::vec(any::<u8>(), 0..3000),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        block in prop_oneof![1u32..80, Just(256), Just(1024)],
    ) {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(prompt.len() + 1)).collect();
        at.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in at {
            pieces.push(&prompt[from..cut]);
            from = cut;
        }
        pieces.push(&prompt[from..]);
        let (hashes, bytes) = chain(block, &pieces);
        prop_assert_eq!(bytes as usize, prompt.len());
        prop_assert_eq!(hashes, hash_blocks(7, root(7, "m", "", "", block), block, &prompt));
    }

    #[test]
    fn the_bound_keeps_the_head(
        prompt in proptest::collection::vec(any::<u8>(), 0..600),
        step in 1usize..50,
        bound in 0u32..12,
    ) {
        let whole = hash_blocks(7, root(7, "m", "", "", 32), 32, &prompt);
        let mut out = Vec::new();
        let mut hasher = BlockHasher::new(7, "m", "", "", 32, &mut out).max_blocks(bound);
        for piece in prompt.chunks(step) {
            hasher.update(piece);
        }
        prop_assert_eq!(hasher.is_full(), whole.len() >= bound as usize);
        let size = hasher.finish();
        prop_assert_eq!(size.bytes as usize, prompt.len());
        prop_assert_eq!(&out[..], &whole[..whole.len().min(bound as usize)]);
    }

    #[test]
    fn tokens_are_little_endian(tokens in proptest::collection::vec(any::<u32>(), 0..400)) {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let mut out = Vec::new();
        let mut hasher = BlockHasher::new(7, "m", "", "", 64, &mut out);
        hasher.update_tokens(&tokens);
        hasher.finish();
        prop_assert_eq!(out, hash_blocks(7, root(7, "m", "", "", 64), 64, &bytes));
    }
}

#[test]
fn a_change_reaches_every_later_block_and_none_before() {
    let prompt = vec![b'x'; 1024];
    let (whole, _) = chain(256, &[&prompt]);
    for at in [0, 255, 256, 700, 1023] {
        let mut changed = prompt.clone();
        changed[at] = b'y';
        let (hashes, _) = chain(256, &[&changed]);
        for block in 0..4 {
            assert_eq!(hashes[block] == whole[block], block < at / 256, "byte {at}, block {block}");
        }
    }
}

#[test]
fn roots_differ_by_each_part() {
    let base = root(1, "model", "lora", "salt", 256);
    let others = [
        root(2, "model", "lora", "salt", 256),
        root(1, "models", "lora", "salt", 256),
        root(1, "model", "", "lorasalt", 256),
        root(1, "model", "lora", "", 256),
        root(1, "modellora", "", "salt", 256),
        root(1, "model", "lora", "salt", 128),
    ];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(*other, base, "variant {index}");
    }
}

#[test]
fn a_long_root_name_equals_its_joined_form() {
    let long = "m".repeat(300);
    let salt = "s".repeat(300);
    let joined = [long.as_bytes(), b"\0\0", salt.as_bytes()].concat();
    let seed = 9 ^ 256u64.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    assert_eq!(root(9, &long, "", &salt, 256), xxhash_rust::xxh3::xxh3_64_with_seed(&joined, seed));
}

#[test]
fn odd_block_sizes_are_taken_into_range() {
    for (asked, used) in [(0, 1), (MAX_BLOCK_BYTES + 1, MAX_BLOCK_BYTES), (u32::MAX, MAX_BLOCK_BYTES)] {
        let prompt = vec![3u8; 9000];
        let (hashes, _) = chain(asked, &[&prompt]);
        assert_eq!(hashes, hash_blocks(7, root(7, "m", "", "", used), used, &prompt), "{asked}");
    }
}
