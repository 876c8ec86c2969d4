//! Reading a configuration file, with errors that name the file once.

use std::path::Path;

use fairlead_config::{Config, ConfigError};

/// Reads a file.
pub fn load(file: &Path) -> anyhow::Result<Config> {
    Config::load(file).map_err(|error| match error {
        ConfigError::File { .. } => error.into(),
        error => anyhow::Error::new(error).context(file.display().to_string()),
    })
}
