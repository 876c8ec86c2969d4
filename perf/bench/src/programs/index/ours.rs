//! Our tree: the scheduler's side, which holds the truth, and a gateway's replica fed by its operations.

use fairlead_prefix::{Config, Hits, Reader, TargetId, Writer};
use fairlead_wire::is_anchor;
use fairlead_wire::msg::IndexOp;

use super::subject::{Probe, Subject};

/// Generation of all targets.
const GENERATION: u16 = 1;
/// Name in the table.
const NAME: &str = "fairlead-prefix";

fn writer(targets: u16, max_bytes: usize, locate: bool) -> anyhow::Result<Writer> {
    let (mut writer, _) =
        fairlead_prefix::new(Config { max_bytes, max_targets: usize::from(targets), locate });
    for slot in 0..targets {
        writer.bind(TargetId::new(slot, GENERATION))?;
    }
    Ok(writer)
}

/// Until nothing waits for readers any more, of whom there are none.
fn drain(writer: &mut Writer) {
    for _ in 0..1000 {
        writer.collect();
        if writer.stats().retired_bytes == 0 {
            break;
        }
    }
}

/// The truth.
pub struct Truth {
    writer: Writer,
    now_us: u64,
    /// What replicas would be sent, when it is to be kept.
    pub sent: Option<Vec<IndexOp>>,
}

impl Truth {
    /// An empty index with `targets` bound.
    ///
    /// # Errors
    /// More targets than an index can tell apart.
    pub fn new(targets: u16, max_bytes: usize) -> anyhow::Result<Self> {
        Ok(Self { writer: writer(targets, max_bytes, true)?, now_us: 1, sent: None })
    }

    /// A reader, as a fleet takes it.
    pub fn reader(&self) -> Reader {
        self.writer.reader()
    }

    fn send(&mut self, ops: impl IntoIterator<Item = IndexOp>) {
        if let Some(sent) = &mut self.sent {
            sent.extend(ops);
        }
    }
}

impl Subject for Truth {
    type Probe = OurProbe;

    fn name(&self) -> &'static str {
        NAME
    }

    fn place(&mut self, target: u16, path: &[u64]) {
        self.now_us += 10;
        let op = self.writer.place(TargetId::new(target, GENERATION), path, self.now_us);
        self.send(op);
    }

    fn append(&mut self, target: u16, above: &[u64], block: u64) {
        self.now_us += 1;
        // As an agent names the place: from the nearest anchor on.
        let from = above.iter().rposition(|b| is_anchor(*b)).unwrap_or(0);
        let op = self.writer.store(TargetId::new(target, GENERATION), &above[from..], &[block], self.now_us);
        self.send(op.ok().flatten());
    }

    fn take(&mut self, target: u16, above: &[u64], block: u64) {
        let from = if is_anchor(block) {
            above.len()
        } else {
            above.iter().rposition(|b| is_anchor(*b)).unwrap_or(0)
        };
        let ops = self.writer.remove_blocks(TargetId::new(target, GENERATION), &above[from..], &[block]);
        self.send(ops);
    }

    fn remove(&mut self, target: u16, path: &[u64], keep: usize) {
        let ops = self.writer.remove_path_tail(TargetId::new(target, GENERATION), path, keep as u32);
        self.send(ops);
    }

    fn drain(&mut self) {
        drain(&mut self.writer);
    }

    fn probe(&self) -> OurProbe {
        OurProbe { reader: self.writer.reader(), hits: Hits::new() }
    }

    fn accounted(&self) -> Option<u64> {
        Some(self.writer.stats().bytes)
    }
}

/// A replica.
pub struct Replica {
    writer: Writer,
}

impl Replica {
    /// An empty replica with `targets` bound.
    ///
    /// # Errors
    /// More targets than an index can tell apart.
    pub fn new(targets: u16, max_bytes: usize) -> anyhow::Result<Self> {
        Ok(Self { writer: writer(targets, max_bytes, false)? })
    }

    /// Applies what the truth sent.
    ///
    /// # Errors
    /// Truth and replica have come apart.
    pub fn apply(&mut self, ops: &[IndexOp]) -> anyhow::Result<()> {
        Ok(self.writer.apply_all(ops)?)
    }

    /// Ends all work that is under way.
    pub fn drain(&mut self) {
        drain(&mut self.writer);
    }

    /// A reader.
    pub fn probe(&self) -> OurProbe {
        OurProbe { reader: self.writer.reader(), hits: Hits::new() }
    }

    /// Blocks in it.
    pub fn blocks(&self) -> u64 {
        self.writer.stats().blocks
    }
}

/// A reader with its answer.
pub struct OurProbe {
    reader: Reader,
    hits: Hits,
}

impl Probe for OurProbe {
    fn lookup(&mut self, path: &[u64]) {
        self.reader.lookup(path, &mut self.hits);
    }

    fn depth(&self, target: u16) -> u32 {
        self.hits.get(target)
    }
}
