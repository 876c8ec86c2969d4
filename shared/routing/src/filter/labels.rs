//! Filters by label, as clients write them.

/// Longest text of a filter, bytes.
const MOST_BYTES: usize = 1024;
/// Most terms of a filter, and most values of a term.
const MOST_TERMS: usize = 16;

/// Which labels a target must have: terms that all must hold.
///
/// | term | holds when |
/// |---|---|
/// | `key=value`, `key==value` | the target has the label with that value |
/// | `key!=value` | it has another value, or no such label |
/// | `key in (a,b)` | it has one of those values |
/// | `key notin (a,b)` | it has another value, or no such label |
/// | `key` | it has the label |
/// | `!key` | it has no such label |
///
/// Source: Kubernetes' label selectors, which AIBrix's header `external-filter` takes. An empty text admits everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelFilter {
    terms: Box<[Term]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    key: Box<str>,
    /// `None`: any value.
    values: Option<Box<[Box<str>]>>,
    negated: bool,
}

/// Why a text is no label filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Longer than 1024 bytes.
    #[error("a label filter has at most {MOST_BYTES} bytes")]
    TooLong,
    /// More than 16 terms, or values in a term.
    #[error("a label filter has at most {MOST_TERMS} terms, and a term at most {MOST_TERMS} values")]
    TooMany,
    /// A term cannot be read.
    #[error(
        "{0:?} is no term of a label filter; written are key=value, key!=value, key in (a,b), key notin (a,b), key, !key"
    )]
    Malformed(String),
}

impl LabelFilter {
    /// Reads a filter.
    ///
    /// # Errors
    /// It is too long, or cannot be read.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        if text.len() > MOST_BYTES {
            return Err(LabelError::TooLong);
        }
        let mut terms = Vec::new();
        if !text.trim().is_empty() {
            for term in split(text) {
                if terms.len() == MOST_TERMS {
                    return Err(LabelError::TooMany);
                }
                terms.push(Term::parse(term.trim())?);
            }
        }
        Ok(Self { terms: terms.into() })
    }

    /// Whether a target with these labels is admitted. Of a key that stands twice the first value counts.
    pub fn matches(&self, labels: &[(String, String)]) -> bool {
        self.terms.iter().all(|term| {
            let found = labels.iter().find(|(key, _)| **key == *term.key);
            let holds = found.is_some_and(|(_, value)| {
                term.values.as_ref().is_none_or(|values| values.iter().any(|one| **one == **value))
            });
            holds != term.negated
        })
    }
}

/// Parts between commas that stand outside of parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |c| {
        inside = (inside || c == '(') && c != ')';
        c == ',' && !inside
    })
}

impl Term {
    fn parse(text: &str) -> Result<Self, LabelError> {
        Self::read(text)?.ok_or_else(|| LabelError::Malformed(text.chars().take(64).collect()))
    }

    fn read(text: &str) -> Result<Option<Self>, LabelError> {
        let term = |key: &str, values, negated| {
            let key = key.trim();
            is_key(key).then(|| Self { key: key.into(), values, negated })
        };
        let one = |value: &str| is_value(value.trim()).then(|| Some([value.trim().into()].into()));
        if let Some((key, value)) = text.split_once("!=") {
            return Ok(one(value).and_then(|values| term(key, values, true)));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Ok(one(value).and_then(|values| term(key, values, false)));
        }
        if let Some(key) = text.strip_prefix('!') {
            return Ok(term(key, None, true));
        }
        let Some((head, list)) = text.split_once('(') else { return Ok(term(text, None, false)) };
        let mut words = head.split_ascii_whitespace();
        let (key, negated) = match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => (key, false),
            (Some(key), Some("notin"), None) => (key, true),
            _ => return Ok(None),
        };
        let Some(list) = list.strip_suffix(')') else { return Ok(None) };
        let values: Vec<&str> = list.split(',').map(str::trim).collect();
        if values.len() > MOST_TERMS {
            return Err(LabelError::TooMany);
        }
        let all_good = values.iter().all(|value| is_value(value));
        let values = all_good.then(|| Some(values.into_iter().map(Box::from).collect()));
        Ok(values.and_then(|values| term(key, values, negated)))
    }
}

fn is_key(text: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    !text.is_empty() && text.bytes().all(usual)
}

fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, labels: &[(&str, &str)]) -> bool {
        let labels: Vec<_> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        LabelFilter::parse(filter).unwrap_or_else(|e| panic!("{e}")).matches(&labels)
    }

    #[test]
    fn terms_mean_what_kubernetes_means() {
        let target =
            [("environment", "prod"), ("tier", "gold"), ("gpu.example.com/kind", "h200"), ("blank", "")];
        for (filter, want) in [
            ("", true),
            ("  ", true),
            ("environment=prod", true),
            ("environment==prod", true),
            (" environment = prod , tier != canary ", true),
            ("environment=prod,tier!=gold", false),
            ("environment=dev", false),
            ("zone=a", false),
            ("zone!=a", true),
            ("environment", true),
            ("zone", false),
            ("!zone", true),
            ("!environment", false),
            ("tier in (silver, gold)", true),
            ("tier in (silver)", false),
            ("zone in (a)", false),
            ("tier notin (silver,bronze),environment in (prod)", true),
            ("tier notin (gold)", false),
            ("zone notin (a,b)", true),
            ("gpu.example.com/kind=h200", true),
            ("blank=", true),
            ("environment=", false),
            ("tier in (gold,)", true),
        ] {
            assert_eq!(matches(filter, &target), want, "{filter:?}");
        }
        assert!(matches("a=1", &[("a", "1"), ("a", "2")]) && !matches("a=2", &[("a", "1"), ("a", "2")]));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in [
            ",",
            "a,",
            "=b",
            "a=b=c",
            "a b",
            "a in",
            "a in b",
            "a in (b",
            "a within (b)",
            "a in (b) c",
            "!",
            "!!a",
            "a>1",
            "a=b c",
            "a=\u{e9}",
            "in (a)",
            "a in ((b))",
            "a;b",
            "a=b\"",
            "a in (b),c)",
        ] {
            let error = LabelFilter::parse(text).unwrap_err();
            assert!(matches!(error, LabelError::Malformed(_)), "{text}: {error:?}");
        }
        let many = |count: usize| vec!["a"; count].join(",");
        assert!(LabelFilter::parse(&many(16)).is_ok());
        assert_eq!(LabelFilter::parse(&many(17)), Err(LabelError::TooMany));
        assert!(LabelFilter::parse(&format!("k in ({})", many(16))).is_ok());
        assert_eq!(LabelFilter::parse(&format!("k in ({})", many(17))), Err(LabelError::TooMany));
        assert_eq!(LabelFilter::parse(&"a".repeat(1025)), Err(LabelError::TooLong));
        let said = LabelFilter::parse(&"?".repeat(1000)).unwrap_err().to_string();
        assert!(said.len() < 300, "{said}");
    }
}
