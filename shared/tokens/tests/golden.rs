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
        hashes: &[7_031_507_682_813_263_528, 151_406_340_222_689_009],
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
            6_461_850_677_798_628_713,
            15_993_468_839_086_899_467,
            5_802_187_151_651_876_520,
            13_455_418_934_162_084_647,
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
        hashes: &[5_616_552_710_014_447_698, 1_374_082_769_270_026_558, 7_455_822_269_936_596_246],
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
    assert_eq!(out, [12_301_177_443_288_376_980, 6_970_970_635_494_582_172]);
}
