//! Work on a whole index in bounded slices, so that an index of any size keeps no thread for long.

use std::sync::Arc;

use super::snapshot::Runs;
use super::tree::View;
use super::{NIL, ROOT, Writer};

/// How far an enumeration of the runs has come. Void after any change of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunCursor(pub(super) u32);

impl Writer {
    /// Where an enumeration of the runs begins.
    pub fn first_run(&self) -> RunCursor {
        RunCursor(self.nodes[ROOT as usize].first_child)
    }

    /// The runs from a place on, parents before children. The index must not have changed since the place was
    /// [told](Runs::cursor).
    pub fn runs_from(&self, cursor: RunCursor) -> Runs<'_> {
        let next = if self.nodes.get(cursor.0 as usize).is_some_and(|node| node.cell != NIL) {
            cursor.0
        } else {
            NIL
        };
        Runs { writer: self, next }
    }

    /// Takes up to `runs` runs out of the index, leaves first, with all holdings. Whether it is empty now; the tenants
    /// of the slots stay. For an index that is not in use any more: what is left answers on until it is its turn.
    pub fn empty_some(&mut self, runs: usize) -> bool {
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        let mut at = ROOT;
        let mut left = runs;
        while left > 0 {
            let child = self.nodes[at as usize].first_child;
            if child != NIL {
                at = child;
            } else if at == ROOT {
                break;
            } else {
                let above = self.nodes[at as usize].parent;
                self.unlink(at, view);
                at = above;
                left -= 1;
            }
        }
        let empty = self.nodes[ROOT as usize].first_child == NIL;
        drop(guard);
        self.finish();
        empty
    }
}

impl Runs<'_> {
    /// Where to go on.
    pub fn cursor(&self) -> RunCursor {
        RunCursor(self.next)
    }
}

#[cfg(all(test, not(any(loom, feature = "shuttle"))))]
mod tests {
    use fairlead_wire::TargetId;

    use crate::{Config, Hits, new};

    #[test]
    fn slices_enumerate_all_runs_and_empty_the_index() {
        let (mut writer, reader) = new(Config { max_bytes: 1 << 20, max_targets: 4, locate: true });
        let targets = [TargetId::new(0, 1), TargetId::new(1, 1)];
        for (i, target) in targets.into_iter().enumerate() {
            writer.bind(target).unwrap();
            for branch in 1..20u64 {
                let path: Vec<u64> = (1..5).chain([branch * 10 + 5, branch * 10 + 6 + i as u64]).collect();
                writer.place(target, &path, 0);
            }
        }
        let whole: Vec<_> = writer.snapshot_runs().collect();
        let mut cursor = writer.first_run();
        let mut sliced = Vec::new();
        for slice in [0, 1, 2, 3, 100, 100] {
            let mut runs = writer.runs_from(cursor);
            sliced.extend(runs.by_ref().take(slice));
            cursor = runs.cursor();
        }
        assert_eq!(sliced, whole);
        let mut slices = 0;
        while !writer.empty_some(7) {
            slices += 1;
            assert!(slices < 100);
        }
        assert_eq!(slices, whole.len() / 7);
        let stats = writer.stats();
        assert_eq!((stats.blocks, stats.runs, stats.held_blocks, stats.targets), (0, 0, 0, 0));
        // The tenants are still there.
        writer.place(targets[1], &[7, 8], 0);
        let mut hits = Hits::default();
        reader.lookup(&[7, 8], &mut hits);
        assert_eq!(hits.get(1), 2);
        assert!(writer.runs_from(cursor).next().is_none(), "an old place names nothing");
    }
}
