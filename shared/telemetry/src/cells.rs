//! The cells behind metrics: one writer each, read by the scrape.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

/// Makes a handle movable between threads but not usable by two at once: so a load and a store suffice to count.
type OneWriter = PhantomData<Cell<()>>;

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    cell: Arc<CachePadded<AtomicU64>>,
    one: OneWriter,
}

impl Counter {
    pub(crate) fn new(cell: Arc<CachePadded<AtomicU64>>) -> Self {
        Self { cell, one: PhantomData }
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.cell.store(self.cell.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// What this handle has counted.
    pub fn value(&self) -> u64 {
        self.cell.load(Relaxed)
    }
}

/// A number that goes up and down. The scrape shows the sum over the handles that exist.
#[derive(Debug)]
pub struct Gauge {
    cell: Arc<CachePadded<AtomicI64>>,
    one: OneWriter,
}

impl Gauge {
    pub(crate) fn new(cell: Arc<CachePadded<AtomicI64>>) -> Self {
        Self { cell, one: PhantomData }
    }

    /// Sets this handle's share.
    #[inline]
    pub fn set(&self, value: i64) {
        self.cell.store(value, Relaxed);
    }

    /// Adds to this handle's share; negative values subtract.
    #[inline]
    pub fn add(&self, n: i64) {
        self.cell.store(self.cell.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// This handle's share.
    pub fn value(&self) -> i64 {
        self.cell.load(Relaxed)
    }
}

/// Bucket bounds of a histogram: powers of two, each octave divided evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Exponent of the first bound.
    min_exp: i16,
    /// Exponent of the last finite bound.
    max_exp: i16,
    /// Logarithm to base two of the steps per octave.
    steps_log2: u8,
}

impl Buckets {
    /// 122 µs to 128 s, two steps per octave: waiting times of clients, in seconds.
    pub const LATENCY: Self = Self::new(-13, 7, 1);
    /// 3.8 µs to 1 s, two steps per octave: time that the gateway itself takes, in seconds.
    pub const OVERHEAD: Self = Self::new(-18, 0, 1);
    /// 1/32 to 32, four steps per octave: predicted against actual.
    pub const RATIO: Self = Self::new(-5, 5, 2);

    /// Bounds from `2^min_exp` to `2^max_exp` with `2^steps_log2` steps per octave. Out-of-range arguments are brought
    /// into range (exponents -64 to 64, at most 8 steps).
    pub const fn new(min_exp: i16, max_exp: i16, steps_log2: u8) -> Self {
        let min_exp = if min_exp < -64 {
            -64
        } else if min_exp > 63 {
            63
        } else {
            min_exp
        };
        let max_exp = if max_exp > 64 {
            64
        } else if max_exp <= min_exp {
            min_exp + 1
        } else {
            max_exp
        };
        Self { min_exp, max_exp, steps_log2: if steps_log2 > 3 { 3 } else { steps_log2 } }
    }

    /// Buckets, with the one for everything above the last bound.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.max_exp.abs_diff(self.min_exp)) * (1 << self.steps_log2) + 2
    }

    /// Upper bound of bucket `index`, inclusive.
    pub(crate) fn bound(&self, index: usize) -> f64 {
        if index + 1 >= self.len() {
            return f64::INFINITY;
        }
        f64::from_bits(self.first() + ((index as u64) << self.shift()))
    }

    /// Which bucket a value falls into. The bits of a positive double grow with its value, exponent first: so the top
    /// bits of value and first bound differ by the number of buckets between them.
    #[inline]
    fn index(&self, value: f64) -> usize {
        let first = self.first();
        let bits = value.max(0.0).to_bits();
        if bits <= first {
            return 0;
        }
        let steps = (bits - 1 - first) >> self.shift();
        usize::try_from(steps).unwrap_or(usize::MAX).saturating_add(1).min(self.len() - 1)
    }

    const fn first(&self) -> u64 {
        ((self.min_exp + 1023) as u64) << 52
    }

    const fn shift(&self) -> u32 {
        52 - self.steps_log2 as u32
    }
}

/// Counters per cache line (of the padding's size).
const LANE: usize = 16;

#[derive(Debug)]
pub struct HistogramCell {
    lanes: Box<[CachePadded<[AtomicU64; LANE]>]>,
    sum: CachePadded<AtomicU64>,
    buckets: Buckets,
}

impl HistogramCell {
    pub(crate) fn new(buckets: Buckets) -> Self {
        let lanes = buckets.len().div_ceil(LANE);
        Self {
            lanes: (0..lanes).map(|_| CachePadded::default()).collect(),
            sum: CachePadded::default(),
            buckets,
        }
    }

    pub(crate) fn add_to(&self, total: &mut Distribution) {
        let counts = self.lanes.iter().flat_map(|lane| lane.iter());
        total.counts.resize(self.buckets.len(), 0);
        for (sum, count) in total.counts.iter_mut().zip(counts) {
            *sum += count.load(Relaxed);
        }
        total.sum += f64::from_bits(self.sum.load(Relaxed));
    }
}

/// Sum of histogram cells.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    pub(crate) counts: Vec<u64>,
    pub(crate) sum: f64,
}

/// How values are distributed, in buckets that grow with the value.
#[derive(Debug)]
pub struct Histogram {
    cell: Arc<HistogramCell>,
    one: OneWriter,
}

impl Histogram {
    pub(crate) fn new(cell: Arc<HistogramCell>) -> Self {
        Self { cell, one: PhantomData }
    }

    /// Records a value. NaN is ignored, negative values fall into the lowest bucket.
    #[inline]
    pub fn observe(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let at = self.cell.buckets.index(value);
        if let Some(count) = self.cell.lanes.get(at / LANE).and_then(|lane| lane.get(at % LANE)) {
            count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        }
        let sum = f64::from_bits(self.cell.sum.load(Relaxed)) + value;
        self.cell.sum.store(sum.to_bits(), Relaxed);
    }

    /// Values recorded by this handle.
    pub fn count(&self) -> u64 {
        self.cell.lanes.iter().flat_map(|lane| lane.iter()).map(|c| c.load(Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_between_the_bounds_of_its_bucket() {
        for buckets in [Buckets::LATENCY, Buckets::OVERHEAD, Buckets::RATIO, Buckets::new(0, 1, 0)] {
            let mut values: Vec<f64> = (0..buckets.len() - 1).map(|i| buckets.bound(i)).collect();
            values.extend(values.clone().iter().flat_map(|v| [v.next_up(), v.next_down(), v * 1.1]));
            values.extend([0.0, -1.0, 1e300, f64::INFINITY, f64::MIN_POSITIVE]);
            for value in values {
                let at = buckets.index(value);
                assert!(value <= buckets.bound(at), "{value} in {at}");
                assert!(at == 0 || value > buckets.bound(at - 1), "{value} in {at}");
            }
        }
    }

    #[test]
    fn bounds_are_powers_of_two_evenly_divided() {
        let bounds = |b: Buckets| (0..b.len()).map(|i| b.bound(i)).collect::<Vec<_>>();
        assert_eq!(bounds(Buckets::new(0, 2, 1)), [1.0, 1.5, 2.0, 3.0, 4.0, f64::INFINITY]);
        assert_eq!(Buckets::LATENCY.len(), 42);
        assert_eq!(Buckets::new(5, 3, 9), Buckets::new(5, 6, 3));
    }

    #[test]
    fn nan_is_not_recorded() {
        let histogram = Histogram::new(Arc::new(HistogramCell::new(Buckets::RATIO)));
        histogram.observe(f64::NAN);
        assert_eq!(histogram.count(), 0);
        histogram.observe(1.0);
        assert_eq!(histogram.count(), 1);
    }
}
