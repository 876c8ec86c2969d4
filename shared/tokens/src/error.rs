//! What can go wrong with a tokenizer, a template or a request.

use std::path::PathBuf;

/// Why a tokenizer or a chat template cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        what: String,
    },
    /// The chat template cannot be compiled.
    #[error("chat template of {}: {what}", path.display())]
    Template {
        /// The tokenizer it belongs to.
        path: PathBuf,
        /// What is wrong in it, with the line.
        what: String,
    },
}

/// Why a request has no token ids. The request is served all the same, routed by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The model has no chat template.
    #[error("the model has no chat template")]
    NoTemplate,
    /// The request has something whose tokens only the engine knows: images, an own template and the like.
    #[error("the engine alone knows the tokens of a request with {0}")]
    Unsupported(&'static str),
    /// The body does not have the form that the engines accept.
    #[error("the request cannot be read: {0}")]
    Body(String),
    /// The template refused the conversation or failed.
    #[error("the chat template failed: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

impl EncodeError {
    /// A word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoTemplate => "no_template",
            Self::Unsupported(_) => "unsupported",
            Self::Body(_) => "body",
            Self::Template(_) => "template",
            Self::Tokenizer(_) => "tokenizer",
        }
    }
}
