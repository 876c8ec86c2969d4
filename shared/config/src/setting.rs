//! Values: how each type is read from YAML, shown, and described.

use crate::error::ConfigError;
use serde_yaml_ng::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A type that may stand behind a key.
pub trait Setting: Sized {
    /// Whether `off` may stand for its absence, when it is optional.
    const CAN_BE_OFF: bool = false;

    /// What may stand there, for messages and the reference.
    fn allowed() -> String;

    /// The same in few words, for the tables of the reference.
    fn kind() -> String {
        Self::allowed()
    }

    /// Reads a value; `path` is where it stands.
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError>;

    /// As one would write it.
    fn show(&self) -> String;

    /// Keys of a section; `None` for plain values.
    fn section() -> Option<crate::schema::SectionDoc> {
        None
    }
}

/// The value as the user wrote it, more or less.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::String(text) => format!("{text:?}"),
        Value::Sequence(items) => format!("a list of {}", items.len()),
        Value::Mapping(keys) => format!("a section of {} keys", keys.len()),
        other => {
            serde_yaml_ng::to_string(other).map_or_else(|_| "a value".into(), |text| text.trim().to_owned())
        }
    }
}

pub(crate) fn wrong<T: Setting>(value: &Value, path: &str) -> ConfigError {
    ConfigError::value(path, shown(value), T::allowed())
}

/// Reads a type that is written as text.
pub(crate) fn read_text<T: Setting>(
    value: &Value,
    path: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    value.as_str().and_then(parse).ok_or_else(|| wrong::<T>(value, path))
}

/// Refuses a value outside of `low` to `high`.
pub(crate) fn within<T: Setting + PartialOrd>(
    value: T,
    low: T,
    high: T,
    path: &str,
) -> Result<T, ConfigError> {
    if value >= low && value <= high {
        Ok(value)
    } else {
        let allowed = format!("{}, from {} to {}", T::allowed(), low.show(), high.show());
        Err(ConfigError::value(path, value.show(), allowed))
    }
}

macro_rules! whole_number {
    ($($ty:ty),*) => {$(
        impl Setting for $ty {
            fn allowed() -> String {
                "a whole number".into()
            }
            fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
                value.as_u64().and_then(|n| n.try_into().ok()).ok_or_else(|| wrong::<Self>(value, path))
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
whole_number!(u16, u32, u64, usize);

impl Setting for f64 {
    fn allowed() -> String {
        "a number".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| wrong::<Self>(value, path))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn allowed() -> String {
        "`true` or `false`".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        value.as_bool().ok_or_else(|| wrong::<Self>(value, path))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    fn allowed() -> String {
        "a text of 1 to 256 bytes without control characters".into()
    }
    fn kind() -> String {
        "text".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, |text| {
            ((1..=256).contains(&text.len()) && !text.contains(char::is_control)).then(|| text.to_owned())
        })
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Setting for PathBuf {
    fn allowed() -> String {
        "a path".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, |text| (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text)))
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Setting for SocketAddr {
    const CAN_BE_OFF: bool = true;
    fn allowed() -> String {
        "IP:PORT, an IPv6 address in brackets".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        read_text(value, path, |text| text.parse().ok())
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for Duration {
    fn allowed() -> String {
        "a time like `200ms`, `10s`, `5m` or `1h`, or a number of milliseconds".into()
    }
    fn kind() -> String {
        "time".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let read = match value {
            Value::Number(number) => number.as_u64().map(Duration::from_millis),
            Value::String(text) => parse_duration(text),
            _ => None,
        };
        read.ok_or_else(|| wrong::<Self>(value, path))
    }
    fn show(&self) -> String {
        let micros = self.as_micros();
        for (unit, size) in [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)] {
            if micros > 0 && micros.is_multiple_of(size) {
                return format!("{}{unit}", micros / size);
            }
        }
        format!("{}ms", micros as f64 / 1000.0)
    }
}

/// `NUMBER UNIT`; a number alone is milliseconds.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let seconds = match unit {
        "" | "ms" => number / 1e3,
        "us" => number / 1e6,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return None,
    };
    // Nanoseconds are not meant by anybody; microseconds make 0.1s exact.
    let micros = (seconds * 1e6).round();
    (micros <= 1e15).then(|| Duration::from_micros(micros as u64))
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

impl Size {
    /// So many times 1024 × 1024 bytes.
    pub const fn mib(count: u64) -> Self {
        Size(count << 20)
    }

    /// In bytes, as far as this machine can count them.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Setting for Size {
    fn allowed() -> String {
        "a size like `64KiB`, `64MiB`, `2GiB` (or `KB`, `MB`, `GB` for powers of ten), or a number of bytes"
            .into()
    }
    fn kind() -> String {
        "size".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let read = match value {
            Value::Number(number) => number.as_u64().map(Size),
            Value::String(text) => parse_size(text),
            _ => None,
        };
        read.ok_or_else(|| wrong::<Self>(value, path))
    }
    fn show(&self) -> String {
        for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 > 0 && self.0.is_multiple_of(1 << shift) {
                return format!("{}{unit}", self.0 >> shift);
            }
        }
        self.0.to_string()
    }
}

fn parse_size(text: &str) -> Option<Size> {
    let (number, unit) = split_unit(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        "TiB" | "Ti" => 1 << 40,
        "KB" | "kB" | "K" | "k" => 1000,
        "MB" | "M" => 1_000_000,
        "GB" | "G" => 1_000_000_000,
        "TB" | "T" => 1_000_000_000_000,
        _ => return None,
    };
    let bytes = number * factor as f64;
    (bytes <= (1u64 << 50) as f64).then_some(Size(bytes as u64))
}

/// Splits `12.5 ms` into number and unit. Only digits and a point: no sign, no exponent.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok().filter(|n: &f64| n.is_finite())?, unit.trim_start()))
}

impl<T: Setting> Setting for Option<T> {
    fn allowed() -> String {
        if T::CAN_BE_OFF { format!("{}, or `off`", T::allowed()) } else { T::allowed() }
    }
    fn kind() -> String {
        if T::CAN_BE_OFF { format!("{}, or `off`", T::kind()) } else { T::kind() }
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        if T::CAN_BE_OFF && (value.as_str() == Some("off") || value.as_bool() == Some(false)) {
            return Ok(None);
        }
        match value {
            Value::Null => Ok(None),
            _ => T::read(value, path).map(Some).map_err(|error| match error {
                // The message should also tell of `off`.
                ConfigError::Value { path: at, value, allowed } if at == path && allowed == T::allowed() => {
                    ConfigError::Value { path: at, value, allowed: Self::allowed() }
                }
                other => other,
            }),
        }
    }
    fn show(&self) -> String {
        match self {
            Some(value) => value.show(),
            None if T::CAN_BE_OFF => "off".into(),
            None => String::new(),
        }
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn allowed() -> String {
        match T::section() {
            Some(_) => "a list of sections".into(),
            None => format!("a list; each entry {}", T::allowed()),
        }
    }
    fn kind() -> String {
        match T::section() {
            Some(_) => "list of sections".into(),
            None => format!("list of {}", T::kind()),
        }
    }
    fn read(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let items = value.as_sequence().ok_or_else(|| wrong::<Self>(value, path))?;
        items.iter().enumerate().map(|(at, item)| T::read(item, &format!("{path}[{at}]"))).collect()
    }
    fn show(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        format!("[{}]", self.iter().map(Setting::show).collect::<Vec<_>>().join(", "))
    }
    fn section() -> Option<crate::schema::SectionDoc> {
        T::section().map(|section| crate::schema::SectionDoc { list: true, ..section })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, micros) in [
            ("10s", 10_000_000),
            ("200ms", 200_000),
            ("200", 200_000),
            ("0", 0),
            ("1.5s", 1_500_000),
            ("5 m", 300_000_000),
            ("1h", 3_600_000_000),
            ("1d", 86_400_000_000),
            ("250us", 250),
            ("0.1s", 100_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "s", "-1s", "1e3", "1s5", "1 year", "..", "inf", "NaN", "99999999999d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        for (micros, text) in
            [(0, "0ms"), (1_500, "1.5ms"), (200_000, "200ms"), (90_000_000, "90s"), (3_600_000_000, "1h")]
        {
            assert_eq!(Duration::from_micros(micros).show(), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("64MiB", 64 << 20), ("1.5KiB", 1536), ("2G", 2_000_000_000), ("7", 7), ("7 B", 7)]
        {
            assert_eq!(parse_size(text), Some(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1mib", "1e9", "9999999TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        for (bytes, text) in [(64 << 20, "64MiB"), (1 << 30, "1GiB"), (1000, "1000"), (0, "0")] {
            assert_eq!(Size(bytes).show(), text);
        }
    }
}
