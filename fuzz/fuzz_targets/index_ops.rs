//! Operations from hostile peers on the prefix index: no panic, no read of freed memory, and a replica that was given
//! what the truth returned equals the truth, whatever the hashes are.
#![no_main]

use fairlead_prefix::{Config, Hits, TargetId, Writer, new};
use fairlead_wire::msg::{Holding, IndexOp, Run};
use libfuzzer_sys::fuzz_target;

struct Bytes<'d>(&'d [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Small numbers, so that they meet again; not chained.
    fn path(&mut self) -> Vec<u64> {
        let len = self.byte().unwrap_or(0) % 24;
        (0..len).map_while(|_| self.byte()).map(|byte| u64::from(byte % 40)).collect()
    }

    fn number(&mut self) -> u32 {
        match self.byte().unwrap_or(0) {
            255 => u32::MAX,
            254 => 1 << 31,
            byte => u32::from(byte % 32),
        }
    }

    fn target(&mut self) -> TargetId {
        let byte = self.byte().unwrap_or(0);
        TargetId::new(u16::from(byte % 32), u16::from(byte >> 7))
    }
}

fn index() -> Writer {
    let (mut writer, _) = new(Config { max_bytes: Config::MIN_BYTES, max_targets: 30, locate: true });
    for slot in 0..28 {
        let _ = writer.bind(TargetId::new(slot, 0));
    }
    writer
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let (mut truth, mut replica, mut hostile) = (index(), index(), index());
    let reader = truth.reader();
    let mut hits = Hits::new();
    let mut now_us = 0;
    while let Some(kind) = bytes.byte() {
        now_us += u64::from(kind) << 14;
        let target = bytes.target();
        match kind % 10 {
            0..=2 => {
                let path = bytes.path();
                // Sometimes for many, so that runs take the wide form.
                let last = if kind % 50 == 0 { 27 } else { target.slot };
                for slot in target.slot..=last.max(target.slot) {
                    let target = TargetId::new(slot, target.generation);
                    if let Some(op) = truth.place(target, &path, now_us) {
                        assert_eq!(replica.apply(&op), Ok(()));
                    }
                }
                reader.lookup(&path, &mut hits);
                assert!(hits.iter().all(|(_, depth)| depth as usize <= path.len()));
            }
            3 => {
                let (path, keep) = (bytes.path(), bytes.number());
                assert_eq!(replica.apply_all(&truth.remove_path_tail(target, &path, keep)), Ok(()));
            }
            4 => assert_eq!(replica.apply_all(&truth.trim_target(target, u64::from(bytes.number()))), Ok(())),
            5 => {
                let op = match bytes.byte().unwrap_or(0) % 5 {
                    0 => IndexOp::Clear { target: target.pack() },
                    1 => IndexOp::Evict { run: u64::from(bytes.number()) },
                    2 => {
                        let (run, from, len) = (u64::from(bytes.number()), bytes.number(), bytes.number());
                        IndexOp::Remove { target: target.pack(), run, from, len }
                    }
                    3 => {
                        let (anchor, skip, blocks) =
                            (u64::from(bytes.number()), bytes.number(), bytes.path());
                        IndexOp::Store { target: target.pack(), anchor, skip, blocks }
                    }
                    _ => {
                        let (anchor, skip, blocks) =
                            (u64::from(bytes.number()), bytes.number(), bytes.path());
                        IndexOp::Place { target: target.pack(), anchor, skip, blocks }
                    }
                };
                assert_eq!(truth.apply(&op), replica.apply(&op));
            }
            6 => {
                let holder = Holding {
                    target: target.pack(),
                    depth: bytes.number(),
                    missing: vec![(bytes.number(), bytes.number())],
                };
                let run =
                    Run { parent: u64::from(bytes.number()), blocks: bytes.path(), holders: vec![holder] };
                let _ = hostile.restore_run(&run);
                let _ = hostile.apply(&IndexOp::Evict { run: u64::from(bytes.number()) });
                reader.lookup(&bytes.path(), &mut hits);
            }
            7 => {
                let (above, blocks) = (bytes.path(), bytes.path());
                if let Ok(Some(op)) = truth.store(target, &above, &blocks, now_us) {
                    assert_eq!(replica.apply(&op), Ok(()));
                }
            }
            8 => {
                let (above, blocks) = (bytes.path(), bytes.path());
                assert_eq!(replica.apply_all(&truth.remove_blocks(target, &above, &blocks)), Ok(()));
            }
            _ => {
                // A replica that joins now.
                replica.reset();
                for slot in 0..28 {
                    let _ = replica.bind(TargetId::new(slot, 0));
                }
                for run in truth.snapshot_runs() {
                    assert_eq!(replica.restore_run(&run), Ok(()));
                }
                truth.collect();
            }
        }
    }
    assert_eq!(truth.holdings(), replica.holdings());
    let runs = |index: &Writer| {
        let mut runs: Vec<Run> = index.snapshot_runs().collect();
        runs.sort_unstable_by_key(|run| run.blocks.clone());
        runs
    };
    assert_eq!(runs(&truth), runs(&replica));
    let _ = (truth.paths_of(0), hostile.paths_of(1), hostile.holdings());
    for slot in 0..30 {
        truth.drop_target(slot);
    }
    assert_eq!(truth.stats().held_blocks, 0);
});
