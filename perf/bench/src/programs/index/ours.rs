//! Our tree.

use fairlead_prefix::{Config, Hits, Reader, TargetId, Writer};

use super::subject::{Probe, Subject};

/// The scheduler's side of the index: the truth.
pub struct Ours {
    writer: Writer,
    now_us: u64,
}

/// Generation of all targets.
const GENERATION: u16 = 1;

impl Ours {
    /// An empty index with `targets` bound.
    ///
    /// # Errors
    /// More targets than an index can tell apart.
    pub fn new(targets: u16, max_bytes: usize) -> anyhow::Result<Self> {
        let (mut writer, _) = fairlead_prefix::new(Config { max_bytes, max_targets: usize::from(targets) });
        for slot in 0..targets {
            writer.bind(TargetId::new(slot, GENERATION))?;
        }
        Ok(Self { writer, now_us: 1 })
    }

    /// The writer.
    pub fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }
}

impl Subject for Ours {
    type Probe = OurProbe;

    fn name(&self) -> &'static str {
        "fairlead-prefix"
    }

    fn place(&mut self, target: u16, path: &[u64]) {
        self.now_us += 10;
        self.writer.place(TargetId::new(target, GENERATION), path, self.now_us);
    }

    fn append(&mut self, target: u16, above: &[u64], block: u64) {
        self.now_us += 1;
        let path: Vec<u64> = above.iter().copied().chain([block]).collect();
        self.writer.place(TargetId::new(target, GENERATION), &path, self.now_us);
    }

    fn remove(&mut self, target: u16, path: &[u64], keep: usize) {
        self.writer.remove_path_tail(TargetId::new(target, GENERATION), path, keep as u32);
    }

    fn drain(&mut self) {
        // Nobody is pinned: two grace periods, and what waited has passed.
        for _ in 0..8 {
            self.writer.collect();
        }
    }

    fn probe(&self) -> OurProbe {
        OurProbe { reader: self.writer.reader(), hits: Hits::new() }
    }

    fn accounted(&self) -> Option<u64> {
        Some(self.writer.stats().bytes)
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
