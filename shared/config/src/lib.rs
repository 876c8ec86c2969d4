//! Fairlead's configuration: one typed tree, read from YAML.
//!
//! Every key stands once, in the list of its section ([`Config`] is the top): type, default, bounds and
//! documentation. The reader, the checks and `docs/configuration.md` ([`reference_markdown`]) follow from that list.
//! Nothing is ignored: an unknown key or an impossible value is a [`ConfigError`] that names the key's path, what
//! stands there, and what may.

mod error;
mod handoff;
mod http2;
mod reference;
mod routing;
mod schema;
mod sections;
mod setting;
mod tls;
mod types;

pub use error::ConfigError;
pub use handoff::{HandoffSetting, Label, Part};
pub use http2::Http2;
pub use reference::reference_markdown;
pub use routing::{Explain, Named, POLICY_MAX, PolicySettings, PolicyText, Profile, SidePolicy, Slo};
pub use schema::{KeyDoc, SectionDoc};
pub use sections::{
    Agent, Config, Gateway, Instance, Log, Model, PrefillDecode, Retry, Scheduler, Timeouts, Tokenising,
    Upstream,
};
pub use setting::{Setting, Size};
pub use tls::{Tls, UpstreamTls};
pub use types::{
    Advertised, BasePath, Driver, Endpoints, HostPort, HttpUrl, InstanceUrl, KvEvents, LogFilter, LogFormat,
    Runtime, Shards,
};

use std::path::Path;

/// Longest file read, bytes.
const FILE_MAX: u64 = 4 << 20;

impl Config {
    /// Reads a configuration from YAML (JSON is YAML too).
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        let syntax = |error: serde_yaml_ng::Error| ConfigError::Syntax { why: error.to_string() };
        let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(syntax)?;
        value.apply_merge().map_err(syntax)?;
        Self::read(&value, "")
    }

    /// Reads a file.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        use std::io::Read;
        let file = file.as_ref();
        let failed = |source| ConfigError::File { file: file.to_owned(), source };
        let mut text = String::new();
        let open = std::fs::File::open(file).map_err(failed)?;
        open.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > FILE_MAX {
            return Err(failed(std::io::Error::other(format!("longer than {FILE_MAX} bytes"))));
        }
        Self::from_yaml(&text)
    }
}
