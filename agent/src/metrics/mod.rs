//! Reading an engine's Prometheus page.
//!
//! A page of a real engine has hundreds of lines of which a dozen matter. [`Reader`] takes the body as it arrives,
//! looks at a line's first bytes, and decides by name before anything is parsed; nothing is allocated per line.
//! What it keeps is a [`Sample`]: per data-parallel rank one cell per [`Field`], each *seen*, *bad* or *absent*.
//! Bad and absent both read as unknown: a figure that an engine does not report is never taken for zero.

mod names;
mod reader;
mod sample;

pub(crate) use names::expected;
pub use names::{Field, Nature};
pub use reader::{MAX_LINE, Reader};
pub use sample::{MAX_RANKS, Sample};
