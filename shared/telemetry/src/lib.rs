//! What the processes say about themselves: metrics and logs.
//!
//! **Metrics.** A [`Registry`] knows families; a family gives out handles ([`Counter`], [`Gauge`], [`Histogram`]), each
//! with a memory cell of its own that only its holder writes. Recording is a plain load, add and store, without a lock
//! or a contended cache line; the scrape sums the cells. Shards keep their handles, by label values in a [`Local`] where
//! there are many. Values that live elsewhere are read at the scrape by callbacks. Output: OpenMetrics text.
//!
//! Every family bounds how many values a label takes, because labels such as the model's name come from clients.
//!
//! **Admin port.** [`admin::serve_pages`] is the small HTTP server on which every process shows its metrics.
//!
//! **Logs.** [`init_logs`] sends them to standard error, as text or JSON.

pub mod admin;
mod cells;
mod family;
mod local;
mod logs;
pub mod names;
mod registry;

#[cfg(test)]
mod tests;

pub use cells::{Buckets, Counter, Gauge, Histogram};
pub use family::{Family, MAX_SERIES, MAX_VALUES, Metric, OTHER};
pub use local::Local;
pub use logs::{LogError, init_logs};
pub use names::Definition;
pub use registry::{CONTENT_TYPE, MAX_SAMPLES, Registry, Samples};
