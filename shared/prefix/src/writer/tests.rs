//! The tree against the slow reference, and replicas against the truth, at every step of random operations.
#![allow(clippy::unwrap_used, reason = "tests")]

use fairlead_wire::msg::IndexOp;
use fairlead_wire::{Slot, TargetId, is_anchor};
use proptest::prelude::*;

use super::{At, NIL, ROOT, Writer};
use crate::reference::Reference;
use crate::sync::Ordering;
use crate::writer::tree::View;
use crate::{Config, Hits, Reader, new};

const TARGETS: u16 = 7;

/// A prompt: a few segments, each one of three texts of a few blocks, so that paths share and diverge often.
type Prompt = Vec<(u8, u8)>;

fn chain(last: u64, text: u64) -> u64 {
    let x = (last ^ text.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ x >> 33).max(16);
    // Anchors more often than in life: paths are short here.
    if x >> 62 == 0 { x & !15 } else { x }
}

fn path_of(prompt: &Prompt) -> Vec<u64> {
    let mut path = Vec::new();
    let mut last = 0x5eed;
    for (text, len) in prompt {
        for part in 0..=*len {
            last = chain(last, u64::from(*text) << 8 | u64::from(part));
            path.push(last);
        }
    }
    path
}

#[derive(Clone, Debug)]
enum Step {
    Place {
        target: u16,
        prompt: Prompt,
    },
    Tail {
        target: u16,
        prompt: Prompt,
        keep: u32,
    },
    /// Some blocks of a path, as an engine's events tell them.
    Store {
        target: u16,
        prompt: Prompt,
        from: usize,
        len: usize,
    },
    /// The same for a removal.
    Forget {
        target: u16,
        prompt: Prompt,
        from: usize,
        len: usize,
    },
    /// Part of a run, as a removal on the wire names it.
    Remove {
        target: u16,
        run: usize,
        from: u32,
        len: u32,
    },
    Clear {
        target: u16,
    },
    Rebind {
        target: u16,
    },
    Evict {
        run: usize,
    },
    Trim {
        target: u16,
        blocks: u64,
    },
    /// The last replica starts again from a snapshot.
    Snapshot,
}

fn prompts() -> impl Strategy<Value = Prompt> {
    prop::collection::vec((0u8..3, 0u8..6), 1..6)
}

fn steps() -> impl Strategy<Value = Step> {
    let target = 0..TARGETS;
    prop_oneof![
        10 => (target.clone(), prompts()).prop_map(|(target, prompt)| Step::Place { target, prompt }),
        3 => (target.clone(), prompts(), 0u32..20).prop_map(|(target, prompt, keep)| Step::Tail { target, prompt, keep }),
        6 => (target.clone(), any::<usize>(), 0u32..12, 1u32..8)
            .prop_map(|(target, run, from, len)| Step::Remove { target, run, from, len }),
        8 => (target.clone(), prompts(), 0usize..30, 1usize..12)
            .prop_map(|(target, prompt, from, len)| Step::Store { target, prompt, from, len }),
        6 => (target.clone(), prompts(), 0usize..30, 1usize..12)
            .prop_map(|(target, prompt, from, len)| Step::Forget { target, prompt, from, len }),
        1 => target.clone().prop_map(|target| Step::Clear { target }),
        1 => target.clone().prop_map(|target| Step::Rebind { target }),
        2 => any::<usize>().prop_map(|run| Step::Evict { run }),
        1 => (target, 0u64..40).prop_map(|(target, blocks)| Step::Trim { target, blocks }),
        1 => Just(Step::Snapshot),
    ]
}

/// The part of a path that starts at `from`, and the blocks above it from an anchor (or the path's start) on.
fn part(path: &[u64], from: usize, len: usize) -> (&[u64], &[u64]) {
    let from = from.min(path.len() - 1);
    let anchor = path[..from].iter().rposition(|block| is_anchor(*block)).unwrap_or(0);
    (&path[anchor..from], &path[from..path.len().min(from + len)])
}

/// Everything that must hold between the parts of one index.
fn check(index: &Writer) {
    let guard = index.shared.pins.pin();
    let view = View { shared: &index.shared, guard: &guard };
    let (mut runs, mut blocks, mut records) = (0, 0, 0);
    let mut held = vec![0u64; index.slots.len()];
    let mut left = vec![index.nodes[ROOT as usize].first_child];
    let (mut memory, mut anchors) = (0, 0);
    let (mut wide, mut wide_runs, mut behind) = (0, 0, 0);
    while let Some(node) = left.pop() {
        if node == NIL {
            continue;
        }
        let links = &index.nodes[node as usize];
        left.push(links.next_sibling);
        left.push(links.first_child);
        for near in [links.next_sibling, links.first_child] {
            let back = if near == links.first_child { ROOT } else { node };
            if near != NIL && back == node {
                assert_eq!(index.nodes[near as usize].prev_sibling, node);
                assert_eq!(index.nodes[near as usize].parent, links.parent);
            }
        }
        if links.first_child != NIL {
            assert_eq!(index.nodes[links.first_child as usize].parent, node);
        }
        let cell = index.cell(node, view);
        assert_eq!(cell.node(), node);
        assert_eq!(index.find(index.head(node, view), view), Some(node), "the name leads to the run");
        runs += 1;
        for (at, block) in cell.run(&guard).iter().enumerate() {
            let block = block.load(Ordering::Relaxed);
            if is_anchor(block) || at == 0 && links.parent == ROOT {
                assert!(
                    index.anchors.is_none() || index.locate(block, view) == Some(At { node, off: at as u32 })
                );
                anchors += usize::from(is_anchor(block));
            }
        }
        blocks += u64::from(cell.len());
        memory += crate::words::Words::bytes_for(cell.blocks().get(&guard).len());
        let mut extent = 0;
        let shares = index.shares(node, cell, view);
        for share in &shares {
            if cell.wide_number().is_some() {
                assert_eq!(share.record, NIL);
                wide += 1;
            } else {
                let record = &index.records[share.record as usize];
                assert_eq!((record.node, record.slot), (node, share.slot));
                records += 1;
            }
            assert!(share.count() > 0 && index.runs_of(share.slot).contains(&node));
            behind += usize::from(!share.behind.is_empty());
            extent = extent.max(share.extent());
            held[usize::from(share.slot)] += u64::from(share.count());
        }
        assert_eq!(index.extent(node, view), extent);
        if let Some(number) = cell.wide_number() {
            assert_eq!(index.wide[number as usize], node);
            wide_runs += 1;
        }
        assert!(extent <= cell.len());
        if links.first_child != NIL && index.nodes[links.first_child as usize].next_sibling == NIL {
            let child = index.cell(links.first_child, view);
            assert!(
                (cell.len() + child.len()) as usize > crate::MAX_RUN,
                "an only child is merged with the run"
            );
        }
        if links.first_child == NIL {
            assert!(extent > cell.len() / 2, "a run without children is cut to what is held");
        }
        if links.parent != ROOT {
            assert!(index.nodes[links.parent as usize].used >= links.used);
        }
    }
    assert_eq!((runs, blocks), (index.live_runs, index.blocks));
    assert_eq!(records, index.records.len() - index.free_records.len());
    assert_eq!(held, index.slots.iter().map(|state| state.held).collect::<Vec<_>>());
    assert_eq!(held.iter().sum::<u64>(), index.held);
    assert_eq!(held.iter().filter(|held| **held > 0).count(), index.targets);
    assert_eq!(memory, index.usage.blocks);
    assert!(index.anchors.as_ref().is_none_or(|table| table.live() == anchors));
    let mut listed = 0;
    for state in &index.slots {
        let mut record = state.records.oldest;
        while record != NIL {
            listed += 1;
            record = index.records[record as usize].newer;
        }
    }
    assert_eq!(listed, records);
    let bits = index.slots.iter().flat_map(|state| &state.wide).map(|bits| bits.count_ones()).sum::<u32>();
    assert_eq!((bits, wide_runs), (wide, index.wide.len() - index.free_wide.len()));
    assert_eq!(behind, index.behind.len());
    assert!(index.footprint() - index.grave.bytes() <= index.config.max_bytes);
}

fn runs_of(index: &Writer) -> Vec<fairlead_wire::msg::Run> {
    let mut runs: Vec<_> = index.snapshot_runs().collect();
    runs.sort_unstable_by_key(|run| run.blocks[0]);
    runs
}

fn blocks_of(index: &Writer, name: u64, from: u32, len: u32) -> Vec<u64> {
    let run = index.snapshot_runs().find(|run| run.blocks[0] == name).unwrap();
    run.blocks.into_iter().skip(from as usize).take(len as usize).collect()
}

struct World {
    truth: Writer,
    reader: Reader,
    /// One from the start, one restored from snapshots.
    replicas: [Writer; 2],
    reference: Reference,
    generations: Vec<u16>,
    seen: Vec<Vec<u64>>,
    now_us: u64,
}

const CONFIG: Config = Config { max_bytes: 4 << 20, max_targets: 8, locate: false };

impl World {
    fn new() -> Self {
        let (truth, reader) = new(Config { locate: true, ..CONFIG });
        let mut world = Self {
            truth,
            reader,
            replicas: [new(CONFIG).0, new(CONFIG).0],
            reference: Reference::default(),
            generations: vec![1; usize::from(TARGETS)],
            seen: Vec::new(),
            now_us: 1 << 40,
        };
        for slot in 0..TARGETS {
            world.bind(slot);
        }
        world
    }

    fn target(&self, slot: Slot) -> TargetId {
        TargetId::new(slot, self.generations[usize::from(slot)])
    }

    fn bind(&mut self, slot: Slot) {
        let target = self.target(slot);
        self.truth.bind(target).unwrap();
        self.replicas.iter_mut().for_each(|replica| replica.bind(target).unwrap());
    }

    fn replicate(&mut self, ops: &[IndexOp]) {
        for op in ops {
            for replica in &mut self.replicas {
                replica.apply(op).unwrap();
                // Again: no change.
                let once = replica.holdings().len();
                replica.apply(op).unwrap();
                assert_eq!(replica.holdings().len(), once, "{op:?} twice");
            }
        }
    }

    fn apply(&mut self, op: IndexOp) {
        self.truth.apply(&op).unwrap();
        self.replicate(&[op]);
    }

    /// Removals of the truth, on reference and replicas, one by one: each names a run as it is at its turn.
    fn follow_removals(&mut self, ops: Vec<IndexOp>) {
        for op in ops {
            if let IndexOp::Remove { target, run, from, len } = &op {
                let blocks = blocks_of(&self.replicas[0], *run, *from, *len);
                assert_eq!(blocks.len(), *len as usize);
                self.reference.remove(TargetId::unpack(*target), &blocks);
            }
            self.replicate(&[op]);
        }
    }

    fn step(&mut self, step: &Step) {
        self.now_us += 1 << 20;
        match step {
            Step::Place { target, prompt } => {
                let (target, path) = (self.target(*target), path_of(prompt));
                let known = self.reference.depth(target, &path) as usize == path.len();
                let op = self.truth.place(target, &path, self.now_us);
                assert_eq!(op.is_none(), known, "an operation exactly when something changed");
                self.reference.place(target, &path);
                self.replicate(op.as_slice());
                self.seen.push(path);
            }
            Step::Tail { target, prompt, keep } => {
                let (target, path) = (self.target(*target), path_of(prompt));
                let ops = self.truth.remove_path_tail(target, &path, *keep);
                self.reference.remove(target, path.get(*keep as usize..).unwrap_or(&[]));
                self.replicate(&ops);
            }
            Step::Store { target, prompt, from, len } => {
                let (target, path) = (self.target(*target), path_of(prompt));
                let (above, blocks) = part(&path, *from, *len);
                let known = self.reference.holds(target, blocks);
                match self.truth.store(target, above, blocks, self.now_us) {
                    Ok(op) => {
                        assert_eq!(op.is_none(), known, "an operation exactly when something changed");
                        self.reference.store(target, above, blocks);
                        self.replicate(op.as_slice());
                    }
                    Err(_) => {
                        assert!(above.last().is_some_and(|parent| !self.reference.is_held(*parent)));
                    }
                }
                self.seen.push(path);
            }
            Step::Forget { target, prompt, from, len } => {
                let (target, path) = (self.target(*target), path_of(prompt));
                let (above, blocks) = part(&path, *from, *len);
                let above = if is_anchor(blocks[0]) { &[] } else { above };
                let ops = self.truth.remove_blocks(target, above, blocks);
                self.reference.remove(target, blocks);
                self.replicate(&ops);
            }
            Step::Remove { target, run, from, len } => {
                let runs = runs_of(&self.truth);
                let Some(run) = runs.get(run % runs.len().max(1)) else { return };
                let target = self.target(*target);
                self.reference.remove(target, &blocks_of(&self.truth, run.blocks[0], *from, *len));
                self.apply(IndexOp::Remove {
                    target: target.pack(),
                    run: run.blocks[0],
                    from: *from,
                    len: *len,
                });
            }
            Step::Clear { target } => {
                self.reference.clear(*target);
                self.apply(IndexOp::Clear { target: self.target(*target).pack() });
            }
            Step::Rebind { target } => {
                let old = self.target(*target);
                self.reference.clear(*target);
                self.truth.drop_target(*target);
                self.replicas.iter_mut().for_each(|replica| replica.drop_target(*target));
                self.generations[usize::from(*target)] += 1;
                self.bind(*target);
                // What was said of the old tenant does not touch the new one.
                let before = self.truth.stats().ignored;
                assert_eq!(self.truth.place(old, &[1, 2, 3], self.now_us), None);
                self.apply(IndexOp::Place { target: old.pack(), anchor: 0, skip: 0, blocks: vec![1, 2] });
                assert_eq!(self.truth.stats().ignored, before + 2);
                assert_eq!(self.truth.held_by(*target), 0);
            }
            Step::Evict { run } => {
                let runs = runs_of(&self.truth);
                let Some(run) = runs.get(run % runs.len().max(1)) else { return };
                self.reference.evict(run.blocks[0]);
                self.apply(IndexOp::Evict { run: run.blocks[0] });
            }
            Step::Trim { target, blocks } => {
                let target = self.target(*target);
                let had = self.truth.held_by(target.slot);
                let ops = self.truth.trim_target(target, *blocks);
                let has = self.truth.held_by(target.slot);
                assert!(has <= *blocks && (had > *blocks || has == had));
                self.follow_removals(ops);
            }
            Step::Snapshot => {
                let replica = &mut self.replicas[1];
                replica.reset();
                assert_eq!(replica.stats().runs, 0);
                for slot in 0..TARGETS {
                    replica.bind(TargetId::new(slot, self.generations[usize::from(slot)])).unwrap();
                }
                for run in self.truth.snapshot_runs() {
                    replica.restore_run(&run).unwrap();
                }
            }
        }
    }

    fn compare(&self) {
        check(&self.truth);
        let holdings = self.truth.holdings();
        assert_eq!(holdings, self.reference.holdings());
        let runs = runs_of(&self.truth);
        for replica in &self.replicas {
            assert_eq!(replica.holdings(), holdings);
            assert_eq!(runs_of(replica), runs, "runs and their names are the same in every replica");
        }
        let mut hits = Hits::new();
        for path in self.seen.iter().rev().take(12) {
            let mut longer = path.clone();
            longer.extend([7, 8, 9]);
            for path in [&path[..path.len() / 2], &path[..], &longer[..]] {
                self.reader.lookup(path, &mut hits);
                let mut deepest = 0;
                for slot in 0..TARGETS {
                    let depth = self.reference.depth(self.target(slot), path);
                    assert_eq!(hits.get(slot), depth, "slot {slot} of {path:x?}");
                    deepest = deepest.max(depth);
                }
                assert_eq!(hits.matched_blocks, deepest);
                assert_eq!(hits.len(), hits.iter().filter(|hit| hit.1 > 0).count());
            }
        }
        for slot in 0..TARGETS {
            let paths = self.truth.paths_of(slot);
            for path in &paths {
                assert_eq!(self.reference.depth(self.target(slot), path) as usize, path.len());
                assert!(
                    paths.iter().all(|other| other == path || !other.starts_with(path)),
                    "a path within another"
                );
            }
            for path in &self.seen {
                let depth = self.reference.depth(self.target(slot), path) as usize;
                assert!(depth == 0 || paths.iter().any(|known| known.starts_with(&path[..depth])));
            }
        }
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn tree_replicas_and_reference_agree_at_every_step(steps in prop::collection::vec(steps(), 1..50)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.compare();
        }
        // All gone: nothing is left behind, once the graveyard is drained.
        for slot in 0..TARGETS {
            world.truth.drop_target(slot);
        }
        check(&world.truth);
        prop_assert_eq!(world.truth.stats().runs, 0);
        prop_assert_eq!(world.truth.usage.blocks + world.truth.usage.spill + world.truth.usage.behind, 0);
    }
}
