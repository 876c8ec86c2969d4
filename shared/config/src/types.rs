//! Values with a form of their own.

use crate::error::ConfigError;
use crate::setting::{Setting, read_text, wrong};
use serde_yaml_ng::Value;
use std::fmt;

/// `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort(String);

impl HostPort {
    /// Reads `host:port`; an IPv6 address stands in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let good_port =
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        let good_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                (1..=253).contains(&host.len())
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        (good_port && good_host).then(|| Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Setting for HostPort {
    fn allowed() -> String {
        "HOST:PORT, an IPv6 address in brackets".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, Self::parse)
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}

/// `http://host[:port][/path]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpUrl {
    authority: HostPort,
    path: String,
}

impl HttpUrl {
    /// Reads a URL; the port is 80 when none is given.
    pub fn parse(text: &str) -> Option<Self> {
        Self::behind_scheme(text.strip_prefix("http://")?, 80)
    }

    fn behind_scheme(rest: &str, default_port: u16) -> Option<Self> {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.trim_end_matches('/');
        if !path.is_empty() && !is_path(path) {
            return None;
        }
        let authority =
            HostPort::parse(authority).or_else(|| HostPort::parse(&format!("{authority}:{default_port}")))?;
        Some(Self { authority, path: path.to_owned() })
    }

    /// Host and port.
    pub fn authority(&self) -> &HostPort {
        &self.authority
    }

    /// The path, without a slash at its end; empty for none.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl Setting for HttpUrl {
    fn allowed() -> String {
        "a URL like `http://HOST:PORT`".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, Self::parse)
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

/// Where an instance is: `http://host[:port]`, `https://host[:port]`, or `unix:/path` for a socket of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InstanceUrl {
    /// Over TCP.
    Http(HttpUrl),
    /// Over TLS.
    Https(HttpUrl),
    /// The path of a Unix socket.
    Unix(String),
}

/// How the address of an instance begins that speaks TLS.
const HTTPS: &str = "https://";
/// Longest path of a Unix socket: the kernel's limit, less the zero at its end.
const MAX_SOCKET_PATH: usize = 107;

impl InstanceUrl {
    /// Reads either form.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix(HTTPS) {
            return HttpUrl::behind_scheme(rest, 443).map(Self::Https);
        }
        let Some(path) = text.strip_prefix("unix:") else { return HttpUrl::parse(text).map(Self::Http) };
        let good = path.starts_with('/')
            && path.len() <= MAX_SOCKET_PATH
            && !path.contains(|letter: char| letter.is_control());
        good.then(|| Self::Unix(path.to_owned()))
    }

    /// As a gateway connects to it: `host:port`, `https://host:port`, or `unix:/path`.
    pub fn address(&self) -> String {
        match self {
            Self::Http(url) => url.authority().to_string(),
            Self::Https(url) => format!("{HTTPS}{}", url.authority()),
            Self::Unix(path) => format!("unix:{path}"),
        }
    }
}

impl Setting for InstanceUrl {
    fn allowed() -> String {
        "a URL like `http://HOST:PORT` or `https://HOST:PORT`, or `unix:/PATH`".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, Self::parse)
    }
    fn show(&self) -> String {
        match self {
            Self::Http(url) => url.to_string(),
            Self::Https(url) => format!("{HTTPS}{}{}", url.authority(), url.path()),
            Self::Unix(_) => self.address(),
        }
    }
}

/// Where gateways reach an agent's engine: `host:port`, or `https://host:port` over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Advertised(String);

impl Advertised {
    /// Reads either form.
    pub fn parse(text: &str) -> Option<Self> {
        HostPort::parse(text.strip_prefix(HTTPS).unwrap_or(text)).map(|_| Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for Advertised {
    fn allowed() -> String {
        "HOST:PORT or `https://HOST:PORT`, an IPv6 address in brackets".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, Self::parse)
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}

/// A URL path of plain characters that starts with a slash and does not end in one.
fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && !text.ends_with('/')
        && !text.contains("//")
        && !text.split('/').any(|part| part == "." || part == "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'~'))
}

/// A prefix of all paths; empty for none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct BasePath(String);

impl BasePath {
    /// As written; empty for none.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for BasePath {
    fn allowed() -> String {
        "a path like `/api/predict/chat` of letters, digits and `. - _ ~`, without a slash at its end".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, |text| (text.is_empty() || is_path(text)).then(|| Self(text.to_owned())))
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}

/// How many shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Shards {
    /// As many as the process may use cores, less one from four up.
    #[default]
    Auto,
    /// So many.
    Exactly(usize),
}

impl Setting for Shards {
    fn allowed() -> String {
        "`auto` or a number from 1 to 1024".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        if value.as_str() == Some("auto") {
            return Ok(Self::Auto);
        }
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=1024).contains(n));
        count.map(Self::Exactly).ok_or_else(|| wrong::<Self>(value, path))
    }
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Exactly(count) => count.to_string(),
        }
    }
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every value with its spelling.
            pub const ALL: &[($name, &str)] = &[$(($name::$variant, $word)),*];

            /// The configured spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl Setting for $name {
            fn allowed() -> String {
                let words: Vec<_> = Self::ALL.iter().map(|(_, word)| format!("`{word}`")).collect();
                words.join(", ")
            }
            fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
                read_text(value, path, |text| {
                    Self::ALL.iter().find(|(_, word)| *word == text).map(|(name, _)| *name)
                })
            }
            fn show(&self) -> String {
                self.as_str().into()
            }
        }
    };
}

pub(crate) use words;

words! {
    /// What shards run on.
    Runtime {
        /// monoio.
        #[default]
        Monoio = "monoio",
        /// glommio, where it was built in.
        Glommio = "glommio",
    }
}

words! {
    /// How shards wait for the kernel.
    Driver {
        /// io_uring where the kernel grants it, else epoll.
        #[default]
        Auto = "auto",
        /// io_uring, or no start.
        Uring = "uring",
        /// epoll.
        Epoll = "epoll",
    }
}

words! {
    /// Form of the log.
    LogFormat {
        /// For eyes.
        #[default]
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

/// Which log lines are written: a level, or levels by module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogFilter(String);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl LogFilter {
    /// Reads `level` or `module=level`, several of them with commas between.
    pub fn parse(text: &str) -> Option<Self> {
        let good = text.split(',').all(|directive| match directive.trim().split_once('=') {
            None => LEVELS.contains(&directive.trim()),
            Some((module, level)) => {
                !module.is_empty()
                    && module.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
                    && LEVELS.contains(&level)
            }
        });
        good.then(|| Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".into())
    }
}

impl Setting for LogFilter {
    fn allowed() -> String {
        let levels = LEVELS.map(|level| format!("`{level}`")).join(", ");
        format!("{levels}, also by module: `info,fairlead_agent=debug`")
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        // YAML 1.1 habits: a bare `off` may have become false on its way here.
        if value.as_bool() == Some(false) {
            return Ok(Self("off".into()));
        }
        read_text(value, path, Self::parse)
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}

/// Endpoints of ZeroMQ, `tcp://HOST:PORT`, with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(String);

impl Endpoints {
    /// Reads `tcp://HOST:PORT`, several of them with commas between.
    pub fn parse(text: &str) -> Option<Self> {
        let good = text.split(',').all(|endpoint| {
            let parts = endpoint.trim().strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
            parts.is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        });
        good.then(|| Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for Endpoints {
    fn allowed() -> String {
        "`tcp://HOST:PORT`, several with commas between".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, Self::parse)
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}

/// Whether and where an engine's KV-cache events are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEvents(String);

impl KvEvents {
    /// Reads `auto`, `off` or [`Endpoints`].
    pub fn parse(text: &str) -> Option<Self> {
        (matches!(text, "auto" | "off") || Endpoints::parse(text).is_some()).then(|| Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for KvEvents {
    fn default() -> Self {
        Self("auto".into())
    }
}

impl Setting for KvEvents {
    fn allowed() -> String {
        format!("`auto`, `off`, or {}", Endpoints::allowed())
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        // YAML 1.1 habits, as above.
        if value.as_bool() == Some(false) {
            return Ok(Self("off".into()));
        }
        read_text(value, path, Self::parse)
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}
