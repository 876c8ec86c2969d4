//! The mirror against a slow reference: sets of pages with their whole paths, and a tree of blocks as a scheduler keeps it.

use fairlead_agent::kv::event::Batch;
use fairlead_agent::kv::{Mirror, MirrorConfig, Ops};
use fairlead_tokens::{hash_blocks, root};
use fairlead_wire::is_anchor;
use fairlead_wire::msg::CacheOp;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const SEED: u64 = 7;
const MODEL: &str = "m";

/// Writes an event as engines do and has it applied.
fn apply(mirror: &mut Mirror, event: &Value, ops: &mut Ops) {
    let payload = pack(&json!([1.0, [event], null]));
    let batch = Batch::decode(&payload).expect("a batch");
    for event in batch.events() {
        mirror.apply(&event.expect("an event"), ops);
    }
}

fn pack(value: &Value) -> Vec<u8> {
    let len = |len: usize| (len as u16).to_be_bytes();
    match value {
        Value::Null => vec![0xc0],
        Value::Bool(value) => vec![0xc2 + u8::from(*value)],
        Value::Number(number) => match number.as_u64() {
            Some(value) => [&[0xcf][..], &value.to_be_bytes()].concat(),
            None => [&[0xcb][..], &number.as_f64().expect("a number").to_be_bytes()].concat(),
        },
        Value::String(text) => [&[0xda][..], &len(text.len()), text.as_bytes()].concat(),
        Value::Array(values) => {
            let mut out = [&[0xdc][..], &len(values.len())].concat();
            values.iter().for_each(|value| out.extend(pack(value)));
            out
        }
        Value::Object(entries) => {
            let mut out = [&[0xde][..], &len(entries.len())].concat();
            for (key, value) in entries {
                out.extend(pack(&Value::String(key.clone())));
                out.extend(pack(value));
            }
            out
        }
    }
}

fn stored(hashes: &[u64], parent: Option<u64>, tokens: &[u32], size: u32) -> Value {
    json!({"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens,
        "block_size": size})
}

fn removed(hashes: &[u64]) -> Value {
    json!({"type": "BlockRemoved", "block_hashes": hashes})
}

fn config(block_tokens: u32) -> MirrorConfig {
    MirrorConfig { seed: SEED, block_tokens, model: MODEL.into(), max_bytes: 1 << 30, copies: None }
}

/// Blocks of a prompt.
fn path(block: u32, tokens: &[u32]) -> Vec<u64> {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    hash_blocks(SEED, root(SEED, MODEL, "", "", 4 * block), 4 * block, &bytes)
}

/// A scheduler's tree for one target, which forgets a block as soon as neither it nor one below it is held.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tree {
    parents: BTreeMap<u64, u64>,
    held: BTreeSet<u64>,
}

impl Tree {
    /// Applies operations, checking that each names its place as agreed.
    fn apply(&mut self, ops: &[CacheOp]) -> Result<(), TestCaseError> {
        for op in ops {
            match op {
                CacheOp::Clear => *self = Tree::default(),
                CacheOp::Store { above, blocks } => {
                    self.place(above)?;
                    prop_assert!(!blocks.is_empty());
                    let mut parent = above.last().copied().unwrap_or(0);
                    for block in blocks {
                        prop_assert_eq!(*self.parents.entry(*block).or_insert(parent), parent);
                        self.held.insert(*block);
                        parent = *block;
                    }
                }
                CacheOp::Remove { above, blocks } => {
                    let first = *blocks.first().expect("not empty");
                    if above.is_empty() {
                        prop_assert!(is_anchor(first) || self.parents.get(&first) == Some(&0), "{first}");
                    } else {
                        self.place(above)?;
                    }
                    let mut parent = above.last().copied();
                    for block in blocks {
                        let is = self.parents.get(block).copied();
                        prop_assert!(is.is_some(), "removed what was never told");
                        prop_assert!(parent.is_none() || parent == is);
                        prop_assert!(self.held.remove(block), "removed what is not held");
                        parent = Some(*block);
                    }
                }
            }
            self.prune();
        }
        Ok(())
    }

    fn place(&self, above: &[u64]) -> Result<(), TestCaseError> {
        let Some(first) = above.first() else { return Ok(()) };
        prop_assert!(is_anchor(*first) || self.parents.get(first) == Some(&0), "no anchor");
        prop_assert!(above[1..].iter().all(|block| !is_anchor(*block)), "longer than needed");
        for pair in above.windows(2) {
            prop_assert_eq!(self.parents.get(&pair[1]), Some(&pair[0]));
        }
        for block in above {
            prop_assert!(self.parents.contains_key(block), "unknown parent");
        }
        Ok(())
    }

    fn prune(&mut self) {
        let mut keep = BTreeSet::new();
        for block in &self.held {
            let mut at = *block;
            while at != 0 && keep.insert(at) {
                at = self.parents[&at];
            }
        }
        self.parents.retain(|block, _| keep.contains(block));
    }
}

/// Every page with the pages before it and the tokens up to its end.
#[derive(Clone, Debug, Default)]
struct Reference {
    pages: BTreeMap<u64, (Option<u64>, Vec<u32>, u32)>,
    held: BTreeSet<u64>,
    /// Copies of those held.
    copies: BTreeMap<u64, u32>,
    partial: bool,
}

impl Reference {
    fn store(&mut self, page: u64, copies: bool) {
        self.held.insert(page);
        let count = self.copies.entry(page).or_default();
        *count = if copies { *count + 1 } else { 1 };
    }

    fn remove(&mut self, page: u64) {
        let left = self.copies.get(&page).map_or(0, |copies| copies - 1);
        if left == 0 {
            self.held.remove(&page);
            self.copies.remove(&page);
        } else {
            self.copies.insert(page, left);
        }
    }

    fn known(&self) -> BTreeSet<u64> {
        let mut known = BTreeSet::new();
        for page in &self.held {
            let mut at = Some(*page);
            while let Some(page) = at {
                known.insert(page);
                at = self.pages[&page].0;
            }
        }
        known
    }

    fn blocks(&self, block: u32) -> BTreeSet<u64> {
        let mut held = BTreeSet::new();
        for page in &self.held {
            let (_, tokens, len) = &self.pages[page];
            for (at, hash) in path(block, tokens).into_iter().enumerate() {
                let (from, to) = (at as u32 * block, (at as u32 + 1) * block);
                let start = tokens.len() as u32 - len;
                // Only blocks that end in this page.
                if to <= start {
                    continue;
                }
                let mut whole = true;
                let mut below = Some(*page);
                while let Some(page) = below {
                    let (parent, tokens, len) = &self.pages[&page];
                    let (page_from, page_to) = (tokens.len() as u32 - len, tokens.len() as u32);
                    whole &= page_to <= from || page_from >= to || self.held.contains(&page);
                    below = *parent;
                }
                if whole {
                    held.insert(hash);
                }
            }
        }
        held
    }
}

/// A prompt's token at a position; prompts of different branches part at some place.
fn token(branch: u32, at: u32) -> u32 {
    // Branch b follows branch 0 up to position 40 * b.
    if at < 40 * branch { at } else { 1000 * branch + at }
}

/// An engine's hash of a page: of its whole prefix.
fn page_hash(tokens: &[u32]) -> u64 {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    hash_blocks(SEED, 99, bytes.len() as u32, &bytes)[0]
}

#[derive(Clone, Debug)]
enum Step {
    /// Pages of a branch, from one to another, the last perhaps cut short.
    Store {
        branch: u32,
        from: u32,
        pages: u32,
        cut: u32,
    },
    Remove {
        branch: u32,
        from: u32,
        pages: u32,
        backwards: bool,
    },
    /// A short page that was stored somewhere.
    RemoveAny(prop::sample::Index),
    Clear,
    /// A full account for a scheduler that knows nothing.
    Account,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u32..4, 0u32..14, 1u32..8, 0u32..3)
            .prop_map(|(branch, from, pages, cut)| Step::Store { branch, from, pages, cut }),
        6 => (0u32..4, 0u32..14, 1u32..8, any::<bool>())
            .prop_map(|(branch, from, pages, backwards)| Step::Remove { branch, from, pages, backwards }),
        3 => any::<prop::sample::Index>().prop_map(Step::RemoveAny),
        1 => Just(Step::Clear),
        2 => Just(Step::Account),
    ]
}

fn run(block: u32, size: u32, copies: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    let room = copies.then_some(1 << 20);
    let mut mirror = Mirror::new(MirrorConfig { copies: room, ..config(block) }, false);
    let mut reference = Reference::default();
    let mut tree = Tree::default();
    for step in steps {
        let mut ops = Ops::default();
        match step {
            Step::Store { branch, from, pages, cut } => {
                let all: Vec<u32> = (0..(from + pages) * size).map(|at| token(*branch, at)).collect();
                let until = all.len() - (*cut).min(size - 1) as usize;
                let first = (from * size) as usize;
                let name = |page: u32| page_hash(&all[..(((page + 1) * size) as usize).min(until)]);
                let hashes: Vec<u64> = (*from..from + pages).map(name).collect();
                let parent = (*from > 0).then(|| page_hash(&all[..first]));
                apply(&mut mirror, &stored(&hashes, parent, &all[first..until], size), &mut ops);
                if parent.is_none_or(|parent| reference.known().contains(&parent)) {
                    let mut before = parent;
                    for (at, hash) in hashes.iter().enumerate() {
                        let end = (first + (at + 1) * size as usize).min(until);
                        let start = first + at * size as usize;
                        reference.pages.insert(*hash, (before, all[..end].to_vec(), (end - start) as u32));
                        reference.store(*hash, copies);
                        before = Some(*hash);
                    }
                } else {
                    reference.partial = true;
                }
            }
            Step::Remove { branch, from, pages, backwards } => {
                let all: Vec<u32> = (0..(from + pages) * size).map(|at| token(*branch, at)).collect();
                let mut hashes: Vec<u64> = (*from..from + pages)
                    .map(|page| page_hash(&all[..((page + 1) * size) as usize]))
                    .collect();
                if *backwards {
                    hashes.reverse();
                }
                apply(&mut mirror, &removed(&hashes), &mut ops);
                hashes.iter().for_each(|hash| reference.remove(*hash));
            }
            Step::RemoveAny(which) => {
                if !reference.held.is_empty() {
                    let hash = *which.get(&reference.held.iter().copied().collect::<Vec<_>>());
                    apply(&mut mirror, &removed(&[hash]), &mut ops);
                    reference.remove(hash);
                }
            }
            Step::Clear => {
                apply(&mut mirror, &json!({"type": "AllBlocksCleared"}), &mut ops);
                reference = Reference::default();
            }
            Step::Account => {
                mirror.account(&mut ops);
                tree = Tree::default();
            }
        }
        tree.apply(&ops.take())?;
        let expected = reference.blocks(block);
        prop_assert_eq!(&tree.held, &expected, "after {:?}", step);
        prop_assert_eq!(mirror.blocks(), expected.len());
        prop_assert_eq!(mirror.is_partial(), reference.partial);
        prop_assert_eq!(mirror.pages(), reference.known().len());
        if reference.held.is_empty() {
            prop_assert_eq!(mirror.bytes(), 0, "nothing is left behind");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_mirror_holds_what_the_reference_holds(
        (block, size) in prop::sample::select(vec![(16u32, 4u32), (4, 16), (8, 8), (16, 12), (12, 16), (5, 7), (64, 16), (7, 1)]),
        copies in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(block, size, copies, &steps)?;
    }

    /// With room for little the newest stay, and what is told stays true.
    #[test]
    fn a_small_mirror_forgets_and_says_so(
        steps in prop::collection::vec((0u32..6, 1u32..30), 1..40),
        max_bytes in 500usize..8000,
    ) {
        let mut mirror = Mirror::new(MirrorConfig { max_bytes, ..config(16) }, false);
        let mut tree = Tree::default();
        let mut dropped = false;
        for (branch, pages) in steps {
            let mut ops = Ops::default();
            let all: Vec<u32> = (0..pages * 8).map(|at| token(branch, at)).collect();
            let hashes: Vec<u64> = (0..pages).map(|page| page_hash(&all[..((page + 1) * 8) as usize])).collect();
            apply(&mut mirror, &stored(&hashes, None, &all, 8), &mut ops);
            tree.apply(&ops.take())?;
            prop_assert!(mirror.bytes() <= max_bytes, "{} of {max_bytes}", mirror.bytes());
            dropped |= mirror.counters().dropped > 0;
            prop_assert_eq!(mirror.is_partial(), dropped);
            let held: BTreeSet<u64> = path(16, &all).into_iter().filter(|block| mirror.holds(*block)).collect();
            prop_assert!(held.is_subset(&tree.held));
            prop_assert_eq!(tree.held.len(), mirror.blocks());
        }
    }
}

#[test]
fn adapters_salts_and_images_are_kept_apart() {
    let tokens: Vec<u32> = (0..8).collect();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let blocks = |lora: &str, salt: &str| hash_blocks(SEED, root(SEED, MODEL, lora, salt, 16), 16, &bytes);
    let base = json!({"type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": null, "token_ids": tokens,
        "block_size": 4});
    let with = |more: Value| {
        let mut event = base.clone();
        event.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        event
    };
    for (more, held) in [
        (json!({}), blocks("", "")),
        (json!({"medium": "GPU", "kv_cache_spec_kind": "full_attention", "group_idx": 3}), blocks("", "")),
        (json!({"kv_cache_spec_kind": "mla_attention"}), blocks("", "")),
        (json!({"lora_id": 4, "lora_name": "ada"}), blocks("ada", "")),
        (json!({"lora_name": "ada", "extra_keys": [["ada", "s"], ["ada"]]}), blocks("ada", "s")),
        (json!({"cache_salt": "s"}), blocks("", "s")),
        (json!({"extra_keys": [["s"], null]}), blocks("", "s")),
        // The image is in the second page.
        (json!({"extra_keys": [null, [["image", 2]]]}), blocks("", "")[..1].to_vec()),
        (json!({"extra_keys": [[["image", 2]], null]}), vec![]),
        // An adapter that has no name.
        (json!({"lora_id": 4}), vec![]),
        (json!({"medium": "CPU"}), vec![]),
        (json!({"medium": "CPU_PINNED"}), vec![]),
        (json!({"locality": "REMOTE"}), vec![]),
        (json!({"kv_cache_spec_kind": "sliding_window"}), vec![]),
        (json!({"kv_cache_spec_kind": "mamba"}), vec![]),
    ] {
        let mut mirror = Mirror::new(config(4), false);
        let mut ops = Ops::default();
        apply(&mut mirror, &with(more.clone()), &mut ops);
        let told = match ops.take().as_slice() {
            [] => vec![],
            [CacheOp::Store { above, blocks }] if above.is_empty() => blocks.clone(),
            other => panic!("{more}: {other:?}"),
        };
        assert_eq!(told, held, "{more}");
        // What follows a page that cannot be named is no loss.
        let mut next = with(more.clone());
        let fields = next.as_object_mut().expect("an object");
        fields.extend(stored(&[3], Some(2), &[9, 9, 9, 9], 4).as_object().expect("an object").clone());
        fields.remove("extra_keys");
        apply(&mut mirror, &next, &mut ops);
        assert!(!mirror.is_partial(), "{more}");
        assert_eq!(ops.is_empty(), held.len() < 2, "{more}");
    }
}

#[test]
fn of_the_groups_of_a_hybrid_model_one_counts() {
    let mut mirror = Mirror::new(config(4), false);
    let mut ops = Ops::default();
    let group = |mut event: Value, group: u32, kind: &str| {
        let fields = event.as_object_mut().expect("an object");
        fields.insert("group_idx".into(), group.into());
        if fields["type"] == "BlockStored" {
            fields.insert("kv_cache_spec_kind".into(), kind.into());
        }
        event
    };
    let store = stored(&[1], None, &[1, 2, 3, 4], 4);
    apply(&mut mirror, &group(store.clone(), 0, "sliding_window"), &mut ops);
    apply(&mut mirror, &group(store.clone(), 1, "full_attention"), &mut ops);
    apply(&mut mirror, &group(store, 2, "full_attention"), &mut ops);
    assert_eq!((mirror.blocks(), mirror.counters().ignored), (1, 2));
    apply(&mut mirror, &group(removed(&[1]), 0, ""), &mut ops);
    apply(&mut mirror, &group(removed(&[1]), 2, ""), &mut ops);
    assert_eq!(mirror.blocks(), 1, "another group's page");
    apply(&mut mirror, &group(removed(&[1]), 1, ""), &mut ops);
    assert_eq!(mirror.blocks(), 0);
}

#[test]
fn unknown_parents_make_a_rank_partial_until_it_is_cleared() {
    let mut mirror = Mirror::new(config(4), false);
    let mut ops = Ops::default();
    apply(&mut mirror, &stored(&[2], Some(1), &[5, 6, 7, 8], 4), &mut ops);
    assert!(ops.is_empty() && mirror.is_partial());
    assert_eq!(mirror.counters().orphans, 1);
    apply(&mut mirror, &json!({"type": "AllBlocksCleared"}), &mut ops);
    assert!(!mirror.is_partial());
    assert_eq!(ops.take(), [CacheOp::Clear]);
    // A page that is told to be another than it was.
    apply(&mut mirror, &stored(&[1], None, &[1, 2, 3, 4], 4), &mut ops);
    apply(&mut mirror, &stored(&[1], None, &[1, 2, 3], 4), &mut ops);
    assert_eq!((mirror.blocks(), mirror.counters().conflicts, mirror.is_partial()), (1, 1, true));
}

#[test]
fn long_paths_are_told_in_pieces_that_name_their_place() {
    let tokens: Vec<u32> = (0..6_400).collect();
    let mut mirror = Mirror::new(config(1), false);
    let mut tree = Tree::default();
    let mut ops = Ops::default();
    let hashes: Vec<u64> = (0..400).map(|page| page + 1).collect();
    apply(&mut mirror, &stored(&hashes, None, &tokens, 16), &mut ops);
    let told = ops.take();
    assert!(told.len() == 4, "{} operations", told.len());
    let one_by_one = |told: &[CacheOp], tree: &mut Tree| tree.apply(told).expect("names its place");
    one_by_one(&told, &mut tree);
    assert_eq!(tree.held.len(), 6_400);
    // From the tail, as engines evict.
    for hash in hashes.iter().skip(300).rev() {
        apply(&mut mirror, &removed(&[*hash]), &mut ops);
    }
    let removed = ops.take();
    one_by_one(&removed, &mut tree);
    assert_eq!((tree.held.len(), mirror.blocks()), (4_800, 4_800));
}

#[test]
fn copies_are_counted_until_they_cannot_be_any() {
    let counting = MirrorConfig { copies: Some(4), ..config(4) };
    let mut mirror = Mirror::new(counting, false);
    let mut ops = Ops::default();
    let (a, b) = (stored(&[1], None, &[1, 2, 3, 4], 4), stored(&[2], Some(1), &[5, 6, 7, 8], 4));
    for event in [&a, &b, &b, &removed(&[2])] {
        apply(&mut mirror, event, &mut ops);
    }
    assert_eq!(mirror.blocks(), 2, "one copy is left");
    apply(&mut mirror, &removed(&[2]), &mut ops);
    assert_eq!(mirror.blocks(), 1);
    // Stored once, removed once, but told three times between: five pages are more than the engine has room for.
    for event in [&b, &b, &removed(&[2]), &a, &a, &a] {
        apply(&mut mirror, event, &mut ops);
    }
    assert_eq!((mirror.blocks(), mirror.counters().retold), (1, 1));
    for event in [&b, &b, &removed(&[2])] {
        apply(&mut mirror, event, &mut ops);
    }
    assert_eq!(mirror.blocks(), 1, "told of again is not stored again");
}

#[test]
fn events_that_store_nothing_leave_nothing() {
    let mut mirror = Mirror::new(MirrorConfig { max_bytes: 1000, ..config(4) }, false);
    let mut ops = Ops::default();
    for salt in 0..100 {
        let mut empty = stored(&[], None, &[], 4);
        empty.as_object_mut().expect("an object").insert("cache_salt".into(), format!("{salt}").into());
        apply(&mut mirror, &empty, &mut ops);
    }
    assert_eq!(mirror.bytes(), 0);
    // The same page in another chain contradicts; the other chain is not begun for it.
    apply(&mut mirror, &stored(&[1], None, &[1, 2, 3, 4], 4), &mut ops);
    let bytes = mirror.bytes();
    let mut elsewhere = stored(&[1], None, &[1, 2, 3, 4], 4);
    elsewhere.as_object_mut().expect("an object").insert("cache_salt".into(), "s".into());
    apply(&mut mirror, &elsewhere, &mut ops);
    assert_eq!((mirror.bytes(), mirror.counters().conflicts), (bytes, 1));
}

#[test]
fn what_follows_an_image_is_not_told_even_when_the_image_is_not_mentioned_again() {
    let mut mirror = Mirror::new(config(4), false);
    let mut ops = Ops::default();
    let mut image = stored(&[1], None, &[1, 2, 3, 4], 4);
    let fields = image.as_object_mut().expect("an object");
    fields.insert("extra_keys".into(), json!([[["image", 0]]]));
    apply(&mut mirror, &image, &mut ops);
    apply(&mut mirror, &stored(&[1, 2], None, &[1, 2, 3, 4, 5, 6, 7, 8], 4), &mut ops);
    assert_eq!((mirror.pages(), mirror.blocks(), ops.is_empty()), (2, 0, true));
}
