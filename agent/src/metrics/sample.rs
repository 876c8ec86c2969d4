//! What one page said.

use super::names::{Field, Nature};
use fairlead_wire::msg::EngineKind;

/// Most data-parallel ranks told apart; series of higher ranks are not read.
pub const MAX_RANKS: usize = 1024;

/// One figure per field.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cells {
    seen: u64,
    bad: u64,
    values: [f64; Field::COUNT],
}

impl Default for Cells {
    fn default() -> Self {
        Self { seen: 0, bad: 0, values: [0.0; Field::COUNT] }
    }
}

impl Cells {
    fn put(&mut self, field: Field, value: Option<f64>) {
        let (bit, at) = (field.bit(), field.index());
        let first = self.seen & bit == 0;
        self.seen |= bit;
        let Some(value) = value else {
            self.bad |= bit;
            // A bad figure leaves no trace of the good ones, so that equal pages give equal samples.
            self.values[at] = 0.0;
            return;
        };
        if self.bad & bit != 0 {
            return;
        }
        let old = self.values[at];
        self.values[at] = match field.nature() {
            _ if first => value,
            Nature::Gauge => old.max(value),
            Nature::Counter => old + value,
        };
    }

    fn get(&self, field: Field) -> Option<f64> {
        (self.seen & !self.bad & field.bit() != 0).then(|| self.values[field.index()])
    }
}

/// The figures of one page, by data-parallel rank.
///
/// A series whose value is not a finite number of at least zero makes its field unknown for that rank: half of a
/// sum would be a wrong total.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Sample {
    vllm: bool,
    sglang: bool,
    nixl: bool,
    ranks: Vec<Cells>,
    /// Series without a rank label.
    unranked: Cells,
    process_start: Option<f64>,
    counter_start: Option<f64>,
}

impl Sample {
    /// Empties the sample and keeps its memory.
    pub fn clear(&mut self) {
        self.ranks.clear();
        self.vllm = false;
        self.sglang = false;
        self.nixl = false;
        self.unranked = Cells::default();
        self.process_start = None;
        self.counter_start = None;
    }

    pub(super) fn family(&mut self, kind: EngineKind) {
        match kind {
            EngineKind::Vllm => self.vllm = true,
            EngineKind::Sglang => self.sglang = true,
            EngineKind::Generic => {}
        }
    }

    pub(super) fn nixl(&mut self) {
        self.nixl = true;
    }

    pub(super) fn put(&mut self, rank: Option<u16>, field: Field, value: Option<f64>) {
        match rank {
            None => self.unranked.put(field, value),
            Some(rank) => {
                let at = usize::from(rank);
                if at >= MAX_RANKS {
                    return;
                }
                if self.ranks.len() <= at {
                    self.ranks.resize(at + 1, Cells::default());
                }
                self.ranks[at].put(field, value);
            }
        }
    }

    pub(super) fn put_process_start(&mut self, seconds: f64) {
        self.process_start = Some(earliest(self.process_start, seconds));
    }

    pub(super) fn put_counter_start(&mut self, seconds: f64) {
        self.counter_start = Some(earliest(self.counter_start, seconds));
    }

    /// Whose names the page carries.
    pub fn kind(&self) -> EngineKind {
        match (self.vllm, self.sglang) {
            (true, _) => EngineKind::Vllm,
            (false, true) => EngineKind::Sglang,
            (false, false) => EngineKind::Generic,
        }
    }

    /// Whether it carries figures of transfers by vLLM's NIXL connector.
    pub fn has_nixl(&self) -> bool {
        self.nixl
    }

    /// Ranks on the page; a page without rank labels has one, a page without figures none.
    pub fn ranks(&self) -> usize {
        if self.ranks.is_empty() && self.unranked.seen != 0 { 1 } else { self.ranks.len() }
    }

    /// Whether figures carry a rank label.
    pub fn is_ranked(&self) -> bool {
        !self.ranks.is_empty()
    }

    /// A rank's figure; `None` is unknown.
    ///
    /// A series without a rank label speaks for the only rank of a page, or for each when it is a constant.
    pub fn get(&self, rank: usize, field: Field) -> Option<f64> {
        if let Some(cells) = self.ranks.get(rank)
            && cells.seen & field.bit() != 0
        {
            return cells.get(field);
        }
        (self.ranks() <= 1 || field.is_constant()).then(|| self.unranked.get(field)).flatten()
    }

    /// Fields known for at least one rank, as a mask of [`Field::bit`].
    pub fn known(&self) -> u64 {
        let unranked = self.unranked.seen & !self.unranked.bad;
        self.ranks.iter().fold(unranked, |mask, cells| mask | (cells.seen & !cells.bad))
    }

    /// When the engine started, seconds since 1970: the process's own figure, else the age of its counters.
    pub fn started(&self) -> Option<f64> {
        self.process_start.or(self.counter_start)
    }
}

fn earliest(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old.min(new))
}
