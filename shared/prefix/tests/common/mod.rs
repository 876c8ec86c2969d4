//! Paths, targets and writers for the integration tests.

use fairlead_prefix::{Config, TargetId, Writer, new};

/// A path of `len` blocks: `shared` blocks that all paths have, then its own.
pub fn path(own: u64, shared: usize, len: usize) -> Vec<u64> {
    let mut last = 1u64;
    (0..len)
        .map(|at| {
            let text = if at < shared { at as u64 } else { own << 20 | at as u64 };
            last = (last.rotate_left(5) ^ text).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            last
        })
        .collect()
}

pub fn target(slot: u16) -> TargetId {
    TargetId::new(slot, 1)
}

pub fn bound(config: Config, targets: u16) -> Writer {
    let (mut writer, _) = new(config);
    for slot in 0..targets {
        writer.bind(target(slot)).unwrap();
    }
    writer
}
