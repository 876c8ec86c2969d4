//! From a request body to what an engine computes: the prompt's text as a chat template would write it, and its
//! chained block hashes.
//!
//! A token stands for four bytes of that text; a prompt given as token ids stands for their little-endian bytes, and so
//! does every prompt where a [tokenizer](crate::tokenise) is given. A conversation with one more turn keeps the text of
//! the shorter one as its prefix.

use crate::tokenise::Tokeniser;
use serde_json::Value;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of prompt text per token.
pub const TOKEN_BYTES: usize = 4;

/// The routes that carry a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as their routes")]
pub enum Api {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Messages,
    CountTokens,
    Rerank,
    Score,
    Tokenize,
    Detokenize,
}

impl Api {
    /// The API behind a path, without its query.
    pub fn from_path(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/rerank" | "/rerank" | "/v2/rerank" => Self::Rerank,
            "/v1/score" | "/score" => Self::Score,
            "/tokenize" => Self::Tokenize,
            "/detokenize" => Self::Detokenize,
            _ => return None,
        })
    }

    /// Whether errors take Anthropic's form.
    pub fn is_anthropic(self) -> bool {
        matches!(self, Self::Messages | Self::CountTokens)
    }

    /// Whether the answer is made of generated tokens.
    pub fn generates(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Responses | Self::Messages)
    }
}

/// A request that an engine refuses before any work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    /// What is wrong, with the place.
    pub message: String,
    /// The member at fault, if one can be named.
    pub param: Option<&'static str>,
}

fn bad<T>(param: &'static str, message: impl Into<String>) -> Result<T, BadRequest> {
    Err(BadRequest { message: message.into(), param: Some(param) })
}

/// What a body asks for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The model, if named.
    pub model: Option<String>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether a stream ends with usage.
    pub include_usage: bool,
    /// Whether every chunk carries usage so far.
    pub continuous_usage: bool,
    /// Output limit in tokens.
    pub max_tokens: Option<u32>,
    /// Answers per prompt.
    pub n: u32,
    /// The prompts' texts.
    pub prompts: Vec<Vec<u8>>,
    /// Keeps caches of different callers apart.
    pub salt: String,
    /// Embeddings as base64 instead of numbers.
    pub base64: bool,
    /// Size of an embedding.
    pub dimensions: Option<u32>,
    /// Texts to rank.
    pub documents: Vec<String>,
    /// How many ranked texts to return.
    pub top_n: Option<usize>,
    /// Token ids to turn into text.
    pub tokens: Vec<u32>,
}

const MAX_N: u64 = 64;
const MAX_PROMPTS: usize = 2048;

/// Reads a body of `api`.
pub fn parse(api: Api, body: &[u8]) -> Result<Ask, BadRequest> {
    parse_with(api, body, None)
}

/// Reads a body of `api`, its prompts as `tokeniser` has them.
pub fn parse_with(api: Api, body: &[u8], tokeniser: Option<&Tokeniser>) -> Result<Ask, BadRequest> {
    let plain = |text: &str| match tokeniser {
        Some(t) => t.text(text, matches!(api, Api::Completions | Api::Tokenize)),
        None => Ok(text.as_bytes().to_vec()),
    };
    let written = |text: Vec<u8>| match tokeniser {
        Some(t) => t.text(&String::from_utf8_lossy(&text), false),
        None => Ok(text),
    };
    let talked = |root: &Object| match tokeniser {
        // What a template would pass over is wrong all the same.
        Some(t) => chat(root).and_then(|_| t.chat(body)),
        None => chat(root),
    };
    let root: Value = serde_json::from_slice(body)
        .map_err(|e| BadRequest { message: format!("Invalid JSON in request body: {e}"), param: None })?;
    let Value::Object(root) = &root else {
        return Err(BadRequest { message: "The request body must be a JSON object".into(), param: None });
    };
    let mut ask = Ask { n: 1, ..Ask::default() };
    ask.model = match root.get("model") {
        None | Some(Value::Null) => None,
        Some(Value::String(s)) => Some(s.clone()),
        Some(_) => return bad("model", "model: Input should be a valid string"),
    };
    ask.stream = match root.get("stream") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(b)) => *b,
        Some(_) => return bad("stream", "stream: Input should be a valid boolean"),
    };
    if let Some(o) = root.get("stream_options").filter(|o| !o.is_null()) {
        if !ask.stream && api != Api::Responses {
            return bad("stream_options", "Stream options can only be defined when `stream=True`.");
        }
        ask.include_usage = o.get("include_usage").and_then(Value::as_bool).unwrap_or(false);
        ask.continuous_usage = o.get("continuous_usage_stats").and_then(Value::as_bool).unwrap_or(false);
    }
    ask.salt = root.get("cache_salt").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(n) = root.get("n").filter(|n| !n.is_null()) {
        match n.as_u64() {
            Some(n @ 1..=MAX_N) => ask.n = n as u32,
            _ => return bad("n", format!("n must be between 1 and {MAX_N}, got {n}")),
        }
    }
    ask.max_tokens = limit(api, root)?;
    match api {
        Api::Chat => ask.prompts.push(talked(root)?),
        Api::Messages | Api::CountTokens => {
            if api == Api::Messages && ask.max_tokens.is_none() {
                return bad("max_tokens", "max_tokens: Field required");
            }
            ask.prompts.push(written(chat(root)?)?);
        }
        Api::Responses => ask.prompts.push(written(responses(root)?)?),
        Api::Completions => ask.prompts = prompts(root, "prompt", plain)?,
        Api::Embeddings => {
            ask.prompts = if root.contains_key("messages") {
                vec![talked(root)?]
            } else {
                prompts(root, "input", plain)?
            };
            ask.base64 = root.get("encoding_format").and_then(Value::as_str) == Some("base64");
            ask.dimensions = root.get("dimensions").and_then(Value::as_u64).map(|d| d.clamp(1, 8192) as u32);
        }
        Api::Rerank => {
            let Some(query) = root.get("query").and_then(Value::as_str) else {
                return bad("query", "query: Field required");
            };
            ask.documents = texts(root, "documents")?;
            ask.top_n = root.get("top_n").and_then(Value::as_u64).filter(|n| *n > 0).map(|n| n as usize);
            let pairs = pairs(&[query.to_owned()], &ask.documents);
            ask.prompts = pairs.into_iter().map(written).collect::<Result<_, _>>()?;
        }
        Api::Score => {
            let first = texts(root, if root.contains_key("queries") { "queries" } else { "text_1" })?;
            ask.documents = texts(root, if root.contains_key("documents") { "documents" } else { "text_2" })?;
            if first.len() != 1 && first.len() != ask.documents.len() {
                return bad("text_1", "text_1 must be one text or as many as text_2");
            }
            ask.prompts = pairs(&first, &ask.documents).into_iter().map(written).collect::<Result<_, _>>()?;
        }
        Api::Tokenize => {
            ask.prompts = if root.contains_key("messages") {
                vec![talked(root)?]
            } else {
                prompts(root, "prompt", plain)?
            };
        }
        Api::Detokenize => match root.get("tokens").map(ids) {
            Some(Some(t)) => ask.tokens = t,
            _ => return bad("tokens", "tokens: Input should be a list of token ids"),
        },
    }
    if ask.prompts.len() > MAX_PROMPTS {
        return bad(
            "input",
            format!("at most {MAX_PROMPTS} prompts in one request, got {}", ask.prompts.len()),
        );
    }
    Ok(ask)
}

type Object = serde_json::Map<String, Value>;

fn limit(api: Api, root: &Object) -> Result<Option<u32>, BadRequest> {
    let names: &[&'static str] = match api {
        Api::Chat => &["max_completion_tokens", "max_tokens"],
        Api::Completions | Api::Messages => &["max_tokens"],
        Api::Responses => &["max_output_tokens"],
        _ => &[],
    };
    for name in names {
        match root.get(*name) {
            None | Some(Value::Null) => {}
            Some(v) => match v.as_u64() {
                Some(n) if n >= 1 => return Ok(Some(n.min(u64::from(u32::MAX)) as u32)),
                _ => return bad(name, format!("{name} must be at least 1, got {v}")),
            },
        }
    }
    Ok(None)
}

/// Writes a conversation as a template does.
fn chat(root: &Object) -> Result<Vec<u8>, BadRequest> {
    let mut out = Vec::new();
    tools(root, &mut out);
    match root.get("system") {
        None | Some(Value::Null) => {}
        Some(s) => turn(&mut out, "system", |out| content(s, out)),
    }
    match root.get("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => {
            for (i, m) in messages.iter().enumerate() {
                message(i, m, &mut out)?;
            }
        }
        Some(Value::Array(_)) => return bad("messages", "messages: at least one message is required"),
        Some(_) => return bad("messages", "messages: Input should be a valid list"),
        None => return bad("messages", "messages: Field required"),
    }
    out.extend_from_slice(b"<|assistant|>\n");
    Ok(out)
}

fn message(i: usize, m: &Value, out: &mut Vec<u8>) -> Result<(), BadRequest> {
    let Value::Object(m) = m else {
        return bad("messages", format!("messages[{i}]: Input should be a valid object"));
    };
    let Some(role) = m.get("role").and_then(Value::as_str) else {
        return bad("messages", format!("messages[{i}].role: Field required"));
    };
    if !matches!(m.get("content"), None | Some(Value::Null) | Some(Value::String(_)) | Some(Value::Array(_)))
    {
        return bad("messages", format!("messages[{i}].content: Input should be a string or a list"));
    }
    turn(out, role, |out| {
        if let Some(c) = m.get("content") {
            content(c, out);
        }
        for extra in ["tool_calls", "tool_call_id", "name"] {
            if let Some(v) = m.get(extra).filter(|v| !v.is_null()) {
                out.push(b'\n');
                out.extend_from_slice(v.to_string().as_bytes());
            }
        }
    });
    Ok(())
}

fn turn(out: &mut Vec<u8>, role: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"<|");
    out.extend_from_slice(role.as_bytes());
    out.extend_from_slice(b"|>\n");
    fill(out);
    out.extend_from_slice(b"<|end|>\n");
}

fn tools(root: &Object, out: &mut Vec<u8>) {
    if let Some(Value::Array(t)) = root.get("tools")
        && !t.is_empty()
    {
        turn(out, "tools", |out| {
            for tool in t {
                out.extend_from_slice(tool.to_string().as_bytes());
                out.push(b'\n');
            }
        });
    }
}

fn content(c: &Value, out: &mut Vec<u8>) {
    match c {
        Value::String(s) => out.extend_from_slice(s.as_bytes()),
        Value::Array(parts) => {
            for p in parts {
                match p.get("text").and_then(Value::as_str) {
                    Some(t) => out.extend_from_slice(t.as_bytes()),
                    None => out.extend_from_slice(p.to_string().as_bytes()),
                }
            }
        }
        _ => {}
    }
}

fn responses(root: &Object) -> Result<Vec<u8>, BadRequest> {
    let mut out = Vec::new();
    tools(root, &mut out);
    if let Some(s) = root.get("instructions").filter(|s| !s.is_null()) {
        turn(&mut out, "system", |out| content(s, out));
    }
    match root.get("input") {
        Some(s @ Value::String(_)) => turn(&mut out, "user", |out| content(s, out)),
        Some(Value::Array(items)) if !items.is_empty() => {
            for item in items {
                let role = item.get("role").and_then(Value::as_str).unwrap_or("tool");
                turn(&mut out, role, |out| match item.get("content") {
                    Some(c) => content(c, out),
                    None => out.extend_from_slice(item.to_string().as_bytes()),
                });
            }
        }
        Some(_) => return bad("input", "input: Input should be a string or a list of items"),
        None => return bad("input", "input: Field required"),
    }
    out.extend_from_slice(b"<|assistant|>\n");
    Ok(out)
}

fn ids(v: &Value) -> Option<Vec<u32>> {
    v.as_array()?.iter().map(|t| t.as_u64().and_then(|t| u32::try_from(t).ok())).collect()
}

/// Token ids as the bytes that stand for them.
pub(crate) fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|t| t.to_le_bytes()).collect()
}

/// A text, a list of texts, a list of ids or a list of lists of ids.
fn prompts(
    root: &Object,
    name: &'static str,
    text: impl Fn(&str) -> Result<Vec<u8>, BadRequest>,
) -> Result<Vec<Vec<u8>>, BadRequest> {
    let wrong = || bad(name, format!("{name}: Input should be text, token ids or a list of either"));
    match root.get(name) {
        None | Some(Value::Null) => bad(name, format!("{name}: Field required")),
        Some(Value::String(s)) => Ok(vec![text(s)?]),
        Some(v @ Value::Array(items)) => match items.first() {
            None => bad(name, format!("{name}: must not be empty")),
            Some(Value::Number(_)) => ids(v).map_or_else(wrong, |t| Ok(vec![id_bytes(&t)])),
            _ => {
                let mut out = Vec::with_capacity(items.len());
                for item in items {
                    match item {
                        Value::String(s) => out.push(text(s)?),
                        other => match ids(other) {
                            Some(t) => out.push(id_bytes(&t)),
                            None => return wrong(),
                        },
                    }
                }
                Ok(out)
            }
        },
        Some(_) => wrong(),
    }
}

fn texts(root: &Object, name: &'static str) -> Result<Vec<String>, BadRequest> {
    match root.get(name) {
        Some(Value::String(s)) => Ok(vec![s.clone()]),
        Some(Value::Array(items)) if !items.is_empty() => items
            .iter()
            .map(|v| match v {
                Value::String(s) => Ok(s.clone()),
                other => match other.get("text").and_then(Value::as_str) {
                    Some(s) => Ok(s.to_owned()),
                    None => bad(name, format!("{name}: Input should be a list of texts")),
                },
            })
            .collect(),
        _ => bad(name, format!("{name}: Field required")),
    }
}

fn pairs(first: &[String], second: &[String]) -> Vec<Vec<u8>> {
    let one = first.first().map_or("", String::as_str);
    second
        .iter()
        .enumerate()
        .map(|(i, d)| {
            let q = if first.len() == 1 { one } else { first.get(i).map_or("", String::as_str) };
            format!("{q}<|sep|>{d}").into_bytes()
        })
        .collect()
}

/// Tokens of a text; an empty one still takes its start token.
pub fn count_tokens(text: &[u8]) -> u32 {
    text.len().div_ceil(TOKEN_BYTES).clamp(1, u32::MAX as usize) as u32
}

/// What the answer to a prompt is made from. Zeros at its end do not count: token ids pad the text that they stand for.
pub(crate) fn seed(prompt: &[u8]) -> u64 {
    let zeros = prompt.iter().rev().take_while(|b| **b == 0).count();
    xxhash_rust::xxh3::xxh3_64(&prompt[..prompt.len() - zeros])
}

/// Token ids of a text: its bytes in fours, zero padded.
pub fn token_ids(text: &[u8]) -> Vec<u32> {
    text.chunks(TOKEN_BYTES)
        .map(|c| {
            let mut b = [0; TOKEN_BYTES];
            b[..c.len()].copy_from_slice(c);
            u32::from_le_bytes(b)
        })
        .collect()
}

/// The text of token ids, without the padding of the last.
pub fn detokenize(ids: &[u32]) -> String {
    let mut bytes = id_bytes(ids);
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Chained hashes of the full blocks of `text`; the model and the salt name the root.
pub fn block_hashes(text: &[u8], model: &str, salt: &str, block_tokens: u32) -> Arc<[u64]> {
    let root =
        xxh3_64_with_seed(model.as_bytes(), xxh3_64_with_seed(salt.as_bytes(), u64::from(block_tokens)));
    text.chunks_exact(block_tokens.max(1) as usize * TOKEN_BYTES)
        .scan(root, |h, block| {
            *h = xxh3_64_with_seed(block, *h);
            Some(*h)
        })
        .collect()
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
