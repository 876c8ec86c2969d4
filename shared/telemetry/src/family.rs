//! Families: one metric name, its label values, and the cells behind them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::cells::{Buckets, Counter, Distribution, Gauge, Histogram, HistogramCell};
use crate::names::Definition;

/// Distinct values that one label may take in one family; further ones are shown as [`OTHER`].
pub const MAX_VALUES: usize = 1000;
/// Distinct combinations of label values in one family; beyond them all values become [`OTHER`].
pub const MAX_SERIES: usize = 10_000;
/// Stands for all label values that came when the bound was reached.
pub const OTHER: &str = "other";
/// Longest label value in bytes; longer ones are cut.
const MAX_VALUE_LEN: usize = 256;

/// A kind of metric. Implemented by [`Counter`], [`Gauge`] and [`Histogram`] only.
pub trait Metric: Sized + Send + fmt::Debug + private::Sealed + 'static {
    #[doc(hidden)]
    type Cell: Send + Sync + fmt::Debug;
    #[doc(hidden)]
    type Total: Default + Clone + Send + fmt::Debug;
    #[doc(hidden)]
    const TYPE: MetricType;
    #[doc(hidden)]
    const OUTLIVES_HANDLE: bool;
    #[doc(hidden)]
    fn cell(buckets: Buckets) -> Self::Cell;
    #[doc(hidden)]
    fn handle(cell: Arc<Self::Cell>) -> Self;
    #[doc(hidden)]
    fn add(total: &mut Self::Total, cell: &Self::Cell);
    #[doc(hidden)]
    fn encode(total: &Self::Total, buckets: Buckets, encoder: &mut MetricEncoder<'_>) -> fmt::Result;
}

mod private {
    pub trait Sealed {}
    impl Sealed for super::Counter {}
    impl Sealed for super::Gauge {}
    impl Sealed for super::Histogram {}
}

impl Metric for Counter {
    type Cell = CachePadded<AtomicU64>;
    type Total = u64;
    const TYPE: MetricType = MetricType::Counter;
    const OUTLIVES_HANDLE: bool = true;

    fn cell(_: Buckets) -> Self::Cell {
        CachePadded::default()
    }

    fn handle(cell: Arc<Self::Cell>) -> Self {
        Self::new(cell)
    }

    fn add(total: &mut u64, cell: &Self::Cell) {
        *total = total.wrapping_add(cell.load(Relaxed));
    }

    fn encode(total: &u64, _: Buckets, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, u64, u64>(total, None)
    }
}

impl Metric for Gauge {
    type Cell = CachePadded<AtomicI64>;
    type Total = i64;
    const TYPE: MetricType = MetricType::Gauge;
    const OUTLIVES_HANDLE: bool = false;

    fn cell(_: Buckets) -> Self::Cell {
        CachePadded::default()
    }

    fn handle(cell: Arc<Self::Cell>) -> Self {
        Self::new(cell)
    }

    fn add(total: &mut i64, cell: &Self::Cell) {
        *total = total.wrapping_add(cell.load(Relaxed));
    }

    fn encode(total: &i64, _: Buckets, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(total)
    }
}

impl Metric for Histogram {
    type Cell = HistogramCell;
    type Total = Distribution;
    const TYPE: MetricType = MetricType::Histogram;
    const OUTLIVES_HANDLE: bool = true;

    fn cell(buckets: Buckets) -> Self::Cell {
        HistogramCell::new(buckets)
    }

    fn handle(cell: Arc<Self::Cell>) -> Self {
        Self::new(cell)
    }

    fn add(total: &mut Distribution, cell: &Self::Cell) {
        cell.add_to(total);
    }

    fn encode(total: &Distribution, buckets: Buckets, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let counts: Vec<(f64, u64)> = (0..buckets.len())
            .map(|at| (buckets.bound(at), total.counts.get(at).copied().unwrap_or(0)))
            .collect();
        let count = counts.iter().map(|(_, n)| n).sum();
        encoder.encode_histogram::<NoLabelSet>(total.sum, count, &counts, None)
    }
}

/// All series of one metric name.
///
/// Taking a handle locks the family: take them at start or at a label's first use, not per request.
#[derive(Debug)]
pub struct Family<M: Metric>(Arc<Inner<M>>);

impl<M: Metric> Clone for Family<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Metric> Family<M> {
    pub(crate) fn new(definition: &Definition, buckets: Buckets) -> Self {
        Self(Arc::new(Inner { definition: *definition, buckets, state: Mutex::default() }))
    }

    pub(crate) fn from_inner(inner: Arc<Inner<M>>) -> Self {
        Self(inner)
    }

    pub(crate) fn inner(&self) -> Arc<Inner<M>> {
        Arc::clone(&self.0)
    }

    /// A new handle for these label values, in the definition's order (missing ones count as empty, surplus ones are
    /// ignored). Each handle has a cell of its own: any number may exist for the same values. What a dropped counter or
    /// histogram has recorded stays; a dropped gauge counts no more.
    pub fn handle(&self, values: &[&str]) -> M {
        let mut state = self.0.lock();
        let values = state.bounded(self.0.definition.labels.len(), values);
        let series = state.series.entry(values).or_default();
        series.collect_dropped();
        let cell = Arc::new(M::cell(self.0.buckets));
        series.cells.push(Arc::clone(&cell));
        M::handle(cell)
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.0.lock().series.len()
    }

    /// No series yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug)]
pub(crate) struct Inner<M: Metric> {
    pub definition: Definition,
    buckets: Buckets,
    state: Mutex<State<M>>,
}

/// Label values in the definition's order.
type Values = Box<[Box<str>]>;

#[derive(Debug)]
struct State<M: Metric> {
    series: BTreeMap<Values, Series<M>>,
    /// Per label, the values that are shown as themselves.
    known: Vec<HashSet<Box<str>>>,
}

impl<M: Metric> Default for State<M> {
    fn default() -> Self {
        Self { series: BTreeMap::new(), known: Vec::new() }
    }
}

#[derive(Debug)]
struct Series<M: Metric> {
    /// Recorded by handles that no longer exist.
    past: M::Total,
    cells: Vec<Arc<M::Cell>>,
}

impl<M: Metric> Default for Series<M> {
    fn default() -> Self {
        Self { past: M::Total::default(), cells: Vec::new() }
    }
}

impl<M: Metric> Series<M> {
    /// Frees the cells whose handles are gone, so that memory follows the handles that exist.
    fn collect_dropped(&mut self) {
        let past = &mut self.past;
        self.cells.retain(|cell| {
            let held = Arc::strong_count(cell) > 1;
            if !held {
                // The holder's last writes happened before it let go of the cell.
                std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
                if M::OUTLIVES_HANDLE {
                    M::add(past, cell);
                }
            }
            held
        });
    }
}

impl<M: Metric> State<M> {
    fn bounded(&mut self, labels: usize, values: &[&str]) -> Values {
        self.known.resize_with(labels, HashSet::new);
        let own: Values = self
            .known
            .iter_mut()
            .enumerate()
            .map(|(at, known)| {
                let value = cut(values.get(at).copied().unwrap_or(""));
                if known.contains(value) {
                    value.into()
                } else if known.len() < MAX_VALUES {
                    known.insert(value.into());
                    value.into()
                } else {
                    OTHER.into()
                }
            })
            .collect();
        if labels == 0 || self.series.len() < MAX_SERIES || self.series.contains_key(&own) {
            own
        } else {
            (0..labels).map(|_| OTHER.into()).collect()
        }
    }
}

fn cut(value: &str) -> &str {
    (0..=MAX_VALUE_LEN.min(value.len())).rev().find_map(|end| value.get(..end)).unwrap_or(value)
}

impl<M: Metric> Inner<M> {
    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums, copied out so that no lock is held while text is made.
    fn totals(&self) -> Vec<(Values, M::Total)> {
        let mut state = self.lock();
        state
            .series
            .iter_mut()
            .map(|(values, series)| {
                series.collect_dropped();
                let mut total = series.past.clone();
                for cell in &series.cells {
                    M::add(&mut total, cell);
                }
                (values.clone(), total)
            })
            .collect()
    }
}

/// What a scrape asks of a family or callback.
pub(crate) trait Exposed: std::any::Any + Send + Sync + fmt::Debug {
    fn definition(&self) -> &Definition;
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result;
}

impl<M: Metric> Exposed for Inner<M> {
    fn definition(&self) -> &Definition {
        &self.definition
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let totals = self.totals();
        if totals.is_empty() {
            return Ok(());
        }
        let name = self.definition.family_name();
        let mut metric = encoder.encode_descriptor(name, self.definition.help, None, M::TYPE)?;
        for (values, total) in &totals {
            if values.is_empty() {
                M::encode(total, self.buckets, &mut metric)?;
            } else {
                let labels = self.definition.pair(values.iter().map(|v| &**v));
                M::encode(total, self.buckets, &mut metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
