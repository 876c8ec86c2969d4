//! What is wrong with a configuration.

use std::path::PathBuf;

/// Longest piece of a wrong value that is repeated in a message, characters.
const SHOWN: usize = 80;

/// Why a configuration was refused. Each names the key's path, what stands there, and what may.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not YAML.
    #[error("not YAML: {why}")]
    Syntax {
        /// What the parser said, with line and column.
        why: String,
    },
    /// No such key.
    #[error("{}: no such key; {}", join(.path, .key), hint(.nearest, .allowed))]
    UnknownKey {
        /// Path of the section; empty for the top.
        path: String,
        /// The key.
        key: String,
        /// Keys of that section that look like it, the likeliest first.
        nearest: Vec<String>,
        /// All keys of that section.
        allowed: Vec<String>,
    },
    /// A value that is not possible.
    #[error("{path}: {value} is not possible; allowed is {allowed}")]
    Value {
        /// Path of the key.
        path: String,
        /// What stands there.
        value: String,
        /// What may stand there.
        allowed: String,
    },
    /// A key that must be given is not.
    #[error("{path}: is missing; it is {allowed}")]
    Missing {
        /// Path of the key.
        path: String,
        /// What may stand there.
        allowed: String,
    },
}

impl ConfigError {
    pub(crate) fn value(path: &str, value: impl std::fmt::Display, allowed: impl Into<String>) -> Self {
        let text = value.to_string();
        let value = match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        };
        ConfigError::Value { path: path.to_owned(), value, allowed: allowed.into() }
    }

    /// Path of the offending key, where there is one.
    pub fn path(&self) -> Option<String> {
        match self {
            ConfigError::UnknownKey { path, key, .. } => Some(join(path, key)),
            ConfigError::Value { path, .. } | ConfigError::Missing { path, .. } => Some(path.clone()),
            ConfigError::File { .. } | ConfigError::Syntax { .. } => None,
        }
    }
}

/// Path of a key within a section.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn hint(nearest: &[String], allowed: &[String]) -> String {
    if nearest.is_empty() {
        format!("allowed here: {}", allowed.join(", "))
    } else {
        format!("did you mean {}? allowed here: {}", nearest.join(" or "), allowed.join(", "))
    }
}

/// Keys that a slip of the hand may have turned into `key`.
pub(crate) fn nearest(key: &str, allowed: &[&'static str]) -> Vec<String> {
    let limit = (key.chars().count() / 3).max(2);
    let mut near: Vec<(usize, &str)> = allowed
        .iter()
        .map(|name| {
            let part = key.len() >= 4 && (name.contains(key) || key.contains(name));
            (if part { 1 } else { distance(key, name) }, *name)
        })
        .filter(|(far, _)| *far <= limit)
        .collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// Edits between two words (Levenshtein 1966), one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, far) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("listen", "listne", 2)] {
            assert_eq!((distance(a, b), distance(b, a)), (far, far), "{a} {b}");
        }
    }

    #[test]
    fn near_keys_come_first() {
        assert_eq!(nearest("listn", &["admin", "listen", "policy"]), ["listen"]);
        assert_eq!(nearest("body", &["max_body", "max_head", "policy"]), ["max_body"]);
        assert!(nearest("zzzzzz", &["admin", "listen"]).is_empty());
    }
}
