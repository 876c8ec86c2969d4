use super::*;
use crate::model::{Model, ModelOptions, SeqSpec};
use crate::profile::Profile;
use crate::prompt;
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn stored(hashes: &[u64], tokens: Vec<u32>, salt: &str, lora: &str) -> CacheChange {
    let origin = Arc::new(Origin { tokens, salt: salt.into(), lora: lora.into() });
    CacheChange::Stored { path: hashes.into(), blocks: 0..hashes.len(), origin }
}

/// What the engines' own encoders wrote for the same events (of vLLM's removal, which had two hashes, with one).
#[test]
fn bytes_are_those_of_the_engines() {
    let vllm = Writer { kind: EngineKind::Vllm, encoding: KvEncoding::Map, block_tokens: 16 };
    let two = [0x1122_3344_5566_7788, 0xffee_ddcc_bbaa_9988];
    // vLLM 0.33.0.
    assert_eq!(
        hex(&vllm.batch(1.5, &[stored(&two, (0..32).collect(), "", "")])),
        "93cb3ff800000000000091de000aa474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392cf1122334455667788cf\
         ffeeddccbbaa9988b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473dc0020000102030405060708090a0b0c0d0e\
         0f101112131415161718191a1b1c1d1e1faa626c6f636b5f73697a6510a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f\
         6e616d65c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e00"
    );
    assert_eq!(
        hex(&vllm.batch(2.0, &[CacheChange::Removed(two[0]), CacheChange::Cleared])),
        "93cb40000000000000009284a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391cf1122334455667788a66d\
         656469756da3475055a967726f75705f6964780081a474797065b0416c6c426c6f636b73436c656172656400"
    );
    // SGLang 0.5.23.
    let sglang = Writer { kind: EngineKind::Sglang, encoding: KvEncoding::Map, block_tokens: 2 };
    let hash = (-123_456_789_012_345_i64).cast_unsigned();
    let all = [stored(&[hash], vec![1, 2], "", ""), CacheChange::Removed(hash), CacheChange::Cleared];
    assert_eq!(
        hex(&sglang.batch(1.5, &all)),
        "93cb3ff80000000000009387a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391d3ffff8fb779f22087b1\
         706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473920102aa626c6f636b5f73697a6502a76c6f72615f6964c0a6\
         6d656469756da347505583a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391d3ffff8fb779f22087a6\
         6d656469756da347505581a474797065b0416c6c426c6f636b73436c656172656400"
    );
}

/// Everything that an event may carry, read back.
#[test]
fn salts_and_adapters_are_told() {
    let with = |kind, encoding| Writer { kind, encoding, block_tokens: 2 };
    let change = [stored(&[7, 8], vec![1, 2, 3, 4], "pepper", "ada")];
    let text = |w: Writer| String::from_utf8_lossy(&w.batch(1.5, &change)).into_owned();
    let count = |s: &str, what: &str| s.matches(what).count();
    let vllm = text(with(EngineKind::Vllm, KvEncoding::Map));
    // One event; the salt stands with the first block, the adapter with both and for itself.
    assert_eq!((count(&vllm, "BlockStored"), count(&vllm, "pepper"), count(&vllm, "ada")), (1, 1, 3));
    assert!(vllm.contains("extra_keys"));
    let sglang = text(with(EngineKind::Sglang, KvEncoding::Map));
    assert_eq!(
        (count(&sglang, "BlockStored"), count(&sglang, "cache_salt"), count(&sglang, "ada")),
        (2, 2, 2)
    );
    let old = text(with(EngineKind::Vllm, KvEncoding::Array));
    assert_eq!((count(&old, "BlockStored"), count(&old, "block_hashes"), count(&old, "pepper")), (1, 0, 1));
    assert_eq!(count(&text(with(EngineKind::Sglang, KvEncoding::Array)), "cache_salt"), 2);
}

fn log(kept: usize) -> EventLog {
    let told = Told { events: ([127, 0, 0, 1], 1).into(), replay: None, topic: "t".into(), kept };
    EventLog::new(EngineKind::Vllm, KvEncoding::Map, 16, told)
}

#[test]
fn batches_are_numbered_kept_and_held_back() {
    let log = log(3);
    let mut faults = Faults::default();
    log.batch(0.0, &[], &mut faults);
    assert_eq!(log.counts(), (0, 0));
    for i in 0..5u32 {
        if i == 3 {
            faults = Faults { drop_events: 1, ..Faults::default() };
        }
        log.batch(0.0, &[CacheChange::Removed(u64::from(i))], &mut faults);
    }
    let seqs = |from| log.since(from, 100).0.iter().map(|r| (r.seq, r.withheld)).collect::<Vec<_>>();
    assert_eq!(seqs(0), [(2, false), (3, true), (4, false)]);
    assert_eq!((seqs(4), log.since(0, 100).1, log.counts()), (vec![(4, false)], 5, (5, 1)));
    assert_eq!((seqs(9), log.since(2, 1).1), (vec![], 3));
    faults = Faults { drop_events: 1, forget_events: true, ..Faults::default() };
    log.batch(0.0, &[CacheChange::Cleared], &mut faults);
    log.batch(0.0, &[CacheChange::Cleared], &mut faults);
    assert_eq!((seqs(0), faults.drop_events), (vec![(3, true), (4, false), (6, false)], 0));
}

/// What a listener makes of the changes, who may lose none.
#[derive(Default)]
struct Listener {
    held: HashSet<u64>,
}

impl Listener {
    fn apply(&mut self, change: &CacheChange, block: usize, retold: bool) {
        match change {
            CacheChange::Stored { path, blocks, origin } => {
                let bytes: Vec<u8> = origin.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
                let own = prompt::block_hashes(&bytes, &origin.lora, &origin.salt, block as u32);
                assert_eq!(path[..], own[..], "the tokens told are those of the blocks");
                assert!(!blocks.is_empty() && blocks.end <= path.len());
                assert!(path[..blocks.start].iter().all(|h| self.held.contains(h)), "the parent is held");
                for h in &path[blocks.clone()] {
                    assert!(self.held.insert(*h) || retold, "a block is told once");
                }
            }
            CacheChange::Removed(h) => assert!(self.held.remove(h), "what goes was there"),
            CacheChange::Cleared => self.held.clear(),
        }
    }
}

fn prompt_bytes(family: u8, tokens: u32) -> Vec<u8> {
    // Families share a trunk of 20 tokens, then part ways.
    (0..tokens)
        .flat_map(|i| if i < 20 { i } else { i + 1000 * (u32::from(family) + 1) }.to_le_bytes())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn events_give_the_cache(
        blocks in 12u32..60,
        retold in any::<bool>(),
        ops in prop::collection::vec((0u8..12, 0u8..5, 1u32..120, 1u32..9, 0u8..3), 1..120),
    ) {
        const BLOCK: u32 = 8;
        let profile = Profile { token_budget: 40, max_running: 4, ..Profile::h200_8b() };
        let mut model = Model::new(ModelOptions {
            profile, block_tokens: BLOCK, kv_blocks: blocks, max_waiting: 100, prefix_caching: true, track: true,
            tell_reused: retold,
            sparse: false,
        });
        let (mut listener, mut ids, mut progress, mut now) = (Listener::default(), Vec::new(), Vec::new(), 0.0);
        for (op, family, tokens, output, salt) in ops {
            match op {
                0..5 => {
                    let bytes = prompt_bytes(family, tokens);
                    let salt = ["", "a", "b"][salt as usize];
                    let origin = Origin { tokens: prompt::token_ids(&bytes), salt: salt.into(), lora: String::new() };
                    let path = prompt::block_hashes(&bytes, "", salt, BLOCK);
                    let spec = SeqSpec {
                        path, prompt_tokens: tokens, output_tokens: output, limited: true,
                        origin: Some(Arc::new(origin)), remote: 0,
                    };
                    ids.extend(model.submit(spec, now));
                }
                5 if !ids.is_empty() => {
                    let id = ids.swap_remove(family as usize % ids.len());
                    model.abort(id);
                }
                6 => model.clear_cache(),
                _ => {
                    if let Some(d) = model.begin_step(now) {
                        now += d;
                        model.end_step(now, &mut progress);
                    }
                }
            }
            for change in model.take_changes() {
                listener.apply(&change, BLOCK as usize, retold);
            }
            let cache: HashSet<u64> = model.cache().names().collect();
            prop_assert_eq!(&listener.held, &cache);
        }
    }
}
