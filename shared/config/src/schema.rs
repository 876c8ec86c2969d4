//! Sections: one list of keys from which the type, its defaults, the reader and the reference follow.

use crate::error::{ConfigError, join, nearest};
use crate::setting::{Setting, shown};
use serde_yaml_ng::Value;

/// What the reference says of a key.
#[derive(Clone, Debug)]
pub struct KeyDoc {
    /// The key.
    pub key: &'static str,
    /// What may stand there.
    pub allowed: String,
    /// What holds when nothing stands there, as one would write it; empty for none.
    pub default: String,
    /// What it means.
    pub doc: String,
    /// Its keys, when it is a section.
    pub section: Option<SectionDoc>,
}

/// What the reference says of a section.
#[derive(Clone, Debug)]
pub struct SectionDoc {
    /// What it is about.
    pub doc: String,
    /// Its keys.
    pub keys: Vec<KeyDoc>,
    /// It stands in a list.
    pub list: bool,
    /// It stands behind a name of the user's own, as often as there are names.
    pub named: bool,
}

/// Conditions between the keys of a section.
pub(crate) trait Check {
    /// Refuses what cannot be; `path` is where the section stands.
    fn check(&self, _path: &str) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// Calls `read` for each key that has a value.
pub(crate) fn read_keys(
    value: &Value,
    path: &str,
    known: &[&'static str],
    mut read: impl FnMut(&str, &Value, &str) -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    let section = match value {
        Value::Mapping(section) => section,
        Value::Null => return Ok(()),
        other => {
            let allowed = format!("a section with the keys {}", known.join(", "));
            return Err(ConfigError::value(
                if path.is_empty() { "the file" } else { path },
                shown(other),
                allowed,
            ));
        }
    };
    for (key, value) in section {
        let Some(key) = key.as_str() else {
            return Err(ConfigError::value(
                path,
                shown(key),
                format!("one of the keys {}", known.join(", ")),
            ));
        };
        if !known.contains(&key) {
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                key: key.to_owned(),
                nearest: nearest(key, known),
                allowed: known.iter().map(|key| (*key).to_owned()).collect(),
            });
        }
        // A key with nothing behind it means its default.
        if !value.is_null() {
            read(key, value, &join(path, key))?;
        }
    }
    Ok(())
}

/// The text of doc comments as one paragraph.
pub(crate) fn paragraph(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// What may stand behind a key with bounds.
pub(crate) fn allowed_within<T: Setting>(bounds: Option<(T, T)>) -> String {
    match bounds {
        Some((low, high)) => format!("{}, {} to {}", T::kind(), low.show(), high.show()),
        None => T::kind(),
    }
}

/// Defines a section: documentation, keys with type, default, and bounds (`=> low, high`) where there are any.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:ident: $ty:ty = $default:expr $(=> $low:expr, $high:expr)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])* pub $key: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $crate::setting::Setting for $name {
            fn allowed() -> String {
                "a section".into()
            }

            fn read(
                value: &serde_yaml_ng::Value,
                path: &str,
            ) -> Result<Self, $crate::error::ConfigError> {
                let mut section = Self::default();
                const KEYS: &[&str] = &[$(stringify!($key)),*];
                $crate::schema::read_keys(value, path, KEYS, |key, value, at| {
                    match key {
                        $(stringify!($key) => {
                            let read = <$ty as $crate::setting::Setting>::read(value, at)?;
                            $(let read = $crate::setting::within::<$ty>(read, $low, $high, at)?;)?
                            section.$key = read;
                        })*
                        // Others have been refused.
                        _ => {}
                    }
                    Ok(())
                })?;
                $crate::schema::Check::check(&section, path)?;
                Ok(section)
            }

            fn show(&self) -> String {
                String::new()
            }

            fn section() -> Option<$crate::schema::SectionDoc> {
                let defaults = Self::default();
                Some($crate::schema::SectionDoc {
                    doc: $crate::schema::paragraph(&[$($about),*]),
                    list: false,
                    named: false,
                    keys: vec![$($crate::schema::KeyDoc {
                        key: stringify!($key),
                        allowed: $crate::schema::allowed_within::<$ty>(
                            $crate::schema::section!(@bounds $($low, $high)?)
                        ),
                        default: $crate::setting::Setting::show(&defaults.$key),
                        doc: $crate::schema::paragraph(&[$($doc),*]),
                        section: <$ty as $crate::setting::Setting>::section(),
                    }),*],
                })
            }
        }
    };
    (@bounds) => { None };
    (@bounds $low:expr, $high:expr) => { Some(($low, $high)) };
}
pub(crate) use section;
