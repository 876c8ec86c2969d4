//! Reads the events of a chat stream, in whatever pieces they come.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest event, bytes.
const MAX_EVENT: usize = 1 << 20;

/// Token counts as a response tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub prompt: u64,
    pub cached: u64,
    pub completion: u64,
}

#[derive(Deserialize)]
pub(crate) struct UsageJson {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl From<UsageJson> for Usage {
    fn from(u: UsageJson) -> Self {
        Self {
            prompt: u.prompt_tokens,
            cached: u.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0),
            completion: u.completion_tokens,
        }
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<UsageJson>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Message>,
    #[serde(default)]
    message: Option<Message>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

/// Why a stream cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The server said so in an event.
    ErrorEvent(String),
    /// An event that is not what it should be.
    Malformed,
}

/// A stream so far.
#[derive(Debug, Default)]
pub(crate) struct ChatStream {
    line: Vec<u8>,
    /// The answer's text.
    pub text: String,
    /// Chunks that carried text.
    pub chunks: u64,
    /// Usage, once told.
    pub usage: Option<Usage>,
    /// Whether the end was announced.
    pub done: bool,
}

impl ChatStream {
    /// Takes the next bytes. Returns whether they carried text of the answer.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<bool, Broken> {
        let mut text = false;
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.line.is_empty() {
                text |= self.line(head)?;
            } else {
                self.line.extend_from_slice(head);
                let line = std::mem::take(&mut self.line);
                text |= self.line(&line)?;
            }
        }
        if self.line.len() + bytes.len() > MAX_EVENT {
            return Err(Broken::Malformed);
        }
        self.line.extend_from_slice(bytes);
        Ok(text)
    }

    fn line(&mut self, line: &[u8]) -> Result<bool, Broken> {
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(false) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(false);
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|_| Broken::Malformed)?;
        if chunk.error.is_some() {
            return Err(Broken::ErrorEvent(String::from_utf8_lossy(data).into_owned()));
        }
        if let Some(u) = chunk.usage {
            self.usage = Some(u.into());
        }
        let mut any = false;
        for c in chunk.choices {
            if let Some(t) = c.delta.and_then(|d| d.content).filter(|t| !t.is_empty()) {
                self.text.push_str(&t);
                self.chunks += 1;
                any = true;
            }
        }
        Ok(any)
    }
}

/// Text and usage of an answer in one piece.
pub(crate) fn whole(body: &[u8]) -> Result<(String, Option<Usage>), Broken> {
    let chunk: Chunk = serde_json::from_slice(body).map_err(|_| Broken::Malformed)?;
    if chunk.error.is_some() {
        return Err(Broken::ErrorEvent(String::from_utf8_lossy(body).into_owned()));
    }
    let text = chunk.choices.into_iter().find_map(|c| c.message?.content).unwrap_or_default();
    Ok((text, chunk.usage.map(Usage::from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        : comment\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\r\n\r\n\
        data:{\"choices\":[{\"delta\":{\"content\":\"lo \\u00e9\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\
        \"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n";

    #[test]
    fn any_split_reads_the_same() {
        for size in [1, 2, 3, 7, 50, 10_000] {
            let mut s = ChatStream::default();
            for piece in STREAM.as_bytes().chunks(size) {
                s.feed(piece).unwrap();
            }
            assert_eq!((s.text.as_str(), s.chunks, s.done), ("Hello é", 2, true));
            assert_eq!(s.usage, Some(Usage { prompt: 9, cached: 4, completion: 2 }));
        }
    }

    #[test]
    fn errors_in_the_stream_are_seen() {
        let mut s = ChatStream::default();
        assert!(matches!(s.feed(b"data: {\"error\":{\"message\":\"x\"}}\n\n"), Err(Broken::ErrorEvent(_))));
        assert_eq!(ChatStream::default().feed(b"data: {nonsense\n"), Err(Broken::Malformed));
        assert_eq!(ChatStream::default().feed(&vec![b'x'; MAX_EVENT + 1]), Err(Broken::Malformed));
    }

    #[test]
    fn whole_answers_are_read_too() {
        let body = br#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
        let usage = Usage { prompt: 3, cached: 0, completion: 1 };
        assert_eq!(whole(body), Ok(("hi".into(), Some(usage))));
        assert_eq!(whole(b"<html>"), Err(Broken::Malformed));
    }
}
