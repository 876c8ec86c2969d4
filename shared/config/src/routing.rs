//! What may be configured about routing decisions: policies, their settings, profiles, limits.

use crate::error::{ConfigError, join};
use crate::schema::{Check, KeyDoc, SectionDoc, read_keys, section};
use crate::setting::{Setting, shown, wrong};
use fairlead_routing::{PolicyName, SettingKey, Settings, Strategy};
use serde_yaml_ng::Value;
use std::time::Duration;

/// Longest text that names a policy, bytes.
pub const POLICY_MAX: usize = 256;

/// A policy's name, or several with weights; checked, and to be given to `Strategy::parse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText(String);

impl PolicyText {
    /// Checks a text.
    ///
    /// # Errors
    /// What is wrong with it, with the names that exist.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > POLICY_MAX {
            return Err(format!("longer than {POLICY_MAX} bytes"));
        }
        match Strategy::parse(text, &Settings::default()) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for PolicyText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl std::fmt::Display for PolicyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Setting for PolicyText {
    fn allowed() -> String {
        let names = PolicyName::ALL.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        format!("{names}, or several with weights: `prefix-cache:2,least-request:1`")
    }
    fn kind() -> String {
        "a [policy](policies.md), or several with weights: `prefix-cache:2,least-request:1`".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let text = value.as_str().ok_or_else(|| wrong::<Self>(value, path))?;
        Self::parse(text).map_err(|why| match text.contains([':', ',']) {
            // Which part is wrong, the list of names alone does not say.
            true => ConfigError::value(path, shown(value), format!("{} ({why})", Self::allowed())),
            false => wrong::<Self>(value, path),
        })
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}

/// A policy for one side of `pd-split`: any that places single parts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SidePolicy(pub PolicyName);

impl SidePolicy {
    fn names() -> impl Iterator<Item = PolicyName> {
        let pairs = [PolicyName::PdSplit, PolicyName::DynamicPdSplit, PolicyName::Pd];
        PolicyName::ALL.iter().copied().filter(move |name| !pairs.contains(name))
    }
}

impl Setting for SidePolicy {
    fn allowed() -> String {
        Self::names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    }
    fn kind() -> String {
        "a [policy](policies.md)".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let name = value.as_str().and_then(|text| text.trim().parse().ok());
        let name = name.filter(|name| Self::names().any(|known| known == *name));
        name.map(Self).ok_or_else(|| wrong::<Self>(value, path))
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// The settings of all policies: one section each, whose keys the policies themselves declare.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicySettings(pub Settings);

/// The settings' keys, policy by policy.
fn by_policy() -> impl Iterator<Item = &'static [SettingKey]> {
    Settings::keys().chunk_by(|a, b| a.policy == b.policy)
}

impl Setting for PolicySettings {
    fn allowed() -> String {
        "a section".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let mut settings = Settings::default();
        let policies: Vec<&str> = by_policy().filter_map(|keys| Some(keys.first()?.policy)).collect();
        read_keys(value, path, &policies, |policy, value, path| {
            let keys = by_policy().find(|keys| keys.first().is_some_and(|key| key.policy == policy));
            let keys = keys.unwrap_or_default();
            let names: Vec<&str> = keys.iter().map(|key| key.key).collect();
            read_keys(value, path, &names, |name, value, path| {
                let Some(key) = keys.iter().find(|key| key.key == name) else { return Ok(()) };
                let refuse = || ConfigError::value(path, shown(value), number(key));
                let number = value.as_f64().ok_or_else(refuse)?;
                key.set(&mut settings, number).map_err(|_| refuse())
            })
        })?;
        Ok(Self(settings))
    }
    fn show(&self) -> String {
        String::new()
    }
    fn section() -> Option<SectionDoc> {
        let defaults = Settings::default();
        let policies = by_policy().filter_map(|keys| {
            let first = keys.first()?;
            let settings = keys.iter().map(|key| KeyDoc {
                key: key.key,
                allowed: number(key),
                default: short(key.get(&defaults)),
                doc: key.doc.trim().to_owned(),
                section: None,
            });
            let about = first.about.trim().to_owned();
            let section = SectionDoc { doc: about, keys: settings.collect(), list: false, named: false };
            Some(KeyDoc {
                key: first.policy,
                allowed: "a section".into(),
                default: String::new(),
                doc: format!("Of `{}`.", first.policy),
                section: Some(section),
            })
        });
        Some(SectionDoc {
            doc: "Settings of the policies that have some.".into(),
            keys: policies.collect(),
            list: false,
            named: false,
        })
    }
}

/// What a policy's setting may be.
fn number(key: &SettingKey) -> String {
    let kind = if key.whole { "a whole number" } else { "a number" };
    format!("{kind}, {} to {}", short(key.low), short(key.high))
}

/// A number with no more digits than its type has.
fn short(value: f64) -> String {
    let single = value as f32;
    if f64::from(single) == value { single.to_string() } else { value.to_string() }
}

/// Sections by names of the user's own, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<T>(pub Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Setting> Setting for Named<T> {
    fn allowed() -> String {
        "sections by name".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let sections = value.as_mapping().ok_or_else(|| wrong::<Self>(value, path))?;
        let one = |(name, value): (&Value, &Value)| {
            let good = |name: &&str| {
                (1..=64).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            };
            let name = name.as_str().filter(good).ok_or_else(|| {
                ConfigError::value(path, shown(name), "a name of 1 to 64 letters, digits and `- _ .`")
            })?;
            Ok((name.to_owned(), T::read(value, &join(path, name))?))
        };
        sections.iter().map(one).collect::<Result<_, _>>().map(Self)
    }
    fn show(&self) -> String {
        String::new()
    }
    fn section() -> Option<SectionDoc> {
        T::section().map(|section| SectionDoc { named: true, ..section })
    }
}

section! {
    /// A request chooses one with the header `config-profile`; `config-profile: auto` takes the first whose conditions
    /// (`..._gte`, `..._lt`) all hold, of those that have any.
    pub struct Profile {
        /// How an instance is picked for its requests.
        policy: Option<PolicyText> = None;
        /// Limits for its requests.
        slo: Slo = Slo::default();
        /// For `auto`: the prompt has at least so many tokens.
        prompt_tokens_gte: Option<u32> = None;
        /// For `auto`: the prompt has fewer tokens than this.
        prompt_tokens_lt: Option<u32> = None;
        /// For `auto`: the request allows at least so many tokens of output.
        max_tokens_gte: Option<u32> = None;
        /// For `auto`: it allows fewer than this. A request that does not say how many meets no such condition.
        max_tokens_lt: Option<u32> = None;
    }
}

section! {
    /// What policies that know limits try to keep; nothing is refused for them. A request's own come first
    /// (`x-llm-d-slo-ttft-ms`, `x-llm-d-slo-tpot-ms`), then its profile's, its model's, and the gateway's.
    pub struct Slo {
        /// Time to the first token.
        ttft: Option<Duration> = None;
        /// Time per further token.
        tpot: Option<Duration> = None;
    }
}

section! {
    /// Why an instance was picked.
    pub struct Explain {
        /// Answer `x-fairlead-explain: 1` with a header of that name. It shows names of instances and their load.
        header: bool = true;
        /// Share of the decisions that are logged while the log's level lets `fairlead::explain=debug` pass.
        sample: f64 = 0.01 => 0.0, 1.0;
    }
}

impl Check for Profile {}
impl Check for Explain {}

impl Check for Slo {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        for (key, limit) in [("ttft", self.ttft), ("tpot", self.tpot)] {
            let (low, high) = (Duration::from_millis(1), Duration::from_secs(3600));
            if let Some(limit) = limit.filter(|limit| !(low..=high).contains(limit)) {
                return Err(ConfigError::value(&join(path, key), limit.show(), "a time from 1ms to 1h"));
            }
        }
        Ok(())
    }
}
