//! Reading a model's tokenizer files.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::added::AddedToken;
use crate::error::LoadError;

/// Largest file read, bytes. The largest tokenizer in common use has 34 MB.
const MAX_FILE: u64 = 256 << 20;

/// The parts of a tokenizer.json that are not left to the tokenizer's library.
#[derive(Debug, Deserialize)]
pub struct TokenizerFile {
    /// Added tokens.
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default)]
    post_processor: Option<PostProcessor>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    TemplateProcessing { single: Vec<Piece>, special_tokens: HashMap<String, Special> },
    BertProcessing { sep: (String, u32), cls: (String, u32) },
    RobertaProcessing { sep: (String, u32), cls: (String, u32) },
    ByteLevel {},
    Sequence { processors: Vec<PostProcessor> },
}

#[derive(Debug, Deserialize)]
enum Piece {
    Sequence {},
    SpecialToken { id: String },
}

#[derive(Debug, Deserialize)]
struct Special {
    ids: Vec<u32>,
}

/// Ids put around a text that is encoded with special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Before the text.
    pub before: Vec<u32>,
    /// After it.
    pub after: Vec<u32>,
}

impl TokenizerFile {
    /// What the post-processor puts around a text.
    ///
    /// # Errors
    /// It names a token that it does not define.
    pub fn frame(&self) -> Result<Frame, String> {
        let mut frame = Frame::default();
        if let Some(processor) = &self.post_processor {
            add_frame(processor, &mut frame)?;
        }
        Ok(frame)
    }

    /// Whether text at the very beginning is tokenised otherwise than the same text after an added token.
    pub fn is_positional(&self) -> bool {
        self.pre_tokenizer.as_ref().is_some_and(prepends_first)
    }
}

fn add_frame(processor: &PostProcessor, frame: &mut Frame) -> Result<(), String> {
    match processor {
        PostProcessor::TemplateProcessing { single, special_tokens } => {
            let mut after = false;
            for piece in single {
                match piece {
                    Piece::Sequence {} => after = true,
                    Piece::SpecialToken { id } => {
                        let special = special_tokens
                            .get(id)
                            .ok_or_else(|| format!("the post-processor does not define its token {id:?}"))?;
                        if after { &mut frame.after } else { &mut frame.before }.extend(&special.ids);
                    }
                }
            }
        }
        PostProcessor::BertProcessing { sep, cls } | PostProcessor::RobertaProcessing { sep, cls } => {
            frame.before.push(cls.1);
            frame.after.push(sep.1);
        }
        PostProcessor::ByteLevel {} => {}
        PostProcessor::Sequence { processors } => {
            for processor in processors {
                add_frame(processor, frame)?;
            }
        }
    }
    Ok(())
}

fn prepends_first(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer {
        Value::Object(members) => {
            members.get("prepend_scheme").and_then(Value::as_str) == Some("first")
                || members.get("pretokenizers").is_some_and(prepends_first)
        }
        Value::Array(elements) => elements.iter().any(prepends_first),
        _ => false,
    }
}

/// What tokenizer_config.json tells; every member may be missing.
#[derive(Debug, Default)]
pub struct TokenizerConfig {
    /// Source of the chat template.
    pub chat_template: Option<String>,
    /// Special tokens by the names under which templates know them (`bos_token`, `eos_token`...).
    pub special_tokens: Vec<(String, String)>,
}

impl TokenizerConfig {
    /// Takes what is there from the file's JSON.
    pub fn from_json(json: &Value) -> Self {
        let mut config = Self::default();
        let Some(members) = json.as_object() else { return config };
        for (name, value) in members {
            if name == "chat_template" {
                config.chat_template = template_of(value);
            } else if name.ends_with("_token")
                && let Some(text) = value.as_str().or_else(|| value.get("content")?.as_str())
            {
                config.special_tokens.push((name.clone(), text.to_owned()));
            }
        }
        config
    }
}

/// A template is one text, or a list of named ones of which chats take `default`.
fn template_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => {
            let text = |wanted: &str| {
                let found =
                    named.iter().find(|one| one.get("name").and_then(Value::as_str) == Some(wanted))?;
                found.get("template")?.as_str().map(str::to_owned)
            };
            text("default")
        }
        _ => None,
    }
}

/// The folder and the tokenizer.json that a configured path means.
pub fn locate(path: &Path) -> (PathBuf, PathBuf) {
    if path.is_dir() {
        (path.to_owned(), path.join("tokenizer.json"))
    } else {
        (path.parent().unwrap_or(Path::new("")).to_owned(), path.to_owned())
    }
}

/// Reads a whole file of bounded size.
///
/// # Errors
/// It cannot be read or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(invalid(path, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Like [`read`], for a text that may be absent.
///
/// # Errors
/// As [`read`], and for a file that is no UTF-8.
pub fn read_text_if_any(path: &Path) -> Result<Option<String>, LoadError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = String::from_utf8(read(path)?).map_err(|_| invalid(path, "not UTF-8"))?;
    Ok(Some(text))
}

/// Parses a file's JSON.
///
/// # Errors
/// The reason with line and column.
pub fn parse<'b, T: Deserialize<'b>>(path: &Path, bytes: &'b [u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(path, error.to_string()))
}

/// An error in a file's contents.
pub fn invalid(path: &Path, what: impl Into<String>) -> LoadError {
    LoadError::Invalid { path: path.to_owned(), what: what.into() }
}
