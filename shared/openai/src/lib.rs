//! The API shapes that clients speak and engines answer in.
//!
//! - [`scan`] reads a request body once, checks it, and tells what routing needs: model, stream, limits, and where the
//!   prompt lies. The body itself is never rebuilt: the engine gets the client's bytes.
//! - [`canonical`] turns the prompt into bytes that do not depend on how the JSON was written, and that begin alike for
//!   two turns of one conversation. Block hashes are taken over these bytes.
//! - [`SseWatch`] and [`UsageWatch`] read over an answer's shoulder for `usage` and the end of a stream.
//! - [`splice`] changes single members of a body by cutting it, for engines that hand a request over to each other, and
//!   [`CachedPatch`] corrects such an answer's count of cached tokens in place.
//! - [`error_body`], [`error_event`] and [`models_body`] write the few answers that the router gives itself.
//!
//! Nothing here does I/O, and no input makes it panic or hold more than a bounded amount of memory.

mod api;
mod cached;
mod canonical;
mod error;
mod json;
mod models;
mod place;
mod realtime;
mod scan;
mod sse;
mod steering;
mod usage;

pub mod splice;

pub use api::{Api, ErrorStyle};
pub use cached::CachedPatch;
pub use canonical::canonical;
pub use error::{ErrorInfo, error_body, error_event, error_type};
pub use json::{MAX_DEPTH, Span};
pub use models::{ModelCard, model_body, models_body};
pub use realtime::event_model;
pub use scan::{Prompt, Scan, ScanError, scan, validate};
pub use sse::SseWatch;
pub use usage::{Usage, UsageWatch, usage_of_json};
