//! The part that an instance plays in hand-offs between engines: values, and what goes with what.

use crate::error::{ConfigError, join};
use crate::setting::{Setting, read_text, wrong};
use crate::types::words;
use fairlead_wire::msg::{Handoff, ServingRole};
use serde_yaml_ng::Value;

words! {
    /// What an instance does of a request's work.
    Part {
        /// What its engine says.
        #[default]
        Auto = "auto",
        /// Prefill and decode.
        Both = "both",
        /// Prefill only.
        Prefill = "prefill",
        /// Decode only.
        Decode = "decode",
    }
}

impl Part {
    /// The role that is told; `None` where the engine is to say it.
    pub const fn role(self) -> Option<ServingRole> {
        match self {
            Self::Auto => None,
            Self::Both => Some(ServingRole::Both),
            Self::Prefill => Some(ServingRole::Prefill),
            Self::Decode => Some(ServingRole::Decode),
        }
    }
}

/// How an instance hands KV to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HandoffSetting {
    /// As its engine says.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// In this way.
    Is(Handoff),
}

impl HandoffSetting {
    /// The spelling in files and options.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Is(handoff) => handoff.as_str(),
        }
    }
}

impl Setting for HandoffSetting {
    fn allowed() -> String {
        let names = Handoff::ALL.iter().map(|handoff| format!("`{}`", handoff.as_str()));
        ["`auto`".to_owned(), "`none`".to_owned()].into_iter().chain(names).collect::<Vec<_>>().join(", ")
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, |text| match text {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::None),
            name => Handoff::find(name).map(Self::Is),
        })
    }
    fn show(&self) -> String {
        self.as_str().into()
    }
}

/// A label of an instance, `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub key: String,
    /// What it says; may be empty.
    pub value: String,
}

impl Label {
    /// Reads `KEY=VALUE`; the value may hold further equals signs.
    pub fn parse(text: &str) -> Option<Self> {
        let (key, value) = text.split_once('=')?;
        let fits = |part: &str| part.len() <= 256 && !part.contains(char::is_control);
        (!key.is_empty() && fits(key) && fits(value))
            .then(|| Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl Setting for Label {
    fn allowed() -> String {
        "`KEY=VALUE`, each of at most 256 bytes".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        value.as_str().and_then(Self::parse).ok_or_else(|| wrong::<Self>(value, path))
    }
    fn show(&self) -> String {
        format!("{}={}", self.key, self.value)
    }
}

/// Whether prefill instances have a bootstrap server for it.
pub(crate) fn has_bootstrap(handoff: Handoff) -> bool {
    matches!(handoff, Handoff::Sglang | Handoff::Mooncake)
}

/// Whether the connectors' own sockets are named in requests.
fn has_peer(handoff: Handoff) -> bool {
    matches!(handoff, Handoff::MoriRead | Handoff::MoriWrite | Handoff::P2pNccl | Handoff::LmcachePd)
}

/// Whether a connector's further port is named in requests.
fn has_peer_port(handoff: Handoff) -> bool {
    matches!(handoff, Handoff::MoriRead | Handoff::MoriWrite | Handoff::LmcachePd)
}

/// The keys beside `handoff`, as they are written; `None` for those that are not.
pub(crate) struct Details {
    pub bootstrap: Option<String>,
    pub peer: Option<String>,
    pub peer_port: Option<String>,
    pub transfer_domain: Option<String>,
    pub kv_bytes_per_token: Option<String>,
}

impl Details {
    /// Refuses keys that mean nothing for the hand-off. `asked`: an agent asks the engine for what is not told.
    pub fn check(&self, path: &str, handoff: HandoffSetting, asked: bool) -> Result<(), ConfigError> {
        for (key, given, fits) in [
            ("bootstrap", &self.bootstrap, has_bootstrap as fn(Handoff) -> bool),
            ("peer", &self.peer, has_peer),
            ("peer_port", &self.peer_port, has_peer_port),
            ("transfer_domain", &self.transfer_domain, |_| true),
            ("kv_bytes_per_token", &self.kv_bytes_per_token, |_| true),
        ] {
            let Some(value) = given else { continue };
            let allowed = match handoff {
                HandoffSetting::Auto if asked => continue,
                HandoffSetting::Is(handoff) if fits(handoff) => continue,
                HandoffSetting::Is(handoff) => {
                    format!("nothing: the hand-off `{}` has none", handoff.as_str())
                }
                other => format!("nothing, as long as handoff is `{}`", other.as_str()),
            };
            return Err(ConfigError::value(&join(path, key), value, allowed));
        }
        Ok(())
    }

    /// Refuses a hand-off for which something is missing that nobody can be asked for.
    pub fn complete(&self, path: &str, part: Part, handoff: HandoffSetting) -> Result<(), ConfigError> {
        let HandoffSetting::Is(handoff) = handoff else { return Ok(()) };
        if handoff == Handoff::Mooncake && part != Part::Decode {
            let allowed = "another hand-off, unless role is `decode`: the names of Mooncake's ranks change at each \
                           start, and only an agent asks for them";
            return Err(ConfigError::value(&join(path, "handoff"), handoff.as_str(), allowed));
        }
        // Of LMCache's PD backend only the receiver is named.
        let needed = !(handoff == Handoff::LmcachePd && part == Part::Prefill);
        if needed && has_peer(handoff) && self.peer.is_none() {
            let allowed = format!("the connector's socket, which `{}` names in requests", handoff.as_str());
            return Err(ConfigError::Missing { path: join(path, "peer"), allowed });
        }
        if needed && has_peer_port(handoff) && self.peer_port.is_none() {
            let allowed =
                format!("the connector's further port, which `{}` names in requests", handoff.as_str());
            return Err(ConfigError::Missing { path: join(path, "peer_port"), allowed });
        }
        Ok(())
    }
}
