//! The list of what a process exposes, and its text form.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use crate::cells::{Buckets, Counter, Gauge, Histogram};
use crate::family::{Exposed, Family, Inner, Metric, OTHER};
use crate::names::Definition;

/// `Content-Type` of [`Registry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Most series that one callback may show; what comes beyond is added up under [`OTHER`].
pub const MAX_SAMPLES: usize = 16_384;

/// What a process exposes. Cheap to clone; clones share the content.
#[derive(Clone, Debug)]
pub struct Registry {
    exposed: Arc<ExposedList>,
    encoder: Arc<prometheus_client::registry::Registry>,
}

#[derive(Debug, Default)]
struct ExposedList(Mutex<Vec<Arc<dyn Exposed>>>);

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        let exposed = Arc::new(ExposedList::default());
        let mut encoder = prometheus_client::registry::Registry::default();
        encoder.register_collector(Box::new(Shared(Arc::clone(&exposed))));
        Self { exposed, encoder: Arc::new(encoder) }
    }

    /// A family of counters. Asking again for the same name gives the same family, here and below.
    pub fn counter(&self, definition: &Definition) -> Family<Counter> {
        self.family(definition, Buckets::LATENCY)
    }

    /// A family of gauges whose handles add up.
    pub fn gauge(&self, definition: &Definition) -> Family<Gauge> {
        self.family(definition, Buckets::LATENCY)
    }

    /// A family of histograms.
    pub fn histogram(&self, definition: &Definition, buckets: Buckets) -> Family<Histogram> {
        self.family(definition, buckets)
    }

    /// A gauge that is read when scraped. `read` runs on the scraping thread, may be called by several at once, and must
    /// not wait; values that are not known are simply not pushed.
    pub fn gauge_callback(
        &self,
        definition: &Definition,
        read: impl Fn(&mut Samples) + Send + Sync + 'static,
    ) {
        self.callback(definition, MetricType::Gauge, Box::new(read));
    }

    /// Like [`Self::gauge_callback`] for a counter that is kept elsewhere.
    pub fn counter_callback(
        &self,
        definition: &Definition,
        read: impl Fn(&mut Samples) + Send + Sync + 'static,
    ) {
        self.callback(definition, MetricType::Counter, Box::new(read));
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, and nothing registered here reports errors of its own.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.encoder) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        text
    }

    fn family<M: Metric>(&self, definition: &Definition, buckets: Buckets) -> Family<M> {
        let mut list = self.exposed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(existing) = list.iter().find(|e| e.definition().name == definition.name) {
            let any: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(existing) as _;
            if let Ok(inner) = any.downcast::<Inner<M>>()
                && inner.definition.labels == definition.labels
            {
                return Family::from_inner(inner);
            }
            tracing::error!(name = definition.name, "metric is registered twice with different shapes");
            return Family::new(definition, buckets);
        }
        let family = Family::new(definition, buckets);
        list.push(family.inner());
        family
    }

    fn callback(&self, definition: &Definition, kind: MetricType, read: Read) {
        let mut list = self.exposed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if list.iter().any(|e| e.definition().name == definition.name) {
            tracing::error!(name = definition.name, "metric is registered twice");
            return;
        }
        list.push(Arc::new(Callback { definition: *definition, kind, read }));
    }
}

#[derive(Debug)]
struct Shared(Arc<ExposedList>);

impl Collector for Shared {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let list = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        list.iter().try_for_each(|exposed| exposed.encode(&mut encoder))
    }
}

type Read = Box<dyn Fn(&mut Samples) + Send + Sync>;

struct Callback {
    definition: Definition,
    kind: MetricType,
    read: Read,
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback").field("definition", &self.definition).finish_non_exhaustive()
    }
}

/// Takes the values of a callback.
#[derive(Debug)]
pub struct Samples {
    labels: usize,
    rows: Vec<(Box<[Box<str>]>, f64)>,
    beyond: Option<f64>,
}

impl Samples {
    /// Shows `value` under these label values, in the definition's order (missing ones count as empty, surplus ones are
    /// ignored). The same label values must not be pushed twice.
    pub fn push(&mut self, values: &[&str], value: f64) {
        if self.rows.len() >= MAX_SAMPLES {
            *self.beyond.get_or_insert(0.0) += value;
            return;
        }
        let values = (0..self.labels).map(|at| values.get(at).copied().unwrap_or("").into()).collect();
        self.rows.push((values, value));
    }
}

impl Exposed for Callback {
    fn definition(&self) -> &Definition {
        &self.definition
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = self.definition.labels.len();
        let mut samples = Samples { labels, rows: Vec::new(), beyond: None };
        (self.read)(&mut samples);
        if let Some(rest) = samples.beyond {
            samples.rows.push(((0..labels).map(|_| OTHER.into()).collect(), rest));
        }
        if samples.rows.is_empty() {
            return Ok(());
        }
        let name = self.definition.family_name();
        let mut metric = encoder.encode_descriptor(name, self.definition.help, None, self.kind)?;
        for (values, value) in &samples.rows {
            if values.is_empty() {
                encode_number(*value, self.kind, &mut metric)?;
            } else {
                let labels = self.definition.pair(values.iter().map(|v| &**v));
                encode_number(*value, self.kind, &mut metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Whole numbers are written as such.
fn encode_number(
    value: f64,
    kind: MetricType,
    encoder: &mut prometheus_client::encoding::MetricEncoder<'_>,
) -> fmt::Result {
    use prometheus_client::encoding::NoLabelSet;
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = value.fract() == 0.0 && value.abs() <= EXACT;
    match kind {
        MetricType::Counter if whole && value >= 0.0 => {
            encoder.encode_counter::<NoLabelSet, u64, u64>(&(value as u64), None)
        }
        MetricType::Counter => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        _ if whole => encoder.encode_gauge(&(value as i64)),
        _ => encoder.encode_gauge(&value),
    }
}
