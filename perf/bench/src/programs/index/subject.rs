//! What an index must do to be measured.

/// An index with its one writer.
pub trait Subject: Send {
    /// Access for readers.
    type Probe: Probe;
    /// Name in the table.
    fn name(&self) -> &'static str;
    /// `target` holds all of `path`.
    fn place(&mut self, target: u16, path: &[u64]);
    /// `target` holds `block` too, which follows `above`.
    fn append(&mut self, target: u16, above: &[u64], block: u64);
    /// `target` holds `block` no more, which follows `above` and is the last of the path that it holds.
    fn take(&mut self, target: u16, above: &[u64], block: u64);
    /// `target` holds nothing of `path` beyond its first `keep` blocks.
    fn remove(&mut self, target: u16, path: &[u64], keep: usize);
    /// Ends all work that is under way: what was handed over is in effect, what was replaced is freed.
    fn drain(&mut self);
    /// A reader.
    fn probe(&self) -> Self::Probe;
    /// Memory by the index's own account, if it keeps one, bytes.
    fn accounted(&self) -> Option<u64> {
        None
    }
}

/// A reader of an index.
pub trait Probe: Send {
    /// Finds for every target the number of leading blocks of `path` that it holds. The answer stays in the probe.
    fn lookup(&mut self, path: &[u64]);
    /// Number of leading blocks that `target` holds, of the last lookup.
    fn depth(&self, target: u16) -> u32;
}
