//! Requests whose prompts have nothing in common.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::load::words;

/// Digits of a request's number.
const DIGITS: usize = 16;
/// Columns of the prompts' text: real ones have line ends, which JSON escapes.
const LINE: usize = 80;

/// What bodies of requests end with that ask for a stream.
pub const STREAMED: &[u8] = b"\"stream\":true}";

/// A request as bytes: a beginning of its own for each connection, with the request's number in it, and a rest that
/// all share.
#[derive(Clone, Debug)]
pub struct Template {
    prefix: Vec<u8>,
    number_at: usize,
    rest: Arc<[u8]>,
    streamed: bool,
}

impl Template {
    /// A chat request with a body of so many bytes. The prompt begins with the number, so no two prompts share a block.
    pub fn new(to: SocketAddr, body: usize, streamed: bool) -> Self {
        let start = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"";
        let end = if streamed {
            "\"}],\"max_tokens\":256,\"stream\":true}"
        } else {
            "\"}],\"max_tokens\":256,\"temperature\":0.7}"
        };
        let text = body.saturating_sub(start.len() + end.len() + DIGITS + 1).max(1);
        let mut prompt = String::with_capacity(text + LINE);
        for line in words(7, (text / 4 + 1) as u32).as_bytes().chunks(LINE) {
            prompt.push_str(&String::from_utf8_lossy(line));
            prompt.push_str("\\n");
        }
        prompt.truncate(text);
        // Not in the middle of an escape.
        if prompt.ends_with('\\') {
            prompt.pop();
            prompt.push('.');
        }
        let length = start.len() + DIGITS + 1 + prompt.len() + end.len();
        let mut prefix = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {to}\r\nUser-Agent: OpenAI/Python 1.60.0\r\nAccept: \
             application/json\r\nAuthorization: Bearer sk-0123456789abcdef\r\nContent-Type: \
             application/json\r\nContent-Length: {length}\r\n\r\n{start}"
        )
        .into_bytes();
        let number_at = prefix.len();
        prefix.extend_from_slice(&[b'0'; DIGITS]);
        let rest = format!(" {prompt}{end}").into_bytes();
        Self { prefix, number_at, rest: rest.into(), streamed }
    }

    /// Puts a number in.
    pub fn number(&mut self, number: u64) {
        let digits = &mut self.prefix[self.number_at..self.number_at + DIGITS];
        for (n, digit) in digits.iter_mut().enumerate() {
            // The low digits first: what differs from request to request stands at the very beginning.
            *digit = b"0123456789abcdef"[(number >> (4 * n) & 15) as usize];
        }
    }

    /// The two parts.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        (&self.prefix, &self.rest)
    }

    /// Whether the answer is asked for as a stream.
    pub fn streamed(&self) -> bool {
        self.streamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_size_and_differ_from_the_start() {
        for (size, streamed) in [(1024, false), (10 << 10, true), (100 << 10, false)] {
            let mut template = Template::new(([127, 0, 0, 1], 9).into(), size, streamed);
            let body = |t: &Template| {
                let (prefix, rest) = t.parts();
                let whole = String::from_utf8([prefix, rest].concat()).unwrap();
                let (head, body) = whole.split_once("\r\n\r\n").unwrap();
                assert!(head.contains(&format!("Content-Length: {}", body.len())));
                body.to_owned()
            };
            template.number(1);
            let first = body(&template);
            assert_eq!(first.len(), size);
            template.number(2);
            let prompt = |text: &str| {
                let value: serde_json::Value = serde_json::from_str(text).unwrap();
                value["messages"][0]["content"].as_str().unwrap().to_owned()
            };
            assert_ne!(prompt(&first)[..1], prompt(&body(&template))[..1]);
        }
    }
}
