//! Golden vectors: hashes travel between processes and releases, so they may not change. The values agree with
//! the C library of xxHash 0.8.

use fairlead_tokens::{BlockHasher, root};

/// Bytes 0, 1, 2 … modulo 251, a prompt that repeats at no block size in use.
fn prompt(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

struct Case {
    seed: u64,
    model: &'static str,
    lora: &'static str,
    salt: &'static str,
    block: u32,
    bytes: usize,
    root: u64,
    hashes: &'static [u64],
}

const CASES: &[Case] = &[
    Case {
        seed: 0,
        model: "",
        lora: "",
        salt: "",
        block: 256,
        bytes: 600,
        root: 45_826_149_605_869_930,
        hashes: &[6_894_876_623_210_390_591, 16_522_090_434_582_185_970],
    },
    Case {
        seed: 42,
        model: "llama-3",
        lora: "",
        salt: "",
        block: 256,
        bytes: 1024,
        root: 11_737_866_924_059_412_843,
        hashes: &[
            5_848_559_555_380_388_643,
            18_039_349_472_329_048_678,
            1_571_542_474_721_476_059,
            7_854_790_538_142_512_839,
        ],
    },
    Case {
        seed: 0x0123_4567_89AB_CDEF,
        model: "Qwen/Qwen2.5-7B-Instruct",
        lora: "sql-adapter",
        salt: "tenant-17",
        block: 64,
        bytes: 200,
        root: 3_476_351_276_847_339_282,
        hashes: &[14_841_773_897_030_285_592, 13_707_339_944_758_362_296, 8_683_285_036_906_471_801],
    },
];

#[test]
fn hashes_are_pinned() {
    for case in CASES {
        let name = case.model;
        assert_eq!(
            root(case.seed, case.model, case.lora, case.salt, case.block),
            case.root,
            "root of {name}"
        );
        let mut out = Vec::new();
        let mut hasher = BlockHasher::new(case.seed, case.model, case.lora, case.salt, case.block, &mut out);
        hasher.update(&prompt(case.bytes));
        hasher.finish();
        assert_eq!(out, case.hashes, "hashes of {name}");
    }
}

#[test]
fn token_hashes_are_pinned() {
    let tokens: Vec<u32> = (0..130).map(|index| index * 1009).collect();
    let mut out = Vec::new();
    let mut hasher = BlockHasher::new(42, "llama-3", "", "", 256, &mut out);
    hasher.update_tokens(&tokens);
    assert_eq!(hasher.finish().blocks, 2);
    assert_eq!(out, [10_288_962_470_673_835_616, 10_457_017_711_853_333_171]);
}
