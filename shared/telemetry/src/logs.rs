//! Where logs go and which are kept.

use std::io::IsTerminal;

use thiserror::Error;
use tracing_subscriber::EnvFilter;

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error(
        "`{filter}` is not a log filter: {why}; allowed: error, warn, info, debug, trace, off, or a list such as info,quinn=warn"
    )]
    Filter {
        /// As given.
        filter: String,
        /// What the parser says.
        why: String,
    },
    /// The format is not known.
    #[error("`{0}` is not a log format; allowed: text, json")]
    Format(String),
    /// Logging was set up before.
    #[error("logging is set up already")]
    Twice,
}

/// Sends logs to standard error. `filter` is a level or a list of `target=level`; `format` is `text` or `json`.
///
/// Nothing that happens once per request may be logged above `debug`.
pub fn init_logs(filter: &str, format: &str) -> Result<(), LogError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|e| LogError::Filter { filter: filter.to_owned(), why: e.to_string() })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let result = match format {
        "text" => builder.try_init(),
        "json" => builder.json().flatten_event(true).with_current_span(false).try_init(),
        other => return Err(LogError::Format(other.to_owned())),
    };
    result.map_err(|_| LogError::Twice)
}
